//! Opening an array file of any known kind and reading items of it.

use super::dtype::{DType, Element};
use super::guard::guarded;
use super::hdf5::Hdf5Array;
use super::npy::{self, NpyArray};
use super::npz::{self, Source};
use crate::Error;
use ndarray::ArrayD;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How much reading may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest file that is opened, bytes.
    pub max_bytes: u64,
    /// Largest array that one read returns, bytes; also bounds what is kept of a chunked HDF5 file.
    pub max_read: usize,
}

impl Default for Limits {
    /// 64 GiB a file, 4 GiB a read.
    fn default() -> Self {
        Self { max_bytes: 64 << 30, max_read: 4 << 30 }
    }
}

enum Store {
    Npy(NpyArray),
    Hdf5(Box<Hdf5Array>),
}

/// An open array of numbers in a .npy, .npz or HDF5 file, read by ranges along axis 0.
///
/// Reading seeks in .npy and in stored .npz entries, reads only the chunks it needs of HDF5, and inflates deflated
/// .npz entries forwards, so items in rising order cost one pass.
pub struct ArrayFile {
    path: PathBuf,
    limits: Limits,
    store: Store,
}

impl ArrayFile {
    /// Opens a file, or an entry of it by `file.npz:name` or `file.h5:/dataset`.
    ///
    /// The kind is told by the first bytes. Header and length must agree. Errors: [`Error::Io`] when the system refuses;
    /// [`Error::Input`] when the file is no array of numbers, is truncated or damaged, or is larger than
    /// `limits.max_bytes`.
    pub fn open(path: impl AsRef<Path>, limits: &Limits) -> crate::Result<Self> {
        let path = path.as_ref();
        let (file_path, entry) = split_entry(path);
        // Asked before opening: opening a pipe would wait for its writer.
        let metadata = std::fs::metadata(&file_path).map_err(|e| Error::io(&file_path, "read", e))?;
        if !metadata.is_file() {
            return Err(Error::input(path, "is no regular file; name a .npy, .npz or HDF5 file"));
        }
        let mut file = File::open(&file_path).map_err(|e| Error::io(&file_path, "read", e))?;
        let len = metadata.len();
        if len > limits.max_bytes {
            let problem =
                format!("has {len} bytes, over the limit of {}; split it or raise the limit", limits.max_bytes);
            return Err(Error::input(path, problem));
        }
        let opened = guarded(|| {
            let store = match (kind(&mut file, len)?, entry) {
                ("npy", Some(entry)) => return Err(format!("is .npy and has no entries; leave out {entry:?}")),
                ("npy", None) => Store::Npy(NpyArray::open(Source::Plain { file, start: 0, len })?),
                ("npz", entry) => {
                    let (name, source) = npz::entry(file, entry.as_deref())?;
                    Store::Npy(NpyArray::open(source).map_err(|e| format!("entry {name}: {e}"))?)
                }
                (_, entry) => Store::Hdf5(Box::new(Hdf5Array::open(&file_path, len, entry.as_deref(), limits)?)),
            };
            Ok(store)
        });
        let store = opened.map_err(|problem| Error::input(path, one_line(&problem)))?;
        Ok(Self { path: path.to_path_buf(), limits: *limits, store })
    }

    /// The path as it was given, entry included.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lengths of the axes, at least one.
    pub fn shape(&self) -> &[usize] {
        match &self.store {
            Store::Npy(array) => &array.shape,
            Store::Hdf5(array) => &array.shape,
        }
    }

    /// The number type in the file.
    pub fn dtype(&self) -> DType {
        match &self.store {
            Store::Npy(array) => array.dtype,
            Store::Hdf5(array) => array.dtype,
        }
    }

    /// Number of items: the length of axis 0.
    pub fn len(&self) -> usize {
        self.shape()[0]
    }

    /// Whether axis 0 has no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes decompressed so far (0 for a file that is not compressed): what reading may have allocated beyond the
    /// file's own size.
    pub fn inflated(&self) -> u64 {
        match &self.store {
            Store::Npy(array) => array.inflated(),
            Store::Hdf5(array) => array.inflated(),
        }
    }

    /// Reads items `range` of axis 0 as an array in C order, its axis 0 of length `range.len()`.
    ///
    /// Errors: [`Error::Usage`] for a range beyond the end, [`Error::Memory`] over `limits.max_read`, [`Error::Input`]
    /// for damaged data.
    pub fn read<T: Element>(&mut self, range: Range<usize>) -> crate::Result<ArrayD<T>> {
        if range.start > range.end || range.end > self.len() {
            let (path, n) = (self.path.display(), self.len());
            return Err(Error::Usage(format!(
                "{path}: has {n} items; there is no range {}..{}",
                range.start, range.end
            )));
        }
        let mut shape = self.shape().to_vec();
        shape[0] = range.len();
        let bytes = shape.iter().try_fold(size_of::<T>(), |product, &n| product.checked_mul(n));
        if bytes.is_none_or(|bytes| bytes > self.limits.max_read) {
            let (path, limit) = (self.path.display(), self.limits.max_read);
            return Err(Error::Memory(format!(
                "{path}: items {}..{} of shape {:?} do not fit under the limit of {limit} bytes a read; read fewer at a time",
                range.start,
                range.end,
                &shape[1..]
            )));
        }
        let store = &mut self.store;
        let values = guarded(|| {
            let mut values = Vec::new();
            match store {
                Store::Npy(array) => array.read(range, &mut values)?,
                Store::Hdf5(array) => array.read(range, &mut values)?,
            }
            Ok(values)
        })
        .map_err(|problem| Error::input(&self.path, one_line(&problem)))?;
        Ok(ArrayD::from_shape_vec(shape, values).expect("every number of the shape was read"))
    }
}

/// The file of a path, and the entry of it that is named after a colon, if any. A file whose own name holds a colon is taken whole.
pub fn split_entry(path: &Path) -> (PathBuf, Option<String>) {
    let whole = (path.to_path_buf(), None);
    let Some(text) = path.to_str().filter(|_| !path.exists()) else { return whole };
    text.match_indices(':')
        .map(|(at, _)| (Path::new(&text[..at]), &text[at + 1..]))
        .find(|(file, entry)| file.is_file() && !entry.is_empty())
        .map_or(whole, |(file, entry)| (file.to_path_buf(), Some(entry.to_string())))
}

/// Tells the kind by magic bytes: "npy", "npz" or "hdf5".
fn kind(file: &mut File, len: u64) -> Result<&'static str, String> {
    const HDF5: &[u8] = b"\x89HDF\r\n\x1a\n";
    let mut at = |offset: u64| -> Result<Vec<u8>, String> {
        let mut first = Vec::new();
        let seeked = file.seek(SeekFrom::Start(offset)).and_then(|_| file.by_ref().take(8).read_to_end(&mut first));
        seeked.map_err(|e| format!("cannot read: {e}")).map(|_| first)
    };
    let first = at(0)?;
    if first.is_empty() {
        return Err("is empty".into());
    }
    if first.starts_with(npy::MAGIC) {
        return Ok("npy");
    }
    if first.starts_with(b"PK\x03\x04") || first.starts_with(b"PK\x05\x06") {
        return Ok("npz");
    }
    // HDF5 may follow a user block of 512 bytes or a doubling of it.
    let mut offset = 0;
    while offset + 8 <= len {
        if at(offset)? == HDF5 {
            return Ok("hdf5");
        }
        offset = (offset * 2).max(512);
    }
    let begin: Vec<String> = first.iter().map(|b| format!("{b:02x}")).collect();
    Err(format!("is neither .npy, .npz nor HDF5 (it begins with {}); save it with numpy.save", begin.join(" ")))
}

/// Parsers' messages may run over several lines; errors here are one.
fn one_line(problem: &str) -> String {
    let words: Vec<&str> = problem.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(500) {
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}
