//! Recipes one after the other: where one stalls far above the noise, the next is tried, and the best map is kept.
//!
//! All attempts share the limits on evaluations and time, and count on: a checkpoint holds the outcomes of the attempts
//! before, so that a resumed run goes on in the attempt that it was in and still knows them.

use super::outcome::{AttemptSummary, Observer, Outcome, StopReason};
use super::run::Inversion;
use super::settings::Settings;
use super::start::Start;
use super::state::{Finished, State};
use crate::family::{Recipe, RecipeStart};
use crate::{Error, Result};
use ndarray::Array2;

/// One recipe with the settings that it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// Its name.
    pub recipe: String,
    /// Where it begins as a fall-back: [`RecipeStart::Prior`] is where the first attempt began.
    pub start: RecipeStart,
    /// Data rms, in the data's units, above which the next one is tried.
    pub accept_rms: f64,
    /// Data rms of an attempt before at or below which this one is left out.
    pub only_above: Option<f64>,
    /// How many times it is tried at most.
    pub times: usize,
    /// Share of the lowest data rms before it that an attempt must come below for it to be tried again; however little without one.
    pub again_below: Option<f64>,
    /// How it inverts.
    pub settings: Settings,
}

impl Attempt {
    /// A recipe's, with all but its stages from `settings`.
    pub fn new(recipe: Recipe, settings: &Settings) -> Self {
        let Recipe { name, start, accept_rms, only_above, times, again_below, stages, .. } = recipe;
        let settings = Settings { stages, ..settings.clone() };
        Self { recipe: name, start, accept_rms, only_above, times, again_below, settings }
    }

    /// Whether it is left out after those before: they have come nearer than it is for.
    fn is_left_out(&self, done: &[Finished]) -> bool {
        let near = |rms: f64| best(done).is_some_and(|i| done[i].outcome.data_rms <= rms);
        self.only_above.is_some_and(near)
    }

    /// Whether it is what the last attempt was, whose numbers broke down: they would again.
    fn broke_down(&self, last: &Finished) -> bool {
        last.summary.recipe == self.recipe && matches!(last.summary.stop, StopReason::BrokeDown { .. })
    }

    /// Whether the last attempt was this recipe's and gained too little for another one.
    fn stalled(&self, done: &[Finished]) -> bool {
        let own = done.split_last().filter(|(last, _)| last.summary.recipe == self.recipe);
        let Some((share, (last, before))) = self.again_below.zip(own) else { return false };
        best(before).is_some_and(|i| last.outcome.data_rms > share * before[i].outcome.data_rms)
    }

    /// The best map of those before, or, tried again, its own.
    fn best_start(&self, done: &[Finished]) -> Option<Start> {
        let own = done.last().filter(|f| f.summary.recipe == self.recipe);
        own.or(best(done).map(|i| &done[i])).map(|f| Start::Map(f.outcome.model.vp.clone()))
    }
}

/// The attempt that follows on those that are done. Errors when these are not what `attempts` would have come to.
fn next<'a>(attempts: &'a [Attempt], done: &[Finished]) -> Result<Option<&'a Attempt>> {
    let mut before = 0;
    for attempt in attempts.iter().flat_map(|a| std::iter::repeat_n(a, a.times)) {
        let so_far = &done[..before];
        let broke_down = so_far.last().is_some_and(|last| attempt.broke_down(last));
        if broke_down || attempt.is_left_out(so_far) || attempt.stalled(so_far) {
            continue;
        }
        match done.get(before) {
            None => return Ok(Some(attempt)),
            Some(f) if f.summary.recipe == attempt.recipe => before += 1,
            Some(_) => break,
        }
    }
    if before < done.len() { Err(of_other_recipes()) } else { Ok(None) }
}

fn of_other_recipes() -> Error {
    Error::Usage("the checkpoint belongs to other recipes; give those it was made with".into())
}

/// Where the first attempt begins.
#[derive(Clone, Debug, PartialEq)]
pub struct FirstStart {
    /// The start.
    pub start: Start,
    /// What summaries call it.
    pub name: String,
    /// Standard deviations (nz, nx) of it, m/s, where a prior tells them.
    pub confidence: Option<Array2<f64>>,
}

/// Tries recipes one after the other until one reaches its `accept_rms` or a limit ends all, and hands back the outcome with
/// the lowest data rms, its counts and seconds those of all attempts together. `inversion` makes the inversion of an
/// attempt's settings.
///
/// Errors without an attempt, and as [`Inversion::run`] does; numbers that break down later than in the first stage of the first
/// attempt only end theirs, see [`Outcome::broke_down`].
pub fn invert_with_fallbacks<'a>(
    attempts: &[Attempt],
    first: &FirstStart,
    inversion: &dyn Fn(&Settings) -> Result<Inversion<'a>>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    proceed(attempts, first, None, inversion, observer)
}

/// Continues [`invert_with_fallbacks`] from a checkpoint, in the attempt that it was in. `name` is the first start's. Errors as
/// [`Inversion::resume`] does, and when the attempts before were other recipes.
pub fn resume_with_fallbacks<'a>(
    attempts: &[Attempt],
    name: &str,
    state: State,
    inversion: &dyn Fn(&Settings) -> Result<Inversion<'a>>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let before = &state.earlier;
    if next(attempts, before)?.is_none() {
        return Err(of_other_recipes());
    }
    let (model, confidence) = match before.first() {
        Some(f) => (&f.outcome.start, &f.confidence),
        None => (&state.start, &state.confidence),
    };
    let start = Start::Map(model.vp.clone());
    let first = FirstStart { start, name: name.into(), confidence: confidence.clone() };
    proceed(attempts, &first, Some(state), inversion, observer)
}

fn proceed<'a>(
    attempts: &[Attempt],
    first: &FirstStart,
    mut resumed: Option<State>,
    inversion: &dyn Fn(&Settings) -> Result<Inversion<'a>>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let mut done: Vec<Finished> = resumed.as_ref().map_or(vec![], |s| s.earlier.clone());
    while let Some(attempt) = next(attempts, &done)? {
        let begin = if done.is_empty() { RecipeStart::Prior } else { attempt.start };
        let mut inversion = inversion(&attempt.settings)?;
        let outcome = match resumed.take() {
            Some(state) => inversion.resume(state, observer)?,
            None => {
                if let Some(c) = first.confidence.as_ref().filter(|_| begin == RecipeStart::Prior) {
                    inversion = inversion.confidence(c.clone())?;
                }
                let start = match begin {
                    RecipeStart::Prior => None,
                    RecipeStart::Gradient => Some(Start::Gradient),
                    RecipeStart::Best => attempt.best_start(&done),
                };
                inversion.after(done.clone()).run(start.as_ref().unwrap_or(&first.start), observer)?
            }
        };
        let limit = ended(&outcome, &attempt.settings);
        let accepted = outcome.data_rms <= attempt.accept_rms;
        let own = outcome.stop.clone();
        let summary = summary(attempt, begin.called(&first.name), &outcome, &done);
        done.push(Finished { summary, outcome, confidence: first.confidence.clone() });
        match limit {
            // its stages may have come to their own end, but there would be more to try
            Some(limit) if !accepted && next(attempts, &done)?.is_some() => return conclude(done, Some(limit)),
            Some(_) => return conclude(done, Some(own)),
            None if accepted => break,
            None => (),
        }
    }
    conclude(done, None)
}

/// Why nothing may follow, if so: a limit of all attempts, the target, or the caller ended this one.
fn ended(outcome: &Outcome, settings: &Settings) -> Option<StopReason> {
    let spent = || settings.max_evals.filter(|n| outcome.evaluations >= *n).map(|limit| StopReason::MaxEvals { limit });
    let stop = &outcome.stop;
    match stop {
        StopReason::Cancelled | StopReason::TimeLimit { .. } => Some(stop.clone()),
        StopReason::TargetReached { rms, .. } => settings.target_rms.is_some_and(|t| *rms <= t).then(|| stop.clone()),
        _ => spent(),
    }
}

fn summary(attempt: &Attempt, start: &str, outcome: &Outcome, before: &[Finished]) -> AttemptSummary {
    let before = before.last().map(|f| &f.outcome);
    let since = |count: fn(&Outcome) -> u64| count(outcome) - before.map_or(0, count);
    AttemptSummary {
        recipe: attempt.recipe.clone(),
        start: start.into(),
        data_rms: Some(outcome.data_rms).filter(|rms| rms.is_finite()),
        mae: outcome.mae.filter(|m| m.is_finite()),
        evaluations: since(|o| o.evaluations),
        normal_matrices: since(|o| o.normal_matrices),
        seconds: outcome.seconds - before.map_or(0.0, |o| o.seconds),
        stop: outcome.stop.clone(),
        kept: false,
    }
}

/// Which has the lowest data rms.
fn best(done: &[Finished]) -> Option<usize> {
    let rms = |f: &Finished| if f.outcome.data_rms.is_nan() { f64::INFINITY } else { f.outcome.data_rms };
    (0..done.len()).min_by(|&a, &b| rms(&done[a]).total_cmp(&rms(&done[b])))
}

/// The best outcome with the counts of all, and in place of its own the reason why all ended, if there is one.
fn conclude(mut done: Vec<Finished>, limit: Option<StopReason>) -> Result<Outcome> {
    let Some((best, last)) = best(&done).zip(done.last().map(|f| f.outcome.clone())) else {
        return Err(Error::Usage("an inversion needs at least one recipe".into()));
    };
    done[best].summary.kept = true;
    let goes_on = done[best].summary.start == RecipeStart::Best.called("");
    let start = done[if goes_on { 0 } else { best }].outcome.start.clone();
    let summaries = done.iter().map(|f| f.summary.clone()).collect();
    let kept = done.swap_remove(best).outcome;
    Ok(Outcome {
        stop: limit.unwrap_or(kept.stop),
        evaluations: last.evaluations,
        iterations: last.iterations,
        normal_matrices: last.normal_matrices,
        curvature_seconds: last.curvature_seconds,
        seconds: last.seconds,
        attempts: summaries,
        model: kept.model,
        start,
        confidence: kept.confidence,
        data_rms: kept.data_rms,
        misfit: kept.misfit,
        mae: kept.mae,
        stages: kept.stages,
        masked: kept.masked,
    })
}
