//! Shot gathers and the mask of what in them can be trusted.

use ndarray::{Array2, Array3, ArrayView2, s};
use std::sync::Arc;

/// A shot gather (shots, time samples, receivers), pressure in the data's own units.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// Samples (shot, time, receiver).
    pub data: Array3<f64>,
}

impl Gather {
    /// Wraps (shots, time samples, receivers) samples.
    pub fn new(data: Array3<f64>) -> Self {
        Self { data }
    }

    /// One shot, (time samples, receivers).
    pub fn shot(&self, shot: usize) -> ArrayView2<'_, f64> {
        self.data.slice(s![shot, .., ..])
    }

    /// Inner product over all samples.
    pub fn dot(&self, other: &Self) -> f64 {
        self.data.iter().zip(&other.data).map(|(a, b)| a * b).sum()
    }
}

/// Which samples of an observed gather count.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    /// Samples `0..nt` count; a last sample that is zero in every trace does not.
    pub nt: usize,
    /// Traces (shot, receiver) that count; dead and non-finite ones do not.
    pub live: Array2<bool>,
}

impl Mask {
    /// Everything counts.
    pub fn all(shape: (usize, usize, usize)) -> Self {
        Self { nt: shape.1, live: Array2::from_elem((shape.0, shape.2), true) }
    }

    /// Whether this is a mask of gathers of a shape (shots, time samples, receivers).
    pub fn fits(&self, shape: (usize, usize, usize)) -> bool {
        self.nt <= shape.1 && self.live.dim() == (shape.0, shape.2)
    }

    /// Zeroes the samples that do not count.
    pub fn apply(&self, gather: &mut Gather) {
        gather.data.slice_mut(s![.., self.nt.., ..]).fill(0.0);
        for ((shot, r), _) in self.live.indexed_iter().filter(|(_, live)| !**live) {
            gather.data.slice_mut(s![shot, .., r]).fill(0.0);
        }
    }

    /// Number of samples that count.
    pub fn samples(&self) -> usize {
        self.nt * self.live.iter().filter(|&&l| l).count()
    }
}

/// An observed gather ready to be fitted: finite everywhere, with the mask of what counts. A clone shares the samples.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The samples; traces that are masked out hold zeros where they were not finite.
    pub gather: Arc<Gather>,
    /// What counts.
    pub mask: Mask,
    /// Traces (shot, receiver) left out because a sample is not finite.
    pub bad: Vec<(usize, usize)>,
    /// Traces (shot, receiver) left out because every sample is zero.
    pub dead: Vec<(usize, usize)>,
}

impl Observed {
    /// Masks a trailing all-zero sample (part of OpenFWI's files end so), dead traces and traces with NaN or infinity.
    pub fn new(mut gather: Gather) -> Self {
        let (ns, nt, nr) = gather.data.dim();
        let mut mask = Mask::all((ns, nt, nr));
        let (mut bad, mut dead) = (Vec::new(), Vec::new());
        for shot in 0..ns {
            for r in 0..nr {
                let mut trace = gather.data.slice_mut(s![shot, .., r]);
                if trace.iter().any(|x| !x.is_finite()) {
                    bad.push((shot, r));
                    trace.fill(0.0);
                } else if trace.iter().all(|&x| x == 0.0) {
                    dead.push((shot, r));
                } else {
                    continue;
                }
                mask.live[[shot, r]] = false;
            }
        }
        if nt > 1 && gather.data.slice(s![.., nt - 1, ..]).iter().all(|&x| x == 0.0) {
            mask.nt = nt - 1;
        }
        Self { gather: Arc::new(gather), mask, bad, dead }
    }

    /// Root mean square of `synthetic - observed` over the samples that count.
    pub fn rms(&self, synthetic: &Gather) -> f64 {
        let sum: f64 = (0..self.gather.data.dim().0).map(|s| self.shot_square(synthetic, s)).sum();
        (sum / self.mask.samples().max(1) as f64).sqrt()
    }

    /// Root mean square residual of every shot over the samples that count.
    pub fn rms_per_shot(&self, synthetic: &Gather) -> Vec<f64> {
        let ns = self.gather.data.dim().0;
        (0..ns)
            .map(|s| {
                let live = self.mask.live.row(s).iter().filter(|&&l| l).count();
                (self.shot_square(synthetic, s) / (live * self.mask.nt).max(1) as f64).sqrt()
            })
            .collect()
    }

    fn shot_square(&self, synthetic: &Gather, shot: usize) -> f64 {
        let (syn, obs) = (synthetic.shot(shot), self.gather.shot(shot));
        let mut sum = 0.0;
        for t in 0..self.mask.nt {
            for r in 0..obs.ncols() {
                if self.mask.live[[shot, r]] {
                    sum += (syn[[t, r]] - obs[[t, r]]).powi(2);
                }
            }
        }
        sum
    }
}
