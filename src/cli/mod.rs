//! The command line: one file per subcommand; arguments are resolved into a plan before any work begins.

mod asked;
mod batch;
mod batchdir;
mod bench;
mod bench_file;
mod bench_table;
mod check;
mod classify;
mod counter;
mod doctor;
mod engine;
mod evaluate;
mod explain;
mod forward;
mod gather_list;
mod gpu_check;
mod invert;
mod method;
mod monitor;
mod options;
mod plot;
mod prior;
mod prior_options;
mod recipe_choice;
mod recipes;
mod rundir;
mod stats;
mod stream;
mod submission;
mod synth;
mod tally;

use clap::{Parser, Subcommand};
use fwi::{Error, Result};
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// Full-waveform inversion of OpenFWI gathers: from recorded waves to a map of the ground.
#[derive(Parser)]
#[command(version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes:
  0         success
  1         a check failed
  2         wrong usage
  3         a file holds something else than is needed
  4         the system refused to read or write
  5         the memory limit is too small
  6         the numbers broke down
  7         a GPU that was asked for cannot be used
  130, 143  stopped by SIGINT or SIGTERM; what --resume can go on from is saved
  141       the reader of a pipe went away

Files: .npy, .npz and HDF5 are told apart by content when read; .npy and
.h5 are written, by extension. file.npz:name and file.h5:/dataset name one
array in a file of several.";

#[derive(Subcommand)]
enum Command {
    /// Invert one gather: write the velocity map, figures, a result and a log into a directory
    Invert(invert::Args),
    /// Invert many gathers at once: a map and a line of results each, into a directory
    Batch(batch::Args),
    /// Model the gathers of velocity maps
    Forward(forward::Args),
    /// Write the maps of many gathers as the contest takes them: a CSV of their odd columns
    Submission(submission::Args),
    /// Make sets of synthetic maps with their gathers, to train on
    Synth(synth::Args),
    /// Statistics of velocity maps, files side by side
    Stats(stats::Args),
    /// Replay a gather from a map and compare, or test the adjoint on this machine
    Check(check::Args),
    /// Compare a GPU's kernels with the CPU's, and time them
    GpuCheck(gpu_check::Args),
    /// Priors, networks that predict a map from a gather: list, inspect, predict, evaluate
    Prior(prior::Args),
    /// Tell the families of gathers
    Classify(classify::Args),
    /// Measure whole inversions against known maps, by family
    Bench(bench::Args),
    /// Recipes, how the maps of a group are inverted: list, show
    Recipes(recipes::Args),
    /// Draw maps, gathers and logs as PNG
    Plot(plot::Args),
    /// Tell what this machine offers: instruction sets, cores, memory, versions
    Doctor,
    /// The process of a prior, started by the others
    #[cfg(unix)]
    #[command(name = prior_options::WORKER, hide = true)]
    PriorWorker,
}

/// Runs the command; a code other than success without an error is a failed check or an interruption.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Invert(args) => invert::run(args),
        Command::Batch(args) => batch::run(args),
        Command::Forward(args) => forward::run(args),
        Command::Submission(args) => submission::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Check(args) => check::run(args),
        Command::GpuCheck(args) => gpu_check::run(args),
        Command::Prior(args) => prior::run(args),
        Command::Classify(args) => classify::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Recipes(args) => recipes::run(args),
        Command::Plot(args) => plot::run(args),
        Command::Doctor => doctor::run(),
        #[cfg(unix)]
        Command::PriorWorker => prior::serve(),
    }
}

/// A line for the user on standard error. One that cannot be shown is no reason to stop.
pub fn note(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A line of results on standard output.
fn tell(line: impl Display) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(|e| Error::io("standard output", "write", e))
}
