//! One Gauss-Newton step: where it goes, how much of the way, and what it leaves behind.

use super::areas::Areas;
use super::factor::Factor;
use super::newton::{MOST_BETWEEN, Problem};
use super::newton_solve::Solution;
use super::objective::{EvaluationLimits, Halt, largest_change, mean_absolute_error};
use super::outcome::{Observer, Progress};
use super::stage::Stage;
use super::state::{Best, Reached, State};
use crate::curvature::{Counted, Symmetric};
use crate::wave::{Evaluation, Precision};
use crate::{Error, Model, Result};
use std::cell::RefCell;
use std::time::Instant;

/// Assumed noise from which on the normal matrix may be summed in single precision.
const SINGLE: f64 = 5e-4;
/// How many times the noise asked for the least one may be, the data rms or a multiple, before steps at that come between.
const FAR: f64 = 1.5;
/// Shares of a step that are tried.
pub(super) const SHARES: [f64; 5] = [1.0, 0.5, 0.25, 0.1, 0.03];
/// A map of areas may raise the data rms by this factor within a step.
const GUESS_MAY_COST: f64 = 30.0;
/// Largest change of a cell, m/s, from one map of areas to the next that is the same.
const SAME: f64 = 0.5;

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
pub(super) struct Taken {
    /// Whether it came between two noises.
    pub(super) between: bool,
    /// Whether it led anywhere: to a lower objective or, where steps end in areas, to a map of them.
    pub(super) arrived: bool,
    /// Whether it led to a map of areas, and that is the one before.
    pub(super) settled: bool,
    /// Rms of the residual, as the stage filters it, before and after.
    pub(super) from: f64,
    pub(super) to: f64,
}

impl Problem<'_, '_> {
    /// Rms of the residual as the stage filters it.
    pub(super) fn rms(&self, at: &At) -> f64 {
        (2.0 * at.evaluation.value / self.data.mask.samples() as f64).sqrt()
    }

    /// One step from `state.entry` towards the noise whose turn it is, or why nothing may be evaluated any more.
    pub(super) fn step(
        &self,
        state: &mut State,
        limits: &EvaluationLimits,
        observer: &mut dyn Observer,
    ) -> Result<std::result::Result<Taken, Halt>> {
        let from = self.entry(state)?;
        let (misfit, data_rms) = (from.evaluation.value, from.evaluation.data_rms);
        state.entry = Best { model: from.model.clone(), score: data_rms, misfit, data_rms };
        let entry = &state.entry;
        if let Some(begin) = state.begin.as_mut().filter(|b| b.data_rms.is_nan() && b.model == entry.model) {
            // the start of an inversion, of which nothing was known yet
            *begin = entry.clone();
        }
        let before = self.rms(&from);
        let wanted = self.newton.wanted(state.step, before);
        // far from the noise that is asked for, a step towards it goes too far to be any good: first those between
        let least = self.newton.over_rms * before;
        let between = self.stage.comes_between() && least > FAR * wanted && state.between < MOST_BETWEEN;
        let noise = if between { least } else { wanted };
        if !from.cost(noise).is_finite() {
            let problem = format!("the first model of stage \"{}\" cannot be evaluated", self.stage.name);
            return Err(Error::Numerical(problem));
        }
        let h = match self.normal_matrix(&from.model, noise, limits, state)? {
            Ok(h) => h,
            Err(halt) => return Ok(Err(halt)),
        };
        let begin = Instant::now();
        let solved = self.solve(&from, h, noise, &|| limits.halt(&state.ledger, &self.clock))?;
        state.ledger.curvature_seconds += begin.elapsed().as_secs_f64();
        let Solution { x, factor, curvature: h } = match solved {
            Ok(solution) => solution,
            Err(halt) => return Ok(Err(halt)),
        };
        let mut taken = match self.search(&from, &x, noise, limits, state)? {
            Ok(taken) => taken,
            Err(halt) => return Ok(Err(halt)),
        };
        if self.newton.polish > 0 {
            taken = match self.polished(&from, taken, factor, noise, limits, state)? {
                Ok(polished) => polished,
                Err(halt) => return Ok(Err(halt)),
            };
        } else {
            self.inversion.curvature()?.keep(factor.into_memory());
        }
        let guess = match &self.newton.areas {
            Some(areas) => self.guess(areas, (&from, taken.as_ref().unwrap_or(&from)), h, state)?,
            None => {
                self.inversion.curvature()?.keep(h.lower);
                None
            }
        };
        let settled = guess.as_ref().is_some_and(|guess| largest_change(&from.model, &guess.model) < SAME);
        let guessed = guess.is_some();
        let arrived = guessed || (taken.is_some() && self.newton.areas.is_none());
        let to = guess.or(taken).unwrap_or(from);
        let after = self.rms(&to);
        self.arrive(state, to, guessed, observer);
        Ok(Ok(Taken { between, arrived, settled, from: before, to: after }))
    }

    /// What L-BFGS makes of a step, where that is lower than where the step began, or the limit that cut it off. Its lowest
    /// point is then the best so far but nothing to go on from: a resumed run takes the step whole.
    fn polished(
        &self,
        from: &At,
        taken: Option<At>,
        factor: Factor,
        noise: f64,
        limits: &EvaluationLimits,
        state: &mut State,
    ) -> Result<std::result::Result<Option<At>, Halt>> {
        let (at, halt) = self.polish(taken.unwrap_or_else(|| from.clone()), factor, noise, limits, state)?;
        let lower = Some(at).filter(|at| at.cost(noise) < from.cost(noise));
        match (halt, lower) {
            (Some(halt @ Halt::All(_)), lower) => {
                if let Some(At { model, evaluation: Evaluation { value: misfit, data_rms, .. }, .. }) = lower {
                    state.ledger.best = Some(Best { model, score: data_rms, misfit, data_rms });
                }
                Ok(Err(halt))
            }
            (_, lower) => Ok(Ok(lower)),
        }
    }

    /// The first of some shares of a change that lowers the objective, if any does, or why nothing may be evaluated any more.
    fn search(
        &self,
        from: &At,
        x: &[f64],
        noise: f64,
        limits: &EvaluationLimits,
        state: &mut State,
    ) -> Result<std::result::Result<Option<At>, Halt>> {
        for share in SHARES {
            if let Some(halt) = limits.halt(&state.ledger, &self.clock) {
                return Ok(Err(halt));
            }
            let part: Vec<f64> = x.iter().map(|x| share * x).collect();
            let trial = self.evaluate(&self.bounded(&self.moved(&from.model, &part)), state)?;
            if trial.cost(noise) < from.cost(noise) {
                return Ok(Ok(Some(trial)));
            }
        }
        Ok(Ok(None))
    }

    /// The map of areas near a model that a step from another led to, if there is one that is not far too costly.
    fn guess(
        &self,
        areas: &Areas,
        (from, near): (&At, &At),
        curvature: Symmetric,
        state: &mut State,
    ) -> Result<Option<At>> {
        let begin = Instant::now();
        let unknowns = self.space.patches().expect("areas have cells for unknowns");
        let decided = areas.decide((&from.model, &near.model), &unknowns, self.newton.linear, curvature);
        state.ledger.curvature_seconds += begin.elapsed().as_secs_f64();
        let Some(guess) = decided else { return Ok(None) };
        let guess = self.evaluate(&self.bounded(&guess), state)?;
        // its misfit tells little as long as a few cells are on the wrong side: the next step shows which
        Ok(Some(guess).filter(|guess| self.rms(guess) < GUESS_MAY_COST * self.rms(near)))
    }

    /// Makes a model the one that the next step begins with, and tells of it.
    fn arrive(&self, state: &mut State, at: At, guessed: bool, observer: &mut dyn Observer) {
        let step = largest_change(&state.entry.model, &at.model);
        let (misfit, data_rms) = (at.evaluation.value, at.evaluation.data_rms);
        state.entry = Best { model: at.model.clone(), score: data_rms, misfit, data_rms };
        // of maps of areas the best counts in the end, not the last; other maps are but on the way to them
        let best = |best: &Best| data_rms < best.data_rms;
        if self.newton.areas.is_none() || (guessed && state.ledger.best.as_ref().is_none_or(best)) {
            state.ledger.best = Some(state.entry.clone());
        }
        state.ledger.iterations += 1;
        let pulled = self.space.pull(&at.evaluation.gradient);
        state.reached = Some(Reached { by: self.evaluated_by(), model: at.model, evaluation: at.evaluation });
        observer.iteration(&Progress {
            stage: self.index,
            stage_name: &self.stage.name,
            iteration: state.ledger.iterations,
            evaluation: state.ledger.evaluations,
            misfit,
            data_rms,
            gradient_norm: pulled.iter().map(|g| g * g).sum::<f64>().sqrt(),
            step,
            mae: self.inversion.truth_map().map(|t| mean_absolute_error(t, &state.entry.model)),
            seconds: self.clock.seconds(),
        });
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

    /// What a step begins with, which the one before may have evaluated.
    fn entry(&self, state: &mut State) -> Result<At> {
        let model = state.entry.model.clone();
        match &state.reached {
            Some(r) if r.model == model && r.by == self.evaluated_by() => {
                Ok(At { prior: self.prior(&model), model, evaluation: r.evaluation.clone() })
            }
            _ => self.evaluate(&model, state),
        }
    }

    /// What decides an evaluation, the model aside.
    fn evaluated_by(&self) -> String {
        let Stage { misfit, refined, until, .. } = self.stage;
        format!("{misfit:?} {refined} {until:?}")
    }

    /// The regularisers' value, nats.
    fn prior(&self, model: &Model) -> f64 {
        self.regularisers.iter().map(|r| r.value(model)).sum()
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
        Ok(At { model: model.clone(), evaluation, prior: self.prior(model) })
    }

    /// `J' J` over the unknowns and `vmin`, the last row, or why nothing may be computed any more.
    fn normal_matrix(
        &self,
        model: &Model,
        noise: f64,
        limits: &EvaluationLimits,
        state: &mut State,
    ) -> Result<std::result::Result<Symmetric, Halt>> {
        let begin = Instant::now();
        let (curvature, engine) = (self.inversion.curvature()?, self.inversion.engine(self.stage));
        let (filter, receiver_step) = (self.filter.as_ref(), self.newton.receiver_step);
        let precision = if noise < SINGLE { Precision::F64 } else { Precision::F32 };
        let counted = Counted { mask: &self.data.mask, filter, receiver_step, precision };
        let halt = RefCell::new(None);
        let stop = || {
            *halt.borrow_mut() = limits.halt(&state.ledger, &self.clock);
            halt.borrow().is_some()
        };
        let h = self.space.normal_matrix(&stop, curvature, engine, model, &counted)?;
        state.ledger.curvature_seconds += begin.elapsed().as_secs_f64();
        let Some(h) = h else { return Ok(Err(halt.into_inner().expect("only a limit stops it"))) };
        state.ledger.normal_matrices += 1;
        state.ledger.stage_normal_matrices += 1;
        Ok(Ok(h))
    }
}
