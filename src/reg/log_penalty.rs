//! A logarithmic penalty of steps: beyond its knee a step costs little more for being larger, so edges stay.
//! Hebert and Leahy, IEEE Trans. Medical Imaging 8, 1989.

use super::{Regulariser, neighbours, neighbours::Penalty};
use crate::Model;

/// `strength * sum over pairs of neighbours of 1/2 ln(1 + d^2 / epsilon^2)`, `d` their step. Not convex.
#[derive(Clone, Debug, PartialEq)]
pub struct LogPenalty {
    /// Nats per factor e of a large step.
    pub strength: f64,
    /// Step at which the penalty turns from quadratic to logarithmic, m/s.
    pub epsilon: f64,
}

impl LogPenalty {
    fn penalty(&self, d: f64) -> Penalty {
        let value = 0.5 * self.strength * (d / self.epsilon).powi(2).ln_1p();
        Penalty { value, weight: self.strength / (d * d + self.epsilon * self.epsilon) }
    }
}

impl Regulariser for LogPenalty {
    fn describe(&self) -> String {
        format!("logarithmic penalty of steps, {} nats per factor e above {} m/s", self.strength, self.epsilon)
    }

    fn value(&self, m: &Model) -> f64 {
        neighbours::value(m, &[], |d, _| self.penalty(d))
    }

    fn gradient(&self, m: &Model) -> Model {
        neighbours::gradient(m, &[], |d, _| self.penalty(d))
    }

    fn curvature(&self, m: &Model, add: &mut dyn FnMut(usize, usize, f64)) {
        neighbours::curvature(m, &[], add, |d, _| self.penalty(d));
    }
}
