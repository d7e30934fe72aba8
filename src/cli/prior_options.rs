//! Which prior, and how it is computed: options that `fwi invert`, `fwi batch` and `fwi prior` share.

use super::engine::BASE_BYTES;
use super::note;
use super::options::available_memory;
use super::recipe_choice::Choice;
use clap::{Args, ValueEnum};
use fwi::prior::registry::{self, Found};
use fwi::prior::{
    Augment, Combine, Combined, Completed, Flipped, InTurns, Info, Network, Prediction, Replayed, Runtime,
    RuntimeChoice, Source,
};
#[cfg(unix)]
use fwi::prior::{Isolated, WorkerLimits};
use fwi::{Error, Family, Prior, Result, Survey};
use ndarray::Array2;
use std::path::{Path, PathBuf};

/// How priors are computed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Prior")]
pub struct PriorOptions {
    /// How the maps of several priors become one
    #[arg(long, value_enum, default_value = "mean")]
    pub combine: CombineArg,
    /// Test-time augmentation: flip averages with the mirrored gather's map, replay models the map and shows the network what it
    /// misses, three times [default: what the prior's manifest says]
    #[arg(long, value_enum)]
    pub tta: Option<TtaArg>,
    #[command(flatten)]
    pub runtime: RuntimeOptions,
}

/// What computes priors.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Prior")]
pub struct RuntimeOptions {
    /// What computes the network: auto takes ONNX Runtime 1.24 or newer if its library is found (FWI_ONNXRUNTIME names
    /// it), and the built-in tract otherwise
    #[arg(long, value_name = "auto|tract|PATH", default_value = "auto", value_parser = parse_runtime)]
    pub onnx_runtime: RuntimeChoice,
}

/// See [`PriorOptions::combine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CombineArg {
    /// The mean of every cell
    Mean,
    /// The median of every cell
    Median,
}

/// See [`PriorOptions::tta`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TtaArg {
    /// The network's own map
    Off,
    /// Averaged with the mirrored gather's
    Flip,
    /// Shown what its maps miss
    Replay,
}

fn parse_runtime(text: &str) -> std::result::Result<RuntimeChoice, String> {
    match text {
        "" => Err("write auto, tract or the path of a library".into()),
        "auto" => Ok(RuntimeChoice::Auto),
        "tract" => Ok(RuntimeChoice::Tract),
        path => Ok(RuntimeChoice::Library(path.into())),
    }
}

/// Where an inversion begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// Exact source velocities and a gradient with depth.
    Gradient,
    /// The map or maps in a file or directory.
    Maps(PathBuf),
    /// What these priors predict.
    Priors(Vec<String>),
}

impl StartFrom {
    /// What `--start` and `--prior` ask for. Without them, the prior in the binary, if there is one.
    pub fn resolve(start: Option<&str>, priors: &[String]) -> Result<Self> {
        match start {
            _ if !priors.is_empty() => Ok(Self::Priors(priors.to_vec())),
            None => Ok(Self::priors(&[]).map_or(Self::Gradient, Self::Priors)),
            Some("gradient") => Ok(Self::Gradient),
            Some("prior") => Self::priors(&[]).map(Self::Priors),
            Some(map) if !map.contains(['.', ':', '/']) && !Path::new(map).exists() => {
                Err(Error::Usage(format!("--start {map}: is neither \"gradient\", \"prior\" nor a file; name a map")))
            }
            Some(map) => Ok(Self::Maps(map.into())),
        }
    }

    /// The priors that an inversion asks: those that predict its start, or for a map of one's own that in the binary, if there is
    /// one and `choice` has use for its word.
    pub fn asked(&self, choice: &Choice) -> Option<Vec<String>> {
        match self {
            Self::Gradient => None,
            Self::Maps(_) => Self::priors(&[]).ok().filter(|_| choice.asks_a_prior()),
            Self::Priors(names) => Some(names.clone()),
        }
    }

    /// The priors that are named, or else the one in the binary.
    pub fn priors(names: &[String]) -> Result<Vec<String>> {
        match names {
            [] => registry::default_prior().map(|b| vec![b.name.to_string()]).ok_or_else(no_prior),
            names => Ok(names.to_vec()),
        }
    }

    /// For results: "gradient", "prior" or the file.
    pub fn name(&self) -> String {
        match self {
            Self::Gradient => "gradient".into(),
            Self::Maps(path) => path.display().to_string(),
            Self::Priors(_) => "prior".into(),
        }
    }

    /// The files it reads.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Gradient => vec![],
            Self::Maps(path) => vec![path.clone()],
            Self::Priors(names) => names.iter().map(PathBuf::from).collect(),
        }
    }
}

fn no_prior() -> Error {
    Error::Usage("this binary holds no prior; name an ONNX file with --prior".into())
}

/// The bytes that a prior may take, and its process: `--max-memory`, or half of what is free, 8 GB at most.
pub fn memory_limit(max_memory: Option<u64>) -> u64 {
    max_memory.unwrap_or_else(|| available_memory().map_or(4 << 30, |free| (free / 2).min(8 << 30)))
}

/// Bytes kept from processes of priors' own for what this process does about their predictions: the bundled prior's word, gathers
/// that are modelled.
const BESIDE: u64 = 64 << 20;

/// Which part of the memory priors in processes of their own may take, and predictions at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of it: they are alone, or gone before the work begins.
    Whole,
    /// Half: what else computes needs the rest.
    Half,
}

/// On what terms priors are opened.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Threads of ONNX Runtime and of modelling, 0 for one a core.
    pub threads: usize,
    /// Predictions at a time, if there is memory for so many.
    pub at_a_time: usize,
    /// `--max-memory`.
    pub most: Option<u64>,
    /// What part of the memory processes of their own may take.
    pub share: Share,
    /// Say nothing of a runtime that cannot be used.
    pub quiet: bool,
}

/// Predictions at a time that `--threads` asks for, 0 for one a core.
pub fn at_a_time(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    }
}

/// A prior that is ready.
pub struct Opened {
    /// The prior.
    pub prior: Box<dyn Prior>,
    /// Bytes that it takes at most, its processes included.
    pub bytes: u64,
    /// The same in words.
    pub memory: String,
}

/// A network that is ready.
enum Ready {
    Here(Network),
    #[cfg(unix)]
    Apart(Isolated),
}

impl PriorOptions {
    /// Opens priors by name or file, those in the binary in this process, files in processes of their own. Together with this
    /// process they stay within the memory of the terms (see [`memory_limit`]); fewer predict at a time where it is short.
    pub fn open(&self, names: &[String], terms: &Terms) -> Result<Opened> {
        self.ready(names, terms, false)
    }

    /// The same for the start of an inversion, which wants to know the family and how far off a map may be: where no prior tells,
    /// the one in the binary does.
    pub fn open_start(&self, names: &[String], terms: &Terms) -> Result<Opened> {
        self.ready(names, terms, true).map_err(|error| match error {
            Error::Memory(what) => Error::Memory(format!("{what}; or take --start gradient")),
            other => other,
        })
    }

    fn ready(&self, names: &[String], terms: &Terms, judged: bool) -> Result<Opened> {
        let limit = memory_limit(terms.most);
        let memory = limit.saturating_sub(BASE_BYTES);
        let share = if terms.share == Share::Half { memory / 2 } else { memory };
        let found = names.iter().map(|name| registry::find(name)).collect::<Result<Vec<_>>>()?;
        let files = found.iter().filter(|f| cfg!(unix) && matches!(f, Found::Files(_))).count() as u64;
        let beside = if files > 0 && (judged || self.tta.is_some()) { BESIDE } else { 0 };
        let each = share.saturating_sub(beside) / files.max(1);
        let (mut priors, mut error, mut families) = (vec![], false, false);
        for found in found {
            let ready = self.runtime.network(found, terms.threads, each, terms.quiet)?;
            let manifest = ready.info().manifest.as_ref();
            error |= manifest.is_some_and(|m| m.error.is_some());
            families |= manifest.is_some_and(|m| m.families.is_some());
            priors.push(self.augmented(ready, terms.threads)?);
        }
        let how = if self.combine == CombineArg::Mean { Combine::Mean } else { Combine::Median };
        let mut prior = if priors.len() == 1 { priors.remove(0) } else { Box::new(Combined::new(priors, how)?) };
        if judged
            && !(error && families)
            && let Some(bundled) = registry::default_prior()
        {
            let judge = self.runtime.network(Found::Bundled(bundled), terms.threads, each, true)?;
            prior = Box::new(Completed::new(prior, judge.prior()));
        }
        let least = prior.bytes() + prior.bytes_each();
        if least > memory {
            let (takes, limit) = (least >> 20, limit >> 20);
            let problem = format!("the prior takes {takes} MB, more than the limit of {limit} MB allows");
            return Err(Error::Memory(format!("{problem}; raise --max-memory")));
        }
        // more at a time within its share only: the rest is for what else computes
        let room = share.saturating_sub(each * files + least);
        let more = room.checked_div(prior.bytes_each()).map_or(usize::MAX, |n| n as usize);
        let prior = InTurns::new(prior, terms.at_a_time.min(more.saturating_add(1)));
        let (bytes, apart) = (prior.bytes(), each * files);
        let total = bytes + apart;
        let memory = match files {
            0 => format!("about {} MB", bytes >> 20),
            1 => format!("at most {} MB, {} MB of them in a process of its own", total >> 20, apart >> 20),
            n => format!("at most {} MB, {} MB of them in {n} processes of their own", total >> 20, apart >> 20),
        };
        Ok(Opened { prior: Box::new(prior), bytes: total, memory })
    }

    /// A network with the test-time augmentation that is asked for, or that its manifest names.
    fn augmented(&self, ready: Ready, threads: usize) -> Result<Box<dyn Prior>> {
        let named = ready.info().augment();
        let prior = ready.prior();
        let augment = self.tta.map_or(named, |t| match t {
            TtaArg::Off => Augment::Off,
            TtaArg::Flip => Augment::Flip,
            TtaArg::Replay => Augment::Replay,
        });
        Ok(match augment {
            Augment::Off => prior,
            Augment::Flip => Box::new(Flipped::new(prior, &Survey::openfwi(), threads)?),
            Augment::Replay => Box::new(Replayed::new(prior, &Survey::openfwi(), threads)?),
        })
    }
}

impl RuntimeOptions {
    /// What is known about a prior.
    pub fn inspect(&self, name: &str, memory: u64) -> Result<Info> {
        Ok(self.network(registry::find(name)?, 0, memory.saturating_sub(BASE_BYTES), false)?.info().clone())
    }

    fn network(&self, found: Found, threads: usize, memory: u64, quiet: bool) -> Result<Ready> {
        match found {
            Found::Bundled(bundled) => {
                let (runtime, trouble) = Runtime::choose(&self.onnx_runtime)?;
                trouble.filter(|_| !quiet).iter().for_each(note);
                bundled.open(&runtime, threads).map(Ready::Here)
            }
            Found::Files(source) => self.apart(&source, threads, memory, quiet),
        }
    }

    /// Files of others are opened by a second process of this program.
    #[cfg(unix)]
    fn apart(&self, source: &Source, threads: usize, memory: u64, quiet: bool) -> Result<Ready> {
        if memory < LEAST_PROCESS {
            let (path, left) = (source.model.display(), memory >> 20);
            return Err(Error::Memory(format!(
                "{path}: {left} MB are left for the prior's process; raise --max-memory"
            )));
        }
        let program = std::env::current_exe().map_err(|e| Error::io("fwi", "find", e))?;
        let limits = WorkerLimits { memory, ..WorkerLimits::default() };
        let arguments = vec![WORKER.to_string()];
        let worker = Isolated::open(program, arguments, source, &self.onnx_runtime, threads, limits)?;
        worker.trouble().filter(|_| !quiet).iter().for_each(note);
        Ok(Ready::Apart(worker))
    }

    #[cfg(not(unix))]
    fn apart(&self, source: &Source, threads: usize, _: u64, quiet: bool) -> Result<Ready> {
        let (runtime, trouble) = Runtime::choose(&self.onnx_runtime)?;
        trouble.filter(|_| !quiet).iter().for_each(note);
        Network::open(source, &runtime, threads).map(Ready::Here)
    }
}

/// Name of the hidden subcommand that is a prior's process.
pub const WORKER: &str = "prior-worker";

impl Ready {
    fn info(&self) -> &Info {
        match self {
            Self::Here(network) => network.info(),
            #[cfg(unix)]
            Self::Apart(worker) => worker.info(),
        }
    }

    fn prior(self) -> Box<dyn Prior> {
        match self {
            Self::Here(network) => Box::new(network),
            #[cfg(unix)]
            Self::Apart(worker) => Box::new(worker),
        }
    }
}

/// Least memory with which a process of a prior's own can start, bytes.
#[cfg(unix)]
const LEAST_PROCESS: u64 = 16 << 20;

/// What a prior fails with, with the gather that it was asked about.
pub fn about_gather(error: Error, id: &str) -> Error {
    match error {
        Error::Input { path, problem } => Error::Input { path, problem: format!("{problem} (gather {id})") },
        Error::Memory(problem) => Error::Memory(format!("{problem} (gather {id})")),
        other => other,
    }
}

/// Predictions of all items at the same time, a thread each, in their order.
pub fn side_by_side<T: Send, R: Send>(
    items: impl IntoIterator<Item = T>,
    one: impl Fn(T) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    let one = &one;
    let panicked = || Err(Error::Numerical("the prediction panicked".into()));
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || one(item))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| panicked())).collect()
    })
}

/// The likeliest families of a prediction, at most three, in words; nothing if the prior does not tell.
pub fn families(prediction: &Prediction) -> Option<String> {
    let mut list: Vec<(Family, f64)> = prediction.families.clone()?;
    list.sort_by(|a, b| b.1.total_cmp(&a.1));
    let words: Vec<String> = list
        .iter()
        .enumerate()
        .take_while(|(i, (_, q))| *i == 0 || (*i < 3 && *q >= 0.01))
        .map(|(_, (f, q))| format!("{f} {:.0}%", 100.0 * q))
        .collect();
    Some(words.join(", "))
}

/// Mean of the error that the prior expects, m/s.
pub fn expected_error(prediction: &Prediction) -> Option<f64> {
    let error = prediction.error.as_ref()?;
    Some(error.iter().map(|&e| f64::from(e)).sum::<f64>() / error.len() as f64)
}

/// Least error that is believed of a prior, and the largest that makes sense: the span of the velocities, m/s.
const ERRORS: (f64, f64) = (10.0, 3000.0);

/// The errors that a prior expects of its map, m/s, as standard deviations of a start; within what is believed of one.
pub fn confidence(prediction: &Prediction) -> Option<Array2<f64>> {
    prediction.error.as_ref().map(|e| e.mapv(|e| f64::from(e).clamp(ERRORS.0, ERRORS.1)))
}
