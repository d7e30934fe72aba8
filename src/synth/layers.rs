//! Layered maps: flat or curved, cut by faults or not.
//!
//! Measured on real maps: the layers of a map are equally thick within a cell or two, the first one between half and
//! one and a half of that; velocities of A families grow with depth. All layered maps hold integers but those of the fault
//! families of kind A, which are means of two by two pixels of a map twice as fine, whose pixels are mixed in proportion
//! where a contact crosses them and then blurred with a Gaussian of half a pixel (as resizing by half with anti-aliasing
//! does): in 4,000 columns of real FlatFault_A maps the two or three values at level contacts are those, to four digits.
//! Level contacts lie at multiples of 90 / 181 cells from the first row of cells there.

use super::curve::Curve;
use super::fault::Fault;
use super::{RANGE, SHAPE, chance, normal};
use crate::Family;
use ndarray::{Array2, s};
use rand::Rng;
use rand_chacha::ChaCha12Rng;

/// Pixels a cell along each axis of the finer map of the fault families of kind A.
const FINE: usize = 2;
/// Standard deviation of their blur, pixels.
const BLUR: f64 = 0.5;
/// Points along each axis, down and across, of a pixel that a contact crosses, of whose velocities it takes the mean.
const PARTS: (usize, usize) = (16, 4);
/// Cells between the depths that their level contacts may have.
const LEVELS: f64 = 90.0 / 181.0;
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
    /// Whether it comes from a finer map.
    blurred: bool,
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
        // most real FlatFault_A maps have one
        let alone = matches!(family, Family::FlatFaultA) && chance(rng, 0.6);
        let most = if alone { kind.faults.0 } else { kind.faults.1 };
        let mut faults: Vec<Fault> = (0..rng.random_range(kind.faults.0..=most)).map(|_| Fault::draw(rng)).collect();
        if !wobble && kind.blurred {
            depths.iter_mut().for_each(|d| *d = (*d / LEVELS).round() * LEVELS);
            faults.iter_mut().for_each(|f| f.throw_by_multiples(LEVELS));
        } else if !wobble {
            depths.iter_mut().for_each(|d| *d = d.round() - 0.5);
        }
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
        let velocities = std::iter::once(first).chain(second).collect();
        Self { depths, shape, own, faults, velocities, blurred: kind.blurred }
    }

    /// Velocity at a point, m/s; coordinates in cells.
    fn at(&self, x: f64, z: f64) -> f64 {
        let beyond = self.faults.first().is_some_and(|f| f.moved((x, z)));
        let side = if beyond { self.velocities.len() - 1 } else { 0 };
        // in real FlatFault_A maps, what would come from beside the map has not moved
        let beside = |x: f64| self.blurred && !(-0.5..SHAPE.1 as f64 - 0.5).contains(&x);
        let before = |point: (f64, f64), fault: &Fault| Some(fault.before(point)).filter(|p| !beside(p.0));
        let (x0, z0) = self.faults.iter().fold((x, z), |point, fault| before(point, fault).unwrap_or(point));
        let base = self.shape.at(x0);
        let above = self.depths.iter().zip(&self.own).filter(|(d, own)| z0 >= *d + base + own.at(x0)).count();
        self.velocities[side][above]
    }

    /// The map from one twice as fine.
    fn blurred(&self) -> Array2<f32> {
        let (nz, nx) = (SHAPE.0 * FINE, SHAPE.1 * FINE);
        let edge = |i: f64| i / FINE as f64 - 0.5;
        let corners = Array2::from_shape_fn((nz + 1, nx + 1), |(z, x)| self.at(edge(x as f64), edge(z as f64)));
        let part = |i: usize, j: usize, of: usize| edge(i as f64 + (j as f64 + 0.5) / of as f64);
        let fine = Array2::from_shape_fn((nz, nx), |(z, x)| {
            let around = [corners[[z, x]], corners[[z + 1, x]], corners[[z, x + 1]], corners[[z + 1, x + 1]]];
            if around.iter().all(|v| *v == around[0]) {
                return around[0] as f32;
            }
            let points = (0..PARTS.0).flat_map(|i| (0..PARTS.1).map(move |j| (i, j)));
            let sum: f64 = points.map(|(i, j)| self.at(part(x, j, PARTS.1), part(z, i, PARTS.0))).sum();
            (sum / (PARTS.0 * PARTS.1) as f64) as f32
        });
        let smooth = super::texture::blur(&fine, BLUR);
        // away from contacts the integers come back exactly
        let exact = |v: f32| if (v - v.round()).abs() < 5e-4 { v.round() } else { v };
        Array2::from_shape_fn(SHAPE, |(z, x)| {
            exact(smooth.slice(s![z * FINE..(z + 1) * FINE, x * FINE..(x + 1) * FINE]).sum() / (FINE * FINE) as f32)
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Level layers that meet at some depths, cells.
    fn level(depths: &[f64], velocities: &[f64]) -> Array2<f32> {
        let own = depths.iter().map(|_| Curve::Tilted(0.0)).collect();
        let velocities = vec![velocities.to_vec()];
        Ground { depths: depths.to_vec(), shape: Curve::Tilted(0.0), own, faults: vec![], velocities, blurred: true }
            .blurred()
    }

    #[test]
    fn values_at_contacts_are_those_of_real_maps() {
        // measured on OpenFWI's FlatFault_A, at level contacts that lie in rows 37, 36 twice and, on half a row, 34
        let measured = [
            (75.0 * LEVELS, [0.0001, 0.238, 0.9686]),
            (73.0 * LEVELS, [0.0001, 0.233, 0.968]),
            (72.0 * LEVELS, [0.0213, 0.6771, 0.9999]),
            (34.5, [0.0, 0.0535, 0.9465]),
        ];
        for (depth, shares) in measured {
            let map = level(&[depth], &[2118.0, 3223.0]);
            let row = (depth - 0.5).ceil() as usize;
            for (z, share) in (row - 1..).zip(shares) {
                let found = (map[[z, 33]] - 2118.0) / 1105.0;
                assert!((found - share).abs() < 0.015, "{depth}: row {z} has {found}, not {share}");
            }
            assert_eq!((map[[0, 3]], map[[69, 3]]), (2118.0, 3223.0));
        }
    }
}
