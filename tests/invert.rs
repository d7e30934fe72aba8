//! The inversion on tiny synthetic gathers of the reference propagator.

use fwi::family::Recipe;
use fwi::invert::{
    Inversion, Observer, Outcome, Progress, QuasiNewton, Settings, Stage, Stall, Start, State, StopReason, Unknowns,
    Vmin,
};
use fwi::misfit::MisfitSpec;
use fwi::reg::{Mean, MeanMap, RegulariserSpec};
use fwi::wave::{Cpu, CpuOptions, Evaluation, Reference, WavefieldVisitor};
use fwi::{Error, Gather, Misfit, Model, Observed, Position, Propagator, Result, Survey, survey};
use ndarray::{Array2, Array3};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const N: usize = 12;

fn tiny() -> Survey {
    let dt = 1.2e-3;
    Survey {
        nz: N,
        nx: N,
        dx: 10.0,
        dt,
        nt: 160,
        sponge: 8,
        sources: [1, 6, 10].map(|x| Position { z: 1, x }).to_vec(),
        receivers: (0..N).map(|x| Position { z: 1, x }).collect(),
        wavelet: survey::ricker(15.0, dt),
    }
}

/// Layers with a fast block; a stripe sits exactly at the lower bound.
fn truth() -> Array2<f64> {
    Array2::from_shape_fn((N, N), |(z, x)| match (z, x) {
        (4..=6, 4..9) => 2900.0,
        (8, _) => 1500.0,
        (z, _) => 1800.0 + 60.0 * z as f64,
    })
}

fn observe(p: &Reference) -> Observed {
    let gather = p.forward(&[Model::from_map(truth())]).unwrap().remove(0);
    Observed::new(gather)
}

/// The background of the truth: near enough for the full band.
fn near() -> Start {
    Start::Map(Array2::from_shape_fn((N, N), |(z, _)| 1780.0 + 55.0 * z as f64))
}

fn l2() -> Stage {
    Stage::new("full band", MisfitSpec::L2)
}

fn settings(stages: Vec<Stage>, max_evals: u64) -> Settings {
    Settings { stages, max_evals: Some(max_evals), ..Settings::default() }
}

fn schedule() -> Vec<Stage> {
    let low = Stage { max_evals: Some(9), ..Stage::new("low", MisfitSpec::LowPass(12.0)) };
    let smooth = Stage { max_evals: Some(6), smoothing: Some(1.0), vmin: Vmin::Tied, ..low.clone() };
    vec![smooth, low, l2()]
}

/// Keeps every checkpoint as bytes and a line per call; stops by error after so many checkpoints.
#[derive(Default)]
struct Recorder {
    checkpoints: Vec<Vec<u8>>,
    stop_after: Option<usize>,
    evaluations: Vec<(u64, f64, f64)>,
    iterations: Vec<(usize, u64, f64, Option<f64>)>,
}

impl Observer for Recorder {
    fn evaluation(&mut self, at: &Progress) {
        self.evaluations.push((at.evaluation, at.misfit, at.step));
    }

    fn iteration(&mut self, at: &Progress) {
        self.iterations.push((at.stage, at.iteration, at.data_rms, at.mae));
    }

    fn checkpoint(&mut self, state: &State) -> Result<()> {
        self.checkpoints.push(state.to_bytes()?);
        match self.stop_after {
            Some(n) if self.checkpoints.len() >= n => Err(Error::Usage("killed".into())),
            _ => Ok(()),
        }
    }
}

fn bits(o: &Outcome) -> Vec<u64> {
    let numbers = [o.data_rms, o.misfit, o.evaluations as f64, o.iterations as f64];
    o.model.to_vec().iter().chain(&numbers).map(|x| x.to_bits()).collect()
}

#[test]
fn converges_and_respects_the_bounds() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    let truth = truth();
    let inversion = Inversion::new(&p, &observed, settings(vec![l2()], 150)).unwrap().truth(&truth).unwrap();
    let mut seen = Recorder::default();
    let out = inversion.run(&near(), &mut seen).unwrap();
    let first = seen.evaluations[0];
    println!("{} evaluations, rms {:.2e}, mae {:.1}, {}", out.evaluations, out.data_rms, out.mae.unwrap(), out.stop);
    assert!(out.misfit < 1e-4 * first.1, "misfit {} from {}", out.misfit, first.1);
    let begin = near().model(p.survey(), &observed, (1500.0, 4500.0)).unwrap();
    let start_mae = (&begin.vp - &truth).mapv(f64::abs).mean().unwrap();
    assert!(out.mae.unwrap() < 0.5 * start_mae, "mae {} from {start_mae}", out.mae.unwrap());
    assert!(out.model.vp.iter().chain([&out.model.vmin]).all(|v| (1500.0..=4500.0).contains(v)));
    let slowest = out.model.vp.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(slowest < 1510.0, "the stripe on the bound is found: {slowest}");
    assert!((out.model.vp[[1, 6]] - truth[[1, 6]]).abs() < 1e-9, "the source cell is held");
    // one evaluation a trial point: counted, numbered, and the iterates never rise
    assert_eq!(seen.evaluations.len() as u64, out.evaluations);
    assert!(seen.evaluations.iter().enumerate().all(|(i, e)| e.0 == i as u64 + 1));
    assert!(seen.iterations.windows(2).all(|w| w[1].2 <= w[0].2 && w[1].1 == w[0].1 + 1));
    assert!((out.evaluations as f64) < 1.4 * out.iterations as f64 + 5.0, "{} for {}", out.evaluations, out.iterations);
    assert!(seen.evaluations[1].2 <= 30.0 + 1e-9, "first step {}", seen.evaluations[1].2);
}

#[test]
fn stages_after_progress_are_left_out_where_there_was_none() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    let (idle, next) =
        (Stage { max_evals: Some(1), ..l2() }, Stage { after_progress: true, max_evals: Some(6), ..l2() });
    // the first stage gives the source's cell its velocity
    let stops = |first: Stage| {
        let stages = vec![first.clone(), first, next.clone(), next.clone()];
        let out = Inversion::new(&p, &observed, settings(stages, 40)).unwrap().run(&near(), &mut ()).unwrap();
        out.stages.iter().map(|s| (s.moved, s.stop.to_string())).collect::<Vec<_>>()
    };
    // one evaluation leaves the map as it was, and so does a stage that is left out
    let nothing_new = (false, "left out: the stage before left the map as it was".to_string());
    assert_eq!(stops(idle)[2..], [nothing_new.clone(), nothing_new]);
    let spent = (true, "all 6 evaluations are spent".to_string());
    assert_eq!(stops(Stage { max_evals: Some(6), ..l2() })[1..], [spent.clone(), spent.clone(), spent]);
}

#[test]
fn stages_run_in_order_and_are_summed_up() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    let stall = Stage { stall: Some(Stall { window: 2, decrease: 0.9999999 }), ..l2() };
    let mut stages = schedule();
    stages.insert(2, stall);
    let out = Inversion::new(&p, &observed, settings(stages, 40)).unwrap().run(&near(), &mut ()).unwrap();
    let stops: Vec<String> = out.stages.iter().map(|s| s.stop.to_string()).collect();
    assert_eq!(stops[0], "all 6 evaluations are spent");
    assert_eq!(stops[1], "all 9 evaluations are spent");
    assert!(stops[2].starts_with("the misfit fell by only") && stops[2].ends_with("over 2 iterations"), "{stops:?}");
    assert_eq!(out.stop, StopReason::MaxEvals { limit: 40 });
    assert_eq!(out.stages.iter().map(|s| s.evaluations).sum::<u64>(), 40);
    assert_eq!(out.stages.iter().map(|s| s.iterations).sum::<u64>(), out.iterations);
    assert!(out.stages.iter().all(|s| s.last_misfit < s.first_misfit));
    assert_eq!(out.evaluations, 40);
}

#[test]
fn resumed_after_every_iteration_gives_the_same_bits() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    let mut stages = schedule();
    stages[2].max_evals = Some(14);
    // goes on with what the stage before learnt, on another propagator
    stages.push(Stage { refined: true, max_evals: Some(8), ..stages[2].clone() });
    let fine = Cpu::<f32>::new(tiny(), &CpuOptions::default()).unwrap();
    let settings = Settings { memory: 4, ..settings(stages, 1000) };
    let inversion = Inversion::new(&p, &observed, settings.clone()).unwrap().refine(&fine).unwrap();
    let straight = resumed_bit_by_bit(&inversion, 12);
    let middle = &straight.checkpoints[straight.checkpoints.len() / 2];
    let state = State::from_bytes(middle, Path::new("checkpoint")).unwrap();
    let unrefined = Inversion::new(&p, &observed, settings).unwrap().resume(state, &mut ()).unwrap_err();
    assert!(unrefined.to_string().contains("belongs to another"), "{unrefined}");
}

/// Regularised stages over every kind of unknowns.
fn regularised() -> Vec<Stage> {
    let tv = RegulariserSpec::Tv { scale: 40.0, epsilon: 3.0, down: 1.0, across: 1.0, along: false };
    let process = RegulariserSpec::GaussianProcess {
        mean: Mean::Map(MeanMap::Stage),
        confidence: false,
        sigma: 150.0,
        length: 2.0,
        white: 20.0,
        mean_sigma: 0.0,
        slope_sigma: 0.0,
    };
    let stage = |unknowns, regularisers, vmin| {
        let lbfgs = Some(QuasiNewton { noise: 0.01, unknowns, regularisers });
        Stage { lbfgs, vmin, max_evals: Some(7), ..l2() }
    };
    vec![
        stage(Unknowns::Rows, vec![tv.clone()], Vmin::Free),
        stage(Unknowns::Directions { share: 1e-3 }, vec![process.clone()], Vmin::Free),
        stage(Unknowns::Cells, vec![tv.clone(), process], Vmin::Tied),
        stage(Unknowns::Patches { step: 60.0, min_area: 4 }, vec![tv], Vmin::Free),
    ]
}

#[test]
fn regularised_stages_lower_their_objective_and_resume_with_the_same_bits() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    let settings = Settings { memory: 4, ..settings(regularised(), 1000) };
    let inversion = Inversion::new(&p, &observed, settings.clone()).unwrap();
    let straight = resumed_bit_by_bit(&inversion, 12);
    let out = inversion.run(&near(), &mut ()).unwrap();
    assert!(out.stages.iter().all(|s| s.last_misfit < s.first_misfit), "{:?}", out.stages);
    // rows stay rows
    let first = State::from_bytes(&straight.checkpoints[3], Path::new("checkpoint")).unwrap();
    let map = &first.best().vp;
    assert!(map.rows().into_iter().all(|row| row.iter().all(|v| (v - row[0]).abs() < 1e-9)));
    let mut other = settings;
    other.stages[0].lbfgs.as_mut().unwrap().noise = 0.02;
    let refused = Inversion::new(&p, &observed, other).unwrap().resume(first, &mut ()).unwrap_err();
    assert!(refused.to_string().contains("belongs to another"), "{refused}");
}

/// Runs straight, then stopped and resumed at every checkpoint: the same bits. What the straight run told.
fn resumed_bit_by_bit(inversion: &Inversion, iterations: u64) -> Recorder {
    let mut straight = Recorder::default();
    let whole = inversion.run(&near(), &mut straight).unwrap();
    assert!(whole.iterations >= iterations, "{}", whole.iterations);
    let mut killed = Recorder { stop_after: Some(1), ..Recorder::default() };
    assert!(inversion.run(&near(), &mut killed).is_err());
    let mut saved = killed.checkpoints.pop().unwrap();
    let mut runs = 1;
    let resumed = loop {
        let state = State::from_bytes(&saved, Path::new("checkpoint")).unwrap();
        let mut one = Recorder { stop_after: Some(1), ..Recorder::default() };
        match inversion.resume(state, &mut one) {
            Ok(out) => break out,
            Err(Error::Usage(_)) => saved = one.checkpoints.pop().unwrap(),
            Err(e) => panic!("{e}"),
        }
        runs += 1;
    };
    assert_eq!(runs, straight.checkpoints.len());
    assert_eq!(bits(&whole), bits(&resumed));
    assert_eq!(whole.stages, resumed.stages);
    // and from the middle, with the rest in one go
    let middle = &straight.checkpoints[straight.checkpoints.len() / 2];
    let out = inversion.resume(State::from_bytes(middle, Path::new("checkpoint")).unwrap(), &mut ()).unwrap();
    assert_eq!(bits(&whole), bits(&out));
    straight
}

#[test]
fn a_finished_run_goes_on_under_a_higher_limit() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    let run = |evals| Inversion::new(&p, &observed, settings(vec![l2()], evals)).unwrap();
    let mut short = Recorder::default();
    let stopped = run(6).run(&near(), &mut short).unwrap();
    assert_eq!(stopped.stop, StopReason::MaxEvals { limit: 6 });
    let last = State::from_bytes(short.checkpoints.last().unwrap(), Path::new("c")).unwrap();
    let more = run(15).resume(last, &mut ()).unwrap();
    assert_eq!(bits(&more), bits(&run(15).run(&near(), &mut ()).unwrap()));
}

#[test]
fn damaged_and_foreign_checkpoints_are_refused_in_words() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    let inversion = Inversion::new(&p, &observed, settings(vec![l2()], 3)).unwrap();
    let mut seen = Recorder::default();
    inversion.run(&near(), &mut seen).unwrap();
    let good = seen.checkpoints.pop().unwrap();
    let refused = |bytes: &[u8]| State::from_bytes(bytes, Path::new("run.ckpt")).unwrap_err().to_string();
    assert!(refused(b"").contains("run.ckpt: not a checkpoint"));
    assert!(refused(&good[..good.len() - 1]).contains("bytes where"));
    for at in [30, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        assert!(refused(&bad).contains("checksum is wrong"), "byte {at}");
    }
    // a rightly sealed body that is no state
    let body = [0xff; 64];
    let crc = crc32fast::hash(&body).to_le_bytes();
    let sealed = [&good[..12], &crc, &64u64.to_le_bytes(), &body].concat();
    assert!(refused(&sealed).contains("cannot be decoded"));

    let state = || State::from_bytes(&good, Path::new("c")).unwrap();
    let mut other = observed.clone();
    std::sync::Arc::make_mut(&mut other.gather).data[[0, 50, 3]] += 1e-9;
    let foreign = Inversion::new(&p, &other, settings(vec![l2()], 3)).unwrap();
    assert!(foreign.resume(state(), &mut ()).unwrap_err().to_string().contains("another gather"));
    let changed = Settings { memory: 7, ..settings(vec![l2()], 3) };
    let foreign = Inversion::new(&p, &observed, changed).unwrap();
    assert!(foreign.resume(state(), &mut ()).unwrap_err().to_string().contains("other settings"));
}

#[test]
fn stops_on_request_at_the_target_and_at_the_time_limit() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    struct Cancel<'a>(&'a AtomicBool);
    impl Observer for Cancel<'_> {
        fn evaluation(&mut self, at: &Progress) {
            self.0.store(at.evaluation == 4, Ordering::Relaxed);
        }
    }
    let flag = AtomicBool::new(false);
    let inversion = Inversion::new(&p, &observed, settings(vec![l2()], 50)).unwrap().cancel(&flag);
    let out = inversion.run(&near(), &mut Cancel(&flag)).unwrap();
    assert_eq!((out.stop, out.evaluations), (StopReason::Cancelled, 4));
    assert!(out.misfit < out.stages[0].first_misfit);

    let reached = Settings { target_rms: Some(2e-2), ..settings(vec![l2()], 100) };
    let out = Inversion::new(&p, &observed, reached).unwrap().run(&near(), &mut ()).unwrap();
    assert!(matches!(out.stop, StopReason::TargetReached { .. }) && out.data_rms <= 2e-2, "{}", out.stop);
    assert!(out.evaluations < 100);

    let hurried = Settings { time_limit: Some(Duration::ZERO), ..settings(vec![l2()], 100) };
    let out = Inversion::new(&p, &observed, hurried).unwrap().run(&near(), &mut ()).unwrap();
    assert_eq!((out.stop, out.evaluations), (StopReason::TimeLimit { seconds: 0.0 }, 1));

    let exact = Inversion::new(&p, &observed, settings(vec![l2()], 100)).unwrap();
    let out = exact.run(&Start::Map(truth()), &mut ()).unwrap();
    assert!(out.data_rms < 1e-3, "{} {}", out.stop, out.data_rms);
}

/// The reference with every so many evaluations broken.
struct Broken<'a> {
    inner: &'a Reference,
    count: AtomicU64,
    breaks: fn(u64) -> bool,
    how: fn(&mut Evaluation) -> Result<()>,
}

impl Propagator for Broken<'_> {
    fn survey(&self) -> &Survey {
        self.inner.survey()
    }
    fn arithmetic(&self) -> String {
        self.inner.arithmetic()
    }

    fn describe(&self) -> String {
        "broken".into()
    }
    fn forward(&self, m: &[Model]) -> Result<Vec<Gather>> {
        self.inner.forward(m)
    }
    fn born(&self, m: &[Model], d: &[Model]) -> Result<Vec<Gather>> {
        self.inner.born(m, d)
    }
    fn misfit_and_gradient(&self, m: &[Model], o: &[Observed], j: &dyn Misfit) -> Result<Vec<Evaluation>> {
        let mut out = self.inner.misfit_and_gradient(m, o, j)?;
        if (self.breaks)(self.count.fetch_add(1, Ordering::Relaxed)) {
            out.iter_mut().try_for_each(self.how)?;
        }
        Ok(out)
    }
    fn wavefields(&self, m: &Model, s: &[Position], w: &[f64], e: usize, v: &WavefieldVisitor) -> Result<()> {
        self.inner.wavefields(m, s, w, e, v)
    }
    fn gradient_bytes(&self, _: bool) -> u64 {
        0
    }
}

#[test]
fn evaluations_that_are_no_numbers_never_win() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    let ways: [fn(&mut Evaluation) -> Result<()>; 4] = [
        |e| {
            e.value = f64::NAN;
            Ok(())
        },
        |e| {
            e.gradient.vp[[3, 3]] = f64::INFINITY;
            e.value = 0.0;
            Ok(())
        },
        |e| {
            e.value = f64::NEG_INFINITY;
            Ok(())
        },
        |_| Err(Error::Numerical("unstable".into())),
    ];
    for how in ways {
        let broken = Broken { inner: &p, count: AtomicU64::new(0), breaks: |n| n % 4 == 3, how };
        let out = Inversion::new(&broken, &observed, settings(vec![l2()], 30)).unwrap().run(&near(), &mut ()).unwrap();
        assert!(out.misfit.is_finite() && out.misfit < 0.1 * out.stages[0].first_misfit, "{}", out.misfit);
        assert!((out.data_rms - observed.rms(&p.forward(&[out.model]).unwrap()[0])).abs() < 1e-12);
        let broken = Broken { inner: &p, count: AtomicU64::new(0), breaks: |n| n > 0, how };
        let out = Inversion::new(&broken, &observed, settings(vec![l2()], 60)).unwrap().run(&near(), &mut ()).unwrap();
        assert!(out.stop.to_string().starts_with("the line search failed"), "{}", out.stop);
        assert!(out.misfit == out.stages[0].first_misfit);
        let broken = Broken { inner: &p, count: AtomicU64::new(0), breaks: |_| true, how };
        let none = Inversion::new(&broken, &observed, settings(vec![l2()], 60)).unwrap().run(&near(), &mut ());
        assert!(none.unwrap_err().to_string().contains("first model of stage \"full band\""));
    }
    let fatal = Broken {
        inner: &p,
        count: AtomicU64::new(0),
        breaks: |n| n == 5,
        how: |_| Err(Error::Memory("no memory".into())),
    };
    let out = Inversion::new(&fatal, &observed, settings(vec![l2()], 60)).unwrap().run(&near(), &mut ());
    assert!(matches!(out, Err(Error::Memory(_))));
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let p = Reference::new(tiny()).unwrap();
    let observed = observe(&p);
    let refused = |s: Settings| Inversion::new(&p, &observed, s).err().unwrap().to_string();
    assert!(refused(Settings { bounds: (4500.0, 1500.0), ..Settings::default() }).contains("4500..1500"));
    assert!(refused(Settings { stages: vec![], ..Settings::default() }).contains("at least one stage"));
    assert!(refused(Settings { first_step: 0.0, ..Settings::default() }).contains("first step"));
    let small = Observed::new(Gather::new(Array3::ones((3, 160, 5))));
    let message = Inversion::new(&p, &small, Settings::default()).err().unwrap().to_string();
    assert!(message.contains("3 x 160 x 5") && message.contains("3 x 160 x 12"), "{message}");
    let dead = Observed::new(Gather::new(Array3::zeros((3, 160, 12))));
    assert!(Inversion::new(&p, &dead, Settings::default()).err().unwrap().to_string().contains("nothing to fit"));
    let inversion = Inversion::new(&p, &observed, Settings::default()).unwrap();
    assert!(inversion.truth(&Array2::zeros((2, 2))).err().unwrap().to_string().contains("2 x 2"));
    let text = serde_json::to_string(&Settings::default()).unwrap();
    assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), Settings::default());
}

#[test]
fn the_recipes_are_recipes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut second_place = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let recipe = Recipe::parse(&std::fs::read_to_string(&path).unwrap(), 1e-3);
        let recipe = recipe.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(path.file_stem().unwrap().to_str().unwrap(), recipe.name);
        if recipe.name.starts_with("cottaar-") {
            second_place += 1;
            assert!(recipe.stages.iter().all(|s| s.refined && (s.lbfgs.is_some() || s.newton.is_some())));
        }
    }
    assert_eq!(second_place, 5);
}
