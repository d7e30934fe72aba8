//! Options that several subcommands share, and their resolution into a propagator.

use clap::{Args, ValueEnum};
use fwi::io::{Gathers, Limits};
use fwi::wave::{CpuOptions, Fidelity, Precision, Propagator, build};
use fwi::{Error, Gather, Model, Observed, Result, Survey};
use std::path::Path;

/// Bytes that the process takes besides the propagator's fields: code, gathers, optimiser, figures.
const BASE_BYTES: u64 = 64 << 20;

/// How to compute.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Computing")]
pub struct Engine {
    /// Worker threads; 0 takes one per core
    #[arg(long, default_value = "0", value_name = "N", value_parser = parse_threads)]
    pub threads: usize,
    /// Floating-point type of the wave fields [default: f32; an inversion ends in f64 where f32 rounding stops it]
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    /// exact: every cell at every step (default for f64); fast: causal windows and a decimated history, which change
    /// data and gradients by less than f32 rounding (default for f32)
    #[arg(long, value_enum)]
    pub fidelity: Option<FidelityArg>,
    /// Most memory the process may take, such as 400M or 2G; histories that do not fit are recomputed [default: half
    /// of what is free now]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_memory: Option<u64>,
}

/// See [`Engine::precision`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// Single: what OpenFWI's data were made in
    F32,
    /// Double
    F64,
}

/// See [`Engine::fidelity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FidelityArg {
    /// Every cell, every step
    Exact,
    /// Causal windows, decimated history
    Fast,
}

impl Engine {
    /// Whether every cell is updated at every step.
    pub fn is_exact(&self) -> bool {
        self.fidelity.map_or(self.is_double(), |f| f == FidelityArg::Exact)
    }

    /// Whether the fields are in f64.
    pub fn is_double(&self) -> bool {
        self.precision == Some(PrecisionArg::F64)
    }

    /// Bytes that fields and data may take: the limit less what any run needs.
    pub fn budget(&self) -> Result<u64> {
        let limit = self.max_memory.unwrap_or_else(|| available_memory().map_or(4 << 30, |free| free / 2));
        limit.checked_sub(BASE_BYTES).ok_or_else(|| {
            let (limit, base) = (limit >> 20, BASE_BYTES >> 20);
            Error::Memory(format!("{limit} MB are less than the {base} MB that any run needs; raise --max-memory"))
        })
    }

    /// A propagator for `survey`.
    pub fn propagator(&self, survey: Survey) -> Result<Box<dyn Propagator>> {
        let max_bytes = self.budget()?;
        let options = CpuOptions {
            precision: if self.is_double() { Precision::F64 } else { Precision::F32 },
            fidelity: self.fidelity.map(|f| match f {
                FidelityArg::Exact => Fidelity::Exact,
                FidelityArg::Fast => Fidelity::Fast,
            }),
            threads: self.threads,
            max_bytes,
            isa: None,
        };
        build(survey, &options)
    }
}

impl Engine {
    /// The f64 propagator that an inversion ends with, unless a precision was asked for.
    pub fn refinement(&self, survey: Survey) -> Result<Option<Box<dyn Propagator>>> {
        if self.precision.is_some() {
            return Ok(None);
        }
        let fidelity = self.fidelity.or(Some(FidelityArg::Fast));
        Self { precision: Some(PrecisionArg::F64), fidelity, ..self.clone() }.propagator(survey).map(Some)
    }
}

impl Engine {
    /// The same engine with so many bytes for fields and data.
    pub fn with_budget(&self, bytes: u64) -> Self {
        Self { max_memory: Some(bytes.saturating_add(BASE_BYTES)), ..self.clone() }
    }
}

/// What a gradient will take, in words.
pub fn memory_line(propagator: &dyn Propagator) -> String {
    let total = propagator.gradient_bytes() + BASE_BYTES;
    format!(
        "memory: at most {} MB, {} MB of them for fields and history",
        total >> 20,
        propagator.gradient_bytes() >> 20
    )
}

/// "400M", "2GiB", "150000000": bytes. Bare letters mean powers of 1024.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let binary = match lower.strip_suffix(['k', 'm', 'g', 't']) {
        Some(number) => format!("{number} {}ib", &lower[number.len()..]),
        None => lower,
    };
    binary
        .parse::<bytesize::ByteSize>()
        .map(|b| b.as_u64())
        .map_err(|_| format!("\"{text}\" is no size; write for example 400M or 2G"))
}

/// "90", "10m", "1h 30m": a duration; a bare number is seconds.
pub fn parse_duration(text: &str) -> std::result::Result<std::time::Duration, String> {
    let bare = text.trim().parse::<f64>().ok().and_then(|s| std::time::Duration::try_from_secs_f64(s).ok());
    bare.map_or_else(
        || humantime::parse_duration(text).map_err(|e| format!("{e}; write for example 90s, 10m or 1h")),
        Ok,
    )
}

/// More threads than this only take time and memory to start.
const MAX_THREADS: usize = 1024;

fn parse_threads(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| *n <= MAX_THREADS).ok_or_else(|| format!("write a number from 0 to {MAX_THREADS}"))
}

/// A finite number above zero.
pub fn parse_positive(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0).ok_or_else(|| "write a number above 0".into())
}

/// The model with the sponge velocity that was asked for, if the survey can compute it. `path` and `index` tell where
/// its map comes from.
pub fn usable(mut model: Model, vmin: Option<f64>, survey: &Survey, path: &Path, index: usize) -> Result<Model> {
    let (slowest, fastest) = (model.vmin, model.vmax());
    survey.check_velocities(slowest, fastest, slowest).map_err(|e| Error::input(path, format!("map {index}: {e}")))?;
    if let Some(vmin) = vmin {
        let fail = |e| Error::Usage(format!("--vmin {vmin}: {e}; leave it out or take one near {slowest:.0}"));
        survey.check_velocities(slowest, fastest, vmin).map_err(fail)?;
        model.vmin = vmin;
    }
    Ok(model)
}

/// The observed gather, if there is anything in it to compare with.
pub fn observe(path: &Path, index: usize, survey: &Survey) -> Result<Observed> {
    observe_in(&mut Gathers::open(path, survey.gather_shape(), &Limits::default())?, path, index)
}

/// [`observe`] in an open file.
pub fn observe_in(gathers: &mut Gathers, path: &Path, index: usize) -> Result<Observed> {
    let data = gathers.get(index)?;
    let observed = Observed::new(Gather::new(data));
    match observed.mask.samples() {
        0 => {
            Err(Error::input(path, format!("gather {index}: every trace is zero or not finite; nothing can be fitted")))
        }
        _ => Ok(observed),
    }
}

/// Whether two names stand for one existing file.
pub fn same_file(a: &Path, b: &Path) -> bool {
    a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

/// Bytes of memory that are free for new work, where the system tells.
pub fn available_memory() -> Option<u64> {
    status_bytes("/proc/meminfo", "MemAvailable:")
}

/// Largest resident size of this process so far, bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    status_bytes("/proc/self/status", "VmHWM:")
}

fn status_bytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sizes_and_durations() {
        assert_eq!(parse_size("150M"), Ok(150 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("5000"), Ok(5000));
        assert!(parse_size("many").is_err() && parse_size("-1M").is_err());
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert!(parse_duration("soon").is_err() && parse_duration("-3").is_err());
    }
}
