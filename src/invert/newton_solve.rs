//! The linear part of a Gauss-Newton step: the unknowns' change that minimises the linearised data and the regularisers.

use super::newton::{At, Problem, VMIN_STEP};
use crate::curvature::Symmetric;
use crate::{Error, Model, Result};
use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, Side};

/// What is added to the diagonal, as a share of its largest entry, until the matrix is positive definite.
const RIDGES: [f64; 4] = [0.0, 1e-12, 1e-10, 1e-8];
/// Mean change of an unknown, m/s, below which the inner steps have converged.
const STILL: f64 = 0.02;

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

    /// The unknowns' change that minimises the linearised data and the regularisers.
    pub(super) fn solve(&self, from: &At, h: &Symmetric, noise: f64) -> Result<Vec<f64>> {
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
