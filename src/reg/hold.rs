//! Velocities known from elsewhere, such as those of the source cells, which the first sample of a gather tells.

use super::Regulariser;
use super::neighbours::over_cells;
use crate::{Error, Model, Result};

/// `sum over known cells of (v - known)^2 / (2 sigma^2)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Hold {
    cells: Vec<(usize, f64)>,
    sigma: f64,
}

impl Hold {
    /// Cells, counted row by row, of a map (nz, nx) with their velocities, and the standard deviation of those, in m/s.
    /// Errors on a cell outside the map, a velocity that is not finite, and a deviation that is not above 0.
    pub fn new(shape: (usize, usize), cells: Vec<(usize, f64)>, sigma: f64) -> Result<Self> {
        if !(1e-6..1e6).contains(&sigma) {
            return Err(Error::Usage(format!("held cells: sigma must lie between 1e-6 and 1e6 m/s, not {sigma}")));
        }
        match cells.iter().find(|(i, v)| *i >= shape.0 * shape.1 || !v.is_finite()) {
            Some((i, v)) => {
                let (nz, nx) = shape;
                Err(Error::Usage(format!("held cells: {v} m/s at cell {i} cannot be held in a {nz} x {nx} map")))
            }
            None => Ok(Self { cells, sigma }),
        }
    }
}

impl Regulariser for Hold {
    fn describe(&self) -> String {
        format!("{} cells held at known velocities, standard deviation {} m/s", self.cells.len(), self.sigma)
    }

    fn value(&self, m: &Model) -> f64 {
        let v = m.to_vec();
        self.cells.iter().map(|&(i, known)| 0.5 * ((v[i] - known) / self.sigma).powi(2)).sum()
    }

    fn gradient(&self, m: &Model) -> Model {
        let v = m.to_vec();
        let mut g = vec![0.0; m.vp.len()];
        self.cells.iter().for_each(|&(i, known)| g[i] += (v[i] - known) / self.sigma.powi(2));
        over_cells(m, g)
    }

    fn curvature(&self, _: &Model, add: &mut dyn FnMut(usize, usize, f64)) {
        self.cells.iter().for_each(|&(i, _)| add(i, i, self.sigma.powi(-2)));
    }
}
