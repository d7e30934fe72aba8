//! `fwi prior`, and inversions that start from a prior.

mod cli_common;
mod prior_common;

use assert_cmd::Command;
use cli_common::Bench;
use fwi::io::{ArrayFile, Limits, read_map, write_array};
use fwi::prior::layout::trial_map;
use ndarray::{Array2, Array4, s};
use prior_common::{fixture, folder_of, full_manifest};
use std::fs;
use std::path::Path;

/// A command that finds neither the user's priors nor a library of ONNX Runtime that the environment names.
fn fwi() -> Command {
    let mut command = Command::new(cli_common::fwi());
    command.env("FWI_PRIORS", "/nowhere").env_remove("FWI_ONNXRUNTIME").env_remove("ORT_DYLIB_PATH");
    command.env("RUST_BACKTRACE", "0");
    command
}

/// Runs to its end: exit code, standard output, standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().expect("no signal"), text(&out.stdout), text(&out.stderr))
}

fn predict(bench: &Bench, output: &str) -> Command {
    let mut command = fwi();
    command.args(["prior", "predict"]).arg(&bench.gather).arg("-o").arg(bench.path(output));
    command
}

fn map(path: &Path) -> Array2<f64> {
    read_map(path, (70, 70), &Limits::default()).unwrap()
}

#[test]
fn a_file_predicts() {
    let bench = Bench::new();
    let png = bench.path("map.png");
    let (code, out, err) = run(predict(&bench, "out.npy").arg("--prior").arg(fixture("plain")).arg("--png").arg(&png));
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("gather: ") && out.contains(" m/s"), "{out}");
    assert!(err.contains("prior: plain (sha256 ") && err.contains(", tract)"), "{err}");
    assert!(err.contains("memory: at most") && err.contains("s a prediction"), "{err}");
    assert!((map(&bench.path("out.npy")) - trial_map()).iter().all(|d| d.abs() < 100.0));
    let mut command = predict(&bench, "out.npy");
    let (code, _, err) = run(command.env("FWI_ONNXRUNTIME", "/no.so").arg("--prior").arg(fixture("plain")));
    assert!(code == 0 && err.starts_with("/no.so: cannot read") && err.contains("tract instead"), "{err}");
    assert!(fs::read(png).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn a_named_prior_predicts_stacks_with_errors_and_families() {
    let bench = Bench::new();
    let folder = bench.path("priors");
    fs::create_dir(&folder).unwrap();
    let made = folder_of("full", &full_manifest("full"));
    fs::rename(made.path(), folder.join("mine")).unwrap();
    let one = ArrayFile::open(&bench.gather, &Limits::default()).unwrap().read::<f32>(0..5).unwrap();
    let mut stack = Array4::<f32>::zeros((3, 5, 1000, 70));
    stack.outer_iter_mut().for_each(|mut g| g.assign(&one));
    stack.slice_mut(s![1, .., .., ..]).mapv_inplace(|x| 2.0 * x);
    let gathers = bench.path("stack.npy");
    write_array(&gathers, stack.view()).unwrap();
    let predict = |more: &[&str]| {
        let mut command = fwi();
        command.env("FWI_PRIORS", &folder).args(["prior", "predict", "--prior", "mine", "-o"]);
        command.arg(bench.path("maps.h5")).arg("--errors").arg(bench.path("errors.npy")).arg(&gathers).args(more);
        let done = run(&mut command);
        assert_eq!(done.0, 0, "{}", done.2);
        done
    };
    let read = |name: &str| {
        let mut file = ArrayFile::open(bench.path(name), &Limits::default()).unwrap();
        assert_eq!(file.shape(), [3, 70, 70]);
        file.read::<f32>(0..3).unwrap()
    };
    let (_, out, err) = predict(&["--threads", "2"]);
    assert_eq!(out.lines().count(), 3);
    assert!(out.starts_with("stack_0: ") && out.contains("; FlatVel_A 75%, Style_B 25%"), "{out}");
    assert!(err.contains("averaged with the mirrored gather's"), "{err}");
    let (flipped, errors) = (read("maps.h5"), read("errors.npy"));
    assert!(errors.iter().all(|&e| (0.0..=100.0).contains(&e)) && errors.iter().any(|&e| e > 50.0));
    assert_eq!(flipped.slice(s![0, .., ..]), flipped.slice(s![2, .., ..]));
    assert_ne!(flipped.slice(s![0, .., ..]), flipped.slice(s![1, .., ..]));
    predict(&["--threads", "1"]);
    assert_eq!(read("maps.h5"), flipped);
    let (_, _, err) = predict(&["--tta", "off"]);
    assert!(!err.contains("mirrored") && read("maps.h5") != flipped, "{err}");
    let mut list = fwi();
    let (code, out, _) = run(list.env("FWI_PRIORS", &folder).args(["prior", "list"]));
    assert!(code == 0 && out.contains("mine 7: a test's (MIT)"), "{out}");
    let (code, out, err) = run(fwi().env("FWI_PRIORS", &folder).args(["prior", "inspect", "mine"]));
    assert_eq!(code, 0, "{err}");
    for words in ["full 7: a test's", "real maps, m/s (maps): FlatVel_A 12.5 (3)", "one sample of 2", "Slice 1"] {
        assert!(out.contains(words), "{words}: {out}");
    }
}

#[test]
fn a_gather_that_cannot_be_read_costs_its_own_map_only() {
    let bench = Bench::new();
    let test = bench.path("test");
    fs::create_dir(&test).unwrap();
    let whole = fs::read(&bench.gather).unwrap();
    for (name, length) in [("a", whole.len()), ("b", 1000), ("c", whole.len())] {
        fs::write(test.join(format!("{name}.npy")), &whole[..length]).unwrap();
    }
    let predict = |output: &str, more: &str| {
        let mut command = fwi();
        command
            .args(["prior", "predict", "--prior"])
            .arg(fixture("plain"))
            .arg(&test)
            .arg("-o")
            .arg(bench.path(output));
        run(command.arg("--png").arg(bench.path("maps.png")).args(more.split_whitespace()))
    };
    for threads in ["--threads 1", "--threads 2"] {
        let (code, out, err) = predict("maps.npy", threads);
        assert_eq!((code, out.lines().count()), (3, 2), "{err}");
        assert!(err.contains("b.npy") && err.contains("not-a-number for 1 of 3 gathers"), "{err}");
        let maps = ArrayFile::open(bench.path("maps.npy"), &Limits::default()).unwrap().read::<f32>(0..3).unwrap();
        assert!(maps.slice(s![1, .., ..]).iter().all(|v| v.is_nan()));
        let near = |i: usize| (map(&one(&bench, &maps, i)) - trial_map()).iter().all(|d| d.abs() < 100.0);
        assert!(near(0) && near(2));
    }
    fs::remove_file(test.join("a.npy")).unwrap();
    fs::write(test.join("c.npy"), b"no array").unwrap();
    let (code, out, err) = predict("none.npy", "");
    assert!(code == 3 && out.is_empty() && err.contains("b.npy") && err.contains("c.npy"), "{err}");
    assert!(!bench.path("none.npy").exists());
}

#[test]
fn a_gather_that_a_prior_fails_at_costs_its_own_map_only() {
    let bench = Bench::new();
    let one = ArrayFile::open(&bench.gather, &Limits::default()).unwrap().read::<f32>(0..5).unwrap();
    let mut stack = Array4::<f32>::zeros((3, 5, 1000, 70));
    stack.outer_iter_mut().for_each(|mut g| g.assign(&one));
    // this network adds ten times the sample to the map
    stack[[0, 1, 999, 7]] = -1000.0;
    let gathers = bench.path("stack.npy");
    let predict = |stack: &Array4<f32>, command: &[&str]| {
        write_array(&gathers, stack.view()).unwrap();
        run(fwi().args(command).arg("--prior").arg(fixture("plain")).arg(&gathers))
    };
    let maps = bench.path("maps.npy");
    for threads in ["1", "2"] {
        let output = ["prior", "predict", "--threads", threads, "-o", maps.to_str().unwrap()];
        let (code, out, err) = predict(&stack, &output);
        assert_eq!((code, out.lines().count()), (3, 2), "{err}");
        assert!(err.contains("velocity of -") && err.contains("(gather stack_0)"), "{err}");
        assert!(err.contains("not-a-number for 1 of 3 gathers"), "{err}");
        let read = ArrayFile::open(&maps, &Limits::default()).unwrap().read::<f32>(0..3).unwrap();
        let lost: Vec<bool> = read.outer_iter().map(|map| map.iter().all(|v| v.is_nan())).collect();
        assert_eq!(lost, [true, false, false]);
        fs::remove_file(&maps).unwrap();
    }
    let (code, out, err) = predict(&stack, &["classify"]);
    assert!(code == 3 && out.lines().count() == 3 && err.contains("(gather stack_0)"), "{out}{err}");
    // a prior without families names none among equals
    assert!(out.lines().skip(1).all(|l| l.contains("  -   ")), "{out}");
    // of none there is no file
    (1..3).for_each(|i| stack[[i, 1, 999, 7]] = -1000.0);
    let (code, out, err) = predict(&stack, &["prior", "predict", "-o", maps.to_str().unwrap()]);
    assert!(code == 3 && out.is_empty() && err.lines().last().unwrap().contains("stack_2"), "{err}");
    assert!(!maps.exists());
}

/// A map of a stack in a file of its own.
fn one(bench: &Bench, maps: &ndarray::ArrayD<f32>, i: usize) -> std::path::PathBuf {
    let path = bench.path("one.npy");
    write_array(&path, maps.index_axis(ndarray::Axis(0), i)).unwrap();
    path
}

#[test]
fn several_priors_are_combined() {
    let bench = Bench::new();
    let list = format!("{},{}", fixture("plain").display(), fixture("symmetric").display());
    let (code, _, err) = run(predict(&bench, "out.npy").args(["--prior", &list, "--combine", "median"]));
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("median of plain (sha256"), "{err}");
    // together, not each
    let (code, _, err) = run(predict(&bench, "out.npy").args(["--prior", &list, "--max-memory", "1064M"]));
    assert!(code == 0 && err.contains("1000 MB of them in 2 processes of their own"), "{err}");
    assert!((map(&bench.path("out.npy")) - trial_map()).iter().all(|d| d.abs() < 100.0));
}

#[test]
fn mistakes_have_their_exit_codes() {
    let bench = Bench::new();
    let fails = |command: &mut Command, code: i32, words: &str| {
        let (found, _, err) = run(command);
        assert_eq!(found, code, "{err}");
        let last = err.lines().last().unwrap_or_default();
        assert!(last.starts_with("fwi: ") && last.contains(words), "{words}: {err}");
        assert!(!err.contains("panicked"), "{err}");
    };
    fails(predict(&bench, "o.npy").args(["--prior", "nobody"]), 2, "no prior is called \"nobody\"");
    fails(predict(&bench, "o.npy").args(["--prior", "no/such.onnx"]), 4, "check the name");
    fails(predict(&bench, "o.npy").arg("--prior").arg(&bench.gather), 3, "is no ONNX model");
    fails(predict(&bench, "o.npy").arg("--prior").arg(fixture("nan")), 3, "predicts NaN");
    let looped = fixture("loop");
    fails(predict(&bench, "o.npy").args(["--onnx-runtime", "tract", "--prior"]).arg(looped), 3, "does not know: Loop");
    let huge = fixture("huge");
    fails(predict(&bench, "o.npy").args(["--max-memory", "500M", "--prior"]).arg(huge), 5, "--max-memory");
    let mut tight = predict(&bench, "o.npy");
    let (_, _, err) = run(tight.args(["--max-memory", "70M"]));
    assert!(err.contains("raise --max-memory") && !err.contains("--start"), "{err}");
    let mut tight = fwi();
    tight.arg("invert").arg(&bench.gather).arg("-o").arg(bench.path("tight"));
    fails(tight.args(["--max-memory", "70M"]), 5, "raise --max-memory");
    let plain = fixture("plain");
    let errors = bench.path("e.npy");
    fails(predict(&bench, "o.npy").arg("--prior").arg(&plain).arg("--errors").arg(errors), 2, "leave it out");
    fails(predict(&bench, "o.txt").arg("--prior").arg(&plain), 2, ".npy");
    fails(predict(&bench, "gather.npy").arg("--prior").arg(&plain), 2, "would be overwritten");
    fails(predict(&bench, "o.npy").arg("--prior").arg(&plain).args(["--png", "o.gif"]), 2, "figures are PNG");
    let mut twice = predict(&bench, "o.npy");
    fails(twice.arg("--errors").arg(bench.path("./o.npy")), 2, "is named twice");
    for most in ["66M", "75M"] {
        fails(
            predict(&bench, "o.npy").arg("--prior").arg(&plain).args(["--max-memory", most]),
            5,
            "raise --max-memory",
        );
    }
    fails(predict(&bench, "o.npy").arg("--prior").arg(&plain).args(["--onnx-runtime", "/no.so"]), 2, "/no.so");
    fails(fwi().arg("prior-worker"), 2, "for fwi itself");
    assert!(!bench.path("o.npy").exists());
}

/// An inversion that starts from a prior is the one that starts from the map it predicts.
#[test]
fn an_inversion_starts_from_a_prior() {
    let bench = Bench::new();
    let plain = fixture("plain");
    assert_eq!(run(predict(&bench, "start.npy").arg("--prior").arg(&plain)).0, 0);
    let invert = |dir: &str, start: &[&std::ffi::OsStr]| {
        let mut command = fwi();
        command
            .arg("invert")
            .arg(&bench.gather)
            .arg("-o")
            .arg(bench.path(dir))
            .args(["--max-evals", "4", "--stages", "l2"])
            .args(start);
        let (code, _, err) = run(&mut command);
        assert_eq!(code, 0, "{err}");
        let text = fs::read_to_string(bench.path(dir).join("result.json")).unwrap();
        (serde_json::from_str::<serde_json::Value>(&text).unwrap(), map(&bench.path(dir).join("velocity.npy")), err)
    };
    let (result, found, err) = invert("prior", &["--prior".as_ref(), plain.as_ref()]);
    assert_eq!(result["start"], "prior");
    assert!(result["prior"]["description"].as_str().unwrap().starts_with("plain (sha256"), "{result}");
    assert!(err.contains("prior: plain") && err.contains("for the prior, before the inversion"), "{err}");
    // the map is its own, what it does not tell the bundled one does
    assert!(err.contains("; what it does not tell, by columns "), "{err}");
    assert!(result["prior"]["expected_mae"].is_number(), "{result}");
    assert_eq!(result["family"], result["prior"]["family"]);
    assert!(result["prior"]["group"].is_string(), "{result}");
    // resumed, it asks no prior again, and the result still tells what it said
    let said = result["prior"].clone();
    let (resumed, _, err) = invert("prior", &["--resume".as_ref(), "--prior".as_ref(), "/no.onnx".as_ref()]);
    assert!(err.contains("resuming after iteration") && !err.contains("prior: "), "{err}");
    assert_eq!((&resumed["start"], &resumed["prior"]), (&result["start"], &said));
    let mut again = fwi();
    again.arg("invert").arg(&bench.gather).arg("-o").arg(bench.path("prior")).args(["--prior", "/no.onnx"]);
    let (code, _, err) = run(&mut again);
    assert!(code == 2 && err.contains("holds an inversion"), "{err}");
    let start = bench.path("start.npy");
    let (result, wanted, _) = invert("map", &["--start".as_ref(), start.as_ref()]);
    assert_eq!(result["prior"], serde_json::Value::Null);
    assert_eq!(found, wanted);
    let (result, gradient, _) = invert("gradient", &["--start".as_ref(), "gradient".as_ref()]);
    assert_eq!(result["start"], "gradient");
    assert_ne!(found, gradient);
    let mut both = fwi();
    both.arg("invert").arg(&bench.gather).args(["-o", "x", "--start", "gradient", "--prior", "y"]);
    assert_eq!(run(&mut both).0, 2);
}

#[test]
fn a_batch_starts_from_a_prior() {
    let bench = Bench::new();
    let plain = fixture("plain");
    let mut batch = fwi();
    batch.arg("batch").arg(&bench.gather).arg("-o").arg(bench.path("batch")).args([
        "--max-evals",
        "4",
        "--stages",
        "l2",
    ]);
    let (code, _, err) = run(batch.arg("--prior").arg(&plain));
    assert_eq!(code, 0, "{err}");
    let mut invert = fwi();
    invert.arg("invert").arg(&bench.gather).arg("-o").arg(bench.path("one")).args([
        "--max-evals",
        "4",
        "--stages",
        "l2",
    ]);
    assert_eq!(run(invert.arg("--prior").arg(&plain)).0, 0);
    assert_eq!(map(&bench.path("batch/velocity/gather.npy")), map(&bench.path("one/velocity.npy")));
    assert!(err.contains(" MB for the prior"), "{err}");
    let text = fs::read_to_string(bench.path("batch/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(summary["prior"].as_str().unwrap().starts_with("plain (sha256"), "{summary}");
}

#[test]
fn classify_prints_a_line_for_every_gather_and_goes_on_after_a_bad_one() {
    let bench = Bench::new();
    let short = bench.path("short.npy");
    write_array(&short, Array2::<f32>::zeros((3, 4)).view()).unwrap();
    let (code, out, err) = run(fwi().arg("classify").arg(&short).arg(&bench.gather));
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("short.npy") && err.contains("(5, 1000, 70)"), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("mirror rms") && lines[1].starts_with("gather "), "{out}");
    assert!(lines[1].contains('%'), "{out}");
}

#[test]
fn evaluate_measures_given_and_synthetic_maps() {
    let bench = Bench::new();
    let maps = bench.path("maps.npy");
    let steps = Array2::from_shape_fn((70, 70), |(z, _)| if z < 35 { 2000.0f32 } else { 3000.0 });
    write_array(&maps, steps.view()).unwrap();
    let json = bench.path("figures.json");
    let argument = format!("FlatVel_A={}", maps.display());
    let mut command = fwi();
    command.args(["prior", "evaluate", "--synthetic", "1", "--maps", &argument, "--json"]).arg(&json);
    let (code, out, err) = run(&mut command);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("groups told right: ") && out.contains(" of 11, "), "{out}");
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let families = figures["families"].as_array().unwrap();
    assert_eq!(families.len(), 11);
    assert_eq!((&families[0]["maps"], &families[0]["family"]), (&"given".into(), &"FlatVel_A".into()));
    // the least-absolute fit of a line to a step of 1000 m/s in the middle
    let gradient = families[0]["gradient"].as_f64().unwrap();
    assert!(gradient > 100.0 && gradient < 250.0, "{gradient}");
    assert!(families[0]["mae"].as_f64().unwrap() > 0.0);
    let before = fs::read(&maps).unwrap();
    let (code, _, err) = run(fwi().args(["prior", "evaluate", "--maps", &argument, "--json"]).arg(&maps));
    assert!(code == 2 && err.contains("overwritten") && fs::read(&maps).unwrap() == before, "{err}");
    let (code, _, err) = run(fwi().args(["prior", "evaluate", "--synthetic", "0"]));
    assert!(code == 2 && err.contains("--maps"), "{err}");
    let (code, _, err) = run(fwi().args(["prior", "evaluate", "--maps", "maps.npy"]));
    assert!(code == 2 && err.contains("FAMILY=FILE"), "{err}");
}
