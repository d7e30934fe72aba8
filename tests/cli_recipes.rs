//! `fwi recipes` and inversions by recipes as their user meets them.

mod cli_common;

use cli_common::{Bench, smooth_map};
use fwi::io::write_array;
use std::fs;

fn result(bench: &Bench, dir: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(bench.path(dir).join("result.json")).unwrap()).unwrap()
}

const CHEAP: &str = "name = \"cheap\"\nabout = \"A test's\"\nstart = \"gradient\"\nfallback = \"continuation\"\n\
    [[stage]]\nname = \"few\"\nmax_evals = 2\n";

#[test]
fn recipes_are_listed_and_shown() {
    let bench = Bench::new();
    let (code, out, err) = bench.run("recipes list");
    assert_eq!(code, 0, "{err}");
    assert!(out.lines().any(|l| l.starts_with("continuation ") && l.contains("gradient start")), "{out}");
    assert!(out.lines().any(|l| l.starts_with("smooth ") && l.contains("[default of Style_A]")), "{out}");
    let (code, out, _) = bench.run("recipes show layered");
    assert!(code == 0 && out == include_str!("../recipes/layered.toml"), "{out}");
    // a file is written out whole, or told what is wrong with it
    fs::write(bench.path("mine.toml"), "name = \"mine\"\nabout = \"x\"\n[[stage]]\nlike = \"layered/sharp\"\n")
        .unwrap();
    let (code, out, err) = bench.run("recipes show mine.toml");
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("name = \"sharp\"") && out.contains("noise = [0.001]") && !out.contains("like"), "{out}");
    fs::write(bench.path("mine.toml"), "name = \"mine\"\nabout = \"x\"\n[[stage]]\nlike = \"layered/blunt\"\n")
        .unwrap();
    let (code, out, err) = bench.run("recipes show mine.toml");
    assert!(
        code == 3 && out.is_empty() && err.contains("mine.toml: like = \"layered/blunt\": there is no such stage"),
        "{err}"
    );
    let (code, out, err) = bench.run("recipes show nothing");
    assert!(code == 2 && out.is_empty() && err.contains("no recipe is called \"nothing\"; there are anneal"), "{err}");
}

#[test]
fn explain_tells_why_and_what_and_writes_nothing() {
    let bench = Bench::new();
    let before = fs::read_dir(bench.path("")).unwrap().count();
    let (code, out, err) = bench.run("invert gather.npy --explain");
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with("recipe: ") && out.contains(", for the group ") && out.contains("likeliest family"),
        "{out}"
    );
    assert!(out.contains("start: prior"), "{out}");
    // a map of one's own is inverted as its gather asks, too
    let (code, out, err) = bench.run("invert gather.npy --explain --start map.npy");
    assert!(code == 0 && err.contains("prior: columns"), "{err}");
    assert!(out.contains(", for the group ") && out.contains("start: map.npy"), "{out}");
    let (code, out, err) = bench.run("invert gather.npy --explain --start map.npy --stages l2");
    assert!(code == 0 && !err.contains("prior: ") && !out.contains(", for the group "), "{out}{err}");
    let (code, out, _) = bench.run("invert gather.npy --explain --recipe layered");
    assert_eq!(code, 0);
    assert!(out.starts_with("recipe: layered, as asked for\n"), "{out}");
    for part in
        ["unknowns", "Gauss-Newton steps over", "assumed noise", "Gaussian process, ", "areas of one velocity", " MB"]
    {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (code, out, _) = bench.run("invert gather.npy --explain --family style_b");
    assert!(code == 0 && out.starts_with("recipe: sharp, for the group Style_B, of the family Style_B"), "{out}");
    assert!(out.contains("steps between at 4 times the data rms, where the next noise is less"), "{out}");
    fs::write(bench.path("cheap.toml"), CHEAP).unwrap();
    let (code, out, _) = bench.run("invert gather.npy --explain --recipe cheap.toml");
    assert_eq!(code, 0);
    let wanted = "done at a data rms of 1e-4\notherwise: continuation\nstart: gradient\n";
    assert!(out.starts_with("recipe: cheap from /") && out.contains(wanted), "{out}");
    assert!(out.contains("L-BFGS over all cells: least squares below 4 Hz"), "{out}");
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), before + 1);
}

#[test]
fn a_recipe_in_a_file_falls_back_and_is_kept_on_resuming() {
    let bench = Bench::new();
    fs::write(bench.path("cheap.toml"), CHEAP).unwrap();
    let (code, _, err) = bench.run("invert gather.npy -o run --recipe cheap.toml --max-evals 5");
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("recipe: cheap, as asked for"), "{err}");
    let r = result(&bench, "run");
    let told = |r: &serde_json::Value| -> Vec<(String, u64, String)> {
        let of = |a: &serde_json::Value, key: &str| a[key].as_str().unwrap().to_string();
        let all = r["attempts"].as_array().unwrap().iter();
        all.map(|a| (of(a, "recipe"), a["evaluations"].as_u64().unwrap(), of(a, "start"))).collect()
    };
    let attempt = |name: &str, evals: u64| (name.to_string(), evals, "gradient".to_string());
    assert_eq!(told(&r), [attempt("cheap", 2), attempt("continuation", 3)]);
    assert_eq!(r["attempts"].as_array().unwrap().iter().filter(|a| a["kept"] == true).count(), 1);
    assert!(r["recipe"].is_string() && r["stages"].is_array(), "{r}");
    // resumed without a word of it; the second attempt goes on
    let (code, _, err) = bench.run("invert gather.npy -o run --resume --max-evals 8");
    assert!(code == 0 && err.contains("recipe: cheap, that of the run resumed"), "{err}");
    assert_eq!(told(&result(&bench, "run")), [attempt("cheap", 2), attempt("continuation", 6)]);
    // another recipe is refused, and a changed one by name
    let (code, _, err) = bench.run("invert gather.npy -o run --resume --recipe continuation --max-evals 9");
    assert!(code == 2 && err.contains("run: the checkpoint belongs to other recipes"), "{err}");
    let (code, _, _) = bench.run("invert gather.npy -o short --recipe cheap.toml --max-evals 1");
    assert_eq!(code, 0);
    fs::write(bench.path("cheap.toml"), CHEAP.replace("name = \"few\"", "name = \"few\"\nsmoothing = 2.0")).unwrap();
    let (code, _, err) = bench.run("invert gather.npy -o short --resume --max-evals 2");
    assert!(code == 2 && err.contains("cheap.toml: has that file changed?"), "{err}");
}

#[test]
fn a_batch_follows_a_recipe() {
    let bench = Bench::new();
    fs::write(bench.path("cheap.toml"), CHEAP).unwrap();
    let (code, _, err) = bench.run("batch gather.npy -o out --recipe cheap.toml --max-evals 4");
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("recipe: /") && err.contains("cheap.toml"), "{err}");
    let line = fs::read_to_string(bench.path("out/results.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["evaluations"], line["attempts"].as_array().unwrap().len()), (&4.into(), 2));
    assert!(line["recipe"] == "cheap" || line["recipe"] == "continuation", "{line}");
    let (code, _, err) = bench.run("invert gather.npy -o one --recipe cheap.toml --max-evals 4 -q");
    assert_eq!(code, 0, "{err}");
    assert_eq!(line["data_rms"], result(&bench, "one")["data_rms"]);
}

/// A map of one's own is trusted by the prior's word on its gather, wherever a recipe asks for that.
#[test]
fn single_and_batch_inversions_trust_a_given_map_alike() {
    let bench = Bench::new();
    write_array(bench.path("start.npy"), smooth_map(60.0).view()).unwrap();
    let doubting = format!(
        "{CHEAP}[stage.lbfgs]\nnoise = 0.1\nregularisers = [{{ kind = \"gaussian-process\", mean = \"start\", \
         confidence = CONFIDENT, sigma = 1.0, length = 2.0, white = 0.1 }}]\n"
    );
    let run = |command: &str, confident: &str| {
        fs::write(bench.path("doubting.toml"), doubting.replace("CONFIDENT", confident)).unwrap();
        let (code, _, err) = bench.run(&format!("{command} --start start.npy --recipe doubting.toml --max-evals 2"));
        assert_eq!(code, 0, "{err}");
        assert_eq!(err.contains("prior: columns"), confident == "true", "{err}");
    };
    run("invert gather.npy -o one", "true");
    run("batch gather.npy -o many", "true");
    run("invert gather.npy -o blind", "false");
    let map = |path: &str| fs::read(bench.path(path)).unwrap();
    assert!(map("one/velocity.npy") == map("many/velocity/gather.npy"));
    assert!(map("one/velocity.npy") != map("blind/velocity.npy"));
    let said = result(&bench, "one");
    assert!(said["start"] == "start.npy" && said["prior"]["expected_mae"].is_null(), "{said}");
    assert_eq!(said["family"], said["prior"]["family"]);
}

#[test]
fn mistakes_are_told_in_one_line() {
    let bench = Bench::new();
    fs::write(bench.path("broken.toml"), "name = \"x\"\nabout = \"\"\n[[stage]\n").unwrap();
    fs::write(bench.path("typo.toml"), CHEAP.replace("max_evals", "max_eval")).unwrap();
    fs::write(bench.path("bytes.toml"), [0xff, 0xfe, 0x00]).unwrap();
    for (options, code, part) in [
        ("--recipe nothing", 2, "no recipe is called \"nothing\"; there are anneal"),
        ("--recipe none.toml", 4, "none.toml: cannot read"),
        ("--recipe broken.toml", 3, "broken.toml: line 3 of the recipe"),
        ("--recipe typo.toml", 3, "typo.toml: line 7 of the recipe: unknown field `max_eval`"),
        ("--recipe bytes.toml", 3, "bytes.toml: is no text"),
        ("--family Marmousi", 2, "is no family"),
        ("--family Style_A --recipe layered", 2, "cannot be used with"),
        ("--recipe layered --max-memory 400M", 5, "raise --max-memory, or take a recipe without them"),
    ] {
        for command in ["invert gather.npy -o o", "batch gather.npy -o o"] {
            let (found, _, err) = bench.run(&format!("{command} {options}"));
            let part = if command.starts_with("batch") && code == 5 { "--recipe continuation" } else { part };
            assert!(found == code && err.contains(part) && !err.contains("panicked"), "{command} {options}: {err}");
            assert!(code == 2 || err.lines().count() == 1, "{err}");
            assert!(!bench.path("o").exists(), "{command} {options}");
        }
    }
    let (code, _, err) = bench.run("invert gather.npy");
    assert!(code == 2 && err.contains("--output"), "{err}");
}
