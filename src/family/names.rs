//! The ten families of OpenFWI's maps.

use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A family of maps of OpenFWI (Deng et al., 2022, "OpenFWI: large-scale multi-structural benchmark datasets for
/// full waveform inversion").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Horizontal layers, velocity growing with depth.
    FlatVelA,
    /// Horizontal layers in any order.
    FlatVelB,
    /// Curved layers, velocity growing with depth.
    CurveVelA,
    /// Curved layers in any order.
    CurveVelB,
    /// Few flat layers, cut and shifted by faults.
    FlatFaultA,
    /// More layers, tilted and in any order, cut by faults.
    FlatFaultB,
    /// Few curved layers, cut by faults.
    CurveFaultA,
    /// More curved layers in any order, cut by faults.
    CurveFaultB,
    /// Smooth texture of natural images.
    StyleA,
    /// Sharp texture of natural images.
    StyleB,
}

impl Family {
    /// All of them, in the order of their names in tables and of the logits of a prior without labels of its own.
    pub const ALL: [Self; 10] = [
        Self::FlatVelA,
        Self::FlatVelB,
        Self::CurveVelA,
        Self::CurveVelB,
        Self::FlatFaultA,
        Self::FlatFaultB,
        Self::CurveFaultA,
        Self::CurveFaultB,
        Self::StyleA,
        Self::StyleB,
    ];

    /// Whether its layers are cut by faults.
    pub fn is_faulted(self) -> bool {
        matches!(self, Self::FlatFaultA | Self::FlatFaultB | Self::CurveFaultA | Self::CurveFaultB)
    }

    /// Its name in OpenFWI, such as "CurveFault_B".
    pub fn name(self) -> &'static str {
        match self {
            Self::FlatVelA => "FlatVel_A",
            Self::FlatVelB => "FlatVel_B",
            Self::CurveVelA => "CurveVel_A",
            Self::CurveVelB => "CurveVel_B",
            Self::FlatFaultA => "FlatFault_A",
            Self::FlatFaultB => "FlatFault_B",
            Self::CurveFaultA => "CurveFault_A",
            Self::CurveFaultB => "CurveFault_B",
            Self::StyleA => "Style_A",
            Self::StyleB => "Style_B",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Family {
    type Err = Error;

    /// The OpenFWI name, in any case, with or without the underscore.
    fn from_str(text: &str) -> Result<Self> {
        let plain = |s: &str| s.replace(['_', '-'], "").to_ascii_lowercase();
        Self::ALL.into_iter().find(|f| plain(f.name()) == plain(text)).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|f| f.name()).collect();
            Error::Usage(format!("\"{text}\" is no family; take one of {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for family in Family::ALL {
            assert_eq!(family.name().parse::<Family>().unwrap(), family);
            assert_eq!(family.name().to_lowercase().replace('_', "").parse::<Family>().unwrap(), family);
        }
        assert!("Marmousi".parse::<Family>().unwrap_err().to_string().contains("FlatVel_A"));
    }
}
