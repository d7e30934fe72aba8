//! `fwi invert` killed at random instants, or cut off by a limit on file sizes: no file is ever torn, and the resumed
//! inversion ends with the same bits. `FWI_KILLS` sets the number of kills.
#![cfg(unix)]

mod cli_common;

use cli_common::{Bench, fwi, log_without_times};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const EVALUATIONS: &str = "40";

fn start(gather: &Path, dir: &Path) -> Child {
    Command::new(fwi())
        .args(["invert", "--resume", "--quiet", "--max-evals", EVALUATIONS, "--start", "gradient", "-o"])
        .args([dir, gather])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Iterations that the newest checkpoint and the log tell of; panics when any file is not whole.
fn inspect(dir: &Path) -> (u64, u64) {
    let (mut saved, mut logged) = (0, 0);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        match path.file_name().unwrap().to_str().unwrap() {
            // the process may die within its last write; that line is dropped on resume
            "log.jsonl" => {
                let mut lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
                lines.pop();
                for (i, line) in lines.iter().enumerate() {
                    let line: serde_json::Value = serde_json::from_slice(line).expect("a whole line");
                    assert_eq!(line["iteration"], i + 1, "the log has a gap");
                }
                logged = lines.len() as u64;
            }
            name @ ("checkpoint.bin" | "checkpoint-synced.bin") => {
                let state = fwi::invert::State::from_bytes(&bytes, &path).unwrap();
                if name == "checkpoint.bin" {
                    saved = state.iterations();
                }
            }
            "velocity.npy" => {
                fwi::io::read_map(&path, (70, 70), &fwi::io::Limits::default()).unwrap();
            }
            "result.json" | "start.json" => drop(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()),
            name if name.ends_with(".png") => drop(image::load_from_memory(&bytes).unwrap()),
            ".lock" => {}
            name => assert!(name.starts_with(".fwi-") && name.ends_with(".tmp"), "{name} does not belong here"),
        }
    }
    (saved, logged)
}

#[test]
fn kills_at_random_instants_lose_at_most_one_iteration_and_no_bit() {
    let kills: usize = std::env::var("FWI_KILLS").ok().map_or(10, |n| n.parse().expect("FWI_KILLS is a number"));
    let seed = std::env::var("FWI_SEED").ok().map_or(1, |n| n.parse().expect("FWI_SEED is a number"));
    let bench = Bench::new();
    let (calm, rough) = (bench.path("calm"), bench.path("rough"));
    let since = Instant::now();
    assert!(start(&bench.gather, &calm).wait().unwrap().success());
    let whole = since.elapsed();

    let mut rng = StdRng::seed_from_u64(seed);
    let (mut done, mut rounds, mut progress, mut ended, mut ahead, mut torn) = (0, 0, 0, 0, 0, 0);
    let mut reached = 0;
    while done < kills {
        // The run that comes to its limit is begun anew, so that every kill meets a run at work.
        let mut child = start(&bench.gather, &rough);
        std::thread::sleep(Duration::from_millis(rng.random_range(0..1500)));
        let killed = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if killed && !status.success() {
            done += 1;
        } else {
            assert!(status.success(), "{status}");
            ended += 1;
        }
        if !rough.exists() {
            continue;
        }
        let (saved, logged) = inspect(&rough);
        assert!(saved >= reached, "the checkpoint fell back from iteration {reached} to {saved}");
        assert!(saved <= logged && logged <= saved + 1, "checkpoint at {saved}, log at {logged}");
        progress += usize::from(saved > reached);
        ahead += usize::from(logged > saved);
        torn += usize::from(!fs::read(rough.join("log.jsonl")).unwrap_or_default().ends_with(b"\n") && logged > 0);
        reached = saved;
        if killed && !status.success() {
            continue;
        }
        compare(&calm, &rough);
        fs::remove_dir_all(&rough).unwrap();
        (reached, rounds) = (0, rounds + 1);
    }
    assert!(start(&bench.gather, &rough).wait().unwrap().success());
    compare(&calm, &rough);
    assert!(kills < 10 || progress > 0, "no kill came after progress; the machine is too busy for this test");
    println!(
        "{done} kills (seed {seed}): {progress} after progress, {ahead} between log and checkpoint, {torn} torn last \
         lines, {ended} runs came to their end first, {} whole inversions compared; uninterrupted {whole:.1?}",
        rounds + 1
    );
}

/// The same bits and the same log, times left aside; nothing unfinished lies about.
fn compare(calm: &Path, rough: &Path) {
    for file in ["velocity.npy", "velocity.png", "gather.png", "convergence.png"] {
        assert!(fs::read(calm.join(file)).unwrap() == fs::read(rough.join(file)).unwrap(), "{file} differs");
    }
    assert_eq!(log_without_times(calm), log_without_times(rough));
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(calm), names(rough));
}

/// A limit on file sizes stands for a full disk: both refuse a write midway.
#[test]
fn a_refused_write_is_an_error_and_resume_goes_on() {
    let bench = Bench::new();
    let (calm, full) = (bench.path("calm"), bench.path("full"));
    let invert = |dir: &Path, blocks: &str, evaluations: &str| {
        Command::new("sh")
            .args(["-c", "ulimit -f $0; exec \"$@\"", blocks])
            .arg(fwi())
            .args(["invert", "--resume", "--quiet", "--max-evals", evaluations, "--start", "gradient", "-o"])
            .args([dir, &bench.gather])
            .output()
            .unwrap()
    };
    assert!(invert(&calm, "unlimited", "8").status.success());
    assert!(invert(&full, "unlimited", "2").status.success());
    let before = fs::read(full.join("velocity.npy")).unwrap();
    let result = fs::read(full.join("result.json")).unwrap();
    // Checkpoints grow by 78 kB an iteration; 512 or 1024 byte blocks, as the shell has them.
    let mut refused = false;
    for blocks in ["600", "300"] {
        let out = invert(&full, blocks, "8");
        if out.status.success() {
            continue;
        }
        refused = true;
        let message = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(4), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains("cannot write") && message.contains("ulimit"), "{message}");
        inspect(&full);
        assert_eq!(fs::read(full.join("velocity.npy")).unwrap(), before);
        assert_eq!(fs::read(full.join("result.json")).unwrap(), result);
        break;
    }
    assert!(refused, "the limit on file sizes was never met");
    let left = fs::read_dir(&full).unwrap().filter(|e| {
        let name = e.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".tmp")
    });
    assert_eq!(left.count(), 0, "the unfinished file was left behind");
    assert!(invert(&full, "unlimited", "8").status.success());
    compare(&calm, &full);
}
