//! Tests on real OpenFWI files: one CurveFault_B pair and one gather of the Kaggle contest.
//!
//! They are looked for in the folder `FWI_DATA`, or `../shared/data` beside the repository; where they are absent these
//! tests count as ignored.

use fwi::invert::{Inversion, Settings, Start, StopReason, source_velocities};
use fwi::io::{Limits, read_gather, read_map};
use fwi::wave::{CpuOptions, Fidelity, Precision, Propagator, build};
use fwi::{Gather, Model, Observed, Survey};
use libtest_mimic::{Arguments, Failed, Trial};
use ndarray::Array2;
use std::path::{Path, PathBuf};

const PAIR_DATA: &str = "curvefault_b_seis.npy";
const PAIR_MAP: &str = "curvefault_b_vel.npy";
const KAGGLE: &str = "000039dca2.npy";

fn folder() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let dir = std::env::var_os("FWI_DATA").map_or_else(beside, Into::into);
    [PAIR_DATA, PAIR_MAP, KAGGLE].iter().all(|f| dir.join(f).exists()).then_some(dir)
}

fn observed(dir: &Path, name: &str) -> Observed {
    let shape = Survey::openfwi().gather_shape();
    Observed::new(Gather::new(read_gather(dir.join(name), shape, &Limits::default()).unwrap()))
}

fn pair_map(dir: &Path) -> Array2<f64> {
    read_map(dir.join(PAIR_MAP), (70, 70), &Limits::default()).unwrap()
}

fn cpu(precision: Precision, fidelity: Fidelity) -> Box<dyn Propagator> {
    build(Survey::openfwi(), &CpuOptions { precision, fidelity: Some(fidelity), ..CpuOptions::default() }).unwrap()
}

/// A failure with its numbers, unless `ok`.
fn ensure(ok: bool, what: impl FnOnce() -> String) -> Result<(), Failed> {
    if ok { Ok(()) } else { Err(what().into()) }
}

/// The data are reproduced to the rounding of f32, best by f32 itself; the sponge's velocity shows.
fn the_pair_is_reproduced(dir: &Path) -> Result<(), Failed> {
    let observed = observed(dir, PAIR_DATA);
    let model = [Model::from_map(pair_map(dir))];
    let mut off = model.clone();
    off[0].vmin += 1.0;
    for (precision, fidelity, limit) in [
        (Precision::F32, Fidelity::Fast, 9.5e-6),
        (Precision::F32, Fidelity::Exact, 9.5e-6),
        (Precision::F64, Fidelity::Exact, 1.5e-5),
    ] {
        let p = cpu(precision, fidelity);
        let rms = observed.rms(&p.forward(&model)?[0]);
        ensure(rms <= limit, || format!("{}: rms {rms:e}", p.describe()))?;
        let wrong = observed.rms(&p.forward(&off)?[0]);
        // f64 does not share the rounding of the data, which hides so small a change
        ensure(precision == Precision::F64 || wrong > 1.2 * rms, || {
            format!("vmin off by 1 m/s: {wrong:e} against {rms:e}")
        })?;
    }
    Ok(())
}

/// The first sample tells the velocities at the sources.
fn source_velocities_are_exact(dir: &Path) -> Result<(), Failed> {
    for (name, expected, tolerance) in [
        (PAIR_DATA, [1975.0, 1975.0, 1764.0, 1764.0, 2358.0], 2e-4),
        (KAGGLE, [1630.6, 1638.7, 1641.2, 1636.7, 1694.1], 0.05),
    ] {
        let known = source_velocities(&Survey::openfwi(), &observed(dir, name), (1500.0, 4500.0));
        let found: Vec<f64> = known.iter().map(|(_, v)| *v).collect();
        let close = found.len() == 5 && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance);
        ensure(close, || format!("{name}: {found:?}"))?;
    }
    Ok(())
}

/// From the gradient start to a data rms of 1e-3, under a thousandth of the data's own.
fn inverts(dir: &Path, name: &str, truth: Option<Array2<f64>>) -> Result<(), Failed> {
    let observed = observed(dir, name);
    let p = cpu(Precision::F32, Fidelity::Fast);
    let settings = Settings { target_rms: Some(1e-3), max_evals: Some(1500), ..Settings::default() };
    let mut inversion = Inversion::new(&*p, &observed, settings)?;
    if let Some(truth) = &truth {
        inversion = inversion.truth(truth)?;
    }
    let outcome = inversion.run(&Start::Gradient, &mut ())?;
    let reached = matches!(outcome.stop, StopReason::TargetReached { .. }) && outcome.data_rms <= 1e-3;
    let (rms, n) = (outcome.data_rms, outcome.evaluations);
    ensure(reached, || format!("rms {rms:e} after {n} evaluations: {}", outcome.stop))?;
    ensure(outcome.mae.is_none_or(|m| m < 120.0), || format!("the map is {:?} m/s off", outcome.mae))
}

fn main() {
    let args = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let dir = folder();
    let trial = |name: &str, test: fn(&Path) -> Result<(), Failed>| {
        let dir = dir.clone();
        Trial::test(name, move || dir.map_or(Err("no real data".into()), |d| test(&d)))
            .with_ignored_flag(folder().is_none())
    };
    let trials = vec![
        trial("the_pair_is_reproduced", the_pair_is_reproduced),
        trial("source_velocities_are_exact", source_velocities_are_exact),
        trial("the_kaggle_gather_is_fitted", |d| inverts(d, KAGGLE, None)),
        trial("the_pair_is_fitted", |d| inverts(d, PAIR_DATA, Some(pair_map(d)))),
    ];
    libtest_mimic::run(&args, trials).exit();
}
