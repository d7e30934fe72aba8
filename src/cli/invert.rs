//! `fwi invert`: one gather to a velocity map with figures, result and log.

use super::asked::ask;
use super::engine::{BASE_BYTES, Engine};
use super::explain::explain;
use super::method::{Method, Signals, Until};
use super::monitor::{Budget, Monitor};
use super::note;
use super::options::{larger_fields, observe, parse_noise, same_file, short_digest};
use super::prior_options::{PriorOptions, Share, StartFrom, Terms};
use super::recipe_choice::{Choice, Chosen, kept, load, without_recipe};
use super::rundir::{Origin, RunDir, UNKNOWN};
use fwi::family::Recipe;
use fwi::invert::{
    Attempt, FirstStart, Inversion, Settings, Start, StopReason, invert_with_fallbacks, matrix_bytes,
    resume_with_fallbacks,
};
use fwi::io::{Limits, read_map};
use fwi::{Error, Observed, Propagator, Result, Survey};
use ndarray::Array2;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod outputs;

use outputs::{conclude, report, uncertainty, write_outputs};

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
    /// Noise of the data that --uncertainty assumes, rms in their units [default: what the last stage assumed or the data rms reached, whichever is larger, at least 1e-5]
    #[arg(long, value_name = "RMS", value_parser = parse_noise, requires = "uncertainty")]
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

impl Plan {
    /// Where the inversion begins, for its directory.
    fn origin(&self, prior: Option<serde_json::Value>, recipe: Option<String>) -> Origin {
        let map = match &self.start {
            Some(Start::Map(map)) => Some(checksum(map)),
            _ => None,
        };
        Origin { start: self.from.name(), prior, recipe, gather: Some(checksum(&self.observed.gather.data)), map }
    }
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
        if let Some(names) = plan.from.asked(&plan.choice) {
            return self.predict(&names, plan);
        }
        let name = plan.from.name();
        let chosen = plan.choice.settle(None, plan.survey.dt)?;
        let recipe = chosen.as_ref().map(|c| c.source.clone());
        let origin = plan.origin(None, recipe);
        let start = plan.start.clone().unwrap_or(Start::Gradient);
        Ok(Beginning { first: FirstStart { start, name, confidence: None }, origin, chosen })
    }

    /// The start that priors predict, or what they make of the one that is given, and what the result tells about them. They are
    /// gone before the inversion begins.
    fn predict(&self, names: &[String], plan: &Plan) -> Result<Beginning> {
        let (threads, most, quiet) = (self.engine.threads, self.engine.max_memory, self.quiet);
        let terms = Terms { threads, at_a_time: 1, most, share: Share::Whole, quiet };
        let opened = self.prior_options.open_start(names, &terms)?;
        self.say(&format!("prior: {}", opened.prior.describe()));
        self.say(&format!("memory: {} for the prior, before the inversion", opened.memory));
        let given = match &plan.start {
            Some(Start::Map(map)) => Some(map),
            _ => None,
        };
        let asked = ask(&*opened.prior, &plan.survey, &plan.observed, given, &plan.choice)?;
        let class = &asked.class;
        let probabilities: serde_json::Map<String, serde_json::Value> =
            class.families.iter().map(|(f, q)| (f.to_string(), json!(q))).collect();
        let said = json!({
            "description": opened.prior.describe(),
            "expected_mae": asked.expected_mae,
            "family": class.family.name(),
            "group": class.group.name(),
            "families": probabilities,
        });
        let name = plan.from.name();
        let recipe = asked.chosen.as_ref().map(|c| c.source.clone());
        let origin = plan.origin(Some(said), recipe);
        let first = FirstStart { start: asked.start, name, confidence: asked.confidence };
        Ok(Beginning { first, origin, chosen: asked.chosen })
    }

    /// Errors where what is to be resumed is not what is asked for.
    fn check_same(&self, plan: &Plan, dir: &RunDir, output: &Path) -> Result<()> {
        let origin = dir.origin();
        let fail = |problem: String| Err(Error::Usage(format!("{}: {problem}", output.display())));
        let here = plan.origin(None, None);
        if origin.gather.is_some() && origin.gather != here.gather {
            return fail("holds the inversion of another gather; choose another -o".into());
        }
        let (asked, begun) = (&here.start, &origin.start);
        // the same map, wherever it lies
        let same = if origin.map.is_some() && here.map.is_some() { origin.map == here.map } else { asked == begun };
        if (self.start.is_some() || !self.prior.is_empty()) && *begun != UNKNOWN && !same {
            return fail(format!("the inversion began from {begun}, not from {asked}; choose another -o, or --force"));
        }
        if self.uncertainty && dir.is_finished() && !dir.has_uncertainty() {
            return fail("the inversion has ended without --uncertainty; invert anew with --force".into());
        }
        Ok(())
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
        let newton = matrix_bytes(stages, self.uncertainty, &plan.survey, self.engine.threads)?;
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
        if way.newton == 0 || way.newton + way.fields(&engines) <= budget {
            return Ok(engines);
        }
        let too_much = || {
            Error::Memory(format!(
                "the {} of recipe {} take {} MB, more than the limit of {} MB leaves them; raise --max-memory, or {}",
                if self.uncertainty { "Gauss-Newton stages and --uncertainty" } else { "Gauss-Newton stages" },
                way.attempts[0].recipe,
                way.newton >> 20,
                (budget + BASE_BYTES) >> 20,
                if self.uncertainty {
                    "do without --uncertainty"
                } else {
                    "take a recipe without them: --recipe continuation"
                }
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

impl Way {
    /// Bytes of the engines' fields, which compute by turns.
    fn fields(&self, engines: &Engines) -> u64 {
        let stages = self.attempts.iter().flat_map(|a| &a.settings.stages);
        larger_fields(&*engines.coarse, engines.fine.as_deref(), stages)
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
    if args.resume && dir.is_used() {
        args.check_same(&plan, &dir, output)?;
    }
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
    write_outputs(&args, &plan, &origin, &engines, &way, (&outcome, None), &dir, &convergence)?;
    if args.uncertainty && outcome.stop != StopReason::Cancelled {
        // what goes wrong from here on does not cost the map
        let deviations = uncertainty(&args, &make(&kept(&way.attempts, &outcome).settings)?, &outcome)?;
        write_outputs(&args, &plan, &origin, &engines, &way, (&outcome, Some(&deviations)), &dir, &convergence)?;
    }
    conclude(&args, &way, &outcome, &dir, &signals)
}

/// Of the numbers of an array, hex.
fn checksum<'a>(numbers: impl IntoIterator<Item = &'a f64>) -> String {
    let mut hash = Sha256::new();
    numbers.into_iter().for_each(|x| hash.update(x.to_le_bytes()));
    short_digest(hash)
}

/// A refused checkpoint with where it lies, and with the recipe's file, which may have changed since.
fn another(error: Error, output: &Path, chosen: Option<&Chosen>) -> Error {
    let Error::Usage(what) = error else { return error };
    let file = chosen.filter(|c| Recipe::names().all(|n| n != c.source));
    let changed = file.map_or(String::new(), |c| format!(" (it followed {}: has that file changed?)", c.source));
    Error::Usage(format!("{}: {what}{changed}", output.display()))
}
