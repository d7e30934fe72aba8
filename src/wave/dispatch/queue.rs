//! The waiting requests of a [`Dispatch`](super::Dispatch), and whose turn it is to work them off.
//!
//! Everything here happens under one lock. A *lane* (a device's leave to run one more call) is a token: it lies in
//! `free`, or is promised to a call, or is held by a thread of that call. What keeps work from being forgotten is that
//! after every change that frees a lane, a thread or a request, [`Queue::assign`] runs, and afterwards there is no free
//! lane while a request waits whose call has an idle thread. Whoever is promised a lane is woken; whoever finds that
//! others have taken its requests meanwhile gives the lane back, which runs `assign` again.

use super::super::Evaluation;
use crate::misfit::MisfitSpec;
use crate::{Error, Gather, Model, Observed, Result};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

/// Longest wait for more requests.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// Share of a call's usual time that is waited for more requests: what a wait in vain can cost.
const WAIT_SHARE: u32 = 16;

/// What can be evaluated in one call of a propagator.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Gradient(MisfitSpec),
    /// Gradients of a misfit without a name; only that call knows it.
    Own(u64),
    Forward,
    Born,
}

/// What a request has besides its model.
pub(super) enum Companion {
    Nothing,
    Observed(Observed),
    Direction(Model),
}

/// One model to evaluate.
pub(super) struct Request {
    pub call: u64,
    /// Which of its call's models this is.
    pub place: usize,
    pub model: Model,
    pub companion: Companion,
}

pub(super) enum Answer {
    Evaluation(Box<Evaluation>),
    Gather(Gather),
}

/// Leave to run one more call on a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub device: usize,
    /// Most models in a call.
    pub cap: usize,
}

/// A caller's list of models.
struct Call {
    kind: Kind,
    wake: Arc<Condvar>,
    /// Threads that could lead.
    idle: usize,
    /// Promised lanes, never more than `idle`.
    lanes: Vec<Lane>,
    /// Requests that no one has taken.
    waiting: usize,
    /// Requests without an answer.
    open: usize,
    answers: Vec<Option<Result<Answer>>>,
}

/// A device as the queue sees it.
#[derive(Clone, Default)]
pub(super) struct DeviceState {
    pub active: bool,
    pub lost: bool,
    lanes: usize,
    /// Calls that run now, and since when at least one does.
    running: usize,
    since: Option<Instant>,
    busy: Duration,
    pub calls: u64,
    pub requests: u64,
    /// Usual time of a call.
    usual: Duration,
}

pub(super) struct Queue {
    pub devices: Vec<DeviceState>,
    waiting: VecDeque<Request>,
    calls: HashMap<u64, Call>,
    free: Vec<Lane>,
    /// Lanes of all active devices.
    lanes: usize,
    /// Requests that are being evaluated.
    taken: usize,
    /// Recent most of requests unanswered at a time: how many will be back soon.
    peak: usize,
    /// Calls with a thread that waits for more requests.
    lingering: Vec<u64>,
    next_call: u64,
    began: Option<Instant>,
    /// Why there is no device any more: its name and problem.
    gone: Option<(String, String)>,
}

/// What a thread of a call shall do next.
pub(super) enum Turn {
    /// Everything is answered.
    Done,
    /// Evaluate these.
    Lead(Lane, Vec<Request>),
    /// Sleep on the condition, at most so long.
    Wait(Arc<Condvar>, Option<Duration>),
}

/// A thread's lane while it waits for more requests.
pub(super) struct Held {
    lane: Lane,
    until: Instant,
}

impl Queue {
    pub fn new(devices: usize) -> Self {
        Self {
            devices: vec![DeviceState::default(); devices],
            waiting: VecDeque::new(),
            calls: HashMap::new(),
            free: vec![],
            lanes: 0,
            taken: 0,
            peak: 0,
            lingering: vec![],
            next_call: 0,
            began: None,
            gone: None,
        }
    }

    /// Lets a device take part.
    pub fn activate(&mut self, device: usize, lanes: usize, batch: usize) {
        (self.devices[device].active, self.devices[device].lanes) = (true, lanes);
        self.lanes += lanes;
        self.free.extend((0..lanes).map(|_| Lane { device, cap: batch.max(1) }));
        self.gone = None;
        self.assign();
    }

    /// Lets a device take part no more. Whether it did until now.
    pub fn retire(&mut self, device: usize) -> bool {
        let was = std::mem::replace(&mut self.devices[device].active, false);
        if was {
            self.devices[device].lost = true;
            self.lanes -= self.devices[device].lanes;
            self.free.retain(|lane| lane.device != device);
        }
        was
    }

    /// Fails everything that waits, and all that comes, with this device's error, unless a device is left.
    pub fn give_up(&mut self, device: &str, problem: &str) {
        if self.devices.iter().any(|d| d.active) {
            return;
        }
        self.gone = Some((device.into(), problem.into()));
        for r in std::mem::take(&mut self.waiting) {
            self.calls.get_mut(&r.call).expect("has a request").waiting -= 1;
            self.answer(r.call, r.place, Err(Error::device(device, problem)));
        }
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.taken == 0
    }

    /// Enters a call with its requests; `threads` will ask for its [turns](Self::turn). `kind` is told the call's number.
    pub fn enter(
        &mut self,
        kind: impl FnOnce(u64) -> Kind,
        requests: Vec<(Model, Companion)>,
        threads: usize,
    ) -> Result<u64> {
        if let Some((device, problem)) = &self.gone {
            return Err(Error::device(device, problem));
        }
        let (id, n) = (self.next_call, requests.len());
        self.next_call += 1;
        self.began.get_or_insert_with(Instant::now);
        let answers = (0..n).map(|_| None).collect();
        let wake = Arc::new(Condvar::new());
        let kind = kind(id);
        self.calls.insert(id, Call { kind, wake, idle: threads, lanes: vec![], waiting: n, open: n, answers });
        let requests = requests.into_iter().enumerate();
        self.waiting.extend(requests.map(|(place, (model, companion))| Request { call: id, place, model, companion }));
        self.peak = self.peak.max(self.waiting.len() + self.taken);
        self.assign();
        for call in &self.lingering {
            self.calls[call].wake.notify_all();
        }
        Ok(id)
    }

    /// The answers of a call whose threads are all [done](Turn::Done).
    pub fn leave(&mut self, call: u64) -> Result<Vec<Answer>> {
        let call = self.calls.remove(&call).expect("left once");
        call.answers.into_iter().map(|a| a.expect("all are answered")).collect()
    }

    /// Promises free lanes to the calls whose requests wait longest and that have a thread for it.
    fn assign(&mut self) {
        while let Some(&lane) = self.free.last() {
            let ready = |c: &Call| c.lanes.len() < c.idle.min(c.waiting);
            let Some(call) = self.waiting.iter().map(|r| r.call).find(|c| ready(&self.calls[c])) else { return };
            self.free.pop();
            let call = self.calls.get_mut(&call).expect("has a request");
            call.lanes.push(lane);
            call.wake.notify_all();
        }
    }

    fn give_back(&mut self, lane: Lane) {
        if self.devices[lane.device].active {
            self.free.push(lane);
        }
    }

    /// What a thread of a call shall do; `held` is its own and is asked back at every turn.
    pub fn turn(&mut self, id: u64, held: &mut Option<Held>) -> Turn {
        self.lingering.retain(|c| *c != id);
        let call = self.calls.get_mut(&id).expect("entered");
        if held.is_none()
            && let Some(lane) = call.lanes.pop()
        {
            call.idle -= 1;
            let wait = (self.devices[lane.device].usual / WAIT_SHARE).min(LONGEST_WAIT);
            *held = Some(Held { lane, until: Instant::now() + wait });
        }
        let (kind, waiting, done, wake) = (call.kind, call.waiting, call.open == 0, call.wake.clone());
        if let Some(Held { lane, until }) = *held {
            if waiting == 0 || !self.devices[lane.device].active {
                *held = None;
                self.rest(id, lane);
                return self.turn(id, held);
            }
            let want = self.share(lane);
            let now = Instant::now();
            // a call that alone knows its misfit waits for nobody
            let alone = matches!(kind, Kind::Own(_));
            if alone || now >= until || self.waiting.len() >= want {
                *held = None;
                return Turn::Lead(lane, self.take(kind, lane, want));
            }
            self.lingering.push(id);
            return Turn::Wait(wake, Some(until - now));
        }
        if done { Turn::Done } else { Turn::Wait(wake, None) }
    }

    /// How many requests a lane shall take: with more lanes than one, they share, so that all of them have work and
    /// one group's callers think while the other group is evaluated.
    fn share(&self, lane: Lane) -> usize {
        self.peak.div_ceil(self.lanes.max(1)).clamp(1, lane.cap)
    }

    fn take(&mut self, kind: Kind, lane: Lane, most: usize) -> Vec<Request> {
        let (mut batch, mut rest) = (vec![], VecDeque::new());
        for r in std::mem::take(&mut self.waiting) {
            let call = self.calls.get_mut(&r.call).expect("has a request");
            if call.kind == kind && batch.len() < most {
                call.waiting -= 1;
                batch.push(r);
            } else {
                rest.push_back(r);
            }
        }
        let unanswered = batch.len() + rest.len() + self.taken;
        self.peak = unanswered.max(self.peak - self.peak.div_ceil(8));
        self.waiting = rest;
        self.taken += batch.len();
        let device = &mut self.devices[lane.device];
        device.running += 1;
        device.since.get_or_insert_with(Instant::now);
        batch
    }

    /// Takes note of a batch that was evaluated: of its answers, and of the requests that a lost device leaves behind.
    pub fn finish(
        &mut self,
        lane: Lane,
        began: Instant,
        answers: Vec<(u64, usize, Result<Answer>)>,
        left: Vec<Request>,
    ) {
        self.taken -= answers.len() + left.len();
        let device = &mut self.devices[lane.device];
        device.running -= 1;
        if device.running == 0
            && let Some(since) = device.since.take()
        {
            device.busy += since.elapsed();
        }
        device.calls += 1;
        device.requests += answers.len() as u64;
        let spent = began.elapsed();
        device.usual = if device.calls == 1 { spent } else { (device.usual + spent) / 2 };
        for r in left.into_iter().rev() {
            self.calls.get_mut(&r.call).expect("has a request").waiting += 1;
            self.waiting.push_front(r);
        }
        for (call, place, answer) in answers {
            self.answer(call, place, answer);
        }
    }

    /// The thread of a call has finished with a lane and can lead again.
    pub fn rest(&mut self, id: u64, lane: Lane) {
        self.calls.get_mut(&id).expect("its thread is here").idle += 1;
        self.give_back(lane);
        self.assign();
    }

    fn answer(&mut self, call: u64, place: usize, answer: Result<Answer>) {
        let call = self.calls.get_mut(&call).expect("waits for its answer");
        call.answers[place] = Some(answer);
        call.open -= 1;
        if call.open == 0 {
            call.wake.notify_all();
        }
    }

    /// Share of the time since the first request in which at least one call ran on the device.
    pub fn busy(&self, device: usize) -> f64 {
        let d = &self.devices[device];
        let busy = d.busy + d.since.map_or(Duration::ZERO, |t| t.elapsed());
        self.began.map_or(0.0, |t| (busy.as_secs_f64() / t.elapsed().as_secs_f64().max(1e-9)).min(1.0))
    }
}
