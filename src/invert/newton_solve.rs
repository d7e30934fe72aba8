//! The linear part of a Gauss-Newton step: the unknowns' change that minimises the linearised data and the regularisers.

use super::conjugate_gradients::{ConjugateGradients, conjugate_gradients};
use super::factor::Factor;
use super::linear::Linear;
use super::newton::{Problem, VMIN_STEP};
use super::newton_step::At;
use super::objective::Halt;
use crate::curvature::Symmetric;
use crate::{Error, Model, Result};
use faer::Mat;

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
    /// Of the whole curvature, or of one like it.
    pub factor: Factor,
    /// That of the data; where the step ends in areas, the whole.
    pub curvature: Symmetric,
}

/// The curvature of an inner step's objective.
struct Quadratic<'q, 'a, 'i> {
    problem: &'q Problem<'a, 'i>,
    /// That of the data, and what it is multiplied by.
    h: &'q Symmetric,
    weight: f64,
    /// Where the regularisers are majorised, and the derivatives of the cells' velocities by their unknowns.
    at: Model,
    slopes: Vec<f64>,
    held: &'q [Held],
}

impl Quadratic<'_, '_, '_> {
    /// Makes it a matrix's lower triangle.
    fn fill(&self, lower: &mut Mat<f64>) {
        let n = self.h.len();
        for j in 0..n {
            let to = &mut lower.col_as_slice_mut(j)[j..];
            to.iter_mut().zip(&self.h.lower.col_as_slice(j)[j..]).for_each(|(t, h)| *t = self.weight * h);
        }
        self.problem.add_prior_curvature((&self.at, &self.slopes), self.held, lower);
    }

    /// Its product with a vector, given that of the data's part.
    fn product(&self, hx: &[f64], x: &[f64]) -> Vec<f64> {
        let (space, regularisers) = (&self.problem.space, &self.problem.regularisers);
        let mut y = space.curvature_times(regularisers, &self.at, &self.slopes, x);
        y.iter_mut().zip(hx).for_each(|(y, hx)| *y += self.weight * hx);
        y[x.len() - 1] += x[x.len() - 1] * VMIN_STEP.powi(-2);
        self.held.iter().for_each(|k| y[k.unknown] += k.weight * x[k.unknown]);
        y
    }

    /// Its Cholesky factor, of a matrix with as much on its diagonal as rounding makes necessary.
    fn factor(&self, mut memory: Mat<f64>) -> Result<Factor> {
        for ridge in RIDGES {
            self.fill(&mut memory);
            let n = memory.nrows();
            let largest = (0..n).map(|i| memory[(i, i)]).fold(0.0, f64::max);
            (0..n).for_each(|i| memory[(i, i)] += ridge * largest);
            memory = match Factor::of(memory) {
                Ok(factor) => return Ok(factor),
                Err(memory) => memory,
            };
        }
        let what = "the normal matrix is not positive definite; give the stage a regulariser";
        Err(Error::Numerical(format!("stage \"{}\": {what}", self.problem.stage.name)))
    }
}

impl Problem<'_, '_> {
    /// The unknowns' change that minimises the linearised data and the regularisers, by Newton steps on the majorised
    /// regularisers; unknowns at a bound are held there as far as the gradient pushes them out (Bertsekas 1982, projected Newton
    /// methods), others that leave the bounds from the next of these steps on. The first one's matrix is factorised; where the
    /// factor serves as a preconditioner afterwards, it is the last one's. Or what forbids it, which is asked before each of them.
    pub(super) fn solve(
        &self,
        from: &At,
        mut h: Symmetric,
        noise: f64,
        halt: &dyn Fn() -> Option<Halt>,
    ) -> Result<std::result::Result<Solution, Halt>> {
        let (weight, inner) = (noise.powi(-2), self.newton.inner);
        let mut x = vec![0.0; h.len()];
        let mut held = self.pushed_out(from, &h, weight);
        let mut factor = None;
        for step in 1.. {
            if let Some(halt) = halt() {
                return Ok(Err(halt));
            }
            let at = self.moved(&from.model, &x);
            let slopes = self.slopes(&from.model, &at);
            let quadratic = Quadratic { problem: self, h: &h, weight, at, slopes, held: &held };
            let (moved, fresh) = self.newton_step(from, &mut x, &quadratic, &mut factor)?;
            let beyond = if step < inner + HOLDS { self.beyond(from, &x, &h, weight, &held) } else { vec![] };
            let done = beyond.is_empty() && (step >= inner || moved < STILL);
            if done {
                let factor = match factor.take() {
                    Some(factor) if fresh || !self.reuses_factor() => factor,
                    other => quadratic.factor(self.memory(other, h.len())?)?,
                };
                if self.newton.exact > 0 {
                    x = match self.correct(from, x, (&quadratic, &factor), halt)? {
                        Ok(x) => x,
                        Err(halt) => return Ok(Err(halt)),
                    };
                }
                if self.newton.areas.is_some() {
                    let Quadratic { at, slopes, .. } = quadratic;
                    h.scale(weight);
                    self.add_prior_curvature((&at, &slopes), &held, &mut h.lower);
                }
                return Ok(Ok(Solution { x, factor, curvature: h }));
            }
            held.extend(beyond);
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

    /// Memory for a factor: that of the last one.
    fn memory(&self, last: Option<Factor>, order: usize) -> Result<Mat<f64>> {
        let curvature = self.inversion.curvature()?;
        Ok(last.map_or_else(|| curvature.take(order), Factor::into_memory))
    }

    /// Whether the factor serves as a preconditioner once the step is solved for.
    fn reuses_factor(&self) -> bool {
        self.newton.exact > 0 || self.newton.polish > 0
    }

    /// A Newton step of a change of the unknowns towards the minimum: the mean change of an unknown, and whether the matrix was
    /// factorised. It is where there is no factor yet; the one of an earlier step preconditions conjugate gradients, since only the
    /// regularisers' majorants differ.
    fn newton_step(
        &self,
        from: &At,
        x: &mut [f64],
        quadratic: &Quadratic,
        factor: &mut Option<Factor>,
    ) -> Result<(f64, bool)> {
        let &Quadratic { h, weight, held, .. } = quadratic;
        let gradient = self.model_gradient(from, x, &h.times(x), weight, held);
        let known: Vec<(usize, f64)> = held.iter().map(|k| (k.unknown, x[k.unknown] - k.change)).collect();
        // which area a cell belongs to is a matter of nats: steps that end in areas are solved for exactly
        let last = factor.as_ref().filter(|_| self.newton.areas.is_none());
        let times = |x: &[f64]| quadratic.product(&h.times(x), x);
        let by_last = last.and_then(|factor| conjugate_gradients(times, factor, &gradient, &known));
        let fresh = by_last.is_none();
        let step = match by_last {
            Some(step) => step,
            None => {
                let memory = self.memory(factor.take(), h.len())?;
                factor.insert(quadratic.factor(memory)?).solve(&gradient)
            }
        };
        x.iter_mut().zip(&step).for_each(|(x, s)| *x -= s);
        Ok((step.iter().map(|s| s.abs()).sum::<f64>() / h.len() as f64, fresh))
    }

    /// The derivatives of the cells' velocities by their steps, from one model to another; none where all are one.
    fn slopes(&self, from: &Model, to: &Model) -> Vec<f64> {
        match self.newton.linear {
            Linear::Velocity => vec![],
            linear => from.vp.iter().zip(&to.vp).map(|(v, to)| linear.slope(*v, *to)).collect(),
        }
    }

    /// Adds the regularisers' curvature at a model, given the derivatives of velocities there by their unknowns, and what keeps `vmin`
    /// from running away.
    fn add_prior_curvature(&self, (at, slopes): (&Model, &[f64]), held: &[Held], to: &mut Mat<f64>) {
        self.space.add_curvature(&self.regularisers, at, slopes, to.as_mut());
        let n = to.ncols();
        to[(n - 1, n - 1)] += VMIN_STEP.powi(-2);
        held.iter().for_each(|k| to[(k.unknown, k.unknown)] += k.weight);
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
        x: Vec<f64>,
        (quadratic, factor): (&Quadratic, &Factor),
        halt: &dyn Fn() -> Option<Halt>,
    ) -> Result<std::result::Result<Vec<f64>, Halt>> {
        let hx = self.exact_product(&from.model, &x)?;
        let mut residual = self.model_gradient(from, &x, &hx, quadratic.weight, quadratic.held);
        residual.iter_mut().for_each(|r| *r = -*r);
        let mut gradients = ConjugateGradients::new(factor, x, residual, &[]);
        for _ in 0..self.newton.exact {
            if let Some(halt) = halt() {
                return Ok(Err(halt));
            }
            let direction = &gradients.direction;
            let product = quadratic.product(&self.exact_product(&from.model, direction)?, direction);
            if !gradients.step(product) {
                break;
            }
        }
        Ok(Ok(gradients.x))
    }
}

/// Holds an unknown much more stiffly than the data do.
fn hold(unknown: usize, change: f64, h: &Symmetric, weight: f64) -> Held {
    Held { unknown, change, weight: STIFF * (1.0 + weight * h.lower[(unknown, unknown)]) }
}
