//! The spaces that Gauss-Newton steps are taken in: linear combinations of cells, and `vmin`.

use crate::curvature::{Columns, Counted, Curvature, Symmetric};
use crate::param::{Patches, add_reduced, patches};
use crate::reg::{Directions, Regulariser, RegulariserSpec};
use crate::{Error, Model, Propagator, Result};
use faer::MatMut;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// What a Gauss-Newton stage solves for, besides `vmin`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Unknowns {
    /// Every cell.
    #[default]
    Cells,
    /// One velocity a row.
    Rows,
    /// One velocity a flat patch of the map that the stage begins with.
    Patches {
        /// Largest step within a patch, m/s.
        step: f64,
        /// Cells of the smallest patch; those of smaller ones are unknowns of their own.
        min_area: usize,
    },
    /// Principal directions of the stage's Gaussian process, its only regulariser.
    Directions {
        /// Share of the largest variance down to which directions count.
        share: f64,
    },
}

impl Unknowns {
    /// Errors on numbers that make no sense, and on directions without the one process that they belong to.
    pub fn validate(&self, regularisers: &[RegulariserSpec]) -> Result<()> {
        let fail = |what: String| Err(Error::Usage(what));
        match *self {
            Self::Patches { step, min_area } if !(step > 0.0 && step < 1e6) || min_area == 0 => {
                fail(format!("patches need a step above 0 m/s and at least one cell, not {step} and {min_area}"))
            }
            Self::Directions { share } if !(0.0..1.0).contains(&share) => {
                fail(format!("the share of directions must lie between 0 and 1, not {share}"))
            }
            Self::Directions { .. } if !matches!(regularisers, [RegulariserSpec::GaussianProcess { .. }]) => {
                fail("directions need a gaussian-process as the stage's one regulariser".into())
            }
            _ => Ok(()),
        }
    }

    /// The space at the model that a stage begins with.
    pub(super) fn space<'m>(
        &self,
        at: &Model,
        regularisers: &[RegulariserSpec],
        mean: impl Fn(&RegulariserSpec) -> &'m Array2<f64>,
        confidence: &Array2<f64>,
    ) -> Result<Space> {
        Ok(match *self {
            Self::Cells => Space::Cells(at.vp.dim()),
            Self::Rows => Space::Patches(Patches::rows(&at.vp)),
            Self::Patches { step, min_area } => Space::Patches(patches(&at.vp, step, min_area)),
            Self::Directions { share } => {
                let spec = &regularisers[0];
                let process = spec.gaussian_process(at.vp.dim(), Some(mean(spec)), Some(confidence))?;
                Space::Directions(process.directions(share))
            }
        })
    }
}

/// Linear combinations of cells, with their transposes; `vmin` is the last unknown of every space.
pub(super) enum Space {
    Cells((usize, usize)),
    Patches(Patches),
    Directions(Directions),
}

impl Space {
    /// Over patches; over cells where each is one.
    pub fn of(patches: Patches) -> Self {
        if patches.len() == patches.labels.len() { Self::Cells(patches.labels.dim()) } else { Self::Patches(patches) }
    }

    /// The unknown of every cell, where each has one.
    pub fn patches(&self) -> Option<Patches> {
        match self {
            Self::Cells(shape) => Some(Patches::cells(&Array2::zeros(*shape))),
            Self::Patches(p) => Some(p.clone()),
            Self::Directions(_) => None,
        }
    }

    /// What the normal matrix is taken over.
    pub fn columns(&self) -> Columns {
        match self {
            Self::Cells((nz, nx)) => Columns::Cells { cells: nz * nx },
            Self::Patches(p) => p.columns(),
            Self::Directions(d) => d.columns(),
        }
    }

    /// `J' J` at a model over the unknowns and `vmin`, the last row: that one by a Born modelling. Nothing where `stop` says so.
    pub fn normal_matrix(
        &self,
        stop: &dyn Fn() -> bool,
        curvature: &Curvature,
        engine: &dyn Propagator,
        model: &Model,
        counted: &Counted,
    ) -> Result<Option<Symmetric>> {
        let mut sponge = Model::zeros(model.vp.dim());
        sponge.vmin = 1.0;
        let by_vmin = engine.born(std::slice::from_ref(model), &[sponge])?.remove(0);
        let made = curvature.normal_matrix_unless(stop, model, counted, &self.columns(), Some(&by_vmin))?;
        Ok(made.map(|(h, _)| h))
    }

    /// Makes a model one of the space's where that is no matter of taste: flat patches are flat.
    pub fn prepare(&self, m: &mut Model) {
        if let Self::Patches(p) = self {
            m.vp = p.flatten(&m.vp);
        }
    }

    /// The velocities that the unknowns but `vmin` stand for, m/s, where each stands for one.
    pub fn velocities(&self, m: &Model) -> Option<Vec<f64>> {
        match self {
            Self::Cells(_) => Some(m.vp.iter().copied().collect()),
            Self::Patches(p) => Some(p.encode(&m.vp)),
            Self::Directions(_) => None,
        }
    }

    /// The change of the model that a change of the unknowns makes.
    pub fn push(&self, x: &[f64]) -> Model {
        let (cells, vmin) = (&x[..x.len() - 1], x[x.len() - 1]);
        let vp = match self {
            Self::Cells(shape) => Array2::from_shape_vec(*shape, cells.to_vec()).expect("one unknown a cell"),
            Self::Patches(p) => p.decode(&Array2::zeros(p.labels.dim()), cells),
            Self::Directions(d) => d.apply(cells),
        };
        Model { vp, vmin }
    }

    /// The derivative by the unknowns from that by the model: the transpose of [`Space::push`].
    pub fn pull(&self, g: &Model) -> Vec<f64> {
        let mut x = match self {
            Self::Cells(_) => g.vp.iter().copied().collect(),
            Self::Patches(p) => p.pullback(&g.vp),
            Self::Directions(d) => d.transpose(&g.vp),
        };
        x.push(g.vmin);
        x
    }

    /// Adds the curvature of the regularisers over the unknowns to the lower triangle of a matrix. In principal directions the first
    /// one is the process that they belong to, whose curvature there is the identity. `slopes` are the derivatives of the cells'
    /// velocities by their unknowns, where those are not one.
    pub fn add_curvature(
        &self,
        regularisers: &[Box<dyn Regulariser>],
        at: &Model,
        slopes: &[f64],
        mut to: MatMut<'_, f64>,
    ) {
        match self {
            Self::Cells(_) => over_cells(regularisers, at, slopes, &mut |i, j, v| to[(i, j)] += v),
            Self::Patches(p) => {
                let label: Vec<usize> = p.labels.iter().map(|&l| l as usize).chain([p.len()]).collect();
                let mut add = |i, j, v| add_reduced(to.as_mut(), &label, (i, j, v));
                over_cells(regularisers, at, slopes, &mut add);
            }
            Self::Directions(d) => {
                (0..d.len()).for_each(|i| to[(i, i)] += 1.0);
                let mut add = |i, j, v| self.add_entry(at.vp.dim(), (i, j, v), to.as_mut());
                over_cells(&regularisers[1..], at, slopes, &mut add);
            }
        }
    }

    /// The product of what [`Space::add_curvature`] adds with a vector.
    pub fn curvature_times(
        &self,
        regularisers: &[Box<dyn Regulariser>],
        at: &Model,
        slopes: &[f64],
        x: &[f64],
    ) -> Vec<f64> {
        let skipped = usize::from(matches!(self, Self::Directions(_)));
        let sloped = |x: &mut [f64]| x.iter_mut().zip(slopes).for_each(|(x, s)| *x *= s);
        let mut cells = self.push(x).to_vec();
        sloped(&mut cells);
        let mut product = vec![0.0; cells.len()];
        for r in &regularisers[skipped..] {
            product.iter_mut().zip(r.curvature_times(at, &cells)).for_each(|(y, p)| *y += p);
        }
        sloped(&mut product);
        let mut y = self.pull(&Model::from_slice(at.vp.dim(), &product).expect("one number a cell and vmin"));
        if skipped > 0 {
            // the process itself
            y.iter_mut().zip(x).take(x.len() - 1).for_each(|(y, x)| *y += x);
        }
        y
    }

    /// Adds `B' A B` for a symmetric `A` of one entry and its mirror image.
    fn add_entry(&self, shape: (usize, usize), (i, j, v): (usize, usize, f64), mut to: MatMut<'_, f64>) {
        let unit = |i: usize| {
            let mut g = Model::zeros(shape);
            match g.vp.as_slice_mut().expect("row by row").get_mut(i) {
                Some(v) => *v = 1.0,
                None => g.vmin = 1.0,
            }
            self.pull(&g)
        };
        let (left, right) = (unit(i), unit(j));
        for l in 0..to.ncols() {
            for k in l..to.nrows() {
                let pair = left[k] * right[l] + if i != j { right[k] * left[l] } else { 0.0 };
                to[(k, l)] += v * pair;
            }
        }
    }
}

/// Tells the regularisers' curvature by unknowns of the cells, see [`Space::add_curvature`].
fn over_cells(
    regularisers: &[Box<dyn Regulariser>],
    at: &Model,
    slopes: &[f64],
    add: &mut dyn FnMut(usize, usize, f64),
) {
    let slope = |i: usize| slopes.get(i).copied().unwrap_or(1.0);
    regularisers.iter().for_each(|r| r.curvature(at, &mut |i, j, v| add(i, j, v * slope(i) * slope(j))));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curvature::Symmetric;
    use faer::Mat;

    const SHAPE: (usize, usize) = (5, 6);

    fn spec(text: &str) -> RegulariserSpec {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn curvature_is_that_over_cells_in_every_space() {
        let vp = Array2::from_shape_fn(SHAPE, |(z, x)| 2000.0 + 60.0 * z as f64 + 7.0 * ((3 * z + 5 * x) % 4) as f64);
        let at = Model { vp: vp.clone(), vmin: 1950.0 };
        let process = spec("kind = \"gaussian-process\"\nmean = 2100\nsigma = 300\nlength = 2\nwhite = 10");
        let steps = spec("kind = \"tv\"\nscale = 30\nepsilon = 5");
        let build = |spec: &RegulariserSpec| spec.build(SHAPE, Some(&vp), None).unwrap();
        let regularisers = vec![build(&process), build(&steps)];
        let slopes: Vec<f64> = (0..vp.len()).map(|i| 0.5 + 0.02 * i as f64).collect();
        let labels = Array2::from_shape_fn(SHAPE, |(z, x)| if z < 2 { 0 } else { 1 + (x / 3) as u32 });
        let directions = process.gaussian_process(SHAPE, Some(&vp), None).unwrap().directions(1e-2);
        let flat = patches(&labels.mapv(|l| 2000.0 + 100.0 * f64::from(l)), 1.0, 2);
        assert_eq!(flat.len(), 3);
        for (space, slopes) in [
            (Space::Cells(SHAPE), &slopes[..]),
            (Space::Patches(flat), &slopes[..]),
            // the process is one of velocities
            (Space::Directions(directions), &[][..]),
        ] {
            let n = space.pull(&at).len();
            let mut lower = Mat::zeros(n, n);
            space.add_curvature(&regularisers, &at, slopes, lower.as_mut());
            let matrix = Symmetric { lower };
            let product = |x: &[f64], y: &[f64]| -> f64 {
                let (mut a, mut b) = (space.push(x).to_vec(), space.push(y).to_vec());
                a.iter_mut().zip(slopes).for_each(|(a, s)| *a *= s);
                b.iter_mut().zip(slopes).for_each(|(b, s)| *b *= s);
                let mut sum = 0.0;
                regularisers.iter().for_each(|r| {
                    r.curvature(&at, &mut |i, j, v| sum += v * a[i] * b[j] + if i == j { 0.0 } else { v * a[j] * b[i] })
                });
                sum
            };
            let vector = |seed: f64| (0..n).map(|i| (seed + 1.3 * i as f64).sin()).collect::<Vec<f64>>();
            let (x, y) = (vector(0.2), vector(1.1));
            let (by_matrix, by_parts) = (matrix.times(&x), space.curvature_times(&regularisers, &at, slopes, &x));
            let dot = |a: &[f64]| a.iter().zip(&y).map(|(a, b)| a * b).sum::<f64>();
            let expected = product(&x, &y);
            let scale = (product(&x, &x) * product(&y, &y)).sqrt();
            assert!((dot(&by_matrix) - expected).abs() < 1e-6 * scale, "{n}: {} {expected}", dot(&by_matrix));
            assert!((dot(&by_parts) - expected).abs() < 1e-6 * scale, "{n}: {} {expected}", dot(&by_parts));
        }
    }
}
