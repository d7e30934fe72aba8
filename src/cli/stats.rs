//! `fwi stats`: statistics of files of maps side by side, and how far each is from the first.

use super::options::{maps_of, same_file};
use super::tell;
use fwi::io::write_atomic;
use fwi::plot::{CurvePanel, Scale, curves_figure};
use fwi::synth::stats::Statistics;
use fwi::{Error, Result, Survey};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Compare maps.
#[derive(clap::Args)]
pub struct Args {
    /// Maps (70, 70), (n, 70, 70) or (n, 1, 70, 70), or sets of fwi synth: NAME.h5 stands for NAME-00001.h5 and so on, too,
    /// unless they are named themselves; file.npz:name and file.h5:/dataset name one array of several
    #[arg(required = true, value_name = "MAPS")]
    files: Vec<PathBuf>,
    /// A figure of histogram, mean profile and radial spectrum
    #[arg(short, long, value_name = "PNG")]
    output: Option<PathBuf>,
    /// Most maps of a file or set, its first ones
    #[arg(long, value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    if let Some(to) = &args.output {
        let fail = |why: &str| Err(Error::Usage(format!("{}: {why}", to.display())));
        if !to.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
            return fail("figures are PNG; give the name that extension");
        }
        if args.files.iter().any(|f| same_file(f, to)) {
            return fail("would be overwritten; choose another -o");
        }
    }
    let shape = Survey::openfwi().map_shape();
    let mut sets = vec![];
    for file in &args.files {
        let mut statistics = Statistics::new(shape);
        for part in parts(file, &args.files) {
            let mut maps = maps_of(&part, shape)?;
            let left = (args.limit as usize).saturating_sub(statistics.maps());
            for i in 0..maps.len().min(left) {
                statistics.add(maps.get(i)?.view());
            }
        }
        sets.push(statistics);
    }
    let names: Vec<String> = args.files.iter().map(|f| f.display().to_string()).collect();
    table(&names, &sets)?;
    if let Some(to) = &args.output {
        let png = figure(&names, &sets)?;
        write_atomic(to, |w| w.write_all(&png))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A file, and those that follow it in a set of `fwi synth` unless the next one is `named` itself.
fn parts(file: &Path, named: &[PathBuf]) -> Vec<PathBuf> {
    let part = |p: Option<&std::ffi::OsStr>| p.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, extension) = (part(file.file_stem()), part(file.extension()));
    let number = |k: u32| file.with_file_name(format!("{stem}-{k:05}.{extension}"));
    let is_set = ["h5", "hdf5"].iter().any(|e| extension.eq_ignore_ascii_case(e)) && !named.contains(&number(1));
    let following = (1..).map(number).take_while(|f| is_set && f.exists());
    [file.to_path_buf()].into_iter().chain(following).collect()
}

/// Numbers of the files, then a column each.
fn table(names: &[String], sets: &[Statistics]) -> Result<()> {
    for (i, name) in names.iter().enumerate() {
        tell(format_args!("[{}] {name}", i + 1))?;
    }
    let heads: Vec<String> = (1..=names.len()).map(|i| format!("[{i}]")).collect();
    let line = |name: &str, cells: &[String]| {
        let cells: String = cells.iter().map(|c| format!("{c:>18}")).collect();
        tell(format_args!("{name:40}{cells}").to_string().trim_end())
    };
    line("\nmean ± standard deviation", &heads)?;
    let rows: Vec<_> = sets.iter().map(Statistics::rows).collect();
    for (i, (name, _, _)) in rows[0].iter().enumerate() {
        let cell = |(_, value, sd): &(String, f64, Option<f64>)| match sd {
            Some(_) if !value.is_finite() => short(*value),
            Some(sd) => format!("{} ± {}", short(*value), short(*sd)),
            None => short(*value),
        };
        line(name, &rows.iter().map(|r| cell(&r[i])).collect::<Vec<_>>())?;
    }
    if let [first, others @ ..] = sets
        && !others.is_empty()
    {
        line("\ndistance to [1], 0 to 1", &heads[1..])?;
        let distances: Vec<_> = others.iter().map(|s| first.distances(s)).collect();
        for (i, (name, _)) in distances[0].iter().enumerate() {
            if name.contains("m/s") {
                line("\ndifference from [1]", &heads[1..])?;
            }
            line(name, &distances.iter().map(|d| short(d[i].1)).collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

/// Four digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "none".into(),
        v if v >= 1000.0 || v.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

fn figure(names: &[String], sets: &[Statistics]) -> Result<Vec<u8>> {
    let scale = |name, unit| Scale { name, unit, log: false, downwards: false };
    let curves = |f: &dyn Fn(&Statistics) -> Vec<(f64, f64)>| sets.iter().map(f).collect::<Vec<_>>();
    let bins = |s: &Statistics| {
        let bins = s.velocity_shares(100).into_iter();
        bins.map(|(lo, hi, share)| ((lo + hi) as f64 / 2.0, 100.0 * share)).collect()
    };
    let dx = Survey::openfwi().dx;
    let rows = Survey::openfwi().nz;
    let profile = |s: &Statistics| (0..rows).map(|z| (s.at_depth(z).0, z as f64 * dx)).collect();
    let spectrum =
        |s: &Statistics| s.spectrum().into_iter().enumerate().map(|(k, p)| ((k + 1) as f64, p)).collect::<Vec<_>>();
    let panels = [
        CurvePanel {
            title: "Velocities, 100 m/s a bin",
            x: scale("Velocity", "m/s"),
            y: scale("Share", "%"),
            curves: curves(&bins),
        },
        CurvePanel {
            title: "Mean by depth",
            x: scale("Velocity", "m/s"),
            y: Scale { downwards: true, ..scale("Depth", "m") },
            curves: curves(&profile),
        },
        CurvePanel {
            title: "Radial power spectrum",
            x: Scale { log: true, ..scale("Wavenumber", "cycles a map") },
            y: Scale { log: true, ..scale("Power", "m²/s²") },
            curves: curves(&spectrum),
        },
    ];
    curves_figure(&panels, names)
}
