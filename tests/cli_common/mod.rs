//! A map, its gather and a directory to work in, for the tests of the binary.
#![allow(dead_code, reason = "each test binary uses its own part")]

use fwi::io::write_array;
use fwi::wave::{CpuOptions, build};
use fwi::{Model, Survey};
use ndarray::Array2;
use std::fs;
use std::path::{Path, PathBuf};

/// The binary under test.
pub fn fwi() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("fwi").to_path_buf()
}

/// Runs a command in a directory to its end: exit code, standard output, standard error.
pub fn run(dir: impl AsRef<Path>, line: &str) -> (i32, String, String) {
    let mut command = assert_cmd::Command::new(fwi());
    let out = command.current_dir(dir).args(line.split_whitespace()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().expect("no signal"), text(&out.stdout), text(&out.stderr))
}

/// A directory with a smooth map and the gather that it makes; removed at the end.
pub struct Bench {
    dir: tempfile::TempDir,
    pub map: PathBuf,
    pub gather: PathBuf,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (map, gather) = (dir.path().join("map.npy"), dir.path().join("gather.npy"));
        let vp = smooth_map(0.0);
        write_array(&map, vp.view()).unwrap();
        let model = Model::from_map(vp.mapv(f64::from));
        let data = build(Survey::openfwi(), &CpuOptions::default()).unwrap().forward(&[model]).unwrap().remove(0).data;
        write_array(&gather, data.mapv(|x| x as f32).view()).unwrap();
        Self { dir, map, gather }
    }

    /// Runs a command in this directory to its end: exit code, standard output, standard error.
    pub fn run(&self, line: &str) -> (i32, String, String) {
        run(&self.dir, line)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Velocities that grow with depth over a gentle wave.
pub fn smooth_map(extra: f32) -> Array2<f32> {
    Array2::from_shape_fn((70, 70), |(z, x)| 1800.0 + 25.0 * z as f32 + 60.0 * (x as f32 / 9.0).sin() + extra)
}

/// The lines of a run's log, without what depends on the clock.
pub fn log_without_times(dir: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(dir.join("log.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds").expect("every line has its time");
        line
    });
    lines.collect()
}

/// Sends a signal, such as "INT", to a child.
#[cfg(unix)]
pub fn signal(child: &std::process::Child, name: &str) {
    let kill = std::process::Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(kill.success());
}
