//! Models the gather of a velocity map and draws both.
//!
//! `cargo run --release --example forward [MAP]` reads a (70, 70) map in m/s (.npy, .npz or .h5) and writes
//! out/gather.npy, out/gather.png and out/velocity.png.

use fwi::io::{Limits, read_map, write_array, write_atomic};
use fwi::wave::{CpuOptions, build};
use fwi::{Error, Model, Observed, Result, Survey, plot};

fn main() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "examples/data/velocity.npy".into());
    let survey = Survey::openfwi();
    let map = read_map(&path, survey.map_shape(), &Limits::default())?;

    // f32, causal windows, all cores; `precision` and `fidelity` of the options choose otherwise
    let propagator = build(survey.clone(), &CpuOptions::default())?;
    println!("{}", propagator.describe());

    // The sponge is damped by the smallest velocity of the map, as in OpenFWI's data.
    let model = Model::from_map(map);
    // A batch of models in, a batch of gathers (shots, time samples, receivers) out.
    let gather = propagator.forward(std::slice::from_ref(&model))?.remove(0);

    std::fs::create_dir_all("out").map_err(|e| Error::io("out", "create", e))?;
    write_array("out/gather.npy", gather.data.mapv(|p| p as f32).view())?;
    let figure = plot::gather_figure(&Observed::new(gather), None, &survey, None)?;
    write_atomic("out/gather.png", |file| file.write_all(&figure))?;
    let figure = plot::map_figure(model.vp.view(), survey.dx, None, None)?;
    write_atomic("out/velocity.png", |file| file.write_all(&figure))?;
    println!("wrote out/gather.npy, out/gather.png and out/velocity.png");
    Ok(())
}
