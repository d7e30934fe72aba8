//! `fwi forward`: gathers of a stack of velocity maps, modelled in batches while the next ones are read.

use super::note;
use super::options::{Engine, parse_positive, same_file, usable};
use fwi::io::{ArrayWriter, DType, Limits, Maps};
use fwi::{Error, Model, Result, Survey};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

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

/// Maps modelled at a time, per thread.
const BATCH: usize = 4;

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let survey = Survey::openfwi();
    if same_file(&args.maps, &args.output) {
        return Err(Error::Usage(format!("{}: would be overwritten; choose another -o", args.maps.display())));
    }
    let mut maps = Maps::open(&args.maps, survey.map_shape(), &Limits::default())?;
    let propagator = args.engine.propagator(survey.clone())?;
    let (ns, nt, nr) = survey.gather_shape();
    let n = maps.len();
    let dtype = if args.engine.is_double() { DType::F64 } else { DType::F32 };
    let mut writer = match n {
        1 => ArrayWriter::create(&args.output, &[nt, nr], dtype, Some(ns))?,
        _ => ArrayWriter::create(&args.output, &[ns, nt, nr], dtype, Some(n))?,
    };
    note(format_args!("engine: {}", propagator.describe()));
    let bar = ProgressBar::new(n as u64).with_style(
        ProgressStyle::with_template("{bar:24} {pos}/{len} gathers, {per_sec}, {eta} left").expect("a valid template"),
    );
    let since = Instant::now();
    let threads = if args.engine.threads > 0 {
        args.engine.threads
    } else {
        std::thread::available_parallelism().map_or(1, |n| n.get())
    };
    // a gather is held three times at most: as samples, stacked, and on its way to the file
    let fit = (args.engine.budget()? / 2 / (3 * 8 * (ns * nt * nr) as u64)).max(1) as usize;
    let mut done = 0;
    while done < n {
        let count = (BATCH * threads).min(fit).min(n - done);
        let mut batch = Vec::with_capacity(count);
        for i in done..done + count {
            let model = Model::from_map(maps.get(i)?);
            batch.push(usable(model, args.vmin, &survey, &args.maps, i)?);
        }
        for gather in propagator.forward(&batch)? {
            let data = gather.data.view();
            if n == 1 {
                data.outer_iter().try_for_each(|shot| writer.append(shot))?;
            } else {
                writer.append(data)?;
            }
        }
        done += count;
        bar.set_position(done as u64);
        if bar.is_hidden() && (done == n || done % (100 * threads) < count) {
            let rate = done as f64 / since.elapsed().as_secs_f64();
            note(format_args!("{done} of {n} gathers, {rate:.1} per second"));
        }
    }
    writer.finish()?;
    bar.finish_and_clear();
    note(format_args!("wrote {}", args.output.display()));
    Ok(ExitCode::SUCCESS)
}
