//! One normal matrix over all 4,900 cells of the OpenFWI survey and its Cholesky factorisation, against the machine's rate
//! of large matrix products in the same run; and how well `H x` agrees with the exact operator's `J' J x`.
//!
//! `cargo bench --bench curvature -- [rounds] [threads]`, 2 rounds on all cores by default.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par, Side};
use fwi::curvature::{Columns, Counted, Curvature, CurvatureOptions, Parts, Symmetric};
use fwi::wave::{CpuOptions, Precision, build};
use fwi::{Family, Mask, Model, Result, Survey, synth};
use ndarray::Array2;
use std::time::Instant;

/// Order of the products that the machine's rate is taken from.
const LARGE: usize = 2048;

fn main() -> Result<()> {
    // cargo adds --bench
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let rounds = numbers.first().copied().unwrap_or(2).max(1);
    let threads = numbers.get(1).copied().unwrap_or(0);
    let par = Par::rayon(threads);
    let survey = Survey::openfwi();
    let model = Model::from_map(synth::draw(Family::CurveFaultB, 3, 1).mapv(f64::from));
    let mask = Mask::all(survey.gather_shape());
    let (nz, nx) = survey.map_shape();
    let curvature = Curvature::new(&survey, &CurvatureOptions { threads, ..CurvatureOptions::default() })?;
    for round in 0..rounds {
        let (double, single) = (rate::<f64>(par), rate::<f32>(par));
        println!("round {round}: products of order {LARGE}: {double:.1} GF/s in f64, {single:.1} GF/s in f32");
        let of = |precision| {
            let counted = Counted { precision, ..Counted::all(&mask) };
            curvature.normal_matrix(&model, &counted, &Columns::Cells { cells: nz * nx }, None)
        };
        report("f32", &of(Precision::F32)?.1, single);
        let (h, p) = of(Precision::F64)?;
        report("f64", &p, double);
        cholesky(&h, double, par);
        if round + 1 == rounds {
            accuracy(&survey, &model, &h)?;
        }
    }
    Ok(())
}

fn report(precision: &str, p: &Parts, rate: f64) {
    let gram = p.gram_flops / p.gram / 1e9;
    println!(
        "  normal matrix summed in {precision} {:.2} s; over threads: simulations {:.2} s, products {:.2} s",
        p.wall, p.simulations, p.products
    );
    println!("  sums {:.2} s: {gram:.1} GF/s, {:.0}% of the products' rate", p.gram, 100.0 * gram / rate);
}

/// Floating-point operations a second, in units of 1e9, of the best of three products.
fn rate<T: faer::traits::ComplexField + From<f32>>(par: Par) -> f64 {
    let a = Mat::<T>::from_fn(LARGE, LARGE, |i, j| T::from(((i * 7 + j * 13) % 101) as f32));
    let mut c = Mat::<T>::zeros(LARGE, LARGE);
    let once = |c: &mut Mat<T>| {
        let since = Instant::now();
        matmul(c.as_mut(), Accum::Replace, a.as_ref(), a.as_ref(), T::from(1.0), par);
        since.elapsed().as_secs_f64()
    };
    let best = (0..3).map(|_| once(&mut c)).fold(f64::INFINITY, f64::min);
    2.0 * (LARGE as f64).powi(3) / best / 1e9
}

fn cholesky(h: &Symmetric, double: f64, par: Par) {
    let n = h.len();
    let mean = (0..n).map(|i| h.lower[(i, i)]).sum::<f64>() / n as f64;
    let mut damped = h.lower.clone();
    (0..n).for_each(|i| damped[(i, i)] += 1e-3 * mean);
    faer::set_global_parallelism(par);
    let since = Instant::now();
    let factorised = damped.llt(Side::Lower).is_ok();
    let seconds = since.elapsed().as_secs_f64();
    let gflops = (n as f64).powi(3) / 3.0 / seconds / 1e9;
    println!(
        "  Cholesky of order {n} {}: {seconds:.2} s, {gflops:.1} GF/s, {:.0}% of the products' rate",
        if factorised { "done" } else { "failed" },
        100.0 * gflops / double
    );
}

/// Prints the relative difference of `H x` from `J' J x`, in norm.
fn accuracy(survey: &Survey, model: &Model, h: &Symmetric) -> Result<()> {
    let exact = build(survey.clone(), &CpuOptions::default())?;
    let shape = survey.map_shape();
    let wave =
        |a: f64, b: f64| Array2::from_shape_fn(shape, |(z, x)| (a * z as f64).sin() * (b * x as f64 + 1.0).cos());
    let unit = |z, x| {
        let mut d = Array2::zeros(shape);
        d[[z, x]] = 1.0;
        d
    };
    let directions = [
        ("smooth", wave(0.1, 0.07)),
        ("rough", wave(1.3, 0.9)),
        ("rough across", wave(0.4, 2.0)),
        ("last cell", unit(69, 69)),
        ("source cell", unit(1, 17)),
    ];
    for (name, direction) in directions {
        let x: Vec<f64> = direction.iter().copied().collect();
        let models = std::slice::from_ref(model);
        let data = exact.born(models, &[Model { vp: direction, vmin: 0.0 }])?;
        let back = exact.adjoint(models, &data)?.remove(0);
        let (n, d) =
            h.times(&x).iter().zip(&back.vp).fold((0.0, 0.0), |(n, d), (a, b)| (n + (a - b).powi(2), d + b * b));
        println!("  H x against J' J x, {name}: {:.1e}", f64::sqrt(n / d));
    }
    Ok(())
}
