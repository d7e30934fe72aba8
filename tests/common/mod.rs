//! Random models, directions and gathers for the tests.
#![allow(dead_code, reason = "each test binary uses its own part")]

use fwi::survey::ricker;
use fwi::{Gather, Model, Observed, Position, Survey};
use ndarray::{Array, Array2, Array3, Dimension};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// A survey of OpenFWI's cell size, time step and wavelet, positions being (row, column).
pub fn survey(
    nz: usize,
    nx: usize,
    sponge: usize,
    nt: usize,
    sources: &[(usize, usize)],
    receivers: &[(usize, usize)],
) -> Survey {
    let at = |l: &[(usize, usize)]| l.iter().map(|&(z, x)| Position { z, x }).collect();
    let (sources, receivers) = (at(sources), at(receivers));
    Survey { nz, nx, dx: 10.0, dt: 1e-3, nt, sponge, sources, receivers, wavelet: ricker(15.0, 1e-3) }
}

/// A random model within 1600..4200 m/s, a random direction and a random observed gather.
pub fn random_case(survey: &Survey, seed: u64) -> (Model, Model, Observed) {
    let mut rng = StdRng::seed_from_u64(seed);
    let vp = Array2::from_shape_fn(survey.map_shape(), |_| rng.random_range(1600.0..4200.0));
    let dvp = Array2::from_shape_fn(survey.map_shape(), |_| rng.random_range(-1.0..1.0));
    let data = Array3::from_shape_fn(survey.gather_shape(), |_| rng.random_range(-1.0..1.0));
    let direction = Model { vp: dvp, vmin: rng.random_range(-1.0..1.0) };
    (Model::from_map(vp), direction, Observed::new(Gather::new(data)))
}

/// Largest difference over the largest magnitude.
pub fn max_relative<D: Dimension>(a: &Array<f64, D>, b: &Array<f64, D>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let largest = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let error = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    if largest == 0.0 { error } else { error / largest }
}
