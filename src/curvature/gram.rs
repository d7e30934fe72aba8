//! Sums `A' A` over panels of rows, tile by tile: in f64, or in f32 over a few panels and in f64 over these.
//!
//! Waves take their time to what lies deep: the rows of a panel come in the order of time, and a tile of columns is taken to
//! be zero, as it is but for rounding, up to the first row in which it sounds. That leaves out about a third of the products.

use super::traces::Panel;
use crate::wave::Precision;
use crate::wave::cpu::schedule::Pool;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular};
use faer::traits::ComplexField;
use faer::{Accum, Mat, MatMut, MatRef, Par, get_global_parallelism};
use std::ops::Range;
use std::sync::Mutex;

/// Columns of a tile: there is work for many threads; sizes from 256 to 1225 run at the same rate, that of large products.
const TILE: usize = 448;

/// Panels whose squares are summed in f32, where they are, before they are added to what is in f64.
pub const TOGETHER: usize = 4;

/// Share of a tile's largest entry in a panel below which it does not sound yet.
const SILENT: f32 = 5e-4;

/// Order from which on a product with a vector takes longer than it takes to begin a thread.
const WORTH_THREADS: usize = 1000;

/// Sums that a product with a vector keeps at a time, so that it vectorises.
const LANES: usize = 8;

/// A symmetric matrix: its lower triangle counts.
#[derive(Clone, Debug)]
pub struct Symmetric {
    /// The lower triangle; what stands above the diagonal means nothing.
    pub lower: Mat<f64>,
}

impl Symmetric {
    /// Multiplies every entry.
    pub fn scale(&mut self, by: f64) {
        for j in 0..self.lower.ncols() {
            for i in j..self.lower.nrows() {
                self.lower[(i, j)] *= by;
            }
        }
    }

    /// Order of the matrix.
    pub fn len(&self) -> usize {
        self.lower.nrows()
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The product with a vector.
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        // the left columns hold as much of the triangle as those right of them
        let (n, left) = (self.len(), (self.len() as f64 * (1.0 - 0.5f64.sqrt())) as usize);
        let threads = if n < WORTH_THREADS { 1 } else { get_global_parallelism().degree() };
        let half = |i: usize| self.columns_times(if i == 0 { 0..left } else { left..n }, x);
        let mut halves = Pool::new(threads).map(2, half);
        let rest = halves.pop().expect("two of them");
        let mut y = halves.pop().expect("two of them");
        y.iter_mut().zip(rest).for_each(|(y, r)| *y += r);
        y
    }

    /// The share of some columns, and of the rows that are their mirror images, in the product.
    fn columns_times(&self, columns: Range<usize>, x: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; self.len()];
        for j in columns {
            let (first, below) = self.lower.col_as_slice(j)[j..].split_first().expect("a diagonal");
            let (xj, (here, y)) = (x[j], y[j..].split_first_mut().expect("a diagonal"));
            let x = &x[j + 1..];
            let mut sums = [0.0; LANES];
            let whole = below.len() / LANES * LANES;
            let chunks = below.chunks_exact(LANES).zip(x.chunks_exact(LANES)).zip(y.chunks_exact_mut(LANES));
            for ((a, x), y) in chunks {
                for l in 0..LANES {
                    y[l] += a[l] * xj;
                    sums[l] += a[l] * x[l];
                }
            }
            for i in whole..below.len() {
                y[i] += below[i] * xj;
                sums[0] += below[i] * x[i];
            }
            *here += first * xj + sums.iter().sum::<f64>();
        }
        y
    }
}

/// The first row of a panel in which any of the columns sounds.
fn first_sounding(panel: &Panel, columns: &Range<usize>) -> usize {
    let mut peaks = vec![0.0f32; panel.rows];
    for column in panel.values[columns.start * panel.rows..columns.end * panel.rows].chunks_exact(panel.rows.max(1)) {
        peaks.iter_mut().zip(column).for_each(|(p, x)| *p = p.max(x.abs()));
    }
    let largest = peaks.iter().copied().fold(0.0, f32::max);
    peaks.iter().position(|&p| p > SILENT * largest).unwrap_or(peaks.len())
}

/// Adds a tile, or its lower triangle.
fn add(mut to: MatMut<f64>, tile: &Mat<f32>, lower: bool) {
    for j in 0..to.ncols() {
        let first = if lower { j } else { 0 };
        let from = &tile.col_as_slice(j)[first..];
        let column = to.as_mut().col_mut(j).try_as_col_major_mut().expect("columns lie together").as_slice_mut();
        column[first..].iter_mut().zip(from).for_each(|(t, x)| *t += f64::from(*x));
    }
}

/// Tiles (i, j) of a lower triangle, j <= i, row by row.
fn tiles<'m>(lower: MatMut<'m, f64>, columns: &[Range<usize>]) -> Vec<(usize, usize, Mutex<MatMut<'m, f64>>)> {
    let (mut tiles, mut rest) = (vec![], lower);
    for (j, of) in columns.iter().enumerate() {
        let (block, after) = rest.split_at_col_mut(of.len());
        rest = after;
        let mut below = block.split_at_row_mut(of.start).1;
        for (i, rows) in columns.iter().enumerate().skip(j) {
            let (tile, after) = below.split_at_row_mut(rows.len());
            below = after;
            tiles.push((i, j, Mutex::new(tile)));
        }
    }
    tiles.sort_by_key(|(i, j, _)| (*i, *j));
    tiles
}

/// The sum as it grows.
pub struct Gram {
    precision: Precision,
    columns: Vec<Range<usize>>,
    /// The lower triangle so far.
    lower: Mat<f64>,
}

impl Gram {
    /// Nothing yet, of order `n` and one more if there is an `extra` column, which may sound when no other does, in the memory of a
    /// matrix of the same order.
    pub fn new(n: usize, extra: bool, precision: Precision, mut lower: Mat<f64>) -> Self {
        (0..lower.ncols()).for_each(|j| lower.col_as_slice_mut(j)[j..].fill(0.0));
        let mut columns: Vec<_> = (0..n).step_by(TILE).map(|first| first..n.min(first + TILE)).collect();
        columns.extend(extra.then(|| n..n + 1));
        Self { precision, columns, lower }
    }

    /// Adds the squares of panels, so many together and one after the other, so that the threads do not matter, nor the number of
    /// panels in a call but the last if it is a multiple of [`TOGETHER`]; the number of operations.
    pub fn add(&mut self, pool: &Pool, panels: &[Panel]) -> f64 {
        let columns = &self.columns;
        let first: Vec<Vec<usize>> =
            pool.map(panels.len(), |p| columns.iter().map(|c| first_sounding(&panels[p], c)).collect());
        let doubled: Vec<Vec<f64>> = match self.precision {
            Precision::F32 => vec![],
            Precision::F64 => pool.map(panels.len(), |p| panels[p].values.iter().map(|&x| f64::from(x)).collect()),
        };
        let tiles = tiles(self.lower.as_mut(), columns);
        let flops = pool.map(tiles.len(), |t| {
            let (i, j, tile) = &tiles[t];
            let mut tile = tile.lock().unwrap_or_else(|e| e.into_inner());
            let (h, w) = (tile.nrows(), tile.ncols());
            let mut single = if doubled.is_empty() { Mat::zeros(h, w) } else { Mat::zeros(0, 0) };
            let (mut flops, mut held, of) = (0.0, false, (&columns[*i], &columns[*j]));
            for (p, first) in first.iter().enumerate() {
                let (rows, silent) = (panels[p].rows, first[*i].max(first[*j]));
                let count = rows - silent;
                flops += (if i == j { 1.0 } else { 2.0 }) * (h * w * count) as f64;
                match doubled.get(p) {
                    None if count > 0 => {
                        let accum = if held { Accum::Add } else { Accum::Replace };
                        square(&panels[p].values, silent..rows, of, accum, single.as_mut());
                        held = true;
                    }
                    Some(values) if count > 0 => square(values, silent..rows, of, Accum::Add, tile.as_mut()),
                    _ => {}
                }
                if held && ((p + 1) % TOGETHER == 0 || p + 1 == panels.len()) {
                    add(tile.as_mut(), &single, i == j);
                    held = false;
                }
            }
            flops
        });
        flops.iter().sum()
    }

    /// The sum.
    pub fn finish(self) -> Symmetric {
        Symmetric { lower: self.lower }
    }
}

/// A tile's part of the square of some rows, the last ones of their panel.
fn square<T: ComplexField>(
    values: &[T],
    rows: Range<usize>,
    (i, j): (&Range<usize>, &Range<usize>),
    accum: Accum,
    to: MatMut<T>,
) {
    use BlockStructure::{Rectangular, TriangularLower};
    let a = MatRef::from_column_major_slice(values, rows.end, values.len() / rows.end).subrows(rows.start, rows.len());
    let (left, right) = (a.subcols(i.start, i.len()).transpose(), a.subcols(j.start, j.len()));
    if i == j {
        triangular(to, TriangularLower, accum, left, Rectangular, right, Rectangular, T::one_impl(), Par::Seq);
    } else {
        matmul(to, accum, left, right, T::one_impl(), Par::Seq);
    }
}
