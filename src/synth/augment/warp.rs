//! Augmentations that move cells: for every cell of the new map, the place in the old one that it is taken from.

use super::blend::normal;
use ndarray::Array2;
use rand::Rng;
use rand_chacha::ChaCha12Rng;

/// How a place between cells is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampling {
    /// The nearest cell: no new velocities.
    Nearest,
    /// Bilinear between four cells.
    Bilinear,
}

/// The map whose cell (z, x) is read at `from(z, x)`; beyond the edges, the nearest cell at the edge.
fn resample(map: &Array2<f32>, sampling: Sampling, from: impl Fn(usize, usize) -> (f64, f64)) -> Array2<f32> {
    let (nz, nx) = map.dim();
    let inside = |v: f64, n: usize| v.clamp(0.0, (n - 1) as f64);
    Array2::from_shape_fn((nz, nx), |(row, column)| {
        let (z, x) = from(row, column);
        let (z, x) = (inside(z, nz), inside(x, nx));
        if sampling == Sampling::Nearest {
            return map[[z.round() as usize, x.round() as usize]];
        }
        let (i, j) = (z as usize, x as usize);
        let (fz, fx) = ((z - i as f64) as f32, (x - j as f64) as f32);
        let (below, right) = ((i + 1).min(nz - 1), (j + 1).min(nx - 1));
        let across = |r: usize| map[[r, j]] + fx * (map[[r, right]] - map[[r, j]]);
        let (upper, lower) = (across(i), across(below));
        upper + fz * (lower - upper)
    })
}

/// Left and right swapped.
pub(super) fn flip(map: &Array2<f32>) -> Array2<f32> {
    map.slice(ndarray::s![.., ..;-1]).to_owned()
}

/// A square of `side` cells at a corner (0 to 3: upper left, upper right, lower left, lower right) or the centre (4),
/// stretched to the whole map.
pub(super) fn crop(map: &Array2<f32>, sampling: Sampling, side: usize, place: usize) -> Array2<f32> {
    let (nz, nx) = map.dim();
    let left = |n: usize, far: bool| {
        if place == 4 {
            (n - side) / 2
        } else if far {
            n - side
        } else {
            0
        }
    };
    let (z0, x0) = (left(nz, place & 2 != 0), left(nx, place & 1 != 0));
    // cell edges onto cell edges
    let at = |i: usize, n: usize, first: usize| (i as f64 + 0.5) * side as f64 / n as f64 - 0.5 + first as f64;
    resample(map, sampling, |z, x| (at(z, nz, z0), at(x, nx, x0)))
}

/// Depth stretched from the surface, width about the middle, by factors above 0.
pub(super) fn stretch(map: &Array2<f32>, sampling: Sampling, depth: f64, width: f64) -> Array2<f32> {
    let middle = (map.ncols() - 1) as f64 / 2.0;
    resample(map, sampling, |z, x| (z as f64 / depth, middle + (x as f64 - middle) / width))
}

/// An affine change of place about the map's centre.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Affine {
    /// Radians.
    pub(super) angle: f64,
    /// Cells sideways a cell of depth.
    pub(super) shear: f64,
    /// Factors of depth and width.
    pub(super) scale: (f64, f64),
    /// Cells downwards and to the right.
    pub(super) shift: (f64, f64),
}

impl Affine {
    pub(super) const IDENTITY: Self = Self { angle: 0.0, shear: 0.0, scale: (1.0, 1.0), shift: (0.0, 0.0) };

    pub(super) fn random(rng: &mut ChaCha12Rng) -> Self {
        let mut within = |limit: f64| rng.random_range(-limit..limit);
        Self {
            angle: within(8.0).to_radians(),
            shear: within(0.15),
            scale: (2f64.powf(within(0.2)), 2f64.powf(within(0.2))),
            shift: (within(6.0), within(6.0)),
        }
    }
}

/// The map rotated, sheared, scaled about its centre, and shifted.
pub(super) fn affine(map: &Array2<f32>, sampling: Sampling, a: &Affine) -> Array2<f32> {
    let centre = ((map.nrows() - 1) as f64 / 2.0, (map.ncols() - 1) as f64 / 2.0);
    let (sin, cos) = a.angle.sin_cos();
    resample(map, sampling, |z, x| {
        let (z, x) = (z as f64 - centre.0 - a.shift.0, x as f64 - centre.1 - a.shift.1);
        let (z, x) = (cos * z + sin * x, cos * x - sin * z);
        (centre.0 + z / a.scale.0, centre.1 + (x - a.shear * z) / a.scale.1)
    })
}

/// Random displacements of `rms` cells, smoothed by a Gaussian of `length` cells (Simard et al., 2003).
pub(super) fn elastic(
    map: &Array2<f32>,
    sampling: Sampling,
    rms: f64,
    length: f64,
    rng: &mut ChaCha12Rng,
) -> Array2<f32> {
    let (down, right) = (smooth_noise(map.dim(), length, rng), smooth_noise(map.dim(), length, rng));
    resample(map, sampling, |z, x| (z as f64 + rms * down[[z, x]], x as f64 + rms * right[[z, x]]))
}

/// White noise under a Gaussian of `length` cells, its rms 1.
fn smooth_noise((nz, nx): (usize, usize), length: f64, rng: &mut ChaCha12Rng) -> Array2<f64> {
    // as far as it reaches, so that edges are no different
    let reach = (3.0 * length).ceil() as usize;
    let weights: Vec<f64> =
        (0..=2 * reach).map(|i| (-0.5 * ((i as f64 - reach as f64) / length).powi(2)).exp()).collect();
    let white = Array2::from_shape_simple_fn((nz + 2 * reach, nx + 2 * reach), || normal(rng));
    let weighted = |get: &dyn Fn(usize) -> f64| weights.iter().enumerate().map(|(i, w)| w * get(i)).sum::<f64>();
    let across = Array2::from_shape_fn((nz + 2 * reach, nx), |(z, x)| weighted(&|i| white[[z, x + i]]));
    let both = Array2::from_shape_fn((nz, nx), |(z, x)| weighted(&|i| across[[z + i, x]]));
    let rms = (both.iter().map(|v| v * v).sum::<f64>() / both.len() as f64).sqrt();
    both / rms.max(f64::MIN_POSITIVE)
}

/// A fault: a line through a point, dipping by an angle; what lies right of it has moved along it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fault {
    /// A point (z, x) on the line.
    pub(super) through: (f64, f64),
    /// Angle from the vertical, radians; above 0 the line runs to the right as it goes down.
    pub(super) dip: f64,
    /// Cells by which the right side has gone down along the line.
    pub(super) throw: f64,
}

impl Fault {
    pub(super) fn random(rng: &mut ChaCha12Rng) -> Self {
        let throw: f64 = rng.random_range(3.0..14.0);
        let dip: f64 = rng.random_range(-45.0..45.0);
        Self {
            through: (rng.random_range(15.0..55.0), rng.random_range(15.0..55.0)),
            dip: dip.to_radians(),
            throw: if rng.random() { throw } else { -throw },
        }
    }
}

/// The map cut by a fault. Contacts stay sharp.
pub(super) fn fault(map: &Array2<f32>, f: &Fault) -> Array2<f32> {
    let (sin, cos) = f.dip.sin_cos();
    resample(map, Sampling::Nearest, |z, x| {
        let (z, x) = (z as f64, x as f64);
        // distance to the right of the line that runs down along (cos, sin)
        let right = (x - f.through.1) * cos - (z - f.through.0) * sin > 0.0;
        if right { (z - f.throw * cos, x - f.throw * sin) } else { (z, x) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn map() -> Array2<f32> {
        Array2::from_shape_fn((70, 70), |(z, x)| 1500.0 + 20.0 * z as f32 + ((x * x) % 97) as f32)
    }

    #[test]
    fn no_strength_no_change() {
        let m = map();
        for sampling in [Sampling::Nearest, Sampling::Bilinear] {
            assert_eq!(affine(&m, sampling, &Affine::IDENTITY), m);
            assert_eq!(stretch(&m, sampling, 1.0, 1.0), m);
            assert_eq!(elastic(&m, sampling, 0.0, 8.0, &mut ChaCha12Rng::seed_from_u64(1)), m);
            assert!((0..5).all(|place| crop(&m, sampling, 70, place) == m));
        }
        assert_eq!(fault(&m, &Fault { through: (30.0, 30.0), dip: 0.3, throw: 0.0 }), m);
        assert_eq!(flip(&flip(&m)), m);
        assert_eq!(flip(&m)[[3, 0]], m[[3, 69]]);
    }

    #[test]
    fn places_are_where_they_should_be() {
        let m = map();
        let shifted = affine(&m, Sampling::Nearest, &Affine { shift: (5.0, -3.0), ..Affine::IDENTITY });
        assert_eq!((shifted[[25, 17]], shifted[[2, 67]]), (m[[20, 20]], m[[0, 69]]));
        let quarter = Affine { angle: std::f64::consts::FRAC_PI_2, ..Affine::IDENTITY };
        let turned = affine(&m, Sampling::Nearest, &quarter);
        assert_eq!(turned, Array2::from_shape_fn((70, 70), |(z, x)| m[[x, 69 - z]]));
        let doubled = affine(&m, Sampling::Bilinear, &Affine { scale: (2.0, 2.0), ..Affine::IDENTITY });
        let between = 0.0625 * m[[34, 34]] + 0.1875 * (m[[34, 35]] + m[[35, 34]]) + 0.5625 * m[[35, 35]];
        assert!((doubled[[35, 35]] - between).abs() < 1e-2);
        let corner = crop(&m, Sampling::Nearest, 35, 3);
        assert_eq!((corner[[0, 0]], corner[[69, 69]], corner[[69, 1]]), (m[[35, 35]], m[[69, 69]], m[[69, 35]]));
        let deep = stretch(&m, Sampling::Nearest, 2.0, 1.0);
        assert_eq!((deep[[0, 9]], deep[[40, 9]]), (m[[0, 9]], m[[20, 9]]));
    }

    #[test]
    fn a_vertical_fault_moves_the_right_side_down() {
        let m = map();
        let f = fault(&m, &Fault { through: (0.0, 30.0), dip: 0.0, throw: 7.0 });
        assert_eq!((f[[40, 30]], f[[40, 31]], f[[2, 60]]), (m[[40, 30]], m[[33, 31]], m[[0, 60]]));
    }

    #[test]
    fn displacements_are_smooth_and_of_unit_rms() {
        let d = smooth_noise((70, 70), 8.0, &mut ChaCha12Rng::seed_from_u64(2));
        assert!((d.mapv(|v| v * v).mean().unwrap() - 1.0).abs() < 1e-9);
        let step = d.windows((1, 2)).into_iter().map(|w| (w[[0, 1]] - w[[0, 0]]).abs()).fold(0.0, f64::max);
        assert!(step < 0.5, "{step}");
    }

    #[test]
    fn nearest_makes_no_new_velocities() {
        let layers = Array2::from_shape_fn((70, 70), |(z, _)| [1700.0f32, 2400.0, 3900.0][z / 24]);
        let mut rng = ChaCha12Rng::seed_from_u64(3);
        let warped = elastic(&layers, Sampling::Nearest, 3.0, 8.0, &mut rng);
        let warped = affine(&warped, Sampling::Nearest, &Affine::random(&mut rng));
        let warped = fault(&warped, &Fault::random(&mut rng));
        assert!(warped.iter().all(|v| [1700.0, 2400.0, 3900.0].contains(v)));
        let smooth = elastic(&layers, Sampling::Bilinear, 3.0, 8.0, &mut rng);
        assert!(smooth.iter().any(|v| ![1700.0, 2400.0, 3900.0].contains(v)));
    }
}
