//! The CUDA kernels and all of the host's code above the driver, on the CPU, against the f64 reference.
//! Counted as ignored where there is no C++ compiler.

mod common;
mod cuda_common;

use common::{max_relative, random_case, survey};
use cuda_common::{Host, Order, library};
use fwi::misfit::{FilteredL2, Huber, L1, L2, Misfit, StudentT};
use fwi::verify::{DataVector, dot_test, taylor_test};
use fwi::wave::cuda::{Cuda, CudaOptions, History, Kind, Limits, Plan, params::Params};
use fwi::wave::{Cpu, CpuOptions, Fidelity, FieldView, Precision, Propagator, Reference};
use fwi::{Gather, Model, Observed, Position, Survey};
use ndarray::ArrayView2;
use std::collections::BTreeMap;
use std::slice::from_ref;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

const GIB: u64 = 1 << 30;

/// Odd sizes, one shot, sources on edges and corners, two receivers in a cell, receivers in several rows, a wave that
/// wraps around the torus. Heights from 24 rows on fit the cluster kernels.
fn cases() -> Vec<Survey> {
    vec![
        survey(12, 17, 6, 130, &[(0, 0)], &[(0, 3), (11, 16), (5, 5)]),
        survey(31, 5, 7, 110, &[(30, 4), (1, 0)], &[(1, 1), (1, 1)]),
        survey(1, 1, 9, 40, &[(0, 0)], &[(0, 0)]),
        survey(9, 40, 11, 161, &[(0, 39), (8, 0), (4, 20)], &[(0, 0), (0, 39), (8, 21)]),
        survey(23, 22, 8, 1, &[(3, 3)], &[(3, 3), (3, 4)]),
        survey(2, 2, 7, 50, &[(1, 1)], &[(0, 0)]),
    ]
}

fn options(precision: Precision, fidelity: Fidelity, kind: Kind) -> CudaOptions {
    CudaOptions { precision, fidelity: Some(fidelity), kind: Some(kind), max_block: 64, ..CudaOptions::default() }
}

fn device(survey: &Survey, options: &CudaOptions, order: Order, memory: u64) -> Cuda {
    let host = Host::new(library().unwrap(), order, true, memory);
    Cuda::new(survey.clone(), options, vec![Box::new(host)]).unwrap()
}

/// Every kind of kernel that fits a survey.
fn kinds(survey: &Survey) -> Vec<Kind> {
    let rows = survey.padded_shape().0;
    if rows >= 16 { vec![Kind::Cluster, Kind::Steps] } else { vec![Kind::Steps] }
}

fn orders() -> [Order; 3] {
    [Order::Forwards, Order::Backwards, Order::Shuffled(7)]
}

/// A random case. For f32 contrast and direction vary by a tenth only: on maps of white noise between 1600 and 4200 m/s, and
/// for directions whose effects cancel, the rounding of f32 itself grows beyond 1e-5 within a hundred steps.
fn case(survey: &Survey, seed: u64, precision: Precision) -> (Model, Model, Observed) {
    let (model, dm, observed) = random_case(survey, seed);
    if precision == Precision::F64 {
        return (model, dm, observed);
    }
    let dm = Model { vp: dm.vp.mapv(|d| 1.0 + 0.1 * d), vmin: 1.0 };
    (Model::from_map(model.vp.mapv(|v| 2600.0 + 0.1 * v)), dm, observed)
}

/// Difference of two lists of numbers: largest over largest in f64, norm over norm in f32.
fn error<'a>(
    precision: Precision,
    a: impl Iterator<Item = &'a f64> + Clone,
    b: impl Iterator<Item = &'a f64> + Clone,
) -> f64 {
    let differences = || a.clone().zip(b.clone()).map(|(x, y)| (x - y).abs());
    let (error, size) = match precision {
        Precision::F64 => (differences().fold(0.0, f64::max), b.clone().fold(0.0f64, |m, y| m.max(y.abs()))),
        Precision::F32 => {
            (differences().map(|d| d * d).sum::<f64>().sqrt(), b.clone().map(|y| y * y).sum::<f64>().sqrt())
        }
    };
    assert!(error.is_finite() && size.is_finite());
    if size == 0.0 { error } else { error / size }
}

/// The same of gradients, with `vmin` as large as the largest derivative by a cell allows.
fn gradient_error(precision: Precision, a: &Model, b: &Model) -> f64 {
    let largest = b.vp.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    error(precision, a.vp.iter(), b.vp.iter()).max((a.vmin - b.vmin).abs() / b.vmin.abs().max(1e-3 * largest))
}

fn tolerance(precision: Precision) -> f64 {
    if precision == Precision::F64 { 1e-12 } else { 1e-5 }
}

fn params_match() {
    let host = Host::new(library().unwrap(), Order::Forwards, true, GIB);
    assert_eq!(host.params_size(), size_of::<Params>());
}

fn operators_match(precision: Precision) {
    for (seed, survey) in cases().into_iter().enumerate() {
        let (model, dm, observed) = case(&survey, seed as u64, precision);
        let (model, dm, observed) = (from_ref(&model), from_ref(&dm), from_ref(&observed));
        let reference = Reference::new(survey.clone()).unwrap();
        let forward = reference.forward(model).unwrap().remove(0);
        let born = reference.born(model, dm).unwrap().remove(0);
        let wanted = reference.misfit_and_gradient(model, observed, &L2).unwrap().remove(0);
        for (kind, order) in kinds(&survey).into_iter().flat_map(|k| orders().map(|o| (k, o))) {
            let at = format!("case {seed}, {precision:?}, {kind:?}, {order:?}");
            let cuda = device(&survey, &options(precision, Fidelity::Exact, kind), order, GIB);
            let below = |e: f64, what: &str| assert!(e <= tolerance(precision), "{what}, {at}: {e:e}");
            let data = cuda.forward(model).unwrap().remove(0);
            below(error(precision, data.data.iter(), forward.data.iter()), "forward");
            below(error(precision, cuda.born(model, dm).unwrap()[0].data.iter(), born.data.iter()), "Born");
            let g = cuda.misfit_and_gradient(model, observed, &L2).unwrap().remove(0);
            below(gradient_error(precision, &g.gradient, &wanted.gradient), "gradient");
            below((g.value / wanted.value - 1.0).abs(), "misfit");
            below((g.data_rms / wanted.data_rms - 1.0).abs(), "data rms");
        }
    }
}

/// In f32 the rounding is part of the data, so the kernels must round as the CPU's do: to the bit.
fn f32_data_are_those_of_the_cpu_to_the_bit() {
    for (seed, survey) in cases().into_iter().enumerate() {
        let (model, dm, _) = random_case(&survey, seed as u64);
        let (model, dm) = (from_ref(&model), from_ref(&dm));
        let exact = CpuOptions { fidelity: Some(Fidelity::Exact), ..CpuOptions::default() };
        let cpu = Cpu::<f32>::new(survey.clone(), &exact).unwrap();
        for kind in kinds(&survey) {
            let cuda = device(&survey, &options(Precision::F32, Fidelity::Exact, kind), Order::Forwards, GIB);
            assert_eq!(cuda.forward(model).unwrap(), cpu.forward(model).unwrap(), "forward, case {seed}, {kind:?}");
            assert_eq!(cuda.born(model, dm).unwrap(), cpu.born(model, dm).unwrap(), "Born, case {seed}, {kind:?}");
        }
    }
}

/// A grid on which windows and the decimated history leave much out, with layers and a slow and a fast side.
fn windowed() -> (Survey, Model, Observed) {
    let survey = Survey { nz: 30, nx: 44, nt: 420, sponge: 30, ..cases().remove(3) };
    let survey = Survey { sources: vec![Position { z: 1, x: 4 }, Position { z: 2, x: 40 }], ..survey };
    let survey = Survey { receivers: (0..44).step_by(5).map(|x| Position { z: 1, x }).collect(), ..survey };
    let vp =
        ndarray::Array2::from_shape_fn((30, 44), |(z, x)| 1600.0 + 40.0 * z as f64 + if x > 25 { 900.0 } else { 0.0 });
    let model = Model::from_map(vp);
    let other = Model::from_map(model.vp.mapv(|v| v * 1.03));
    let truth = Cpu::<f64>::new(survey.clone(), &CpuOptions::default()).unwrap().forward(&[other]).unwrap().remove(0);
    (survey, model, Observed::new(truth))
}

fn windows_and_decimation_match_the_cpu() {
    let (survey, model, observed) = windowed();
    let (model, observed) = (from_ref(&model), from_ref(&observed));
    for precision in [Precision::F64, Precision::F32] {
        let fast = CpuOptions { precision, fidelity: Some(Fidelity::Fast), ..CpuOptions::default() };
        let cpu = fwi::wave::build(survey.clone(), &fast).unwrap();
        let wanted = cpu.misfit_and_gradient(model, observed, &L2).unwrap().remove(0);
        for kind in [Kind::Cluster, Kind::Steps] {
            for order in orders() {
                let cuda = device(&survey, &options(precision, Fidelity::Fast, kind), order, GIB);
                let data = cuda.forward(model).unwrap().remove(0);
                // the CPU widens windows to cache lines, so what lies outside differs by next to nothing
                let e = max_relative(&data.data, &cpu.forward(model).unwrap()[0].data);
                assert!(
                    e < if precision == Precision::F64 { 1e-8 } else { 1e-6 },
                    "{precision:?}, {kind:?}, {order:?}: {e:e}"
                );
                let g = cuda.misfit_and_gradient(model, observed, &L2).unwrap().remove(0);
                let e = gradient_error(Precision::F32, &g.gradient, &wanted.gradient);
                assert!(
                    e < if precision == Precision::F64 { 1e-8 } else { 1e-5 },
                    "{precision:?}, {kind:?}, {order:?}: {e:e}"
                );
            }
        }
    }
}

fn half_precision_history_is_good_to_1e_3() {
    let (survey, model, observed) = windowed();
    let (model, observed) = (from_ref(&model), from_ref(&observed));
    for kind in [Kind::Cluster, Kind::Steps] {
        let full = options(Precision::F32, Fidelity::Fast, kind);
        let gradient = |o: &CudaOptions| {
            let cuda = device(&survey, o, Order::Forwards, GIB);
            cuda.misfit_and_gradient(model, observed, &L2).unwrap().remove(0).gradient
        };
        let half = gradient(&CudaOptions { history: History::Half, ..full.clone() });
        let e = gradient_error(Precision::F32, &half, &gradient(&full));
        assert!(e > 0.0 && e < 1e-3, "{kind:?}: {e:e}");
        println!("gradient from a history in half precision, {kind:?}: relative difference {e:.1e}");
    }
}

/// Correlation of every trace, whose derivative is as wide as its data and which no kernel knows.
struct Unnamed;

impl Misfit for Unnamed {
    fn evaluate(
        &self,
        _: usize,
        synthetic: ArrayView2<f64>,
        observed: ArrayView2<f64>,
        mask: &fwi::Mask,
        mut adjoint: ndarray::ArrayViewMut2<f64>,
    ) -> f64 {
        adjoint.fill(0.0);
        let mut value = 0.0;
        for (t, mut row) in adjoint.outer_iter_mut().enumerate().take(mask.nt) {
            for (r, a) in row.iter_mut().enumerate() {
                let e = synthetic[[t, r]] - observed[[t, r]];
                value += e.powi(4);
                *a = 4.0 * e.powi(3);
            }
        }
        value
    }

    fn name(&self) -> String {
        "fourth power".into()
    }
}

fn every_misfit_is_that_of_the_host() {
    let survey = cases().remove(3);
    let (model, _, observed) = random_case(&survey, 3);
    // a last sample of zeros, a dead trace and one with NaN do not count
    let (nt, mut data) = (survey.nt, observed.gather.data.clone());
    data.slice_mut(ndarray::s![.., nt - 1, ..]).fill(0.0);
    data.slice_mut(ndarray::s![1, .., 2]).fill(0.0);
    data[[2, 7, 0]] = f64::NAN;
    let observed = Observed::new(Gather::new(data));
    let (model, observed) = (from_ref(&model), from_ref(&observed));
    let misfits: [&dyn Misfit; 6] = [
        &L2,
        &L1 { eps: 0.1 },
        &Huber { delta: 0.3 },
        &StudentT { scale: 0.2, nu: 4.0 },
        &FilteredL2::new(20.0, survey.dt).unwrap(),
        &Unnamed,
    ];
    let reference = Reference::new(survey.clone()).unwrap();
    for misfit in misfits {
        let wanted = reference.misfit_and_gradient(model, observed, misfit).unwrap().remove(0);
        for kind in [Kind::Cluster, Kind::Steps] {
            let cuda = device(&survey, &options(Precision::F64, Fidelity::Exact, kind), Order::Forwards, GIB);
            let got = cuda.misfit_and_gradient(model, observed, misfit).unwrap().remove(0);
            let name = misfit.name();
            assert!((got.value / wanted.value - 1.0).abs() < 1e-12, "{name}: {} {}", got.value, wanted.value);
            assert!((got.data_rms / wanted.data_rms - 1.0).abs() < 1e-12, "{name}");
            let e = gradient_error(Precision::F64, &got.gradient, &wanted.gradient);
            assert!(e < 1e-12, "{name}, {kind:?}: {e:e}");
        }
    }
}

fn the_adjoint_passes_its_tests() {
    let (survey, ..) = windowed();
    let survey = Survey { nt: 200, ..survey };
    for kind in [Kind::Cluster, Kind::Steps] {
        let cuda = device(&survey, &options(Precision::F64, Fidelity::Exact, kind), Order::Shuffled(3), GIB);
        for seed in 0..3 {
            let t = dot_test(&cuda, DataVector::White, seed).unwrap();
            assert!(t.relative() <= 1e-12, "{kind:?}, seed {seed}: {:e}", t.relative());
        }
        let cuda = device(&survey, &options(Precision::F32, Fidelity::Fast, kind), Order::Forwards, GIB);
        let t = dot_test(&cuda, DataVector::Residual, 0).unwrap();
        assert!(t.relative() <= 1e-5, "{kind:?}: {:e}", t.relative());
    }
    let cuda = device(&survey, &options(Precision::F64, Fidelity::Exact, Kind::Cluster), Order::Forwards, GIB);
    let (low, high) = taylor_test(&cuda, 0).unwrap().slopes;
    assert!(low >= 1.95 && high <= 2.05, "Taylor slopes {low}..{high}");
}

fn wavefields_match_the_reference() {
    let survey = cases().remove(3);
    let sources = [Position { z: 2, x: 7 }, Position { z: 0, x: 39 }, Position { z: 8, x: 0 }];
    let levels = |p: &dyn Propagator, precision| {
        let (model, _, _) = case(&survey, 3, precision);
        let kept = Mutex::new(BTreeMap::new());
        let visit = |source: usize, level: usize, field: FieldView| {
            assert!(kept.lock().unwrap().insert((source, level), field.to_f64()).is_none());
        };
        p.wavefields(&model, &sources, &[1.0, -0.5], 7, &visit).unwrap();
        kept.into_inner().unwrap()
    };
    for precision in [Precision::F64, Precision::F32] {
        let reference = levels(&Reference::new(survey.clone()).unwrap(), precision);
        for kind in [Kind::Cluster, Kind::Steps] {
            let cuda = device(&survey, &options(precision, Fidelity::Fast, kind), Order::Forwards, GIB);
            let fields = levels(&cuda, precision);
            assert!(reference.keys().eq(fields.keys()));
            for (key, field) in &reference {
                let e = error(precision, fields[key].iter(), field.iter());
                assert!(e <= tolerance(precision), "{kind:?}, {precision:?}, source and level {key:?}: {e:e}");
            }
            let (model, _, _) = case(&survey, 3, precision);
            assert!(cuda.wavefields(&model, &[Position { z: 9, x: 0 }], &[1.0], 1, &|_, _, _| {}).is_err());
        }
    }
}

fn bits_depend_neither_on_batch_nor_memory_nor_lane() {
    let survey = cases().remove(3);
    let case = |seed| random_case(&survey, seed);
    let (models, observed): (Vec<_>, Vec<_>) = (0..5).map(case).map(|(m, _, o)| (m, o)).unzip();
    for kind in [Kind::Cluster, Kind::Steps] {
        let base = options(Precision::F32, Fidelity::Fast, kind);
        let one = device(&survey, &CudaOptions { batch: Some(1), ..base.clone() }, Order::Forwards, GIB);
        let shot = one.plan().shot_bytes(150) as u64;
        let wanted: Vec<_> = models
            .iter()
            .zip(&observed)
            .map(|(m, o)| one.misfit_and_gradient(from_ref(m), from_ref(o), &L2).unwrap().remove(0))
            .collect();
        let data = one.forward(&models).unwrap();
        // memory for all of them, for less than the batch that was planned, for less than the shots of one
        for memory in [GIB, 8 * shot, 3 * shot] {
            let cuda = device(&survey, &CudaOptions { batch: Some(4), ..base.clone() }, Order::Backwards, memory);
            for _ in 0..2 {
                let got = cuda.misfit_and_gradient(&models, &observed, &L2).unwrap();
                for (g, w) in got.iter().zip(&wanted) {
                    assert_eq!(
                        (g.value, &g.gradient, g.data_rms),
                        (w.value, &w.gradient, w.data_rms),
                        "{kind:?}, {memory}"
                    );
                }
            }
            assert_eq!(cuda.forward(&models).unwrap(), data);
        }
    }
}

/// Memory that others take after the plan was made: launches shrink, results stay.
fn exhausted_memory_shrinks_the_launches() {
    let survey = cases().remove(3);
    let case = |seed| random_case(&survey, seed);
    let (models, observed): (Vec<_>, Vec<_>) = (0..4).map(case).map(|(m, _, o)| (m, o)).unzip();
    let base = options(Precision::F32, Fidelity::Fast, Kind::Cluster);
    let wanted = device(&survey, &base, Order::Forwards, GIB).misfit_and_gradient(&models, &observed, &L2).unwrap();
    let host = Host::new(library().unwrap(), Order::Forwards, true, GIB);
    let fate = host.fate.clone();
    let options = CudaOptions { batch: Some(4), ..base };
    let cuda = Cuda::new(survey.clone(), &options, vec![Box::new(host)]).unwrap();
    let taken = GIB - 7 * cuda.plan().shot_bytes(100) as u64;
    fate.taken.fetch_add(taken, Ordering::SeqCst);
    let got = cuda.misfit_and_gradient(&models, &observed, &L2).unwrap();
    assert!(got.iter().zip(&wanted).all(|(g, w)| g.gradient == w.gradient && g.value == w.value));
    assert!(cuda.batch() < 4, "{}", cuda.batch());
    fate.taken.fetch_sub(taken, Ordering::SeqCst);
    cuda.release();
    let full = GIB - fate.taken.load(Ordering::SeqCst);
    fate.taken.fetch_add(full, Ordering::SeqCst);
    let refused = cuda.misfit_and_gradient(&models, &observed, &L2).map(|_| ());
    assert_eq!(refused.unwrap_err().exit_code(), 5);
    fate.taken.fetch_sub(full, Ordering::SeqCst);
}

/// Gathers stay on the device while they live and are never taken for another.
fn observed_gathers_go_up_once() {
    let survey = cases().remove(3);
    let base = options(Precision::F32, Fidelity::Fast, Kind::Cluster);
    let host = Host::new(library().unwrap(), Order::Forwards, true, GIB);
    let fate = host.fate.clone();
    let cuda = Cuda::new(survey.clone(), &base, vec![Box::new(host)]).unwrap();
    let fresh = |m: &Model, o: &Observed| {
        let other = device(&survey, &base, Order::Forwards, GIB);
        other.misfit_and_gradient(from_ref(m), from_ref(o), &L2).unwrap().remove(0).value
    };
    let bytes = 8 * survey.gather_shape().1 * survey.sources.len() * survey.receivers.len();
    for seed in 0..12 {
        let (model, _, mut observed) = random_case(&survey, seed);
        let value = |o: &Observed| {
            let before = fate.uploaded.load(Ordering::SeqCst);
            let value = cuda.misfit_and_gradient(from_ref(&model), from_ref(o), &L2).unwrap().remove(0).value;
            (value, fate.uploaded.load(Ordering::SeqCst) - before)
        };
        let (first, up) = value(&observed);
        let (again, less) = value(&observed);
        assert_eq!((first, first), (again, fresh(&model, &observed)), "seed {seed}");
        assert_eq!(up - less, bytes as u64);
        // the same place in the caller's memory, other samples
        std::sync::Arc::make_mut(&mut observed.gather).data.mapv_inplace(|x| 2.0 * x);
        assert_eq!(value(&observed), (fresh(&model, &observed), up), "seed {seed}");
    }
}

fn a_lost_device_is_said_to_be_lost() {
    let survey = cases().remove(3);
    let (model, _, observed) = random_case(&survey, 1);
    let host = Host::new(library().unwrap(), Order::Forwards, true, GIB);
    host.fate.lost_after.store(9, Ordering::SeqCst);
    let base = options(Precision::F32, Fidelity::Fast, Kind::Cluster);
    let cuda = Cuda::new(survey, &base, vec![Box::new(host)]).unwrap();
    let evaluate = || cuda.misfit_and_gradient(from_ref(&model), from_ref(&observed), &L2);
    let e = (0..3).find_map(|_| evaluate().err()).expect("nine launches are fewer than three gradients take");
    assert_eq!((e.exit_code(), e.to_string().contains("lost")), (7, true));
}

fn graphs_are_replayed_under_their_own_keys() {
    let survey = cases().remove(0);
    let (model, _, observed) = random_case(&survey, 1);
    let host = Host::new(library().unwrap(), Order::Forwards, false, GIB);
    let fate = host.fate.clone();
    let base = CudaOptions { kind: None, ..options(Precision::F32, Fidelity::Fast, Kind::Steps) };
    let cuda = Cuda::new(survey, &base, vec![Box::new(host)]).unwrap();
    assert_eq!(cuda.plan().kind, Kind::Steps, "this device has no clusters");
    for _ in 0..3 {
        cuda.forward(from_ref(&model)).unwrap();
        cuda.misfit_and_gradient(from_ref(&model), from_ref(&observed), &L2).unwrap();
    }
    assert_eq!(fate.replays.load(Ordering::SeqCst), 6, "of nine pieces of work three are new");
}

fn openfwi_fits_the_devices_it_was_made_for() {
    let limits = |name: &str, multiprocessors, shared, clusters| Limits {
        name: name.into(),
        multiprocessors,
        shared_bytes: shared,
        clusters,
    };
    let h100 = limits("H100", 132, 232_448, true);
    let plan = |precision, l: &Limits| Plan::new(Survey::openfwi(), precision, History::Full, None, 1024, l).unwrap();
    let f32 = plan(Precision::F32, &h100);
    assert_eq!((f32.kind, f32.sums_shared), (Kind::Cluster, true));
    let forward = f32.cluster_launch(1, false, false);
    // two blocks a multiprocessor: 228 KB, of which each block costs 1 KB more
    assert!(2 * (forward.shared + 1024) <= 228 << 10, "{forward:?}");
    let f64 = plan(Precision::F64, &h100);
    assert_eq!((f64.kind, f64.sums_shared), (Kind::Cluster, false));
    for other in [limits("A100", 108, 166_912, false), limits("RTX 5090", 170, 101_376, true)] {
        assert_eq!(plan(Precision::F32, &other).kind, Kind::Steps, "{}", other.name);
        let asked = Plan::new(Survey::openfwi(), Precision::F32, History::Full, Some(Kind::Cluster), 1024, &other);
        assert!(asked.unwrap_err().to_string().contains(&other.name));
    }
}

/// The full grid, with the launches that a GPU gets, for the first steps.
fn openfwi_runs_with_its_own_launches() {
    let base = Survey::openfwi();
    let survey = Survey { nt: 70, sources: vec![base.sources[1]], ..base };
    let model =
        Model::from_map(ndarray::Array2::from_shape_fn((70, 70), |(z, x)| 1600.0 + 31.0 * z as f64 + 3.0 * x as f64));
    let other = Model::from_map(model.vp.mapv(|v| v + 40.0));
    for (precision, fidelity) in [(Precision::F32, Fidelity::Fast), (Precision::F64, Fidelity::Exact)] {
        let cpu = CpuOptions { precision, fidelity: Some(fidelity), ..CpuOptions::default() };
        let cpu = fwi::wave::build(survey.clone(), &cpu).unwrap();
        let observed = Observed::new(cpu.forward(from_ref(&other)).unwrap().remove(0));
        let wanted = cpu.misfit_and_gradient(from_ref(&model), from_ref(&observed), &L2).unwrap().remove(0);
        for history in [History::Full, History::Half] {
            let options = CudaOptions { history, max_block: 1024, ..options(precision, fidelity, Kind::Cluster) };
            let cuda = device(&survey, &options, Order::Shuffled(1), 4 * GIB);
            let got = cuda.misfit_and_gradient(from_ref(&model), from_ref(&observed), &L2).unwrap().remove(0);
            let e = gradient_error(precision, &got.gradient, &wanted.gradient);
            let limit = match (precision, history) {
                (Precision::F64, _) => 1e-12,
                (Precision::F32, History::Full) => 1e-5,
                (Precision::F32, History::Half) => 1e-3,
            };
            assert!(e <= limit, "{precision:?}, {history:?}: {e:e}");
            assert!((got.data_rms / wanted.data_rms - 1.0).abs() < 1e-5);
        }
    }
}

fn main() {
    cuda_common::run(&[
        ("params_match", params_match),
        ("openfwi_fits_the_devices_it_was_made_for", openfwi_fits_the_devices_it_was_made_for),
        ("openfwi_runs_with_its_own_launches", openfwi_runs_with_its_own_launches),
        ("f32_data_are_those_of_the_cpu_to_the_bit", f32_data_are_those_of_the_cpu_to_the_bit),
        ("windows_and_decimation_match_the_cpu", windows_and_decimation_match_the_cpu),
        ("half_precision_history_is_good_to_1e_3", half_precision_history_is_good_to_1e_3),
        ("every_misfit_is_that_of_the_host", every_misfit_is_that_of_the_host),
        ("the_adjoint_passes_its_tests", the_adjoint_passes_its_tests),
        ("wavefields_match_the_reference", wavefields_match_the_reference),
        ("bits_depend_neither_on_batch_nor_memory_nor_lane", bits_depend_neither_on_batch_nor_memory_nor_lane),
        ("exhausted_memory_shrinks_the_launches", exhausted_memory_shrinks_the_launches),
        ("observed_gathers_go_up_once", observed_gathers_go_up_once),
        ("a_lost_device_is_said_to_be_lost", a_lost_device_is_said_to_be_lost),
        ("graphs_are_replayed_under_their_own_keys", graphs_are_replayed_under_their_own_keys),
        ("operators_match_in_f64", || operators_match(Precision::F64)),
        ("operators_match_in_f32", || operators_match(Precision::F32)),
    ]);
}
