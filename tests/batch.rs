//! The queue before devices, and many inversions at once through it, on tiny gathers.

use fwi::invert::{Inversion, Outcome, Settings, Stage, Start, StopReason, Task, invert_many};
use fwi::misfit::{Huber, L2, Linear, MisfitSpec};
use fwi::wave::{CpuOptions, Dispatch, Evaluation, WavefieldVisitor, build};
use fwi::{Error, Gather, Misfit, Model, Observed, Position, Propagator, Result, Survey, survey};
use ndarray::{Array2, Array3};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const N: usize = 12;

fn tiny() -> Survey {
    let dt = 1.2e-3;
    Survey {
        nz: N,
        nx: N,
        dx: 10.0,
        dt,
        nt: 120,
        sponge: 8,
        sources: [1, 6, 10].map(|x| Position { z: 1, x }).to_vec(),
        receivers: (0..N).map(|x| Position { z: 1, x }).collect(),
        wavelet: survey::ricker(15.0, dt),
    }
}

fn cpu() -> Arc<dyn Propagator> {
    Arc::from(build(tiny(), &CpuOptions { threads: 1, ..CpuOptions::default() }).unwrap())
}

/// Looks at every call of a fake device, by its number and models, and may refuse it.
type Hook = Box<dyn Fn(usize, &[Model]) -> Result<()> + Send + Sync>;

/// A device that computes on the CPU, or, without one, hands back numbers that tell whose they are.
struct Fake {
    survey: Survey,
    cpu: Option<Arc<dyn Propagator>>,
    batch: usize,
    lanes: usize,
    calls: AtomicUsize,
    largest: AtomicUsize,
    hook: Hook,
}

fn fake(cpu: Option<Arc<dyn Propagator>>, batch: usize, lanes: usize, hook: Hook) -> Arc<Fake> {
    let (calls, largest) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Arc::new(Fake { survey: tiny(), cpu, batch, lanes, calls, largest, hook })
}

fn willing() -> Hook {
    Box::new(|_, _| Ok(()))
}

impl Fake {
    fn enter(&self, models: &[Model]) -> Result<()> {
        assert!(models.len() <= self.batch, "{} models at a time", models.len());
        self.largest.fetch_max(models.len(), Ordering::Relaxed);
        (self.hook)(self.calls.fetch_add(1, Ordering::SeqCst), models)
    }

    fn gather(&self, number: f64) -> Gather {
        Gather::new(Array3::from_elem(self.survey.gather_shape(), number))
    }
}

impl Propagator for Fake {
    fn survey(&self) -> &Survey {
        &self.survey
    }
    fn describe(&self) -> String {
        "fake".into()
    }
    fn arithmetic(&self) -> String {
        self.cpu.as_ref().map_or("none".into(), |c| c.arithmetic())
    }
    fn forward(&self, models: &[Model]) -> Result<Vec<Gather>> {
        self.enter(models)?;
        match &self.cpu {
            Some(cpu) => cpu.forward(models),
            None => Ok(models.iter().map(|m| self.gather(m.vmin)).collect()),
        }
    }
    fn born(&self, models: &[Model], directions: &[Model]) -> Result<Vec<Gather>> {
        self.enter(models)?;
        Ok(models.iter().zip(directions).map(|(m, d)| self.gather(m.vmin + d.vmin)).collect())
    }
    fn misfit_and_gradient(
        &self,
        models: &[Model],
        observed: &[Observed],
        misfit: &dyn Misfit,
    ) -> Result<Vec<Evaluation>> {
        self.enter(models)?;
        if let Some(cpu) = &self.cpu {
            return cpu.misfit_and_gradient(models, observed, misfit);
        }
        let delta = match misfit.spec() {
            Some(MisfitSpec::Huber(delta)) => delta,
            _ => 0.0,
        };
        let one = |(m, o): (&Model, &Observed)| Evaluation {
            value: m.vmin + o.gather.data[[0, 0, 0]] + delta,
            gradient: m.clone(),
            data_rms: m.vmin,
        };
        Ok(models.iter().zip(observed).map(one).collect())
    }
    fn wavefields(&self, _: &Model, _: &[Position], _: &[f64], _: usize, _: &WavefieldVisitor) -> Result<()> {
        (self.hook)(0, &[])
    }
    fn batch(&self) -> usize {
        self.batch
    }
    fn lanes(&self) -> usize {
        self.lanes
    }
    fn gradient_bytes(&self, _: bool) -> u64 {
        1
    }
}

fn model(number: f64) -> Model {
    Model { vp: Array2::from_elem((N, N), number), vmin: number }
}

fn observed(number: f64) -> Observed {
    Observed::new(Gather::new(Array3::from_elem(tiny().gather_shape(), number)))
}

fn lost() -> Error {
    Error::device("cuda:1", "it fell off the bus")
}

/// Runs `work`, which hangs if it is not done after a minute.
fn within_a_minute<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(work()));
    receive.recv_timeout(Duration::from_secs(60)).expect("it hangs, or panicked")
}

/// `callers` threads that all begin at once; their results in order.
fn together<R: Send>(callers: usize, call: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let gate = std::sync::Barrier::new(callers);
    let (gate, call) = (&gate, &call);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..callers)
            .map(|i| {
                scope.spawn(move || {
                    gate.wait();
                    call(i)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn value(p: &dyn Propagator, number: f64, misfit: &dyn Misfit) -> Result<f64> {
    Ok(p.misfit_and_gradient(&[model(number)], &[observed(0.5)], misfit)?[0].value)
}

#[test]
fn answers_come_in_order_and_each_caller_gets_its_own() {
    within_a_minute(|| {
        let devices: [Arc<Fake>; 2] = [fake(None, 5, 2, willing()), fake(None, 3, 1, willing())];
        let d = Dispatch::new(devices.map(|d| d as _).to_vec(), vec![]).unwrap();
        assert_eq!((d.batch(), d.lanes()), (5, 3));
        together(24, |i| {
            for round in 0..40 {
                let base = (1000 * i + 20 * round) as f64 + 1.0;
                let models: Vec<Model> = (0..round % 14).map(|k| model(base + k as f64)).collect();
                let expected: Vec<f64> = models.iter().map(|m| m.vmin).collect();
                let first = |g: &Gather| g.data[[0, 0, 0]];
                match (i + round) % 5 {
                    0 => assert_eq!(d.forward(&models).unwrap().iter().map(first).collect::<Vec<_>>(), expected),
                    1 => {
                        let sums = d.born(&models, &vec![model(0.25); models.len()]).unwrap();
                        assert_eq!(sums.iter().map(|g| first(g) - 0.25).collect::<Vec<_>>(), expected);
                    }
                    kind => {
                        let misfit: &dyn Misfit = [&L2 as &dyn Misfit, &Huber { delta: 0.125 }, &Linear][kind - 2];
                        let extra = 0.5 + if kind == 3 { 0.125 } else { 0.0 };
                        let out = d.misfit_and_gradient(&models, &vec![observed(0.5); models.len()], misfit).unwrap();
                        assert_eq!(out.iter().map(|e| e.value - extra).collect::<Vec<_>>(), expected);
                    }
                }
            }
        });
        let s = d.statistics();
        assert_eq!(s[0].requests + s[1].requests, 24 * (0..40).map(|r| r % 14).sum::<u64>());
        assert!(s.iter().all(|s| s.active && !s.lost && s.requests > 0 && s.busy > 0.0 && s.mean_batch > 1.0), "{s:?}");
        assert!(d.misfit_and_gradient(&[model(1.0)], &[], &L2).is_err());
        assert!(value(&d, 1.0, &Huber { delta: f64::NAN }).unwrap().is_nan());
    });
}

#[test]
fn two_groups_alternate_and_the_device_is_busy() {
    within_a_minute(|| {
        let hook: Hook = Box::new(|_, models| {
            std::thread::sleep(Duration::from_micros(20_000 + 500 * models.len() as u64));
            Ok(())
        });
        let device = fake(None, 32, 2, hook);
        let d = Dispatch::new(vec![device], vec![]).unwrap();
        let since = Instant::now();
        together(32, |i| {
            for _ in 0..40 {
                value(&d, i as f64, &L2).unwrap();
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let s = d.statistics().remove(0);
        println!("{s:?} in {:?}", since.elapsed());
        assert_eq!(s.requests, 32 * 40);
        assert!(s.mean_batch > 10.0 && s.busy > 0.85, "{s:?}");
    });
}

#[test]
fn a_bad_model_fails_its_own_caller() {
    within_a_minute(|| {
        for panics in [false, true] {
            let hook: Hook = Box::new(move |_, models| {
                std::thread::sleep(Duration::from_millis(2));
                match models.iter().any(|m| m.vmin == 7.0) {
                    true if panics => panic!("seven"),
                    true => Err(Error::Numerical("seven".into())),
                    false => Ok(()),
                }
            });
            let device = fake(None, 8, 1, hook);
            let d = Dispatch::new(vec![device.clone()], vec![]).unwrap();
            let results = together(16, |i| value(&d, i as f64, &L2));
            for (i, r) in results.into_iter().enumerate() {
                match r {
                    Ok(v) => assert!(i != 7 && v == i as f64 + 0.5),
                    Err(e) => assert!(i == 7 && e.to_string().contains("seven") && e.exit_code() == 6, "{e}"),
                }
            }
            assert!(device.largest.load(Ordering::Relaxed) > 1);
            // of a list, the error is the first bad model's
            assert!(d.forward(&[model(1.0), model(7.0)]).is_err());
            assert!(!d.statistics()[0].lost);
        }
    });
}

#[test]
fn short_memory_halves_the_batch() {
    within_a_minute(|| {
        let refuse = |most: usize| -> Hook {
            Box::new(move |_, models| match models.len() > most {
                true => Err(Error::Memory(format!("only {most} fit"))),
                false => Ok(()),
            })
        };
        let told = Arc::new(Mutex::new(vec![]));
        let device = fake(None, 16, 1, refuse(3));
        let log = told.clone();
        let d =
            Dispatch::new(vec![device.clone()], vec![]).unwrap().log(move |l| log.lock().unwrap().push(l.to_string()));
        let models: Vec<Model> = (0..16).map(|i| model(i as f64)).collect();
        for _ in 0..2 {
            let gathers = d.forward(&models).unwrap();
            assert!(gathers.iter().enumerate().all(|(i, g)| g.data[[0, 0, 0]] == i as f64));
        }
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 3, "{told:?}"); // 16 to 8 to 4 to 2, and that is remembered
        assert!(told[2].contains("no memory for 4 models at a time (only 3 fit); going on with 2"), "{told:?}");
        let d = Dispatch::new(vec![fake(None, 16, 1, refuse(0))], vec![]).unwrap();
        assert_eq!(d.forward(&models).unwrap_err().exit_code(), 5);
    });
}

#[test]
fn a_lost_device_leaves_its_work_to_the_others_and_the_last_one_to_nobody() {
    within_a_minute(|| {
        let told = Arc::new(Mutex::new(vec![]));
        let sound = fake(
            None,
            4,
            1,
            Box::new(|_, _| {
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            }),
        );
        let weak = fake(None, 4, 2, Box::new(|call, _| if call < 5 { Ok(()) } else { Err(lost()) }));
        let log = told.clone();
        let d = Dispatch::new(vec![weak.clone(), sound], vec![])
            .unwrap()
            .log(move |l| log.lock().unwrap().push(l.to_string()));
        let sums = together(12, |i| (0..20).map(|k| value(&d, (100 * i + k) as f64, &L2).unwrap()).sum::<f64>());
        for (i, sum) in sums.into_iter().enumerate() {
            assert_eq!(sum, (0..20).map(|k| (100 * i + k) as f64 + 0.5).sum::<f64>());
        }
        assert_eq!(*told.lock().unwrap(), ["cuda:1 is lost: it fell off the bus; its work goes to the others"]);
        let s = d.statistics();
        assert!(s[0].lost && !s[0].active && s[1].active && s[0].requests + s[1].requests == 240, "{s:?}");
        assert_eq!(d.lanes(), 1);

        let log = told.clone();
        let d = Dispatch::new(vec![fake(None, 4, 2, Box::new(|_, _| Err(lost())))], vec![])
            .unwrap()
            .log(move |l| log.lock().unwrap().push(l.to_string()));
        for r in together(12, |i| value(&d, i as f64, &L2)) {
            assert_eq!(r.unwrap_err().to_string(), "cuda:1: it fell off the bus");
        }
        assert_eq!(value(&d, 1.0, &L2).unwrap_err().exit_code(), 7);
        assert!(told.lock().unwrap()[1].ends_with("; no device is left"));
        assert_eq!(told.lock().unwrap().len(), 2);
    });
}

#[test]
fn devices_that_do_not_belong_together_are_refused() {
    assert_eq!(Dispatch::new(vec![], vec![cpu()]).err().unwrap().exit_code(), 2);
    assert!(Dispatch::new(vec![cpu(), fake(None, 1, 1, willing())], vec![]).is_err());
    let other: Arc<dyn Propagator> = Arc::from(build(Survey { nt: 60, ..tiny() }, &CpuOptions::default()).unwrap());
    assert!(Dispatch::new(vec![cpu()], vec![other]).is_err());
    let d = Dispatch::new(vec![cpu()], vec![fake(None, 1, 1, willing())]).unwrap();
    assert_eq!((d.describe(), d.arithmetic()), (cpu().describe(), cpu().arithmetic()));
    assert!(d.wavefields(&model(2000.0), &[Position { z: 1, x: 1 }], &[1.0], 40, &|_, _, _| {}).is_ok());
}

/// Seven gathers of layers with a block in different places.
fn gathers() -> Vec<Observed> {
    let maps = (0..7).map(|k| {
        let map = Array2::from_shape_fn((N, N), |(z, x)| match (z, x) {
            (4..=6, x) if (k..k + 4).contains(&x) => 2900.0,
            (z, _) => 1800.0 + 60.0 * z as f64,
        });
        Model::from_map(map)
    });
    cpu().forward(&maps.collect::<Vec<_>>()).unwrap().into_iter().map(Observed::new).collect()
}

fn settings() -> Settings {
    let low = Stage { max_evals: Some(5), ..Stage::new("low", MisfitSpec::LowPass(12.0)) };
    let fine = Stage { refined: true, max_evals: Some(3), ..Stage::new("fine", MisfitSpec::L2) };
    let stages = vec![low, Stage { max_evals: Some(6), ..Stage::new("full", MisfitSpec::L2) }, fine];
    Settings { stages, ..Settings::default() }
}

fn task(observed: &Observed) -> Task {
    let start = Start::Map(Array2::from_shape_fn((N, N), |(z, _)| 1780.0 + 55.0 * z as f64));
    Task::new(observed.clone(), start)
}

/// What does not depend on the clock.
fn timeless(o: Outcome) -> Outcome {
    Outcome { seconds: 0.0, ..o }
}

type Results = BTreeMap<usize, Result<Outcome>>;

fn many(p: &dyn Propagator, fine: Option<&dyn Propagator>, in_flight: usize, all: &[Observed]) -> Results {
    let results = Mutex::new(Results::new());
    let load = |&i: &usize| match i {
        3 => Err(Error::input("3.npy", "is torn")),
        i => Ok(task(&all[i])),
    };
    let sink = |i, r| {
        assert!(results.lock().unwrap().insert(i, r).is_none());
        Ok(())
    };
    let never = AtomicBool::new(false);
    invert_many(p, fine, 0..all.len(), &settings(), in_flight, &never, load, sink).unwrap();
    results.into_inner().unwrap()
}

#[test]
fn a_batch_gives_the_bits_of_one_inversion_after_the_other() {
    within_a_minute(|| {
        let all = gathers();
        let double = CpuOptions { precision: fwi::wave::Precision::F64, threads: 1, ..CpuOptions::default() };
        let fine: Arc<dyn Propagator> = Arc::from(build(tiny(), &double).unwrap());
        let p = cpu();
        let alone = |o: &Observed| {
            let inversion = Inversion::new(&*p, o, settings()).unwrap().refine(&*fine).unwrap();
            timeless(inversion.run(&task(o).start, &mut ()).unwrap())
        };
        let expected: Vec<Outcome> = all.iter().map(alone).collect();
        assert!(expected.iter().all(|o| o.evaluations >= 12 && o.stages.len() == 3), "{expected:?}");
        let check = |how: &str, results: Results| {
            assert_eq!(results.len(), all.len(), "{how}");
            for (i, r) in results {
                match r {
                    Ok(o) => assert!(timeless(o) == expected[i], "{how}: gather {i}"),
                    Err(e) => assert!(i == 3 && e.to_string() == "3.npy: is torn", "{how}: {e}"),
                }
            }
        };
        for in_flight in [1, 3, 8] {
            check("plain", many(&*p, Some(&*fine), in_flight, &all));
            let slow: Hook = Box::new(|_, _| {
                std::thread::sleep(Duration::from_millis(2));
                Ok(())
            });
            let device = fake(Some(p.clone()), 4, 1, slow);
            let d = Dispatch::new(vec![device.clone()], vec![]).unwrap();
            let refining = Dispatch::new(vec![fine.clone()], vec![]).unwrap();
            check("dispatched", many(&d, Some(&refining), in_flight, &all));
            let largest = device.largest.load(Ordering::Relaxed);
            assert!(
                if in_flight == 1 { largest == 1 } else { largest > 1 },
                "{in_flight} in flight, {largest} at a time"
            );
        }
        // a device that is lost on the way, with others' requests on it
        let dying = fake(Some(p.clone()), 4, 2, Box::new(|call, _| if call < 9 { Ok(()) } else { Err(lost()) }));
        let d = Dispatch::new(vec![dying], vec![p.clone()]).unwrap();
        check("lost", many(&d, Some(&*fine), 5, &all));
        let s = d.statistics();
        assert!(s[0].lost && s[0].requests > 0 && s[1].active && s[1].requests > 0, "{s:?}");
    });
}

#[test]
fn a_batch_ends_on_request_on_a_full_disk_and_without_devices() {
    within_a_minute(|| {
        let all = gathers();
        let (p, never) = (cpu(), AtomicBool::new(false));
        let load = |&i: &usize| Ok(task(&all[i % all.len()]));
        // asked to stop at the second result: what is done stays, no other is reported
        let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let sink = |_, r: Result<Outcome>| {
            assert!(r.unwrap().stop != StopReason::Cancelled);
            if done.fetch_add(1, Ordering::SeqCst) == 1 {
                stop.store(true, Ordering::SeqCst);
            }
            Ok(())
        };
        invert_many(&*p, None, 0..1000, &settings(), 2, &stop, load, sink).unwrap();
        assert!((2..=3).contains(&done.load(Ordering::SeqCst)));

        let full = |_, _| Err(Error::io("results.jsonl", "write", std::io::ErrorKind::StorageFull.into()));
        let e = invert_many(&*p, None, 0..1000, &settings(), 3, &never, load, full).unwrap_err();
        assert_eq!(e.exit_code(), 4);

        let told = AtomicUsize::new(0);
        let count = |_, _| {
            told.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let d = Dispatch::new(vec![fake(Some(p.clone()), 4, 2, Box::new(|_, _| Err(lost())))], vec![]).unwrap();
        let e = invert_many(&d, None, 0..1000, &settings(), 3, &never, load, count).unwrap_err();
        assert_eq!((e.exit_code(), told.load(Ordering::SeqCst)), (7, 0));

        // a panic while loading is that job's error
        let bad = |_: &usize| -> Result<Task> { panic!("torn apart") };
        let sink = |i, r: Result<Outcome>| {
            assert!(r.unwrap_err().to_string().contains("torn apart"), "job {i}");
            told.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        invert_many(&*p, None, 0..3usize, &settings(), 2, &never, bad, sink).unwrap();
        assert_eq!(told.load(Ordering::SeqCst), 3);
    });
}
