//! Writing of arrays as .npy or HDF5, whole or item by item; the name's extension chooses.
//!
//! HDF5 files are written through `rust-hdf5`: one dataset [`DATASET`], chunked, shuffled and deflated.

use super::atomic::Pending;
use super::dtype::{DType, Element};
use super::guard::guarded;
use super::npy::header_bytes;
use crate::Error;
use ndarray::{ArrayView, Dimension};
use rust_hdf5::{H5Dataset, H5File, Hdf5Error};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Name of the dataset in the HDF5 files that are written.
pub const DATASET: &str = "data";

/// Deflate level: higher ones cost time and gain little on shuffled floats.
const LEVEL: u32 = 4;

/// Writes a whole array in its own number type, .npy or HDF5 by extension.
///
/// As [`write_atomic`](super::write_atomic): the old file stays until the new one is complete. Errors: [`Error::Usage`]
/// for an unknown extension, [`Error::Io`] when the system refuses.
pub fn write_array<T: Element, D: Dimension>(path: impl AsRef<Path>, array: ArrayView<'_, T, D>) -> crate::Result<()> {
    let mut writer = ArrayWriter::create(path, array.shape(), T::DTYPE, Some(1))?;
    // One item without a counting axis.
    writer.bare = true;
    writer.append(array)?;
    writer.finish()
}

/// Chunks that the HDF5 library's index of a growing dataset can hold.
const HDF5_ITEMS: usize = 131_060;

/// Writes a stack of equal items one by one, .npy or HDF5 (a chunk an item) by extension.
///
/// Nothing appears at the path before [`ArrayWriter::finish`]; dropped before, the unfinished file is removed.
pub struct ArrayWriter {
    path: PathBuf,
    item: Vec<usize>,
    dtype: DType,
    expected: Option<usize>,
    written: usize,
    bare: bool,
    bytes: Vec<u8>,
    // Before `pending`: must be closed before the file is removed.
    sink: Sink,
    pending: Pending,
}

enum Sink {
    Npy { file: BufWriter<std::fs::File>, header: usize },
    Hdf5 { open: Option<(H5File, H5Dataset)> },
}

impl ArrayWriter {
    /// Begins a file of items of shape `item`, stored as `dtype` ([`DType::F32`] or [`DType::F64`]).
    ///
    /// With `expected`, [`ArrayWriter::finish`] refuses any other number of items. Errors: [`Error::Usage`] for an
    /// extension other than .npy, .h5, .hdf5, another `dtype`, an empty item, or more of them expected than HDF5 takes; [`Error::Io`] when the system refuses.
    pub fn create(
        path: impl AsRef<Path>,
        item: &[usize],
        dtype: DType,
        expected: Option<usize>,
    ) -> crate::Result<Self> {
        let path = path.as_ref();
        let usage = |problem: &str| Err(Error::Usage(format!("{}: {problem}", path.display())));
        if dtype != DType::F32 && dtype != DType::F64 {
            return usage("arrays are written as <f4 or <f8");
        }
        if item.contains(&0) {
            return usage("an array without numbers is not worth a file");
        }
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let hdf5 = match extension.as_deref() {
            Some("npy") => false,
            Some("h5" | "hdf5") if item.iter().product::<usize>() * dtype.size() > u32::MAX as usize => {
                return usage("an HDF5 chunk holds at most 4 GiB; write smaller items, or .npy");
            }
            Some("h5" | "hdf5") if expected.is_some_and(|n| n > HDF5_ITEMS) => {
                return usage(&format!("an HDF5 file holds at most {HDF5_ITEMS} items; write .npy"));
            }
            Some("h5" | "hdf5") => true,
            _ => return usage("arrays are written as .npy, .h5 or .hdf5; give the name one of these"),
        };
        let pending = Pending::create(path)?;
        let sink = if hdf5 {
            Sink::Hdf5 { open: None }
        } else {
            npy_sink(&pending, item, dtype).map_err(|e| Error::io(path, "write", e))?
        };
        let (path, item) = (path.to_path_buf(), item.to_vec());
        Ok(Self { path, item, dtype, expected, written: 0, bare: false, bytes: Vec::new(), sink, pending })
    }

    /// Number of items written so far.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Adds an item, converted to the file's number type. [`Error::Usage`] when it has another shape.
    pub fn append<T: Element, D: Dimension>(&mut self, item: ArrayView<'_, T, D>) -> crate::Result<()> {
        if item.shape() != self.item {
            let (path, found) = (self.path.display(), item.shape());
            return Err(Error::Usage(format!("{path}: items have shape {:?}, not {found:?}", self.item)));
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        self.dtype.encode(item, &mut bytes);
        let written = self.append_encoded(&bytes);
        self.bytes = bytes;
        written
    }

    /// Adds one or more whole items that [`DType::encode`] has turned into bytes. [`Error::Usage`] for a part of one.
    pub fn append_encoded(&mut self, bytes: &[u8]) -> crate::Result<()> {
        let size = self.item.iter().product::<usize>() * self.dtype.size();
        if bytes.is_empty() || !bytes.len().is_multiple_of(size) {
            let (path, found) = (self.path.display(), bytes.len());
            return Err(Error::Usage(format!("{path}: items have {size} bytes; {found} are no whole number of them")));
        }
        bytes.chunks_exact(size).try_for_each(|item| self.append_item(item))
    }

    fn append_item(&mut self, bytes: &[u8]) -> crate::Result<()> {
        let written = match &mut self.sink {
            Sink::Npy { file, .. } => file.write_all(bytes),
            Sink::Hdf5 { open } => {
                let (tmp, bare) = (self.pending.tmp_path(), self.bare);
                let (item, dtype, index) = (&self.item, self.dtype, self.written);
                hdf5_call(|| {
                    if open.is_none() {
                        *open = Some(hdf5_create(tmp, item, dtype, bare)?);
                    }
                    let (_, dataset) = open.as_ref().expect("just opened");
                    dataset.write_chunk(index, bytes)
                })
            }
        };
        written.map_err(|e| self.failed(e))?;
        self.written += 1;
        Ok(())
    }

    /// Completes the file, syncs it and puts it in its place.
    pub fn finish(mut self) -> crate::Result<()> {
        if self.expected.is_some_and(|n| n != self.written) || self.written == 0 {
            let (path, n) = (self.path.display(), self.expected.unwrap_or(1));
            return Err(Error::Usage(format!("{path}: {} items were written, {n} were to be", self.written)));
        }
        let mut shape = self.item.clone();
        if !self.bare {
            shape.insert(0, self.written);
        }
        let finished = match &mut self.sink {
            Sink::Npy { file, header } => {
                let bytes = header_bytes(&shape, self.dtype, *header);
                file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&bytes)).and_then(|()| file.flush())
            }
            Sink::Hdf5 { open } => {
                let (file, dataset) = open.take().expect("an item was written");
                let extend = !self.bare;
                hdf5_call(move || {
                    if extend {
                        dataset.extend(&shape)?;
                    }
                    drop(dataset);
                    // The sync is ours, through the handle of the pending file.
                    file.close_no_sync()
                })
            }
        };
        finished.map_err(|e| self.failed(e))?;
        let Self { pending, sink, .. } = self;
        drop(sink);
        pending.commit()
    }

    /// The error of a failed write. An emptied file lets what is left to be flushed on drop succeed on a full disk.
    fn failed(&self, source: io::Error) -> Error {
        let _ = self.pending.file().set_len(0);
        Error::io(&self.path, "write", source)
    }
}

/// A .npy with room in its header for any number of items.
fn npy_sink(pending: &Pending, item: &[usize], dtype: DType) -> io::Result<Sink> {
    let one = [&[1], item].concat();
    let header = header_bytes(&one, dtype, 0).len() + 64;
    let mut file = BufWriter::with_capacity(1 << 16, pending.file().try_clone()?);
    file.write_all(&vec![b' '; header])?;
    Ok(Sink::Npy { file, header })
}

/// An HDF5 file with an empty dataset, a chunk an item, or all in one chunk if it is `bare`.
fn hdf5_create(path: &Path, item: &[usize], dtype: DType, bare: bool) -> Result<(H5File, H5Dataset), Hdf5Error> {
    let file = H5File::options().no_locking().create(path)?;
    let (mut shape, mut chunk) = (item.to_vec(), item.to_vec());
    let mut longest: Vec<Option<usize>> = item.iter().map(|&n| Some(n)).collect();
    if !bare {
        shape.insert(0, 0);
        chunk.insert(0, 1);
        longest.insert(0, None);
    }
    let dataset = if dtype == DType::F32 {
        file.new_dataset::<f32>().shape(&shape).chunk(&chunk).max_shape(&longest).shuffle_deflate(LEVEL).create(DATASET)
    } else {
        file.new_dataset::<f64>().shape(&shape).chunk(&chunk).max_shape(&longest).shuffle_deflate(LEVEL).create(DATASET)
    }?;
    Ok((file, dataset))
}

/// A call of `rust-hdf5`, whose panics become errors.
pub(crate) fn hdf5_call<T>(call: impl FnOnce() -> Result<T, Hdf5Error>) -> io::Result<T> {
    match guarded(|| Ok(call())) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Hdf5Error::Io(e))) => Err(e),
        Ok(Err(e)) => Err(system_error(&e.to_string())),
        Err(message) => Err(io::Error::other(message)),
    }
}

/// The system's error that a message of `rust-hdf5` tells of; its type is private there.
fn system_error(message: &str) -> io::Error {
    let number = message.split_once("(os error ").and_then(|(_, rest)| rest.split(')').next()?.parse().ok());
    number.map_or_else(|| io::Error::other(message), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::system_error;
    use std::io::ErrorKind;

    #[test]
    fn the_systems_reason_is_found() {
        let full = std::io::Error::from_raw_os_error(28);
        assert_eq!(system_error(&format!("hdf5-io error: I/O error: {full}")).kind(), full.kind());
        assert_eq!(system_error("no dataset").kind(), ErrorKind::Other);
        assert_eq!(system_error("(os error x)").kind(), ErrorKind::Other);
    }
}
