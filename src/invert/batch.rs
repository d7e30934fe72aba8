//! Many inversions at once, each in a thread of its own, before one propagator.
//!
//! Every inversion keeps its own stages, line search and stop rule and evaluates one model at a time; a
//! [`Dispatch`](crate::wave::Dispatch) makes batches of what they ask for at the same time. While some inversions wait
//! for their gradients, the optimisers of the others choose their next models, so that a device need not wait for them.
//! The results are those of one [`Inversion::run`] after the other, bit for bit.

use super::{
    Attempt, FirstStart, Inversion, Observer, Outcome, Settings, Start, State, StopReason, invert_with_fallbacks,
};
use crate::wave::dispatch::words;
use crate::{Error, Observed, Propagator, Result, Survey};
use ndarray::Array2;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// What one inversion needs.
pub struct Task {
    /// The gather.
    pub observed: Observed,
    /// Where it begins.
    pub start: Start,
    /// What summaries call the start.
    pub start_name: String,
    /// The true map (nz, nx) in m/s, for the outcome's error.
    pub truth: Option<Array2<f64>>,
    /// Standard deviations (nz, nx) of the start, m/s, where a prior tells them.
    pub confidence: Option<Array2<f64>>,
    /// The recipes to try; none to invert by the settings of all.
    pub attempts: Vec<Attempt>,
    /// Worker threads of normal matrices; 0 takes one per core.
    pub threads: usize,
}

impl Task {
    /// An inversion by the settings of all, without more than a gather and a start.
    pub fn new(observed: Observed, start: Start) -> Self {
        let start_name = if start == Start::Gradient { "gradient" } else { "map" }.into();
        Self { observed, start, start_name, truth: None, confidence: None, attempts: vec![], threads: 0 }
    }
}

/// Bytes that an inversion in flight holds besides the propagator's: the pairs of L-BFGS, the points of a line search,
/// the observed gather and two synthetic ones.
pub fn bytes_per_inversion(survey: &Survey, settings: &Settings) -> u64 {
    let ((nz, nx), (ns, nt, nr)) = (survey.map_shape(), survey.gather_shape());
    let vectors = 2 * settings.memory + 64;
    8 * (vectors * (nz * nx + 1) + 3 * ns * nt * nr) as u64
}

/// What the threads share.
struct Shared<'a, J, L, S> {
    propagator: &'a dyn Propagator,
    fine: Option<&'a dyn Propagator>,
    jobs: Mutex<J>,
    settings: &'a Settings,
    load: L,
    sink: S,
    cancel: &'a AtomicBool,
    /// The sink's first error, and whether there is one.
    failure: Mutex<Option<Error>>,
    failed: AtomicBool,
}

/// Runs an inversion for every job, `in_flight` at a time; as one ends the next begins.
///
/// A job is whatever names its gather. `load` reads what the inversion needs, in the thread that runs it, so that no
/// more than `in_flight` gathers are held; `sink` takes the outcome, or what made this one job fail, while the others
/// go on. Both are called from several threads at once, and jobs may end in any order. `fine` is the propagator of
/// [refined](super::Stage::refined) stages. Memory: [`bytes_per_inversion`] for each in flight.
///
/// Once `cancel` is set no job is begun, and those at work end without a call of `sink`; this is no error. An error of
/// `sink`, or an [`Error::Device`], after which no other job could fare better, ends everything in the same way and is
/// returned.
#[expect(clippy::too_many_arguments, reason = "no two of them belong together")]
pub fn invert_many<J, I, L, S>(
    propagator: &dyn Propagator,
    fine: Option<&dyn Propagator>,
    jobs: I,
    settings: &Settings,
    in_flight: usize,
    cancel: &AtomicBool,
    load: L,
    sink: S,
) -> Result<()>
where
    I: IntoIterator<Item = J>,
    I::IntoIter: Send,
    L: Fn(&J) -> Result<Task> + Sync,
    S: Fn(J, Result<Outcome>) -> Result<()> + Sync,
{
    let jobs = Mutex::new(jobs.into_iter().fuse());
    let (failure, failed) = (Mutex::new(None), AtomicBool::new(false));
    let shared = Shared { propagator, fine, jobs, settings, load, sink, cancel, failure, failed };
    std::thread::scope(|scope| {
        for i in 0..in_flight.max(1) {
            let thread = std::thread::Builder::new().name(format!("inversion {i}"));
            if let Err(e) = thread.spawn_scoped(scope, || shared.work()) {
                // those that could be started do the work of all
                if i == 0 {
                    shared.fail(Error::Usage(format!("cannot start a thread: {e}; lower the limits on this process")));
                }
                break;
            }
        }
    });
    shared.failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

impl<J, I, L, S> Shared<'_, I, L, S>
where
    I: Iterator<Item = J>,
    L: Fn(&J) -> Result<Task> + Sync,
    S: Fn(J, Result<Outcome>) -> Result<()> + Sync,
{
    fn work(&self) {
        while !self.ended() {
            // a panic of the iterator poisons the lock: the other threads take it for its end
            let Some(job) = self.jobs.lock().ok().and_then(|mut jobs| jobs.next()) else { return };
            let outcome = catch_unwind(AssertUnwindSafe(|| self.invert(&job)))
                .unwrap_or_else(|p| Err(Error::Numerical(format!("the inversion panicked: {}", words(&*p)))));
            if self.failed.load(Ordering::Relaxed) || matches!(&outcome, Ok(o) if o.stop == StopReason::Cancelled) {
                return;
            }
            if let Err(gone @ Error::Device { .. }) = outcome {
                return self.fail(gone);
            }
            let told = catch_unwind(AssertUnwindSafe(|| (self.sink)(job, outcome)))
                .unwrap_or_else(|p| Err(Error::Numerical(format!("keeping a result panicked: {}", words(&*p)))));
            if let Err(e) = told {
                self.fail(e);
            }
        }
    }

    fn ended(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
    }

    fn invert(&self, job: &J) -> Result<Outcome> {
        let Task { observed, start, start_name: name, truth, confidence, attempts, threads } = (self.load)(job)?;
        let inversion = |settings: &Settings| -> Result<Inversion> {
            let mut inversion = Inversion::new(self.propagator, &observed, settings.clone())?;
            inversion = inversion.cancel(self.cancel).threads(threads);
            if let Some(fine) = self.fine {
                inversion = inversion.refine(fine)?;
            }
            if let Some(truth) = &truth {
                inversion = inversion.truth(truth)?;
            }
            Ok(inversion)
        };
        let mut watch = Watch(&self.failed);
        if !attempts.is_empty() {
            let first = FirstStart { start, name, confidence };
            return invert_with_fallbacks(&attempts, &first, &inversion, &mut watch);
        }
        let mut one = inversion(self.settings)?;
        if let Some(deviations) = confidence {
            one = one.confidence(deviations)?;
        }
        one.run(&start, &mut watch)
    }
}

/// Ends an inversion when another's result could not be kept.
struct Watch<'a>(&'a AtomicBool);

impl Observer for Watch<'_> {
    fn checkpoint(&mut self, _: &State) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::Usage("the batch has ended".into())),
            false => Ok(()),
        }
    }
}
