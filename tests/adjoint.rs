//! Dot-product and Taylor tests on OpenFWI's full grid: 310 x 310 cells, 1000 steps, 5 shots.

use fwi::Survey;
use fwi::verify::{DataVector, DotTest, dot_test, taylor_test};
use fwi::wave::{CpuOptions, Fidelity, Precision, Propagator, build};

fn cpu(precision: Precision, fidelity: Fidelity) -> Box<dyn Propagator> {
    build(Survey::openfwi(), &CpuOptions { precision, fidelity: Some(fidelity), ..CpuOptions::default() }).unwrap()
}

fn over_seeds(p: &dyn Propagator, data: DataVector, seeds: u64) -> Vec<DotTest> {
    (0..seeds).map(|seed| dot_test(p, data, seed).unwrap()).collect()
}

fn worst(tests: &[DotTest], f: impl Fn(&DotTest) -> f64) -> f64 {
    tests.iter().map(f).fold(0.0, f64::max)
}

#[test]
fn the_f64_adjoint_is_exact_to_1e_12() {
    let p = cpu(Precision::F64, Fidelity::Exact);
    let white = over_seeds(&*p, DataVector::White, 20);
    let e = worst(&white, DotTest::relative);
    assert!(e <= 1e-12, "white data: {e:e}");
    let e = worst(&over_seeds(&*p, DataVector::Residual, 2), DotTest::relative);
    assert!(e <= 1e-12, "residuals: {e:e}");
}

#[test]
fn the_fast_f32_adjoint_is_exact_to_1e_5() {
    let p = cpu(Precision::F32, Fidelity::Fast);
    let tests = over_seeds(&*p, DataVector::Residual, 20);
    let (e, n) = (worst(&tests, DotTest::relative), worst(&tests, DotTest::relative_to_norms));
    assert!(e <= 1e-5, "{e:e}");
    assert!(n <= 1e-6, "relative to the norms: {n:e}");
    // data that no modelled residual could be: the gradient is summed over every step then
    let e = worst(&over_seeds(&*p, DataVector::White, 20), DotTest::relative_to_norms);
    assert!(e <= 1e-6, "white data, relative to the norms: {e:e}");
}

#[test]
fn the_f64_gradient_has_taylor_slope_2() {
    let p = cpu(Precision::F64, Fidelity::Exact);
    for seed in 0..3 {
        let t = taylor_test(&*p, seed).unwrap();
        assert_eq!(t.remainders.len(), 8);
        let (low, high) = t.slopes;
        assert!(low >= 1.95 && high <= 2.05, "seed {seed}: slopes {low}..{high}, remainders {:?}", t.remainders);
    }
}
