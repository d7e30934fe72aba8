//! The prior in the binary is worth what its card says.

use fwi::prior::{Augment, MaeMaps, Replayed, Runtime, RuntimeChoice, predict_one, registry};
use fwi::wave::{CpuOptions, build};
use fwi::{Family, Model, Observed, Survey, synth};

/// A seed that neither training nor the card used.
const SEED: u64 = 4321;
const MAPS: u64 = 10;

#[test]
fn errors_on_new_synthetic_maps_are_those_of_the_card() {
    let bundled = registry::default_prior().expect("a prior is bundled");
    let (runtime, _) = Runtime::choose(&RuntimeChoice::Tract).unwrap();
    let network = bundled.open(&runtime, 1).unwrap();
    let card: Vec<_> = network.info().mae().iter().filter(|m| m.maps == MaeMaps::Synthetic).cloned().collect();
    assert_eq!(card.len(), 10, "the card has every family");
    // as it predicts where nothing else is asked for
    assert_eq!(network.info().augment(), Augment::Replay);
    let prior = Replayed::new(Box::new(network), &Survey::openfwi(), 2).unwrap();
    let propagator = build(Survey::openfwi(), &CpuOptions::default()).unwrap();
    for entry in card {
        let family: Family = entry.family.parse().unwrap();
        let mut sum = 0.0;
        for number in 0..MAPS {
            let map = synth::draw(family, SEED, number).mapv(f64::from);
            let gather = propagator.forward(&[Model::from_map(map.clone())]).unwrap().remove(0);
            let predicted = predict_one(&prior, &Observed::new(gather)).unwrap().velocity.mapv(f64::from);
            sum += (predicted - map).mapv(f64::abs).mean().unwrap() / MAPS as f64;
        }
        // ten maps scatter
        println!("{}: {sum:.1}, the card says {:.1}", entry.family, entry.mae);
        assert!(
            sum < 1.7 * entry.mae && sum > entry.mae / 2.5,
            "{}: {sum:.1}, the card says {:.1}",
            entry.family,
            entry.mae
        );
    }
}
