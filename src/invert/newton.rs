//! Gauss-Newton stages: maximum a posteriori estimates under an assumed noise that is lowered from step to step.
//!
//! Every step minimises, over the unknowns, the linearised data with the regularisers as they are,
//!
//! ```text
//! |r + J x|^2 / (2 s^2) + sum of R_i(m + x),
//! ```
//!
//! with the whole normal matrix `J' J` ([`Curvature`]), the exact gradient `J' r`, and a few Newton steps on the majorised
//! regularisers; then it goes as much of the way as lowers the true objective. A large noise `s` makes the first steps
//! short and smooth: its lowering is the continuation that keeps an inversion out of other basins, as frequencies are for
//! L-BFGS. Low-passed data, `F r` and `F J`, continue in frequency besides. `s` is an rms in the data's units; gathers of OpenFWI have 1e-5 of their own.

use super::areas::Areas;
use super::linear::Linear;
use super::newton_solve::Solution;
use super::newton_space::{Space, Unknowns};
use super::objective::{Clock, EvaluationLimits, Halt, mean_absolute_error};
use super::outcome::{Observer, Progress, StopReason};
use super::run::Inversion;
use super::stage::{Stage, Vmin};
use super::state::{Best, State};
use super::terms::Terms;
use crate::curvature::{Counted, Symmetric};
use crate::misfit::{FilteredL2, Misfit, MisfitSpec};
use crate::reg::{Regulariser, RegulariserSpec};
use crate::wave::{Evaluation, Precision};
use crate::{Error, Model, Observed, Result};
use serde::{Deserialize, Serialize};

/// The Gauss-Newton part of a [`Stage`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Newton {
    /// Assumed noise of the data, rms in their units: one step for each, in order.
    pub noise: Vec<f64>,
    /// What is solved for.
    #[serde(default)]
    pub unknowns: Unknowns,
    /// Negative log priors of the map.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regularisers: Vec<RegulariserSpec>,
    /// What of a velocity the data are taken to be linear in.
    #[serde(default, skip_serializing_if = "is_velocity")]
    pub linear: Linear,
    /// Newton steps on the majorised regularisers within a step, at most; one is enough for quadratic ones.
    #[serde(default = "inner")]
    pub inner: usize,
    /// Iterations of conjugate gradients by the operator itself that correct a step, for small noises: the normal matrix is
    /// good to a part in a thousand. Each takes Born modelling and an adjoint.
    #[serde(default)]
    pub exact: usize,
    /// Evaluations, at most, that follow a step: L-BFGS on the true objective, whose first guess at the inverse Hessian is the
    /// step's factor. They make up for what is approximate in the normal matrix, as [`exact`](Self::exact) does, and for what
    /// is not linear.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub polish: u64,
    /// Ends every step in a map of areas, where the unknowns are cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub areas: Option<Areas>,
    /// Of the receivers, every how many-th is simulated for the normal matrix and counts for those around it, too; the
    /// gradient always takes them all. Steps cost in proportion to the receivers taken; early ones are none the worse for it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub receiver_step: usize,
}

fn one() -> usize {
    1
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn is_velocity(linear: &Linear) -> bool {
    *linear == Linear::Velocity
}

fn inner() -> usize {
    4
}

/// Assumed noise from which on the normal matrix may be summed in single precision.
const SINGLE: f64 = 5e-4;
/// Standard deviation of a step of `vmin`, m/s.
pub(super) const VMIN_STEP: f64 = 50.0;
/// How many times the noise asked for the data rms may be before steps at the rms itself come between.
const FAR: f64 = 1.5;
/// Steps between two noises, at most.
pub(super) const MOST_BETWEEN: usize = 5;
/// Share of the data rms that a step between must leave at most for another to follow.
const WORTH: f64 = 0.95;
/// Shares of a step that are tried.
const SHARES: [f64; 5] = [1.0, 0.5, 0.25, 0.1, 0.03];
/// A map of areas may raise the data rms by this factor within a step.
const GUESS_MAY_COST: f64 = 30.0;
/// Largest change of a cell, m/s, from one map of areas to the next that is the same.
const SAME: f64 = 0.5;
/// Flat patches may raise the data rms by this factor: they leave out what fitted its noise.
const FLAT_MAY_COST: f64 = 1.5;

impl Newton {
    /// Errors, in one line, on numbers that make no sense.
    pub fn validate(&self) -> Result<()> {
        if self.noise.is_empty() || !self.noise.iter().all(|s| (1e-9..1e6).contains(s)) {
            return Err(Error::Usage(format!(
                "Gauss-Newton needs at least one noise, each between 1e-9 and 1e6, not {:?}",
                self.noise
            )));
        }
        if self.exact > 1000 {
            return Err(Error::Usage(format!("Gauss-Newton takes 0 to 1000 exact iterations, not {}", self.exact)));
        }
        if self.polish > 100_000 {
            return Err(Error::Usage(format!(
                "Gauss-Newton takes 0 to 100000 evaluations of polish, not {}",
                self.polish
            )));
        }
        if self.receiver_step == 0 {
            return Err(Error::Usage(
                "Gauss-Newton takes every receiver (1), every second (2) and so on, not 0".into(),
            ));
        }
        if self.inner == 0 || self.inner > 100 {
            return Err(Error::Usage(format!("Gauss-Newton takes 1 to 100 inner steps, not {}", self.inner)));
        }
        if let Some(areas) = &self.areas {
            areas.validate()?;
            if self.unknowns != Unknowns::Cells || self.polish > 0 {
                return Err(Error::Usage("areas take cells as unknowns and no polish".into()));
            }
        }
        self.regularisers.iter().try_for_each(|r| r.validate())?;
        self.unknowns.validate(&self.regularisers)
    }
}

/// A model with its misfit and its prior's negative logarithm.
#[derive(Clone)]
pub(super) struct At {
    pub(super) model: Model,
    pub(super) evaluation: Evaluation,
    prior: f64,
}

impl At {
    /// The objective under an assumed noise.
    pub(super) fn cost(&self, noise: f64) -> f64 {
        let cost = self.evaluation.value / noise.powi(2) + self.prior;
        if cost.is_nan() { f64::INFINITY } else { cost }
    }
}

/// What a step did.
struct Taken {
    /// Whether it came between two noises.
    between: bool,
    /// Whether the objective fell.
    fell: bool,
    /// Whether it led to a map of areas, and that is the one before.
    settled: bool,
    /// Rms of the residual, as the stage filters it, before and after.
    from: f64,
    to: f64,
}

/// What a stage is made of.
pub(super) struct Problem<'a, 'i> {
    pub(super) inversion: &'a Inversion<'i>,
    pub(super) stage: &'a Stage,
    pub(super) newton: &'a Newton,
    pub(super) data: Observed,
    misfit: Box<dyn Misfit + 'a>,
    /// What the data pass before they are compared.
    pub(super) filter: Option<FilteredL2>,
    pub(super) regularisers: Vec<Box<dyn Regulariser>>,
    pub(super) space: Space,
    index: usize,
    pub(super) clock: Clock,
}

impl<'i> Inversion<'i> {
    /// Runs a Gauss-Newton stage from `state.entry`, which moves along with every step.
    pub(super) fn run_newton(
        &self,
        state: &mut State,
        stage: &Stage,
        newton: &Newton,
        clock: Clock,
        observer: &mut dyn Observer,
    ) -> Result<Halt> {
        if state.step == 0 {
            state.begin = Some(state.entry.clone());
            (state.failed, state.between) = (0, 0);
        }
        let problem = Problem::new(self, stage, newton, state, clock)?;
        let limits = self.limits(stage);
        if state.step == 0 {
            problem.space.prepare(&mut state.entry.model);
        }
        loop {
            let ended = self.newton_ended(state, stage);
            if state.step >= newton.noise.len() || ended.is_some() {
                return Ok(ended.unwrap_or(Halt::Stage(StopReason::Completed { steps: state.step as u64 })));
            }
            if let Some(halt) = limits.halt(&state.ledger, &clock) {
                return Ok(halt);
            }
            let taken = match problem.step(state, newton.noise[state.step], &limits, observer)? {
                Ok(taken) => taken,
                Err(halt) => return Ok(halt),
            };
            state.failed = if taken.fell { 0 } else { state.failed + 1 };
            if taken.between && taken.fell && taken.to < WORTH * taken.from {
                state.between += 1;
            } else if taken.between {
                state.between = MOST_BETWEEN;
            } else {
                (state.step, state.between) = (state.step + 1, 0);
            }
            state.seconds = clock.seconds();
            observer.checkpoint(state)?;
            if taken.settled {
                return Ok(Halt::Stage(StopReason::Settled));
            }
        }
    }

    /// Whether the steps taken end the stage or everything; asked before a step, so that a resumed run asks, too.
    fn newton_ended(&self, state: &State, stage: &Stage) -> Option<Halt> {
        let rms = state.entry.data_rms;
        let reached = |t: Option<f64>| {
            t.filter(|t| state.step > 0 && rms <= *t).map(|target| StopReason::TargetReached { rms, target })
        };
        if let Some(stop) = reached(self.settings().target_rms) {
            return Some(Halt::All(stop));
        }
        if let Some(stop) = reached(stage.target_rms) {
            return Some(Halt::Stage(stop));
        }
        let why = || "no share of two steps running lowers the objective".into();
        (state.failed == 2).then(|| Halt::Stage(StopReason::LineSearch { why: why() }))
    }

    /// What ends evaluations in a stage.
    pub(super) fn limits(&self, stage: &Stage) -> EvaluationLimits<'_> {
        EvaluationLimits {
            cancel: self.cancel_flag(),
            time: self.settings().time_limit,
            max_evals: self.settings().max_evals,
            stage_max_evals: stage.max_evals,
        }
    }
}

/// Largest change of a cell, m/s.
fn largest_change(from: &Model, to: &Model) -> f64 {
    from.vp.iter().zip(&to.vp).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

impl Stage {
    /// Whether steps at the data rms may come between two noises: the samples of low-passed data count for far fewer, so
    /// that their rms is no noise to assume.
    pub(super) fn comes_between(&self) -> bool {
        !matches!(self.misfit, MisfitSpec::LowPass(_))
    }

    /// Whether the stage took a map to be flat where the data say that it is not: what it began with fits them better.
    pub(super) fn guessed_wrongly(&self, now: &Best, begin: &Best) -> bool {
        let is_guess = |n: &Newton| n.areas.is_some() || matches!(n.unknowns, Unknowns::Patches { .. });
        let guesses = self.newton.as_ref().is_some_and(is_guess);
        guesses && self.until.is_none() && now.data_rms > FLAT_MAY_COST * begin.data_rms
    }
}

impl<'a, 'i> Problem<'a, 'i> {
    fn new(
        inversion: &'a Inversion<'i>,
        stage: &'a Stage,
        newton: &'a Newton,
        state: &State,
        clock: Clock,
    ) -> Result<Self> {
        let begin = &state.begin.as_ref().unwrap_or(&state.entry).model;
        let terms = Terms::new(&state.start.vp, begin, state.confidence.as_ref());
        let mut regularisers = terms.regularisers(&newton.regularisers)?;
        let space = terms.space(&newton.unknowns, &newton.regularisers)?;
        inversion.add_known(&mut regularisers, stage.vmin == Vmin::Tied)?;
        let data = inversion.data(stage);
        let misfit = inversion.misfit(stage)?;
        let filter = match stage.misfit {
            MisfitSpec::LowPass(corner) => Some(FilteredL2::new(corner, inversion.survey().dt)?),
            _ => None,
        };
        Ok(Self { inversion, stage, newton, data, misfit, filter, regularisers, space, index: state.stage, clock })
    }

    /// Rms of the residual as the stage filters it.
    fn rms(&self, at: &At) -> f64 {
        (2.0 * at.evaluation.value / self.data.mask.samples() as f64).sqrt()
    }

    /// One step from `state.entry` towards a noise, or why nothing may be evaluated any more.
    fn step(
        &self,
        state: &mut State,
        wanted: f64,
        limits: &EvaluationLimits,
        observer: &mut dyn Observer,
    ) -> Result<std::result::Result<Taken, Halt>> {
        let from = self.evaluate(&state.entry.model.clone(), state)?;
        let before = self.rms(&from);
        // far from the noise that is asked for, a step towards it goes too far to be any good: first those between
        let between = self.stage.comes_between() && before > FAR * wanted && state.between < MOST_BETWEEN;
        let noise = if between { before } else { wanted };
        let cost = from.cost(noise);
        if !cost.is_finite() {
            return Err(Error::Numerical(format!(
                "the first model of stage \"{}\" cannot be evaluated",
                self.stage.name
            )));
        }
        let h = self.normal_matrix(&from.model, noise, state)?;
        let begin = std::time::Instant::now();
        let Solution { x, factor, prior } = self.solve(&from, &h, noise)?;
        state.ledger.curvature_seconds += begin.elapsed().as_secs_f64();
        let mut taken = None;
        for share in SHARES {
            if let Some(halt) = limits.halt(&state.ledger, &self.clock) {
                return Ok(Err(halt));
            }
            let part: Vec<f64> = x.iter().map(|x| share * x).collect();
            let trial = self.evaluate(&self.bounded(&self.moved(&from.model, &part)), state)?;
            if trial.cost(noise) < cost {
                taken = Some(trial);
                break;
            }
        }
        if self.newton.polish > 0 {
            let at = self.polish(taken.unwrap_or_else(|| from.clone()), factor, noise, limits, state)?;
            taken = Some(at).filter(|at| at.cost(noise) < cost);
        }
        let (mut settled, mut guessed) = (false, false);
        if let Some(areas) = &self.newton.areas {
            let begin = std::time::Instant::now();
            let near = taken.as_ref().unwrap_or(&from);
            let guess = self.in_areas(areas, (&from.model, &near.model), h, noise, &prior)?;
            state.ledger.curvature_seconds += begin.elapsed().as_secs_f64();
            let guess = self.evaluate(&guess, state)?;
            // its misfit tells little as long as a few cells are on the wrong side: the next step shows which
            if self.rms(&guess) < GUESS_MAY_COST * self.rms(near) {
                settled = largest_change(&from.model, &guess.model) < SAME;
                (taken, guessed) = (Some(guess), true);
            }
        }
        let fell = taken.is_some();
        let to = taken.unwrap_or(from);
        let largest = largest_change(&state.entry.model, &to.model);
        let (misfit, data_rms) = (to.evaluation.value, to.evaluation.data_rms);
        let (score, after) = (data_rms, self.rms(&to));
        state.entry = Best { model: to.model, score, misfit, data_rms };
        // of maps of areas the best counts in the end, not the last
        let first = state.step == 0 && state.between == 0;
        let better = |best: &Best| guessed && state.entry.data_rms < best.data_rms;
        if self.newton.areas.is_none() || first || state.ledger.best.as_ref().is_none_or(better) {
            state.ledger.best = Some(state.entry.clone());
        }
        state.ledger.iterations += 1;
        let pulled = self.space.pull(&to.evaluation.gradient);
        observer.iteration(&Progress {
            stage: self.index,
            stage_name: &self.stage.name,
            iteration: state.ledger.iterations,
            evaluation: state.ledger.evaluations,
            misfit,
            data_rms,
            gradient_norm: pulled.iter().map(|g| g * g).sum::<f64>().sqrt(),
            step: largest,
            mae: self.inversion.truth_map().map(|t| mean_absolute_error(t, &state.entry.model)),
            seconds: self.clock.seconds(),
        });
        Ok(Ok(Taken { between, fell, settled, from: before, to: after }))
    }

    /// The model that a change of the unknowns leads to.
    pub(super) fn moved(&self, from: &Model, x: &[f64]) -> Model {
        let change = self.space.push(x);
        let mut vp = from.vp.clone();
        vp.zip_mut_with(&change.vp, |v, step| *v = self.newton.linear.moved(*v, *step));
        Model { vp, vmin: from.vmin + change.vmin }
    }

    pub(super) fn bounded(&self, m: &Model) -> Model {
        let (low, high) = self.inversion.settings().bounds;
        Model { vp: m.vp.mapv(|v| v.clamp(low, high)), vmin: m.vmin.clamp(low, high) }
    }

    /// A model that the scheme cannot compute costs infinitely much.
    pub(super) fn evaluate(&self, model: &Model, state: &mut State) -> Result<At> {
        let one = std::slice::from_ref(model);
        let observed = std::slice::from_ref(&self.data);
        let engine = self.inversion.engine(self.stage);
        state.ledger.evaluations += 1;
        state.ledger.stage_evaluations += 1;
        let evaluation = match engine.misfit_and_gradient(one, observed, &*self.misfit) {
            Ok(mut e) => e.pop().ok_or_else(|| Error::Numerical("the propagator returned no evaluation".into()))?,
            Err(Error::Numerical(_)) => {
                let gradient = Model::zeros(model.vp.dim());
                Evaluation { value: f64::INFINITY, gradient, data_rms: f64::INFINITY }
            }
            Err(error) => return Err(error),
        };
        let prior = self.regularisers.iter().map(|r| r.value(model)).sum();
        Ok(At { model: model.clone(), evaluation, prior })
    }

    /// `J' J` over the unknowns and `vmin`, the last row.
    fn normal_matrix(&self, model: &Model, noise: f64, state: &mut State) -> Result<Symmetric> {
        let begin = std::time::Instant::now();
        let (curvature, engine) = (self.inversion.curvature()?, self.inversion.engine(self.stage));
        let (filter, receiver_step) = (self.filter.as_ref(), self.newton.receiver_step);
        let precision = if noise < SINGLE { Precision::F64 } else { Precision::F32 };
        let counted = Counted { mask: &self.data.mask, filter, receiver_step, precision };
        let h = self.space.normal_matrix(curvature, engine, model, &counted)?;
        state.ledger.normal_matrices += 1;
        state.ledger.stage_normal_matrices += 1;
        state.ledger.curvature_seconds += begin.elapsed().as_secs_f64();
        Ok(h)
    }
}
