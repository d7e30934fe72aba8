//! Makes the bundled example: a velocity map of curved layers cut by a fault, and its gather.
//!
//! `cargo run --release --example make_example [DIR]` writes DIR/velocity.npy and DIR/gather.npy (default
//! examples/data), the same values every time: the map comes from a formula and a seeded generator, the gather from the
//! f64 reference propagator, rounded to f32.

use fwi::io::write_array;
use fwi::wave::Reference;
use fwi::{Model, Propagator, Result, Survey};
use ndarray::Array2;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::path::PathBuf;

const SEED: u64 = 1;

/// Integer velocities that grow with depth in curved layers; beyond a dipping fault everything lies deeper.
fn curved_layers_with_a_fault(survey: &Survey, rng: &mut StdRng) -> Array2<f64> {
    // velocities and thicknesses (cells) of the layers, from the top
    let mut layers = vec![(rng.random_range(1600..1900), rng.random_range(10.0..14.0))];
    while layers.len() < 6 {
        let faster = layers[layers.len() - 1].0 + rng.random_range(300..560);
        layers.push((faster, rng.random_range(9.0..15.0)));
    }
    let (height, period, phase) =
        (rng.random_range(2.5..4.5), rng.random_range(45.0..80.0), rng.random_range(0.0..6.0));
    let (foot, dip, throw) = (rng.random_range(30.0..45.0), rng.random_range(0.2..0.5), rng.random_range(9.0..13.0));
    Array2::from_shape_fn(survey.map_shape(), |(z, x)| {
        let (z, x) = (z as f64, x as f64);
        let mut depth = z + height * (2.0 * std::f64::consts::PI * x / period + phase).sin();
        if x > foot + dip * z {
            depth -= throw;
        }
        for &(velocity, thickness) in &layers {
            if depth < thickness {
                return f64::from(velocity);
            }
            depth -= thickness;
        }
        f64::from(layers[layers.len() - 1].0)
    })
}

fn main() -> Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "examples/data".into()));
    let survey = Survey::openfwi();
    let map = curved_layers_with_a_fault(&survey, &mut StdRng::seed_from_u64(SEED));
    write_array(dir.join("velocity.npy"), map.mapv(|v| v as f32).view())?;
    let gather = Reference::new(survey)?.forward(&[Model::from_map(map)])?.remove(0);
    write_array(dir.join("gather.npy"), gather.data.mapv(|p| p as f32).view())?;
    println!("wrote velocity.npy and gather.npy in {}", dir.display());
    Ok(())
}
