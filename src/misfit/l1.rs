//! Sum of absolute residuals, rounded off below `eps` so that its derivative is smooth.

use super::{Misfit, MisfitSpec, pointwise};
use crate::gather::Mask;
use ndarray::{ArrayView2, ArrayViewMut2};

/// `sqrt(e^2 + eps^2) - eps`: `|e|` for residuals well above `eps`, `e^2 / (2 eps)` well below.
#[derive(Clone, Copy, Debug)]
pub struct L1 {
    /// Residual below which the corner is rounded off, in the data's units; above zero.
    pub eps: f64,
}

impl Default for L1 {
    /// 1e-4: far below OpenFWI's data (rms 1.5), above their float32 noise (1e-5).
    fn default() -> Self {
        Self { eps: 1e-4 }
    }
}

impl Misfit for L1 {
    fn evaluate(
        &self,
        shot: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        mask: &Mask,
        adjoint: ArrayViewMut2<f64>,
    ) -> f64 {
        let eps = self.eps;
        pointwise(shot, synthetic, observed, mask, adjoint, |e| {
            let root = e.hypot(eps);
            // e^2 / (root + eps) is root - eps without its cancellation
            (e * e / (root + eps), e / root)
        })
    }

    fn spec(&self) -> Option<MisfitSpec> {
        Some(MisfitSpec::L1(self.eps))
    }

    fn name(&self) -> String {
        format!("l1:{}", self.eps)
    }
}
