//! The unknown of an inversion: a velocity map and the velocity that sets the sponge.

use crate::{Error, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// A velocity map with the sponge's velocity as one more unknown; also a direction in, or a gradient over, that space.
///
/// `vmin` is `min(vp)` when the data are made. The minimum is not smooth, so an inversion carries it as a free number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Velocity (nz, nx) in m/s, depth first. As a gradient: misfit per m/s.
    pub vp: Array2<f64>,
    /// Velocity that scales the sponge's damping, m/s.
    pub vmin: f64,
}

impl Model {
    /// The model of a map as the data's makers use it: `vmin = min(vp)`.
    pub fn from_map(vp: Array2<f64>) -> Self {
        let vmin = vp.iter().copied().fold(f64::INFINITY, f64::min);
        Self { vp, vmin }
    }

    /// A model of zeros (the zero direction) of the given shape (nz, nx).
    pub fn zeros(shape: (usize, usize)) -> Self {
        Self { vp: Array2::zeros(shape), vmin: 0.0 }
    }

    /// Largest velocity of the map, m/s.
    pub fn vmax(&self) -> f64 {
        self.vp.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// The first of the slowest cells (z, x), and its velocity, m/s.
    pub fn slowest(&self) -> ((usize, usize), f64) {
        self.vp.indexed_iter().fold(((0, 0), f64::INFINITY), |best, (i, &v)| if v < best.1 { (i, v) } else { best })
    }

    /// Number of unknowns: cells plus one for `vmin`.
    pub fn dim(&self) -> usize {
        self.vp.len() + 1
    }

    /// The unknowns as one vector: cells row by row, then `vmin`.
    pub fn to_vec(&self) -> Vec<f64> {
        let mut x: Vec<f64> = self.vp.iter().copied().collect();
        x.push(self.vmin);
        x
    }

    /// The inverse of [`Model::to_vec`]. Errors when `x` does not hold `nz * nx + 1` numbers.
    pub fn from_slice(shape: (usize, usize), x: &[f64]) -> Result<Self> {
        let n = shape.0 * shape.1;
        if x.len() != n + 1 {
            return Err(Error::Usage(format!(
                "a {} x {} model has {} unknowns, not {}",
                shape.0,
                shape.1,
                n + 1,
                x.len()
            )));
        }
        let vp = Array2::from_shape_vec(shape, x[..n].to_vec()).expect("length checked");
        Ok(Self { vp, vmin: x[n] })
    }

    /// Inner product over cells and `vmin`.
    pub fn dot(&self, other: &Self) -> f64 {
        self.vp.iter().zip(&other.vp).map(|(a, b)| a * b).sum::<f64>() + self.vmin * other.vmin
    }

    /// `self + t * d`.
    pub fn plus(&self, t: f64, d: &Self) -> Self {
        Self { vp: &self.vp + &(t * &d.vp), vmin: self.vmin + t * d.vmin }
    }
}
