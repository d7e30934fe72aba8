//! AVX-512 vectors of f32 and f64.

use super::vector::Vector;
use std::arch::x86_64::*;

/// Sixteen f32.
#[derive(Clone, Copy)]
pub struct F32x16(__m512);
/// Eight f64.
#[derive(Clone, Copy)]
pub struct F64x8(__m512d);

macro_rules! vector {
    ($v:ident, $t:ty, $lanes:expr, $splat:ident, $load:ident, $store:ident, $stream:ident, $add:ident, $sub:ident,
     $mul:ident, $fmadd:ident, $fmsub:ident, $to:ident, $from:ident, $align:ident) => {
        unsafe impl Vector for $v {
            type Elem = $t;
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn splat(x: $t) -> Self {
                unsafe { Self($splat(x)) }
            }
            #[inline(always)]
            unsafe fn load(p: *const $t) -> Self {
                unsafe { Self($load(p)) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $t) {
                unsafe { $store(p, self.0) }
            }
            #[inline(always)]
            unsafe fn stream(self, p: *mut $t) {
                unsafe { $stream(p, self.0) }
            }
            #[inline(always)]
            unsafe fn add(self, b: Self) -> Self {
                unsafe { Self($add(self.0, b.0)) }
            }
            #[inline(always)]
            unsafe fn sub(self, b: Self) -> Self {
                unsafe { Self($sub(self.0, b.0)) }
            }
            #[inline(always)]
            unsafe fn mul(self, b: Self) -> Self {
                unsafe { Self($mul(self.0, b.0)) }
            }
            #[inline(always)]
            unsafe fn mul_add(self, b: Self, c: Self) -> Self {
                unsafe { Self($fmadd(self.0, b.0, c.0)) }
            }
            #[inline(always)]
            unsafe fn mul_sub(self, b: Self, c: Self) -> Self {
                unsafe { Self($fmsub(self.0, b.0, c.0)) }
            }
            #[inline(always)]
            unsafe fn sides(_p: *const $t, prev: Self, cur: Self, next: Self) -> [Self; 4] {
                unsafe {
                    let (p, c, n) = ($to(prev.0), $to(cur.0), $to(next.0));
                    [
                        Self($from($align::<{ $lanes - 2 }>(c, p))),
                        Self($from($align::<{ $lanes - 1 }>(c, p))),
                        Self($from($align::<1>(n, c))),
                        Self($from($align::<2>(n, c))),
                    ]
                }
            }
            #[inline(always)]
            unsafe fn sum(self) -> f64 {
                let lanes: [$t; $lanes] = unsafe { std::mem::transmute(self.0) };
                lanes.iter().map(|&x| f64::from(x)).sum()
            }
        }
    };
}

vector!(
    F32x16,
    f32,
    16,
    _mm512_set1_ps,
    _mm512_load_ps,
    _mm512_store_ps,
    _mm512_stream_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_fmsub_ps,
    _mm512_castps_si512,
    _mm512_castsi512_ps,
    _mm512_alignr_epi32
);
vector!(
    F64x8,
    f64,
    8,
    _mm512_set1_pd,
    _mm512_load_pd,
    _mm512_store_pd,
    _mm512_stream_pd,
    _mm512_add_pd,
    _mm512_sub_pd,
    _mm512_mul_pd,
    _mm512_fmadd_pd,
    _mm512_fmsub_pd,
    _mm512_castpd_si512,
    _mm512_castsi512_pd,
    _mm512_alignr_epi64
);
