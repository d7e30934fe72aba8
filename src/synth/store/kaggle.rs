//! Sets laid out as OpenFWI's and the Kaggle contest's training data, in f32.
//!
//! | families | gathers (n, 5, 1000, 70) | maps (n, 1, 70, 70) |
//! |---|---|---|
//! | Vel and Style | `<Family>/data/data1.npy` | `<Family>/model/model1.npy` |
//! | Fault | `<Family>/seis2_1_0.npy` | `<Family>/vel2_1_0.npy` |
//!
//! File by file the first number (data1) or the last (seis2_1_0) grows; fault files of B families begin with 6. The
//! options are kept in `synth.json`.

use super::super::{Recipe, SHAPE};
use super::{Encoded, Layout, Part, PartWriter, Sample, same_map, same_recipe};
use crate::io::{ArrayFile, ArrayWriter, DType, Limits, write_atomic};
use crate::{Error, Family, Result, Survey};
use std::fs;
use std::path::{Path, PathBuf};

const RECORD: &str = "synth.json";

/// The files of a set.
pub(super) struct Files {
    directory: PathBuf,
    recipe: Recipe,
}

impl Files {
    pub(super) fn new(directory: &Path, recipe: &Recipe) -> Result<Self> {
        if recipe.half || recipe.middle_flip || recipe.every != 1 {
            let problem =
                "--format kaggle has f32 gathers of 1000 samples; leave out --half, --every and --middle-flip";
            return Err(Error::Usage(problem.into()));
        }
        Ok(Self { directory: directory.to_path_buf(), recipe: recipe.clone() })
    }

    /// The files of gathers and of maps.
    fn names(&self, family: Family, number: u64) -> (PathBuf, PathBuf) {
        let directory = self.directory.join(family.name());
        let series = match family {
            Family::FlatFaultA | Family::CurveFaultA => 2,
            Family::FlatFaultB | Family::CurveFaultB => 6,
            _ => {
                let k = number + 1;
                return (directory.join(format!("data/data{k}.npy")), directory.join(format!("model/model{k}.npy")));
            }
        };
        let name = |kind: &str| directory.join(format!("{kind}{series}_1_{number}.npy"));
        (name("seis"), name("vel"))
    }

    /// Files `number` of a family, of which the set has `count` samples.
    fn part(&self, family: Family, number: u64, count: u64) -> Option<Part> {
        let size = self.recipe.per_file;
        let before = number * size;
        let len = size.min(count.saturating_sub(before));
        let (place, step) = match self.recipe.family {
            Some(_) => (0, 1),
            None => (Family::ALL.iter().position(|&f| f == family)? as u64, Family::ALL.len() as u64),
        };
        let (gathers, path) = self.names(family, number);
        let gathers = (!self.recipe.maps_only).then_some(gathers);
        (len > 0).then_some(Part { path, gathers, first: place + before * step, step, len })
    }
}

/// Keeps the recipe, or compares it with the one that is there.
pub(super) fn record(directory: &Path, recipe: &Recipe) -> Result<()> {
    let path = directory.join(RECORD);
    let made = Family::ALL.iter().find(|f| directory.join(f.name()).exists());
    match (fs::read_to_string(&path), made) {
        (Err(e), _) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path, "read", e)),
        (Ok(text), Some(_)) => same_recipe(&path, recipe, &text),
        (Err(_), Some(f)) => {
            let problem = format!("holds {f} but no {RECORD} of fwi synth; choose another -o");
            Err(Error::input(directory, problem))
        }
        (Ok(text), None) if serde_json::from_str::<Recipe>(&text).is_err() => same_recipe(&path, recipe, &text),
        // a run that came to nothing binds nobody
        (_, None) => write_atomic(&path, |w| writeln!(w, "{}", recipe.to_json())),
    }
}

impl Layout for Files {
    fn directories(&self) -> Vec<PathBuf> {
        let families = Family::ALL.map(|f| self.directory.join(f.name()));
        let each = families.iter().flat_map(|d| [d.clone(), d.join("data"), d.join("model")]);
        each.chain([self.directory.clone()]).collect()
    }

    fn owns(&self, _: &str) -> bool {
        true
    }

    fn parts(&self, n: u64) -> Vec<Part> {
        let families: Vec<(Family, u64)> = match self.recipe.family {
            Some(family) => vec![(family, n)],
            None => {
                let all = Family::ALL.len() as u64;
                let count = |i: usize| n / all + u64::from((i as u64) < n % all);
                Family::ALL.iter().enumerate().map(|(i, &f)| (f, count(i))).collect()
            }
        };
        let most = families.iter().map(|&(_, count)| count.div_ceil(self.recipe.per_file)).max().unwrap_or(0);
        (0..most).flat_map(|k| families.iter().filter_map(move |&(f, count)| self.part(f, k, count))).collect()
    }

    fn present(&self, part: &Part) -> Result<u64> {
        let mut present = u64::MAX;
        for path in [Some(&part.path), part.gathers.as_ref()].into_iter().flatten() {
            if !path.exists() {
                return Ok(0);
            }
            present = present.min(ArrayFile::open(path, &Limits::default())?.len() as u64);
        }
        same_map(&self.recipe, part, "")?;
        Ok(present)
    }

    fn encode(&self, sample: &Sample) -> Encoded {
        let mut fields = vec![vec![]; 1 + usize::from(sample.gather.is_some())];
        DType::F32.encode(sample.map.view(), &mut fields[0]);
        if let Some((gather, _)) = &sample.gather {
            DType::F32.encode(gather.view(), &mut fields[1]);
        }
        Encoded { origin: sample.origin, fields }
    }

    fn begin(&self, part: &Part, present: u64) -> Result<Box<dyn PartWriter>> {
        let (shots, nt, receivers) = Survey::openfwi().gather_shape();
        let open = |path: &Path, item: &[usize]| -> Result<ArrayWriter> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
            }
            let mut writer = ArrayWriter::create(path, item, DType::F32, None)?;
            if present > 0 {
                let mut old = ArrayFile::open(path, &Limits::default())?;
                for i in 0..present as usize {
                    let one = old.read::<f32>(i..i + 1)?;
                    writer.append(one.index_axis(ndarray::Axis(0), 0))?;
                }
            }
            Ok(writer)
        };
        let maps = open(&part.path, &[1, SHAPE.0, SHAPE.1])?;
        let gathers = part.gathers.as_ref().map(|path| open(path, &[shots, nt, receivers])).transpose()?;
        Ok(Box::new(Pair { maps, gathers }))
    }
}

/// Two .npy in the making.
struct Pair {
    maps: ArrayWriter,
    gathers: Option<ArrayWriter>,
}

impl PartWriter for Pair {
    fn append(&mut self, sample: &Encoded) -> Result<()> {
        self.maps.append_encoded(&sample.fields[0])?;
        self.gathers.as_mut().map_or(Ok(()), |g| g.append_encoded(&sample.fields[1]))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        // the maps last: what counts is what both hold
        self.gathers.map_or(Ok(()), ArrayWriter::finish)?;
        self.maps.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_carry_the_names_of_the_contest() {
        let recipe = Recipe { per_file: 2, ..Recipe::new(None, 0) };
        let files = Files::new(Path::new("d"), &recipe).unwrap();
        let parts = files.parts(27);
        assert_eq!(parts.iter().map(|p| p.len).sum::<u64>(), 27);
        let mut indices: Vec<u64> = parts.iter().flat_map(|p| (0..p.len).map(|i| p.index(i))).collect();
        indices.sort_unstable();
        assert!(indices.iter().enumerate().all(|(i, &index)| i as u64 == index));
        let names: Vec<String> = parts.iter().map(|p| p.path.display().to_string()).collect();
        for name in ["d/FlatVel_A/model/model1.npy", "d/FlatVel_A/model/model2.npy", "d/FlatFault_A/vel2_1_0.npy"] {
            assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
        }
        let fault = parts.iter().find(|p| p.path.ends_with("CurveFault_B/vel6_1_0.npy")).unwrap();
        assert_eq!(recipe.origin(fault.first).family, Family::CurveFaultB);
        assert!(fault.gathers.as_ref().unwrap().ends_with("CurveFault_B/seis6_1_0.npy"));
        assert!(Files::new(Path::new("d"), &Recipe { half: true, ..recipe }).is_err());
    }
}
