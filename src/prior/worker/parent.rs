//! The parent: it starts the child, asks it, and says what has become of it.

use super::super::engine::out_of_memory;
use super::super::network::{Info, Source};
use super::super::runtime::{RuntimeChoice, one_line};
use super::super::{Prediction, Prior, RECEIVERS, SAMPLES, SHOTS, samples};
use super::WorkerLimits;
use super::messages::{MAX_FRAME, Opening, Reply, receive, send, unflat};
use crate::{Error, Observed, Result};
use serde::Serialize;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    /// Starts `program arguments..`, which must call [`serve`](super::serve), and has it open the network, see
    /// [`Network::open`](super::super::Network::open).
    ///
    /// Errors: those of the network; [`Error::Input`] also when the child dies of it or takes too much time, [`Error::Memory`] when
    /// it dies for want of memory.
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

    /// What stood in the way of a library of ONNX Runtime that was found, see [`Runtime::choose`](super::super::Runtime::choose).
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// In place of a child that has died.
    fn restart(&self) -> Result<Worker> {
        let (worker, info, _) = Worker::start(&self.program, &self.arguments, &self.opening, self.limits)?;
        if info != self.info {
            let problem = io::Error::other("it or its manifest was changed while in use; begin anew");
            return Err(Error::io(&self.opening.source.model, "read again", problem));
        }
        Ok(worker)
    }

    fn predict_one(&self, gather: &Observed) -> Result<Prediction> {
        let samples = samples(gather)?;
        debug_assert_eq!(samples.len(), SHOTS * SAMPLES * RECEIVERS);
        let mut slot = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let mut worker = match slot.take() {
            Some(worker) => worker,
            None => self.restart()?,
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
        if died && words.as_deref().is_some_and(out_of_memory) {
            let path = opening.source.model.display();
            let most = limits.memory >> 20;
            return Error::Memory(format!(
                "{path}: does not fit into the {most} MB of the prior's process; raise --max-memory, or it is broken"
            ));
        }
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
                let note = text.starts_with("note:") || text.starts_with("skipping backtrace");
                if !text.trim().is_empty() && !note {
                    last = text.trim().to_string();
                }
            }
        }
    }
}
