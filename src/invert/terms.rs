//! What the regularisers and unknowns of a stage are built of: where the inversion and the stage began, and how much the
//! start is trusted.

use super::newton_space::{Space, Unknowns};
use super::run::Inversion;
use crate::reg::{Hold, MeanMap, Regulariser, RegulariserSpec, TieVmin};
use crate::{Model, Result};
use ndarray::Array2;
use std::borrow::Cow;

/// Standard deviation of a tied `vmin` about the slowest cell, m/s.
const TIE: f64 = 0.3;
/// Standard deviation of the velocities that the first sample tells, m/s.
const KNOWN: f64 = 0.1;
/// Standard deviation of a start where no prior tells one, m/s.
const DOUBT: f64 = 200.0;

/// See the module.
pub(super) struct Terms<'m> {
    start: &'m Array2<f64>,
    begin: &'m Model,
    here: &'m Model,
    confidence: Cow<'m, Array2<f64>>,
}

impl<'m> Terms<'m> {
    /// For an inversion that started at a map and a stage that began at a model.
    pub fn new(start: &'m Array2<f64>, begin: &'m Model, confidence: Option<&'m Array2<f64>>) -> Self {
        let doubt = || Cow::Owned(Array2::from_elem(start.dim(), DOUBT));
        Self { start, begin, here: begin, confidence: confidence.map_or_else(doubt, Cow::Borrowed) }
    }

    /// The same for a step from a model within the stage.
    pub fn here(self, here: &'m Model) -> Self {
        Self { here, ..self }
    }

    fn mean(&self, spec: &RegulariserSpec) -> &Array2<f64> {
        match spec.mean_map() {
            _ if spec.follows_layers() => &self.here.vp,
            Some(MeanMap::Stage) => &self.begin.vp,
            _ => self.start,
        }
    }

    /// The regularisers, in order.
    pub fn regularisers(&self, specs: &[RegulariserSpec]) -> Result<Vec<Box<dyn Regulariser>>> {
        let build =
            |spec: &RegulariserSpec| spec.build(self.start.dim(), Some(self.mean(spec)), Some(&self.confidence));
        specs.iter().map(build).collect()
    }

    /// The unknowns about the model that the stage began with.
    pub fn space(&self, unknowns: &Unknowns, specs: &[RegulariserSpec]) -> Result<Space> {
        unknowns.space(self.begin, specs, |spec| self.mean(spec), &self.confidence)
    }
}

impl Inversion<'_> {
    /// Adds what is known besides: velocities that the first sample tells and, where it is tied, that of the sponge.
    pub(super) fn add_known(&self, to: &mut Vec<Box<dyn Regulariser>>, tied: bool) -> Result<()> {
        if !self.held().is_empty() {
            let shape = self.survey().map_shape();
            to.push(Box::new(Hold::new(shape, self.held().to_vec(), KNOWN)?));
        }
        if tied {
            to.push(Box::new(TieVmin { sigma: TIE }));
        }
        Ok(())
    }
}
