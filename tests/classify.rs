//! Families and groups: from a gather and a prediction.

use fwi::family::{Group, classify, is_texture, two_largest_patches};
use fwi::invert::Kind;
use fwi::prior::Prediction;
use fwi::wave::{CpuOptions, build};
use fwi::{Family, Model, Observed, Survey, synth};
use ndarray::Array2;

/// A prediction of `map`, with equal probabilities for `families` if any are named.
fn prediction(map: &Array2<f32>, families: &[Family]) -> Prediction {
    let share = 1.0 / families.len().max(1) as f64;
    let told = Family::ALL.map(|f| (f, if families.contains(&f) { share } else { 0.0 })).to_vec();
    Prediction { velocity: map.clone(), error: None, families: (!families.is_empty()).then_some(told) }
}

/// What the exact operator records over a map.
fn observed(map: &Array2<f32>) -> Observed {
    let propagator = build(Survey::openfwi(), &CpuOptions::default()).unwrap();
    Observed::new(propagator.forward(&[Model::from_map(map.mapv(f64::from))]).unwrap().remove(0))
}

#[test]
fn the_gathers_symmetry_overrules_the_prior() {
    let survey = Survey::openfwi();
    let flat = synth::draw(Family::FlatVelB, 5, 0);
    let c = classify(&survey, &observed(&flat), &prediction(&flat, &[Family::StyleA]));
    assert_eq!(c.group, Group::FlatVel);
    assert!((c.probability - 1.0).abs() < 1e-12);
    let curved = synth::draw(Family::CurveVelA, 5, 0);
    let c = classify(&survey, &observed(&curved), &prediction(&curved, &[Family::FlatVelA, Family::CurveVelA]));
    assert_eq!((c.group, c.family), (Group::Layered, Family::CurveVelA));
    assert!((c.families.iter().map(|p| p.1).sum::<f64>() - 1.0).abs() < 1e-12);
    let c = classify(&survey, &observed(&curved), &prediction(&curved, &[Family::FlatVelA]));
    assert_ne!(c.group, Group::FlatVel);
    // dead traces leave the others' word, as long as most pairs are whole
    let mut dead = observed(&flat);
    let mut broken = dead.gather.data.clone();
    for (shot, receiver) in [(0, 3), (4, 50)] {
        broken.slice_mut(ndarray::s![shot, .., receiver]).fill(1.0);
        dead.mask.live[[shot, receiver]] = false;
    }
    dead.gather = fwi::Gather::new(broken).into();
    assert_eq!(classify(&survey, &dead, &prediction(&flat, &[Family::StyleA])).group, Group::FlatVel);
    (0..40).for_each(|r| dead.mask.live[[0, r]] = false);
    assert_eq!(classify(&survey, &dead, &prediction(&flat, &[Family::StyleA])).mirror_rms, None);
    // labels of a prior that knows no flat family
    let mut few = prediction(&flat, &[Family::StyleA]);
    few.families = Some(vec![(Family::StyleA, 0.7), (Family::CurveVelA, 0.3)]);
    let c = classify(&survey, &observed(&flat), &few);
    assert_eq!((c.group, c.probability), (Group::FlatVel, 1.0));
}

#[test]
fn noise_leaves_the_priors_word() {
    let survey = Survey::openfwi();
    let flat = synth::draw(Family::FlatVelB, 5, 0);
    let mut gather = observed(&flat).gather.data.clone();
    let mut state = 1u64;
    gather.mapv_inplace(|v| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        v + 1e-3 * ((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
    });
    let told = prediction(&flat, &[Family::FlatVelA]);
    let c = classify(&survey, &Observed::new(fwi::Gather::new(gather)), &told);
    assert!(c.mirror_rms.unwrap() > 1e-4);
    assert_eq!((c.group, c.family), (Group::FlatVel, Family::FlatVelA));
}

/// Without probabilities of a prior, the texture of the map decides; on true maps it is nearly always right.
#[test]
fn texture_tells_style_from_layers() {
    let survey = Survey::openfwi();
    // the symmetry of this gather rules the flat families out
    let gather = observed(&synth::draw(Family::CurveVelA, 5, 0));
    let right = |family: Family, of: &dyn Fn(Group) -> bool| {
        let maps = (0..40).map(|i| synth::draw(family, 6, i));
        maps.filter(|m| of(classify(&survey, &gather, &prediction(m, &[])).group)).count()
    };
    for family in [Family::StyleA, Family::StyleB] {
        let n = right(family, &|g| matches!(g, Group::StyleA | Group::StyleB));
        assert!(n >= 38, "{family}: {n} of 40");
    }
    for family in [Family::CurveVelA, Family::CurveVelB, Family::FlatFaultA, Family::CurveFaultB] {
        let n = right(family, &|g| matches!(g, Group::Layered | Group::TwoVelocities));
        assert!(n >= 38, "{family}: {n} of 40");
    }
    // what a stage for one kind of maps asks
    let of_kind =
        |family, kind| (0..40).filter(|&i| Kind::of(&synth::draw(family, 6, i).mapv(f64::from)) == kind).count();
    assert!(of_kind(Family::StyleA, Kind::SmoothTexture) >= 38);
    assert!(of_kind(Family::StyleB, Kind::SharpTexture) >= 36);
    for family in [Family::CurveVelA, Family::CurveVelB, Family::FlatFaultB, Family::CurveFaultB] {
        assert!(of_kind(family, Kind::Patches) >= 38, "{family}");
    }
    for family in [Family::FlatFaultA, Family::CurveFaultA] {
        assert!(of_kind(family, Kind::Interpolated) >= 38, "{family}");
    }
    let includes = |a: Kind, b: Kind| (a.includes(b), b.includes(a));
    assert_eq!(includes(Kind::Texture, Kind::SharpTexture), (true, false));
    assert_eq!(includes(Kind::SmoothTexture, Kind::SharpTexture), (false, false));
    assert_eq!(includes(Kind::Texture, Kind::Patches), (false, false));
    assert_eq!(includes(Kind::Patches, Kind::Interpolated), (true, false));
    let textures = |family| (0..40).filter(|&i| is_texture(&synth::draw(family, 6, i).mapv(f64::from))).count();
    assert!(textures(Family::StyleA) >= 38 && textures(Family::StyleB) >= 38);
    assert!(textures(Family::CurveVelB) <= 2 && textures(Family::CurveFaultA) <= 2);
    let (a, b) = (right(Family::StyleA, &|g| g == Group::StyleA), right(Family::StyleB, &|g| g == Group::StyleB));
    assert!(a >= 30 && b >= 30, "{a} and {b} of 40");
}

#[test]
fn patches_are_connected_areas() {
    let mut map = Array2::from_elem((70, 70), 2000.0f32);
    map.slice_mut(ndarray::s![30.., ..]).fill(3000.0);
    assert_eq!(two_largest_patches(&map, 1.0), 4900);
    assert_eq!(Group::of_map(Family::FlatFaultA, &map), Group::TwoVelocities);
    assert_eq!(Group::of_map(Family::CurveVelA, &map), Group::Layered);
    map.slice_mut(ndarray::s![50.., ..]).fill(4000.0);
    assert_eq!(two_largest_patches(&map, 1.0), 50 * 70);
    assert_eq!(Group::of_map(Family::FlatFaultA, &map), Group::Layered);
    // diagonal neighbours do not touch
    let checks = Array2::from_shape_fn((70, 70), |(z, x)| if (z + x) % 2 == 0 { 2000.0 } else { 3000.0 });
    assert_eq!(two_largest_patches(&checks, 1.0), 2);
}
