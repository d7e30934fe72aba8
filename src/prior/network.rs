//! A network in this process: its file read, checked and loaded.

use super::engine::{self, Engine};
use super::graph::{Graph, GraphLimits, read_capped};
use super::layout::Layout;
use super::manifest::{Augment, DEFAULT_MODEL, Mae, Manifest};
#[cfg(unix)]
use super::manifest::{MAX_NAME, is_text};
use super::runtime::{Runtime, one_line};
use super::{Prediction, Prior};
use crate::{Error, Observed, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The files of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The ONNX file.
    pub model: PathBuf,
    /// Its manifest, if it has one.
    pub manifest: Option<PathBuf>,
}

impl Source {
    /// From what a user names: an ONNX file, a manifest, or a folder with a `manifest.toml`.
    ///
    /// The manifest of `x.onnx` is `x.toml` beside it, or else a `manifest.toml` that names it, or leaves out the name where there is no
    /// `model.onnx`; a `manifest.toml` of other programs does not count. Errors: as [`Manifest::read`], and [`Error::Io`] where there is no such file.
    pub fn of(path: &Path) -> Result<Self> {
        let manifest = if path.is_dir() {
            Some(path.join("manifest.toml"))
        } else {
            path.extension().is_some_and(|e| e == "toml").then(|| path.to_path_buf())
        };
        if let Some(manifest) = manifest {
            let named = manifest.with_file_name(Manifest::read(&manifest)?.model);
            let own = manifest.with_extension("onnx");
            let model = if !named.exists() && own.is_file() { own } else { named };
            return Ok(Self { model, manifest: Some(manifest) });
        }
        std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
        let own = path.with_extension("toml");
        let folder = path.with_file_name("manifest.toml");
        let names_it = |m: &Path| {
            let named = m.with_file_name(Manifest::read(m)?.model);
            let by_default = named.ends_with(DEFAULT_MODEL) && !named.exists();
            Ok::<_, Error>(by_default || named.file_name() == path.file_name())
        };
        let manifest = if own.is_file() {
            Some(own)
        } else if folder.is_file() && Manifest::is_one(&folder) && names_it(&folder)? {
            Some(folder)
        } else {
            None
        };
        Ok(Self { model: path.to_path_buf(), manifest })
    }
}

/// What is known about a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The manifest's name, or the file's.
    pub name: String,
    /// The manifest, if there is one.
    pub manifest: Option<Manifest>,
    /// SHA-256 of the model file, hex.
    pub sha256: String,
    /// Bytes of the model file and its external data.
    pub bytes: u64,
    /// Numbers in its weights.
    pub parameters: u64,
    /// Version of the default operator set.
    pub opset: i64,
    /// Operators, and how often they occur.
    pub operators: Vec<(String, usize)>,
    /// How it is fed and read.
    pub layout: String,
    /// What computes it.
    pub runtime: String,
}

impl Info {
    /// Name, version, checksum and runtime in a line.
    pub fn line(&self) -> String {
        let version = self.manifest.as_ref().map_or(String::new(), |m| format!(" {}", m.version));
        format!("{}{version} (sha256 {}, {})", self.name, self.sha256.get(..12).unwrap_or(&self.sha256), self.runtime)
    }

    /// Whether all of it can be shown: a child that a hostile file has taken over may say anything.
    #[cfg(unix)]
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        self.manifest.as_ref().map_or(Ok(()), Manifest::check)?;
        let operators = self.operators.iter().map(|(name, _)| &name[..]);
        let mut texts = [&self.name[..], &self.sha256, &self.layout, &self.runtime].into_iter().chain(operators);
        if texts.all(|t| is_text(t, 3 * MAX_NAME)) {
            Ok(())
        } else {
            Err("has names that are no text, or too long; the file is broken or hostile".into())
        }
    }

    /// Test-time augmentation that the manifest asks for.
    pub fn augment(&self) -> Augment {
        self.manifest.as_ref().map_or(Augment::Off, |m| m.augment)
    }

    /// Mean absolute errors by family that the manifest gives.
    pub fn mae(&self) -> &[Mae] {
        self.manifest.as_ref().map_or(&[], |m| &m.mae)
    }
}

/// A network that runs in this process. A runtime that crashes on a hostile file takes the process with it: see
/// [`Isolated`](super::Isolated) for files of strangers.
pub struct Network {
    info: Info,
    layout: Layout,
    engine: Box<dyn Engine>,
}

impl Network {
    /// Reads, checks and loads the files, and tries the network on a gather. `threads` are ONNX Runtime's, 0 for one a core; tract takes one.
    ///
    /// Errors: [`Error::Io`], and [`Error::Input`] for anything that is no network from gathers to maps.
    pub fn open(source: &Source, runtime: &Runtime, threads: usize) -> Result<Self> {
        let manifest = source.manifest.as_deref().map(Manifest::read).transpose()?;
        let bytes = read_capped(&source.model, GraphLimits::default().max_file, "an ONNX file")?;
        let network = Self::load(&bytes, manifest, &source.model, runtime, threads)?;
        if network.info.manifest.is_some() {
            // what does not fit its manifest shows now, not at the first gather
            network.predict(&[Layout::trial_gather()?])?;
        }
        Ok(network)
    }

    /// A network in memory; `path` is for messages, and its folder for external data.
    pub fn load(
        bytes: &[u8],
        manifest: Option<Manifest>,
        path: &Path,
        runtime: &Runtime,
        threads: usize,
    ) -> Result<Self> {
        let sha256: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        if let Some(m) = manifest.as_ref().filter(|m| !m.sha256.eq_ignore_ascii_case(&sha256)) {
            let problem = format!(
                "has sha256 {sha256}, but its manifest says {}; one of them was changed, fetch both again",
                m.sha256
            );
            return Err(Error::input(path, problem));
        }
        let graph = Graph::parse(bytes, path, &GraphLimits::default())?;
        let mut layout = Layout::resolve(&graph, manifest.as_ref(), path)?;
        let engine = engine::load(&graph, &layout, runtime, threads)?;
        if layout.needs_trial() {
            let input = layout.encode(&super::samples(&Layout::trial_gather()?)?);
            layout.settle(&engine.run(&input)?)?;
        }
        let stem = one_line(&path.file_stem().unwrap_or_default().to_string_lossy());
        let info = Info {
            name: manifest.as_ref().map_or(stem, |m| m.name.clone()),
            manifest,
            sha256,
            bytes: graph.file_bytes + graph.external_bytes,
            parameters: graph.parameters,
            opset: graph.opset,
            operators: graph.operators.into_iter().collect(),
            layout: one_line(&layout.describe()),
            runtime: engine.describe(),
        };
        Ok(Self { info, layout, engine })
    }

    /// What is known about it.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The prediction for the samples of a gather, see [`samples`](super::samples).
    pub(super) fn predict_samples(&self, samples: &[f32]) -> Result<Prediction> {
        self.layout.decode(&self.engine.run(&self.layout.encode(samples))?)
    }
}

impl Prior for Network {
    fn describe(&self) -> String {
        self.info.line()
    }

    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
        gathers.iter().map(|g| self.predict_samples(&super::samples(g)?)).collect()
    }

    fn bytes(&self) -> u64 {
        memory(&self.info)
    }

    fn bytes_each(&self) -> u64 {
        ACTIVATIONS
    }
}

/// Bytes that loading takes at its highest: the file, the decoded file, and the weights as f32.
fn memory(info: &Info) -> u64 {
    2 * info.bytes + 4 * info.parameters
}

/// Bytes of a prediction's activations, as the bundled prior's take; larger networks run in processes of their own.
const ACTIVATIONS: u64 = 16 << 20;
