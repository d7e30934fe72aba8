//! Embeds the CUDA sources: writes the list of `kernels/*.cu` and `kernels/*.cuh` that `src/wave/cuda/compile.rs` includes.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=kernels");
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("kernels");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let name = entry?.file_name().into_string().map_err(|n| format!("kernels/{n:?} is no UTF-8"))?;
        if name.ends_with(".cu") || name.ends_with(".cuh") {
            names.push(name);
        }
    }
    names.sort();
    let mut list = String::from("&[\n");
    for name in names {
        writeln!(list, "    ({name:?}, include_str!({:?})),", folder.join(&name))?;
    }
    list.push(']');
    let out: PathBuf = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?.into();
    std::fs::write(out.join("kernel_sources.rs"), list)?;
    Ok(())
}
