//! Which prior, and how it is computed: options that `fwi invert`, `fwi batch` and `fwi prior` share.

use super::engine::BASE_BYTES;
use super::note;
use super::options::available_memory;
use super::recipe_choice::Choice;
use clap::{Args, ValueEnum};
use fwi::prior::registry::{self, Found};
use fwi::prior::{
    Augment, Combine, Combined, Flipped, Info, Network, Prediction, Replayed, Runtime, RuntimeChoice, Source,
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

/// Which part of the memory priors in processes of their own may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of it: they are alone, or gone before the work begins.
    Whole,
    /// Half: what else computes needs the rest.
    Half,
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
    /// process they take at most `most` bytes (see [`memory_limit`]), processes of their own `share` of them.
    pub fn open(
        &self,
        names: &[String],
        threads: usize,
        most: Option<u64>,
        share: Share,
        quiet: bool,
    ) -> Result<Opened> {
        let memory = memory_limit(most);
        let processes = memory.saturating_sub(BASE_BYTES) / if share == Share::Half { 2 } else { 1 };
        let found = names.iter().map(|name| registry::find(name)).collect::<Result<Vec<_>>>()?;
        let files = found.iter().filter(|f| cfg!(unix) && matches!(f, Found::Files(_))).count() as u64;
        let each = processes / files.max(1);
        let mut priors: Vec<Box<dyn Prior>> = vec![];
        for found in found {
            let ready = self.runtime.network(found, threads, each, quiet)?;
            let augment = ready.info().augment();
            let prior: Box<dyn Prior> = match ready {
                Ready::Here(network) => Box::new(network),
                #[cfg(unix)]
                Ready::Apart(worker) => Box::new(worker),
            };
            let augment = self.tta.map_or(augment, |t| match t {
                TtaArg::Off => Augment::Off,
                TtaArg::Flip => Augment::Flip,
                TtaArg::Replay => Augment::Replay,
            });
            priors.push(match augment {
                Augment::Off => prior,
                Augment::Flip => Box::new(Flipped::new(prior, &Survey::openfwi(), threads)?),
                Augment::Replay => Box::new(Replayed::new(prior, &Survey::openfwi(), threads)?),
            });
        }
        let how = if self.combine == CombineArg::Mean { Combine::Mean } else { Combine::Median };
        let prior = if priors.len() == 1 { priors.remove(0) } else { Box::new(Combined::new(priors, how)?) };
        let bytes = prior.bytes();
        if bytes + BASE_BYTES > memory {
            return Err(Error::Memory(format!(
                "the prior takes {} MB, more than the limit of {} MB allows; raise --max-memory",
                bytes >> 20,
                memory >> 20
            )));
        }
        let apart = each * files;
        let total = bytes + apart;
        let memory = match files {
            0 => format!("about {} MB", bytes >> 20),
            1 => format!("at most {} MB, {} MB of them in a process of its own", total >> 20, apart >> 20),
            n => format!("at most {} MB, {} MB of them in {n} processes of their own", total >> 20, apart >> 20),
        };
        Ok(Opened { prior, bytes: total, memory })
    }
}

/// A prior that could not be opened for the start of an inversion, which can do without.
pub fn or_gradient(error: Error) -> Error {
    match error {
        Error::Memory(what) => Error::Memory(format!("{what}; or take --start gradient")),
        other => other,
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

/// Least error that is believed of a prior, m/s.
const LEAST_ERROR: f64 = 10.0;

/// The errors that a prior expects of its map, m/s, as standard deviations of a start; not below what is believed of one.
pub fn confidence(prediction: &Prediction) -> Option<Array2<f64>> {
    prediction.error.as_ref().map(|e| e.mapv(|e| f64::from(e).max(LEAST_ERROR)))
}
