//! What drawing, compression and writing cost beside modelling: `fwi synth` in whole, process start and sync included,
//! against a bare loop of forward calls over the same maps, in turns. Prints gathers a second and the ratio of each round.
//!
//! `cargo bench --bench synth -- [samples a round] [rounds]`, 60 and 5 by default.

use fwi::synth::Recipe;
use fwi::wave::{CpuOptions, build};
use fwi::{Error, Model, Result, Survey};
use std::process::{Command, Stdio};
use std::time::Instant;

fn main() -> Result<()> {
    // cargo adds --bench
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let n = numbers.first().copied().unwrap_or(60).max(1);
    let rounds = numbers.get(1).copied().unwrap_or(5).max(1);
    let recipe = Recipe::new(None, 0);
    let models: Vec<Model> = (0..n).map(|i| Model::from_map(recipe.map(recipe.origin(i)).mapv(f64::from))).collect();
    let propagator = build(Survey::openfwi(), &CpuOptions::default())?;
    println!("{n} samples a round; {}", propagator.describe());
    let mut ratios = vec![];
    for layout in [&["--half"][..], &[]] {
        for round in 0..rounds {
            let since = Instant::now();
            for model in &models {
                propagator.forward(std::slice::from_ref(model))?;
            }
            let bare = n as f64 / since.elapsed().as_secs_f64();
            let whole = n as f64 / synth(n, layout)?;
            ratios.push(whole / bare);
            println!(
                "round {round} {:7} bare {bare:6.2}/s, fwi synth {whole:6.2}/s: {:.0}%",
                layout.first().map_or("f32", |_| "f16"),
                100.0 * whole / bare
            );
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!("median {:.0}%, least {:.0}%", 100.0 * ratios[ratios.len() / 2], 100.0 * ratios[0]);
    Ok(())
}

/// Seconds of one `fwi synth`.
fn synth(n: u64, options: &[&str]) -> Result<f64> {
    let dir = tempfile::tempdir().map_err(|e| Error::io("a directory for the samples", "create", e))?;
    let fail = |e| Error::io(env!("CARGO_BIN_EXE_fwi"), "run", e);
    let since = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_fwi"))
        .args(["synth", "all", "--backend", "cpu", "-n", &n.to_string(), "-o", "s.h5"])
        .args(options)
        .current_dir(&dir)
        .stderr(Stdio::null())
        .status()
        .map_err(fail)?;
    match status.success() {
        true => Ok(since.elapsed().as_secs_f64()),
        false => Err(Error::Usage(format!("fwi synth ended with {status}"))),
    }
}
