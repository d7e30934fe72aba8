//! A misfit of your own: one minus the correlation of every trace, which is blind to amplitudes.
//!
//! `cargo run --release --example own_misfit` checks its gradient against a central difference and takes a few steps
//! of steepest descent with it.

use fwi::invert::Start;
use fwi::io::{Limits, read_gather};
use fwi::wave::{CpuOptions, Evaluation, build};
use fwi::{Gather, Mask, Misfit, Model, Observed, Propagator, Result, Survey};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

/// The sum over traces of `1 - <s, o> / (|s| |o|)`, `s` the synthetic and `o` the observed trace.
struct Correlation;

impl Misfit for Correlation {
    fn evaluate(
        &self,
        shot: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        mask: &Mask,
        mut adjoint: ArrayViewMut2<f64>,
    ) -> f64 {
        adjoint.fill(0.0);
        let mut sum = 0.0;
        for r in (0..synthetic.ncols()).filter(|&r| mask.live[[shot, r]]) {
            let (syn, obs) = (synthetic.slice(s![..mask.nt, r]), observed.slice(s![..mask.nt, r]));
            let (ss, so, oo) = (syn.dot(&syn), syn.dot(&obs), obs.dot(&obs));
            let norms = (ss * oo).sqrt();
            if norms > 0.0 {
                sum += 1.0 - so / norms;
                adjoint.slice_mut(s![..mask.nt, r]).assign(&((so / ss * &syn - obs) / norms));
            }
        }
        sum
    }

    /// The derivative is a sum of the two traces: no frequency is in it that is not in them.
    fn band_limited(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        "correlation".into()
    }
}

fn main() -> Result<()> {
    let survey = Survey::openfwi();
    let data = read_gather("examples/data/gather.npy", survey.gather_shape(), &Limits::default())?;
    let observed = Observed::new(Gather::new(data));
    let propagator = build(survey.clone(), &CpuOptions::default())?;
    let evaluate = |m: &Model| -> Result<Evaluation> {
        let (models, data) = (std::slice::from_ref(m), std::slice::from_ref(&observed));
        Ok(propagator.misfit_and_gradient(models, data, &Correlation)?.remove(0))
    };

    let mut model = Start::Gradient.model(&survey, &observed, (1500.0, 4500.0))?;
    let mut now = evaluate(&model)?;
    let direction = Model { vp: Array2::from_shape_fn(survey.map_shape(), |(z, _)| (0.2 * z as f64).sin()), vmin: 0.0 };
    let (ahead, behind) = (evaluate(&model.plus(1.0, &direction))?, evaluate(&model.plus(-1.0, &direction))?);
    let (slope, difference) = (now.gradient.dot(&direction), (ahead.value - behind.value) / 2.0);
    println!("slope by the gradient {slope:.6e}, by a central difference {difference:.6e}");

    let mut step = 40.0; // largest change of a cell, m/s
    for _ in 0..12 {
        let largest = now.gradient.vp.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        let downhill = Model { vp: now.gradient.vp.mapv(|g| -g / largest), vmin: 0.0 };
        let mut next = model.plus(step, &downhill);
        next.vp.mapv_inplace(|v| v.clamp(1500.0, 4500.0));
        let there = evaluate(&next)?;
        println!("step of {step:4.0} m/s: {} {:.4} -> {:.4}", Correlation.name(), now.value, there.value);
        (step, model, now) = if there.value < now.value { (1.5 * step, next, there) } else { (0.5 * step, model, now) };
    }
    Ok(())
}
