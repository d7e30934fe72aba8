//! Misfits: how far synthetic data are from observed ones, and the derivative that the adjoint field starts from.

use crate::gather::Mask;
use ndarray::{ArrayView2, ArrayViewMut2};

/// A misfit that is a sum over shots.
///
/// The propagator evaluates it shot by shot, possibly on several threads at once, so that no more than a few
/// wavefield histories are alive at a time.
pub trait Misfit: Send + Sync {
    /// The value for one shot; writes its derivative with respect to every synthetic sample into `adjoint`
    /// (zero at samples that are masked out).
    ///
    /// `synthetic`, `observed` and `adjoint` are (time samples, receivers); `mask.live.row(shot)` tells which traces count.
    fn evaluate(
        &self,
        shot: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        mask: &Mask,
        adjoint: ArrayViewMut2<f64>,
    ) -> f64;

    /// Name with parameters, for logs.
    fn name(&self) -> String;
}

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
        mut adjoint: ArrayViewMut2<f64>,
    ) -> f64 {
        adjoint.fill(0.0);
        let mut sum = 0.0;
        for t in 0..mask.nt {
            for r in 0..synthetic.ncols() {
                if mask.live[[shot, r]] {
                    let e = synthetic[[t, r]] - observed[[t, r]];
                    sum += 0.5 * e * e;
                    adjoint[[t, r]] = e;
                }
            }
        }
        sum
    }

    fn name(&self) -> String {
        "l2".into()
    }
}

/// The inner product of the synthetic data with the observed slot: its gradient is the adjoint applied to that slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linear;

impl Misfit for Linear {
    fn evaluate(
        &self,
        _shot: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        _mask: &Mask,
        mut adjoint: ArrayViewMut2<f64>,
    ) -> f64 {
        adjoint.assign(&observed);
        synthetic.iter().zip(&observed).map(|(a, b)| a * b).sum()
    }

    fn name(&self) -> String {
        "linear".into()
    }
}
