//! Which runtime computes networks: ONNX Runtime where its library is found, else tract, which is part of this crate.
//!
//! The library is looked for in the environment (`FWI_ONNXRUNTIME`, then `ORT_DYLIB_PATH`), beside the program and in the
//! system's library folders; 1.24 or newer will do. One that cannot be used is reported and tract steps in. A process
//! can load one library only. ONNX Runtime computes on a CUDA device if the library was built for it and finds one.

use crate::io::guard::guarded;
use crate::{Error, Result};
use libloading::Library;
use ort::environment::Environment;
use ort::ep::ExecutionProvider;
use ort::logging::LogLevel;
use ort::sys::OrtApiBase;
use serde::{Deserialize, Serialize};
use std::env;
use std::ffi::CStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Environment variables that name a library of ONNX Runtime, the first one first.
pub const VARIABLES: [&str; 2] = ["FWI_ONNXRUNTIME", "ORT_DYLIB_PATH"];

/// Folders of the system's libraries.
const FOLDERS: [&str; 7] = [
    "/usr/local/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/opt/onnxruntime/lib",
    "/opt/homebrew/lib",
];

/// Which runtime is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuntimeChoice {
    /// ONNX Runtime where a library is found that can be used, else tract.
    #[default]
    Auto,
    /// tract.
    Tract,
    /// ONNX Runtime from this library.
    Library(PathBuf),
}

/// A runtime that is ready.
#[derive(Clone)]
pub enum Runtime {
    /// tract, single-threaded, on the CPU.
    Tract,
    /// ONNX Runtime.
    OnnxRuntime(Loaded),
}

/// A library of ONNX Runtime in this process.
#[derive(Clone)]
pub struct Loaded {
    pub(super) environment: Environment,
    path: PathBuf,
    pub(super) version: String,
    /// Whether the library was built for CUDA; whether there is a device shows when a network is loaded.
    pub(super) cuda: bool,
}

impl Runtime {
    /// Makes the runtime ready; the second value says what stood in the way of a library that was found.
    ///
    /// Errors: [`Error::Usage`] when a library that was named cannot be used.
    pub fn choose(choice: &RuntimeChoice) -> Result<(Self, Option<String>)> {
        match choice {
            RuntimeChoice::Tract => Ok((Self::Tract, None)),
            RuntimeChoice::Library(path) => match load(path) {
                Ok(loaded) => Ok((Self::OnnxRuntime(loaded), None)),
                Err(why) => Err(Error::Usage(format!("{why}; name another library, or compute with tract"))),
            },
            RuntimeChoice::Auto => {
                let mut note = None;
                for path in candidates() {
                    match load(&path) {
                        Ok(loaded) => return Ok((Self::OnnxRuntime(loaded), note)),
                        Err(why) => note = note.or(Some(format!("{why}; computing with tract instead"))),
                    }
                }
                Ok((Self::Tract, note))
            }
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tract => write!(f, "tract (built in)"),
            Self::OnnxRuntime(l) => {
                let device = if l.cuda { "CUDA or CPU" } else { "CPU" };
                write!(f, "ONNX Runtime {} ({}), {device}", l.version, l.path.display())
            }
        }
    }
}

/// Libraries that exist, in the order of preference. What the environment names is taken whether it exists or not.
fn candidates() -> Vec<PathBuf> {
    let named = VARIABLES.iter().filter_map(env::var_os).filter(|v| !v.is_empty()).map(PathBuf::from);
    let beside = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let (prefix, suffix) = (env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let names = [format!("{prefix}onnxruntime{suffix}"), format!("{prefix}onnxruntime{suffix}.1")];
    let folders = beside.into_iter().chain(FOLDERS.map(PathBuf::from));
    let found = folders.flat_map(|f| names.clone().map(|n| f.join(n))).filter(|p| p.is_file());
    named.chain(found).collect()
}

/// Loads a library, once in a process.
fn load(path: &Path) -> std::result::Result<Loaded, String> {
    static LOADED: Mutex<Option<std::result::Result<Loaded, String>>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let real = path.canonicalize().map_err(|e| format!("{}: cannot read: {e}", path.display()))?;
    if let Some(loaded) = &*loaded {
        let loaded = loaded.clone()?;
        let other = || format!("{} is in use already, so {} cannot be", loaded.path.display(), path.display());
        return if loaded.path == real { Ok(loaded.clone()) } else { Err(other()) };
    }
    let fail = |e: String| {
        let problem = one_line(&e);
        format!("{}: cannot be used as ONNX Runtime 1.24 or newer: {problem}", path.display())
    };
    let version = version(&real).map_err(fail)?;
    let made = guarded(|| {
        let builder = ort::init_from(&real).map_err(|e| e.to_string())?;
        let environment = builder.with_name("fwi").with_telemetry(false).build().map_err(|e| e.to_string())?;
        environment.set_log_level(LogLevel::Fatal);
        let cuda = ort::ep::CUDA::is_available().unwrap_or(false);
        Ok(Loaded { environment, path: real.clone(), version, cuda })
    })
    .map_err(fail);
    loaded.insert(made).clone()
}

/// The version that a library says it has, if `ort` will take it. Asked first, since `ort` 2.0.0-rc.14 takes a library
/// that failed to load for a loaded one when asked again.
fn version(path: &Path) -> std::result::Result<String, String> {
    // SAFETY: this runs the initialisers of a library that the user names, or the system holds under this name
    let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
    // SAFETY: a symbol of this name is ONNX Runtime's, with this signature
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase") };
    let base = base.map_err(|_| "it does not export OrtGetApiBase".to_string())?;
    // SAFETY: the structure has had this form since the first version; its string is static
    let text = unsafe {
        let base = base().as_ref().ok_or("it has no interface")?;
        CStr::from_ptr((base.GetVersionString)())
    };
    let text = text.to_str().map_err(|_| "its version is no text")?.to_string();
    let mut parts = text.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let recent = parts.next() == Some(1) && parts.next().is_some_and(|minor| minor >= 24);
    // stays loaded, as `ort` will have it
    std::mem::forget(library);
    if recent { Ok(text) } else { Err(format!("it is version {text}")) }
}

/// Messages of the runtimes may run over several lines and pages; errors here are one, without a terminal's codes.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ").replace(char::is_control, "\u{fffd}");
    if let Some((end, _)) = line.char_indices().nth(400) {
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}
