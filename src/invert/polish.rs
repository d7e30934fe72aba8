//! The end of a Gauss-Newton step: L-BFGS on the true objective, preconditioned by the step's own factor.
//!
//! Any positive definite matrix serves L-BFGS as the first guess at the inverse Hessian (Nocedal and Wright, 2006, section
//! 7.2). The factor of a Gauss-Newton step is nearly the inverse Hessian itself, so that few pairs make up for the rest: the
//! decimation of the normal matrix, the majorised regularisers, and what of the data is not linear in the model. An evaluation
//! costs a third of a product with the operator, and a tenth or less of another normal matrix.

use super::factor::Factor;
use super::lbfgs::{Iterate, Lbfgs};
use super::newton::Problem;
use super::newton_step::At;
use super::objective::{EvaluationLimits, Halt};
use super::state::State;
use crate::{Error, Model, Result};
use argmin::core::{
    CostFunction, Error as Refusal, Gradient, Problem as Minimised, Solver, State as _, TerminationStatus,
};
use std::cell::RefCell;

/// Pairs that are remembered.
const MEMORY: usize = 30;
/// Iterations over which, and the share by which, the objective must fall.
const STALL: (usize, f64) = (4, 0.01);

/// The objective of a step as argmin sees it, over the change of the unknowns, in m/s, from the model that it begins with.
struct Objective<'o, 'a, 'i> {
    problem: &'o Problem<'a, 'i>,
    base: &'o Model,
    noise: f64,
    limits: &'o EvaluationLimits<'o>,
    live: RefCell<Live<'o>>,
}

struct Live<'o> {
    state: &'o mut State,
    /// Evaluations that are left.
    left: u64,
    /// What refused one, if that was not the want of these.
    halt: Option<Halt>,
    /// The points of the running line search.
    points: Vec<(Vec<f64>, At)>,
    fatal: Option<Error>,
}

impl Problem<'_, '_> {
    /// Minimises the objective from a point on, by at most as many evaluations as the stage gives and the limits leave: the lowest
    /// point, and the limit, if one cut it off. Errors where the propagator does.
    pub(super) fn polish(
        &self,
        at: At,
        factor: Factor,
        noise: f64,
        limits: &EvaluationLimits,
        state: &mut State,
    ) -> Result<(At, Option<Halt>)> {
        let left = self.newton.polish;
        let base = &at.model.clone();
        let x = self.space.pull(&Model::zeros(base.vp.dim()));
        let live = Live { state, left, points: vec![(x.clone(), at)], halt: None, fatal: None };
        let objective = Objective { problem: self, base, noise, limits, live: RefCell::new(live) };
        let mut solver = Lbfgs::preconditioned(factor, MEMORY);
        let mut costs = vec![objective.point(&x)?.cost(noise)];
        let mut now = x;
        loop {
            let cost = costs[costs.len() - 1];
            let gradient = objective.slope(&now)?;
            let iterate = Iterate::new().param(now.clone()).gradient(gradient).cost(cost);
            let next = solver.next_iter(&mut Minimised::new(&objective), iterate);
            if let Some(error) = objective.live.borrow_mut().fatal.take() {
                return Err(error);
            }
            // refused for want of evaluations or time: the last iterate stands
            let Ok((mut next, _)) = next else { break };
            if next.get_termination_status() != &TerminationStatus::NotTerminated {
                break;
            }
            now = next.take_param().expect("set by the solver");
            costs.push(next.get_cost());
            objective.forget_all_but(&now);
            let (window, decrease) = STALL;
            let stalled =
                costs.len().checked_sub(window + 1).is_some_and(|i| costs[i] - next.get_cost() < decrease * costs[i]);
            if stalled {
                break;
            }
        }
        self.inversion.curvature()?.keep(solver.into_metric().into_memory());
        // a search that was cut off may have found a lower point than the last iterate
        let Live { points, halt, .. } = objective.live.into_inner();
        let lowest = points.into_iter().map(|(_, at)| at).min_by(|a, b| a.cost(noise).total_cmp(&b.cost(noise)));
        Ok((lowest.expect("the last iterate is among them"), halt))
    }
}

impl Objective<'_, '_, '_> {
    /// The evaluated point at `x`. Errors where nothing may be evaluated any more, and where the propagator does.
    fn point(&self, x: &[f64]) -> Result<At> {
        let same = |p: &Vec<f64>| p.iter().zip(x).all(|(a, b)| a.to_bits() == b.to_bits());
        let mut live = self.live.borrow_mut();
        if let Some((_, at)) = live.points.iter().find(|(p, _)| same(p)) {
            return Ok(at.clone());
        }
        if live.left > 0 {
            live.halt = self.limits.halt(&live.state.ledger, &self.problem.clock);
        }
        if live.left == 0 || live.halt.is_some() {
            return Err(Error::Usage("no evaluation is left".into()));
        }
        live.left -= 1;
        let model = self.problem.bounded(&self.base.plus(1.0, &self.problem.space.push(x)));
        match self.problem.evaluate(&model, live.state) {
            Ok(at) => {
                live.points.push((x.to_vec(), at.clone()));
                Ok(at)
            }
            Err(error) => {
                live.fatal = Some(error);
                Err(Error::Numerical("the propagator failed".into()))
            }
        }
    }

    /// The derivative by the unknowns; what the bounds cut off has none.
    fn slope(&self, x: &[f64]) -> Result<Vec<f64>> {
        let at = self.point(x)?;
        let mut g = Model::zeros(at.model.vp.dim()).plus(self.noise.powi(-2), &at.evaluation.gradient);
        for r in &self.problem.regularisers {
            g = g.plus(1.0, &r.gradient(&at.model));
        }
        let free = self.base.plus(1.0, &self.problem.space.push(x));
        g.vp.zip_mut_with(&(&free.vp - &at.model.vp), |g, cut| *g = if *cut == 0.0 { *g } else { 0.0 });
        if free.vmin != at.model.vmin {
            g.vmin = 0.0;
        }
        Ok(self.problem.space.pull(&g))
    }

    fn forget_all_but(&self, x: &[f64]) {
        self.live.borrow_mut().points.retain(|(p, _)| p == x);
    }
}

impl CostFunction for &Objective<'_, '_, '_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, x: &Vec<f64>) -> std::result::Result<f64, Refusal> {
        Ok(self.point(x)?.cost(self.noise))
    }
}

impl Gradient for &Objective<'_, '_, '_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, x: &Vec<f64>) -> std::result::Result<Vec<f64>, Refusal> {
        Ok(self.slope(x)?)
    }
}
