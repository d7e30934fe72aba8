//! The wave operator behind one trait: forward, Born, misfit with gradient, wavefields; for many models at once.

pub mod cpu;
pub mod cuda;
pub mod dispatch;
pub mod reference;

use crate::{Gather, Misfit, Model, Observed, Position, Result, Survey};
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

pub use cpu::{Cpu, CpuOptions, Fidelity, Precision, build};
pub use cuda::{Cuda, CudaOptions, History};
pub use dispatch::Dispatch;
pub use reference::Reference;

/// Misfit and gradient of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The misfit's value.
    pub value: f64,
    /// Its exact discrete derivative with respect to every cell and `vmin`.
    pub gradient: Model,
    /// Rms of the unfiltered residual over the samples that count, in the data's units.
    pub data_rms: f64,
}

/// A field over the padded grid, (rows, columns), in the type that it was computed in: widening all of a field of which a
/// part is wanted would take longer than the steps in between. Cells of a row lie together.
#[derive(Clone, Copy, Debug)]
pub enum FieldView<'a> {
    /// In single precision.
    F32(ArrayView2<'a, f32>),
    /// In double precision.
    F64(ArrayView2<'a, f64>),
}

impl FieldView<'_> {
    /// A copy in double precision.
    pub fn to_f64(self) -> Array2<f64> {
        match self {
            Self::F32(field) => field.mapv(f64::from),
            Self::F64(field) => field.to_owned(),
        }
    }
}

/// Takes the number of a source, the number of a level and the field there, see [`Propagator::wavefields`].
pub type WavefieldVisitor<'a> = dyn Fn(usize, usize, FieldView) + Sync + 'a;

/// An implementation of the operator. All of them solve the same discrete problem, to rounding.
///
/// Every method takes a batch of models, so that a device with many cores is kept busy; results come in the batch's
/// order and do not depend on its size or on the number of threads.
pub trait Propagator: Send + Sync {
    /// The acquisition it was made for.
    fn survey(&self) -> &Survey;

    /// One line for logs: backend, precision, fidelity, threads.
    fn describe(&self) -> String;

    /// What of it decides the rounding and accuracy of results, for telling whether a checkpoint may go on here.
    fn arithmetic(&self) -> String;

    /// Synthetic gathers of the models.
    fn forward(&self, models: &[Model]) -> Result<Vec<Gather>>;

    /// Directional derivatives `J(m) dm` of the data, one direction a model.
    fn born(&self, models: &[Model], directions: &[Model]) -> Result<Vec<Gather>>;

    /// Misfit, gradient and data rms of every model against its observed gather.
    fn misfit_and_gradient(
        &self,
        models: &[Model],
        observed: &[Observed],
        misfit: &dyn Misfit,
    ) -> Result<Vec<Evaluation>>;

    /// The adjoint `J(m)' y` of [`Propagator::born`], one data vector a model.
    fn adjoint(&self, models: &[Model], data: &[Gather]) -> Result<Vec<Model>> {
        let observed: Vec<Observed> = data
            .iter()
            .map(|y| Observed {
                mask: crate::Mask::all(y.data.dim()),
                gather: y.clone().into(),
                bad: vec![],
                dead: vec![],
            })
            .collect();
        let out = self.misfit_and_gradient(models, &observed, &crate::misfit::Linear)?;
        Ok(out.into_iter().map(|e| e.gradient).collect())
    }

    /// The fields of any sources over the whole padded grid, every `every`-th step: `visit` is called with the number of
    /// the source, the number `j` of the level and the field after step `j * every` (rows, columns), possibly from
    /// several threads at once but in order of levels for each source. `wavelet[it]` is added at the source cell in
    /// step `it`, unscaled. The visitor keeps what it needs: all of it would be gigabytes.
    fn wavefields(
        &self,
        model: &Model,
        sources: &[Position],
        wavelet: &[f64],
        every: usize,
        visit: &WavefieldVisitor,
    ) -> Result<()>;

    /// Models that a call takes best: enough to keep the device busy, and no more than its memory holds.
    fn batch(&self) -> usize {
        1
    }

    /// Calls that may usefully run at the same time, so that one computes while another is prepared.
    fn lanes(&self) -> usize {
        1
    }

    /// Gives memory that is kept for the next call back to the system.
    fn release(&self) {}

    /// Most bytes that [`Propagator::misfit_and_gradient`] of one model and a misfit that is
    /// [`band_limited`](Misfit::band_limited), or is not, takes besides its arguments and results.
    fn gradient_bytes(&self, band_limited: bool) -> u64;
}

/// Checks a model's shape and velocities against the survey; `bandwidth` is [`Survey::bandwidth`], computed once.
pub(crate) fn check_model(survey: &Survey, bandwidth: f64, m: &Model) -> Result<()> {
    if m.vp.dim() != survey.map_shape() {
        let ((a, b), (nz, nx)) = (m.vp.dim(), survey.map_shape());
        return Err(crate::Error::Usage(format!("the map is {a} x {b} but the survey's grid is {nz} x {nx}")));
    }
    let slowest = m.vp.iter().copied().fold(f64::INFINITY, f64::min);
    if let Some(((z, x), v)) = m.vp.indexed_iter().find(|(_, v)| !v.is_finite()) {
        return Err(crate::Error::Numerical(format!("the velocity at row {z}, column {x} is {v}; it must be finite")));
    }
    survey.check_sampling(bandwidth, slowest, m.vmax(), m.vmin)
}

/// Errors when a list has not one entry a model.
pub(crate) fn same_length(what: &str, found: usize, models: usize) -> Result<()> {
    if found == models {
        return Ok(());
    }
    Err(crate::Error::Usage(format!("{found} {what} were given for {models} models; give one for each")))
}

/// Errors when there is not one direction a model, of the map's shape.
pub(crate) fn check_directions(survey: &Survey, directions: &[Model], models: usize) -> Result<()> {
    same_length("directions", directions.len(), models)?;
    let wanted = survey.map_shape();
    match directions.iter().find(|d| d.vp.dim() != wanted) {
        Some(d) => {
            let found = d.vp.dim();
            Err(crate::Error::Usage(format!("a direction of shape {found:?} does not fit the map {wanted:?}")))
        }
        None => Ok(()),
    }
}

/// Errors when an observed gather or its mask has another shape than the survey's records.
pub(crate) fn check_observed(survey: &Survey, observed: &[Observed]) -> Result<()> {
    let wanted = survey.gather_shape();
    match observed.iter().find(|o| o.gather.data.dim() != wanted || !o.mask.fits(wanted)) {
        Some(o) => {
            let found = o.gather.data.dim();
            Err(crate::Error::Usage(format!(
                "the observed gather, or its mask, is {found:?} but the survey records {wanted:?}"
            )))
        }
        None => Ok(()),
    }
}

/// Errors when a wavefield was asked for that makes no sense.
pub(crate) fn check_wavefields(survey: &Survey, sources: &[Position], every: usize) -> Result<()> {
    if every == 0 {
        return Err(crate::Error::Usage(
            "wavefields are taken at every 1st step or more rarely, not at every 0th".into(),
        ));
    }
    match sources.iter().find(|s| s.z >= survey.nz || s.x >= survey.nx) {
        Some(s) => {
            let (nz, nx) = survey.map_shape();
            Err(crate::Error::Usage(format!(
                "the source at row {}, column {} lies outside the {nz} x {nx} map",
                s.z, s.x
            )))
        }
        None => Ok(()),
    }
}
