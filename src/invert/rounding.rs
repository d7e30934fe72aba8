//! Rounding at the end of a stage: families whose velocities are whole numbers are found exactly where the data agree.

use super::objective::Halt;
use super::run::Inversion;
use super::stage::Stage;
use super::state::{Best, State};
use crate::misfit::L2;
use crate::param::patches;
use crate::{Error, Model, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// Which velocities are rounded, and when the rounded map is taken.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// Spacing of the velocities, m/s.
    pub spacing: f64,
    /// Largest step within a flat patch, m/s.
    pub step: f64,
    /// Cells of the smallest patch that is rounded.
    pub min_area: usize,
    /// The rounded map is taken if its data rms is at most this, in the data's units, or below that of the map as it was.
    pub accept: f64,
}

/// How far from a multiple of the spacing a patch may lie, as a share of it, in the attempts one after the other.
const REACH: [f64; 3] = [0.5, 0.25, 0.1];

impl Round {
    /// Errors, in one line, on numbers that make no sense.
    pub fn validate(&self) -> Result<()> {
        let positive = [self.spacing, self.step, self.accept].iter().all(|x| *x > 0.0 && x.is_finite());
        match positive && self.min_area > 0 {
            true => Ok(()),
            false => Err(Error::Usage(format!("rounding needs numbers above 0, not {self:?}"))),
        }
    }

    /// The map with every patch that lies near enough to a multiple of the spacing moved onto it.
    fn apply(&self, map: &Array2<f64>, reach: f64) -> Array2<f64> {
        let flat = patches(map, self.step, self.min_area);
        let near = |v: f64| (v / self.spacing).round() * self.spacing;
        let mut rounded = map.clone();
        rounded.zip_mut_with(&flat.labels, |v, &l| {
            let (mean, size) = (flat.means[l as usize], flat.sizes[l as usize]);
            if size >= self.min_area && (mean - near(mean)).abs() <= reach * self.spacing {
                *v = near(mean);
            }
        });
        rounded
    }
}

impl Inversion<'_> {
    /// Rounds the best model of a stage; whether the data agreed.
    pub(super) fn round(&self, state: &mut State, best: &mut Best, stage: &Stage, round: &Round) -> Result<bool> {
        let data = self.data(stage);
        // data made in f32 are matched best in f32: a refined propagator's floor lies higher
        self.engine(stage).release();
        let rms = |m: &Model| -> Result<Option<(f64, f64)>> {
            match self.coarse().misfit_and_gradient(std::slice::from_ref(m), std::slice::from_ref(&data), &L2) {
                Ok(e) => Ok(e.first().map(|e| (e.value, e.data_rms))),
                Err(Error::Numerical(_)) => Ok(None),
                Err(error) => Err(error),
            }
        };
        state.ledger.evaluations += 1;
        state.ledger.stage_evaluations += 1;
        let before = rms(&best.model)?.map_or(best.data_rms, |(_, rms)| rms);
        let mut agreed = false;
        for reach in REACH {
            let map = round.apply(&best.model.vp, reach);
            let model = Model::from_map(map);
            state.ledger.evaluations += 1;
            state.ledger.stage_evaluations += 1;
            let Some((misfit, data_rms)) = rms(&model)? else { continue };
            if data_rms <= round.accept.max(before) {
                *best = Best { model, score: data_rms, misfit, data_rms };
                agreed = true;
                break;
            }
        }
        self.coarse().release();
        Ok(agreed)
    }

    /// Whether a stage ended of itself, so that its map may be rounded.
    pub(super) fn may_round(halt: &Halt) -> bool {
        matches!(halt, Halt::Stage(stop) if !stop.left_out())
    }
}
