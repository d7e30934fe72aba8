//! Puts the stand-in for libcuda, `libcuda.c` beside this file, into a folder for `LD_LIBRARY_PATH`.

use std::path::Path;
use std::process::Command;

/// Compiles it into `folder` under the driver's names; `flags` are those of the C compiler.
pub fn build(folder: &Path, flags: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda/libcuda.c");
    let library = folder.join("libcuda.so.1");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]).args(flags).arg("-o").arg(&library).arg(source);
    let out = cc.output().expect("a C compiler, which Rust needs too");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::fs::copy(&library, folder.join("libcuda.so")).unwrap();
}
