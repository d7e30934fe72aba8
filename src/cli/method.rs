//! How to optimise and when to stop: options and signals that `fwi invert` and `fwi batch` share.

use super::options::{parse_duration, parse_pairs, parse_positive};
use super::recipe_choice::{Choice, load};
use fwi::invert::{Settings, Stage, prior_schedule};
use fwi::{Error, Family, Result, Survey};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// When an inversion ends at the latest.
#[derive(clap::Args)]
pub struct Until {
    /// Most evaluations of a gather (one forward and one adjoint each)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_evals: Option<u64>,
    /// Most time for a gather, such as 90s, 10m or 1h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub time_limit: Option<Duration>,
    /// Stop when the data rms falls to this
    #[arg(long, value_name = "RMS", value_parser = parse_positive)]
    pub target_rms: Option<f64>,
}

/// How to optimise.
#[derive(clap::Args)]
#[command(next_help_heading = "Method")]
pub struct Method {
    /// Recipe: a name that fwi recipes list shows, or a TOML file [default: that of the gather's group, frequency continuation
    /// from --start gradient]
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "stages")]
    recipe: Option<String>,
    /// Take the recipe for this family, such as CurveFault_B, in place of the one for the group that is found
    #[arg(long, value_name = "FAMILY", conflicts_with_all = ["stages", "recipe"])]
    family: Option<Family>,
    /// Stages in place of a recipe, each MISFIT or MISFIT@EVALUATIONS: lowpass:HZ, l2, l1, huber:D, student:S
    #[arg(long, value_name = "STAGES")]
    stages: Option<String>,
    /// Smallest and largest velocity, m/s
    #[arg(long, value_name = "LOW,HIGH", value_delimiter = ',', num_args = 1, default_value = "1500,4500")]
    bounds: Vec<f64>,
    /// Pairs that L-BFGS remembers
    #[arg(long, value_name = "N", default_value_t = Settings::default().memory, value_parser = parse_pairs)]
    memory: usize,
}

impl Method {
    /// What was asked for.
    pub fn choice(&self, survey: &Survey) -> Result<Choice> {
        Ok(match (&self.recipe, self.family, &self.stages) {
            (Some(name), _, _) => Choice::Recipe(Box::new(load(name, survey.dt)?)),
            (_, Some(family), _) => Choice::Family(family),
            (_, _, Some(_)) => Choice::Stages,
            _ => Choice::Open,
        })
    }

    /// The settings of an inversion, if the survey can compute what the bounds allow; `from_prior` chooses the stages
    /// where neither they nor a recipe are named.
    pub fn settings(&self, until: &Until, survey: &Survey, from_prior: bool) -> Result<Settings> {
        let [low, high] = self.bounds[..] else {
            return Err(Error::Usage("--bounds takes two velocities, as in 1500,4500".into()));
        };
        if low < high {
            let fail = |e| Error::Usage(format!("--bounds {low},{high}: {e}; narrow the bounds"));
            [low, high].iter().try_for_each(|&vmin| survey.check_velocities(low, high, vmin)).map_err(fail)?;
        }
        let mut settings = Settings {
            bounds: (low, high),
            memory: self.memory,
            max_evals: until.max_evals,
            time_limit: until.time_limit,
            target_rms: until.target_rms,
            ..Settings::default()
        };
        match &self.stages {
            Some(text) => settings.stages = Stage::parse_schedule(text)?,
            None if from_prior => settings.stages = prior_schedule(),
            None => (),
        }
        Ok(settings)
    }
}

/// Flags that SIGINT and SIGTERM set; a second signal ends the process at once.
pub struct Signals {
    /// Whether to stop.
    pub stop: Arc<AtomicBool>,
    number: Arc<AtomicUsize>,
}

impl Signals {
    /// Takes both signals over.
    pub fn install() -> Result<Self> {
        let signals = Self { stop: Arc::default(), number: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, signals.stop.clone())
                .and_then(|_| signal_hook::flag::register_usize(signal, signals.number.clone(), signal as usize))
                .and_then(|_| signal_hook::flag::register(signal, signals.stop.clone()))
                .map_err(|e| Error::Usage(format!("cannot watch for signals: {e}")))?;
        }
        Ok(signals)
    }

    /// The error that stands for the signal that came; what was reached lies in `saved`, if anywhere.
    pub fn interruption(&self, saved: Option<&Path>) -> Error {
        let signal = self.number.load(Ordering::SeqCst) as i32;
        Error::Interrupted { signal, saved: saved.map(Path::to_path_buf) }
    }
}
