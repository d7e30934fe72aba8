//! What parent and child say to each other, in frames of a length (u32, little endian) and so many bytes in postcard's encoding.

use super::super::network::{Info, Source};
use super::super::runtime::{RuntimeChoice, one_line};
use super::super::{MAP, Prediction};
use crate::{Error, Family};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest frame: a gather is 1.4 MB.
pub(super) const MAX_FRAME: u32 = 4 << 20;

/// What the child is told when it is started.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Opening {
    pub source: Source,
    pub runtime: RuntimeChoice,
    pub threads: usize,
    pub memory: u64,
    pub seconds: u64,
}

/// An answer of the child.
#[derive(Serialize, Deserialize)]
pub(super) enum Reply {
    /// With what stood in the way of a library of ONNX Runtime.
    Ready(Box<Info>, Option<String>),
    Predicted(Flat),
    Failed(Failure),
}

/// A prediction on its way.
#[derive(Serialize, Deserialize)]
pub(super) struct Flat {
    velocity: Vec<f32>,
    error: Option<Vec<f32>>,
    /// By the number in [`Family::ALL`].
    families: Option<Vec<(usize, f64)>>,
}

/// An error on its way.
#[derive(Serialize, Deserialize)]
pub(super) enum Failure {
    Usage(String),
    Input(PathBuf, String),
    Unreadable(PathBuf, Option<i32>, String),
    Memory(String),
    Other(String),
}

impl Failure {
    pub fn of(e: Error) -> Self {
        match e {
            Error::Usage(what) => Self::Usage(what),
            Error::Input { path, problem } => Self::Input(path, problem),
            Error::Memory(what) => Self::Memory(what),
            Error::Io { path, source, .. } if source.kind() == ErrorKind::OutOfMemory => Self::Memory(format!(
                "{}: does not fit in the memory that the prior may take; raise --max-memory",
                path.display()
            )),
            Error::Io { path, source, .. } => Self::Unreadable(path, source.raw_os_error(), source.to_string()),
            other => Self::Other(other.to_string()),
        }
    }

    pub fn error(self) -> Error {
        match self {
            Self::Usage(what) => Error::Usage(one_line(&what)),
            Self::Input(path, problem) => Error::input(shown(&path), one_line(&problem)),
            Self::Unreadable(path, code, text) => {
                let own = || io::Error::other(one_line(&text));
                Error::io(shown(&path), "read", code.map_or_else(own, io::Error::from_raw_os_error))
            }
            Self::Memory(what) => Error::Memory(one_line(&what)),
            Self::Other(what) => Error::Numerical(one_line(&what)),
        }
    }
}

/// A path that a child names, fit to be shown.
fn shown(path: &Path) -> PathBuf {
    one_line(&path.to_string_lossy()).into()
}

pub(super) fn send<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).ok().filter(|n| *n <= MAX_FRAME);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?;
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(&bytes)
}

/// The next message; `None` where the other side has closed. Waits until `deadline` at most.
pub(super) fn receive<T: for<'a> Deserialize<'a>>(
    stream: &mut UnixStream,
    deadline: Option<Instant>,
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match fill(stream, &mut length, deadline) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_FRAME {
        return Err(io::Error::new(ErrorKind::InvalidData, "the message is too long"));
    }
    let mut bytes = vec![0; length as usize];
    fill(stream, &mut bytes, deadline)?;
    postcard::from_bytes(&bytes).map(Some).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))
}

fn fill(stream: &mut UnixStream, mut buffer: &mut [u8], deadline: Option<Instant>) -> io::Result<()> {
    while !buffer.is_empty() {
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        }
        match stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => buffer = &mut buffer[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

pub(super) fn flat(p: Prediction) -> Flat {
    let number = |f: Family| Family::ALL.iter().position(|g| *g == f).expect("all are there");
    Flat {
        velocity: p.velocity.iter().copied().collect(),
        error: p.error.map(|e| e.iter().copied().collect()),
        families: p.families.map(|list| list.into_iter().map(|(f, q)| (number(f), q)).collect()),
    }
}

/// The prediction, if it has the right shapes.
pub(super) fn unflat(flat: Flat) -> Option<Prediction> {
    let map = |numbers: Vec<f32>| Array2::from_shape_vec(MAP, numbers).ok();
    let families = flat.families.map(|list| {
        list.into_iter().map(|(number, q)| Some((*Family::ALL.get(number)?, q))).collect::<Option<Vec<_>>>()
    });
    let error = flat.error.map(map);
    if error.as_ref().is_some_and(Option::is_none) || families.as_ref().is_some_and(Option::is_none) {
        return None;
    }
    let prediction = Prediction { velocity: map(flat.velocity)?, error: error.flatten(), families: families.flatten() };
    plausible(&prediction).then_some(prediction)
}

/// Whether all numbers can be what they stand for; the child has checked that, but a hostile file may have changed it.
fn plausible(p: &Prediction) -> bool {
    p.velocity.iter().all(|v| v.is_finite() && *v > 0.0)
        && p.error.iter().flatten().all(|e| e.is_finite() && *e >= 0.0)
        && p.families.iter().flatten().all(|(_, q)| (0.0..=1.0).contains(q))
}
