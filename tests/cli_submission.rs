//! `fwi submission` as its user meets it.

mod cli_common;

use cli_common::{run, smooth_map};
use fwi::io::write_array;
use ndarray::{Array2, Axis, stack};
use std::fs;
use std::process::Command;

/// The submission's rows of a map, by the contest's rules.
fn rows(id: &str, map: &Array2<f32>) -> String {
    let row = |z: usize| (1..70).step_by(2).map(|x| format!(",{}", map[[z, x]])).collect::<String>();
    (0..70).map(|z| format!("{id}_y_{z}{}\n", row(z))).collect()
}

fn header() -> String {
    format!("oid_ypos{}\n", (1..70).step_by(2).map(|x| format!(",x_{x}")).collect::<String>())
}

#[test]
fn maps_of_a_batch_stand_before_those_of_a_prior() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for folder in ["test", "out/velocity"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    // gathers are asked for by name alone
    for id in ["b", "a", "c"] {
        fs::write(dir.join(format!("test/{id}.npy")), "").unwrap();
    }
    let prior: Vec<Array2<f32>> = [0.0, 1.0, 2.0].map(smooth_map).to_vec();
    let views: Vec<_> = prior.iter().map(|map| map.view()).collect();
    write_array(dir.join("prior.npy"), stack(Axis(0), &views).unwrap().view()).unwrap();
    let inverted = smooth_map(0.25);
    for id in ["b", "z"] {
        write_array(dir.join(format!("out/velocity/{id}.npy")), inverted.view()).unwrap();
    }
    let (code, _, err) = run(dir, "submission prior.npy out --gathers test -o s.csv");
    assert!(
        code == 0 && err.contains("of other gathers, left out: 1\n") && err.contains("wrote s.csv, 3 maps"),
        "{err}"
    );
    let expected = header() + &rows("a", &prior[0]) + &rows("b", &inverted) + &rows("c", &prior[2]);
    assert_eq!(fs::read_to_string(dir.join("s.csv")).unwrap(), expected);
    // the one map of a file is that of the one gather
    let (code, _, err) = run(dir, "submission out/velocity/z.npy --gathers test/c.npy -o s.csv");
    assert_eq!(code, 0, "{err}");
    assert_eq!(fs::read_to_string(dir.join("s.csv")).unwrap(), header() + &rows("c", &inverted));
    // whatever there is, by name
    let (code, _, err) = run(dir, "submission out -o s.csv -q");
    assert!(code == 0 && err.is_empty(), "{err}");
    let expected = header() + &rows("b", &inverted) + &rows("z", &inverted);
    assert_eq!(fs::read_to_string(dir.join("s.csv")).unwrap(), expected);
}

#[cfg(unix)]
#[test]
fn more_maps_are_named_than_a_process_may_hold_open() {
    let dir = tempfile::tempdir().unwrap();
    let maps: Vec<String> = (10..70).map(|i| format!("{i}.npy")).collect();
    for name in &maps {
        write_array(dir.path().join(name), smooth_map(0.0).view()).unwrap();
    }
    let line = format!("ulimit -n 40 && {} submission {} -o s.csv", cli_common::fwi().display(), maps.join(" "));
    let out = Command::new("sh").current_dir(dir.path()).args(["-c", &line]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let expected: String = (10..70).map(|i| rows(&i.to_string(), &smooth_map(0.0))).collect();
    assert_eq!(fs::read_to_string(dir.path().join("s.csv")).unwrap(), header() + &expected);
}

#[test]
fn mistakes_are_told_in_one_line_and_leave_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for folder in ["test", "maps", "empty", "one"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    for id in ["a", "b"] {
        fs::write(dir.join(format!("test/{id}.npy")), "").unwrap();
    }
    write_array(dir.join("maps/a.npy"), smooth_map(0.0).view()).unwrap();
    write_array(dir.join("one/velocity.npy"), smooth_map(0.0).view()).unwrap();
    fs::create_dir(dir.join("inversion")).unwrap();
    fs::write(dir.join("inversion/result.json"), "{}").unwrap();
    write_array(dir.join("inversion/velocity.npy"), smooth_map(0.0).view()).unwrap();
    let map = smooth_map(0.0);
    write_array(dir.join("three.npy"), stack(Axis(0), &[map.view(); 3]).unwrap().view()).unwrap();
    write_array(dir.join("nan.npy"), smooth_map(f32::NAN).view()).unwrap();
    fs::write(dir.join("s.csv"), "before").unwrap();
    for (line, code, part) in [
        ("submission maps -o s.npy", 2, "s.npy: submissions are CSV"),
        ("submission maps --gathers test -o s.csv", 2, "1 of 2 gathers have no map, \"b\" the first"),
        ("submission three.npy -o s.csv", 3, "three.npy: holds 3 maps; name the gathers"),
        ("submission three.npy --gathers test -o s.csv", 3, "three.npy: holds 3 maps for 2 gathers"),
        ("submission empty -o s.csv", 3, "empty: holds no map"),
        ("submission inversion -o s.csv", 3, "inversion: is the directory of one inversion; copy its velocity.npy"),
        ("submission inversion/velocity.npy one/velocity.npy -o s.csv", 3, "is the second map called velocity.npy"),
        ("submission test -o s.csv", 3, "test/a.npy"),
        ("submission none.npy -o s.csv", 4, "none.npy"),
        ("submission nan.npy -o s.csv", 3, "nan.npy: map 0 holds NaN"),
        ("submission maps -o none/s.csv", 4, "none/s.csv"),
    ] {
        let (got, _, err) = run(dir, line);
        assert!(got == code && err.contains(part) && err.trim().lines().count() == 1, "{line}: {got}, {err}");
        assert_eq!(fs::read_to_string(dir.join("s.csv")).unwrap(), "before");
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), 8);
}
