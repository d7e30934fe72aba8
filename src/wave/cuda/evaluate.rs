//! Misfits and gradients of a batch: which kernels run in which order, and what is done on the host.

use super::lane::Lane;
use super::params::{Params, misfit};
use super::{Cuda, Sums};
use crate::misfit::{FilteredL2, MisfitSpec};
use crate::{Gather, Misfit, Model, Observed, Result};
use ndarray::{Array2, Array3, ArrayView2, Axis, s};
use std::ops::Range;

/// A misfit in the kernels' numbers; `None` is evaluated on the host.
pub struct Coded {
    number: i32,
    parameters: [f64; 2],
    filter: [f64; 6],
}

impl Coded {
    /// The code of a misfit that has a name.
    pub fn new(spec: Option<MisfitSpec>, dt: f64) -> Result<Option<Self>> {
        let code = |number, a, b| Some(Self { number, parameters: [a, b], filter: [0.0; 6] });
        Ok(match spec {
            Some(MisfitSpec::L2) => code(misfit::L2, 0.0, 0.0),
            Some(MisfitSpec::L1(eps)) => code(misfit::L1, eps, 0.0),
            Some(MisfitSpec::Huber(delta)) => code(misfit::HUBER, delta, 0.0),
            Some(MisfitSpec::StudentT(scale, nu)) => code(misfit::STUDENT, scale, nu),
            Some(MisfitSpec::LowPass(corner)) => {
                let filter = FilteredL2::new(corner, dt)?.coefficients();
                Some(Self { number: misfit::LOWPASS, parameters: [0.0; 2], filter })
            }
            Some(MisfitSpec::Own) | None => None,
        })
    }
}

/// What a model is compared with: an observed gather under a misfit, or the data vector of an adjoint product.
pub enum Target<'a> {
    Observed(&'a [Observed], &'a dyn Misfit, Option<Coded>),
    Vector(&'a [Gather]),
}

/// One model's part of a result, summed over shots.
pub struct Summed {
    /// The gradient.
    pub gradient: Model,
    /// The misfit's value.
    pub value: f64,
    /// Squared residuals that count.
    pub squares: f64,
}

impl Cuda {
    /// Misfit and gradient of every model against its target.
    pub(super) fn evaluate(&self, models: &[Model], target: &Target) -> Result<Vec<Summed>> {
        self.check(models)?;
        let sums = match target {
            Target::Observed(_, misfit, _) if misfit.band_limited() => &self.sparse,
            _ => &self.full,
        };
        let shape = self.plan.survey.map_shape();
        let mut out: Vec<Summed> =
            models.iter().map(|_| Summed { gradient: Model::zeros(shape), value: 0.0, squares: 0.0 }).collect();
        self.launches(models.len(), sums.count, |lane, m, shots| {
            let numbers = self.evaluate_launch(lane, &models[m.clone()], target, m.clone(), shots.clone(), sums)?;
            let cells = shape.0 * shape.1;
            for (i, shot) in numbers.chunks(cells + 3).enumerate() {
                let sum = &mut out[m.start + i / shots.len()];
                sum.gradient.vp.iter_mut().zip(shot).for_each(|(to, from)| *to += from);
                sum.gradient.vmin += shot[cells];
                sum.value += shot[cells + 1];
                sum.squares += shot[cells + 2];
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn evaluate_launch(
        &self,
        lane: &mut Lane,
        models: &[Model],
        target: &Target,
        which: Range<usize>,
        shots: Range<usize>,
        sums: &Sums,
    ) -> Result<Vec<f64>> {
        let plan = &self.plan;
        let mut p = lane.stage(plan, &self.shots(models, shots.clone()), None)?;
        p.history_unit = plan.history_unit();
        lane.keep(plan, &mut p, &sums.levels())?;
        // what is observed goes up before the forward run, which the host need not wait for then
        match target {
            Target::Vector(data) => {
                let traces = models.len() * shots.len() * plan.survey.receivers.len();
                let vectors = lane.vectors(&data[which.clone()])?;
                let samples = vec![p.nt; models.len()];
                lane.observe(plan, &mut p, shots.start, &vectors, &vec![1; traces], &samples)?;
                p.misfit = misfit::LINEAR;
            }
            Target::Observed(observed, _, code) => {
                let observed = &observed[which.clone()];
                let gathers: Vec<_> = observed.iter().map(|o| o.gather.clone()).collect();
                let gathers = lane.gathers(&gathers)?;
                let live =
                    |o: &Observed| o.mask.live.slice(s![shots.clone(), ..]).iter().map(|&l| u8::from(l)).collect();
                let live: Vec<Vec<u8>> = observed.iter().map(live).collect();
                let samples: Vec<i32> = observed.iter().map(|o| o.mask.nt as i32).collect();
                lane.observe(plan, &mut p, shots.start, &gathers, &live.concat(), &samples)?;
                if let Some(code) = code {
                    (p.misfit, p.filter) = (code.number, code.filter);
                    [p.misfit_a, p.misfit_b] = code.parameters;
                }
            }
        }
        lane.forward(plan, &mut p)?;
        match target {
            Target::Observed(observed, misfit, None) => {
                self.misfit_on_host(lane, &p, &observed[which], *misfit, shots)?;
            }
            _ => lane.misfit(plan, &p)?,
        }
        lane.adjoint(plan, &mut p)
    }

    /// A misfit that no kernel knows: the data come down, its derivative goes up.
    fn misfit_on_host(
        &self,
        lane: &mut Lane,
        p: &Params,
        observed: &[Observed],
        misfit: &dyn Misfit,
        shots: Range<usize>,
    ) -> Result<()> {
        let (nt, nr) = (self.plan.survey.nt, self.plan.survey.receivers.len());
        let shape = (observed.len() * shots.len(), nt, nr);
        let data =
            Array3::from_shape_vec(shape, lane.data(&self.plan, p)?).expect("a sample for each step and receiver");
        let mut derivative = Array3::zeros(data.dim());
        let mut trace = Vec::with_capacity(data.dim().0 * data.dim().2 * 3);
        for (i, synthetic) in data.axis_iter(Axis(0)).enumerate() {
            let (o, shot) = (&observed[i / shots.len()], shots.start + i % shots.len());
            let mut residual: Array2<f64> = Array2::zeros(synthetic.dim());
            let value = misfit.evaluate(shot, synthetic, o.gather.shot(shot), &o.mask, residual.view_mut());
            let squares = squared_residual(o, shot, synthetic);
            for r in 0..synthetic.ncols() {
                let first = if r == 0 { [value, squares] } else { [0.0; 2] };
                trace.extend(first.into_iter().chain([synthetic.column(r).dot(&residual.column(r))]));
            }
            derivative.index_axis_mut(Axis(0), i).assign(&residual);
        }
        let derivative = derivative.as_slice().expect("made in standard order");
        lane.put_misfit(p, derivative, &trace)
    }
}

/// Sum of the squared residuals of a shot that count.
fn squared_residual(o: &Observed, shot: usize, synthetic: ArrayView2<f64>) -> f64 {
    let (observed, live) = (o.gather.shot(shot), o.mask.live.row(shot));
    let mut sum = 0.0;
    for t in 0..o.mask.nt {
        let samples = synthetic.row(t).into_iter().zip(observed.row(t)).zip(live);
        sum += samples.filter(|(_, l)| **l).map(|((s, d), _)| (s - d).powi(2)).sum::<f64>();
    }
    sum
}
