//! The directory of an inversion: locked while in use, every file in it whole at any instant.

use fwi::invert::{Progress, State};
use fwi::io::{TMP_PREFIX, TMP_SUFFIX, write_atomic, write_unsynced};
use fwi::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Written after every iteration; survives a kill.
const CHECKPOINT: &str = "checkpoint.bin";
/// Written and synced to the disk every [`SYNC_EVERY`]; survives a power cut.
const SAFE_CHECKPOINT: &str = "checkpoint-synced.bin";
const LOG: &str = "log.jsonl";
/// What came of it.
pub const RESULT: &str = "result.json";
/// Where the inversion began, for the result of a run that is resumed.
const ORIGIN: &str = "start.json";
/// The start of a run that has left no word of it.
pub const UNKNOWN: &str = "that of the run resumed";
/// Longest [`ORIGIN`] that is read, bytes.
const MAX_ORIGIN: u64 = 1 << 20;
/// The map found, (70, 70) f32.
pub const VELOCITY: &str = "velocity.npy";
/// The map as a figure.
pub const VELOCITY_FIGURE: &str = "velocity.png";
/// Observed, synthetic and residual gather.
pub const GATHER_FIGURE: &str = "gather.png";
/// Data rms over evaluations.
pub const CONVERGENCE_FIGURE: &str = "convergence.png";
/// Standard deviation of every cell, (70, 70) f32.
pub const UNCERTAINTY: &str = "uncertainty.npy";
/// The same as a figure.
pub const UNCERTAINTY_FIGURE: &str = "uncertainty.png";
/// What a run that ends writes besides the log.
const OUTPUTS: [&str; 7] =
    [RESULT, VELOCITY, VELOCITY_FIGURE, GATHER_FIGURE, CONVERGENCE_FIGURE, UNCERTAINTY, UNCERTAINTY_FIGURE];
const SYNC_EVERY: Duration = Duration::from_secs(15);

/// An output directory held by this process.
pub struct RunDir {
    path: PathBuf,
    synced: Option<Instant>,
    log: Option<File>,
    _lock: File,
}

/// Where an inversion began.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// "gradient", "prior" or the file.
    pub start: String,
    /// What the prior said.
    pub prior: Option<serde_json::Value>,
    /// The recipe's name or file, if it follows one.
    #[serde(default)]
    pub recipe: Option<String>,
    /// Checksum of the gather's samples, if it was kept.
    #[serde(default)]
    pub gather: Option<String>,
    /// The same of the starting map, if one was given.
    #[serde(default)]
    pub map: Option<String>,
}

/// One line of the log, as far as it is read again.
#[derive(serde::Deserialize)]
pub struct LogLine {
    /// Iterations in all.
    pub iteration: u64,
    /// Evaluations in all.
    pub evaluation: u64,
    /// The stage's name.
    pub stage_name: String,
    /// Data rms.
    pub data_rms: f64,
    /// Mean absolute error, m/s.
    pub mae: Option<f64>,
}

/// Makes or opens a directory and locks it for as long as the file lives. Errors when another process holds it.
pub fn hold(path: &Path) -> Result<File> {
    if path.exists() && !path.is_dir() {
        return Err(Error::Usage(format!("{}: is no directory; choose another -o", path.display())));
    }
    fs::create_dir_all(path).map_err(|e| Error::io(path, "create", e))?;
    lock(&path.join(".lock"), || {
        format!("{}: another fwi is working there; wait for it or choose another -o", path.display())
    })
}

/// Makes a file and locks it for as long as it lives. Errors, in the words given, when another process holds it.
pub fn lock(name: &Path, held: impl FnOnce() -> String) -> Result<File> {
    let lock = File::create(name).map_err(|e| Error::io(name, "create", e))?;
    match lock.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Err(Error::Usage(held())),
        _ => Ok(lock),
    }
}

/// Removes the unfinished files of killed processes from a directory, leaving those of processes that live.
pub fn sweep(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(TMP_PREFIX).filter(|_| name.ends_with(TMP_SUFFIX)) else { continue };
        let writer = rest.split('-').next().unwrap_or_default();
        // this process has written nothing yet: a file with its number is of an earlier one
        if writer == std::process::id().to_string() || !Path::new("/proc").join(writer).exists() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl RunDir {
    /// Makes or opens the directory and locks it. Errors when another process holds it.
    pub fn open(path: &Path) -> Result<Self> {
        let lock = hold(path)?;
        Ok(Self { path: path.to_path_buf(), synced: None, log: None, _lock: lock })
    }

    /// The path of a file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether an inversion has left something here.
    pub fn is_used(&self) -> bool {
        [CHECKPOINT, SAFE_CHECKPOINT, LOG, ORIGIN].iter().chain(&OUTPUTS).any(|f| self.file(f).exists())
    }

    /// Whether an inversion has come to its own end here.
    pub fn is_finished(&self) -> bool {
        self.file(RESULT).exists() && ![CHECKPOINT, SAFE_CHECKPOINT].iter().any(|f| self.file(f).exists())
    }

    /// Removes what an inversion has left here; the result first, so that nothing half removed looks finished.
    pub fn clear(&self) -> Result<()> {
        OUTPUTS.iter().chain(&[LOG, ORIGIN]).try_for_each(|name| self.remove(name))?;
        self.finish()
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path, "remove", e)),
            _ => Ok(()),
        }
    }

    /// See [`sweep`].
    pub fn sweep(&self) {
        sweep(&self.path);
    }

    /// The newest checkpoint that is whole; `None` when there is none at all.
    pub fn checkpoint(&self) -> Result<Option<State>> {
        let mut damaged = None;
        for name in [CHECKPOINT, SAFE_CHECKPOINT] {
            let path = self.file(name);
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(&path, "read", e)),
            };
            match State::from_bytes(&bytes, &path) {
                Ok(state) => return Ok(Some(state)),
                Err(e) => damaged = damaged.or(Some(e)),
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    /// Saves a checkpoint.
    pub fn save(&mut self, state: &State) -> Result<()> {
        let bytes = state.to_bytes()?;
        write_unsynced(self.file(CHECKPOINT), |w| w.write_all(&bytes))?;
        if self.synced.is_none_or(|t| t.elapsed() >= SYNC_EVERY) {
            write_atomic(self.file(SAFE_CHECKPOINT), |w| w.write_all(&bytes))?;
            self.synced = Some(Instant::now());
        }
        Ok(())
    }

    /// Removes the checkpoints of an inversion that came to its own end; the newest last, to be resumed from if this is
    /// cut short.
    pub fn finish(&self) -> Result<()> {
        [SAFE_CHECKPOINT, CHECKPOINT].iter().try_for_each(|name| self.remove(name))
    }

    /// Opens the log with the lines up to `iterations`, those of a run that is resumed, and returns them.
    pub fn open_log(&mut self, iterations: u64) -> Result<Vec<LogLine>> {
        let path = self.file(LOG);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let parsed = text.lines().filter_map(|l| serde_json::from_str::<LogLine>(l).ok().map(|p| (l, p)));
        let (kept, lines): (Vec<&str>, Vec<LogLine>) =
            parsed.filter(|(_, p)| p.iteration <= iterations && iterations > 0).unzip();
        write_atomic(&path, |w| kept.iter().try_for_each(|l| writeln!(w, "{l}")))?;
        let file = fs::OpenOptions::new().append(true).open(&path).map_err(|e| Error::io(&path, "write", e))?;
        self.log = Some(file);
        Ok(lines)
    }

    /// Appends a line to the log.
    pub fn log(&mut self, progress: &Progress) -> Result<()> {
        let Some(file) = &mut self.log else { return Ok(()) };
        let mut line = serde_json::to_string(progress).expect("numbers and names");
        line.push('\n');
        file.write_all(line.as_bytes()).map_err(|e| Error::io(self.path.join(LOG), "write", e))
    }

    /// Whether there are standard deviations of the result.
    pub fn has_uncertainty(&self) -> bool {
        self.file(UNCERTAINTY).exists()
    }

    /// Removes the standard deviations of a map that is about to be replaced.
    pub fn forget_uncertainty(&self) -> Result<()> {
        [UNCERTAINTY, UNCERTAINTY_FIGURE].iter().try_for_each(|name| self.remove(name))
    }

    /// Saves where the inversion begins.
    pub fn write_origin(&self, origin: &Origin) -> Result<()> {
        let text = serde_json::to_string_pretty(origin).expect("texts and numbers");
        write_atomic(self.file(ORIGIN), |w| writeln!(w, "{text}"))
    }

    /// Where the inversion began that is resumed; a directory without word of it is no reason to stop.
    pub fn origin(&self) -> Origin {
        let path = self.file(ORIGIN);
        let read = || {
            let known = fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_ORIGIN);
            known.then(|| fs::read(&path).ok()).flatten().and_then(|bytes| serde_json::from_slice(&bytes).ok())
        };
        read().unwrap_or(Origin { start: UNKNOWN.into(), prior: None, recipe: None, gather: None, map: None })
    }

    /// Writes the result, which marks the run as complete.
    pub fn write_result(&self, result: &serde_json::Value) -> Result<()> {
        write_atomic(self.file(RESULT), |w| writeln!(w, "{result:#}"))
    }
}
