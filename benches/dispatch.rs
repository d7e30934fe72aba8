//! Whether this machine's cores keep a GPU busy in a batch of inversions: a pretended device takes a set time a gradient
//! and does nothing, the queue and the optimisers are the real ones. Prints evaluations a second and the share of the
//! time in which the device was at work.
//!
//! `cargo bench --bench dispatch -- [milliseconds a gradient] [inversions in flight]`, 1.4 and 192 by default.

use fwi::invert::{Settings, Start, Task, invert_many};
use fwi::wave::{Dispatch, Evaluation, Propagator, WavefieldVisitor};
use fwi::{Error, Gather, Misfit, Model, Observed, Position, Result, Survey};
use ndarray::{Array2, Array3};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One device with two streams: calls wait for each other, as kernels do.
struct Pretended {
    survey: Survey,
    a_gradient: Duration,
    /// Time at work, and gradients.
    done: Mutex<(Duration, usize)>,
}

impl Pretended {
    /// A quadratic misfit of uneven curvature stands for the waves' one.
    fn evaluation(m: &Model) -> Evaluation {
        let mut value = 0.0;
        let vp = Array2::from_shape_fn(m.vp.dim(), |(z, x)| {
            let weight = 1.0 + ((z * 70 + x) % 97) as f64 * 3.0;
            let off = (m.vp[[z, x]] - 2500.0 - ((z * 13 + x * 7) % 50) as f64) / 100.0;
            value += 0.5 * weight * off * off;
            weight * off / 100.0
        });
        Evaluation { value, gradient: Model { vp, vmin: 0.0 }, data_rms: (value / 4900.0).sqrt() }
    }
}

impl Propagator for Pretended {
    fn survey(&self) -> &Survey {
        &self.survey
    }
    fn describe(&self) -> String {
        format!("a pretended device, {:?} a gradient", self.a_gradient)
    }
    fn arithmetic(&self) -> String {
        "pretended".into()
    }
    fn misfit_and_gradient(&self, models: &[Model], _: &[Observed], _: &dyn Misfit) -> Result<Vec<Evaluation>> {
        let mut done = self.done.lock().unwrap_or_else(|e| e.into_inner());
        let since = Instant::now();
        std::thread::sleep(self.a_gradient * models.len() as u32);
        *done = (done.0 + since.elapsed(), done.1 + models.len());
        drop(done);
        Ok(models.iter().map(Self::evaluation).collect())
    }
    fn forward(&self, _: &[Model]) -> Result<Vec<Gather>> {
        Err(Error::Usage("only gradients are pretended".into()))
    }
    fn born(&self, _: &[Model], _: &[Model]) -> Result<Vec<Gather>> {
        Err(Error::Usage("only gradients are pretended".into()))
    }
    fn wavefields(&self, _: &Model, _: &[Position], _: &[f64], _: usize, _: &WavefieldVisitor) -> Result<()> {
        Err(Error::Usage("only gradients are pretended".into()))
    }
    fn batch(&self) -> usize {
        32
    }
    fn lanes(&self) -> usize {
        2
    }
    fn gradient_bytes(&self, _: bool) -> u64 {
        0
    }
}

fn main() -> Result<()> {
    // cargo adds --bench
    let numbers: Vec<f64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let ms = numbers.first().copied().unwrap_or(1.4);
    let in_flight = numbers.get(1).map_or(192, |&n| n as usize).max(1);
    let survey = Survey::openfwi();
    let samples = Array3::from_shape_fn(survey.gather_shape(), |(s, t, r)| ((s + t + r) % 7) as f64);
    let observed = Observed::new(Gather::new(samples));
    let a_gradient = Duration::from_secs_f64(ms.max(0.0) / 1e3);
    let device = Arc::new(Pretended { survey, a_gradient, done: Mutex::default() });
    let dispatch = Dispatch::new(vec![device.clone()], vec![])?;
    let settings = Settings { max_evals: Some(120), ..Settings::default() };
    let cancel = AtomicBool::new(false);
    let load = |_: &usize| Ok(Task::new(observed.clone(), Start::Gradient));
    let since = Instant::now();
    let sink = |_, outcome: Result<_>| outcome.map(drop);
    invert_many(&dispatch, None, 0..3 * in_flight, &settings, in_flight, &cancel, load, sink)?;
    let seconds = since.elapsed().as_secs_f64();
    let (busy, gradients) = *device.done.lock().unwrap_or_else(|e| e.into_inner());
    println!("{}, {in_flight} inversions in flight, {} in all", dispatch.describe(), 3 * in_flight);
    println!(
        "{:.0} evaluations/s, the device at work {:.1}% of the time, {:.1} gradients a call",
        gradients as f64 / seconds,
        100.0 * busy.as_secs_f64() / seconds,
        dispatch.statistics()[0].mean_batch
    );
    Ok(())
}
