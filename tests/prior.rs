//! Priors: layouts, manifests, both runtimes, augmentation.
//!
//! The tests of ONNX Runtime need its library, 1.24 or newer: `FWI_ONNXRUNTIME` names it; where it does not they count as
//! ignored. The networks of `tests/data/onnx` are made by the `make.py` there.

mod prior_common;

use fwi::prior::layout::trial_map;
use fwi::prior::registry::default_prior;
use fwi::prior::{
    Augment, Combine, Combined, Flipped, Isolated, Network, Prediction, Replayed, Runtime, RuntimeChoice, Source,
    WorkerLimits, predict_one,
};
use fwi::wave::{CpuOptions, build};
use fwi::{Error, Family, Gather, Model, Observed, Prior, Result, Survey};
use libtest_mimic::{Arguments, Trial};
use ndarray::{Array2, Array3, s};
use prior_common::{expected, fixture, folder_of, full_manifest, furthest, open, problem, random_gather, worker};
use std::fs;
use std::path::Path;
use std::sync::Mutex;

fn layouts_are_recognised() {
    let gather = random_gather(1);
    // in f16 neighbours at 2048..4096 are 2 apart
    for (name, sample, tolerance) in [
        ("plain", 999, 1e-3),
        ("free", 999, 1e-3),
        ("five_axes", 999, 1e-3),
        ("half_rate", 998, 1e-3),
        ("unit", 999, 2e-3),
        ("symmetric", 999, 2e-3),
        ("external", 999, 1e-3),
        ("f16", 999, 3.0),
    ] {
        let got = predict_one(&open(&fixture(name)).unwrap(), &gather).unwrap();
        assert!(got.error.is_none() && got.families.is_none());
        let off = furthest(&got.velocity, &expected(&gather, sample));
        assert!(off <= tolerance, "{name}: {off}");
        let other = furthest(&got.velocity, &expected(&gather, 997));
        assert!(other > 10.0 * tolerance.min(1.0), "{name}: the samples do not show ({other})");
    }
}

fn other_layouts_are_refused_with_the_cure() {
    for (name, words) in [
        ("kilometres", "(1000.000 y + 0 m/s comes nearest); write a manifest.toml"),
        ("deviations", "(850.000 y + 2800 m/s comes nearest); write a manifest.toml"),
        ("fractions", "(4500.000 y + 0 m/s comes nearest); write a manifest.toml"),
        ("constant", "nor as 0..1 or -1..1; write a manifest.toml"),
        ("odd_rate", "(1, 5, 300, 70); expected (1, 5, T, 70)"),
        ("batch_of_8", "its batch is fixed at 8"),
        ("six_shots", "(1, 6, 1000, 70)"),
        ("two_inputs", "expected the gather alone"),
        ("no_map", "expected a map of shape"),
        ("nan", "predicts NaN at row 0, column 0"),
        ("loop", "does not know: Loop; compute it with ONNX Runtime"),
        ("magic", "does not know: Magic"),
        ("conv_transpose", "ConvTranspose with output_shape, which tract computes wrongly"),
        ("sparse", "sparse weights"),
        ("claims", "impossible shape"),
    ] {
        let message = problem(&fixture(name));
        assert!(message.contains(words), "{message}");
    }
}

fn masked_traces_go_in_as_zeros() {
    let mut data = random_gather(2).gather.data.clone();
    data[[1, 3, 7]] = f64::NAN;
    data.slice_mut(s![1, .., 8]).fill(0.0);
    let mut masked = Observed::new(Gather::new(data));
    masked.mask.live[[1, 9]] = false;
    let got = predict_one(&open(&fixture("plain")).unwrap(), &masked).unwrap().velocity;
    let layers = trial_map().mapv(|v| v as f32);
    for x in 7..=9 {
        assert_eq!(got.column(x), layers.column(x));
    }
    assert!(got[[0, 10]] != layers[[0, 10]]);
    let short = Observed::new(Gather::new(Array3::ones((5, 500, 70))));
    let error = predict_one(&open(&fixture("plain")).unwrap(), &short).unwrap_err();
    assert!(matches!(&error, Error::Usage(m) if m.contains("(5, 1000, 70)")), "{error}");
}

fn the_manifest_tells_how() {
    let dir = folder_of("full", &full_manifest("full"));
    for path in [dir.path().to_path_buf(), dir.path().join("manifest.toml"), dir.path().join("full.onnx")] {
        let network = open(&path).unwrap();
        assert_eq!(network.info().augment(), Augment::Flip);
        assert!(network.describe().starts_with("full 7 (sha256 "), "{}", network.describe());
        let gather = random_gather(3);
        let got = predict_one(&network, &gather).unwrap();
        // every second sample, at half the pressure
        let row = gather.gather.data.slice(s![1, 998, ..]).mapv(|x| 5.0 * x as f32);
        let wanted = Array2::from_shape_fn((70, 70), |(z, x)| trial_map()[[z, x]] as f32 + row[x]);
        assert!(furthest(&got.velocity, &wanted) < 2e-3);
        let error = wanted.mapv(|v| 100.0 * ((v - 3000.0) / 1500.0).abs());
        assert!(furthest(&got.error.unwrap(), &error) < 1e-3);
        let families = got.families.unwrap();
        assert_eq!((families[0].0, families[1].0), (Family::StyleB, Family::FlatVelA));
        assert!((families[0].1 - 0.25).abs() < 1e-6 && (families[1].1 - 0.75).abs() < 1e-6);
    }
}

/// Of a file, wherever it is told about.
fn a_manifest_is_found() {
    let full = full_manifest("full");
    let found = |dir: &Path, name: &str| Source::of(&dir.join(name)).unwrap();
    // one that leaves out the file's name, of a file called otherwise than by default
    let dir = folder_of("full", &full.replace("model = \"full.onnx\"\n", ""));
    assert_eq!(found(dir.path(), "full.onnx").manifest, Some(dir.path().join("manifest.toml")));
    fs::copy(fixture("plain"), dir.path().join("model.onnx")).unwrap();
    assert_eq!(found(dir.path(), "full.onnx").manifest, None);
    // one called like the file
    fs::rename(dir.path().join("manifest.toml"), dir.path().join("full.toml")).unwrap();
    assert_eq!(found(dir.path(), "full.onnx").manifest, Some(dir.path().join("full.toml")));
    fs::remove_file(dir.path().join("model.onnx")).unwrap();
    assert_eq!(found(dir.path(), "full.toml").model, dir.path().join("full.onnx"));
    // one of another program
    let dir = folder_of("plain", "[tool]\nname = \"else\"\n");
    assert_eq!(found(dir.path(), "plain.onnx").manifest, None);
    open(&dir.path().join("plain.onnx")).unwrap();
}

fn wrong_manifests_are_refused() {
    let good = full_manifest("full");
    let fails = |text: String, words: &str| {
        let dir = folder_of("full", &text);
        let error = open(dir.path()).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(words) && !message.contains('\n'), "{words}: {message}");
    };
    let hash = |text: &str| text.split("sha256 = \"").nth(1).unwrap()[..64].to_string();
    fails(good.replace(&hash(&good), &"0".repeat(64)), "its manifest says 0000");
    fails(good.replace("\"error\"", "\"mistake\""), "no output \"mistake\"");
    fails(good.replace("name = \"gather\"", "name = \"seismogram\""), "no input \"seismogram\"");
    fails(good.replace("every = 2", "every = 7"), "must divide 1000");
    fails(good.replace("every = 2", "evry = 2"), "unknown field `evry`");
    fails(good.replace("every = 2", "every = 1"), "(1, 5, 500, 70); expected (1, 5, 1000, 70)");
    fails(good.replace("[\"Style_B\", \"FlatVel_A\"]", "[\"Style_B\"]"), "expected 1 finite logits");
    fails(good.replace("scale = 1500.0", "scale = -1500.0").replace("3000.0", "100.0"), "check velocity.scale");
    fails("\u{0}\u{1}".into(), "manifest.toml");
    let dir = folder_of("full", &good);
    fs::write(dir.path().join("manifest.toml"), [0xff, 0xfe]).unwrap();
    assert!(open(dir.path()).map(|_| ()).unwrap_err().to_string().contains("no UTF-8"));
    fs::write(dir.path().join("manifest.toml"), good.replace("full.onnx", "absent.onnx")).unwrap();
    assert!(matches!(open(dir.path()).map(|_| ()).unwrap_err(), Error::Io { .. }));
}

/// A prior that sees the first arrivals move: the map is the mean of shots, so that mirroring shows.
struct Watcher(Mutex<Vec<Observed>>);

impl Prior for Watcher {
    fn describe(&self) -> String {
        "watcher".into()
    }
    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
        self.0.lock().unwrap().extend(gathers.iter().cloned());
        let one = |g: &Observed| {
            let velocity = Array2::from_shape_fn((70, 70), |(z, x)| {
                (2000.0 + 10.0 * z as f64 + 40.0 * g.gather.data[[0, 300, x]]) as f32
            });
            Prediction { error: Some(velocity.mapv(|v| v / 100.0)), velocity, families: None }
        };
        Ok(gathers.iter().map(one).collect())
    }
    fn bytes(&self) -> u64 {
        0
    }
}

fn model_of(map: impl Fn(usize, usize) -> f64) -> Model {
    Model::from_map(Array2::from_shape_fn((70, 70), |(z, x)| map(z, x)))
}

fn observe(model: Model) -> Observed {
    let cpu = build(Survey::openfwi(), &CpuOptions::default()).unwrap();
    Observed::new(cpu.forward(&[model]).unwrap().remove(0))
}

/// The mirrored gather is that of the mirrored map, shot by shot; the middle one that of the mirrored prediction.
fn the_flip_is_the_gather_of_the_mirrored_map() {
    let survey = Survey::openfwi();
    let dipping = |z: usize, x: usize| 1600.0 + 20.0 * z as f64 + 6.0 * x as f64;
    let mut observed = observe(model_of(dipping));
    observed.mask.nt = 999;
    observed.mask.live[[1, 4]] = false;
    let watcher = std::sync::Arc::new(Watcher(Mutex::default()));
    let flipped = Flipped::new(Box::new(watcher.clone()), &survey, 2).unwrap();
    let got = predict_one(&flipped, &observed).unwrap();
    let seen = watcher.0.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    let (first, second) = (predict_one(&watcher, &seen[0]).unwrap(), predict_one(&watcher, &seen[1]).unwrap());
    let back = second.velocity.slice(s![.., ..;-1]).to_owned();
    let mean = (&first.velocity + &back) / 2.0;
    assert_eq!(got.velocity, mean);
    assert_eq!(got.error.unwrap()[[3, 3]], (first.error.unwrap()[[3, 3]] + back[[3, 3]] / 100.0) / 2.0);
    let truth = observe(model_of(|z, x| dipping(z, 69 - x)));
    let predicted = first.velocity.slice(s![.., ..;-1]).mapv(f64::from);
    let middle = observe(Model::from_map(predicted));
    for shot in 0..5 {
        let wanted = if shot == 2 { &middle } else { &truth };
        let rms = |a: &Observed, b: &Observed| {
            let off = &a.gather.data.slice(s![shot, ..999, ..]) - &b.gather.data.slice(s![shot, ..999, ..]);
            off.mapv(|x| x * x).mean().unwrap().sqrt()
        };
        // rounding, against what a shot not mirrored would differ by
        assert!(rms(&seen[1], wanted) < 2e-5, "shot {shot}: {}", rms(&seen[1], wanted));
        assert!(rms(&seen[0], wanted) > 1e-2, "shot {shot}");
    }
    assert!(seen[1].gather.data.slice(s![2, 999, ..]).iter().all(|&x| x == 0.0));
    let dead: Vec<(usize, usize)> = seen[1].mask.live.indexed_iter().filter(|(_, l)| !**l).map(|(at, _)| at).collect();
    assert_eq!(dead, [(3, 65)]);
}

/// A map that cannot be modelled leaves the network's own prediction alone.
fn what_cannot_be_modelled_is_not_flipped() {
    let dir = folder_of("full", &full_manifest("full").replace("offset = 3000.0", "offset = 9000.0"));
    let (own, inner) = (open(dir.path()).unwrap(), open(dir.path()).unwrap());
    let gather = random_gather(10);
    let wanted = predict_one(&own, &gather).unwrap();
    let flipped = Flipped::new(Box::new(inner), &Survey::openfwi(), 1).unwrap();
    assert_eq!(predict_one(&flipped, &gather).unwrap(), wanted);
    let replayed = Replayed::new(Box::new(open(dir.path()).unwrap()), &Survey::openfwi(), 1).unwrap();
    assert_eq!(predict_one(&replayed, &gather).unwrap(), wanted);
    let uneven = Survey { receivers: vec![fwi::Position { z: 1, x: 3 }], ..Survey::openfwi() };
    assert!(Flipped::new(Box::new(open(&fixture("plain")).unwrap()), &uneven, 1).is_err());
}

/// Tells one velocity, that of the first shot's source, from the first sample there: four percent too much.
struct Overrated;

impl Prior for Overrated {
    fn describe(&self) -> String {
        "overrated".into()
    }

    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
        let survey = Survey::openfwi();
        let first = survey.wavelet.iter().position(|&w| w != 0.0).unwrap();
        let one = |g: &Observed| {
            let sample = g.gather.data.slice(s![0, first, ..]).iter().fold(0.0, |a: f64, x| a.max(x.abs()));
            let v = 1.04 * (sample / survey.wavelet[first].abs()).sqrt() / survey.dt;
            let map = |v: f64| Array2::from_elem((70, 70), v as f32);
            Prediction { velocity: map(v), error: Some(map(v / 100.0)), families: Some(vec![(Family::StyleA, 1.0)]) }
        };
        Ok(gathers.iter().map(one).collect())
    }

    fn bytes(&self) -> u64 {
        0
    }
}

/// A prior that rates too high is shown less and less: 4, 2.9, 2.2 and 1.6% too much, the last counting most.
fn what_its_maps_miss_brings_a_prior_nearer() {
    let observed = observe(model_of(|_, _| 2000.0));
    let replayed = Replayed::new(Box::new(Overrated), &Survey::openfwi(), 2).unwrap();
    let got = predict_one(&replayed, &observed).unwrap();
    let (v, error) = (f64::from(got.velocity[[30, 30]]), f64::from(got.error.unwrap()[[3, 3]]));
    println!("{v} m/s");
    assert!((v / 2000.0 - 1.018).abs() < 2e-3, "{v}");
    // what the gather itself told
    assert!((error - 20.8).abs() < 1e-3 && got.families == Some(vec![(Family::StyleA, 1.0)]), "{error}");
}

/// Batches, threads and order change no bit.
fn predictions_do_not_depend_on_company() {
    let gathers: Vec<Observed> = (20..24).map(random_gather).collect();
    let make = |threads| {
        let flip = |name| {
            let inner = Box::new(open(&fixture(name)).unwrap());
            Box::new(Flipped::new(inner, &Survey::openfwi(), threads).unwrap()) as Box<dyn Prior>
        };
        let replay = |name| {
            let inner = Box::new(open(&fixture(name)).unwrap());
            Box::new(Replayed::new(inner, &Survey::openfwi(), threads).unwrap()) as Box<dyn Prior>
        };
        Combined::new(vec![flip("plain"), replay("unit"), flip("half_rate")], Combine::Median).unwrap()
    };
    let (one, two) = (make(1), make(2));
    let together = one.predict(&gathers).unwrap();
    for (g, wanted) in gathers.iter().zip(&together).rev() {
        assert_eq!(predict_one(&two, g).unwrap(), *wanted);
    }
    let at_once: Vec<Prediction> = std::thread::scope(|scope| {
        let threads: Vec<_> = gathers.iter().map(|g| scope.spawn(|| predict_one(&two, g).unwrap())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(at_once, together);
}

/// ONNX Runtime, after an attempt at a library that is none: it must not matter.
fn runtime() -> Runtime {
    assert!(Runtime::choose(&RuntimeChoice::Library(fixture("plain"))).is_err());
    let (runtime, trouble) = Runtime::choose(&RuntimeChoice::Auto).unwrap();
    assert!(matches!(runtime, Runtime::OnnxRuntime(_)) && trouble.is_none(), "{runtime}: {trouble:?}");
    runtime
}

/// Every cell within a thousandth.
fn assert_near(a: &Array2<f32>, b: &Array2<f32>) {
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f32::max);
    assert!(off <= 1e-3, "{off}");
}

/// tract and ONNX Runtime agree; and ONNX Runtime takes what tract does not.
fn both_runtimes_agree() {
    let runtime = runtime();
    let gather = random_gather(11);
    for name in ["plain", "free", "five_axes", "half_rate", "unit", "symmetric", "external", "f16"] {
        let source = Source::of(&fixture(name)).unwrap();
        let there = predict_one(&Network::open(&source, &runtime, 2).unwrap(), &gather).unwrap();
        let here = predict_one(&open(&fixture(name)).unwrap(), &gather).unwrap();
        let off = furthest(&there.velocity, &here.velocity);
        assert!(off <= if name == "f16" { 2.0 } else { 1e-3 }, "{name}: {off}");
    }
    if let Some(bundled) = default_prior() {
        let there = predict_one(&bundled.open(&runtime, 2).unwrap(), &gather).unwrap();
        let here = predict_one(&bundled.open(&Runtime::Tract, 1).unwrap(), &gather).unwrap();
        assert_near(&there.velocity, &here.velocity);
    }
    for name in ["loop", "conv_transpose"] {
        let network = Network::open(&Source::of(&fixture(name)).unwrap(), &runtime, 1).unwrap();
        let got = predict_one(&network, &gather).unwrap();
        assert!(furthest(&got.velocity, &expected(&gather, 999)) < 1e-3, "{name}");
        assert!(network.describe().contains("ONNX Runtime"));
    }
}

fn onnx_runtime_refuses_in_words() {
    let runtime = runtime();
    for name in ["magic", "nan", "no_map"] {
        let error = Network::open(&Source::of(&fixture(name)).unwrap(), &runtime, 1).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Input { .. }) && !error.to_string().contains('\n'), "{error}");
    }
    let (program, arguments) = worker();
    let source = Source::of(&fixture("huge")).unwrap();
    let limits = WorkerLimits { memory: 600 << 20, ..WorkerLimits::default() };
    let error = Isolated::open(program, arguments, &source, &RuntimeChoice::Auto, 1, limits).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Input { .. } | Error::Memory(_)), "{error:?}");
}

/// Threads change no bit of a small network here, either, and nothing that counts of the bundled one.
fn onnx_runtime_does_not_depend_on_threads() {
    let runtime = runtime();
    let gather = random_gather(12);
    let source = Source::of(&fixture("plain")).unwrap();
    let with = |threads| predict_one(&Network::open(&source, &runtime, threads).unwrap(), &gather).unwrap();
    assert_eq!(with(1), with(2));
    let Some(bundled) = default_prior() else { return };
    let with = |threads| predict_one(&bundled.open(&runtime, threads).unwrap(), &gather).unwrap();
    assert_near(&with(1).velocity, &with(3).velocity);
}

fn a_library_that_cannot_be_used_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libonnxruntime.so");
    fs::write(&path, "no library").unwrap();
    let error = Runtime::choose(&RuntimeChoice::Library(path)).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Usage(m) if m.contains("cannot be used as ONNX Runtime 1.24")), "{error}");
    let error = Runtime::choose(&RuntimeChoice::Library("/nowhere.so".into())).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("/nowhere.so: cannot read"), "{error}");
}

fn main() {
    let has_library = std::env::var_os("FWI_ONNXRUNTIME").is_some_and(|p| Path::new(&p).is_file());
    if !has_library {
        println!("skipped: no ONNX Runtime (FWI_ONNXRUNTIME)");
    }
    let always: Vec<(&str, fn())> = vec![
        ("layouts_are_recognised", layouts_are_recognised),
        ("other_layouts_are_refused_with_the_cure", other_layouts_are_refused_with_the_cure),
        ("masked_traces_go_in_as_zeros", masked_traces_go_in_as_zeros),
        ("the_manifest_tells_how", the_manifest_tells_how),
        ("a_manifest_is_found", a_manifest_is_found),
        ("wrong_manifests_are_refused", wrong_manifests_are_refused),
        ("the_flip_is_the_gather_of_the_mirrored_map", the_flip_is_the_gather_of_the_mirrored_map),
        ("what_cannot_be_modelled_is_not_flipped", what_cannot_be_modelled_is_not_flipped),
        ("what_its_maps_miss_brings_a_prior_nearer", what_its_maps_miss_brings_a_prior_nearer),
        ("predictions_do_not_depend_on_company", predictions_do_not_depend_on_company),
        ("a_library_that_cannot_be_used_is_reported", a_library_that_cannot_be_used_is_reported),
    ];
    let with_library: Vec<(&str, fn())> = vec![
        ("both_runtimes_agree", both_runtimes_agree),
        ("onnx_runtime_refuses_in_words", onnx_runtime_refuses_in_words),
        ("onnx_runtime_does_not_depend_on_threads", onnx_runtime_does_not_depend_on_threads),
    ];
    let trial = |(name, test): (&str, fn()), ignored: bool| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_ignored_flag(ignored)
    };
    let mut trials: Vec<Trial> = always.into_iter().map(|t| trial(t, false)).collect();
    trials.extend(with_library.into_iter().map(|t| trial(t, !has_library)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
