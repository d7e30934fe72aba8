//! Many callers, few devices: requests from any thread are gathered into batches for one or more propagators.
//!
//! Inversions evaluate one model at a time, each in its own thread; a device wants many at once. A [`Dispatch`] stands
//! between them and is a [`Propagator`] itself. It has no threads of its own (leader and followers, as in a database's
//! group commit): a caller whose turn it is evaluates its own request together with others that wait, on its own
//! thread and with its own borrowed misfit, while those others' threads sleep. Since results do not depend on the
//! batch, nobody can tell. With `n` lanes in all, a batch takes an `n`-th of the callers, so that one group's callers
//! choose their next models while another group's are evaluated.
//!
//! | a call fails with | then |
//! |---|---|
//! | [`Error::Device`] | the device is lost: what it had goes back to the head of the queue for the others; fallback devices set in when none is left, and callers get the error when there are no more |
//! | [`Error::Memory`] | the lane takes half as many models from then on; callers get the error when one model is too many |
//! | anything else, or a panic | each model is tried alone, so that a bad one fails its own caller only |

mod batch;
mod queue;

use super::{Evaluation, Propagator, WavefieldVisitor, same_length};
use crate::misfit::MisfitSpec;
use crate::{Error, Gather, Misfit, Model, Observed, Position, Result, Survey};
use batch::{Batch, Task};
use queue::{Answer, Companion, Held, Kind, Lane, Queue, Request, Turn};
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// What one device has done so far.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceStatistics {
    /// [`Propagator::describe`].
    pub device: String,
    /// Whether it takes part; fallback devices do not until they are needed, lost ones not any more.
    pub active: bool,
    /// Whether it was lost.
    pub lost: bool,
    /// Share of the time since the first request in which at least one call was running on it.
    pub busy: f64,
    /// Models evaluated.
    pub requests: u64,
    /// Models a call, on average.
    pub mean_batch: f64,
}

/// One or more devices behind one queue; see the [module](self).
pub struct Dispatch {
    devices: Vec<Arc<dyn Propagator>>,
    /// The first so many are not fallbacks.
    primary: usize,
    queue: Mutex<Queue>,
    log: Box<dyn Fn(&str) + Send + Sync>,
}

impl Dispatch {
    /// A queue before `devices`. `fallback` devices set in when all others are lost; where their arithmetic is another,
    /// results after that agree with those before to rounding only.
    ///
    /// Errors when there is no device, when surveys differ, or when the arithmetic of `devices` does.
    pub fn new(devices: Vec<Arc<dyn Propagator>>, fallback: Vec<Arc<dyn Propagator>>) -> Result<Self> {
        let primary = devices.len();
        let Some(first) = devices.first().cloned() else {
            return Err(Error::Usage("a dispatch needs at least one device".into()));
        };
        let devices = [devices, fallback].concat();
        if devices.iter().any(|d| d.survey() != first.survey()) {
            return Err(Error::Usage("all devices must be made for one survey".into()));
        }
        if let Some(other) = devices[..primary].iter().find(|d| d.arithmetic() != first.arithmetic()) {
            return Err(Error::Usage(format!(
                "one device computes in {}, another in {}; results would depend on who takes what",
                first.arithmetic(),
                other.arithmetic()
            )));
        }
        let mut queue = Queue::new(devices.len());
        for (i, device) in devices[..primary].iter().enumerate() {
            queue.activate(i, device.lanes().max(1), device.batch());
        }
        Ok(Self { devices, primary, queue: Mutex::new(queue), log: Box::new(|_| ()) })
    }

    /// Gives a callback that is told, in a line each, what happens to devices: losses and shortage of memory.
    pub fn log(mut self, log: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.log = Box::new(log);
        self
    }

    /// What every device has done so far, fallbacks last.
    pub fn statistics(&self) -> Vec<DeviceStatistics> {
        let queue = self.lock();
        let devices = self.devices.iter().zip(&queue.devices).enumerate();
        devices
            .map(|(i, (device, state))| DeviceStatistics {
                device: device.describe(),
                active: state.active,
                lost: state.lost,
                busy: queue.busy(i),
                requests: state.requests,
                mean_batch: state.requests as f64 / state.calls.max(1) as f64,
            })
            .collect()
    }

    // a panic while the lock is held would be a defect of this module; the callers' ends are better than a second panic
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Devices that take part; all of them once none does any more.
    fn active(&self) -> Vec<&Arc<dyn Propagator>> {
        let queue = self.lock();
        let (on, off): (Vec<_>, Vec<_>) = self.devices.iter().zip(&queue.devices).partition(|(_, state)| state.active);
        (if on.is_empty() { off } else { on }).into_iter().map(|(device, _)| device).collect()
    }

    fn submit(&self, task: Task, requests: Vec<(Model, Companion)>) -> Result<Vec<Answer>> {
        let n = requests.len();
        if n == 0 {
            return Ok(vec![]);
        }
        let kind = |call| match task {
            Task::Gradient(misfit) => match misfit.spec() {
                Some(spec) if spec != MisfitSpec::Own && is_comparable(&spec) => Kind::Gradient(spec),
                _ => Kind::Own(call),
            },
            Task::Forward => Kind::Forward,
            Task::Born => Kind::Born,
        };
        // one thread cannot keep several lanes busy with a long list
        let helpers = n.div_ceil(self.batch()).min(self.lanes()) - 1;
        let call = self.lock().enter(kind, requests, 1 + helpers)?;
        match helpers {
            0 => self.serve(call, task),
            _ => std::thread::scope(|scope| {
                (0..helpers).for_each(|_| drop(scope.spawn(|| self.serve(call, task))));
                self.serve(call, task);
            }),
        }
        self.lock().leave(call)
    }

    /// A thread of a call: sleeps and leads until everything of the call is answered.
    fn serve(&self, call: u64, task: Task) {
        let mut held: Option<Held> = None;
        let mut queue = self.lock();
        loop {
            match queue.turn(call, &mut held) {
                Turn::Done => return,
                Turn::Wait(wake, None) => queue = wake.wait(queue).unwrap_or_else(|e| e.into_inner()),
                Turn::Wait(wake, Some(time)) => {
                    queue = wake.wait_timeout(queue, time).map_or_else(|e| e.into_inner().0, |(queue, _)| queue);
                }
                Turn::Lead(lane, requests) => {
                    drop(queue);
                    self.lead(call, lane, requests, task);
                    queue = self.lock();
                }
            }
        }
    }

    /// Evaluates a batch on a lane and hands out the answers.
    fn lead(&self, call: u64, mut lane: Lane, requests: Vec<Request>, task: Task) {
        let began = Instant::now();
        let mut batch = Batch::new(requests);
        let loss = self.evaluate(&mut batch, &mut lane, task);
        let (answers, left) = batch.split();
        let mut news = None;
        let mut queue = self.lock();
        queue.finish(lane, began, answers, left);
        if let Some((name, problem)) = loss {
            if queue.retire(lane.device) {
                let heirs = if queue.devices.iter().any(|d| d.active) {
                    "its work goes to the others"
                } else if self.primary < self.devices.len() && !queue.devices[self.primary].lost {
                    for (i, device) in self.devices.iter().enumerate().skip(self.primary) {
                        queue.activate(i, device.lanes().max(1), device.batch());
                    }
                    "its work goes to the fallback"
                } else {
                    "no device is left"
                };
                news = Some(format!("{name} is lost: {problem}; {heirs}"));
            }
            queue.give_up(&name, &problem);
        }
        queue.rest(call, lane);
        drop(queue);
        if let Some(news) = news {
            self.tell(&news);
        }
    }

    /// Fills in a batch's answers. Some are left open when the device is lost, whose name and problem it returns.
    fn evaluate(&self, batch: &mut Batch, lane: &mut Lane, task: Task) -> Option<(String, String)> {
        let device = &*self.devices[lane.device];
        let mut todo = VecDeque::new();
        todo.push_back(0..batch.models.len());
        while let Some(range) = todo.pop_front() {
            if range.len() > lane.cap {
                chunks(range, lane.cap).into_iter().rev().for_each(|c| todo.push_front(c));
                continue;
            }
            let called = catch_unwind(AssertUnwindSafe(|| task.run(device, batch, range.clone())));
            let problem = match called {
                Ok(Ok(answers)) if answers.len() == range.len() => {
                    for (slot, answer) in batch.answers[range].iter_mut().zip(answers) {
                        *slot = Some(Ok(answer));
                    }
                    continue;
                }
                Ok(Ok(answers)) => Error::Numerical(format!("{} models had {} results", range.len(), answers.len())),
                Ok(Err(Error::Device { device, problem })) => return Some((device, problem)),
                Ok(Err(Error::Memory(why))) if range.len() > 1 => {
                    lane.cap = lane.cap.min(range.len() / 2);
                    let (n, cap) = (range.len(), lane.cap);
                    self.tell(&format!(
                        "{}: no memory for {n} models at a time ({why}); going on with {cap}",
                        device.describe()
                    ));
                    todo.push_front(range);
                    continue;
                }
                Ok(Err(other)) => other,
                Err(panic) => {
                    let problem = format!("{}: the computation panicked: {}", device.describe(), words(&*panic));
                    self.tell(&problem);
                    Error::Numerical(problem)
                }
            };
            if range.len() == 1 {
                batch.answers[range.start] = Some(Err(problem));
            } else {
                chunks(range, 1).into_iter().rev().for_each(|c| todo.push_front(c));
            }
        }
        None
    }

    fn tell(&self, line: &str) {
        // no work is lost over a log
        let _ = catch_unwind(AssertUnwindSafe(|| (self.log)(line)));
    }
}

/// A parameter that is not a number equals nothing, itself included.
#[expect(clippy::eq_op, reason = "it is the question")]
fn is_comparable(spec: &MisfitSpec) -> bool {
    spec == spec
}

/// A range in pieces of at most `size`.
fn chunks(range: Range<usize>, size: usize) -> Vec<Range<usize>> {
    range.clone().step_by(size).map(|from| from..(from + size).min(range.end)).collect()
}

/// What a panic said.
pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no words".into())
}

fn gathers(answers: Vec<Answer>) -> Vec<Gather> {
    let gather = |answer| match answer {
        Answer::Gather(gather) => gather,
        Answer::Evaluation(_) => unreachable!("no gradient was asked for"),
    };
    answers.into_iter().map(gather).collect()
}

impl Propagator for Dispatch {
    fn survey(&self) -> &Survey {
        self.devices[0].survey()
    }

    fn describe(&self) -> String {
        self.active().iter().map(|d| d.describe()).collect::<Vec<_>>().join("; ")
    }

    fn arithmetic(&self) -> String {
        self.devices[0].arithmetic()
    }

    fn forward(&self, models: &[Model]) -> Result<Vec<Gather>> {
        let requests = models.iter().map(|m| (m.clone(), Companion::Nothing)).collect();
        self.submit(Task::Forward, requests).map(gathers)
    }

    fn born(&self, models: &[Model], directions: &[Model]) -> Result<Vec<Gather>> {
        same_length("directions", directions.len(), models.len())?;
        let pairs = models.iter().zip(directions);
        self.submit(Task::Born, pairs.map(|(m, d)| (m.clone(), Companion::Direction(d.clone()))).collect()).map(gathers)
    }

    fn misfit_and_gradient(
        &self,
        models: &[Model],
        observed: &[Observed],
        misfit: &dyn Misfit,
    ) -> Result<Vec<Evaluation>> {
        same_length("observed gathers", observed.len(), models.len())?;
        let pairs = models.iter().zip(observed);
        let requests = pairs.map(|(m, o)| (m.clone(), Companion::Observed(o.clone()))).collect();
        let evaluation = |answer| match answer {
            Answer::Evaluation(evaluation) => *evaluation,
            Answer::Gather(_) => unreachable!("a gradient was asked for"),
        };
        Ok(self.submit(Task::Gradient(misfit), requests)?.into_iter().map(evaluation).collect())
    }

    /// By the first device that is not lost.
    fn wavefields(
        &self,
        model: &Model,
        sources: &[Position],
        wavelet: &[f64],
        every: usize,
        visit: &WavefieldVisitor,
    ) -> Result<()> {
        self.active()[0].wavefields(model, sources, wavelet, every, visit)
    }

    /// The largest of the devices' batches.
    fn batch(&self) -> usize {
        self.active().iter().map(|d| d.batch()).max().unwrap_or(1).max(1)
    }

    /// The lanes of all devices that take part.
    fn lanes(&self) -> usize {
        self.active().iter().map(|d| d.lanes().max(1)).sum()
    }

    /// Does nothing while a request waits or is evaluated: others would have to ask for the memory again at once.
    fn release(&self) {
        if self.lock().is_quiet() {
            self.devices.iter().for_each(|d| d.release());
        }
    }

    fn gradient_bytes(&self, band_limited: bool) -> u64 {
        self.active().iter().map(|d| d.gradient_bytes(band_limited)).max().unwrap_or(0)
    }
}
