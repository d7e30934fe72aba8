//! The shape of an interface: its depth against the horizontal coordinate, in cells.

use super::{chance, normal};
use rand::Rng;
use rand_chacha::ChaCha12Rng;
use std::f64::consts::TAU;

/// Depth of an interface relative to its mean, a function of the column.
#[derive(Clone, Debug)]
pub enum Curve {
    /// A plane that falls by this many cells a column.
    Tilted(f64),
    /// A natural cubic spline, linear beyond its ends.
    Spline(Spline),
    /// Sines of periods 70/1, 70/2, ...: amplitude (cells) and phase of each.
    Sines(Vec<(f64, f64)>),
}

/// Columns of the knots of OpenFWI's curved interfaces, and the standard deviation of their heights there (cells): the
/// curves of forty CurveVel_A maps span natural cubic splines with seven knots and nothing else.
const KNOTS: [(f64, f64); 7] =
    [(0.0, 3.9), (14.5, 3.4), (25.5, 3.9), (35.0, 6.0), (45.4, 8.8), (54.0, 7.0), (61.2, 5.6)];

impl Curve {
    /// A curve like those of OpenFWI; `scale` 1 gives CurveVel's amplitudes.
    pub fn draw(rng: &mut ChaCha12Rng, scale: f64) -> Self {
        if chance(rng, 0.2) {
            let amplitude = scale * rng.random_range(1.5..6.0);
            let of = |k: usize, rng: &mut ChaCha12Rng| {
                (amplitude * normal(rng, 0.0, 1.0) / (k as f64).sqrt(), rng.random_range(0.0..TAU))
            };
            return Self::Sines((1..=rng.random_range(1..=5)).map(|k| of(k, rng)).collect());
        }
        let amplitude = scale * rng.random_range(0.4..1.5);
        // neighbouring knots tend to opposite sides of the mean
        let sign = if chance(rng, 0.5) { 1.0 } else { -1.0 };
        let height = |i: usize, sd: f64, rng: &mut ChaCha12Rng| {
            let lean = if i.is_multiple_of(2) { sign } else { -sign };
            amplitude * sd * (0.45 * lean + normal(rng, 0.0, 0.9))
        };
        Self::Spline(Spline::new(KNOTS.iter().enumerate().map(|(i, &(x, sd))| (x, height(i, sd, rng))).collect()))
    }

    /// A curve with knots at random places, so that peaks occur anywhere.
    pub fn draw_anywhere(rng: &mut ChaCha12Rng, amplitude: f64) -> Self {
        let spacing = rng.random_range(9.0..22.0);
        let first = rng.random_range(-spacing..0.0);
        let n = ((75.0 - first) / spacing) as usize + 2;
        let sign = if chance(rng, 0.5) { 1.0 } else { -1.0 };
        let knot = |i: usize, rng: &mut ChaCha12Rng| {
            let lean = if i.is_multiple_of(2) { sign } else { -sign };
            let x = first + spacing * (i as f64 + rng.random_range(-0.2..0.2));
            (x, amplitude * (0.6 * lean + normal(rng, 0.0, 0.7)))
        };
        Self::Spline(Spline::new((0..n).map(|i| knot(i, rng)).collect()))
    }

    /// Depth at column `x`, cells.
    pub fn at(&self, x: f64) -> f64 {
        match self {
            Self::Tilted(slope) => slope * (x - 34.5),
            Self::Spline(spline) => spline.at(x),
            Self::Sines(terms) => {
                let sine = |(k, (a, phase)): (usize, &(f64, f64))| a * (TAU * (k + 1) as f64 * x / 70.0 + phase).sin();
                terms.iter().enumerate().map(sine).sum()
            }
        }
    }
}

/// A natural cubic spline.
#[derive(Clone, Debug)]
pub struct Spline {
    /// Column and height of the knots, columns increasing.
    knots: Vec<(f64, f64)>,
    /// Second derivative at the knots.
    bend: Vec<f64>,
}

impl Spline {
    /// Through two knots or more, in increasing order of their columns. The second derivative follows from a
    /// tridiagonal system (Press et al., Numerical Recipes, section 3.3).
    fn new(knots: Vec<(f64, f64)>) -> Self {
        let n = knots.len();
        let (mut bend, mut u) = (vec![0.0; n], vec![0.0; n]);
        let slope = |i: usize| (knots[i + 1].1 - knots[i].1) / (knots[i + 1].0 - knots[i].0);
        for i in 1..n - 1 {
            let span = knots[i + 1].0 - knots[i - 1].0;
            let share = (knots[i].0 - knots[i - 1].0) / span;
            let pivot = share * bend[i - 1] + 2.0;
            bend[i] = (share - 1.0) / pivot;
            u[i] = (6.0 * (slope(i) - slope(i - 1)) / span - share * u[i - 1]) / pivot;
        }
        bend[n - 1] = 0.0;
        for i in (0..n - 1).rev() {
            bend[i] = bend[i] * bend[i + 1] + u[i];
        }
        Self { knots, bend }
    }

    fn at(&self, x: f64) -> f64 {
        let last = self.knots.len() - 1;
        let i = self.knots.partition_point(|k| k.0 <= x).clamp(1, last);
        let ((xa, ya), (xb, yb)) = (self.knots[i - 1], self.knots[i]);
        let (h, chord) = (xb - xa, (yb - ya) / (xb - xa));
        let (ba, bb) = (self.bend[i - 1], self.bend[i]);
        if x < xa {
            return ya + (x - xa) * (chord - h * (2.0 * ba + bb) / 6.0);
        }
        if x > xb {
            return yb + (x - xb) * (chord + h * (ba + 2.0 * bb) / 6.0);
        }
        let (a, b) = ((xb - x) / h, (x - xa) / h);
        a * ya + b * yb + ((a * a * a - a) * ba + (b * b * b - b) * bb) * h * h / 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_natural_spline_interpolates_smoothly() {
        let spline = Spline::new(vec![(0.0, 1.0), (3.0, -2.0), (4.0, 0.5), (9.0, 2.0)]);
        for (x, y) in [(0.0, 1.0), (3.0, -2.0), (4.0, 0.5), (9.0, 2.0)] {
            assert!((spline.at(x) - y).abs() < 1e-12);
        }
        let slope = |x: f64| (spline.at(x + 1e-5) - spline.at(x - 1e-5)) / 2e-5;
        let bend = |x: f64| (slope(x + 1e-3) - slope(x - 1e-3)) / 2e-3;
        for x in [3.0, 4.0, 0.0, 9.0] {
            assert!((slope(x - 1e-4) - slope(x + 1e-4)).abs() < 1e-2, "slope at {x}");
            assert!((bend(x - 2e-3) - bend(x + 2e-3)).abs() < 0.1, "bend at {x}");
        }
        assert!(bend(-3.0).abs() < 1e-3 && bend(12.0).abs() < 1e-3);
    }
}
