//! Least squares of low-pass filtered residuals, for frequency continuation: `J = |F e|^2 / 2`, derivative `F' F e`.
//!
//! `F = B' B`, where `B` is a causal fourth-order Butterworth low-pass (two second-order sections by the bilinear
//! transform) from rest over the record, and `B'` its exact transpose: the same recursion run backwards in time from
//! rest at the record's end. So `F` has no phase, equals its own transpose also at the record's ends, and has the
//! amplitude `1 / (1 + (tan(pi f dt) / tan(pi fc dt))^8)`, one half at the corner frequency `fc`.
//!
//! A recursion costs the same at any corner; symmetric taps of equal steepness would need hundreds at 3 Hz and 1 ms.

use super::{Misfit, MisfitSpec, residual};
use crate::gather::Mask;
use crate::{Error, Gather, Result};
use ndarray::{ArrayView2, ArrayViewMut2};

/// Half the sum of squared residuals below a corner frequency.
#[derive(Clone, Copy, Debug)]
pub struct FilteredL2 {
    corner: f64,
    sections: [Section; 2],
}

/// A second-order section `y[t] = g (x[t] + 2 x[t-1] + x[t-2]) - a1 y[t-1] - a2 y[t-2]`.
#[derive(Clone, Copy, Debug)]
struct Section {
    gain: f64,
    a1: f64,
    a2: f64,
}

/// Receivers that are filtered side by side: the recursion is serial in time, so the lanes are the parallelism.
const LANES: usize = 8;

impl FilteredL2 {
    /// A low-pass at `corner` Hz for records sampled every `dt` s. Errors unless `0 < corner < 0.5 / dt`.
    pub fn new(corner: f64, dt: f64) -> Result<Self> {
        let nyquist = 0.5 / dt;
        if !(corner.is_finite() && corner > 0.0 && corner < nyquist) {
            return Err(Error::Usage(format!(
                "a low-pass needs a corner frequency above 0 and below {nyquist} Hz (half the sampling rate), not {corner} Hz"
            )));
        }
        let w = (std::f64::consts::PI * corner * dt).tan();
        let section = |angle: f64| {
            let damping = 2.0 * angle.cos() * w;
            let norm = 1.0 + damping + w * w;
            Section { gain: w * w / norm, a1: 2.0 * (w * w - 1.0) / norm, a2: (1.0 - damping + w * w) / norm }
        };
        let eighth = std::f64::consts::PI / 8.0;
        Ok(Self { corner, sections: [section(eighth), section(3.0 * eighth)] })
    }

    /// The corner frequency, Hz.
    pub fn corner(&self) -> f64 {
        self.corner
    }

    /// Gain, a1 and a2 of both sections.
    pub(crate) fn coefficients(&self) -> [f64; 6] {
        let [a, b] = self.sections.map(|s| [s.gain, s.a1, s.a2]);
        [a[0], a[1], a[2], b[0], b[1], b[2]]
    }

    /// A gather's samples that count, `F` applied to those traces of it that do; zero elsewhere.
    pub fn record(&self, gather: &Gather, mask: &Mask) -> Gather {
        let mut filtered = gather.clone();
        mask.apply(&mut filtered);
        for mut shot in filtered.data.outer_iter_mut() {
            self.apply(shot.slice_mut(ndarray::s![..mask.nt, ..]));
        }
        filtered
    }

    /// Applies `F` in place along the rows (time) of `(time samples, receivers)`.
    pub fn apply(&self, mut data: ArrayViewMut2<f64>) {
        let (nt, nr) = data.dim();
        let mut panel = vec![[0.0; LANES]; nt];
        for first in (0..nr).step_by(LANES) {
            let lanes = LANES.min(nr - first);
            for (t, row) in panel.iter_mut().enumerate() {
                *row = [0.0; LANES];
                for l in 0..lanes {
                    row[l] = data[[t, first + l]];
                }
            }
            self.filter(panel.iter_mut());
            self.filter(panel.iter_mut().rev());
            for (t, row) in panel.iter().enumerate() {
                for l in 0..lanes {
                    data[[t, first + l]] = row[l];
                }
            }
        }
    }

    /// Both sections from rest, in the order of the rows. (Direct form II, transposed: two states a section.)
    fn filter<'a>(&self, rows: impl Iterator<Item = &'a mut [f64; LANES]>) {
        let mut state = [[[0.0; LANES]; 2]; 2];
        for row in rows {
            for (Section { gain, a1, a2 }, [z1, z2]) in self.sections.iter().zip(&mut state) {
                for l in 0..LANES {
                    let x = gain * row[l];
                    let y = x + z1[l];
                    z1[l] = 2.0 * x - a1 * y + z2[l];
                    z2[l] = x - a2 * y;
                    row[l] = y;
                }
            }
        }
    }
}

impl Misfit for FilteredL2 {
    fn evaluate(
        &self,
        shot: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        mask: &Mask,
        mut adjoint: ArrayViewMut2<f64>,
    ) -> f64 {
        residual(shot, synthetic, observed, mask, adjoint.view_mut());
        // the filter sees the record that counts, and a masked trace as zeros, which it leaves zero
        let nt = mask.nt.min(adjoint.nrows());
        let mut record = adjoint.slice_mut(ndarray::s![..nt, ..]);
        self.apply(record.view_mut());
        let value = 0.5 * record.iter().map(|e| e * e).sum::<f64>();
        self.apply(record);
        value
    }

    fn band_limited(&self) -> bool {
        true
    }

    fn spec(&self) -> Option<MisfitSpec> {
        Some(MisfitSpec::LowPass(self.corner))
    }

    fn name(&self) -> String {
        format!("lowpass:{}", self.corner)
    }
}
