//! `fwi plot`: PNG figures of maps, gathers and logs, told apart by shape.

use fwi::io::{ArrayFile, Gathers, Limits, Maps, write_atomic};
use fwi::{Error, Gather, Observed, Result, Survey, plot};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Draw files.
#[derive(clap::Args)]
pub struct Args {
    /// Maps (70, 70) or stacks of them, gathers (5, 1000, 70), or the log.jsonl of an inversion
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the PNG goes, for a single file [default: the file's name with .png]
    #[arg(short, long, value_name = "PNG")]
    output: Option<PathBuf>,
    /// True map to compare a single map with
    #[arg(long, value_name = "MAP")]
    truth: Option<PathBuf>,
    /// Which item of a stack of gathers, from 0
    #[arg(long, value_name = "I", default_value_t = 0)]
    index: usize,
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
    for file in &args.files {
        let png = draw(&args, file)?;
        let to = args.output.clone().unwrap_or_else(|| beside(file));
        write_atomic(&to, |w| w.write_all(&png))?;
        println!("{}", to.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// "dir/a.npy" and "dir/a.h5:/x" to "dir/a.png".
fn beside(file: &Path) -> PathBuf {
    let text = file.to_string_lossy();
    let path = match text.rsplit_once(':') {
        Some((path, _)) if !file.exists() => PathBuf::from(path),
        _ => file.to_path_buf(),
    };
    path.with_extension("png")
}

fn draw(args: &Args, file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|e| e == "jsonl") {
        return draw_log(file);
    }
    let survey = Survey::openfwi();
    let limits = Limits::default();
    let shape = ArrayFile::open(file, &limits)?.shape().to_vec();
    let (nz, nx) = survey.map_shape();
    if shape.ends_with(&[nz, nx]) && shape.len() <= 4 {
        let mut maps = Maps::open(file, survey.map_shape(), &limits)?;
        return match maps.len() {
            1 => draw_map(args, &survey, maps.get(0)?),
            n => draw_sheet(&mut maps, n.min(SHEET)),
        };
    }
    let data = Gathers::open(file, survey.gather_shape(), &limits)?.get(args.index)?;
    plot::gather_figure(&Observed::new(Gather::new(data)), None, &survey, args.shot)
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
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, "read", e))?;
    let lines: Vec<super::rundir::LogLine> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    if lines.is_empty() {
        return Err(Error::input(file, "holds no line of an inversion's log; name the log.jsonl of a run"));
    }
    let (history, stages) = super::monitor::convergence(lines);
    plot::convergence_figure(&history, &stages)
}
