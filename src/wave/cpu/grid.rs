//! Memory layout of the padded grid and the coefficients of the step, both made for cache.
//!
//! A field is stored row by row; every row begins on a cache line, with one line before it and one after, which hold
//! the two cells that wrap around. Outside the map `alpha` repeats the edge, so one row of it per row of the map is
//! enough; the sponge is separable, so one row of `kappa` per depth into it is enough. No coefficient array spans
//! the padded grid.

use super::vector::{ALIGN, Real};
use crate::{Model, Position, Survey};

/// A zeroed buffer that starts on a cache line.
pub struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    kind: std::marker::PhantomData<T>,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "only its size and alignment matter")] [u8; ALIGN]);

impl<T: Real> Buffer<T> {
    /// `len` zeros, rounded up to whole lines.
    pub fn zeros(len: usize) -> Self {
        let lines = vec![Line([0; ALIGN]); len.div_ceil(T::LINE)];
        Self { lines, len: len.next_multiple_of(T::LINE), kind: std::marker::PhantomData }
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: lines are plain bytes, aligned more than T, and zero bytes are a valid T.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// The elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }

    /// Sets every element to zero.
    pub fn clear(&mut self) {
        self.lines.fill(Line([0; ALIGN]));
    }

    /// Makes the buffer hold at least `len` elements; contents are unspecified afterwards. It grows by an eighth more
    /// than asked, because histories differ a little from model to model.
    pub fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Self { lines: Vec::new(), len: 0, kind: std::marker::PhantomData }; // free before taking more
            *self = Self::zeros(with_room(len));
        }
    }
}

/// The elements that [`Buffer::reserve`] takes for `len`.
pub fn with_room(len: usize) -> usize {
    len + len / 8
}

/// Where the cells of the padded grid lie in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rows of the padded grid.
    pub rows: usize,
    /// Columns of the padded grid.
    pub cols: usize,
    /// Elements from a row to the next.
    pub stride: usize,
    /// Elements before a row's first cell: one cache line.
    pub halo: usize,
    /// Cells of padding on each side.
    pub pad: usize,
}

impl Layout {
    /// The layout for a survey in element type `T`.
    pub fn new<T: Real>(survey: &Survey) -> Self {
        let (rows, cols) = survey.padded_shape();
        Self { rows, cols, stride: cols.next_multiple_of(T::LINE) + 2 * T::LINE, halo: T::LINE, pad: survey.sponge }
    }

    /// Elements of a field.
    pub fn field_len(&self) -> usize {
        self.rows * self.stride
    }

    /// Columns rounded up to whole cache lines.
    pub fn width(&self) -> usize {
        self.stride - 2 * self.halo
    }

    /// Index of the first cell of a row.
    #[inline(always)]
    pub fn row(&self, z: usize) -> usize {
        z * self.stride + self.halo
    }

    /// Index of the first cell of row `z + d` on the torus, `|d| < rows`.
    #[inline(always)]
    pub fn row_wrapped(&self, z: usize, d: isize) -> usize {
        let rows = self.rows as isize;
        let mut r = z as isize + d;
        if r < 0 {
            r += rows;
        } else if r >= rows {
            r -= rows;
        }
        self.row(r as usize)
    }

    /// Index of a cell of the map.
    pub fn cell(&self, p: Position) -> usize {
        self.row(p.z + self.pad) + p.x + self.pad
    }
}

/// The coefficients of one model on a layout: rows of `alpha`, of `2 - 5 alpha`, of `1 / alpha` and of `kappa`.
pub struct Coefficients<T> {
    /// `alpha = (v dt / dx)^2`, a row per row of the map, `stride` apart.
    pub alpha: Buffer<T>,
    /// `2 - 5 alpha`, rounded as the data's makers did.
    pub centre: Buffer<T>,
    /// `1 / alpha`.
    pub inverse: Buffer<T>,
    /// `kappa = dt vmin damp`: row 0 for rows of the map, row 1 + i for rows i cells into the sponge.
    pub kappa: Buffer<T>,
    /// Start of the `alpha` row of every grid row.
    pub alpha_row: Vec<usize>,
    /// Start of the `kappa` row of every grid row.
    pub kappa_row: Vec<usize>,
}

impl<T: Real> Coefficients<T> {
    /// Coefficients of a checked model. `alpha` and `2 - 5 alpha` are rounded step by step in `T`, because in f32
    /// their rounding is part of the data: it is worth 5e-6 of rms on a real gather.
    pub fn new(survey: &Survey, layout: &Layout, model: &Model) -> Self {
        let (nz, nx, s) = (survey.nz, survey.nx, survey.sponge);
        let mut c = Self {
            alpha: Buffer::zeros(nz * layout.stride),
            centre: Buffer::zeros(nz * layout.stride),
            inverse: Buffer::zeros(nz * layout.stride),
            kappa: kappa_rows(survey, layout, model.vmin),
            alpha_row: Vec::with_capacity(layout.rows),
            kappa_row: Vec::with_capacity(layout.rows),
        };
        let (dt, dx) = (T::from_f64(survey.dt), T::from_f64(survey.dx));
        let (two, minus_five, one) = (T::from_f64(2.0), T::from_f64(-5.0), T::from_f64(1.0));
        for z in 0..nz {
            for x in 0..layout.cols {
                let v = model.vp[[z, x.saturating_sub(s).min(nx - 1)]];
                let courant = T::from_f64(v).times(dt).over(dx);
                let alpha = courant.times(courant);
                let i = layout.row(z) + x;
                c.alpha.as_mut_slice()[i] = alpha;
                c.centre.as_mut_slice()[i] = two.plus(minus_five.times(alpha));
                c.inverse.as_mut_slice()[i] = one.over(alpha);
            }
        }
        for z in 0..layout.rows {
            c.alpha_row.push(layout.row(z.saturating_sub(s).min(nz - 1)));
            let depth = if z < s { s - z } else { (z + 1).saturating_sub(s + nz) };
            c.kappa_row.push(layout.row(depth));
        }
        c
    }
}

/// Rows of `dt vmin damp`: row 0 of a row of the map, row 1 + i of a row i cells into the sponge. Side strips take the
/// whole height, so a corner has the damping of its column.
pub fn kappa_rows<T: Real>(survey: &Survey, layout: &Layout, vmin: f64) -> Buffer<T> {
    let (nx, s) = (survey.nx, survey.sponge);
    let mut rows = Buffer::zeros((s + 1) * layout.stride);
    let kappa = |i: usize| T::from_f64(survey.dt * vmin * survey.damping(i));
    for depth in 0..=s {
        let row = &mut rows.as_mut_slice()[layout.row(depth)..][..layout.cols];
        for (x, k) in row.iter_mut().enumerate() {
            if x < s {
                *k = kappa(s - 1 - x);
            } else if x >= s + nx {
                *k = kappa(x - s - nx);
            } else if depth > 0 {
                *k = kappa(depth - 1);
            }
        }
    }
    rows
}
