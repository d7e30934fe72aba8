//! Inversions by recipes on a small survey: the same bits whatever the threads and interruptions; fall-backs and
//! limits; and what they find.

use fwi::family::{Recipe, RecipeStart};
use fwi::invert::{
    Attempt, FirstStart, Inversion, Kind, Observer, Outcome, Settings, Stage, Start, State, StopReason,
    invert_with_fallbacks, resume_with_fallbacks,
};
use fwi::misfit::MisfitSpec;
use fwi::wave::{CpuOptions, Fidelity, Precision, build};
use fwi::{Error, Model, Observed, Position, Propagator, Result, Survey, survey};
use ndarray::Array2;
use std::path::Path;

const RECIPE: &str = r#"
name = "small"
about = "A test's"

[[stage]]
name = "directions"
vmin = "tied"
[stage.newton]
noise = [0.3, 0.05, 0.01]
unknowns = { directions = { share = 1e-3 } }
inner = 1
regularisers = [{ kind = "gaussian-process", mean = "start", sigma = 150.0, length = 2.0, white = 20.0 }]

[[stage]]
name = "edges"
vmin = "tied"
[stage.newton]
noise = [0.05, 0.03, 0.02]
polish = 3
regularisers = [{ kind = "tv", scale = 30, epsilon = 2 }, { kind = "gaussian-process", mean = "stage", sigma = 100.0, length = 2.0, white = 100.0 }]

[[stage]]
name = "areas"
vmin = "tied"
[stage.newton]
linear = "squared-slowness"
noise = [0.02, 0.01]
areas = { step = 8, min_area = 6 }
regularisers = [{ kind = "tv", scale = 10, epsilon = 1 }]

[[stage]]
name = "patches"
vmin = "tied"
round = { spacing = 1, step = 8, min_area = 6, accept = 2e-5 }
[stage.newton]
noise = [0.02, 0.02, 0.02, 0.02]
unknowns = { patches = { step = 8, min_area = 6 } }
regularisers = [{ kind = "tv", scale = 30, epsilon = 1 }]
"#;

fn small() -> Survey {
    let dt = 1e-3;
    Survey {
        nz: 24,
        nx: 20,
        nt: 300,
        dt,
        sponge: 20,
        sources: [1, 10, 18].map(|x| Position { z: 1, x }).to_vec(),
        receivers: (0..20).map(|x| Position { z: 1, x }).collect(),
        wavelet: survey::ricker(20.0, dt),
        ..Survey::openfwi()
    }
}

/// Three layers, cut by a fault.
fn truth() -> Array2<f64> {
    Array2::from_shape_fn((24, 20), |(z, x)| match z + if x > 11 { 3 } else { 0 } {
        0..9 => 1803.0,
        9..16 => 2251.0,
        _ => 2717.0,
    })
}

/// The truth, blurred three times over five cells each way.
fn blurred() -> Array2<f64> {
    let (nz, nx) = (24isize, 20isize);
    (0..3).fold(truth(), |map, _| {
        Array2::from_shape_fn((24, 20), |(z, x)| {
            let around = (-2..=2).flat_map(|i| (-2..=2).map(move |j| (i, j)));
            let at = |(i, j): (isize, isize)| {
                map[[(z as isize + i).clamp(0, nz - 1) as usize, (x as isize + j).clamp(0, nx - 1) as usize]]
            };
            around.map(at).sum::<f64>() / 25.0
        })
    })
}

struct Bench {
    propagator: Box<dyn Propagator>,
    observed: Observed,
    truth: Array2<f64>,
}

impl Bench {
    fn new(threads: usize) -> Self {
        Self::of(truth(), small(), threads)
    }

    fn of(truth: Array2<f64>, survey: Survey, threads: usize) -> Self {
        let options =
            CpuOptions { precision: Precision::F64, fidelity: Some(Fidelity::Fast), threads, ..CpuOptions::default() };
        let propagator = build(survey, &options).unwrap();
        let gather = propagator.forward(&[Model::from_map(truth.clone())]).unwrap().remove(0);
        Self { propagator, observed: Observed::new(gather), truth }
    }

    fn inversion<'b>(&'b self, threads: usize) -> impl Fn(&Settings) -> Result<Inversion<'b>> + 'b {
        move |settings| {
            let inversion = Inversion::new(&*self.propagator, &self.observed, settings.clone())?;
            inversion.threads(threads).truth(&self.truth)
        }
    }
}

fn first() -> FirstStart {
    let confidence = Some(Array2::from_elem((24, 20), 80.0));
    FirstStart { start: Start::Map(blurred()), name: "prior".into(), confidence }
}

fn recipe() -> Attempt {
    Attempt::new(Recipe::parse(RECIPE, 1e-3).unwrap(), &Settings::default())
}

/// L-BFGS for so many evaluations.
fn plain(recipe: &str, start: RecipeStart, evals: u64) -> Attempt {
    let stage = Stage { max_evals: Some(evals), ..Stage::new(recipe, MisfitSpec::L2) };
    let settings = Settings { stages: vec![stage], ..Settings::default() };
    Attempt { recipe: recipe.into(), start, accept_rms: 1e-4, only_above: None, times: 1, settings }
}

/// Stops after every so many checkpoints.
struct Stopper {
    left: usize,
    saved: Vec<u8>,
}

impl Observer for Stopper {
    fn checkpoint(&mut self, state: &State) -> Result<()> {
        self.saved = state.to_bytes()?;
        self.left -= 1;
        if self.left == 0 { Err(Error::Usage("killed".into())) } else { Ok(()) }
    }
}

/// An outcome without what depends on the clock.
fn timeless(o: &Outcome) -> Outcome {
    let mut o = Outcome { seconds: 0.0, curvature_seconds: 0.0, ..o.clone() };
    o.attempts.iter_mut().for_each(|a| a.seconds = 0.0);
    o
}

/// Killed after every checkpoint and resumed; the outcome, and how many runs it took.
fn piecemeal(bench: &Bench, attempts: &[Attempt]) -> (Outcome, usize) {
    let mut stopper = Stopper { left: 1, saved: vec![] };
    let begun = invert_with_fallbacks(attempts, &first(), &bench.inversion(2), &mut stopper);
    assert!(begun.is_err());
    let mut runs = 1;
    loop {
        let state = State::from_bytes(&stopper.saved, Path::new("checkpoint")).unwrap();
        stopper.left = 1;
        match resume_with_fallbacks(attempts, "prior", state, &bench.inversion(2), &mut stopper) {
            Ok(outcome) => return (outcome, runs),
            Err(e) => assert_eq!(e.to_string(), "killed"),
        }
        runs += 1;
    }
}

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
    // a step evaluates its beginning and at most five shares, then what it may for polishing
    let stage = &polished.stages[0];
    assert!(stage.evaluations <= (1 + 5 + 12) * stage.normal_matrices && stage.evaluations > plain.evaluations);
    assert!(
        matches!(polished.stages[1].stop, StopReason::OtherKind { kind: Kind::SharpTexture }),
        "{}",
        polished.stages[1].stop
    );

    // where evaluations end within the polishing, the best of them is kept
    let (cut, step) = (run(12, Some(6)), run(0, Some(2)));
    assert!(cut.evaluations == 6 && cut.data_rms < step.data_rms, "{:.2e} {:.2e}", cut.data_rms, step.data_rms);
}

#[test]
fn a_stalled_recipe_falls_back_and_the_best_is_kept() {
    let bench = Bench::new(2);
    let attempts = [plain("a", RecipeStart::Prior, 5), plain("b", RecipeStart::Gradient, 4), recipe()];
    let run = |attempts: &[Attempt]| invert_with_fallbacks(attempts, &first(), &bench.inversion(2), &mut ()).unwrap();
    let out = run(&attempts);
    let told: Vec<_> = out.attempts.iter().map(|a| (&a.recipe[..], &a.start[..])).collect();
    assert_eq!(told, [("a", "prior"), ("b", "gradient"), ("small", "prior")]);
    let least = out.attempts.iter().filter_map(|a| a.data_rms).fold(f64::INFINITY, f64::min);
    assert!(out.attempts.iter().all(|a| a.kept == (a.data_rms == Some(least))) && out.data_rms == least);
    let counts: Vec<u64> = out.attempts.iter().map(|a| a.evaluations).collect();
    assert_eq!((counts[0], counts[1], counts.iter().sum::<u64>()), (5, 4, out.evaluations));
    // the third is what it would have been alone
    let alone = run(&attempts[2..]);
    assert_eq!(Some(alone.data_rms), out.attempts[2].data_rms);
    let (resumed, runs) = piecemeal(&bench, &attempts);
    assert!(runs > 10 && timeless(&out) == timeless(&resumed), "interruptions change the outcome: {runs}");

    // a start from the best so far goes on where the second ended, and not from the first's map
    let (second, best) = (plain("b", RecipeStart::Prior, 20), plain("c", RecipeStart::Best, 4));
    let attempts = [plain("a", RecipeStart::Prior, 2), second, plain("d", RecipeStart::Prior, 1), best];
    let out = run(&attempts);
    let ended = out.attempts[1].data_rms.unwrap();
    assert!(out.attempts[3].start == "best" && out.attempts[3].data_rms.unwrap() <= ended, "{:?}", out.attempts);
    assert!(out.attempts[3].kept && out.data_rms < 0.99 * ended, "{ended:e}, {:e}", out.data_rms);
    assert_eq!(out.start.vp, blurred());
    let (resumed, _) = piecemeal(&bench, &attempts);
    assert!(timeless(&out) == timeless(&resumed), "interruptions change the outcome");

    // tried again, it goes on from where it came to: as far as in one go, but that L-BFGS forgets; one for maps that are
    // further off is left out
    let again = Attempt { times: 3, ..plain("c", RecipeStart::Best, 6) };
    let near = Attempt { only_above: Some(1e3), ..plain("b", RecipeStart::Prior, 9) };
    let attempts = [plain("a", RecipeStart::Prior, 2), near, again];
    let out = run(&attempts);
    let told: Vec<_> = out.attempts.iter().map(|a| (&a.recipe[..], &a.start[..])).collect();
    assert_eq!(told, [("a", "prior"), ("c", "best"), ("c", "best"), ("c", "best")]);
    assert!(out.attempts.is_sorted_by(|a, b| a.data_rms > b.data_rms), "{:?}", out.attempts);
    let (resumed, _) = piecemeal(&bench, &attempts);
    assert!(timeless(&out) == timeless(&resumed), "interruptions change the outcome");

    // a worse second attempt is not kept, one that is good enough is the last
    let out = run(&[plain("a", RecipeStart::Prior, 20), plain("b", RecipeStart::Gradient, 1)]);
    assert!(out.attempts[0].kept && !out.attempts[1].kept && out.evaluations == 21);
    assert_eq!(Some(out.data_rms), out.attempts[0].data_rms);
    let mut good = plain("a", RecipeStart::Prior, 3);
    good.accept_rms = 1.0;
    assert_eq!(run(&[good, plain("b", RecipeStart::Gradient, 1)]).attempts.len(), 1);
}

#[test]
fn limits_span_all_attempts() {
    let bench = Bench::new(2);
    let mut attempts = [plain("a", RecipeStart::Prior, 5), plain("b", RecipeStart::Gradient, 50)];
    attempts.iter_mut().for_each(|a| a.settings.max_evals = Some(8));
    let out = invert_with_fallbacks(&attempts, &first(), &bench.inversion(2), &mut ()).unwrap();
    assert_eq!((out.evaluations, out.attempts[1].evaluations), (8, 3));
    assert_eq!(out.stop, StopReason::MaxEvals { limit: 8 });
    attempts.iter_mut().for_each(|a| a.settings.max_evals = Some(5));
    let out = invert_with_fallbacks(&attempts, &first(), &bench.inversion(2), &mut ()).unwrap();
    assert_eq!((out.evaluations, out.attempts.len()), (5, 1));

    // a checkpoint of other recipes is refused
    let mut stopper = Stopper { left: 7, saved: vec![] };
    attempts.iter_mut().for_each(|a| a.settings.max_evals = None);
    assert!(invert_with_fallbacks(&attempts, &first(), &bench.inversion(2), &mut stopper).is_err());
    let state = State::from_bytes(&stopper.saved, Path::new("checkpoint")).unwrap();
    let others = [recipe(), attempts[1].clone()];
    let refused = resume_with_fallbacks(&others, "prior", state, &bench.inversion(2), &mut ()).unwrap_err();
    assert!(refused.to_string().contains("belongs to "), "{refused}");
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
