//! The linear part of a Gauss-Newton step: the unknowns' change that minimises the linearised data and the regularisers.

use super::linear::Linear;
use super::newton::{Problem, VMIN_STEP};
use super::newton_step::At;
use crate::curvature::Symmetric;
use crate::{Error, Model, Result};
use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, Side};

/// What is added to the diagonal, as a share of its largest entry, until the matrix is positive definite.
const RIDGES: [f64; 4] = [0.0, 1e-12, 1e-10, 1e-8];
/// Mean change of an unknown, m/s, below which the inner steps have converged.
const STILL: f64 = 0.02;

/// Newton steps beyond the wanted number that may follow because unknowns left the bounds and are held there.
const HOLDS: usize = 2;
/// How much stiffer than the data an unknown is held.
const STIFF: f64 = 1e4;

/// An unknown that is held: maps of real families have whole areas at a bound, and cutting a step off there would leave the
/// others with a change that was meant to go with it.
struct Held {
    unknown: usize,
    /// The change that takes it to the bound.
    change: f64,
    weight: f64,
}

/// What the linear part of a step found.
pub(super) struct Solution {
    /// The unknowns' change.
    pub x: Vec<f64>,
    /// Of the whole curvature.
    pub factor: Llt<f64>,
    /// The curvature without the data's.
    pub prior: Symmetric,
}

impl Problem<'_, '_> {
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

    /// The unknowns' change that minimises the linearised data and the regularisers, by Newton steps on the majorised
    /// regularisers; unknowns at a bound are held there as far as the gradient pushes them out (Bertsekas 1982, projected Newton
    /// methods), others that leave the bounds from the next of these steps on. The factor is the last of these steps'.
    pub(super) fn solve(&self, from: &At, h: &Symmetric, noise: f64) -> Result<Solution> {
        let (weight, inner) = (noise.powi(-2), self.newton.inner);
        let mut x = vec![0.0; h.len()];
        let mut held = self.pushed_out(from, h, weight);
        for step in 1.. {
            let (prior, factor, moved) = self.newton_step(from, &mut x, h, weight, &held)?;
            let beyond = if step < inner + HOLDS { self.beyond(from, &x, h, weight, &held) } else { vec![] };
            let done = beyond.is_empty() && (step >= inner || moved < STILL);
            held.extend(beyond);
            if done {
                if self.newton.exact > 0 {
                    x = self.correct(from, x, (&prior, &factor), weight, &held)?;
                }
                return Ok(Solution { x, factor, prior });
            }
        }
        unreachable!("steps end when their number is reached")
    }

    /// The unknowns at a bound that the gradient pushes beyond it.
    fn pushed_out(&self, from: &At, h: &Symmetric, weight: f64) -> Vec<Held> {
        let (low, high) = self.inversion.settings().bounds;
        let Some(velocities) = self.space.velocities(&from.model) else { return vec![] };
        let still = vec![0.0; h.len()];
        let gradient = self.model_gradient(from, &still, &still, weight, &[]);
        let pushed = |v: f64, g: f64| (v <= low && g > 0.0) || (v >= high && g < 0.0);
        let all = velocities.iter().zip(&gradient).enumerate();
        all.filter(|(_, (v, g))| pushed(**v, **g)).map(|(unknown, _)| hold(unknown, 0.0, h, weight)).collect()
    }

    /// The unknowns not yet held that a change takes out of the bounds.
    fn beyond(&self, from: &At, x: &[f64], h: &Symmetric, weight: f64, held: &[Held]) -> Vec<Held> {
        let (low, high) = self.inversion.settings().bounds;
        let Some(velocities) = self.space.velocities(&from.model) else { return vec![] };
        let leaves = |(unknown, v): (usize, &f64)| {
            let linear = self.newton.linear;
            let change = linear.step(*v, linear.moved(*v, x[unknown]).clamp(low, high));
            ((change - x[unknown]).abs() > STILL).then(|| hold(unknown, change, h, weight))
        };
        let known = |unknown| held.iter().any(|k| k.unknown == unknown);
        velocities.iter().enumerate().filter_map(leaves).filter(|k| !known(k.unknown)).collect()
    }

    /// A Newton step of a change of the unknowns towards the minimum: the curvature without the data's, the factor of both,
    /// and the mean change of an unknown.
    fn newton_step(
        &self,
        from: &At,
        x: &mut [f64],
        h: &Symmetric,
        weight: f64,
        held: &[Held],
    ) -> Result<(Symmetric, Llt<f64>, f64)> {
        let prior = self.prior_curvature(from, x, held);
        let mut matrix = prior.clone();
        matrix.add(weight, h);
        let gradient = self.model_gradient(from, x, &h.times(x), weight, held);
        let factor = self.factor(&mut matrix.lower)?;
        let step = preconditioned(&factor, &gradient);
        x.iter_mut().zip(&step).for_each(|(x, s)| *x -= s);
        let moved = step.iter().map(|s| s.abs()).sum::<f64>() / h.len() as f64;
        Ok((prior, factor, moved))
    }

    /// The derivatives of the cells' velocities by their steps, from one model to another; none where all are one.
    fn slopes(&self, from: &Model, to: &Model) -> Vec<f64> {
        match self.newton.linear {
            Linear::Velocity => vec![],
            linear => from.vp.iter().zip(&to.vp).map(|(v, to)| linear.slope(*v, *to)).collect(),
        }
    }

    /// The regularisers' curvature at a change of the unknowns, and what keeps `vmin` from running away.
    fn prior_curvature(&self, from: &At, x: &[f64], held: &[Held]) -> Symmetric {
        let at = self.moved(&from.model, x);
        let mut lower = self.space.curvature(&self.regularisers, &at, &self.slopes(&from.model, &at));
        let n = lower.ncols();
        lower[(n - 1, n - 1)] += VMIN_STEP.powi(-2);
        held.iter().for_each(|k| lower[(k.unknown, k.unknown)] += k.weight);
        Symmetric { lower }
    }

    /// The derivative of the linearised objective at a change `x`, with `hx = J' J x`.
    fn model_gradient(&self, from: &At, x: &[f64], hx: &[f64], weight: f64, held: &[Held]) -> Vec<f64> {
        let at = self.moved(&from.model, x);
        let slopes = self.slopes(&from.model, &at);
        let mut gradient = self.space.pull(&from.evaluation.gradient);
        gradient.iter_mut().zip(hx).for_each(|(g, hx)| *g = (*g + hx) * weight);
        if let (Some(g), Some(x)) = (gradient.last_mut(), x.last()) {
            *g += x / VMIN_STEP.powi(2);
        }
        held.iter().for_each(|k| gradient[k.unknown] += k.weight * (x[k.unknown] - k.change));
        for r in &self.regularisers {
            let mut prior = r.gradient(&at);
            prior.vp.iter_mut().zip(&slopes).for_each(|(g, s)| *g *= s);
            let prior = self.space.pull(&prior);
            gradient.iter_mut().zip(prior).for_each(|(g, p)| *g += p);
        }
        gradient
    }

    /// `J' J x` by the operator itself, or `J' F' F J x`.
    fn exact_product(&self, model: &Model, x: &[f64]) -> Result<Vec<f64>> {
        let engine = self.inversion.engine(self.stage);
        let one = std::slice::from_ref(model);
        let mut data = engine.born(one, &[self.space.push(x)])?.remove(0);
        self.data.mask.apply(&mut data);
        if let Some(filter) = &self.filter {
            data = filter.record(&filter.record(&data, &self.data.mask), &self.data.mask);
        }
        Ok(self.space.pull(&engine.adjoint(one, &[data])?.remove(0)))
    }

    /// Corrects a change for what is approximate in the normal matrix: conjugate gradients with the operator itself, the
    /// factor their preconditioner.
    fn correct(
        &self,
        from: &At,
        mut x: Vec<f64>,
        (prior, factor): (&Symmetric, &Llt<f64>),
        weight: f64,
        held: &[Held],
    ) -> Result<Vec<f64>> {
        let hx = self.exact_product(&from.model, &x)?;
        let mut residual = self.model_gradient(from, &x, &hx, weight, held);
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

/// Holds an unknown much more stiffly than the data do.
fn hold(unknown: usize, change: f64, h: &Symmetric, weight: f64) -> Held {
    Held { unknown, change, weight: STIFF * (1.0 + weight * h.lower[(unknown, unknown)]) }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn preconditioned(factor: &Llt<f64>, x: &[f64]) -> Vec<f64> {
    let mut y = Mat::from_fn(x.len(), 1, |i, _| x[i]);
    factor.solve_in_place(y.as_mut());
    y.col_as_slice(0).to_vec()
}
