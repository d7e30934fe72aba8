//! The tie of the sponge's velocity to the map: where the data were made, it was the map's slowest.

use super::Regulariser;
use crate::Model;

/// `(vmin - min(vp))^2 / (2 sigma^2)`.
///
/// The minimum is not smooth where another cell becomes the slowest: the derivative is that of the slowest cell (the first
/// of equals), and the curvature bounds the value only among maps whose slowest cell is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct TieVmin {
    /// Standard deviation of the difference, m/s.
    pub sigma: f64,
}

impl Regulariser for TieVmin {
    fn describe(&self) -> String {
        format!("vmin tied to the slowest cell, standard deviation {} m/s", self.sigma)
    }

    fn value(&self, m: &Model) -> f64 {
        0.5 * ((m.vmin - m.slowest().1) / self.sigma).powi(2)
    }

    fn gradient(&self, m: &Model) -> Model {
        let (cell, v) = m.slowest();
        let slope = (m.vmin - v) / self.sigma.powi(2);
        let mut g = Model::zeros(m.vp.dim());
        g.vmin = slope;
        g.vp[cell] = -slope;
        g
    }

    fn curvature(&self, m: &Model, add: &mut dyn FnMut(usize, usize, f64)) {
        let ((z, x), vmin, weight) = (m.slowest().0, m.vp.len(), self.sigma.powi(-2));
        let cell = z * m.vp.ncols() + x;
        add(cell, cell, weight);
        add(vmin, cell, -weight);
        add(vmin, vmin, weight);
    }
}
