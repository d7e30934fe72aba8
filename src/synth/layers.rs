//! Layered maps: flat or curved, cut by faults or not.
//!
//! Measured on real maps: the layers of a map are equally thick within a cell or two, the first one between half and
//! one and a half of that; velocities of A families grow with depth. Fault families of kind A hold interpolated values
//! at their contacts, as a finer map blurred with a Gaussian of 0.42 cells does; all other layered maps hold integers.

use super::curve::Curve;
use super::fault::Fault;
use super::{RANGE, SHAPE, chance, normal};
use crate::Family;
use ndarray::Array2;
use rand::Rng;
use rand_chacha::ChaCha12Rng;

/// Standard deviation of the blur over contacts of the fault families of kind A, cells.
const BLUR: f64 = 0.42;
/// Samples a cell along each axis of the finer map.
const FINE: usize = 4;
/// Smallest step between neighbouring layers, m/s.
const STEP: f64 = 5.0;

/// What makes a layered family.
struct Kind {
    /// How deep its interfaces lie.
    layers: Layers,
    /// Whether velocity grows with depth; a probability.
    monotone: f64,
    /// Fewest and most faults.
    faults: (usize, usize),
    /// Whether values between layers are interpolated.
    blurred: bool,
}

/// How the interfaces of a family divide the depth.
#[derive(Clone, Copy)]
enum Layers {
    /// Layers of equal thickness down to the bottom, of which 70 cells hold so many, from fewest to most.
    Throughout(usize, usize),
    /// Four or five layers, the inner ones 11 to 15 cells thick; the last one takes what is left.
    Few,
}

impl Layers {
    /// Mean depths of the interfaces, cells; `reach` further down than the map, where interfaces may be lifted into it.
    fn depths(self, reach: f64, rng: &mut ChaCha12Rng) -> Vec<f64> {
        let (first, thickness, most) = match self {
            Self::Throughout(fewest, most) => {
                let thickness = 70.0 / rng.random_range(fewest..=most) as f64 + rng.random_range(-1.0..0.5);
                (thickness * rng.random_range(0.5..1.5), thickness, usize::MAX)
            }
            Self::Few => {
                let interfaces = if chance(rng, 0.65) { 4 } else { 3 };
                (rng.random_range(11.0..20.0), rng.random_range(11.0..15.0), interfaces)
            }
        };
        let mut depths = vec![first];
        while depths.len() < most && depths[depths.len() - 1] + thickness < 70.0 + reach {
            depths.push(depths[depths.len() - 1] + thickness + rng.random_range(-1.4..1.4));
        }
        depths
    }
}

impl Kind {
    fn of(family: Family) -> Self {
        let kind = |layers, monotone, faults, blurred| Self { layers, monotone, faults, blurred };
        match family {
            Family::FlatVelA | Family::CurveVelA => kind(Layers::Throughout(3, 7), 1.0, (0, 0), false),
            Family::FlatVelB | Family::CurveVelB => kind(Layers::Throughout(3, 7), 0.0, (0, 0), false),
            Family::FlatFaultA | Family::CurveFaultA => kind(Layers::Few, 1.0, (1, 2), true),
            _ => kind(Layers::Throughout(3, 7), 0.5, (1, 3), false),
        }
    }
}

/// A layered ground before it is put on a grid.
struct Ground {
    /// Mean depth of each interface, cells, downwards.
    depths: Vec<f64>,
    /// The shape that all interfaces share, and each one's own small deviation.
    shape: Curve,
    own: Vec<Curve>,
    /// Faults, the youngest first.
    faults: Vec<Fault>,
    /// Velocities of the layers; a second column of them beyond the first fault, where the two sides differ.
    velocities: Vec<Vec<f64>>,
}

/// A map of a layered family: (70, 70), m/s.
pub fn draw(family: Family, rng: &mut ChaCha12Rng) -> Array2<f32> {
    let kind = Kind::of(family);
    loop {
        let ground = Ground::draw(family, &kind, rng);
        let map = match kind.blurred {
            true => ground.blurred(),
            false => Array2::from_shape_fn(SHAPE, |(z, x)| ground.at(x as f64, z as f64) as f32),
        };
        let flat = matches!(family, Family::FlatVelA | Family::FlatVelB);
        // a fault may miss every interface, a curve may be flat to the cell: draw again
        let bare = map.rows().into_iter().all(|r| r.iter().all(|v| *v == r[0]));
        if bare == flat {
            return map;
        }
    }
}

impl Ground {
    fn draw(family: Family, kind: &Kind, rng: &mut ChaCha12Rng) -> Self {
        let (shape, wobble) = shape(family, rng);
        let mut depths = kind.layers.depths(if wobble { 16.0 } else { 0.0 }, rng);
        if !wobble {
            depths.iter_mut().for_each(|d| *d = d.round() - 0.5);
        }
        let faults: Vec<Fault> =
            (0..rng.random_range(kind.faults.0..=kind.faults.1)).map(|_| Fault::draw(rng)).collect();
        let monotone = chance(rng, kind.monotone);
        let visible = depths.iter().filter(|d| **d < 69.5).count() + 1;
        // flat maps end slower than a sorted uniform draw does
        let slow = matches!(family, Family::FlatVelA) && chance(rng, 0.4);
        let top = if slow { rng.random_range(2500.0..RANGE.1) } else { RANGE.1 };
        let even = kind.blurred && chance(rng, 0.5);
        let first = velocities(depths.len() + 1, visible, monotone, even, top, rng);
        let apart = matches!(family, Family::FlatFaultB | Family::CurveFaultB) && chance(rng, 0.5);
        let second = apart.then(|| velocities(depths.len() + 1, visible, monotone, false, RANGE.1, rng));
        let own = depths.iter().map(|_| if wobble { small(rng) } else { Curve::Tilted(0.0) }).collect();
        Self { depths, shape, own, faults, velocities: std::iter::once(first).chain(second).collect() }
    }

    /// Velocity at a point, m/s; coordinates in cells.
    fn at(&self, x: f64, z: f64) -> f64 {
        let beyond = self.faults.first().is_some_and(|f| f.moved((x, z)));
        let side = if beyond { self.velocities.len() - 1 } else { 0 };
        let (x0, z0) = self.faults.iter().fold((x, z), |point, fault| fault.before(point));
        let base = self.shape.at(x0);
        let above = self.depths.iter().zip(&self.own).filter(|(d, own)| z0 >= *d + base + own.at(x0)).count();
        self.velocities[side][above]
    }

    /// The map as a finer one, blurred over the contacts.
    fn blurred(&self) -> Array2<f32> {
        let coordinate = |i: usize| (i as f64 + 0.5) / FINE as f64 - 0.5;
        let fine = Array2::from_shape_fn((SHAPE.0 * FINE, SHAPE.1 * FINE), |(z, x)| {
            self.at(coordinate(x), coordinate(z)) as f32
        });
        let smooth = super::texture::blur(&fine, BLUR * FINE as f64);
        // away from contacts the integers come back exactly
        let exact = |v: f32| if (v - v.round()).abs() < 5e-4 { v.round() } else { v };
        Array2::from_shape_fn(SHAPE, |(z, x)| exact(smooth[[z * FINE + FINE / 2, x * FINE + FINE / 2]]))
    }
}

/// The shape of a family's interfaces, and whether each one deviates from it.
fn shape(family: Family, rng: &mut ChaCha12Rng) -> (Curve, bool) {
    match family {
        Family::CurveVelA | Family::CurveVelB => (Curve::draw(rng, 1.0), true),
        Family::CurveFaultA => (Curve::draw(rng, 0.8), true),
        Family::CurveFaultB => match chance(rng, 0.5) {
            true => (Curve::draw(rng, 1.2), true),
            false => {
                let amplitude = rng.random_range(3.0..14.0);
                (Curve::draw_anywhere(rng, amplitude), true)
            }
        },
        Family::FlatFaultB if chance(rng, 0.5) => (Curve::Tilted(rng.random_range(-0.5..0.5)), true),
        Family::FlatFaultA | Family::FlatFaultB => (Curve::Tilted(0.0), false),
        _ => (Curve::Tilted(0.0), false),
    }
}

/// An interface's own deviation from the common shape.
fn small(rng: &mut ChaCha12Rng) -> Curve {
    let amplitude = rng.random_range(0.0..1.0);
    Curve::draw_anywhere(rng, amplitude)
}

/// Integer velocities of `n` layers, of which the first `visible` spread up to `top`; neighbours differ. Where they grow,
/// `even` draws each from a band of its own.
fn velocities(n: usize, visible: usize, monotone: bool, even: bool, top: f64, rng: &mut ChaCha12Rng) -> Vec<f64> {
    let (low, high) = RANGE;
    loop {
        let mut v: Vec<f64> = if monotone {
            let band = (top - low) / visible as f64;
            let one = |i: usize, rng: &mut ChaCha12Rng| match even {
                true => low + band * (i as f64 + rng.random::<f64>()),
                false => rng.random_range(low..top),
            };
            let mut v: Vec<f64> = (0..visible).map(|i| one(i, rng).round()).collect();
            v.sort_by(f64::total_cmp);
            while v.len() < n {
                let last = v[v.len() - 1];
                let next = last + (high - last) * rng.random_range(0.1..0.8);
                v.push(next.round());
            }
            v
        } else {
            (0..n).map(|_| rng.random_range(low..high).round()).collect()
        };
        if !monotone && chance(rng, 0.3) {
            // a weak trend with depth
            let drift = normal(rng, 250.0, 150.0);
            v.iter_mut().enumerate().for_each(|(i, v)| *v = (*v + drift * (i as f64 - n as f64 / 2.0)).round());
            v.iter_mut().for_each(|v| *v = v.clamp(low, high));
        }
        if v.windows(2).all(|w| (w[1] - w[0]).abs() >= STEP) {
            return v;
        }
    }
}
