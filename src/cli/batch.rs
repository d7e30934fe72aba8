//! `fwi batch`: many gathers to velocity maps, as many at a time as keep the device busy.

use super::asked::ask;
use super::batchdir::{BatchDir, Line};
use super::engine::Engine;
use super::gather_list::{self, Job, MapPerGather};
use super::method::{Method, Signals, Until};
use super::note;
use super::options::{same_file, short_digest};
use super::prior_options::{Opened, PriorOptions, Share, StartFrom, Terms, at_a_time};
use super::recipe_choice::{Choice, load as load_recipe};
use super::tally::Tally;
use fwi::family::Recipe;
use fwi::invert::{Attempt, Outcome, Settings, Stage, Start, Task, bytes_per_inversion, invert_many, matrix_bytes};
use fwi::io::split_entry;
use fwi::wave::Dispatch;
use fwi::{Error, Propagator, Result, Survey};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod outputs;

use outputs::{conclude, line, report};

/// Invert many gathers.
#[derive(clap::Args)]
pub struct Args {
    /// Gathers (5, 1000, 70), stacks of them, or directories of .npy gathers
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// Directory for velocity/ID.npy, results.jsonl, summary.json and velocity.png; ID is the file's name, with _INDEX
    /// in a stack
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Inversions at a time [default: as many as keep the device busy and fit the memory]. --time-limit is wall time, which those
    /// on one device share: with 1 each has it to itself
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    in_flight: Option<u32>,
    /// Starting models: "prior" (what the network in this binary predicts), "gradient" (exact source velocities, growing
    /// with depth), or maps in m/s: one for all, a stack in the gathers' order, or a directory of ID.npy [default: what the
    /// recipe named says, else the prior if there is one]
    #[arg(long, value_name = "prior|gradient|MAPS")]
    start: Option<String>,
    /// Start from the maps that this prior predicts: a name or an ONNX file; several are combined
    #[arg(long, value_name = "NAME|FILE,..", value_delimiter = ',', conflicts_with = "start")]
    prior: Vec<String>,
    /// True maps, to report the error against: a stack in the gathers' order, or a directory of ID.npy
    #[arg(long, value_name = "MAPS")]
    truth: Option<PathBuf>,
    #[command(flatten)]
    until: Until,
    /// Leave out the gathers that DIR holds results of; those that failed are tried again
    #[arg(long)]
    resume: bool,
    /// Remove what an earlier batch left in DIR
    #[arg(long, conflicts_with = "resume")]
    force: bool,
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

/// Streams of a GPU: one computes while another's models and gathers go up and its gradients come down.
const LANES: usize = 2;

/// Everything resolved before any work.
struct Plan {
    survey: Survey,
    settings: Settings,
    choice: Choice,
    /// By recipe, that and its fall-backs: all that some gather may follow; none where all follow the settings.
    recipes: HashMap<String, Vec<Attempt>>,
    /// Bytes of the normal matrices of an inversion in flight, at most.
    newton: u64,
    jobs: Vec<Job>,
    start: Starts,
    start_name: String,
    truth: Option<MapPerGather>,
}

impl Plan {
    /// The stages that some gather may take.
    fn stages(&self) -> Vec<&Stage> {
        self.all_settings().flat_map(|s| &s.stages).collect()
    }

    /// Those that inversions may have.
    fn all_settings(&self) -> impl Iterator<Item = &Settings> {
        let settings = self.recipes.values().flatten().map(|a| &a.settings);
        settings.chain(self.recipes.is_empty().then_some(&self.settings))
    }

    /// Checksum of all that decides what becomes of gathers, but for what files of gathers and starting maps hold and the limits,
    /// which may change from run to run.
    fn key(&self, engines: &Engines) -> String {
        let mut hash = Sha256::new();
        let prior = self.start.opened().map(|opened| opened.prior.describe());
        let arithmetic = (engines.coarse.arithmetic(), engines.fine.as_ref().map(|f| f.arithmetic()));
        let settings = |s: &Settings| Settings { max_evals: None, time_limit: None, target_rms: None, ..s.clone() };
        let (file, entry) = split_entry(Path::new(&self.start_name));
        let start = match self.start {
            // however its name is spelled
            Starts::Maps(..) => file.canonicalize().unwrap_or(file),
            _ => file,
        };
        let family = if let Choice::Family(family) = &self.choice { Some(family) } else { None };
        hash.update(format!("{start:?}{entry:?}{prior:?}{family:?}{arithmetic:?}{:?}", settings(&self.settings)));
        let recipes: BTreeMap<_, _> = self.recipes.iter().collect();
        for attempt in recipes.values().copied().flatten() {
            hash.update(format!("{:?}", Attempt { settings: settings(&attempt.settings), ..attempt.clone() }));
        }
        short_digest(hash)
    }

    /// Errors where maps that a batch has left in `output` are of other gathers or were made in another way.
    fn check_same(&self, output: &Path, done: &HashMap<&str, &Line>, key: &str) -> Result<()> {
        let mut others = 0;
        for (job, line) in self.jobs.iter().filter_map(|job| Some((job, *done.get(&job.id[..])?))) {
            let same =
                line.gather.to_string_lossy() == job.path.to_string_lossy() || same_file(&line.gather, &job.path);
            if !same || line.index != job.index {
                let problem = format!("{} holds the map of another gather called {}", output.display(), job.id);
                return Err(Error::Usage(format!("{problem}; choose another -o for {}", job.path.display())));
            }
            others += usize::from(line.key.as_ref().is_some_and(|k| k != key));
        }
        if others > 0 {
            let problem = format!(
                "{} holds {others} maps made with another start, prior, recipe, settings or engine",
                output.display()
            );
            return Err(Error::Usage(format!(
                "{problem}; repeat those, choose another -o, or do all anew with --force"
            )));
        }
        Ok(())
    }

    /// What an inversion in flight holds.
    fn each(&self) -> u64 {
        bytes_per_inversion(&self.survey, &self.settings) + self.newton
    }
}

/// Where the inversions begin.
enum Starts {
    Gradient,
    /// At given maps, and the prior whose word on the gathers counts.
    Maps(MapPerGather, Option<Opened>),
    Prior(Opened),
}

impl Starts {
    /// The prior that is asked.
    fn opened(&self) -> Option<&Opened> {
        match self {
            Self::Gradient => None,
            Self::Maps(_, opened) => opened.as_ref(),
            Self::Prior(opened) => Some(opened),
        }
    }
}

/// What computes, and how many inversions it shall have at a time.
struct Engines {
    coarse: Dispatch,
    fine: Option<Dispatch>,
    in_flight: usize,
}

impl Args {
    fn plan(&self) -> Result<Plan> {
        let survey = Survey::openfwi();
        let maps = self.output.join("velocity");
        let choice = self.method.choice(&survey)?;
        let from = match choice.begins_with_gradient() && self.start.is_none() && self.prior.is_empty() {
            true => StartFrom::Gradient,
            false => StartFrom::resolve(self.start.as_deref(), &self.prior)?,
        };
        let mut settings = self.method.settings(&self.until, &survey, matches!(from, StartFrom::Priors(_)))?;
        let read = self.inputs.iter().chain(&self.truth).cloned().chain(from.files());
        for input in read {
            let within = if input.is_dir() { Some(&*input) } else { input.parent() };
            if within.is_some_and(|d| !d.as_os_str().is_empty() && same_file(d, &maps)) {
                let message = format!("{}: would be overwritten by the results; choose another -o", input.display());
                return Err(Error::Usage(message));
            }
        }
        let jobs = gather_list::list(&self.inputs, &survey)?;
        gather_list::check_names(&jobs)?;
        let open = |path: &Path| MapPerGather::open(path, jobs.len(), &survey);
        let truth = self.truth.as_deref().map(open).transpose()?;
        let (threads, most, quiet) = (self.engine.threads, self.engine.max_memory, self.quiet);
        let terms = Terms { threads, at_a_time: at_a_time(threads), most, share: Share::Half, quiet };
        let prior = |names: Vec<String>| self.prior_options.open_start(&names, &terms);
        let start = match (&from, from.asked(&choice).map(prior).transpose()?) {
            (StartFrom::Maps(path), opened) => Starts::Maps(open(path)?, opened),
            (_, Some(opened)) => Starts::Prior(opened),
            (_, None) => Starts::Gradient,
        };
        let recipes = recipes(&choice, &settings, &survey, start.opened().is_some())?;
        let start_name = from.name();
        if !recipes.is_empty() {
            settings.stages.clear();
        }
        let mut plan = Plan { survey, settings, choice, recipes, newton: 0, jobs, start, start_name, truth };
        plan.all_settings().try_for_each(|settings| settings.validate(plan.survey.dt))?;
        plan.newton = matrix_bytes(plan.stages(), false, &plan.survey, self.engine.threads)?;
        Ok(plan)
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            note(text);
        }
    }

    /// The engines within the memory that the inversions leave.
    fn engines(&self, plan: &Plan) -> Result<Engines> {
        let taken = plan.start.opened().map_or(0, |opened| opened.bytes);
        let budget = self.engine.budget()?.saturating_sub(taken);
        let each = plan.each();
        let reserve = match self.in_flight {
            Some(n) => u64::from(n) * each,
            // normal matrices: one gather at a time rather than none
            None if plan.newton > 0 => each.max(budget / 2),
            None => budget / 2,
        };
        let Some(rest) = budget.checked_sub(reserve) else {
            let without = match plan.newton {
                0 => "",
                _ => ", or take a recipe without Gauss-Newton stages: --recipe continuation",
            };
            return Err(Error::Memory(format!(
                "{} inversions at a time take {} MB besides the fields; lower --in-flight or raise --max-memory{without}",
                self.in_flight.unwrap_or(1),
                reserve >> 20
            )));
        };
        let share = if self.engine.precision.is_none() { rest / 2 } else { rest };
        let engine = self.engine.with_budget(share);
        let log: fn(&str) = if self.quiet { |_| () } else { |line| note(line) };
        let refined = engine.refined();
        let parts = if refined.is_some() { 2 } else { 1 };
        let coarse = engine.dispatch(&plan.survey, LANES, parts, log)?;
        let fine = refined.map(|e| e.dispatch(&plan.survey, LANES, parts, log)).transpose()?;
        // two groups, so that one's optimisers work while the other's gradients are computed; and more of them as
        // inversions in different stages ask for different misfits, which no call can mix
        let mut kinds: Vec<String> = plan.stages().iter().map(|s| s.misfit.to_string()).collect();
        kinds.sort();
        kinds.dedup();
        let groups = coarse.lanes().max(2) * kinds.len().div_ceil(2);
        let wanted = self.in_flight.map_or(coarse.batch() * groups, |n| n as usize);
        let fit = (reserve / each).max(1) as usize;
        Ok(Engines { coarse, fine, in_flight: wanted.min(fit).min(plan.jobs.len()) })
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let plan = args.plan()?;
    let engines = args.engines(&plan)?;
    let signals = Signals::install()?;
    // nothing in the directory is touched before all that was asked for is known to make sense
    let mut dir = BatchDir::open(&args.output)?;
    let ids = plan.jobs.iter().map(|job| &job.id[..]).collect();
    let used = dir.is_used()?;
    if args.force {
        dir.clear(&ids)?;
    } else if used && !args.resume {
        let message = format!(
            "{} holds a batch; continue it with --resume, replace it with --force or choose another -o",
            args.output.display()
        );
        return Err(Error::Usage(message));
    }
    let earlier = dir.earlier(&ids)?;
    let done: HashMap<&str, &Line> = earlier.iter().map(|(_, line)| (&line.id[..], line)).collect();
    let key = plan.key(&engines);
    plan.check_same(&args.output, &done, &key)?;
    dir.begin(&earlier)?;
    let todo: Vec<&Job> = plan.jobs.iter().filter(|job| !done.contains_key(&job.id[..])).collect();
    let known: Vec<&Line> = plan.jobs.iter().filter_map(|job| done.get(&job.id[..]).copied()).collect();
    report(&args, &plan, &engines, known.len());
    let tally = Tally::new(plan.jobs.len(), &known, args.quiet);
    let load = |job: &&Job| load(&plan, job, args.engine.threads);
    let sink = |job: &Job, outcome: Result<Outcome>| {
        let (line, code) = line(job, &key, &outcome);
        dir.keep(&line, outcome.as_ref().ok().map(|o| &o.model.vp))?;
        tally.add(job.number, line, code, &engines.coarse, engines.fine.as_ref());
        Ok(())
    };
    let fine = engines.fine.as_ref().map(|d| d as &dyn Propagator);
    let in_flight = engines.in_flight.min(todo.len());
    let ended = invert_many(&engines.coarse, fine, todo, &plan.settings, in_flight, &signals.stop, load, sink);
    tally.finish();
    ended?;
    if tally.done() < plan.jobs.len() {
        return Err(signals.interruption(Some(&args.output)));
    }
    conclude(&args, &plan, &engines, &dir, &tally)
}

/// The recipes that gathers may follow: the one asked for, or those of all groups where a prior tells the group.
fn recipes(
    choice: &Choice,
    settings: &Settings,
    survey: &Survey,
    prior_tells: bool,
) -> Result<HashMap<String, Vec<Attempt>>> {
    let chosen = match (choice, prior_tells) {
        (Choice::Open, true) | (Choice::Family(_), true) => {
            Recipe::chosen().into_iter().map(|name| load_recipe(name, survey.dt)).collect::<Result<Vec<_>>>()?
        }
        _ => choice.settle(None, survey.dt)?.into_iter().collect(),
    };
    chosen.into_iter().map(|c| Ok((c.source.clone(), c.attempts(settings, survey.dt)?))).collect()
}

fn load(plan: &Plan, job: &Job, threads: usize) -> Result<Task> {
    let truth = plan.truth.as_ref().map(|maps| maps.get(job, &plan.survey)).transpose()?;
    let observed = job.observe(&plan.survey)?;
    let given = match &plan.start {
        Starts::Maps(maps, _) => Some(maps.get(job, &plan.survey)?),
        _ => None,
    };
    let (start, confidence, chosen) = match plan.start.opened() {
        Some(opened) => {
            let asked = ask(&*opened.prior, &plan.survey, &observed, given.as_ref(), &plan.choice)?;
            (asked.start, asked.confidence, asked.chosen)
        }
        None => (given.map_or(Start::Gradient, Start::Map), None, None),
    };
    let attempts = match &chosen {
        Some(chosen) => plan.recipes.get(&chosen.source),
        None => plan.recipes.values().next(),
    };
    Ok(Task {
        truth,
        confidence,
        attempts: attempts.cloned().unwrap_or_default(),
        start_name: plan.start_name.clone(),
        threads,
        ..Task::new(observed, start)
    })
}
