//! Networks, manifests and gathers for the tests of priors.
#![allow(dead_code, reason = "each test binary uses its own part")]

use fwi::prior::layout::trial_map;
use fwi::prior::{Network, Runtime, Source};
use fwi::{Gather, Observed, Result, Survey};
use ndarray::{Array2, Array3, s};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// A network of `tests/data/onnx`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/onnx").join(format!("{name}.onnx"))
}

/// A gather of noise.
pub fn random_gather(seed: u64) -> Observed {
    let mut rng = StdRng::seed_from_u64(seed);
    let data = Array3::from_shape_fn(Survey::openfwi().gather_shape(), |_| rng.random_range(-5.0..5.0));
    Observed::new(Gather::new(data))
}

/// The manifest of a fixture, up to where its tables begin, and `more`.
pub fn manifest(name: &str, more: &str) -> String {
    let hash: String =
        Sha256::digest(fs::read(fixture(name)).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "name = \"{name}\"\nversion = \"7\"\ndescription = \"a test's\"\nlicence = \"MIT\"\ntraining = \"none\"\n\
         model = \"{name}.onnx\"\nsha256 = \"{hash}\"\n{more}"
    )
}

/// The manifest of the fixture with all outputs.
pub fn full_manifest(name: &str) -> String {
    let more = "augment = \"flip\"\n\
        [input]\nname = \"gather\"\nevery = 2\nscale = 0.5\n\
        [velocity]\noutput = \"velocity\"\nscale = 1500.0\noffset = 3000.0\n\
        [error]\noutput = \"error\"\nscale = 100.0\n\
        [families]\noutput = \"families\"\nlabels = [\"Style_B\", \"FlatVel_A\"]\n\
        [[mae]]\nfamily = \"FlatVel_A\"\nmaps = \"real\"\ncount = 3\nmae = 12.5\n";
    manifest(name, more)
}

/// A folder with a fixture and a manifest.
pub fn folder_of(name: &str, manifest: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture(name), dir.path().join(format!("{name}.onnx"))).unwrap();
    fs::write(dir.path().join("manifest.toml"), manifest).unwrap();
    dir
}

/// The program whose process runs priors, and its argument.
pub fn worker() -> (PathBuf, Vec<String>) {
    (assert_cmd::cargo::cargo_bin!("fwi").to_path_buf(), vec!["prior-worker".into()])
}

/// The network of a file, in tract.
pub fn open(path: &Path) -> Result<Network> {
    Network::open(&Source::of(path)?, &Runtime::Tract, 1)
}

/// Why a file is refused: one line that names it.
pub fn problem(path: &Path) -> String {
    match open(path) {
        Ok(_) => panic!("{} was taken", path.display()),
        Err(e) => {
            let message = e.to_string();
            assert!(message.starts_with(&path.display().to_string()) && !message.contains('\n'), "{message}");
            message
        }
    }
}

/// What the fixtures give: the trial's map and ten times a sample of the second shot.
pub fn expected(gather: &Observed, sample: usize) -> Array2<f32> {
    let row = gather.gather.data.slice(s![1, sample, ..]).mapv(|x| 10.0 * x as f32);
    Array2::from_shape_fn((70, 70), |(z, x)| trial_map()[[z, x]] as f32 + row[x])
}

/// Largest difference.
pub fn furthest(a: &Array2<f32>, b: &Array2<f32>) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
