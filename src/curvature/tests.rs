use super::*;
use crate::wave::{Fidelity, Precision};
use crate::{Gather, Position};
use faer::Mat;
use ndarray::Array2;

const SHAPE: (usize, usize) = (24, 20);
const CELLS: usize = SHAPE.0 * SHAPE.1;

fn survey() -> Survey {
    let position = |z, x| Position { z, x };
    Survey {
        nz: SHAPE.0,
        nx: SHAPE.1,
        nt: 300,
        sponge: 20,
        sources: vec![position(1, 3), position(1, 19), position(12, 0)],
        receivers: (0..5).map(|i| position(1 + i, 4 * i + 1)).collect(),
        ..Survey::openfwi()
    }
}

/// A pattern without any symmetry.
fn pattern(seed: f64) -> Array2<f64> {
    Array2::from_shape_fn(SHAPE, |(z, x)| {
        ((z * 20 + x) as f64 * (1.3 + seed)).sin() + (0.2 * z as f64 + seed * x as f64).cos()
    })
}

fn model() -> Model {
    Model::from_map(pattern(0.1).mapv(|v| 2400.0 + 150.0 * v))
}

fn curvature(threads: usize, every: f64) -> Curvature {
    let options = CurvatureOptions { threads, every, every_double: every, ..CurvatureOptions::default() };
    Curvature::new(&survey(), &options).unwrap()
}

fn all() -> Mask {
    Mask::all(survey().gather_shape())
}

/// All traces but some, and not the last third of the samples.
fn partial() -> Mask {
    let mut mask = all();
    mask.nt = 200;
    mask.live[[0, 2]] = false;
    mask.live[[2, 2]] = false;
    mask.live.column_mut(4).fill(false);
    mask
}

fn full(curvature: &Curvature, mask: &Mask) -> Symmetric {
    curvature.normal_matrix(&model(), &Counted::all(mask), &Columns::Cells { cells: CELLS }, None).unwrap().0
}

/// Relative difference, in norm, of `H x` from `J' J x` by the exact operator, or from `J' F' F J x`.
fn deviation(h: &Symmetric, mask: &Mask, direction: Array2<f64>, filter: Option<&FilteredL2>) -> f64 {
    let options = CpuOptions { precision: crate::wave::Precision::F64, ..CpuOptions::default() };
    assert_eq!(options.precision.fidelity(), Fidelity::Exact);
    let exact = build(survey(), &options).unwrap();
    let models = [model()];
    let x: Vec<f64> = direction.iter().copied().collect();
    let mut data: Gather = exact.born(&models, &[Model { vp: direction, vmin: 0.0 }]).unwrap().remove(0);
    mask.apply(&mut data);
    if let Some(filter) = filter {
        data = filter.record(&filter.record(&data, mask), mask);
    }
    let back = exact.adjoint(&models, &[data]).unwrap().remove(0);
    relative(&h.times(&x), back.vp.as_slice().unwrap())
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    let (num, den) = a.iter().zip(b).fold((0.0, 0.0), |(n, d), (x, y)| (n + (x - y).powi(2), d + y * y));
    (num / den).sqrt()
}

#[test]
fn products_with_directions_are_those_of_the_exact_operator() {
    let unit = |z, x| {
        let mut d = Array2::zeros(SHAPE);
        d[[z, x]] = 1.0;
        d
    };
    let kinds = || [pattern(0.3), pattern(0.77), Array2::ones(SHAPE), unit(23, 19), unit(1, 3), unit(9, 11)];
    for mask in [all(), partial()] {
        let h = full(&curvature(2, 4.0), &mask);
        for (i, direction) in kinds().into_iter().enumerate() {
            let e = deviation(&h, &mask, direction, None);
            // the last cell is reached when hardly any row is left, and its curvature is least
            let tolerance = if i == 3 { 7e-2 } else { 1e-3 };
            assert!(e < tolerance, "direction {i}: {e:e}");
        }
    }
}

#[test]
fn low_passed_data_have_the_curvature_of_the_exact_operator() {
    // at 6 Hz the record is two periods long, of which both ends are more
    for (corner, tolerance) in [(6.0, 4e-2), (20.0, 2e-2)] {
        let filter = FilteredL2::new(corner, survey().dt).unwrap();
        for mask in [all(), partial()] {
            let cells = Columns::Cells { cells: CELLS };
            let counted = Counted { filter: Some(&filter), ..Counted::all(&mask) };
            let (h, _) = curvature(2, 4.0).normal_matrix(&model(), &counted, &cells, None).unwrap();
            let whole = full(&curvature(2, 4.0), &mask);
            for (i, direction) in [pattern(0.3), pattern(0.77), Array2::ones(SHAPE)].into_iter().enumerate() {
                let e = deviation(&h, &mask, direction.clone(), Some(&filter));
                assert!(e < tolerance, "{corner} Hz, direction {i}: {e:e}");
                let unfiltered = deviation(&whole, &mask, direction, Some(&filter));
                assert!(unfiltered > 10.0 * e, "{corner} Hz, direction {i}: the filter hardly matters: {unfiltered:e}");
            }
        }
    }
}

#[test]
fn sums_in_single_precision_lose_small_eigenvalues_alone() {
    let (c, mask, cells) = (curvature(2, 4.0), all(), Columns::Cells { cells: CELLS });
    let double = full(&c, &mask);
    let counted = Counted { precision: Precision::F32, ..Counted::all(&mask) };
    let (single, _) = c.normal_matrix(&model(), &counted, &cells, None).unwrap();
    let mut differ = false;
    for j in 0..CELLS {
        for i in j..CELLS {
            let (a, b) = (single.lower[(i, j)], double.lower[(i, j)]);
            let scale = (double.lower[(i, i)] * double.lower[(j, j)]).sqrt();
            assert!((a - b).abs() <= 1e-6 * scale, "({i}, {j}): {a:e} {b:e}");
            differ |= a != b;
        }
    }
    assert!(differ, "both were summed alike");
}

#[test]
fn receivers_taken_count_for_their_neighbours() {
    let (c, mask, cells) = (curvature(2, 4.0), all(), Columns::Cells { cells: CELLS });
    for (receiver_step, taken) in [(2, vec![0, 2, 4]), (3, vec![1, 4]), (99, vec![2])] {
        let counted = Counted { receiver_step, ..Counted::all(&mask) };
        let (h, _) = c.normal_matrix(&model(), &counted, &cells, None).unwrap();
        let mut those = all();
        (0..5).filter(|r| !taken.contains(r)).for_each(|r| those.live.column_mut(r).fill(false));
        let (alone, weight) = (full(&c, &those), 5.0 / taken.len() as f64);
        for j in 0..CELLS {
            for i in j..CELLS {
                let (a, b) = (h.lower[(i, j)], weight * alone.lower[(i, j)]);
                assert!((a - b).abs() <= 1e-12 * b.abs(), "step {receiver_step}, ({i}, {j}): {a:e} {b:e}");
            }
        }
    }
    let counted = Counted { receiver_step: 0, ..Counted::all(&mask) };
    let error = c.normal_matrix(&model(), &counted, &cells, None).err().unwrap().to_string();
    assert!(error.contains("every receiver (1)"), "{error}");
}

#[test]
fn masked_traces_and_samples_do_not_count() {
    let curvature = curvature(2, 4.0);
    let mut mask = all();
    mask.live.fill(false);
    assert!(full(&curvature, &mask).times(&[1.0; CELLS]).iter().all(|&y| y == 0.0));
    let trace = |h: &Symmetric| (0..CELLS).map(|i| h.lower[(i, i)]).sum::<f64>();
    let (some, every) = (trace(&full(&curvature, &partial())), trace(&full(&curvature, &all())));
    assert!(some > 0.0 && some < 0.8 * every, "{some} {every}");
}

#[test]
fn bits_do_not_depend_on_threads() {
    // more receivers than are summed together
    let receivers: Vec<Position> = (0..19).map(|x| Position { z: 1 + x % 3, x }).collect();
    let survey = Survey { receivers, ..survey() };
    let mask = Mask::all(survey.gather_shape());
    for precision in [Precision::F32, Precision::F64] {
        let of = |threads| {
            let curvature =
                Curvature::new(&survey, &CurvatureOptions { threads, ..CurvatureOptions::default() }).unwrap();
            let counted = Counted { precision, ..Counted::all(&mask) };
            curvature.normal_matrix(&model(), &counted, &Columns::Cells { cells: CELLS }, None).unwrap().0
        };
        assert!(same_bits(&of(1), &of(3)), "{precision:?}");
    }
}

fn same_bits(a: &Symmetric, b: &Symmetric) -> bool {
    let below = |j: usize| (j..a.len()).all(|i| a.lower[(i, j)].to_bits() == b.lower[(i, j)].to_bits());
    a.len() == b.len() && (0..a.len()).all(below)
}

#[test]
fn matrices_that_were_kept_leave_nothing_behind() {
    let extra = Gather::new(ndarray::Array3::from_shape_fn(survey().gather_shape(), |(s, t, r)| {
        (s as f64 + 0.03 * t as f64).sin() + 0.1 * r as f64
    }));
    let (curvature, mask) = (curvature(2, 12.0), all());
    for precision in [Precision::F32, Precision::F64] {
        for extra in [None, Some(&extra)] {
            let of = || {
                let counted = Counted { precision, ..Counted::all(&mask) };
                curvature.normal_matrix(&model(), &counted, &Columns::Cells { cells: CELLS }, extra).unwrap().0
            };
            let fresh = of();
            curvature.keep(Mat::from_fn(fresh.len(), fresh.len(), |_, _| f64::NAN));
            assert!(same_bits(&fresh, &of()), "{precision:?}");
        }
    }
}

/// Compares with `B' H B` of the matrix over all cells; `basis(cell, unknown)`.
fn assert_projected(columns: &Columns, basis: impl Fn(usize, usize) -> f64) {
    let curvature = curvature(2, 12.0);
    let h = full(&curvature, &partial());
    let (projected, _) = curvature.normal_matrix(&model(), &Counted::all(&partial()), columns, None).unwrap();
    assert_eq!(projected.len(), columns.len());
    let cells = |k: usize| (0..CELLS).map(|c| basis(c, k)).collect::<Vec<f64>>();
    for k in 0..columns.len() {
        let mut unit = vec![0.0; columns.len()];
        unit[k] = 1.0;
        let h_cells = h.times(&cells(k));
        let expected: Vec<f64> =
            (0..columns.len()).map(|i| cells(i).iter().zip(&h_cells).map(|(b, y)| b * y).sum()).collect();
        let e = relative(&projected.times(&unit), &expected);
        assert!(e < 1e-4, "unknown {k} of {}: {e:e}", columns.len());
    }
}

#[test]
fn groups_are_sums_of_cells() {
    for size in [1, 37] {
        let of: Vec<Option<u32>> = (0..CELLS).map(|c| (c % 11 != 3).then_some((c / size) as u32)).collect();
        let groups = CELLS.div_ceil(size);
        let columns = Columns::Groups { of: of.clone(), groups };
        if size == 1 {
            let curvature = curvature(2, 12.0);
            let (h, _) = curvature.normal_matrix(&model(), &Counted::all(&all()), &columns, None).unwrap();
            let cells = full(&curvature, &all());
            let held = |i: usize| of[i].is_none();
            let entry = |i: usize, j: usize| if held(i) || held(j) { 0.0 } else { cells.lower[(i, j)] };
            let largest = cells.lower[(23, 23)].abs();
            assert!((0..CELLS).all(|j| (j..CELLS).all(|i| (h.lower[(i, j)] - entry(i, j)).abs() < 1e-5 * largest)));
        } else {
            assert_projected(&columns, |c, k| f64::from(of[c] == Some(k as u32)));
        }
    }
}

#[test]
fn products_are_combinations_of_cells() {
    for (kz, kx) in [(3, 2), (12, 10)] {
        let down = Mat::from_fn(SHAPE.0, kz, |z, k| ((z as f32 + 0.5) * k as f32 * 0.13).cos());
        let across = Mat::from_fn(SHAPE.1, kx, |x, k| ((x as f32 + 0.5) * k as f32 * 0.157).cos());
        let pairs: Vec<(usize, usize)> = (0..kz * kx).map(|i| (i / kx, i % kx)).filter(|(a, b)| a + b != 1).collect();
        let scale: Vec<f32> = (0..pairs.len()).map(|i| 1.0 / (1.0 + i as f32)).collect();
        for weight in [None, Some((0..CELLS).map(|c| 1.0 + (c % 7) as f32).collect::<Vec<f32>>())] {
            let w = weight.clone().unwrap_or(vec![1.0; CELLS]);
            let basis = |c: usize, k: usize| {
                let (i, j) = pairs[k];
                f64::from(scale[k] * w[c] * down[(c / SHAPE.1, i)] * across[(c % SHAPE.1, j)])
            };
            let (down, across) = (down.clone(), across.clone());
            let columns = Columns::Products { down, across, pairs: pairs.clone(), scale: scale.clone(), weight };
            assert_projected(&columns, basis);
        }
    }
}

#[test]
fn what_does_not_fit_the_survey_is_refused() {
    let c = curvature(1, 12.0);
    let refused = |mask: &Mask, columns: Columns| {
        c.normal_matrix(&model(), &Counted::all(mask), &columns, None).err().unwrap().to_string()
    };
    assert!(refused(&Mask::all((3, 301, 5)), Columns::Cells { cells: CELLS }).contains("mask"));
    for columns in [
        Columns::Cells { cells: CELLS - 1 },
        Columns::Groups { of: vec![Some(0); CELLS + 1], groups: 1 },
        Columns::Groups { of: vec![Some(2); CELLS], groups: 2 },
    ] {
        assert!(refused(&all(), columns).contains("24 x 20"));
    }
    let options = CurvatureOptions { every: 0.0, ..CurvatureOptions::default() };
    assert!(Curvature::new(&survey(), &options).err().unwrap().to_string().contains("every"));
}

/// The row of `vmin` is that of the exact operator, `J' J e`, and belongs to one positive semidefinite matrix.
#[test]
fn one_more_column_is_taken_along() {
    let options = CpuOptions { precision: crate::wave::Precision::F64, ..CpuOptions::default() };
    let exact = build(survey(), &options).unwrap();
    let (m, mask) = (model(), partial());
    let mut sponge = Model::zeros(SHAPE);
    sponge.vmin = 1.0;
    let mut column = exact.born(std::slice::from_ref(&m), &[sponge]).unwrap().remove(0);
    let c = curvature(2, 10.0);
    let (h, _) = c.normal_matrix(&m, &Counted::all(&mask), &Columns::Cells { cells: CELLS }, Some(&column)).unwrap();
    assert_eq!(h.len(), CELLS + 1);
    mask.apply(&mut column);
    let row = exact.adjoint(std::slice::from_ref(&m), std::slice::from_ref(&column)).unwrap().remove(0).vp;
    let size = row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let off = row.iter().enumerate().map(|(j, x)| (h.lower[(CELLS, j)] - x).powi(2)).sum::<f64>().sqrt();
    assert!(off < 3e-2 * size, "{off:e} {size:e}");
    let square = column.dot(&column);
    assert!((h.lower[(CELLS, CELLS)] / square - 1.0).abs() < 1e-2);
    let smallest = h.lower.self_adjoint_eigenvalues(faer::Side::Lower).unwrap()[0];
    assert!(smallest > -1e-13 * size, "{smallest:e}");
    assert!(
        c.normal_matrix(
            &m,
            &Counted::all(&mask),
            &Columns::Cells { cells: CELLS },
            Some(&Gather::new(ndarray::Array3::zeros((1, 2, 3))))
        )
        .is_err()
    );
}

#[test]
fn a_stop_leaves_no_matrix() {
    let (c, mask, cells) = (curvature(1, 4.0), all(), Columns::Cells { cells: CELLS });
    let asked = std::cell::Cell::new(0);
    let after_one = || asked.replace(asked.get() + 1) == 1;
    assert!(c.normal_matrix_unless(&after_one, &model(), &Counted::all(&mask), &cells, None).unwrap().is_none());
    assert_eq!(asked.get(), 2, "five receivers on one thread are two turns");
}
