//! What a running inversion shows: a bar on a terminal, plain lines elsewhere; the log and the checkpoints.

use super::note;
use super::rundir::{LogLine, RunDir};
use fwi::invert::{Observer, Progress, State};
use fwi::plot;
use fwi::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Time between two drawings of a bar on which nothing else changes.
pub const TICK: Duration = Duration::from_millis(500);

/// Points and stages of the convergence figure.
pub type Convergence = (Vec<plot::Progress>, Vec<plot::StageStart>);

/// The convergence that a log tells.
pub fn convergence(lines: Vec<LogLine>) -> Convergence {
    let mut c = Convergence::default();
    for line in lines {
        remember(&mut c, line.evaluation, &line.stage_name, line.data_rms, line.mae);
    }
    c
}

fn remember((history, stages): &mut Convergence, evaluations: u64, stage: &str, rms: f64, mae: Option<f64>) {
    if stages.last().is_none_or(|s| s.name != stage) {
        let before = history.last().map_or(0, |p| p.evaluations);
        stages.push(plot::StageStart { evaluations: before, name: stage.to_string() });
    }
    history.push(plot::Progress { evaluations: evaluations as usize, rms, mae });
}

/// Limits that tell how much is left.
#[derive(Clone, Copy)]
pub struct Budget {
    /// Evaluations in all.
    pub evaluations: Option<u64>,
    /// Time in all.
    pub time: Option<Duration>,
}

/// The observer of `fwi invert`.
pub struct Monitor<'a> {
    dir: &'a mut RunDir,
    bar: Option<ProgressBar>,
    budget: Budget,
    /// When it began, and the evaluations that were done by then, for the rate.
    since: Instant,
    before: Option<u64>,
    last_line: Option<Instant>,
    /// A failed write of the log, raised at the next checkpoint.
    failed: Option<Error>,
    /// What the convergence figure will show.
    pub convergence: Convergence,
}

impl<'a> Monitor<'a> {
    /// Continues after the lines of a run that is resumed.
    pub fn new(dir: &'a mut RunDir, budget: Budget, lines: Vec<LogLine>, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !quiet;
        let bar = terminal.then(|| {
            let bar = match budget.evaluations {
                Some(n) => ProgressBar::new(n),
                None => ProgressBar::no_length(),
            };
            let template = match budget.evaluations {
                Some(_) => "{bar:24} {pos}/{len} {msg}, {elapsed}",
                None => "{spinner} {pos} evaluations {msg}, {elapsed}",
            };
            let bar = bar.with_style(ProgressStyle::with_template(template).expect("a valid template"));
            // a Gauss-Newton step takes seconds
            bar.enable_steady_tick(TICK);
            bar.with_message("[starting]")
        });
        let last_line = quiet.then(|| Instant::now() + Duration::from_secs(u64::from(u32::MAX)));
        Self {
            dir,
            bar,
            budget,
            since: Instant::now(),
            before: None,
            last_line,
            failed: None,
            convergence: convergence(lines),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Evaluations per second, and the seconds left at that rate.
    fn pace(&mut self, at: &Progress) -> (f64, Option<f64>) {
        let before = *self.before.get_or_insert(at.evaluation.saturating_sub(1));
        let rate = (at.evaluation - before) as f64 / self.since.elapsed().as_secs_f64().max(1e-3);
        let by_evaluations = self.budget.evaluations.map(|n| n.saturating_sub(at.evaluation) as f64 / rate.max(1e-9));
        let by_time = self.budget.time.map(|t| (t.as_secs_f64() - at.seconds).max(0.0));
        (rate, by_evaluations.into_iter().chain(by_time).reduce(f64::min))
    }
}

fn message(at: &Progress, rate: f64, left: Option<f64>) -> String {
    let mae = at.mae.map_or(String::new(), |m| format!(", MAE {m:.1} m/s"));
    let left = left.map_or(String::new(), |s| {
        format!(", at most {} left", humantime::format_duration(Duration::from_secs(s.round() as u64)))
    });
    format!(
        "[{}] misfit {:.3e}, data rms {:.3e}{mae}, {rate:.1} evaluations/s{left}",
        at.stage_name, at.misfit, at.data_rms
    )
}

impl Observer for Monitor<'_> {
    fn evaluation(&mut self, at: &Progress) {
        let (rate, left) = self.pace(at);
        if let Some(bar) = &self.bar {
            bar.set_position(at.evaluation);
            bar.set_message(message(at, rate, left));
        }
    }

    fn iteration(&mut self, at: &Progress) {
        remember(&mut self.convergence, at.evaluation, at.stage_name, at.data_rms, at.mae);
        if let Err(e) = self.dir.log(at) {
            self.failed.get_or_insert(e);
        }
        // of Gauss-Newton steps there is no word but this
        self.evaluation(at);
        let due =
            self.last_line.is_none_or(|t| Instant::now().checked_duration_since(t).is_some_and(|d| d >= LINE_EVERY));
        if self.bar.is_none() && due {
            let (rate, left) = self.pace(at);
            let text = message(at, rate, left);
            note(format_args!("iteration {}, evaluation {}: {text}", at.iteration, at.evaluation));
            self.last_line = Some(Instant::now());
        }
    }

    fn checkpoint(&mut self, state: &State) -> Result<()> {
        match self.failed.take() {
            Some(e) => Err(e),
            None => self.dir.save(state),
        }
    }
}
