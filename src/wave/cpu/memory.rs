//! What a gradient takes, and how it is made to fit: shots in flight, and segments of the history that are recomputed.

use super::grid::{Layout, with_room};
use super::shot::{correlation_weights, longest_history};
use super::window::Windows;
use crate::{Error, Result, Survey};

/// The steps at which a gradient is summed, and the least memory that this can do with.
pub struct Sums {
    /// Weight of every step.
    pub weights: Vec<f64>,
    /// Least bytes of history and snapshots of a full-grid shot.
    least: u64,
}

/// The memory of gradients on one grid.
pub struct Memory {
    layout: Layout,
    /// Bytes of an element of a field.
    element: u64,
    /// Bytes of a shot besides history and snapshots: forward and adjoint fields, sums, samples.
    fixed: u64,
    /// Most bytes in all.
    max_bytes: u64,
    /// For misfits that keep to the data's band.
    pub sparse: Sums,
    /// For all others.
    pub full: Sums,
}

impl Memory {
    /// Errors when not even one shot at a time fits into `max_bytes`.
    pub fn new(survey: &Survey, layout: &Layout, element: usize, decimation: usize, max_bytes: u64) -> Result<Self> {
        let samples = (survey.nt * survey.receivers.len()) as u64;
        let empty = || Sums { weights: vec![], least: 0 };
        let element = element as u64;
        let fixed = 5 * layout.field_len() as u64 * element + samples * (2 * element + 16);
        let mut memory = Self { layout: *layout, element, fixed, max_bytes, sparse: empty(), full: empty() };
        let windows = Windows::full(layout);
        let sums = |weights: Vec<f64>| {
            let least = (1..=survey.nt).map(|n| memory.history(&windows, &weights, n)).min().unwrap_or(0);
            Sums { weights, least }
        };
        let (sparse, full) = (sums(correlation_weights(survey.nt, decimation)), sums(vec![1.0; survey.nt]));
        (memory.sparse, memory.full) = (sparse, full);
        let least = fixed + memory.full.least;
        if least > max_bytes {
            return Err(Error::Memory(format!(
                "one shot's gradient needs at least {} MB, more than the {} MB allowed; raise --max-memory",
                least.div_ceil(1 << 20),
                max_bytes >> 20
            )));
        }
        Ok(memory)
    }

    /// Bytes of the history and the snapshots of a shot.
    fn history(&self, windows: &Windows, weights: &[f64], segments: usize) -> u64 {
        let history = with_room(longest_history(windows, weights, segments)) as u64;
        (history + 2 * (segments as u64 - 1) * self.layout.field_len() as u64) * self.element
    }

    /// How many shots may be in flight, at most `wanted`, and the bytes of history that each of them may take.
    pub fn share(&self, wanted: usize, sums: &Sums) -> (usize, u64) {
        let fit = self.max_bytes / (self.fixed + sums.least).max(1);
        let shots = wanted.min(fit as usize).max(1);
        (shots, (self.max_bytes / shots as u64).saturating_sub(self.fixed))
    }

    /// The fewest segments whose history fits into `budget` bytes.
    pub fn segments(&self, windows: &Windows, weights: &[f64], budget: u64) -> usize {
        let nt = weights.len();
        let all = |&n: &usize| self.history(windows, weights, n) <= budget;
        (1..=nt).find(all).unwrap_or_else(|| (1..=nt).min_by_key(|&n| self.history(windows, weights, n)).unwrap_or(1))
    }

    /// The steps at which gradients of misfits that keep to the data's band, or do not, are summed.
    pub fn sums(&self, band_limited: bool) -> &Sums {
        if band_limited { &self.sparse } else { &self.full }
    }

    /// Most bytes that `wanted` shots in flight take.
    pub fn most(&self, wanted: usize, sums: &Sums) -> u64 {
        let (shots, budget) = self.share(wanted, sums);
        let windows = Windows::full(&self.layout);
        let segments = self.segments(&windows, &sums.weights, budget);
        shots as u64 * (self.fixed + self.history(&windows, &sums.weights, segments))
    }
}
