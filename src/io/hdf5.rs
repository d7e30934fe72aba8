//! HDF5 datasets, read through `hdf5-reader` chunk by chunk under limits.

use super::array::Limits;
use super::dtype::{DType, Element, Kind};
use super::hdf5_guard::Guarded;
use super::npy::{BLOCK, MAX_AXES, checked_shape};
use super::npz::MAX_EXPANSION;
use flate2::read::ZlibDecoder;
use hdf5_reader::error::Error;
use hdf5_reader::filters::{FILTER_DEFLATE, FILTER_NBIT, FILTER_SCALEOFFSET, FILTER_SZIP};
use hdf5_reader::group::Group;
use hdf5_reader::{
    ByteOrder, Dataset, Datatype, FilterRegistry, H5Type, Hdf5File, OpenOptions, SliceInfo, SliceInfoElem,
};
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Groups and datasets looked at in search of the first array.
const MAX_SEARCHED: usize = 1000;
/// Chunks kept decoded at most.
const MAX_CACHED: usize = 4096;

/// A dataset whose extent agrees with what the file can hold.
pub(super) struct Hdf5Array {
    dataset: Dataset,
    /// Lengths of a chunk's axes; `None` for a dataset in one piece.
    chunk: Option<Vec<usize>>,
    inflated: Arc<AtomicU64>,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
}

impl Hdf5Array {
    /// Opens the named dataset, or the first that holds numbers.
    pub(super) fn open(path: &Path, len: u64, name: Option<&str>, limits: &Limits) -> Result<Self, String> {
        let inflated = Arc::new(AtomicU64::new(0));
        // Opened twice: how many chunks to keep is known only once the dataset's layout is.
        let probe = dataset(&open_file(path, 0, 1, 1 << 20, &inflated)?, name)?;
        let dtype = dtype_of(&probe)?;
        let shape = checked_shape(probe.shape(), dtype)?;
        let bytes = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
        let chunk: Option<Vec<usize>> = probe.chunks().map(|dims| dims.iter().map(|&n| n as usize).collect());
        let possible = if chunk.is_some() { len.saturating_mul(MAX_EXPANSION) } else { len };
        if bytes > possible {
            return Err(format!(
                "truncated or never filled: shape {shape:?} of {dtype} takes {bytes} bytes, the file has {len}"
            ));
        }
        let (mut cache, mut slots, mut chunk_bytes) = (0, 1, 0);
        if let Some(chunk) = &chunk {
            if chunk.len() != shape.len() || chunk.contains(&0) {
                return Err(format!("is damaged: chunks {chunk:?} do not divide shape {shape:?}"));
            }
            let size = chunk.iter().try_fold(dtype.size(), |product, &n| product.checked_mul(n));
            chunk_bytes = size.filter(|&size| size <= limits.max_read).ok_or_else(|| {
                let limit = limits.max_read;
                format!("has chunks {chunk:?} over the limit of {limit} bytes a read; store it in smaller chunks")
            })?;
            // What one item touches is kept, so that items in rising order decode every chunk once.
            let across: usize = (1..shape.len()).map(|axis| shape[axis].div_ceil(chunk[axis]).max(1)).product();
            slots = across.clamp(1, MAX_CACHED);
            cache = slots.saturating_mul(chunk_bytes).min(limits.max_read).max(chunk_bytes);
        }
        let dataset = dataset(&open_file(path, cache, slots, chunk_bytes, &inflated)?, name)?;
        Ok(Self { dataset, chunk, inflated, shape, dtype })
    }

    /// Bytes inflated so far.
    pub(super) fn inflated(&self) -> u64 {
        self.inflated.load(Ordering::Relaxed)
    }

    /// Appends items `range` of axis 0, in C order, in blocks that are small until their chunks are decoded.
    pub(super) fn read<T: Element>(&mut self, range: Range<usize>, out: &mut Vec<T>) -> Result<(), String> {
        if range.is_empty() || self.shape.contains(&0) {
            return Ok(());
        }
        let mut bounds: Vec<Range<usize>> = self.shape.iter().map(|&n| 0..n).collect();
        bounds[0] = range;
        // The axis that is cut into blocks: those before it are walked number by number, those after it taken whole.
        let after = |axis: usize| bounds[axis + 1..].iter().map(|b| b.len()).product::<usize>();
        let axis = (0..bounds.len()).find(|&axis| after(axis) <= BLOCK).expect("nothing lies after the last axis");
        let step = BLOCK / after(axis);
        let mut block = bounds.clone();
        for (a, b) in block.iter_mut().enumerate().take(axis) {
            *b = bounds[a].start..bounds[a].start + 1;
        }
        loop {
            for start in bounds[axis].clone().step_by(step) {
                block[axis] = start..(start + step).min(bounds[axis].end);
                self.read_block(&block, out)?;
            }
            // The next of the axes before, the last one fastest.
            let Some(a) = (0..axis).rev().find(|&a| block[a].end < bounds[a].end) else { return Ok(()) };
            block[a] = block[a].start + 1..block[a].end + 1;
            for b in a + 1..axis {
                block[b] = bounds[b].start..bounds[b].start + 1;
            }
        }
    }

    fn read_block<T: Element>(&mut self, block: &[Range<usize>], out: &mut Vec<T>) -> Result<(), String> {
        let slice = |b: &Range<usize>| SliceInfoElem::Slice { start: b.start as u64, end: b.end as u64, step: 1 };
        let selection = SliceInfo { selections: block.iter().map(slice).collect() };
        let loads = || {
            let stats = self.dataset.chunk_cache_stats();
            stats.hits + stats.misses
        };
        let before = loads();
        let values = self.dataset.read_slice::<Number<T>>(&selection).map_err(|e| format!("cannot decode: {e}"))?;
        if let Some(chunk) = &self.chunk {
            let covered = |(b, n): (&Range<usize>, &usize)| (b.end - 1) / n - b.start / n + 1;
            let needed: usize = block.iter().zip(chunk).map(covered).product();
            // A missing chunk would read as the fill value: a hole that looks like data.
            if loads() - before < needed as u64 {
                return Err(format!("has holes: chunks at {block:?} were never written; write the file again"));
            }
        }
        out.extend(values.into_iter().map(|number| number.0));
        Ok(())
    }
}

/// A number of any stored type, converted to `T`.
#[derive(Clone, Copy)]
struct Number<T>(T);

impl<T: Element> H5Type for Number<T> {
    fn hdf5_type() -> Datatype {
        Datatype::FloatingPoint { size: size_of::<T>() as u8, byte_order: ByteOrder::LittleEndian }
    }

    fn from_bytes(bytes: &[u8], stored: &Datatype) -> Result<Self, Error> {
        let numbers = Self::decode_vec(bytes, stored, 1).transpose()?;
        let first = numbers.and_then(|numbers| numbers.into_iter().next());
        first.ok_or_else(|| Error::InvalidData("too few bytes for a number".into()))
    }

    fn element_size(stored: &Datatype) -> usize {
        number_type(stored).map_or(size_of::<T>(), DType::size)
    }

    fn decode_vec(raw: &[u8], stored: &Datatype, count: usize) -> Option<Result<Vec<Self>, Error>> {
        let dtype = number_type(stored)?;
        let bytes = raw.get(..count.checked_mul(dtype.size())?)?;
        let mut values = Vec::with_capacity(count);
        dtype.decode(bytes, &mut values);
        Some(Ok(values.into_iter().map(Number).collect()))
    }
}

fn number_type(stored: &Datatype) -> Option<DType> {
    let big = |order: &ByteOrder| *order == ByteOrder::BigEndian;
    match stored {
        Datatype::FloatingPoint { size, byte_order } => DType::new(Kind::Float, (*size).into(), big(byte_order)),
        Datatype::FixedPoint { size, signed, byte_order } => {
            DType::new(if *signed { Kind::Int } else { Kind::Uint }, (*size).into(), big(byte_order))
        }
        _ => None,
    }
}

fn dtype_of(dataset: &Dataset) -> Result<DType, String> {
    let other = || format!("dataset {} holds no f2, f4, f8 or integers; store it as one of these", dataset.name());
    let dtype = number_type(dataset.dtype()).ok_or_else(other)?;
    if dtype.is_float() {
        // Sizes of exponent and mantissa, so that other formats of the same width (bfloat16) are not misread.
        let raw = dataset.raw_datatype().map_err(|e| e.to_string())?;
        let ieee = match dtype.size() {
            2 => (5, 10),
            4 => (8, 23),
            _ => (11, 52),
        };
        if raw.get(13).copied().zip(raw.get(15).copied()) != Some(ieee) {
            return Err(other());
        }
    }
    Ok(dtype)
}

/// Opens the file with its own inflation, which grows with what is decoded, and without the exotic filters.
fn open_file(
    path: &Path,
    cache: usize,
    slots: usize,
    chunk_bytes: usize,
    inflated: &Arc<AtomicU64>,
) -> Result<Hdf5File, String> {
    let mut filters = FilterRegistry::new();
    let counter = inflated.clone();
    filters.register(
        FILTER_DEFLATE,
        Box::new(move |_, data, _| {
            let mut decoded = Vec::new();
            // A checksum of an inner Fletcher32 filter may follow the chunk.
            let decoder = ZlibDecoder::new(data).take(chunk_bytes as u64 + 4);
            let read = { decoder }.read_to_end(&mut decoded);
            counter.fetch_add(decoded.len() as u64, Ordering::Relaxed);
            read.map_err(|e| Error::DecompressionError(e.to_string()))?;
            Ok(decoded)
        }),
    );
    for id in [FILTER_SZIP, FILTER_NBIT, FILTER_SCALEOFFSET] {
        let refuse = move |_: &_, _: &[u8], _| {
            Err(Error::UnsupportedFilter(format!("filter {id}; store the dataset with gzip or uncompressed")))
        };
        filters.register(id, Box::new(refuse));
    }
    let options = OpenOptions::default()
        .with_chunk_cache_bytes(cache)
        .with_chunk_cache_slots(slots)
        .with_max_chunk_bytes(chunk_bytes)
        .with_max_object_header_bytes(1 << 20)
        .with_filter_registry(filters);
    let damaged = |e: Error| format!("is damaged or truncated HDF5 ({e})");
    let storage = Guarded::open(path).map_err(damaged)?;
    Hdf5File::from_storage_with_options(Arc::new(storage), options).map_err(damaged)
}

fn dataset(file: &Hdf5File, name: Option<&str>) -> Result<Dataset, String> {
    let damaged = |e: Error| format!("is damaged or truncated HDF5 ({e})");
    let root = file.root_group().map_err(damaged)?;
    match name {
        Some(name) => file.dataset(name).map_err(|e| {
            let names = root.member_names().map(|(_, names)| names).unwrap_or_default();
            let names: Vec<String> = names.into_iter().take(8).collect();
            format!("has no readable dataset {name:?} ({e}); its root holds {names:?}")
        }),
        None => first(&root, 0, &mut 0)
            .map_err(|e| format!("{}; name a dataset: file.h5:/dataset", damaged(e)))?
            .ok_or_else(|| "holds no dataset of numbers; name one: file.h5:/dataset".into()),
    }
}

/// The first dataset of numbers: those of a group before those of its groups, by name.
fn first(group: &Group, depth: usize, searched: &mut usize) -> Result<Option<Dataset>, Error> {
    let (mut groups, mut datasets) = group.member_names()?;
    groups.sort();
    datasets.sort();
    for name in datasets {
        *searched += 1;
        if *searched > MAX_SEARCHED {
            return Ok(None);
        }
        let dataset = group.dataset(&name)?;
        if number_type(dataset.dtype()).is_some() && (1..=MAX_AXES).contains(&dataset.ndim()) {
            return Ok(Some(dataset));
        }
    }
    for name in groups {
        *searched += 1;
        // Groups may contain each other in a ring.
        if depth < 8
            && *searched <= MAX_SEARCHED
            && let Some(dataset) = first(&group.group(&name)?, depth + 1, searched)?
        {
            return Ok(Some(dataset));
        }
    }
    Ok(None)
}
