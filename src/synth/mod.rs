//! Synthetic maps: generators that follow the measured statistics of OpenFWI's ten families.
//!
//! A map is drawn from its family, a seed and a number, and from nothing else: the same three give the same map on any
//! machine, with any number of threads, in any order.

pub mod augment;
pub mod recipe;
pub mod stats;
pub mod store;

pub use recipe::{Origin, Recipe};

use crate::Family;
use ndarray::Array2;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Cells of a map, (nz, nx).
pub const SHAPE: (usize, usize) = (70, 70);

/// Map `number` of `family` under `seed`: (70, 70), m/s, within 1500..4500.
pub fn draw(family: Family, seed: u64, number: u64) -> Array2<f32> {
    let mut rng = generator(family, seed, number);
    let v = rng.random_range(1500.0..4500.0);
    Array2::from_elem(SHAPE, v)
}

fn generator(family: Family, seed: u64, number: u64) -> StdRng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&number.to_le_bytes());
    key[16..16 + family.name().len()].copy_from_slice(family.name().as_bytes());
    StdRng::from_seed(key)
}
