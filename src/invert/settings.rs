//! What an inversion is told.

use super::stage::{Stage, default_schedule};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How to invert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Smallest and largest velocity, m/s, inclusive; for cells and `vmin` alike.
    pub bounds: (f64, f64),
    /// The stages, in order.
    pub stages: Vec<Stage>,
    /// Pairs that L-BFGS remembers.
    pub memory: usize,
    /// Largest change of a cell in a stage's first trial, m/s.
    pub first_step: f64,
    /// Power of the distance from the nearest row of sources or receivers that the optimiser's first guess at the
    /// inverse Hessian grows with; 0 for a plain L-BFGS. With velocities as variables, from the blurred truth of the CurveFault_B pair, the misfit left
    /// after 60 evaluations was 3.5e-3 of its first value with 0, 4.8e-4 with 1 and 3.0e-3 with 2.
    pub depth_exponent: f64,
    /// Holds the cells whose velocity the first sample gives exactly at that velocity (in stages without smoothing).
    pub pin_sources: bool,
    /// Evaluations in all, at most.
    pub max_evals: Option<u64>,
    /// Wall time in all, at most.
    pub time_limit: Option<Duration>,
    /// Ends everything when the data rms of an iterate falls to this, in the data's units.
    pub target_rms: Option<f64>,
}

impl Settings {
    /// Errors, in one line, on settings that make no sense with samples every `dt` seconds.
    pub fn validate(&self, dt: f64) -> Result<()> {
        let fail = |m: String| Err(Error::Usage(m));
        let (low, high) = self.bounds;
        if !(low.is_finite() && high.is_finite() && 0.0 < low && low < high) {
            return fail(format!("the velocity bounds must be positive and rising, not {low}..{high} m/s"));
        }
        if self.stages.is_empty() || self.memory == 0 || self.max_evals == Some(0) {
            return fail(
                "an inversion needs at least one stage, a memory of at least one pair and one evaluation".into(),
            );
        }
        if !(self.first_step.is_finite() && self.first_step > 0.0) {
            return fail(format!("the first step must be above 0 m/s, not {}", self.first_step));
        }
        if self.depth_exponent.is_nan() || self.depth_exponent.abs() > 10.0 {
            return fail(format!("the depth exponent must lie between -10 and 10, not {}", self.depth_exponent));
        }
        self.stages.iter().try_for_each(|stage| stage.validate(dt))
    }
}

impl Default for Settings {
    /// OpenFWI's bounds, the [default schedule](default_schedule), 50 pairs, 30 m/s, sources pinned, no limits.
    fn default() -> Self {
        Self {
            bounds: (1500.0, 4500.0),
            stages: default_schedule(),
            memory: 50,
            first_step: 30.0,
            depth_exponent: 1.0,
            pin_sources: true,
            max_evals: None,
            time_limit: None,
            target_rms: None,
        }
    }
}
