//! Priors by name: those in the binary, and those in the user's folders.
//!
//! A folder `NAME` with a `manifest.toml` and its model in `FWI_PRIORS`, or else in `$XDG_DATA_HOME/fwi/priors` or
//! `~/.local/share/fwi/priors`, is a prior of that name. Names in the binary come first.

use super::manifest::{Manifest, is_name};
use super::network::{Network, Source};
use super::runtime::Runtime;
use crate::{Error, Result};
use std::env;
use std::path::{Path, PathBuf};

/// A prior in the binary.
#[derive(Clone, Copy, Debug)]
pub struct Bundled {
    /// Its name.
    pub name: &'static str,
    manifest: &'static str,
    model: &'static [u8],
}

/// The priors in the binary, by name: the folders of `priors/` that held a model when it was built.
pub const BUNDLED: &[Bundled] = include!(concat!(env!("OUT_DIR"), "/bundled_priors.rs"));

impl Bundled {
    /// Its manifest.
    pub fn manifest(&self) -> Result<Manifest> {
        Manifest::parse(self.manifest, &self.path("manifest.toml"))
    }

    /// Loads it into this process.
    pub fn open(&self, runtime: &Runtime, threads: usize) -> Result<Network> {
        Network::load(self.model, Some(self.manifest()?), &self.path("model.onnx"), runtime, threads)
    }

    fn path(&self, file: &str) -> PathBuf {
        Path::new("bundled").join(self.name).join(file)
    }
}

/// Where a prior is.
#[derive(Clone, Debug)]
pub enum Found {
    /// In the binary.
    Bundled(&'static Bundled),
    /// In files.
    Files(Source),
}

/// The prior that is taken when none is named: the first in the binary.
pub fn default_prior() -> Option<&'static Bundled> {
    BUNDLED.first()
}

/// The user's folder of priors, if the environment tells.
pub fn user_folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data = || set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    set("FWI_PRIORS").or_else(|| Some(data()?.join("fwi/priors")))
}

/// Finds a prior: the name of one in the binary or of the user's, or else a file, see [`Source::of`].
///
/// Errors: [`Error::Usage`] for a name that nobody has, and those of [`Source::of`].
pub fn find(text: &str) -> Result<Found> {
    if let Some(bundled) = BUNDLED.iter().find(|b| b.name == text) {
        return Ok(Found::Bundled(bundled));
    }
    let own =
        user_folder().filter(|_| is_name(text)).map(|f| f.join(text)).filter(|f| f.join("manifest.toml").is_file());
    if let Some(folder) = own {
        return Source::of(&folder).map(Found::Files);
    }
    let path = Path::new(text);
    if is_name(text) && !path.exists() {
        let names: Vec<String> = list().into_iter().map(|(name, _)| name).collect();
        let known =
            if names.is_empty() { "there are none yet".into() } else { format!("there are {}", names.join(", ")) };
        return Err(Error::Usage(format!("no prior is called \"{text}\" ({known}); name one of them or an ONNX file")));
    }
    Source::of(path).map(Found::Files)
}

/// All priors that have a name: those in the binary, then the user's, each with its manifest or what is wrong with it.
pub fn list() -> Vec<(String, Result<Manifest>)> {
    let mut all: Vec<(String, Result<Manifest>)> = BUNDLED.iter().map(|b| (b.name.to_string(), b.manifest())).collect();
    let entries = user_folder().and_then(|f| std::fs::read_dir(f).ok());
    let mut own: Vec<(String, PathBuf)> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| Some((e.file_name().into_string().ok()?, e.path().join("manifest.toml"))))
        .filter(|(name, manifest)| is_name(name) && manifest.is_file() && all.iter().all(|(n, _)| n != name))
        .collect();
    own.sort();
    all.extend(own.into_iter().map(|(name, path)| (name, Manifest::read(&path))));
    all
}
