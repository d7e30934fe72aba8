//! The dot-product test: is the adjoint the transpose of the Born operator, `<J x, y> = <x, J' y>`?
//!
//! `cargo run --release --example dot_test`; `fwi check --adjoint` runs the same on the command line.

use fwi::verify::{self, DataVector};
use fwi::wave::{CpuOptions, Precision, build};
use fwi::{Gather, Model, Result, Survey};
use ndarray::{Array2, Array3};
use rand::{Rng, SeedableRng, rngs::StdRng};

fn main() -> Result<()> {
    // f64 updates every cell at every step: exact to rounding
    let options = CpuOptions { precision: Precision::F64, ..CpuOptions::default() };
    let survey = Survey::openfwi();
    let propagator = build(survey.clone(), &options)?;
    println!("{}", propagator.describe());

    // By hand: a model, a direction in model space (all cells and vmin) and a vector in data space.
    let mut rng = StdRng::seed_from_u64(1);
    let model = Model::from_map(Array2::from_shape_fn(survey.map_shape(), |(z, _)| 1600.0 + 35.0 * z as f64));
    let x = Model {
        vp: Array2::from_shape_fn(survey.map_shape(), |_| rng.random_range(-1.0..1.0)),
        vmin: rng.random_range(-1.0..1.0),
    };
    let y = Gather::new(Array3::from_shape_fn(survey.gather_shape(), |_| rng.random_range(-1.0..1.0)));
    let jx = propagator.born(std::slice::from_ref(&model), std::slice::from_ref(&x))?.remove(0);
    let jty = propagator.adjoint(std::slice::from_ref(&model), std::slice::from_ref(&y))?.remove(0);
    let (forward, adjoint) = (jx.dot(&y), x.dot(&jty));
    println!("<J x, y> = {forward:.15e}");
    println!("<x, J' y> = {adjoint:.15e}");
    println!("relative difference {:.1e}", (forward - adjoint).abs() / forward.abs());

    // The same at random layered models, with a seed each.
    for seed in 0..3 {
        let test = verify::dot_test(&*propagator, DataVector::White, seed)?;
        println!("seed {seed}: relative difference {:.1e}", test.relative());
    }
    Ok(())
}
