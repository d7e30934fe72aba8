//! Reading, modelling and writing of a stack side by side, each gather in its turn and no more than a few at a time.
//!
//! A reader, the device's lanes, encoders and the writer hand blocks of gathers on through bounded channels. A block
//! needs a permit before it is read and gives it back when it is written, which bounds the memory also when blocks
//! overtake each other. An error travels like a block and is raised when its turn comes, so it is that of the first gather
//! that has one; the writer then leaves, the channels close and every thread ends.

use fwi::io::{ArrayWriter, DType};
use fwi::{Error, Gather, Model, Propagator, Result};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard};
use std::thread;

/// How much is under way.
#[derive(Clone, Copy)]
pub struct Flow {
    /// Gathers in a block.
    pub block: usize,
    /// Blocks from reading to writing.
    pub blocks: usize,
}

/// Threads that turn gathers into bytes.
const ENCODERS: usize = 2;

/// A block's place and what has become of it so far.
type Block<T> = (usize, Result<Vec<T>>);

impl Flow {
    /// What keeps a propagator busy, if `fit` gathers may be held at a time.
    pub fn of(propagator: &dyn Propagator, fit: usize) -> Self {
        let block = propagator.batch().clamp(1, fit.max(1));
        // one block being read and one written besides those of lanes and encoders
        Self { block, blocks: (fit / block).clamp(1, 2 * propagator.lanes().max(1) + ENCODERS + 2) }
    }
}

/// Models the maps `0..n` that `read` gives and writes the gathers as `dtype` in order, telling `progress` how many.
pub fn stream(
    n: usize,
    read: impl FnMut(usize) -> Result<Model> + Send,
    propagator: &dyn Propagator,
    writer: &mut ArrayWriter,
    dtype: DType,
    flow: Flow,
    progress: impl FnMut(usize),
) -> Result<()> {
    let (permit, permits) = sync_channel(flow.blocks);
    (0..flow.blocks).for_each(|_| permit.send(()).expect("there is room for all"));
    let (to_model, models) = sync_channel(flow.blocks);
    let (to_encode, gathers) = sync_channel(flow.blocks);
    let (to_write, encoded) = sync_channel(flow.blocks);
    // of bytes that are written: fresh memory costs the system more than the conversion into it
    let (models, gathers, buffers) = (Mutex::new(models), Mutex::new(gathers), Mutex::new(vec![]));
    thread::scope(|scope| {
        scope.spawn(|| read_blocks(n, flow.block, read, permits, to_model));
        let (models, gathers, buffers) = (&models, &gathers, &buffers);
        for _ in 0..propagator.lanes().max(1) {
            let next = to_encode.clone();
            scope.spawn(move || work(models, next, |models: Vec<Model>| propagator.forward(&models)));
        }
        for _ in 0..ENCODERS {
            let next = to_write.clone();
            let encode = move |gathers: Vec<Gather>| {
                let one = |gather: Gather| {
                    let mut bytes = lock(buffers).pop().unwrap_or_default();
                    dtype.encode(gather.data.view(), &mut bytes);
                    bytes
                };
                Ok(gathers.into_iter().map(one).collect())
            };
            scope.spawn(move || work(gathers, next, encode));
        }
        drop((to_encode, to_write));
        write_blocks(n, flow.block, encoded, permit, writer, buffers, progress)
    })
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

fn read_blocks(
    n: usize,
    block: usize,
    mut read: impl FnMut(usize) -> Result<Model>,
    permits: Receiver<()>,
    next: SyncSender<Block<Model>>,
) {
    for (place, first) in (0..n).step_by(block).enumerate() {
        if permits.recv().is_err() {
            return;
        }
        let models: Result<Vec<Model>> = (first..(first + block).min(n)).map(&mut read).collect();
        let failed = models.is_err();
        if next.send((place, models)).is_err() || failed {
            return;
        }
    }
}

/// Takes blocks until there are no more, passing errors on as they are.
fn work<A, B>(blocks: &Mutex<Receiver<Block<A>>>, next: SyncSender<Block<B>>, step: impl Fn(Vec<A>) -> Result<Vec<B>>) {
    loop {
        let taken = lock(blocks).recv();
        let Ok((place, block)) = taken else { return };
        if next.send((place, block.and_then(&step))).is_err() {
            return;
        }
    }
}

fn write_blocks(
    n: usize,
    block: usize,
    encoded: Receiver<Block<Vec<u8>>>,
    permit: SyncSender<()>,
    writer: &mut ArrayWriter,
    buffers: &Mutex<Vec<Vec<u8>>>,
    mut progress: impl FnMut(usize),
) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut done = 0;
    for place in 0..n.div_ceil(block) {
        let gathers = loop {
            if let Some(gathers) = early.remove(&place) {
                break gathers;
            }
            match encoded.recv() {
                Ok((at, gathers)) => drop(early.insert(at, gathers)),
                // a thread has panicked, which the scope passes on
                Err(_) => return Err(Error::Numerical("the modelling ended early".into())),
            }
        };
        for bytes in gathers? {
            writer.append_encoded(&bytes)?;
            lock(buffers).push(bytes);
            done += 1;
        }
        progress(done);
        // the reader may be through
        let _ = permit.send(());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fwi::wave::{Evaluation, WavefieldVisitor};
    use fwi::{Misfit, Observed, Position, Survey};
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
        fn gradient_bytes(&self) -> u64 {
            0
        }
    }

    fn run(p: &Instantly, n: usize, fit: usize, path: &Path, bad: Option<usize>) -> Result<()> {
        let (ns, nt, nr) = p.gather.data.dim();
        let mut writer = ArrayWriter::create(path, &[ns, nt, nr], DType::F32, Some(n))?;
        let read = |i| match bad {
            Some(b) if b == i => Err(Error::Usage(format!("map {i}"))),
            _ => Ok(Model { vp: Array2::zeros((1, 1)), vmin: i as f64 }),
        };
        let mut last = 0;
        stream(n, read, p, &mut writer, DType::F32, Flow::of(p, fit), |done| {
            assert!(done > last);
            last = done;
        })?;
        assert_eq!(last, n);
        writer.finish()
    }

    #[test]
    fn gathers_stay_in_order_and_the_first_error_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.npy");
        let gather = Gather::new(Array3::from_shape_fn((2, 3, 4), |(a, b, c)| (a * 12 + b * 4 + c) as f64 / 3.0));
        for lanes in [1, 3] {
            let p = Instantly { survey: Survey::openfwi(), gather: gather.clone(), lanes, jitter: true };
            for fit in [1, 3, 1000] {
                run(&p, 20, fit, &path, None).unwrap();
                let mut written = fwi::io::Gathers::open(&path, (2, 3, 4), &Default::default()).unwrap();
                let all: Vec<Array3<f64>> = written.iter().collect::<Result<_>>().unwrap();
                for (i, g) in all.iter().enumerate() {
                    let mut expected = gather.data.mapv(|x| f64::from(x as f32));
                    expected[[0, 0, 0]] = i as f64;
                    assert_eq!(*g, expected, "{lanes} lanes, {fit} fit, gather {i}");
                }
                assert_eq!(run(&p, 40, fit, &path, Some(30)).unwrap_err().to_string(), "twenty-three");
                assert_eq!(run(&p, 40, fit, &path, Some(19)).unwrap_err().to_string(), "map 19");
            }
        }
    }

    /// What the host can do beside a device that takes no time at all: `FWI_STREAM=2000 cargo test --release stream`.
    #[test]
    fn the_host_keeps_up() {
        let n: usize = std::env::var("FWI_STREAM").ok().map_or(60, |n| n.parse().expect("FWI_STREAM is a number"));
        let dir = tempfile::tempdir().unwrap();
        let survey = Survey::openfwi();
        let gather = Gather::new(Array3::from_shape_fn(survey.gather_shape(), |(a, b, c)| (a + b * c) as f64 * 1e-3));
        let p = Instantly { survey, gather, lanes: 2, jitter: false };
        let since = Instant::now();
        let (ns, nt, nr) = p.gather.data.dim();
        let mut writer = ArrayWriter::create(dir.path().join("o.npy"), &[ns, nt, nr], DType::F32, Some(n)).unwrap();
        let read = |i| Ok(Model { vp: Array2::zeros((70, 70)), vmin: 100.0 + i as f64 });
        stream(n, read, &p, &mut writer, DType::F32, Flow::of(&p, 24), |_| ()).unwrap();
        let rate = n as f64 / since.elapsed().as_secs_f64();
        println!("{rate:.0} gathers/s, {:.2} GB/s", rate * 1.4e-3);
        assert!(rate > 30.0, "{rate} gathers/s");
    }
}
