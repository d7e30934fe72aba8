//! `fwi classify`: which family and group gathers belong to.

use super::gather_list::{self, Job};
use super::options::{parse_size, parse_threads};
use super::prior_options::{PriorOptions, Share, StartFrom, Terms, about_gather, at_a_time, side_by_side};
use super::{note, tell};
use fwi::family::{Classification, classify};
use fwi::prior::predict_one;
use fwi::{Prior, Result, Survey};
use std::path::PathBuf;
use std::process::ExitCode;

/// Classify gathers.
#[derive(clap::Args)]
pub struct Args {
    /// Gathers (5, 1000, 70), stacks of them, or directories of .npy gathers
    #[arg(required = true, value_name = "GATHER")]
    gathers: Vec<PathBuf>,
    /// Name of a prior, an ONNX file, a manifest or its folder [default: the one in this binary]
    #[arg(long, value_name = "NAME|FILE,..", value_delimiter = ',')]
    prior: Vec<String>,
    /// Gathers at a time, and threads of ONNX Runtime; 0 takes one a core. A prior in a file predicts for one gather at a time,
    /// whatever this says
    #[arg(long, default_value = "0", value_name = "N", value_parser = parse_threads)]
    threads: usize,
    /// Most memory to take [default: half of what is free now]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_memory: Option<u64>,
    #[command(flatten)]
    options: PriorOptions,
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let survey = Survey::openfwi();
    let jobs = gather_list::list(&args.gathers, &survey)?;
    let names = StartFrom::priors(&args.prior)?;
    let block = at_a_time(args.threads);
    let terms =
        Terms { threads: args.threads, at_a_time: block, most: args.max_memory, share: Share::Whole, quiet: false };
    let opened = args.options.open(&names, &terms)?;
    note(format_args!("prior: {}", opened.prior.describe()));
    let width = jobs.iter().map(|j| j.id.chars().count()).max().unwrap_or(0).max(6);
    tell(format_args!("{:width$}  {:14} {:>5}  {:12} {:>5}  mirror rms", "gather", "group", "", "family", ""))?;
    // one that cannot be read is told, and the others follow
    let mut code = 0;
    for block in jobs.chunks(block) {
        let found = side_by_side(block, |job| find(&*opened.prior, job, &survey));
        for (job, found) in block.iter().zip(found) {
            match found {
                Ok(class) => tell(format_args!("{:width$}  {}", job.id, line(&class)))?,
                Err(e) => {
                    note(format_args!("error: {e}"));
                    code = if code == 0 { e.exit_code() } else { code };
                }
            }
        }
    }
    Ok(ExitCode::from(code))
}

fn find(prior: &dyn Prior, job: &Job, survey: &Survey) -> Result<Classification> {
    let observed = job.observe(survey)?;
    let prediction = predict_one(prior, &observed).map_err(|e| about_gather(e, &job.id))?;
    Ok(classify(survey, &observed, &prediction))
}

/// What was found; no family where several are equally likely.
fn line(c: &Classification) -> String {
    let (family, share) = match c.likeliest() {
        Some((family, share)) => (family.name(), format!("{:.0}%", 100.0 * share)),
        None => ("-", "-".into()),
    };
    let mirror = c.mirror_rms.map_or("-".into(), |rms| format!("{rms:.1e}"));
    format!("{:14} {:4.0}%  {family:12} {share:>5}  {mirror}", c.group, 100.0 * c.probability)
}
