//! Smoothed total variation: steps are paid by their size, so that a few large ones cost no more than many small ones.
//! Rudin, Osher and Fatemi, Physica D 60, 1992.

use super::{Regulariser, neighbours, neighbours::Penalty};
use crate::Model;

/// `sum over pairs of neighbours of w (sqrt(d^2 + epsilon^2) - epsilon) / scale`, `d` their step.
#[derive(Clone, Debug, PartialEq)]
pub struct TotalVariation {
    /// Step that costs one nat, m/s.
    pub scale: f64,
    /// Step below which the penalty is smooth, m/s.
    pub epsilon: f64,
    /// Weight of steps down.
    pub down: f64,
    /// Weight of steps across; 0 leaves the variation with depth alone.
    pub across: f64,
    /// Rows that the neighbour in the next column lies lower, for every column but the last; on the same row where it is empty.
    pub dips: Vec<isize>,
}

impl TotalVariation {
    fn penalty(&self, d: f64, down: bool) -> Penalty {
        let w = (if down { self.down } else { self.across }) / self.scale;
        let size = d.hypot(self.epsilon);
        // (size - epsilon) without the cancellation at small steps
        Penalty { value: w * d * d / (size + self.epsilon), weight: w / size }
    }
}

impl Regulariser for TotalVariation {
    fn describe(&self) -> String {
        let Self { scale, epsilon, down, across, dips } = self;
        let along = if dips.is_empty() { "across" } else { "along layers" };
        format!(
            "total variation, a nat per {scale} m/s of step above {epsilon} m/s, weights {down} down, {across} {along}"
        )
    }

    fn value(&self, m: &Model) -> f64 {
        neighbours::value(m, &self.dips, |d, down| self.penalty(d, down))
    }

    fn gradient(&self, m: &Model) -> Model {
        neighbours::gradient(m, &self.dips, |d, down| self.penalty(d, down))
    }

    fn curvature(&self, m: &Model, add: &mut dyn FnMut(usize, usize, f64)) {
        neighbours::curvature(m, &self.dips, add, |d, down| self.penalty(d, down));
    }
}
