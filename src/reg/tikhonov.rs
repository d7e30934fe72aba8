//! Tikhonov's penalty of squared differences: maps are smooth, or linear, with normally distributed exceptions.

use super::Regulariser;
use super::neighbours::{self, Penalty, over_cells};
use crate::Model;
use serde::{Deserialize, Serialize};

/// Which differences are penalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Order {
    /// Steps between neighbours.
    First,
    /// Changes of step, `v_1 - 2 v_2 + v_3`, along rows and along columns.
    Second,
}

impl TryFrom<u8> for Order {
    type Error = String;

    fn try_from(order: u8) -> Result<Self, String> {
        match order {
            1 => Ok(Self::First),
            2 => Ok(Self::Second),
            _ => Err(format!("order must be 1 or 2, not {order}")),
        }
    }
}

impl From<Order> for u8 {
    fn from(order: Order) -> u8 {
        match order {
            Order::First => 1,
            Order::Second => 2,
        }
    }
}

/// `sum of d^2 / (2 scale^2)` over the differences `d`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tikhonov {
    /// Standard deviation of a difference, m/s.
    pub scale: f64,
    /// Which differences.
    pub order: Order,
}

impl Tikhonov {
    fn penalty(&self, d: f64) -> Penalty {
        let weight = self.scale.powi(-2);
        Penalty { value: 0.5 * weight * d * d, weight }
    }
}

/// Coefficients of a second difference.
const SECOND: [f64; 3] = [1.0, -2.0, 1.0];

/// Cells of every second difference, counted row by row.
fn triples((nz, nx): (usize, usize)) -> impl Iterator<Item = [usize; 3]> {
    (0..nz * nx).flat_map(move |i| {
        let down = (i + 2 * nx < nz * nx).then_some([i, i + nx, i + 2 * nx]);
        let across = (i % nx + 2 < nx).then_some([i, i + 1, i + 2]);
        down.into_iter().chain(across)
    })
}

fn difference(v: &[f64], cells: [usize; 3]) -> f64 {
    cells.iter().zip(SECOND).map(|(&i, c)| c * v[i]).sum()
}

impl Regulariser for Tikhonov {
    fn describe(&self) -> String {
        let what = match self.order {
            Order::First => "first",
            Order::Second => "second",
        };
        format!("Tikhonov, {what} differences of standard deviation {} m/s", self.scale)
    }

    fn value(&self, m: &Model) -> f64 {
        let v = m.to_vec();
        match self.order {
            Order::First => neighbours::value(m, &[], |d, _| self.penalty(d)),
            Order::Second => triples(m.vp.dim()).map(|t| self.penalty(difference(&v, t)).value).sum(),
        }
    }

    fn gradient(&self, m: &Model) -> Model {
        if self.order == Order::First {
            return neighbours::gradient(m, &[], |d, _| self.penalty(d));
        }
        let v = m.to_vec();
        let mut g = vec![0.0; m.vp.len()];
        for t in triples(m.vp.dim()) {
            let d = difference(&v, t);
            t.iter().zip(SECOND).for_each(|(&i, c)| g[i] += c * d * self.scale.powi(-2));
        }
        over_cells(m, g)
    }

    fn curvature(&self, m: &Model, add: &mut dyn FnMut(usize, usize, f64)) {
        if self.order == Order::First {
            return neighbours::curvature(m, &[], add, |d, _| self.penalty(d));
        }
        for t in triples(m.vp.dim()) {
            for (k, (&i, c)) in t.iter().zip(SECOND).enumerate() {
                t[..=k].iter().zip(SECOND).for_each(|(&j, e)| add(i, j, c * e * self.scale.powi(-2)));
            }
        }
    }
}
