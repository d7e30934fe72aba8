//! What a batch has done so far, and its bar on a terminal or lines elsewhere.

use super::batchdir::Line;
use super::note;
use fwi::wave::Dispatch;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts the gathers of a batch.
pub struct Tally {
    total: usize,
    before: usize,
    since: Instant,
    bar: Option<ProgressBar>,
    quiet: bool,
    state: Mutex<Counted>,
}

struct Counted {
    lines: Vec<Line>,
    /// Place in the batch and exit code of the foremost gather that failed.
    first_failure: Option<(usize, u8)>,
    sum_rms: f64,
    inverted: usize,
    last_line: Instant,
}

impl Tally {
    /// A batch of `total` gathers, of which `known` were done in earlier runs.
    pub fn new(total: usize, known: &[&Line], quiet: bool) -> Self {
        let bar = (std::io::stderr().is_terminal() && !quiet).then(|| {
            let style =
                ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}, {eta} left").expect("a valid template");
            let bar = ProgressBar::new(total as u64).with_style(style).with_position(known.len() as u64);
            // the rate is that of this run
            bar.tick();
            bar.reset_eta();
            bar
        });
        let since = Instant::now();
        let state = Counted {
            lines: known.iter().copied().cloned().collect(),
            first_failure: None,
            sum_rms: known.iter().filter_map(|line| line.data_rms).sum(),
            inverted: known.len(),
            last_line: since,
        };
        Self { total, before: known.len(), since, bar, quiet, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Counts gather `number` of the batch; `failure` is its exit code.
    pub fn add(&self, number: usize, line: Line, failure: Option<u8>, coarse: &Dispatch, fine: Option<&Dispatch>) {
        let mut state = self.lock();
        if let Some(code) = failure {
            let earlier = state.first_failure.is_some_and(|(n, _)| n < number);
            state.first_failure = state.first_failure.filter(|_| earlier).or(Some((number, code)));
            self.show(&format!("{}: failed: {}", line.id, line.error.as_deref().unwrap_or_default()));
        }
        state.sum_rms += line.data_rms.unwrap_or(0.0);
        state.inverted += usize::from(failure.is_none());
        state.lines.push(line);
        let done = state.lines.len();
        let rate = (done - self.before) as f64 / self.since.elapsed().as_secs_f64().max(1e-3) * 3600.0;
        let mean = state.sum_rms / state.inverted.max(1) as f64;
        let text = format!("{rate:.0} an hour, mean data rms {mean:.3e}, {}", busy(coarse, fine));
        match &self.bar {
            Some(bar) => {
                bar.set_position(done as u64);
                bar.set_message(text);
            }
            None if !self.quiet && (done == self.total || state.last_line.elapsed() >= LINE_EVERY) => {
                note(format_args!("{done} of {} gathers, {text}", self.total));
                state.last_line = Instant::now();
            }
            None => {}
        }
    }

    fn show(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if !self.quiet => note(text),
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Gathers that have their line, those of earlier runs included.
    pub fn done(&self) -> usize {
        self.lock().lines.len()
    }

    /// Gathers that this run has added.
    pub fn added(&self) -> usize {
        self.done() - self.before
    }

    /// What came of all of them.
    pub fn lines(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// The exit code of the first gather, in the batch's order, that failed.
    pub fn first_failure(&self) -> Option<u8> {
        self.lock().first_failure.map(|(_, code)| code)
    }

    /// Seconds of this run.
    pub fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    /// Gathers an hour in this run.
    pub fn per_hour(&self) -> f64 {
        self.added() as f64 / self.seconds().max(1e-3) * 3600.0
    }
}

/// How busy the devices are, in words.
fn busy(coarse: &Dispatch, fine: Option<&Dispatch>) -> String {
    let shares = |d: &Dispatch| {
        let used = d.statistics().into_iter().filter(|s| s.active || s.requests > 0);
        used.map(|s| format!("{:.0}%", 100.0 * s.busy)).collect::<Vec<_>>().join(" and ")
    };
    match fine.filter(|f| f.statistics().iter().any(|s| s.requests > 0)) {
        Some(fine) => format!("device {} busy, {} with refined stages", shares(coarse), shares(fine)),
        None => format!("device {} busy", shares(coarse)),
    }
}
