//! `fwi bench families`: whole inversions of modelled or given gathers whose maps are known, by family.

use super::asked::{Asked, ask};
use super::bench_file::CaseFile;
use super::bench_table::{Watch, show};
use super::engine::{BASE_BYTES, Engine};
use super::evaluate::{parse_maps, read_maps};
use super::method::Signals;
use super::note;
use super::options::{check_apart, larger_fields, parse_duration, parse_pairs, short_digest};
use super::prior_options::{Opened, PriorOptions, Share, StartFrom, Terms};
use super::recipe_choice::{Choice, Chosen, kept, load, without_recipe};
use clap::Subcommand;
use fwi::family::bench::{Case, Coverage};
use fwi::family::{Ingredient, Recipe};
use fwi::invert::{Attempt, FirstStart, Inversion, Settings, Start, StopReason, invert_with_fallbacks, matrix_bytes};
use fwi::io::{Gathers, Limits};
use fwi::misfit::L2;
use fwi::synth::draw;
use fwi::{Error, Family, Gather, Model, Observed, Propagator, Result, Survey};
use ndarray::Array2;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Measure.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Invert the gathers of known maps one after the other; print errors, data rms, evaluations and seconds by family
    Families(Box<Families>),
}

/// Measure by family.
#[derive(clap::Args)]
struct Families {
    /// Families to measure [default: all ten, or those of --maps]
    #[arg(long, value_name = "FAMILY,..", value_delimiter = ',', value_parser = parse_family)]
    families: Vec<Family>,
    /// Maps of each family; of a file, its first
    #[arg(short, long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    n: u64,
    /// Seed of the synthetic maps
    #[arg(long, default_value = "2026")]
    seed: u64,
    /// True maps of a family, as in CurveVel_A=maps.npy, in place of synthetic ones; of a file of several arrays, the one named so; may be given several times
    #[arg(long, value_name = "FAMILY=MAPS", value_parser = parse_maps)]
    maps: Vec<(Family, PathBuf)>,
    /// The gathers of a family's --maps, in their order, in place of modelled ones
    #[arg(long, value_name = "FAMILY=GATHERS", value_parser = parse_maps)]
    gathers: Vec<(Family, PathBuf)>,
    /// Where every inversion begins: "prior" (the network in this binary) or "gradient" [default: prior]
    #[arg(long, value_name = "prior|gradient")]
    start: Option<String>,
    /// Start from what this prior predicts: a name or an ONNX file; several are combined
    #[arg(long, value_name = "NAME|FILE,..", value_delimiter = ',', conflicts_with = "start")]
    prior: Vec<String>,
    /// Invert everything by this recipe, an embedded one (fwi recipes list) or a TOML file [default: from a prior, that of
    /// the group that the gather is found to be of; else the default stages]
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Leave ingredients out of the recipes, to see what they are worth: prior-start, prior-mean, continuation,
    /// gauss-newton, squared-slowness, patches, rounding, source-row, fallbacks
    #[arg(long, value_name = "INGREDIENT,..", value_delimiter = ',', value_parser = parse_ingredient)]
    without: Vec<Ingredient>,
    /// Pairs that L-BFGS remembers
    #[arg(long, value_name = "N", default_value_t = Settings::default().memory, value_parser = parse_pairs)]
    memory: usize,
    /// Most time for a gather, such as 90s, 10m or 1h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    time_limit: Option<Duration>,
    /// Compare the standard deviations of the cells with the errors found, too
    #[arg(long)]
    uncertainty: bool,
    /// Write a line of JSON for every gather as it ends, and one of the summary
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Take over from --json what it holds of the same maps, gathers and settings
    #[arg(long, requires = "json")]
    resume: bool,
    /// Overwrite --json
    #[arg(long, requires = "json", conflicts_with = "resume")]
    force: bool,
    /// Say nothing but results and errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    prior_options: PriorOptions,
    #[command(flatten)]
    engine: Engine,
}

fn parse_family(text: &str) -> std::result::Result<Family, String> {
    text.parse().map_err(|e: Error| e.to_string())
}

fn parse_ingredient(text: &str) -> std::result::Result<Ingredient, String> {
    text.parse().map_err(|e: Error| e.to_string())
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Families(args) => families(&args),
    }
}

/// The maps of a family, and their gathers where they are given.
struct Set {
    family: Family,
    origin: String,
    maps: Vec<Array2<f64>>,
    gathers: Option<PathBuf>,
}

impl Families {
    fn sets(&self, survey: &Survey) -> Result<Vec<Set>> {
        let fail = |what: String| Err(Error::Usage(what));
        let given = |list: &[(Family, PathBuf)], family| list.iter().find(|(f, _)| *f == family).map(|p| p.1.clone());
        for list in [&self.maps, &self.gathers] {
            if let Some((_, (f, _))) = list.iter().enumerate().find(|(i, (f, _))| list[..*i].iter().any(|p| p.0 == *f))
            {
                return fail(format!("{f} is given two files; put its maps into one"));
            }
        }
        if let Some((f, _)) = self.gathers.iter().find(|(f, _)| given(&self.maps, *f).is_none()) {
            return fail(format!("--gathers {f} needs the true maps, too; give them with --maps {f}=FILE"));
        }
        let mut families = self.families.clone();
        families.extend(self.maps.iter().map(|p| p.0));
        if families.is_empty() {
            families.extend(Family::ALL);
        }
        families.sort();
        families.dedup();
        let mut sets = vec![];
        for family in families {
            let (origin, maps) = match given(&self.maps, family) {
                Some(path) => (path.display().to_string(), read_maps(family, &path, self.n as usize, survey)?),
                None => {
                    let maps = (0..self.n).map(|i| draw(family, self.seed, i).mapv(f64::from)).collect();
                    (format!("synthetic, seed {}", self.seed), maps)
                }
            };
            let gathers = given(&self.gathers, family);
            if let Some(path) = &gathers {
                let found = Gathers::open(path, survey.gather_shape(), &Limits::default())?.len();
                if found < maps.len() {
                    let problem = format!("holds {found} gathers for {} maps; lower -n or give all", maps.len());
                    return Err(Error::input(path, problem));
                }
            }
            sets.push(Set { family, origin, maps, gathers });
        }
        Ok(sets)
    }

    /// Errors when the results would be written over what is read.
    fn check_outputs(&self) -> Result<()> {
        let Some(json) = &self.json else { return Ok(()) };
        let read = self.maps.iter().chain(&self.gathers).map(|p| &*p.1);
        check_apart(json, read.chain(self.recipe.iter().chain(&self.prior).map(Path::new)))
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            note(text);
        }
    }
}

/// Everything that the inversions share.
struct Bench<'a> {
    args: &'a Families,
    /// Bytes besides the prior's.
    budget: u64,
    survey: Survey,
    choice: Choice,
    prior: Option<Opened>,
    modelling: Box<dyn Propagator>,
    coarse: Box<dyn Propagator>,
    fine: Option<Box<dyn Propagator>>,
    signals: Signals,
    /// Whether memory was told.
    said: AtomicBool,
}

fn families(args: &Families) -> Result<ExitCode> {
    let survey = Survey::openfwi();
    args.check_outputs()?;
    let sets = args.sets(&survey)?;
    let choice = match &args.recipe {
        Some(name) => Choice::Recipe(Box::new(load(name, survey.dt)?)),
        None => Choice::Open,
    };
    let prior = match StartFrom::resolve(Some(args.start.as_deref().unwrap_or("prior")), &args.prior)? {
        StartFrom::Gradient => None,
        StartFrom::Maps(map) => {
            return Err(Error::Usage(format!("--start {}: is neither \"prior\" nor \"gradient\"", map.display())));
        }
        StartFrom::Priors(names) => {
            let (threads, most, quiet) = (args.engine.threads, args.engine.max_memory, args.quiet);
            let terms = Terms { threads, at_a_time: 1, most, share: Share::Half, quiet };
            Some(args.prior_options.open_start(&names, &terms)?)
        }
    };
    // the prior stays
    let budget = args.engine.budget()?.saturating_sub(prior.as_ref().map_or(0, |p| p.bytes));
    let engine = args.engine.with_budget(budget);
    let bench = Bench {
        args,
        budget,
        modelling: engine.modelling().propagator(survey.clone())?,
        coarse: engine.propagator(survey.clone())?,
        fine: engine.refined().map(|e| e.propagator(survey.clone())).transpose()?,
        survey,
        choice,
        prior,
        signals: Signals::install()?,
        said: AtomicBool::new(false),
    };
    // nothing is written over before all that was asked for is known to make sense
    bench.settings().validate(bench.survey.dt)?;
    let mut file = CaseFile::open(args.json.as_deref(), args.resume, args.force)?;
    bench.report(&sets);
    let (mut cases, mut failure) = (vec![], None);
    let total: usize = sets.iter().map(|s| s.maps.len()).sum();
    for set in &sets {
        for number in 0..set.maps.len() {
            let watch = Watch::new(set.family, number, cases.len(), total, args.quiet);
            match bench.case(set, number, &file, watch) {
                Ok((case, known)) => {
                    if !known {
                        file.append(&case)?;
                    }
                    cases.push(case);
                }
                Err(e @ (Error::Interrupted { .. } | Error::Device { .. })) => {
                    show(&cases)?;
                    return Err(e);
                }
                Err(e) => {
                    note(format_args!("{} {number}: {e}", set.family));
                    failure.get_or_insert(e.exit_code());
                }
            }
        }
    }
    let summary = show(&cases)?;
    file.append(&summary)?;
    Ok(failure.map_or(ExitCode::SUCCESS, ExitCode::from))
}

impl Bench<'_> {
    fn report(&self, sets: &[Set]) {
        let gathers: usize = sets.iter().map(|s| s.maps.len()).sum();
        self.args.say(&format!("gathers: {gathers}, of {} families", sets.len()));
        match &self.prior {
            Some(opened) => self.args.say(&format!("prior: {}, {}", opened.prior.describe(), opened.memory)),
            None => self.args.say("start: gradient"),
        }
        self.args.say(&format!("engine: {}", self.coarse.describe()));
        if let Some(fine) = &self.fine {
            self.args.say(&format!("engine of refined stages: {}", fine.describe()));
        }
    }

    /// How a gather is inverted: recipes to be tried one after the other.
    fn attempts(&self, chosen: Option<Chosen>) -> Result<Vec<Attempt>> {
        let settings = self.settings();
        let Some(chosen) = chosen else { return Ok(without_recipe(&settings)) };
        let less = |recipe: Recipe| recipe.without(&self.args.without);
        let chain = less(chosen.recipe)?.chain(self.survey.dt)?;
        chain.into_iter().map(|recipe| Ok(Attempt::new(less(recipe)?, &settings))).collect()
    }

    /// A case, and whether the file had it already.
    fn case(&self, set: &Set, number: usize, file: &CaseFile, mut watch: Watch) -> Result<(Case, bool)> {
        let truth = &set.maps[number];
        let given = set.gathers.as_deref().map(|path| self.given(path, number)).transpose()?;
        let key = self.key(truth, given.as_ref());
        if let Some(case) = file.find(set.family, &key) {
            return Ok((case.clone(), true));
        }
        let gather = match given {
            Some(gather) => gather,
            None => self.modelling.forward(&[Model::from_map(truth.clone())])?.remove(0),
        };
        let observed = Observed::new(gather);
        let ask = |opened: &Opened| ask(&*opened.prior, &self.survey, &observed, None, &self.choice);
        let gradient = FirstStart { start: Start::Gradient, name: "gradient".into(), confidence: None };
        let (first, chosen) = match self.prior.as_ref().map(ask).transpose()? {
            Some(asked) if self.args.without.contains(&Ingredient::PriorStart) => (gradient, asked.chosen),
            Some(Asked { start, confidence, chosen, .. }) => {
                (FirstStart { start, name: "prior".into(), confidence }, chosen)
            }
            None => (gradient, self.choice.settle(None, self.survey.dt)?),
        };
        let attempts = self.attempts(chosen)?;
        self.check_memory(&attempts)?;
        let evaluation_seconds = self.time_evaluation(&first.start, &observed)?;
        let make = |settings: &Settings| self.inversion(&observed, truth, settings);
        let outcome = invert_with_fallbacks(&attempts, &first, &make, &mut watch)?;
        if outcome.stop == StopReason::Cancelled {
            return Err(self.signals.interruption(self.args.json.as_deref()));
        }
        if let Some(why) = outcome.broke_down() {
            return Err(Error::Numerical(why.into()));
        }
        let kept = kept(&attempts, &outcome);
        let (maps, name) = (set.origin.clone(), kept.recipe.clone());
        let mut case = Case::new(set.family, maps, number as u64, key, name, &outcome, truth, evaluation_seconds);
        if self.args.uncertainty {
            let deviations = make(&kept.settings)?.uncertainty(&outcome, None)?.deviations;
            case.coverage = Some(Coverage::of(&deviations, &outcome.model.vp, truth));
        }
        let best = self.fine.as_ref().unwrap_or(&self.coarse);
        case.noise_rms = Some(observed.rms(&best.forward(&[Model::from_map(truth.clone())])?.remove(0)));
        case.soon_mae = watch.soon_mae(&case);
        watch.ended(&case);
        Ok((case, false))
    }

    /// Errors where the recipes' normal matrices do not fit beside the fields.
    fn check_memory(&self, attempts: &[Attempt]) -> Result<()> {
        let stages = attempts.iter().flat_map(|a| &a.settings.stages);
        let newton = matrix_bytes(stages.clone(), self.args.uncertainty, &self.survey, self.args.engine.threads)?;
        let fields = larger_fields(&*self.coarse, self.fine.as_deref(), stages);
        let prior = self.prior.as_ref().map_or(0, |opened| opened.bytes);
        if newton + fields > self.budget {
            let (all, limit) = ((newton + fields) >> 20, self.budget >> 20);
            let cure = match newton {
                0 => "raise --max-memory",
                _ => "raise --max-memory, or take a recipe without Gauss-Newton stages: --recipe continuation",
            };
            return Err(Error::Memory(format!("normal matrices and fields take {all} MB of {limit} MB; {cure}")));
        }
        if !self.said.swap(true, Relaxed) {
            let all = (BASE_BYTES + prior + newton + fields) >> 20;
            self.args.say(&format!("memory: at most {all} MB, {} MB of them for normal matrices", newton >> 20));
        }
        Ok(())
    }

    fn given(&self, path: &Path, number: usize) -> Result<Gather> {
        let mut gathers = Gathers::open(path, self.survey.gather_shape(), &Limits::default())?;
        Ok(Gather::new(gathers.get(number)?))
    }

    fn inversion<'a>(
        &'a self,
        observed: &'a Observed,
        truth: &'a Array2<f64>,
        settings: &Settings,
    ) -> Result<Inversion<'a>> {
        let inversion = Inversion::new(&*self.coarse, observed, settings.clone())?.truth(truth)?;
        let inversion = inversion.cancel(&self.signals.stop).threads(self.args.engine.threads);
        match &self.fine {
            Some(fine) => inversion.refine(&**fine),
            None => Ok(inversion),
        }
    }

    /// All but the stages of a recipe.
    fn settings(&self) -> Settings {
        let pin_sources = !self.args.without.contains(&Ingredient::SourceRow);
        Settings { memory: self.args.memory, time_limit: self.args.time_limit, pin_sources, ..Settings::default() }
    }

    /// Seconds of an evaluation at the start; the first one, which takes memory, does not count.
    fn time_evaluation(&self, start: &Start, observed: &Observed) -> Result<f64> {
        let model = [start.model(&self.survey, observed, self.settings().bounds)?];
        let observed = std::slice::from_ref(observed);
        self.coarse.misfit_and_gradient(&model, observed, &L2)?;
        let begin = Instant::now();
        self.coarse.misfit_and_gradient(&model, observed, &L2)?;
        Ok(begin.elapsed().as_secs_f64().max(1e-9))
    }

    /// Checksum of a map, its gather where it is given, and all that decides what becomes of them.
    fn key(&self, truth: &Array2<f64>, gather: Option<&Gather>) -> String {
        let mut hash = Sha256::new();
        let prior = self.prior.as_ref().map(|p| p.prior.describe());
        let engines = (self.coarse.arithmetic(), self.fine.as_ref().map(|f| f.arithmetic()));
        let options = (self.args.engine.threads, &self.args.prior_options, self.args.uncertainty);
        let without = &self.args.without;
        hash.update(format!("{:?}{prior:?}{engines:?}{options:?}{without:?}", self.settings()).as_bytes());
        match &self.choice {
            Choice::Recipe(chosen) => hash.update(format!("{:?}", chosen.recipe).as_bytes()),
            _ => Recipe::names().filter_map(|n| Recipe::text(n).ok()).for_each(|text| hash.update(text.as_bytes())),
        }
        truth.iter().chain(gather.into_iter().flat_map(|g| &g.data)).for_each(|v| hash.update(v.to_le_bytes()));
        short_digest(hash)
    }
}
