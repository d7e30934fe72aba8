//! Stacks of velocity maps and of shot gathers, one checked item at a time.

use super::array::{ArrayFile, Limits};
use crate::{Error, Result};
use ndarray::{Array2, Array3, ArrayD, Ix2, Ix3};
use std::path::Path;

/// A file of items that all have one shape.
struct Stack {
    file: ArrayFile,
    item: Vec<usize>,
    /// The file holds one item, without an axis to count items.
    bare: bool,
}

impl Stack {
    /// `layouts` are the shapes of an item that are accepted after the counting axis; the first one alone, too.
    fn open(path: &Path, what: &str, layouts: &[Vec<usize>], limits: &Limits) -> Result<Self> {
        let file = ArrayFile::open(path, limits)?;
        let item = layouts[0].clone();
        let bare = file.shape() == item;
        if !bare && !layouts.iter().any(|layout| file.shape()[1..] == layout[..]) {
            let expected: Vec<String> = layouts.iter().map(|layout| format!("(n, {})", commas(layout))).collect();
            let problem = format!(
                "holds shape ({}); expected {what} of shape ({}) or {}",
                commas(file.shape()),
                commas(&item),
                expected.join(" or ")
            );
            return Err(Error::input(path, problem));
        }
        if file.is_empty() {
            return Err(Error::input(path, format!("holds no {what}: its first axis has length 0")));
        }
        Ok(Self { file, item, bare })
    }

    fn len(&self) -> usize {
        if self.bare { 1 } else { self.file.len() }
    }

    fn read(&mut self, index: usize) -> Result<ArrayD<f64>> {
        let range = if self.bare && index == 0 { 0..self.file.len() } else { index..index + 1 };
        if index >= self.len() {
            let (path, n) = (self.file.path().display(), self.len());
            return Err(Error::Usage(format!("{path}: there is no item {index}; it holds {n}, counted from 0")));
        }
        let array = self.file.read::<f64>(range)?;
        Ok(array.into_shape_with_order(self.item.clone()).expect("the shape was checked on opening"))
    }

    /// The only item of the file.
    fn only(&mut self, what: &str) -> Result<()> {
        match self.len() {
            1 => Ok(()),
            n => Err(Error::input(self.file.path(), format!("holds {n} {what}; expected one, save it alone"))),
        }
    }
}

fn commas(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// A file of velocity maps (nz, nx) in m/s: one map, or a stack (n, nz, nx) or (n, 1, nz, nx).
pub struct Maps(Stack);

impl Maps {
    /// Opens a file of maps of `shape` (nz, nx), as [`Survey::map_shape`](crate::Survey::map_shape) gives it.
    ///
    /// Errors as [`ArrayFile::open`], and [`Error::Input`] naming both shapes when they differ.
    pub fn open(path: impl AsRef<Path>, shape: (usize, usize), limits: &Limits) -> Result<Self> {
        let layouts = [vec![shape.0, shape.1], vec![1, shape.0, shape.1]];
        Stack::open(path.as_ref(), "velocity maps", &layouts, limits).map(Self)
    }

    /// Number of maps, at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Map `index`. A velocity that is not finite and above zero is an [`Error::Input`] that says where.
    pub fn get(&mut self, index: usize) -> Result<Array2<f64>> {
        let map = self.0.read(index)?.into_dimensionality::<Ix2>().expect("two axes");
        match map.indexed_iter().find(|(_, v)| !(v.is_finite() && **v > 0.0)) {
            None => Ok(map),
            Some(((z, x), v)) => Err(Error::input(
                self.0.file.path(),
                format!("map {index} holds {v} at row {z}, column {x}; velocities must be finite and above 0 m/s"),
            )),
        }
    }

    /// The map of a file that holds exactly one; an error on any other number.
    pub fn only(mut self) -> Result<Array2<f64>> {
        self.0.only("velocity maps")?;
        self.get(0)
    }

    /// All maps in order.
    pub fn iter(&mut self) -> impl Iterator<Item = Result<Array2<f64>>> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// A file of shot gathers (shots, time samples, receivers): one gather, or a stack with one more axis in front.
pub struct Gathers(Stack);

impl Gathers {
    /// Opens a file of gathers of `shape` (shots, time samples, receivers), as
    /// [`Survey::gather_shape`](crate::Survey::gather_shape) gives it.
    ///
    /// Errors as [`ArrayFile::open`], and [`Error::Input`] naming both shapes when they differ.
    pub fn open(path: impl AsRef<Path>, shape: (usize, usize, usize), limits: &Limits) -> Result<Self> {
        let layouts = [vec![shape.0, shape.1, shape.2]];
        Stack::open(path.as_ref(), "gathers (shots, time samples, receivers)", &layouts, limits).map(Self)
    }

    /// Number of gathers, at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Gather `index`. Samples may be NaN or infinite ([`Observed::new`](crate::Observed::new) masks such traces), but
    /// one trace at least must be finite throughout, else [`Error::Input`].
    pub fn get(&mut self, index: usize) -> Result<Array3<f64>> {
        let gather = self.0.read(index)?.into_dimensionality::<Ix3>().expect("three axes");
        let finite =
            gather.outer_iter().any(|shot| shot.columns().into_iter().any(|t| t.iter().all(|x| x.is_finite())));
        if !finite {
            let problem = format!("gather {index} has no trace that is finite throughout; nothing could be fitted");
            return Err(Error::input(self.0.file.path(), problem));
        }
        Ok(gather)
    }

    /// All gathers in order.
    pub fn iter(&mut self) -> impl Iterator<Item = Result<Array3<f64>>> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// The map of a file that holds exactly one. Errors as [`Maps`].
pub fn read_map(path: impl AsRef<Path>, shape: (usize, usize), limits: &Limits) -> Result<Array2<f64>> {
    Maps::open(path, shape, limits)?.only()
}

/// The gather of a file that holds exactly one. Errors as [`Gathers`].
pub fn read_gather(path: impl AsRef<Path>, shape: (usize, usize, usize), limits: &Limits) -> Result<Array3<f64>> {
    let mut gathers = Gathers::open(path, shape, limits)?;
    gathers.0.only("gathers")?;
    gathers.get(0)
}
