//! Faults: cuts along which one side of the ground has slid against the other.

use super::chance;
use rand::Rng;
use rand_chacha::ChaCha12Rng;

/// A straight fault through a point; what lies on its positive side has slid along it.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// A point of it: column and row, cells.
    through: (f64, f64),
    /// Unit vector along it, downwards: columns and rows.
    along: (f64, f64),
    /// How far the positive side has slid down along it, cells; negative for up.
    slip: f64,
}

impl Fault {
    /// A fault that crosses the map, with a dip of 35 to 90 degrees and a slip of 4 to 13 cells.
    pub fn draw(rng: &mut ChaCha12Rng) -> Self {
        let dip = rng.random_range(35f64..90.0).to_radians();
        let lean = if chance(rng, 0.5) { 1.0 } else { -1.0 };
        let slip = rng.random_range(4.0..13.0) * if chance(rng, 0.5) { 1.0 } else { -1.0 };
        Self {
            through: (rng.random_range(6.0..64.0), rng.random_range(15.0..55.0)),
            along: (lean * dip.cos(), dip.sin()),
            slip,
        }
    }

    /// Makes its throw, the vertical part of the slip, a multiple of so many cells, the nearest.
    pub fn throw_by_multiples(&mut self, of: f64) {
        let throw = (self.slip * self.along.1 / of).round() * of;
        self.slip = throw / self.along.1;
    }

    /// Whether the point lies on the side that has slid.
    pub fn moved(&self, (x, z): (f64, f64)) -> bool {
        (x - self.through.0) * self.along.1 - (z - self.through.1) * self.along.0 > 0.0
    }

    /// Where the matter at a point was before the slip.
    pub fn before(&self, point: (f64, f64)) -> (f64, f64) {
        match self.moved(point) {
            true => (point.0 - self.slip * self.along.0, point.1 - self.slip * self.along.1),
            false => point,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_slides_along_the_fault() {
        let fault = Fault { through: (30.0, 30.0), along: (0.6, 0.8), slip: 5.0 };
        let (still, slid) = ((20.0, 30.0), (40.0, 30.0));
        assert!(!fault.moved(still) && fault.moved(slid));
        assert_eq!(fault.before(still), still);
        assert_eq!(fault.before(slid), (37.0, 26.0));
        let mut stepped = fault;
        stepped.throw_by_multiples(1.5);
        assert!((stepped.slip * 0.8 - 4.5).abs() < 1e-12);
    }
}
