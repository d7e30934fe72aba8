//! Networks in a child process, which a hostile or broken file may bring down without harm.
//!
//! The child is a program that calls [`serve`], such as `fwi` itself. It limits its own memory before it opens anything;
//! the parent limits its time. Both talk over a socket, the child's standard input: frames of a length (u32, little
//! endian) and so many bytes in postcard's encoding.

use super::network::{Info, Network, Source};
use super::runtime::{Runtime, RuntimeChoice, one_line};
use super::{MAP, Prediction, Prior, RECEIVERS, SAMPLES, SHOTS};
use crate::{Error, Family, Observed, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest frame: a gather is 1.4 MB.
const MAX_FRAME: u32 = 4 << 20;

/// What a child may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Most bytes of memory.
    pub memory: u64,
    /// Longest time for loading, and for one prediction.
    pub time: Duration,
}

impl Default for WorkerLimits {
    /// 4 GiB and two minutes.
    fn default() -> Self {
        Self { memory: 4 << 30, time: Duration::from_secs(120) }
    }
}

/// What the child is told when it is started.
#[derive(Clone, Serialize, Deserialize)]
struct Opening {
    source: Source,
    runtime: RuntimeChoice,
    threads: usize,
    memory: u64,
    seconds: u64,
}

/// An answer of the child.
#[derive(Serialize, Deserialize)]
enum Reply {
    /// With what stood in the way of a library of ONNX Runtime.
    Ready(Box<Info>, Option<String>),
    Predicted(Flat),
    Failed(Failure),
}

/// A prediction on its way.
#[derive(Serialize, Deserialize)]
struct Flat {
    velocity: Vec<f32>,
    error: Option<Vec<f32>>,
    /// By the number in [`Family::ALL`].
    families: Option<Vec<(usize, f64)>>,
}

/// An error on its way.
#[derive(Serialize, Deserialize)]
enum Failure {
    Usage(String),
    Input(PathBuf, String),
    Unreadable(PathBuf, Option<i32>, String),
    Memory(String),
    Other(String),
}

impl Failure {
    fn of(e: Error) -> Self {
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

    fn error(self) -> Error {
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

fn send<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).ok().filter(|n| *n <= MAX_FRAME);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?;
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(&bytes)
}

/// The next message; `None` where the other side has closed. Waits until `deadline` at most.
fn receive<T: for<'a> Deserialize<'a>>(stream: &mut UnixStream, deadline: Option<Instant>) -> io::Result<Option<T>> {
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

/// The child's side: opens the network that it is told over the socket on its standard input and predicts until the
/// parent closes it.
///
/// Errors: [`Error::Usage`] when standard input is no such socket.
pub fn serve() -> Result<()> {
    let fail = |e: io::Error| Error::Usage(format!("this command is for fwi itself: {e}"));
    watch_parent().map_err(fail)?;
    let mut stream: UnixStream = io::stdin().as_fd().try_clone_to_owned().map_err(fail)?.into();
    let Some(opening) = receive::<Opening>(&mut stream, None).map_err(fail)? else { return Ok(()) };
    let since = Instant::now();
    let network = limit(opening.memory).and_then(|()| limit_cpu(&opening, since)).and_then(|()| {
        let (runtime, trouble) = Runtime::choose(&opening.runtime)?;
        Ok((Network::open(&opening.source, &runtime, opening.threads)?, trouble))
    });
    let (network, trouble) = match network {
        Ok(opened) => opened,
        Err(e) => return send(&mut stream, &Reply::Failed(Failure::of(e))).map_err(fail),
    };
    send(&mut stream, &Reply::Ready(Box::new(network.info().clone()), trouble)).map_err(fail)?;
    while let Some(samples) = receive::<Vec<f32>>(&mut stream, None).map_err(fail)? {
        let predicted = limit_cpu(&opening, since).and_then(|()| network.predict_samples(&samples));
        let reply = match predicted {
            Ok(p) => Reply::Predicted(flat(p)),
            Err(e) => Reply::Failed(Failure::of(e)),
        };
        send(&mut stream, &reply).map_err(fail)?;
    }
    Ok(())
}

/// Ends this process when its parent has ended, also one that was killed while a network is at work here.
fn watch_parent() -> io::Result<()> {
    let parent = parent_id();
    let watch = move || {
        while parent_id() == parent {
            std::thread::sleep(Duration::from_secs(1));
        }
        // a network at work may hold any lock that an orderly exit would wait for
        std::process::abort()
    };
    std::thread::Builder::new().name("parent".into()).stack_size(1 << 17).spawn(watch).map(drop)
}

/// Limits the processor time of the next task, should everything else fail to end it: to twice what all cores could
/// give until the parent's patience is at its end.
fn limit_cpu(opening: &Opening, since: Instant) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let wall = since.elapsed().as_secs() + 2 * opening.seconds.max(1) + 1;
    set_soft(rlimit::Resource::CPU, wall.saturating_mul(cores))
        .map_err(|e| Error::Usage(format!("cannot limit the time of the prior's process: {e}")))
}

fn set_soft(resource: rlimit::Resource, value: u64) -> io::Result<()> {
    let most = resource.get_hard()?;
    resource.set(value.min(most), most)
}

/// Limits this process: data rather than address space, since threads and GPU drivers reserve far more addresses than
/// they use. A crash leaves no core file.
fn limit(memory: u64) -> Result<()> {
    let set = |resource: rlimit::Resource, bytes: u64| {
        let most = resource.get_hard().unwrap_or(u64::MAX);
        resource.set(bytes.min(most), bytes.min(most))
    };
    let memory = set(if cfg!(target_os = "linux") { rlimit::Resource::DATA } else { rlimit::Resource::AS }, memory);
    memory
        .and_then(|()| set(rlimit::Resource::CORE, 0))
        .map_err(|e| Error::Usage(format!("cannot limit the memory of the prior's process: {e}")))
}

fn flat(p: Prediction) -> Flat {
    let number = |f: Family| Family::ALL.iter().position(|g| *g == f).expect("all are there");
    Flat {
        velocity: p.velocity.iter().copied().collect(),
        error: p.error.map(|e| e.iter().copied().collect()),
        families: p.families.map(|list| list.into_iter().map(|(f, q)| (number(f), q)).collect()),
    }
}

/// The prediction, if it has the right shapes.
fn unflat(flat: Flat) -> Option<Prediction> {
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

/// A child at work.
struct Worker {
    child: Child,
    stream: UnixStream,
    /// The last line that the child said on standard error.
    last_words: Option<std::thread::JoinHandle<String>>,
}

/// A network in a child process.
///
/// The child lives as long as this; one that has died is started again for the next gather.
pub struct Isolated {
    program: PathBuf,
    arguments: Vec<String>,
    opening: Opening,
    limits: WorkerLimits,
    info: Info,
    trouble: Option<String>,
    worker: Mutex<Option<Worker>>,
}

impl Isolated {
    /// Starts `program arguments..`, which must call [`serve`], and has it open the network, see [`Network::open`].
    ///
    /// Errors: those of the network; [`Error::Input`] also when the child dies of it or takes too much time.
    pub fn open(
        program: PathBuf,
        arguments: Vec<String>,
        source: &Source,
        runtime: &RuntimeChoice,
        threads: usize,
        limits: WorkerLimits,
    ) -> Result<Self> {
        let (source, runtime) = (source.clone(), runtime.clone());
        let opening = Opening { source, runtime, threads, memory: limits.memory, seconds: limits.time.as_secs() };
        let (worker, info, trouble) = Worker::start(&program, &arguments, &opening, limits)?;
        Ok(Self { program, arguments, opening, limits, info, trouble, worker: Mutex::new(Some(worker)) })
    }

    /// What is known about the network.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// What stood in the way of a library of ONNX Runtime that was found, see [`Runtime::choose`].
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    fn predict_one(&self, gather: &Observed) -> Result<Prediction> {
        let samples = super::samples(gather)?;
        debug_assert_eq!(samples.len(), SHOTS * SAMPLES * RECEIVERS);
        let mut slot = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let mut worker = match slot.take() {
            Some(worker) => worker,
            None => Worker::start(&self.program, &self.arguments, &self.opening, self.limits)?.0,
        };
        match worker.ask(&samples, self.limits.time) {
            Ok(Reply::Predicted(flat)) => {
                *slot = Some(worker);
                let problem = "the prior's process answered with something that is no prediction";
                unflat(flat).ok_or_else(|| Error::input(&self.opening.source.model, problem))
            }
            Ok(Reply::Failed(failure)) => {
                *slot = Some(worker);
                Err(failure.error())
            }
            Ok(Reply::Ready(..)) => Err(worker.end(&self.opening, self.limits, ErrorKind::InvalidData.into())),
            Err(e) => Err(worker.end(&self.opening, self.limits, e)),
        }
    }
}

impl Prior for Isolated {
    fn describe(&self) -> String {
        self.info.line()
    }

    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
        gathers.iter().map(|g| self.predict_one(g)).collect()
    }

    /// Next to nothing: the network is in another process.
    fn bytes(&self) -> u64 {
        u64::from(MAX_FRAME)
    }
}

impl Worker {
    fn start(
        program: &PathBuf,
        arguments: &[String],
        opening: &Opening,
        limits: WorkerLimits,
    ) -> Result<(Self, Info, Option<String>)> {
        let fail = |e: io::Error| Error::io(program, "start", e);
        let (ours, theirs) = UnixStream::pair().map_err(fail)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the parent, which ends the child
            .process_group(0)
            .spawn()
            .map_err(fail)?;
        let stderr = child.stderr.take().expect("piped");
        let last_words = std::thread::spawn(move || last_line(stderr));
        let mut worker = Self { child, stream: ours, last_words: Some(last_words) };
        match worker.ask(opening, limits.time) {
            Ok(Reply::Ready(info, trouble)) => {
                info.check().map_err(|problem| Error::input(&opening.source.model, one_line(&problem)))?;
                Ok((worker, *info, trouble.map(|t| one_line(&t))))
            }
            Ok(Reply::Failed(failure)) => Err(failure.error()),
            Ok(Reply::Predicted(_)) => Err(worker.end(opening, limits, ErrorKind::InvalidData.into())),
            Err(e) => Err(worker.end(opening, limits, e)),
        }
    }

    fn ask<T: Serialize>(&mut self, message: &T, time: Duration) -> io::Result<Reply> {
        let deadline = Instant::now() + time;
        self.stream.set_write_timeout(Some(time))?;
        send(&mut self.stream, message)?;
        receive(&mut self.stream, Some(deadline))?.ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    /// Ends the child and says what has become of it.
    fn end(mut self, opening: &Opening, limits: WorkerLimits, error: io::Error) -> Error {
        let late = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        let died = !late && self.died_by_itself();
        let _ = self.child.kill();
        let status = self.child.wait();
        let words = self.last_words.take().and_then(|t| t.join().ok()).filter(|w| !w.is_empty());
        let words = words.map_or(String::new(), |w| format!(" ({w})"));
        let problem = if late {
            format!("took more than {} s in the prior's process; it is too large or hostile", limits.time.as_secs())
        } else if died {
            let how = match status {
                Ok(s) => s.signal().map_or(s.to_string(), |n| format!("signal {n}")),
                Err(e) => e.to_string(),
            };
            format!(
                "brought the prior's process down by {how}{words}; it may take {} MB (raise --max-memory), or is broken or hostile",
                limits.memory >> 20
            )
        } else {
            format!("the prior's process cannot be spoken with: {error}{words}")
        };
        Error::input(&opening.source.model, one_line(&problem))
    }

    /// Whether the child has ended, or does so within a moment.
    fn died_by_itself(&mut self) -> bool {
        for _ in 0..200 {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                other => return other.is_ok(),
            }
        }
        false
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last line of all that is said, which is read to its end so that nobody has to wait.
fn last_line(stderr: impl Read) -> String {
    let mut reader = BufReader::new(stderr);
    let (mut last, mut line) = (String::new(), Vec::new());
    loop {
        line.clear();
        match reader.by_ref().take(4096).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return last,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                // notes follow a panic's own line
                if !text.trim().is_empty() && !text.starts_with("note:") {
                    last = text.trim().to_string();
                }
            }
        }
    }
}
