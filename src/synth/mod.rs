//! Synthetic maps: generators that follow the measured statistics of OpenFWI's ten families.
//!
//! A map is drawn from its family, a seed and a number, and from nothing else: the same three give the same map with any
//! number of threads, in any order, and to rounding on any machine: a system's sine may differ in its last bit. The random
//! numbers are ChaCha's of twelve rounds, in whatever version of `rand`.

pub mod augment;
mod baseline;
mod curve;
mod fault;
mod layers;
pub mod recipe;
pub mod stats;
pub mod store;
mod texture;

pub use baseline::best_gradient_mae;
pub use recipe::{Origin, Recipe};

use crate::Family;
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

/// Cells of a map, (nz, nx).
pub const SHAPE: (usize, usize) = (70, 70);
/// Slowest and fastest velocity of a map, m/s.
pub const RANGE: (f64, f64) = (1500.0, 4500.0);

/// Number of the way in which maps are drawn and augmented: raised with every change that gives other maps.
pub const GENERATOR: u32 = 3;

/// Map `number` of `family` under `seed`: (70, 70), m/s, within 1500..4500.
pub fn draw(family: Family, seed: u64, number: u64) -> Array2<f32> {
    let mut rng = generator(family, seed, number);
    match family {
        Family::StyleA => texture::smooth(&mut rng),
        Family::StyleB => texture::sharp(&mut rng),
        layered => layers::draw(layered, &mut rng),
    }
}

fn generator(family: Family, seed: u64, number: u64) -> ChaCha12Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&number.to_le_bytes());
    key[16..16 + family.name().len()].copy_from_slice(family.name().as_bytes());
    ChaCha12Rng::from_seed(key)
}

/// Whether something of probability `p` happens.
fn chance(rng: &mut ChaCha12Rng, p: f64) -> bool {
    rng.random::<f64>() < p
}

/// A draw from the normal distribution with standard deviation `sd` around `mean`.
fn normal(rng: &mut ChaCha12Rng, mean: f64, sd: f64) -> f64 {
    use rand_distr::{Distribution, StandardNormal};
    let unit: f64 = StandardNormal.sample(rng);
    mean + sd * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(family: Family) -> Vec<Array2<f32>> {
        (0..60).map(|n| draw(family, 3, n)).collect()
    }

    #[test]
    fn maps_are_within_range_and_repeat() {
        for family in Family::ALL {
            let maps = some(family);
            for map in &maps {
                assert_eq!(map.dim(), SHAPE);
                assert!(map.iter().all(|&v| (1500.0..=4500.0).contains(&v)), "{family}");
            }
            assert_eq!(maps[7], draw(family, 3, 7));
            assert_ne!(maps[7], draw(family, 4, 7));
            assert_ne!(maps[7], maps[8]);
        }
        assert_ne!(draw(Family::CurveVelA, 3, 7), draw(Family::CurveVelB, 3, 7));
    }

    #[test]
    fn each_family_has_its_marks() {
        let monotone = |m: &Array2<f32>| m.columns().into_iter().all(|c| (1..70).all(|z| c[z] >= c[z - 1]));
        let flat = |m: &Array2<f32>| m.rows().into_iter().all(|r| r.iter().all(|v| *v == r[0]));
        let whole = |m: &Array2<f32>| m.iter().all(|v| v.fract() == 0.0);
        let share =
            |family, of: &dyn Fn(&Array2<f32>) -> bool| some(family).iter().filter(|m| of(m)).count() as f64 / 60.0;
        for family in Family::ALL {
            use Family::*;
            assert_eq!(share(family, &flat), f64::from(matches!(family, FlatVelA | FlatVelB)), "{family}");
            let graded = matches!(family, FlatFaultA | CurveFaultA | StyleA | StyleB);
            assert_eq!(share(family, &whole), f64::from(!graded), "{family}");
            match family {
                FlatVelA | CurveVelA => assert_eq!(share(family, &monotone), 1.0),
                FlatVelB | CurveVelB => assert!(share(family, &monotone) < 0.3),
                _ => (),
            }
        }
    }

    /// Mean second difference along rows over the mean first one: for a Gaussian process of length 3.48 cells,
    /// sqrt(3) / 3.48 = 0.50, which an inverted Style_A map of OpenFWI shows, too; a Style_B map shows 1.05.
    #[test]
    fn style_maps_are_as_rough_as_real_ones() {
        let mean = |family| some(family).iter().map(crate::family::roughness).sum::<f64>() / 60.0;
        let (smooth, sharp) = (mean(Family::StyleA), mean(Family::StyleB));
        assert!((0.4..0.56).contains(&smooth), "{smooth}");
        assert!((0.8..1.2).contains(&sharp), "{sharp}");
    }
}
