//! The families of maps, and what the data alone tell about the family of a map.

mod ablation;
pub mod bench;
mod classify;
mod like;
mod names;
mod recipe;

pub use ablation::Ingredient;
pub use classify::{
    ASYMMETRIC_RMS, Classification, Group, TWO_PATCHES, classify, is_smooth, is_texture, roughness, two_largest_patches,
};
pub use names::Family;
pub use recipe::{Recipe, RecipeStart};

use crate::{Observed, Survey};
use ndarray::s;

/// Rms difference between the first shot and the last one mirrored, below which a map is horizontally constant: the
/// two agree to rounding then, and differ by 0.1 and more otherwise (real OpenFWI gathers).
pub const MIRROR_RMS: f64 = 1e-4;

/// Rms difference between the first shot and the mirrored last one, over the samples of which both count; `None` where the
/// acquisition is not mirrored, or traces are masked in half of the pairs or more.
pub fn mirror_rms(survey: &Survey, observed: &Observed) -> Option<f64> {
    let mirrored = |x: usize| survey.nx - 1 - x;
    let (first, last) = (survey.sources.first()?, survey.sources.last()?);
    let sources_mirror = survey.sources.len() > 1 && first.z == last.z && first.x == mirrored(last.x);
    let partner = |r: usize| {
        let p = survey.receivers[r];
        survey.receivers.iter().position(|q| q.z == p.z && q.x == mirrored(p.x))
    };
    let partners: Option<Vec<usize>> = (0..survey.receivers.len()).map(partner).collect();
    let partners = partners.filter(|_| sources_mirror)?;
    let live = &observed.mask.live;
    let n = survey.sources.len() - 1;
    let both: Vec<(usize, usize)> =
        partners.into_iter().enumerate().filter(|&(r, p)| live[[0, r]] && live[[n, p]]).collect();
    if 2 * both.len() <= survey.receivers.len() {
        return None;
    }
    let mut sum = 0.0;
    for &(r, p) in &both {
        let a = observed.gather.data.slice(s![0, ..observed.mask.nt, r]);
        let b = observed.gather.data.slice(s![n, ..observed.mask.nt, p]);
        sum += a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
    }
    Some((sum / (both.len() * observed.mask.nt) as f64).sqrt())
}

/// The family as far as the gather shows it: "FlatVel" for horizontally constant maps, else "unknown".
pub fn from_gather(survey: &Survey, observed: &Observed) -> &'static str {
    match mirror_rms(survey, observed) {
        Some(rms) if rms < MIRROR_RMS => "FlatVel",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wave::{Cpu, CpuOptions, Propagator};
    use crate::{Model, Position, survey::ricker};
    use ndarray::Array2;

    #[test]
    fn flat_maps_mirror_and_others_do_not() {
        let at = |x| Position { z: 1, x };
        let (sources, receivers) = (vec![at(2), at(11), at(17)], (0..20).map(at).collect());
        let survey = Survey {
            nz: 20,
            nx: 20,
            nt: 150,
            sponge: 10,
            sources,
            receivers,
            wavelet: ricker(15.0, 1e-3),
            ..Survey::openfwi()
        };
        let cpu = Cpu::<f32>::new(survey.clone(), &CpuOptions::default()).unwrap();
        let family = |f: &dyn Fn(usize, usize) -> f64| {
            let model = Model::from_map(Array2::from_shape_fn((20, 20), |(z, x)| f(z, x)));
            from_gather(&survey, &Observed::new(cpu.forward(&[model]).unwrap().remove(0)))
        };
        assert_eq!(family(&|z, _| 1800.0 + 50.0 * z as f64), "FlatVel");
        assert_eq!(family(&|z, x| 1800.0 + 50.0 * z as f64 + x as f64), "unknown");
        let uneven = Survey { sources: vec![at(2), at(3)], ..survey.clone() };
        let gather = crate::Gather::new(ndarray::Array3::ones(uneven.gather_shape()));
        assert_eq!(mirror_rms(&uneven, &Observed::new(gather)), None);
    }
}
