//! What of a velocity the data of a Gauss-Newton step are taken to be linear in.
//!
//! A cell, much smaller than a wave, scatters in proportion to the change of its squared slowness (Born's approximation of
//! `m p_tt = lap p`), and travel times change in proportion to slowness. Both are far from linear in velocity where a cell at an
//! edge goes over to the other side: from 3500 to 2400 m/s the squared slowness changes by twice what its derivative by
//! the velocity says. A step `d`, in m/s at the velocity `v` that it begins with, leads to `v (1 + p d / v)^(1/p)`.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Linear {
    /// Velocity: steps are added.
    #[default]
    Velocity,
    /// Slowness, `1/v`.
    Slowness,
    /// Squared slowness, `1/v^2`.
    SquaredSlowness,
}

/// Factor by which a step may raise or lower a velocity at most.
const MOST: f64 = 3.0;

impl Linear {
    /// The power of the velocity that the data are linear in.
    fn power(self) -> f64 {
        match self {
            Self::Velocity => 1.0,
            Self::Slowness => -1.0,
            Self::SquaredSlowness => -2.0,
        }
    }

    /// The velocity that a step from `v` leads to, m/s.
    pub(super) fn moved(self, v: f64, step: f64) -> f64 {
        if self == Self::Velocity {
            return v + step;
        }
        let p = self.power();
        let power = (1.0 + p * step / v).clamp(MOST.powf(p), MOST.powf(-p));
        v * power.powf(p.recip())
    }

    /// The derivative of [`Self::moved`] by the step, where that leads from `v` to `to`.
    pub(super) fn slope(self, v: f64, to: f64) -> f64 {
        (to / v).powf(1.0 - self.power())
    }

    /// The step that leads from `v` to `to`, m/s.
    pub(super) fn step(self, v: f64, to: f64) -> f64 {
        match self {
            Self::Velocity => to - v,
            _ => v * ((to / v).powf(self.power()) - 1.0) / self.power(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lead_where_they_should() {
        for linear in [Linear::Velocity, Linear::Slowness, Linear::SquaredSlowness] {
            for (v, to) in [(3500.0, 2400.0), (2000.0, 4400.0), (1500.0, 1500.0)] {
                let step = linear.step(v, to);
                assert!((linear.moved(v, step) - to).abs() < 1e-9, "{linear:?}");
                let h = 1e-3;
                let slope = (linear.moved(v, step + h) - linear.moved(v, step - h)) / (2.0 * h);
                assert!((slope / linear.slope(v, to) - 1.0).abs() < 1e-8, "{linear:?} {v} {to}");
            }
            // to first order a step is a change of velocity
            assert!((linear.moved(3000.0, 1e-3) - 3000.001).abs() < 1e-6);
            assert!(linear.moved(3000.0, 1e9).is_finite() && linear.moved(3000.0, -1e9).is_finite());
        }
        // Born's example: 1/v^2 changes by twice its derivative
        assert!((Linear::SquaredSlowness.step(3500.0, 2400.0) / -1100.0 - 1.79).abs() < 0.01);
    }
}
