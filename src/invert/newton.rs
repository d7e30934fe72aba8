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
//! L-BFGS. What `x` stands for is the stage's choice ([`Linear`]): of velocity, slowness and its square, the data are most nearly
//! linear in the last. Low-passed data, `F r` and `F J`, continue in frequency besides. `s` is an rms in the data's units; gathers of OpenFWI have 1e-5 of their own.

use super::areas::Areas;
use super::linear::Linear;
use super::newton_space::{Space, Unknowns};
use super::objective::{Clock, EvaluationLimits, Halt};
use super::outcome::{Observer, StopReason};
use super::run::Inversion;
use super::stage::{Kind, Stage, Vmin};
use super::state::{Best, State};
use super::terms::Terms;
use crate::misfit::{FilteredL2, Misfit, MisfitSpec};
use crate::reg::{Regulariser, RegulariserSpec};
use crate::{Error, Observed, Result};
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
    /// Steps that come before each noise, as long as that is less than two thirds of so many times the data rms, assume the latter: what
    /// is not linear in the data must not be fitted as if it were. The least is 1, the data rms itself.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub over_rms: f64,
    /// A noise of the list above so many times the data rms that a step begins with is lowered to that: a map that already fits better
    /// than the list was made for is not opened further than it needs. The least is [`over_rms`](Self::over_rms).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_rms: Option<f64>,
    /// By what the standard deviations of the posterior under this stage's regularisers are to be multiplied, as errors found on
    /// synthetic maps are larger or smaller than those expected.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub calibration: f64,
}

/// The default of counts and factors, for serde.
pub(crate) fn one<T: From<u8>>() -> T {
    T::from(1)
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Whether it is [`one`].
pub(crate) fn is_one<T: From<u8> + PartialEq>(x: &T) -> bool {
    *x == one()
}

fn is_velocity(linear: &Linear) -> bool {
    *linear == Linear::Velocity
}

fn inner() -> usize {
    4
}

/// Standard deviation of a step of `vmin`, m/s.
pub(super) const VMIN_STEP: f64 = 50.0;
/// Steps between two noises, at most.
pub(super) const MOST_BETWEEN: usize = 5;
/// Share of the data rms that a step between must leave at most for another to follow.
const WORTH: f64 = 0.95;
/// Steps running that find no better map of areas and end a stage of them: cells move to the right side for a while without that.
const PATIENCE: usize = 8;
/// The same where the best map so far has [`HOPELESS`] times the data rms with which it would be undone.
const PATIENCE_WHERE_WRONG: usize = 3;
/// Where areas are right, a few cells on the wrong side alone raise the data rms to 3.5 times what smooth edges leave, seen on OpenFWI's CurveFault_B.
const HOPELESS: f64 = 2.0;
/// Flat patches may raise the data rms by this factor at least: they leave out what fitted its noise.
const FLAT_MAY_COST: f64 = 1.5;
/// The same for areas that have settled, which a few cells on the wrong side hardly make worse maps.
const SETTLED_MAY_COST: f64 = 3.0;

impl Newton {
    /// What a step towards the noise at `index` of the list assumes that begins with a data rms of `rms`.
    pub(super) fn wanted(&self, index: usize, rms: f64) -> f64 {
        self.within_rms.map_or(self.noise[index], |times| self.noise[index].min(times * rms))
    }

    /// Whether the map is taken to be flat within areas.
    pub(crate) fn is_flat(&self) -> bool {
        self.areas.is_some() || matches!(self.unknowns, Unknowns::Patches { .. })
    }

    /// The largest data rms with which its map, flat within areas, stands against the one of `rms` that it began with; none where it
    /// is not flat. Patches may cost a nat for every cell under the noise assumed, since most are unknowns no more (Akaike's criterion).
    fn flat_may_cost(&self, rms: f64, settled: bool, cells: usize, samples: usize) -> Option<f64> {
        if !self.is_flat() {
            return None;
        }
        if self.areas.is_some() {
            return Some(if settled { SETTLED_MAY_COST } else { FLAT_MAY_COST } * rms);
        }
        let nats = self.noise.last().map_or(0.0, |s| s * (2.0 * cells as f64 / samples.max(1) as f64).sqrt());
        Some((FLAT_MAY_COST * rms).max(rms.hypot(nats)))
    }

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
        if !(1.0..1e3).contains(&self.over_rms) {
            return Err(Error::Usage(format!(
                "Gauss-Newton assumes a noise of 1 to 1000 times the data rms, not {}",
                self.over_rms
            )));
        }
        if let Some(within) = self.within_rms.filter(|within| !(self.over_rms..1e3).contains(within)) {
            let problem = "within_rms must lie between over_rms, 1 by default, and 1000";
            return Err(Error::Usage(format!("{problem}, not {within}")));
        }
        if !(1e-3..1e3).contains(&self.calibration) {
            let problem = "Gauss-Newton takes a calibration between 0.001 and 1000";
            return Err(Error::Usage(format!("{problem}, not {}", self.calibration)));
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

/// Steps running that find no better map of areas and end a stage of them, given the data rms of the best one so far and that with
/// which it would be undone.
fn patience(best: Option<f64>, may_cost: Option<f64>) -> usize {
    let wrong = best.zip(may_cost).is_some_and(|(best, may_cost)| best > HOPELESS * may_cost);
    if wrong { PATIENCE_WHERE_WRONG } else { PATIENCE }
}

/// What a stage is made of.
pub(super) struct Problem<'a, 'i> {
    pub(super) inversion: &'a Inversion<'i>,
    pub(super) stage: &'a Stage,
    pub(super) newton: &'a Newton,
    pub(super) data: Observed,
    pub(super) misfit: Box<dyn Misfit + 'a>,
    /// What the data pass before they are compared.
    pub(super) filter: Option<FilteredL2>,
    /// Of the step; none before the first.
    pub(super) regularisers: Vec<Box<dyn Regulariser>>,
    pub(super) space: Space,
    pub(super) index: usize,
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
        let begins = state.begin.is_none();
        if begins {
            state.begin = Some(state.entry.clone());
            (state.failed, state.stale, state.between) = (0, 0, 0);
        }
        let mut problem = Problem::new(self, stage, newton, state, clock)?;
        let limits = self.limits(stage);
        if begins {
            // what ends the first step loses nothing either
            state.seconds = clock.seconds();
            observer.checkpoint(state)?;
        }
        if state.is_before_steps() {
            problem.space.prepare(&mut state.entry.model);
        }
        loop {
            let ended = self.newton_ended(state, stage);
            if state.step >= newton.noise.len() || ended.is_some() {
                return Ok(ended.unwrap_or(Halt::Stage(StopReason::Completed { steps: state.step as u64 })));
            }
            if let Some(halt) = limits.halt(&state.ledger, &clock) {
                state.back_before_steps();
                return Ok(halt);
            }
            if let Some(areas) = &newton.areas {
                problem.space = Space::of(areas.unknowns(&state.entry.model.vp));
            }
            if problem.regularisers.is_empty() || newton.regularisers.iter().any(RegulariserSpec::follows_layers) {
                problem.regularisers = self.regularisers_of_step(stage, newton, state)?;
            }
            let best = state.ledger.best.as_ref().map(|b| b.data_rms);
            let taken = match problem.step(state, &limits, observer)? {
                Ok(taken) => taken,
                Err(halt) => {
                    state.back_before_steps();
                    return Ok(halt);
                }
            };
            state.failed = if taken.arrived { 0 } else { state.failed + 1 };
            let better = newton.areas.is_none() || state.ledger.best.as_ref().map(|b| b.data_rms) != best;
            state.stale = if better { 0 } else { state.stale + 1 };
            if taken.between && taken.arrived && taken.to < WORTH * taken.from {
                state.between += 1;
            } else if taken.between {
                state.between = MOST_BETWEEN;
            } else {
                (state.step, state.between) = (state.step + 1, 0);
            }
            state.seconds = clock.seconds();
            if taken.settled {
                // no checkpoint tells that it has: resumed from the one before, the step settles again
                return Ok(Halt::Stage(StopReason::Settled));
            }
            observer.checkpoint(state)?;
        }
    }

    /// The regularisers of a step from `state.entry`.
    fn regularisers_of_step(&self, stage: &Stage, newton: &Newton, state: &State) -> Result<Vec<Box<dyn Regulariser>>> {
        let begin = &state.begin.as_ref().unwrap_or(&state.entry).model;
        let terms = Terms::new(&state.start.vp, begin, state.confidence.as_ref()).here(&state.entry.model);
        let mut regularisers = terms.regularisers(&newton.regularisers)?;
        self.add_known(&mut regularisers, stage.vmin == Vmin::Tied)?;
        Ok(regularisers)
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
        let of_areas = stage.newton.as_ref().is_some_and(|n| n.areas.is_some());
        let why = || match of_areas {
            true => "no map of areas lies near where the last steps lead".into(),
            false => "no share of two steps running lowers the objective".into(),
        };
        // a map that looks interpolated is hardly one of areas: one step tells
        let hardly = |begin: &Best| state.ledger.best.is_none() && Kind::of(&begin.model.vp) == Kind::Interpolated;
        let tries = if of_areas && state.begin.as_ref().is_some_and(hardly) { 1 } else { 2 };
        if state.failed >= tries {
            return Some(Halt::Stage(StopReason::LineSearch { why: why() }));
        }
        // areas may yet settle
        let may_cost = state.begin.as_ref().and_then(|begin| self.may_cost(stage, begin, true));
        let patience = patience(state.ledger.best.as_ref().map(|best| best.data_rms), may_cost);
        (state.stale >= patience).then_some(Halt::Stage(StopReason::Wandering { steps: state.stale }))
    }

    /// Whether a stage took a map to be flat where the data say that it is not: what it began with fits them better. Its areas may
    /// have settled.
    pub(super) fn guessed_wrongly(&self, stage: &Stage, now: &Best, begin: &Best, settled: bool) -> bool {
        self.may_cost(stage, begin, settled).is_some_and(|rms| now.data_rms > rms)
    }

    /// The largest data rms with which a stage's map, taken to be flat, stands against the one that it began with.
    fn may_cost(&self, stage: &Stage, begin: &Best, settled: bool) -> Option<f64> {
        let (cells, samples) = (begin.model.vp.len(), self.samples());
        let newton = stage.newton.as_ref().filter(|_| stage.until.is_none())?;
        newton.flat_may_cost(begin.data_rms, settled, cells, samples)
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

impl Stage {
    /// Whether steps at the data rms may come between two noises: the samples of low-passed data count for far fewer, so
    /// that their rms is no noise to assume.
    pub(super) fn comes_between(&self) -> bool {
        !matches!(self.misfit, MisfitSpec::LowPass(_))
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
        let space = terms.space(&newton.unknowns, &newton.regularisers)?;
        let data = inversion.data(stage);
        let misfit = inversion.misfit(stage)?;
        let filter = match stage.misfit {
            MisfitSpec::LowPass(corner) => Some(FilteredL2::new(corner, inversion.survey().dt)?),
            _ => None,
        };
        let regularisers = vec![];
        Ok(Self { inversion, stage, newton, data, misfit, filter, regularisers, space, index: state.stage, clock })
    }
}

#[cfg(test)]
mod tests {
    use super::patience;
    use crate::family::Recipe;

    #[test]
    fn areas_that_fit_six_times_worse_than_what_they_began_with_are_given_three_steps() {
        let recipe = Recipe::named("layered", 1e-3).unwrap();
        let areas = recipe.stages.iter().find(|s| s.name == "areas").and_then(|s| s.newton.as_ref()).unwrap();
        let may_cost = areas.flat_may_cost(1e-4, true, 4900, 350_000);
        assert_eq!(patience(Some(6.1e-4), may_cost), 3);
        assert_eq!(patience(Some(5.9e-4), may_cost), 8);
        // no map of areas yet, or a stage whose map need not be flat
        assert_eq!(patience(None, may_cost), 8);
        assert_eq!(patience(Some(1.0), None), 8);
    }

    #[test]
    fn noises_are_lowered_to_a_multiple_of_the_data_rms() {
        let level = Recipe::named("level", 1e-3).unwrap();
        let mut newton = level.stages[1].newton.clone().unwrap();
        newton.noise = vec![0.006, 0.001];
        newton.within_rms = Some(10.0);
        let wanted = |rms: f64| [newton.wanted(0, rms), newton.wanted(1, rms)];
        assert_eq!(wanted(1.0), [0.006, 0.001]);
        assert_eq!(wanted(3e-4), [10.0 * 3e-4, 0.001]);
        assert_eq!(wanted(5e-5), [10.0 * 5e-5; 2]);
    }

    #[test]
    fn flat_maps_may_cost_a_nat_a_cell() {
        let recipe = Recipe::named("layered", 1e-3).unwrap();
        let cost = |name: &str, rms: f64| {
            let stage = recipe.stages.iter().find(|s| s.name == name).unwrap();
            stage.newton.as_ref().unwrap().flat_may_cost(rms, name == "areas", 4900, 350_000)
        };
        assert_eq!(cost("sharp", 1e-5), None);
        assert_eq!(cost("areas", 1e-5), Some(3.0 * 1e-5));
        // under an assumed noise of 4e-4 the misfit grows by 4900 nats
        let rms = cost("contacts", 1e-5).unwrap();
        let nats = 350_000.0 * (rms * rms - 1e-10) / (2.0 * 4e-4f64.powi(2));
        assert!((nats - 4900.0).abs() < 1e-6, "{nats}");
        assert_eq!(cost("contacts", 1e-2), Some(1.5 * 1e-2));
    }
}
