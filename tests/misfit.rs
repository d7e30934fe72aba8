//! Every misfit: the derivative is that of the value, and what is masked counts for nothing.

use fwi::misfit::{self, FilteredL2, Misfit};
use fwi::{Mask, Survey};
use ndarray::{Array2, s};
use rand::{Rng, SeedableRng, rngs::StdRng};

const NAMES: [&str; 7] = ["l2", "l1:0.3", "l1", "huber:0.5", "student:0.4", "student:0.4:1.5", "lowpass:12"];
const DT: f64 = 4e-3;

struct Case {
    synthetic: Array2<f64>,
    observed: Array2<f64>,
    direction: Array2<f64>,
    mask: Mask,
}

/// Two shots; of shot 1 receiver 2 is dead and holds NaN, and the last sample does not count.
fn case(seed: u64) -> Case {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut random = || Array2::from_shape_fn((60, 11), |_| rng.random_range(-1.0..1.0));
    let (mut synthetic, mut observed, direction) = (random(), random(), random());
    let mut mask = Mask::all((2, 60, 11));
    mask.nt = 59;
    mask.live[[1, 2]] = false;
    synthetic[[7, 2]] = f64::NAN;
    observed.column_mut(2).fill(f64::INFINITY);
    observed[[59, 4]] = 1e9;
    Case { synthetic, observed, direction, mask }
}

fn value(m: &dyn Misfit, c: &Case, step: f64) -> (f64, Array2<f64>) {
    let mut adjoint = Array2::from_elem(c.synthetic.dim(), 7.0);
    let moved = &c.synthetic + &(&c.direction * step);
    let v = m.evaluate(1, moved.view(), c.observed.view(), &c.mask, adjoint.view_mut());
    (v, adjoint)
}

#[test]
fn derivative_agrees_with_central_differences() {
    for name in NAMES {
        let m = misfit::parse(name, DT).unwrap();
        for seed in 0..5 {
            let c = case(seed);
            let slope = (&value(&*m, &c, 0.0).1 * &c.direction).sum();
            let h = 1e-6;
            let difference = (value(&*m, &c, h).0 - value(&*m, &c, -h).0) / (2.0 * h);
            assert!((slope - difference).abs() <= 1e-6 * slope.abs().max(1.0), "{name}: {slope} against {difference}");
        }
    }
}

#[test]
fn taylor_remainder_falls_with_slope_two() {
    for name in NAMES.into_iter().filter(|n| *n != "l1") {
        let m = misfit::parse(name, DT).unwrap();
        let c = case(3);
        let (start, adjoint) = value(&*m, &c, 0.0);
        let slope = (&adjoint * &c.direction).sum();
        let remainder = |h: f64| (value(&*m, &c, h).0 - start - h * slope).abs();
        let steps: Vec<f64> = (0..8).map(|k| 2e-3 / f64::from(1 << k)).collect();
        for pair in steps.windows(2) {
            let order = (remainder(pair[0]) / remainder(pair[1])).log2();
            assert!((order - 2.0).abs() < 0.05, "{name}: order {order} at step {}", pair[0]);
        }
    }
}

#[test]
fn masked_samples_contribute_exactly_nothing() {
    for name in NAMES {
        let m = misfit::parse(name, DT).unwrap();
        let c = case(1);
        let (v, adjoint) = value(&*m, &c, 0.0);
        assert!(v.is_finite() && v > 0.0 && adjoint.iter().all(|a| a.is_finite()), "{name}");
        assert!(adjoint.column(2).iter().chain(adjoint.row(59)).all(|&a| a == 0.0), "{name}");
        let mut other = case(1);
        other.synthetic.column_mut(2).fill(5.0);
        other.synthetic.row_mut(59).fill(f64::NAN);
        assert_eq!(value(&*m, &other, 0.0), (v, adjoint), "{name}");
        let shot_0 =
            m.evaluate(0, other.observed.view(), c.observed.view(), &c.mask, Array2::zeros((60, 11)).view_mut());
        assert!(shot_0.is_nan(), "{name}: receiver 2 of shot 0 counts, and inf - inf is not a number");
    }
}

#[test]
fn known_values() {
    let at = |name: &str, e: f64| {
        let mut adjoint = Array2::zeros((1, 1));
        let (s, o) = (Array2::from_elem((1, 1), e), Array2::zeros((1, 1)));
        let v =
            misfit::parse(name, DT).unwrap().evaluate(0, s.view(), o.view(), &Mask::all((1, 1, 1)), adjoint.view_mut());
        (v, adjoint[[0, 0]])
    };
    assert_eq!(at("l2", -3.0), (4.5, -3.0));
    assert_eq!(at("huber:1", 0.5), (0.125, 0.5));
    assert_eq!(at("huber:1", -3.0), (2.5, -1.0));
    assert_eq!(at("l1:3", 4.0), (2.0, 0.8));
    assert_eq!(at("l1", 0.0), (0.0, 0.0));
    let (v, d) = at("student:1:2", 2.0);
    assert!((v - 3f64.ln()).abs() < 1e-15 && (d - 2.0 / 3.0).abs() < 1e-15);
}

#[test]
fn filter_is_its_own_transpose() {
    let filter = FilteredL2::new(9.0, DT).unwrap();
    for seed in 0..5 {
        let c = case(seed);
        let (x, y) = (c.direction.clone(), case(seed + 100).direction);
        let (mut fx, mut fy) = (x.clone(), y.clone());
        filter.apply(fx.view_mut());
        filter.apply(fy.view_mut());
        let (a, b) = ((&fx * &y).sum(), (&x * &fy).sum());
        assert!((a - b).abs() < 1e-13 * fx.len() as f64, "{a} against {b}");
    }
}

#[test]
fn filter_has_zero_phase_and_its_stated_amplitude() {
    let (dt, corner, n) = (1e-3, 6.0, 4000);
    let filter = FilteredL2::new(corner, dt).unwrap();
    for (f, expected) in [(1.0, 1.0), (6.0, 0.5), (12.0, 1.0 / 257.0), (30.0, 2.6e-6)] {
        let wave = Array2::from_shape_fn((n, 1), |(t, _)| (2.0 * std::f64::consts::PI * f * t as f64 * dt).cos());
        let mut out = wave.clone();
        filter.apply(out.view_mut());
        let middle = s![1500..2500, ..];
        let (x, y) = (wave.slice(middle), out.slice(middle));
        let gain = (&x * &y).sum() / (&x * &x).sum();
        assert!((gain - expected).abs() < 0.02 * expected + 1e-6, "{f} Hz: {gain} against {expected}");
        let rest = (&y - &(&x * gain)).mapv(|e| e * e).sum() / (&x * &x).sum();
        assert!(rest < 1e-9, "{f} Hz: a phase is left, {rest}");
    }
}

#[test]
fn filtered_misfit_of_a_gather_takes_milliseconds() {
    let survey = Survey::openfwi();
    let (ns, nt, nr) = survey.gather_shape();
    let m = FilteredL2::new(5.0, survey.dt).unwrap();
    let synthetic = Array2::from_shape_fn((nt, nr), |(t, r)| ((t * (r + 3)) as f64 * 0.01).sin());
    let (observed, mask) = (Array2::zeros((nt, nr)), Mask::all((ns, nt, nr)));
    let mut adjoint = Array2::zeros((nt, nr));
    let best = (0..5)
        .map(|_| {
            let start = std::time::Instant::now();
            for shot in 0..ns {
                assert!(m.evaluate(shot, synthetic.view(), observed.view(), &mask, adjoint.view_mut()) > 0.0);
            }
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    println!("filtered misfit of {ns} x {nt} x {nr} samples: {:.2} ms", best * 1e3);
    // loose, so that an unoptimised or busy machine passes; a slower algorithm does not
    assert!(best < 0.5, "{best} s");
}

#[test]
fn names_are_read_back_and_nonsense_is_refused() {
    for name in NAMES {
        let m = misfit::parse(name, DT).unwrap();
        assert_eq!(misfit::parse(&m.name(), DT).unwrap().name(), m.name());
    }
    for (bad, part) in [
        ("", "there are l2"),
        ("l3", "there are l2"),
        ("huber", "huber:delta"),
        ("huber:x", "\"x\" is not a number above zero"),
        ("huber:-1", "above zero"),
        ("student:nan", "above zero"),
        ("l2:1", "there are l2"),
        ("lowpass:200", "below 125 Hz"),
    ] {
        let message = misfit::parse(bad, DT).err().unwrap().to_string();
        assert!(message.contains(part), "{bad}: {message}");
    }
}
