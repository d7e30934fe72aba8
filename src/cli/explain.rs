//! `--explain`: why this recipe, what its stages do and what they take.

use super::recipe_choice::Chosen;
use super::tell;
use fwi::curvature::{Curvature, CurvatureOptions};
use fwi::family::RecipeStart;
use fwi::invert::{Attempt, Linear, Stage, StageCost, Unknowns};
use fwi::misfit::MisfitSpec;
use fwi::{Result, Survey};
use ndarray::Array2;

/// Prints the attempts: the first begins at `start`.
pub fn explain(
    chosen: Option<&Chosen>,
    attempts: &[Attempt],
    start: &str,
    survey: &Survey,
    threads: usize,
) -> Result<()> {
    match chosen {
        Some(Chosen { recipe, source, why }) => {
            let from = if *source == recipe.name { String::new() } else { format!(" from {source}") };
            tell(format_args!("recipe: {}{from}, {why}", recipe.name))?;
            tell(format_args!("about: {}", recipe.about.trim().replace('\n', " ")))?;
        }
        None => tell("recipe: none; stages as asked for, or frequency continuation")?,
    }
    let curvature = Curvature::new(survey, &CurvatureOptions { threads, ..CurvatureOptions::default() })?;
    for (i, attempt) in attempts.iter().enumerate() {
        let begins = match attempt.start {
            _ if i == 0 => start,
            RecipeStart::Best => "the best map so far",
            other => other.called(start),
        };
        if i > 0 {
            tell(format_args!("otherwise: {}{}", attempt.recipe, conditions(attempt)))?;
        }
        tell(format_args!("start: {begins}"))?;
        table(attempt, survey, &curvature)?;
        if i + 1 < attempts.len() {
            tell(format_args!("done at a data rms of {:e}", attempt.accept_rms))?;
        }
    }
    Ok(())
}

/// When and how often a fall-back is tried, in words.
fn conditions(attempt: &Attempt) -> String {
    let above =
        attempt.only_above.map_or(String::new(), |rms| format!(", unless the data rms is down to {rms:e} by then"));
    let times = if attempt.times > 1 { format!(", up to {} times", attempt.times) } else { String::new() };
    let again = attempt
        .again_below
        .filter(|_| attempt.times > 1)
        .map_or(String::new(), |share| format!(" while each brings the data rms below {share} of what it was"));
    above + &times + &again
}

fn table(attempt: &Attempt, survey: &Survey, curvature: &Curvature) -> Result<()> {
    let stages = &attempt.settings.stages;
    let width = stages.iter().map(|s| s.name.chars().count()).max().unwrap_or(0).max(5);
    tell(format_args!(
        "  {:width$}  {:>8}  {:>11}  {:>15}  {:>8}  {:>7}  what it does",
        "stage", "unknowns", "evaluations", "normal matrices", "products", "memory"
    ))?;
    for stage in stages {
        let StageCost {
            evaluations,
            most_evaluations,
            normal_matrices,
            most_normal_matrices,
            most_products,
            unknowns,
            bytes,
        } = stage.cost(survey, curvature)?;
        let matrices = match normal_matrices == most_normal_matrices {
            true => normal_matrices.to_string(),
            false => format!("{normal_matrices}..{most_normal_matrices}"),
        };
        let products = if most_products == 0 { "-".into() } else { format!("..{most_products}") };
        let evaluations = match (most_evaluations, &stage.newton) {
            (Some(most), Some(_)) => format!("{evaluations}..{most}"),
            (Some(most), None) => format!("..{most}"),
            (None, _) => "any number".into(),
        };
        let memory = if bytes == 0 { "-".into() } else { format!("{} MB", bytes >> 20) };
        tell(format_args!(
            "  {:width$}  {unknowns:>8}  {evaluations:>11}  {matrices:>15}  {products:>8}  {memory:>7}  {}",
            stage.name,
            action(stage)
        ))?;
        let indent = width + 67;
        for line in details(stage, survey)? {
            tell(format_args!("{:indent$}{line}", ""))?;
        }
    }
    Ok(())
}

/// What a stage does, in words.
fn action(stage: &Stage) -> String {
    let refined = if stage.refined { ", in f64" } else { "" };
    let unknowns = stage.newton.as_ref().map(|n| n.unknowns).or(stage.lbfgs.as_ref().map(|q| q.unknowns));
    let over = match unknowns.unwrap_or_default() {
        Unknowns::Cells => "all cells".into(),
        Unknowns::Rows => "one velocity a row".into(),
        Unknowns::Patches { step, min_area } => {
            format!("one velocity a flat patch (steps below {step} m/s, {min_area} cells or more)")
        }
        Unknowns::Directions { .. } => "principal directions of the Gaussian process".into(),
    };
    let Some(newton) = &stage.newton else {
        let misfit = match stage.misfit {
            MisfitSpec::L2 => "least squares".into(),
            MisfitSpec::LowPass(hz) => format!("least squares below {hz} Hz"),
            other => other.to_string(),
        };
        let smooth = stage.smoothing.map_or(String::new(), |s| format!(", smooth over {s} cells"));
        return format!("L-BFGS over {over}: {misfit}{smooth}{refined}");
    };
    let steps = newton.noise.len();
    let band = match stage.misfit {
        MisfitSpec::LowPass(hz) => format!(" on the data below {hz} Hz"),
        _ => String::new(),
    };
    format!("{steps} Gauss-Newton step{} over {over}{band}{refined}", if steps == 1 { "" } else { "s" })
}

fn details(stage: &Stage, survey: &Survey) -> Result<Vec<String>> {
    let mut lines = vec![];
    let newton = stage.newton.as_ref().map(|n| (n.noise.clone(), &n.regularisers));
    if let Some((noise, regularisers)) = newton.or(stage.lbfgs.as_ref().map(|q| (vec![q.noise], &q.regularisers))) {
        let noise: Vec<String> = noise.iter().map(|s| s.to_string()).collect();
        lines.push(format!("assumed noise {}", noise.join(", ")));
        // a description does not hang on the maps
        let ones = Array2::ones(survey.map_shape());
        for spec in regularisers {
            lines.push(spec.build(ones.dim(), Some(&ones), Some(&ones))?.describe());
        }
    }
    if let Some(newton) = &stage.newton {
        if newton.over_rms > 1.0 {
            lines
                .push(format!("steps between at {} times the data rms, where the next noise is less", newton.over_rms));
        }
        lines.extend(newton.within_rms.map(|times| format!("no noise above {times} times the data rms")));
        lines.extend(match newton.linear {
            Linear::Velocity => None,
            Linear::Slowness => Some("data taken to be linear in slowness".into()),
            Linear::SquaredSlowness => Some("data taken to be linear in squared slowness".into()),
        });
        lines
            .extend(newton.areas.map(|_| "every step ends in areas of one velocity: each cell is given to one".into()));
    }
    if let Some(step) = stage.newton.as_ref().map(|n| n.receiver_step).filter(|step| *step > 1) {
        lines.push(format!("normal matrices from one receiver in {step}"));
    }
    if let Some(until) = stage.until {
        lines.push(format!("samples before {until} s"));
    }
    if let Some(limit) = stage.skip_below {
        lines.push(format!("left out where the data rms is {limit:e} already"));
    }
    if let Some(kind) = stage.only {
        lines.push(format!("left out unless the map is one of {kind}"));
    }
    if stage.after_progress {
        lines.push("left out where the stage before leaves the map as it was".into());
    }
    if let Some(most) = stage.newton.as_ref().map(|n| n.polish).filter(|most| *most > 0) {
        lines.push(format!("each step polished by L-BFGS, {most} evaluations at most"));
    }
    if let Some(target) = stage.target_rms {
        lines.push(format!("until a data rms of {target:e}"));
    }
    if let Some(stall) = stage.stall {
        let (percent, window) = (100.0 * stall.decrease, stall.window);
        lines.push(format!("until the misfit falls by less than {percent}% over {window} iterations"));
    }
    if let Some(limit) = stage.abandon_above {
        lines.push(format!("given up if the data rms stays above {limit:e}"));
    }
    if let Some(round) = &stage.round {
        lines.push(format!("then velocities to multiples of {} m/s where the data agree", round.spacing));
    }
    Ok(lines)
}
