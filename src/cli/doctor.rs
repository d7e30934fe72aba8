//! `fwi doctor`: what this machine offers and what this binary is.

use super::options::available_memory;
use super::tell;
use fwi::prior::{Runtime, RuntimeChoice, registry};
use fwi::wave::cpu::vector::Isa;
use fwi::wave::cuda::driver;
use fwi::wave::{CpuOptions, Precision, Propagator, build};
use fwi::{Model, Result, Survey};
use ndarray::Array2;
use std::process::ExitCode;
use std::time::Instant;

/// Runs the subcommand.
pub fn run() -> Result<ExitCode> {
    tell(format_args!("fwi {} ({}, {})", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH))?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let sets: Vec<String> = Isa::available().iter().map(|i| i.to_string()).collect();
    tell(format_args!("cores: {cores}"))?;
    tell(format_args!("instruction sets: {} (the first is used)", sets.join(", ")))?;
    match available_memory() {
        Some(free) => tell(format_args!("memory: {:.1} GB free", free as f64 / f64::from(1u32 << 30)))?,
        None => tell(format_args!(
            "memory: the system does not tell; runs are limited to 4 GB unless --max-memory says else"
        ))?,
    }
    tell(format_args!("backends: cpu{}", if driver::devices().is_ok() { ", cuda" } else { "" }))?;
    for line in driver::report() {
        tell(line)?;
    }
    let (runtime, trouble) = Runtime::choose(&RuntimeChoice::Auto)?;
    trouble.iter().try_for_each(tell)?;
    let names: Vec<String> = registry::list().into_iter().map(|(name, _)| name).collect();
    let names = if names.is_empty() { "none".into() } else { names.join(", ") };
    tell(format_args!("priors: {names}; computed by {runtime}"))?;
    let model = Model::from_map(Array2::from_shape_fn((70, 70), |(z, _)| 1500.0 + 40.0 * z as f64));
    for precision in [Precision::F32, Precision::F64] {
        let p = build(Survey::openfwi(), &CpuOptions { precision, ..CpuOptions::default() })?;
        tell(format_args!(
            "{}: {:.1} ms a forward gather, {} MB a gradient at most",
            p.describe(),
            1e3 * best_forward(&*p, &model)?,
            p.gradient_bytes(true) >> 20
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Seconds of the fastest of three forward runs.
fn best_forward(p: &dyn Propagator, model: &Model) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let t = Instant::now();
        p.forward(std::slice::from_ref(model))?;
        best = best.min(t.elapsed().as_secs_f64());
    }
    Ok(best)
}
