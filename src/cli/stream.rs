//! Reading, modelling, encoding and writing of samples side by side, each in its turn and no more than a few at a time.
//!
//! Readers, the device's lanes, encoders and the writer hand blocks of samples on through bounded channels. A block
//! needs a permit before it is read and gives it back when it is written, which bounds the memory also when blocks
//! overtake each other. An error travels like a block and is raised when its turn comes, so it is that of the first sample
//! that has one; the writer then leaves, the channels close and every thread ends.

use fwi::{Error, Propagator, Result};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard};
use std::thread;

/// How much is under way, and how many threads work on it.
#[derive(Clone, Copy)]
pub struct Flow {
    /// Samples in a block.
    pub block: usize,
    /// Blocks from reading to writing.
    pub blocks: usize,
    /// Threads that read; blocks are read in order by a single one only.
    pub readers: usize,
    /// Threads that model.
    pub lanes: usize,
    /// Threads that turn samples into what is written.
    pub encoders: usize,
}

/// Threads that turn gathers into bytes.
const ENCODERS: usize = 2;

/// A block's place and what has become of it so far.
type Block<T> = (usize, Result<Vec<T>>);

impl Flow {
    /// What keeps a propagator busy, if `fit` gathers may be held at a time.
    pub fn of(propagator: &dyn Propagator, fit: usize) -> Self {
        let lanes = propagator.lanes().max(1);
        Self::new(propagator.batch().clamp(1, fit.max(1)), lanes, 1, ENCODERS, fit)
    }

    /// So many threads of each kind, and blocks enough for them if `fit` samples may be held at a time.
    pub fn new(block: usize, lanes: usize, readers: usize, encoders: usize, fit: usize) -> Self {
        // one block being read and one written besides those of lanes and encoders
        Self { block, blocks: (fit / block).clamp(1, 2 * lanes + encoders + readers + 1), readers, lanes, encoders }
    }
}

/// Takes samples `0..n` through the four steps and writes them in order; returns how many. Once `stop` is set no more are
/// begun, and those under way are written.
pub fn stream<A: Send, B: Send, C: Send>(
    n: usize,
    flow: Flow,
    stop: &AtomicBool,
    read: impl Fn(usize) -> Result<A> + Sync,
    model: impl Fn(Vec<A>) -> Result<Vec<B>> + Sync,
    encode: impl Fn(B) -> Result<C> + Sync,
    write: impl FnMut(C) -> Result<()>,
) -> Result<usize> {
    let (permit, permits) = sync_channel(flow.blocks);
    (0..flow.blocks).for_each(|_| permit.send(()).expect("there is room for all"));
    let (to_read, indices) = sync_channel(flow.blocks);
    let (to_model, models) = sync_channel(flow.blocks);
    let (to_encode, gathers) = sync_channel(flow.blocks);
    let (to_write, encoded) = sync_channel(flow.blocks);
    let (indices, models, gathers) = (Mutex::new(indices), Mutex::new(models), Mutex::new(gathers));
    thread::scope(|scope| {
        let issue = move || {
            for (place, first) in (0..n).step_by(flow.block).enumerate() {
                let block: Vec<usize> = (first..(first + flow.block).min(n)).collect();
                if permits.recv().is_err() || stop.load(Ordering::Relaxed) || to_read.send((place, Ok(block))).is_err()
                {
                    return;
                }
            }
        };
        scope.spawn(issue);
        let (indices, models, gathers, read, model, encode) = (&indices, &models, &gathers, &read, &model, &encode);
        for _ in 0..flow.readers {
            let next = to_model.clone();
            scope.spawn(move || work(indices, next, |block| block.into_iter().map(read).collect()));
        }
        for _ in 0..flow.lanes {
            let next = to_encode.clone();
            scope.spawn(move || work(models, next, model));
        }
        for _ in 0..flow.encoders {
            let next = to_write.clone();
            scope.spawn(move || work(gathers, next, |block| block.into_iter().map(encode).collect()));
        }
        drop((to_model, to_encode, to_write));
        write_blocks(n, flow.block, stop, encoded, permit, write)
    })
}

/// The lock, whatever became of its last holder.
pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

/// Takes blocks until there are no more, passing errors on as they are.
fn work<A, B>(blocks: &Mutex<Receiver<Block<A>>>, next: SyncSender<Block<B>>, step: impl Fn(Vec<A>) -> Result<Vec<B>>) {
    loop {
        let taken = lock(blocks).recv();
        let Ok((place, block)) = taken else { return };
        // the others would wait for this block for ever
        let broken = |_| Err(Error::Numerical("a thread broke down".into()));
        let made = catch_unwind(AssertUnwindSafe(|| block.and_then(&step))).unwrap_or_else(broken);
        if next.send((place, made)).is_err() {
            return;
        }
    }
}

fn write_blocks<C>(
    n: usize,
    block: usize,
    stop: &AtomicBool,
    encoded: Receiver<Block<C>>,
    permit: SyncSender<()>,
    mut write: impl FnMut(C) -> Result<()>,
) -> Result<usize> {
    let mut early = BTreeMap::new();
    let mut done = 0;
    for place in 0..n.div_ceil(block) {
        let samples = loop {
            if let Some(samples) = early.remove(&place) {
                break samples;
            }
            match encoded.recv() {
                Ok((at, samples)) => drop(early.insert(at, samples)),
                Err(_) if stop.load(Ordering::Relaxed) && early.is_empty() => return Ok(done),
                // nobody is left to send it
                Err(_) => return Err(Error::Numerical("the modelling ended early".into())),
            }
        };
        for sample in samples? {
            write(sample)?;
            done += 1;
        }
        // the reader may be through
        let _ = permit.send(());
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fwi::io::{ArrayWriter, DType};
    use fwi::wave::{Evaluation, WavefieldVisitor};
    use fwi::{Gather, Misfit, Model, Observed, Position, Survey};
    use ndarray::{Array2, Array3};
    use std::path::Path;
    use std::time::{Duration, Instant};

    /// Hands out one gather, marked with the map's number; later blocks are sooner ready.
    struct Instantly {
        survey: Survey,
        gather: Gather,
        lanes: usize,
        jitter: bool,
    }

    impl Propagator for Instantly {
        fn survey(&self) -> &Survey {
            &self.survey
        }
        fn describe(&self) -> String {
            "instantly".into()
        }
        fn arithmetic(&self) -> String {
            "none".into()
        }
        fn forward(&self, models: &[Model]) -> Result<Vec<Gather>> {
            if models.iter().any(|m| m.vmin == 23.0) {
                return Err(Error::Numerical("twenty-three".into()));
            }
            if self.jitter {
                thread::sleep(Duration::from_millis(9 - models[0].vmin as u64 % 10));
            }
            let marked = |m: &Model| {
                let mut g = self.gather.clone();
                g.data[[0, 0, 0]] = m.vmin;
                g
            };
            Ok(models.iter().map(marked).collect())
        }
        fn born(&self, _: &[Model], _: &[Model]) -> Result<Vec<Gather>> {
            unreachable!()
        }
        fn misfit_and_gradient(&self, _: &[Model], _: &[Observed], _: &dyn Misfit) -> Result<Vec<Evaluation>> {
            unreachable!()
        }
        fn wavefields(&self, _: &Model, _: &[Position], _: &[f64], _: usize, _: &WavefieldVisitor) -> Result<()> {
            unreachable!()
        }
        fn batch(&self) -> usize {
            3
        }
        fn lanes(&self) -> usize {
            self.lanes
        }
        fn gradient_bytes(&self, _: bool) -> u64 {
            0
        }
    }

    fn run(p: &Instantly, n: usize, flow: Flow, path: &Path, bad: Option<usize>, stop: &AtomicBool) -> Result<usize> {
        let (ns, nt, nr) = p.gather.data.dim();
        let mut writer = ArrayWriter::create(path, &[ns, nt, nr], DType::F32, None)?;
        let read = |i| match bad {
            Some(b) if b == i => Err(Error::Usage(format!("map {i}"))),
            _ => Ok(Model { vp: Array2::zeros((1, 1)), vmin: i as f64 }),
        };
        let done = stream(n, flow, stop, read, |m: Vec<Model>| p.forward(&m), Ok, |g| writer.append(g.data.view()))?;
        writer.finish()?;
        Ok(done)
    }

    #[test]
    fn a_thread_that_breaks_down_ends_all() {
        let gather = Gather::new(Array3::zeros((1, 1, 1)));
        let p = Instantly { survey: Survey::openfwi(), gather, lanes: 3, jitter: false };
        let read = |i| Ok(Model { vp: Array2::zeros((1, 1)), vmin: i as f64 });
        let model = |m: Vec<Model>| if m[0].vmin == 6.0 { panic!("of a test") } else { p.forward(&m) };
        let flow = Flow { readers: 2, ..Flow::of(&p, 30) };
        let error = stream(20, flow, &AtomicBool::new(false), read, model, Ok, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("a thread broke down"), "{error}");
    }

    #[test]
    fn gathers_stay_in_order_and_the_first_error_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.npy");
        let gather = Gather::new(Array3::from_shape_fn((2, 3, 4), |(a, b, c)| (a * 12 + b * 4 + c) as f64 / 3.0));
        let go = AtomicBool::new(false);
        for lanes in [1, 3] {
            let p = Instantly { survey: Survey::openfwi(), gather: gather.clone(), lanes, jitter: true };
            for (fit, readers) in [(1, 1), (3, 2), (1000, 1), (1000, 4)] {
                let flow = Flow { readers, ..Flow::of(&p, fit) };
                assert_eq!(run(&p, 20, flow, &path, None, &go).unwrap(), 20);
                let mut written = fwi::io::Gathers::open(&path, (2, 3, 4), &Default::default()).unwrap();
                let all: Vec<Array3<f64>> = written.iter().collect::<Result<_>>().unwrap();
                for (i, g) in all.iter().enumerate() {
                    let mut expected = gather.data.mapv(|x| f64::from(x as f32));
                    expected[[0, 0, 0]] = i as f64;
                    assert_eq!(*g, expected, "{lanes} lanes, {fit} fit, gather {i}");
                }
                assert_eq!(run(&p, 40, flow, &path, Some(30), &go).unwrap_err().to_string(), "twenty-three");
                assert_eq!(run(&p, 40, flow, &path, Some(19), &go).unwrap_err().to_string(), "map 19");
            }
        }
    }

    #[test]
    fn what_is_under_way_is_written_after_a_stop() {
        let gather = Gather::new(Array3::zeros((1, 2, 2)));
        let p = Instantly { survey: Survey::openfwi(), gather, lanes: 2, jitter: true };
        let (stop, written) = (AtomicBool::new(false), Mutex::new(vec![]));
        let read = |i: usize| Ok(Model { vp: Array2::zeros((1, 1)), vmin: 100.0 + i as f64 });
        let write = |g: Gather| {
            lock(&written).push(g.data[[0, 0, 0]]);
            stop.store(lock(&written).len() >= 5, Ordering::Relaxed);
            Ok(())
        };
        let done = stream(10_000, Flow::of(&p, 1000), &stop, read, |m: Vec<Model>| p.forward(&m), Ok, write).unwrap();
        let written = lock(&written);
        assert!((5..100).contains(&done) && written.len() == done, "{done}");
        assert!(written.iter().enumerate().all(|(i, &v)| v == 100.0 + i as f64));
    }

    /// What the host can do beside a device that takes no time at all: `FWI_STREAM=2000 cargo test --release stream`.
    #[test]
    fn buffers_go_round() {
        let n: usize = std::env::var("FWI_STREAM").ok().map_or(60, |n| n.parse().expect("FWI_STREAM is a number"));
        let dir = tempfile::tempdir().unwrap();
        let survey = Survey::openfwi();
        let gather = Gather::new(Array3::from_shape_fn(survey.gather_shape(), |(a, b, c)| (a + b * c) as f64 * 1e-3));
        let p = Instantly { survey, gather, lanes: 2, jitter: false };
        let since = Instant::now();
        let (ns, nt, nr) = p.gather.data.dim();
        let mut writer = ArrayWriter::create(dir.path().join("o.npy"), &[ns, nt, nr], DType::F32, Some(n)).unwrap();
        let read = |i| Ok(Model { vp: Array2::zeros((70, 70)), vmin: 100.0 + i as f64 });
        let buffers = Mutex::new(vec![]);
        let encode = |g: Gather| {
            let mut bytes = lock(&buffers).pop().unwrap_or_default();
            DType::F32.encode(g.data.view(), &mut bytes);
            Ok(bytes)
        };
        let write = |bytes: Vec<u8>| {
            writer.append_encoded(&bytes)?;
            lock(&buffers).push(bytes);
            Ok(())
        };
        let go = AtomicBool::new(false);
        let done = stream(n, Flow::of(&p, 24), &go, read, |m: Vec<Model>| p.forward(&m), encode, write).unwrap();
        assert_eq!(done, n);
        let rate = n as f64 / since.elapsed().as_secs_f64();
        println!("{rate:.0} gathers/s, {:.2} GB/s", rate * 1.4e-3);
    }
}
