//! Inversions by recipes on a small survey: the same bits whatever the threads and interruptions; fall-backs and
//! limits; and what they find.

mod common;
mod fallbacks;
mod steps;

use common::{Bench, first, piecemeal, recipe, small, timeless};
use fwi::Survey;
use fwi::family::Recipe;
use fwi::invert::{Attempt, FirstStart, Settings, Start, invert_with_fallbacks};
use fwi::survey;
use ndarray::Array2;

#[test]
fn a_recipe_gives_the_same_bits_whatever_the_threads_and_interruptions() {
    let attempts = [recipe()];
    faer::set_global_parallelism(faer::Par::Seq);
    let one = Bench::new(1);
    let whole = invert_with_fallbacks(&attempts, &first(), &one.inversion(1), &mut ()).unwrap();
    for s in &whole.stages {
        println!("{}: rms {:.2e}, {} evaluations, {:?}, {}", s.name, s.data_rms, s.evaluations, s.rounded, s.stop);
    }
    assert_eq!(whole.normal_matrices, whole.stages.iter().map(|s| s.normal_matrices).sum::<u64>());
    assert_eq!(whole.attempts.len(), 1);
    assert!(whole.attempts[0].kept && whole.attempts[0].evaluations == whole.evaluations);

    faer::set_global_parallelism(faer::Par::rayon(3));
    let three = Bench::new(3);
    let other = invert_with_fallbacks(&attempts, &first(), &three.inversion(3), &mut ()).unwrap();
    assert!(timeless(&whole) == timeless(&other), "the threads change the outcome");
    let (resumed, runs) = piecemeal(&one, &attempts);
    assert!(runs >= 7, "{runs}");
    assert!(timeless(&whole) == timeless(&resumed), "interruptions change the outcome");
}

/// Half a kilometre a second off at the start, falling with depth where it should rise, and a whole layer on a bound.
#[test]
fn layers_far_off_are_found_to_the_metre() {
    const FLAT: &str = r#"
name = "far"
about = "A test's"

[[stage]]
name = "below 6 Hz"
misfit = "lowpass:6"
[stage.newton]
noise = [1, 0.1, 0.01]
unknowns = "rows"
regularisers = [{ kind = "tv", scale = 2000, epsilon = 20, across = 0 }]

[[stage]]
name = "below 15 Hz"
misfit = "lowpass:15"
[stage.newton]
noise = [0.3, 0.03, 0.01]
unknowns = "rows"
regularisers = [{ kind = "tv", scale = 2000, epsilon = 20, across = 0 }]

[[stage]]
name = "rows"
[stage.newton]
noise = [0.1, 0.03, 0.003, 0.003]
unknowns = "rows"
regularisers = [{ kind = "tv", scale = 2000, epsilon = 2, across = 0 }]

[[stage]]
name = "layers"
vmin = "tied"
round = { spacing = 1, step = 8, min_area = 20, accept = 2e-5 }
[stage.newton]
noise = [1e-3, 1e-4]
unknowns = { patches = { step = 8, min_area = 20 } }
regularisers = [{ kind = "tv", scale = 2000, epsilon = 1, across = 0 }]
"#;
    let truth = Array2::from_shape_fn((24, 20), |(z, _)| match z {
        0..8 => 2103.0,
        8..14 => 1500.0,
        _ => 2917.0,
    });
    let bench = Bench::of(truth, Survey { wavelet: survey::ricker(15.0, 1e-3), ..small() }, 2);
    let start = Array2::from_shape_fn((24, 20), |(z, _)| 3000.0 - 40.0 * z as f64);
    let first = FirstStart { start: Start::Map(start), name: "prior".into(), confidence: None };
    let attempt = Attempt::new(Recipe::parse(FLAT, 1e-3).unwrap(), &Settings::default());
    let found = invert_with_fallbacks(&[attempt], &first, &bench.inversion(2), &mut ()).unwrap();
    found.stages.iter().for_each(|s| println!("{}: rms {:.2e}, {:?}, {}", s.name, s.data_rms, s.rounded, s.stop));
    assert_eq!(found.mae, Some(0.0));
}
