//! SIMD vectors of one cache line or less, and the choice among instruction sets at run time.
//!
//! The kernels are written once over [`Vector`]. Where AVX-512 is present they run on intrinsics, which shift
//! neighbours out of registers instead of loading them again; elsewhere on short arrays that the compiler turns into
//! AVX2, NEON or whatever the target has.

#[cfg(target_arch = "x86_64")]
use super::avx512;
pub use super::flush::FlushToZero;
use crate::wave::FieldView;
use ndarray::ArrayView2;
use std::fmt;

/// Bytes that rows are aligned to and padded to: one cache line.
pub const ALIGN: usize = 64;

/// A floating-point type that the kernels run in.
pub trait Real: Copy + Send + Sync + Default + PartialOrd + fmt::Debug + 'static {
    /// The AVX-512 vector of this type (a plain block on other architectures).
    type Wide: Vector<Elem = Self>;
    /// A block for instruction sets with fused multiply-add.
    type Fused: Vector<Elem = Self>;
    /// A block for instruction sets without.
    type Plain: Vector<Elem = Self>;
    /// Name in logs.
    const NAME: &'static str;
    /// Elements in a cache line.
    const LINE: usize = ALIGN / size_of::<Self>();
    /// Rounds to this type.
    fn from_f64(x: f64) -> Self;
    /// Widens.
    fn to_f64(self) -> f64;
    /// Sum in this type's rounding.
    fn plus(self, other: Self) -> Self;
    /// Product in this type's rounding.
    fn times(self, other: Self) -> Self;
    /// Quotient in this type's rounding.
    fn over(self, other: Self) -> Self;
    /// `self * b + c`, one rounding if `FUSED`.
    fn mul_add<const FUSED: bool>(self, b: Self, c: Self) -> Self;
    /// A field of this type.
    fn view(field: ArrayView2<'_, Self>) -> FieldView<'_>;
}

macro_rules! real {
    ($t:ty, $name:expr, $wide:ty, $lanes:expr, $view:path) => {
        impl Real for $t {
            #[cfg(target_arch = "x86_64")]
            type Wide = $wide;
            #[cfg(not(target_arch = "x86_64"))]
            type Wide = Block<$t, $lanes, true>;
            type Fused = Block<$t, $lanes, true>;
            type Plain = Block<$t, $lanes, false>;
            const NAME: &'static str = $name;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn over(self, other: Self) -> Self {
                self / other
            }
            #[inline(always)]
            fn mul_add<const FUSED: bool>(self, b: Self, c: Self) -> Self {
                if FUSED { <$t>::mul_add(self, b, c) } else { self * b + c }
            }
            fn view(field: ArrayView2<'_, Self>) -> FieldView<'_> {
                $view(field)
            }
        }
    };
}

real!(f32, "f32", avx512::F32x16, 8, FieldView::F32);
real!(f64, "f64", avx512::F64x8, 4, FieldView::F64);

/// Some neighbouring elements of a row.
///
/// # Safety
/// Implementors may use instructions of one instruction set; all methods must be called inside [`run`] on a machine
/// that has it. Pointers must be valid for `LANES` elements, those of `load`, `store` and `stream` aligned to them.
#[allow(clippy::missing_safety_doc, reason = "one condition for all methods, stated above")]
pub unsafe trait Vector: Copy {
    /// Element type.
    type Elem: Real;
    /// Elements in a vector; divides the elements of a cache line.
    const LANES: usize;
    /// All elements the same.
    unsafe fn splat(x: Self::Elem) -> Self;
    /// Aligned load.
    unsafe fn load(p: *const Self::Elem) -> Self;
    /// Aligned store.
    unsafe fn store(self, p: *mut Self::Elem);
    /// Aligned store past the caches, for data that are read much later.
    unsafe fn stream(self, p: *mut Self::Elem);
    /// `self + b`.
    unsafe fn add(self, b: Self) -> Self;
    /// `self - b`.
    unsafe fn sub(self, b: Self) -> Self;
    /// `self * b`.
    unsafe fn mul(self, b: Self) -> Self;
    /// `self * b + c`.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self * b - c`.
    unsafe fn mul_sub(self, b: Self, c: Self) -> Self;
    /// The row shifted by two to the left, one to the left, one and two to the right: elements x-2, x-1, x+1, x+2.
    /// `p` points at the middle vector `cur`, of which `prev` and `next` are the neighbours.
    unsafe fn sides(p: *const Self::Elem, prev: Self, cur: Self, next: Self) -> [Self; 4];
    /// Sum of the elements, in f64.
    unsafe fn sum(self) -> f64;
}

/// Asks for a cache line; any address will do.
#[inline(always)]
pub fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults, in the baseline of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// A short array whose loops the compiler vectorises.
#[derive(Clone, Copy)]
pub struct Block<T, const N: usize, const FUSED: bool>([T; N]);

impl<T: Real, const N: usize, const FUSED: bool> Block<T, N, FUSED> {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(T, T) -> T) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }

    #[inline(always)]
    unsafe fn load_any(p: *const T) -> Self {
        Self(unsafe { p.cast::<[T; N]>().read_unaligned() })
    }
}

unsafe impl<T: Real, const N: usize, const FUSED: bool> Vector for Block<T, N, FUSED> {
    type Elem = T;
    const LANES: usize = N;
    #[inline(always)]
    unsafe fn splat(x: T) -> Self {
        Self([x; N])
    }
    #[inline(always)]
    unsafe fn load(p: *const T) -> Self {
        unsafe { Self::load_any(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut T) {
        unsafe { p.cast::<[T; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut T) {
        unsafe { self.store(p) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.zip(b, T::plus)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        let minus = T::from_f64(-1.0);
        self.zip(b, |a, b| a.plus(b.times(minus)))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.zip(b, T::times)
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add::<FUSED>(b.0[i], c.0[i])))
    }
    #[inline(always)]
    unsafe fn mul_sub(self, b: Self, c: Self) -> Self {
        let minus = T::from_f64(-1.0);
        Self(std::array::from_fn(|i| self.0[i].mul_add::<FUSED>(b.0[i], c.0[i].times(minus))))
    }
    #[inline(always)]
    unsafe fn sides(p: *const T, _prev: Self, _cur: Self, _next: Self) -> [Self; 4] {
        unsafe {
            [Self::load_any(p.sub(2)), Self::load_any(p.sub(1)), Self::load_any(p.add(1)), Self::load_any(p.add(2))]
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f64 {
        self.0.iter().map(|x| x.to_f64()).sum()
    }
}

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512F.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// AArch64, which always has NEON.
    Neon,
    /// What the compile target has.
    Portable,
}

impl Isa {
    /// All that this machine can run, best first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
            {
                found.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        found.push(Self::Neon);
        found.push(Self::Portable);
        found
    }

    /// The best that this machine can run.
    pub fn best() -> Self {
        Self::available()[0]
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2",
            Self::Neon => "NEON",
            Self::Portable => "portable",
        })
    }
}

/// Work that is generic over the vector it runs on. `run` must be `#[inline(always)]`, so that it is compiled for
/// the instruction set of the function it is inlined into.
pub trait Kernel<T: Real> {
    /// What the work returns.
    type Out;
    /// Does the work.
    ///
    /// # Safety
    /// The machine must have `V`'s instructions.
    unsafe fn run<V: Vector<Elem = T>>(self) -> Self::Out;
}

/// Runs a kernel on an instruction set of [`Isa::available`], with denormals flushed to zero meanwhile.
///
/// # Panics
/// If this machine does not have `isa`.
pub fn run<T: Real, K: Kernel<T>>(isa: Isa, kernel: K) -> K::Out {
    assert!(Isa::available().contains(&isa), "{isa} is not available here");
    let _ftz = FlushToZero::new();
    // SAFETY: availability was checked.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => enter_avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => enter_avx2(kernel),
            Isa::Neon => kernel.run::<T::Fused>(),
            _ => kernel.run::<T::Plain>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn enter_avx512<T: Real, K: Kernel<T>>(kernel: K) -> K::Out {
    unsafe { kernel.run::<T::Wide>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn enter_avx2<T: Real, K: Kernel<T>>(kernel: K) -> K::Out {
    unsafe { kernel.run::<T::Fused>() }
}
