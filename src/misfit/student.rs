//! Student's t: the likelihood of noise with heavy tails; a large residual hardly pulls at all (Aravkin et al., 2011).

use super::{Misfit, MisfitSpec, pointwise};
use crate::gather::Mask;
use ndarray::{ArrayView2, ArrayViewMut2};

/// `nu scale^2 / 2 ln(1 + e^2 / (nu scale^2))`: `e^2 / 2` for small residuals, a logarithm for large ones.
#[derive(Clone, Copy, Debug)]
pub struct StudentT {
    /// Scale of the residuals, in the data's units; above zero.
    pub scale: f64,
    /// Degrees of freedom; above zero. Large values turn it into least squares.
    pub nu: f64,
}

impl Misfit for StudentT {
    fn evaluate(
        &self,
        shot: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        mask: &Mask,
        adjoint: ArrayViewMut2<f64>,
    ) -> f64 {
        let width = self.nu * self.scale * self.scale;
        pointwise(shot, synthetic, observed, mask, adjoint, |e| {
            let q = e * e / width;
            (0.5 * width * q.ln_1p(), e / (1.0 + q))
        })
    }

    fn spec(&self) -> Option<MisfitSpec> {
        Some(MisfitSpec::StudentT(self.scale, self.nu))
    }

    fn name(&self) -> String {
        format!("student:{}:{}", self.scale, self.nu)
    }
}
