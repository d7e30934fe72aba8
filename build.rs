//! Embeds the CUDA sources and the bundled priors: writes the list of `kernels/*.cu` and `kernels/*.cuh` that
//! `src/wave/cuda/compile.rs` includes, and that of the folders of `priors` with a model for `src/prior/registry.rs`.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("kernel_sources.rs"), kernel_sources(&root.join("kernels"))?)?;
    std::fs::write(out.join("bundled_priors.rs"), bundled_priors(&root.join("priors"))?)?;
    Ok(())
}

fn kernel_sources(folder: &Path) -> Result<String, Box<dyn Error>> {
    println!("cargo:rerun-if-changed=kernels");
    let mut names = names(folder)?;
    names.retain(|name| name.ends_with(".cu") || name.ends_with(".cuh"));
    let mut list = String::from("&[\n");
    for name in names {
        writeln!(list, "    ({name:?}, include_str!({:?})),", folder.join(&name))?;
    }
    list.push(']');
    Ok(list)
}

fn bundled_priors(folder: &Path) -> Result<String, Box<dyn Error>> {
    let names = if folder.is_dir() { names(folder)? } else { vec![] };
    let mut list = String::from("&[\n");
    for name in names {
        let (manifest, model) = (folder.join(&name).join("manifest.toml"), folder.join(&name).join("model.onnx"));
        if manifest.is_file() && model.is_file() {
            // these alone, not what training leaves beside them; the first build after a folder is added needs a touch
            // of this file
            println!("cargo:rerun-if-changed=priors/{name}/manifest.toml");
            println!("cargo:rerun-if-changed=priors/{name}/model.onnx");
            writeln!(
                list,
                "    Bundled {{ name: {name:?}, manifest: include_str!({manifest:?}), model: include_bytes!({model:?}) }},"
            )?;
        }
    }
    list.push(']');
    Ok(list)
}

/// Names of what is in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        names.push(name.into_string().map_err(|n| format!("{}: {n:?} is no UTF-8", folder.display()))?);
    }
    names.sort();
    Ok(names)
}
