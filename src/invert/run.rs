//! The driver: stages one after the other, argmin's solver one iteration at a time.
//!
//! argmin's executor owns its observers and its checkpoint for ever and loses both solver and problem on an error, so
//! the solver is stepped by hand here: after every iteration the state is whole, borrowed by the caller, and saved.

use super::lbfgs::Iterate;
use super::objective::{Clock, EvaluationLimits, Halt, Live, Objective, mean_absolute_error};
use super::outcome::{Observer, Outcome, StageSummary, StopReason};
use super::stage::{Stage, default_schedule};
use super::start::{Start, source_velocities};
use super::state::{At, Best, Finished, Ledger, State};
use crate::curvature::{Curvature, CurvatureOptions};
use crate::misfit::{Misfit, MisfitSpec};
use crate::{Error, Model, Observed, Propagator, Result, Survey};
use argmin::core::{Problem, Solver, State as _, TerminationReason, TerminationStatus};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

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

/// The inversion of one gather.
pub struct Inversion<'a> {
    propagator: &'a dyn Propagator,
    fine: Option<&'a dyn Propagator>,
    own: Option<&'a dyn Misfit>,
    observed: &'a Observed,
    settings: Settings,
    truth: Option<&'a Array2<f64>>,
    cancel: Option<&'a AtomicBool>,
    /// Cells (row by row) that are held, and their velocities.
    held: Vec<(usize, f64)>,
    /// Standard deviations of the start, m/s.
    confidence: Option<Array2<f64>>,
    threads: usize,
    /// The attempts before.
    earlier: Vec<Finished>,
    curvature: OnceLock<Curvature>,
}

impl<'a> Inversion<'a> {
    /// An inversion of `observed`; errors when the gather does not fit the survey, nothing in it counts, or a setting
    /// makes no sense.
    pub fn new(propagator: &'a dyn Propagator, observed: &'a Observed, settings: Settings) -> Result<Self> {
        let survey = propagator.survey();
        let fail = |m: String| Err(Error::Usage(m));
        if observed.gather.data.dim() != survey.gather_shape() {
            let ((a, b, c), (ns, nt, nr)) = (observed.gather.data.dim(), survey.gather_shape());
            return fail(format!(
                "the gather is {a} x {b} x {c} but the survey gives {ns} x {nt} x {nr} (shots, samples, receivers)"
            ));
        }
        if observed.mask.samples() == 0 {
            return fail("every trace of the gather is dead or not finite: there is nothing to fit".into());
        }
        let s = &settings;
        let (low, high) = s.bounds;
        if !(low.is_finite() && high.is_finite() && 0.0 < low && low < high) {
            return fail(format!("the velocity bounds must be positive and rising, not {low}..{high} m/s"));
        }
        if s.stages.is_empty() || s.memory == 0 || s.max_evals == Some(0) {
            return fail(
                "an inversion needs at least one stage, a memory of at least one pair and one evaluation".into(),
            );
        }
        if !(s.first_step.is_finite() && s.first_step > 0.0) {
            return fail(format!("the first step must be above 0 m/s, not {}", s.first_step));
        }
        if s.depth_exponent.is_nan() || s.depth_exponent.abs() > 10.0 {
            return fail(format!("the depth exponent must lie between -10 and 10, not {}", s.depth_exponent));
        }
        s.stages.iter().try_for_each(|stage| stage.validate(survey.dt))?;
        let known = if s.pin_sources { source_velocities(survey, observed, s.bounds) } else { vec![] };
        let held = known.iter().map(|(p, v)| (p.z * survey.nx + p.x, *v)).collect();
        Ok(Self {
            propagator,
            fine: None,
            own: None,
            observed,
            settings,
            truth: None,
            cancel: None,
            held,
            confidence: None,
            threads: 0,
            earlier: vec![],
            curvature: OnceLock::new(),
        })
    }

    /// Gives the true map (nz, nx), so that progress and outcome tell the mean absolute error. Errors on another shape.
    pub fn truth(mut self, truth: &'a Array2<f64>) -> Result<Self> {
        if truth.dim() != self.propagator.survey().map_shape() {
            let ((a, b), (nz, nx)) = (truth.dim(), self.propagator.survey().map_shape());
            return Err(Error::Usage(format!("the true map is {a} x {b} but the survey's grid is {nz} x {nx}")));
        }
        self.truth = Some(truth);
        Ok(self)
    }

    /// Gives the propagator for [refined](Stage::refined) stages: one in f64 where the other is in f32. Errors when its
    /// survey is another.
    pub fn refine(mut self, fine: &'a dyn Propagator) -> Result<Self> {
        if fine.survey() != self.propagator.survey() {
            return Err(Error::Usage("both propagators of an inversion must be made for one survey".into()));
        }
        self.fine = Some(fine);
        Ok(self)
    }

    /// Gives the misfit of stages that have [`MisfitSpec::Own`].
    pub fn own_misfit(mut self, misfit: &'a dyn Misfit) -> Self {
        self.own = Some(misfit);
        self
    }

    /// Gives the standard deviations (nz, nx) of the start, m/s, for regularisers that ask for the prior's confidence.
    /// Errors on another shape and on values that are not above zero.
    pub fn confidence(mut self, deviations: Array2<f64>) -> Result<Self> {
        let shape = self.propagator.survey().map_shape();
        if deviations.dim() != shape || !deviations.iter().all(|v| v.is_finite() && *v > 0.0) {
            let problem = format!("the start's standard deviations must be {} x {} numbers above 0", shape.0, shape.1);
            return Err(Error::Usage(problem));
        }
        self.confidence = Some(deviations);
        Ok(self)
    }

    /// Worker threads of normal matrices; 0, the default, takes one per core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Counts on after other attempts.
    pub(super) fn after(mut self, earlier: Vec<Finished>) -> Self {
        self.earlier = earlier;
        self
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn survey(&self) -> &Survey {
        self.propagator.survey()
    }

    /// What of the gather counts in a stage. The samples are shared.
    pub(super) fn data(&self, stage: &Stage) -> Observed {
        let mut data = self.observed.clone();
        if let Some(until) = stage.until {
            let samples = (until / self.propagator.survey().dt).ceil() as usize;
            data.mask.nt = data.mask.nt.min(samples.max(1));
        }
        data
    }

    pub(super) fn held(&self) -> &[(usize, f64)] {
        &self.held
    }

    pub(super) fn truth_map(&self) -> Option<&'a Array2<f64>> {
        self.truth
    }

    pub(super) fn cancel_flag(&self) -> Option<&'a AtomicBool> {
        self.cancel
    }

    /// What computes normal matrices, made when it is first needed.
    pub(super) fn curvature(&self) -> Result<&Curvature> {
        if let Some(made) = self.curvature.get() {
            return Ok(made);
        }
        let options = CurvatureOptions { threads: self.threads, ..CurvatureOptions::default() };
        let made = Curvature::new(self.propagator.survey(), &options)?;
        Ok(self.curvature.get_or_init(|| made))
    }

    fn misfit(&self, stage: &Stage) -> Result<Box<dyn Misfit + 'a>> {
        match (stage.misfit, self.own) {
            (MisfitSpec::Own, Some(own)) => Ok(Box::new(own)),
            _ => Ok(stage.misfit.build(self.propagator.survey().dt)?),
        }
    }

    /// The propagator of stages that are not refined.
    pub(super) fn coarse(&self) -> &'a dyn Propagator {
        self.propagator
    }

    /// The propagator of a stage.
    pub(super) fn engine(&self, stage: &Stage) -> &'a dyn Propagator {
        self.fine.filter(|_| stage.refined).unwrap_or(self.propagator)
    }

    /// A flag that stops the inversion before its next evaluation once it is set.
    pub fn cancel(mut self, flag: &'a AtomicBool) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Inverts from a start. What ends it early (limits, the flag) is a [`StopReason`], not an error.
    ///
    /// Errors when the starting model cannot be made or evaluated, or when a checkpoint cannot be saved.
    pub fn run(&self, start: &Start, observer: &mut dyn Observer) -> Result<Outcome> {
        let model = start.model(self.propagator.survey(), self.observed, self.settings.bounds)?;
        self.drive(self.beginning(model), observer)
    }

    /// The state before anything was evaluated.
    pub(super) fn beginning(&self, model: Model) -> State {
        let nan = f64::NAN;
        let before = self.earlier.last().map(|f| &f.outcome);
        let ledger = before.map_or_else(Ledger::default, |o| Ledger {
            evaluations: o.evaluations,
            iterations: o.iterations,
            normal_matrices: o.normal_matrices,
            curvature_seconds: o.curvature_seconds,
            ..Ledger::default()
        });
        State {
            fingerprint: self.fingerprint(),
            stage: 0,
            start: model.clone(),
            confidence: self.confidence.clone(),
            begin: None,
            step: 0,
            failed: 0,
            between: 0,
            entry: Best { model, score: nan, misfit: nan, data_rms: nan },
            at: None,
            ledger,
            seconds: before.map_or(0.0, |o| o.seconds),
            stages: vec![],
            earlier: self.earlier.clone(),
        }
    }

    /// Continues from a checkpoint. Limits may differ from the interrupted run's; data, stages, bounds, memory, first
    /// step and the propagators' arithmetic must not, else this errors.
    pub fn resume(&self, state: State, observer: &mut dyn Observer) -> Result<Outcome> {
        let other = "the checkpoint belongs to another gather, survey or other settings; give those it was made with";
        if state.fingerprint != self.fingerprint() {
            return Err(Error::Usage(other.into()));
        }
        let shape = self.propagator.survey().map_shape();
        let stages = &self.settings.stages;
        let sound = state.is_sound(shape, stages.len()) && {
            let variables = self.variables(&stages[state.stage], &state)?;
            state.fits(&self.solver(&variables))
        };
        if !sound { Err(Error::Usage(other.into())) } else { self.drive(state, observer) }
    }

    fn drive(&self, mut state: State, observer: &mut dyn Observer) -> Result<Outcome> {
        let clock = Clock { before: state.seconds, since: Instant::now() };
        let mut carried = None;
        loop {
            let stage = &self.settings.stages[state.stage];
            let halt = match &stage.newton {
                _ if self.skips(&mut state, stage)? => {
                    state.ledger.best = Some(state.entry.clone());
                    Halt::Stage(StopReason::Skipped { rms: state.entry.data_rms })
                }
                Some(newton) => self.run_newton(&mut state, stage, newton, clock, observer)?,
                None => self.run_stage(&mut state, carried.take(), clock, observer)?,
            };
            let mut best = state.ledger.best.take().unwrap_or_else(|| state.entry.clone());
            let rounded = match &stage.round {
                Some(round) if Self::may_round(&halt) => Some(self.round(&mut state, &mut best, stage, round)?),
                _ => None,
            };
            let (stop, all) = match halt {
                Halt::Stage(stop) => match stage.abandon_above.filter(|limit| best.data_rms > *limit) {
                    Some(limit) => (StopReason::Abandoned { rms: best.data_rms, limit }, true),
                    None => (stop, false),
                },
                Halt::All(stop) => (stop, true),
            };
            let next = self.settings.stages.get(state.stage + 1).filter(|next| next.continues(stage));
            let at = state.at.take();
            let (history, scale, restarts) =
                at.as_ref().map_or((vec![], 1.0, 0), |at| (at.history.clone(), at.scale, at.solver.restarts()));
            carried = at.filter(|_| next.is_some());
            state.stages.push(StageSummary {
                name: stage.name.clone(),
                misfit: stage.misfit.to_string(),
                iterations: if stage.newton.is_some() { state.step } else { history.len().saturating_sub(1) } as u64,
                evaluations: state.ledger.stage_evaluations,
                first_misfit: history.first().map_or(best.misfit, |first| first / scale),
                last_misfit: best.misfit,
                data_rms: best.data_rms,
                restarts,
                normal_matrices: std::mem::take(&mut state.ledger.stage_normal_matrices),
                rounded,
                stop: stop.clone(),
            });
            if all || state.stage + 1 == self.settings.stages.len() {
                return Ok(self.outcome(state, best, stop, clock));
            }
            self.engine(stage).release();
            state.stage += 1;
            state.step = 0;
            state.begin = None;
            state.entry = best;
            state.ledger.stage_evaluations = 0;
        }
    }

    /// Whether a stage that has not begun is left out.
    fn skips(&self, state: &mut State, stage: &Stage) -> Result<bool> {
        let Some(limit) = stage.skip_below.filter(|_| state.at.is_none() && state.step == 0) else { return Ok(false) };
        if state.entry.data_rms.is_nan() {
            let one = std::slice::from_ref(&state.entry.model);
            let synthetic = self.engine(stage).forward(one)?.remove(0);
            state.entry.data_rms = self.data(stage).rms(&synthetic);
        }
        Ok(state.entry.data_rms <= limit)
    }

    fn outcome(&self, state: State, best: Best, stop: StopReason, clock: Clock) -> Outcome {
        let mut masked = [&self.observed.bad[..], &self.observed.dead[..]].concat();
        masked.sort_unstable();
        Outcome {
            mae: self.truth.map(|t| mean_absolute_error(t, &best.model)),
            model: best.model,
            start: state.start,
            confidence: state.confidence,
            data_rms: best.data_rms,
            misfit: best.misfit,
            evaluations: state.ledger.evaluations,
            iterations: state.ledger.iterations,
            normal_matrices: state.ledger.normal_matrices,
            curvature_seconds: state.ledger.curvature_seconds,
            seconds: clock.seconds(),
            stop,
            stages: state.stages,
            masked,
            attempts: vec![],
        }
    }

    fn run_stage(
        &self,
        state: &mut State,
        carried: Option<At>,
        clock: Clock,
        observer: &mut dyn Observer,
    ) -> Result<Halt> {
        let stage = &self.settings.stages[state.stage];
        if stage.lbfgs.is_some() && state.begin.is_none() {
            state.begin = Some(state.entry.clone());
        }
        let objective = self.objective(state, stage, clock, observer)?;
        let halt = self.iterate(state, carried, stage, &objective);
        state.ledger = objective.live.into_inner().ledger;
        halt
    }

    /// What a stage minimises.
    pub(super) fn objective<'o>(
        &'o self,
        state: &State,
        stage: &'o Stage,
        clock: Clock,
        observer: &'o mut dyn Observer,
    ) -> Result<Objective<'o>> {
        let s = &self.settings;
        let scale = state.at.as_ref().map_or(1.0, |at| at.scale);
        Ok(Objective {
            propagator: self.engine(stage),
            observed: self.data(stage),
            truth: self.truth,
            misfit: self.misfit(stage)?,
            variables: self.variables(stage, state)?,
            penalty: self.penalty(stage, state)?,
            stage: state.stage,
            stage_name: &stage.name,
            by_rms: state.stage + 1 == s.stages.len() && stage.lbfgs.is_none(),
            limits: EvaluationLimits {
                cancel: self.cancel,
                time: s.time_limit,
                max_evals: s.max_evals,
                stage_max_evals: stage.max_evals,
            },
            clock,
            live: RefCell::new(Live::new(observer, state.ledger.clone(), scale)),
        })
    }

    fn iterate(&self, state: &mut State, carried: Option<At>, stage: &Stage, objective: &Objective) -> Result<Halt> {
        if state.at.is_none() {
            match self.enter(state, carried, stage, objective)? {
                Ok(at) => state.at = Some(at),
                Err(halt) => return Ok(halt),
            }
            self.save(state, objective)?;
        }
        loop {
            let now = state.at.as_mut().expect("entered above");
            if let Some(halt) = self.ended(stage, now) {
                return Ok(halt);
            }
            objective.begin_iteration(&now.x, now.cost, &now.gradient, now.data_rms);
            let iterate = Iterate::new().param(now.x.clone()).gradient(now.gradient.clone()).cost(now.cost);
            let mut problem = Problem::new(objective);
            let mut next = match now.solver.next_iter(&mut problem, iterate) {
                Ok((next, _)) => next,
                Err(error) => {
                    return match objective.live.borrow_mut().refusal()? {
                        Some(halt) => Ok(halt),
                        None => Err(Error::Numerical(format!("the optimiser failed: {error}"))),
                    };
                }
            };
            match next.get_termination_status() {
                TerminationStatus::Terminated(TerminationReason::SolverConverged) => {
                    return Ok(Halt::Stage(StopReason::Converged));
                }
                TerminationStatus::Terminated(reason) => {
                    return Ok(Halt::Stage(StopReason::LineSearch { why: reason.text().into() }));
                }
                TerminationStatus::NotTerminated => {}
            }
            now.cost = next.get_cost();
            now.gradient = next.take_gradient().expect("set by the solver");
            now.x = next.take_param().expect("set by the solver");
            now.history.push(now.cost);
            let point = objective.point(&now.x).expect("evaluated by the line search");
            now.data_rms = point.data_rms;
            let mut live = objective.live.borrow_mut();
            live.ledger.iterations += 1;
            let progress = objective.progress(&point, &live.ledger);
            live.observer.iteration(&progress);
            drop(live);
            self.save(state, objective)?;
        }
    }

    /// Evaluates the stage's first model: where the stage before ended, in its own variables if this one continues it.
    fn enter(
        &self,
        state: &State,
        carried: Option<At>,
        stage: &Stage,
        objective: &Objective,
    ) -> Result<std::result::Result<At, Halt>> {
        let (solver, scale, x) = match carried {
            Some(at) => (at.solver, Some(at.scale), at.x),
            None => {
                let variables = &objective.variables;
                (self.solver(variables), None, variables.encode(&state.entry.model))
            }
        };
        let Some(point) = objective.point(&x) else {
            let halt = objective.live.borrow_mut().refusal()?;
            return Ok(Err(halt.expect("a refusal has its reason")));
        };
        let mut live = objective.live.borrow_mut();
        if !point.misfit.is_finite() {
            let why = live.trouble().unwrap_or_else(|| "the misfit or its gradient is not finite".into());
            return Err(Error::Numerical(format!(
                "the first model of stage \"{}\" cannot be evaluated: {why}",
                stage.name
            )));
        }
        let scale = scale.unwrap_or(if point.misfit > 0.0 { 1.0 / point.misfit } else { 1.0 });
        live.scale = scale;
        let gradient = point.gradient.iter().map(|g| g * scale).collect();
        let cost = point.misfit * scale;
        let data_rms = point.data_rms;
        Ok(Ok(At { solver, x, cost, gradient, scale, data_rms, history: vec![cost] }))
    }

    fn save(&self, state: &mut State, objective: &Objective) -> Result<()> {
        let mut live = objective.live.borrow_mut();
        state.ledger = live.ledger.clone();
        state.seconds = objective.clock.seconds();
        live.observer.checkpoint(state)
    }

    /// Whether the accepted iterates end the stage or everything.
    fn ended(&self, stage: &Stage, at: &At) -> Option<Halt> {
        let reached = |target: Option<f64>| {
            target.filter(|t| at.data_rms <= *t).map(|target| StopReason::TargetReached { rms: at.data_rms, target })
        };
        if let Some(stop) = reached(self.settings.target_rms) {
            return Some(Halt::All(stop));
        }
        if let Some(stop) = reached(stage.target_rms) {
            return Some(Halt::Stage(stop));
        }
        let stall = stage.stall?;
        let before = at.history[at.history.len().checked_sub(stall.window + 1)?];
        let decrease = (before - at.cost) / before;
        let stop = StopReason::Stalled { window: stall.window, decrease };
        (decrease < stall.decrease).then_some(Halt::Stage(stop))
    }

    /// Checksum of all that decides the path of an inversion, limits left aside.
    fn fingerprint(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let s = &self.settings;
        let paths: Vec<_> = s
            .stages
            .iter()
            .map(|g| {
                let when = (g.skip_below, g.until, g.abandon_above);
                ((g.misfit, g.smoothing, g.vmin, g.refined, when), (&g.newton, &g.lbfgs, g.round))
            })
            .collect();
        let o = self.observed;
        let engines = (self.propagator.arithmetic(), self.fine.map(|p| p.arithmetic()));
        let words =
            (self.propagator.survey(), paths, s.bounds, s.memory, s.first_step, s.depth_exponent, &self.held, &o.mask);
        hasher.update(format!("{words:?}{engines:?}").as_bytes());
        o.gather.data.iter().for_each(|x| hasher.update(&x.to_le_bytes()));
        hasher.finalize()
    }
}
