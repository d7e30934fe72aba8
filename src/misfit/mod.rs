//! Misfits: how far synthetic data are from observed ones, and the derivative that the adjoint field starts from.
//!
//! With the residual `e = synthetic - observed`, summed over the samples that count:
//!
//! | spelling | value | module |
//! |---|---|---|
//! | `l2` | `e^2 / 2` | [`l2`] |
//! | `l1[:eps]` | `sqrt(e^2 + eps^2) - eps` | [`l1`] |
//! | `huber:delta` | `e^2 / 2` up to `delta`, linear beyond | [`huber`] |
//! | `student:scale[:nu]` | `nu scale^2 / 2 ln(1 + e^2 / (nu scale^2))` | [`student`] |
//! | `lowpass:hz` | `(F e)^2 / 2`, `F` a zero-phase low-pass filter | [`filtered`] |
//!
//! `eps`, `delta` and `scale` are in the data's own units.

pub mod filtered;
pub mod huber;
pub mod l1;
pub mod l2;
mod spec;
pub mod student;

use crate::gather::Mask;
use ndarray::{ArrayView2, ArrayViewMut2};

pub use filtered::FilteredL2;
pub use huber::Huber;
pub use l1::L1;
pub use l2::L2;
pub use spec::{MisfitSpec, parse};
pub use student::StudentT;

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

    /// Whether the adjoint source has no frequencies that the residual does not have: true of linear functions of it.
    /// Only then may a propagator sum the gradient over every few steps; the sign-like derivatives of robust misfits
    /// hold all frequencies, and such sums would alias.
    fn band_limited(&self) -> bool {
        false
    }

    /// What a device without this code may compute in its place: the same misfit by name, if it has one.
    fn spec(&self) -> Option<MisfitSpec> {
        None
    }

    /// Name with parameters, for logs.
    fn name(&self) -> String;
}

impl<M: Misfit + ?Sized> Misfit for &M {
    fn evaluate(
        &self,
        shot: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        mask: &Mask,
        adjoint: ArrayViewMut2<f64>,
    ) -> f64 {
        (**self).evaluate(shot, synthetic, observed, mask, adjoint)
    }

    fn band_limited(&self) -> bool {
        (**self).band_limited()
    }

    fn spec(&self) -> Option<MisfitSpec> {
        (**self).spec()
    }

    fn name(&self) -> String {
        (**self).name()
    }
}

/// Writes `synthetic - observed` where the mask lets it count and zero elsewhere, whatever stands there.
fn residual(
    shot: usize,
    synthetic: ArrayView2<f64>,
    observed: ArrayView2<f64>,
    mask: &Mask,
    mut out: ArrayViewMut2<f64>,
) {
    let live = mask.live.row(shot);
    for (t, mut row) in out.outer_iter_mut().enumerate() {
        if t >= mask.nt {
            row.fill(0.0);
            continue;
        }
        let samples = synthetic.row(t).into_iter().zip(observed.row(t)).zip(live);
        for (e, ((s, o), &l)) in row.iter_mut().zip(samples) {
            *e = if l { s - o } else { 0.0 };
        }
    }
}

/// A misfit that is the sum of one function of every residual: `f` gives its value and derivative, both zero at zero.
fn pointwise(
    shot: usize,
    synthetic: ArrayView2<f64>,
    observed: ArrayView2<f64>,
    mask: &Mask,
    mut adjoint: ArrayViewMut2<f64>,
    f: impl Fn(f64) -> (f64, f64),
) -> f64 {
    residual(shot, synthetic, observed, mask, adjoint.view_mut());
    let mut sum = 0.0;
    for e in adjoint.iter_mut() {
        let (value, derivative) = f(*e);
        sum += value;
        *e = derivative;
    }
    sum
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
