//! The gathers of a batch: files, stacks and directories, each gather with an id; and the maps that go with them.

use super::options::{observe, observe_in};
use fwi::io::{Gathers, Limits, Maps, read_map};
use fwi::{Error, Observed, Result, Survey};
use ndarray::Array2;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// One gather to invert.
pub struct Job {
    /// Its place in the batch, from 0.
    pub number: usize,
    /// The name of its results: the file's stem, with `_index` for one of a stack.
    pub id: String,
    /// The file.
    pub path: PathBuf,
    /// Which gather of the file.
    pub index: usize,
    /// The stack it belongs to, opened at its first gather and closed after its last.
    stack: Option<Arc<Stack>>,
}

struct Stack {
    len: usize,
    open: Mutex<Option<Gathers>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

impl Job {
    /// Reads the gather.
    pub fn observe(&self, survey: &Survey) -> Result<Observed> {
        let Some(stack) = &self.stack else {
            let mut gathers = Gathers::open(&self.path, survey.gather_shape(), &Limits::default())?;
            return match gathers.len() {
                1 => observe_in(&mut gathers, &self.path, 0),
                n => {
                    let problem = format!("holds {n} gathers; in a directory expected one, name the file itself");
                    Err(Error::input(&self.path, problem))
                }
            };
        };
        let mut open = lock(&stack.open);
        if open.is_none() {
            *open = Some(Gathers::open(&self.path, survey.gather_shape(), &Limits::default())?);
        }
        let gathers = open.as_mut().expect("just opened");
        let observed = match gathers.len() == stack.len {
            true => observe_in(gathers, &self.path, self.index),
            // it was replaced; let the message come from the reader
            false => observe(&self.path, self.index, survey),
        };
        if self.index + 1 == stack.len {
            *open = None;
        }
        observed
    }
}

/// The gathers of files and directories (their .npy files by name), in order.
///
/// A file that cannot be read is a job all the same, whose reading will fail. Errors when an input is missing, a
/// directory holds no .npy, or two gathers would have one id.
pub fn list(inputs: &[PathBuf], survey: &Survey) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    let mut push = |path: &Path, id: String, index: usize, stack: Option<Arc<Stack>>| {
        jobs.push(Job { number: jobs.len(), id, path: path.to_path_buf(), index, stack });
    };
    for input in inputs {
        if input.is_dir() {
            let files = npy_files(input)?;
            if files.is_empty() {
                return Err(Error::input(input, "holds no .npy file; name a directory of gathers, or the files"));
            }
            files.iter().for_each(|file| push(file, stem(file), 0, None));
            continue;
        }
        match Gathers::open(input, survey.gather_shape(), &Limits::default()).map(|g| g.len()) {
            Ok(len) if len > 1 => {
                let stack = Arc::new(Stack { len, open: Mutex::new(None) });
                (0..len).for_each(|i| push(input, format!("{}_{i}", stem(input)), i, Some(stack.clone())));
            }
            Err(e @ Error::Io { .. }) if !input.exists() => return Err(e),
            _ => push(input, stem(input), 0, None),
        }
    }
    Ok(jobs)
}

/// Errors where two gathers have one name, under which results are written.
pub fn check_names(jobs: &[Job]) -> Result<()> {
    let mut known = HashSet::new();
    match jobs.iter().find(|job| !known.insert(&job.id)) {
        Some(job) => Err(Error::Usage(format!(
            "{}: another gather's results would have the name \"{}\", too; invert them into two directories",
            job.path.display(),
            job.id
        ))),
        None => Ok(()),
    }
}

/// "dir/a.npy" to "a", "dir/a.h5:/x/y" to "a-x-y".
pub fn stem(path: &Path) -> String {
    let stem = |p: &Path| p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match path.to_string_lossy().rsplit_once(':') {
        Some((file, entry)) if !path.exists() => {
            format!("{}-{}", stem(Path::new(file)), entry.trim_matches('/').replace('/', "-"))
        }
        _ => stem(path),
    }
}

/// The .npy files of a directory by name.
pub fn npy_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e| Error::io(directory, "read", e);
    let entries = fs::read_dir(directory).map_err(fail)?.collect::<std::io::Result<Vec<_>>>().map_err(fail)?;
    let paths = entries.into_iter().map(|e| e.path());
    let mut files: Vec<PathBuf> = paths.filter(|p| p.extension().is_some_and(|e| e == "npy")).collect();
    files.sort();
    Ok(files)
}

/// A map for every gather: one for all, a stack in the gathers' order, or a directory of `<id>.npy`.
pub enum MapPerGather {
    /// The same for all.
    One(Array2<f64>),
    /// Map by map.
    Stack(Mutex<Maps>),
    /// By id.
    Directory(PathBuf),
}

impl MapPerGather {
    /// Opens maps for `gathers` gathers. Errors when a stack has another number of maps.
    pub fn open(path: &Path, gathers: usize, survey: &Survey) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_path_buf()));
        }
        let mut maps = Maps::open(path, survey.map_shape(), &Limits::default())?;
        match maps.len() {
            1 => Ok(Self::One(maps.get(0)?)),
            n if n == gathers => Ok(Self::Stack(Mutex::new(maps))),
            n => {
                let problem =
                    format!("holds {n} velocity maps for {gathers} gathers; expected one for each or one for all");
                Err(Error::input(path, problem))
            }
        }
    }

    /// The map of a gather.
    pub fn get(&self, job: &Job, survey: &Survey) -> Result<Array2<f64>> {
        match self {
            Self::One(map) => Ok(map.clone()),
            Self::Stack(maps) => lock(maps).get(job.number),
            Self::Directory(path) => {
                read_map(path.join(format!("{}.npy", job.id)), survey.map_shape(), &Limits::default())
            }
        }
    }
}
