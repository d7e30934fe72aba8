//! `fwi synth`: sets of synthetic maps with their gathers, drawn, modelled, compressed and written side by side.

use super::counter::Counter;
use super::engine::{BASE_BYTES, Engine};
use super::method::Signals;
use super::note;
use super::stream::{Flow, stream};
use clap::ValueEnum;
use fwi::synth::augment::Augment;
use fwi::synth::store::{Encoded, Format, Missing, Sample, Store};
use fwi::synth::{GENERATOR, Origin, Recipe};
use fwi::wave::{Dispatch, Propagator};
use fwi::{Error, Family, Gather, Model, Result};
use ndarray::Array2;
use std::path::PathBuf;
use std::process::ExitCode;

/// Make samples.
#[derive(clap::Args)]
pub struct Args {
    /// A family, such as CurveFault_B, or all: the ten families in turn
    #[arg(value_parser = parse_family)]
    family: AllOr,
    /// Samples in all; a set that is there grows to so many
    #[arg(short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    n: u64,
    /// NAME.h5, followed by NAME-00001.h5 and so on; a directory with --format kaggle
    #[arg(short, long, value_name = "FILE.h5|DIR")]
    output: PathBuf,
    /// Seed of the maps
    #[arg(long, default_value = "0")]
    seed: u64,
    /// What is done to the maps, in order, each name with a probability if wanted: flip:0.5,elastic. There are crop, affine,
    /// flip, stretch, elastic, fault, cutmix, mixup, noise, rotate, shift, scale. FlatVel maps stay horizontally constant:
    /// what becomes of their middle column becomes of all. What would make a map one of another family is left out
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true, value_parser = parse_augment)]
    augment: Augment,
    /// Store gathers as f16
    #[arg(long)]
    half: bool,
    /// Store every K-th time sample: 0, K, 2K ...
    #[arg(long, value_name = "K", default_value = "1")]
    every: usize,
    /// Store maps only, no gathers
    #[arg(long)]
    maps_only: bool,
    /// Store the middle shot of the mirrored map, too: with it, a gather is flipped exactly
    #[arg(long)]
    middle_flip: bool,
    /// Samples in a file, at most 30,000: a kill loses those of the file at work, and of the one before until it is on disk
    #[arg(long, value_name = "N", default_value = "500", value_parser = clap::value_parser!(u64).range(1..=30_000))]
    per_file: u64,
    /// How files are laid out
    #[arg(long, value_enum, default_value = "hdf5")]
    format: FormatArg,
    #[command(flatten)]
    engine: Engine,
}

/// See [`Args::format`].
#[derive(Clone, Copy, ValueEnum)]
enum FormatArg {
    /// Compressed HDF5
    Hdf5,
    /// The .npy files of OpenFWI and of the Kaggle contest
    Kaggle,
}

/// A family, or all of them.
#[derive(Clone, Copy)]
struct AllOr(Option<Family>);

fn parse_family(text: &str) -> std::result::Result<AllOr, String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(AllOr(None));
    }
    text.parse().map(|f| AllOr(Some(f))).map_err(|e: Error| format!("{e}, or all"))
}

fn parse_augment(text: &str) -> std::result::Result<Augment, String> {
    text.parse().map_err(|e: Error| e.to_string())
}

/// Streams of a GPU: one computes while the gathers of two others come down and are converted.
const LANES: usize = 3;

impl Args {
    fn recipe(&self) -> Recipe {
        let engine = &self.engine;
        let word = |exact: bool| if exact { "exact" } else { "fast" };
        let arithmetic = format!("{} {}", if engine.is_double() { "f64" } else { "f32" }, word(engine.is_exact()));
        Recipe {
            family: self.family.0,
            seed: self.seed,
            generator: GENERATOR,
            augment: self.augment.clone(),
            half: self.half,
            every: self.every,
            maps_only: self.maps_only,
            middle_flip: self.middle_flip,
            per_file: self.per_file,
            arithmetic: if self.maps_only { String::new() } else { arithmetic },
        }
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let format = match args.format {
        FormatArg::Hdf5 => Format::Hdf5,
        FormatArg::Kaggle => Format::Kaggle,
    };
    let store = Store::open(&args.output, format, args.recipe())?;
    let missing = store.missing(args.n)?;
    if missing.is_empty() {
        note(format_args!("{}: all {} samples are there", args.output.display(), missing.present));
        return Ok(ExitCode::SUCCESS);
    }
    let signals = Signals::install()?;
    let survey = store.recipe().survey();
    let dispatch = match args.maps_only {
        true => None,
        false => Some(args.engine.dispatch(&survey, LANES, 1, |line| note(line))?),
    };
    let (ns, nt, nr) = survey.gather_shape();
    // a sample is held as f64, as f32, as bytes and as deflated bytes
    let each = if args.maps_only { 1 << 20 } else { (8 + 4 + 4 + 4) * (ns * nt * nr) as u64 };
    let flow = flow(dispatch.as_ref(), args.engine.threads, (args.engine.budget()? / 2 / each).max(1) as usize);
    let memory = (BASE_BYTES + each * (flow.block * flow.blocks) as u64) >> 20;
    let there = if missing.present > 0 { format!(", {} are there", missing.present) } else { String::new() };
    let device = dispatch.as_ref().map_or("none, maps only".into(), |d| d.describe());
    note(format_args!("engine: {device}"));
    note(format_args!("{} samples to make{there}; memory: about {memory} MB besides wave fields", missing.len()));
    let done = make(&store, &missing, dispatch.as_ref(), flow, &signals)?;
    if (done as u64) < missing.len() {
        let saved = missing.present + done as u64 > 0;
        return Err(signals.interruption(saved.then_some(&*args.output)));
    }
    note(format_args!("wrote {}", args.output.display()));
    Ok(ExitCode::SUCCESS)
}

/// `threads` that draw and as many that encode, 0 for as many as there are cores; `fit` samples may be held.
fn flow(dispatch: Option<&Dispatch>, threads: usize, fit: usize) -> Flow {
    let cores = match threads {
        0 => std::thread::available_parallelism().map_or(2, |n| n.get().max(2)),
        n => n,
    };
    let (batch, lanes) = dispatch.map_or((1, 1), |d| (d.batch(), d.lanes().max(1)));
    Flow::new(batch.clamp(1, fit), lanes, cores, cores, fit)
}

/// Makes the missing samples; returns how many until the end or a signal.
fn make(store: &Store, missing: &Missing, dispatch: Option<&Dispatch>, flow: Flow, signals: &Signals) -> Result<usize> {
    let recipe = store.recipe();
    let read = |i: usize| {
        let origin = recipe.origin(missing.index(i as u64));
        Ok((origin, recipe.map(origin)))
    };
    type Drawn = (Origin, Array2<f32>);
    let model = |drawn: Vec<Drawn>| -> Result<Vec<(Drawn, Option<Gather>)>> {
        let Some(dispatch) = dispatch else { return Ok(drawn.into_iter().map(|d| (d, None)).collect()) };
        let models: Vec<Model> = drawn.iter().map(|(_, map)| Model::from_map(map.mapv(f64::from))).collect();
        let gathers = dispatch.forward(&models)?;
        Ok(drawn.into_iter().zip(gathers.into_iter().map(Some)).collect())
    };
    let encode = |((origin, map), gather): (Drawn, Option<Gather>)| {
        let sample = Sample::new(recipe, origin, map, gather.as_ref());
        drop(gather);
        Ok(store.encode(&sample))
    };
    let mut appender = store.appender(missing);
    let mut progress = Counter::new("samples", missing.present, missing.present + missing.len(), false);
    let write = |sample: Encoded| {
        appender.write(&sample)?;
        progress.add();
        Ok(())
    };
    let done = stream(missing.len() as usize, flow, &signals.stop, read, model, encode, write);
    progress.finish();
    match done {
        // what is written is kept; where writing itself failed, the file at work is given up
        Err(e) => {
            if !matches!(e, Error::Io { .. }) {
                let _ = appender.finish();
            }
            Err(e)
        }
        Ok(done) => appender.finish().map(|()| done),
    }
}
