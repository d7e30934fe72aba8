//! What `fwi batch` tells and writes.

use super::{Args, Engines, Plan};
use crate::cli::batchdir::{BatchDir, Line};
use crate::cli::engine::BASE_BYTES;
use crate::cli::gather_list::Job;
use crate::cli::options::{fields, peak_memory};
use crate::cli::tally::Tally;
use fwi::invert::Outcome;
use fwi::io::{Limits, read_map};
use fwi::wave::Dispatch;
use fwi::{Error, Propagator, Result, plot};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::process::ExitCode;

/// Most maps on the contact sheet.
const SHEET: usize = 20;

/// Says what the batch is about to do; `before` gathers were done before.
pub(super) fn report(args: &Args, plan: &Plan, engines: &Engines, before: usize) {
    let (n, in_flight) = (plan.jobs.len(), engines.in_flight);
    let resumed = if before > 0 { format!(", {before} of them done before") } else { String::new() };
    args.say(&format!("gathers: {n}{resumed}; {in_flight} at a time"));
    let mut names: Vec<&str> = plan.recipes.keys().map(|k| &k[..]).collect();
    names.sort_unstable();
    match &names[..] {
        [] => (),
        [one] => args.say(&format!("recipe: {one}")),
        several => args.say(&format!("recipes: by group, {}", several.join(", "))),
    }
    args.say(&format!("engine: {}", engines.coarse.describe()));
    if let Some(fine) = &engines.fine {
        args.say(&format!("engine of refined stages: {}", fine.describe()));
    }
    if let Some(opened) = plan.start.opened() {
        args.say(&format!("prior: {}, {}", opened.prior.describe(), opened.memory));
    }
    let each = plan.each();
    let of = |engine: &Dispatch| fields(engine, plan.stages());
    let fields = of(&engines.coarse) + engines.fine.as_ref().map_or(0, of);
    let inversions = each * in_flight as u64;
    let (prior, prior_words) = match plan.start.opened() {
        Some(opened) => (opened.bytes, format!(", {} MB for the prior", opened.bytes >> 20)),
        None => (0, String::new()),
    };
    let newton = match plan.newton {
        0 => String::new(),
        bytes => format!(" ({} MB each for normal matrices)", bytes >> 20),
    };
    args.say(&format!(
        "memory: at most {} MB, {} MB of them for fields and history, {} MB for inversions{newton}{prior_words}",
        (BASE_BYTES + fields + inversions + prior) >> 20,
        fields >> 20,
        inversions >> 20
    ));
}

/// The line of an outcome; for a failure, its exit code too.
pub(super) fn line(job: &Job, key: &str, outcome: &Result<Outcome>) -> (Line, Option<u8>) {
    let (id, gather, key) = (job.id.clone(), job.path.clone(), Some(key.to_string()));
    let about = Line { id, gather, index: job.index, key, ..Line::default() };
    match outcome {
        Ok(o) => {
            let line = Line {
                data_rms: Some(o.data_rms),
                mae: o.mae,
                evaluations: o.evaluations,
                seconds: o.seconds,
                stop_reason: Some(o.stop.to_string()),
                recipe: o.kept_recipe().map(str::to_string),
                attempts: o.attempts.clone(),
                ..about
            };
            // the map stays until it is done again
            match o.broke_down().map(|why| Error::Numerical(why.into())) {
                Some(e) => (Line { error: Some(e.to_string()), ..line }, Some(e.exit_code())),
                None => (line, None),
            }
        }
        Err(e) => (Line { error: Some(e.to_string()), ..about }, Some(e.exit_code())),
    }
}

/// The contact sheet of the first maps.
fn sheet(plan: &Plan, dir: &BatchDir, lines: &HashMap<&str, &Line>) -> Result<()> {
    let inverted = plan.jobs.iter().filter(|job| lines.get(&job.id[..]).is_some_and(|line| line.error.is_none()));
    let (mut maps, mut captions) = (vec![], vec![]);
    for job in inverted.take(SHEET) {
        maps.push(read_map(dir.map(&job.id), plan.survey.map_shape(), &Limits::default())?);
        captions.push(job.id.clone());
    }
    if maps.is_empty() {
        return Ok(());
    }
    let views: Vec<_> = maps.iter().map(|m| m.view()).collect();
    let stack = ndarray::stack(ndarray::Axis(0), &views).expect("maps of one shape");
    dir.write_sheet(&plot::contact_sheet(stack.view(), &captions)?)
}

/// Writes what is about all gathers and says how it ended; the exit code is the first failure's, by the gathers' order.
pub(super) fn conclude(args: &Args, plan: &Plan, engines: &Engines, dir: &BatchDir, tally: &Tally) -> Result<ExitCode> {
    let lines = tally.lines();
    sheet(plan, dir, &lines.iter().map(|line| (&line.id[..], line)).collect())?;
    let failed: HashSet<&str> = lines.iter().filter(|l| l.error.is_some()).map(|l| &l.id[..]).collect();
    let mean = |number: fn(&Line) -> Option<f64>| {
        let all: Vec<f64> = lines.iter().filter_map(number).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    };
    let devices = engines.coarse.statistics().into_iter().chain(engines.fine.iter().flat_map(|f| f.statistics()));
    let devices: Vec<_> = devices
        .map(|d| {
            json!({
                "device": d.device,
                "lost": d.lost,
                "busy": d.busy,
                "evaluations": d.requests,
                "evaluations_a_call": d.mean_batch,
            })
        })
        .collect();
    let (rms, mae) = (mean(|l| l.data_rms), mean(|l| l.mae));
    dir.write_summary(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "inputs": args.inputs.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
        "gathers": lines.len(),
        "inverted": lines.len() - failed.len(),
        "failed": failed.len(),
        "mean_data_rms": rms,
        "mean_mae": mae,
        "evaluations": lines.iter().map(|l| l.evaluations).sum::<u64>(),
        "start": plan.start_name,
        "prior": plan.start.opened().map(|opened| opened.prior.describe()),
        "in_flight": engines.in_flight,
        "last_run": {
            "gathers": tally.added(),
            "seconds": tally.seconds(),
            "gathers_per_hour": tally.per_hour(),
            "peak_memory_bytes": peak_memory(),
            "devices": devices,
        },
        "recipes": plan.recipes.iter().map(|(k, v)| (k, v.iter().map(|a| &a.settings.stages).collect())).collect::<HashMap<_, Vec<_>>>(),
        "settings": plan.settings,
    }))?;
    let rms = rms.map_or(String::new(), |r| format!(", mean data rms {r:.3e}"));
    let mae = mae.map_or(String::new(), |m| format!(", mean MAE {m:.2} m/s"));
    let failures = if failed.is_empty() { String::new() } else { format!(", {} failed", failed.len()) };
    args.say(&format!("{} gathers{failures}{rms}{mae}; wrote {}", lines.len(), args.output.display()));
    Ok(tally.first_failure().map_or(ExitCode::SUCCESS, ExitCode::from))
}
