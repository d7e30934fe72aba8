//! Which family a gather belongs to, from the gather and what a prior predicts of it.
//!
//! A gather without noise tells by itself whether its map is horizontally constant (see [`mirror_rms`]). For the rest
//! there are the prior's own probabilities; a prior without them leaves the map, whose texture tells the Style families
//! from layers.

use super::{Family, MIRROR_RMS, mirror_rms};
use crate::prior::Prediction;
use crate::{Observed, Survey};
use ndarray::Array2;
use std::fmt;

/// Families that are inverted alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Horizontally constant maps.
    FlatVel,
    /// Smooth texture.
    StyleA,
    /// Sharp texture.
    StyleB,
    /// Faulted maps that two velocities fill almost whole.
    TwoVelocities,
    /// All other layered maps, curved or faulted.
    Layered,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::FlatVel, Self::StyleA, Self::StyleB, Self::TwoVelocities, Self::Layered];

    /// The group of a family; whether two velocities fill the map of a faulted one, only the map tells.
    pub fn of(family: Family) -> Self {
        match family {
            Family::FlatVelA | Family::FlatVelB => Self::FlatVel,
            Family::StyleA => Self::StyleA,
            Family::StyleB => Self::StyleB,
            _ => Self::Layered,
        }
    }

    /// The group of a map that is known to be of `family`.
    pub fn of_map(family: Family, map: &Array2<f32>) -> Self {
        Self::within(family, map, PATCH_STEP)
    }

    /// The group of a map that a prior predicted for a gather known to be of `family`.
    pub fn of_predicted(family: Family, map: &Array2<f32>) -> Self {
        Self::within(family, map, PREDICTED_STEP)
    }

    /// The same of a map whose patches are flat to `step`, m/s.
    fn within(family: Family, map: &Array2<f32>, step: f32) -> Self {
        match family.is_faulted() && two_largest_patches(map, step) > TWO_PATCHES {
            true => Self::TwoVelocities,
            false => Self::of(family),
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::FlatVel => "FlatVel",
            Self::StyleA => "Style_A",
            Self::StyleB => "Style_B",
            Self::TwoVelocities => "two velocities",
            Self::Layered => "layered",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Mirror rms above which a map is not horizontally constant; real maps that are not show 0.1 and more.
pub const ASYMMETRIC_RMS: f64 = 0.03;
/// Cells of the two largest patches above which two velocities fill a map (the contest's second place).
pub const TWO_PATCHES: usize = 4100;
/// Largest step between neighbouring cells of one patch of a true map, m/s.
const PATCH_STEP: f32 = 1.0;
/// The same of a predicted map, whose patches are not quite flat.
const PREDICTED_STEP: f32 = 12.0;

/// What a gather was found to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Classification {
    /// The likeliest family.
    pub family: Family,
    /// Probability of each family; they sum to 1.
    pub families: Vec<(Family, f64)>,
    /// The group of the likeliest families.
    pub group: Group,
    /// Its probability.
    pub probability: f64,
    /// Rms difference of the first shot and the mirrored last one, where the gather allows it.
    pub mirror_rms: Option<f64>,
}

impl Classification {
    /// The likeliest family of the group and its probability, unless others of the group are as likely.
    pub fn likeliest(&self) -> Option<(Family, f64)> {
        let own = self.families.iter().find(|(f, _)| *f == self.family)?.1;
        let group = Group::of(self.family);
        let tied = |(f, p): &(Family, f64)| *f != self.family && Group::of(*f) == group && *p >= own;
        (!self.families.iter().any(tied)).then_some((self.family, own))
    }
}

/// Classifies a gather from its mirror symmetry and what a prior predicts of it.
pub fn classify(survey: &Survey, observed: &Observed, prediction: &Prediction) -> Classification {
    let mirror = mirror_rms(survey, observed);
    let mut families = match &prediction.families {
        Some(told) => told.clone(),
        None => from_texture(&prediction.velocity),
    };
    for family in Family::ALL {
        if families.iter().all(|(f, _)| *f != family) {
            families.push((family, 0.0));
        }
    }
    match mirror {
        Some(rms) if rms < MIRROR_RMS => constrain(&mut families, true),
        Some(rms) if rms > ASYMMETRIC_RMS => constrain(&mut families, false),
        // noise, or hardly a difference: the prior's word stands
        _ => (),
    }
    let share = |group: Group| families.iter().filter(|(f, _)| Group::of(*f) == group).map(|p| p.1).sum::<f64>();
    let group = Group::ALL.into_iter().max_by(|a, b| share(*a).total_cmp(&share(*b))).unwrap_or(Group::Layered);
    // a family of the group that was found, even where another single family has more
    let within = families.iter().filter(|(f, _)| Group::of(*f) == group);
    let family = within.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(Family::FlatVelA, |p| p.0);
    let probability = share(group);
    let group = Group::of_predicted(family, &prediction.velocity);
    Classification { family, families, group, probability, mirror_rms: mirror }
}

/// Keeps the horizontally constant families only, or leaves them out, and brings the sum back to 1.
fn constrain(families: &mut [(Family, f64)], flat: bool) {
    for (family, p) in families.iter_mut() {
        if (Group::of(*family) == Group::FlatVel) != flat {
            *p = 0.0;
        }
    }
    let sum: f64 = families.iter().map(|p| p.1).sum();
    // where a prior had ruled out what the data show, the families left are equally likely
    let left = families.iter().filter(|(f, _)| (Group::of(*f) == Group::FlatVel) == flat).count().max(1) as f64;
    for (family, p) in families.iter_mut() {
        match sum > 1e-12 {
            true => *p /= sum,
            false if (Group::of(*family) == Group::FlatVel) == flat => *p = 1.0 / left,
            false => (),
        }
    }
}

/// Probabilities by the texture of a map: layers are flat nearly everywhere, Style maps are nowhere flat, and Style_B's
/// neighbouring differences change faster than Style_A's.
fn from_texture(map: &Array2<f32>) -> Vec<(Family, f64)> {
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    let style = logistic((rough_share(map) - ROUGH_SHARE) * 20.0);
    let sharp = logistic((roughness(map) - SHARP_RATIO) * 20.0);
    let layered = (1.0 - style) / 8.0;
    Family::ALL
        .into_iter()
        .map(|family| match family {
            Family::StyleA => (family, style * (1.0 - sharp)),
            Family::StyleB => (family, style * sharp),
            _ => (family, layered),
        })
        .collect()
}

/// Whether a map (nz, nx), m/s, changes from cell to cell along most of its rows, as Style maps do and layers do not.
pub fn is_texture(map: &Array2<f64>) -> bool {
    rough_share(&map.mapv(|v| v as f32)) > ROUGH_SHARE
}

/// Whether the texture of a map (nz, nx) is as smooth as that of Style_A.
pub fn is_smooth(map: &Array2<f64>) -> bool {
    roughness(&map.mapv(|v| v as f32)) < SHARP_RATIO
}

/// Share of the steps along the rows of a map that are no rounding of a flat part.
fn rough_share(map: &Array2<f32>) -> f64 {
    let steps: Vec<f32> = map.rows().into_iter().flat_map(|r| differences(&r.to_vec())).map(f32::abs).collect();
    steps.iter().filter(|s| **s > FLAT_STEP).count() as f64 / steps.len().max(1) as f64
}

/// Mean second difference along the rows of a map (nz, nx) over the mean first one: about 0.5 for Style_A, 1 for Style_B.
pub fn roughness(map: &Array2<f32>) -> f64 {
    let (mut steps, mut bends) = (0.0, 0.0);
    let sum = |x: &[f32]| x.iter().map(|d| f64::from(d.abs())).sum::<f64>();
    for row in map.rows() {
        let first = differences(&row.to_vec());
        steps += sum(&first);
        bends += sum(&differences(&first));
    }
    bends / steps.max(1e-9)
}

fn differences(row: &[f32]) -> Vec<f32> {
    row.windows(2).map(|w| w[1] - w[0]).collect()
}

/// Horizontal steps above this are no rounding of a flat part, m/s.
const FLAT_STEP: f32 = 4.0;
/// Share of such steps that separates Style maps from layers.
const ROUGH_SHARE: f64 = 0.45;
/// Ratio of second to first differences that separates Style_B from Style_A.
const SHARP_RATIO: f64 = 0.64;

/// Cells in the two largest connected areas whose neighbouring cells differ by less than `step`, m/s.
pub fn two_largest_patches(map: &Array2<f32>, step: f32) -> usize {
    let (nz, nx) = map.dim();
    let mut seen = Array2::from_elem((nz, nx), false);
    let mut sizes = vec![];
    for start in (0..nz).flat_map(|z| (0..nx).map(move |x| (z, x))) {
        if std::mem::replace(&mut seen[start], true) {
            continue;
        }
        let (mut size, mut front) = (0, vec![start]);
        while let Some((z, x)) = front.pop() {
            size += 1;
            let around = [(z.wrapping_sub(1), x), (z + 1, x), (z, x.wrapping_sub(1)), (z, x + 1)];
            for next in around.into_iter().filter(|&(a, b)| a < nz && b < nx) {
                if !seen[next] && (map[next] - map[(z, x)]).abs() < step {
                    seen[next] = true;
                    front.push(next);
                }
            }
        }
        sizes.push(size);
    }
    sizes.sort_unstable_by(|a: &usize, b| b.cmp(a));
    sizes.iter().take(2).sum()
}
