//! `fwi check`: does this map explain this gather; and is the adjoint the adjoint on this machine.

use super::engine::Engine;
use super::options::{observe, parse_positive, usable};
use super::tell;
use fwi::io::{Limits, Maps};
use fwi::verify::{self, DataVector};
use fwi::{Gather, Model, Propagator, Result, Survey};
use std::path::PathBuf;
use std::process::ExitCode;

/// Replay or test the adjoint.
#[derive(clap::Args)]
pub struct Args {
    /// Observed gather (5, 1000, 70), or a stack with --index
    #[arg(required_unless_present = "adjoint")]
    gather: Option<PathBuf>,
    /// Velocity map (70, 70), or a stack with --index
    #[arg(required_unless_present = "adjoint")]
    map: Option<PathBuf>,
    /// Which gather and map of stacks, from 0
    #[arg(long, value_name = "I", default_value_t = 0)]
    index: usize,
    /// Sponge velocity, m/s [default: the smallest velocity of the map]
    #[arg(long, value_name = "V", value_parser = parse_positive)]
    vmin: Option<f64>,
    /// Run the dot-product and Taylor tests of the gradient instead
    #[arg(long, conflicts_with_all = ["gather", "map"])]
    adjoint: bool,
    /// Number of random dot-product tests
    #[arg(long, default_value_t = 20, value_name = "N", requires = "adjoint", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    #[command(flatten)]
    engine: Engine,
}

/// Largest residual rms over the data's rms that rounding explains.
const ROUNDING: f64 = 6e-5;
/// Largest one that still says "almost this map".
const CLOSE: f64 = 1e-2;

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    match (&args.gather, &args.map) {
        (Some(gather), Some(map)) if !args.adjoint => replay(&args, gather, map),
        _ => adjoint(&args),
    }
}

fn replay(args: &Args, gather: &std::path::Path, map: &std::path::Path) -> Result<ExitCode> {
    let survey = Survey::openfwi();
    let observed = observe(gather, args.index, &survey)?;
    let velocity = Maps::open(map, survey.map_shape(), &Limits::default())?.get(args.index)?;
    let model = usable(Model::from_map(velocity), args.vmin, &survey, map, args.index)?;
    let propagator = args.engine.alone(survey.clone())?;
    let synthetic = propagator.forward(std::slice::from_ref(&model))?.remove(0);
    tell(format_args!("engine: {}", propagator.describe()))?;
    if observed.mask.samples() < observed.gather.data.len() {
        let traces = observed.bad.len() + observed.dead.len();
        tell(format_args!(
            "samples 0..{} of {} traces count ({traces} dead or not finite)",
            observed.mask.nt - 1,
            observed.mask.live.len() - traces
        ))?;
    }
    let zero = Gather::new(ndarray::Array3::zeros(survey.gather_shape()));
    let (data, rms) = (observed.rms(&zero), observed.rms(&synthetic));
    for (shot, r) in observed.rms_per_shot(&synthetic).iter().enumerate() {
        tell(format_args!("shot {shot}: residual rms {r:.4e}"))?;
    }
    tell(format_args!(
        "all:    residual rms {rms:.4e}, rms of the observed data {data:.4e}, ratio {:.2e}",
        rms / data
    ))?;
    let verdict = match rms / data {
        r if r <= ROUNDING => "this map made this gather: the residual is rounding",
        r if r <= CLOSE => "close: the map explains the gather up to small differences",
        r if r < 0.7 => "a different map: part of the gather is explained",
        _ => "a different map or convention: the gather is not explained (check units, sign, source positions)",
    };
    tell(format_args!("verdict: {verdict}"))?;
    Ok(if rms / data <= ROUNDING { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn adjoint(args: &Args) -> Result<ExitCode> {
    let propagator = args.engine.alone(Survey::openfwi())?;
    let propagator: &dyn Propagator = &*propagator;
    tell(format_args!("engine: {}", propagator.describe()))?;
    let (double, exact) = (args.engine.is_double(), args.engine.is_exact());
    let data = if exact { DataVector::White } else { DataVector::Residual };
    let limit = if double && exact { 1e-12 } else { 1e-5 };
    let mut passed = true;
    for seed in 0..args.seeds {
        let t = verify::dot_test(propagator, data, seed)?;
        passed &= t.relative() <= limit;
        tell(format_args!(
            "dot product {seed:2}: <J x, y> = {:+.9e}, <x, J' y> = {:+.9e}, relative difference {:.1e}",
            t.forward,
            t.adjoint,
            t.relative()
        ))?;
    }
    let taylor = verify::taylor_test(propagator, 0)?;
    for (h, remainder) in &taylor.remainders {
        tell(format_args!("Taylor: step {h:8.4} m/s, remainder {remainder:.6e}"))?;
    }
    tell(format_args!("Taylor: slope {:.4} (2 for an exact gradient)", taylor.slope))?;
    if double {
        passed &= (taylor.slope / 2.0 - 1.0).abs() <= 0.025;
    } else {
        tell(format_args!(
            "Taylor: the slope is judged with --precision f64, where rounding does not hide the remainder"
        ))?;
    }
    tell(format_args!(
        "verdict: {}",
        if passed {
            "the adjoint is exact to rounding"
        } else {
            "the adjoint is NOT exact here; please report this with the lines above"
        }
    ))?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
