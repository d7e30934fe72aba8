//! Sets of synthetic samples through the library: what is in them, how they grow, what is refused.

use fwi::Family;
use fwi::io::{ArrayFile, Limits};
use fwi::synth::store::{Format, Sample, Store};
use fwi::synth::{Recipe, draw};
use ndarray::ArrayD;
use std::fs;
use std::path::{Path, PathBuf};

fn maps_only(seed: u64) -> Recipe {
    Recipe { maps_only: true, per_file: 4, ..Recipe::new(None, seed) }
}

/// Brings a set to `n` samples, the first `most` missing ones at most; returns how many were missing.
fn grow(path: &Path, format: Format, recipe: &Recipe, n: u64, most: usize) -> fwi::Result<usize> {
    let store = Store::open(path, format, recipe.clone())?;
    let missing = store.missing(n)?;
    let mut appender = store.appender(&missing);
    for i in (0..missing.len()).take(most) {
        let origin = recipe.origin(missing.index(i));
        appender.write(&store.encode(&Sample::new(recipe, origin, recipe.map(origin), None)))?;
    }
    appender.finish()?;
    Ok(missing.len() as usize)
}

fn read(file: &str) -> ArrayD<f32> {
    let mut file = ArrayFile::open(file, &Limits::default()).unwrap();
    let n = file.len();
    file.read(0..n).unwrap()
}

/// Every array of a set of ten samples in three files, and the maps that were drawn directly.
fn check(dir: &Path, recipe: &Recipe) {
    let mut index = 0;
    for (name, n) in [("s.h5", 4), ("s-00001.h5", 4), ("s-00002.h5", 2)] {
        let array = |dataset: &str| read(&format!("{}:/{dataset}", dir.join(name).display()));
        let (velocity, family, number) = (array("velocity"), array("family"), array("number"));
        assert_eq!((velocity.shape(), family.len()), (&[n, 1, 70, 70][..], n));
        for i in 0..n {
            let origin = recipe.origin(index);
            assert_eq!(Family::ALL[family[i] as usize], origin.family);
            assert_eq!(number[i] as u64, origin.number);
            let drawn = draw(origin.family, recipe.seed, origin.number);
            assert_eq!(velocity.index_axis(ndarray::Axis(0), i).index_axis(ndarray::Axis(0), 0), drawn.into_dyn());
            index += 1;
        }
    }
    assert_eq!(index, 10);
}

#[test]
fn a_set_grows_in_any_steps_to_the_same() {
    let recipe = maps_only(7);
    for steps in [&[10][..], &[1, 2, 3, 10], &[4, 5, 9, 10], &[6, 6, 10, 3]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.h5");
        let mut had = 0;
        for &n in steps {
            let made = grow(&path, Format::Hdf5, &recipe, n, usize::MAX).unwrap();
            assert_eq!(made as u64, n.saturating_sub(had), "{steps:?}");
            had = had.max(n);
        }
        check(dir.path(), &recipe);
    }
}

#[test]
fn what_is_cut_short_or_lost_is_made_again() {
    let (dir, recipe) = (tempfile::tempdir().unwrap(), maps_only(7));
    let path = dir.path().join("s.h5");
    assert_eq!(grow(&path, Format::Hdf5, &recipe, 10, 6).unwrap(), 10);
    assert_eq!(grow(&path, Format::Hdf5, &recipe, 10, usize::MAX).unwrap(), 4);
    check(dir.path(), &recipe);
    fs::remove_file(dir.path().join("s-00001.h5")).unwrap();
    assert_eq!(grow(&path, Format::Hdf5, &recipe, 10, usize::MAX).unwrap(), 4);
    check(dir.path(), &recipe);
    // a process that is killed closes nothing
    let store = Store::open(&path, Format::Hdf5, recipe.clone()).unwrap();
    let missing = store.missing(12).unwrap();
    let mut appender = store.appender(&missing);
    let origin = recipe.origin(10);
    appender.write(&store.encode(&Sample::new(&recipe, origin, recipe.map(origin), None))).unwrap();
    drop((appender, store));
    check(dir.path(), &recipe);
}

#[test]
fn the_contests_layout_grows_too() {
    let (dir, recipe) = (tempfile::tempdir().unwrap(), Recipe { family: Some(Family::FlatFaultB), ..maps_only(3) });
    let path = dir.path().join("set");
    assert_eq!(grow(&path, Format::Kaggle, &recipe, 9, 6).unwrap(), 9);
    assert_eq!(grow(&path, Format::Kaggle, &recipe, 9, usize::MAX).unwrap(), 3);
    let mut number = 0;
    for (name, n) in [("vel6_1_0.npy", 4), ("vel6_1_1.npy", 4), ("vel6_1_2.npy", 1)] {
        let maps = read(path.join("FlatFault_B").join(name).to_str().unwrap());
        assert_eq!(maps.shape(), [n, 1, 70, 70]);
        for map in maps.outer_iter() {
            assert_eq!(map.index_axis(ndarray::Axis(0), 0), draw(Family::FlatFaultB, 3, number).into_dyn());
            number += 1;
        }
    }
    assert_eq!(number, 9);
}

#[test]
fn two_sets_at_work_in_a_directory_leave_each_other_alone() {
    let (dir, recipe) = (tempfile::tempdir().unwrap(), maps_only(7));
    let (one, two) = (dir.path().join("s.h5"), dir.path().join("t.h5"));
    grow(&two, Format::Hdf5, &recipe, 1, 1).unwrap();
    let store = Store::open(&one, Format::Hdf5, recipe.clone()).unwrap();
    let missing = store.missing(10).unwrap();
    assert_eq!((0..missing.len()).map(|i| missing.index(i)).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    let mut appender = store.appender(&missing);
    for i in 0..10 {
        let origin = recipe.origin(i);
        appender.write(&store.encode(&Sample::new(&recipe, origin, recipe.map(origin), None))).unwrap();
        // opened again by this process, it sweeps its own leftovers
        grow(&two, Format::Hdf5, &recipe, 2, 1).unwrap();
    }
    appender.finish().unwrap();
    check(dir.path(), &recipe);
}

#[test]
fn sets_of_another_make_are_refused() {
    let (dir, recipe) = (tempfile::tempdir().unwrap(), maps_only(7));
    let path = dir.path().join("s.h5");
    let error = |path: &Path, format, recipe: &Recipe| grow(path, format, recipe, 6, 6).unwrap_err();
    grow(&path, Format::Hdf5, &recipe, 6, 6).unwrap();
    let before = fs::read(&path).unwrap();
    let other = error(&path, Format::Hdf5, &maps_only(8));
    assert_eq!(other.exit_code(), 2);
    assert!(other.to_string().contains("seed 7, not 8"), "{other}");
    let flipped = Recipe { augment: "flip".parse().unwrap(), ..recipe.clone() };
    assert!(error(&path, Format::Hdf5, &flipped).to_string().contains("augment"), "augment");

    // maps of an older generator
    let (old, older) = (dir.path().join("old.h5"), Recipe { generator: 0, ..recipe.clone() });
    grow(&old, Format::Hdf5, &older, 1, 1).unwrap();
    let refused = error(&old, Format::Hdf5, &recipe);
    assert!(refused.exit_code() == 2 && refused.to_string().contains("drawn by generator 0"), "{refused}");

    // two sets at once
    let held = Store::open(&path, Format::Hdf5, recipe.clone()).unwrap();
    assert!(error(&path, Format::Hdf5, &recipe).to_string().contains("another fwi"));
    drop(held);

    // a file that is none, a torn one, one with another map in it
    let foreign: PathBuf = dir.path().join("foreign.h5");
    fwi::io::write_array(&foreign, draw(Family::StyleA, 0, 0).view()).unwrap();
    assert_eq!(error(&foreign, Format::Hdf5, &recipe).exit_code(), 3);
    for cut in [before.len() / 2, 100, 0] {
        fs::write(&path, &before[..cut]).unwrap();
        let torn = error(&path, Format::Hdf5, &recipe);
        assert!(torn.exit_code() == 3 && torn.to_string().lines().count() == 1, "{torn}");
    }
    fs::copy(dir.path().join("s-00001.h5"), &path).unwrap();
    let moved = error(&path, Format::Hdf5, &recipe);
    assert!(moved.to_string().contains("not the one that this version draws"), "{moved}");

    let directory = dir.path().join("set");
    fs::create_dir_all(directory.join("FlatVel_A")).unwrap();
    assert!(error(&directory, Format::Kaggle, &recipe).to_string().contains("no synth.json"));
    assert!(error(&path, Format::Kaggle, &recipe).to_string().contains("no directory"));
    assert!(error(&dir.path().join("s.npy"), Format::Hdf5, &recipe).to_string().contains(".h5"));
}
