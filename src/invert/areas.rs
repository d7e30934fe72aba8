//! Which area every cell belongs to, decided one cell after another: maps of layers consist of few areas of one velocity each, and what
//! Gauss-Newton steps leave are cells at an edge that both sides claim.
//!
//! The step's quadratic model tells the variance of every difference `v_a - v_b`. A cell joins the neighbouring area that it
//! agrees with if that costs less than a velocity of its own; the surest decision is taken first, and all the rest is
//! conditioned on it before the next one, as phase ambiguities are fixed in satellite geodesy (integer bootstrapping:
//! Teunissen, GPS Solutions 2, 1998). Areas that agree become one. Cells that agree with nothing keep a velocity of their own.

use super::linear::Linear;
use crate::curvature::Symmetric;
use crate::param::{Patches, interiors, patches, reduce};
use crate::{Error, Model, Result};
use faer::linalg::solvers::{DenseSolveCore, Solve};
use faer::{Mat, Side};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// Areas that a Gauss-Newton step ends in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Areas {
    /// Largest step within an area to begin with, m/s.
    pub step: f64,
    /// Cells of the smallest area to begin with; those of smaller ones are decided one by one.
    pub min_area: usize,
    /// Nats that a velocity of its own costs.
    #[serde(default = "own")]
    pub own: f64,
    /// Nats that a pair of neighbours costs that belong to different areas.
    #[serde(default = "edge")]
    pub edge: f64,
    /// Cells farther than this from an edge move with their area once the map is one of areas: normal matrices over the others
    /// alone cost a fraction. 0 leaves every cell its own.
    #[serde(default)]
    pub reach: usize,
}

fn own() -> f64 {
    20.0
}

fn edge() -> f64 {
    2.0
}

/// Samples that count as one: the data are oversampled eightfold.
const SAMPLES: f64 = 8.0;
/// The velocity that values are steps from while they are compared, m/s.
const COMMON: f64 = 3000.0;
/// Largest difference, m/s, of a cell from its area in a map that is one of areas.
pub(super) const FLAT: f64 = 0.5;
/// Unknowns, `vmin` included, above which nothing is decided: a map with so many is none of areas.
const MOST: usize = 3000;
/// Bytes that decisions about so many take at most: a reduced matrix, its factor and its inverse.
pub(super) const MOST_BYTES: u64 = 3 * 8 * (MOST * MOST) as u64;

impl Areas {
    /// Errors on numbers that make no sense.
    pub fn validate(&self) -> Result<()> {
        let finite = [self.step, self.own, self.edge].iter().all(|x| (0.0..1e6).contains(x));
        match finite && self.step > 0.0 && self.min_area > 1 {
            true => Ok(()),
            false => Err(Error::Usage(format!(
                "areas need a step above 0 m/s, at least two cells, and costs of 0 or more, not {self:?}"
            ))),
        }
    }

    /// What a step from a map is taken over: its areas and the cells near their edges. All cells where it is no map of areas.
    pub(super) fn unknowns(&self, map: &Array2<f64>) -> Patches {
        if self.reach == 0 {
            return Patches::cells(map);
        }
        let inner = interiors(map, self.step, self.min_area, self.reach);
        let flat = map.iter().zip(&inner.flatten(map)).all(|(a, b)| (a - b).abs() < FLAT);
        if flat { inner } else { Patches::cells(map) }
    }

    /// The model of areas that lies nearest to a minimum, in the metric of the quadratic's matrix over steps of the unknowns,
    /// from a model on, and `vmin`. None where the minimum is too far from a map of areas to tell, or the matrix does not determine them.
    pub(super) fn decide(
        &self,
        (from, minimum): (&Model, &Model),
        unknowns: &Patches,
        linear: Linear,
        mut matrix: Symmetric,
    ) -> Option<Model> {
        let patches = patches(&minimum.vp, self.step, self.min_area).joined_by(unknowns, &minimum.vp);
        if patches.len() >= MOST {
            return None;
        }
        // unknowns of one velocity have one step from a velocity that is the same for all
        let common: Vec<f64> = unknowns.encode(&minimum.vp).iter().map(|v| linear.step(COMMON, *v)).collect();
        let slope = |v: &f64| linear.slope(COMMON, *v);
        let slopes: Vec<f64> = unknowns.encode(&from.vp).iter().map(slope).chain([1.0]).collect();
        for j in 0..slopes.len() {
            let column = matrix.lower.col_as_slice_mut(j);
            column.iter_mut().zip(&slopes).skip(j).for_each(|(a, s)| *a *= s * slopes[j]);
        }
        let mut decisions = Decisions::new(*self, &patches, unknowns, &common, minimum.vmin, &matrix)?;
        decisions.take_all();
        let value = |label: u32| linear.moved(COMMON, decisions.value[decisions.owner(label as usize)]);
        Some(Model { vp: patches.labels.mapv(value), vmin: decisions.value[patches.len()] })
    }
}

/// Something that may be decided: `from` joins `to`.
#[derive(Clone, Copy)]
struct Move {
    from: usize,
    to: usize,
    /// Nats by which it is better than the next best.
    gain: f64,
}

/// Velocities of groups of cells and of `vmin`, the last, as far as it is decided which are one.
struct Decisions {
    areas: Areas,
    labels: Array2<u32>,
    /// Whether a group is an area that cells may join.
    area: Vec<bool>,
    /// What a group was joined to; itself if to nothing.
    joined: Vec<usize>,
    value: Vec<f64>,
    /// Over the groups that were joined to nothing and `vmin`, each in its place.
    covariance: Mat<f64>,
    /// Place of every group.
    place: Vec<usize>,
    /// The group in every place that is taken.
    taken: Vec<usize>,
}

impl Decisions {
    fn new(
        areas: Areas,
        patches: &Patches,
        unknowns: &Patches,
        at: &[f64],
        vmin: f64,
        matrix: &Symmetric,
    ) -> Option<Self> {
        let mut group = vec![0; unknowns.len()];
        unknowns.labels.iter().zip(&patches.labels).for_each(|(&u, &p)| group[u as usize] = p as usize);
        let factor = reduce(matrix, &group, patches.len()).llt(Side::Lower).ok()?;
        // the groups' velocities nearest to the unknowns' in the metric of the matrix, as a change of any of each group's
        let mut value = vec![0.0; patches.len()];
        group.iter().zip(at).for_each(|(&g, v)| value[g] = *v);
        let off: Vec<f64> = group.iter().zip(at).map(|(&g, v)| v - value[g]).chain([0.0]).collect();
        let mut right = vec![0.0; patches.len() + 1];
        let all = group.iter().copied().chain([patches.len()]);
        all.zip(matrix.times(&off)).for_each(|(g, p)| right[g] += p);
        let change = factor.solve(Mat::from_fn(right.len(), 1, |i, _| right[i]));
        value.push(vmin);
        value.iter_mut().enumerate().for_each(|(i, v)| *v += change[(i, 0)]);
        Some(Self {
            areas,
            labels: patches.labels.clone(),
            area: patches.sizes.iter().map(|&n| n > 1).collect(),
            joined: (0..patches.len()).collect(),
            value,
            covariance: factor.inverse(),
            place: (0..=patches.len()).collect(),
            taken: (0..=patches.len()).collect(),
        })
    }

    fn owner(&self, mut group: usize) -> usize {
        while self.joined[group] != group {
            group = self.joined[group];
        }
        group
    }

    fn variance(&self, a: usize, b: usize) -> f64 {
        let (a, b, c) = (self.place[a], self.place[b], &self.covariance);
        c[(a, a)] + c[(b, b)] - c[(a, b)] - c[(b, a)]
    }

    /// Nats of the claim that two groups have one velocity.
    fn disagreement(&self, a: usize, b: usize) -> f64 {
        (self.value[a] - self.value[b]).powi(2) / (2.0 * SAMPLES * self.variance(a, b)).max(1e-300)
    }

    fn take_all(&mut self) {
        while let Some(surest) = self.surest() {
            self.join(surest.from, surest.to);
        }
    }

    /// The surest decision that gains anything.
    fn surest(&self) -> Option<Move> {
        let (nz, nx) = self.labels.dim();
        let owners = self.labels.mapv(|l| self.owner(l as usize));
        let mut edges = std::collections::BTreeMap::<(usize, usize), f64>::new();
        let mut best: Option<Move> = None;
        let mut offer = |m: Move| {
            if m.gain > 0.0 && best.is_none_or(|b| m.gain > b.gain) {
                best = Some(m);
            }
        };
        for ((z, x), &a) in owners.indexed_iter() {
            let beside = [(z + 1, x), (z, x + 1)];
            for &b in beside.iter().filter_map(|at| owners.get(*at)).filter(|b| **b != a) {
                if self.area[a] && self.area[b] {
                    *edges.entry((a.min(b), a.max(b))).or_default() += 1.0;
                }
            }
            if self.area[a] {
                continue;
            }
            let around = (z.saturating_sub(1)..(z + 2).min(nz))
                .flat_map(|i| (x.saturating_sub(1)..(x + 2).min(nx)).map(move |j| (i, j)))
                .filter(|at| *at != (z, x));
            let near: Vec<(usize, bool)> = around.map(|(i, j)| (owners[[i, j]], i == z || j == x)).collect();
            let mut candidates: Vec<usize> = near.iter().map(|n| n.0).filter(|&b| self.area[b]).collect();
            candidates.sort_unstable();
            candidates.dedup();
            let cost = |b: usize| {
                let edges = near.iter().filter(|(c, direct)| *direct && self.area[*c] && *c != b).count() as f64;
                self.disagreement(a, b) + self.areas.edge * edges
            };
            let sides = near.iter().filter(|(c, direct)| *direct && self.area[*c]).count() as f64;
            // the last one is that it keeps a velocity of its own
            let mut costs: Vec<(f64, usize)> = candidates.iter().map(|&b| (cost(b), b)).collect();
            costs.push((self.areas.own + self.areas.edge * sides, a));
            costs.sort_by(|p, q| p.0.total_cmp(&q.0));
            if let [(least, to), (next, _), ..] = costs[..]
                && to != a
            {
                offer(Move { from: a, to, gain: next - least });
            }
        }
        for ((a, b), count) in edges {
            let gain = self.areas.own + self.areas.edge * count - self.disagreement(a, b);
            offer(Move { from: a, to: b, gain });
        }
        best
    }

    /// Makes two groups one: all else is conditioned on `v_a - v_b = 0`. The first one's place is given up.
    fn join(&mut self, a: usize, b: usize) {
        let n = self.taken.len();
        let (at, to) = (self.place[a], self.place[b]);
        let c = &mut self.covariance;
        let difference: Vec<f64> = (0..n).map(|i| c[(i, at)] - c[(i, to)]).collect();
        let variance = difference[at] - difference[to];
        let off = (self.value[a] - self.value[b]) / variance;
        if variance > 0.0 && off.is_finite() {
            self.taken.iter().zip(&difference).for_each(|(&group, d)| self.value[group] -= d * off);
            for (j, d) in difference.iter().enumerate() {
                let by = d / variance;
                c.col_as_slice_mut(j).iter_mut().zip(&difference).for_each(|(c, d)| *c -= d * by);
            }
        }
        let last = self.taken.pop().expect("two groups at least");
        if last != a {
            for i in 0..n {
                c[(i, at)] = c[(i, n - 1)];
            }
            for j in 0..n - 1 {
                c[(at, j)] = c[(n - 1, j)];
            }
            (self.taken[at], self.place[last]) = (last, at);
        }
        self.joined[a] = b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREAS: Areas = Areas { step: 10.0, min_area: 6, own: 20.0, edge: 2.0, reach: 0 };

    /// Slow above fast, six by eight cells.
    fn truth() -> Array2<f64> {
        Array2::from_shape_fn((6, 8), |(z, _)| if z < 3 { 2000.0 } else { 3000.0 })
    }

    /// Well determined but for some cells.
    fn matrix(loose: &[(usize, usize)]) -> Symmetric {
        let mut lower = Mat::identity(49, 49);
        loose.iter().for_each(|(z, x)| lower[(z * 8 + x, z * 8 + x)] = 1e-6);
        Symmetric { lower }
    }

    fn decided(map: Array2<f64>, linear: Linear, matrix: Symmetric) -> Model {
        let from = Model { vp: truth(), vmin: 1990.0 };
        let minimum = Model { vp: map, vmin: 1995.0 };
        AREAS.decide((&from, &minimum), &Patches::cells(&from.vp), linear, matrix).unwrap()
    }

    #[test]
    fn cells_join_the_side_that_they_agree_with() {
        for linear in [Linear::Velocity, Linear::Slowness, Linear::SquaredSlowness] {
            let mut map = truth();
            (map[[2, 1]], map[[3, 4]], map[[2, 6]]) = (2300.0, 2650.0, 1800.0);
            let found = decided(map, linear, matrix(&[(2, 1), (3, 4), (2, 6)]));
            let off = found.vp.iter().zip(&truth()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 0.5, "{linear:?}: {off}");
            assert!((found.vmin - 1995.0).abs() < 1e-6);
        }
    }

    #[test]
    fn steps_over_areas_and_their_edges_decide_as_those_over_cells_do() {
        let areas = Areas { reach: 1, ..AREAS };
        let unknowns = areas.unknowns(&truth());
        // two rows of each side, and the two rows of cells between them
        assert_eq!(unknowns.len(), 2 + 16);
        let mut uneven = truth();
        uneven[[0, 0]] += 5.0;
        assert_eq!(areas.unknowns(&uneven).len(), 48);
        assert_eq!(AREAS.unknowns(&truth()).len(), 48);

        let mut map = truth();
        (map[[2, 1]], map[[3, 4]], map[[2, 6]]) = (2300.0, 2650.0, 1800.0);
        let full = matrix(&[(2, 1), (3, 4), (2, 6)]);
        let label: Vec<usize> = unknowns.labels.iter().map(|&l| l as usize).collect();
        let reduced = Symmetric { lower: reduce(&full, &label, unknowns.len()) };
        let (from, minimum) = (Model { vp: truth(), vmin: 1990.0 }, Model { vp: map.clone(), vmin: 1995.0 });
        let found = areas.decide((&from, &minimum), &unknowns, Linear::SquaredSlowness, reduced).unwrap();
        let by_cells = decided(map, Linear::SquaredSlowness, full);
        let off = found.vp.iter().zip(&by_cells.vp).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-6, "{off}");
    }

    #[test]
    fn what_agrees_with_nothing_keeps_a_velocity_of_its_own() {
        let mut map = truth();
        map[[1, 4]] = 2400.0;
        let found = decided(map, Linear::SquaredSlowness, matrix(&[]));
        assert!((found.vp[[1, 4]] - 2400.0).abs() < 0.1 && (found.vp[[1, 5]] - 2000.0).abs() < 0.1);
    }

    #[test]
    fn what_is_decided_first_decides_the_rest() {
        // the sum of three cells is known, to a metre: each alone would go over to the fast side
        let cells = [(2, 2), (2, 3), (2, 4)];
        let mut map = truth();
        (map[[2, 2]], map[[2, 3]], map[[2, 4]]) = (2900.0, 2580.0, 2520.0);
        let mut coupled = matrix(&[]);
        cells.iter().for_each(|(z, x)| coupled.lower[(z * 8 + x, z * 8 + x)] = 1e-4);
        for (i, a) in cells.iter().enumerate() {
            for b in &cells[..=i] {
                coupled.lower[(a.0 * 8 + a.1, b.0 * 8 + b.1)] += 1.0;
            }
        }
        let from = Model { vp: truth(), vmin: 1990.0 };
        let free = Areas { edge: 0.0, ..AREAS };
        let minimum = Model { vp: map, vmin: 1990.0 };
        let cells = Patches::cells(&from.vp);
        let found = free.decide((&from, &minimum), &cells, Linear::Velocity, coupled).unwrap();
        let row: Vec<f64> = (2..5).map(|x| found.vp[[2, x]].round()).collect();
        assert_eq!(row, [3000.0, 3000.0, 2000.0]);
    }

    #[test]
    fn a_map_of_too_many_areas_or_of_none_that_the_matrix_determines_is_none_of_areas() {
        let busy = Array2::from_shape_fn((60, 60), |(z, x)| 2000.0 + 100.0 * ((3 * z + 7 * x) % 11) as f64);
        let model = Model { vp: busy.clone(), vmin: 1990.0 };
        let matrix = Symmetric { lower: Mat::identity(3601, 3601) };
        let cells = Patches::cells(&busy);
        assert_eq!(AREAS.decide((&model, &model), &cells, Linear::Velocity, matrix), None);

        let model = Model { vp: truth(), vmin: 1990.0 };
        let nothing = Symmetric { lower: Mat::zeros(49, 49) };
        assert_eq!(AREAS.decide((&model, &model), &Patches::cells(&truth()), Linear::Velocity, nothing), None);
    }

    #[test]
    fn areas_of_one_velocity_become_one() {
        let mut map = truth();
        map.slice_mut(ndarray::s![..3, 4..]).fill(2012.0);
        let mut weak = matrix(&[]);
        weak.scale(0.01);
        let found = decided(map, Linear::Velocity, weak);
        let (left, right) = (found.vp[[0, 0]], found.vp[[0, 7]]);
        assert!((left - right).abs() < 1e-9 && (left - 2006.0).abs() < 0.1, "{left} {right}");
    }
}
