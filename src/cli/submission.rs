//! `fwi submission`: maps as the contest takes them.

use super::batchdir::MAPS;
use super::counter::Counter;
use super::gather_list::{self, npy_files, stem};
use super::method::Signals;
use super::note;
use super::options::{check_apart, maps_of};
use super::rundir::{RESULT, VELOCITY};
use fwi::io::{Maps, write_submission};
use fwi::{Error, Result, Survey};
use ndarray::Array2;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

/// Write the maps of many gathers as the contest takes them: a CSV of their odd columns.
#[derive(clap::Args)]
pub struct Args {
    /// Output directories of fwi batch, directories of ID.npy, single maps named so, or, with --gathers, stacks in the gathers' order;
    /// of several maps of a gather the last one counts
    #[arg(required = true, value_name = "MAPS")]
    maps: Vec<PathBuf>,
    /// The submission, .csv
    #[arg(short, long, value_name = "CSV")]
    output: PathBuf,
    /// The gathers that need a map each: a directory of .npy files, a file or a stack, as given to fwi batch; may be given
    /// several times [default: whatever maps there are]
    #[arg(long, value_name = "GATHER")]
    gathers: Vec<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Where a map lies.
enum Place {
    /// The only one of a file, which is opened when its turn comes: there may be more than a process may hold open.
    File(PathBuf),
    /// Which of the stacks, and which of its maps.
    Stack(usize, usize),
}

/// Maps by their gathers' ids.
#[derive(Default)]
struct Found {
    places: BTreeMap<String, Place>,
    stacks: Vec<Maps>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let survey = Survey::openfwi();
    if !args.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) {
        let problem = "submissions are CSV; give the name that extension";
        return Err(Error::Usage(format!("{}: {problem}", args.output.display())));
    }
    check_apart(&args.output, args.maps.iter().chain(&args.gathers))?;
    let asked = match &args.gathers[..] {
        [] => None,
        inputs => {
            let jobs = gather_list::list(inputs, &survey)?;
            gather_list::check_names(&jobs)?;
            Some(jobs.into_iter().map(|job| job.id).collect::<Vec<_>>())
        }
    };
    let mut found = Found::default();
    for input in &args.maps {
        found.add(input, asked.as_deref(), &survey)?;
    }
    let ids = found.order(asked, &args)?;
    let signals = Signals::install()?;
    let total = ids.len();
    let mut progress = Counter::new("maps", 0, total as u64, args.quiet);
    write_submission(
        &args.output,
        ids.into_iter().map(|id| {
            if signals.stop.load(Ordering::Relaxed) {
                return Err(signals.interruption(None));
            }
            let map = found.read(&id, &survey)?;
            progress.add();
            Ok((id, map))
        }),
    )?;
    progress.finish();
    args.say(format_args!("wrote {}, {total} maps", args.output.display()));
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn say(&self, line: impl Display) {
        if !self.quiet {
            note(line);
        }
    }
}

impl Found {
    /// Finds the maps of an input; those of a stack belong to the gathers `asked` for, in their order.
    fn add(&mut self, input: &Path, asked: Option<&[String]>, survey: &Survey) -> Result<()> {
        if input.is_dir() {
            let of_batch = input.join(MAPS);
            if input.join(RESULT).is_file() && !of_batch.is_dir() {
                let problem = format!("is the directory of one inversion; copy its {VELOCITY} to ID.npy and name that");
                return Err(Error::input(input, problem));
            }
            let files = npy_files(if of_batch.is_dir() { &of_batch } else { input })?;
            if files.is_empty() {
                let problem = "holds no map; name an output directory of fwi batch, or one of ID.npy";
                return Err(Error::input(input, problem));
            }
            self.places.extend(files.into_iter().map(|file| (stem(&file), Place::File(file))));
            return Ok(());
        }
        let maps = maps_of(input, survey.map_shape())?;
        let ids = match (maps.len(), asked) {
            (n, Some(asked)) if n == asked.len() => asked.to_vec(),
            (1, _) => {
                let id = stem(input);
                // as fwi invert calls all of its maps
                if input.ends_with(VELOCITY) && self.places.contains_key(&id) {
                    let problem = format!("is the second map called {VELOCITY}; name each by its gather, as ID.npy");
                    return Err(Error::input(input, problem));
                }
                self.places.insert(id, Place::File(input.to_path_buf()));
                return Ok(());
            }
            (n, Some(asked)) => {
                let problem = format!("holds {n} maps for {} gathers; expected one for each", asked.len());
                return Err(Error::input(input, problem));
            }
            (n, None) => {
                let problem = format!("holds {n} maps; name the gathers that they belong to with --gathers");
                return Err(Error::input(input, problem));
            }
        };
        let stack = self.stacks.len();
        self.places.extend(ids.into_iter().enumerate().map(|(i, id)| (id, Place::Stack(stack, i))));
        self.stacks.push(maps);
        Ok(())
    }

    /// The ids to write: those asked for, or all by name. Errors where one has no map.
    fn order(&self, asked: Option<Vec<String>>, args: &Args) -> Result<Vec<String>> {
        let Some(asked) = asked else { return Ok(self.places.keys().cloned().collect()) };
        let mut missing = asked.iter().filter(|id| !self.places.contains_key(*id));
        if let Some(first) = missing.next() {
            return Err(Error::Usage(format!(
                "{} of {} gathers have no map, \"{first}\" the first; name maps of them all before these, such as those of fwi prior predict",
                1 + missing.count(),
                asked.len()
            )));
        }
        let others = self.places.len() - asked.len();
        if others > 0 {
            args.say(format_args!("maps of other gathers, left out: {others}"));
        }
        Ok(asked)
    }

    /// The map of an id that was found.
    fn read(&mut self, id: &str, survey: &Survey) -> Result<Array2<f64>> {
        match &self.places[id] {
            Place::File(path) => maps_of(path, survey.map_shape())?.only(),
            &Place::Stack(stack, index) => self.stacks[stack].get(index),
        }
    }
}
