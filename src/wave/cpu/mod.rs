//! The SIMD propagator: generic over f32 and f64, threads over shots, causal windows, decimated history.
//!
//! What is not exact to rounding hangs on one switch, [`Fidelity`]: `Exact` updates every cell at every step and
//! correlates at every step; `Fast` restricts both (see `window.rs` and `shot.rs`).

#[cfg(target_arch = "x86_64")]
mod avx512;
mod born;
mod flush;
pub mod grid;
mod memory;
mod rows;
pub mod schedule;
mod setup;
mod shot;
pub mod vector;
mod window;

use super::{
    Evaluation, Propagator, WavefieldVisitor, check_directions, check_model, check_observed, check_wavefields,
};
use crate::{Error, Gather, Misfit, Model, Observed, Position, Result, Survey};
use born::{Born, Wavefield};
use grid::{Buffer, Layout, kappa_rows};
use memory::{Memory, Sums};
use ndarray::{Array2, ArrayView2, ShapeBuilder};
use schedule::Pool;
use setup::Setup;
pub(crate) use shot::correlation_weights;
use shot::{Adjoint, Forward, Shot, Workspace};
use std::sync::Mutex;
use vector::{Isa, Real};
use window::{Slowness, Windows};

/// Floating-point type of the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Single, in which OpenFWI's data were made.
    F32,
    /// Double.
    F64,
}

/// Whether to leave out what changes the results by less than the data's own rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fidelity {
    /// Every cell, every step: exact to rounding.
    Exact,
    /// Causal windows, and a history of every third step (more for coarse time steps).
    Fast,
}

impl Precision {
    /// What is left out unless something else is asked for: nothing that shows in this precision.
    pub fn fidelity(self) -> Fidelity {
        match self {
            Self::F32 => Fidelity::Fast,
            Self::F64 => Fidelity::Exact,
        }
    }
}

impl Fidelity {
    /// Every how many steps of `dt` seconds a gradient is summed, for a wavelet that ends at `bandwidth` Hz.
    ///
    /// The product of both fields holds nothing above twice the wavelet's band, but the adjoint field sets in abruptly
    /// at the record's end, and grids of fast cells carry that up to 0.26 / dt: every third step is safe.
    pub(crate) fn decimation(self, dt: f64, bandwidth: f64) -> usize {
        match self {
            Self::Exact => 1,
            Self::Fast => ((1.0 / (dt * 4.5 * bandwidth)) as usize).clamp(1, 3),
        }
    }
}

/// How a [`Cpu`] propagator runs. The default is f32, fast, all cores, at most 2 GiB.
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// Floating-point type.
    pub precision: Precision,
    /// `None`: fast in f32, exact in f64.
    pub fidelity: Option<Fidelity>,
    /// Worker threads; 0 takes one per core.
    pub threads: usize,
    /// Most bytes of fields and history at any time; histories that do not fit are recomputed from snapshots.
    pub max_bytes: u64,
    /// Instruction set; `None` takes the best.
    pub isa: Option<Isa>,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { precision: Precision::F32, fidelity: None, threads: 0, max_bytes: 2 << 30, isa: None }
    }
}

/// The SIMD propagator in one precision; [`build`] chooses.
pub struct Cpu<T: Real> {
    survey: Survey,
    layout: Layout,
    isa: Isa,
    fidelity: Fidelity,
    /// Every how many steps the gradient's sums are taken.
    decimation: usize,
    /// Highest frequency of the wavelet, Hz.
    bandwidth: f64,
    memory: Memory,
    pool: Pool,
    workspaces: Mutex<Idle<T>>,
}

/// Workspaces that wait for the next call, all made for one number of shots in flight.
struct Idle<T> {
    in_flight: usize,
    workspaces: Vec<Workspace<T>>,
}

/// Makes a SIMD propagator. Errors on a senseless survey or when not even one shot fits the memory limit.
pub fn build(survey: Survey, options: &CpuOptions) -> Result<Box<dyn Propagator>> {
    Ok(match options.precision {
        Precision::F32 => Box::new(Cpu::<f32>::new(survey, options)?),
        Precision::F64 => Box::new(Cpu::<f64>::new(survey, options)?),
    })
}

/// What a forward run leaves for its adjoint.
struct Pending<'w, T> {
    workspace: Workspace<T>,
    windows: Windows,
    weights: &'w [f64],
    segments: usize,
    value: f64,
    synthetic: Array2<f64>,
    residual: Array2<f64>,
}

/// One shot's part of an evaluation.
struct ShotResult {
    value: f64,
    gradient: Model,
    synthetic: Array2<f64>,
}

impl<T: Real> Cpu<T> {
    /// See [`build`].
    pub fn new(survey: Survey, options: &CpuOptions) -> Result<Self> {
        survey.validate()?;
        let layout = Layout::new::<T>(&survey);
        let precision = if T::LINE == 16 { Precision::F32 } else { Precision::F64 };
        let fidelity = options.fidelity.unwrap_or(precision.fidelity());
        let bandwidth = survey.bandwidth();
        let decimation = fidelity.decimation(survey.dt, bandwidth);
        let isa = options.isa.unwrap_or_else(Isa::best);
        if !Isa::available().contains(&isa) {
            return Err(Error::Usage(format!("this machine has no {isa}; it has {:?}", Isa::available())));
        }
        let pool = Pool::new(options.threads);
        let memory = Memory::new(&survey, &layout, size_of::<T>(), decimation, options.max_bytes)?;
        let workspaces = Mutex::new(Idle { in_flight: 0, workspaces: vec![] });
        Ok(Self { survey, layout, isa, fidelity, decimation, bandwidth, memory, pool, workspaces })
    }

    /// The steps at which the gradient of a misfit is summed.
    fn sums_of(&self, misfit: &dyn Misfit) -> &Sums {
        self.memory.sums(misfit.band_limited())
    }

    fn take_workspace(&self) -> Workspace<T> {
        let pooled = self.idle().workspaces.pop();
        pooled.unwrap_or_else(|| Workspace::new(&self.layout))
    }

    fn put_workspace(&self, w: Workspace<T>) {
        self.idle().workspaces.push(w);
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Idle<T>> {
        self.workspaces.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn setups(&self, models: &[Model]) -> Result<setup::Setups<T>> {
        models.iter().try_for_each(|m| check_model(&self.survey, self.bandwidth, m))?;
        Ok(setup::Setups::new(models.len(), self.survey.sources.len()))
    }

    fn setup(&self, model: &Model) -> Setup<T> {
        Setup::new(&self.survey, &self.layout, model, self.fidelity == Fidelity::Fast)
    }

    fn shot_of<'a>(
        &'a self,
        setup: &'a Setup<T>,
        windows: &'a Windows,
        source: Position,
        injection: &'a [T],
        weights: &'a [f64],
    ) -> Shot<'a, T> {
        Shot {
            layout: &self.layout,
            coefficients: &setup.coefficients,
            windows,
            nt: self.survey.nt,
            source: self.layout.cell(source),
            injection,
            receivers: &setup.receivers,
            weights,
        }
    }

    /// What a source adds to the field at every step: the wavelet times `(v dt)^2`.
    fn source_injection(&self, model: &Model, source: Position) -> Vec<T> {
        self.injection((model.vp[[source.z, source.x]] * self.survey.dt).powi(2))
    }

    /// The wavelet times `scale`, rounded.
    fn injection(&self, scale: f64) -> Vec<T> {
        self.survey.wavelet.iter().map(|w| T::from_f64(scale * w)).collect()
    }

    fn samples(&self, data: &[T]) -> Array2<f64> {
        let shape = (self.survey.nt, self.survey.receivers.len());
        Array2::from_shape_vec(shape, data.iter().map(|x| x.to_f64()).collect())
            .expect("one sample per step and receiver")
    }

    fn forward_part(
        &self,
        setup: &Setup<T>,
        model: &Model,
        obs: &Observed,
        misfit: &dyn Misfit,
        shot: usize,
        budget: u64,
    ) -> Pending<'_, T> {
        let windows = setup.windows(&self.survey, &self.layout, shot);
        let source = self.survey.sources[shot];
        let injection = self.source_injection(model, source);
        let weights = &self.sums_of(misfit).weights[..];
        let segments = self.memory.segments(&windows, weights, budget);
        let mut workspace = self.take_workspace();
        let run = self.shot_of(setup, &windows, source, &injection, weights);
        vector::run(self.isa, Forward { shot: &run, workspace: &mut workspace, segments: Some(segments) });
        let synthetic = self.samples(&workspace.data);
        let mut residual = Array2::zeros(synthetic.dim());
        let value = misfit.evaluate(shot, synthetic.view(), obs.gather.shot(shot), &obs.mask, residual.view_mut());
        Pending { workspace, windows, weights, segments, value, synthetic, residual }
    }

    fn adjoint_part(&self, setup: &Setup<T>, model: &Model, shot: usize, p: Pending<'_, T>) -> ShotResult {
        let Pending { mut workspace, windows, weights, segments, value, synthetic, residual } = p;
        let source = self.survey.sources[shot];
        let injection = self.source_injection(model, source);
        let run = self.shot_of(setup, &windows, source, &injection, weights);
        let alpha = setup.receiver_alpha.iter().cycle();
        let scaled: Vec<T> = residual.iter().zip(alpha).map(|(r, a)| T::from_f64(r * a)).collect();
        let kernel = Adjoint { shot: &run, workspace: &mut workspace, segments, residual: &scaled };
        let damping = vector::run(self.isa, kernel);
        let mut folded = setup.fold(&self.survey, &self.layout, workspace.sums());
        for (r, rec) in self.survey.receivers.iter().enumerate() {
            folded[[rec.z, rec.x]] += synthetic.column(r).dot(&residual.column(r));
        }
        self.put_workspace(workspace);
        let gradient = Model { vp: 2.0 * folded / &model.vp, vmin: damping / model.vmin };
        ShotResult { value, gradient, synthetic }
    }
}

impl<T: Real> Propagator for Cpu<T> {
    fn survey(&self) -> &Survey {
        &self.survey
    }

    fn describe(&self) -> String {
        let threads = self.pool.threads();
        format!("CPU {}, {}, {threads} thread{}", self.isa, self.arithmetic(), if threads == 1 { "" } else { "s" })
    }

    fn arithmetic(&self) -> String {
        let fidelity = match self.fidelity {
            Fidelity::Exact => "exact".to_string(),
            Fidelity::Fast => format!("fast (causal windows, history every {} steps)", self.decimation),
        };
        format!("{}, {fidelity}", T::NAME)
    }

    fn forward(&self, models: &[Model]) -> Result<Vec<Gather>> {
        let ns = self.survey.sources.len();
        let setups = self.setups(models)?;
        let shots = self.pool.map(models.len() * ns, |job| {
            let (i, shot) = (job / ns, job % ns);
            let setup = setups.get(i, || self.setup(&models[i]));
            let windows = setup.windows(&self.survey, &self.layout, shot);
            let source = self.survey.sources[shot];
            let injection = self.source_injection(&models[i], source);
            let mut workspace = self.take_workspace();
            let run = self.shot_of(&setup, &windows, source, &injection, &self.memory.full.weights);
            vector::run(self.isa, Forward { shot: &run, workspace: &mut workspace, segments: None });
            let data = self.samples(&workspace.data);
            self.put_workspace(workspace);
            setups.done(i);
            data
        });
        Ok(shots.chunks(ns).map(|c| gather(c.iter().map(|d| d.view()))).collect())
    }

    fn born(&self, models: &[Model], directions: &[Model]) -> Result<Vec<Gather>> {
        check_directions(&self.survey, directions, models.len())?;
        let ns = self.survey.sources.len();
        let setups = self.setups(models)?;
        let shots = self.pool.map(models.len() * ns, |job| {
            let (i, shot) = (job / ns, job % ns);
            let (model, dm, sv) = (&models[i], &directions[i], &self.survey);
            let setup = setups.get(i, || self.setup(model));
            let windows = setup.windows(sv, &self.layout, shot);
            let source = sv.sources[shot];
            let (v, dv) = (model.vp[[source.z, source.x]], dm.vp[[source.z, source.x]]);
            let injection = self.source_injection(model, source);
            let d_injection = self.injection(2.0 * v * dv * sv.dt * sv.dt);
            let d_alpha = setup::d_alpha_rows(sv, &self.layout, model, dm);
            let d_kappa: Buffer<T> = kappa_rows(sv, &self.layout, dm.vmin);
            let (mut workspace, mut perturbed) = (self.take_workspace(), self.take_workspace());
            let run = self.shot_of(&setup, &windows, source, &injection, &self.memory.full.weights);
            let (d_alpha, d_kappa, d_injection) = (&d_alpha, &d_kappa, &d_injection[..]);
            let kernel = Born {
                shot: &run,
                workspace: &mut workspace,
                perturbed: &mut perturbed,
                d_alpha,
                d_kappa,
                d_injection,
            };
            vector::run(self.isa, kernel);
            let data = self.samples(&perturbed.data);
            self.put_workspace(workspace);
            self.put_workspace(perturbed);
            setups.done(i);
            data
        });
        Ok(shots.chunks(ns).map(|c| gather(c.iter().map(|d| d.view()))).collect())
    }

    fn misfit_and_gradient(
        &self,
        models: &[Model],
        observed: &[Observed],
        misfit: &dyn Misfit,
    ) -> Result<Vec<Evaluation>> {
        super::same_length("observed gathers", observed.len(), models.len())?;
        check_observed(&self.survey, observed)?;
        let ns = self.survey.sources.len();
        let jobs = models.len() * ns;
        let setups = self.setups(models)?;
        let (in_flight, budget) = self.memory.share(self.pool.wanted(jobs), self.sums_of(misfit));
        if std::mem::replace(&mut self.idle().in_flight, in_flight) != in_flight {
            self.release(); // histories of another size must not add up with those to come
        }
        let results = self.pool.map_split(
            jobs,
            in_flight,
            |job| {
                let i = job / ns;
                let setup = setups.get(i, || self.setup(&models[i]));
                self.forward_part(&setup, &models[i], &observed[i], misfit, job % ns, budget)
            },
            |job, pending| {
                let i = job / ns;
                let setup = setups.get(i, || self.setup(&models[i]));
                let result = self.adjoint_part(&setup, &models[i], job % ns, pending);
                setups.done(i);
                result
            },
        );
        let evaluation = |(shots, observed): (&[ShotResult], &Observed)| Evaluation {
            value: shots.iter().map(|s| s.value).sum(),
            gradient: shots[1..].iter().fold(shots[0].gradient.clone(), |g, s| g.plus(1.0, &s.gradient)),
            data_rms: observed.rms(&gather(shots.iter().map(|s| s.synthetic.view()))),
        };
        Ok(results.chunks(ns).zip(observed).map(evaluation).collect())
    }

    fn wavefields(
        &self,
        model: &Model,
        sources: &[Position],
        wavelet: &[f64],
        every: usize,
        visit: &WavefieldVisitor,
    ) -> Result<()> {
        check_model(&self.survey, self.bandwidth, model)?;
        check_wavefields(&self.survey, sources, every)?;
        let setup = Setup::new(&self.survey, &self.layout, model, false);
        let slowness = (self.fidelity == Fidelity::Fast).then(|| Slowness::new(&self.survey, &self.layout, model));
        let injection: Vec<T> = wavelet.iter().map(|&w| T::from_f64(w)).collect();
        let l = self.layout;
        self.pool.map(sources.len(), |i| {
            let windows = match &slowness {
                Some(slowness) => {
                    let arrivals = slowness.arrivals([(sources[i].z + l.pad, sources[i].x + l.pad)].into_iter());
                    Windows::expanding(&l, T::LINE, self.survey.nt, slowness, &arrivals)
                }
                None => Windows::full(&l),
            };
            let shot = self.shot_of(&setup, &windows, sources[i], &injection, &self.memory.full.weights);
            // what the wave has not reached yet is zero and stays it
            let visit = |level: usize, field: &[T]| {
                let rows = (l.rows, l.cols).strides((l.stride, 1));
                let field = ArrayView2::from_shape(rows, &field[l.row(0)..]).expect("rows of one stride");
                visit(i, level, T::view(field));
            };
            let mut workspace = self.take_workspace();
            vector::run(self.isa, Wavefield { shot: &shot, workspace: &mut workspace, every, visit });
            self.put_workspace(workspace);
        });
        Ok(())
    }

    /// Enough that no thread waits long for the last shot.
    fn batch(&self) -> usize {
        (4 * self.pool.threads()).div_ceil(self.survey.sources.len())
    }

    fn release(&self) {
        self.idle().workspaces.clear();
    }

    fn gradient_bytes(&self, band_limited: bool) -> u64 {
        self.memory.most(self.pool.wanted(self.survey.sources.len()), self.memory.sums(band_limited))
    }
}

/// Stacks shots into a gather.
fn gather<'a>(shots: impl Iterator<Item = ndarray::ArrayView2<'a, f64>>) -> Gather {
    let shots: Vec<_> = shots.collect();
    Gather::new(ndarray::stack(ndarray::Axis(0), &shots).expect("shots of one survey have one shape"))
}
