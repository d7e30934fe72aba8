//! `kernels/check_gpu.py`, on the CPU and on a machine that only pretends to have a GPU. Counted as ignored where there
//! is no Python.

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Runs the script; its exit code, what it said, and result.json.
fn check(fwi: &Path, out: &Path, path: &str, more: &[&str]) -> (i32, String, Value) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/check_gpu.py");
    let mut run = Command::new("python3");
    run.arg("-B").arg(script).args(["--quick", "--fwi"]).arg(fwi).arg("--out").arg(out).args(more);
    run.env("PATH", path).env("REAL_FWI", assert_cmd::cargo::cargo_bin!("fwi"));
    let run = run.output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    let result = fs::read_to_string(out.join("result.json")).map_or(Value::Null, |t| serde_json::from_str(&t).unwrap());
    (run.status.code().unwrap(), said, result)
}

fn result<'a>(all: &'a Value, item: &str) -> (&'a str, &'a str) {
    let items = all["items"].as_array().unwrap();
    let found = items.iter().find(|i| i["item"] == item).unwrap_or_else(|| panic!("no {item}: {all}"));
    (found["result"].as_str().unwrap(), found["figure"].as_str().unwrap())
}

fn path() -> String {
    std::env::var("PATH").unwrap()
}

fn the_cpu_passes_and_what_needs_a_gpu_is_unchecked() {
    let dir = tempfile::tempdir().unwrap();
    let fwi = assert_cmd::cargo::cargo_bin!("fwi");
    let (code, said, all) = check(fwi, dir.path(), &path(), &["--backend", "cpu"]);
    assert_eq!((code, all["passed"].as_bool()), (0, Some(true)), "{said}");
    for item in ["adjoint, f32", "fwi forward against the CPU", "fwi batch", "maps alone as in the batch"] {
        assert_eq!(result(&all, item).0, "passed", "{item}: {said}");
    }
    for item in ["CUDA device", "kernels against the CPU, f32", "forward gathers/s, f32", "compute-sanitizer racecheck"]
    {
        assert_eq!(result(&all, item).0, "unchecked", "{item}: {said}");
    }
    assert!(dir.path().join("batch.log").exists() && !dir.path().join("gathers.npy").exists());
    // out of time, nothing has passed
    let (code, said, all) = check(fwi, dir.path(), &path(), &["--backend", "cpu", "--minutes", "0"]);
    assert_eq!((code, result(&all, "fwi batch")), (1, ("unchecked", "there are no gathers to invert")), "{said}");
}

/// A binary with a GPU's words and the CPU's numbers: a gradient is wrong, gradients are slow, an adjoint is none, and
/// single inversions end elsewhere than in the batch.
const FWI: &str = r#"#!/usr/bin/env python3
import os, sys
command, args = sys.argv[1], ["cpu" if a == "cuda" else a for a in sys.argv[2:]]
if command == "doctor":
    print("backends: cpu, cuda\ncuda: driver for CUDA 13.0")
    print("cuda:0: Pretended, 80.0 GB, compute capability 9.0, 132 multiprocessors\ncuda:0 kernels: for sm_90")
elif command == "gpu-check":
    print("""device: Pretended (cuda:0), kernels: for sm_90
clusters, f64:
  forward against the CPU                              3.1e-15  (limit 1e-12)  ok
clusters, f32:
  samples that differ from the CPU's in f32 by a bit            0.0e0  (limit 0e0)  ok
  gradient with windows and decimated history                  2.0e-3  (limit 1e-5)  FAILED
correctness: 3 comparisons, 1 failed
rates, f32 fast but where it is said                        forward/s  gradients/s
  CPU f32, fast                                                20.0          7.0   1 and 1 times the CPU
  clusters, batches, two lanes (32 a launch)                 1200.5        290.0   60 and 41 times the CPU
  clusters, batches, two lanes, exact (32 a launch)           900.0        999.0   45 and 143 times the CPU""")
    sys.exit(1)
elif command == "check":
    print("dot product  0: relative difference 2.0e-4\nTaylor: slope 1.9000 (2 for an exact gradient)")
    sys.exit(1)
else:
    if command == "invert":
        args[args.index("--max-evals") + 1] = "1"
    os.execv(os.environ["REAL_FWI"], ["fwi", command] + args)
"#;

const SANITIZER: &str = r#"#!/usr/bin/env python3
import sys
print("========= COMPUTE-SANITIZER")
if sys.argv[2] == "racecheck":
    print("========= Error: Race reported between Write access and Read access")
    print("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)")
    sys.exit(99)
if sys.argv[2] != "synccheck":
    print("========= ERROR SUMMARY: 0 errors")
"#;

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn what_a_gpu_does_wrong_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let fwi = dir.path().join("fwi");
    write(&fwi, FWI);
    write(&dir.path().join("compute-sanitizer"), SANITIZER);
    let path = format!("{}:{}", dir.path().display(), path());
    let (code, said, all) = check(&fwi, &dir.path().join("out"), &path, &[]);
    assert_eq!((code, all["passed"].as_bool()), (1, Some(false)), "{said}");
    let expected = [
        ("CUDA device", "passed", "cuda:0: Pretended"),
        ("fwi gpu-check", "failed", "exit code 1"),
        ("kernels against the CPU, f64", "passed", "1 agree, worst 3.1e-03 of its limit"),
        ("kernels against the CPU, f32", "failed", "1 of 2 differ: gradient with windows"),
        ("forward gathers/s, f32", "passed", "1200"),
        ("gradients/s, f32", "failed", "290"),
        ("adjoint, f64", "unchecked", "--quick"),
        ("adjoint, f32", "failed", "dot products 2.0e-04, Taylor slope 1.9"),
        ("fwi forward against the CPU", "passed", "0.0e+00"),
        ("fwi batch", "passed", "evaluations/s"),
        ("nvidia-smi during fwi batch", "unchecked", "gave 0 samples"),
        ("maps alone as in the batch", "failed", "0 of 1 the same"),
        ("compute-sanitizer memcheck", "passed", "no report"),
        ("compute-sanitizer initcheck", "passed", "no report"),
        ("compute-sanitizer racecheck", "failed", "1 reports; Race reported between Write"),
        ("compute-sanitizer synccheck", "unchecked", "without a summary"),
    ];
    for (item, word, figure) in expected {
        let found = result(&all, item);
        assert!(found.0 == word && found.1.contains(figure), "{item}: {found:?}");
    }
}

fn what_hangs_is_ended_and_no_gpu_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let fwi = dir.path().join("fwi");
    write(&fwi, "#!/bin/sh\nsleep 300 & wait\n");
    let since = Instant::now();
    let (code, said, all) = check(&fwi, &dir.path().join("out"), &path(), &["--minutes", "0.03"]);
    assert_eq!((code, result(&all, "CUDA device").0), (1, "unchecked"), "{said}");
    assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
    write(&fwi, "#!/bin/sh\necho 'backends: cpu'; echo 'cuda: none (no NVIDIA driver)'\n");
    let (code, said, _) = check(&fwi, &dir.path().join("out"), &path(), &[]);
    let last = said.lines().last().unwrap();
    assert_eq!((code, last), (2, "no CUDA device: none (no NVIDIA driver); nothing was checked"), "{said}");
    let (code, said, _) = check(&dir.path().join("missing"), dir.path(), &path(), &[]);
    assert!(code == 2 && said.contains("no binary at"), "{said}");
}

fn main() {
    let args = Arguments::from_args();
    let missing = Command::new("python3").arg("--version").output().is_err();
    if missing {
        println!("skipped: no python3");
    }
    let tests = [
        ("the_cpu_passes_and_what_needs_a_gpu_is_unchecked", the_cpu_passes_and_what_needs_a_gpu_is_unchecked as fn()),
        ("what_a_gpu_does_wrong_is_told", what_a_gpu_does_wrong_is_told),
        ("what_hangs_is_ended_and_no_gpu_is_said", what_hangs_is_ended_and_no_gpu_is_said),
    ];
    let trial = |(name, test): (&str, fn())| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(missing)
    };
    libtest_mimic::run(&args, tests.into_iter().map(trial).collect()).exit();
}
