//! `fwi synth` and `fwi stats` as their user meets them: contents, kills, signals, limits, options that do not agree.

mod cli_common;

use fwi::io::{ArrayFile, Limits, TMP_SUFFIX};
use fwi::synth::Recipe;
use fwi::wave::{CpuOptions, build};
use fwi::{Gather, Model, Survey};
use ndarray::{Array2, ArrayD, Axis, s};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn command(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(cli_common::fwi());
    command.current_dir(dir).args(line.split_whitespace()).stdin(Stdio::null());
    command
}

/// Output of a command that must end with this code.
fn ends(dir: &Path, line: &str, code: i32) -> String {
    let Output { status, stdout, stderr } = command(dir, line).output().unwrap();
    let (out, message) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "fwi {line}: {message}");
    assert!(!message.contains("panicked"), "fwi {line}: {message}");
    if code == 0 { out } else { message }
}

fn read(dir: &Path, file: &str) -> ArrayD<f32> {
    let mut file = ArrayFile::open(dir.join(file), &Limits::default()).unwrap();
    let n = file.len();
    file.read(0..n).unwrap()
}

fn direct(map: &Array2<f32>) -> Gather {
    let propagator = build(Survey::openfwi(), &CpuOptions::default()).unwrap();
    propagator.forward(&[Model::from_map(map.mapv(f64::from))]).unwrap().remove(0)
}

/// Arrays of the numbered files of a set, one after the other.
fn whole(dir: &Path, stem: &str, files: usize, dataset: &str) -> ArrayD<f32> {
    let name = |k| if k == 0 { format!("{stem}.h5") } else { format!("{stem}-{k:05}.h5") };
    let parts: Vec<ArrayD<f32>> = (0..files).map(|k| read(dir, &format!("{}:/{dataset}", name(k)))).collect();
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    ndarray::concatenate(Axis(0), &views).unwrap()
}

#[test]
fn samples_are_maps_with_their_gathers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let recipe = Recipe { augment: "flip,shift:0.5".parse().unwrap(), ..Recipe::new(None, 5) };
    ends(dir, "synth --backend cpu all -n 3 --seed 5 --augment flip,shift:0.5 --middle-flip -o a.h5 --threads 1", 0);
    ends(
        dir,
        "synth --backend cpu all -n 3 --seed 5 --augment flip,shift:0.5 --middle-flip -o b.h5 --threads 2 --per-file 2",
        0,
    );
    ends(dir, "synth --backend cpu all -n 2 --seed 5 --augment flip,shift:0.5 --half --every 3 -o c.h5", 0);
    let (gather, velocity) = (read(dir, "a.h5:/gather"), read(dir, "a.h5:/velocity"));
    let (flipped, thin) = (read(dir, "a.h5:/flipped_middle"), read(dir, "c.h5:/gather"));
    assert_eq!((gather.shape(), flipped.shape()), (&[3, 5, 1000, 70][..], &[3, 1000, 70][..]));
    assert_eq!(ArrayFile::open(dir.join("c.h5:/gather"), &Limits::default()).unwrap().dtype().to_string(), "<f2");
    for i in 0..3 {
        let map = recipe.map(recipe.origin(i as u64));
        assert_eq!(velocity.slice(s![i, 0, .., ..]), map);
        let one = gather.index_axis(Axis(0), i);
        assert_eq!(one, direct(&map).data.mapv(|x| x as f32).into_dyn(), "sample {i}");
        let mirrored = direct(&map.slice(s![.., ..;-1]).to_owned()).data.mapv(|x| x as f32);
        let off = &flipped.index_axis(Axis(0), i) - &mirrored.slice(s![2, .., ..]);
        assert!(off.iter().all(|d| d.abs() < 1e-4), "sample {i}");
        if i < 2 {
            let kept = one.slice(s![.., ..;3, ..]).mapv(|x| half::f16::from_f32(x).to_f32());
            assert_eq!(thin.index_axis(Axis(0), i), kept.into_dyn());
        }
    }
    for dataset in ["gather", "velocity", "flipped_middle", "family", "number"] {
        assert!(whole(dir, "b", 2, dataset) == read(dir, &format!("a.h5:/{dataset}")), "{dataset}");
    }
}

#[test]
fn the_contests_layout_is_read_by_forward() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ends(dir, "synth --backend cpu all -n 12 -o set --format kaggle --per-file 1", 0);
    ends(dir, "forward --backend cpu set/FlatVel_B/model/model2.npy -o out.npy", 0);
    let data = read(dir, "set/FlatVel_B/data/data2.npy");
    assert_eq!(data.shape(), [1, 5, 1000, 70]);
    assert!(data.index_axis(Axis(0), 0) == read(dir, "out.npy"));
    ends(dir, "forward --backend cpu set/CurveFault_A/vel2_1_0.npy -o out.npy", 0);
    assert!(read(dir, "set/CurveFault_A/seis2_1_0.npy").index_axis(Axis(0), 0) == read(dir, "out.npy"));
    let message = ends(dir, "synth --backend cpu all -n 12 -o set --format kaggle --per-file 1 --seed 1", 2);
    assert!(message.contains("seed 0, not 1"), "{message}");
}

/// What users get wrong, the exit code, and a part of what they are told.
const WRONG: &[(&str, i32, &str)] = &[
    ("synth Marmousi -n 1 -o o.h5", 2, "is no family"),
    ("synth all -n 0 -o o.h5", 2, "1.."),
    ("synth all -n 18446744073709551615 --maps-only -o o.h5", 2, "raise --per-file"),
    ("synth all -n 1 -o o.npy", 2, "o.npy: sets are written as .h5"),
    ("synth all -n 1 -o o.h5 --format kaggle", 2, "leave the extension out"),
    ("synth all -n 1 -o nowhere/o.h5", 4, "nowhere/o.h5: cannot create"),
    ("synth all -n 1 -o text.txt --format kaggle", 2, "text.txt: is no directory"),
    ("synth all -n 1 -o text.h5", 3, "text.h5: holds no set of fwi synth"),
    ("synth all -n 1 -o folder.h5", 3, "folder.h5: holds no set of fwi synth"),
    ("synth all -n 1 -o o.h5 --augment blur", 2, "there are crop, affine"),
    ("synth all -n 1 -o o.h5 --augment flip:3", 2, "a probability"),
    ("synth all -n 1 -o o.h5 --every 0", 2, "--every takes 1 to 1000"),
    ("synth all -n 1 -o o.h5 --maps-only --half", 2, "about gathers"),
    ("synth all -n 1 -o o --format kaggle --half", 2, "leave out --half"),
    ("synth all -n 1 -o o.h5 --per-file 0", 2, "--per-file"),
    ("synth all -n 1 -o o.h5 --max-memory 10M", 5, "raise --max-memory"),
    ("stats missing.npy", 4, "missing.npy: cannot read"),
    ("stats text.txt", 3, "text.txt: is neither"),
    ("stats map.npy -o o.txt", 2, "figures are PNG"),
    ("stats map.npy -o nowhere/o.png", 4, "nowhere/o.png: cannot create"),
];

#[test]
fn what_is_wrong_is_said_in_one_line_with_the_code() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("text.txt"), "velocities\n").unwrap();
    fs::write(dir.join("text.h5"), "velocities\n").unwrap();
    fs::create_dir(dir.join("folder.h5")).unwrap();
    fwi::io::write_array(dir.join("map.npy"), cli_common::smooth_map(0.0).view()).unwrap();
    for (line, code, part) in WRONG {
        let message = ends(dir, line, *code);
        assert!(message.contains(part), "fwi {line}: {message}");
        assert!(message.lines().count() == 1 || (*code == 2 && !message.starts_with("fwi: ")), "fwi {line}: {message}");
    }
    let left: Vec<String> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|n| n.starts_with('o') || n.ends_with(TMP_SUFFIX)), "{left:?}");
}

#[test]
fn maps_are_compared_and_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ends(dir, "synth all -n 20 --maps-only -o a.h5", 0);
    ends(dir, "synth Style_A -n 5 --maps-only -o b.h5", 0);
    ends(dir, "synth Style_A -n 5 --maps-only -o c.h5 --augment rotate", 0);
    let table = ends(dir, "stats a.h5 b.h5:/velocity c.h5 -o s.png", 0);
    for part in ["[2] b.h5:/velocity", "\nmaps  ", "layers down a column", "distance to [1]", "mean profile"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let maps = table.lines().find(|l| l.starts_with("maps ")).unwrap();
    assert_eq!(maps.split_whitespace().collect::<Vec<_>>(), ["maps", "20", "5", "5"]);
    let size = |name: &str| image::image_dimensions(dir.join(name)).unwrap();
    assert!(size("s.png").0 > 1500);
    assert!(table.find("difference from [1]").unwrap() < table.find("mean profile").unwrap());
    ends(dir, "synth all -n 7 --maps-only -o d.h5 --per-file 3", 0);
    let counts = |line: &str| {
        let table = ends(dir, line, 0);
        table.lines().find(|l| l.starts_with("maps ")).unwrap()[5..]
            .split_whitespace()
            .map(String::from)
            .collect::<Vec<_>>()
    };
    assert_eq!(counts("stats d.h5"), ["7"]);
    assert_eq!(counts("stats d.h5 --limit 4"), ["4"]);
    assert_eq!(counts("stats d.h5 d-00001.h5 d-00002.h5"), ["3", "3", "1"]);
    ends(dir, "plot a.h5 b.h5", 0);
    // ten rows of two against a sheet of five
    assert!(size("a.png").1 > 1500 && size("b.png").1 < 700, "{:?} {:?}", size("a.png"), size("b.png"));
    ends(dir, "plot a.h5 --index 3 -o one.png", 0);
}

/// Names of files in a directory but for locks.
#[cfg(unix)]
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|n| !n.ends_with(".lock"));
    names.sort();
    names
}

#[cfg(unix)]
#[test]
fn kills_leave_no_duplicate_and_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (calm, rough) = (dir.path().join("calm"), dir.path().join("rough"));
    [&calm, &rough].iter().for_each(|d| fs::create_dir(d).unwrap());
    let line = "synth --backend cpu all -n 25 -o s.h5 --per-file 3 --every 10";
    ends(&calm, line, 0);
    let files = || names(&rough).iter().filter(|n| n.ends_with(".h5")).count();
    let mut resumed = 0;
    for round in 0..6 {
        let before = files();
        resumed += usize::from((1..9).contains(&before));
        let mut child = command(&rough, line).stderr(Stdio::null()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() && files() == before {
            std::thread::sleep(Duration::from_millis(2));
        }
        // at another point of the next file
        std::thread::sleep(Duration::from_millis(7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        // what is there is whole
        for name in names(&rough).iter().filter(|n| n.ends_with(".h5") && **n != "s-00008.h5") {
            assert_eq!(read(&rough, &format!("{name}:/gather")).len_of(Axis(0)), 3);
        }
    }
    assert!(resumed > 0, "no run found a part of the set");
    ends(&rough, line, 0);
    assert_eq!(names(&calm), names(&rough));
    for dataset in ["gather", "velocity", "family", "number"] {
        assert!(whole(&calm, "s", 9, dataset) == whole(&rough, "s", 9, dataset), "{dataset}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let line = "synth --backend cpu all -n 1000000 -o s.h5 --every 100 --per-file 30000";
    let mut child = command(dir, line).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    // samples are counted
    let begun = lines.find(|l| l.contains("per second"));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let message = lines.collect::<Vec<_>>().join("\n");
    let status = child.wait().unwrap();
    assert!(begun.is_some(), "{message}");
    assert_eq!(status.code(), Some(130), "{message}");
    assert!(message.contains("interrupted by signal 2"), "{message}");
    let made = read(dir, "s.h5:/number").len();
    assert!((1..1_000_000).contains(&made), "{made}");
    assert_eq!(names(dir), ["s.h5"]);
    ends(dir, &format!("synth --backend cpu all -n {} -o s.h5 --every 100 --per-file 30000", made + 2), 0);
    assert_eq!(read(dir, "s.h5:/gather").shape(), [made + 2, 5, 10, 70]);
    let message = ends(dir, &format!("synth --backend cpu all -n {made} -o s.h5 --every 50 --per-file 30000"), 2);
    assert!(message.contains("every 100, not 50"), "{message}");
}

/// A limit on file sizes stands for a full disk.
#[cfg(unix)]
#[test]
fn a_refused_write_loses_nothing_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (line, file) in [
        ("synth --backend cpu all -n 6 -o s.h5 --per-file 4", "s.h5"),
        ("synth --backend cpu StyleA -n 6 -o set --format kaggle --per-file 4", "set/Style_A/data/data1.npy"),
    ] {
        ends(dir, &line.replace("-n 6", "-n 1"), 0);
        let before = fs::read(dir.join(file)).unwrap();
        let limited = |blocks: &str| {
            let mut shell = Command::new("sh");
            shell.current_dir(dir).args(["-c", "ulimit -f $0; exec \"$@\"", blocks]).arg(cli_common::fwi());
            shell.args(line.split_whitespace()).output().unwrap()
        };
        // blocks are 512 or 1024 bytes
        let refused = ["3000", "1500"].iter().map(|b| limited(b)).find(|out| !out.status.success());
        let out = refused.expect("the limit on file sizes was never met");
        let message = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(4), "{message}");
        let last = message.lines().last().unwrap();
        assert!(last.contains("cannot write") && last.contains("ulimit"), "{message}");
        assert!(fs::read(dir.join(file)).unwrap() == before);
        ends(dir, line, 0);
    }
    let unfinished = |d: &Path| names(d).iter().any(|n| n.ends_with(TMP_SUFFIX));
    assert!(!unfinished(dir) && !unfinished(&dir.join("set/Style_A/data")));
    assert_eq!(read(dir, "s-00001.h5:/gather").shape(), [2, 5, 1000, 70]);
    assert_eq!(read(dir, "set/Style_A/data/data2.npy").shape(), [2, 5, 1000, 70]);
}
