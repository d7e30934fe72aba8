//! L-BFGS behind argmin's solver interface, with argmin's More-Thuente line search.
//!
//! The two-loop recursion (Nocedal and Wright, 2006, algorithm 7.4) begins with a given diagonal times the scalar of the
//! last pair, or with the inverse of a matrix whose factor is known; pairs without positive curvature are not kept. A trial
//! that is no number is approached more closely; when no trial lowers the cost the memory is cleared once and steepest descent (in the diagonal's metric) tried.
//!
//! argmin's own L-BFGS has no such diagonal, which is worth a factor of six in the misfit after 60 evaluations; it
//! keeps pairs of negative curvature after a line search that gave up, and loses the problem when one fails. Its
//! Hager-Zhang search evaluates both ends of its bracket and the trial step before the first test, so it took two
//! evaluations an iteration and left six times the misfit at the same number; More-Thuente takes about 1.07.

use argmin::core::{
    CostFunction, Error, Executor, Gradient, IterState, KV, LineSearch, Problem, Solver, State, TerminationReason,
};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::VecDeque;

/// argmin's state for this solver: variables, gradient, cost.
pub type Iterate = IterState<Vec<f64>, Vec<f64>, (), (), (), f64>;

/// The first guess at the inverse Hessian.
pub trait Metric {
    /// Whether it is the inverse Hessian's in size, too, so that a full step is tried first.
    const WHOLE: bool;

    /// Applies it to a vector in place.
    fn apply(&self, v: &mut [f64]);
}

/// A diagonal, known up to a factor.
impl Metric for Vec<f64> {
    const WHOLE: bool = false;

    fn apply(&self, v: &mut [f64]) {
        v.iter_mut().zip(self).for_each(|(v, m)| *v *= m);
    }
}

/// The solver: its metric and the pairs it has gathered. All that a resumed run needs, next to the iterate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lbfgs<M = Vec<f64>> {
    memory: usize,
    first_step: f64,
    /// The first guess at the inverse Hessian.
    metric: M,
    pairs: VecDeque<Pair>,
    /// Largest change of a variable in the last accepted step: how far a restart's first trial goes.
    reach: f64,
    restarts: u64,
}

/// Step and change of gradient of an accepted iteration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pair {
    s: Vec<f64>,
    y: Vec<f64>,
}

/// Trial points of one line search at most.
const MAX_TRIALS: u64 = 12;
/// Relative width at which the line search gives up narrowing its bracket.
const WIDTH: f64 = 1e-4;
/// A pair must have `s . y` above this times `|s| |y|`, or the curvature it tells is noise.
const CURVATURE: f64 = 1e-10;

impl<M: Metric> Lbfgs<M> {
    /// A solver whose first guess at the inverse Hessian is that of the problem in size, too: it tries full steps.
    pub fn preconditioned(metric: M, memory: usize) -> Self {
        Self { memory, first_step: f64::INFINITY, metric, pairs: VecDeque::new(), reach: f64::INFINITY, restarts: 0 }
    }

    /// Its metric.
    pub fn into_metric(self) -> M {
        self.metric
    }

    /// How often the memory was cleared because no step along the direction lowered the cost.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Minus the quasi-Newton inverse Hessian times the gradient.
    fn direction(&self, g: &[f64]) -> Vec<f64> {
        let mut d: Vec<f64> = g.iter().map(|g| -g).collect();
        let mut weights = Vec::with_capacity(self.pairs.len());
        for p in self.pairs.iter().rev() {
            let a = dot(&p.s, &d) / dot(&p.s, &p.y);
            add(&mut d, -a, &p.y);
            weights.push(a);
        }
        self.metric.apply(&mut d);
        let factor = match self.pairs.back() {
            _ if M::WHOLE => 1.0,
            Some(p) => {
                let mut hy = p.y.clone();
                self.metric.apply(&mut hy);
                dot(&p.s, &p.y) / dot(&p.y, &hy)
            }
            None => self.reach / d.iter().fold(0.0f64, |m, d| m.max(d.abs())),
        };
        d.iter_mut().for_each(|d| *d *= factor);
        for (p, a) in self.pairs.iter().zip(weights.iter().rev()) {
            let b = dot(&p.y, &d) / dot(&p.s, &p.y);
            add(&mut d, a - b, &p.s);
        }
        d
    }

    fn remember(&mut self, s: Vec<f64>, y: Vec<f64>) {
        self.reach = s.iter().fold(0.0, |m, s| s.abs().max(m));
        if dot(&s, &y) > CURVATURE * (dot(&s, &s) * dot(&y, &y)).sqrt() {
            self.pairs.push_back(Pair { s, y });
            while self.pairs.len() > self.memory {
                self.pairs.pop_front();
            }
        }
    }
}

impl Lbfgs {
    /// A solver that remembers `memory` pairs. The first trial moves no variable further than `first_step`, that after
    /// a restart no further than the last accepted step did. `metric`, one positive number a variable, is large where a variable must move far to be felt.
    ///
    /// # Panics
    /// When the metric holds a number that is not positive and finite.
    pub fn new(metric: Vec<f64>, memory: usize, first_step: f64) -> Self {
        assert!(metric.iter().all(|m| m.is_finite() && *m > 0.0), "a metric is positive");
        Self { memory, first_step, metric, pairs: VecDeque::new(), reach: first_step, restarts: 0 }
    }

    /// Number of variables.
    pub(super) fn dim(&self) -> usize {
        self.metric.len()
    }

    /// Whether a solver read from a file has these settings and vectors of their length.
    pub(super) fn fits(&self, like: &Self) -> bool {
        let n = like.metric.len();
        (&self.metric, self.memory, self.first_step) == (&like.metric, like.memory, like.first_step)
            && self.pairs.len() <= self.memory
            && self.pairs.iter().all(|p| p.s.len() == n && p.y.len() == n)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(d: &mut [f64], factor: f64, v: &[f64]) {
    d.iter_mut().zip(v).for_each(|(d, v)| *d += factor * v);
}

impl<O, M> Solver<O, Iterate> for Lbfgs<M>
where
    M: Metric,
    O: CostFunction<Param = Vec<f64>, Output = f64> + Gradient<Param = Vec<f64>, Gradient = Vec<f64>>,
{
    fn name(&self) -> &str {
        "L-BFGS"
    }

    fn init(&mut self, problem: &mut Problem<O>, mut state: Iterate) -> Result<(Iterate, Option<KV>), Error> {
        let x = state.take_param().ok_or_else(|| Error::msg("L-BFGS needs an initial point"))?;
        let cost = problem.cost(&x)?;
        let gradient = problem.gradient(&x)?;
        Ok((state.param(x).cost(cost).gradient(gradient), None))
    }

    fn next_iter(&mut self, problem: &mut Problem<O>, mut state: Iterate) -> Result<(Iterate, Option<KV>), Error> {
        let unset = || Error::msg("L-BFGS was not initialised");
        let (x, g) = (state.take_param().ok_or_else(unset)?, state.take_gradient().ok_or_else(unset)?);
        let cost = state.get_cost();
        if g.iter().all(|g| *g == 0.0) {
            let done = TerminationReason::SolverConverged;
            return Ok((state.param(x).gradient(g).terminate_with(done), None));
        }
        let found = loop {
            let d = self.direction(&g);
            if dot(&d, &g) < 0.0 && d.iter().all(|d| d.is_finite()) {
                let line = Line::new(problem, cost);
                if let Some(found) = line.search(&x, &g, cost, d)? {
                    break Some(found);
                }
            }
            if self.pairs.is_empty() {
                break None;
            }
            self.pairs.clear();
            self.restarts += 1;
        };
        let Some((next_cost, next)) = found else {
            let reason = "no step along steepest descent lowers the misfit";
            return Ok((state.param(x).gradient(g).terminate_with(TerminationReason::SolverExit(reason.into())), None));
        };
        let next_gradient = problem.gradient(&next)?;
        let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect();
        self.remember(difference(&next, &x), difference(&next_gradient, &g));
        // once for prev_param and once for param, so that observers of argmin's see both
        Ok((state.param(x).param(next).cost(next_cost).gradient(g).gradient(next_gradient), None))
    }
}

/// The problem along a line; remembers the lowest trial and why a trial could not be used.
struct Line<'a, O> {
    problem: &'a O,
    trials: RefCell<Trials>,
}

struct Trials {
    lowest: f64,
    at: Option<Vec<f64>>,
    not_finite: bool,
    refused: Option<Error>,
}

impl<'a, O> Line<'a, O>
where
    O: CostFunction<Param = Vec<f64>, Output = f64> + Gradient<Param = Vec<f64>, Gradient = Vec<f64>>,
{
    fn new(problem: &'a Problem<O>, cost: f64) -> Self {
        let trials = Trials { lowest: cost, at: None, not_finite: false, refused: None };
        let problem = problem.problem.as_ref().expect("the executor holds the problem between iterations");
        Self { problem, trials: RefCell::new(trials) }
    }

    /// The point that More-Thuente accepts; failing that the lowest trial below `cost`; failing that none.
    /// Errors only when the problem itself refused to be evaluated.
    fn search(self, x: &[f64], g: &[f64], cost: f64, mut d: Vec<f64>) -> Result<Option<(f64, Vec<f64>)>, Error> {
        for _ in 0..8 {
            let mut search = MoreThuenteLineSearch::new().with_width_tolerance(WIDTH)?;
            search.search_direction(d.clone());
            let start = |s: Iterate| s.param(x.to_vec()).gradient(g.to_vec()).cost(cost).max_iters(MAX_TRIALS);
            let outcome = Executor::new(&self, search).configure(start).ctrlc(false).run();
            let mut trials = self.trials.borrow_mut();
            if let Some(error) = trials.refused.take() {
                return Err(error);
            }
            if let Ok(mut result) = outcome
                && let Some(end) = result.state.take_param()
                && result.state.get_cost() < cost
            {
                return Ok(Some((result.state.get_cost(), end)));
            }
            if let Some(at) = trials.at.take() {
                return Ok(Some((trials.lowest, at)));
            }
            if !std::mem::take(&mut trials.not_finite) {
                return Ok(None);
            }
            // the trial left the region where the cost is a number: come closer
            d.iter_mut().for_each(|d| *d *= 0.1);
        }
        Ok(None)
    }
}

impl<O> CostFunction for &Line<'_, O>
where
    O: CostFunction<Param = Vec<f64>, Output = f64>,
{
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, x: &Vec<f64>) -> Result<f64, Error> {
        let mut trials = self.trials.borrow_mut();
        match self.problem.cost(x) {
            Ok(cost) if cost.is_finite() => {
                if cost < trials.lowest {
                    (trials.lowest, trials.at) = (cost, Some(x.clone()));
                }
                Ok(cost)
            }
            Ok(_) => {
                trials.not_finite = true;
                Err(Error::msg("the cost is not finite"))
            }
            Err(error) => {
                let message = error.to_string();
                trials.refused = Some(error);
                Err(Error::msg(message))
            }
        }
    }
}

impl<O> Gradient for &Line<'_, O>
where
    O: Gradient<Param = Vec<f64>, Gradient = Vec<f64>>,
{
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, x: &Vec<f64>) -> Result<Vec<f64>, Error> {
        match self.problem.gradient(x) {
            Ok(g) => Ok(g),
            Err(error) => {
                let message = error.to_string();
                self.trials.borrow_mut().refused = Some(error);
                Err(Error::msg(message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Rosenbrock's valley in n variables; NaN beyond `edge`.
    struct Valley {
        edge: f64,
        calls: Cell<u64>,
    }

    impl CostFunction for Valley {
        type Param = Vec<f64>;
        type Output = f64;
        fn cost(&self, x: &Vec<f64>) -> Result<f64, Error> {
            self.calls.set(self.calls.get() + 1);
            if x.iter().any(|x| x.abs() > self.edge) {
                return Ok(f64::NAN);
            }
            Ok(x.windows(2).map(|p| 100.0 * (p[1] - p[0] * p[0]).powi(2) + (1.0 - p[0]).powi(2)).sum())
        }
    }

    impl Gradient for Valley {
        type Param = Vec<f64>;
        type Gradient = Vec<f64>;
        fn gradient(&self, x: &Vec<f64>) -> Result<Vec<f64>, Error> {
            let mut g = vec![0.0; x.len()];
            for i in 0..x.len() - 1 {
                g[i] -= 400.0 * x[i] * (x[i + 1] - x[i] * x[i]) + 2.0 * (1.0 - x[i]);
                g[i + 1] += 200.0 * (x[i + 1] - x[i] * x[i]);
            }
            Ok(g)
        }
    }

    fn solve(edge: f64, metric: fn(usize) -> f64) -> (Vec<f64>, f64, u64) {
        let n = 8;
        let solver = Lbfgs::new((0..n).map(metric).collect(), 10, 0.1);
        let problem = Valley { edge, calls: Cell::new(0) };
        let result = Executor::new(problem, solver)
            .configure(|s| s.param(vec![-1.2; n]).max_iters(120))
            .ctrlc(false)
            .run()
            .unwrap();
        let calls = result.problem.problem.as_ref().unwrap().calls.get();
        (result.state.get_best_param().unwrap().clone(), result.state.get_best_cost(), calls)
    }

    #[test]
    fn finds_the_minimum_in_an_argmin_executor() {
        for metric in [|_| 1.0, |i| 1.0 + i as f64] {
            let (x, cost, calls) = solve(f64::INFINITY, metric);
            assert!(cost < 1e-16 && x.iter().all(|x| (x - 1.0).abs() < 1e-7), "{x:?} {cost}");
            assert!(calls < 200, "{calls} evaluations");
        }
    }

    #[test]
    fn comes_back_from_where_the_cost_is_no_number() {
        let (x, cost, _) = solve(1.25, |_| 1.0);
        assert!(cost < 1e-12, "{x:?} {cost}");
    }

    #[test]
    fn the_first_trial_moves_no_variable_further_than_told() {
        let solver = Lbfgs::new(vec![1.0, 4.0, 2.0], 5, 30.0);
        assert_eq!(solver.direction(&[2.0, -1.0, 0.0]), [-15.0, 30.0, 0.0]);
    }

    /// `x' A x / 2 - b' x` with a full `A`.
    struct Bowl;

    const A: [[f64; 3]; 3] = [[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 1e3]];

    impl CostFunction for Bowl {
        type Param = Vec<f64>;
        type Output = f64;
        fn cost(&self, x: &Vec<f64>) -> Result<f64, Error> {
            Ok(A.iter().zip(x).map(|(row, xi)| xi * (0.5 * dot(row, x) - 1.0)).sum())
        }
    }

    impl Gradient for Bowl {
        type Param = Vec<f64>;
        type Gradient = Vec<f64>;
        fn gradient(&self, x: &Vec<f64>) -> Result<Vec<f64>, Error> {
            Ok(A.iter().map(|row| dot(row, x) - 1.0).collect())
        }
    }

    #[test]
    fn one_step_is_enough_with_the_inverse_hessian() {
        let matrix = faer::Mat::from_fn(3, 3, |i, j| A[i][j]);
        let solver = Lbfgs::preconditioned(crate::invert::factor::Factor::of(matrix).ok().unwrap(), 5);
        let start = |s: Iterate| s.param(vec![7.0, -3.0, 2.0]).max_iters(1);
        let result = Executor::new(Bowl, solver).configure(start).ctrlc(false).run().unwrap();
        let x = result.state.get_best_param().unwrap().clone();
        assert!(Bowl.gradient(&x).unwrap().iter().all(|g| g.abs() < 1e-9), "{x:?}");
    }

    #[test]
    fn the_newest_pair_is_reproduced() {
        let mut solver = Lbfgs::new(vec![1.0, 3.0, 0.5], 2, 1.0);
        for (s, y) in [([1.0, 0.0, 2.0], [3.0, 1.0, 1.0]), ([0.0, 1.0, -1.0], [-1.0, 2.0, 0.5]), ([1.0; 3], [-1.0; 3])]
        {
            solver.remember(s.to_vec(), y.to_vec());
        }
        assert_eq!(solver.pairs.len(), 2, "the pair of negative curvature is left out");
        // the secant equation: the inverse Hessian maps the newest y to its s
        let d = solver.direction(&[-1.0, 2.0, 0.5]);
        assert!(d.iter().zip([0.0, -1.0, 1.0]).all(|(d, s)| (d - s).abs() < 1e-12), "{d:?}");
    }
}
