//! `fwi invert`: one gather to a velocity map with figures, result and log.

use super::engine::{BASE_BYTES, Engine};
use super::explain::explain;
use super::method::{Method, Signals, Until};
use super::monitor::{Budget, Convergence, Monitor};
use super::note;
use super::options::{memory_line, observe, parse_positive, peak_memory, same_file};
use super::prior_options::{PriorOptions, StartFrom, confidence, expected_error, memory_limit};
use super::recipe_choice::{Choice, Chosen, load, without_recipe};
use super::rundir::{
    CONVERGENCE_FIGURE, GATHER_FIGURE, Origin, RunDir, UNCERTAINTY, UNCERTAINTY_FIGURE, VELOCITY, VELOCITY_FIGURE,
};
use fwi::family::Recipe;
use fwi::invert::{
    Attempt, FirstStart, Inversion, Outcome, Settings, Start, StopReason, Uncertainty, invert_with_fallbacks,
    newton_bytes, resume_with_fallbacks,
};
use fwi::io::{Limits, read_map, write_array, write_atomic};
use fwi::prior::predict_one;
use fwi::{Error, Observed, Propagator, Result, Survey, family, plot};
use ndarray::Array2;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Invert one gather.
#[derive(clap::Args)]
pub struct Args {
    /// Gather (5, 1000, 70), or a stack of them with --index
    gather: PathBuf,
    /// Directory for velocity.npy, result.json, log.jsonl and the figures
    #[arg(short, long, value_name = "DIR", required_unless_present = "explain")]
    output: Option<PathBuf>,
    /// Print which recipe it follows and why, what its stages do and what they take; without -o, invert nothing
    #[arg(long)]
    explain: bool,
    /// Which gather of a stack, from 0
    #[arg(long, value_name = "I", default_value_t = 0)]
    index: usize,
    /// Starting model: "prior" (what the network in this binary predicts), "gradient" (exact source velocities, growing
    /// with depth) or a map (70, 70) in m/s [default: what the recipe named says, else the prior if there is one]
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
    choice: Choice,
    settings: Settings,
}

/// Where an inversion begins.
struct Beginning {
    first: FirstStart,
    origin: Origin,
    chosen: Option<Chosen>,
}

/// What computes: all stages, or refined ones.
struct Engines {
    coarse: Box<dyn Propagator>,
    fine: Option<Box<dyn Propagator>>,
}

/// How it goes on: the recipe, it and its fall-backs as attempts, the bytes of their normal matrices.
struct Way {
    chosen: Option<Chosen>,
    attempts: Vec<Attempt>,
    newton: u64,
}

impl Args {
    fn plan(&self) -> Result<Plan> {
        let survey = Survey::openfwi();
        let limits = Limits::default();
        let inputs = [Some(&self.gather), self.truth.as_ref()].into_iter().flatten().cloned();
        let choice = self.method.choice(&survey)?;
        let from = match choice.begins_with_gradient() && self.start.is_none() && self.prior.is_empty() {
            true => StartFrom::Gradient,
            false => StartFrom::resolve(self.start.as_deref(), &self.prior)?,
        };
        for input in inputs.chain(from.files()) {
            if self.output.as_ref().is_some_and(|o| same_file(&input, &o.join("velocity.npy"))) {
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
        Ok(Plan { survey, observed, truth, from, start, choice, settings })
    }

    /// The start of an inversion that begins, its recipe, and what the result tells about both.
    fn begin(&self, plan: &Plan) -> Result<Beginning> {
        let name = plan.from.name();
        if let (None, StartFrom::Priors(names)) = (&plan.start, &plan.from) {
            return self.predict(names, plan);
        }
        let chosen = plan.choice.settle(None, plan.survey.dt)?;
        let recipe = chosen.as_ref().map(|c| c.source.clone());
        let origin = Origin { start: name.clone(), prior: None, recipe };
        let start = plan.start.clone().unwrap_or(Start::Gradient);
        Ok(Beginning { first: FirstStart { start, name, confidence: None }, origin, chosen })
    }

    /// The start that priors predict, and what the result tells about them. They are gone before the inversion begins.
    fn predict(&self, names: &[String], plan: &Plan) -> Result<Beginning> {
        let memory = memory_limit(self.engine.max_memory);
        let processes = memory.saturating_sub(BASE_BYTES);
        let opened = self.prior_options.open_for_start(names, self.engine.threads, memory, processes, self.quiet)?;
        let prediction = predict_one(&*opened.prior, &plan.observed)?;
        self.say(&format!("prior: {}", opened.prior.describe()));
        self.say(&format!("memory: {} for the prior, before the inversion", opened.memory));
        let class = family::classify(&plan.survey, &plan.observed, &prediction);
        let chosen = plan.choice.settle(Some((&class, &prediction)), plan.survey.dt)?;
        let probabilities: serde_json::Map<String, serde_json::Value> =
            class.families.iter().map(|(f, q)| (f.to_string(), json!(q))).collect();
        let said = json!({
            "description": opened.prior.describe(),
            "expected_mae": expected_error(&prediction),
            "family": class.family.name(),
            "group": class.group.name(),
            "families": probabilities,
        });
        let name = plan.from.name();
        let recipe = chosen.as_ref().map(|c| c.source.clone());
        let origin = Origin { start: name.clone(), prior: Some(said), recipe };
        let start = Start::Map(prediction.velocity.mapv(f64::from));
        Ok(Beginning { first: FirstStart { start, name, confidence: confidence(&prediction) }, origin, chosen })
    }

    /// The recipe of a run that is resumed: what it followed, unless something else is asked for.
    fn recipe_of(&self, plan: &Plan, origin: &Origin) -> Result<Option<Chosen>> {
        match (&plan.choice, &origin.recipe) {
            (Choice::Open | Choice::Family(_), Some(source)) => {
                Ok(Some(Chosen { why: "that of the run resumed".into(), ..load(source, plan.survey.dt)? }))
            }
            (choice, _) => choice.settle(None, plan.survey.dt),
        }
    }

    fn way(&self, plan: &Plan, chosen: Option<Chosen>) -> Result<Way> {
        let attempts = match &chosen {
            Some(chosen) => chosen.attempts(&plan.settings, plan.survey.dt)?,
            None => without_recipe(&plan.settings),
        };
        let stages = attempts.iter().flat_map(|a| &a.settings.stages);
        let newton = newton_bytes(stages, &plan.survey, self.engine.threads)?;
        Ok(Way { chosen, attempts, newton })
    }

    fn engines(&self, engine: &Engine, survey: &Survey) -> Result<Engines> {
        let coarse = engine.propagator(survey.clone())?;
        let fine = engine.refined().map(|e| e.propagator(survey.clone())).transpose()?;
        Ok(Engines { coarse, fine })
    }

    /// The engines within the memory that normal matrices leave.
    fn fit(&self, plan: &Plan, engines: Engines, way: &Way) -> Result<Engines> {
        let budget = self.engine.budget()?;
        let fine = engines.fine.as_ref().map_or(0, |f| f.gradient_bytes());
        if way.newton == 0 || way.newton + engines.coarse.gradient_bytes().max(fine) <= budget {
            return Ok(engines);
        }
        let too_much = || {
            Error::Memory(format!(
                "the Gauss-Newton stages of recipe {} take {} MB, more than the limit of {} MB leaves them; raise \
                 --max-memory, or take a recipe without them: --recipe continuation",
                way.attempts[0].recipe,
                way.newton >> 20,
                (budget + BASE_BYTES) >> 20
            ))
        };
        let rest = budget.checked_sub(way.newton).ok_or_else(too_much)?;
        drop(engines);
        self.engines(&self.engine.with_budget(rest), &plan.survey).map_err(|e| match e {
            Error::Memory(_) => too_much(),
            other => other,
        })
    }

    /// The inversion of some settings.
    fn inversion<'a>(
        &self,
        plan: &'a Plan,
        engines: &'a Engines,
        signals: &'a Signals,
        settings: &Settings,
    ) -> Result<Inversion<'a>> {
        let mut inversion = Inversion::new(&*engines.coarse, &plan.observed, settings.clone())?;
        inversion = inversion.cancel(&signals.stop).threads(self.engine.threads);
        if let Some(truth) = &plan.truth {
            inversion = inversion.truth(truth)?;
        }
        match &engines.fine {
            Some(fine) => inversion.refine(&**fine),
            None => Ok(inversion),
        }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            note(text);
        }
    }
}

impl Engines {
    /// The one of refined stages.
    fn finest(&self) -> &dyn Propagator {
        self.fine.as_deref().unwrap_or(&*self.coarse)
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let plan = args.plan()?;
    let mut engines = args.engines(&args.engine, &plan.survey)?;
    let signals = Signals::install()?;
    args.inversion(&plan, &engines, &signals, &plan.settings)?;
    if let Choice::Recipe(chosen) = &plan.choice {
        engines = args.fit(&plan, engines, &args.way(&plan, Some((**chosen).clone()))?)?;
    }
    let Some(output) = &args.output else {
        let Beginning { first, chosen, .. } = args.begin(&plan)?;
        let Way { chosen, attempts, .. } = args.way(&plan, chosen)?;
        explain(chosen.as_ref(), &attempts, &first.name, &plan.survey, args.engine.threads)?;
        return Ok(ExitCode::SUCCESS);
    };
    // nothing in the directory is touched before all that was asked for is known to make sense
    let mut dir = RunDir::open(output)?;
    if args.resume && dir.is_finished() {
        args.say(&format!("{}: this inversion had come to its end; nothing to resume", output.display()));
        return Ok(ExitCode::SUCCESS);
    }
    if dir.is_used() && !args.resume && !args.force {
        let message = format!(
            "{} holds an inversion; continue it with --resume, replace it with --force or choose another -o",
            output.display()
        );
        return Err(Error::Usage(message));
    }
    dir.sweep();
    let state = if args.resume { dir.checkpoint()? } else { None };
    let (first, origin, chosen) = match &state {
        None => {
            let Beginning { first, origin, chosen } = args.begin(&plan)?;
            (Some(first), origin, chosen)
        }
        Some(_) => {
            let origin = dir.origin();
            let chosen = args.recipe_of(&plan, &origin)?;
            (None, origin, chosen)
        }
    };
    let way = args.way(&plan, chosen)?;
    engines = args.fit(&plan, engines, &way)?;
    if !args.resume {
        dir.clear()?;
    }
    if first.is_some() {
        dir.write_origin(&origin)?;
    }
    if args.explain {
        explain(way.chosen.as_ref(), &way.attempts, &origin.start, &plan.survey, args.engine.threads)?;
    }
    report(&args, &plan, &origin, &engines, &way);
    if let Some(state) = &state {
        args.say(&format!("resuming after iteration {}", state.iterations()));
    } else if args.resume {
        args.say("no checkpoint yet; starting from the beginning");
    }
    let before = dir.open_log(state.as_ref().map_or(0, |s| s.iterations()))?;
    let budget = Budget { evaluations: args.until.max_evals, time: args.until.time_limit };
    let mut monitor = Monitor::new(&mut dir, budget, before, args.quiet);
    let make = |settings: &Settings| args.inversion(&plan, &engines, &signals, settings);
    let outcome = match (state, &first) {
        (Some(state), _) => resume_with_fallbacks(&way.attempts, &origin.start, state, &make, &mut monitor)
            .map_err(|e| another(e, output, way.chosen.as_ref())),
        (None, Some(first)) => invert_with_fallbacks(&way.attempts, first, &make, &mut monitor),
        (None, None) => unreachable!("a run that begins has a start"),
    };
    monitor.finish();
    let convergence = std::mem::take(&mut monitor.convergence);
    let outcome = outcome?;
    let uncertainty = match args.uncertainty && outcome.stop != StopReason::Cancelled {
        true => Some(uncertainty(&args, &make(&way.attempts[kept(&outcome)].settings)?, &outcome)?),
        false => None,
    };
    let told = (&outcome, uncertainty.as_ref());
    write_outputs(&args, &plan, &origin, &engines, &way, told, &dir, &convergence)?;
    conclude(&args, &way, &outcome, &dir, &signals)
}

/// The attempt that the outcome's map is of.
fn kept(outcome: &Outcome) -> usize {
    outcome.attempts.iter().position(|a| a.kept).unwrap_or(0)
}

/// A refused checkpoint with where it lies, and with the recipe's file, which may have changed since.
fn another(error: Error, output: &Path, chosen: Option<&Chosen>) -> Error {
    let Error::Usage(what) = error else { return error };
    let file = chosen.filter(|c| Recipe::names().all(|n| n != c.source));
    let changed = file.map_or(String::new(), |c| format!(" (it followed {}: has that file changed?)", c.source));
    Error::Usage(format!("{}: {what}{changed}", output.display()))
}

/// The family that the prior and the gather tell, or, without a prior, the gather alone.
fn family_of(plan: &Plan, origin: &Origin) -> String {
    let told = origin.prior.as_ref().and_then(|p| p["family"].as_str());
    told.unwrap_or_else(|| family::from_gather(&plan.survey, &plan.observed)).to_string()
}

fn report(args: &Args, plan: &Plan, origin: &Origin, engines: &Engines, way: &Way) {
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
    if let Some(Chosen { recipe, why, .. }) = &way.chosen {
        args.say(&format!("recipe: {}, {why}", recipe.name));
    }
    args.say(&format!("engine: {}", engines.coarse.describe()));
    if let Some(fine) = &engines.fine {
        args.say(&format!("engine of refined stages: {}", fine.describe()));
    }
    args.say(&memory_line(engines.finest(), way.newton));
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

#[expect(clippy::too_many_arguments, reason = "no two of them belong together")]
fn write_outputs(
    args: &Args,
    plan: &Plan,
    origin: &Origin,
    engines: &Engines,
    way: &Way,
    (outcome, uncertainty): (&Outcome, Option<&Uncertainty>),
    dir: &RunDir,
    (history, stages): &Convergence,
) -> Result<()> {
    let propagator = engines.finest();
    let map = &outcome.model.vp;
    write_array(dir.file(VELOCITY), map.mapv(|v| v as f32).view())?;
    let synthetic = propagator.forward(std::slice::from_ref(&outcome.model))?.remove(0);
    let png = |name: &str, bytes: Vec<u8>| write_atomic(dir.file(name), |w| w.write_all(&bytes));
    let truth = plan.truth.as_ref().map(|t| t.view());
    png(VELOCITY_FIGURE, plot::map_figure(map.view(), plan.survey.dx, Some(outcome.start.vp.view()), truth)?)?;
    png(GATHER_FIGURE, plot::gather_figure(&plan.observed, Some(&synthetic), &plan.survey, None)?)?;
    png(CONVERGENCE_FIGURE, plot::convergence_figure(history, stages)?)?;
    let kept = kept(outcome);
    let recipe = way.chosen.as_ref().map(|_| &way.attempts[kept].recipe);
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
        "normal_matrices": outcome.normal_matrices,
        "curvature_seconds": outcome.curvature_seconds,
        "seconds": outcome.seconds,
        "peak_memory_bytes": peak_memory(),
        "stop_reason": outcome.stop.to_string(),
        "recipe": recipe,
        "attempts": if way.chosen.is_some() { &outcome.attempts[..] } else { &[] },
        "stages": outcome.stages,
        "masked_traces": outcome.masked,
        "samples_used": plan.observed.mask.nt,
        "engine": propagator.describe(),
        "settings": way.attempts[kept].settings,
        "uncertainty": uncertainty.map(|u| json!({
            "expected_mae": u.expected_mae(),
            "noise": u.noise,
            "regulariser": u.regularisers,
        })),
    });
    dir.write_result(&result)
}

/// Says how it ended; the exit code tells of an interruption.
fn conclude(args: &Args, way: &Way, outcome: &Outcome, dir: &RunDir, signals: &Signals) -> Result<ExitCode> {
    for a in outcome.attempts.iter().filter(|_| way.attempts.len() > 1) {
        let kept = if a.kept { "kept" } else { "not kept" };
        let rms = a.data_rms.map_or("not begun".into(), |rms| format!("data rms {rms:.3e}"));
        args.say(&format!("recipe {} from {}: {rms}, {kept}", a.recipe, a.start));
    }
    let mae = outcome.mae.map_or(String::new(), |m| format!(", MAE {m:.2} m/s"));
    args.say(&format!(
        "data rms {:.3e}{mae} after {} evaluations in {:.0} s: {}",
        outcome.data_rms, outcome.evaluations, outcome.seconds, outcome.stop
    ));
    args.say(&format!("wrote {}", dir.file(VELOCITY).display()));
    match outcome.stop {
        StopReason::Cancelled => Err(signals.interruption(args.output.as_deref().unwrap_or(Path::new(".")))),
        StopReason::MaxEvals { .. } | StopReason::TimeLimit { .. } => Ok(ExitCode::SUCCESS),
        _ => dir.finish().map(|()| ExitCode::SUCCESS),
    }
}
