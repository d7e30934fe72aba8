//! Projected L-BFGS: argmin's solver interface and line search, bounds on every variable.
//!
//! A variable that sits on its bound and is pushed outwards is held; on the others the two-loop recursion (Nocedal and
//! Wright, 2006, algorithm 7.4) runs with inner products over those variables alone, which makes the direction a
//! descent direction for the bounded problem (Bertsekas, 1982). argmin's More-Thuente search then runs along the bent
//! line `P(x + t d)`, `P` being the projection onto the bounds, whose derivative is that of the variables inside.
//!
//! argmin's own L-BFGS knows no bounds, keeps pairs of negative curvature after a line search that gave up, and loses
//! the problem when one fails. Its Hager-Zhang search evaluates both ends of its bracket and the trial step before the
//! first test, so no iteration takes fewer than two evaluations; More-Thuente takes one when the first step is good.

use argmin::core::{
    CostFunction, Error, Executor, Gradient, IterState, KV, LineSearch, Problem, Solver, State, TerminationReason,
};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::VecDeque;

/// argmin's state for this solver: variables, gradient, cost.
pub type Iterate = IterState<Vec<f64>, Vec<f64>, (), (), (), f64>;

/// The solver: bounds, memory and the pairs it has gathered. All that a resumed run needs, next to the iterate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProjectedLbfgs {
    lower: Vec<f64>,
    upper: Vec<f64>,
    memory: usize,
    first_step: f64,
    pairs: VecDeque<Pair>,
    restarts: u64,
}

/// Step and change of gradient of an accepted iteration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pair {
    s: Vec<f64>,
    y: Vec<f64>,
}

/// Trial points of one line search at most.
const MAX_TRIALS: u64 = 20;
/// Relative width at which the line search gives up narrowing its bracket.
const WIDTH: f64 = 1e-4;
/// A pair must have `s . y` above this times `|s| |y|`, or the curvature it tells is noise.
const CURVATURE: f64 = 1e-10;

impl ProjectedLbfgs {
    /// A solver between `lower` and `upper` (inclusive; equal where a variable is fixed) that remembers `memory` pairs.
    /// The first trial, and that after a restart, moves no variable further than `first_step`.
    ///
    /// # Panics
    /// When the bounds differ in length or cross.
    pub fn new(lower: Vec<f64>, upper: Vec<f64>, memory: usize, first_step: f64) -> Self {
        assert!(lower.len() == upper.len() && lower.iter().zip(&upper).all(|(l, u)| l <= u), "bounds cross");
        Self { lower, upper, memory, first_step, pairs: VecDeque::new(), restarts: 0 }
    }

    /// How often the memory was cleared because no step along the direction lowered the cost.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// The nearest point within the bounds.
    pub fn project(&self, x: &[f64]) -> Vec<f64> {
        x.iter().zip(&self.lower).zip(&self.upper).map(|((x, l), u)| x.clamp(*l, *u)).collect()
    }

    /// Whether a solver read from a file fits `dim` variables and these settings.
    pub(super) fn fits(&self, like: &Self) -> bool {
        let n = like.lower.len();
        (&self.lower, &self.upper, self.memory) == (&like.lower, &like.upper, like.memory)
            && self.first_step == like.first_step
            && self.pairs.len() <= self.memory
            && self.pairs.iter().all(|p| p.s.len() == n && p.y.len() == n)
    }

    /// Variables that may move: not on a bound with the descent pointing out of it.
    fn free(&self, x: &[f64], g: &[f64]) -> Vec<bool> {
        let bounds = self.lower.iter().zip(&self.upper);
        x.iter()
            .zip(g)
            .zip(bounds)
            .map(|((x, g), (l, u))| l < u && !(x <= l && *g > 0.0) && !(x >= u && *g < 0.0))
            .collect()
    }

    /// Minus the quasi-Newton inverse times the gradient, over the free variables; zero elsewhere.
    fn direction(&self, g: &[f64], free: &[bool]) -> Vec<f64> {
        let dot = |a: &[f64], b: &[f64]| -> f64 {
            a.iter().zip(b).zip(free).map(|((a, b), &f)| if f { a * b } else { 0.0 }).sum()
        };
        let curved: Vec<(&Pair, f64, f64)> = self
            .pairs
            .iter()
            .map(|p| (p, dot(&p.s, &p.y), dot(&p.y, &p.y)))
            .filter(|(p, sy, yy)| *sy > CURVATURE * (dot(&p.s, &p.s) * yy).sqrt())
            .collect();
        let mut d: Vec<f64> = g.iter().zip(free).map(|(g, &f)| if f { -g } else { 0.0 }).collect();
        let mut weights = Vec::with_capacity(curved.len());
        for (p, sy, _) in curved.iter().rev() {
            let a = dot(&p.s, &d) / sy;
            add(&mut d, -a, &p.y, free);
            weights.push(a);
        }
        match curved.last() {
            Some((_, sy, yy)) => d.iter_mut().for_each(|d| *d *= sy / yy),
            None => {
                let longest = d.iter().fold(0.0f64, |m, d| m.max(d.abs()));
                d.iter_mut().for_each(|d| *d *= self.first_step / longest);
            }
        }
        for ((p, sy, _), a) in curved.iter().zip(weights.iter().rev()) {
            let b = dot(&p.y, &d) / sy;
            add(&mut d, a - b, &p.s, free);
        }
        d
    }

    fn remember(&mut self, s: Vec<f64>, y: Vec<f64>) {
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        if dot(&s, &y) > CURVATURE * (dot(&s, &s) * dot(&y, &y)).sqrt() {
            self.pairs.push_back(Pair { s, y });
            while self.pairs.len() > self.memory {
                self.pairs.pop_front();
            }
        }
    }
}

fn add(d: &mut [f64], factor: f64, v: &[f64], free: &[bool]) {
    for ((d, v), &f) in d.iter_mut().zip(v).zip(free) {
        if f {
            *d += factor * v;
        }
    }
}

impl<O> Solver<O, Iterate> for ProjectedLbfgs
where
    O: CostFunction<Param = Vec<f64>, Output = f64> + Gradient<Param = Vec<f64>, Gradient = Vec<f64>>,
{
    fn name(&self) -> &str {
        "projected L-BFGS"
    }

    fn init(&mut self, problem: &mut Problem<O>, mut state: Iterate) -> Result<(Iterate, Option<KV>), Error> {
        let x = state.take_param().ok_or_else(|| Error::msg("projected L-BFGS needs an initial point"))?;
        let x = self.project(&x);
        let cost = problem.cost(&x)?;
        let gradient = problem.gradient(&x)?;
        Ok((state.param(x).cost(cost).gradient(gradient), None))
    }

    fn next_iter(&mut self, problem: &mut Problem<O>, mut state: Iterate) -> Result<(Iterate, Option<KV>), Error> {
        let unset = || Error::msg("projected L-BFGS was not initialised");
        let (x, g) = (state.take_param().ok_or_else(unset)?, state.take_gradient().ok_or_else(unset)?);
        let cost = state.get_cost();
        let free = self.free(&x, &g);
        if !g.iter().zip(&free).any(|(g, &f)| f && *g != 0.0) {
            let done = TerminationReason::SolverConverged;
            return Ok((state.param(x).gradient(g).terminate_with(done), None));
        }
        let found = loop {
            let d = self.direction(&g, &free);
            let slope: f64 = d.iter().zip(&g).map(|(d, g)| d * g).sum();
            if slope < 0.0 && d.iter().all(|d| d.is_finite()) {
                let bent = BentLine::new(problem, self, cost);
                if let Some(found) = bent.search(&x, &g, cost, d)? {
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

/// The problem along `P(x + t d)`; remembers the lowest trial and why a trial could not be used.
struct BentLine<'a, O> {
    problem: &'a O,
    solver: &'a ProjectedLbfgs,
    trials: RefCell<Trials>,
}

struct Trials {
    lowest: f64,
    at: Option<Vec<f64>>,
    not_finite: bool,
    refused: Option<Error>,
}

impl<'a, O> BentLine<'a, O>
where
    O: CostFunction<Param = Vec<f64>, Output = f64> + Gradient<Param = Vec<f64>, Gradient = Vec<f64>>,
{
    fn new(problem: &'a Problem<O>, solver: &'a ProjectedLbfgs, cost: f64) -> Self {
        let trials = Trials { lowest: cost, at: None, not_finite: false, refused: None };
        let problem = problem.problem.as_ref().expect("the executor holds the problem between iterations");
        Self { problem, solver, trials: RefCell::new(trials) }
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
                return Ok(Some((result.state.get_cost(), self.solver.project(&end))));
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

impl<O> CostFunction for &BentLine<'_, O>
where
    O: CostFunction<Param = Vec<f64>, Output = f64>,
{
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, x: &Vec<f64>) -> Result<f64, Error> {
        let at = self.solver.project(x);
        let mut trials = self.trials.borrow_mut();
        match self.problem.cost(&at) {
            Ok(cost) if cost.is_finite() => {
                if cost < trials.lowest {
                    (trials.lowest, trials.at) = (cost, Some(at));
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

impl<O> Gradient for &BentLine<'_, O>
where
    O: Gradient<Param = Vec<f64>, Gradient = Vec<f64>>,
{
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, x: &Vec<f64>) -> Result<Vec<f64>, Error> {
        let at = self.solver.project(x);
        match self.problem.gradient(&at) {
            // a variable that the projection holds does not move with the step
            Ok(g) => Ok(g.iter().zip(x).zip(&at).map(|((g, x), at)| if x == at { *g } else { 0.0 }).collect()),
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

    fn solve(upper: f64, edge: f64) -> (Vec<f64>, f64, u64) {
        let n = 8;
        let solver = ProjectedLbfgs::new(vec![-2.0; n], vec![upper; n], 10, 0.1);
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
        let (x, cost, calls) = solve(2.0, f64::INFINITY);
        assert!(cost < 1e-16 && x.iter().all(|x| (x - 1.0).abs() < 1e-7), "{x:?} {cost}");
        assert!(calls < 200, "{calls} evaluations");
    }

    #[test]
    fn holds_variables_at_an_active_bound_exactly() {
        let (x, cost, _) = solve(0.8, f64::INFINITY);
        assert_eq!(x[0], 0.8);
        assert!(x.iter().all(|x| *x <= 0.8));
        // no variable inside the bounds still slopes, none on a bound wants back in
        let problem = Valley { edge: f64::INFINITY, calls: Cell::new(0) };
        let g = problem.gradient(&x).unwrap();
        for (x, g) in x.iter().zip(&g) {
            assert!(if *x == 0.8 { *g < 0.0 } else { g.abs() < 1e-5 }, "{x} {g} at {cost}");
        }
    }

    #[test]
    fn comes_back_from_where_the_cost_is_no_number() {
        let (x, cost, _) = solve(2.0, 1.25);
        assert!(cost < 1e-12, "{x:?} {cost}");
    }
}
