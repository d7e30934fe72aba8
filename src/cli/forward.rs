//! `fwi forward`: gathers of a stack of velocity maps, read, modelled and written side by side.

use super::counter::Counter;
use super::engine::Engine;
use super::method::Signals;
use super::note;
use super::options::{parse_positive, same_file, usable};
use super::stream::{Flow, lock, stream};
use fwi::io::{ArrayWriter, DType, Limits, Maps};
use fwi::{Error, Gather, Model, Propagator, Result, Survey};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

/// Model gathers.
#[derive(clap::Args)]
pub struct Args {
    /// Maps in m/s: (70, 70), (n, 70, 70) or (n, 1, 70, 70)
    maps: PathBuf,
    /// Gathers (n, 5, 1000, 70); (5, 1000, 70) for a single map
    #[arg(short, long, value_name = "GATHER")]
    output: PathBuf,
    /// Sponge velocity, m/s [default: the smallest velocity of each map]
    #[arg(long, value_name = "V", value_parser = parse_positive)]
    vmin: Option<f64>,
    #[command(flatten)]
    engine: Engine,
}

/// Streams of a GPU: one computes while the gathers of two others come down and are converted.
const LANES: usize = 3;

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let survey = Survey::openfwi();
    if same_file(&args.maps, &args.output) {
        return Err(Error::Usage(format!("{}: would be overwritten; choose another -o", args.maps.display())));
    }
    let maps = Maps::open(&args.maps, survey.map_shape(), &Limits::default())?;
    let propagator = args.engine.dispatch(&survey, LANES, 1, |line| note(line))?;
    let (ns, nt, nr) = survey.gather_shape();
    let n = maps.len();
    let dtype = if args.engine.is_double() { DType::F64 } else { DType::F32 };
    let signals = Signals::install()?;
    let mut writer = match n {
        1 => ArrayWriter::create(&args.output, &[nt, nr], dtype, Some(ns))?,
        _ => ArrayWriter::create(&args.output, &[ns, nt, nr], dtype, Some(n))?,
    };
    note(format_args!("engine: {}", propagator.describe()));
    let mut progress = Counter::new("gathers", 0, n as u64, false);
    // a gather is held three times at most: as samples, stacked, and on its way to the file
    let fit = (args.engine.budget()? / 2 / (3 * 8 * (ns * nt * nr) as u64)).max(1) as usize;
    let flow = Flow::of(&propagator, fit);
    let maps = Mutex::new(maps);
    let read = |i| usable(Model::from_map(lock(&maps).get(i)?), args.vmin, &survey, &args.maps, i);
    // of bytes that are written: fresh memory costs the system more than the conversion into it
    let buffers = Mutex::new(vec![]);
    let encode = |gather: Gather| {
        let mut bytes = lock(&buffers).pop().unwrap_or_default();
        dtype.encode(gather.data.view(), &mut bytes);
        Ok(bytes)
    };
    let write = |bytes: Vec<u8>| {
        writer.append_encoded(&bytes)?;
        lock(&buffers).push(bytes);
        progress.add();
        Ok(())
    };
    let done = stream(n, flow, &signals.stop, read, |models: Vec<Model>| propagator.forward(&models), encode, write)?;
    if done < n {
        return Err(signals.interruption(None));
    }
    writer.finish()?;
    progress.finish();
    note(format_args!("wrote {}", args.output.display()));
    Ok(ExitCode::SUCCESS)
}
