//! `fwi prior`: the priors there are, what is in one, and their predictions.

use super::gather_list::{self, Job};
use super::method::Signals;
use super::options::{check_apart, parse_size, parse_threads, same_place};
use super::prior_options::{
    PriorOptions, RuntimeOptions, Share, StartFrom, Terms, about_gather, at_a_time, expected_error, families,
    memory_limit, side_by_side,
};
use super::{note, tell};
use clap::Subcommand;
use fwi::io::{ArrayWriter, DType, write_array, write_atomic};
use fwi::prior::{Info, MaeMaps, Manifest, Prediction, predict_one, registry};
use fwi::{Error, Family, Prior, Result, Survey, plot};
use ndarray::{Array2, Axis};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Priors: networks that predict a map from a gather.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the priors that have a name: in this binary, and in FWI_PRIORS or ~/.local/share/fwi/priors
    List,
    /// Tell what is in a prior: layout, weights, operators, errors by family
    Inspect(Inspect),
    /// Predict velocity maps
    Predict(Predict),
    /// Measure a prior's error by family, and how well gathers are classified
    Evaluate(Box<super::evaluate::Args>),
}

#[derive(clap::Args)]
struct Inspect {
    /// Name of a prior, an ONNX file, a manifest or its folder
    #[arg(value_name = "NAME|FILE")]
    prior: String,
    /// Most memory to take [default: half of what is free now]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_memory: Option<u64>,
    #[command(flatten)]
    runtime: RuntimeOptions,
}

#[derive(clap::Args)]
struct Predict {
    /// Gathers (5, 1000, 70), stacks of them, or directories of .npy gathers
    #[arg(required = true, value_name = "GATHER")]
    gathers: Vec<PathBuf>,
    /// Maps in m/s, .npy or .h5: (70, 70) for one gather, else (n, 70, 70), not-a-number where a gather cannot be read or
    /// predicted
    #[arg(short, long, value_name = "MAPS")]
    output: PathBuf,
    /// Where the errors go that the prior expects in every cell, m/s, in the maps' shape
    #[arg(long, value_name = "MAPS")]
    errors: Option<PathBuf>,
    /// Where a figure of the maps goes, the first 20 of many
    #[arg(long, value_name = "PNG")]
    png: Option<PathBuf>,
    /// Name of a prior, an ONNX file, a manifest or its folder; several are combined [default: the one in this binary]
    #[arg(long, value_name = "NAME|FILE,..", value_delimiter = ',')]
    prior: Vec<String>,
    /// Predictions at a time, and threads of ONNX Runtime; 0 takes one a core. A prior in a file predicts for one gather
    /// at a time, whatever this says
    #[arg(long, default_value = "0", value_name = "N", value_parser = parse_threads)]
    threads: usize,
    /// Most memory to take [default: half of what is free now]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_memory: Option<u64>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    options: PriorOptions,
}

/// Most maps in a figure.
const SHEET: usize = 20;

/// Gathers at which a prior may fail before it has predicted one.
const PATIENCE: usize = 20;

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::List => list(),
        Command::Inspect(args) => inspect(&args),
        Command::Predict(args) => predict(&args),
        Command::Evaluate(args) => super::evaluate::run(&args),
    }
}

/// Runs a prior's process, see [`fwi::prior::worker`].
#[cfg(unix)]
pub fn serve() -> Result<ExitCode> {
    fwi::prior::worker::serve().map(|()| ExitCode::SUCCESS)
}

fn list() -> Result<ExitCode> {
    let all = registry::list();
    if all.is_empty() {
        let folder = registry::user_folder().map_or("FWI_PRIORS".into(), |f| f.display().to_string());
        note(format_args!("no priors: there is none in this binary, nor in {folder}"));
    }
    for (name, manifest) in all {
        match manifest {
            Ok(m) => tell(format_args!("{name} {}: {} ({})", m.version, m.description, m.licence))?,
            Err(e) => tell(format_args!("{name}: cannot be used: {e}"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(args: &Inspect) -> Result<ExitCode> {
    let info = args.runtime.inspect(&args.prior, memory_limit(args.max_memory))?;
    match &info.manifest {
        Some(m) => tell_manifest(&info, m)?,
        None => tell(format_args!("{}: no manifest; recognised by its shapes and a trial", info.name))?,
    }
    tell(format_args!("sha256: {}", info.sha256))?;
    tell(format_args!(
        "size: {:.1} MB, {:.2} million weights, operator set {}",
        info.bytes as f64 / 1e6,
        info.parameters as f64 / 1e6,
        info.opset
    ))?;
    tell(format_args!("layout: {}", info.layout))?;
    let operators: Vec<String> = info.operators.iter().map(|(name, n)| format!("{name} {n}")).collect();
    tell(format_args!("operators: {}", operators.join(", ")))?;
    tell(format_args!("runtime: {}", info.runtime))?;
    Ok(ExitCode::SUCCESS)
}

fn tell_manifest(info: &Info, m: &Manifest) -> Result<()> {
    tell(format_args!("{} {}: {}", m.name, m.version, m.description))?;
    tell(format_args!("licence: {}", m.licence))?;
    tell(format_args!("training: {}", m.training))?;
    for (maps, words) in [(MaeMaps::Synthetic, "held-out synthetic maps"), (MaeMaps::Real, "real maps")] {
        let entries = info.mae().iter().filter(|e| e.maps == maps);
        let table: Vec<String> = entries.map(|e| format!("{} {:.1} ({})", e.family, e.mae, e.count)).collect();
        if !table.is_empty() {
            tell(format_args!("MAE on {words}, m/s (maps): {}", table.join(", ")))?;
        }
    }
    let families = Family::ALL.len();
    match &m.families {
        Some(f) => tell(format_args!("gives: velocity, {}{} of {families} families", error_word(m), f.labels.len())),
        None => tell(format_args!("gives: velocity{}", if m.error.is_some() { ", expected error" } else { "" })),
    }
}

fn error_word(m: &Manifest) -> &'static str {
    if m.error.is_some() { "expected error, " } else { "" }
}

fn predict(args: &Predict) -> Result<ExitCode> {
    let survey = Survey::openfwi();
    let jobs = gather_list::list(&args.gathers, &survey)?;
    check_outputs(args, &jobs)?;
    let names = StartFrom::priors(&args.prior)?;
    let threads = at_a_time(args.threads);
    let (most, quiet) = (args.max_memory, args.quiet);
    let terms = Terms { threads: args.threads, at_a_time: threads, most, share: Share::Whole, quiet };
    let opened = args.options.open(&names, &terms)?;
    args.say(&format!("prior: {}", opened.prior.describe()));
    args.say(&format!("memory: {} for the prior", opened.memory));
    let signals = Signals::install()?;
    let mut sink = Sink::create(args, jobs.len(), &survey)?;
    let (mut seconds, mut predicted, mut refused, mut failures) = (0.0, 0, 0, Vec::<Error>::new());
    for block in jobs.chunks(threads) {
        let since = Instant::now();
        let outcomes = predict_block(&*opened.prior, block, &survey);
        seconds += since.elapsed().as_secs_f64();
        for (job, outcome) in block.iter().zip(outcomes) {
            let failure = match outcome {
                Ok(Ok(prediction)) => {
                    args.tell_prediction(job, &prediction)?;
                    sink.take(args, job, prediction)?;
                    predicted += 1;
                    continue;
                }
                Ok(Err(unread)) => unread,
                Err(failed @ (Error::Input { .. } | Error::Memory(_))) if predicted > 0 || refused < PATIENCE => {
                    refused += 1;
                    failed
                }
                Err(e) => return Err(e),
            };
            // the last one of none that could be read ends all
            if failures.len() + 1 < jobs.len() {
                note(format_args!("error: {failure}"));
            }
            // the others keep their places
            sink.skip()?;
            failures.push(failure);
        }
        if signals.stop.load(Ordering::Relaxed) {
            return Err(signals.interruption(None));
        }
    }
    let n = jobs.len();
    if failures.len() == n
        && let Some(last) = failures.pop()
    {
        return Err(last);
    }
    sink.finish(args)?;
    args.say(&format!("{:.3} s a prediction, reading included ({n} in {seconds:.1} s)", seconds / n as f64));
    let without = match failures.len() {
        0 => String::new(),
        failed => format!("; not-a-number for {failed} of {n} gathers, which could not be read or predicted"),
    };
    args.say(&format!("wrote {}{without}", args.output.display()));
    Ok(failures.first().map_or(ExitCode::SUCCESS, |e| ExitCode::from(e.exit_code())))
}

/// Reads and predicts a few gathers side by side. One that cannot be read is no failure of the prior.
fn predict_block(prior: &dyn Prior, jobs: &[Job], survey: &Survey) -> Vec<Result<Result<Prediction>>> {
    let one = |job: &Job| {
        let observed = match job.observe(survey) {
            Ok(observed) => observed,
            Err(unread) => return Ok(Err(unread)),
        };
        predict_one(prior, &observed).map(Ok).map_err(|e| about_gather(e, &job.id))
    };
    side_by_side(jobs, one)
}

/// Errors when an output is an input or has a name that cannot be written.
fn check_outputs(args: &Predict, jobs: &[Job]) -> Result<()> {
    let outputs: Vec<&Path> = [Some(&args.output), args.errors.as_ref(), args.png.as_ref()]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .collect();
    for (i, output) in outputs.iter().enumerate() {
        let fail = |why: &str| Err(Error::Usage(format!("{}: {why}", output.display())));
        check_apart(output, jobs.iter().map(|job| &*job.path).chain(args.prior.iter().map(Path::new)))?;
        if outputs[..i].iter().any(|other| same_place(other, output)) {
            return fail("is named twice; choose another name");
        }
    }
    match &args.png {
        Some(png) if !png.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) => {
            Err(Error::Usage(format!("{}: figures are PNG; give the name that extension", png.display())))
        }
        _ => Ok(()),
    }
}

impl Predict {
    fn say(&self, text: &str) {
        if !self.quiet {
            note(text);
        }
    }

    fn tell_prediction(&self, job: &Job, prediction: &Prediction) -> Result<()> {
        if self.quiet {
            return Ok(());
        }
        let (low, high) = prediction.velocity.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        let error = expected_error(prediction).map_or(String::new(), |e| format!(", expected error {e:.0} m/s"));
        let families = families(prediction).map_or(String::new(), |f| format!("; {f}"));
        tell(format_args!("{}: {low:.0}..{high:.0} m/s{error}{families}", job.id))
    }
}

/// Where predictions go.
struct Sink {
    many: Option<(ArrayWriter, Option<ArrayWriter>)>,
    one: Option<Prediction>,
    shown: Vec<(String, Array2<f64>)>,
}

impl Sink {
    fn create(args: &Predict, n: usize, survey: &Survey) -> Result<Self> {
        let (nz, nx) = survey.map_shape();
        let create = |path: &PathBuf| ArrayWriter::create(path, &[nz, nx], DType::F32, Some(n));
        let many = match n {
            1 => None,
            _ => Some((create(&args.output)?, args.errors.as_ref().map(create).transpose()?)),
        };
        Ok(Self { many, one: None, shown: vec![] })
    }

    fn take(&mut self, args: &Predict, job: &Job, prediction: Prediction) -> Result<()> {
        if args.errors.is_some() && prediction.error.is_none() {
            return Err(Error::Usage("--errors: this prior does not tell what error it expects; leave it out".into()));
        }
        if self.shown.len() < SHEET {
            self.shown.push((job.id.clone(), prediction.velocity.mapv(f64::from)));
        }
        let Some((maps, errors)) = &mut self.many else {
            self.one = Some(prediction);
            return Ok(());
        };
        maps.append(prediction.velocity.view())?;
        match (errors, &prediction.error) {
            (Some(errors), Some(error)) => errors.append(error.view()),
            _ => Ok(()),
        }
    }

    /// In place of one of many that could not be read, not-a-number.
    fn skip(&mut self) -> Result<()> {
        let Some((maps, errors)) = &mut self.many else { return Ok(()) };
        let nothing = Array2::from_elem(Survey::openfwi().map_shape(), f32::NAN);
        maps.append(nothing.view())?;
        errors.as_mut().map_or(Ok(()), |errors| errors.append(nothing.view()))
    }

    fn finish(self, args: &Predict) -> Result<()> {
        let survey = Survey::openfwi();
        if let Some(p) = &self.one {
            write_array(&args.output, p.velocity.view())?;
            if let (Some(path), Some(error)) = (&args.errors, &p.error) {
                write_array(path, error.view())?;
            }
        }
        if let Some((maps, errors)) = self.many {
            maps.finish()?;
            errors.map_or(Ok(()), ArrayWriter::finish)?;
        }
        let Some(png) = &args.png else { return Ok(()) };
        let figure = match &self.shown[..] {
            [] => return Ok(()),
            [(_, map)] => plot::map_figure(map.view(), survey.dx, None, None)?,
            several => {
                let views: Vec<_> = several.iter().map(|(_, m)| m.view()).collect();
                let captions: Vec<String> = several.iter().map(|(id, _)| id.clone()).collect();
                plot::contact_sheet(ndarray::stack(Axis(0), &views).expect("maps of one shape").view(), &captions)?
            }
        };
        write_atomic(png, |w| w.write_all(&figure))
    }
}
