//! Tests of a propagator's adjoint and gradient that any user can run: dot products and the Taylor remainder.

use crate::misfit::L2;
use crate::{Error, Gather, Model, Observed, Propagator, Result, Survey};
use ndarray::{Array2, Array3, s};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// What the data vector of a dot product is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataVector {
    /// Independent random samples. Half their energy lies above any band the field can hold, and the inner product is
    /// a hundredth of the product of the norms or less: the harder test, for exact gradients.
    White,
    /// What residuals are: modelled differences plus as much noise in the wavelet's band. For gradients that are
    /// summed over every few steps.
    Residual,
}

/// Two inner products that an exact adjoint makes equal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DotTest {
    /// `<J x, y>`.
    pub forward: f64,
    /// `<x, J' y>`.
    pub adjoint: f64,
    /// `|J x| |y|`.
    pub norms: f64,
}

impl DotTest {
    /// Difference relative to the larger inner product.
    pub fn relative(&self) -> f64 {
        (self.forward - self.adjoint).abs() / self.forward.abs().max(self.adjoint.abs())
    }

    /// Difference relative to the product of the norms.
    pub fn relative_to_norms(&self) -> f64 {
        (self.forward - self.adjoint).abs() / self.norms
    }
}

/// Dot-product test at a random model, with random direction (all cells and `vmin`) and data.
pub fn dot_test(propagator: &dyn Propagator, data: DataVector, seed: u64) -> Result<DotTest> {
    let survey = propagator.survey();
    let mut rng = StdRng::seed_from_u64(seed);
    let m = random_model(survey, &mut rng);
    let x = random_direction(survey, &mut rng);
    let born = |d: &Model| -> Result<Gather> {
        Ok(propagator.born(std::slice::from_ref(&m), std::slice::from_ref(d))?.remove(0))
    };
    let jx = born(&x)?;
    let noise = Array3::from_shape_fn(survey.gather_shape(), |_| rng.random_range(-1.0..1.0));
    let (y, gradient) = match data {
        DataVector::White => {
            let y = Gather::new(noise);
            let gradient = propagator.adjoint(std::slice::from_ref(&m), std::slice::from_ref(&y))?.remove(0);
            (y, gradient)
        }
        DataVector::Residual => {
            let other = born(&x.plus(1.0, &random_direction(survey, &mut rng)))?;
            let band = in_band(survey, &noise);
            let scale = (other.dot(&other) / band.iter().map(|v| v * v).sum::<f64>()).sqrt();
            let y = Gather::new(other.data + scale * band);
            let synthetic = propagator.forward(std::slice::from_ref(&m))?.remove(0);
            let mask = crate::Mask::all(survey.gather_shape());
            let observed =
                Observed { gather: Gather::new(synthetic.data - &y.data).into(), mask, bad: vec![], dead: vec![] };
            let e = propagator.misfit_and_gradient(std::slice::from_ref(&m), &[observed], &L2)?.remove(0);
            (y, e.gradient)
        }
    };
    let norms = (jx.dot(&jx) * y.dot(&y)).sqrt();
    Ok(DotTest { forward: jx.dot(&y), adjoint: x.dot(&gradient), norms })
}

/// Remainders of the misfit's linearisation and the power of the step with which they fall.
#[derive(Clone, Debug, PartialEq)]
pub struct TaylorTest {
    /// Step (m/s) and remainder `|J(m + h d) - J(m) - h <g, d>|`, from the largest step through seven halvings.
    pub remainders: Vec<(f64, f64)>,
    /// Mean of log2 of successive remainders' ratios: 2 for an exact gradient, 1 for a wrong one.
    pub slope: f64,
    /// The smallest and the largest of those.
    pub slopes: (f64, f64),
}

/// First step of [`taylor_test`], m/s.
const FIRST_STEP: f64 = 1.0;

/// Taylor test of the least-squares misfit's gradient at a random model along a random direction.
pub fn taylor_test(propagator: &dyn Propagator, seed: u64) -> Result<TaylorTest> {
    let survey = propagator.survey();
    let mut rng = StdRng::seed_from_u64(seed);
    let m = random_model(survey, &mut rng);
    let truth = m.plus(20.0, &random_direction(survey, &mut rng));
    let observed = Observed::new(propagator.forward(&[truth])?.remove(0));
    let d = random_direction(survey, &mut rng);
    let at = |h: f64| -> Result<(f64, Model)> {
        let e = propagator.misfit_and_gradient(&[m.plus(h, &d)], std::slice::from_ref(&observed), &L2)?.remove(0);
        Ok((e.value, e.gradient))
    };
    let (value, gradient) = at(0.0)?;
    let slope_at_zero = gradient.dot(&d);
    let mut remainders = Vec::new();
    for i in 0..8 {
        let h = FIRST_STEP / f64::from(1 << i);
        remainders.push((h, (at(h)?.0 - value - h * slope_at_zero).abs()));
    }
    let slopes: Vec<f64> = remainders.windows(2).map(|w| (w[0].1 / w[1].1).log2()).collect();
    let slope = slopes.iter().sum::<f64>() / slopes.len() as f64;
    if !slope.is_finite() {
        return Err(Error::Numerical("the Taylor test met a misfit that is not finite or does not change".into()));
    }
    let extremes = slopes.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
    Ok(TaylorTest { remainders, slope, slopes: extremes })
}

/// Wavy layers with some texture, 1650..4350 m/s.
fn random_model(survey: &Survey, rng: &mut StdRng) -> Model {
    let thickness = rng.random_range(6.0..20.0);
    let (wave, phase, height) = (rng.random_range(0.05..0.2), rng.random_range(0.0..6.0), rng.random_range(0.0..5.0));
    let velocities: Vec<f64> = (0..survey.nz + 10).map(|_| rng.random_range(1700.0..4300.0)).collect();
    Model::from_map(Array2::from_shape_fn(survey.map_shape(), |(z, x)| {
        let depth = z as f64 + height * (1.0 + (wave * x as f64 + phase).sin());
        velocities[(depth / thickness) as usize] + rng.random_range(-50.0..50.0)
    }))
}

/// Uniform in -1..1 in every cell and `vmin`.
fn random_direction(survey: &Survey, rng: &mut StdRng) -> Model {
    let vp = Array2::from_shape_fn(survey.map_shape(), |_| rng.random_range(-1.0..1.0));
    Model { vp, vmin: rng.random_range(-1.0..1.0) }
}

/// Every trace convolved with the wavelet, centred.
fn in_band(survey: &Survey, noise: &Array3<f64>) -> Array3<f64> {
    let (ns, nt, nr) = noise.dim();
    let half = survey.wavelet.len() / 2;
    let mut out = Array3::zeros(noise.dim());
    for shot in 0..ns {
        for r in 0..nr {
            let trace = noise.slice(s![shot, .., r]).to_vec();
            for t in 0..nt {
                let range = (t + half).saturating_sub(survey.wavelet.len() - 1)..(t + half + 1).min(nt);
                out[[shot, t, r]] = range.map(|i| trace[i] * survey.wavelet[t + half - i]).sum();
            }
        }
    }
    out
}
