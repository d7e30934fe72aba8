//! Regularisers as data, as a recipe names them.

use super::dips::dips;
use super::{Covariance, GaussianProcess, LogPenalty, Order, Regulariser, Snap, Tikhonov, TotalVariation};
use crate::{Error, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// A regulariser by `kind` with its numbers; velocities in m/s, lengths in cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RegulariserSpec {
    /// [`TotalVariation`].
    Tv {
        /// Step that costs one nat, m/s.
        scale: f64,
        /// Step below which the penalty is smooth, m/s.
        epsilon: f64,
        /// Weight of steps down.
        #[serde(default = "one")]
        down: f64,
        /// Weight of steps across.
        #[serde(default = "one")]
        across: f64,
        /// Whether steps across follow the layers of the map that a Gauss-Newton step or a stage of L-BFGS starts from: see
        /// [`TotalVariation::dips`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        along: bool,
    },
    /// [`LogPenalty`].
    Log {
        /// Nats per factor e of a large step.
        strength: f64,
        /// Step at which the penalty turns logarithmic, m/s.
        epsilon: f64,
    },
    /// [`Tikhonov`].
    Tikhonov {
        /// Standard deviation of a difference, m/s.
        scale: f64,
        /// Order of the differences.
        order: Order,
    },
    /// [`GaussianProcess`].
    GaussianProcess {
        /// The map that it is about.
        mean: Mean,
        /// Whether the prior's confidence (m/s) multiplies `sigma` and `white`, which are factors then.
        #[serde(default)]
        confidence: bool,
        /// See [`Covariance::sigma`].
        sigma: f64,
        /// See [`Covariance::length`].
        length: f64,
        /// See [`Covariance::white`].
        white: f64,
        /// See [`Covariance::mean_sigma`].
        #[serde(default)]
        mean_sigma: f64,
        /// See [`Covariance::slope_sigma`].
        #[serde(default)]
        slope_sigma: f64,
    },
    /// [`Snap`].
    Snap {
        /// Spacing of the values, m/s.
        #[serde(default = "one")]
        spacing: f64,
        /// Standard deviation of a velocity about its multiple, m/s.
        scale: f64,
    },
}

/// The mean map of a Gaussian process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "mean must be \"start\", \"stage\" or a velocity in m/s")]
pub enum Mean {
    /// The same velocity everywhere, m/s.
    Constant(f64),
    /// A map that is given where the regulariser is built.
    Map(MeanMap),
}

/// A mean map by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeanMap {
    /// The map that the inversion starts from.
    Start,
    /// The map that the stage starts from.
    Stage,
}

/// A Gaussian process by its `kind`.
const GP: &str = "gaussian-process";

fn one() -> f64 {
    1.0
}

impl RegulariserSpec {
    /// Errors, in one line, on numbers that make no sense.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::Tv { scale, epsilon, down, across, .. } => {
                above_zero("tv", &[("scale", scale), ("epsilon", epsilon)])?;
                let weights = [down, across];
                if !weights.iter().all(|w| (0.0..1e6).contains(w)) || weights == [0.0; 2] {
                    let problem = format!("down and across must be at least 0 and not both 0, not {down} and {across}");
                    return Err(Error::Usage(format!("regulariser tv: {problem}")));
                }
                Ok(())
            }
            Self::Log { strength, epsilon } => above_zero("log", &[("strength", strength), ("epsilon", epsilon)]),
            Self::Tikhonov { scale, .. } => above_zero("tikhonov", &[("scale", scale)]),
            Self::Snap { spacing, scale } => above_zero("snap", &[("spacing", spacing), ("scale", scale)]),
            Self::GaussianProcess { mean, .. } => {
                if let Mean::Constant(v) = mean {
                    above_zero("gaussian-process", &[("mean", v)])?;
                }
                self.covariance().map_or(Ok(()), |c| c.validate())
            }
        }
    }

    /// Whether steps across follow the layers of a map, so that [`Self::build`] needs one.
    pub fn follows_layers(&self) -> bool {
        matches!(self, Self::Tv { along: true, .. })
    }

    /// Whether it asks how far off the start is expected to be, so that [`Self::build`] needs to be told.
    pub fn asks_for_confidence(&self) -> bool {
        matches!(self, Self::GaussianProcess { confidence: true, .. })
    }

    /// Which map a Gaussian process is about, where it is named.
    pub fn mean_map(&self) -> Option<MeanMap> {
        match self {
            Self::GaussianProcess { mean: Mean::Map(map), .. } => Some(*map),
            _ => None,
        }
    }

    /// The regulariser for maps of a shape (nz, nx). `mean` is the map that a Gaussian process names, [`Self::mean_map`], or whose
    /// layers are [followed](Self::follows_layers),
    /// `confidence` the prior's standard deviations, both in m/s. Errors on numbers that make no sense, on a map that is
    /// needed and missing, and on one of another shape.
    pub fn build(
        &self,
        shape: (usize, usize),
        mean: Option<&Array2<f64>>,
        confidence: Option<&Array2<f64>>,
    ) -> Result<Box<dyn Regulariser>> {
        self.validate()?;
        Ok(match *self {
            Self::Tv { scale, epsilon, down, across, along } => {
                let dips = match along {
                    true => dips(given("tv", "along = true", "a map", shape, mean)?),
                    false => vec![],
                };
                Box::new(TotalVariation { scale, epsilon, down, across, dips })
            }
            Self::Log { strength, epsilon } => Box::new(LogPenalty { strength, epsilon }),
            Self::Tikhonov { scale, order } => Box::new(Tikhonov { scale, order }),
            Self::Snap { spacing, scale } => Box::new(Snap { spacing, scale }),
            Self::GaussianProcess { .. } => Box::new(self.gaussian_process(shape, mean, confidence)?),
        })
    }

    /// [`Self::build`] for a Gaussian process, whose directions are of use besides. Errors on other kinds, too.
    pub fn gaussian_process(
        &self,
        shape: (usize, usize),
        mean: Option<&Array2<f64>>,
        confidence: Option<&Array2<f64>>,
    ) -> Result<GaussianProcess> {
        self.validate()?;
        let Self::GaussianProcess { mean: about, confidence: confident, .. } = *self else {
            return Err(Error::Usage("only a regulariser of kind gaussian-process has directions".into()));
        };
        let mean = match about {
            Mean::Constant(v) => Array2::from_elem(shape, v),
            Mean::Map(_) => given(GP, "its mean by name", "a mean map", shape, mean)?.clone(),
        };
        let factors = if confident {
            Some(given(GP, "confidence = true", "a prior's confidence", shape, confidence)?)
        } else {
            None
        };
        let covariance = self.covariance().expect("a Gaussian process has one");
        GaussianProcess::new(covariance, mean, factors)
    }

    fn covariance(&self) -> Option<Covariance> {
        match *self {
            Self::GaussianProcess { sigma, length, white, mean_sigma, slope_sigma, .. } => {
                Some(Covariance { sigma, length, white, mean_sigma, slope_sigma })
            }
            _ => None,
        }
    }
}

/// A map that an option needs, of the right shape.
fn given<'a>(
    kind: &str,
    option: &str,
    what: &str,
    shape: (usize, usize),
    map: Option<&'a Array2<f64>>,
) -> Result<&'a Array2<f64>> {
    match map {
        Some(map) if map.dim() == shape => Ok(map),
        found => {
            let found = found.map_or("none".into(), |m| format!("one of {} x {}", m.nrows(), m.ncols()));
            let (nz, nx) = shape;
            Err(Error::Usage(format!(
                "regulariser {kind}: {option} needs {what} of {nz} x {nx} cells, there is {found}"
            )))
        }
    }
}

fn above_zero(kind: &str, numbers: &[(&str, f64)]) -> Result<()> {
    match numbers.iter().find(|(_, x)| !(1e-6..1e9).contains(x)) {
        Some((name, x)) => {
            Err(Error::Usage(format!("regulariser {kind}: {name} must lie between 1e-6 and 1e9, not {x}")))
        }
        None => Ok(()),
    }
}
