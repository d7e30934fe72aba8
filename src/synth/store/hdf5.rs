//! HDF5 sets: `NAME.h5`, then `NAME-00001.h5`, `NAME-00002.h5` ... of equal numbers of samples.
//!
//! | dataset | shape | |
//! |---|---|---|
//! | `gather` | (n, 5, T, 70) f32 or f16 | a chunk a sample, shuffled and deflated |
//! | `flipped_middle` | (n, T, 70) f32 or f16 | the middle shot of the mirrored map, where asked for |
//! | `velocity` | (n, 1, 70, 70) f32 | m/s |
//! | `family` | (n) u8 | place of the family in the attribute `families` |
//! | `number` | (n) u64 | the map's number in its family |
//!
//! Attributes of the file: `seed`, `first` (index in the set of its first sample), `families`, `recipe` (all options as
//! JSON) and `version`.

use super::super::{Origin, Recipe, SHAPE};
use super::deflate::{LEVEL, packed};
use super::{Encoded, Layout, Part, PartWriter, Sample, same_map, same_recipe};
use crate::io::{Pending, TMP_NAME, hdf5_call};
use crate::{Error, Family, Result, Survey};
use ndarray::{Array, Dimension};
use rust_hdf5::{DatatypeMessage, H5Dataset, H5File, Hdf5Error};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A chunked dataset.
#[derive(Clone, Debug)]
struct Field {
    name: &'static str,
    /// A sample's shape, which is a chunk's.
    item: Vec<usize>,
    half: bool,
}

/// The files of a set.
pub(super) struct Files {
    path: PathBuf,
    recipe: Recipe,
    fields: Vec<Field>,
}

impl Files {
    pub(super) fn new(path: &Path, recipe: &Recipe) -> Result<Self> {
        if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("h5") || e.eq_ignore_ascii_case("hdf5")) {
            let problem =
                "sets are written as .h5, or into a directory with --format kaggle; give the name one of these";
            return Err(Error::Usage(format!("{}: {problem}", path.display())));
        }
        let (shots, t, receivers) =
            (Survey::openfwi().sources.len(), recipe.samples(), Survey::openfwi().receivers.len());
        let field = |name, item: &[usize], half| Field { name, item: item.to_vec(), half };
        let mut fields = vec![];
        if !recipe.maps_only {
            fields.push(field("gather", &[shots, t, receivers], recipe.half));
        }
        if recipe.middle_flip {
            fields.push(field("flipped_middle", &[t, receivers], recipe.half));
        }
        fields.push(field("velocity", &[1, SHAPE.0, SHAPE.1], false));
        Ok(Self { path: path.to_path_buf(), recipe: recipe.clone(), fields })
    }

    fn file(&self, number: u64) -> PathBuf {
        let part = |p: Option<&std::ffi::OsStr>| p.unwrap_or_default().to_string_lossy().into_owned();
        match number {
            0 => self.path.clone(),
            k => self.path.with_file_name(format!(
                "{}-{k:05}.{}",
                part(self.path.file_stem()),
                part(self.path.extension())
            )),
        }
    }
}

impl Layout for Files {
    fn directories(&self) -> Vec<PathBuf> {
        let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        vec![parent.unwrap_or(Path::new(".")).to_path_buf()]
    }

    fn owns(&self, name: &str) -> bool {
        let first = self.path.file_name().unwrap_or_default().to_string_lossy();
        let (stem, extension) = first.rsplit_once('.').unwrap_or((&first, ""));
        let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
        let cut = |name: String| name.chars().take(TMP_NAME).map(digits).collect::<String>();
        let like = |end: &str| cut(format!("{stem}{end}.{extension}")) == cut(name.to_string());
        let begins = stem.chars().take(TMP_NAME).collect::<String>();
        name.starts_with(&begins) && (like("") || like("-00000"))
    }

    fn parts(&self, n: u64) -> Vec<Part> {
        let size = self.recipe.per_file;
        let part = |k: u64| {
            let first = k * size;
            Part { path: self.file(k), gathers: None, first, step: 1, len: size.min(n - first) }
        };
        (0..n.div_ceil(size)).map(part).collect()
    }

    fn present(&self, part: &Part) -> Result<u64> {
        if !part.path.exists() {
            return Ok(0);
        }
        let read = hdf5_call(|| {
            let file = H5File::options().no_locking().open(&part.path)?;
            let first = file.dataset("velocity")?.shape()[0] as u64;
            Ok((file.attr_string("recipe")?, first))
        });
        let damaged = |e: std::io::Error| match e.kind() {
            ErrorKind::PermissionDenied | ErrorKind::StaleNetworkFileHandle => Error::io(&part.path, "read", e),
            _ => Error::input(&part.path, format!("holds no set of fwi synth ({e}); choose another -o, or remove it")),
        };
        let (recipe, len) = read.map_err(damaged)?;
        same_recipe(&part.path, &self.recipe, &recipe)?;
        if len > 0 {
            same_map(&self.recipe, part, ":/velocity")?;
        }
        Ok(len)
    }

    fn encode(&self, sample: &Sample) -> Encoded {
        let half = self.recipe.half;
        let mut fields = Vec::with_capacity(self.fields.len());
        if let Some((gather, flipped)) = &sample.gather {
            fields.push(bytes(gather, half));
            fields.extend(flipped.iter().map(|f| bytes(f, half)));
        }
        fields.push(bytes(&sample.map, false));
        Encoded { origin: sample.origin, fields }
    }

    fn begin(&self, part: &Part, present: u64) -> Result<Box<dyn PartWriter>> {
        let mut writer = Writer::create(self, part)?;
        if present > 0 {
            writer.copy(&self.recipe, part, present)?;
        }
        Ok(Box::new(writer))
    }
}

fn bytes<D: Dimension>(array: &Array<f32, D>, half: bool) -> Vec<u8> {
    packed(array.as_standard_layout().as_slice().expect("in standard layout"), half)
}

/// A file in the making.
struct Writer {
    path: PathBuf,
    fields: Vec<Field>,
    recipe: Recipe,
    first: u64,
    origins: Vec<Origin>,
    // before `pending`: must be closed before the file is removed
    open: Option<(H5File, Vec<H5Dataset>)>,
    pending: Pending,
}

impl Writer {
    fn create(files: &Files, part: &Part) -> Result<Self> {
        let pending = Pending::create(&part.path)?;
        let made = hdf5_call(|| {
            let file = H5File::options().no_locking().create(pending.tmp_path())?;
            let datasets =
                files.fields.iter().map(|field| create(&file, field)).collect::<std::result::Result<_, _>>()?;
            Ok((file, datasets))
        });
        let open = Some(made.map_err(|e| Error::io(&part.path, "write", e))?);
        Ok(Self {
            path: part.path.clone(),
            fields: files.fields.clone(),
            recipe: files.recipe.clone(),
            first: part.first,
            origins: vec![],
            open,
            pending,
        })
    }

    /// The first samples of the file that is there, as they are.
    fn copy(&mut self, recipe: &Recipe, part: &Part, present: u64) -> Result<()> {
        let (_, datasets) = self.open.as_ref().expect("not finished");
        let (fields, path) = (&self.fields, &self.path);
        let copied = hdf5_call(|| {
            let old = H5File::options().no_locking().open(path)?;
            for (field, to) in fields.iter().zip(datasets) {
                let from = old.dataset(field.name)?;
                let mut corner = vec![0; field.item.len() + 1];
                for i in 0..present as usize {
                    corner[0] = i;
                    let (bytes, mask) = from.read_chunk_raw_at(&corner)?;
                    to.write_chunk_raw(i, &bytes, mask)?;
                }
            }
            Ok(())
        });
        copied.map_err(|e| self.failed(e))?;
        self.origins.extend((0..present).map(|place| recipe.origin(part.index(place))));
        Ok(())
    }

    /// The error of a failed write.
    fn failed(&mut self, source: io::Error) -> Error {
        // Closed on drop, it would be written once more, fail once more, and say so on standard error. It is lost anyway.
        std::mem::forget(self.open.take());
        Error::io(&self.path, "write", source)
    }
}

fn create(file: &H5File, field: &Field) -> std::result::Result<H5Dataset, Hdf5Error> {
    let shape = [&[0], &field.item[..]].concat();
    let chunk = [&[1], &field.item[..]].concat();
    let longest: Vec<Option<usize>> = [None].into_iter().chain(field.item.iter().map(|&n| Some(n))).collect();
    if field.half {
        let builder = file.new_dataset::<u16>().datatype(DatatypeMessage::f16_type());
        builder.shape(&shape).chunk(&chunk).max_shape(&longest).shuffle_deflate(LEVEL).create(field.name)
    } else {
        let builder = file.new_dataset::<f32>();
        builder.shape(&shape).chunk(&chunk).max_shape(&longest).shuffle_deflate(LEVEL).create(field.name)
    }
}

impl PartWriter for Writer {
    fn append(&mut self, sample: &Encoded) -> Result<()> {
        let (_, datasets) = self.open.as_ref().expect("not finished");
        let index = self.origins.len();
        let written = hdf5_call(|| {
            let mut pairs = datasets.iter().zip(&sample.fields);
            pairs.try_for_each(|(dataset, bytes)| dataset.write_chunk_raw(index, bytes, 0))
        });
        written.map_err(|e| self.failed(e))?;
        self.origins.push(sample.origin);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        hdf5_call(|| self.complete()).map_err(|e| self.failed(e))?;
        let (file, datasets) = self.open.take().expect("not finished");
        drop(datasets);
        // the sync is ours, through the handle of the pending file
        hdf5_call(|| file.close_no_sync()).map_err(|e| Error::io(&self.path, "write", e))?;
        let Self { pending, .. } = *self;
        pending.commit()
    }
}

impl Writer {
    /// Everything but the file's own headers.
    fn complete(&self) -> std::result::Result<(), Hdf5Error> {
        let (file, datasets) = self.open.as_ref().expect("not finished");
        let n = self.origins.len();
        for (field, dataset) in self.fields.iter().zip(datasets) {
            dataset.extend(&[&[n], &field.item[..]].concat())?;
        }
        let place = |o: &Origin| Family::ALL.iter().position(|f| *f == o.family).expect("one of all") as u8;
        let families: Vec<u8> = self.origins.iter().map(place).collect();
        let numbers: Vec<u64> = self.origins.iter().map(|o| o.number).collect();
        file.new_dataset::<u8>().shape([n]).create("family")?.write_raw(&families)?;
        file.new_dataset::<u64>().shape([n]).create("number")?.write_raw(&numbers)?;
        file.set_attr_numeric("seed", &self.recipe.seed)?;
        file.set_attr_numeric("first", &self.first)?;
        file.set_attr_string_array("families", &Family::ALL.map(Family::name))?;
        file.set_attr_string("recipe", &self.recipe.to_json())?;
        file.set_attr_string("version", env!("CARGO_PKG_VERSION"))?;
        file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_numbered() {
        let recipe = Recipe { per_file: 4, ..Recipe::new(None, 0) };
        let files = Files::new(Path::new("a/set.h5"), &recipe).unwrap();
        let parts = files.parts(10);
        let names: Vec<_> = parts.iter().map(|p| p.path.display().to_string()).collect();
        assert_eq!(names, ["a/set.h5", "a/set-00001.h5", "a/set-00002.h5"]);
        assert_eq!(parts.iter().map(|p| (p.first, p.len)).collect::<Vec<_>>(), [(0, 4), (4, 4), (8, 2)]);
        assert!(Files::new(Path::new("set.npy"), &recipe).is_err());
        assert!(["set.h5", "set-00012.h5"].iter().all(|n| files.owns(n)));
        assert!(
            !["set2.h5", "other.h5", "set-a0001.h5", "set-00012.npy", "set-1-00001.h5"].iter().any(|n| files.owns(n))
        );
        // of long names a part is left
        for stem in ["s".repeat(46), "s".repeat(64)] {
            let files = Files::new(Path::new(&format!("{stem}.h5")), &recipe).unwrap();
            let cut = |end: &str| format!("{stem}{end}").chars().take(TMP_NAME).collect::<String>();
            assert!([".h5", "-00012.h5"].iter().all(|end| files.owns(&cut(end))), "{stem}");
            assert!(!files.owns(&cut("")[1..]), "{stem}");
        }
    }
}
