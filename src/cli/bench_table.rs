//! What a bench shows: how an inversion goes on, and the table at the end.

use super::monitor::TICK;
use super::{note, tell};
use fwi::family::bench::{Case, SOON, Spread, Weighted, weighted};
use fwi::invert::{Observer, Progress};
use fwi::{Family, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(20);

/// Shows one inversion: a bar on a terminal, plain lines elsewhere.
pub struct Watch {
    name: String,
    bar: Option<ProgressBar>,
    quiet: bool,
    last: Instant,
    /// Lowest data rms within [`SOON`] seconds, and that map's error.
    soon: Option<(f64, f64)>,
}

impl Watch {
    /// For gather `number` of a family; `done` of `total` gathers have ended.
    pub fn new(family: Family, number: usize, done: usize, total: usize, quiet: bool) -> Self {
        let name = format!("[{}/{total}] {family} {number}", done + 1);
        let bar = (std::io::stderr().is_terminal() && !quiet).then(|| {
            let style = ProgressStyle::with_template("{spinner} {bar:16} {msg}").expect("a valid template");
            let bar = ProgressBar::new(total as u64).with_style(style).with_position(done as u64);
            bar.enable_steady_tick(TICK);
            bar.with_message(name.clone())
        });
        Self { name, bar, quiet, last: Instant::now(), soon: None }
    }

    /// The error of what fitted best [`SOON`] seconds after the start of an inversion that ended with `case`.
    pub fn soon_mae(&self, case: &Case) -> Option<f64> {
        if case.seconds <= SOON { Some(case.result.mae) } else { self.soon.map(|(_, mae)| mae) }
    }

    /// Says what came of it.
    pub fn ended(&self, case: &Case) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if !self.quiet {
            note(format_args!(
                "{}: MAE {:.2} to {:.2} m/s, data rms {:.2e}, {} evaluations, {} normal matrices, {:.0} s: {}",
                self.name,
                case.start.mae,
                case.result.mae,
                case.data_rms,
                case.evaluations,
                case.normal_matrices,
                case.seconds,
                case.stop_reason
            ));
        }
    }
}

impl Observer for Watch {
    fn evaluation(&mut self, at: &Progress) {
        if let Some(bar) = &self.bar {
            bar.set_message(self.line(at));
        }
    }

    fn iteration(&mut self, at: &Progress) {
        self.evaluation(at);
        if let Some(mae) = at.mae.filter(|_| at.seconds <= SOON && self.soon.is_none_or(|(rms, _)| at.data_rms < rms)) {
            self.soon = Some((at.data_rms, mae));
        }
        if self.bar.is_none() && !self.quiet && self.last.elapsed() >= LINE_EVERY {
            note(self.line(at));
            self.last = Instant::now();
        }
    }
}

impl Watch {
    fn line(&self, at: &Progress) -> String {
        let mae = at.mae.map_or(String::new(), |m| format!(", MAE {m:.2} m/s"));
        let (name, stage, n, rms) = (&self.name, at.stage_name, at.evaluation, at.data_rms);
        format!("{name} [{stage}] {n} evaluations, data rms {rms:.2e}{mae}, {:.0} s", at.seconds)
    }
}

/// The figures of a table, as the last line of the file has them.
#[derive(serde::Serialize)]
pub struct Summary {
    contest: Option<Weighted>,
}

/// Prints the table and the error weighted with the contest's mix.
pub fn show(cases: &[Case]) -> Result<Summary> {
    let contest = weighted(cases);
    let Some(w) = &contest else {
        tell("no gather was inverted")?;
        return Ok(Summary { contest });
    };
    tell(
        "MAE in m/s; at 2 min: of what fitted best by then; noise: largest data rms over that of the true map; matrices: normal matrices; equivalent: evaluations, and those \
         that the time of the matrices buys",
    )?;
    tell(
        "family        maps   start    mean  median   worst  at 2 min  exact  data rms     worst  noise  evaluations  matrices  equivalent  \
         seconds   worst",
    )?;
    for family in Family::ALL {
        let of: Vec<&Case> = cases.iter().filter(|c| c.family == family.name()).collect();
        if !of.is_empty() {
            row(family, &of)?;
        }
    }
    coverage(cases)?;
    tell(format_args!(
        "weighted with the contest's mix (FlatVel 11,928, Style_A 5,663, Style_B 6,337, the other six families 41,890 evenly), \
         over families with {:.0}% of its gathers: MAE {:.3} over odd columns, as it scores, {:.3} over all cells",
        100.0 * w.share,
        w.odd_mae,
        w.mae
    ))?;
    Ok(Summary { contest })
}

fn spread(cases: &[&Case], of: impl Fn(&Case) -> f64) -> Spread {
    Spread::of(cases.iter().map(|c| of(c))).expect("at least one case")
}

fn row(family: Family, of: &[&Case]) -> Result<()> {
    let (mae, rms) = (spread(of, |c| c.result.mae), spread(of, |c| c.data_rms));
    let seconds = spread(of, |c| c.seconds);
    tell(format_args!(
        "{family:12}  {:4} {:7.1} {:7.2} {:7.2} {:7.2} {:9.2} {:5.1}% {:9.2e} {:9.2e} {:>6} {:12.1} {:9.1} {:11.1} {:8.1} {:7.1}",
        of.len(),
        spread(of, |c| c.start.mae).mean,
        mae.mean,
        mae.median,
        mae.worst,
        spread(of, |c| c.soon_mae.unwrap_or(c.start.mae)).mean,
        100.0 * spread(of, |c| c.result.exact).mean,
        rms.mean,
        rms.worst,
        Spread::of(of.iter().filter_map(|c| Some(c.data_rms / c.noise_rms?)))
            .map_or("-".into(), |s| format!("{:.1}x", s.worst)),
        spread(of, |c| c.evaluations as f64).mean,
        spread(of, |c| c.normal_matrices as f64).mean,
        spread(of, Case::equivalent_evaluations).mean,
        seconds.mean,
        seconds.worst,
    ))
}

/// How well the standard deviations foretold the errors, by family.
fn coverage(cases: &[Case]) -> Result<()> {
    let told: Vec<&Case> = cases.iter().filter(|c| c.coverage.is_some()).collect();
    if told.is_empty() {
        return Ok(());
    }
    tell(
        "\nstandard deviations of cells: errors within one (68.3% where they are right) and two (95.4%); MAE expected and found",
    )?;
    tell("family        maps  within one  within two  expected   found")?;
    for family in Family::ALL {
        let of: Vec<&Case> = told.iter().copied().filter(|c| c.family == family.name()).collect();
        if of.is_empty() {
            continue;
        }
        let mean = |pick: fn(&fwi::family::bench::Coverage) -> f64| {
            spread(&of, |c| c.coverage.as_ref().map_or(0.0, pick)).mean
        };
        tell(format_args!(
            "{family:12}  {:4} {:10.1}% {:10.1}% {:9.2} {:7.2}",
            of.len(),
            100.0 * mean(|c| c.within_one),
            100.0 * mean(|c| c.within_two),
            mean(|c| c.expected_mae),
            spread(&of, |c| c.result.mae).mean,
        ))?;
    }
    tell("")
}
