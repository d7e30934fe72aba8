//! `fwi batch` as its user meets it: results, resuming, bad gathers, signals.

mod cli_common;

use cli_common::{Bench, smooth_map};
use fwi::io::{Limits, read_gather, read_map, write_array};
use ndarray::{Array3, Axis};
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn fwi(bench: &Bench, line: &str) -> Command {
    let mut command = Command::new(cli_common::fwi());
    command.current_dir(bench.path("")).args(line.split_whitespace());
    command
}

/// Standard error of a command that must end with this code.
fn ends(bench: &Bench, line: &str, code: i32) -> String {
    let Output { status, stderr, .. } = fwi(bench, line).output().unwrap();
    let message = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "fwi {line}: {message}");
    assert!(!message.contains("panicked"), "fwi {line}: {message}");
    message
}

fn lines(dir: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(dir.join("results.jsonl")).unwrap();
    let mut lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    lines.sort_by_key(|l| l["id"].as_str().unwrap().to_string());
    lines
}

fn ids(dir: &Path) -> Vec<String> {
    lines(dir).iter().map(|l| l["id"].as_str().unwrap().to_string()).collect()
}

fn summary(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join("summary.json")).unwrap()).unwrap()
}

/// A directory `in` with the gathers a, b and c, and one `truth` with their maps.
fn three() -> Bench {
    let bench = Bench::new();
    let extras = [0.0, 80.0, -40.0];
    let maps: Vec<_> = extras.map(smooth_map).to_vec();
    let views: Vec<_> = maps.iter().map(|m| m.view()).collect();
    write_array(bench.path("maps.npy"), ndarray::stack(Axis(0), &views).unwrap().view()).unwrap();
    ends(&bench, "forward maps.npy -o gathers.npy", 0);
    let mut gathers = fwi::io::Gathers::open(bench.path("gathers.npy"), (5, 1000, 70), &Limits::default()).unwrap();
    for name in ["in", "truth"] {
        fs::create_dir(bench.path(name)).unwrap();
    }
    for (i, name) in ["a.npy", "b.npy", "c.npy"].into_iter().enumerate() {
        let gather = gathers.get(i).unwrap().mapv(|x| x as f32);
        write_array(bench.path("in").join(name), gather.view()).unwrap();
        write_array(bench.path("truth").join(name), maps[i].view()).unwrap();
    }
    bench
}

#[test]
fn a_batch_equals_single_inversions_and_resumes() {
    let bench = three();
    let batch = "batch in --stages l2 --truth truth --max-evals 2 --in-flight 3";
    let said = ends(&bench, &format!("{batch} -o out"), 0);
    assert!(said.contains("gathers: 3; 3 at a time") && said.contains("3 of 3 gathers, "), "{said}");
    assert!(said.contains("busy") && said.contains("3 gathers, mean data rms"), "{said}");
    let out = bench.path("out");
    assert_eq!(ids(&out), ["a", "b", "c"]);
    ends(&bench, "invert in/b.npy -o single --stages l2 --truth truth/b.npy --max-evals 2 -q", 0);
    let map = |path: &str| fs::read(bench.path(path)).unwrap();
    assert!(map("out/velocity/b.npy") == map("single/velocity.npy"));
    let single: serde_json::Value = serde_json::from_slice(&map("single/result.json")).unwrap();
    let b = lines(&out).remove(1);
    for key in ["data_rms", "mae", "evaluations", "stop_reason"] {
        assert_eq!(b[key], single[key], "{key}");
    }
    let s = summary(&out);
    assert_eq!((s["gathers"].as_u64(), s["inverted"].as_u64(), s["failed"].as_u64()), (Some(3), Some(3), Some(0)));
    assert_eq!(s["evaluations"], 6);
    assert!(
        s["mean_mae"].as_f64().unwrap() > 0.0 && s["last_run"]["devices"][0]["busy"].as_f64().unwrap() > 0.5,
        "{s}"
    );
    image::open(out.join("velocity.png")).unwrap();

    // what is there is neither overwritten unasked nor done again
    assert!(ends(&bench, &format!("{batch} -o out"), 2).contains("--resume"));
    let whole = fs::read(out.join("results.jsonl")).unwrap();
    let said = ends(&bench, &format!("{batch} -o out --resume"), 0);
    assert!(said.contains("3 of them done before"), "{said}");
    assert!(fs::read(out.join("results.jsonl")).unwrap() == whole);
    // however the directory is spelled and the limits are, but not by another way
    let spelled = batch.replace("batch in", "batch ./in").replace("--max-evals 2", "--max-evals 3");
    assert!(ends(&bench, &format!("{spelled} -o out --resume"), 0).contains("3 of them done before"));
    for other in ["--start gradient", "--bounds 1500,3000"] {
        let said = ends(&bench, &format!("{batch} -o out --resume {other}"), 2);
        assert!(said.contains("out holds 3 maps made with another start"), "{said}");
    }
    assert!(fs::read(out.join("results.jsonl")).unwrap() == whole);
    // a torn last line and a lost map are done again
    let b_map = map("out/velocity/b.npy");
    let kept = lines(&out).into_iter().filter(|l| l["id"] != "c").map(|l| format!("{l}\n")).collect::<String>();
    fs::write(out.join("results.jsonl"), kept + "{\"id\":\"c\",\"gath").unwrap();
    fs::remove_file(out.join("velocity/b.npy")).unwrap();
    fs::write(out.join("velocity/.fwi-4194305-abcdefgh.tmp"), "half").unwrap();
    let said = ends(&bench, &format!("{batch} -o out --resume"), 0);
    assert!(said.contains("1 of them done before"), "{said}");
    assert_eq!(ids(&out), ["a", "b", "c"]);
    assert!(map("out/velocity/b.npy") == b_map);
    assert_eq!(fs::read_dir(out.join("velocity")).unwrap().count(), 3);
    assert_eq!(summary(&out)["last_run"]["gathers"], 2);

    // what makes no sense costs nothing
    for wrong in ["--memory 0", "--bounds 4500,1500"] {
        ends(&bench, &format!("{batch} -o out --force {wrong}"), 2);
        assert_eq!(ids(&out), ["a", "b", "c"]);
    }

    // a stack gives the same maps under numbered names; --force leaves nothing of before
    let line = "batch gathers.npy --stages l2 --truth maps.npy --start maps.npy --max-evals 1 -o out --force --quiet";
    assert_eq!(ends(&bench, line, 0), "");
    assert_eq!(ids(&out), ["gathers_0", "gathers_1", "gathers_2"]);
    assert_eq!(fs::read_dir(out.join("velocity")).unwrap().count(), 3);
    for (i, line) in lines(&out).iter().enumerate() {
        assert_eq!((line["index"].as_u64(), line["evaluations"].as_u64()), (Some(i as u64), Some(1)));
        assert!(line["mae"].as_f64().unwrap() < 1.0, "it begins at the truth: {line}");
    }
    assert!(read_map(out.join("velocity/gathers_2.npy"), (70, 70), &Limits::default()).is_ok());
}

#[test]
fn a_bad_gather_is_recorded_and_the_others_go_on() {
    let bench = three();
    let bytes = fs::read(bench.path("in/a.npy")).unwrap();
    fs::write(bench.path("in/b.npy"), &bytes[..70_000]).unwrap();
    write_array(bench.path("in/d.npy"), Array3::<f32>::zeros((5, 1000, 70)).view()).unwrap();
    fs::copy(bench.path("gathers.npy"), bench.path("in/e.npy")).unwrap();
    let said = ends(&bench, "batch in --stages l2 -o out --max-evals 1", 3);
    assert!(said.contains("b: failed: ") && said.contains("5 gathers, 3 failed"), "{said}");
    let out = bench.path("out");
    let errors: Vec<String> = lines(&out).iter().map(|l| l["error"].as_str().unwrap_or("none").to_string()).collect();
    for (i, part) in ["none", "truncated", "none", "every trace is zero", "holds 3 gathers"].iter().enumerate() {
        assert!(errors[i].contains(part), "{errors:?}");
    }
    assert!(out.join("velocity/a.npy").exists() && !out.join("velocity/b.npy").exists());
    assert_eq!(summary(&out)["failed"], 3);
    // mended, it succeeds; the others stay
    fs::write(bench.path("in/b.npy"), &bytes).unwrap();
    ["d.npy", "e.npy"].iter().for_each(|f| fs::remove_file(bench.path("in").join(f)).unwrap());
    let said = ends(&bench, "batch in --stages l2 -o out --max-evals 1 --resume", 0);
    assert!(said.contains("gathers: 3, 2 of them done before"), "{said}");
    assert!(fs::read(out.join("velocity/a.npy")).unwrap() == fs::read(out.join("velocity/b.npy")).unwrap());
    // a missing true map fails its gather
    fs::remove_file(bench.path("truth/c.npy")).unwrap();
    let said = ends(&bench, "batch in --stages l2 -o other --truth truth --max-evals 1", 4);
    assert!(said.contains("c: failed: truth/c.npy: cannot read"), "{said}");
}

#[test]
fn what_is_wrong_is_said_before_anything_is_written() {
    let bench = three();
    fs::create_dir(bench.path("empty")).unwrap();
    fs::create_dir(bench.path("more")).unwrap();
    fs::copy(bench.path("in/a.npy"), bench.path("more/a.npy")).unwrap();
    for (line, code, part) in [
        ("batch missing.npy -o o", 4, "missing.npy: cannot read"),
        ("batch empty -o o", 3, "empty: holds no .npy file"),
        ("batch in more -o o", 2, "more/a.npy: another gather's results would have the name \"a\""),
        ("batch in -o o --start gradeint", 2, "gradeint: is neither \"gradient\", \"prior\" nor a file"),
        ("batch in -o o --bounds 1500,20000", 2, "--bounds 1500,20000: unstable"),
        ("batch in/a.npy in/b.npy -o o --truth maps.npy", 3, "holds 3 velocity maps for 2 gathers"),
        ("batch in -o o --in-flight 0", 2, "--in-flight"),
        ("batch in --stages l2 -o o --in-flight 4000 --max-memory 300M", 5, "lower --in-flight"),
        ("batch in -o o --max-memory 70M", 5, "raise --max-memory"),
        ("batch in -o o --resume --force", 2, "--force"),
        ("batch in -o gathers.npy", 2, "gathers.npy: is no directory"),
        ("batch -o o", 2, "<INPUT>"),
    ] {
        let message = ends(&bench, line, code);
        assert!(message.contains(part), "fwi {line}: {message}");
        assert!(!bench.path("o").exists(), "fwi {line}");
    }
    fs::create_dir(bench.path("held")).unwrap();
    let lock = fs::File::create(bench.path("held/.lock")).unwrap();
    lock.lock().unwrap();
    assert!(ends(&bench, "batch in -o held", 2).contains("another fwi is working there"));
    drop(lock);
    fs::create_dir(bench.path("held/velocity")).unwrap();
    fs::copy(&bench.map, bench.path("held/velocity/mine.npy")).unwrap();
    // maps that no batch made are nobody's to overwrite or remove
    for how in ["", "--force", "--resume"] {
        let said = ends(&bench, &format!("batch in -o held {how}"), 2);
        assert!(said.contains("held/velocity: holds maps of no batch"), "{said}");
    }
    let said = ends(&bench, "batch held/velocity -o held --force", 2);
    assert!(said.contains("would be overwritten"), "{said}");
    assert!(bench.path("held/velocity/mine.npy").exists());
}

#[cfg(unix)]
#[test]
fn names_that_are_no_utf_8_are_no_trouble() {
    use std::os::unix::ffi::OsStrExt;
    let bench = three();
    let name = std::ffi::OsStr::from_bytes(b"g\xe9.npy");
    fs::rename(bench.path("in/a.npy"), bench.path("in").join(name)).unwrap();
    let batch = "batch in --stages l2 --max-evals 1 -o out -q";
    assert_eq!(ends(&bench, batch, 0), "");
    assert_eq!(ids(&bench.path("out")), ["b", "c", "g\u{fffd}"]);
    assert_eq!(ends(&bench, &format!("{batch} --resume"), 0), "");
    let single = fwi(&bench, "invert -o single --stages l2 --max-evals 1 -q").arg(bench.path("in").join(name)).status();
    assert_eq!(single.unwrap().code(), Some(0));
    assert!(bench.path("single/result.json").exists());
}

#[cfg(unix)]
#[test]
fn a_signal_keeps_what_is_done() {
    use std::time::{Duration, Instant};
    let bench = three();
    let gather = read_gather(bench.path("in/a.npy"), (5, 1000, 70), &Limits::default()).unwrap().mapv(|x| x as f32);
    (0..40).for_each(|i| write_array(bench.path("in").join(format!("x{i}.npy")), gather.view()).unwrap());
    let mut child = fwi(&bench, "batch in --stages l2 -o out --max-evals 2 -q").stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while fs::read_to_string(bench.path("out/results.jsonl")).map_or(0, |log| log.lines().count()) < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no result in a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
    cli_common::signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut message = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut message).unwrap();
    assert_eq!(message, "fwi: interrupted by signal 2; the state is saved in out\n");
    let out = bench.path("out");
    let before = lines(&out);
    assert!((2..43).contains(&before.len()), "{}", before.len());
    assert!(before.iter().all(|l| l["error"].is_null() && l["evaluations"] == 2) && !out.join("summary.json").exists());
    (3..40).for_each(|i| fs::remove_file(bench.path("in").join(format!("x{i}.npy"))).unwrap());
    ends(&bench, "batch in --stages l2 -o out --max-evals 2 -q --resume", 0);
    for id in ["a", "b", "c", "x0", "x1", "x2"] {
        assert!(ids(&out).iter().any(|i| i == id) && out.join(format!("velocity/{id}.npy")).exists(), "{id}");
    }
    assert!(before.iter().all(|l| lines(&out).contains(l)));
}
