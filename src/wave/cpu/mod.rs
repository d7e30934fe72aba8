//! The SIMD propagator: generic over f32 and f64, threads over shots, causal windows, decimated history.
//!
//! What is not exact to rounding hangs on one switch, [`Fidelity`]: `Exact` updates every cell at every step and
//! correlates at every step; `Fast` restricts both (see `window.rs` and `shot.rs`).

pub mod grid;
mod rows;
pub mod schedule;
mod setup;
mod shot;
pub mod vector;
mod window;

use super::{Evaluation, Propagator, check_model};
use crate::{Error, Gather, Misfit, Model, Observed, Position, Result, Survey};
use grid::{Buffer, Layout, kappa_rows, with_room};
use ndarray::{Array2, Array3, s};
use schedule::Pool;
use setup::Setup;
use shot::{Adjoint, Born, Forward, Shot, Wavefield, Workspace};
use std::sync::Mutex;
use vector::{Isa, Real};

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
    /// Causal windows, and a history of every fourth step (fewer for coarse time steps).
    Fast,
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
    /// Weights of the steps in those sums, for misfits that keep to the data's band, and for others.
    weights: (Vec<f64>, Vec<f64>),
    max_bytes: u64,
    pool: Pool,
    workspaces: Mutex<Vec<Workspace<T>>>,
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
    windows: window::Windows,
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
        let fidelity = options.fidelity.unwrap_or(if T::LINE == 16 { Fidelity::Fast } else { Fidelity::Exact });
        let decimation = match fidelity {
            Fidelity::Exact => 1,
            // the product of both fields holds nothing above twice the wavelet's band, but the adjoint field sets in
            // abruptly at the record's end, and grids of fast cells carry that up to 0.26 / dt: every third step is safe
            Fidelity::Fast => ((1.0 / (survey.dt * 4.5 * survey.bandwidth())) as usize).clamp(1, 3),
        };
        let weights = (shot::correlation_weights(survey.nt, decimation), vec![1.0; survey.nt]);
        let isa = options.isa.unwrap_or_else(Isa::best);
        if !Isa::available().contains(&isa) {
            return Err(Error::Usage(format!("this machine has no {isa}; it has {:?}", Isa::available())));
        }
        let pool = Pool::new(options.threads)?;
        let cpu = Self {
            survey,
            layout,
            isa,
            fidelity,
            decimation,
            weights,
            max_bytes: options.max_bytes,
            pool,
            workspaces: Mutex::default(),
        };
        cpu.check_memory()?;
        Ok(cpu)
    }

    /// Bytes of one field.
    fn field_bytes(&self) -> u64 {
        (self.layout.field_len() * size_of::<T>()) as u64
    }

    /// Bytes that a shot takes besides history and snapshots: forward and adjoint fields, sums, data.
    fn fixed_bytes(&self) -> u64 {
        let samples = self.survey.nt * self.survey.receivers.len();
        5 * self.field_bytes() + (samples * (2 * size_of::<T>() + 16)) as u64
    }

    /// Bytes for histories that one of `shots` shots in flight may take.
    fn history_budget(&self, shots: usize) -> u64 {
        (self.max_bytes / shots as u64).saturating_sub(self.fixed_bytes())
    }

    /// Least bytes of history and snapshots that a full-grid shot can do with.
    fn least_history(&self, weights: &[f64]) -> u64 {
        let full = window::Windows::full(&self.layout);
        (1..=self.survey.nt).map(|n| self.history_bytes(&full, weights, n)).min().unwrap_or(0)
    }

    /// Weights of the steps in the gradient of a misfit.
    fn weights_of(&self, misfit: &dyn Misfit) -> &[f64] {
        if misfit.band_limited() { &self.weights.0 } else { &self.weights.1 }
    }

    fn history_bytes(&self, windows: &window::Windows, weights: &[f64], segments: usize) -> u64 {
        let history = shot::longest_history(windows, weights, segments);
        (with_room(history) * size_of::<T>()) as u64 + 2 * (segments as u64 - 1) * self.field_bytes()
    }

    fn check_memory(&self) -> Result<()> {
        let least = self.fixed_bytes() + self.least_history(&self.weights.1);
        if least > self.max_bytes {
            return Err(Error::Memory(format!(
                "one shot's gradient needs at least {} MB, more than the {} MB allowed; raise --max-memory",
                least.div_ceil(1 << 20),
                self.max_bytes >> 20
            )));
        }
        Ok(())
    }

    /// How many shots may be in flight, at most `wanted`.
    fn in_flight(&self, wanted: usize, weights: &[f64]) -> usize {
        let least = self.fixed_bytes() + self.least_history(weights);
        wanted.min((self.max_bytes / least.max(1)) as usize).max(1)
    }

    /// The fewest segments whose history fits the budget.
    fn segments(&self, windows: &window::Windows, weights: &[f64], budget: u64) -> usize {
        let fits = |&n: &usize| self.history_bytes(windows, weights, n) <= budget;
        (1..=self.survey.nt).find(fits).unwrap_or_else(|| {
            (1..=self.survey.nt).min_by_key(|&n| self.history_bytes(windows, weights, n)).unwrap_or(1)
        })
    }

    fn take_workspace(&self) -> Workspace<T> {
        let pooled = self.workspaces.lock().unwrap_or_else(|e| e.into_inner()).pop();
        pooled.unwrap_or_else(|| Workspace::new(&self.layout))
    }

    fn put_workspace(&self, w: Workspace<T>) {
        self.workspaces.lock().unwrap_or_else(|e| e.into_inner()).push(w);
    }

    fn setups(&self, models: &[Model]) -> Result<setup::Setups<T>> {
        models.iter().try_for_each(|m| check_model(&self.survey, m))?;
        Ok(setup::Setups::new(models.len(), self.survey.sources.len()))
    }

    fn setup(&self, model: &Model) -> Setup<T> {
        Setup::new(&self.survey, &self.layout, model, self.fidelity == Fidelity::Fast)
    }

    fn shot_of<'a>(
        &'a self,
        setup: &'a Setup<T>,
        windows: &'a window::Windows,
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
        let injection = self.injection((model.vp[[source.z, source.x]] * self.survey.dt).powi(2));
        let weights = self.weights_of(misfit);
        let segments = self.segments(&windows, weights, budget);
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
        let injection = self.injection((model.vp[[source.z, source.x]] * self.survey.dt).powi(2));
        let run = self.shot_of(setup, &windows, source, &injection, weights);
        let alpha = setup.receiver_alpha.iter().cycle();
        let scaled: Vec<T> = residual.iter().zip(alpha).map(|(r, a)| T::from_f64(r * a)).collect();
        let kernel = Adjoint { shot: &run, workspace: &mut workspace, segments, residual: &scaled };
        let sums = vector::run(self.isa, kernel);
        let mut folded = setup.fold(&self.survey, &self.layout, workspace.sums());
        for (r, rec) in self.survey.receivers.iter().enumerate() {
            folded[[rec.z, rec.x]] += synthetic.column(r).dot(&residual.column(r));
        }
        self.put_workspace(workspace);
        let gradient = Model { vp: 2.0 * folded / &model.vp, vmin: sums.damping / model.vmin };
        ShotResult { value, gradient, synthetic }
    }
}

impl<T: Real> Propagator for Cpu<T> {
    fn survey(&self) -> &Survey {
        &self.survey
    }

    fn describe(&self) -> String {
        let fidelity = match self.fidelity {
            Fidelity::Exact => "exact".to_string(),
            Fidelity::Fast => format!("fast (causal windows, history every {} steps)", self.decimation),
        };
        format!(
            "CPU {}, {}, {fidelity}, {} thread{}",
            self.isa,
            T::NAME,
            self.pool.threads(),
            if self.pool.threads() == 1 { "" } else { "s" }
        )
    }

    fn forward(&self, models: &[Model]) -> Result<Vec<Gather>> {
        let ns = self.survey.sources.len();
        let setups = self.setups(models)?;
        let shots = self.pool.map(models.len() * ns, |job| {
            let (i, shot) = (job / ns, job % ns);
            let setup = setups.get(i, || self.setup(&models[i]));
            let windows = setup.windows(&self.survey, &self.layout, shot);
            let source = self.survey.sources[shot];
            let injection = self.injection((models[i].vp[[source.z, source.x]] * self.survey.dt).powi(2));
            let mut workspace = self.take_workspace();
            let run = self.shot_of(&setup, &windows, source, &injection, &self.weights.1);
            vector::run(self.isa, Forward { shot: &run, workspace: &mut workspace, segments: None });
            let data = self.samples(&workspace.data);
            self.put_workspace(workspace);
            setups.done(i);
            data
        });
        Ok(shots.chunks(ns).map(|c| gather(c.iter().map(|d| d.view()))).collect())
    }

    fn born(&self, models: &[Model], directions: &[Model]) -> Result<Vec<Gather>> {
        if let Some(d) = directions.iter().find(|d| d.vp.dim() != self.survey.map_shape()) {
            return Err(Error::Usage(format!(
                "a direction of shape {:?} does not fit the map {:?}",
                d.vp.dim(),
                self.survey.map_shape()
            )));
        }
        let ns = self.survey.sources.len();
        let setups = self.setups(models)?;
        let shots = self.pool.map(models.len() * ns, |job| {
            let (i, shot) = (job / ns, job % ns);
            let (model, dm, sv) = (&models[i], &directions[i], &self.survey);
            let setup = setups.get(i, || self.setup(model));
            let windows = setup.windows(sv, &self.layout, shot);
            let source = sv.sources[shot];
            let (v, dv) = (model.vp[[source.z, source.x]], dm.vp[[source.z, source.x]]);
            let injection = self.injection((v * sv.dt).powi(2));
            let d_injection = self.injection(2.0 * v * dv * sv.dt * sv.dt);
            let d_alpha = setup::d_alpha_rows(sv, &self.layout, model, dm);
            let d_kappa: Buffer<T> = kappa_rows(sv, &self.layout, dm.vmin);
            let (mut workspace, mut perturbed) = (self.take_workspace(), self.take_workspace());
            let run = self.shot_of(&setup, &windows, source, &injection, &self.weights.1);
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
        if let Some(o) = observed.iter().find(|o| o.gather.data.dim() != self.survey.gather_shape()) {
            let (found, wanted) = (o.gather.data.dim(), self.survey.gather_shape());
            return Err(Error::Usage(format!("the observed gather is {found:?} but the survey records {wanted:?}")));
        }
        let ns = self.survey.sources.len();
        let jobs = models.len() * ns;
        let setups = self.setups(models)?;
        let in_flight = self.in_flight(self.pool.threads() + jobs % self.pool.threads(), self.weights_of(misfit));
        let budget = self.history_budget(in_flight);
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
        let evaluation = |shots: &[ShotResult]| Evaluation {
            value: shots.iter().map(|s| s.value).sum(),
            gradient: shots[1..].iter().fold(shots[0].gradient.clone(), |g, s| g.plus(1.0, &s.gradient)),
            synthetic: gather(shots.iter().map(|s| s.synthetic.view())),
        };
        Ok(results.chunks(ns).map(evaluation).collect())
    }

    fn wavefield(&self, model: &Model, source: Position, wavelet: &[f64], every: usize) -> Result<Array3<f32>> {
        check_model(&self.survey, model)?;
        if every == 0 || source.z >= self.survey.nz || source.x >= self.survey.nx {
            return Err(Error::Usage(format!(
                "a wavefield needs a source inside the map and every >= 1, not {source:?} and {every}"
            )));
        }
        let setup = Setup::new(&self.survey, &self.layout, model, false);
        let windows = setup.windows(&self.survey, &self.layout, 0);
        let injection: Vec<T> = wavelet.iter().map(|&w| T::from_f64(w)).collect();
        let shot = self.shot_of(&setup, &windows, source, &injection, &self.weights.1);
        let l = self.layout;
        let mut out = Array3::zeros((self.survey.nt.div_ceil(every), l.rows, l.cols));
        let visit = |level: usize, field: &[T]| {
            for (z, mut row) in out.slice_mut(s![level, .., ..]).rows_mut().into_iter().enumerate() {
                for (to, from) in row.iter_mut().zip(&field[l.row(z)..]) {
                    *to = from.to_f64() as f32;
                }
            }
        };
        let mut workspace = self.take_workspace();
        vector::run(self.isa, Wavefield { shot: &shot, workspace: &mut workspace, every, visit });
        self.put_workspace(workspace);
        Ok(out)
    }

    fn release(&self) {
        self.workspaces.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }

    fn gradient_bytes(&self) -> u64 {
        let full = window::Windows::full(&self.layout);
        let shots = self.in_flight(self.pool.threads().min(self.survey.sources.len()) + 1, &self.weights.0);
        let segments = self.segments(&full, &self.weights.0, self.history_budget(shots));
        shots as u64 * (self.fixed_bytes() + self.history_bytes(&full, &self.weights.0, segments))
    }
}

/// Stacks shots into a gather.
fn gather<'a>(shots: impl Iterator<Item = ndarray::ArrayView2<'a, f64>>) -> Gather {
    let shots: Vec<_> = shots.collect();
    Gather::new(ndarray::stack(ndarray::Axis(0), &shots).expect("shots of one survey have one shape"))
}
