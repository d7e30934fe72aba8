//! Least squares: `e^2 / 2`, the default and the likelihood of white Gaussian noise.

use super::{Misfit, MisfitSpec, pointwise};
use crate::gather::Mask;
use ndarray::{ArrayView2, ArrayViewMut2};

/// Half the sum of squared residuals.
#[derive(Clone, Copy, Debug, Default)]
pub struct L2;

impl Misfit for L2 {
    fn evaluate(
        &self,
        shot: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        mask: &Mask,
        adjoint: ArrayViewMut2<f64>,
    ) -> f64 {
        pointwise(shot, synthetic, observed, mask, adjoint, |e| (0.5 * e * e, e))
    }

    fn band_limited(&self) -> bool {
        true
    }

    fn spec(&self) -> Option<MisfitSpec> {
        Some(MisfitSpec::L2)
    }

    fn name(&self) -> String {
        "l2".into()
    }
}
