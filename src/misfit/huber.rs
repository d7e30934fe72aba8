//! Huber's misfit: least squares for small residuals, absolute values for large ones (Huber, 1964).

use super::{Misfit, MisfitSpec, pointwise};
use crate::gather::Mask;
use ndarray::{ArrayView2, ArrayViewMut2};

/// `e^2 / 2` up to `delta`, `delta (|e| - delta / 2)` beyond.
#[derive(Clone, Copy, Debug)]
pub struct Huber {
    /// Residual at which the square turns into a line, in the data's units; above zero.
    pub delta: f64,
}

impl Misfit for Huber {
    fn evaluate(
        &self,
        shot: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        mask: &Mask,
        adjoint: ArrayViewMut2<f64>,
    ) -> f64 {
        let delta = self.delta;
        pointwise(shot, synthetic, observed, mask, adjoint, |e| {
            if e.abs() <= delta { (0.5 * e * e, e) } else { (delta * (e.abs() - 0.5 * delta), delta.copysign(e)) }
        })
    }

    fn spec(&self) -> Option<MisfitSpec> {
        Some(MisfitSpec::Huber(self.delta))
    }

    fn name(&self) -> String {
        format!("huber:{}", self.delta)
    }
}
