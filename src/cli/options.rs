//! What several subcommands parse, open and measure alike.

use super::engine::BASE_BYTES;
use fwi::invert::Stage;
use fwi::io::{Gathers, Limits, Maps, split_entry};
use fwi::wave::Propagator;
use fwi::{Error, Gather, Model, Observed, Result, Survey};
use sha2::{Digest, Sha256};
use std::path::Path;

/// What so many bytes of fields and of normal matrices will take in all, in words.
pub fn memory_line(fields: u64, normal_matrices: u64) -> String {
    let total = fields + normal_matrices + BASE_BYTES;
    let matrices = match normal_matrices {
        0 => String::new(),
        bytes => format!(", {} MB for normal matrices", bytes >> 20),
    };
    format!("memory: at most {} MB, {} MB of them for fields and history{matrices}", total >> 20, fields >> 20)
}

/// Bytes of the fields that stages need of one engine.
pub fn fields<'s>(engine: &dyn Propagator, stages: impl IntoIterator<Item = &'s Stage>) -> u64 {
    engine.gradient_bytes(stages.into_iter().all(|stage| stage.misfit.band_limited()))
}

/// The same of two engines that compute by turns: of the one that needs more.
pub fn larger_fields<'s>(
    coarse: &dyn Propagator,
    fine: Option<&dyn Propagator>,
    stages: impl IntoIterator<Item = &'s Stage> + Clone,
) -> u64 {
    fields(coarse, stages.clone()).max(fine.map_or(0, |fine| fields(fine, stages)))
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

pub fn parse_threads(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| *n <= MAX_THREADS).ok_or_else(|| format!("write a number from 0 to {MAX_THREADS}"))
}

/// Most pairs that L-BFGS may remember: these and their copy in a checkpoint take 32 MB, half of [`BASE_BYTES`].
const MAX_PAIRS: usize = 200;

/// Pairs that L-BFGS remembers.
pub fn parse_pairs(text: &str) -> std::result::Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=MAX_PAIRS).contains(n));
    number.ok_or_else(|| format!("write a number from 1 to {MAX_PAIRS}"))
}

/// A finite number above zero.
pub fn parse_positive(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0).ok_or_else(|| "write a number above 0".into())
}

/// A noise that an uncertainty can be of.
pub fn parse_noise(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|v| (1e-9..1e6).contains(v)).ok_or_else(|| "write a number from 1e-9 to 1e6".into())
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

/// Largest amplitude that is taken for one: OpenFWI's are below a hundred, and a square of it still is a number in f32.
const MOST_AMPLITUDE: f64 = 1e12;

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
        _ => {
            let absurd = |x: &f64| x.is_finite() && x.abs() > MOST_AMPLITUDE;
            match observed.gather.data.iter().find(|x| absurd(x)) {
                Some(x) => {
                    let cure = "look at its units and byte order";
                    Err(Error::input(
                        path,
                        format!("gather {index}: holds {x:e}, which no recording of OpenFWI does; {cure}"),
                    ))
                }
                None => Ok(observed),
            }
        }
    }
}

/// The maps of a file; of a set of `fwi synth` where no dataset is named, its velocities.
pub fn maps_of(path: &Path, shape: (usize, usize)) -> Result<Maps> {
    let velocity = std::path::PathBuf::from(format!("{}:/velocity", path.display()));
    Maps::open(path, shape, &Limits::default())
        .or_else(|error| Maps::open(velocity, shape, &Limits::default()).map_err(|_| error))
}

/// The first half of a checksum's digits: enough to tell inputs and settings of one's own apart.
pub fn short_digest(hash: Sha256) -> String {
    hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// Whether two names stand for one existing file, or for entries of it.
pub fn same_file(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| split_entry(path).0.canonicalize();
    whole(a).is_ok_and(|a| whole(b).is_ok_and(|b| a == b))
}

/// Whether two names stand for one place, whether or not there is a file yet.
pub fn same_place(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some((parent.canonicalize().ok()?, path.file_name()?.to_owned()))
    };
    same_file(a, b) || place(a).is_some_and(|a| place(b) == Some(a))
}

/// Errors when an output is one of the files that are read.
pub fn check_apart<P: AsRef<Path>>(output: &Path, read: impl IntoIterator<Item = P>) -> Result<()> {
    match read.into_iter().any(|input| same_file(input.as_ref(), output)) {
        true => Err(Error::Usage(format!("{}: would be overwritten; choose another name", output.display()))),
        false => Ok(()),
    }
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
