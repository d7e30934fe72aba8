//! Sums `A' A` over panels of rows, tile by tile: in f64, or in f32 within a panel and in f64 over them.
//!
//! Waves take their time to what lies deep: the rows of a panel come in the order of time, and a tile of columns is taken to
//! be zero, as it is but for rounding, up to the first row in which it sounds. That leaves out about a third of the products.

use super::traces::Panel;
use crate::wave::Precision;
use crate::wave::cpu::schedule::Pool;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular};
use faer::traits::ComplexField;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use std::ops::Range;
use std::sync::Mutex;

/// Columns of a tile: there is work for many threads; sizes from 256 to 1225 run at the same rate, that of large products.
const TILE: usize = 448;

/// Share of a tile's largest entry in a panel below which it does not sound yet.
const SILENT: f32 = 5e-4;

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

    /// Adds a multiple of another matrix of the same order.
    pub fn add(&mut self, by: f64, other: &Symmetric) {
        for j in 0..self.len() {
            let to = &mut self.lower.col_as_slice_mut(j)[j..];
            to.iter_mut().zip(&other.lower.col_as_slice(j)[j..]).for_each(|(a, b)| *a += by * b);
        }
    }

    /// Makes it the sum of another one of the same order and a multiple of a third.
    pub fn set_sum(&mut self, one: &Symmetric, by: f64, other: &Symmetric) {
        for j in 0..self.len() {
            let to = &mut self.lower.col_as_slice_mut(j)[j..];
            let both = one.lower.col_as_slice(j)[j..].iter().zip(&other.lower.col_as_slice(j)[j..]);
            to.iter_mut().zip(both).for_each(|(t, (a, b))| *t = a + by * b);
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
        let n = self.len();
        let mut y = vec![0.0; n];
        for j in 0..n {
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

/// Bytes of a sum of order `n` as it grows.
pub fn bytes(n: usize) -> u64 {
    // one more column at most has a tile of its own
    let count = n.div_ceil(TILE) as u64 + 1;
    let tile = TILE.min(n) as u64;
    8 * (count * (count + 1) / 2) * tile * tile
}

/// The first row of a panel in which any of the columns sounds.
fn first_sounding(rows: &[f32], n: usize, columns: &Range<usize>) -> usize {
    let peak = |row: &[f32]| row[columns.clone()].iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let peaks: Vec<f32> = rows.chunks_exact(n).map(peak).collect();
    let largest = peaks.iter().copied().fold(0.0, f32::max);
    peaks.iter().position(|&p| p > SILENT * largest).unwrap_or(peaks.len())
}

/// Adds a tile, or its lower triangle.
fn add(to: &mut Mat<f64>, tile: &Mat<f32>, lower: bool) {
    for j in 0..to.ncols() {
        let first = if lower { j } else { 0 };
        let from = &tile.col_as_slice(j)[first..];
        to.col_as_slice_mut(j)[first..].iter_mut().zip(from).for_each(|(t, x)| *t += f64::from(*x));
    }
}

/// The sum as it grows.
pub struct Gram {
    n: usize,
    precision: Precision,
    columns: Vec<Range<usize>>,
    /// Tiles (i, j) of the lower triangle, j <= i, row by row.
    tiles: Vec<(usize, usize, Mutex<Mat<f64>>)>,
}

impl Gram {
    /// Nothing yet, of order `n` and one more if there is an `extra` column, which may sound when no other does.
    pub fn new(n: usize, extra: bool, precision: Precision) -> Self {
        let mut columns: Vec<_> = (0..n).step_by(TILE).map(|first| first..n.min(first + TILE)).collect();
        columns.extend(extra.then(|| n..n + 1));
        let tiles = (0..columns.len())
            .flat_map(|i| (0..=i).map(move |j| (i, j)))
            .map(|(i, j)| (i, j, Mutex::new(Mat::zeros(columns[i].len(), columns[j].len()))))
            .collect();
        Self { n: n + usize::from(extra), precision, columns, tiles }
    }

    /// Adds the squares of panels, one after the other, so that neither their number in a call nor the threads matter; the
    /// number of operations.
    pub fn add(&mut self, pool: &Pool, panels: &[Panel]) -> f64 {
        if self.n == 0 {
            return 0.0;
        }
        let first: Vec<Vec<usize>> = pool
            .map(panels.len(), |p| self.columns.iter().map(|c| first_sounding(&panels[p].values, self.n, c)).collect());
        let doubled: Vec<Vec<f64>> = match self.precision {
            Precision::F32 => vec![],
            Precision::F64 => pool.map(panels.len(), |p| panels[p].values.iter().map(|&x| f64::from(x)).collect()),
        };
        let flops = pool.map(self.tiles.len(), |t| {
            let (i, j, tile) = &self.tiles[t];
            let mut tile = tile.lock().unwrap_or_else(|e| e.into_inner());
            let (h, w) = (tile.nrows(), tile.ncols());
            let mut single = if doubled.is_empty() { Mat::zeros(h, w) } else { Mat::zeros(0, 0) };
            let mut flops = 0.0;
            for (p, first) in first.iter().enumerate() {
                let silent = first[*i].max(first[*j]) * self.n;
                let count = panels[p].values.len() / self.n - silent / self.n;
                if count == 0 {
                    continue;
                }
                flops += (if i == j { 1.0 } else { 2.0 }) * (h * w * count) as f64;
                match doubled.get(p) {
                    None => {
                        self.square(&panels[p].values[silent..], (*i, *j), Accum::Replace, single.as_mut());
                        add(&mut tile, &single, i == j);
                    }
                    Some(rows) => self.square(&rows[silent..], (*i, *j), Accum::Add, tile.as_mut()),
                }
            }
            flops
        });
        flops.iter().sum()
    }

    /// A tile's part of the square of some rows.
    fn square<T: ComplexField>(&self, rows: &[T], (i, j): (usize, usize), accum: Accum, to: MatMut<T>) {
        use BlockStructure::{Rectangular, TriangularLower};
        let a = MatRef::from_row_major_slice(rows, rows.len() / self.n, self.n);
        let columns = |k: usize, width| a.subcols(self.columns[k].start, width);
        let (left, right) = (columns(i, to.nrows()).transpose(), columns(j, to.ncols()));
        if i == j {
            triangular(to, TriangularLower, accum, left, Rectangular, right, Rectangular, T::one_impl(), Par::Seq);
        } else {
            matmul(to, accum, left, right, T::one_impl(), Par::Seq);
        }
    }

    /// The sum.
    pub fn finish(self) -> Symmetric {
        let mut lower = Mat::zeros(self.n, self.n);
        for (i, j, tile) in self.tiles {
            let tile = tile.into_inner().unwrap_or_else(|e| e.into_inner());
            let (row, column) = (self.columns[i].start, self.columns[j].start);
            lower.as_mut().submatrix_mut(row, column, tile.nrows(), tile.ncols()).copy_from(&tile);
        }
        Symmetric { lower }
    }
}
