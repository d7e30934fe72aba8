//! What the fast mode leaves out, measured, and memory limits.

mod common;

use common::max_relative;
use fwi::misfit::{L1, L2, Misfit};
use fwi::wave::{CpuOptions, Fidelity, Precision, Propagator, build};
use fwi::{Model, Observed, Survey};
use ndarray::Array2;
use rand::{Rng, SeedableRng, rngs::StdRng};

fn cpu(precision: Precision, fidelity: Option<Fidelity>, max_bytes: u64) -> Box<dyn Propagator> {
    let options = CpuOptions { precision, fidelity, max_bytes, ..CpuOptions::default() };
    build(Survey::openfwi(), &options).unwrap()
}

/// Maps that are hard on the windows in different ways: slow, fast, both side by side, rough, faulted.
fn maps() -> Vec<(&'static str, Array2<f64>)> {
    let map = |f: &dyn Fn(usize, usize) -> f64| Array2::from_shape_fn((70, 70), |(z, x)| f(z, x));
    let mut rng = StdRng::seed_from_u64(1);
    let rough = Array2::from_shape_fn((70, 70), |_| rng.random_range(1500.0..4500.0));
    vec![
        ("slow", map(&|_, _| 1500.0)),
        ("fast", map(&|_, _| 4500.0)),
        ("layers", map(&|z, _| 1500.0 + 300.0 * (z / 8) as f64)),
        ("slower with depth", map(&|z, _| 4500.0 - 40.0 * z as f64)),
        ("fault", map(&|z, x| 1500.0 + 500.0 * ((z + if x > 30 { 9 } else { 0 }) / 14) as f64)),
        ("checkerboard", map(&|z, x| if (z / 20 + x / 20) % 2 == 0 { 1500.0 } else { 4500.0 })),
        ("rough", rough),
    ]
}

fn norm(a: &ndarray::Array3<f64>) -> f64 {
    a.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn windows_change_the_data_by_less_than_1e_6() {
    let fast = cpu(Precision::F64, Some(Fidelity::Fast), 2 << 30);
    let exact = cpu(Precision::F64, Some(Fidelity::Exact), 2 << 30);
    for (name, map) in maps() {
        let model = [Model::from_map(map)];
        let (f, e) = (fast.forward(&model).unwrap().remove(0), exact.forward(&model).unwrap().remove(0));
        let deviation = norm(&(&f.data - &e.data)) / norm(&e.data);
        assert!(deviation < 1e-6, "{name}: {deviation:e}");
        assert!(deviation > 0.0, "{name}: the fast mode left nothing out");
    }
}

/// The largest deviation of the gradient over its largest value, `vmin`'s part included.
fn gradient_deviation(a: &Model, b: &Model) -> f64 {
    max_relative(&a.vp, &b.vp).max((a.vmin - b.vmin).abs() / b.vp.iter().fold(0.0, |m: f64, x| m.max(x.abs())))
}

#[test]
fn the_fast_gradient_deviates_by_less_than_1e_4() {
    let fast = cpu(Precision::F64, Some(Fidelity::Fast), 2 << 30);
    let exact = cpu(Precision::F64, Some(Fidelity::Exact), 2 << 30);
    let (l1, l2) = (L1 { eps: 1e-3 }, L2);
    for (name, map) in maps().into_iter().skip(4) {
        let truth = Model::from_map(map);
        let mut rng = StdRng::seed_from_u64(2);
        let off = Array2::from_shape_fn((70, 70), |_| rng.random_range(-30.0..30.0));
        let model = [Model::from_map((&truth.vp + &off).mapv(|v| v.clamp(1500.0, 4500.0)))];
        let observed = [Observed::new(exact.forward(&[truth]).unwrap().remove(0))];
        for misfit in [&l2 as &dyn Misfit, &l1] {
            let f = fast.misfit_and_gradient(&model, &observed, misfit).unwrap().remove(0);
            let e = exact.misfit_and_gradient(&model, &observed, misfit).unwrap().remove(0);
            let deviation = gradient_deviation(&f.gradient, &e.gradient);
            assert!(deviation < 1e-4, "{name}, {}: {deviation:e}", misfit.name());
        }
    }
}

#[test]
fn a_memory_limit_does_not_change_the_gradient() {
    let (_, map) = maps().remove(4);
    let model = [Model::from_map(map.clone())];
    let other = Model::from_map(map.mapv(|v| (v * 1.01).min(4500.0)));
    for precision in [Precision::F32, Precision::F64] {
        let roomy = cpu(precision, None, 4 << 30);
        let tight = cpu(precision, None, if precision == Precision::F32 { 60 << 20 } else { 150 << 20 });
        assert!(tight.gradient_bytes(true) <= 150 << 20 && roomy.gradient_bytes(true) > 2 * tight.gradient_bytes(true));
        // other misfits than least squares need the history of every step
        let least = if precision == Precision::F32 { 2 } else { 1 };
        assert!(roomy.gradient_bytes(false) >= least * roomy.gradient_bytes(true));
        let observed = [Observed::new(roomy.forward(std::slice::from_ref(&other)).unwrap().remove(0))];
        let a = roomy.misfit_and_gradient(&model, &observed, &L2).unwrap().remove(0);
        let b = tight.misfit_and_gradient(&model, &observed, &L2).unwrap().remove(0);
        assert_eq!(a.gradient, b.gradient);
    }
}
