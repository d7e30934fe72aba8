//! The tie of the sponge's velocity to the map: where the data were made, it was the map's slowest.

use super::Regulariser;
use crate::Model;
use faer::MatMut;

/// `(vmin - min(vp))^2 / (2 sigma^2)`.
///
/// The minimum is not smooth where another cell becomes the slowest: the derivative is that of the slowest cell (the first
/// of equals), and the curvature bounds the value only among maps whose slowest cell is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct TieVmin {
    /// Standard deviation of the difference, m/s.
    pub sigma: f64,
}

/// The slowest cell, counted row by row, and its velocity.
fn slowest(m: &Model) -> (usize, f64) {
    m.vp.iter().copied().enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, m.vmin))
}

impl Regulariser for TieVmin {
    fn describe(&self) -> String {
        format!("vmin tied to the slowest cell, standard deviation {} m/s", self.sigma)
    }

    fn value(&self, m: &Model) -> f64 {
        0.5 * ((m.vmin - slowest(m).1) / self.sigma).powi(2)
    }

    fn gradient(&self, m: &Model) -> Model {
        let (cell, v) = slowest(m);
        let slope = (m.vmin - v) / self.sigma.powi(2);
        let mut g = Model::zeros(m.vp.dim());
        g.vmin = slope;
        if let Some(g) = g.vp.iter_mut().nth(cell) {
            *g = -slope;
        }
        g
    }

    fn add_curvature(&self, m: &Model, mut to: MatMut<'_, f64>) {
        let (cell, vmin, weight) = (slowest(m).0, m.vp.len(), self.sigma.powi(-2));
        if cell < vmin {
            to[(cell, cell)] += weight;
            to[(vmin, cell)] -= weight;
        }
        to[(vmin, vmin)] += weight;
    }
}
