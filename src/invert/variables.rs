//! What L-BFGS varies, and what a stage adds to the misfit.
//!
//! Plain stages, and regularised ones over cells, vary all cells and `vmin` within bounds (`encoding.rs`). Over rows, patches
//! or principal directions the variables are a change of the model that the stage began with, without bounds: a model that
//! the scheme cannot compute costs infinitely much, and the line search stays on this side of it.

use super::encoding::Encoding;
use super::lbfgs::Lbfgs;
use super::newton_space::{Space, Unknowns};
use super::run::Inversion;
use super::stage::{Stage, Vmin};
use super::state::State;
use super::terms::Terms;
use crate::reg::{Regulariser, RegulariserSpec};
use crate::{Error, Model, Result};
use serde::{Deserialize, Serialize};

/// The regularised L-BFGS part of a [`Stage`](super::Stage): the misfit over the noise squared plus the regularisers is
/// minimised, for least squares `|r|^2 / (2 s^2) + sum of R_i(m)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuasiNewton {
    /// Assumed noise `s` of the data, rms in their units.
    pub noise: f64,
    /// What is solved for.
    #[serde(default)]
    pub unknowns: Unknowns,
    /// Negative log priors of the map.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regularisers: Vec<RegulariserSpec>,
}

impl QuasiNewton {
    /// Errors, in one line, on numbers that make no sense.
    pub fn validate(&self) -> Result<()> {
        if !(1e-9..1e6).contains(&self.noise) {
            return Err(Error::Usage(format!("L-BFGS needs a noise between 1e-9 and 1e6, not {}", self.noise)));
        }
        self.regularisers.iter().try_for_each(|r| r.validate())?;
        self.unknowns.validate(&self.regularisers)
    }
}

/// What is added to a misfit: regularisers times a weight, the noise squared, so that the sum has the misfit's units.
#[derive(Default)]
pub(super) struct Penalty {
    weight: f64,
    regularisers: Vec<Box<dyn Regulariser>>,
}

impl Penalty {
    pub fn value(&self, m: &Model) -> f64 {
        self.weight * self.regularisers.iter().map(|r| r.value(m)).sum::<f64>()
    }

    pub fn add_gradient(&self, m: &Model, to: &mut Model) {
        for r in &self.regularisers {
            *to = to.plus(self.weight, &r.gradient(m));
        }
    }
}

/// Variables and models.
pub(super) enum Variables {
    /// Cells and `vmin` within bounds.
    Bounded(Encoding),
    /// A change of a model.
    About { base: Model, space: Space, tied: bool },
}

impl Variables {
    /// The variables of the model that the stage begins with.
    pub fn encode(&self, m: &Model) -> Vec<f64> {
        match self {
            Self::Bounded(encoding) => encoding.encode(m),
            Self::About { base, space, .. } => vec![0.0; space.pull(base).len()],
        }
    }

    /// The model at `u`.
    pub fn decode(&self, u: &[f64]) -> Model {
        match self {
            Self::Bounded(encoding) => encoding.decode(u),
            Self::About { base, space, tied } => {
                let mut m = base.plus(1.0, &space.push(u));
                if *tied {
                    m.vmin = m.slowest().1;
                }
                m
            }
        }
    }

    /// The derivative by the variables at `u` from that by the model `m` there: the transpose of [`Variables::decode`].
    pub fn pullback(&self, u: &[f64], m: &Model, gradient: &Model) -> Vec<f64> {
        match self {
            Self::Bounded(encoding) => encoding.pullback(u, m, gradient),
            Self::About { space, tied: false, .. } => space.pull(gradient),
            Self::About { space, .. } => {
                let mut g = gradient.clone();
                g.vp[m.slowest().0] += std::mem::take(&mut g.vmin);
                space.pull(&g)
            }
        }
    }
}

/// Largest first change of a coefficient of a principal direction, whose standard deviation is one.
const FIRST_COEFFICIENT: f64 = 0.1;

impl Inversion<'_> {
    /// What a stage varies, from where the inversion and the stage began.
    pub(super) fn variables(&self, stage: &Stage, state: &State) -> Result<Variables> {
        let bounded = || Encoding::new(stage, self.survey().map_shape(), self.settings().bounds, self.held());
        let Some(own) = stage.lbfgs.as_ref().filter(|own| own.unknowns != Unknowns::Cells) else {
            return Ok(Variables::Bounded(bounded()));
        };
        let begin = &state.begin.as_ref().unwrap_or(&state.entry).model;
        let terms = Terms::new(&state.start.vp, begin, state.confidence.as_ref());
        let space = terms.space(&own.unknowns, &own.regularisers)?;
        let mut base = begin.clone();
        space.prepare(&mut base);
        Ok(Variables::About { base, space, tied: stage.vmin == Vmin::Tied })
    }

    /// What a stage adds to its misfit.
    pub(super) fn penalty(&self, stage: &Stage, state: &State) -> Result<Penalty> {
        let Some(own) = &stage.lbfgs else { return Ok(Penalty::default()) };
        let begin = &state.begin.as_ref().unwrap_or(&state.entry).model;
        let terms = Terms::new(&state.start.vp, begin, state.confidence.as_ref());
        let mut regularisers = terms.regularisers(&own.regularisers)?;
        if own.unknowns != Unknowns::Cells {
            // cells are held, and vmin is tied, by the variables
            self.add_known(&mut regularisers, false)?;
        }
        Ok(Penalty { weight: own.noise.powi(2), regularisers })
    }

    /// The solver of a stage before its first iteration. What lies deep is lit weakly: the metric grows with the rows
    /// between a cell and the nearest row of sources or receivers. That of a patch is of its cells' curvatures summed.
    pub(super) fn solver(&self, variables: &Variables) -> Lbfgs {
        let (s, survey) = (self.settings(), self.survey());
        let rows: Vec<usize> = survey.sources.iter().chain(&survey.receivers).map(|p| p.z).collect();
        let cell = |z: usize| {
            let distance = rows.iter().map(|r| r.abs_diff(z)).min().unwrap_or(0);
            (1.0 + distance as f64).powf(s.depth_exponent)
        };
        let cells = ndarray::Array2::from_shape_fn(survey.map_shape(), |(z, _)| cell(z));
        let (metric, first_step) = match variables {
            Variables::Bounded(_) => (Model { vp: cells, vmin: 1.0 }.to_vec(), s.first_step),
            Variables::About { space: Space::Directions(d), .. } => (vec![1.0; d.len() + 1], FIRST_COEFFICIENT),
            Variables::About { space, .. } => {
                let curvatures = space.pull(&Model { vp: cells.mapv(f64::recip), vmin: 1.0 });
                (curvatures.iter().map(|c| c.recip()).collect(), s.first_step)
            }
        };
        Lbfgs::new(metric, s.memory, first_step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invert::Settings;
    use crate::invert::objective::Clock;
    use crate::misfit::MisfitSpec;
    use crate::reg::{Mean, MeanMap};
    use crate::wave::Reference;
    use crate::{Observed, Position, Propagator, Survey, survey::ricker};
    use ndarray::Array2;
    use std::time::Instant;

    const N: usize = 12;

    fn tiny() -> Reference {
        let (dt, at) = (1.2e-3, |x| Position { z: 1, x });
        let survey = Survey {
            nz: N,
            nx: N,
            dx: 10.0,
            dt,
            nt: 160,
            sponge: 8,
            sources: [1, 6, 10].map(at).to_vec(),
            receivers: (0..N).map(at).collect(),
            wavelet: ricker(15.0, dt),
        };
        Reference::new(survey).unwrap()
    }

    fn process() -> RegulariserSpec {
        RegulariserSpec::GaussianProcess {
            mean: Mean::Map(MeanMap::Stage),
            confidence: false,
            sigma: 150.0,
            length: 2.0,
            white: 20.0,
            mean_sigma: 100.0,
            slope_sigma: 0.0,
        }
    }

    fn tv() -> RegulariserSpec {
        RegulariserSpec::Tv { scale: 40.0, epsilon: 3.0, down: 1.0, across: 0.7, along: false }
    }

    /// The derivative of the whole objective along several directions against central differences.
    #[test]
    fn the_gradient_is_that_of_misfit_and_regularisers_for_every_kind_of_unknowns() {
        let p = tiny();
        let truth = Array2::from_shape_fn((N, N), |(z, _)| if z < 6 { 1900.0 } else { 2400.0 });
        let observed = Observed::new(p.forward(&[Model::from_map(truth)]).unwrap().remove(0));
        let layered = Array2::from_shape_fn((N, N), |(z, x)| 1800.0 + 300.0 * (z / 4) as f64 + 2.0 * (x % 3) as f64);
        for (unknowns, regularisers, dim) in [
            (Unknowns::Cells, vec![tv(), process()], N * N),
            (Unknowns::Rows, vec![tv()], N),
            (Unknowns::Patches { step: 10.0, min_area: 4 }, vec![tv()], 3),
            (Unknowns::Directions { share: 1e-2 }, vec![process()], 0),
        ] {
            for vmin in [Vmin::Free, Vmin::Tied] {
                let lbfgs = Some(QuasiNewton { noise: 0.05, unknowns, regularisers: regularisers.clone() });
                let stage = Stage { lbfgs, vmin, ..Stage::new("s", MisfitSpec::L2) };
                let settings = Settings { stages: vec![stage.clone()], ..Settings::default() };
                let inversion = Inversion::new(&p, &observed, settings).unwrap();
                // the slowest cell is not one of two: the tie has a derivative
                let mut map = layered.clone();
                map[[3, 7]] -= 9.0;
                let state = inversion.beginning(Model::from_map(map));
                let clock = Clock { before: 0.0, since: Instant::now() };
                let mut observer = ();
                let objective = inversion.objective(&state, &stage, clock, &mut observer).unwrap();
                let x = objective.variables.encode(&state.entry.model);
                if dim > 0 {
                    assert_eq!(x.len(), dim + 1, "{unknowns:?}");
                }
                let size = if matches!(unknowns, Unknowns::Directions { .. }) { 0.02 } else { 2.0 };
                let begin: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + size * (1.1 * i as f64).sin()).collect();
                let at = objective.point(&begin).unwrap();
                let penalty = objective.penalty.value(&objective.variables.decode(&begin));
                assert!(penalty > 1e-6 * at.misfit && penalty < at.misfit, "{unknowns:?}: {penalty} {}", at.misfit);
                for k in 0..3 {
                    let direction: Vec<f64> = (0..x.len()).map(|i| (i as f64 * (0.7 + k as f64)).cos()).collect();
                    let h = 1e-3 * size;
                    let to = |t: f64| begin.iter().zip(&direction).map(|(x, d)| x + t * d).collect::<Vec<_>>();
                    let misfit = |t: f64| objective.point(&to(t)).unwrap().misfit;
                    let difference = (misfit(h) - misfit(-h)) / (2.0 * h);
                    let slope: f64 = at.gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                    let error = (difference - slope).abs() / slope.abs();
                    assert!(error < 1e-4, "{unknowns:?} {vmin:?} {k}: {difference:e} {slope:e}");
                }
            }
        }
    }

    #[test]
    fn a_model_that_cannot_be_computed_costs_infinitely_much() {
        let p = tiny();
        let map = Array2::from_elem((N, N), 2000.0);
        let observed = Observed::new(p.forward(&[Model::from_map(map.clone())]).unwrap().remove(0));
        let lbfgs = Some(QuasiNewton { noise: 1.0, unknowns: Unknowns::Rows, regularisers: vec![] });
        let stage = Stage { lbfgs, ..Stage::new("s", MisfitSpec::L2) };
        let settings = Settings { stages: vec![stage.clone()], ..Settings::default() };
        let inversion = Inversion::new(&p, &observed, settings).unwrap();
        let state = inversion.beginning(Model::from_map(map));
        let clock = Clock { before: 0.0, since: Instant::now() };
        let mut observer = ();
        let objective = inversion.objective(&state, &stage, clock, &mut observer).unwrap();
        assert_eq!(objective.point(&[0.0; N + 1]).unwrap().misfit, 0.0);
        for change in [-3000.0, 9000.0] {
            assert_eq!(objective.point(&[change; N + 1]).unwrap().misfit, f64::INFINITY);
        }
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        let stage = |lbfgs| Stage { lbfgs: Some(lbfgs), ..Stage::new("s", MisfitSpec::L2) };
        let plain = QuasiNewton { noise: 1.0, unknowns: Unknowns::Cells, regularisers: vec![tv()] };
        stage(plain.clone()).validate(1e-3).unwrap();
        let told = |s: Stage| s.validate(1e-3).unwrap_err().to_string();
        assert!(told(stage(QuasiNewton { noise: 0.0, ..plain.clone() })).contains("noise between"));
        let directions = Unknowns::Directions { share: 0.1 };
        assert!(told(stage(QuasiNewton { unknowns: directions, ..plain.clone() })).contains("gaussian-process"));
        assert!(told(Stage { smoothing: Some(1.0), ..stage(plain) }).contains("neither"));
    }
}
