//! The Gauss-Newton curvature `J' J` of the data with respect to a map, explicitly, by reciprocity.
//!
//! The data of receiver `r` change with `alpha` at a cell `y` by the convolution of the source's field there with the
//! response at `r` of an impulse at `y`, and that response is `alpha_r / alpha_y` times the one at `y` of an impulse at `r`:
//!
//! ```text
//! d d_r(t) / d alpha_y = sum over n of  g_r,y(t - n - 1) (L p^n)_y,     g_r,y = alpha_r / alpha_y  g_y,r
//! ```
//!
//! So the whole Jacobian of 5 x 70 traces follows from 75 simulations in place of 4,900. The data hold nothing above some
//! 50 Hz: fields are kept at every ninth step, multiplied in frequency (`spectra.rs`), folded from the padding onto the
//! map's edge cells, which it copies, brought back to time at about every tenth or twelfth sample (`traces.rs`), and squared at once:
//! the Jacobian as a whole never exists. Its products are in f32. Where their sums `J' J` are in f64 (`gram.rs`), the normal matrix
//! stays that of a matrix within rounding of `J`, positive semidefinite to the last eigenvalue; where the assumed noise hides
//! the small ones anyway, f32 sums take half the time.
//!
//! The gradient of an inversion comes from the exact adjoint, so what is approximate here (decimation in time and in the
//! padding) costs convergence speed and never accuracy.

mod columns;
mod fields;
mod gram;
mod spectra;
mod traces;

pub use columns::Columns;
pub use gram::Symmetric;

use crate::misfit::FilteredL2;
use crate::wave::{CpuOptions, Precision, Propagator, build, cpu::schedule::Pool};
use crate::{Error, Gather, Mask, Model, Position, Result, Survey};
use faer::Mat;
use fields::{Fields, Recorder, Region};
use gram::{Gram, TOGETHER};
use spectra::{Block, Timing};
use std::sync::Mutex;
use std::time::Instant;
use traces::{Panel, Scratch, Traces};

/// How the curvature is computed.
#[derive(Clone, Debug)]
pub struct CurvatureOptions {
    /// Worker threads; 0 takes one per core.
    pub threads: usize,
    /// Cells of the padding, on each side, whose share is taken into account; more than there are takes all.
    pub margin: usize,
    /// Steps between the rows of a trace, about, where sums are in f32: a trace's rows share its samples evenly.
    pub every: f64,
    /// The same where sums are in f64: then small eigenvalues matter, and what rows above their Nyquist frequency take for
    /// something else hides them.
    pub every_double: f64,
}

impl Default for CurvatureOptions {
    fn default() -> Self {
        Self { threads: 0, margin: usize::MAX, every: 12.0, every_double: 10.0 }
    }
}

/// What of the data a normal matrix counts.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    /// Traces and samples.
    pub mask: &'a Mask,
    /// What the data pass before they are compared.
    pub filter: Option<&'a FilteredL2>,
    /// Of the receivers, every how many-th is simulated and counts for those around it, too: 1 takes them all. Where waves
    /// are longer than two receivers' distance, neighbours tell much the same.
    pub receiver_step: usize,
    /// Of the sums over samples and over the traces of four receivers; over these sums are in f64 in any case. In f32 they take half the
    /// time, and eigenvalues a millionth of the largest and below are lost.
    pub precision: Precision,
}

impl<'a> Counted<'a> {
    /// Every receiver, unfiltered, in f64.
    pub fn all(mask: &'a Mask) -> Self {
        Self { mask, filter: None, receiver_step: 1, precision: Precision::F64 }
    }

    /// The receivers that are simulated, of those with a trace that counts, and what a trace of theirs weighs.
    fn receivers(&self) -> (Vec<usize>, f64) {
        let traces = |r: usize| self.mask.live.column(r).iter().filter(|&&l| l).count();
        let live: Vec<usize> = (0..self.mask.live.ncols()).filter(|&r| traces(r) > 0).collect();
        let step = self.receiver_step.clamp(1, live.len().max(1));
        let taken: Vec<usize> = live.iter().copied().skip((step - 1) / 2).step_by(step).collect();
        let count = |of: &[usize]| of.iter().map(|&r| traces(r)).sum::<usize>() as f64;
        let weight = if live.is_empty() { 1.0 } else { count(&live) / count(&taken) };
        (taken, weight)
    }
}

/// Seconds, summed over threads, and operations of the parts of one normal matrix.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// Simulations of the sources' and receivers' fields.
    pub simulations: f64,
    /// Transforms to frequency, products and transforms back.
    pub products: f64,
    /// The sums `J' J`.
    pub gram: f64,
    /// Floating-point operations of the sums.
    pub gram_flops: f64,
    /// Wall time of all.
    pub wall: f64,
}

/// Memory that waits for the next panels of a normal matrix.
#[derive(Default)]
struct Spare {
    scratch: Vec<Scratch>,
    panels: Vec<Vec<f32>>,
}

/// Computes normal matrices for one survey.
pub struct Curvature {
    survey: Survey,
    /// A propagator of longer records: the fields must be whole beyond the last sample, see [`Timing`].
    long: Box<dyn Propagator>,
    pool: Pool,
    region: Region,
    timing: Timing,
    every: f64,
    every_double: f64,
    /// Memory for the matrices of the next step: what is given back to the system comes anew page by page, cleared, which
    /// can take longer than a factor.
    kept: Mutex<Vec<Mat<f64>>>,
}

impl Curvature {
    /// For a survey; errors when it makes no sense.
    pub fn new(survey: &Survey, options: &CurvatureOptions) -> Result<Self> {
        survey.validate()?;
        for every in [options.every, options.every_double] {
            if !(every.is_finite() && every > 0.0) {
                return Err(Error::Usage(format!("rows are taken every so many steps, not every {every}")));
            }
        }
        let timing = Timing::new(survey);
        let long = Survey { nt: timing.steps, ..survey.clone() };
        let pool = Pool::new(options.threads);
        let cpu = CpuOptions { threads: options.threads, ..CpuOptions::default() };
        let region = Region::new(survey, options.margin);
        let CurvatureOptions { every, every_double, .. } = *options;
        let (survey, long, kept) = (survey.clone(), build(long, &cpu)?, Mutex::default());
        Ok(Self { survey, long, pool, region, timing, every, every_double, kept })
    }

    /// `J' J` over the columns at a model, for the traces and samples that count: `columns.len()` squared, in the data's
    /// units squared per unknown squared. `extra` is the derivative of the data with respect to one more unknown, the last
    /// row and column, for what no cell stands for: `vmin`, by Born modelling. With a filter, it is that of the filtered
    /// data, `J' F' F J`. The bits do not depend on the threads. Errors when the mask, the columns or `extra` do not fit the
    /// survey, no receiver is to be taken, or the model is unstable or undersampled.
    pub fn normal_matrix(
        &self,
        model: &Model,
        counted: &Counted,
        columns: &Columns,
        extra: Option<&Gather>,
    ) -> Result<(Symmetric, Parts)> {
        let whole = self.normal_matrix_unless(&|| false, model, counted, columns, extra)?;
        Ok(whole.expect("nothing stops it"))
    }

    /// As [`Curvature::normal_matrix`], but nothing where `stop` says so, which is asked before every few receivers, some
    /// hundred milliseconds apart.
    pub fn normal_matrix_unless(
        &self,
        stop: &dyn Fn() -> bool,
        model: &Model,
        counted: &Counted,
        columns: &Columns,
        extra: Option<&Gather>,
    ) -> Result<Option<(Symmetric, Parts)>> {
        let begin = Instant::now();
        self.check(counted, columns)?;
        let Counted { mask, filter, .. } = *counted;
        if let Some(found) = extra.map(|e| e.data.dim()).filter(|found| *found != self.survey.gather_shape()) {
            let wanted = self.survey.gather_shape();
            return Err(Error::Usage(format!(
                "the column given has shape {found:?} but the survey records {wanted:?}"
            )));
        }
        let parts = Mutex::new(Parts::default());
        let (survey, region) = (&self.survey, &self.region);
        let timing = &filter.map_or_else(|| self.timing.clone(), |f| self.timing.passing(f, survey.dt));
        let sources = self.sources(timing, model, &parts)?;
        let every = match counted.precision {
            Precision::F32 => self.every,
            Precision::F64 => self.every_double,
        };
        let rows = timing.rows(mask.nt, every, filter, survey.dt);
        let filtered = extra.zip(filter).map(|(e, f)| f.record(e, mask));
        let extra = filtered.as_ref().or(extra);
        let traces = Traces { survey, timing, region, model, mask, columns, sources, rows, extra };
        let lower = self.take(columns.len() + usize::from(extra.is_some()));
        let mut gram = Gram::new(columns.len(), extra.is_some(), counted.precision, lower);
        let (receivers, weight) = counted.receivers();
        let spare = Mutex::new(Spare::default());
        for some in receivers.chunks(TOGETHER * self.pool.threads()) {
            if stop() {
                return Ok(None);
            }
            let panels = self.pool.map(some.len(), |i| self.panel(&traces, some[i], &spare, &parts));
            let panels = panels.into_iter().collect::<Result<Vec<_>>>()?;
            let t = Instant::now();
            let flops = gram.add(&self.pool, &panels);
            let mut p = parts.lock().unwrap_or_else(|e| e.into_inner());
            p.gram += t.elapsed().as_secs_f64();
            p.gram_flops += flops;
            let mut spare = spare.lock().unwrap_or_else(|e| e.into_inner());
            spare.panels.extend(panels.into_iter().map(|p| p.values));
        }
        let mut h = gram.finish();
        h.scale(traces.rows.weight * weight);
        let mut parts = parts.into_inner().unwrap_or_else(|e| e.into_inner());
        parts.wall = begin.elapsed().as_secs_f64();
        Ok(Some((h, parts)))
    }

    /// Most bytes that [`Curvature::normal_matrix`] over so many unknowns takes, its result included; a matrix kept comes on top.
    pub fn bytes(&self, unknowns: usize) -> u64 {
        let (survey, threads) = (&self.survey, self.pool.threads() as u64);
        let (cells, n) = ((survey.nz * survey.nx) as u64, unknowns as u64);
        let (shots, region) = (survey.sources.len() as u64, self.region.cells() as u64);
        let spectrum = 2 * self.timing.frequencies as u64;
        let rows = self.timing.rows(survey.nt, self.every.min(self.every_double), None, survey.dt).count as u64;
        let fields = self.timing.steps.div_ceil(self.timing.level) as u64 * region * 4;
        let (down, across) = survey.padded_shape();
        let simulation = (down * across) as u64 * 4 * 4;
        let sources = shots * spectrum * region * 4;
        let products = (shots + 1) * spectrum * cells * 4;
        let trace = 4 * (rows + spectrum) * cells.max(n);
        // a panel's rows while it is made; so many panels a thread, which are squared in f64
        let panel = shots * rows * n;
        let work =
            threads * (fields + simulation + products + trace + 4 * panel) + TOGETHER as u64 * threads * 12 * panel;
        sources + 8 * n * n + work
    }

    /// A square matrix of an order, whatever is in it: one that was kept, if there is one.
    pub(crate) fn take(&self, order: usize) -> Mat<f64> {
        let mut kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        kept.retain(|m| m.nrows() == order);
        kept.pop().unwrap_or_else(|| Mat::zeros(order, order))
    }

    /// Keeps a matrix until one of another order is taken, a normal matrix or its factor but no third.
    pub(crate) fn keep(&self, matrix: Mat<f64>) {
        let mut kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        if kept.len() < 2 {
            kept.push(matrix);
        }
    }

    fn check(&self, counted: &Counted, columns: &Columns) -> Result<()> {
        let shape = self.survey.gather_shape();
        if counted.receiver_step == 0 {
            return Err(Error::Usage(
                "normal matrices take every receiver (1), every second (2) and so on, not 0".into(),
            ));
        }
        if !counted.mask.fits(shape) {
            return Err(Error::Usage(format!("the mask does not fit the survey's gathers of {shape:?}")));
        }
        columns.check(&self.survey)
    }

    /// Spectra of `L p` of every source over the region, ready to be multiplied with a receiver's.
    fn sources(&self, timing: &Timing, model: &Model, parts: &Mutex<Parts>) -> Result<Vec<Vec<Block>>> {
        let of = |i: usize| -> Result<Vec<Block>> {
            let p = self.survey.sources[i];
            let scale = (model.vp[[p.z, p.x]] * self.survey.dt).powi(2);
            let wavelet: Vec<f64> = self.survey.wavelet.iter().map(|w| scale * w).collect();
            let fields = self.record(model, (p, &wavelet), Recorder::Laplacian, vec![], parts)?;
            let block = |row| {
                let mut block = spectra::block(&fields, &self.region, timing, row, vec![]);
                block.rotate(timing);
                block
            };
            Ok(spectra::block_rows(&self.region).map(block).collect())
        };
        self.pool.map(self.survey.sources.len(), of).into_iter().collect()
    }

    fn record(
        &self,
        model: &Model,
        source: (Position, &[f64]),
        what: Recorder,
        memory: Vec<f32>,
        parts: &Mutex<Parts>,
    ) -> Result<Fields> {
        let begin = Instant::now();
        let fields = fields::record(&*self.long, model, source, self.timing.level, &self.region, what, memory)?;
        parts.lock().unwrap_or_else(|e| e.into_inner()).simulations += begin.elapsed().as_secs_f64();
        Ok(fields)
    }

    /// The rows of one receiver's traces of all shots, over the columns.
    fn panel(&self, traces: &Traces, r: usize, spare: &Mutex<Spare>, parts: &Mutex<Parts>) -> Result<Panel> {
        let spare = || spare.lock().unwrap_or_else(|e| e.into_inner());
        let (mut scratch, memory) = {
            let mut spare = spare();
            (spare.scratch.pop().unwrap_or_default(), spare.panels.pop().unwrap_or_default())
        };
        let pulse = (self.survey.receivers[r], &self.timing.pulse[..]);
        let fields = std::mem::take(&mut scratch.fields);
        let green = self.record(traces.model, pulse, Recorder::Field, fields, parts)?;
        let begin = Instant::now();
        let panel = traces.panel(&green, r, &mut scratch, memory);
        scratch.fields = green.values;
        spare().scratch.push(scratch);
        parts.lock().unwrap_or_else(|e| e.into_inner()).products += begin.elapsed().as_secs_f64();
        Ok(panel)
    }
}

#[cfg(test)]
mod tests;
