//! `fwi classify`: which family and group gathers belong to.

use super::gather_list;
use super::options::{parse_size, parse_threads};
use super::prior_options::{PriorOptions, Share, StartFrom};
use super::{note, tell};
use fwi::family::classify;
use fwi::prior::predict_one;
use fwi::{Result, Survey};
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
    /// Worker threads; 0 takes one a core
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
    let opened = args.options.open(&names, args.threads, args.max_memory, Share::Whole, false)?;
    note(format_args!("prior: {}", opened.prior.describe()));
    let width = jobs.iter().map(|j| j.id.chars().count()).max().unwrap_or(0).max(6);
    tell(format_args!("{:width$}  {:14} {:>5}  {:12} {:>5}  mirror rms", "gather", "group", "", "family", ""))?;
    // one that cannot be read is told, and the others follow
    let mut code = 0;
    for job in &jobs {
        let found = job.observe(&survey).and_then(|observed| {
            predict_one(&*opened.prior, &observed).map(|prediction| classify(&survey, &observed, &prediction))
        });
        let c = match found {
            Ok(c) => c,
            Err(e) => {
                note(format_args!("error: {e}"));
                code = if code == 0 { e.exit_code() } else { code };
                continue;
            }
        };
        let own = c.families.iter().find(|(f, _)| *f == c.family).map_or(0.0, |p| p.1);
        let mirror = c.mirror_rms.map_or("-".into(), |rms| format!("{rms:.1e}"));
        tell(format_args!(
            "{:width$}  {:14} {:4.0}%  {:12} {:4.0}%  {mirror}",
            job.id,
            c.group,
            100.0 * c.probability,
            c.family,
            100.0 * own
        ))?;
    }
    Ok(ExitCode::from(code))
}
