//! Integer snapping: a periodic pull of every velocity to the nearest multiple of a spacing, for maps drawn from integers.

use super::Regulariser;
use super::neighbours::over_cells;
use crate::Model;
use std::f64::consts::TAU;

/// `sum over cells of (spacing / (2 pi scale))^2 (1 - cos(2 pi v / spacing))`: near a multiple, `(v - multiple)^2 / (2 scale^2)`.
///
/// It has a minimum at every multiple, so it helps only once most cells are within half a spacing of theirs. Its second
/// derivative is at most `1 / scale^2`, which is the majoriser's everywhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Snap {
    /// Spacing of the values, m/s.
    pub spacing: f64,
    /// Standard deviation of a velocity about its multiple, m/s.
    pub scale: f64,
}

impl Regulariser for Snap {
    fn describe(&self) -> String {
        format!("snapping to multiples of {} m/s, standard deviation {} m/s", self.spacing, self.scale)
    }

    fn value(&self, m: &Model) -> f64 {
        let height = (self.spacing / (TAU * self.scale)).powi(2);
        // 1 - cos(2a) = 2 sin(a)^2 keeps its digits near a multiple
        m.vp.iter().map(|v| 2.0 * height * (0.5 * TAU * v / self.spacing).sin().powi(2)).sum()
    }

    fn gradient(&self, m: &Model) -> Model {
        let steepest = self.spacing / (TAU * self.scale.powi(2));
        over_cells(m, m.vp.iter().map(|v| steepest * (TAU * v / self.spacing).sin()).collect())
    }

    fn curvature(&self, m: &Model, add: &mut dyn FnMut(usize, usize, f64)) {
        (0..m.vp.len()).for_each(|i| add(i, i, self.scale.powi(-2)));
    }
}
