//! Sets of synthetic samples on disk: files of so many samples each, every one of them written beside its place and
//! renamed when it is whole.
//!
//! A set is thus always readable. A killed run loses the file it was at, at most [`Recipe::per_file`] samples, and the
//! same call goes on from there; a set grows by asking for more. A file that is not full, the last one, is continued:
//! what it holds is copied into its successor. What is there decides what is left to do; there is no other record.
//!
//! | format | files |
//! |---|---|
//! | [`Format::Hdf5`] | `NAME.h5`, `NAME-00001.h5`, `NAME-00002.h5` ...: see [`hdf5`] |
//! | [`Format::Kaggle`] | `DIR/<Family>/data/dataN.npy` and `model/modelN.npy`: see [`kaggle`] |

mod deflate;
pub mod hdf5;
pub mod kaggle;

use super::augment::Augment;
use super::{Origin, Recipe};
use crate::io::{TMP_PREFIX, TMP_SUFFIX};
use crate::{Error, Gather, Result};
use ndarray::{Array2, Array3};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

/// How a set is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Chunked, compressed HDF5.
    Hdf5,
    /// The directories of .npy files of OpenFWI and of the Kaggle contest.
    Kaggle,
}

/// A sample ready to be stored.
pub struct Sample {
    /// Which it is.
    pub origin: Origin,
    /// (70, 70), m/s.
    pub map: Array2<f32>,
    /// (5, T, 70), and (T, 70) of the mirrored map's middle shot; see [`Recipe::kept`].
    pub gather: Option<(Array3<f32>, Option<Array2<f32>>)>,
}

impl Sample {
    /// A map with its gather by [`Recipe::survey`]; `None` where the recipe has maps only.
    pub fn new(recipe: &Recipe, origin: Origin, map: Array2<f32>, gather: Option<&Gather>) -> Self {
        Self { origin, map, gather: gather.map(|g| recipe.kept(g)) }
    }
}

/// A sample as bytes, in the order of the layout's own fields.
pub struct Encoded {
    origin: Origin,
    fields: Vec<Vec<u8>>,
}

impl Encoded {
    /// The buffers, to be used again.
    pub fn into_buffers(self) -> Vec<Vec<u8>> {
        self.fields
    }
}

/// One file of a set, or a pair of .npy, and what is to be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// The file that holds the maps.
    path: PathBuf,
    /// The file that holds the gathers where that is another.
    gathers: Option<PathBuf>,
    /// Index in the set of its first sample, and from one sample to the next.
    first: u64,
    step: u64,
    /// Samples that it is to hold.
    len: u64,
}

impl Part {
    fn index(&self, place: u64) -> u64 {
        self.first + place * self.step
    }
}

/// Most files of a set, as many as five digits number: their list stays small.
const MOST_FILES: u64 = 100_000;

/// How samples become files.
trait Layout: Send + Sync {
    /// Where its files lie.
    fn directories(&self) -> Vec<PathBuf>;
    /// Whether a file of that name in one of the directories is of the set.
    fn owns(&self, name: &str) -> bool;
    /// The parts of a set of `n` samples.
    fn parts(&self, n: u64) -> Vec<Part>;
    /// Samples that the part's file holds already. Errors when they are none of this recipe.
    fn present(&self, part: &Part) -> Result<u64>;
    /// A sample's bytes.
    fn encode(&self, sample: &Sample) -> Encoded;
    /// Begins the part's file, with the first `present` samples of its predecessor in it.
    fn begin(&self, part: &Part, present: u64) -> Result<Box<dyn PartWriter>>;
}

trait PartWriter: Send {
    fn append(&mut self, sample: &Encoded) -> Result<()>;
    /// Completes the file, syncs it and puts it in its place.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// A set of samples, held by this process.
pub struct Store {
    recipe: Recipe,
    layout: Arc<dyn Layout>,
    _lock: File,
}

impl Store {
    /// Opens or begins a set: `path` is the first HDF5 file, or the directory.
    ///
    /// Errors: [`Error::Usage`] when the name does not fit the format, another process is writing the set, or it was
    /// begun with another recipe; [`Error::Io`] when the system refuses.
    pub fn open(path: &Path, format: Format, recipe: Recipe) -> Result<Self> {
        recipe.check()?;
        let (layout, lock): (Arc<dyn Layout>, PathBuf) = match format {
            Format::Hdf5 => {
                let layout = hdf5::Files::new(path, &recipe)?;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (Arc::new(layout), path.with_file_name(format!(".{name}.lock")))
            }
            Format::Kaggle => {
                let usage = |why| Err(Error::Usage(format!("{}: {why}", path.display())));
                if path.exists() && !path.is_dir() {
                    return usage("is no directory; choose another -o");
                }
                if path.extension().is_some_and(|e| e == "h5" || e == "npy") && !path.exists() {
                    return usage("--format kaggle writes a directory; leave the extension out");
                }
                let layout = kaggle::Files::new(path, &recipe)?;
                fs::create_dir_all(path).map_err(|e| Error::io(path, "create", e))?;
                (Arc::new(layout), path.join(".lock"))
            }
        };
        let lock = hold(path, &lock, layout.as_ref())?;
        if format == Format::Kaggle {
            kaggle::record(path, &recipe)?;
        }
        Ok(Self { recipe, layout, _lock: lock })
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// What is missing to a set of `n` samples. Errors when a file is damaged or of another recipe, or there would be more
    /// than 100 000 files.
    pub fn missing(&self, n: u64) -> Result<Missing> {
        if n.div_ceil(self.recipe.per_file) > MOST_FILES {
            let problem = format!("{n} samples would be more than {MOST_FILES} files; raise --per-file or lower -n");
            return Err(Error::Usage(problem));
        }
        let mut missing = Missing { parts: VecDeque::new(), before: vec![], len: 0, present: 0 };
        for part in self.layout.parts(n) {
            let present = self.layout.present(&part)?.min(part.len);
            missing.present += present;
            if present < part.len {
                missing.before.push(missing.len);
                missing.len += part.len - present;
                missing.parts.push_back((part, present));
            }
        }
        Ok(missing)
    }

    /// A sample's bytes, shuffled and deflated where the format has them so.
    pub fn encode(&self, sample: &Sample) -> Encoded {
        self.layout.encode(sample)
    }

    /// Takes the missing samples in their order.
    pub fn appender(&self, missing: &Missing) -> Appender {
        Appender { layout: self.layout.clone(), parts: missing.parts.clone(), current: None, finishing: None }
    }
}

/// What a set lacks.
pub struct Missing {
    /// Samples that are there.
    pub present: u64,
    /// Files that are not full, and how many samples each holds already.
    parts: VecDeque<(Part, u64)>,
    /// Missing samples before those of each file.
    before: Vec<u64>,
    len: u64,
}

impl Missing {
    /// How many samples are missing.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Index in the set of the `i`-th missing sample, in the order in which they are written.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn index(&self, i: u64) -> u64 {
        assert!(i < self.len, "only {} samples are missing", self.len);
        let file = self.before.partition_point(|&before| before <= i) - 1;
        let (part, present) = &self.parts[file];
        part.index(present + i - self.before[file])
    }
}

/// Writes missing samples, a file after the other; full ones are synced in the background.
pub struct Appender {
    layout: Arc<dyn Layout>,
    parts: VecDeque<(Part, u64)>,
    /// The file at work, and samples that it still takes.
    current: Option<(Box<dyn PartWriter>, u64)>,
    finishing: Option<JoinHandle<Result<()>>>,
}

/// A file that is being completed is, whatever becomes of the next one.
impl Drop for Appender {
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

impl Appender {
    /// Adds the next sample.
    ///
    /// # Panics
    /// When there are more samples than were missing.
    pub fn write(&mut self, sample: &Encoded) -> Result<()> {
        let (mut writer, left) = match self.current.take() {
            Some(current) => current,
            None => {
                let (part, present) = self.parts.pop_front().expect("no more samples than are missing");
                (self.layout.begin(&part, present)?, part.len - present)
            }
        };
        writer.append(sample)?;
        if left > 1 {
            self.current = Some((writer, left - 1));
            return Ok(());
        }
        self.wait()?;
        self.finishing = Some(std::thread::spawn(move || writer.finish()));
        Ok(())
    }

    /// Completes the file at work, full or not.
    pub fn finish(mut self) -> Result<()> {
        let last = self.current.take().map_or(Ok(()), |(writer, _)| writer.finish());
        self.wait().and(last)
    }

    fn wait(&mut self) -> Result<()> {
        let ended = self.finishing.take().map(JoinHandle::join);
        ended.unwrap_or(Ok(Ok(()))).unwrap_or_else(|_| Err(Error::Numerical("a file's completion broke down".into())))
    }
}

/// Locks the set at `path` for as long as the file lives, and removes what its last writer left unfinished in
/// the set's directories: that one's process id stands in the lock file, as in the names of its unfinished files, which hold
/// the finished file's name besides. Those of other sets are let alone, whose writers may be at work, here or elsewhere.
fn hold(path: &Path, name: &Path, layout: &dyn Layout) -> Result<File> {
    let fail = |e| Error::io(path, "create", e);
    let mut lock = File::options().read(true).write(true).create(true).truncate(false).open(name).map_err(fail)?;
    let alone = match lock.try_lock() {
        Ok(()) => true,
        Err(fs::TryLockError::WouldBlock) => {
            let message = format!("{}: another fwi is writing it; wait or choose another -o", path.display());
            return Err(Error::Usage(message));
        }
        // a file system without locks: a writer elsewhere may be at work
        Err(fs::TryLockError::Error(_)) => false,
    };
    let (mut last, own) = (String::new(), std::process::id().to_string());
    // anything but a number was not written here
    let _ = lock.read_to_string(&mut last);
    let dead = last == own || !Path::new("/proc").join(&last).exists();
    if alone && dead && last.parse::<u32>().is_ok() {
        let prefix = format!("{TMP_PREFIX}{last}-");
        for entry in layout.directories().iter().filter_map(|d| fs::read_dir(d).ok()).flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let rest = file.strip_prefix(&prefix).and_then(|f| f.strip_suffix(TMP_SUFFIX));
            // then eight letters
            if rest.and_then(|r| r.rsplit_once('-')).is_some_and(|(name, _)| layout.owns(name)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    let written = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(own.as_bytes()));
    written.map(|()| lock).map_err(fail)
}

/// An error where the set at `path` was made by another recipe.
fn same_recipe(path: &Path, wanted: &Recipe, found: &str) -> Result<()> {
    let unknown = || Error::input(path, "holds no set of fwi synth of this version; choose another -o");
    let found: Recipe = serde_json::from_str(found).map_err(|_| unknown())?;
    // the third draws as the second does, and changes maps otherwise
    let as_drawn = (2..=3).contains(&found.generator) && wanted.augment == Augment::default();
    if wanted.generator != found.generator && !as_drawn {
        return Err(Error::Usage(format!(
            "{}: its maps were drawn by generator {}, and this version has generator {}; choose another -o",
            path.display(),
            found.generator,
            wanted.generator
        )));
    }
    match wanted.differences(&Recipe { generator: wanted.generator, ..found }) {
        None => Ok(()),
        Some(how) => Err(Error::Usage(format!(
            "{}: was made with other options ({how}); repeat those or choose another -o",
            path.display()
        ))),
    }
}

/// An error where the first map of a file is not the one that this version draws.
fn same_map(recipe: &Recipe, part: &Part, entry: &str) -> Result<()> {
    let name = PathBuf::from(format!("{}{entry}", part.path.display()));
    let mut file = crate::io::ArrayFile::open(&name, &crate::io::Limits::default())?;
    let shape = super::SHAPE;
    let first = file.read::<f32>(0..1)?.into_shape_with_order(shape);
    let fits = first.is_ok_and(|map| recipe.draws(recipe.origin(part.first), map.view()));
    if fits {
        return Ok(());
    }
    let problem = "its first map is not the one that this version draws with these options; choose another -o";
    Err(Error::input(&part.path, problem))
}
