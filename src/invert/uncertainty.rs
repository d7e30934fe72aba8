//! How uncertain a result is: the posterior of the data linearised at it, under the regularisers as negative log priors.
//!
//! With `J` the Jacobian over all cells and `vmin`, `s` the noise and `A` the regularisers' curvature, the posterior is normal
//! with the covariance `(J' J / s^2 + A)^-1`. The square roots of its diagonal are the standard deviations: from the
//! Cholesky factor `L`, entry `i` of the diagonal is the sum of squares of column `i` of `L^-1`. It is exact for a linear operator
//! and quadratic regularisers, such as a Gaussian process; for penalties of steps it is that of the quadratic which majorises
//! them at the result.

use super::factor::Factor;
use super::newton::VMIN_STEP;
use super::newton_space::Space;
use super::outcome::{Outcome, StageSummary, StopReason};
use super::run::Inversion;
use super::stage::{Stage, Vmin};
use super::terms::Terms;
use crate::curvature::{Counted, Symmetric};
use crate::reg::{Mean, MeanMap, Regulariser, RegulariserSpec};
use crate::{Error, Model, Result};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, get_global_parallelism};
use ndarray::Array2;

/// Standard deviations of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct Uncertainty {
    /// Of every cell (nz, nx), m/s.
    pub deviations: Array2<f64>,
    /// Of `vmin`, m/s.
    pub vmin: f64,
    /// The noise that was assumed, rms in the data's units.
    pub noise: f64,
    /// The regularisers that were assumed.
    pub regularisers: Vec<RegulariserSpec>,
    /// What the posterior's standard deviations were multiplied by.
    pub calibration: f64,
}

/// Least noise that is assumed, rms in the data's units: OpenFWI's gathers have about this of their own.
pub const LEAST_NOISE: f64 = 1e-5;

/// What is assumed of a map where no stage has regularisers: errors of the start that are alike over two cells.
fn assumed(confidence: bool) -> RegulariserSpec {
    let (sigma, white) = if confidence { (1.5, 0.1) } else { (200.0, 10.0) };
    RegulariserSpec::GaussianProcess {
        mean: Mean::Map(MeanMap::Start),
        confidence,
        sigma,
        length: 2.0,
        white,
        mean_sigma: 0.0,
        slope_sigma: 0.0,
    }
}

/// What a stage that was gone through assumed.
struct Assumed<'s> {
    regularisers: &'s [RegulariserSpec],
    /// Of its last step.
    noise: f64,
    calibration: f64,
}

impl<'s> Assumed<'s> {
    fn of(stage: &'s Stage, summary: &StageSummary) -> Option<Self> {
        match (&stage.newton, &stage.lbfgs) {
            // where no step towards a noise of its own was taken, the map is still that of the stage before
            (Some(n), _) => {
                let last = (summary.iterations as usize).min(n.noise.len()).checked_sub(1)?;
                Some(Self {
                    regularisers: &n.regularisers,
                    noise: n.wanted(last, summary.data_rms),
                    calibration: n.calibration,
                })
            }
            (None, Some(q)) => Some(Self { regularisers: &q.regularisers, noise: q.noise, calibration: 1.0 }),
            (None, None) => None,
        }
    }
}

impl Uncertainty {
    /// Mean absolute error over the cells that these standard deviations expect, m/s.
    pub fn expected_mae(&self) -> f64 {
        self.deviations.sum() / self.deviations.len() as f64 * std::f64::consts::FRAC_2_PI.sqrt()
    }
}

impl Inversion<'_> {
    /// The uncertainty of a result of this inversion, under the regularisers of the last stage that it went through and that
    /// has some, else under a Gaussian process about the start. `noise` is an rms in the data's units; by default it is what
    /// that stage assumed last or the data rms that was reached, whichever is larger, and at least [`LEAST_NOISE`]. The stage's
    /// [`calibration`](super::Newton::calibration) multiplies the standard deviations.
    /// Takes three matrices of order cells + 1: 600 MB for 70 x 70.
    ///
    /// Errors: [`Error::Usage`] for a noise that is not above 0, [`Error::Numerical`] where the regularisers leave a cell
    /// wholly unknown.
    pub fn uncertainty(&self, outcome: &Outcome, noise: Option<f64>) -> Result<Uncertainty> {
        let stages = &self.settings().stages;
        let changed_map = |stop: &StopReason| !stop.left_out() && *stop != StopReason::Undone;
        let through = stages.iter().zip(&outcome.stages).rev().filter(|(_, summary)| changed_map(&summary.stop));
        let of_a_stage =
            through.filter_map(|(s, summary)| Assumed::of(s, summary)).find(|a| !a.regularisers.is_empty());
        // an estimate under more noise than the data have is as uncertain as that noise makes it
        let assumed_last = of_a_stage.as_ref().map_or(0.0, |a| a.noise);
        let noise = noise.unwrap_or(outcome.data_rms.max(assumed_last).max(LEAST_NOISE));
        if !(1e-9..1e6).contains(&noise) {
            return Err(Error::Usage(format!("an uncertainty needs a noise between 1e-9 and 1e6, not {noise}")));
        }
        let (model, confidence) = (&outcome.model, outcome.confidence.as_ref());
        let shape = model.vp.dim();
        let calibration = of_a_stage.as_ref().map_or(1.0, |a| a.calibration);
        let specs = of_a_stage.map_or_else(|| vec![assumed(confidence.is_some())], |a| a.regularisers.to_vec());
        // the map that a process is about does not enter its curvature; layers are followed as the result shows them
        let terms = Terms::new(&outcome.start.vp, &outcome.start, confidence).here(model);
        let mut regularisers = terms.regularisers(&specs)?;
        let last = stages.last().expect("an inversion has a stage");
        self.add_known(&mut regularisers, last.vmin == Vmin::Tied)?;
        let space = Space::Cells(shape);
        let (data, whole) = (self.data(last), || false);
        let h = space.normal_matrix(&whole, self.curvature()?, self.engine(last), model, &Counted::all(&data.mask))?;
        let h = h.expect("nothing stops it");
        let memory = self.curvature()?.take(h.len());
        let deviations = posterior(h, noise, &regularisers, model, memory)?;
        let (cells, vmin) = deviations.split_at(deviations.len() - 1);
        let deviations = Array2::from_shape_vec(shape, cells.to_vec()).expect("one number a cell") * calibration;
        Ok(Uncertainty { deviations, vmin: vmin[0], noise, regularisers: specs, calibration })
    }
}

/// The precision of the posterior over cells and `vmin`; its lower triangle counts.
fn precision(h: Symmetric, noise: f64, regularisers: &[Box<dyn Regulariser>], model: &Model) -> Mat<f64> {
    let mut precision = h;
    precision.scale(noise.powi(-2));
    let mut a = precision.lower;
    let n = a.nrows();
    Space::Cells(model.vp.dim()).add_curvature(regularisers, model, &[], a.as_mut());
    a[(n - 1, n - 1)] += VMIN_STEP.powi(-2);
    a
}

/// Standard deviations of the cells, row by row, and of `vmin`.
fn posterior(
    h: Symmetric,
    noise: f64,
    regularisers: &[Box<dyn Regulariser>],
    model: &Model,
    mut inverse: Mat<f64>,
) -> Result<Vec<f64>> {
    let Ok(factor) = Factor::of(precision(h, noise, regularisers, model)) else {
        return Err(Error::Numerical(
            "the posterior has no covariance: its precision is not positive definite; assume more noise".into(),
        ));
    };
    let n = inverse.nrows();
    inverse.fill(0.0);
    invert_lower_triangular(inverse.as_mut(), factor.into_memory().as_ref(), get_global_parallelism());
    let deviation = |j: usize| inverse.col_as_slice(j)[j..].iter().map(|x| x * x).sum::<f64>().sqrt();
    let deviations: Vec<f64> = (0..n).map(deviation).collect();
    match deviations.iter().all(|d| d.is_finite()) {
        true => Ok(deviations),
        false => Err(Error::Numerical("the posterior's standard deviations are not finite; assume more noise".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curvature::{Curvature, CurvatureOptions};
    use crate::reg::{Covariance, GaussianProcess};
    use crate::wave::{Cpu, CpuOptions};
    use crate::{Mask, Position, Survey};
    use faer::Side;
    use faer::linalg::solvers::Solve;
    use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
    use rand::SeedableRng;
    use rand_chacha::ChaCha12Rng;
    use rand_distr::{Distribution, StandardNormal};

    const SHAPE: (usize, usize) = (24, 20);

    /// A survey, a model of it, the curvature there and a process about the model.
    struct Linear {
        model: Model,
        h: Symmetric,
        regularisers: Vec<Box<dyn Regulariser>>,
    }

    fn linear() -> Linear {
        let at = |x| Position { z: 1, x };
        let survey = Survey {
            nz: SHAPE.0,
            nx: SHAPE.1,
            nt: 300,
            sponge: 20,
            sources: vec![at(2), at(10), at(17)],
            receivers: (0..10).map(|i| at(2 * i)).collect(),
            ..Survey::openfwi()
        };
        let vp = Array2::from_shape_fn(SHAPE, |(z, x)| 2000.0 + 30.0 * z as f64 + 80.0 * (0.5 * x as f64).sin());
        let model = Model::from_map(vp.clone());
        let cpu = Cpu::<f64>::new(survey.clone(), &CpuOptions::default()).unwrap();
        let curvature = Curvature::new(&survey, &CurvatureOptions::default()).unwrap();
        let mask = Mask::all(survey.gather_shape());
        let h = Space::Cells(SHAPE)
            .normal_matrix(&|| false, &curvature, &cpu, &model, &Counted::all(&mask))
            .unwrap()
            .unwrap();
        let covariance = Covariance { sigma: 120.0, length: 2.0, white: 25.0, mean_sigma: 100.0, slope_sigma: 0.0 };
        let process = GaussianProcess::new(covariance, vp, None).unwrap();
        Linear { model, h, regularisers: vec![Box::new(process)] }
    }

    #[test]
    fn what_counts_is_the_noise_of_the_last_step_that_was_taken() {
        let newton = "name = \"n\"\n[newton]\nnoise = [0.3, 0.1, 0.02]\ncalibration = 0.8\n\
                      regularisers = [{ kind = \"tikhonov\", scale = 9, order = 1 }]";
        let quasi =
            "name = \"q\"\n[lbfgs]\nnoise = 0.05\nregularisers = [{ kind = \"tikhonov\", scale = 9, order = 1 }]";
        let told = |text: &str, iterations: u64| {
            let stage: Stage = toml::from_str(text).unwrap();
            let summary = StageSummary {
                name: stage.name.clone(),
                misfit: "l2".into(),
                iterations,
                moved: true,
                evaluations: 0,
                first_misfit: 1.0,
                last_misfit: 1.0,
                data_rms: 1.0,
                restarts: 0,
                normal_matrices: 0,
                rounded: None,
                stop: StopReason::TimeLimit { seconds: 1.0 },
            };
            Assumed::of(&stage, &summary).map(|a| (a.noise, a.calibration, a.regularisers.len()))
        };
        assert_eq!(told(newton, 3), Some((0.02, 0.8, 1)));
        assert_eq!(told(newton, 1), Some((0.3, 0.8, 1)));
        assert_eq!(told(newton, 0), None);
        assert_eq!(told(quasi, 40), Some((0.05, 1.0, 1)));
        assert_eq!(told("name = \"plain\"", 40), None);
    }

    #[test]
    fn deviations_are_those_of_the_dense_inverse() {
        let l = linear();
        let mut dense = precision(l.h.clone(), 0.01, &l.regularisers, &l.model);
        let n = dense.nrows();
        for j in 0..n {
            for i in 0..j {
                dense[(i, j)] = dense[(j, i)];
            }
        }
        let inverse = dense.partial_piv_lu().solve(Mat::<f64>::identity(n, n));
        let found = posterior(l.h, 0.01, &l.regularisers, &l.model, Mat::zeros(n, n)).unwrap();
        for (i, sd) in found.iter().enumerate() {
            let expected = inverse[(i, i)].sqrt();
            assert!((sd / expected - 1.0).abs() < 1e-6, "{i}: {sd} {expected}");
        }
        // the data tell more of what lies near the surface
        let row = |z: usize| found[z * SHAPE.1..(z + 1) * SHAPE.1].iter().sum::<f64>();
        assert!(row(2) < 0.5 * row(23), "{} {}", row(2), row(23));
    }

    /// `L'^-1 z` for the factor of a precision is a draw from its normal distribution.
    fn draw(precision: &Mat<f64>, rng: &mut ChaCha12Rng) -> Vec<f64> {
        let factor = precision.llt(Side::Lower).unwrap();
        let mut x = Mat::from_fn(precision.nrows(), 1, |_, _| StandardNormal.sample(rng));
        solve_upper_triangular_in_place(factor.L().transpose(), x.as_mut(), get_global_parallelism());
        x.col_as_slice(0).to_vec()
    }

    /// `L z`, a draw from the normal distribution with the covariance `L L'`.
    fn triangular(l: &Mat<f64>, rng: &mut ChaCha12Rng) -> Vec<f64> {
        let z = Mat::from_fn(l.ncols(), 1, |_, _| -> f64 { StandardNormal.sample(rng) });
        (l * z).col_as_slice(0).to_vec()
    }

    #[test]
    fn draws_of_a_linear_normal_model_lie_within_as_often_as_they_should() {
        const NOISE: f64 = 0.02;
        let l = linear();
        let zero = Symmetric { lower: Mat::zeros(l.h.len(), l.h.len()) };
        let prior = precision(zero, 1.0, &l.regularisers, &l.model);
        let whole = precision(l.h.clone(), NOISE, &l.regularisers, &l.model);
        let factor = whole.llt(Side::Lower).unwrap();
        let data = l.h.clone();
        let memory = Mat::zeros(l.h.len(), l.h.len());
        let deviations = posterior(l.h, NOISE, &l.regularisers, &l.model, memory).unwrap();
        let mut ridged = data.lower.clone();
        let largest = (0..ridged.nrows()).map(|i| ridged[(i, i)]).fold(0.0, f64::max);
        (0..ridged.nrows()).for_each(|i| ridged[(i, i)] += 1e-10 * largest);
        let spread = ridged.llt(Side::Lower).unwrap().L().to_owned();
        let mut rng = ChaCha12Rng::seed_from_u64(5);
        let (mut one, mut two, mut found, mut expected, mut cells) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for _ in 0..60 {
            let truth = draw(&prior, &mut rng);
            // `J' d` of the data `J m + e`: with J' e ~ N(0, s^2 J' J)
            let noise = triangular(&spread, &mut rng);
            let back: Vec<f64> = data.times(&truth).iter().zip(&noise).map(|(m, e)| m + NOISE * e).collect();
            let mut map = Mat::from_fn(back.len(), 1, |i, _| back[i] / NOISE.powi(2));
            factor.solve_in_place(map.as_mut());
            for (i, sd) in deviations.iter().enumerate().take(SHAPE.0 * SHAPE.1) {
                let error = (map[(i, 0)] - truth[i]).abs();
                one += f64::from(u8::from(error <= *sd));
                two += f64::from(u8::from(error <= 2.0 * sd));
                found += error;
                expected += sd * std::f64::consts::FRAC_2_PI.sqrt();
                cells += 1.0;
            }
        }
        assert!((one / cells - 0.6827).abs() < 0.02, "within one: {}", one / cells);
        assert!((two / cells - 0.9545).abs() < 0.01, "within two: {}", two / cells);
        assert!((found / expected - 1.0).abs() < 0.03, "{} {}", found / cells, expected / cells);
    }
}
