//! Device memory and kernel sequences of one stream: what turns a batch of models into data and gradients.

use super::gathers::Gathers;
use super::params::{Address, BIN, BLOCK, CLUSTER, Params, STEP_THREADS, WINDOW};
use super::plan::{Kind, Plan};
use super::runtime::{Launch, Runtime};
use crate::{Gather, Model, Position, Result};
use bytemuck::Zeroable;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// The buffers of a lane, by what they hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Source,
    Receiver,
    Ricker,
    Damping,
    Velocity,
    Vmin,
    DirectionVelocity,
    DirectionVmin,
    Alpha,
    Inverse,
    Kappa,
    DAlpha,
    DKappa,
    Injection,
    DInjection,
    Crossing,
    Travel,
    Scratch,
    Window,
    Fields,
    Background,
    Data,
    Weight,
    Level,
    History,
    Observed,
    Vectors,
    Live,
    Samples,
    Residual,
    Trace,
    Inject,
    Sums,
    Damped,
    Folded,
    Gradient,
    Count,
}

/// One stream of a device with the memory that its kernels work in. Buffers grow when first needed and stay.
pub struct Lane {
    runtime: Box<dyn Runtime>,
    buffers: Vec<(Address, usize)>,
    gathers: Gathers,
}

/// Observed gathers that stay on the device, for each that a launch needs: lanes take turns, and so do inversions.
pub const KEPT: usize = 4;

impl Drop for Lane {
    fn drop(&mut self) {
        self.release();
    }
}

/// Shots of one launch: all of several models, or a part of one's.
pub struct Shots<'a> {
    /// The models.
    pub models: &'a [Model],
    /// The sources of each of them.
    pub sources: &'a [Position],
    /// What each source does; `unit` leaves it as it is, else it is scaled by `(v dt)^2`.
    pub wavelet: &'a [f64],
    /// See `wavelet`.
    pub unit: bool,
    /// Whether causal windows are used.
    pub causal: bool,
}

/// At which steps the field is stored, with what weight.
pub struct Levels<'a> {
    /// Weight of every step, 0 where nothing is stored.
    pub weight: &'a [f64],
    /// Number of levels.
    pub count: usize,
}

impl Lane {
    /// A lane on a device.
    pub fn new(runtime: Box<dyn Runtime>) -> Self {
        Self { runtime, buffers: vec![(0, 0); Slot::Count as usize], gathers: Gathers::default() }
    }

    /// Gives all buffers back.
    pub fn release(&mut self) {
        self.gathers.release(&*self.runtime);
        for (address, bytes) in &mut self.buffers {
            if *bytes > 0 {
                self.runtime.free(*address);
            }
            (*address, *bytes) = (0, 0);
        }
    }

    /// A buffer of at least `bytes` bytes.
    fn reserve(&mut self, slot: Slot, bytes: usize) -> Result<Address> {
        let (address, have) = self.buffers[slot as usize];
        if have >= bytes.max(1) {
            return Ok(address);
        }
        if have > 0 {
            self.buffers[slot as usize] = (0, 0);
            self.runtime.free(address);
        }
        let address = self.runtime.alloc(bytes.max(1))?;
        self.buffers[slot as usize] = (address, bytes.max(1));
        Ok(address)
    }

    fn put(&mut self, slot: Slot, bytes: &[u8]) -> Result<Address> {
        let address = self.reserve(slot, bytes.len())?;
        if !bytes.is_empty() {
            self.runtime.upload(address, bytes)?;
        }
        Ok(address)
    }

    fn put_f64(&mut self, slot: Slot, numbers: impl Iterator<Item = f64>) -> Result<Address> {
        self.put(slot, bytemuck::cast_slice(&numbers.collect::<Vec<f64>>()))
    }

    fn put_i32(&mut self, slot: Slot, numbers: impl Iterator<Item = i32>) -> Result<Address> {
        self.put(slot, bytemuck::cast_slice(&numbers.collect::<Vec<i32>>()))
    }

    /// Uploads models and sources and computes coefficients, source functions and causal windows.
    pub fn stage(&mut self, plan: &Plan, shots: &Shots, directions: Option<&[Model]>) -> Result<Params> {
        let (sv, t) = (&plan.survey, plan.element());
        let (models, ns) = (shots.models.len(), shots.sources.len());
        let all = models * ns;
        let mut p = Params::zeroed();
        plan.fill(&mut p);
        (p.models, p.shots, p.wavelet) = (models as i32, ns as i32, shots.wavelet.len() as i32);
        (p.unit_source, p.causal) = (i32::from(shots.unit), i32::from(shots.causal));
        let cell = |p: &Position| [(p.z + sv.sponge) as i32, (p.x + sv.sponge) as i32];
        p.source = self.put_i32(Slot::Source, (0..models).flat_map(|_| shots.sources.iter().flat_map(cell)))?;
        p.receiver = self.put_i32(Slot::Receiver, sv.receivers.iter().flat_map(cell))?;
        p.ricker = self.put_f64(Slot::Ricker, shots.wavelet.iter().copied())?;
        p.damping = self.put_f64(Slot::Damping, (0..sv.sponge).map(|i| sv.damping(i)))?;
        p.vp = self.put_f64(Slot::Velocity, shots.models.iter().flat_map(|m| m.vp.iter().copied()))?;
        p.vmin = self.put_f64(Slot::Vmin, shots.models.iter().map(|m| m.vmin))?;
        let cells = sv.nz * sv.nx;
        p.alpha = self.reserve(Slot::Alpha, models * cells * t)?;
        p.inverse = self.reserve(Slot::Inverse, models * cells * t)?;
        p.kappa = self.reserve(Slot::Kappa, models * sv.sponge * t)?;
        p.injection = self.reserve(Slot::Injection, all * shots.wavelet.len() * t)?;
        p.data = self.reserve(Slot::Data, all * sv.nt * sv.receivers.len() * t)?;
        if let Some(d) = directions {
            p.dvp = self.put_f64(Slot::DirectionVelocity, d.iter().flat_map(|m| m.vp.iter().copied()))?;
            p.dvmin = self.put_f64(Slot::DirectionVmin, d.iter().map(|m| m.vmin))?;
            p.d_alpha = self.reserve(Slot::DAlpha, models * cells * t)?;
            p.d_kappa = self.reserve(Slot::DKappa, models * sv.sponge * t)?;
            p.d_injection = self.reserve(Slot::DInjection, all * shots.wavelet.len() * t)?;
        }
        let prepare = if directions.is_some() { "prepare_born" } else { "prepare" };
        let numbers = models * (cells + sv.sponge + ns * shots.wavelet.len());
        self.threads(plan, prepare, numbers, 256, &p)?;
        if shots.causal {
            let (bz, bx) = (plan.rows.div_ceil(BLOCK), plan.cols.div_ceil(BLOCK));
            let bins = sv.nt.div_ceil(BIN);
            p.crossing = self.reserve(Slot::Crossing, models * bz * bx * 8)?;
            p.travel = self.reserve(Slot::Travel, models * (ns + 1) * bz * bx * 8)?;
            p.scratch = self.reserve(Slot::Scratch, models * (ns + 1) * bz * bx * 8)?;
            p.window = self.reserve(Slot::Window, all * bins * bz * WINDOW)?;
            self.launch("crossing", (models * bz * bx).div_ceil(256), 256, 0, &p)?;
            self.launch("travel", models * (ns + 1), plan.small_block(256), 0, &p)?;
            self.launch("windows", (all * bins * bz).div_ceil(256), 256, 0, &p)?;
        }
        Ok(p)
    }

    /// Says where the history of a run goes, in units of `p.history_unit`.
    pub fn keep(&mut self, plan: &Plan, p: &mut Params, levels: &Levels) -> Result<()> {
        p.levels = levels.count as i32;
        p.weight = self.put_f64(Slot::Weight, levels.weight.iter().map(|w| w / p.history_unit))?;
        let mut next = 0..;
        let level = levels.weight.iter().map(|&w| if w != 0.0 { next.next().unwrap_or(0) } else { -1 });
        p.level = self.put_i32(Slot::Level, level)?;
        let all = (p.models * p.shots) as usize;
        p.history = self.reserve(Slot::History, all * plan.history_bytes(levels.count))?;
        Ok(())
    }

    /// Runs the forward modelling of all shots into `p.data`, and into `p.history` if there is one.
    pub fn forward(&mut self, plan: &Plan, p: &mut Params) -> Result<()> {
        let all = (p.models * p.shots) as u32;
        if plan.kind == Kind::Cluster {
            let launch = plan.cluster_launch(all, false, false);
            return self.runtime.launch(&plan.kernel("cluster_forward", true), launch, bytemuck::bytes_of(p));
        }
        p.fields = self.reserve(Slot::Fields, plan.fields_bytes(all as usize))?;
        self.runtime.clear(p.fields, plan.fields_bytes(all as usize))?;
        let last = p.nt;
        self.steps(plan, &plan.kernel("step_forward", true), p, 0..=last)
    }

    /// Runs Born modelling: the data of the perturbation into `p.data`.
    pub fn born(&mut self, plan: &Plan, p: &mut Params) -> Result<()> {
        let all = (p.models * p.shots) as usize;
        p.fields = self.reserve(Slot::Fields, plan.fields_bytes(all))?;
        p.background = self.reserve(Slot::Background, plan.fields_bytes(all))?;
        self.runtime.clear(p.fields, plan.fields_bytes(all))?;
        self.runtime.clear(p.background, plan.fields_bytes(all))?;
        let last = p.nt;
        self.steps(plan, &plan.kernel("step_born", false), p, 0..=last)
    }

    /// Where observed gathers lie, uploaded where they are not there yet; four times a launch's are kept.
    pub fn gathers(&mut self, wanted: &[Arc<Gather>]) -> Result<Vec<Address>> {
        self.gathers.addresses(&*self.runtime, wanted, KEPT * wanted.len())
    }

    /// Uploads data vectors (shot, time, receiver), one after the other; where they lie.
    pub fn vectors(&mut self, data: &[Gather]) -> Result<Vec<Address>> {
        let bytes = data.first().map_or(0, |d| d.data.len() * 8) as u64;
        let base = self.put_f64(Slot::Vectors, data.iter().flat_map(|d| d.data.iter().copied()))?;
        Ok((0..data.len() as u64).map(|i| base + i * bytes).collect())
    }

    /// Says what the data are compared with: gathers on the device (model), which traces count (shot, receiver), samples
    /// that count (model). `first_shot` of the gathers is the launch's first.
    pub fn observe(
        &mut self,
        plan: &Plan,
        p: &mut Params,
        first_shot: usize,
        gathers: &[Address],
        live: &[u8],
        samples: &[i32],
    ) -> Result<()> {
        let all = (p.models * p.shots) as usize;
        p.first_shot = first_shot as i32;
        p.observed = self.put(Slot::Observed, bytemuck::cast_slice(gathers))?;
        p.live = self.put(Slot::Live, live)?;
        p.samples = self.put(Slot::Samples, bytemuck::cast_slice(samples))?;
        p.residual = self.reserve(Slot::Residual, all * plan.samples() * 8)?;
        p.trace = self.reserve(Slot::Trace, all * plan.survey.receivers.len() * 3 * 8)?;
        Ok(())
    }

    /// Evaluates the misfit that `p` names, on the device.
    pub fn misfit(&mut self, plan: &Plan, p: &Params) -> Result<()> {
        let traces = (p.models * p.shots * p.receivers) as usize;
        self.threads(plan, "misfit", traces, 128, p)
    }

    /// Replaces what [`Lane::misfit`] would compute: the derivative (shot, time, receiver) and, for each trace, misfit,
    /// squared residuals and inner product with the data.
    pub fn put_misfit(&mut self, p: &Params, derivative: &[f64], trace: &[f64]) -> Result<()> {
        self.runtime.upload(p.residual, bytemuck::cast_slice(derivative))?;
        self.runtime.upload(p.trace, bytemuck::cast_slice(trace))
    }

    /// Runs the adjoint from `p.residual` and sums up: for each shot the gradient by every cell and by `vmin`, misfit, and
    /// squared residuals.
    pub fn adjoint(&mut self, plan: &Plan, p: &mut Params) -> Result<Vec<f64>> {
        let (sv, t) = (&plan.survey, plan.element());
        let all = (p.models * p.shots) as usize;
        p.inject = self.reserve(Slot::Inject, all * sv.nt * p.inject_rows as usize * sv.nx * t)?;
        let sums = all * plan.rows * plan.hstride * t;
        p.sums = self.reserve(Slot::Sums, sums)?;
        p.parts = if plan.kind == Kind::Cluster { CLUSTER as i32 } else { plan.items_a_shot() as i32 };
        let damped = all * p.parts as usize * 8;
        p.damped = self.reserve(Slot::Damped, damped)?;
        p.folded = self.reserve(Slot::Folded, all * sv.nz * sv.nx * 8)?;
        let numbers = all * (sv.nz * sv.nx + 3);
        p.gradient = self.reserve(Slot::Gradient, numbers * 8)?;
        self.threads(plan, "scatter", all * sv.nt, 128, p)?;
        if plan.kind == Kind::Cluster {
            p.sums_shared = i32::from(plan.sums_shared);
            let launch = plan.cluster_launch(all as u32, true, plan.sums_shared);
            self.runtime.launch(&plan.kernel("cluster_adjoint", true), launch, bytemuck::bytes_of(p))?;
        } else {
            p.fields = self.reserve(Slot::Fields, plan.fields_bytes(all))?;
            self.runtime.clear(p.fields, plan.fields_bytes(all))?;
            self.runtime.clear(p.sums, sums)?;
            self.runtime.clear(p.damped, damped)?;
            let last = p.nt - 1;
            self.steps(plan, &plan.kernel("step_adjoint", true), p, (0..=last).rev())?;
        }
        let block = plan.small_block(128);
        self.launch(&plan.kernel("fold", false), all * sv.nz, block, plan.cols * 8, p)?;
        self.launch("gradient", numbers.div_ceil(256), 256, 0, p)?;
        let mut out = vec![0.0; numbers];
        self.runtime.download(p.gradient, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// The samples of all shots (shot, time, receiver) as they are on the device.
    pub fn data(&self, plan: &Plan, p: &Params) -> Result<Vec<f64>> {
        self.numbers(plan, p.data, (p.models * p.shots) as usize * plan.samples())
    }

    /// The stored levels of a shot, (level, row, column) with rows `hstride` long.
    pub fn levels(&self, plan: &Plan, p: &Params, shot: usize) -> Result<Vec<f64>> {
        let n = p.levels as usize * plan.rows * plan.hstride;
        self.numbers(plan, p.history + (shot * plan.history_bytes(p.levels as usize)) as u64, n)
    }

    fn numbers(&self, plan: &Plan, from: Address, n: usize) -> Result<Vec<f64>> {
        if plan.element() == 8 {
            let mut out = vec![0.0f64; n];
            self.runtime.download(from, bytemuck::cast_slice_mut(&mut out))?;
            return Ok(out);
        }
        let mut out = vec![0.0f32; n];
        self.runtime.download(from, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out.into_iter().map(f64::from).collect())
    }

    /// One launch a step, recorded as one piece of work.
    fn steps(&self, plan: &Plan, kernel: &str, p: &Params, steps: impl Iterator<Item = i32>) -> Result<()> {
        let mut key = DefaultHasher::new();
        (kernel, bytemuck::bytes_of(p)).hash(&mut key);
        let block = plan.small_block(STEP_THREADS);
        let blocks = (p.models * p.shots) as u32 * (plan.items_a_shot() as u32).div_ceil(block);
        let launch = Launch { blocks, threads: block, cluster: 1, shared: 0 };
        let steps: Vec<i32> = steps.collect();
        self.runtime.replay(key.finish(), &mut || {
            steps
                .iter()
                .try_for_each(|&step| self.runtime.launch(kernel, launch, bytemuck::bytes_of(&Params { step, ..*p })))
        })
    }

    /// A kernel that deals `n` pieces out over threads, in the plan's precision.
    fn threads(&self, plan: &Plan, kernel: &str, n: usize, block: u32, p: &Params) -> Result<()> {
        self.launch(&plan.kernel(kernel, false), n.div_ceil(block as usize), block, 0, p)
    }

    fn launch(&self, kernel: &str, blocks: usize, threads: u32, shared: usize, p: &Params) -> Result<()> {
        let launch = Launch { blocks: blocks as u32, threads, cluster: 1, shared };
        self.runtime.launch(kernel, launch, bytemuck::bytes_of(p))
    }
}
