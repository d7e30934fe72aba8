//! L-BFGS stages, argmin's solver one iteration at a time.
//!
//! argmin's executor owns its observers and its checkpoint for ever and loses both solver and problem on an error, so
//! the solver is stepped by hand here: after every iteration the state is whole, borrowed by the caller, and saved.

use super::lbfgs::Iterate;
use super::objective::{Clock, Halt, Live, Objective};
use super::outcome::{Observer, StopReason};
use super::run::Inversion;
use super::stage::Stage;
use super::state::{At, State};
use crate::{Error, Result};
use argmin::core::{Problem, Solver, State as _, TerminationReason, TerminationStatus};
use std::cell::RefCell;

impl Inversion<'_> {
    /// Runs an L-BFGS stage from `state.entry`, or goes on from `carried` where it continues the stage before.
    pub(super) fn run_stage(
        &self,
        state: &mut State,
        carried: Option<At>,
        clock: Clock,
        observer: &mut dyn Observer,
    ) -> Result<Halt> {
        let stage = &self.settings().stages[state.stage];
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
        let s = self.settings();
        let scale = state.at.as_ref().map_or(1.0, |at| at.scale);
        Ok(Objective {
            propagator: self.engine(stage),
            observed: self.data(stage),
            truth: self.truth_map(),
            misfit: self.misfit(stage)?,
            variables: self.variables(stage, state)?,
            penalty: self.penalty(stage, state)?,
            stage: state.stage,
            stage_name: &stage.name,
            by_rms: state.stage + 1 == s.stages.len() && stage.lbfgs.is_none(),
            limits: self.limits(stage),
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
        if let Some(stop) = reached(self.settings().target_rms) {
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
}
