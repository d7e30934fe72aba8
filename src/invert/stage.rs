//! Stages as data: which misfit, for how long, with which freedom; and the default schedule.

use super::areas::FLAT;
use super::newton::Newton;
use super::rounding::Round;
use super::variables::QuasiNewton;
use crate::family::{is_smooth, is_texture};
use crate::misfit::MisfitSpec;
use crate::param::patches;
use crate::{Error, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the sponge's velocity is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vmin {
    /// One more unknown within the bounds: smooth.
    #[default]
    Free,
    /// `min(vp)`, as the data's makers have it; its derivative goes to the slowest cell.
    Tied,
}

/// What a map consists of, as far as it is known when a stage begins: a prior may have been wrong about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Areas of one velocity, or of one that changes slowly: layers.
    Patches,
    /// Areas of one velocity with cells between them that belong to none: the contacts of FlatFault_A and CurveFault_A. Patches count
    /// as such once a stage of areas has found none.
    Interpolated,
    /// Changes from cell to cell nearly everywhere: Style maps, smooth or sharp.
    Texture,
    /// Texture as smooth as Style_A.
    SmoothTexture,
    /// Texture rougher than that: Style_B.
    SharpTexture,
}

impl Kind {
    /// That of a map (nz, nx), m/s, as closely as there are kinds.
    pub fn of(map: &Array2<f64>) -> Self {
        match (is_texture(map), is_smooth(map)) {
            (false, _) if lone_share(map) > LONE_SHARE => Self::Interpolated,
            (false, _) => Self::Patches,
            (true, true) => Self::SmoothTexture,
            (true, false) => Self::SharpTexture,
        }
    }

    /// Whether maps of another kind are of this one, too.
    pub fn includes(self, other: Self) -> bool {
        match self {
            Self::Patches => matches!(other, Self::Patches | Self::Interpolated),
            Self::Texture => matches!(other, Self::Texture | Self::SmoothTexture | Self::SharpTexture),
            _ => self == other,
        }
    }
}

/// Share of lone cells above which a map of patches counts as interpolated: of 40 maps of FlatFault_A all have more, of 40 of
/// CurveFault_B, whose smallest areas they are, one has.
const LONE_SHARE: f64 = 0.006;

/// Share of the cells of a map (nz, nx) that belong to no flat area of a dozen cells or more.
fn lone_share(map: &Array2<f64>) -> f64 {
    let lone = patches(map, FLAT, 12).sizes.iter().filter(|&&n| n < 12).count();
    lone as f64 / map.len().max(1) as f64
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Patches => "patches",
            Self::Interpolated => "interpolated patches",
            Self::Texture => "texture",
            Self::SmoothTexture => "smooth texture",
            Self::SharpTexture => "sharp texture",
        })
    }
}

/// When a stage has had its share: the misfit fell by less than a fraction over some iterations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stall {
    /// Iterations looked back over.
    pub window: usize,
    /// Relative decrease of the misfit over the window below which the stage ends.
    pub decrease: f64,
}

/// One stage of an inversion: a misfit minimised from where the stage before ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// What logs call it.
    pub name: String,
    /// The misfit.
    #[serde(default)]
    pub misfit: MisfitSpec,
    /// Evaluations (one forward and one adjoint each) at most in this stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_evals: Option<u64>,
    /// Ends the stage when progress dries up; for L-BFGS, not for Gauss-Newton steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// Ends the stage when the rms of the unfiltered residual falls to this, in the data's units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_rms: Option<f64>,
    /// Standard deviation, in cells, of the Gaussian that the map is kept smooth with in this stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smoothing: Option<f64>,
    /// The sponge's velocity.
    #[serde(default)]
    pub vmin: Vmin,
    /// Runs on the propagator of [`Inversion::refine`](super::Inversion::refine), where one was given.
    #[serde(default)]
    pub refined: bool,
    /// Lets only the samples before this time count, s: what lies shallow comes first, before what lies deep can be taken
    /// for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<f64>,
    /// Leaves the stage out where its first model fits the data to this rms, in their units, or better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_below: Option<f64>,
    /// Leaves the stage out where its first map is of another kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Kind>,
    /// Leaves the stage out where the one before left the map as it was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub after_progress: bool,
    /// Ends the inversion where the stage ends with a data rms above this, in their units: it went into another basin, and
    /// a recipe's fall-back comes sooner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandon_above: Option<f64>,
    /// Gauss-Newton steps in place of L-BFGS; its misfit is least squares, low-passed or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newton: Option<Newton>,
    /// Regularisers and other unknowns for L-BFGS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lbfgs: Option<QuasiNewton>,
    /// Rounds flat patches at the end of the stage, where the data allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<Round>,
}

impl Stage {
    /// A stage without any limit, free `vmin`, no smoothing, not refined.
    pub fn new(name: impl Into<String>, misfit: MisfitSpec) -> Self {
        Self {
            name: name.into(),
            misfit,
            max_evals: None,
            stall: None,
            target_rms: None,
            smoothing: None,
            vmin: Vmin::Free,
            refined: false,
            until: None,
            skip_below: None,
            only: None,
            after_progress: false,
            abandon_above: None,
            newton: None,
            lbfgs: None,
            round: None,
        }
    }

    /// Whether this stage minimises the same function of the same variables as the one before (apart from rounding), so
    /// that what the optimiser learnt of it still holds.
    pub(super) fn continues(&self, before: &Self) -> bool {
        self.newton.is_none()
            && before.newton.is_none()
            && self.lbfgs.is_none()
            && before.lbfgs.is_none()
            && before.round.is_none()
            && (self.misfit, self.smoothing, self.vmin, self.until)
                == (before.misfit, before.smoothing, before.vmin, before.until)
    }

    /// Parses a schedule of the command line: misfits with optional evaluation limits, as in `lowpass:5@40,lowpass:10@40,l2`.
    /// A stage without a limit and not last ends when the misfit stalls as in the [default schedule](default_schedule).
    pub fn parse_schedule(text: &str) -> Result<Vec<Self>> {
        let parts: Vec<&str> = text.split(',').collect();
        let last = parts.len() - 1;
        parts
            .iter()
            .enumerate()
            .map(|(i, part)| {
                let (misfit, limit) = part.split_once('@').map_or((*part, None), |(m, l)| (m, Some(l)));
                let mut stage = Self::new(misfit.trim(), misfit.parse()?);
                stage.stall = (i < last).then_some(CONTINUE);
                if let Some(limit) = limit {
                    stage.max_evals = Some(limit.trim().parse().map_err(|_| {
                        Error::Usage(format!("stage \"{part}\": \"{limit}\" after @ is not a number of evaluations"))
                    })?);
                }
                Ok(stage)
            })
            .collect()
    }

    /// Errors, in one line, on limits that make no sense.
    pub fn validate(&self, dt: f64) -> Result<()> {
        let fail = |what: String| Err(Error::Usage(format!("stage \"{}\": {what}", self.name)));
        if self.misfit != MisfitSpec::Own {
            self.misfit.build(dt)?;
        }
        if let Some(newton) = &self.newton {
            if !matches!(self.misfit, MisfitSpec::L2 | MisfitSpec::LowPass(_)) || self.smoothing.is_some() {
                return fail("Gauss-Newton takes neither a misfit besides l2 and lowpass:hz nor a smoothing".into());
            }
            newton.validate().or_else(|e| fail(e.to_string()))?;
            if self.stall.is_some() {
                return fail("a stall ends L-BFGS only; Gauss-Newton takes a step for each noise".into());
            }
        }
        if let Some(lbfgs) = &self.lbfgs {
            if self.newton.is_some() || self.smoothing.is_some() {
                return fail("regularised L-BFGS takes neither Gauss-Newton steps nor a smoothing beside it".into());
            }
            lbfgs.validate().or_else(|e| fail(e.to_string()))?;
        }
        if let Some(round) = &self.round {
            round.validate().or_else(|e| fail(e.to_string()))?;
        }
        if self.max_evals == Some(0) {
            return fail("at least one evaluation is needed".into());
        }
        if let Some(s) = self.stall
            && !(s.window > 0 && s.decrease >= 0.0)
        {
            return fail(format!("a stall needs a window above 0 and a decrease of at least 0, not {s:?}"));
        }
        for (what, x) in [
            ("target rms", self.target_rms),
            ("smoothing", self.smoothing),
            ("skip_below", self.skip_below),
            ("until", self.until),
            ("abandon_above", self.abandon_above),
        ] {
            if let Some(x) = x
                && !(x.is_finite() && x > 0.0 && x < 1e6)
            {
                return fail(format!("{what} must be above 0 and finite, not {x}"));
            }
        }
        Ok(())
    }
}

/// When a continuation stage hands over to the next one.
const CONTINUE: Stall = Stall { window: 5, decrease: 0.05 };

/// Corner frequencies (Hz) of the continuation and the evaluations that each may take.
const CONTINUATION: [(f64, u64); 4] = [(4.0, 40), (7.0, 40), (11.0, 40), (17.0, 40)];

/// Data rms at which the last stage takes over. Below 4e-4 to 7e-4 the rounding of f32 fields (2e-5 of data whose rms is
/// 1.5) changes the misfit by more than a step of the optimiser does, and line searches fail.
const REFINE_AT: f64 = 8e-4;

/// The default schedule: low-pass filtered least squares at growing corners, then full-band least squares, at last on
/// the refined propagator until nothing is gained any more. Made for OpenFWI's 15 Hz Ricker wavelet.
pub fn default_schedule() -> Vec<Stage> {
    schedule(&CONTINUATION)
}

/// The default schedule from the map of a prior, which knows the long wavelengths: one filtered stage takes it out of the
/// reach of skipped cycles, and the rest of [`default_schedule`] follows. From the bundled prior it reaches a data rms of
/// 3e-2 in a third of the evaluations that the gradient start takes, or less (a CurveFault_B gather 47 to 162, one of the
/// contest's 21 to 86).
pub fn prior_schedule() -> Vec<Stage> {
    schedule(&[(11.0, 30)])
}

fn schedule(continuation: &[(f64, u64)]) -> Vec<Stage> {
    let mut stages: Vec<Stage> = continuation
        .iter()
        .map(|&(corner, evals)| {
            let stage = Stage::new(format!("below {corner} Hz"), MisfitSpec::LowPass(corner));
            Stage { max_evals: Some(evals), stall: Some(CONTINUE), ..stage }
        })
        .collect();
    let full = Stage::new("full band", MisfitSpec::L2);
    let end = Some(Stall { window: 50, decrease: 1e-3 });
    stages.push(Stage { stall: end, target_rms: Some(REFINE_AT), ..full });
    stages.push(Stage { stall: end, refined: true, ..Stage::new("full band, refined", MisfitSpec::L2) });
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_and_survive_json() {
        let stages = Stage::parse_schedule("lowpass:5@40, huber:0.1,l2").unwrap();
        assert_eq!(stages.len(), 3);
        assert_eq!((stages[0].misfit, stages[0].max_evals), (MisfitSpec::LowPass(5.0), Some(40)));
        assert!(stages[1].stall.is_some() && stages[2].stall.is_none());
        for schedule in [stages, default_schedule(), prior_schedule()] {
            let text = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Vec<Stage>>(&text).unwrap(), schedule);
            schedule.iter().for_each(|s| s.validate(1e-3).unwrap());
        }
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        for (text, part) in [("", "no misfit"), ("l2@x", "\"x\" after @"), ("lowpass:5,,l2", "no misfit")] {
            let message = Stage::parse_schedule(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
        let bad = Stage { smoothing: Some(f64::NAN), ..Stage::new("s", MisfitSpec::L2) };
        assert!(bad.validate(1e-3).unwrap_err().to_string().contains("smoothing must be above 0"));
        assert!(Stage::parse_schedule("lowpass:500").unwrap()[0].validate(1e-3).is_err());
    }
}
