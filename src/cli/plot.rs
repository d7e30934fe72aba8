//! `fwi plot`: PNG figures of maps, gathers and logs, told apart by shape.

use super::options::same_file;
use super::tell;
use fwi::io::{ArrayFile, Gathers, Limits, Maps, write_atomic};
use fwi::{Error, Family, Gather, Observed, Result, Survey, plot};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Draw files.
#[derive(clap::Args)]
pub struct Args {
    /// Maps (70, 70) or stacks of them, sets of fwi synth, gathers (5, 1000, 70), or the log.jsonl of an inversion
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the PNG goes, for a single file [default: the file's name with .png]
    #[arg(short, long, value_name = "PNG")]
    output: Option<PathBuf>,
    /// True map to compare a single map with
    #[arg(long, value_name = "MAP")]
    truth: Option<PathBuf>,
    /// Which item of a stack, from 0 [default: the first gather, all maps]
    #[arg(long, value_name = "I")]
    index: Option<usize>,
    /// Draw one shot of a gather, from 0 [default: all]
    #[arg(long, value_name = "S")]
    shot: Option<usize>,
}

/// Most maps on a contact sheet.
const SHEET: usize = 100;

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    if args.files.len() > 1 && args.output.is_some() {
        return Err(Error::Usage("-o names one PNG; leave it out to draw several files".into()));
    }
    let mut figures: Vec<PathBuf> = Vec::new();
    for file in &args.files {
        let to = args.output.clone().unwrap_or_else(|| beside(file));
        let fail = |why: &str| Err(Error::Usage(format!("{}: {why}", to.display())));
        if !to.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
            return fail("figures are PNG; give the name that extension");
        }
        if same_file(file, &to) || figures.contains(&to) {
            return fail("two files cannot have this name; draw one at a time with -o");
        }
        figures.push(to);
    }
    for (file, to) in args.files.iter().zip(figures) {
        let png = draw(&args, file)?;
        write_atomic(&to, |w| w.write_all(&png))?;
        tell(format_args!("{}", to.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// "dir/a.npy" to "dir/a.png", "dir/a.h5:/x/y" to "dir/a-x-y.png".
fn beside(file: &Path) -> PathBuf {
    let text = file.to_string_lossy();
    match text.rsplit_once(':') {
        Some((path, entry)) if !file.exists() => {
            let stem = Path::new(path).file_stem().unwrap_or_default().to_string_lossy();
            let entry = entry.trim_matches('/').replace('/', "-");
            Path::new(path).with_file_name(format!("{stem}-{entry}.png"))
        }
        _ => file.with_extension("png"),
    }
}

fn draw(args: &Args, file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|e| e == "jsonl") {
        return draw_log(file);
    }
    let survey = Survey::openfwi();
    let limits = Limits::default();
    let velocities = PathBuf::from(format!("{}:/velocity", file.display()));
    let set = families(file);
    if let Some(rows) = set.as_ref().filter(|rows| rows.len() > 1 && args.index.is_none() && args.truth.is_none()) {
        return draw_families(&velocities, &survey, rows);
    }
    let file = if set.is_some() { &velocities } else { file };
    let shape = ArrayFile::open(file, &limits)?.shape().to_vec();
    let (nz, nx) = survey.map_shape();
    if shape.ends_with(&[nz, nx]) && shape.len() <= 4 {
        let mut maps = Maps::open(file, survey.map_shape(), &limits)?;
        if args.shot.is_some() {
            return Err(Error::Usage(format!("{}: is a map; --shot chooses from a gather", file.display())));
        }
        return match (args.index, maps.len()) {
            (None, n) if n > 1 && args.truth.is_some() => {
                Err(Error::Usage(format!("{}: --truth compares one map; choose with --index", file.display())))
            }
            (None, n) if n > 1 => draw_sheet(&mut maps, n.min(SHEET)),
            (index, _) => draw_map(args, &survey, maps.get(index.unwrap_or(0))?),
        };
    }
    if args.truth.is_some() {
        return Err(Error::Usage(format!("{}: is no map; --truth compares maps", file.display())));
    }
    let data = Gathers::open(file, survey.gather_shape(), &limits)?.get(args.index.unwrap_or(0))?;
    plot::gather_figure(&Observed::new(Gather::new(data)), None, &survey, args.shot)
}

/// Maps of a family in a row.
const ROW: usize = 10;

/// Families of a set of `fwi synth`, and the places of their first maps; `None` for any other file.
fn families(file: &Path) -> Option<Vec<(String, Vec<usize>)>> {
    let mut list = ArrayFile::open(format!("{}:/family", file.display()), &Limits::default()).ok()?;
    let n = list.len();
    let codes = list.read::<f32>(0..n).ok().filter(|codes| codes.ndim() == 1)?;
    let mut rows: Vec<(String, Vec<usize>)> = Family::ALL.iter().map(|f| (f.to_string(), vec![])).collect();
    for (i, &code) in codes.iter().enumerate() {
        let (_, places) = rows.get_mut(code as usize)?;
        if places.len() < ROW {
            places.push(i);
        }
    }
    rows.retain(|row| !row.1.is_empty());
    Some(rows)
}

/// A row for every family.
fn draw_families(file: &Path, survey: &Survey, rows: &[(String, Vec<usize>)]) -> Result<Vec<u8>> {
    let mut maps = Maps::open(file, survey.map_shape(), &Limits::default())?;
    let mut places: Vec<usize> = rows.iter().flat_map(|r| r.1.clone()).collect();
    places.sort_unstable();
    let some: Vec<_> = places.iter().map(|&i| maps.get(i)).collect::<Result<_>>()?;
    let views: Vec<_> = some.iter().map(|m| m.view()).collect();
    let stack = ndarray::stack(ndarray::Axis(0), &views).expect("maps of one file have one shape");
    let captions: Vec<String> = places.iter().map(usize::to_string).collect();
    let in_stack = |i: &usize| places.binary_search(i).expect("one of them");
    let rows: Vec<_> = rows.iter().map(|(name, list)| (name.clone(), list.iter().map(in_stack).collect())).collect();
    plot::contact_sheet_in_rows(stack.view(), &captions, &rows)
}

fn draw_map(args: &Args, survey: &Survey, map: ndarray::Array2<f64>) -> Result<Vec<u8>> {
    let truth =
        args.truth.as_ref().map(|t| fwi::io::read_map(t, survey.map_shape(), &Limits::default())).transpose()?;
    plot::map_figure(map.view(), survey.dx, None, truth.as_ref().map(|t| t.view()))
}

fn draw_sheet(maps: &mut Maps, n: usize) -> Result<Vec<u8>> {
    let some: Vec<_> = (0..n).map(|i| maps.get(i)).collect::<Result<_>>()?;
    let views: Vec<_> = some.iter().map(|m| m.view()).collect();
    let stack = ndarray::stack(ndarray::Axis(0), &views).expect("maps of one file have one shape");
    let captions: Vec<String> = (0..n).map(|i| i.to_string()).collect();
    plot::contact_sheet(stack.view(), &captions)
}

fn draw_log(file: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, "read", e))?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<super::rundir::LogLine> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    if lines.is_empty() {
        return Err(Error::input(file, "holds no line of an inversion's log; name the log.jsonl of a run"));
    }
    let (history, stages) = super::monitor::convergence(lines);
    plot::convergence_figure(&history, &stages)
}
