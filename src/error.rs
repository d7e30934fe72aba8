//! One error type for the library: every message names what is wrong, what was expected and the cure.
//!
//! The exit codes of the `fwi` binary hang on the variants, see [`Error::exit_code`].

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong, sorted by who can cure it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument, option or configuration makes no sense.
    #[error("{0}")]
    Usage(String),

    /// A file holds something other than what is needed (shape, type, NaN, truncated, hostile header).
    #[error("{}: {problem}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong, what was expected, and the cure, in one line.
        problem: String,
    },

    /// The operating system refused a read or a write (missing file, full disk, no permission).
    #[error("{}: cannot {action}: {source}{}", path.display(), cure(action, source))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The verb: "read", "write", "create" ...
        action: &'static str,
        /// The system's own reason.
        source: std::io::Error,
    },

    /// The work would not fit under the memory limit.
    #[error("{0}")]
    Memory(String),

    /// The numerical scheme or the optimiser broke down (unstable step, no finite misfit).
    #[error("{0}")]
    Numerical(String),

    /// A GPU cannot be used, or not any more (no driver, an old one, no such device, a lost device, a refused kernel).
    #[error("{device}: {problem}")]
    Device {
        /// The device, such as "cuda:0".
        device: String,
        /// What is wrong and the cure, in one line.
        problem: String,
    },

    /// A signal asked the work to stop; what was reached is saved where that can be gone on from.
    #[error("interrupted by signal {signal}; {}", kept(saved.as_deref()))]
    Interrupted {
        /// The signal's number (2 SIGINT, 15 SIGTERM).
        signal: i32,
        /// Where the resumable state lies, if there is one.
        saved: Option<PathBuf>,
    },
}

/// What is left of interrupted work.
fn kept(saved: Option<&Path>) -> String {
    saved.map_or("nothing was written".into(), |p| format!("the state is saved in {}", p.display()))
}

/// What to do about a refusal of the system, where that is not plain from its words.
fn cure(action: &str, source: &std::io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::NotFound if action == "read" => "; check the name",
        ErrorKind::NotFound | ErrorKind::NotADirectory => "; choose a place in a directory that exists",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some space and run again",
        ErrorKind::FileTooLarge => "; raise the limit on file sizes (ulimit -f)",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "; choose another place or ask for access",
        _ => "",
    }
}

impl Error {
    /// An [`Error::Input`] about `path`.
    pub fn input(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Input { path: path.as_ref().to_path_buf(), problem: problem.into() }
    }

    /// An [`Error::Io`] about `path`; `action` is the verb that failed.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// An [`Error::Device`] about `device`.
    pub fn device(device: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Device { device: device.into(), problem: problem.into() }
    }

    /// The process exit code that stands for this error: 2 usage, 3 bad input, 4 system I/O, 5 memory limit,
    /// 6 numerical failure, 7 a GPU that cannot be used, 128 + signal when interrupted. (0 is success, 1 a failed `fwi check`.)
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Input { .. } => 3,
            Self::Io { .. } => 4,
            Self::Memory(_) => 5,
            Self::Numerical(_) => 6,
            Self::Device { .. } => 7,
            Self::Interrupted { signal, .. } => 128 + *signal as u8,
        }
    }
}
