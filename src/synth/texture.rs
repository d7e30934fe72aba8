//! Style maps: the texture of a natural image over a velocity that grows with depth.
//!
//! Natural images are scenes of things that hide one another; the dead-leaves model (Lee, Mumford and Huang, 2001,
//! "Occlusion models for natural images") draws shapes of power-law sizes over each other and has their statistics:
//! edges, flat parts, and a spectrum that falls with the square of the wavenumber. Style_A is smooth, Style_B sharp.

use super::{RANGE, SHAPE, chance, normal};
use ndarray::{Array2, Axis};
use rand::Rng;
use rand_chacha::ChaCha12Rng;
use std::f64::consts::TAU;

/// Samples a cell along each axis of the image.
const FINE: usize = 2;
/// Size of the image.
const IMAGE: (usize, usize) = (SHAPE.0 * FINE, SHAPE.1 * FINE);

/// A map of Style_A: (70, 70), m/s. The contest's second place found these to be draws of a Gaussian process with a
/// squared-exponential covariance, 3.48 cells long, and hardly any white noise: a texture rich in detail, blurred by 2.46 cells.
pub fn smooth(rng: &mut ChaCha12Rng) -> Array2<f32> {
    let (spread, contrast) = (rng.random_range(2.0..2.7), rng.random_range(200.0..450.0));
    let image = leaves(rng);
    let mut image = blur(&image, spread * FINE as f64);
    let weight = image.std(0.0) * rng.random_range(0.6..1.6);
    image.scaled_add(weight, &noise(rng, std::f64::consts::SQRT_2 * spread * FINE as f64));
    style(rng, &image, contrast)
}

/// A map of Style_B: (70, 70), m/s.
pub fn sharp(rng: &mut ChaCha12Rng) -> Array2<f32> {
    let (spread, contrast) = (rng.random_range(0.15..0.5), rng.random_range(160.0..420.0));
    let mut image = leaves(rng);
    if chance(rng, 0.7) {
        // shading and fine grain
        let (length, weight) = (rng.random_range(1.0..8.0) * FINE as f64, rng.random_range(0.1..0.6));
        image.scaled_add(weight, &noise(rng, length));
    }
    style(rng, &blur(&image, spread * FINE as f64), contrast)
}

/// An image over a velocity that grows with depth; `contrast` is the standard deviation of the texture in m/s.
fn style(rng: &mut ChaCha12Rng, image: &Array2<f32>, contrast: f64) -> Array2<f32> {
    let mean = image.mean().unwrap_or(0.0);
    let sd = image.std(0.0).max(1e-6);
    let (top, slope) = (normal(rng, 1800.0, 130.0), normal(rng, 28.0, 5.0));
    // contrast grows with depth in some maps
    let growth = if chance(rng, 0.5) { rng.random_range(0.0..0.8) } else { 0.0 };
    let mut map = Array2::from_shape_fn(SHAPE, |(z, x)| {
        let cell = |dz: usize, dx: usize| image[[z * FINE + dz, x * FINE + dx]];
        let texture = (cell(0, 0) + cell(0, 1) + cell(1, 0) + cell(1, 1)) / 4.0 - mean;
        let depth = z as f64 / 69.0;
        (top + slope * z as f64 + contrast * (1.0 + growth * (depth - 0.5)) * f64::from(texture / sd)) as f32
    });
    fit(&mut map);
    map
}

/// Brings a map into the range by shifting and, if it must, compressing it: cut off, a smooth texture would get kinks.
fn fit(map: &mut Array2<f32>) {
    let (bottom, top) = (RANGE.0 as f32, RANGE.1 as f32);
    let (low, high) = map.iter().fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
    let factor = ((top - bottom) / (high - low)).min(1.0);
    let from = low.max(bottom).min(top - factor * (high - low));
    map.mapv_inplace(|v| (from + factor * (v - low)).clamp(bottom, top));
}

/// A scene of leaves: ellipses, rings and polygons, each shaded, the later over the earlier.
fn leaves(rng: &mut ChaCha12Rng) -> Array2<f32> {
    let size = IMAGE.0 as f64;
    let mut image = noise(rng, 0.3 * size);
    image *= rng.random_range(0.2..1.0);
    let (smallest, largest) = (rng.random_range(2.0..6.0), rng.random_range(20.0..70.0));
    for _ in 0..rng.random_range(15..120) {
        // density of radii falls as 1 / r^2.5: small leaves are many
        let u: f64 = rng.random();
        let power = -1.5;
        let radius = (f64::powf(smallest, power) * (1.0 - u) + f64::powf(largest, power) * u).powf(1.0 / power);
        Leaf::draw(rng, radius * FINE as f64 / 2.0).paint(&mut image);
    }
    image
}

/// One shape.
struct Leaf {
    centre: (f64, f64),
    turn: (f64, f64),
    radius: f64,
    squeeze: f64,
    /// Waves of the outline: number, amplitude, phase.
    outline: (f64, f64, f64),
    /// Inner radius of a ring, as a share; 0 for a full shape.
    hole: f64,
    value: f64,
    shade: (f64, f64),
    opacity: f64,
}

impl Leaf {
    fn draw(rng: &mut ChaCha12Rng, radius: f64) -> Self {
        let angle: f64 = rng.random_range(0.0..TAU);
        let size = IMAGE.0 as f64;
        Self {
            centre: (rng.random_range(-0.1..1.1) * size, rng.random_range(-0.1..1.1) * size),
            turn: (angle.cos(), angle.sin()),
            radius,
            squeeze: rng.random_range(0.25..1.0),
            outline: (rng.random_range(2..7) as f64, rng.random_range(0.0..0.35), rng.random_range(0.0..TAU)),
            hole: if chance(rng, 0.3) { rng.random_range(0.4..0.85) } else { 0.0 },
            value: normal(rng, 0.0, 1.0),
            shade: (normal(rng, 0.0, 0.4), normal(rng, 0.0, 0.4)),
            opacity: rng.random_range(0.5..1.0),
        }
    }

    fn paint(&self, image: &mut Array2<f32>) {
        let reach = self.radius * 1.4 + 1.0;
        let range = |c: f64, n: usize| ((c - reach).max(0.0) as usize).min(n)..((c + reach).max(0.0) as usize).min(n);
        for z in range(self.centre.1, IMAGE.0) {
            for x in range(self.centre.0, IMAGE.1) {
                let (dx, dz) = (x as f64 - self.centre.0, z as f64 - self.centre.1);
                let a = (dx * self.turn.0 + dz * self.turn.1) / self.radius;
                let b = (dz * self.turn.0 - dx * self.turn.1) / (self.radius * self.squeeze);
                let (waves, height, phase) = self.outline;
                let edge = 1.0 + height * (waves * b.atan2(a) + phase).sin();
                let r = a.hypot(b) / edge;
                if r <= 1.0 && r >= self.hole {
                    let value = (self.value + self.shade.0 * a + self.shade.1 * b) as f32;
                    let old = &mut image[[z, x]];
                    *old += self.opacity as f32 * (value - *old);
                }
            }
        }
    }
}

/// A Gaussian process of unit variance with a squared-exponential covariance of about `length` samples, as strong at the
/// image's edges as within.
fn noise(rng: &mut ChaCha12Rng, length: f64) -> Array2<f32> {
    // white noise blurred with sigma has the covariance exp(-r^2 / (4 sigma^2))
    let weights = gaussian(length / std::f64::consts::SQRT_2);
    let beyond = weights.len() - 1;
    let white = Array2::from_shape_fn((IMAGE.0 + beyond, IMAGE.1 + beyond), |_| normal(rng, 0.0, 1.0) as f32);
    let mut field = across_rows(&across_rows(&white, &weights), &weights);
    let sd = field.std(0.0).max(1e-6);
    field.mapv_inplace(|v| v / sd);
    field
}

/// Convolution with a Gaussian of standard deviation `sigma` samples, the image mirrored at its edges.
pub fn blur(image: &Array2<f32>, sigma: f64) -> Array2<f32> {
    let weights = gaussian(sigma);
    let pass = |source: &Array2<f32>| {
        let (n, beyond) = (source.nrows() as isize, (weights.len() / 2) as isize);
        let rows: Vec<usize> = (-beyond..n + beyond).map(|row| mirrored(row, n)).collect();
        across_rows(&source.select(Axis(0), &rows), &weights)
    };
    pass(&pass(image))
}

/// Where a row before the first or behind the last of `n` has its mirror image; edge rows are not repeated.
fn mirrored(row: isize, n: isize) -> usize {
    let period = (2 * (n - 1)).max(1);
    let row = row.rem_euclid(period);
    row.min(period - row).min(n - 1) as usize
}

/// Weights of a Gaussian, an odd number.
fn gaussian(sigma: f64) -> Vec<f32> {
    let radius = (3.0 * sigma).ceil().max(1.0) as i32;
    let weights: Vec<f64> = (-radius..=radius).map(|k| (-0.5 * (f64::from(k) / sigma).powi(2)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / total) as f32).collect()
}

/// Weighted sums of neighbouring rows, where all of them are there, and transposed: two passes run along rows of the source.
fn across_rows(source: &Array2<f32>, weights: &[f32]) -> Array2<f32> {
    let mut out = Array2::<f32>::zeros((source.nrows() + 1 - weights.len(), source.ncols()));
    for (i, mut row) in out.rows_mut().into_iter().enumerate() {
        weights.iter().enumerate().for_each(|(k, w)| row.scaled_add(*w, &source.row(i + k)));
    }
    out.reversed_axes().as_standard_layout().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn blur_keeps_constants_and_the_sum_and_spreads_as_asked() {
        let flat = Array2::from_elem((20, 30), 3.0f32);
        assert!(blur(&flat, 2.5).iter().all(|v| (v - 3.0).abs() < 1e-5));
        let mut point = Array2::<f32>::zeros((41, 41));
        point[[20, 20]] = 1.0;
        let spread = blur(&point, 2.0);
        assert!((spread.sum() - 1.0).abs() < 1e-4);
        let second: f32 = spread.indexed_iter().map(|((z, _), v)| v * (z as f32 - 20.0).powi(2)).sum();
        assert!((second - 4.0).abs() < 0.15, "{second}");
        assert!((spread[[20, 22]] - spread[[22, 20]]).abs() < 1e-7);
    }

    #[test]
    fn texture_is_as_strong_at_the_edges_as_within() {
        let mut rng = ChaCha12Rng::seed_from_u64(5);
        let (mut edge, mut within) = (0.0, 0.0);
        for _ in 0..200 {
            let field = noise(&mut rng, 10.0);
            edge += field.row(0).mapv(|v| v * v).mean().unwrap_or(0.0);
            within += field.row(70).mapv(|v| v * v).mean().unwrap_or(0.0);
        }
        let ratio = f32::sqrt(edge / within);
        assert!((0.85..1.15).contains(&ratio), "{ratio}");
        assert_eq!([-2, -1, 0, 3, 4, 5].map(|row| mirrored(row, 4)), [2, 1, 0, 3, 2, 1]);
    }
}
