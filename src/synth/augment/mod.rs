//! Augmentations of velocity maps: seeded, composable, each with a probability.
//!
//! | name | what it does |
//! |---|---|
//! | `crop` | five-crop: one of the four corners or the centre, 50 to 66 cells a side, stretched to the whole map |
//! | `affine` | rotation up to 8 degrees, shear up to 0.15, scaling 0.87 to 1.15 a direction, shift up to 6 cells |
//! | `flip` | left and right swapped |
//! | `stretch` | depth and width stretched by 0.75 to 1.33 each, from the surface and about the middle |
//! | `elastic` | random displacements, smoothed by a Gaussian of 8 cells, up to 3 cells rms |
//! | `fault` | everything on one side of a dipping line is moved along it by 3 to 14 cells |
//! | `cutmix` | a rectangle of 20 to 50 cells a side taken from another map of the family |
//! | `mixup` | weighted mean with another map of the family, 0.5 to 1 of it being the map |
//! | `noise` | white Gaussian noise of up to 40 m/s |
//! | `rotate` | rotation about the centre, up to 15 degrees |
//! | `shift` | shift by up to 10 cells either way |
//! | `scale` | zoom about the centre, 0.8 to 1.25 |
//!
//! What is sampled outside the map is the nearest cell at its edge, as the operator continues maps. Layered families are
//! sampled at the nearest cell, so that no new velocities appear at interfaces; Style maps bilinearly. Families of
//! integer velocities are rounded where an augmentation computes new ones. FlatVel maps stay horizontally constant: what
//! becomes of their middle column becomes of all. Results stay within 1500..4500 m/s. What would take a map out of its family
//! is left out, but for noise.

mod blend;
mod warp;

use super::draw;
use crate::{Error, Family, Result};
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use std::fmt;
use std::str::FromStr;

/// What can be done to a map, see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `crop`
    Crop,
    /// `affine`
    Affine,
    /// `flip`
    Flip,
    /// `stretch`
    Stretch,
    /// `elastic`
    Elastic,
    /// `fault`
    Fault,
    /// `cutmix`
    CutMix,
    /// `mixup`
    MixUp,
    /// `noise`
    Noise,
    /// `rotate`
    Rotate,
    /// `shift`
    Shift,
    /// `scale`
    Scale,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Crop,
        Self::Affine,
        Self::Flip,
        Self::Stretch,
        Self::Elastic,
        Self::Fault,
        Self::CutMix,
        Self::MixUp,
        Self::Noise,
        Self::Rotate,
        Self::Shift,
        Self::Scale,
    ];

    /// The name in lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crop => "crop",
            Self::Affine => "affine",
            Self::Flip => "flip",
            Self::Stretch => "stretch",
            Self::Elastic => "elastic",
            Self::Fault => "fault",
            Self::CutMix => "cutmix",
            Self::MixUp => "mixup",
            Self::Noise => "noise",
            Self::Rotate => "rotate",
            Self::Shift => "shift",
            Self::Scale => "scale",
        }
    }

    /// The map changed by this, at random.
    fn apply(
        self,
        map: &Array2<f32>,
        family: Family,
        partner: impl FnOnce() -> Array2<f32>,
        rng: &mut ChaCha12Rng,
    ) -> Array2<f32> {
        let sampling = if is_continuous(family) { warp::Sampling::Bilinear } else { warp::Sampling::Nearest };
        match self {
            Self::Crop => warp::crop(map, sampling, rng.random_range(50..=66), rng.random_range(0..5)),
            Self::Affine => warp::affine(map, sampling, &warp::Affine::random(rng)),
            Self::Flip => warp::flip(map),
            Self::Stretch => {
                let mut factor = || 2f64.powf(rng.random_range(-0.415..0.415));
                warp::stretch(map, sampling, factor(), factor())
            }
            Self::Elastic => {
                let rms = rng.random_range(0.5..3.0);
                warp::elastic(map, sampling, rms, 8.0, rng)
            }
            Self::Fault => warp::fault(map, &warp::Fault::random(rng)),
            Self::CutMix => {
                let (h, w) = (rng.random_range(20..=50), rng.random_range(20..=50));
                let (z, x) = (rng.random_range(0..=map.nrows() - h), rng.random_range(0..=map.ncols() - w));
                blend::cut(map, &partner(), (z, x), (h, w))
            }
            Self::MixUp => blend::mix(map, &partner(), rng.random_range(0.5..1.0)),
            Self::Noise => blend::noise(map, rng.random_range(2.0..40.0), rng),
            Self::Rotate => {
                let angle: f64 = rng.random_range(-15.0..15.0);
                warp::affine(map, sampling, &warp::Affine { angle: angle.to_radians(), ..warp::Affine::IDENTITY })
            }
            Self::Shift => {
                let mut cells = || f64::from(rng.random_range(-10i32..=10));
                let shift = (cells(), cells());
                warp::affine(map, sampling, &warp::Affine { shift, ..warp::Affine::IDENTITY })
            }
            Self::Scale => {
                let factor = 2f64.powf(rng.random_range(-0.322..0.322));
                warp::affine(map, sampling, &warp::Affine { scale: (factor, factor), ..warp::Affine::IDENTITY })
            }
        }
    }
}

/// Families of continuous velocities.
fn is_continuous(family: Family) -> bool {
    matches!(family, Family::StyleA | Family::StyleB)
}

/// Families all of whose velocities are whole numbers.
fn is_integer(family: Family) -> bool {
    !is_continuous(family) && !matches!(family, Family::FlatFaultA | Family::CurveFaultA)
}

/// Augmentations in order, each with its probability; written as `flip:0.5,elastic`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Augment(Vec<(Kind, f64)>);

/// Bounds of OpenFWI's velocities, m/s.
const VELOCITIES: (f32, f32) = (1500.0, 4500.0);

/// Added to the seed for maps that are mixed in, so that none of them is another sample of the set.
const PARTNERS: u64 = 0x9e37_79b9_7f4a_7c15;

impl Augment {
    /// `map`, which is number `number` of `family` under `seed`, changed. The same arguments give the same map.
    pub fn apply(&self, mut map: Array2<f32>, family: Family, seed: u64, number: u64) -> Array2<f32> {
        if self.0.is_empty() {
            return map;
        }
        let mut rng = generator(family, seed, number);
        for (place, &(kind, probability)) in self.0.iter().enumerate() {
            // each has its own stream, so that what one consumes does not change the next
            let mut own = ChaCha12Rng::seed_from_u64(rng.random());
            if own.random::<f64>() >= probability {
                continue;
            }
            let partner = || draw(family, seed.wrapping_add(PARTNERS.wrapping_mul(place as u64 + 1)), number);
            let mut changed = kind.apply(&map, family, partner, &mut own);
            if matches!(family, Family::FlatVelA | Family::FlatVelB) {
                let middle = changed.column(changed.ncols() / 2).to_owned();
                changed.columns_mut().into_iter().for_each(|mut column| column.assign(&middle));
            }
            let (least, most) = VELOCITIES;
            changed.mapv_inplace(|v| if is_integer(family) { v.round() } else { v }.clamp(least, most));
            // noise is asked for as such; of the others none may make a map one of another family
            if kind == Kind::Noise || bears_mark(family, &changed) || !bears_mark(family, &map) {
                map = changed;
            }
        }
        map
    }
}

/// Whether a map has what tells its family from the others, as far as a single map shows it: layers that get faster downwards
/// (FlatVel_A, CurveVel_A), or something that changes along the line (curved and faulted families).
fn bears_mark(family: Family, map: &Array2<f32>) -> bool {
    let faster =
        || map.columns().into_iter().all(|c| c.iter().zip(c.iter().skip(1)).all(|(above, below)| above <= below));
    let level = || map.rows().into_iter().all(|r| r.iter().all(|v| *v == r[0]));
    match family {
        Family::FlatVelA => faster(),
        Family::CurveVelA => faster() && !level(),
        Family::FlatVelB | Family::StyleA | Family::StyleB => true,
        _ => !level(),
    }
}

fn generator(family: Family, seed: u64, number: u64) -> ChaCha12Rng {
    let mut key = *b"augment.augment.augment.augment.";
    key[8..16].copy_from_slice(&seed.to_le_bytes());
    key[16..24].copy_from_slice(&number.to_le_bytes());
    key[24] = Family::ALL.iter().position(|&f| f == family).expect("one of all") as u8;
    ChaCha12Rng::from_seed(key)
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (kind, probability)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}", kind.name())?;
            if *probability < 1.0 {
                write!(f, ":{probability}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Augment {
    type Err = Error;

    /// `name[:probability],...`; empty for none.
    fn from_str(text: &str) -> Result<Self> {
        let entry = |item: &str| {
            let (name, probability) = item.trim().split_once(':').unwrap_or((item.trim(), "1"));
            let kind = Kind::ALL.into_iter().find(|k| k.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
                let names: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
                Error::Usage(format!("\"{name}\" is no augmentation; there are {}", names.join(", ")))
            })?;
            let p = probability.parse().ok().filter(|p: &f64| *p > 0.0 && *p <= 1.0);
            let problem = || Error::Usage(format!("{name}:{probability}: a probability lies above 0 and up to 1"));
            Ok((kind, p.ok_or_else(problem)?))
        };
        match text.trim() {
            "" => Ok(Self::default()),
            text => text.split(',').map(entry).collect::<Result<_>>().map(Self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers get faster downwards, curves and faults stay, whatever is done to a map.
    #[test]
    fn a_map_stays_of_its_family() {
        let list: Augment = "crop,cutmix,fault,rotate,elastic,shift,stretch,scale".parse().unwrap();
        for family in Family::ALL {
            let changed = (0..20).map(|i| (draw(family, 3, i), list.apply(draw(family, 3, i), family, 3, i)));
            let changed: Vec<_> = changed.collect();
            assert!(changed.iter().all(|(_, map)| bears_mark(family, map)), "{family}");
            assert!(changed.iter().filter(|(before, map)| before != map).count() > 10, "{family}");
        }
        let noisy: Augment = "noise".parse().unwrap();
        let map = noisy.apply(draw(Family::CurveVelA, 3, 0), Family::CurveVelA, 3, 0);
        assert!(!bears_mark(Family::CurveVelA, &map));
    }

    /// Integer layers with a step across, so that every change shows.
    fn layered() -> Array2<f32> {
        Array2::from_shape_fn((70, 70), |(z, x)| 1600.0 + 371.0 * ((z + x / 9) / 12) as f32)
    }

    #[test]
    fn lists_are_read_and_written() {
        let list: Augment = "flip, AFFINE:0.5,elastic:1".parse().unwrap();
        assert_eq!(list.to_string(), "flip,affine:0.5,elastic");
        assert_eq!("".parse::<Augment>().unwrap(), Augment::default());
        for (bad, part) in [("blur", "there are crop"), ("flip:0", "flip:0"), ("flip:2", "up to 1"), ("flip,", "\"\"")]
        {
            assert!(bad.parse::<Augment>().unwrap_err().to_string().contains(part), "{bad}");
        }
    }

    #[test]
    fn every_kind_keeps_shape_and_bounds_and_depends_on_its_seed_alone() {
        for family in [Family::CurveVelB, Family::FlatFaultA, Family::StyleA] {
            for kind in Kind::ALL {
                let list = Augment(vec![(kind, 1.0)]);
                let once = list.apply(layered(), family, 5, 8);
                assert_eq!(once.dim(), (70, 70));
                assert!(once.iter().all(|v| (1500.0..=4500.0).contains(v)), "{kind:?}");
                assert_eq!(once, list.apply(layered(), family, 5, 8), "{kind:?}");
                assert_ne!(once, layered(), "{kind:?} did nothing");
                if kind != Kind::Flip {
                    let others = (9..14).filter(|&n| list.apply(layered(), family, 5, n) != once).count();
                    assert!(others >= 4, "{kind:?} does the same to every map");
                }
                if is_integer(family) {
                    assert!(once.iter().all(|v| v.fract() == 0.0), "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn flat_maps_stay_flat() {
        for family in [Family::FlatVelA, Family::FlatVelB] {
            for kind in Kind::ALL {
                let list = Augment(vec![(kind, 1.0)]);
                let maps: Vec<_> =
                    (0..8).map(|n| (draw(family, 1, n), list.apply(draw(family, 1, n), family, 1, n))).collect();
                let flat = |m: &Array2<f32>| m.rows().into_iter().all(|r| r.iter().all(|&v| v == r[0]));
                assert!(maps.iter().all(|(_, m)| flat(m)), "{kind:?} of {family}");
                assert_eq!(
                    maps.iter().any(|(before, after)| before != after),
                    kind != Kind::Flip,
                    "{kind:?} of {family}"
                );
            }
        }
    }

    #[test]
    fn probabilities_count_and_lists_compose() {
        let half: Augment = "flip:0.5".parse().unwrap();
        let flips = (0..400).filter(|&n| half.apply(layered(), Family::StyleA, 1, n) != layered()).count();
        assert!((150..250).contains(&flips), "{flips} of 400");
        let twice: Augment = "flip,flip".parse().unwrap();
        assert_eq!(twice.apply(layered(), Family::StyleA, 1, 0), layered());
        assert_eq!(Augment::default().apply(layered(), Family::StyleA, 1, 0), layered());
    }
}
