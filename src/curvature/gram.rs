//! Sums `A' A` over panels of rows, in f64, tile by tile.

use super::traces::Panel;
use crate::wave::cpu::schedule::Pool;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular};
use faer::{Accum, Mat, MatRef, Par};
use std::sync::Mutex;

/// Columns of a tile: there is work for many threads; sizes from 256 to 1225 run at the same rate, that of large products.
const TILE: usize = 448;

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
        let n = self.len();
        let mut y = vec![0.0; n];
        for j in 0..n {
            let column = &self.lower.col_as_slice(j)[j..];
            y[j] += column[0] * x[j];
            let mut sum = 0.0;
            for (i, a) in column.iter().enumerate().skip(1) {
                y[j + i] += a * x[j];
                sum += a * x[j + i];
            }
            y[j] += sum;
        }
        y
    }
}

/// Bytes of a sum of order `n` as it grows.
pub fn bytes(n: usize) -> u64 {
    let count = n.div_ceil(TILE) as u64;
    let tile = TILE.min(n) as u64;
    8 * (count * (count + 1) / 2) * tile * tile
}

/// The sum as it grows.
pub struct Gram {
    n: usize,
    /// Tiles (i, j) of the lower triangle, j <= i, row by row.
    tiles: Vec<(usize, usize, Mutex<Mat<f64>>)>,
}

impl Gram {
    /// Nothing yet, of order `n`.
    pub fn new(n: usize) -> Self {
        let count = n.div_ceil(TILE);
        let size = |i: usize| TILE.min(n - i * TILE);
        let tiles = (0..count)
            .flat_map(|i| (0..=i).map(move |j| (i, j)))
            .map(|(i, j)| (i, j, Mutex::new(Mat::zeros(size(i), size(j)))))
            .collect();
        Self { n, tiles }
    }

    /// Adds the squares of panels, one after the other, so that neither their number in a call nor the threads matter; the
    /// number of operations.
    pub fn add(&mut self, pool: &Pool, panels: &[Panel]) -> f64 {
        if self.n == 0 {
            return 0.0;
        }
        let of = |p: &Panel| p.values.len() / self.n;
        pool.map(self.tiles.len(), |t| {
            let (i, j, tile) = &self.tiles[t];
            let mut tile = tile.lock().unwrap_or_else(|e| e.into_inner());
            let (h, w) = (tile.nrows(), tile.ncols());
            for panel in panels.iter().filter(|p| !p.values.is_empty()) {
                use BlockStructure::{Rectangular, TriangularLower};
                let a = MatRef::from_row_major_slice(&panel.values, of(panel), self.n);
                let (left, right) = (a.subcols(i * TILE, h).transpose(), a.subcols(j * TILE, w));
                let to = tile.as_mut();
                if i == j {
                    triangular(to, TriangularLower, Accum::Add, left, Rectangular, right, Rectangular, 1.0, Par::Seq);
                } else {
                    matmul(to, Accum::Add, left, right, 1.0, Par::Seq);
                }
            }
        });
        panels.iter().map(of).sum::<usize>() as f64 * (self.n as f64).powi(2)
    }

    /// The sum.
    pub fn finish(self) -> Symmetric {
        let mut lower = Mat::zeros(self.n, self.n);
        for (i, j, tile) in self.tiles {
            let tile = tile.into_inner().unwrap_or_else(|e| e.into_inner());
            lower.as_mut().submatrix_mut(i * TILE, j * TILE, tile.nrows(), tile.ncols()).copy_from(&tile);
        }
        Symmetric { lower }
    }
}
