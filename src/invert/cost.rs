//! What a stage will take, known before it begins.

use super::areas;
use super::newton::{MOST_BETWEEN, Newton};
use super::newton_space::Unknowns;
use super::newton_step::SHARES;
use super::stage::Stage;
use crate::curvature::{Curvature, CurvatureOptions};
use crate::reg::RegulariserSpec;
use crate::{Result, Survey};
use ndarray::Array2;

/// What a stage takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageCost {
    /// Evaluations at least, unless the stage ends early.
    pub evaluations: u64,
    /// Evaluations at most, where there is a bound.
    pub most_evaluations: Option<u64>,
    /// Normal matrices at least, unless the stage ends early.
    pub normal_matrices: u64,
    /// Normal matrices at most.
    pub most_normal_matrices: u64,
    /// Products with the operator itself at most, each a Born modelling and an adjoint.
    pub most_products: u64,
    /// Unknowns, `vmin` included; at most, where the map decides.
    pub unknowns: usize,
    /// Most bytes of normal matrices and their factors.
    pub bytes: u64,
}

/// Evaluations of a rounding at most.
const ROUNDINGS: u64 = 4;

impl Stage {
    /// What this stage takes on a survey with what computes its normal matrices. Errors when its regulariser makes no sense.
    pub fn cost(&self, survey: &Survey, curvature: &Curvature) -> Result<StageCost> {
        let cells = survey.nz * survey.nx;
        let rounding = if self.round.is_some() { ROUNDINGS } else { 0 };
        let Some(newton) = &self.newton else {
            return Ok(StageCost {
                evaluations: 1,
                most_evaluations: self.max_evals.map(|n| n + rounding),
                normal_matrices: 0,
                most_normal_matrices: 0,
                most_products: 0,
                unknowns: match &self.lbfgs {
                    Some(q) => most_unknowns(q.unknowns, &q.regularisers, survey)? + 1,
                    None => cells + 1,
                },
                bytes: 0,
            });
        };
        let steps = newton.noise.len() as u64;
        let between = if self.comes_between() { MOST_BETWEEN as u64 } else { 0 };
        let most_steps = steps * (1 + between);
        // the correction begins with one of its own
        let products = if newton.exact > 0 { newton.exact as u64 + 1 } else { 0 };
        let trials = (SHARES.len() + usize::from(newton.areas.is_some())) as u64 + newton.polish;
        let limit = self.max_evals.unwrap_or(u64::MAX);
        let unknowns = most_unknowns(newton.unknowns, &newton.regularisers, survey)? + 1;
        Ok(StageCost {
            // what a step begins with is known but in the first of them
            evaluations: steps.min(limit),
            most_evaluations: Some((1 + trials * most_steps).min(limit) + rounding),
            normal_matrices: steps,
            most_normal_matrices: most_steps,
            most_products: products * most_steps,
            unknowns,
            bytes: bytes(newton, unknowns as u64, curvature),
        })
    }
}

/// Most bytes of a step: those of the normal matrix and the memory of the factor; or both and what decides about areas.
fn bytes(newton: &Newton, n: u64, curvature: &Curvature) -> u64 {
    let square = 8 * n * n;
    let areas = if newton.areas.is_some() { areas::MOST_BYTES } else { 0 };
    (curvature.bytes(n as usize) + square).max(2 * square + areas)
}

/// Unknowns without `vmin`, at most.
fn most_unknowns(unknowns: Unknowns, regularisers: &[RegulariserSpec], survey: &Survey) -> Result<usize> {
    Ok(match unknowns {
        Unknowns::Cells | Unknowns::Patches { .. } => survey.nz * survey.nx,
        Unknowns::Rows => survey.nz,
        Unknowns::Directions { share } => {
            // which directions count does not hang on the mean and the confidence
            let ones = Array2::ones(survey.map_shape());
            let process = regularisers[0].gaussian_process(ones.dim(), Some(&ones), Some(&ones))?;
            process.directions(share).len()
        }
    })
}

/// Most bytes that the Gauss-Newton stages among these take besides the propagators', or, where the `deviations` of
/// [`Inversion::uncertainty`](super::Inversion::uncertainty) are asked for, what those take if that is more: the normal matrix as it is
/// summed, or the posterior's precision, in whose memory its factor is made, and the factor's inverse. 0 with neither. `threads` as of
/// [`Inversion::threads`](super::Inversion::threads). Errors when the survey or a stage's regulariser makes no sense.
pub fn matrix_bytes<'a>(
    stages: impl IntoIterator<Item = &'a Stage>,
    deviations: bool,
    survey: &Survey,
    threads: usize,
) -> Result<u64> {
    let stages: Vec<&Stage> = stages.into_iter().filter(|s| s.newton.is_some()).collect();
    if stages.is_empty() && !deviations {
        return Ok(0);
    }
    let curvature = Curvature::new(survey, &CurvatureOptions { threads, ..CurvatureOptions::default() })?;
    let n = survey.nz * survey.nx + 1;
    let least = if deviations { curvature.bytes(n) + 8 * (n * n) as u64 } else { 0 };
    stages.iter().try_fold(least, |most, stage| Ok(stage.cost(survey, &curvature)?.bytes.max(most)))
}
