//! What `fwi invert` tells and writes.

use super::{Args, Engines, Plan, Way};
use crate::cli::method::Signals;
use crate::cli::monitor::Convergence;
use crate::cli::options::{memory_line, peak_memory};
use crate::cli::recipe_choice::{Chosen, kept};
use crate::cli::rundir::{
    CONVERGENCE_FIGURE, GATHER_FIGURE, Origin, RunDir, UNCERTAINTY, UNCERTAINTY_FIGURE, VELOCITY, VELOCITY_FIGURE,
};
use fwi::invert::{Inversion, Outcome, StopReason, Uncertainty};
use fwi::io::{write_array, write_atomic};
use fwi::{Error, Result, family, plot};
use serde_json::json;
use std::process::ExitCode;

/// The family that the prior and the gather tell, or, without a prior, the gather alone.
fn family_of(plan: &Plan, origin: &Origin) -> String {
    let told = origin.prior.as_ref().and_then(|p| p["family"].as_str());
    told.unwrap_or_else(|| family::from_gather(&plan.survey, &plan.observed)).to_string()
}

/// Says what the run is about to do.
pub(super) fn report(args: &Args, plan: &Plan, origin: &Origin, engines: &Engines, way: &Way) {
    args.say(&format!("gather: {}, family {}", args.gather.display(), family_of(plan, origin)));
    let o = &plan.observed;
    if o.mask.nt < plan.survey.nt {
        args.say("the last sample is zero everywhere and does not count");
    }
    for (what, list) in [("not finite", &o.bad), ("dead", &o.dead)] {
        if !list.is_empty() {
            let named: Vec<String> = list.iter().take(5).map(|(s, r)| format!("shot {s} receiver {r}")).collect();
            let more = if list.len() > 5 { ", ..." } else { "" };
            args.say(&format!("{} traces are {what} and do not count: {}{more}", list.len(), named.join(", ")));
        }
    }
    if let Some(Chosen { recipe, why, .. }) = &way.chosen {
        args.say(&format!("recipe: {}, {why}", recipe.name));
    }
    args.say(&format!("engine: {}", engines.coarse.describe()));
    if let Some(fine) = &engines.fine {
        args.say(&format!("engine of refined stages: {}", fine.describe()));
    }
    args.say(&memory_line(way.fields(engines), way.newton));
}

/// The standard deviations of the result, told of.
pub(super) fn uncertainty(args: &Args, inversion: &Inversion, outcome: &Outcome) -> Result<Uncertainty> {
    let begin = std::time::Instant::now();
    let found = inversion.uncertainty(outcome, args.noise)?;
    args.say(&format!(
        "uncertainty: MAE {:.2} m/s expected under a noise of {:.1e}, {:.0} s",
        found.expected_mae(),
        found.noise,
        begin.elapsed().as_secs_f64()
    ));
    Ok(found)
}

#[expect(clippy::too_many_arguments, reason = "no two of them belong together")]
pub(super) fn write_outputs(
    args: &Args,
    plan: &Plan,
    origin: &Origin,
    engines: &Engines,
    way: &Way,
    (outcome, uncertainty): (&Outcome, Option<&Uncertainty>),
    dir: &RunDir,
    (history, stages): &Convergence,
) -> Result<()> {
    let propagator = engines.finest();
    let map = &outcome.model.vp;
    if uncertainty.is_none() {
        dir.forget_uncertainty()?;
    }
    write_array(dir.file(VELOCITY), map.mapv(|v| v as f32).view())?;
    let synthetic = propagator.forward(std::slice::from_ref(&outcome.model))?.remove(0);
    let png = |name: &str, bytes: Vec<u8>| write_atomic(dir.file(name), |w| w.write_all(&bytes));
    let truth = plan.truth.as_ref().map(|t| t.view());
    png(VELOCITY_FIGURE, plot::map_figure(map.view(), plan.survey.dx, Some(outcome.start.vp.view()), truth)?)?;
    png(GATHER_FIGURE, plot::gather_figure(&plan.observed, Some(&synthetic), &plan.survey, None)?)?;
    png(CONVERGENCE_FIGURE, plot::convergence_figure(history, stages)?)?;
    let kept = kept(&way.attempts, outcome);
    let recipe = way.chosen.as_ref().map(|_| &kept.recipe);
    if let Some(u) = uncertainty {
        write_array(dir.file(UNCERTAINTY), u.deviations.mapv(|v| v as f32).view())?;
        let title = format!("Expected MAE {:.2} m/s", u.expected_mae());
        png(UNCERTAINTY_FIGURE, plot::uncertainty_figure(u.deviations.view(), plan.survey.dx, &title)?)?;
    }
    let result = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gather": args.gather.to_string_lossy(),
        "index": args.index,
        "start": origin.start,
        "prior": origin.prior,
        "family": family_of(plan, origin),
        "data_rms": outcome.data_rms,
        "data_rms_per_shot": plan.observed.rms_per_shot(&synthetic),
        "mae": outcome.mae,
        "vmin": outcome.model.vmin,
        "evaluations": outcome.evaluations,
        "iterations": outcome.iterations,
        "normal_matrices": outcome.normal_matrices,
        "curvature_seconds": outcome.curvature_seconds,
        "seconds": outcome.seconds,
        "peak_memory_bytes": peak_memory(),
        "stop_reason": outcome.stop.to_string(),
        "recipe": recipe,
        "attempts": if way.chosen.is_some() { &outcome.attempts[..] } else { &[] },
        "stages": outcome.stages,
        "masked_traces": outcome.masked,
        "samples_used": plan.observed.mask.nt,
        "engine": propagator.describe(),
        "settings": kept.settings,
        "uncertainty": uncertainty.map(|u| json!({
            "expected_mae": u.expected_mae(),
            "noise": u.noise,
            "regulariser": u.regularisers,
            "calibration": u.calibration,
        })),
    });
    dir.write_result(&result)
}

/// Says how it ended; the exit code tells of an interruption.
pub(super) fn conclude(args: &Args, way: &Way, outcome: &Outcome, dir: &RunDir, signals: &Signals) -> Result<ExitCode> {
    for a in outcome.attempts.iter().filter(|_| way.attempts.len() > 1) {
        let kept = if a.kept { "kept" } else { "not kept" };
        let rms = a.data_rms.map_or_else(|| a.stop.to_string(), |rms| format!("data rms {rms:.3e}"));
        args.say(&format!("recipe {} from {}: {rms}, {kept}", a.recipe, a.start));
    }
    let mae = outcome.mae.map_or(String::new(), |m| format!(", MAE {m:.2} m/s"));
    args.say(&format!(
        "data rms {:.3e}{mae} after {} evaluations in {:.0} s: {}",
        outcome.data_rms, outcome.evaluations, outcome.seconds, outcome.stop
    ));
    args.say(&format!("wrote {}", dir.file(VELOCITY).display()));
    if let Some(why) = outcome.broke_down() {
        dir.finish()?;
        return Err(Error::Numerical(format!("{why}; the map is that of the stages before")));
    }
    match outcome.stop {
        StopReason::Cancelled => Err(signals.interruption(args.output.as_deref())),
        StopReason::TimeLimit { .. } => Ok(ExitCode::SUCCESS),
        // a stage's own limit is an end like others
        StopReason::MaxEvals { .. } if args.until.max_evals.is_some_and(|n| outcome.evaluations >= n) => {
            Ok(ExitCode::SUCCESS)
        }
        _ => dir.finish().map(|()| ExitCode::SUCCESS),
    }
}
