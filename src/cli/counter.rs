//! How far a stream of like things has come: a bar on a terminal, lines elsewhere.

use super::note;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts things as they are done.
pub struct Counter {
    bar: ProgressBar,
    things: &'static str,
    before: u64,
    total: u64,
    quiet: bool,
    since: Instant,
    told: Instant,
}

impl Counter {
    /// Of `total` things, `before` of which were done earlier; `quiet` shows nothing.
    pub fn new(things: &'static str, before: u64, total: u64, quiet: bool) -> Self {
        let template = format!("{{bar:24}} {{pos}}/{{len}} {things}, {{per_sec}}, {{eta}} left");
        let style = ProgressStyle::with_template(&template).expect("a valid template");
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(total) };
        let bar = bar.with_style(style).with_position(before);
        // the rate is that of this run
        bar.tick();
        bar.reset_eta();
        let since = Instant::now();
        Self { bar, things, before, total, quiet, since, told: since }
    }

    /// One more is done.
    pub fn add(&mut self) {
        self.bar.inc(1);
        let done = self.bar.position();
        let due = done == self.total || self.told.elapsed() >= LINE_EVERY;
        if due && self.bar.is_hidden() && !self.quiet {
            let rate = (done - self.before) as f64 / self.since.elapsed().as_secs_f64();
            note(format_args!("{done} of {} {}, {rate:.1} per second", self.total, self.things));
            self.told = Instant::now();
        }
    }

    /// Takes the bar away, as an error does.
    pub fn finish(self) {}
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
