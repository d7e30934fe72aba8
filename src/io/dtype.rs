//! Number types as files store them, and their conversion to f32 and f64.

use half::f16;
use ndarray::{ArrayView, Dimension};
use std::fmt;

/// What kind of number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    Int,
    Uint,
}

/// A stored number type: IEEE 754 of 2, 4 or 8 bytes, or an integer of 1 to 8 bytes, in either byte order.
///
/// Displays as NumPy writes it, `<f4` for little-endian single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DType {
    kind: Kind,
    size: usize,
    big_endian: bool,
}

impl DType {
    /// Little-endian single precision.
    pub const F32: Self = Self { kind: Kind::Float, size: 4, big_endian: false };
    /// Little-endian double precision.
    pub const F64: Self = Self { kind: Kind::Float, size: 8, big_endian: false };

    /// `None` where there is no such type (a float of one byte, an integer of three).
    pub(super) fn new(kind: Kind, size: usize, big_endian: bool) -> Option<Self> {
        let known = match kind {
            Kind::Float => matches!(size, 2 | 4 | 8),
            Kind::Int | Kind::Uint => matches!(size, 1 | 2 | 4 | 8),
        };
        known.then_some(Self { kind, size, big_endian: big_endian && size > 1 })
    }

    /// Bytes a number takes.
    pub fn size(self) -> usize {
        self.size
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        self.kind == Kind::Float
    }

    /// Replaces what `bytes` holds by the numbers of an array in C order as this type, [`DType::F32`] or [`DType::F64`].
    /// Numbers are rounded to nearest; beyond the range they become infinite. A buffer of the right length is reused.
    ///
    /// # Panics
    /// For another type: files are written in no other.
    pub fn encode<T: Element, D: Dimension>(self, array: ArrayView<'_, T, D>, bytes: &mut Vec<u8>) {
        /// In arrays of constant length, which the compiler turns into vector instructions.
        fn fill<const N: usize, T: Copy>(from: impl Iterator<Item = T>, to: &mut [u8], convert: impl Fn(T) -> [u8; N]) {
            to.as_chunks_mut::<N>().0.iter_mut().zip(from).for_each(|(to, from)| *to = convert(from));
        }
        assert!(self == Self::F32 || self == Self::F64, "{self} is not written");
        bytes.resize(array.len() * self.size, 0);
        let single = |x: T| (x.to_f64() as f32).to_le_bytes();
        let double = |x: T| x.to_f64().to_le_bytes();
        match (array.as_slice(), self.size) {
            (Some(slice), 4) => fill(slice.iter().copied(), bytes, single),
            (Some(slice), _) => fill(slice.iter().copied(), bytes, double),
            (None, 4) => fill(array.iter().copied(), bytes, single),
            (None, _) => fill(array.iter().copied(), bytes, double),
        }
    }

    /// Appends the numbers in `bytes` (a whole count of them) to `out`.
    pub(super) fn decode<T: Element>(self, bytes: &[u8], out: &mut Vec<T>) {
        macro_rules! numbers {
            ($number:ty, $convert:expr) => {{
                const SIZE: usize = size_of::<$number>();
                let array = |c: &[u8]| <[u8; SIZE]>::try_from(c).expect("chunk of SIZE bytes");
                let chunks = bytes.chunks_exact(SIZE);
                if self.big_endian {
                    out.extend(chunks.map(|c| $convert(<$number>::from_be_bytes(array(c)))));
                } else {
                    out.extend(chunks.map(|c| $convert(<$number>::from_le_bytes(array(c)))));
                }
            }};
        }
        match (self.kind, self.size) {
            (Kind::Float, 2) => numbers!(f16, |x: f16| T::from_f32(x.to_f32())),
            (Kind::Float, 4) => numbers!(f32, T::from_f32),
            (Kind::Float, _) => numbers!(f64, T::from_f64),
            (Kind::Int, 1) => numbers!(i8, |x| T::from_f32(f32::from(x))),
            (Kind::Int, 2) => numbers!(i16, |x| T::from_f32(f32::from(x))),
            (Kind::Int, 4) => numbers!(i32, |x| T::from_f64(f64::from(x))),
            (Kind::Int, _) => numbers!(i64, |x| T::from_f64(x as f64)),
            (Kind::Uint, 1) => numbers!(u8, |x| T::from_f32(f32::from(x))),
            (Kind::Uint, 2) => numbers!(u16, |x| T::from_f32(f32::from(x))),
            (Kind::Uint, 4) => numbers!(u32, |x| T::from_f64(f64::from(x))),
            (Kind::Uint, _) => numbers!(u64, |x| T::from_f64(x as f64)),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match (self.size, self.big_endian) {
            (1, _) => '|',
            (_, true) => '>',
            (_, false) => '<',
        };
        let kind = match self.kind {
            Kind::Float => 'f',
            Kind::Int => 'i',
            Kind::Uint => 'u',
        };
        write!(f, "{order}{kind}{}", self.size)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A number type that files are read into and written from: f32 or f64.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + rust_hdf5::H5Type + 'static {
    /// The type as files store it.
    const DTYPE: DType;
    /// Rounds to nearest; beyond the range, infinity.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Element for f64 {
    const DTYPE: DType = DType::F64;
    fn from_f64(x: f64) -> Self {
        x
    }
    fn from_f32(x: f32) -> Self {
        f64::from(x)
    }
    fn to_f64(self) -> f64 {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::{DType, Kind};

    #[test]
    fn decodes_every_type_in_both_byte_orders() {
        let table: [(Kind, &[u8], f64); 11] = [
            (Kind::Float, &[0x3e, 0x00], 1.5),
            (Kind::Float, &[0x3f, 0xc0, 0, 0], 1.5),
            (Kind::Float, &[0x3f, 0xf8, 0, 0, 0, 0, 0, 0], 1.5),
            (Kind::Int, &[0xfe], -2.0),
            (Kind::Int, &[0xff, 0xfe], -2.0),
            (Kind::Int, &[0xff, 0xff, 0xff, 0xfe], -2.0),
            (Kind::Int, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], -2.0),
            (Kind::Uint, &[0xfe], 254.0),
            (Kind::Uint, &[0x05, 0xdc], 1500.0),
            (Kind::Uint, &[0, 0, 0x05, 0xdc], 1500.0),
            (Kind::Uint, &[0, 0, 0, 0, 0, 0, 0x05, 0xdc], 1500.0),
        ];
        for (kind, big, value) in table {
            let little: Vec<u8> = big.iter().rev().copied().collect();
            for (bytes, big_endian) in [(big, true), (&little[..], false)] {
                let dtype = DType::new(kind, big.len(), big_endian).unwrap();
                let (mut single, mut double) = (Vec::<f32>::new(), Vec::<f64>::new());
                dtype.decode(bytes, &mut single);
                dtype.decode(bytes, &mut double);
                assert_eq!((single, double), (vec![value as f32], vec![value]), "{dtype}");
            }
        }
        assert!(DType::new(Kind::Float, 1, false).is_none() && DType::new(Kind::Int, 3, false).is_none());
        assert_eq!(DType::new(Kind::Uint, 1, true).unwrap().to_string(), "|u1");
        assert_eq!(DType::new(Kind::Float, 2, true).unwrap().to_string(), ">f2");
    }
}
