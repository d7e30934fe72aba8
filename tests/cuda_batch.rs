//! Many inversions at once on devices of the host that run the CUDA kernels on the CPU: queue, lanes, memory and losses
//! together give every gather the bits that it has alone. Counted as ignored where there is no C++ compiler.

mod cuda_common;

use cuda_common::{Fate, Host, Order, library};
use fwi::invert::{Inversion, Outcome, Settings, Stage, Stall, Start, StopReason, Task, invert_many};
use fwi::misfit::MisfitSpec;
use fwi::wave::cuda::{Cuda, CudaOptions, Kind, Runtime};
use fwi::wave::{CpuOptions, Dispatch, Fidelity, Precision, build};
use fwi::{Gather, Model, Observed, Position, Propagator, Result, Survey, survey::ricker};
use ndarray::{Array2, Array3};
use std::collections::{BTreeMap, HashSet};
use std::mem::discriminant;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const GIB: u64 = 1 << 30;
const N: usize = 12;
const GATHERS: usize = 6;
const IN_FLIGHT: usize = 4;
const LANES: usize = 2;

/// 24 padded rows, which fit the cluster kernels.
fn tiny() -> Survey {
    let dt = 1.2e-3;
    let sources = [2, 9].map(|x| Position { z: 1, x }).to_vec();
    let receivers = (0..N).map(|x| Position { z: 1, x }).collect();
    Survey { nz: N, nx: N, dx: 10.0, dt, nt: 110, sponge: 6, sources, receivers, wavelet: ricker(15.0, dt) }
}

/// Layers with a block, which lies elsewhere for every gather.
fn map(k: usize) -> Array2<f64> {
    Array2::from_shape_fn((N, N), |(z, x)| match (z, x) {
        (4..=6, x) if (k..k + 4).contains(&x) => 2900.0,
        (z, _) => 1800.0 + 60.0 * z as f64,
    })
}

fn gathers() -> Vec<Observed> {
    let maps: Vec<Model> = (0..GATHERS).map(|k| Model::from_map(map(k))).collect();
    let data = build(tiny(), &CpuOptions { threads: 1, ..CpuOptions::default() }).unwrap().forward(&maps).unwrap();
    let mut all: Vec<Observed> = data.into_iter().map(Observed::new).collect();
    let noise = |(s, t, r)| (0.7 + 97.0 * s as f64 + 13.7 * t as f64 * (1.0 + r as f64)).sin();
    all[5] = Observed::new(Gather::new(Array3::from_shape_fn(tiny().gather_shape(), noise)));
    all
}

/// Gathers 0 and 4 begin near their truth, so that they end early and others take their place; gather 5 is noise.
fn task(k: usize, all: &[Observed]) -> Task {
    let start = match k {
        0 | 4 => map(k).mapv(|v| 1.0005 * v),
        _ => Array2::from_shape_fn((N, N), |(z, _)| 1780.0 + 55.0 * z as f64),
    };
    Task { truth: Some(map(k)), ..Task::new(all[k].clone(), Start::Map(start)) }
}

/// Continuation, a misfit that needs the whole history, and refined least squares in f64.
fn settings() -> Settings {
    let stage = |name: &str, misfit, evals| Stage { max_evals: Some(evals), ..Stage::new(name, misfit) };
    let stall = Some(Stall { window: 2, decrease: 0.3 });
    let stages = vec![
        stage("low", MisfitSpec::LowPass(12.0), 4),
        stage("robust", MisfitSpec::Huber(0.05), 4),
        Stage { refined: true, stall, ..stage("fine", MisfitSpec::L2, 5) },
    ];
    Settings { stages, target_rms: Some(2e-3), ..Settings::default() }
}

/// A device with its streams, which share its memory and its fate.
fn device(options: &CudaOptions, order: Order, lanes: usize, fate: &Arc<Fate>) -> Arc<Cuda> {
    let lane = |_| {
        let mut host = Host::new(library().unwrap(), order, true, GIB);
        host.fate = fate.clone();
        Box::new(host) as Box<dyn Runtime>
    };
    Arc::new(Cuda::new(tiny(), options, (0..lanes).map(lane).collect()).unwrap())
}

fn options(kind: Kind, precision: Precision) -> CudaOptions {
    CudaOptions { kind: Some(kind), precision, batch: Some(3), max_block: 64, ..CudaOptions::default() }
}

fn double(kind: Kind) -> CudaOptions {
    CudaOptions { fidelity: Some(Fidelity::Fast), ..options(kind, Precision::F64) }
}

/// What does not depend on the clock.
fn timeless(o: Outcome) -> Outcome {
    Outcome { seconds: 0.0, ..o }
}

/// Every gather by itself, each on devices of its own.
fn alone(kind: Kind, all: &[Observed]) -> Vec<Outcome> {
    let one = |k| {
        let task = task(k, all);
        let coarse = device(&options(kind, Precision::F32), Order::Forwards, 1, &Arc::default());
        let fine = device(&double(kind), Order::Forwards, 1, &Arc::default());
        let inversion = Inversion::new(&*coarse, &task.observed, settings()).unwrap();
        let inversion = inversion.refine(&*fine).unwrap().truth(task.truth.as_ref().unwrap()).unwrap();
        timeless(inversion.run(&task.start, &mut ()).unwrap())
    };
    (0..GATHERS).map(one).collect()
}

/// All gathers at once; `begun` is told of each before it is read.
fn many(coarse: &Dispatch, fine: &Dispatch, all: &[Observed], begun: impl Fn(usize) + Sync) -> Vec<Outcome> {
    let (results, running, most) = (Mutex::new(BTreeMap::new()), AtomicUsize::new(0), AtomicUsize::new(0));
    let load = |&k: &usize| {
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        begun(k);
        Ok(task(k, all))
    };
    let sink = |k, outcome: Result<Outcome>| {
        running.fetch_sub(1, Ordering::SeqCst);
        assert!(results.lock().unwrap().insert(k, timeless(outcome.unwrap())).is_none());
        Ok(())
    };
    let never = AtomicBool::new(false);
    invert_many(coarse, Some(fine), 0..GATHERS, &settings(), IN_FLIGHT, &never, load, sink).unwrap();
    assert_eq!(most.into_inner(), IN_FLIGHT);
    let results = results.into_inner().unwrap();
    assert!(results.keys().copied().eq(0..GATHERS));
    results.into_values().collect()
}

fn same_bits(how: &str, got: &[Outcome], wanted: &[Outcome]) {
    for (k, (g, w)) in got.iter().zip(wanted).enumerate() {
        // f64 compared by value: no NaN gets this far, and a zero's sign is no result
        assert!(g == w, "{how}, gather {k}: {g:?} instead of {w:?}");
    }
}

fn queue(devices: &[Arc<Cuda>]) -> Dispatch {
    let devices = devices.iter().map(|d| d.clone() as Arc<dyn Propagator>).collect();
    Dispatch::new(devices, vec![]).unwrap()
}

fn a_batch_gives_the_bits_of_each_gather_alone() {
    let all = gathers();
    for (kind, order) in [(Kind::Cluster, Order::Shuffled(5)), (Kind::Steps, Order::Backwards)] {
        let wanted = alone(kind, &all);
        for (k, o) in wanted.iter().enumerate() {
            println!("{kind:?}, gather {k}: {} evaluations, rms {:.1e}, {}", o.evaluations, o.data_rms, o.stop);
        }
        let reasons: HashSet<_> = wanted.iter().map(|o| discriminant(&o.stop)).collect();
        assert!(reasons.len() >= 3, "gathers end for different reasons");
        assert!(wanted.iter().any(|o| matches!(o.stop, StopReason::TargetReached { .. })));
        let coarse = queue(&[device(&options(kind, Precision::F32), order, LANES, &Arc::default())]);
        let fine = queue(&[device(&double(kind), order, LANES, &Arc::default())]);
        same_bits("batch", &many(&coarse, &fine, &all, |_| ()), &wanted);
        for queue in [&coarse, &fine] {
            let s = queue.statistics().remove(0);
            println!("{kind:?}: {} evaluations, {:.2} a call", s.requests, s.mean_batch);
            assert!(s.requests > 0);
        }
        assert!(coarse.statistics()[0].mean_batch > 1.0);
        let evaluations: u64 = [&coarse, &fine].iter().map(|d| d.statistics()[0].requests).sum();
        assert_eq!(evaluations, wanted.iter().map(|o| o.evaluations).sum::<u64>());
    }
}

fn a_lost_device_leaves_its_gathers_to_the_other() {
    let (all, kind) = (gathers(), Kind::Cluster);
    let wanted = alone(kind, &all);
    let (single, fate) = (options(kind, Precision::F32), Arc::<Fate>::default());
    let weak = device(&single, Order::Forwards, LANES, &fate);
    let sound = device(&single, Order::Backwards, LANES, &Arc::default());
    let news = Arc::new(Mutex::new(vec![]));
    let log = news.clone();
    // of free lanes the last device's are taken first
    let coarse = queue(&[sound, weak]).log(move |line| log.lock().unwrap().push(line.to_string()));
    let fine = queue(&[device(&double(kind), Order::Forwards, 1, &Arc::default())]);
    // a gradient is ten launches or so: the loss comes in the middle of one, and of the batch
    fate.lost_after.store(105, Ordering::SeqCst);
    same_bits("one lost", &many(&coarse, &fine, &all, |_| ()), &wanted);
    let s = coarse.statistics();
    println!("{s:?}");
    assert!(s[1].lost && !s[1].active && s[1].requests > 0 && s[0].active && s[0].requests > 0, "{s:?}");
    assert_eq!(
        *news.lock().unwrap(),
        ["host (cuda:0) is lost: the device is lost; its work goes to the others"],
        "told once"
    );
}

/// While gathers are at work others take most of the memory: the six shots of a lane's launch no longer fit, nor the two of
/// a model with its whole history, and what one lane holds the other lacks.
fn short_memory_changes_no_bit() {
    let (all, kind) = (gathers(), Kind::Cluster);
    let wanted = alone(kind, &all);
    let fate = Arc::<Fate>::default();
    let cuda = device(&options(kind, Precision::F32), Order::Forwards, 2, &fate);
    let coarse = queue(std::slice::from_ref(&cuda));
    let fine = queue(&[device(&double(kind), Order::Forwards, 1, &Arc::default())]);
    let planned = cuda.device_bytes();
    let begun = |k| {
        if k == IN_FLIGHT {
            let left = 5 * cuda.plan().shot_bytes(tiny().nt) as u64 / 2;
            fate.taken.fetch_add(GIB - left, Ordering::SeqCst);
            cuda.release();
        }
    };
    same_bits("short memory", &many(&coarse, &fine, &all, begun), &wanted);
    assert!(cuda.device_bytes() < planned, "{planned} bytes were planned");
    assert!(!coarse.statistics()[0].lost);
}

fn main() {
    cuda_common::run(&[
        ("a_batch_gives_the_bits_of_each_gather_alone", a_batch_gives_the_bits_of_each_gather_alone),
        ("a_lost_device_leaves_its_gathers_to_the_other", a_lost_device_leaves_its_gathers_to_the_other),
        ("short_memory_changes_no_bit", short_memory_changes_no_bit),
    ]);
}
