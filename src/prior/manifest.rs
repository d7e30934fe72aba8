//! `manifest.toml`: how a network is fed and read, where it comes from and how good it is.
//!
//! ```toml
//! name = "example"
//! version = "1"
//! description = "what it is, in a line"
//! licence = "MIT"
//! training = "what it was trained on"
//! sha256 = "hash of the model file, in hex"
//! model = "model.onnx"          # beside the manifest; this name if left out
//! augment = "flip"              # test-time augmentation by default: "flip", "replay", or "off" if left out
//!
//! [input]                       # may be left out: all 1000 samples as they are
//! name = "gather"               # the only input if left out
//! every = 2                     # every second sample: input (1, 5, 500, 70)
//! scale = 1.0                   # input = scale * pressure + offset
//! offset = 0.0
//!
//! [velocity]
//! output = "velocity"           # (1, 1, 70, 70) or (1, 70, 70)
//! scale = 1500.0                # m/s = scale * output + offset; 1 and 0 if left out
//! offset = 3000.0
//!
//! [error]                       # may be left out: the expected absolute error of every cell
//! output = "error"
//! scale = 1500.0                # m/s = scale * output
//!
//! [families]                    # may be left out: logits
//! output = "families"
//! labels = ["FlatVel_A", "FlatVel_B"]
//!
//! [[mae]]                       # any number of these: mean absolute error, m/s
//! family = "FlatVel_A"
//! maps = "synthetic"            # held out, or "real"
//! count = 200
//! mae = 12.3
//! ```

use super::SAMPLES;
use super::graph::read_capped;
use super::runtime::one_line;
use crate::{Error, Family, Result};
use serde::{Deserialize, Serialize};
use std::path::{Component, Path};

/// Longest manifest that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Longest name, characters.
pub(super) const MAX_NAME: usize = 200;
/// Longest description, characters.
const MAX_TEXT: usize = 4000;

/// See the [manifest's format](self).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// Any text.
    pub version: String,
    /// What it is, in a line.
    pub description: String,
    /// Under which licence it may be used.
    pub licence: String,
    /// What it was trained on, and how.
    pub training: String,
    /// SHA-256 of the model file, hex.
    pub sha256: String,
    /// Name of the model file, beside the manifest.
    #[serde(default = "model_onnx")]
    pub model: String,
    /// Test-time augmentation that is used unless another is asked for.
    #[serde(default)]
    pub augment: Augment,
    /// How it is fed.
    #[serde(default)]
    pub input: InputSpec,
    /// How the map is read.
    pub velocity: MapSpec,
    /// How the expected error is read.
    pub error: Option<ErrorSpec>,
    /// How the family is read.
    pub families: Option<FamiliesSpec>,
    /// Mean absolute errors.
    #[serde(default)]
    pub mae: Vec<Mae>,
}

/// Test-time augmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    /// None.
    #[default]
    Off,
    /// The mean of the gather's prediction and the mirrored gather's, mirrored back; see [`Flipped`](super::Flipped).
    Flip,
    /// The mean of what the gather, and it with what the maps miss taken off, lead to; see [`Replayed`](super::Replayed).
    Replay,
}

/// How a network is fed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InputSpec {
    /// The graph's input; may be left out where it has one only.
    pub name: Option<String>,
    /// Every n-th time sample is taken, from the first one on.
    pub every: usize,
    /// Input = `scale * pressure + offset`.
    pub scale: f32,
    /// See `scale`.
    pub offset: f32,
}

impl Default for InputSpec {
    fn default() -> Self {
        Self { name: None, every: 1, scale: 1.0, offset: 0.0 }
    }
}

/// How the map is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSpec {
    /// The graph's output.
    pub output: String,
    /// Velocity in m/s = `scale * output + offset`.
    #[serde(default = "one")]
    pub scale: f32,
    /// See `scale`.
    #[serde(default)]
    pub offset: f32,
}

/// How the expected error is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorSpec {
    /// The graph's output.
    pub output: String,
    /// Expected absolute error in m/s = `scale * output`.
    #[serde(default = "one")]
    pub scale: f32,
}

/// How the family is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FamiliesSpec {
    /// The graph's output: logits.
    pub output: String,
    /// The family of each logit, by OpenFWI's names.
    pub labels: Vec<String>,
}

/// Mean absolute error of a family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mae {
    /// OpenFWI's name.
    pub family: String,
    /// Which maps it was measured on.
    pub maps: MaeMaps,
    /// How many of them.
    pub count: usize,
    /// The mean, m/s.
    pub mae: f64,
}

/// What a [`Mae`] was measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaeMaps {
    /// Synthetic maps that were held out.
    Synthetic,
    /// OpenFWI's own.
    Real,
}

/// The file of a manifest that names none.
pub(super) const DEFAULT_MODEL: &str = "model.onnx";

fn model_onnx() -> String {
    DEFAULT_MODEL.into()
}

fn one() -> f32 {
    1.0
}

impl Manifest {
    /// Reads and checks a manifest. Errors: [`Error::Io`], and [`Error::Input`] that says what is wrong with it.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_capped(path, MAX_BYTES, "a manifest, which is a page of text")?;
        let text = String::from_utf8(bytes).map_err(|_| Error::input(path, "is no UTF-8 text; expected TOML"))?;
        Self::parse(&text, path)
    }

    /// Whether a file called `manifest.toml` is meant as one of these: other programs keep theirs under that name, too. One that
    /// cannot be read, or is no TOML, may be.
    pub(super) fn is_one(path: &Path) -> bool {
        let text = read_capped(path, MAX_BYTES, "a manifest").ok().and_then(|b| String::from_utf8(b).ok());
        let table = text.and_then(|t| t.parse::<toml::Table>().ok());
        table.is_none_or(|t| t.contains_key("sha256") || t.contains_key("velocity"))
    }

    /// Checks the text of a manifest; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let manifest: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| 1 + text[..s.start.min(text.len())].matches('\n').count());
            let place = line.map_or(String::new(), |n| format!("line {n}: "));
            let why = one_line(e.message());
            Error::input(path, format!("{place}{why}; the documentation of fwi::prior::manifest shows the keys"))
        })?;
        manifest.check().map_err(|problem| Error::input(path, one_line(&problem)))?;
        Ok(manifest)
    }

    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let lines =
            [("version", &self.version), ("licence", &self.licence), ("name", &self.name), ("model", &self.model)];
        let texts = [("description", &self.description), ("training", &self.training)];
        let (lines, texts) = (lines.map(|l| (l, MAX_NAME)), texts.map(|t| (t, MAX_TEXT)));
        for ((key, text), longest) in lines.into_iter().chain(texts) {
            if !is_text(text, longest) {
                return Err(format!(
                    "{key} must be one line of at most {longest} characters, without control characters"
                ));
            }
        }
        if !is_name(&self.name) {
            return Err(format!("name {:?} must be letters, digits, - and _", self.name));
        }
        let mut parts = Path::new(&self.model).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(format!("model {:?} must be the name of a file beside the manifest", self.model));
        }
        if self.sha256.len() != 64 || !self.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("sha256 must be 64 hexadecimal digits; sha256sum prints them".into());
        }
        if self.input.every == 0 || !SAMPLES.is_multiple_of(self.input.every) {
            return Err(format!("input.every = {} must divide {SAMPLES}", self.input.every));
        }
        let scales = [("input.scale", self.input.scale), ("velocity.scale", self.velocity.scale)];
        let error = self.error.as_ref().map(|e| ("error.scale", e.scale));
        for (key, value) in scales.into_iter().chain(error) {
            if !value.is_finite() || value == 0.0 {
                return Err(format!("{key} = {value} must be finite and not 0"));
            }
        }
        for (key, value) in [("input.offset", self.input.offset), ("velocity.offset", self.velocity.offset)] {
            if !value.is_finite() {
                return Err(format!("{key} = {value} must be finite"));
            }
        }
        let labels = self.families()?;
        if self.families.is_some() && labels.is_empty() {
            return Err("families.labels names no family".into());
        }
        if let Some(twice) = labels.iter().enumerate().find(|(i, f)| labels[..*i].contains(f)) {
            return Err(format!("families.labels names {} twice", twice.1));
        }
        for entry in &self.mae {
            entry.family.parse::<Family>().map_err(|e| format!("mae: {e}"))?;
            if !(entry.mae.is_finite() && entry.mae >= 0.0) {
                return Err(format!("mae of {}: {} must be finite and not below 0", entry.family, entry.mae));
            }
        }
        Ok(())
    }

    /// The families of the logits, in order; none without such an output.
    pub(super) fn families(&self) -> std::result::Result<Vec<Family>, String> {
        let labels = self.families.iter().flat_map(|f| &f.labels);
        labels.map(|l| l.parse::<Family>().map_err(|e| format!("families.labels: {e}"))).collect()
    }
}

/// Whether a text of at most so many characters can be shown in a line.
pub(super) fn is_text(text: &str, longest: usize) -> bool {
    text.chars().count() <= longest && !text.contains(char::is_control)
}

/// Whether a text may be the name of a prior.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> String {
        let hash = "0".repeat(64);
        format!(
            "name = \"a\"\nversion = \"1\"\ndescription = \"d\"\nlicence = \"MIT\"\ntraining = \"t\"\nsha256 = \"{hash}\"\n\
             [velocity]\noutput = \"v\"\n"
        )
    }

    fn problem(text: &str) -> String {
        Manifest::parse(text, Path::new("m.toml")).unwrap_err().to_string()
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let m = Manifest::parse(&whole(), Path::new("m.toml")).unwrap();
        assert_eq!((&m.model[..], m.augment, m.input.every, m.velocity.scale), ("model.onnx", Augment::Off, 1, 1.0));
        assert!(m.error.is_none() && m.families.is_none() && m.mae.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        let with = |more: &str| problem(&format!("{}{more}", whole()));
        assert!(with("scal = 2.0\n").contains("line 9: unknown field `scal`"), "{}", with("scal = 2.0\n"));
        assert!(with("scale = 0.0\n").contains("velocity.scale"));
        assert!(with("scale = nan\n").contains("velocity.scale"));
        assert!(with("[input]\nevery = 3\n").contains("must divide 1000"));
        assert!(with("[families]\noutput = \"f\"\nlabels = [\"Marmousi\"]\n").contains("is no family"));
        assert!(with("[families]\noutput = \"f\"\nlabels = [\"Style_A\", \"style_a\"]\n").contains("twice"));
        assert!(with("[families]\noutput = \"f\"\nlabels = []\n").contains("names no family"));
        let mae = "[[mae]]\nfamily = \"Style_A\"\nmaps = \"real\"\ncount = 1\nmae = -1.0\n";
        assert!(with(mae).contains("not below 0"));
        assert!(problem(&whole().replace("00\"", "0g\"")).contains("64 hexadecimal digits"));
        assert!(problem(&whole().replace("\"a\"", "\"../a\"")).contains("letters, digits"));
        for model in ["../m.onnx", "/m.onnx", "a/b.onnx", "", ".."] {
            let text = format!("model = {model:?}\n{}", whole());
            assert!(problem(&text).contains("beside the manifest"), "{model}");
        }
        for (key, text) in
            [("version", "\\u001b[2J".to_string()), ("licence", "a".repeat(201)), ("training", "\\n".into())]
        {
            let value = whole().lines().find(|l| l.starts_with(key)).unwrap().to_string();
            let message = problem(&whole().replace(&value, &format!("{key} = \"{text}\"")));
            assert!(
                message.contains(&format!("{key} must be one line")) && !message.contains(char::is_control),
                "{message}"
            );
        }
        assert!(!with("\"\\u001b[31m\" = 1\n").contains(char::is_control));
        assert!(problem("name = 3").contains("m.toml: line 1"));
    }
}
