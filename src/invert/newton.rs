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
//! L-BFGS. `s` is an rms in the data's units; gathers of OpenFWI have 1e-5 of their own.

use super::newton_space::{Space, Unknowns};
use super::objective::{Clock, EvaluationLimits, Halt, mean_absolute_error};
use super::outcome::{Observer, Progress, StopReason};
use super::run::Inversion;
use super::stage::{Stage, Vmin};
use super::state::{Best, State};
use super::terms::Terms;
use crate::curvature::Symmetric;
use crate::misfit::L2;
use crate::reg::{Regulariser, RegulariserSpec};
use crate::wave::Evaluation;
use crate::{Error, Model, Observed, Result};
use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, Side};
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
    /// Newton steps on the majorised regularisers within a step, at most; one is enough for quadratic ones.
    #[serde(default = "inner")]
    pub inner: usize,
    /// Iterations of conjugate gradients by the operator itself that correct a step, for small noises: the normal matrix is
    /// good to a part in a thousand. Each takes Born modelling and an adjoint.
    #[serde(default)]
    pub exact: usize,
}

fn inner() -> usize {
    4
}

/// Standard deviation of a step of `vmin`, m/s.
pub(super) const VMIN_STEP: f64 = 50.0;
/// How many times the noise asked for the data rms may be before steps at the rms itself come between.
const FAR: f64 = 1.5;
/// Steps between two noises, at most.
const MOST_BETWEEN: usize = 5;
/// Share of the data rms that a step between must leave at most for another to follow.
const WORTH: f64 = 0.95;
/// Shares of a step that are tried.
const SHARES: [f64; 5] = [1.0, 0.5, 0.25, 0.1, 0.03];
/// What is added to the diagonal, as a share of its largest entry, until the matrix is positive definite.
const RIDGES: [f64; 4] = [0.0, 1e-12, 1e-10, 1e-8];
/// Mean change of an unknown, m/s, below which the inner steps have converged.
const STILL: f64 = 0.02;
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
        if self.inner == 0 || self.inner > 100 {
            return Err(Error::Usage(format!("Gauss-Newton takes 1 to 100 inner steps, not {}", self.inner)));
        }
        self.regularisers.iter().try_for_each(|r| r.validate())?;
        self.unknowns.validate(&self.regularisers)
    }
}

/// The objective at a model.
struct At {
    model: Model,
    cost: f64,
    evaluation: Evaluation,
}

/// What a stage is made of.
struct Problem<'a, 'i> {
    inversion: &'a Inversion<'i>,
    stage: &'a Stage,
    newton: &'a Newton,
    data: Observed,
    regularisers: Vec<Box<dyn Regulariser>>,
    space: Space,
    index: usize,
    clock: Clock,
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
                let undone = |begin: &mut Best| problem.guesses() && worse(&state.entry, begin);
                if let Some(begin) = state.begin.take_if(undone) {
                    state.entry = begin;
                    state.ledger.best = Some(state.entry.clone());
                    return Ok(Halt::Stage(StopReason::Undone));
                }
                return Ok(ended.unwrap_or(Halt::Stage(StopReason::Completed { steps: state.step as u64 })));
            }
            if let Some(halt) = limits.halt(&state.ledger, &clock) {
                return Ok(halt);
            }
            let (wanted, rms) = (newton.noise[state.step], state.entry.data_rms);
            // far from the noise that is asked for, a step towards it goes too far to be any good: first those between
            let between = rms > FAR * wanted && state.between < MOST_BETWEEN;
            let fell = match problem.step(state, if between { rms } else { wanted }, &limits, observer)? {
                Ok(fell) => fell,
                Err(halt) => return Ok(halt),
            };
            state.failed = if fell { 0 } else { state.failed + 1 };
            if between && fell && state.entry.data_rms < WORTH * rms {
                state.between += 1;
            } else if between {
                state.between = MOST_BETWEEN;
            } else {
                (state.step, state.between) = (state.step + 1, 0);
            }
            state.seconds = clock.seconds();
            observer.checkpoint(state)?;
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

    fn limits(&self, stage: &Stage) -> EvaluationLimits<'_> {
        EvaluationLimits {
            cancel: self.cancel_flag(),
            time: self.settings().time_limit,
            max_evals: self.settings().max_evals,
            stage_max_evals: stage.max_evals,
        }
    }
}

/// Whether flat patches fit the data less well than the map that they were found in.
fn worse(now: &Best, begin: &Best) -> bool {
    now.data_rms > FLAT_MAY_COST * begin.data_rms
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
        Ok(Self { inversion, stage, newton, data, regularisers, space, index: state.stage, clock })
    }

    /// Whether the stage takes the map to be flat where it may not be.
    fn guesses(&self) -> bool {
        matches!(self.newton.unknowns, Unknowns::Patches { .. }) && self.stage.until.is_none()
    }

    /// One step from `state.entry`: whether the objective fell, or why nothing may be evaluated any more.
    fn step(
        &self,
        state: &mut State,
        noise: f64,
        limits: &EvaluationLimits,
        observer: &mut dyn Observer,
    ) -> Result<std::result::Result<bool, Halt>> {
        let from = self.evaluate(&state.entry.model.clone(), noise, state)?;
        if !from.cost.is_finite() {
            return Err(Error::Numerical(format!(
                "the first model of stage \"{}\" cannot be evaluated",
                self.stage.name
            )));
        }
        let h = self.normal_matrix(&from.model, state)?;
        let begin = std::time::Instant::now();
        let x = self.solve(&from, &h, noise)?;
        state.ledger.curvature_seconds += begin.elapsed().as_secs_f64();
        let change = self.space.push(&x);
        let mut taken = None;
        for share in SHARES {
            if let Some(halt) = limits.halt(&state.ledger, &self.clock) {
                return Ok(Err(halt));
            }
            let trial = self.evaluate(&self.bounded(&from.model.plus(share, &change)), noise, state)?;
            if trial.cost < from.cost {
                taken = Some(trial);
                break;
            }
        }
        let fell = taken.is_some();
        let to = taken.unwrap_or(from);
        let largest = state.entry.model.vp.iter().zip(&to.model.vp).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let (misfit, data_rms) = (to.evaluation.value, to.evaluation.data_rms);
        let score = data_rms;
        state.entry = Best { model: to.model, score, misfit, data_rms };
        state.ledger.best = Some(state.entry.clone());
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
        Ok(Ok(fell))
    }

    fn bounded(&self, m: &Model) -> Model {
        let (low, high) = self.inversion.settings().bounds;
        Model { vp: m.vp.mapv(|v| v.clamp(low, high)), vmin: m.vmin.clamp(low, high) }
    }

    /// A model that the scheme cannot compute costs infinitely much.
    fn evaluate(&self, model: &Model, noise: f64, state: &mut State) -> Result<At> {
        let one = std::slice::from_ref(model);
        let observed = std::slice::from_ref(&self.data);
        let engine = self.inversion.engine(self.stage);
        state.ledger.evaluations += 1;
        state.ledger.stage_evaluations += 1;
        let evaluation = match engine.misfit_and_gradient(one, observed, &L2) {
            Ok(mut e) => e.pop().ok_or_else(|| Error::Numerical("the propagator returned no evaluation".into()))?,
            Err(Error::Numerical(_)) => {
                let gradient = Model::zeros(model.vp.dim());
                Evaluation { value: f64::INFINITY, gradient, data_rms: f64::INFINITY }
            }
            Err(error) => return Err(error),
        };
        let prior: f64 = self.regularisers.iter().map(|r| r.value(model)).sum();
        let cost = evaluation.value / noise.powi(2) + prior;
        let cost = if cost.is_nan() { f64::INFINITY } else { cost };
        Ok(At { model: model.clone(), cost, evaluation })
    }

    /// `J' J` over the unknowns and `vmin`, the last row.
    fn normal_matrix(&self, model: &Model, state: &mut State) -> Result<Symmetric> {
        let begin = std::time::Instant::now();
        let (curvature, engine) = (self.inversion.curvature()?, self.inversion.engine(self.stage));
        let h = self.space.normal_matrix(curvature, engine, model, &self.data.mask)?;
        state.ledger.normal_matrices += 1;
        state.ledger.stage_normal_matrices += 1;
        state.ledger.curvature_seconds += begin.elapsed().as_secs_f64();
        Ok(h)
    }

    /// The Cholesky factor, of a matrix with as much on its diagonal as rounding makes necessary.
    fn factor(&self, matrix: &mut Mat<f64>) -> Result<Llt<f64>> {
        let n = matrix.ncols();
        let largest = (0..n).map(|i| matrix[(i, i)]).fold(0.0, f64::max);
        for ridge in RIDGES {
            (0..n).for_each(|i| matrix[(i, i)] += ridge * largest);
            if let Ok(factor) = matrix.llt(Side::Lower) {
                return Ok(factor);
            }
        }
        let what = "the normal matrix is not positive definite; give the stage a regulariser";
        Err(Error::Numerical(format!("stage \"{}\": {what}", self.stage.name)))
    }

    /// The unknowns' change that minimises the linearised data and the regularisers.
    fn solve(&self, from: &At, h: &Symmetric, noise: f64) -> Result<Vec<f64>> {
        let n = h.len();
        let weight = noise.powi(-2);
        let mut x = vec![0.0; n];
        let mut last = None;
        for _ in 0..self.newton.inner {
            let prior = self.prior_curvature(from, &x);
            let mut matrix = prior.lower.clone();
            for j in 0..n {
                let to = &mut matrix.col_as_slice_mut(j)[j..];
                to.iter_mut().zip(&h.lower.col_as_slice(j)[j..]).for_each(|(m, h)| *m += h * weight);
            }
            let gradient = self.model_gradient(from, &x, &h.times(&x), weight);
            let factor = self.factor(&mut matrix)?;
            let step = preconditioned(&factor, &gradient);
            let moved = step.iter().map(|s| s.abs()).sum::<f64>() / n as f64;
            x.iter_mut().zip(&step).for_each(|(x, s)| *x -= s);
            last = Some((prior, factor));
            if moved < STILL {
                break;
            }
        }
        match last.filter(|_| self.newton.exact > 0) {
            Some((prior, factor)) => self.correct(from, x, &prior, &factor, weight),
            None => Ok(x),
        }
    }

    /// The regularisers' curvature at a change of the unknowns, and what keeps `vmin` from running away.
    fn prior_curvature(&self, from: &At, x: &[f64]) -> Symmetric {
        let at = from.model.plus(1.0, &self.space.push(x));
        let mut lower = self.space.curvature(&self.regularisers, &at);
        let n = lower.ncols();
        lower[(n - 1, n - 1)] += VMIN_STEP.powi(-2);
        Symmetric { lower }
    }

    /// The derivative of the linearised objective at a change `x`, with `hx = J' J x`.
    fn model_gradient(&self, from: &At, x: &[f64], hx: &[f64], weight: f64) -> Vec<f64> {
        let at = from.model.plus(1.0, &self.space.push(x));
        let mut gradient = self.space.pull(&from.evaluation.gradient);
        gradient.iter_mut().zip(hx).for_each(|(g, hx)| *g = (*g + hx) * weight);
        if let (Some(g), Some(x)) = (gradient.last_mut(), x.last()) {
            *g += x / VMIN_STEP.powi(2);
        }
        for r in &self.regularisers {
            let prior = self.space.pull(&r.gradient(&at));
            gradient.iter_mut().zip(prior).for_each(|(g, p)| *g += p);
        }
        gradient
    }

    /// `J' J x` by the operator itself.
    fn exact_product(&self, model: &Model, x: &[f64]) -> Result<Vec<f64>> {
        let engine = self.inversion.engine(self.stage);
        let one = std::slice::from_ref(model);
        let mut data = engine.born(one, &[self.space.push(x)])?.remove(0);
        self.data.mask.apply(&mut data);
        Ok(self.space.pull(&engine.adjoint(one, &[data])?.remove(0)))
    }

    /// Corrects a change for what is approximate in the normal matrix: conjugate gradients with the operator itself, the
    /// factor their preconditioner.
    fn correct(
        &self,
        from: &At,
        mut x: Vec<f64>,
        prior: &Symmetric,
        factor: &Llt<f64>,
        weight: f64,
    ) -> Result<Vec<f64>> {
        let hx = self.exact_product(&from.model, &x)?;
        let mut residual = self.model_gradient(from, &x, &hx, weight);
        residual.iter_mut().for_each(|r| *r = -*r);
        let mut z = preconditioned(factor, &residual);
        let mut direction = z.clone();
        let mut rz = dot(&residual, &z);
        for _ in 0..self.newton.exact {
            let mut product = self.exact_product(&from.model, &direction)?;
            product.iter_mut().zip(prior.times(&direction)).for_each(|(a, p)| *a = *a * weight + p);
            let along = dot(&direction, &product);
            if !(rz > 0.0 && along > 0.0) {
                break;
            }
            let step = rz / along;
            x.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
            residual.iter_mut().zip(&product).for_each(|(r, p)| *r -= step * p);
            z = preconditioned(factor, &residual);
            let next = dot(&residual, &z);
            direction.iter_mut().zip(&z).for_each(|(d, z)| *d = z + next / rz * *d);
            rz = next;
        }
        Ok(x)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn preconditioned(factor: &Llt<f64>, x: &[f64]) -> Vec<f64> {
    let mut y = Mat::from_fn(x.len(), 1, |i, _| x[i]);
    factor.solve_in_place(y.as_mut());
    y.col_as_slice(0).to_vec()
}
