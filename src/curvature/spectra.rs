//! Spectra of fields that are kept at every few steps.

use super::fields::{Fields, Recorder, Region};
use super::traces::sample;
use crate::Survey;
use crate::misfit::FilteredL2;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::Array2;
use std::f64::consts::TAU;

/// Half the kept levels' rate over the end of the wavelet's band.
const OVERSAMPLING: f64 = 1.1;

/// Standard deviation of the receivers' Gaussian pulse, in levels: it leaves less than a hundredth at half the levels' rate,
/// so that nothing folds back into the band, and a fiftieth at the band's end, which is divided out.
const PULSE: f64 = 1.0;

/// Half the pulse's length, in standard deviations.
const PULSE_HALF: f64 = 4.5;

/// Levels over which fields fade out beyond the record.
const TAPER: usize = 7;

/// Share of its peak below which the wavelet's spectrum is left out.
const BAND: f64 = 5e-4;

/// What wraps around in time is damped to this share.
const WRAPPED: f64 = 3e-4;

/// Low-passed traces hold hardly anything above so many corner frequencies: the amplitude there is 1/500.
const PASSED: f64 = 2.2;

/// Frequencies kept beyond those: a record's ends, filtered, mix a few of its highest ones into the band.
const MARGIN: usize = 4;

/// Rows of low-passed traces lie apart at most so many times as far as others, so that the record's end still counts as it should.
const SPREAD: f64 = 4.0;

/// Period of the transforms, in lengths of the simulations.
const PERIOD: f64 = 1.1;

/// The steps, levels, frequencies and rows of the computation.
///
/// Frequencies are complex: all is damped by `exp(-decay t)` before it is transformed and raised again after, so that what
/// wraps around in a product is small although the period is hardly longer than the record.
#[derive(Clone)]
pub struct Timing {
    /// Steps of the simulations: the record, the pulse's length, and a taper, since fields that broke off would not be band-limited.
    pub steps: usize,
    /// Steps between the kept levels of a field.
    pub level: usize,
    /// The pulse that stands for an impulse at a receiver.
    pub pulse: Vec<f64>,
    /// The highest frequency, in cycles a step.
    band: f64,
    /// Number of frequencies.
    pub frequencies: usize,
    /// (2 frequencies, levels) for sources and for receivers, row-major: cosines above minus sines, times the taper.
    source_transform: Vec<f32>,
    green_transform: Vec<f32>,
    /// Real and imaginary factor of every frequency: delay by a step, division by the pulse's spectrum.
    pub rotation: Vec<(f64, f64)>,
    /// Spectrum of the wavelet with the pulse divided out, for the source cell's own term.
    pub wavelet: Vec<(f64, f64)>,
    grid: Frequencies,
}

/// The rows of a trace.
pub struct Rows {
    /// Their number.
    pub count: usize,
    /// Weight of a row: the samples that it stands for.
    pub weight: f64,
    /// (count, 2 frequencies), row-major: back to time.
    pub inverse: Vec<f32>,
}

/// Frequencies `k / period`, damped.
#[derive(Clone, Copy)]
struct Frequencies {
    period: f64,
    decay: f64,
}

impl Frequencies {
    /// `exp(-(i omega_k + decay) t)`.
    fn factor(self, k: usize, t: f64) -> (f64, f64) {
        let (sin, cos) = (TAU * k as f64 / self.period * t).sin_cos();
        let damping = (-self.decay * t).exp();
        (damping * cos, -damping * sin)
    }

    fn spectrum(self, x: &[f64], k: usize) -> (f64, f64) {
        x.iter().enumerate().fold((0.0, 0.0), |(a, b), (n, x)| {
            let (c, d) = self.factor(k, n as f64);
            (a + x * c, b + x * d)
        })
    }

    /// (2 frequencies, levels): the transform of fields that fade out after step `last`.
    fn transform(self, frequencies: usize, levels: usize, level: usize, last: usize) -> Vec<f32> {
        let mut m = vec![0.0f32; 2 * frequencies * levels];
        for k in 0..frequencies {
            for j in 0..levels {
                let n = (j * level) as f64;
                let fade = ((n - last as f64) / (TAPER * level) as f64).clamp(0.0, 1.0);
                let h = level as f64 * 0.5 * (1.0 + (0.5 * TAU * fade).cos());
                let (c, d) = self.factor(k, n);
                m[k * levels + j] = (h * c) as f32;
                m[(frequencies + k) * levels + j] = (h * d) as f32;
            }
        }
        m
    }
}

impl Timing {
    /// For records of a survey.
    pub fn new(survey: &Survey) -> Self {
        let end = band_end(survey);
        let level = (0.5 / (OVERSAMPLING * end)).max(1.0) as usize;
        let sigma = PULSE * level as f64;
        let half = (PULSE_HALF * sigma).ceil() as usize;
        let pulse: Vec<f64> =
            (0..2 * half + 1).map(|k| (-0.5 * ((k as f64 - half as f64) / sigma).powi(2)).exp()).collect();
        let whole = survey.nt + 2 * half;
        let steps = whole + TAPER * level;
        let period = PERIOD * steps as f64;
        let grid = Frequencies { period, decay: -WRAPPED.ln() / period };
        let frequencies = (end * period) as usize + 1;
        let levels = steps.div_ceil(level);
        let divided = |(a, b): (f64, f64), k: usize| {
            let (c, d) = grid.spectrum(&pulse, k);
            let n = c * c + d * d;
            ((a * c + b * d) / n, (b * c - a * d) / n)
        };
        let rotation = (0..frequencies).map(|k| divided(grid.factor(k, 1.0), k)).collect();
        let wavelet = (0..frequencies).map(|k| divided(grid.spectrum(&survey.wavelet, k), k)).collect();
        Self {
            steps,
            level,
            frequencies,
            source_transform: grid.transform(frequencies, levels, level, survey.nt),
            green_transform: grid.transform(frequencies, levels, level, whole),
            rotation,
            wavelet,
            pulse,
            band: end,
            grid,
        }
    }

    /// The same for low-passed data: without the frequencies that do not pass.
    pub fn passing(&self, filter: &FilteredL2, dt: f64) -> Self {
        let most = (PASSED * filter.corner() * dt * self.grid.period) as usize + MARGIN;
        let (all, kept) = (self.frequencies, self.frequencies.min(most));
        let levels = self.source_transform.len() / (2 * all);
        let halves = |m: &[f32]| {
            let (cosines, sines) = m.split_at(all * levels);
            [&cosines[..kept * levels], &sines[..kept * levels]].concat()
        };
        Self {
            frequencies: kept,
            source_transform: halves(&self.source_transform),
            green_transform: halves(&self.green_transform),
            rotation: self.rotation[..kept].to_vec(),
            wavelet: self.wavelet[..kept].to_vec(),
            ..self.clone()
        }
    }

    /// About one row every `every` of the first `nt` steps, each in the middle of those that it stands for; fewer of
    /// low-passed traces, in proportion to their band.
    pub fn rows(&self, nt: usize, every: f64, filter: Option<&FilteredL2>, dt: f64) -> Rows {
        let every = every * filter.map_or(1.0, |f| (self.band / (PASSED * f.corner() * dt)).clamp(1.0, SPREAD));
        let count = ((nt as f64 / every).ceil() as usize).clamp(1, nt.max(1));
        let weight = nt as f64 / count as f64;
        let mut inverse = Vec::with_capacity(count * 2 * self.frequencies);
        match filter {
            None => (0..count).for_each(|i| inverse.extend(self.factors(middle(i, weight)).iter().map(|&x| x as f32))),
            Some(filter) => {
                let samples: Vec<f64> = (0..nt).flat_map(|t| self.factors(t as f64)).collect();
                let mut samples = Array2::from_shape_vec((nt, 2 * self.frequencies), samples).expect("row by row");
                filter.apply(samples.view_mut());
                let row = |i| samples.columns().into_iter().map(move |c| sample(&c, middle(i, weight)) as f32);
                (0..count).for_each(|i| inverse.extend(row(i)));
            }
        }
        Rows { count, weight, inverse }
    }

    /// What the real, then the imaginary parts of a spectrum count for at a time, in steps.
    fn factors(&self, t: f64) -> Vec<f64> {
        let factors = (0..self.frequencies).map(|k| {
            let twice = if k == 0 { 1.0 } else { 2.0 } / self.grid.period;
            let (c, d) = self.grid.factor(k, -t);
            (twice * c, -twice * d)
        });
        let (mut cos, sin): (Vec<f64>, Vec<f64>) = factors.unzip();
        cos.extend(sin);
        cos
    }
}

/// Time, in steps, of row `i` where each stands for `weight` of them.
fn middle(i: usize, weight: f64) -> f64 {
    (i as f64 + 0.5) * weight - 0.5
}

impl Rows {
    /// Time of a row, in steps.
    pub fn time(&self, i: usize) -> f64 {
        middle(i, self.weight)
    }
}

/// The highest frequency, in cycles a step, at which the wavelet holds [`BAND`] of its peak.
fn band_end(survey: &Survey) -> f64 {
    const POINTS: usize = 1000;
    let grid = Frequencies { period: 2.0 * POINTS as f64, decay: 0.0 };
    let power = |k| {
        let (a, b) = grid.spectrum(&survey.wavelet, k);
        a.hypot(b)
    };
    let all: Vec<f64> = (0..=POINTS).map(power).collect();
    let peak = all.iter().copied().fold(0.0, f64::max);
    all.iter().rposition(|&p| p >= BAND * peak).unwrap_or(POINTS) as f64 / grid.period
}

/// Rows of the region that are transformed at a time: their spectra stay in the second-level cache.
const BLOCK: usize = 4;

/// Spectra of some rows of the region: `values[k * cells + cell]` real, `values[(frequencies + k) * cells + cell]` imaginary.
pub struct Block {
    /// First row of the region.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Cells of all rows.
    pub cells: usize,
    /// See above.
    pub values: Vec<f32>,
}

/// The first rows of a region's blocks.
pub fn block_rows(region: &Region) -> impl Iterator<Item = usize> + use<> {
    (0..region.down.len()).step_by(BLOCK)
}

/// The spectra of fields over the block that begins with a row, in the memory of another block.
pub fn block(fields: &Fields, region: &Region, timing: &Timing, row: usize, mut values: Vec<f32>) -> Block {
    let rows = BLOCK.min(region.down.len() - row);
    let (cols, n) = (region.across.len(), 2 * timing.frequencies);
    let cells = rows * cols;
    let transform = match fields.what {
        Recorder::Laplacian => &timing.source_transform,
        Recorder::Field => &timing.green_transform,
    };
    let levels = MatRef::from_row_major_slice(&fields.values, fields.levels, region.cells());
    values.resize(n * cells, 0.0);
    matmul(
        MatMut::from_row_major_slice_mut(&mut values, n, cells),
        Accum::Replace,
        MatRef::from_row_major_slice(transform, n, fields.levels),
        levels.subcols(row * cols, cells),
        1.0f32,
        Par::Seq,
    );
    Block { row, rows, cells, values }
}

impl Block {
    /// Multiplies every frequency by its factor.
    pub fn rotate(&mut self, timing: &Timing) {
        let (re, im) = self.values.split_at_mut(timing.frequencies * self.cells);
        let rows = re.chunks_exact_mut(self.cells).zip(im.chunks_exact_mut(self.cells));
        for ((re, im), &(c, d)) in rows.zip(&timing.rotation) {
            let (c, d) = (c as f32, d as f32);
            for (a, b) in re.iter_mut().zip(im) {
                (*a, *b) = (*a * c - *b * d, *a * d + *b * c);
            }
        }
    }
}
