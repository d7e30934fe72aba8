//! `fwi prior evaluate`: how far a prior's maps are from true ones, by family, and how well gathers are classified.

use super::engine::Engine;
use super::note;
use super::options::{check_apart, usable};
use super::prior_options::{PriorOptions, Share, StartFrom, Terms, at_a_time, side_by_side};
use super::tell;
use fwi::family::bench::Spread;
use fwi::family::{Classification, Group, classify};
use fwi::io::{Limits, Maps, write_atomic};
use fwi::prior::{Prediction, predict_one};
use fwi::synth::{best_gradient_mae, draw};
use fwi::{Error, Family, Model, Observed, Prior, Propagator, Result, Survey};
use ndarray::Array2;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Evaluate a prior.
#[derive(clap::Args)]
pub struct Args {
    /// True maps of a family, as in CurveVel_A=maps.npy; of a file of several arrays, the one named so; may be given several times
    #[arg(long, value_name = "FAMILY=MAPS", value_parser = parse_maps)]
    maps: Vec<(Family, PathBuf)>,
    /// Synthetic maps of each family [default: 20 without --maps]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=100_000))]
    synthetic: Option<u64>,
    /// Seed of the synthetic maps
    #[arg(long, default_value = "999")]
    seed: u64,
    /// Name of a prior, an ONNX file, a manifest or its folder; several are combined [default: the one in this binary]
    #[arg(long, value_name = "NAME|FILE,..", value_delimiter = ',')]
    prior: Vec<String>,
    /// Where the figures go as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    options: PriorOptions,
    #[command(flatten)]
    engine: Engine,
}

/// "FAMILY=FILE".
pub fn parse_maps(text: &str) -> std::result::Result<(Family, PathBuf), String> {
    let (family, path) = text.split_once('=').ok_or("write FAMILY=FILE, as in CurveVel_A=maps.npy")?;
    Ok((family.parse().map_err(|e: Error| e.to_string())?, path.into()))
}

/// What came of one map.
struct Case {
    mae: f64,
    expected: Option<f64>,
    truth: Group,
    found: Classification,
}

/// A family's maps, where they come from and what came of them.
struct Table {
    family: Family,
    real: bool,
    gradient: f64,
    cases: Vec<Case>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<ExitCode> {
    let survey = Survey::openfwi();
    let synthetic = args.synthetic.unwrap_or(if args.maps.is_empty() { 20 } else { 0 });
    if synthetic == 0 && args.maps.is_empty() {
        return Err(Error::Usage("--synthetic 0 without --maps leaves nothing to measure; give one of them".into()));
    }
    let names = StartFrom::priors(&args.prior)?;
    check_outputs(args)?;
    // a file that cannot be read shows before the others are measured
    args.maps.iter().try_for_each(|(family, path)| read_maps(*family, path, 1, &survey).map(drop))?;
    let (threads, most) = (args.engine.threads, args.engine.max_memory);
    let block = at_a_time(threads);
    let terms = Terms { threads, at_a_time: block, most, share: Share::Half, quiet: false };
    let opened = args.options.open(&names, &terms)?;
    note(format_args!("prior: {}", opened.prior.describe()));
    let engine = args.engine.with_budget(args.engine.budget()?.saturating_sub(opened.bytes));
    let propagator = engine.propagator(survey.clone())?;
    note(format_args!("engine: {}; memory: {} for the prior", propagator.describe(), opened.memory));
    let measure = Measure { propagator: &*propagator, prior: &*opened.prior, survey: &survey, block };
    let mut tables = vec![];
    head()?;
    for (family, path) in &args.maps {
        tables.push(measure.table(*family, true, read_maps(*family, path, usize::MAX, &survey)?)?);
    }
    for family in Family::ALL {
        let maps: Vec<_> = (0..synthetic).map(|i| draw(family, args.seed, i).mapv(f64::from)).collect();
        if !maps.is_empty() {
            tables.push(measure.table(family, false, maps)?);
        }
    }
    confusion(&tables)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(&as_json(&tables, opened.prior.describe())).expect("plain values");
        write_atomic(path, |w| w.write_all(&text))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The first maps of a family's file, at most `most` of them, all of which the survey can compute: those of the array that is
/// named after the family, where the file has one and the path names none.
pub fn read_maps(family: Family, path: &Path, most: usize, survey: &Survey) -> Result<Vec<Array2<f64>>> {
    let (shape, limits) = (survey.map_shape(), Limits::default());
    let named = PathBuf::from(format!("{}:{family}", path.display()));
    let path = if path.exists() && Maps::open(&named, shape, &limits).is_ok() { &named } else { path };
    let mut file = Maps::open(path, shape, &limits)?;
    let count = file.len().min(most);
    (0..count).map(|i| Ok(usable(Model::from_map(file.get(i)?), None, survey, path, i)?.vp)).collect()
}

/// Errors when the figures would be written over what is read.
fn check_outputs(args: &Args) -> Result<()> {
    let Some(json) = &args.json else { return Ok(()) };
    check_apart(json, args.maps.iter().map(|p| &*p.1).chain(args.prior.iter().map(Path::new)))
}

/// What measures, and with what.
struct Measure<'a> {
    propagator: &'a dyn Propagator,
    prior: &'a dyn Prior,
    survey: &'a Survey,
    /// Maps modelled and predicted at a time.
    block: usize,
}

impl Measure<'_> {
    /// Measures a family's maps and tells the line of it.
    fn table(&self, family: Family, real: bool, maps: Vec<Array2<f64>>) -> Result<Table> {
        let mut cases = vec![];
        for block in maps.chunks(self.block) {
            let models: Vec<Model> = block.iter().map(|m| Model::from_map(m.clone())).collect();
            let gathers = self.propagator.forward(&models)?;
            let one = |(map, gather)| case(family, map, Observed::new(gather), self.prior, self.survey);
            let found = side_by_side(block.iter().zip(gathers), one);
            cases.extend(found.into_iter().collect::<Result<Vec<_>>>()?);
        }
        let table = Table { family, real, gradient: best_gradient_mae(&maps), cases };
        table.tell()?;
        Ok(table)
    }
}

fn case(family: Family, map: &Array2<f64>, observed: Observed, prior: &dyn Prior, survey: &Survey) -> Result<Case> {
    let prediction: Prediction = predict_one(prior, &observed)?;
    let mean = |sum: f64| sum / map.len() as f64;
    let mae = mean(map.iter().zip(&prediction.velocity).map(|(a, b)| (a - f64::from(*b)).abs()).sum());
    let expected = prediction.error.as_ref().map(|e| mean(e.iter().map(|&e| f64::from(e)).sum()));
    let truth = Group::of_map(family, &map.mapv(|v| v as f32));
    Ok(Case { mae, expected, truth, found: classify(survey, &observed, &prediction) })
}

impl Table {
    fn mean(&self, of: impl Fn(&Case) -> f64) -> f64 {
        self.cases.iter().map(of).sum::<f64>() / self.cases.len() as f64
    }

    fn median(&self) -> f64 {
        Spread::of(self.cases.iter().map(|c| c.mae)).map_or(f64::NAN, |s| s.median)
    }

    fn family_right(&self) -> f64 {
        self.mean(|c| f64::from(c.found.family == self.family))
    }

    fn group_right(&self) -> f64 {
        self.mean(|c| f64::from(c.found.group == c.truth))
    }

    fn expected(&self) -> Option<f64> {
        self.cases[0].expected?;
        Some(self.mean(|c| c.expected.unwrap_or(0.0)))
    }

    fn origin(&self) -> &'static str {
        if self.real { "given" } else { "synthetic" }
    }

    fn tell(&self) -> Result<()> {
        let mae = self.mean(|c| c.mae);
        let expected = self.expected().map_or("-".into(), |e| format!("{e:.1}"));
        tell(format_args!(
            "{:12}  {:9} {:6} {mae:7.1} {:7.1} {expected:>9} {:9.1} {:6.1} {:6.0}% {:5.0}%",
            self.family,
            self.origin(),
            self.cases.len(),
            self.median(),
            self.gradient,
            self.gradient / mae.max(1e-9),
            100.0 * self.family_right(),
            100.0 * self.group_right(),
        ))
    }
}

/// The head of the tables' lines.
fn head() -> Result<()> {
    tell("Errors in m/s; gradient: the best velocity growing with depth, one for all maps of a line")?;
    tell("family        maps       count     MAE  median  expected  gradient  ratio  family  group")
}

/// Groups found (columns) against true ones (rows), over all maps.
fn confusion(tables: &[Table]) -> Result<()> {
    let cases = || tables.iter().flat_map(|t| &t.cases);
    let count = |truth: Group, found: Group| cases().filter(|c| c.truth == truth && c.found.group == found).count();
    let names: Vec<String> = Group::ALL.iter().map(|g| format!("{:>14}", g.name())).collect();
    tell(format_args!("\ntrue group    {} found", names.join(" ")))?;
    for truth in Group::ALL {
        let row: Vec<String> = Group::ALL.iter().map(|&g| format!("{:14}", count(truth, g))).collect();
        tell(format_args!("{:14}{}", truth.name(), row.join(" ")))?;
    }
    let right: usize = Group::ALL.iter().map(|&g| count(g, g)).sum();
    let all = cases().count();
    tell(format_args!("groups told right: {right} of {all}, {:.1}%", 100.0 * right as f64 / all as f64))
}

fn as_json(tables: &[Table], prior: String) -> serde_json::Value {
    let one = |t: &Table| {
        json!({
            "family": t.family.name(),
            "maps": t.origin(),
            "count": t.cases.len(),
            "mae": t.mean(|c| c.mae),
            "median": t.median(),
            "expected": t.expected(),
            "gradient": t.gradient,
            "family_right": t.family_right(),
            "group_right": t.group_right(),
            "mae_of_each": t.cases.iter().map(|c| c.mae).collect::<Vec<_>>(),
        })
    };
    json!({ "prior": prior, "families": tables.iter().map(one).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn of_several_arrays_the_one_named_after_the_family_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("maps.npz");
        let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        for (name, v) in [("FlatVel_A", 2000.0f32), ("CurveVel_A", 3000.0)] {
            let one = dir.path().join("one.npy");
            fwi::io::write_array(&one, Array2::from_elem((70, 70), v).view()).unwrap();
            zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&std::fs::read(&one).unwrap()).unwrap();
        }
        zip.finish().unwrap();
        let first = |family, path: &Path| read_maps(family, path, 1, &Survey::openfwi()).unwrap()[0][[0, 0]];
        assert_eq!(first(Family::CurveVelA, &path), 3000.0);
        // a family that it does not name has the first, and what is named counts
        assert_eq!(first(Family::StyleA, &path), 2000.0);
        let named = PathBuf::from(format!("{}:FlatVel_A", path.display()));
        assert_eq!(first(Family::CurveVelA, &named), 2000.0);
    }
}
