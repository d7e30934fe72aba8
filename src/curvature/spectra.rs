//! Spectra of fields that are kept at every few steps.

use super::fields::{Fields, Recorder, Region};
use crate::Survey;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use std::f64::consts::TAU;

/// Steps between the kept levels of a field: 62 Hz at 1 ms, above all that the wavelet holds.
pub const LEVEL: usize = 8;

/// Standard deviation of the receivers' Gaussian pulse, in levels: it leaves a thousandth at half the levels' rate, so that
/// nothing folds back into the band, and a fiftieth at the band's end, which is divided out.
const PULSE: f64 = 1.0;

/// Share of its peak below which the wavelet's spectrum is left out.
const BAND: f64 = 5e-4;

/// The steps, levels, frequencies and rows of the computation.
pub struct Timing {
    /// Steps of the simulations: the record, the pulse's length, and a taper, since fields that broke off would not be band-limited.
    pub steps: usize,
    /// The pulse that stands for an impulse at a receiver.
    pub pulse: Vec<f64>,
    /// Number of frequencies.
    pub frequencies: usize,
    /// Rows of a trace.
    pub rows: usize,
    /// Weight of a row: the samples that it stands for.
    pub weight: f64,
    /// (2 frequencies, levels) for sources and for receivers, row-major: cosines above minus sines, times the taper.
    source_transform: Vec<f32>,
    green_transform: Vec<f32>,
    /// (rows, 2 frequencies), row-major: back to time.
    pub inverse: Vec<f32>,
    /// Real and imaginary factor of every frequency: delay by a step, division by the pulse's spectrum.
    pub rotation: Vec<(f64, f64)>,
    /// Spectrum of the wavelet with the pulse divided out, for the source cell's own term.
    pub wavelet: Vec<(f64, f64)>,
}

impl Timing {
    /// For records of a survey with a row every `every` steps.
    pub fn new(survey: &Survey, every: f64) -> Self {
        let sigma = PULSE * LEVEL as f64;
        let half = (6.0 * sigma).ceil() as usize;
        let pulse: Vec<f64> =
            (0..2 * half + 1).map(|k| (-0.5 * ((k as f64 - half as f64) / sigma).powi(2)).exp()).collect();
        let taper = 12 * LEVEL;
        let whole = survey.nt + 2 * half;
        let steps = whole + taper;
        // what wraps around must fall behind the record
        let period = (survey.nt + taper + steps - half).next_multiple_of(LEVEL);
        let omega = |k: usize| TAU * k as f64 / period as f64;
        let frequencies = band_end(survey, period) + 1;
        let spectrum = |x: &[f64], k: usize| {
            let sum = |f: fn(f64) -> f64| x.iter().enumerate().map(|(n, x)| x * f(omega(k) * n as f64)).sum::<f64>();
            (sum(f64::cos), -sum(f64::sin))
        };
        let rows = (survey.nt as f64 / every).ceil() as usize;
        let spacing = survey.nt as f64 / rows as f64;
        let levels = steps.div_ceil(LEVEL);
        let transform = |last: usize| {
            let mut m = vec![0.0f32; 2 * frequencies * levels];
            for k in 0..frequencies {
                for j in 0..levels {
                    let n = (j * LEVEL) as f64;
                    let fade = ((n - last as f64) / taper as f64).clamp(0.0, 1.0);
                    let h = LEVEL as f64 * 0.5 * (1.0 + (0.5 * TAU * fade).cos());
                    m[k * levels + j] = (h * (omega(k) * n).cos()) as f32;
                    m[(frequencies + k) * levels + j] = (-h * (omega(k) * n).sin()) as f32;
                }
            }
            m
        };
        let mut inverse = vec![0.0f32; rows * 2 * frequencies];
        for i in 0..rows {
            let t = (i as f64 + 0.5) * spacing - 0.5;
            for k in 0..frequencies {
                let twice = if k == 0 { 1.0 } else { 2.0 } / period as f64;
                inverse[i * 2 * frequencies + k] = (twice * (omega(k) * t).cos()) as f32;
                inverse[i * 2 * frequencies + frequencies + k] = (-twice * (omega(k) * t).sin()) as f32;
            }
        }
        let divided = |(a, b): (f64, f64), k: usize| {
            let (c, d) = spectrum(&pulse, k);
            let n = c * c + d * d;
            ((a * c + b * d) / n, (b * c - a * d) / n)
        };
        let rotation = (0..frequencies).map(|k| divided((omega(k).cos(), -omega(k).sin()), k)).collect();
        let wavelet = (0..frequencies).map(|k| divided(spectrum(&survey.wavelet, k), k)).collect();
        Self {
            steps,
            frequencies,
            rows,
            weight: spacing,
            source_transform: transform(survey.nt),
            green_transform: transform(whole),
            inverse,
            rotation,
            wavelet,
            pulse,
        }
    }
}

/// The last frequency, as a multiple of one over the period, at which the wavelet holds [`BAND`] of its peak.
fn band_end(survey: &Survey, period: usize) -> usize {
    let power = |k: usize| {
        let w = TAU * k as f64 / period as f64;
        let sum = |f: fn(f64) -> f64| survey.wavelet.iter().enumerate().map(|(n, x)| x * f(w * n as f64)).sum::<f64>();
        sum(f64::cos).hypot(sum(f64::sin))
    };
    let highest = (period / LEVEL / 2) * 9 / 10;
    let all: Vec<f64> = (0..=highest).map(power).collect();
    let peak = all.iter().copied().fold(0.0, f64::max);
    all.iter().rposition(|&p| p >= BAND * peak).unwrap_or(highest)
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

/// The spectra of fields, block by block.
pub fn blocks<'a>(fields: &'a Fields, region: &'a Region, timing: &'a Timing) -> impl Iterator<Item = Block> + 'a {
    (0..region.down.len()).step_by(BLOCK).map(move |row| block(fields, region, timing, row))
}

fn block(fields: &Fields, region: &Region, timing: &Timing, row: usize) -> Block {
    let rows = BLOCK.min(region.down.len() - row);
    let (cols, n) = (region.across.len(), 2 * timing.frequencies);
    let cells = rows * cols;
    let transform = match fields.what {
        Recorder::Laplacian => &timing.source_transform,
        Recorder::Field => &timing.green_transform,
    };
    let levels = MatRef::from_row_major_slice(&fields.values, fields.levels, region.cells());
    let mut values = vec![0.0f32; n * cells];
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
