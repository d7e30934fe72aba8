use super::*;
use crate::Result;
use crate::reg::gaussian_process::Covariance;
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

const SHAPE: (usize, usize) = (7, 6);

fn random(seed: u64, size: f64) -> Model {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let mut draw = || rng.random_range(-size..size);
    Model { vp: Array2::from_shape_simple_fn(SHAPE, &mut draw), vmin: draw() }
}

/// A map of steps of all sizes with one cell well below the others.
fn model(seed: u64) -> Model {
    let mut m = random(seed, 400.0);
    m.vp.mapv_inplace(|v| if v < 0.0 { 2500.0 + 0.01 * v } else { 3000.0 + v });
    m.vp[[3, 2]] = 1500.0;
    m.vmin += 1600.0;
    m
}

fn covariance() -> Covariance {
    Covariance { sigma: 300.0, length: 1.7, white: 20.0, mean_sigma: 500.0, slope_sigma: 8.0 }
}

fn factors() -> Array2<f64> {
    random(77, 0.5).vp.mapv(|f| 1.0 + f)
}

fn gaussian_process(with_factors: bool, covariance: Covariance) -> GaussianProcess {
    let factors = with_factors.then(factors);
    GaussianProcess::new(covariance, model(5).vp, factors.as_ref()).unwrap()
}

/// Every regulariser; whether it is quadratic, and how far (m/s) its curvature is good for.
fn all() -> Vec<(Box<dyn Regulariser>, bool, f64)> {
    let tv = |across| TotalVariation { scale: 90.0, epsilon: 5.0, down: 1.0, across, dips: vec![] };
    let cells = vec![(6, 1800.0), (11, 2500.0)];
    vec![
        (Box::new(tv(0.7)), false, 2000.0),
        (Box::new(tv(0.0)), false, 2000.0),
        (Box::new(TotalVariation { dips: vec![1, -2, 0, 3, -1], ..tv(0.7) }), false, 2000.0),
        (Box::new(LogPenalty { strength: 0.8, epsilon: 6.0 }), false, 2000.0),
        (Box::new(Tikhonov { scale: 40.0, order: Order::First }), true, 2000.0),
        (Box::new(Tikhonov { scale: 40.0, order: Order::Second }), true, 2000.0),
        (Box::new(gaussian_process(false, covariance())), true, 2000.0),
        (Box::new(gaussian_process(true, covariance())), true, 2000.0),
        (Box::new(Snap { spacing: 10.0, scale: 1.5 }), false, 2000.0),
        (Box::new(Hold::new(SHAPE, cells, 12.0).unwrap()), true, 2000.0),
        // the slowest cell stays so
        (Box::new(TieVmin { sigma: 30.0 }), true, 300.0),
    ]
}

/// The curvature, its upper triangle mirrored from the lower.
fn curvature(r: &dyn Regulariser, m: &Model) -> Mat<f64> {
    let mut a = Mat::<f64>::zeros(m.dim(), m.dim());
    r.curvature(m, &mut |i, j, v| {
        assert!(i >= j, "{}: {i}, {j} lies above the diagonal", r.describe());
        a[(i, j)] += v;
    });
    Mat::from_fn(m.dim(), m.dim(), |i, j| a[(i.max(j), i.min(j))])
}

fn quadratic(a: &Mat<f64>, d: &Model) -> f64 {
    let d = faer::Col::from_iter(d.to_vec());
    d.transpose() * a * &d
}

#[test]
fn gradients_are_central_differences() {
    for (r, _, _) in all() {
        let m = model(1);
        let g = r.gradient(&m).to_vec();
        let largest = g.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        assert!(largest > 0.0, "{}", r.describe());
        for i in 0..m.dim() {
            let moved = |h: f64| {
                let mut x = m.to_vec();
                x[i] += h;
                r.value(&Model::from_slice(SHAPE, &x).unwrap())
            };
            let (h, name) = (1e-2, r.describe());
            // fourth order, for the penalties that turn within a few m/s
            let slope = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
            assert!((slope - g[i]).abs() < 1e-6 * largest, "{name}: {slope} against {} at {i}", g[i]);
        }
    }
}

#[test]
fn what_the_gradient_leaves_is_of_second_order() {
    for (r, _, _) in all() {
        let (m, d) = (model(2), random(3, 1.0));
        let slope = r.gradient(&m).dot(&d);
        let left = |t: f64| (r.value(&m.plus(t, &d)) - r.value(&m) - t * slope).abs();
        let order = (left(0.1) / left(0.05)).log2();
        assert!((order - 2.0).abs() < 0.1, "{}: order {order}", r.describe());
    }
}

#[test]
fn curvature_is_above_the_value_everywhere() {
    for (r, is_quadratic, far) in all() {
        for seed in 0..30 {
            let m = model(100 + seed);
            let d = random(200 + seed, [0.5, 20.0, far][seed as usize % 3]);
            let there = r.value(&m.plus(1.0, &d));
            let bend = 0.5 * quadratic(&curvature(&*r, &m), &d);
            let bound = r.value(&m) + r.gradient(&m).dot(&d) + bend;
            let name = r.describe();
            assert!(bend >= 0.0, "{name}: not positive semidefinite");
            assert!(there <= bound + 1e-9 * (there.abs() + bound.abs()), "{name}: {there} above {bound}");
            if is_quadratic {
                assert!((there - bound).abs() <= 1e-9 * there.abs().max(bend), "{name}: {there} is not {bound}");
            }
        }
    }
}

#[test]
fn products_are_those_of_the_curvature() {
    for (r, _, _) in all() {
        let (m, x) = (model(4), random(5, 1.0).to_vec());
        let expected = &curvature(&*r, &m) * faer::Col::from_iter(x.iter().copied());
        let largest = expected.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        let found = r.curvature_times(&m, &x);
        let off = found.iter().zip(expected.iter()).fold(0.0f64, |a, (f, e)| a.max((f - e).abs()));
        assert!(off < 1e-9 * largest, "{}: {off:e} of {largest:e}", r.describe());
    }
}

/// The covariance cell by cell, as the module's head states it.
fn dense(c: &Covariance, factors: Option<&Array2<f64>>) -> Mat<f64> {
    let (nz, nx) = SHAPE;
    let at = |i: usize| ((i / nx) as f64, (i % nx) as f64);
    let factor = |i: usize| factors.map_or(1.0, |f| f[[i / nx, i % nx]]);
    let kernel = |d: f64| (-d * d / (2.0 * c.length * c.length)).exp();
    Mat::from_fn(nz * nx, nz * nx, |i, j| {
        let ((z, x), (y, w)) = (at(i), at(j));
        let white = if i == j { c.white.powi(2) } else { 0.0 };
        let local = factor(i) * factor(j) * (c.sigma.powi(2) * kernel(z - y) * kernel(x - w) + white);
        local + c.mean_sigma.powi(2) + c.slope_sigma.powi(2) * (z - 3.0) * (y - 3.0)
    })
}

#[test]
fn gaussian_process_is_that_of_the_dense_covariance() {
    let plain = Covariance { mean_sigma: 0.0, slope_sigma: 0.0, ..covariance() };
    let slope = Covariance { mean_sigma: 0.0, ..covariance() };
    for (with_factors, c) in [(false, plain.clone()), (true, plain), (false, slope), (true, covariance())] {
        let gp = gaussian_process(with_factors, c.clone());
        let n = SHAPE.0 * SHAPE.1;
        let c = dense(&c, with_factors.then(factors).as_ref());
        let factor = c.llt(Side::Lower).unwrap();

        let m = model(6);
        let d = Mat::from_fn(n, 1, |i, _| m.to_vec()[i] - model(5).to_vec()[i]);
        let expected = factor.solve(&d);
        let value = 0.5 * (d.transpose() * &expected)[(0, 0)];
        assert!((gp.value(&m) / value - 1.0).abs() < 1e-9, "{} against {value}", gp.value(&m));
        let largest = (0..n).fold(0.0f64, |a, i| a.max(expected[(i, 0)].abs()));
        let g = gp.gradient(&m).to_vec();
        assert!((0..n).all(|i| (g[i] - expected[(i, 0)]).abs() < 1e-9 * largest));
        assert_eq!(g[n], 0.0);

        let precision = curvature(&gp, &m);
        let inverse = factor.solve(&Mat::<f64>::identity(n, n));
        let largest = (0..n).fold(0.0f64, |a, i| a.max(inverse[(i, i)]));
        for i in 0..n {
            for j in 0..n {
                assert!((precision[(i, j)] - inverse[(i, j)]).abs() < 1e-9 * largest, "{i}, {j}");
            }
        }
        assert!((0..=n).all(|i| precision[(n, i)] == 0.0));
    }
}

#[test]
fn directions_span_the_covariance() {
    for with_factors in [false, true] {
        let c = Covariance { mean_sigma: 0.0, slope_sigma: 0.0, ..covariance() };
        let all = gaussian_process(with_factors, c.clone()).directions(0.0);
        let n = SHAPE.0 * SHAPE.1;
        assert_eq!(all.len(), n);
        let one = |k: usize| (0..n).map(|i| if i == k { 1.0 } else { 0.0 }).collect::<Vec<f64>>();
        let fields: Vec<Array2<f64>> = (0..n).map(|k| all.apply(&one(k))).collect();
        let root = Mat::from_fn(n, n, |i, k| fields[k][[i / SHAPE.1, i % SHAPE.1]]);
        let (gram, expected) = (&root * root.transpose(), dense(&c, with_factors.then(factors).as_ref()));
        for i in 0..n {
            for j in 0..n {
                assert!((gram[(i, j)] - expected[(i, j)]).abs() < 1e-9 * expected[(i, i)], "{i}, {j}");
            }
        }
    }
}

#[test]
fn directions_are_largest_first_and_have_their_transpose() {
    let few = gaussian_process(true, covariance()).directions(1e-3);
    let all = gaussian_process(true, covariance()).directions(0.0);
    assert!(few.len() > 3 && few.len() < all.len(), "{}", few.len());
    let field = random(8, 100.0).vp;
    let back = few.transpose(&field);
    assert_eq!(back, all.transpose(&field)[..few.len()]);

    let coefficients: Vec<f64> = (0..few.len()).map(|i| (1.0 + i as f64).sin()).collect();
    let forward = (&few.apply(&coefficients) * &field).sum();
    let backward: f64 = back.iter().zip(&coefficients).map(|(a, b)| a * b).sum();
    assert!((forward / backward - 1.0).abs() < 1e-12, "{forward} against {backward}");

    // the normal matrix's columns are the same directions
    let (mut row, mut projected) = (field.iter().map(|&f| f as f32).collect::<Vec<_>>(), Vec::new());
    few.columns().project(&mut row, &mut projected);
    let largest = back.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    assert_eq!(projected.len(), few.len());
    assert!(projected.iter().zip(&back).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-5 * largest));
}

fn parse(text: &str) -> std::result::Result<RegulariserSpec, String> {
    toml::from_str(text).map_err(|e| e.to_string())
}

#[test]
fn specs_survive_toml() {
    let texts = [
        "kind = \"tv\"\nscale = 90\nepsilon = 5.0\nacross = 0.0",
        "kind = \"tv\"\nscale = 90\nepsilon = 5.0\nalong = true",
        "kind = \"log\"\nstrength = 0.8\nepsilon = 6.0",
        "kind = \"tikhonov\"\nscale = 40.0\norder = 2",
        "kind = \"snap\"\nscale = 0.2",
        "kind = \"gaussian-process\"\nmean = \"start\"\nsigma = 300\nlength = 6\nwhite = 10\nmean_sigma = 400",
        "kind = \"gaussian-process\"\nmean = 3000\nconfidence = true\nsigma = 1.0\nlength = 6.0\nwhite = 0.1",
    ];
    for text in texts {
        let spec = parse(text).unwrap();
        assert_eq!(parse(&toml::to_string(&spec).unwrap()).unwrap(), spec);
        let (mean, confidence) = (model(5).vp, factors());
        let built = spec.build(SHAPE, Some(&mean), Some(&confidence)).unwrap();
        assert!(built.value(&model(6)) > 0.0);
        assert!(!built.describe().contains('\n') && built.describe().contains("m/s"), "{}", built.describe());
    }
    let tv = TotalVariation { scale: 90.0, epsilon: 5.0, down: 1.0, across: 0.0, dips: vec![] };
    let built = parse(texts[0]).unwrap().build(SHAPE, None, None).unwrap();
    assert_eq!(built.value(&model(6)), tv.value(&model(6)));

    // the layers of a map that bends lie along themselves
    let bent = Array2::from_shape_fn(SHAPE, |(z, x)| if z < 2 + x % 3 { 2000.0 } else { 3000.0 });
    let value = |text: &str| {
        parse(text).unwrap().build(SHAPE, Some(&bent), None).unwrap().value(&Model::from_map(bent.clone()))
    };
    let (along, level) = (value(texts[1]), value("kind = \"tv\"\nscale = 90\nepsilon = 5.0"));
    assert!(along < 0.8 * level, "{along} {level}");
}

#[test]
fn bad_specs_are_refused() {
    let syntax = [
        ("kind = \"tv\"\nscale = 90.0\nepsilon = 5.0\nwidth = 1.0", "unknown field `width`"),
        ("kind = \"tvl\"\nscale = 90.0", "unknown variant `tvl`"),
        ("kind = \"tv\"\nscale = 90.0", "missing field `epsilon`"),
        ("kind = \"tikhonov\"\nscale = 40.0\norder = 3", "order must be 1 or 2"),
        (
            "kind = \"gaussian-process\"\nmean = \"end\"\nsigma = 1.0\nlength = 6.0\nwhite = 0.1",
            "mean must be \"start\"",
        ),
    ];
    for (text, expected) in syntax {
        let e = parse(text).unwrap_err();
        assert!(e.contains(expected), "{e}");
    }
    let gp = "kind = \"gaussian-process\"\nmean = \"start\"\n";
    let numbers = [
        ("kind = \"tv\"\nscale = 0.0\nepsilon = 5.0".to_string(), "scale must lie between"),
        ("kind = \"tv\"\nscale = 9.0\nepsilon = nan".to_string(), "epsilon must lie between"),
        ("kind = \"tv\"\nscale = 9.0\nepsilon = 1.0\ndown = 0.0\nacross = 0.0".to_string(), "not both 0"),
        ("kind = \"tv\"\nscale = 9.0\nepsilon = 1.0\nalong = true".to_string(), "along = true needs a map of 7 x 6"),
        ("kind = \"log\"\nstrength = -1.0\nepsilon = 5.0".to_string(), "strength must lie between"),
        ("kind = \"tikhonov\"\nscale = inf\norder = 1".to_string(), "scale must lie between"),
        ("kind = \"snap\"\nspacing = 0.0\nscale = 1.0".to_string(), "spacing must lie between"),
        (format!("{gp}sigma = 300.0\nlength = 6.0\nwhite = 0.0"), "white must lie between"),
        (format!("{gp}sigma = 300.0\nlength = 6.0\nwhite = 1.0\nslope_sigma = -1.0"), "slope_sigma must lie between"),
        (
            format!("{gp}sigma = 300.0\nlength = 6.0\nwhite = 1.0"),
            "needs a mean map of 7 x 6 cells, there is one of 3 x 4",
        ),
    ];
    let other = Array2::from_elem((3, 4), 2000.0);
    for (text, expected) in numbers {
        let built: Result<Box<dyn Regulariser>> = parse(&text).unwrap().build(SHAPE, Some(&other), None);
        let e = built.err().expect(&text).to_string();
        assert!(e.contains(expected) && !e.contains('\n'), "{e}");
    }
    let confident = format!("{gp}confidence = true\nsigma = 1.0\nlength = 6.0\nwhite = 0.1");
    let start = model(5).vp;
    let build = |confidence: Option<&Array2<f64>>| {
        parse(&confident).unwrap().build(SHAPE, Some(&start), confidence).err().map(|e| e.to_string())
    };
    assert!(build(None).unwrap().contains("there is none"));
    assert!(build(Some(&Array2::zeros(SHAPE))).unwrap().contains("between 1e-6"));
    assert!(build(Some(&factors())).is_none());
    assert!(Hold::new(SHAPE, vec![(42, 1500.0)], 1.0).is_err());
    assert!(Hold::new(SHAPE, vec![(41, f64::NAN)], 1.0).is_err());
    assert!(Hold::new(SHAPE, vec![(41, 1500.0)], 0.0).is_err());
}
