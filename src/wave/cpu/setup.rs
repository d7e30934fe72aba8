//! What is computed once per model and shared by its shots.

use super::grid::{Buffer, Coefficients, Layout};
use super::vector::Real;
use super::window::{Arrivals, Slowness, Windows};
use crate::{Model, Survey};
use ndarray::Array2;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Coefficients, travel times and receivers of one model.
pub struct Setup<T> {
    /// Coefficients of the step.
    pub coefficients: Coefficients<T>,
    /// Field index of every receiver.
    pub receivers: Vec<usize>,
    /// `alpha` at every receiver.
    pub receiver_alpha: Vec<f64>,
    travel: Option<(Slowness, Arrivals)>,
}

impl<T: Real> Setup<T> {
    /// For a checked model; `causal` switches the windows on.
    pub fn new(survey: &Survey, layout: &Layout, model: &Model, causal: bool) -> Self {
        let coefficients = Coefficients::<T>::new(survey, layout, model);
        let receivers = survey.receivers.iter().map(|&r| layout.cell(r)).collect();
        let alpha = |z: usize, x: usize| coefficients.alpha.as_slice()[layout.row(z) + x + layout.pad].to_f64();
        let receiver_alpha = survey.receivers.iter().map(|r| alpha(r.z, r.x)).collect();
        let travel = causal.then(|| {
            let slowness = Slowness::new(survey, layout, model);
            let arrivals = slowness.arrivals(survey.receivers.iter().map(|r| (r.z + layout.pad, r.x + layout.pad)));
            (slowness, arrivals)
        });
        Self { coefficients, receivers, receiver_alpha, travel }
    }

    /// The windows of a shot.
    pub fn windows(&self, survey: &Survey, layout: &Layout, shot: usize) -> Windows {
        let Some((slowness, to_receivers)) = &self.travel else { return Windows::full(layout) };
        let source = survey.sources[shot];
        let from_source = slowness.arrivals([(source.z + layout.pad, source.x + layout.pad)].into_iter());
        Windows::causal(layout, T::LINE, survey.nt, slowness, &from_source, to_receivers)
    }

    /// Sums of the padded grid's cells over the map's cells that they repeat.
    pub fn fold(&self, survey: &Survey, layout: &Layout, sums: &[T]) -> Array2<f64> {
        let (nz, nx, s) = (survey.nz, survey.nx, survey.sponge);
        let mut map = Array2::zeros((nz, nx));
        for z in 0..layout.rows {
            let row = &sums[layout.row(z)..][..layout.cols];
            let mut to = map.row_mut(z.saturating_sub(s).min(nz - 1));
            let total = |part: &[T]| part.iter().map(|x| x.to_f64()).sum::<f64>();
            to[0] += total(&row[..s]);
            to[nx - 1] += total(&row[s + nx..]);
            for (t, x) in to.iter_mut().zip(&row[s..s + nx]) {
                *t += x.to_f64();
            }
        }
        map
    }
}

/// Rows of the perturbation of `alpha`, `2 v dv (dt / dx)^2`, laid out like `Coefficients::alpha`.
pub fn d_alpha_rows<T: Real>(survey: &Survey, layout: &Layout, model: &Model, direction: &Model) -> Buffer<T> {
    let mut rows = Buffer::zeros(survey.nz * layout.stride);
    let scale = 2.0 * (survey.dt / survey.dx).powi(2);
    for z in 0..survey.nz {
        for x in 0..layout.cols {
            let i = [z, x.saturating_sub(survey.sponge).min(survey.nx - 1)];
            rows.as_mut_slice()[layout.row(z) + x] = T::from_f64(scale * model.vp[i] * direction.vp[i]);
        }
    }
    rows
}

type Slot<T> = Mutex<Option<Arc<Setup<T>>>>;

/// The setups of a batch, each made when its first shot starts and dropped when its last is done.
pub struct Setups<T> {
    /// Per model the setup and the number of shots that are not done.
    slots: Vec<(Slot<T>, AtomicUsize)>,
}

impl<T: Real> Setups<T> {
    /// For `models` models of `shots` shots.
    pub fn new(models: usize, shots: usize) -> Self {
        Self { slots: (0..models).map(|_| (Mutex::new(None), AtomicUsize::new(shots))).collect() }
    }

    /// The setup of a model, made by the first who asks.
    pub fn get(&self, model: usize, make: impl FnOnce() -> Setup<T>) -> Arc<Setup<T>> {
        let mut slot = self.slots[model].0.lock().unwrap_or_else(|e| e.into_inner());
        slot.get_or_insert_with(|| Arc::new(make())).clone()
    }

    /// Says that a shot of a model needs its setup no more.
    pub fn done(&self, model: usize) {
        let (slot, left) = &self.slots[model];
        if left.fetch_sub(1, Ordering::AcqRel) == 1 {
            *slot.lock().unwrap_or_else(|e| e.into_inner()) = None;
        }
    }
}
