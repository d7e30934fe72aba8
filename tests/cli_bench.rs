//! `fwi bench families`.

mod cli_common;

use assert_cmd::Command;
use cli_common::{Bench, fwi};
use fwi::Family;
use fwi::family::bench::Case;
use fwi::io::{Limits, read_map, write_array};
use fwi::synth::draw;
use std::fs;
use std::path::Path;

const RECIPE: &str = "name = \"tiny\"\nabout = \"two evaluations\"\n[[stage]]\nname = \"full band\"\nmax_evals = 2\n";

fn bench(dir: &Path) -> Command {
    fs::write(dir.join("recipe.toml"), RECIPE).unwrap();
    let mut command = Command::new(fwi());
    command.current_dir(dir).args(["bench", "families", "--recipe", "recipe.toml", "--start", "gradient"]);
    command.args(["--backend", "cpu", "--json", "cases.jsonl"]);
    command
}

/// Exit code, standard output, standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().expect("no signal"), text(&out.stdout), text(&out.stderr))
}

fn cases(path: &Path) -> Vec<Case> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

#[test]
fn measures_and_goes_on_where_it_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("cases.jsonl");
    let (code, out, err) = run(bench(dir.path()).args(["--families", "Style_A", "-n", "1"]));
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("gathers: 1, of 1 families") && err.contains("[1/1] Style_A 0: MAE"), "{err}");
    let found = cases(&json);
    assert_eq!(found.len(), 1);
    let c = &found[0];
    assert_eq!((&c.family[..], c.number, c.evaluations, c.normal_matrices), ("Style_A", 0, 2, 0));
    assert_eq!((&c.maps[..], &c.recipe[..]), ("synthetic, seed 2026", "tiny"));
    assert!(c.result != c.start && c.data_rms > 0.0 && c.equivalent_evaluations() == 2.0);
    // the gather is the true map's, in f32
    let noise = c.noise_rms.unwrap();
    assert!(noise > 0.0 && noise < 1e-4 && out.contains(&format!(" {:.1}x ", c.data_rms / noise)), "{noise}: {out}");
    assert!(out.contains(&format!("{:12}     1 {:7.1} {:7.2}", "Style_A", c.start.mae, c.result.mae)), "{out}");
    let last = out.lines().last().unwrap();
    assert!(
        last.contains("9% of its gathers") && last.contains(&format!("MAE {:.3} over odd", c.result.odd_mae)),
        "{last}"
    );
    let text = fs::read_to_string(&json).unwrap();
    assert!(text.lines().last().unwrap().starts_with("{\"contest\":{\"odd_mae\":"), "{text}");

    let (code, _, err) = run(bench(dir.path()).args(["--families", "Style_A", "-n", "1"]));
    assert!(code == 2 && err.contains("--resume"), "{err}");
    // a line that a kill cut short is measured again, the whole one is not
    let whole = text.lines().next().unwrap();
    fs::write(&json, format!("{whole}\n{}", &whole[..40])).unwrap();
    let (code, out, err) = run(bench(dir.path()).args(["--families", "Style_A", "-n", "2", "--resume"]));
    assert_eq!(code, 0, "{err}");
    assert!(!err.contains("Style_A 0: MAE") && err.contains("[2/2] Style_A 1: MAE"), "{err}");
    assert!(out.contains("Style_A          2 "), "{out}");
    let both = cases(&json);
    assert_eq!((both.len(), &both[0], both[1].number), (2, c, 1));
    // other settings are another measurement
    let (code, _, err) =
        run(bench(dir.path()).args(["--families", "Style_A", "-n", "1", "--resume", "--time-limit", "900"]));
    assert!(code == 0 && err.contains("Style_A 0: MAE"), "{err}");
    assert_eq!(cases(&json).len(), 3);
    // and so are recipes with less in them
    let (code, _, err) = run(bench(dir.path()).args([
        "--families",
        "Style_A",
        "-n",
        "1",
        "--resume",
        "--without",
        "source-row,rounding",
    ]));
    assert!(code == 0 && err.contains("Style_A 0: MAE"), "{err}");
    let all = cases(&json);
    assert!(all.len() == 4 && all[3].result != c.result, "{all:?}");
    // neither what makes no sense nor a second process costs what is there
    let text = fs::read(&json).unwrap();
    let (code, _, err) = run(bench(dir.path()).args(["--force", "--memory", "0"]));
    assert!(code == 2 && err.contains("write a number from 1 to 200"), "{err}");
    let lock = fs::File::create(dir.path().join(".cases.jsonl.lock")).unwrap();
    lock.lock().unwrap();
    let (code, _, err) = run(bench(dir.path()).arg("--resume"));
    assert!(code == 2 && err.contains("another fwi is writing it"), "{err}");
    assert!(fs::read(&json).unwrap() == text);
}

#[test]
fn maps_and_gathers_of_files() {
    let b = Bench::new();
    let dir = b.map.parent().unwrap();
    let (code, out, err) = run(bench(dir).args(["--maps", "FlatVel_A=map.npy", "--gathers", "FlatVel_A=gather.npy"]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("FlatVel_A        1 ") && !out.contains("Style_A      "), "{out}");
    let case = &cases(&dir.join("cases.jsonl"))[0];
    assert_eq!(case.maps, "map.npy");
    assert!(case.start.mae > 1.0);
    let maps = draw(Family::FlatVelA, 1, 0);
    write_array(dir.join("other.npy"), maps.view()).unwrap();
    for (arguments, part) in [
        (vec!["--gathers", "FlatVel_A=gather.npy"], "--maps FlatVel_A=FILE"),
        (vec!["--maps", "FlatVel_A=map.npy", "--maps", "FlatVel_A=other.npy"], "given two files"),
        (vec!["--maps", "FlatVel_A=gather.npy"], "expected velocity maps"),
        (vec!["--families", "Marmousi"], "is no family"),
        (vec!["--without", "salt"], "is no ingredient; there are prior-start"),
        (vec!["--maps", "FlatVel_A"], "write FAMILY=FILE"),
    ] {
        let (code, _, err) = run(bench(dir).arg("--force").args(&arguments));
        assert!((code == 2 || code == 3) && err.contains(part), "{arguments:?}: {code} {err}");
    }
    let mut over = bench(dir);
    over.args(["--maps", "FlatVel_A=cases.jsonl", "--force"]);
    let (code, _, err) = run(&mut over);
    assert!(code == 2 && err.contains("would be overwritten"), "{err}");
}

#[test]
fn uncertainty_is_written_and_compared_with_the_errors() {
    let b = Bench::new();
    let dir = b.map.parent().unwrap();
    let out = dir.join("out");
    let mut command = Command::new(fwi());
    command.current_dir(dir).args(["invert", "gather.npy", "-o", "out", "--start", "gradient", "--max-evals", "2"]);
    let (code, _, err) = run(command.args(["--uncertainty", "--backend", "cpu"]));
    assert!(code == 0 && err.contains("uncertainty: MAE "), "{err}");
    let result: serde_json::Value = serde_json::from_slice(&fs::read(out.join("result.json")).unwrap()).unwrap();
    let told = &result["uncertainty"];
    assert_eq!(told["noise"], result["data_rms"]);
    assert_eq!(told["regulariser"][0]["kind"], "gaussian-process");
    let deviations = read_map(out.join("uncertainty.npy"), (70, 70), &Limits::default()).unwrap();
    let expected = deviations.mean().unwrap() * (2.0 / std::f64::consts::PI).sqrt();
    assert!((told["expected_mae"].as_f64().unwrap() / expected - 1.0).abs() < 1e-5, "{told} {expected}");
    // never more than the process that was assumed allows, and less where the data tell
    assert!(deviations.iter().all(|d| (0.0..=201.0).contains(d)));
    assert!(deviations.row(5).mean().unwrap() < deviations.row(69).mean().unwrap());
    assert!(fs::read(out.join("uncertainty.png")).unwrap().starts_with(b"\x89PNG"));

    let mut command = bench(dir);
    let (code, text, err) = run(command.args(["--maps", "FlatVel_A=map.npy", "--uncertainty"]));
    assert_eq!(code, 0, "{err}");
    let coverage = cases(&dir.join("cases.jsonl"))[0].coverage.unwrap();
    assert!(text.contains("within one") && coverage.within_one <= coverage.within_two && coverage.expected_mae > 0.0);
}
