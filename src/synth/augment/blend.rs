//! Augmentations that compute new velocities: two maps in one, and noise.

use ndarray::{Array2, s};
use rand::Rng;
use rand_chacha::ChaCha12Rng;

/// CutMix (Yun et al., 2019): `size` cells from the corner `at` taken from `other`.
pub(super) fn cut(map: &Array2<f32>, other: &Array2<f32>, at: (usize, usize), size: (usize, usize)) -> Array2<f32> {
    let mut out = map.clone();
    let part = s![at.0..at.0 + size.0, at.1..at.1 + size.1];
    out.slice_mut(part).assign(&other.slice(part));
    out
}

/// MixUp (Zhang et al., 2018): `weight` of `map` and the rest of `other`.
pub(super) fn mix(map: &Array2<f32>, other: &Array2<f32>, weight: f32) -> Array2<f32> {
    weight * map + (1.0 - weight) * other
}

/// White Gaussian noise of standard deviation `sd`, m/s.
pub(super) fn noise(map: &Array2<f32>, sd: f64, rng: &mut ChaCha12Rng) -> Array2<f32> {
    map.mapv(|v| v + (sd * normal(rng)) as f32)
}

/// A normal variate (Box and Muller, 1958).
pub(super) fn normal(rng: &mut ChaCha12Rng) -> f64 {
    let (u, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random_range(0.0..std::f64::consts::TAU));
    (-2.0 * u.ln()).sqrt() * angle.cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn parts_and_means_of_two_maps() {
        let (a, b) = (Array2::from_elem((4, 5), 2000.0f32), Array2::from_elem((4, 5), 3000.0f32));
        let c = cut(&a, &b, (1, 2), (2, 3));
        assert_eq!(c.iter().filter(|&&v| v == 3000.0).count(), 6);
        assert_eq!((c[[1, 2]], c[[2, 4]], c[[0, 2]]), (3000.0, 3000.0, 2000.0));
        assert_eq!(cut(&a, &b, (0, 0), (0, 0)), a);
        assert_eq!(mix(&a, &b, 0.75), Array2::from_elem((4, 5), 2250.0));
        assert_eq!(mix(&a, &b, 1.0), a);
    }

    #[test]
    fn noise_has_its_deviation() {
        let map = Array2::from_elem((70, 70), 3000.0f32);
        let off = noise(&map, 20.0, &mut ChaCha12Rng::seed_from_u64(1)) - &map;
        let mean = off.mean().unwrap();
        let sd = off.mapv(|d| (d - mean).powi(2)).mean().unwrap().sqrt();
        assert!(mean.abs() < 1.5 && (sd - 20.0).abs() < 1.0, "{mean} {sd}");
        assert_eq!(noise(&map, 0.0, &mut ChaCha12Rng::seed_from_u64(1)), map);
    }
}
