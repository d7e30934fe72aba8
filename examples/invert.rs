//! Inverts the bundled gather in 60 evaluations, showing progress, and draws the map beside start and truth.
//!
//! `cargo run --release --example invert` writes out/velocity.npy and out/velocity.png.

use fwi::invert::{Inversion, Observer, Progress, Settings, Stage, Start};
use fwi::io::{Limits, read_gather, read_map, write_array, write_atomic};
use fwi::wave::{CpuOptions, build};
use fwi::{Error, Gather, Observed, Result, Survey, plot};

/// Prints a line every five iterations. An observer may also keep checkpoints, see [`Observer::checkpoint`].
struct Lines;

impl Observer for Lines {
    fn iteration(&mut self, at: &Progress) {
        if at.iteration.is_multiple_of(5) {
            let mae = at.mae.unwrap_or(f64::NAN);
            println!(
                "{:3} evaluations, {}: data rms {:.3e}, MAE {mae:.1} m/s",
                at.evaluation, at.stage_name, at.data_rms
            );
        }
    }
}

fn main() -> Result<()> {
    let survey = Survey::openfwi();
    let limits = Limits::default();
    let truth = read_map("examples/data/velocity.npy", survey.map_shape(), &limits)?;
    // `Observed` masks what cannot be trusted: dead traces, NaN, a last sample that is zero everywhere.
    let observed = Observed::new(Gather::new(read_gather("examples/data/gather.npy", survey.gather_shape(), &limits)?));

    let propagator = build(survey.clone(), &CpuOptions::default())?;
    // Low frequencies first; without `stages` the default schedule runs until the misfit stalls.
    let settings = Settings {
        stages: Stage::parse_schedule("lowpass:5@15,lowpass:10@15,l2")?,
        max_evals: Some(60),
        ..Settings::default()
    };
    let inversion = Inversion::new(&*propagator, &observed, settings)?.truth(&truth)?;
    let outcome = inversion.run(&Start::Gradient, &mut Lines)?;
    println!("stopped: {}", outcome.stop);

    std::fs::create_dir_all("out").map_err(|e| Error::io("out", "create", e))?;
    write_array("out/velocity.npy", outcome.model.vp.mapv(|v| v as f32).view())?;
    let start = Start::Gradient.model(&survey, &observed, (1500.0, 4500.0))?;
    let figure = plot::map_figure(outcome.model.vp.view(), survey.dx, Some(start.vp.view()), Some(truth.view()))?;
    write_atomic("out/velocity.png", |file| file.write_all(&figure))?;
    println!("wrote out/velocity.npy and out/velocity.png");
    Ok(())
}
