//! The cell update, written once: one or two rows of the step at a time, optionally correlating with a stored field.
//!
//! ```text
//! out <- (c - kappa) q - (1 - kappa) out + alpha (4/3 sum of +-1 neighbours - 1/12 sum of +-2 neighbours)
//! c = 2 - 5 alpha
//! ```
//!
//! `q` is the field at step n and `out` holds that of step n - 1 before and of step n + 1 after. With `mu = alpha lambda`
//! the adjoint obeys the same recursion backwards, so this is the adjoint's step too.
//!
//! Two rows at a time share the loads of the rows above and below them: the loop is bound by arithmetic then, not by
//! the second-level cache (fusing several time steps was measured to gain nothing more).

use super::grid::{Coefficients, Layout};
use super::vector::{Real, Vector, prefetch};

/// Columns `begin..end` of a row, whole cache lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First column.
    pub begin: usize,
    /// One past the last column.
    pub end: usize,
}

impl Segment {
    /// Number of columns.
    pub fn len(self) -> usize {
        self.end - self.begin
    }

    /// Whether it has no column.
    pub fn is_empty(self) -> bool {
        self.end <= self.begin
    }
}

/// What an adjoint step multiplies with and adds to.
pub struct Correlation<'a, T, V> {
    /// The stored forward field over the rows' segments, one row after the other.
    pub history: &'a [T],
    /// `sum p_m A mu_(m+1)` per cell, laid out like a field.
    pub sums: &'a mut [T],
    /// `sum p_m (lambda_(m+2) - lambda_(m+1)) kappa`, over all cells.
    pub damping: &'a mut V,
}

/// Bytes by which the history, which comes from main memory, is asked for ahead of its use.
const AHEAD: usize = 1024;

/// Constants in registers.
struct Weights<V> {
    near: V,
    far: V,
    one: V,
    minus_five: V,
}

impl<V: Vector> Weights<V> {
    #[inline(always)]
    unsafe fn new() -> Self {
        let c = |x: f64| unsafe { V::splat(V::Elem::from_f64(x)) };
        Self { near: c(4.0 / 3.0), far: c(-1.0 / 12.0), one: c(1.0), minus_five: c(-5.0) }
    }
}

/// Updates columns `seg` of the `ROWS` (1 or 2) rows from `z` on.
///
/// # Safety
/// The machine must have `V`'s instructions; `field` and `out` must have the layout's length, `z + ROWS <= rows`, and
/// `seg` must lie in `0..width` on whole cache lines. With a correlation, its history must hold `ROWS` segments.
#[inline(always)]
pub unsafe fn step_rows<V: Vector, const ROWS: usize>(
    layout: &Layout,
    c: &Coefficients<V::Elem>,
    field: &[V::Elem],
    out: &mut [V::Elem],
    z: usize,
    seg: Segment,
    correlation: Option<&mut Correlation<V::Elem, V>>,
) {
    const { assert!(ROWS == 1 || ROWS == 2) };
    match correlation {
        None => unsafe {
            update::<V, ROWS, false>(
                layout,
                c,
                field,
                out,
                z,
                seg,
                [std::ptr::null(); 2],
                std::ptr::null_mut(),
                &mut V::splat(V::Elem::default()),
            )
        },
        Some(k) => {
            debug_assert_eq!(k.history.len(), ROWS * seg.len());
            let h = k.history.as_ptr();
            let h = [h, unsafe { h.add(seg.len() * (ROWS - 1)) }];
            unsafe { update::<V, ROWS, true>(layout, c, field, out, z, seg, h, k.sums.as_mut_ptr(), k.damping) }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one flat inner loop")]
unsafe fn update<V: Vector, const ROWS: usize, const CORRELATE: bool>(
    layout: &Layout,
    c: &Coefficients<V::Elem>,
    field: &[V::Elem],
    out: &mut [V::Elem],
    z: usize,
    seg: Segment,
    history: [*const V::Elem; 2],
    sums: *mut V::Elem,
    damping: &mut V,
) {
    debug_assert!(field.len() == layout.field_len() && out.len() == layout.field_len());
    debug_assert!(z + ROWS <= layout.rows && seg.end <= layout.width());
    // SAFETY: rows are in range by the conditions above; `sides` reads at most one line beyond a row, its halo.
    unsafe {
        let w = Weights::<V>::new();
        let (p, o) = (field.as_ptr(), out.as_mut_ptr());
        let at = |d: isize| p.add(layout.row_wrapped(z, d));
        let (up2, up1) = (at(-2), at(-1));
        let (down1, down2) = (at(ROWS as isize), at(ROWS as isize + 1));
        let row: [usize; ROWS] = std::array::from_fn(|j| layout.row(z + j));
        let alpha: [_; ROWS] = std::array::from_fn(|j| c.alpha.as_slice().as_ptr().add(c.alpha_row[z + j]));
        let centre: [_; ROWS] = std::array::from_fn(|j| c.centre.as_slice().as_ptr().add(c.alpha_row[z + j]));
        let inverse: [_; ROWS] = std::array::from_fn(|j| c.inverse.as_slice().as_ptr().add(c.alpha_row[z + j]));
        let kappa: [_; ROWS] = std::array::from_fn(|j| c.kappa.as_slice().as_ptr().add(c.kappa_row[z + j]));

        let mut prev: [V; ROWS] = std::array::from_fn(|j| V::load(p.add(row[j] + seg.begin).sub(V::LANES)));
        let mut cur: [V; ROWS] = std::array::from_fn(|j| V::load(p.add(row[j] + seg.begin)));
        let mut x = seg.begin;
        while x < seg.end {
            let (u2, u1) = (V::load(up2.add(x)), V::load(up1.add(x)));
            let (d1, d2) = (V::load(down1.add(x)), V::load(down2.add(x)));
            let next: [V; ROWS] = std::array::from_fn(|j| V::load(p.add(row[j] + x + V::LANES)));
            for j in 0..ROWS {
                let [l2, l1, r1, r2] = V::sides(p.add(row[j] + x), prev[j], cur[j], next[j]);
                let (a2, a1, b1, b2) = match (ROWS, j) {
                    (1, _) => (u2, u1, d1, d2),
                    (_, 0) => (u2, u1, cur[1], d1),
                    _ => (u1, cur[0], d1, d2),
                };
                let near = l1.add(r1).add(a1.add(b1));
                let far = l2.add(r2).add(a2.add(b2));
                let k = V::load(kappa[j].add(x));
                let a = V::load(alpha[j].add(x));
                let lap = w.near.mul_add(near, w.far.mul(far));
                let here = o.add(row[j] + x);
                let before = V::load(here);
                let t1 = V::load(centre[j].add(x)).sub(k);
                let damped = w.one.sub(k).mul(before);
                a.mul_add(lap, t1.mul_sub(cur[j], damped)).store(here);
                if CORRELATE {
                    let stored = history[j].add(x - seg.begin);
                    prefetch(stored.cast::<u8>().wrapping_add(AHEAD));
                    let h = V::load(stored);
                    let g = sums.add(row[j] + x);
                    h.mul_add(w.minus_five.mul_add(cur[j], lap), V::load(g)).store(g);
                    let rate = k.mul(V::load(inverse[j].add(x)));
                    *damping = h.mul(before.sub(cur[j])).mul_add(rate, *damping);
                }
            }
            (prev, cur) = (cur, next);
            x += V::LANES;
        }
    }
}

/// Adds Born scattering to columns `seg` of row `z`: `out += d_alpha A q + d_kappa (before - q)`, with `A` the
/// Laplacian's stencil less its centre's 5.
///
/// # Safety
/// As for [`step_rows`]; `d_alpha` and `d_kappa` are rows that start at column 0.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one flat inner loop")]
pub unsafe fn scatter_row<V: Vector>(
    layout: &Layout,
    d_alpha: &[V::Elem],
    d_kappa: &[V::Elem],
    field: &[V::Elem],
    before: &[V::Elem],
    out: &mut [V::Elem],
    z: usize,
    seg: Segment,
) {
    // SAFETY: as in `update`.
    unsafe {
        let w = Weights::<V>::new();
        let p = field.as_ptr();
        let at = |d: isize| p.add(layout.row_wrapped(z, d));
        let [up2, up1, row, down1, down2] = [at(-2), at(-1), at(0), at(1), at(2)];
        let mut x = seg.begin;
        while x < seg.end {
            let q = V::load(row.add(x));
            let (prev, next) = (V::load(row.add(x).sub(V::LANES)), V::load(row.add(x + V::LANES)));
            let [l2, l1, r1, r2] = V::sides(row.add(x), prev, q, next);
            let near = l1.add(r1).add(V::load(up1.add(x)).add(V::load(down1.add(x))));
            let far = l2.add(r2).add(V::load(up2.add(x)).add(V::load(down2.add(x))));
            let lap = w.minus_five.mul_add(q, w.near.mul_add(near, w.far.mul(far)));
            let i = layout.row(z) + x;
            let damped = V::load(d_kappa.as_ptr().add(x)).mul(V::load(before.as_ptr().add(i)).sub(q));
            let here = out.as_mut_ptr().add(i);
            V::load(d_alpha.as_ptr().add(x)).mul_add(lap, damped).add(V::load(here)).store(here);
            x += V::LANES;
        }
    }
}

/// Copies the cells that wrap around to both ends of row `z`.
#[inline(always)]
pub fn wrap_row<T: Copy>(layout: &Layout, out: &mut [T], z: usize) {
    let (b, n) = (layout.row(z), layout.cols);
    out[b - 1] = out[b + n - 1];
    out[b - 2] = out[b + n - 2];
    out[b + n] = out[b];
    out[b + n + 1] = out[b + 1];
}

/// Copies `weight` times a segment of a row to the history, past the caches.
///
/// # Safety
/// `from` and `to` must have the same length, whole cache lines, and be aligned to them.
#[inline(always)]
pub unsafe fn store_segment<V: Vector>(from: &[V::Elem], weight: V::Elem, to: &mut [V::Elem]) {
    debug_assert_eq!(from.len(), to.len());
    let mut i = 0;
    while i < from.len() {
        unsafe { V::load(from.as_ptr().add(i)).mul(V::splat(weight)).stream(to.as_mut_ptr().add(i)) };
        i += V::LANES;
    }
}
