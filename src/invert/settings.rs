//! What an inversion is told.

use super::stage::{Stage, default_schedule};
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
