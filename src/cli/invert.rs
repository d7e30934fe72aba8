//! `fwi invert`: one gather to a velocity map with figures, result and log.

use super::engine::{BASE_BYTES, Engine};
use super::method::{Method, Signals, Until};
use super::monitor::{Budget, Convergence, Monitor};
use super::note;
use super::options::{memory_line, observe, parse_positive, peak_memory, same_file};
use super::prior_options::{PriorOptions, StartFrom, confidence, expected_error, memory_limit};
use super::rundir::{
    CONVERGENCE_FIGURE, GATHER_FIGURE, Origin, RunDir, UNCERTAINTY, UNCERTAINTY_FIGURE, VELOCITY, VELOCITY_FIGURE,
};
use fwi::invert::{Inversion, Outcome, Settings, Start, StopReason, Uncertainty};
use fwi::io::{Limits, read_map, write_array, write_atomic};
use fwi::prior::predict_one;
use fwi::{Error, Observed, Propagator, Result, Survey, family, plot};
use ndarray::Array2;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Invert one gather.
#[derive(clap::Args)]
pub struct Args {
    /// Gather (5, 1000, 70), or a stack of them with --index
    gather: PathBuf,
    /// Directory for velocity.npy, result.json, log.jsonl and the figures
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Which gather of a stack, from 0
    #[arg(long, value_name = "I", default_value_t = 0)]
    index: usize,
    /// Starting model: "prior" (what the network in this binary predicts; the default if there is one), "gradient" (exact
    /// source velocities, growing with depth) or a map (70, 70) in m/s
    #[arg(long, value_name = "prior|gradient|MAP")]
    start: Option<String>,
    /// Start from the map that this prior predicts: a name or an ONNX file; several are combined
    #[arg(long, value_name = "NAME|FILE,..", value_delimiter = ',', conflicts_with = "start")]
    prior: Vec<String>,
    /// True map, to report the error against
    #[arg(long, value_name = "MAP")]
    truth: Option<PathBuf>,
    #[command(flatten)]
    until: Until,
    /// Continue the run that was interrupted or ran into a limit in DIR; without one, begin
    #[arg(long)]
    resume: bool,
    /// Overwrite what an earlier run left in DIR
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Write the standard deviation of every cell, too: uncertainty.npy and uncertainty.png, in m/s
    #[arg(long)]
    uncertainty: bool,
    /// Noise of the data that --uncertainty assumes, rms in their units [default: the data rms reached, at least 1e-5]
    #[arg(long, value_name = "RMS", value_parser = parse_positive, requires = "uncertainty")]
    noise: Option<f64>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    method: Method,
    #[command(flatten)]
    prior_options: PriorOptions,
    #[command(flatten)]
    engine: Engine,
}

/// Everything resolved before any work.
struct Plan {
    survey: Survey,
    observed: Observed,
    truth: Option<Array2<f64>>,
    from: StartFrom,
    /// The start, unless a prior is to predict it.
    start: Option<Start>,
    settings: Settings,
}

/// The start, the errors expected of it and what the result tells of the prior.
type Predicted = (Start, Option<Array2<f64>>, Option<serde_json::Value>);

/// Where an inversion begins.
struct Beginning {
    start: Start,
    confidence: Option<Array2<f64>>,
    origin: Origin,
}

impl Args {
    fn plan(&self) -> Result<Plan> {
        let survey = Survey::openfwi();
        let limits = Limits::default();
        let inputs = [Some(&self.gather), self.truth.as_ref()].into_iter().flatten().cloned();
        let from = StartFrom::resolve(self.start.as_deref(), &self.prior)?;
        for input in inputs.chain(from.files()) {
            if same_file(&input, &self.output.join("velocity.npy")) {
                let message = format!("{}: would be overwritten by the result; choose another -o", input.display());
                return Err(Error::Usage(message));
            }
        }
        let observed = observe(&self.gather, self.index, &survey)?;
        let truth = self.truth.as_ref().map(|p| read_map(p, survey.map_shape(), &limits)).transpose()?;
        let settings = self.method.settings(&self.until, &survey, matches!(from, StartFrom::Priors(_)))?;
        let start = match &from {
            StartFrom::Gradient => Some(Start::Gradient),
            StartFrom::Maps(path) => Some(Start::Map(read_map(path, survey.map_shape(), &limits)?)),
            StartFrom::Priors(_) => None,
        };
        Ok(Plan { survey, observed, truth, from, start, settings })
    }

    /// The start of an inversion that begins, and what the result tells about it.
    fn begin(&self, plan: &Plan) -> Result<Beginning> {
        let name = plan.from.name();
        let (start, confidence, prior) = match (&plan.start, &plan.from) {
            (None, StartFrom::Priors(names)) => self.predict(names, &plan.observed)?,
            (start, _) => (start.clone().unwrap_or(Start::Gradient), None, None),
        };
        Ok(Beginning { start, confidence, origin: Origin { start: name, prior } })
    }

    /// The start that priors predict, and what the result tells about them. They are gone before the inversion begins.
    fn predict(&self, names: &[String], observed: &Observed) -> Result<Predicted> {
        let memory = memory_limit(self.engine.max_memory);
        let processes = memory.saturating_sub(BASE_BYTES);
        let opened = self.prior_options.open_for_start(names, self.engine.threads, memory, processes, self.quiet)?;
        let prediction = predict_one(&*opened.prior, observed)?;
        self.say(&format!("prior: {}", opened.prior.describe()));
        self.say(&format!("memory: {} for the prior, before the inversion", opened.memory));
        let class = family::classify(&Survey::openfwi(), observed, &prediction);
        let probabilities: serde_json::Map<String, serde_json::Value> =
            class.families.iter().map(|(f, q)| (f.to_string(), json!(q))).collect();
        let said = json!({
            "description": opened.prior.describe(),
            "expected_mae": expected_error(&prediction),
            "family": class.family.name(),
            "group": class.group.name(),
            "families": probabilities,
        });
        Ok((Start::Map(prediction.velocity.mapv(f64::from)), confidence(&prediction), Some(said)))
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            note(text);
        }
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let plan = args.plan()?;
    let propagator = args.engine.propagator(plan.survey.clone())?;
    let fine = args.engine.refined().map(|e| e.propagator(plan.survey.clone())).transpose()?;
    let signals = Signals::install()?;
    let mut inversion = Inversion::new(&*propagator, &plan.observed, plan.settings.clone())?;
    inversion = inversion.cancel(&signals.stop).threads(args.engine.threads);
    if let Some(truth) = &plan.truth {
        inversion = inversion.truth(truth)?;
    }
    if let Some(fine) = &fine {
        inversion = inversion.refine(&**fine)?;
    }
    // nothing in the directory is touched before all that was asked for is known to make sense
    let mut dir = RunDir::open(&args.output)?;
    if args.resume && dir.is_finished() {
        args.say(&format!("{}: this inversion had come to its end; nothing to resume", args.output.display()));
        return Ok(ExitCode::SUCCESS);
    }
    if dir.is_used() && !args.resume && !args.force {
        let message = format!(
            "{} holds an inversion; continue it with --resume, replace it with --force or choose another -o",
            args.output.display()
        );
        return Err(Error::Usage(message));
    }
    dir.sweep();
    let state = if args.resume { dir.checkpoint()? } else { None };
    let begun = if state.is_none() { Some(args.begin(&plan)?) } else { None };
    if !args.resume {
        dir.clear()?;
    }
    let (start, origin) = match begun {
        Some(Beginning { start, confidence, origin }) => {
            dir.write_origin(&origin)?;
            if let Some(deviations) = confidence {
                inversion = inversion.confidence(deviations)?;
            }
            (start, origin)
        }
        None => (Start::Gradient, dir.origin()),
    };
    report(&args, &plan, &origin, &*propagator, fine.as_deref());
    if let Some(state) = &state {
        args.say(&format!("resuming after iteration {}", state.iterations()));
    } else if args.resume {
        args.say("no checkpoint yet; starting from the beginning");
    }
    let before = dir.open_log(state.as_ref().map_or(0, |s| s.iterations()))?;
    let budget = Budget { evaluations: args.until.max_evals, time: args.until.time_limit };
    let mut monitor = Monitor::new(&mut dir, budget, before, args.quiet);
    let outcome = match state {
        Some(state) => inversion.resume(state, &mut monitor).map_err(|e| match e {
            Error::Usage(what) => Error::Usage(format!("{}: {what}", args.output.display())),
            other => other,
        }),
        None => inversion.run(&start, &mut monitor),
    };
    monitor.finish();
    let convergence = std::mem::take(&mut monitor.convergence);
    let outcome = outcome?;
    let uncertainty = match args.uncertainty && outcome.stop != StopReason::Cancelled {
        true => Some(uncertainty(&args, &inversion, &outcome)?),
        false => None,
    };
    let told = (&outcome, uncertainty.as_ref());
    write_outputs(&args, &plan, &origin, fine.as_deref().unwrap_or(&*propagator), told, &dir, &convergence)?;
    conclude(&args, &outcome, &dir, &signals)
}

/// The family that the prior and the gather tell, or, without a prior, the gather alone.
fn family_of(plan: &Plan, origin: &Origin) -> String {
    let told = origin.prior.as_ref().and_then(|p| p["family"].as_str());
    told.unwrap_or_else(|| family::from_gather(&plan.survey, &plan.observed)).to_string()
}

fn report(args: &Args, plan: &Plan, origin: &Origin, propagator: &dyn Propagator, fine: Option<&dyn Propagator>) {
    args.say(&format!("gather: {}, family {}", args.gather.display(), family_of(plan, origin)));
    let o = &plan.observed;
    if o.mask.nt < plan.survey.nt {
        args.say("the last sample is zero everywhere and does not count");
    }
    for (what, list) in [("not finite", &o.bad), ("dead", &o.dead)] {
        if !list.is_empty() {
            let named: Vec<String> = list.iter().take(5).map(|(s, r)| format!("shot {s} receiver {r}")).collect();
            let more = if list.len() > 5 { ", ..." } else { "" };
            args.say(&format!("{} traces are {what} and do not count: {}{more}", list.len(), named.join(", ")));
        }
    }
    args.say(&format!("engine: {}", propagator.describe()));
    if let Some(fine) = fine {
        args.say(&format!("engine of refined stages: {}", fine.describe()));
    }
    args.say(&memory_line(fine.unwrap_or(propagator)));
}

/// The standard deviations of the result, told of.
fn uncertainty(args: &Args, inversion: &Inversion, outcome: &Outcome) -> Result<Uncertainty> {
    let begin = std::time::Instant::now();
    let found = inversion.uncertainty(outcome, args.noise)?;
    args.say(&format!(
        "uncertainty: MAE {:.2} m/s expected under a noise of {:.1e}, {:.0} s",
        found.expected_mae(),
        found.noise,
        begin.elapsed().as_secs_f64()
    ));
    Ok(found)
}

fn write_outputs(
    args: &Args,
    plan: &Plan,
    origin: &Origin,
    propagator: &dyn Propagator,
    (outcome, uncertainty): (&Outcome, Option<&Uncertainty>),
    dir: &RunDir,
    (history, stages): &Convergence,
) -> Result<()> {
    let map = &outcome.model.vp;
    write_array(dir.file(VELOCITY), map.mapv(|v| v as f32).view())?;
    let synthetic = propagator.forward(std::slice::from_ref(&outcome.model))?.remove(0);
    let png = |name: &str, bytes: Vec<u8>| write_atomic(dir.file(name), |w| w.write_all(&bytes));
    let truth = plan.truth.as_ref().map(|t| t.view());
    png(VELOCITY_FIGURE, plot::map_figure(map.view(), plan.survey.dx, Some(outcome.start.vp.view()), truth)?)?;
    png(GATHER_FIGURE, plot::gather_figure(&plan.observed, Some(&synthetic), &plan.survey, None)?)?;
    png(CONVERGENCE_FIGURE, plot::convergence_figure(history, stages)?)?;
    if let Some(u) = uncertainty {
        write_array(dir.file(UNCERTAINTY), u.deviations.mapv(|v| v as f32).view())?;
        let title = format!("Expected MAE {:.2} m/s", u.expected_mae());
        png(UNCERTAINTY_FIGURE, plot::uncertainty_figure(u.deviations.view(), plan.survey.dx, &title)?)?;
    }
    let result = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gather": args.gather,
        "index": args.index,
        "start": origin.start,
        "prior": origin.prior,
        "family": family_of(plan, origin),
        "data_rms": outcome.data_rms,
        "data_rms_per_shot": plan.observed.rms_per_shot(&synthetic),
        "mae": outcome.mae,
        "vmin": outcome.model.vmin,
        "evaluations": outcome.evaluations,
        "iterations": outcome.iterations,
        "seconds": outcome.seconds,
        "peak_memory_bytes": peak_memory(),
        "stop_reason": outcome.stop.to_string(),
        "stages": outcome.stages,
        "masked_traces": outcome.masked,
        "samples_used": plan.observed.mask.nt,
        "engine": propagator.describe(),
        "settings": plan.settings,
        "uncertainty": uncertainty.map(|u| json!({
            "expected_mae": u.expected_mae(),
            "noise": u.noise,
            "regulariser": u.regularisers,
        })),
    });
    dir.write_result(&result)
}

/// Says how it ended; the exit code tells of an interruption.
fn conclude(args: &Args, outcome: &Outcome, dir: &RunDir, signals: &Signals) -> Result<ExitCode> {
    let mae = outcome.mae.map_or(String::new(), |m| format!(", MAE {m:.2} m/s"));
    args.say(&format!(
        "data rms {:.3e}{mae} after {} evaluations in {:.0} s: {}",
        outcome.data_rms, outcome.evaluations, outcome.seconds, outcome.stop
    ));
    args.say(&format!("wrote {}", dir.file(VELOCITY).display()));
    match outcome.stop {
        StopReason::Cancelled => Err(signals.interruption(&args.output)),
        StopReason::MaxEvals { .. } | StopReason::TimeLimit { .. } => Ok(ExitCode::SUCCESS),
        _ => dir.finish().map(|()| ExitCode::SUCCESS),
    }
}
