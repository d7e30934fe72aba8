//! Misfits by name: the spelling of the command line, the recipes and the logs.

use super::{FilteredL2, Huber, L1, L2, Misfit, StudentT};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A misfit as data: what [`parse`] reads and what [`Misfit::name`] writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MisfitSpec {
    /// [`L2`], written `l2`.
    #[default]
    L2,
    /// [`L1`], written `l1` or `l1:eps`.
    L1(f64),
    /// [`Huber`], written `huber:delta`.
    Huber(f64),
    /// [`StudentT`], written `student:scale` (4 degrees of freedom) or `student:scale:nu`.
    StudentT(f64, f64),
    /// [`FilteredL2`], written `lowpass:hz`.
    LowPass(f64),
    /// The misfit given to [`Inversion::own_misfit`](crate::invert::Inversion::own_misfit); has no spelling to be read.
    Own,
}

/// The misfit of that name for records sampled every `dt` s; the table at [`misfit`](super) lists the names.
pub fn parse(text: &str, dt: f64) -> Result<Box<dyn Misfit>> {
    text.parse::<MisfitSpec>()?.build(dt)
}

impl MisfitSpec {
    /// Whether the misfit is known to be [`band_limited`](Misfit::band_limited).
    pub fn band_limited(self) -> bool {
        matches!(self, Self::L2 | Self::LowPass(_))
    }

    /// The misfit itself for records sampled every `dt` s. Errors on a corner that `dt` cannot hold, on
    /// parameters that are not above zero and finite, and on `Own`.
    pub fn build(self, dt: f64) -> Result<Box<dyn Misfit>> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let sound = match self {
            Self::L1(x) | Self::Huber(x) => positive(x),
            Self::StudentT(scale, nu) => positive(scale) && positive(nu),
            Self::L2 | Self::LowPass(_) | Self::Own => true,
        };
        if !sound {
            return Err(Error::Usage(format!("misfit \"{self}\": its parameters must be above zero and finite")));
        }
        Ok(match self {
            Self::L2 => Box::new(L2),
            Self::L1(eps) => Box::new(L1 { eps }),
            Self::Huber(delta) => Box::new(Huber { delta }),
            Self::StudentT(scale, nu) => Box::new(StudentT { scale, nu }),
            Self::LowPass(corner) => Box::new(FilteredL2::new(corner, dt)?),
            Self::Own => return Err(Error::Usage("a stage has a misfit of its own, but none was given".into())),
        })
    }
}

impl fmt::Display for MisfitSpec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::L2 => write!(f, "l2"),
            Self::L1(eps) => write!(f, "l1:{eps}"),
            Self::Huber(delta) => write!(f, "huber:{delta}"),
            Self::StudentT(scale, nu) => write!(f, "student:{scale}:{nu}"),
            Self::LowPass(corner) => write!(f, "lowpass:{corner}"),
            Self::Own => write!(f, "own"),
        }
    }
}

impl FromStr for MisfitSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.trim().split(':');
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let numbers = parts
            .map(|p| match p.trim().parse::<f64>() {
                Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
                _ => Err(Error::Usage(format!("misfit \"{text}\": \"{p}\" is not a number above zero"))),
            })
            .collect::<Result<Vec<f64>>>()?;
        match (name.as_str(), numbers.as_slice()) {
            ("l2", []) => Ok(Self::L2),
            ("l1", []) => Ok(Self::L1(L1::default().eps)),
            ("l1", &[eps]) => Ok(Self::L1(eps)),
            ("huber", &[delta]) => Ok(Self::Huber(delta)),
            ("student", &[scale]) => Ok(Self::StudentT(scale, 4.0)),
            ("student", &[scale, nu]) => Ok(Self::StudentT(scale, nu)),
            ("lowpass", &[corner]) => Ok(Self::LowPass(corner)),
            _ => Err(Error::Usage(format!(
                "no misfit \"{text}\"; there are l2, l1[:eps], huber:delta, student:scale[:nu] and lowpass:hz, as in \"huber:0.1\""
            ))),
        }
    }
}

impl TryFrom<String> for MisfitSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<MisfitSpec> for String {
    fn from(spec: MisfitSpec) -> Self {
        spec.to_string()
    }
}
