//! NumPy's .npy format, versions 1 to 3: the header through `npyz`, the numbers by ranges of items.
//!
//! Source of the format: NumPy's `numpy.lib.format`. Ten bytes of magic, version and header length (twelve from
//! version 2), a Python dictionary (`descr`, `fortran_order`, `shape`), the numbers.

use super::dtype::{DType, Element, Kind};
use super::guard::guarded;
use super::npz::Source;
use npyz::{Endianness, NpyHeader, Order, TypeChar, WriteOptions, WriterBuilder};
use std::ops::Range;

pub(super) const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header that is parsed; NumPy refuses longer ones too.
const MAX_HEADER: u64 = 10_000;
/// Most axes an array may have.
pub(super) const MAX_AXES: usize = 16;
/// Numbers read at a time.
pub(super) const BLOCK: usize = 1 << 14;

/// An array whose header is read and agrees with the length of its source.
pub(super) struct NpyArray {
    source: Source,
    start: u64,
    fortran: bool,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
}

impl NpyArray {
    /// Reads and checks the header.
    pub(super) fn open(mut source: Source) -> Result<Self, String> {
        let (header, start) = read_header(&mut source)?;
        let dtype = dtype_of(&header)?;
        let shape = checked_shape(header.shape(), dtype)?;
        let expected = start + shape.iter().map(|&n| n as u64).product::<u64>() * dtype.size() as u64;
        let found = source.len();
        if found != expected {
            let (word, cure) = if found < expected {
                ("truncated", "copy or download it again")
            } else {
                ("the header and the data disagree", "save it again with numpy.save")
            };
            return Err(format!(
                "{word}: shape {shape:?} of {dtype} takes {expected} bytes with its header, the file has {found}; {cure}"
            ));
        }
        Ok(Self { source, start, fortran: header.order() == Order::Fortran, shape, dtype })
    }

    /// Bytes inflated so far.
    pub(super) fn inflated(&self) -> u64 {
        self.source.inflated()
    }

    /// Appends items `range` of axis 0, in C order. `out` grows only by what was read.
    pub(super) fn read<T: Element>(&mut self, range: Range<usize>, out: &mut Vec<T>) -> Result<(), String> {
        let item: usize = self.shape[1..].iter().product();
        if range.is_empty() || item == 0 {
            return Ok(());
        }
        if self.fortran && item > 1 {
            return self.read_fortran(range, item, out);
        }
        if self.source.is_plain() {
            out.reserve_exact(range.len() * item);
        }
        let mut bytes = Vec::new();
        self.read_run(range.start * item, range.len() * item, &mut bytes, |values| out.extend_from_slice(values))
    }

    /// Passes `count` stored numbers from number `first` on to `sink`, block by block.
    fn read_run<T: Element>(
        &mut self,
        first: usize,
        count: usize,
        bytes: &mut Vec<u8>,
        mut sink: impl FnMut(&[T]),
    ) -> Result<(), String> {
        let size = self.dtype.size();
        let mut values = Vec::with_capacity(count.min(BLOCK));
        for done in (0..count).step_by(BLOCK) {
            bytes.resize((count - done).min(BLOCK) * size, 0);
            self.source.read_at(self.start + ((first + done) * size) as u64, bytes)?;
            values.clear();
            self.dtype.decode(bytes, &mut values);
            sink(&values);
        }
        Ok(())
    }

    /// Fortran order: axis 0 runs fastest, so the items lie interleaved, one number of each after another.
    fn read_fortran<T: Element>(&mut self, range: Range<usize>, item: usize, out: &mut Vec<T>) -> Result<(), String> {
        let (n, k) = (self.shape[0], range.len());
        let base = out.len();
        // Deflated numbers are collected first, for their count is only claimed until they are there.
        let direct = self.source.is_plain();
        let mut staged: Vec<T> = Vec::new();
        if direct {
            out.resize(base + k * item, T::default());
        }
        let mut columns = ColumnsInC::new(&self.shape[1..]);
        let mut bytes = Vec::new();
        let batch = (BLOCK / n).max(1);
        for first in (0..item).step_by(batch) {
            let count = batch.min(item - first);
            // Short columns are read whole, several at a time; of a long one only the range.
            let (from, len) = if n <= BLOCK { (first * n, count * n) } else { (first * n + range.start, k) };
            let mut at = 0;
            let target = &mut out[base..];
            self.read_run(from, len, &mut bytes, |values: &[T]| {
                for &value in values {
                    let row = if n <= BLOCK { at % n } else { at + range.start };
                    at += 1;
                    if range.contains(&row) {
                        if direct {
                            target[(row - range.start) * item + columns.current] = value;
                        } else {
                            staged.push(value);
                        }
                    }
                    if direct && at % if n <= BLOCK { n } else { k } == 0 {
                        columns.advance();
                    }
                }
            })?;
        }
        if !direct {
            out.resize(base + k * item, T::default());
            for column in staged.chunks_exact(k) {
                for (row, &value) in column.iter().enumerate() {
                    out[base + row * item + columns.current] = value;
                }
                columns.advance();
            }
        }
        Ok(())
    }
}

/// Walks the numbers of an item in Fortran order, giving each one's place in C order.
struct ColumnsInC {
    shape: Vec<usize>,
    index: Vec<usize>,
    strides: Vec<usize>,
    current: usize,
}

impl ColumnsInC {
    fn new(shape: &[usize]) -> Self {
        let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        Self { shape: shape.to_vec(), index: vec![0; shape.len()], strides, current: 0 }
    }

    fn advance(&mut self) {
        for axis in 0..self.shape.len() {
            self.index[axis] += 1;
            self.current += self.strides[axis];
            if self.index[axis] < self.shape[axis] {
                return;
            }
            self.current -= self.strides[axis] * self.shape[axis];
            self.index[axis] = 0;
        }
    }
}

/// The header and where the numbers start. Length and nesting are checked before `npyz` sees it.
fn read_header(source: &mut Source) -> Result<(NpyHeader, u64), String> {
    let found = source.len();
    let truncated = |needed: u64| format!("truncated: the .npy header takes {needed} bytes, the file has {found}");
    let mut fixed = [0; 12];
    if found < fixed.len() as u64 {
        return Err(truncated(fixed.len() as u64));
    }
    source.read_at(0, &mut fixed)?;
    if !fixed.starts_with(MAGIC) {
        return Err("is not in .npy format".into());
    }
    let (prefix, text) = match (fixed[6], fixed[7]) {
        (1, 0) => (10, u64::from(u16::from_le_bytes([fixed[8], fixed[9]]))),
        (2 | 3, 0) => (12, u64::from(u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]))),
        (major, minor) => return Err(format!("is .npy of version {major}.{minor}; versions 1.0 to 3.0 are known")),
    };
    if text > MAX_HEADER {
        return Err(format!("claims a .npy header of {text} bytes; more than {MAX_HEADER} is never right"));
    }
    let start = prefix + text;
    if start > found {
        return Err(truncated(start));
    }
    let mut bytes = vec![0; start as usize];
    source.read_at(0, &mut bytes)?;
    // The parser recurses on brackets.
    let opening = bytes[prefix as usize..].iter().filter(|b| matches!(b, b'(' | b'[' | b'{')).count();
    if opening > 4 {
        return Err("holds records or a damaged .npy header; save plain numbers with numpy.save".into());
    }
    let header = guarded(|| NpyHeader::from_reader(&bytes[..]).map_err(|e| e.to_string()))
        .map_err(|e| format!("has a damaged .npy header ({e})"))?;
    Ok((header, start))
}

fn dtype_of(header: &NpyHeader) -> Result<DType, String> {
    let cure = "save numbers: numpy.save(path, a.astype('f4'))";
    if header.uses_pickled_array() {
        return Err(format!("holds Python objects (pickle), which are never loaded; {cure}"));
    }
    let described = header.dtype();
    let npyz::DType::Plain(stored) = &described else {
        return Err(format!("holds records; {cure}"));
    };
    let kind = match stored.type_char() {
        TypeChar::Float => Some(Kind::Float),
        TypeChar::Int => Some(Kind::Int),
        TypeChar::Uint => Some(Kind::Uint),
        _ => None,
    };
    let big_endian = stored.endianness() == Endianness::Big;
    kind.and_then(|kind| DType::new(kind, stored.size_field().try_into().ok()?, big_endian))
        .ok_or_else(|| format!("holds {}, not f2, f4, f8 or integers; {cure}", described.descr()))
}

/// The shape, if it is an array's and its bytes can be counted.
pub(super) fn checked_shape(claimed: &[u64], dtype: DType) -> Result<Vec<usize>, String> {
    if claimed.is_empty() || claimed.len() > MAX_AXES {
        return Err(format!("holds an array of {} axes; 1 to {MAX_AXES} make sense", claimed.len()));
    }
    // Empty axes do not excuse the others: strides are products of those.
    let bytes = claimed.iter().try_fold(dtype.size() as u64, |product, &n| product.checked_mul(n.max(1)));
    let shape: Option<Vec<usize>> = claimed.iter().map(|&n| usize::try_from(n).ok()).collect();
    match (shape, bytes) {
        (Some(shape), Some(bytes)) if bytes <= isize::MAX as u64 / 2 => Ok(shape),
        _ => Err(format!("is damaged: it claims shape {claimed:?} of {dtype}, more than any file can hold")),
    }
}

/// A header as NumPy writes it, padded to at least `reserve` bytes.
pub(super) fn header_bytes(shape: &[usize], dtype: DType, reserve: usize) -> Vec<u8> {
    let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
    let descr = npyz::DType::new_scalar(dtype.to_string().parse().expect("NumPy's own notation"));
    let options = WriteOptions::new_header_only().dtype(descr).shape(&shape).writer(Vec::new());
    let mut bytes = options.write_header_only().expect("a vector takes every byte");
    if bytes.len() < reserve {
        bytes.pop();
        bytes.resize(reserve - 1, b' ');
        bytes.push(b'\n');
        let text = u16::try_from(reserve - 10).expect("reserve is small");
        bytes[8..10].copy_from_slice(&text.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{ColumnsInC, DType, header_bytes};

    #[test]
    fn walks_an_item_in_fortran_order() {
        let mut columns = ColumnsInC::new(&[2, 3]);
        let mut places = Vec::new();
        for _ in 0..6 {
            places.push(columns.current);
            columns.advance();
        }
        assert_eq!(places, [0, 3, 1, 4, 2, 5]);
        assert_eq!(columns.current, 0);
    }

    #[test]
    fn pads_the_header() {
        let plain = header_bytes(&[3, 70, 70], DType::F32, 0);
        let padded = header_bytes(&[3, 70, 70], DType::F32, 192);
        assert_eq!((plain.len() % 64, padded.len()), (0, 192));
        assert_eq!(u16::from_le_bytes([padded[8], padded[9]]), 182);
        assert_eq!(padded.last(), Some(&b'\n'));
    }
}
