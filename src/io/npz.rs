//! Bytes of an array: a stretch of a file, or an entry of a .npz (zip) that is inflated as it is read.

use flate2::CrcReader;
use flate2::read::DeflateDecoder;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use zip::{CompressionMethod, ZipArchive};

/// Deflate cannot expand more than this.
pub(super) const MAX_EXPANSION: u64 = 1032;

/// Bytes of a known length, read at any offset.
pub(super) enum Source {
    /// A stretch of a file that is really there.
    Plain { file: File, start: u64, len: u64 },
    /// Deflated bytes; their length is only claimed.
    Deflated(Box<Inflater>),
}

impl Source {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Plain { len, .. } => *len,
            Self::Deflated(inflater) => inflater.len,
        }
    }

    /// Whether [`Source::len`] bytes are known to be there.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain { .. })
    }

    /// Bytes inflated so far.
    pub(super) fn inflated(&self) -> u64 {
        match self {
            Self::Plain { .. } => 0,
            Self::Deflated(inflater) => inflater.inflated,
        }
    }

    /// Fills `buffer` from `offset` on. Going back in a deflated entry starts it anew.
    pub(super) fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), String> {
        let read = match self {
            Self::Plain { file, start, .. } => {
                file.seek(SeekFrom::Start(*start + offset)).and_then(|_| file.read_exact(buffer))
            }
            Self::Deflated(inflater) => inflater.read_at(offset, buffer),
        };
        read.map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => "the file ended early: it was cut while being read".into(),
            _ => format!("cannot read: {e}"),
        })
    }
}

/// A deflated zip entry, read forwards.
pub(super) struct Inflater {
    file: File,
    start: u64,
    stored: u64,
    len: u64,
    crc: u32,
    stream: Option<CrcReader<DeflateDecoder<Take<File>>>>,
    position: u64,
    inflated: u64,
}

impl Inflater {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.stream.is_none() || offset < self.position {
            self.file.seek(SeekFrom::Start(self.start))?;
            let stored = self.file.try_clone()?.take(self.stored);
            self.stream = Some(CrcReader::new(DeflateDecoder::new(stored)));
            self.position = 0;
        }
        let mut skipped = [0; 8192];
        while self.position < offset {
            let step = skipped.len().min((offset - self.position) as usize);
            self.advance(&mut skipped[..step])?;
        }
        self.advance(buffer)
    }

    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let stream = self.stream.as_mut().expect("opened by read_at");
        stream.read_exact(buffer).map_err(|e| damaged(format!("damaged compressed data ({e})")))?;
        self.position += buffer.len() as u64;
        self.inflated += buffer.len() as u64;
        if self.position == self.len && stream.crc().sum() != self.crc {
            return Err(damaged("damaged compressed data (checksum differs)".into()));
        }
        Ok(())
    }
}

/// Finds an entry of the zip in `file`: the named one (with or without `.npy`), or the first `.npy`.
/// Returns its name and bytes.
pub(super) fn entry(file: File, name: Option<&str>) -> Result<(String, Source), String> {
    let damaged = |e: zip::result::ZipError| format!("is a damaged or truncated .npz ({e}); copy or download it again");
    let copy = file.try_clone().map_err(|e| format!("cannot read: {e}"))?;
    let mut archive = ZipArchive::new(io::BufReader::with_capacity(4096, file)).map_err(damaged)?;
    let mut found = None;
    let mut names = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_data(index).map_err(damaged)?;
        let full = entry.name().map_err(damaged)?.into_owned();
        let Some(stem) = full.strip_suffix(".npy") else { continue };
        if name.is_none_or(|name| name == full || name == stem) {
            found = Some((index, full));
            break;
        }
        if names.len() < 8 {
            names.push(stem.to_string());
        }
    }
    let Some((index, full)) = found else {
        return Err(match name {
            Some(name) => format!("has no entry {name:?}; it has {}", names.join(", ")),
            None => "holds no .npy entry; write it with numpy.savez".into(),
        });
    };
    let entry = archive.by_index_raw(index).map_err(damaged)?;
    let start = entry.data_start().ok_or("has an entry whose place is unknown")?;
    let (stored, len, crc) = (entry.compressed_size(), entry.size(), entry.crc32());
    if entry.encrypted() {
        return Err(format!("entry {full} is encrypted; save it without a password"));
    }
    let total = copy.metadata().map_err(|e| format!("cannot read: {e}"))?.len();
    if start.checked_add(stored).is_none_or(|end| end > total) {
        return Err(format!(
            "entry {full} should take {stored} bytes from byte {start}, the file has {total}: truncated"
        ));
    }
    let source = match entry.compression() {
        CompressionMethod::Stored if stored == len => Source::Plain { file: copy, start, len },
        CompressionMethod::Deflated if len / MAX_EXPANSION <= stored => Source::Deflated(Box::new(Inflater {
            file: copy,
            start,
            stored,
            len,
            crc,
            stream: None,
            position: 0,
            inflated: 0,
        })),
        CompressionMethod::Stored | CompressionMethod::Deflated => {
            return Err(format!("entry {full} claims {len} bytes stored in {stored}, which cannot be"));
        }
        other => return Err(format!("entry {full} is compressed by {other}; save it with numpy.savez_compressed")),
    };
    Ok((full, source))
}
