//! Flat patches: connected areas of a map that share one change of velocity.

use crate::curvature::{Columns, Symmetric};
use faer::{Mat, MatMut};
use ndarray::Array2;

/// A map's cells sorted into patches; as unknowns `x`, a map is a reference plus `x[label]` in every cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Patches {
    /// Patch of every cell (nz, nx), numbered by their first cell, row by row.
    pub labels: Array2<u32>,
    /// Number of cells of every patch.
    pub sizes: Vec<usize>,
    /// Mean velocity of every patch in the map that they were found in, m/s.
    pub means: Vec<f64>,
}

/// The areas of a map (nz, nx) in m/s that are connected, over the four neighbours, by steps below `step` m/s. The cells of
/// an area of fewer than `min_area` cells become a patch each.
pub fn patches(map: &Array2<f64>, step: f64, min_area: usize) -> Patches {
    let (nz, nx) = map.dim();
    let mut labels = Array2::from_elem((nz, nx), u32::MAX);
    let mut next = 0;
    for start in 0..nz * nx {
        if labels[[start / nx, start % nx]] != u32::MAX {
            continue;
        }
        let area = area(map, step, (start / nx, start % nx));
        if area.len() < min_area {
            // its other cells come up later, each as a start of its own
            labels[[start / nx, start % nx]] = next;
        } else {
            area.iter().for_each(|&c| labels[c] = next);
        }
        next += 1;
    }
    Patches::new(labels, map)
}

/// The areas of [`patches`] without their cells near an edge: what lies within `reach` cells of another area, diagonals
/// included, is a patch a cell.
pub fn interiors(map: &Array2<f64>, step: f64, min_area: usize, reach: usize) -> Patches {
    let whole = patches(map, step, min_area);
    let (nz, nx) = map.dim();
    let is_inside = |z: usize, x: usize| {
        let around = |at: usize, n: usize| at.saturating_sub(reach)..(at + reach + 1).min(n);
        let same = |at: [usize; 2]| whole.labels[at] == whole.labels[[z, x]];
        around(z, nz).all(|i| around(x, nx).all(|j| same([i, j])))
    };
    // nothing is connected to what is no number
    let inner = Array2::from_shape_fn((nz, nx), |(z, x)| if is_inside(z, x) { map[[z, x]] } else { f64::NAN });
    Patches::new(patches(&inner, step, 1).labels, map)
}

/// The area that a cell belongs to.
fn area(map: &Array2<f64>, step: f64, start: (usize, usize)) -> Vec<(usize, usize)> {
    let mut seen = Array2::from_elem(map.dim(), false);
    seen[start] = true;
    let mut found = vec![start];
    let mut at = 0;
    while at < found.len() {
        let (z, x) = found[at];
        at += 1;
        for next in [(z.wrapping_sub(1), x), (z + 1, x), (z, x.wrapping_sub(1)), (z, x + 1)] {
            if let Some(v) = map.get(next)
                && (v - map[(z, x)]).abs() < step
                && !seen[next]
            {
                seen[next] = true;
                found.push(next);
            }
        }
    }
    found
}

impl Patches {
    /// Patches by their labels, which count from 0 without a gap.
    fn new(labels: Array2<u32>, map: &Array2<f64>) -> Self {
        let count = labels.iter().max().map_or(0, |&l| l as usize + 1);
        let mut patches = Self { labels, sizes: vec![0; count], means: Vec::new() };
        patches.labels.iter().for_each(|&l| patches.sizes[l as usize] += 1);
        patches.means = patches.encode(map);
        patches
    }

    /// One patch a cell.
    pub fn cells(map: &Array2<f64>) -> Self {
        let nx = map.ncols();
        Self::new(Array2::from_shape_fn(map.dim(), |(z, x)| (z * nx + x) as u32), map)
    }

    /// One patch a row, for maps whose velocity depends on depth alone.
    pub fn rows(map: &Array2<f64>) -> Self {
        Self::new(Array2::from_shape_fn(map.dim(), |(z, _)| z as u32), map)
    }

    /// These patches of a map, with every patch of `finer` given whole to the one that its first cell belongs to.
    pub fn joined_by(&self, finer: &Self, map: &Array2<f64>) -> Self {
        let (mut first, mut numbers, mut count) = (vec![None; finer.len()], vec![None; self.len()], 0);
        let mut labels = self.labels.clone();
        for (label, &fine) in labels.iter_mut().zip(&finer.labels) {
            let whole = *first[fine as usize].get_or_insert(*label);
            *label = *numbers[whole as usize].get_or_insert(count);
            count = count.max(*label + 1);
        }
        Self::new(labels, map)
    }

    /// Number of patches.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// What the normal matrix is to be taken over.
    pub fn columns(&self) -> Columns {
        Columns::Groups { of: self.labels.iter().map(|&l| Some(l)).collect(), groups: self.len() }
    }

    /// The reference (nz, nx) with every patch changed by its unknown, of [`Self::len`], m/s.
    pub fn decode(&self, reference: &Array2<f64>, x: &[f64]) -> Array2<f64> {
        let mut map = reference.clone();
        map.zip_mut_with(&self.labels, |v, &l| *v += x[l as usize]);
        map
    }

    /// The unknowns nearest to a change of the map: its mean over every patch. Undoes [`Self::decode`] of a zero reference.
    pub fn encode(&self, change: &Array2<f64>) -> Vec<f64> {
        let sums = self.pullback(change);
        sums.iter().zip(&self.sizes).map(|(sum, &n)| sum / n as f64).collect()
    }

    /// The derivative with respect to the unknowns from that with respect to the cells, its sum over every patch: the
    /// transpose of [`Self::decode`].
    pub fn pullback(&self, gradient: &Array2<f64>) -> Vec<f64> {
        let mut sums = vec![0.0; self.len()];
        gradient.iter().zip(&self.labels).for_each(|(g, &l)| sums[l as usize] += g);
        sums
    }

    /// A map with every patch at its mean.
    pub fn flatten(&self, map: &Array2<f64>) -> Array2<f64> {
        self.decode(&Array2::zeros(map.dim()), &self.encode(map))
    }
}

/// `B' A B` of a symmetric matrix over unknowns in so many groups, each by its label, and over a last unknown that stays one.
/// The lower triangles count.
pub(crate) fn reduce(a: &Symmetric, label: &[usize], groups: usize) -> Mat<f64> {
    let label: Vec<usize> = label.iter().copied().chain([groups]).collect();
    let mut b = Mat::zeros(groups + 1, groups + 1);
    for j in 0..a.len() {
        for (i, &v) in a.lower.col_as_slice(j).iter().enumerate().skip(j).filter(|(_, v)| **v != 0.0) {
            add_reduced(b.as_mut(), &label, (i, j, v));
        }
    }
    b
}

/// Adds an entry of a lower triangle and its mirror image where the labels of row and column say.
pub(crate) fn add_reduced(mut to: MatMut<'_, f64>, label: &[usize], (i, j, v): (usize, usize, f64)) {
    let (k, l) = (label[i].max(label[j]), label[i].min(label[j]));
    // both halves of a pair within one patch count
    to[(k, l)] += if i != j && k == l { 2.0 * v } else { v };
}
