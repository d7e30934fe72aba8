//! Regularisers: negative log priors of a map, in nats, so that a weight means the same for every gather.
//!
//! An inversion minimises `|F(m) - d|^2 / (2 s^2) + sum of R_i(m)` with `s` the standard deviation of the data's noise.
//! Every `R` knows its value, its exact gradient, and a curvature for Gauss-Newton steps: the exact Hessian where `R` is
//! quadratic, and where it is not a positive semidefinite majoriser, so that a step that lowers the quadratic lowers `R`.
//! The penalties of steps take the one of lagged diffusivity (Vogel and Oman, SIAM J. Sci. Comput. 17, 1996): a function
//! that is concave in `d^2` lies below its tangent in `d^2`.

mod dips;
mod gaussian_process;
mod hold;
mod log_penalty;
mod neighbours;
mod snap;
mod spec;
mod tie_vmin;
mod tikhonov;
mod total_variation;

pub use gaussian_process::{Covariance, Directions, GaussianProcess};
pub use hold::Hold;
pub use log_penalty::LogPenalty;
pub use snap::Snap;
pub use spec::{Mean, MeanMap, RegulariserSpec};
pub use tie_vmin::TieVmin;
pub use tikhonov::{Order, Tikhonov};
pub use total_variation::TotalVariation;

use crate::Model;

/// A negative log prior of a map, up to a constant.
pub trait Regulariser: Send + Sync {
    /// What it is, in one line, with units.
    fn describe(&self) -> String;

    /// The value at a model, in nats.
    fn value(&self, m: &Model) -> f64;

    /// The exact derivative of [`Self::value`], in nats per m/s.
    fn gradient(&self, m: &Model) -> Model;

    /// Tells row, column and entries of the lower triangle of a matrix of order cells + 1 (cells row by row, then `vmin`), few as they mostly
    /// are; those told of one place add up: a positive semidefinite `A` with
    /// `R(m') <= R(m) + g'(m' - m) + (m' - m)' A (m' - m) / 2` for all `m'`, the Hessian of a quadratic `R`.
    fn curvature(&self, m: &Model, add: &mut dyn FnMut(usize, usize, f64));

    /// The product of that matrix with numbers for the cells and `vmin`.
    fn curvature_times(&self, m: &Model, x: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; x.len()];
        self.curvature(m, &mut |i, j, v| {
            y[i] += v * x[j];
            if i != j {
                y[j] += v * x[i];
            }
        });
        y
    }
}

#[cfg(test)]
mod tests;
