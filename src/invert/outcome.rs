//! What an inversion hands back, why it stopped, and what it tells while it runs.

use super::stage::Kind;
use super::state::State;
use crate::{Model, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a stage, or the whole inversion, ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The data rms fell to its target.
    TargetReached {
        /// The rms reached, in the data's units.
        rms: f64,
        /// What was asked for.
        target: f64,
    },
    /// The misfit hardly fell any more.
    Stalled {
        /// Iterations looked back over.
        window: usize,
        /// Relative decrease of the misfit over them.
        decrease: f64,
    },
    /// The gradient is zero in every direction that the bounds leave open.
    Converged,
    /// All steps of the stage were taken.
    Completed {
        /// How many.
        steps: u64,
    },
    /// A step of a stage that ends in areas led back to the map that it began with.
    Settled,
    /// The last steps of a stage that ends in areas found no better map of them.
    Wandering {
        /// How many steps.
        steps: usize,
    },
    /// The stage was left out: its first model fits the data as well as it would be for.
    Skipped {
        /// The data rms, in their units.
        rms: f64,
    },
    /// The stage was left out: it is not for maps of this kind.
    OtherKind {
        /// What the map consists of.
        kind: Kind,
    },
    /// The stage was left out: the one before left the map as it was.
    NothingNew,
    /// The stage ended so far from the data that nothing can come of those after it.
    Abandoned {
        /// The data rms, in their units.
        rms: f64,
        /// What it should have been at most.
        limit: f64,
    },
    /// The flat patches or areas of the stage do not fit the data, or it found no areas; it went back to where it began.
    Undone,
    /// The evaluations allowed are spent.
    MaxEvals {
        /// How many were allowed, in the stage or in all.
        limit: u64,
    },
    /// The time allowed is spent.
    TimeLimit {
        /// How much was allowed, s.
        seconds: f64,
    },
    /// The caller asked to stop.
    Cancelled,
    /// The line search failed, also along steepest descent.
    LineSearch {
        /// What the line search said.
        why: String,
    },
    /// The numbers broke down; the maps of the attempts and stages before stand.
    BrokeDown {
        /// What happened.
        why: String,
    },
}

impl StopReason {
    /// Whether the stage was left out.
    pub(super) fn left_out(&self) -> bool {
        matches!(self, Self::Skipped { .. } | Self::OtherKind { .. } | Self::NothingNew)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::TargetReached { rms, target } => write!(f, "the data rms {rms:.3e} reached its target {target:.3e}"),
            Self::Stalled { window, decrease } => {
                write!(f, "the misfit fell by only {:.2}% over {window} iterations", 100.0 * decrease)
            }
            Self::Converged => write!(f, "converged: the gradient is zero within the bounds"),
            Self::Completed { steps } => write!(f, "all {steps} steps were taken"),
            Self::Settled => write!(f, "the areas did not change any more"),
            Self::Wandering { steps } => write!(f, "{steps} steps running found no better map of areas"),
            Self::Skipped { rms } => write!(f, "left out: the data rms is {rms:.3e} already"),
            Self::OtherKind { kind } => write!(f, "left out: the map is one of {kind}"),
            Self::NothingNew => write!(f, "left out: the stage before left the map as it was"),
            Self::Abandoned { rms, limit } => {
                write!(f, "given up: a stage ended at a data rms of {rms:.3e}, not within {limit:.1e}")
            }
            Self::Undone => write!(f, "undone: the map is not flat where the stage took it to be"),
            Self::MaxEvals { limit } => write!(f, "all {limit} evaluations are spent"),
            Self::TimeLimit { seconds } => write!(f, "the time limit of {seconds} s is reached"),
            Self::Cancelled => write!(f, "stopped on request"),
            Self::LineSearch { why } => write!(f, "the line search failed: {why}"),
            Self::BrokeDown { why } => write!(f, "the numbers broke down: {why}"),
        }
    }
}

/// A stage that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// The stage's name.
    pub name: String,
    /// Its misfit, as [`misfit::parse`](crate::misfit::parse) reads it.
    pub misfit: String,
    /// Iterations in this stage.
    pub iterations: u64,
    /// Whether its map is another one than it began with, by more than rounding.
    pub moved: bool,
    /// Evaluations in this stage, those of unfinished line searches included.
    pub evaluations: u64,
    /// Misfit at the stage's first model.
    pub first_misfit: f64,
    /// Misfit at the stage's best model.
    pub last_misfit: f64,
    /// Rms of the unfiltered residual at the stage's best model.
    pub data_rms: f64,
    /// Times that the L-BFGS memory was cleared.
    pub restarts: u64,
    /// Normal matrices of Gauss-Newton steps.
    pub normal_matrices: u64,
    /// Whether flat patches were rounded at its end, where that was asked for.
    pub rounded: Option<bool>,
    /// Why it ended.
    pub stop: StopReason,
}

/// A recipe that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptSummary {
    /// Its name.
    pub recipe: String,
    /// Where it began: "gradient", "prior", the file, or "best": the best map of the attempts before.
    pub start: String,
    /// Data rms reached, in the data's units; none where a limit left it no evaluation or its numbers broke down before one.
    pub data_rms: Option<f64>,
    /// Mean absolute error against the truth, m/s, if that was given.
    pub mae: Option<f64>,
    /// Evaluations of this attempt alone.
    pub evaluations: u64,
    /// Normal matrices of this attempt alone.
    pub normal_matrices: u64,
    /// Wall time of this attempt alone, s.
    pub seconds: f64,
    /// Why it ended.
    pub stop: StopReason,
    /// Whether its map is the result.
    pub kept: bool,
}

/// The result of an inversion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The best finite model: of the last stage that ran, lowest in data rms if that was the schedule's last stage and
    /// had no regularisers, else lowest in the stage's misfit, regularisers included.
    pub model: Model,
    /// The model that the inversion began with: the kept attempt, or the first one where that went on from another's map.
    pub start: Model,
    /// Standard deviations (nz, nx) of that model, m/s, where they were given.
    pub confidence: Option<Array2<f64>>,
    /// Rms of the unfiltered residual of the best model, in the data's units.
    pub data_rms: f64,
    /// Its misfit in that stage.
    pub misfit: f64,
    /// Mean absolute error against the truth, m/s, if that was given.
    pub mae: Option<f64>,
    /// Evaluations (one forward and one adjoint each) in all.
    pub evaluations: u64,
    /// Iterations in all.
    pub iterations: u64,
    /// Normal matrices of Gauss-Newton steps in all.
    pub normal_matrices: u64,
    /// Wall time of these steps, s: the matrices and the solutions with them, evaluations left aside.
    pub curvature_seconds: f64,
    /// Wall time, s, that of runs before a resume included.
    pub seconds: f64,
    /// Why it ended.
    pub stop: StopReason,
    /// The stages that were entered; one that a limit ended at once has no evaluations.
    pub stages: Vec<StageSummary>,
    /// Traces (shot, receiver) that did not count.
    pub masked: Vec<(usize, usize)>,
    /// The recipes tried, in order; none where the inversion was by stages alone.
    pub attempts: Vec<AttemptSummary>,
}

impl Outcome {
    /// Name of the recipe whose map is the result, if it was by recipes.
    pub fn kept_recipe(&self) -> Option<&str> {
        self.attempts.iter().find(|a| a.kept).map(|a| &a.recipe[..])
    }

    /// Why the numbers broke down in the first attempt, if they did and no fall-back has mended it: the map is that of the stages
    /// before.
    pub fn broke_down(&self) -> Option<&str> {
        let stop = match self.attempts.first() {
            None => &self.stop,
            Some(first) if first.kept => &first.stop,
            Some(_) => return None,
        };
        match stop {
            StopReason::BrokeDown { why } => Some(why),
            _ => None,
        }
    }
}

/// Where an inversion stands, at an evaluation or at an accepted iterate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress<'a> {
    /// Stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: &'a str,
    /// Iterations finished in all.
    pub iteration: u64,
    /// Evaluations in all.
    pub evaluation: u64,
    /// The stage's misfit.
    pub misfit: f64,
    /// Rms of the unfiltered residual, in the data's units.
    pub data_rms: f64,
    /// Euclidean norm of the misfit's derivative by the stage's variables, per m/s.
    pub gradient_norm: f64,
    /// Largest change of a cell since the last accepted iterate, m/s.
    pub step: f64,
    /// Mean absolute error against the truth, m/s, if that was given.
    pub mae: Option<f64>,
    /// Wall time, s.
    pub seconds: f64,
}

/// Told what an inversion does while it runs. Every method does nothing unless written.
pub trait Observer {
    /// After every evaluation, trial points of the line search included.
    fn evaluation(&mut self, _at: &Progress) {}

    /// After every iteration.
    fn iteration(&mut self, _at: &Progress) {}

    /// After the first evaluation of every stage and after every iteration: [`State::to_bytes`] of the state is a
    /// checkpoint. An error ends the inversion.
    fn checkpoint(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }
}

impl Observer for () {}
