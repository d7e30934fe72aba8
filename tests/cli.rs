//! The `fwi` binary as its user meets it: results, messages, exit codes, signals.

mod cli_common;

use assert_cmd::Command;
use cli_common::{Bench, log_without_times, smooth_map};
use fwi::io::{Gathers, Limits, read_gather, read_map, write_array};
use ndarray::{Array2, Array3, Array4};
use predicates::prelude::*;
use std::fs;
use std::path::Path;

fn command(bench: &Bench, line: &str) -> Command {
    let mut command = Command::new(cli_common::fwi());
    command.current_dir(bench.path("")).args(line.split_whitespace()).timeout(std::time::Duration::from_secs(120));
    command
}

/// Standard error of a command that must end with this code.
fn ends(bench: &Bench, line: &str, code: i32) -> String {
    let out = command(bench, line).output().unwrap();
    let message = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(code), "fwi {line}: {message}");
    message
}

fn result(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join("result.json")).unwrap()).unwrap()
}

/// What users get wrong, the exit code, and a part of what they are told.
const WRONG: &[(&str, i32, &str)] = &[
    // files read
    ("forward missing.npy -o o.npy", 4, "missing.npy: cannot read"),
    ("forward shape.npy -o o.npy", 3, "shape.npy: holds shape (60, 70); expected"),
    ("forward nan.npy -o o.npy", 3, "nan.npy: map 0 holds NaN at row 3, column 4"),
    ("forward short.npy -o o.npy", 3, "short.npy: truncated"),
    ("forward empty.npy -o o.npy", 3, "empty.npy: is empty"),
    ("forward text.npy -o o.npy", 3, "text.npy: is neither .npy, .npz nor HDF5"),
    ("forward . -o o.npy", 3, "is no regular file"),
    ("forward fast.npy -o o.npy", 3, "fast.npy: map 0: unstable: the fastest velocity"),
    ("forward gather.npy -o o.npy", 3, "gather.npy: holds shape (5, 1000, 70); expected velocity maps"),
    ("check map.npy gather.npy", 3, "map.npy: holds shape (70, 70); expected gathers"),
    ("check gather.npy fast.npy", 3, "fast.npy: map 0: unstable"),
    ("check zero.npy map.npy", 3, "zero.npy: gather 0: every trace is zero"),
    ("check allnan.npy map.npy", 3, "allnan.npy: gather 0 has no trace that is finite"),
    ("check gather.npy map.npy --index 3", 2, "gather.npy: there is no item 3; it holds 1"),
    ("invert zero.npy -o d", 3, "zero.npy: gather 0: every trace is zero"),
    ("invert gather.npy -o d --truth shape.npy", 3, "shape.npy: holds shape"),
    ("invert gather.npy -o d --truth maps.npy", 3, "maps.npy: holds 3 velocity maps; expected one"),
    ("invert gather.npy -o d --start nan.npy", 3, "nan.npy: map 0 holds NaN"),
    ("invert gather.npy -o d --start gradeint", 2, "gradeint: is neither \"gradient\", \"prior\" nor a file"),
    ("plot short.npy", 3, "short.npy: truncated"),
    ("plot log.jsonl", 3, "log.jsonl: holds no line of an inversion's log"),
    ("plot gather.npy --index 9", 2, "there is no item 9"),
    ("plot maps.npy --index 9", 2, "there is no item 9"),
    ("plot gather.npy --shot 5", 2, "there is no shot 5"),
    ("plot map.npy --shot 0", 2, "map.npy: is a map"),
    ("plot gather.npy --truth map.npy", 2, "gather.npy: is no map"),
    ("plot maps.npy --truth map.npy", 2, "maps.npy: --truth compares one map"),
    // files written
    ("forward map.npy -o o.txt", 2, "o.txt: arrays are written as .npy, .h5 or .hdf5"),
    ("forward map.npy -o map.npy", 2, "map.npy: would be overwritten"),
    ("forward map.npy -o nowhere/o.npy", 4, "nowhere/o.npy: cannot create"),
    ("forward map.npy -o text.npy/o.npy", 4, "text.npy/o.npy: cannot create"),
    ("plot map.npy -o map.npy", 2, "map.npy: figures are PNG"),
    ("plot map.npy -o nowhere/o.png", 4, "choose a place in a directory that exists"),
    ("plot map.npy gather.npy -o o.png", 2, "-o names one PNG"),
    ("plot map.npy map.npy", 2, "two files cannot have this name"),
    ("invert gather.npy -o text.npy", 2, "text.npy: is no directory"),
    ("invert gather.npy -o text.npy/d", 4, "text.npy/d: cannot create"),
    // options
    ("forward map.npy -o o.npy --vmin 0", 2, "write a number above 0"),
    ("forward map.npy -o o.npy --vmin 90000", 2, "--vmin 90000: unstable"),
    ("forward map.npy -o o.npy --threads 9999", 2, "write a number from 0 to 1024"),
    ("forward map.npy -o o.npy --max-memory 10M", 5, "10 MB are less than the 64 MB that any run needs"),
    ("forward map.npy -o o.npy --max-memory lots", 2, "write for example 400M"),
    ("check --adjoint --seeds 0", 2, "--seeds"),
    ("check gather.npy", 2, "<MAP>"),
    ("invert gather.npy -o d --max-memory 70M", 5, "raise --max-memory"),
    ("invert gather.npy -o d --stages foo", 2, "no misfit \"foo\"; there are l2"),
    ("invert gather.npy -o d --stages l2@many", 2, "\"many\" after @ is not a number"),
    ("invert gather.npy -o d --stages l2@0", 2, "at least one evaluation"),
    ("invert gather.npy -o d --stages lowpass:900", 2, "900"),
    ("invert gather.npy -o d --bounds 1500", 2, "--bounds takes two velocities"),
    ("invert gather.npy -o d --bounds 4500,1500", 2, "bounds must be positive and rising"),
    ("invert gather.npy -o d --bounds 1500,20000", 2, "--bounds 1500,20000: unstable"),
    ("invert gather.npy -o d --bounds 1500,x", 2, "--bounds"),
    ("invert gather.npy -o d --memory 0", 2, "write a number from 1 to 200"),
    ("invert gather.npy -o d --max-evals 0", 2, "--max-evals"),
    ("invert gather.npy -o d --target-rms nan", 2, "write a number above 0"),
    ("invert gather.npy -o d --time-limit soon", 2, "write for example 90s"),
    ("invert gather.npy -o d --resume --force", 2, "--force"),
    ("invert gather.npy", 2, "--output <DIR>"),
    ("", 2, "Usage: fwi"),
    ("invent", 2, "unrecognized subcommand"),
];

#[test]
fn what_is_wrong_is_said_in_one_line_with_the_code() {
    let bench = Bench::new();
    let save = |name: &str, map: Array2<f32>| write_array(bench.path(name), map.view()).unwrap();
    let map = smooth_map(0.0);
    save("shape.npy", map.slice(ndarray::s![..60, ..]).to_owned());
    save("fast.npy", &map * 5.0);
    let mut holed = map.clone();
    holed[[3, 4]] = f32::NAN;
    save("nan.npy", holed);
    let maps = ndarray::stack![ndarray::Axis(0), map, map, map];
    write_array(bench.path("maps.npy"), maps.view()).unwrap();
    for (name, value) in [("zero.npy", 0.0), ("allnan.npy", f32::NAN)] {
        write_array(bench.path(name), Array3::from_elem((5, 1000, 70), value).view()).unwrap();
    }
    fs::write(bench.path("short.npy"), &fs::read(&bench.map).unwrap()[..3000]).unwrap();
    fs::write(bench.path("empty.npy"), "").unwrap();
    fs::write(bench.path("text.npy"), "velocities\n").unwrap();
    fs::write(bench.path("log.jsonl"), [b"{\"a\": 1}\n".as_slice(), &[0xff, 0xfe]].concat()).unwrap();
    let listing = || {
        let mut names: Vec<_> = fs::read_dir(bench.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = listing();
    for (line, code, part) in WRONG {
        let message = ends(&bench, line, *code);
        assert!(message.contains(part), "fwi {line}: {message}");
        assert!(!message.contains("panicked") && !message.contains(".tmp"), "fwi {line}: {message}");
        let lines: Vec<&str> = message.lines().filter(|l| !l.starts_with("engine: ")).collect();
        // what clap finds comes with a hint below
        assert!(lines.len() == 1 || (*code == 2 && !message.starts_with("fwi: ")), "fwi {line}: {message}");
        assert_eq!(listing(), before, "fwi {line} left something behind");
    }
}

#[test]
fn forward_models_maps_and_stacks() {
    let bench = Bench::new();
    let limits = Limits::default();
    let read = |name: &str| read_gather(bench.path(name), (5, 1000, 70), &limits).unwrap();
    for out in ["one.npy", "one.h5"] {
        assert!(ends(&bench, &format!("forward map.npy -o {out}"), 0).contains(&format!("wrote {out}")));
        assert!(read(out) == read("gather.npy"), "{out}");
    }
    let maps = ndarray::stack![ndarray::Axis(0), smooth_map(0.0), smooth_map(80.0), smooth_map(-40.0)];
    write_array(bench.path("n.npy"), maps.view()).unwrap();
    write_array(bench.path("n1.h5"), maps.view().insert_axis(ndarray::Axis(1))).unwrap();
    let mut stacks: Vec<Array4<f64>> = Vec::new();
    for line in ["n.npy -o a.npy", "n.npy -o a.h5", "n1.h5 -o b.npy", "n.npy -o c.npy --threads 1"] {
        ends(&bench, &format!("forward {line}"), 0);
        let out = line.split_whitespace().nth(2).unwrap();
        let mut gathers = Gathers::open(bench.path(out), (5, 1000, 70), &limits).unwrap();
        assert_eq!(gathers.len(), 3, "{out}");
        let all: Vec<Array3<f64>> = gathers.iter().collect::<fwi::Result<_>>().unwrap();
        let views: Vec<_> = all.iter().map(|g| g.view()).collect();
        stacks.push(ndarray::stack(ndarray::Axis(0), &views).unwrap());
    }
    assert!(stacks[0].index_axis(ndarray::Axis(0), 0) == read("gather.npy"));
    assert!(stacks[0].index_axis(ndarray::Axis(0), 1) != read("gather.npy"));
    stacks[1..].iter().for_each(|s| assert!(*s == stacks[0]));
}

#[test]
fn check_tells_this_map_from_another() {
    let bench = Bench::new();
    write_array(bench.path("other.npy"), smooth_map(150.0).view()).unwrap();
    let says = |part: &'static str| predicate::str::contains(part);
    command(&bench, "check gather.npy map.npy").assert().code(0).stdout(says("the residual is rounding"));
    command(&bench, "check gather.npy map.npy --precision f64").assert().code(0).stdout(says("f64, exact"));
    command(&bench, "check gather.npy other.npy").assert().code(1).stdout(says("verdict: a different map"));
    command(&bench, "check gather.npy map.npy --vmin 1900").assert().code(1);
    command(&bench, "check --adjoint --seeds 1").assert().code(0).stdout(says("the adjoint is exact to rounding"));
    // a dead and a broken trace do not count
    let mut gather = read_gather(&bench.gather, (5, 1000, 70), &Limits::default()).unwrap();
    gather.slice_mut(ndarray::s![1, .., 3]).fill(0.0);
    gather[[4, 500, 69]] = f64::NAN;
    write_array(bench.path("holes.npy"), gather.mapv(|x| x as f32).view()).unwrap();
    let out = command(&bench, "check holes.npy map.npy").assert().code(0);
    out.stdout(says("of 348 traces count (2 dead or not finite)"));
    let said = ends(&bench, "invert holes.npy --start gradient -o holes --max-evals 1", 0);
    assert!(said.contains("1 traces are dead and do not count: shot 1 receiver 3"), "{said}");
    assert_eq!(result(&bench.path("holes"))["masked_traces"], serde_json::json!([[1, 3], [4, 69]]));
}

const KEYS: [&str; 25] = [
    "attempts",
    "curvature_seconds",
    "data_rms",
    "data_rms_per_shot",
    "engine",
    "evaluations",
    "family",
    "gather",
    "index",
    "iterations",
    "mae",
    "masked_traces",
    "normal_matrices",
    "peak_memory_bytes",
    "prior",
    "recipe",
    "samples_used",
    "seconds",
    "settings",
    "stages",
    "start",
    "stop_reason",
    "uncertainty",
    "version",
    "vmin",
];

#[test]
fn invert_writes_everything_and_resumes() {
    let bench = Bench::new();
    let invert = "invert gather.npy --truth map.npy --start gradient";
    let said = ends(&bench, &format!("{invert} -o run --max-evals 6"), 0);
    assert!(said.contains("engine: CPU") && said.contains("all 6 evaluations are spent"), "{said}");
    let run = bench.path("run");
    let r = result(&run);
    assert_eq!(r.as_object().unwrap().keys().collect::<Vec<_>>(), KEYS);
    assert_eq!(r["evaluations"], 6);
    assert!(r["data_rms"].as_f64().unwrap() > 0.0 && r["mae"].as_f64().unwrap() > 0.0);
    let map = read_map(run.join("velocity.npy"), (70, 70), &Limits::default()).unwrap();
    assert!(map.iter().all(|v| (1500.0..=4500.0).contains(v)));
    let log = log_without_times(&run);
    assert_eq!(log.len() as u64, r["iterations"].as_u64().unwrap());
    for figure in ["velocity.png", "gather.png", "convergence.png"] {
        image::open(run.join(figure)).unwrap();
    }

    // an inversion is not overwritten unasked, nor resumed with another gather
    assert!(ends(&bench, &format!("{invert} -o run"), 2).contains("--resume"));
    write_array(bench.path("other.npy"), smooth_map(150.0).view()).unwrap();
    ends(&bench, "forward other.npy -o other_gather.npy", 0);
    let said = ends(&bench, "invert other_gather.npy -o run --resume --quiet --start gradient", 2);
    assert!(said.contains("run: holds the inversion of another gather"), "{said}");
    // nor from another start
    let elsewhere = invert.replace("--start gradient", "--start other.npy");
    let said = ends(&bench, &format!("{elsewhere} -o run --resume"), 2);
    assert!(said.contains("began from gradient, not from other.npy"), "{said}");
    assert_eq!(log_without_times(&run), log);
    // a refused --force has taken nothing away
    ends(&bench, &format!("{invert} -o run --force --max-memory 10M"), 5);
    assert_eq!(result(&run), r);

    // what a killed process may leave: the torn end of a line, an unfinished file
    let mut torn = fs::read(run.join("log.jsonl")).unwrap();
    torn.extend(b"{\"stage\":0,\"stage_na");
    fs::write(run.join("log.jsonl"), torn).unwrap();
    let unfinished = run.join(".fwi-4194305-abcdefgh.tmp");
    fs::write(&unfinished, "half").unwrap();

    // deviations of a map that will be replaced
    fs::write(run.join("uncertainty.npy"), "of before").unwrap();

    // resumed and uninterrupted runs, one and two threads: the same bits
    command(&bench, &format!("{invert} -o run --max-evals 9 --resume --quiet")).assert().code(0).stderr("").stdout("");
    command(&bench, &format!("{invert} -o whole --max-evals 9 --threads 1 -q")).assert().code(0).stderr("").stdout("");
    let whole = bench.path("whole");
    assert_eq!(fs::read(run.join("velocity.npy")).unwrap(), fs::read(whole.join("velocity.npy")).unwrap());
    assert_eq!(log_without_times(&run), log_without_times(&whole));
    assert!(!unfinished.exists() && !run.join("uncertainty.npy").exists());

    // begun anew, and ended by itself: nothing to resume
    let rms = r["data_rms"].as_f64().unwrap();
    let anew = ends(&bench, &format!("{invert} -o run --force --target-rms {rms}"), 0);
    assert!(anew.contains("reached its target"), "{anew}");
    assert_eq!(log_without_times(&run), log[..log_without_times(&run).len()]);
    assert!(ends(&bench, &format!("{invert} -o run --resume"), 0).contains("nothing to resume"));
    let said = ends(&bench, "invert other_gather.npy -o run --resume", 2);
    assert!(said.contains("run: holds the inversion of another gather"), "{said}");
    assert!(ends(&bench, &format!("{invert} -o run --resume --uncertainty"), 2).contains("--force"));
}

#[test]
fn memory_limits_are_kept_and_change_nothing() {
    let bench = Bench::new();
    let run = |name: &str, options: &str| {
        ends(&bench, &format!("invert gather.npy -o {name} --start gradient --max-evals 3 {options}"), 0);
        let dir = bench.path(name);
        (std::fs::read(dir.join("velocity.npy")).unwrap(), result(&dir)["peak_memory_bytes"].as_u64())
    };
    let (free, peak) = run("free", "--precision f32");
    let (tight, tight_peak) = run("tight", "--precision f32 --max-memory 150M");
    assert!(free == tight, "the limit changed the map");
    if let (Some(peak), Some(tight_peak)) = (peak, tight_peak) {
        assert!(peak <= 400_000_000, "one f32 gradient took {peak} bytes");
        assert!(tight_peak <= 150 << 20, "--max-memory 150M took {tight_peak} bytes");
    }
}

#[test]
fn two_processes_do_not_share_a_directory() {
    let bench = Bench::new();
    fs::create_dir(bench.path("held")).unwrap();
    let lock = fs::File::create(bench.path("held/.lock")).unwrap();
    lock.lock().unwrap();
    assert!(
        ends(&bench, "invert gather.npy --start gradient -o held --max-evals 1", 2)
            .contains("another fwi is working there")
    );
    lock.unlock().unwrap();
    ends(&bench, "invert gather.npy --start gradient -o held --max-evals 1", 0);
    // the maps of others are not overwritten either
    fs::create_dir(bench.path("mine")).unwrap();
    fs::copy(&bench.map, bench.path("mine/velocity.npy")).unwrap();
    ends(&bench, "invert gather.npy --start gradient -o mine --max-evals 1", 2);
}

#[test]
fn plot_draws_every_kind() {
    let bench = Bench::new();
    ends(&bench, "invert gather.npy --start gradient -o run --max-evals 3 --quiet", 0);
    let maps = ndarray::stack![ndarray::Axis(0), smooth_map(0.0), smooth_map(80.0)];
    write_array(bench.path("maps.h5"), maps.view()).unwrap();
    command(&bench, "plot map.npy gather.npy maps.h5 maps.h5:/data run/log.jsonl")
        .assert()
        .code(0)
        .stdout("map.png\ngather.png\nmaps.png\nmaps-data.png\nrun/log.png\n");
    for (line, png) in [
        ("map.npy --truth run/velocity.npy -o truth.png", "truth.png"),
        ("maps.h5 --index 1 -o second.png", "second.png"),
        ("gather.npy --shot 4 -o shot.png", "shot.png"),
    ] {
        command(&bench, &format!("plot {line}")).assert().code(0);
        image::open(bench.path(png)).unwrap();
    }
    for png in ["map.png", "gather.png", "maps.png", "run/log.png"] {
        image::open(bench.path(png)).unwrap();
    }
    let same = |a: &str, b: &str| fs::read(bench.path(a)).unwrap() == fs::read(bench.path(b)).unwrap();
    assert!(same("maps.png", "maps-data.png") && !same("maps.png", "second.png") && !same("gather.png", "shot.png"));
}

#[test]
fn doctor_and_help_tell() {
    let bench = Bench::new();
    let tells = predicate::str::contains("instruction sets").and(predicate::str::contains("backends: cpu"));
    let tells = tells.and(predicate::str::contains("\ncuda: "));
    command(&bench, "doctor").assert().code(0).stdout(tells);
    for line in
        ["--help", "invert --help", "batch --help", "forward --help", "check --help", "plot --help", "doctor --help"]
    {
        command(&bench, line).assert().code(0).stdout(predicate::str::contains("Usage: fwi"));
    }
    let codes = predicate::str::contains("3         a file holds something else");
    command(&bench, "--help").assert().stdout(codes);
    command(&bench, "--version").assert().code(0).stdout(format!("fwi {}\n", env!("CARGO_PKG_VERSION")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_terminal_is_an_error_or_nothing() {
    use std::process::{Command, Stdio};
    let bench = Bench::new();
    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let out = Command::new(cli_common::fwi()).arg("doctor").stdout(full()).output().unwrap();
    assert_eq!(out.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("fwi: standard output: cannot write"));
    let mut forward = Command::new(cli_common::fwi());
    forward.current_dir(bench.path("")).args(["forward", "map.npy", "-o", "o.npy"]).stderr(full());
    assert!(forward.status().unwrap().success());
    assert!(fs::read(bench.path("o.npy")).unwrap() == fs::read(&bench.gather).unwrap());
}

#[cfg(unix)]
#[test]
fn signals_save_and_resume_continues() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let bench = Bench::new();
    ends(&bench, "invert gather.npy --start gradient -o whole --max-evals 30 --quiet", 0);
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let dir = bench.path(name);
        let mut child = Command::new(cli_common::fwi())
            .current_dir(bench.path(""))
            .args(["invert", "gather.npy", "-q", "--start", "gradient", "-o", name])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while fs::read_to_string(dir.join("log.jsonl")).map_or(0, |log| log.lines().count()) < 3 {
            assert!(begun.elapsed() < Duration::from_secs(60), "no iteration in a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
        let sent = Instant::now();
        cli_common::signal(&child, name);
        let status = child.wait().unwrap();
        assert!(sent.elapsed() < Duration::from_secs(5), "{name}: {:?}", sent.elapsed());
        assert_eq!(status.code(), Some(code));
        let mut message = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut message).unwrap();
        assert!(message.contains("the state is saved") && message.lines().count() == 1, "{message}");
        let stopped = result(&dir);
        assert_eq!(stopped["stop_reason"], "stopped on request");
        if stopped["evaluations"].as_u64().unwrap() < 30 {
            ends(&bench, &format!("invert gather.npy --start gradient --resume --quiet --max-evals 30 -o {name}"), 0);
            let same =
                |file: &str| fs::read(dir.join(file)).unwrap() == fs::read(bench.path("whole").join(file)).unwrap();
            assert!(same("velocity.npy"), "{name}");
            assert_eq!(log_without_times(&dir), log_without_times(&bench.path("whole")));
        }
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_stack_leaves_nothing_behind() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let bench = Bench::new();
    let maps = ndarray::Array3::from_shape_fn((1500, 70, 70), |(n, z, _)| 1800.0f32 + 0.1 * n as f32 + 25.0 * z as f32);
    write_array(bench.path("maps.npy"), maps.view()).unwrap();
    let hidden = || {
        let names = fs::read_dir(bench.path("")).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.')).collect::<Vec<_>>()
    };
    let mut child = Command::new(cli_common::fwi())
        .current_dir(bench.path(""))
        .args(["forward", "maps.npy", "-o", "gathers.npy"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while hidden().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no file in a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    cli_common::signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut message = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut message).unwrap();
    assert!(message.contains("fwi: interrupted by signal 2; nothing was written"), "{message}");
    assert!(hidden().is_empty() && !bench.path("gathers.npy").exists(), "{:?}", hidden());
}
