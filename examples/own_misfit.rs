//! A misfit of your own: one minus the correlation of every trace, which is blind to amplitudes.
//!
//! `cargo run --release --example own_misfit` checks its gradient on the bundled gather (where it is exact, halving a step
//! divides what the linearisation leaves over by four), then inverts a little with it.

use fwi::invert::{Inversion, Settings, Stage, Start};
use fwi::io::{Limits, read_gather};
use fwi::misfit::MisfitSpec;
use fwi::wave::{CpuOptions, Precision, build};
use fwi::{Gather, Mask, Misfit, Model, Observed, Result, Survey};
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
    let propagator = build(survey.clone(), &CpuOptions { precision: Precision::F64, ..CpuOptions::default() })?;
    let evaluate = |m: Model| -> Result<_> {
        Ok(propagator.misfit_and_gradient(&[m], std::slice::from_ref(&observed), &Correlation)?.remove(0))
    };

    let model = Start::Gradient.model(&survey, &observed, (1500.0, 4500.0))?;
    let direction = Model { vp: Array2::from_shape_fn(survey.map_shape(), |(z, _)| (0.2 * z as f64).sin()), vmin: 0.5 };
    let at = evaluate(model.clone())?;
    let slope = at.gradient.dot(&direction);
    println!("{} {:.6}, slope along a direction {slope:.6}", Correlation.name(), at.value);
    for step in [4.0, 2.0, 1.0, 0.5, 0.25] {
        let remainder = evaluate(model.plus(step, &direction))?.value - at.value - step * slope;
        println!("step {step:4} m/s: remainder of the linearisation {remainder:+.6e}");
    }

    let stages = vec![Stage::new("correlation", MisfitSpec::Own)];
    let settings = Settings { stages, max_evals: Some(8), ..Settings::default() };
    let outcome =
        Inversion::new(&*propagator, &observed, settings)?.own_misfit(&Correlation).run(&Start::Gradient, &mut ())?;
    println!("{:.4} after {} evaluations of an inversion", outcome.misfit, outcome.evaluations);
    Ok(())
}
