//! Single stages of Gauss-Newton steps.

use super::common::{Bench, Stopper, first, piecemeal, small, timeless};
use fwi::family::Recipe;
use fwi::invert::{
    Attempt, FirstStart, Kind, Settings, Start, State, StopReason, invert_with_fallbacks, resume_with_fallbacks,
};
use ndarray::Array2;
use std::path::Path;

/// A step of Gauss-Newton, and the same with evaluations of L-BFGS behind it, its factor their preconditioner.
#[test]
fn polishing_lowers_what_a_step_leaves() {
    const STEP: &str = r#"
name = "step"
about = "A test's"
[[stage]]
name = "cells"
[stage.newton]
noise = [0.01]
inner = 1
polish = 0
regularisers = [{ kind = "gaussian-process", mean = "start", sigma = 150.0, length = 2.0, white = 20.0 }]

[[stage]]
name = "for flat maps alone"
only = "patches"
max_evals = 1
"#;
    let bench = Bench::new(2);
    let run = |polish: u64, most: Option<u64>| {
        let text = STEP.replace("polish = 0", &format!("polish = {polish}"));
        let settings = Settings { max_evals: most, ..Settings::default() };
        let attempt = Attempt::new(Recipe::parse(&text, 1e-3).unwrap(), &settings);
        invert_with_fallbacks(&[attempt], &first(), &bench.inversion(2), &mut ()).unwrap()
    };
    let (plain, polished) = (run(0, None), run(12, None));
    println!(
        "{:.2e} after {}, {:.2e} after {}",
        plain.data_rms, plain.evaluations, polished.data_rms, polished.evaluations
    );
    assert!(polished.data_rms < 0.5 * plain.data_rms);
    // a step evaluates at most five shares, then what it may for polishing, the first one its beginning, too
    let stage = &polished.stages[0];
    assert!(stage.evaluations <= 1 + (5 + 12) * stage.normal_matrices && stage.evaluations > plain.evaluations);
    assert!(
        matches!(polished.stages[1].stop, StopReason::OtherKind { kind: Kind::SharpTexture }),
        "{}",
        polished.stages[1].stop
    );

    // where evaluations end within the polishing, the best of them is kept
    let (cut, step) = (run(12, Some(6)), run(0, Some(2)));
    assert!(cut.evaluations == 6 && cut.data_rms < step.data_rms, "{:.2e} {:.2e}", cut.data_rms, step.data_rms);
    assert_eq!(cut.stop, StopReason::MaxEvals { limit: 6 });

    // but a run that is resumed takes the step whole
    let attempt = |most: Option<u64>| {
        let settings = Settings { max_evals: most, ..Settings::default() };
        Attempt::new(Recipe::parse(&STEP.replace("polish = 0", "polish = 12"), 1e-3).unwrap(), &settings)
    };
    let mut saved = Stopper { left: usize::MAX, saved: vec![] };
    invert_with_fallbacks(&[attempt(Some(6))], &first(), &bench.inversion(2), &mut saved).unwrap();
    let state = State::from_bytes(&saved.saved, Path::new("checkpoint")).unwrap();
    let resumed = resume_with_fallbacks(&[attempt(None)], "prior", state, &bench.inversion(2), &mut ()).unwrap();
    assert_eq!(timeless(&resumed), timeless(&polished));
}

/// Steps of one stage over cells under total variation.
fn steps(newton: &str) -> Attempt {
    steps_then(newton, "")
}

/// The same with more stages after it.
fn steps_then(newton: &str, stages: &str) -> Attempt {
    let text = format!(
        r#"
name = "steps"
about = "A test's"
[[stage]]
name = "edges"
vmin = "tied"
[stage.newton]
{newton}
regularisers = [{{ kind = "tv", scale = 10, epsilon = 1 }}]
{stages}
"#
    );
    Attempt::new(Recipe::parse(&text, 1e-3).unwrap(), &Settings::default())
}

#[test]
fn steps_begin_with_what_those_before_evaluated_where_that_is_the_same() {
    let bench = Bench::new(1);
    let run = |more: &str| {
        let stages = format!("[[stage]]\nlike = \"edges\"\nname = \"again\"\nnewton.noise = [0.01]\n{more}");
        let attempt = steps_then("noise = [0.02]", &stages);
        let out = invert_with_fallbacks(&[attempt], &first(), &bench.inversion(1), &mut ()).unwrap();
        assert!(out.stages[0].moved && out.stages[1].moved);
        out
    };
    // all samples lie before ten seconds, but who evaluated before does not know
    let (alike, otherwise) = (run(""), run("until = 10.0"));
    assert_eq!(alike.model, otherwise.model);
    assert_eq!(alike.stages[1].evaluations + 1, otherwise.stages[1].evaluations);
    assert!(run("misfit = \"lowpass:15\"").stages[1].evaluations > alike.stages[1].evaluations);
}

#[test]
fn data_are_more_linear_in_squared_slowness() {
    let bench = Bench::new(1);
    let run = |linear: &str| {
        let attempt = steps(&format!("linear = \"{linear}\"\nnoise = [0.02, 0.005]"));
        invert_with_fallbacks(&[attempt], &first(), &bench.inversion(1), &mut ()).unwrap()
    };
    let rms = ["velocity", "squared-slowness"].map(|linear| run(linear).data_rms);
    assert!(rms[1] < 0.7 * rms[0], "{rms:?}");
}

#[test]
fn areas_are_found_to_the_cell() {
    let bench = Bench::new(1);
    let head = "linear = \"squared-slowness\"\nnoise = [0.05, 0.01, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4]\n";
    let run = |more: &str| {
        let attempt = steps(&format!("{head}{more}"));
        invert_with_fallbacks(&[attempt], &first(), &bench.inversion(1), &mut ()).unwrap()
    };
    let (without, with) = (run(""), run("areas = { step = 10, min_area = 6 }"));
    assert!(with.mae.unwrap() < 0.1 && without.mae.unwrap() > 1.0, "{:?} {:?}", with.mae, without.mae);
    assert_eq!(with.stages[0].stop, StopReason::Settled);
    let (resumed, _) = piecemeal(&bench, &[steps(&format!("{head}areas = {{ step = 10, min_area = 6 }}"))]);
    assert!(timeless(&with) == timeless(&resumed), "interruptions change the outcome");
}

#[test]
fn steps_that_find_no_better_areas_end_the_stage() {
    // a contact of mixed cells that is no edge of areas
    let mixed = |x: usize| 2717.0 - 150.0 * ((x * 7) % 5) as f64;
    let truth = Array2::from_shape_fn((24, 20), |(z, x)| match z {
        0..12 => 1803.0,
        12 | 13 => mixed(x + 3 * z),
        _ => 2717.0,
    });
    let bench = Bench::of(truth, small(), 1);
    // under noises that grow, maps fit less and less, and none is the one before; the first stage's fits better than any of areas
    let areas = r#"
[[stage]]
like = "edges"
name = "areas"
newton.noise = [0.01, 0.02, 0.05, 0.15, 0.5, 1.5]
newton.areas = { step = 10, min_area = 6, own = 20, edge = 0 }
"#;
    let attempt = steps_then("linear = \"squared-slowness\"\nnoise = [1e-4]", areas);
    let start = bench.truth.clone();
    let first = FirstStart { start: Start::Map(start), name: "prior".into(), confidence: None };
    let found = invert_with_fallbacks(&[attempt], &first, &bench.inversion(1), &mut ()).unwrap();
    let stage = &found.stages[1];
    println!("{} after {} steps, rms {:.1e}", stage.stop, stage.iterations, stage.data_rms);
    assert!(matches!(stage.stop, StopReason::Undone), "{}", stage.stop);
    assert!(stage.iterations < 6, "{}", stage.iterations);
}

#[test]
fn steps_between_two_noises_are_resumed_as_they_were() {
    // the first noise is far below the rms of the start: the stage's first steps count for none of its noises
    let attempts = [steps("linear = \"squared-slowness\"\nnoise = [1e-3]")];
    let bench = Bench::new(2);
    let whole = invert_with_fallbacks(&attempts, &first(), &bench.inversion(2), &mut ()).unwrap();
    assert!(whole.normal_matrices > 2, "{} steps", whole.normal_matrices);
    let (resumed, runs) = piecemeal(&bench, &attempts);
    assert!(runs as u64 > whole.normal_matrices, "{runs}");
    assert!(timeless(&whole) == timeless(&resumed), "interruptions change the outcome");
}

#[test]
fn steps_at_a_multiple_of_the_data_rms_come_before_the_noise_asked_for() {
    let bench = Bench::new(1);
    let run = |over: &str| {
        // the start fits to some 0.3, so that no step comes between at the rms itself
        let attempt = steps(&format!("linear = \"squared-slowness\"\nnoise = [0.5]\n{over}"));
        invert_with_fallbacks(&[attempt], &first(), &bench.inversion(1), &mut ()).unwrap()
    };
    let (plain, over) = (run(""), run("over_rms = 4.0"));
    assert_eq!(plain.stages[0].normal_matrices, 1);
    // at four times the rms, for as long as that is above what is asked for
    assert!((2..=6).contains(&over.stages[0].normal_matrices), "{}", over.stages[0].normal_matrices);
    assert!(over.data_rms <= plain.data_rms * 1.2, "{} {}", over.data_rms, plain.data_rms);
}

/// Layers that all bend alike.
fn bent() -> Array2<f64> {
    let curve = |x: usize| (4.0 * (0.35 * x as f64).sin()).round() as isize;
    Array2::from_shape_fn((24, 20), |(z, x)| match z as isize - curve(x) {
        ..6 => 1803.0,
        6..12 => 2251.0,
        12..17 => 1950.0,
        _ => 2717.0,
    })
}

/// Layers are looked for anew in the map that each step starts from: two steps of one stage are two stages of one step each.
#[test]
fn layers_are_followed_as_each_step_finds_them() {
    let bench = Bench::of(bent(), small(), 1);
    let start = bent().mapv(|v| 0.5 * (v + 2200.0));
    let run = |text: &str| {
        let attempt = Attempt::new(Recipe::parse(text, 1e-3).unwrap(), &Settings::default());
        let first = FirstStart { start: Start::Map(start.clone()), name: "prior".into(), confidence: None };
        invert_with_fallbacks(&[attempt], &first, &bench.inversion(1), &mut ()).unwrap()
    };
    let stage = |noise: &str, along: bool| {
        format!(
            "[[stage]]\nname = \"{noise}\"\n[stage.newton]\nlinear = \"squared-slowness\"\nnoise = [{noise}]\n\
             regularisers = [{{ kind = \"tv\", scale = 10, epsilon = 1, along = {along} }}]\n"
        )
    };
    let head = "name = \"bent\"\nabout = \"A test's\"\n";
    let together = run(&format!("{head}{}", stage("0.3, 0.1", true)));
    let apart = run(&format!("{head}{}{}", stage("0.3", true), stage("0.1", true)));
    assert_eq!(together.normal_matrices, apart.normal_matrices);
    assert_eq!(together.model, apart.model);
    let plain = run(&format!("{head}{}", stage("0.3, 0.1", false)));
    println!("{:?} along the layers, {:?} across", together.mae, plain.mae);
    assert!(together.mae < plain.mae, "{:?} {:?}", together.mae, plain.mae);
}
