//! The driver: stages one after the other.

use super::newton::Newton;
use super::objective::{Clock, Halt, largest_change, mean_absolute_error};
use super::outcome::{Observer, Outcome, StageSummary, StopReason};
use super::run::Inversion;
use super::stage::{Kind, Stage};
use super::state::{At, Best, State};
use crate::{Error, Result};
use std::time::Instant;

/// Largest change of a cell, m/s, that is but rounding of what optimisers make of velocities.
const STILL: f64 = 1e-6;

/// A stage that has ended.
struct Ended {
    /// The map that goes on.
    best: Best,
    stop: StopReason,
    /// Whether the inversion ends with it.
    all: bool,
    rounded: Option<bool>,
}

impl Inversion<'_> {
    /// Runs a state to its end.
    pub(super) fn drive(&self, mut state: State, observer: &mut dyn Observer) -> Result<Outcome> {
        let clock = Clock { before: state.seconds, since: Instant::now() };
        let mut carried = None;
        loop {
            let stage = &self.settings().stages[state.stage];
            let halt = self.run_one(&mut state, stage, &mut carried, clock, observer)?;
            let begin = state.begin.clone();
            let Ended { best, stop, all, rounded } = self.end_stage(&mut state, stage, halt)?;
            // stages that do not tell what they began with begin with the entry
            let moved = largest_change(&begin.as_ref().unwrap_or(&state.entry).model, &best.model) > STILL;
            let next = self.settings().stages.get(state.stage + 1).filter(|next| next.continues(stage));
            let at = state.at.take();
            let (history, scale, restarts) =
                at.as_ref().map_or((vec![], 1.0, 0), |at| (at.history.clone(), at.scale, at.solver.restarts()));
            carried = at.filter(|_| next.is_some());
            state.stages.push(StageSummary {
                name: stage.name.clone(),
                misfit: stage.misfit.to_string(),
                iterations: if stage.newton.is_some() { state.step } else { history.len().saturating_sub(1) } as u64,
                moved,
                evaluations: state.ledger.stage_evaluations,
                first_misfit: history.first().map_or(best.misfit, |first| first / scale),
                last_misfit: best.misfit,
                data_rms: best.data_rms,
                restarts,
                normal_matrices: std::mem::take(&mut state.ledger.stage_normal_matrices),
                rounded,
                stop: stop.clone(),
            });
            // what comes next, an attempt perhaps, may be another engine's, and there is room for one
            self.engine(stage).release();
            if all || state.stage + 1 == self.settings().stages.len() {
                return Ok(self.outcome(state, best, stop, clock));
            }
            state.stage += 1;
            state.step = 0;
            state.entry = best;
            state.ledger.stage_evaluations = 0;
        }
    }

    /// Runs a stage to its halt, or leaves it out. `carried` is the optimiser of the stage before, where this one goes on with it.
    fn run_one(
        &self,
        state: &mut State,
        stage: &Stage,
        carried: &mut Option<At>,
        clock: Clock,
        observer: &mut dyn Observer,
    ) -> Result<Halt> {
        let left_out = self.left_out(state, stage);
        let ran = left_out.and_then(|left_out| match (left_out, &stage.newton) {
            (Some(why), _) => {
                state.ledger.best = Some(state.entry.clone());
                Ok(Halt::Stage(why))
            }
            (None, Some(newton)) => self.run_newton(state, stage, newton, clock, observer),
            (None, None) => self.run_stage(state, carried.take(), clock, observer),
        });
        match ran {
            // the maps of the attempts and stages before stand
            Err(Error::Numerical(why)) if !(state.earlier.is_empty() && state.stages.is_empty()) => {
                Ok(Halt::All(StopReason::BrokeDown { why }))
            }
            ran => ran,
        }
    }

    /// What a stage's halt makes of the map that it found: that map rounded, as it is, or the one that the stage began with.
    fn end_stage(&self, state: &mut State, stage: &Stage, halt: Halt) -> Result<Ended> {
        // steps that should end in areas and never did are none
        let given_up = stage.newton.as_ref().and_then(|n| n.areas.and(state.begin.clone()));
        let found = state.ledger.best.take();
        let found_none = found.is_none() && given_up.is_some();
        let mut best = found.or(given_up).unwrap_or_else(|| state.entry.clone());
        let mut rounded = match &stage.round {
            Some(round) if Self::may_round(&halt) => Some(self.round(state, &mut best, stage, round)?),
            _ => None,
        };
        let settled = matches!(halt, Halt::Stage(StopReason::Settled));
        let undone = state.begin.take().filter(|begin| self.guessed_wrongly(stage, &best, begin, settled));
        let went_back = undone.is_some();
        if let Some(begin) = undone {
            best = begin;
            rounded = rounded.map(|_| false);
        }
        let (stop, all) = match halt {
            Halt::All(stop) => (stop, true),
            Halt::Stage(_) if went_back => (StopReason::Undone, false),
            Halt::Stage(stop) => {
                let decided = matches!(stop, StopReason::LineSearch { .. } | StopReason::Completed { .. });
                let stop = if found_none && decided && rounded != Some(true) { StopReason::Undone } else { stop };
                match stage.abandon_above.filter(|limit| best.data_rms > *limit && !stop.left_out()) {
                    Some(limit) => (StopReason::Abandoned { rms: best.data_rms, limit }, true),
                    None => (stop, false),
                }
            }
        };
        Ok(Ended { best, stop, all, rounded })
    }

    /// Why a stage that has not begun is left out, if it is.
    fn left_out(&self, state: &mut State, stage: &Stage) -> Result<Option<StopReason>> {
        let begun = state.at.is_some() || state.begin.is_some();
        if begun {
            return Ok(None);
        }
        if stage.after_progress && state.stages.last().is_some_and(|s| !s.moved) {
            return Ok(Some(StopReason::NothingNew));
        }
        if stage.skip_below.is_none() && stage.only.is_none() {
            return Ok(None);
        }
        if state.entry.data_rms.is_nan() {
            let one = std::slice::from_ref(&state.entry.model);
            let synthetic = self.engine(stage).forward(one)?.remove(0);
            state.entry.data_rms = self.data(stage).rms(&synthetic);
        }
        let rms = state.entry.data_rms;
        if stage.skip_below.is_some_and(|limit| rms <= limit) {
            return Ok(Some(StopReason::Skipped { rms }));
        }
        let kind = match Kind::of(&state.entry.model.vp) {
            Kind::Patches if self.found_no_areas(state) => Kind::Interpolated,
            kind => kind,
        };
        Ok(stage.only.filter(|only| !only.includes(kind)).map(|_| StopReason::OtherKind { kind }))
    }

    /// Whether a stage looked for areas in a map that fits the data, and these told that there are none: what lies between them
    /// is not flat.
    fn found_no_areas(&self, state: &State) -> bool {
        let fits =
            |n: &Newton| n.areas.is_some() && n.noise.first().is_some_and(|noise| state.entry.data_rms <= *noise);
        let mut stages = self.settings().stages.iter().zip(&state.stages);
        stages.any(|(stage, told)| stage.newton.as_ref().is_some_and(fits) && told.stop == StopReason::Undone)
    }

    fn outcome(&self, state: State, best: Best, stop: StopReason, clock: Clock) -> Outcome {
        let observed = self.observed();
        let mut masked = [&observed.bad[..], &observed.dead[..]].concat();
        masked.sort_unstable();
        Outcome {
            mae: self.truth_map().map(|t| mean_absolute_error(t, &best.model)),
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Recipe;
    use crate::invert::Settings;
    use crate::wave::{CpuOptions, build};
    use crate::{Gather, Model, Observed, Survey};
    use ndarray::{Array2, Array3};

    #[test]
    fn contacts_follow_where_areas_were_undone() {
        let survey = Survey { nz: 24, nx: 20, nt: 60, ..Survey::openfwi() };
        let survey = Survey {
            sources: survey.sources.iter().filter(|p| p.x < 20).copied().collect(),
            receivers: survey.receivers.iter().filter(|p| p.x < 20).copied().collect(),
            ..survey
        };
        let propagator = build(survey.clone(), &CpuOptions::default()).unwrap();
        let data = Array3::from_elem(survey.gather_shape(), 1.0);
        let observed = Observed::new(Gather::new(data));
        let stages = Recipe::named("layered", survey.dt).unwrap().stages;
        let (areas, contacts) = (at(&stages, "areas"), at(&stages, "contacts"));
        assert_eq!(areas + 1, contacts);
        let settings = Settings { stages: stages.clone(), ..Settings::default() };
        let inversion = Inversion::new(&*propagator, &observed, settings).unwrap();
        // whole areas: by its looks, nothing is interpolated
        let map = Array2::from_shape_fn(survey.map_shape(), |(z, _)| if z < 9 { 2000.0 } else { 3000.0 });
        let left_out = |stop: StopReason, data_rms: f64| {
            let mut state = inversion.beginning(Model::from_map(map.clone()));
            state.stage = contacts;
            state.entry.data_rms = data_rms;
            state.stages = stages[..contacts].iter().map(|s| told(s, StopReason::Completed { steps: 1 })).collect();
            state.stages[areas].stop = stop;
            inversion.left_out(&mut state, &stages[contacts]).unwrap()
        };
        let other = Some(StopReason::OtherKind { kind: Kind::Patches });
        assert_eq!(left_out(StopReason::Undone, 5e-5), None);
        assert_eq!(left_out(StopReason::Settled, 5e-5), other);
        // a map that does not yet fit says nothing about its contacts
        assert_eq!(left_out(StopReason::Undone, 5e-4), other);
    }

    fn at(stages: &[Stage], name: &str) -> usize {
        stages.iter().position(|s| s.name == name).unwrap()
    }

    fn told(stage: &Stage, stop: StopReason) -> StageSummary {
        StageSummary {
            name: stage.name.clone(),
            misfit: stage.misfit.to_string(),
            iterations: 1,
            moved: true,
            evaluations: 1,
            first_misfit: 1.0,
            last_misfit: 1.0,
            data_rms: 1e-4,
            restarts: 0,
            normal_matrices: 1,
            rounded: None,
            stop,
        }
    }
}
