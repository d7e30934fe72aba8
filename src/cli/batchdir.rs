//! The directory of a batch: a map a gather, and a line a gather in results.jsonl, from which `--resume` goes on.

use super::gather_list::{npy_files, stem};
use super::rundir::{RESULT, hold, sweep};
use fwi::invert::AttemptSummary;
use fwi::io::{write_array, write_atomic};
use fwi::{Error, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const RESULTS: &str = "results.jsonl";
const SUMMARY: &str = "summary.json";
const SHEET: &str = "velocity.png";
/// Folder of the maps.
pub const MAPS: &str = "velocity";

/// What came of one gather: a line of results.jsonl.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Line {
    /// The name of its map, without .npy.
    pub id: String,
    /// The file it came from; what is no UTF-8 of its name, replaced where it is written.
    #[serde(serialize_with = "lossily")]
    pub gather: PathBuf,
    /// Which gather of the file.
    pub index: usize,
    /// Checksum of all that decided what became of it but the gather and limits, if it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Rms of the residual, in the data's units; none where it failed.
    pub data_rms: Option<f64>,
    /// Mean absolute error against the truth, m/s.
    pub mae: Option<f64>,
    /// Evaluations.
    pub evaluations: u64,
    /// Wall time, s, much of it spent waiting for others' gradients.
    pub seconds: f64,
    /// The recipe whose map this is, if it follows one.
    pub recipe: Option<String>,
    /// The recipes tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptSummary>,
    /// Why it ended.
    pub stop_reason: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// JSON is UTF-8, and file names need not be.
fn lossily<S: Serializer>(path: &Path, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// An output directory held by this process.
pub struct BatchDir {
    path: PathBuf,
    results: Option<Mutex<File>>,
    _lock: File,
}

impl BatchDir {
    /// Makes or opens the directory and locks it. Errors when another process holds it.
    pub fn open(path: &Path) -> Result<Self> {
        let lock = hold(path)?;
        let maps = path.join(MAPS);
        fs::create_dir_all(&maps).map_err(|e| Error::io(&maps, "create", e))?;
        sweep(path);
        sweep(&maps);
        Ok(Self { path: path.to_path_buf(), results: None, _lock: lock })
    }

    /// Where a gather's map goes.
    pub fn map(&self, id: &str) -> PathBuf {
        self.path.join(MAPS).join(format!("{id}.npy"))
    }

    /// Whether a batch or an inversion's result is here. Errors where maps are that no batch made, which nothing may overwrite.
    pub fn is_used(&self) -> Result<bool> {
        let maps = self.path.join(MAPS);
        if !self.path.join(RESULTS).exists() && !npy_files(&maps)?.is_empty() {
            let problem = format!("holds maps of no batch, as {RESULTS} is missing; choose another -o");
            return Err(Error::Usage(format!("{}: {problem}", maps.display())));
        }
        Ok([RESULTS, SHEET, RESULT].iter().any(|name| self.path.join(name).exists()))
    }

    /// Removes what a batch has left here: the maps that its results tell of and those of the gathers `ids`, the results last, so
    /// that a directory that is half cleared is known again.
    pub fn clear(&self, ids: &HashSet<&str>) -> Result<()> {
        let told: HashSet<String> = self.earlier(&HashSet::new())?.into_iter().map(|(_, line)| line.id).collect();
        let of_batch = |file: &PathBuf| {
            let id = stem(file);
            told.contains(&id) || ids.contains(&id[..])
        };
        let own = [SUMMARY, SHEET, RESULTS].map(|name| self.path.join(name));
        for file in npy_files(&self.path.join(MAPS))?.into_iter().filter(of_batch).chain(own) {
            match fs::remove_file(&file) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&file, "remove", e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The results that stand, as they are written and read. Lines that a kill has torn, and failures and lost maps of the
    /// gathers `ids`, to be done again, are left out.
    pub fn earlier(&self, ids: &HashSet<&str>) -> Result<Vec<(String, Line)>> {
        let path = self.path.join(RESULTS);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let stands = |line: &Line| !ids.contains(&line.id[..]) || (line.error.is_none() && self.map(&line.id).exists());
        let parsed = text.lines().filter_map(|l| serde_json::from_str(l).ok().map(|line| (l.to_string(), line)));
        Ok(parsed.filter(|(_, line)| stands(line)).collect())
    }

    /// Opens the results, after those of earlier runs.
    pub fn begin(&mut self, earlier: &[(String, Line)]) -> Result<()> {
        let path = self.path.join(RESULTS);
        write_atomic(&path, |w| earlier.iter().try_for_each(|(text, _)| writeln!(w, "{text}")))?;
        let file = fs::OpenOptions::new().append(true).open(&path).map_err(|e| Error::io(&path, "write", e))?;
        self.results = Some(Mutex::new(file));
        Ok(())
    }

    /// Keeps what came of a gather: first the map, if there is one, then the line, so that a line's map is there.
    pub fn keep(&self, line: &Line, map: Option<&Array2<f64>>) -> Result<()> {
        if let Some(map) = map {
            write_array(self.map(&line.id), map.mapv(|v| v as f32).view())?;
        }
        let mut text = serde_json::to_string(line).expect("numbers and names");
        text.push('\n');
        let results = self.results.as_ref().expect("begun");
        let mut file = results.lock().unwrap_or_else(|e| e.into_inner());
        file.write_all(text.as_bytes()).map_err(|e| Error::io(self.path.join(RESULTS), "write", e))
    }

    /// Writes what came of all.
    pub fn write_summary(&self, summary: &serde_json::Value) -> Result<()> {
        write_atomic(self.path.join(SUMMARY), |w| writeln!(w, "{summary:#}"))
    }

    /// Writes the figure of the first maps.
    pub fn write_sheet(&self, png: &[u8]) -> Result<()> {
        write_atomic(self.path.join(SHEET), |w| w.write_all(png))
    }
}
