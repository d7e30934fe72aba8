use super::*;
use crate::curvature::Columns;
use ndarray::{Array2, array};

/// Two areas that touch at a corner only, a ramp, and one odd cell.
fn map() -> Array2<f64> {
    array![
        [1500.0, 1500.0, 2000.0, 2004.0],
        [1500.0, 1500.0, 2000.0, 2008.0],
        [3000.0, 3000.4, 1500.0, 1500.0],
        [3000.0, 3000.0, 1500.0, 4000.0],
    ]
}

fn field(seed: f64) -> Array2<f64> {
    Array2::from_shape_fn((4, 4), |(z, x)| (seed + 3.0 * z as f64 + 7.0 * x as f64).sin())
}

#[test]
fn areas_are_connected_by_small_steps() {
    let p = patches(&map(), 5.0, 1);
    // 2008 hangs on 2004, by a step of 4
    assert_eq!(p.labels, array![[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 4]]);
    assert_eq!(p.sizes, [4, 4, 4, 3, 1]);
    assert_eq!(p.means, [1500.0, 2003.0, 3000.1, 1500.0, 4000.0]);
    // a step must stay below the threshold
    assert_eq!(patches(&map(), 4.0, 1).labels.row(0).to_vec(), [0, 0, 1, 2]);
}

#[test]
fn small_areas_fall_into_cells() {
    let p = patches(&map(), 5.0, 4);
    assert_eq!(p.labels, array![[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 4], [2, 2, 5, 6]]);
    assert_eq!(p.sizes, [4, 4, 4, 1, 1, 1, 1]);
    assert_eq!(patches(&map(), 5.0, 5).len(), 16);
    assert_eq!(patches(&map(), f64::NAN, 1).len(), 16);
    assert!(patches(&Array2::zeros((0, 0)), 5.0, 1).is_empty());
}

#[test]
fn interiors_leave_out_the_cells_near_an_edge() {
    let map = Array2::from_shape_fn((3, 8), |(z, x)| if x < 4 { 1500.0 } else { 3000.0 + z as f64 });
    let p = interiors(&map, 5.0, 4, 1);
    let cells: Vec<bool> = p.labels.row(1).iter().map(|&l| p.sizes[l as usize] == 1).collect();
    assert_eq!(cells, [false, false, false, true, true, false, false, false]);
    assert_eq!(p.sizes.iter().filter(|&&n| n == 9).count(), 2);
    assert_eq!((p.len(), p.means[0]), (8, 1500.0));
    // without a reach all cells stay with their area
    assert_eq!(interiors(&map, 5.0, 4, 0), patches(&map, 5.0, 4));
}

#[test]
fn joined_patches_hold_finer_ones_whole() {
    let map = map();
    let (cells, areas) = (Patches::cells(&map), patches(&map, 5.0, 1));
    assert_eq!(cells.len(), 16);
    assert_eq!(cells.joined_by(&areas, &map), areas);
    assert_eq!(areas.joined_by(&cells, &map), areas);
    // columns and rows share cells with all others
    assert_eq!(areas.joined_by(&Patches::rows(&map), &map).sizes, [8, 8]);
}

#[test]
fn pullback_is_the_transpose_of_decode() {
    let p = patches(&map(), 5.0, 2);
    let x: Vec<f64> = (0..p.len()).map(|i| (1.0 + i as f64).cos()).collect();
    let (reference, gradient) = (map(), field(0.3));
    let forward = ((p.decode(&reference, &x) - &reference) * &gradient).sum();
    let back = p.pullback(&gradient);
    let backward: f64 = back.iter().zip(&x).map(|(a, b)| a * b).sum();
    assert!((forward / backward - 1.0).abs() < 1e-10, "{forward} against {backward}");

    let Columns::Groups { groups, .. } = p.columns() else { panic!("groups") };
    assert_eq!(groups, p.len());
    let (mut row, mut projected) = (gradient.iter().map(|&g| g as f32).collect::<Vec<_>>(), Vec::new());
    p.columns().project(&mut row, &mut projected);
    assert!(projected.iter().zip(&back).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-6));
}

#[test]
fn encode_undoes_decode_and_is_the_nearest() {
    let p = patches(&map(), 5.0, 1);
    let x = [1.0, -2.0, 3.0, 0.5, 7.0];
    assert_eq!(p.encode(&p.decode(&Array2::zeros((4, 4)), &x)), x);
    // what a flat map misses is orthogonal to all flat maps
    let missed = p.flatten(&field(1.0)) - field(1.0);
    assert!(p.pullback(&missed).iter().all(|s| s.abs() < 1e-12));
}

#[test]
fn rows_are_patches() {
    let p = Patches::rows(&map());
    assert_eq!(p.labels, array![[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]);
    assert_eq!(p.sizes, [4; 4]);
    assert_eq!(p.means[0], 1751.0);
}
