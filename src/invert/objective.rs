//! The misfit as argmin's problem: one forward and one adjoint per point, whoever asks for what and how often.
//!
//! argmin asks for cost and gradient separately, and again at the accepted point; the points of the running line search
//! are remembered by the exact bits of their variables. Limits are checked before every evaluation.

use super::outcome::{Observer, Progress, StopReason};
use super::state::{Best, Ledger};
use super::variables::{Penalty, Variables};
use crate::{Error, Misfit, Model, Observed, Propagator};
use argmin::core::{CostFunction, Gradient};
use ndarray::Array2;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What does not change within a stage.
pub(super) struct Objective<'a> {
    pub propagator: &'a dyn Propagator,
    pub observed: Observed,
    pub truth: Option<&'a Array2<f64>>,
    pub misfit: Box<dyn Misfit + 'a>,
    pub variables: Variables,
    /// What is added to the misfit.
    pub penalty: Penalty,
    pub stage: usize,
    pub stage_name: &'a str,
    /// Whether the data rms decides which model is the best, and not the stage's misfit.
    pub by_rms: bool,
    pub limits: EvaluationLimits<'a>,
    pub clock: Clock,
    pub live: RefCell<Live<'a>>,
}

/// What forbids a further evaluation.
pub(super) struct EvaluationLimits<'a> {
    pub cancel: Option<&'a AtomicBool>,
    pub time: Option<Duration>,
    pub max_evals: Option<u64>,
    pub stage_max_evals: Option<u64>,
}

/// Wall time over all runs of a resumed inversion.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub before: f64,
    pub since: Instant,
}

/// An end: of this stage alone or of everything.
#[derive(Clone)]
pub(super) enum Halt {
    Stage(StopReason),
    All(StopReason),
}

/// What every evaluation changes.
pub(super) struct Live<'a> {
    pub observer: &'a mut dyn Observer,
    pub ledger: Ledger,
    pub scale: f64,
    points: Vec<Point>,
    origin: Option<Model>,
    halt: Option<Halt>,
    fatal: Option<Error>,
    trouble: Option<String>,
}

/// An evaluated point.
#[derive(Clone)]
pub(super) struct Point {
    pub x: Vec<f64>,
    pub misfit: f64,
    pub gradient: Vec<f64>,
    pub data_rms: f64,
    mae: Option<f64>,
    step: f64,
}

impl Clock {
    pub fn seconds(&self) -> f64 {
        self.before + self.since.elapsed().as_secs_f64()
    }
}

impl<'a> Live<'a> {
    pub fn new(observer: &'a mut dyn Observer, ledger: Ledger, scale: f64) -> Self {
        Self { observer, ledger, scale, points: vec![], origin: None, halt: None, fatal: None, trouble: None }
    }

    /// Why the last refused evaluation was refused.
    pub fn refusal(&mut self) -> std::result::Result<Option<Halt>, Error> {
        match self.fatal.take() {
            Some(error) => Err(error),
            None => Ok(self.halt.take()),
        }
    }

    /// What a propagator said about a model it could not evaluate.
    pub fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }
}

impl Objective<'_> {
    /// Forgets the points of the last line search; `x` is where the next one begins.
    pub fn begin_iteration(&self, x: &[f64], cost: f64, gradient: &[f64], data_rms: f64) {
        let mut live = self.live.borrow_mut();
        let s = live.scale;
        let gradient = gradient.iter().map(|g| g / s).collect();
        let origin = Point { x: x.to_vec(), misfit: cost / s, gradient, data_rms, mae: None, step: 0.0 };
        live.points = vec![origin];
        live.origin = Some(self.variables.decode(x));
    }

    /// The evaluated point at `x`; none when the evaluation was refused, see [`Live::refusal`].
    pub fn point(&self, x: &[f64]) -> Option<Point> {
        let same = |p: &Point| p.x.iter().zip(x).all(|(a, b)| a.to_bits() == b.to_bits());
        let mut live = self.live.borrow_mut();
        if let Some(known) = live.points.iter().find(|p| same(p)) {
            return Some(known.clone());
        }
        if let Some(halt) = self.limits.halt(&live.ledger, &self.clock) {
            live.halt = Some(halt);
            return None;
        }
        match self.evaluate(x, &mut live) {
            Ok(point) => {
                live.points.push(point.clone());
                Some(point)
            }
            Err(error) => {
                live.fatal = Some(error);
                None
            }
        }
    }

    fn evaluate(&self, x: &[f64], live: &mut Live) -> crate::Result<Point> {
        let model = self.variables.decode(x);
        let step = live.origin.as_ref().map_or(0.0, |o| largest_change(o, &model));
        let mae = self.truth.map(|t| mean_absolute_error(t, &model));
        let one = std::slice::from_ref(&model);
        let outcome = self.propagator.misfit_and_gradient(one, std::slice::from_ref(&self.observed), &*self.misfit);
        live.ledger.evaluations += 1;
        live.ledger.stage_evaluations += 1;
        let nowhere = |x: &[f64]| (f64::INFINITY, vec![0.0; x.len()], f64::INFINITY);
        let (misfit, gradient, data_rms) = match outcome.map(|mut e| e.pop()) {
            Ok(Some(mut e)) => {
                let value = e.value + self.penalty.value(&model);
                self.penalty.add_gradient(&model, &mut e.gradient);
                let gradient = self.variables.pullback(x, &model, &e.gradient);
                let finite = value.is_finite() && e.data_rms.is_finite() && gradient.iter().all(|g| g.is_finite());
                if finite { (value, gradient, e.data_rms) } else { nowhere(x) }
            }
            Ok(None) => return Err(Error::Numerical("the propagator returned no evaluation".into())),
            Err(Error::Numerical(why)) => {
                live.trouble = Some(why);
                nowhere(x)
            }
            Err(error) => return Err(error),
        };
        let score = if self.by_rms { data_rms } else { misfit };
        if score.is_finite() && live.ledger.best.as_ref().is_none_or(|b| score < b.score) {
            live.ledger.best = Some(Best { model, score, misfit, data_rms });
        }
        let point = Point { x: x.to_vec(), misfit, gradient, data_rms, mae, step };
        let progress = self.progress(&point, &live.ledger);
        live.observer.evaluation(&progress);
        Ok(point)
    }

    pub fn progress(&self, p: &Point, ledger: &Ledger) -> Progress<'_> {
        Progress {
            stage: self.stage,
            stage_name: self.stage_name,
            iteration: ledger.iterations,
            evaluation: ledger.evaluations,
            misfit: p.misfit,
            data_rms: p.data_rms,
            gradient_norm: p.gradient.iter().map(|g| g * g).sum::<f64>().sqrt(),
            step: p.step,
            mae: p.mae,
            seconds: self.clock.seconds(),
        }
    }

    fn scaled(&self, x: &[f64]) -> Result<(Point, f64), argmin::core::Error> {
        let point = self.point(x).ok_or_else(|| argmin::core::Error::msg("no further evaluation is allowed"))?;
        Ok((point, self.live.borrow().scale))
    }
}

impl EvaluationLimits<'_> {
    /// The very first evaluation is always allowed, so that there is something to hand back.
    pub fn halt(&self, ledger: &Ledger, clock: &Clock) -> Option<Halt> {
        if ledger.evaluations == 0 {
            return None;
        }
        if self.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
            return Some(Halt::All(StopReason::Cancelled));
        }
        if let Some(time) = self.time.map(|t| t.as_secs_f64())
            && clock.seconds() >= time
        {
            return Some(Halt::All(StopReason::TimeLimit { seconds: time }));
        }
        match (self.max_evals, self.stage_max_evals) {
            (Some(limit), _) if ledger.evaluations >= limit => Some(Halt::All(StopReason::MaxEvals { limit })),
            (_, Some(limit)) if ledger.stage_evaluations >= limit => Some(Halt::Stage(StopReason::MaxEvals { limit })),
            _ => None,
        }
    }
}

impl CostFunction for &Objective<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, x: &Vec<f64>) -> Result<f64, argmin::core::Error> {
        self.scaled(x).map(|(p, scale)| p.misfit * scale)
    }
}

impl Gradient for &Objective<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, x: &Vec<f64>) -> Result<Vec<f64>, argmin::core::Error> {
        self.scaled(x).map(|(p, scale)| p.gradient.iter().map(|g| g * scale).collect())
    }
}

/// Mean over the cells of the absolute difference, m/s.
pub(super) fn mean_absolute_error(truth: &Array2<f64>, m: &Model) -> f64 {
    truth.iter().zip(&m.vp).map(|(a, b)| (a - b).abs()).sum::<f64>() / truth.len() as f64
}

pub(super) fn largest_change(a: &Model, b: &Model) -> f64 {
    a.vp.iter().zip(&b.vp).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
