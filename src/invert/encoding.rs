//! From the optimiser's variables to a model and back: `vp = S u`, `vmin` free or tied.
//!
//! The variables are velocities in m/s themselves, `nz * nx` cells row by row and then `vmin`, so the bounds hold
//! exactly and a map's cells can reach them. `S` is the identity or a Gaussian whose rows sum to one: an average of
//! values within the bounds stays within them.

use super::stage::{Stage, Vmin};
use crate::Model;
use ndarray::{Array2, Axis};

pub(super) struct Encoding {
    shape: (usize, usize),
    vmin: Vmin,
    bounds: (f64, f64),
    /// Averages along depth and along distance; rows sum to one.
    smoothing: Option<(Array2<f64>, Array2<f64>)>,
}

impl Encoding {
    pub fn new(stage: &Stage, shape: (usize, usize), bounds: (f64, f64)) -> Self {
        let smoothing = stage.smoothing.map(|s| (average(shape.0, s), average(shape.1, s)));
        Self { shape, vmin: stage.vmin, bounds, smoothing }
    }

    /// Variables from a model. Smoothing has no inverse: the stage begins at the smoothed map.
    pub fn encode(&self, m: &Model) -> Vec<f64> {
        m.to_vec()
    }

    /// The model at `x`, which must lie within the bounds.
    pub fn decode(&self, x: &[f64]) -> Model {
        let mut m = Model::from_slice(self.shape, x).expect("the optimiser keeps the number of variables");
        if let Some((down, across)) = &self.smoothing {
            // the clamp takes off what rounding adds to an average
            m.vp = down.dot(&m.vp).dot(&across.t()).mapv(|v| v.clamp(self.bounds.0, self.bounds.1));
        }
        if self.vmin == Vmin::Tied {
            m.vmin = m.vp[slowest(&m.vp)];
        }
        m
    }

    /// The derivative by the variables from that by the model: the transpose of [`Encoding::decode`].
    pub fn pullback(&self, m: &Model, gradient: &Model) -> Vec<f64> {
        let mut g = gradient.clone();
        if self.vmin == Vmin::Tied {
            g.vp[slowest(&m.vp)] += g.vmin;
            g.vmin = 0.0;
        }
        if let Some((down, across)) = &self.smoothing {
            g.vp = down.t().dot(&g.vp).dot(across);
        }
        g.to_vec()
    }
}

/// The first of the slowest cells.
fn slowest(vp: &Array2<f64>) -> (usize, usize) {
    vp.indexed_iter().fold(((0, 0), f64::INFINITY), |best, (i, &v)| if v < best.1 { (i, v) } else { best }).0
}

/// The n x n matrix of Gaussian averages with standard deviation `sigma` cells, cut off at the ends.
fn average(n: usize, sigma: f64) -> Array2<f64> {
    let mut a = Array2::from_shape_fn((n, n), |(i, j)| (-0.5 * ((i as f64 - j as f64) / sigma).powi(2)).exp());
    for mut row in a.axis_iter_mut(Axis(0)) {
        let sum = row.sum();
        row /= sum;
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::misfit::MisfitSpec;

    #[test]
    fn pullback_is_the_transpose_of_decode() {
        for (smoothing, vmin) in
            [(None, Vmin::Free), (None, Vmin::Tied), (Some(1.5), Vmin::Free), (Some(0.7), Vmin::Tied)]
        {
            let stage = Stage { smoothing, vmin, ..Stage::new("s", MisfitSpec::L2) };
            let e = Encoding::new(&stage, (6, 5), (1500.0, 4500.0));
            let x: Vec<f64> = (0..31).map(|i| 2500.0 + 700.0 * (i as f64 * 1.7).sin()).collect();
            let dx: Vec<f64> = (0..31).map(|i| (i as f64 * 0.9).cos()).collect();
            let y = Model::from_slice((6, 5), &dx.iter().map(|d| d * d + 0.1).collect::<Vec<_>>()).unwrap();
            let h = 1e-3;
            let at = |t: f64| e.decode(&x.iter().zip(&dx).map(|(x, d)| x + t * d).collect::<Vec<_>>());
            let forward = (at(h).dot(&y) - at(-h).dot(&y)) / (2.0 * h);
            let back: f64 = e.pullback(&at(0.0), &y).iter().zip(&dx).map(|(g, d)| g * d).sum();
            assert!((forward - back).abs() < 1e-7 * back.abs().max(1.0), "{smoothing:?} {vmin:?}: {forward} {back}");
        }
    }

    #[test]
    fn smoothing_stays_within_bounds() {
        let stage = Stage { smoothing: Some(2.0), ..Stage::new("s", MisfitSpec::L2) };
        let e = Encoding::new(&stage, (9, 9), (1500.0, 4500.0));
        for v in [1500.0, 4500.0] {
            assert!(e.decode(&[v; 82]).vp.iter().all(|&c| (1500.0..=4500.0).contains(&c)));
        }
    }
}
