//! The propagator on NVIDIA GPUs: the kernels of `kernels/`, for batches of models, f32 and f64.
//!
//! ```text
//! mod.rs      the Propagator: batches cut to the device's memory
//! evaluate.rs misfit and gradient: the order of kernels
//! gathers.rs  observed gathers that stay on the device
//! lane.rs     one stream: device memory, kernel sequences
//! plan.rs     sizes: which kernels fit, what a shot takes
//! params.rs   the kernels' parameter
//! runtime.rs  the seam to the device
//! driver.rs   a real device, with api.rs and device.rs
//! compile.rs  machine code for it
//! ```
//!
//! An evaluation makes no round trip: models go up, gradients come down. Coefficients, causal windows, misfit, adjoint
//! source and the folding of the gradient are kernels too; only a misfit without a name is evaluated on the host. Each
//! shot is computed for itself and sums have a fixed order, so results depend neither on the batch nor on the lane.

mod api;
pub mod compile;
mod device;
pub mod driver;
mod evaluate;
mod gathers;
mod lane;
pub mod params;
mod plan;
pub mod runtime;

use super::cpu::correlation_weights;
use super::{
    Evaluation, Fidelity, FieldView, Precision, Propagator, WavefieldVisitor, check_directions, check_model,
    check_wavefields, same_length,
};
use crate::{Error, Gather, Misfit, Model, Observed, Position, Result, Survey};
use evaluate::{Coded, Summed, Target};
use lane::{Lane, Levels, Shots};
use ndarray::{Array3, ArrayView3, s};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

pub use plan::{History, Kind, Plan};
pub use runtime::{Launch, Limits, Runtime};

/// How a [`Cuda`] propagator runs. The default is f32, fast, history in f32, kernels and batch as the device allows.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Floating-point type of the fields.
    pub precision: Precision,
    /// `None`: fast in f32, exact in f64.
    pub fidelity: Option<Fidelity>,
    /// Type of the stored forward field.
    pub history: History,
    /// Which kernels step the fields; `None` takes the fastest that fit.
    pub kind: Option<Kind>,
    /// Most models in a call's launch; `None` takes enough to fill the device.
    pub batch: Option<usize>,
    /// Most device memory to take, bytes; `None` takes most of what is free.
    pub max_bytes: Option<u64>,
    /// Propagators that share the device's memory, this one included.
    pub parts: u64,
    /// Most threads a block.
    pub max_block: u32,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            precision: Precision::F32,
            fidelity: None,
            history: History::Full,
            kind: None,
            batch: None,
            max_bytes: None,
            parts: 1,
            max_block: 1024,
        }
    }
}

/// The steps at which a gradient is summed.
struct Sums {
    weight: Vec<f64>,
    count: usize,
}

impl Sums {
    fn new(weight: Vec<f64>) -> Self {
        let count = weight.iter().filter(|&&w| w != 0.0).count();
        Self { weight, count }
    }

    fn levels(&self) -> Levels<'_> {
        Levels { weight: &self.weight, count: self.count }
    }
}

/// The propagator on one GPU. Each lane is a stream of its own: a call takes one, so that two threads keep the device
/// busy while one of them prepares or reads.
pub struct Cuda {
    plan: Plan,
    fidelity: Fidelity,
    decimation: usize,
    bandwidth: f64,
    sparse: Sums,
    full: Sums,
    lanes: Vec<Mutex<Lane>>,
    /// Most shots of a launch.
    most: usize,
    /// Bytes that a lane may take; falls when the device's memory is exhausted.
    memory: AtomicU64,
    name: String,
}

impl Cuda {
    /// A propagator on a device, a lane for each of `runtimes`, which must be streams of the same device. Errors on a
    /// senseless survey, on kernels that do not fit, and when not even one shot fits the device's memory.
    pub fn new(survey: Survey, options: &CudaOptions, runtimes: Vec<Box<dyn Runtime>>) -> Result<Self> {
        survey.validate()?;
        let first =
            runtimes.first().ok_or_else(|| Error::Usage("a GPU propagator needs at least one stream".into()))?;
        let limits = first.limits().clone();
        let fidelity = options.fidelity.unwrap_or(options.precision.fidelity());
        let bandwidth = survey.bandwidth();
        let decimation = fidelity.decimation(survey.dt, bandwidth);
        let sparse = Sums::new(correlation_weights(survey.nt, decimation));
        let full = Sums::new(vec![1.0; survey.nt]);
        let plan =
            Plan::new(survey, options.precision, options.history, options.kind, options.max_block.max(1), &limits)?;
        let free = first.free_bytes()?;
        // some room is left for kernels, graphs and other users of the device
        let all = options.max_bytes.unwrap_or(u64::MAX).min(free / 10 * 9);
        let memory = all / options.parts.max(1) / runtimes.len() as u64;
        let fit = (memory / plan.shot_bytes(sparse.count) as u64) as usize;
        if fit == 0 {
            return Err(Error::Memory(format!(
                "{}: one shot's gradient takes {} MB of device memory and {} MB are to be had; use --backend cpu",
                limits.name,
                plan.shot_bytes(sparse.count) >> 20,
                memory >> 20
            )));
        }
        let ns = plan.survey.sources.len();
        let models = options.batch.unwrap_or(match plan.kind {
            // twice the clusters that run at a time, so that the last ones to finish weigh little
            Kind::Cluster => (2 * (limits.multiprocessors / 8)).max(1),
            // fields of some thirty shots stay in the second-level cache
            Kind::Steps => 6,
        });
        let most = models.max(1) * ns;
        let memory = AtomicU64::new(memory);
        let lanes = runtimes.into_iter().map(|r| Mutex::new(Lane::new(r))).collect();
        Ok(Self { plan, fidelity, decimation, bandwidth, sparse, full, lanes, most, memory, name: limits.name })
    }

    /// A propagator on GPU number `device` with `lanes` streams. Errors as [`driver::Driver::open`] and [`Cuda::new`] do.
    ///
    /// ```no_run
    /// use fwi::wave::{Cuda, CudaOptions, Propagator};
    /// use fwi::{Model, Survey};
    ///
    /// # fn main() -> fwi::Result<()> {
    /// let gpu = Cuda::open(Survey::openfwi(), &CudaOptions::default(), 0, 2)?;
    /// let maps = vec![Model::from_map(ndarray::Array2::from_elem((70, 70), 2000.0)); gpu.batch()];
    /// let gathers = gpu.forward(&maps)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(survey: Survey, options: &CudaOptions, device: usize, lanes: usize) -> Result<Self> {
        let stream = |_| Ok(Box::new(driver::Driver::open(device)?) as Box<dyn Runtime>);
        Self::new(survey, options, (0..lanes.max(1)).map(stream).collect::<Result<_>>()?)
    }

    /// The sizes and kernels that were chosen.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes of device memory that all lanes take for a gradient at most.
    pub fn device_bytes(&self) -> u64 {
        let levels = self.sparse.count;
        (self.lanes.len() * self.fit(levels) * self.plan.shot_bytes(levels)) as u64
    }

    /// Shots of a launch that keeps so many levels: whole models if a lane's memory holds one.
    fn fit(&self, levels: usize) -> usize {
        let ns = self.plan.survey.sources.len();
        let shots = (self.memory.load(Ordering::Relaxed) / self.plan.shot_bytes(levels) as u64) as usize;
        let shots = shots.clamp(1, self.most);
        if shots >= ns { shots / ns * ns } else { shots }
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        for lane in &self.lanes {
            match lane.try_lock() {
                Ok(lane) => return lane,
                Err(TryLockError::Poisoned(lane)) => return lane.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.lanes[0].lock().unwrap_or_else(|e| e.into_inner())
    }

    fn check(&self, models: &[Model]) -> Result<()> {
        models.iter().try_for_each(|m| check_model(&self.plan.survey, self.bandwidth, m))
    }

    /// Cuts the shots of `models` models, of whose fields `levels` are kept, into launches of whole models, or of a part of
    /// one's shots where memory is short: `work(lane, models, shots)`. Exhausted memory halves the launches to come.
    fn launches(
        &self,
        models: usize,
        levels: usize,
        mut work: impl FnMut(&mut Lane, Range<usize>, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let ns = self.plan.survey.sources.len();
        let mut lane = self.lane();
        let (mut done, mut retries) = (0, 0); // shots; times that one shot was too much
        while done < models * ns {
            let fit = self.fit(levels);
            let (model, shot) = (done / ns, done % ns);
            let (m, s) = if shot == 0 && fit >= ns {
                (model..(model + fit / ns).min(models), 0..ns)
            } else {
                (model..model + 1, shot..(shot + fit).min(ns))
            };
            let shots = m.len() * s.len();
            match work(&mut lane, m, s) {
                Ok(()) => (done, retries) = (done + shots, 0),
                Err(Error::Memory(_)) if shots > 1 || retries < 3 => {
                    let half = (shots / 2).max(1) * self.plan.shot_bytes(levels);
                    self.memory.fetch_min(half as u64, Ordering::Relaxed);
                    lane.release();
                    if shots == 1 {
                        // what other lanes hold from larger launches, once they are through with them
                        retries += 1;
                        drop(lane);
                        self.release();
                        lane = self.lane();
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn shots<'a>(&'a self, models: &'a [Model], shots: Range<usize>) -> Shots<'a> {
        Shots {
            models,
            sources: &self.plan.survey.sources[shots],
            wavelet: &self.plan.survey.wavelet,
            unit: false,
            causal: self.fidelity == Fidelity::Fast,
        }
    }

    /// The gathers of `models` models, whose shots the launches of `work` give one after the other.
    fn gathers(
        &self,
        models: usize,
        mut work: impl FnMut(&mut Lane, Range<usize>, Range<usize>) -> Result<Vec<f64>>,
    ) -> Result<Vec<Gather>> {
        let shape = self.plan.survey.gather_shape();
        let mut samples: Vec<Vec<f64>> = vec![Vec::new(); models];
        self.launches(models, 0, |lane, m, shots| {
            let data = work(lane, m.clone(), shots.clone())?;
            for (to, from) in samples[m].iter_mut().zip(data.chunks(shots.len() * self.plan.samples())) {
                to.extend_from_slice(from);
            }
            Ok(())
        })?;
        let gather = |s| Gather::new(Array3::from_shape_vec(shape, s).expect("all shots of a model were run"));
        Ok(samples.into_iter().map(gather).collect())
    }
}

impl Propagator for Cuda {
    fn survey(&self) -> &Survey {
        &self.plan.survey
    }

    fn describe(&self) -> String {
        let kernels = match self.plan.kind {
            Kind::Cluster => "clusters in shared memory",
            Kind::Steps => "a launch a step",
        };
        format!(
            "{}, {}, {kernels}, {} gathers a launch, at most {} MB of its memory",
            self.name,
            self.arithmetic(),
            self.batch(),
            self.device_bytes() >> 20
        )
    }

    fn arithmetic(&self) -> String {
        let precision = if self.plan.precision == Precision::F64 { "f64" } else { "f32" };
        let half = if self.plan.history == History::Half { " in half precision" } else { "" };
        match self.fidelity {
            Fidelity::Exact => format!("CUDA {precision}, exact"),
            Fidelity::Fast => {
                format!("CUDA {precision}, fast (causal windows, history every {} steps{half})", self.decimation)
            }
        }
    }

    fn batch(&self) -> usize {
        (self.fit(self.sparse.count) / self.plan.survey.sources.len()).max(1)
    }

    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn forward(&self, models: &[Model]) -> Result<Vec<Gather>> {
        self.check(models)?;
        self.gathers(models.len(), |lane, m, shots| {
            let mut p = lane.stage(&self.plan, &self.shots(&models[m], shots), None)?;
            lane.forward(&self.plan, &mut p)?;
            lane.data(&self.plan, &p)
        })
    }

    fn born(&self, models: &[Model], directions: &[Model]) -> Result<Vec<Gather>> {
        check_directions(&self.plan.survey, directions, models.len())?;
        self.check(models)?;
        self.gathers(models.len(), |lane, m, shots| {
            let staged = self.shots(&models[m.clone()], shots);
            let mut p = lane.stage(&self.plan, &staged, Some(&directions[m]))?;
            lane.born(&self.plan, &mut p)?;
            lane.data(&self.plan, &p)
        })
    }

    fn misfit_and_gradient(
        &self,
        models: &[Model],
        observed: &[Observed],
        misfit: &dyn Misfit,
    ) -> Result<Vec<Evaluation>> {
        same_length("observed gathers", observed.len(), models.len())?;
        super::check_observed(&self.plan.survey, observed)?;
        let code = Coded::new(misfit.spec(), self.plan.survey.dt)?;
        let summed = self.evaluate(models, &Target::Observed(observed, misfit, code))?;
        let evaluation = |(s, o): (Summed, &Observed)| Evaluation {
            value: s.value,
            gradient: s.gradient,
            data_rms: (s.squares / o.mask.samples().max(1) as f64).sqrt(),
        };
        Ok(summed.into_iter().zip(observed).map(evaluation).collect())
    }

    fn adjoint(&self, models: &[Model], data: &[Gather]) -> Result<Vec<Model>> {
        same_length("data vectors", data.len(), models.len())?;
        if let Some(d) = data.iter().find(|d| d.data.dim() != self.plan.survey.gather_shape()) {
            let (found, wanted) = (d.data.dim(), self.plan.survey.gather_shape());
            return Err(Error::Usage(format!("a data vector is {found:?} but the survey records {wanted:?}")));
        }
        Ok(self.evaluate(models, &Target::Vector(data))?.into_iter().map(|s| s.gradient).collect())
    }

    fn wavefields(
        &self,
        model: &Model,
        sources: &[Position],
        wavelet: &[f64],
        every: usize,
        visit: &WavefieldVisitor,
    ) -> Result<()> {
        self.check(std::slice::from_ref(model))?;
        check_wavefields(&self.plan.survey, sources, every)?;
        // stored as they are, not in half precision
        let plan = Plan { history: History::Full, ..self.plan.clone() };
        let weight: Vec<f64> = (0..plan.survey.nt).map(|m| f64::from(u8::from(m.is_multiple_of(every)))).collect();
        let levels = Sums::new(weight);
        let mut at_once = (self.memory.load(Ordering::Relaxed) / plan.shot_bytes(levels.count) as u64).max(1) as usize;
        let mut lane = self.lane();
        let mut done = 0;
        while done < sources.len() {
            let end = (done + at_once).min(sources.len());
            let shots = Shots {
                models: std::slice::from_ref(model),
                sources: &sources[done..end],
                wavelet,
                unit: true,
                causal: false,
            };
            let fields = lane.stage(&plan, &shots, None).and_then(|mut p| {
                lane.keep(&plan, &mut p, &levels.levels())?;
                lane.forward(&plan, &mut p)?;
                Ok(p)
            });
            let p = match fields {
                Err(Error::Memory(_)) if end - done > 1 => {
                    lane.release();
                    at_once = (end - done).div_ceil(2);
                    continue;
                }
                other => other?,
            };
            for i in done..end {
                let all = lane.levels(&plan, &p, i - done)?;
                let shape = (levels.count, plan.rows, plan.hstride);
                let all = ArrayView3::from_shape(shape, &all).expect("as many numbers as were stored");
                for (level, field) in all.outer_iter().enumerate() {
                    visit(i, level, FieldView::F64(field.slice(s![.., ..plan.cols])));
                }
            }
            done = end;
        }
        Ok(())
    }

    fn release(&self) {
        for lane in &self.lanes {
            lane.lock().unwrap_or_else(|e| e.into_inner()).release();
        }
    }

    fn gradient_bytes(&self, _: bool) -> u64 {
        // on the host: a launch's gathers on their way up and its gradients on their way down
        let (ns, nt, nr) = self.plan.survey.gather_shape();
        let shot = 8 * (2 * nt * nr + self.plan.survey.nz * self.plan.survey.nx + 3);
        (self.lanes.len() * self.batch() * ns * shot) as u64
    }
}
