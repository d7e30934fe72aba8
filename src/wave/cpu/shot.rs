//! The time loops of one shot: forward with history, adjoint with correlation, Born, and any source's wavefield.
//!
//! Hook timing of a step `m`: update all rows inside the window -> inject -> record -> store. The adjoint walks the
//! same steps backwards: update (correlating with the stored field of step `m`) -> inject the residual of step `m`.
//!
//! The gradient follows from summing the recursion by parts (`mu = alpha lambda`, `A` = stencil with its centre):
//!
//! ```text
//! alpha dJ/dalpha = sum_m p_m (A mu_(m+1)) + sum_m p_m r_m at the receivers
//! dJ/dkappa       = sum_m p_m (lambda_(m+2) - lambda_(m+1))
//! ```
//!
//! so that one stored field suffices and `A mu` falls out of the adjoint's own step. The source's own terms cancel:
//! the source scales with v^2 like alpha. Both sums hold nothing above twice the wavelet's band and need not be taken
//! at every step: every D-th, times D, gives the same number. Only at the record's end, where the adjoint field sets in
//! at once, the sums must be full; [`correlation_weights`] blends from one to the other.

use super::grid::{Buffer, Coefficients, Layout};
use super::rows::{Correlation, step_rows, store_segment, wrap_row};
use super::vector::{Kernel, Real, Vector};
use super::window::{STEPS_PER_BIN, Windows};

/// Everything that a time loop reads.
pub struct Shot<'a, T> {
    /// Memory layout.
    pub layout: &'a Layout,
    /// Coefficients of the model.
    pub coefficients: &'a Coefficients<T>,
    /// What to update when.
    pub windows: &'a Windows,
    /// Number of time steps.
    pub nt: usize,
    /// Field index of the source's cell.
    pub source: usize,
    /// What is added at the source at every step (zero beyond the end).
    pub injection: &'a [T],
    /// Field index of every receiver.
    pub receivers: &'a [usize],
    /// Weight of every step in the gradient's sums; the field is stored where it is not zero.
    pub weights: &'a [f64],
}

/// Fields and history of one shot; reused from shot to shot.
pub struct Workspace<T> {
    /// The fields of the last two steps; which is which alternates with the step's parity.
    pub(super) fields: [Buffer<T>; 2],
    /// The same of the adjoint.
    adjoint: [Buffer<T>; 2],
    /// Correlation sums of the adjoint.
    sums: Buffer<T>,
    /// Stored levels of a range of steps, windows only.
    history: Buffer<T>,
    /// Both fields at the start of every segment but the first.
    snapshots: Vec<[Buffer<T>; 2]>,
    /// Recorded samples (time, receiver).
    pub data: Vec<T>,
}

impl<T: Real> Workspace<T> {
    /// Empty; buffers are taken when first needed.
    pub fn new(layout: &Layout) -> Self {
        let fields = |len| [Buffer::zeros(len), Buffer::zeros(len)];
        Self {
            fields: fields(layout.field_len()),
            adjoint: fields(0),
            sums: Buffer::zeros(0),
            history: Buffer::zeros(0),
            snapshots: vec![],
            data: vec![],
        }
    }

    /// Per-cell sums of the last adjoint, laid out like a field.
    pub fn sums(&self) -> &[T] {
        self.sums.as_slice()
    }
}

/// Weights of the steps in sums over every `decimation`-th step: `decimation` at those and zero between, but one at
/// every step at the end, with a smooth transition, because the sums begin there abruptly. (A rectangle rule's error is
/// (D^2 - 1) / 12 times the slope at its end: up to 1e-4 of the gradient.)
pub fn correlation_weights(nt: usize, decimation: usize) -> Vec<f64> {
    let transition = (16 * decimation).min(nt) as f64;
    let coarse = |m: usize| if m.is_multiple_of(decimation) { decimation as f64 } else { 0.0 };
    let full = |m: usize| {
        let u = ((nt - m) as f64 / transition).min(1.0);
        1.0 - u.powi(4) * (35.0 - 84.0 * u + 70.0 * u * u - 20.0 * u * u * u) // smooth in three derivatives
    };
    let weight = |m| if decimation == 1 { 1.0 } else { full(m) + (1.0 - full(m)) * coarse(m) };
    (0..nt).map(weight).collect()
}

/// Elements that the stored levels of steps `begin..end` take.
fn history_len(windows: &Windows, weights: &[f64], begin: usize, end: usize) -> usize {
    (begin..end).filter(|&m| weights[m] != 0.0).map(|m| windows.size(m)).sum()
}

/// Start of segment `k` when `nt` steps are cut into `segments`.
fn segment_begin(nt: usize, segments: usize, k: usize) -> usize {
    k * nt / segments
}

impl<T: Real> Shot<'_, T> {
    /// One step of all rows inside the window, without injection.
    #[inline(always)]
    pub(super) unsafe fn step<V: Vector<Elem = T>>(&self, m: usize, field: &[T], out: &mut [T]) {
        let (l, c) = (self.layout, self.coefficients);
        for (band, segments) in self.windows.at(m) {
            for &seg in segments {
                let mut z = band.begin;
                while !seg.is_empty() && z < band.end {
                    unsafe {
                        if z + 1 < band.end {
                            step_rows::<V, 2>(l, c, field, out, z, seg, None);
                        } else {
                            step_rows::<V, 1>(l, c, field, out, z, seg, None);
                        }
                    }
                    z += 2;
                }
            }
            for z in band.begin..band.end {
                wrap_row(l, out, z);
            }
        }
    }

    /// The same, correlating with the stored field of step `m`.
    #[inline(always)]
    unsafe fn step_correlating<V: Vector<Elem = T>>(
        &self,
        m: usize,
        field: &[T],
        out: &mut [T],
        mut history: &[T],
        sums: &mut [T],
    ) -> f64 {
        let (l, c) = (self.layout, self.coefficients);
        let mut total = 0.0;
        for (band, segments) in self.windows.at(m) {
            let mut damping = unsafe { V::splat(T::default()) };
            for &seg in segments {
                let mut z = band.begin;
                while !seg.is_empty() && z < band.end {
                    let rows = (band.end - z).min(2);
                    let (now, rest) = history.split_at(rows * seg.len());
                    let mut k = Correlation { history: now, sums, damping: &mut damping };
                    unsafe {
                        if rows == 2 {
                            step_rows::<V, 2>(l, c, field, out, z, seg, Some(&mut k));
                        } else {
                            step_rows::<V, 1>(l, c, field, out, z, seg, Some(&mut k));
                        }
                    }
                    history = rest;
                    z += 2;
                }
            }
            for z in band.begin..band.end {
                wrap_row(l, out, z);
            }
            total += unsafe { damping.sum() };
        }
        total
    }

    /// Appends the windowed field times the step's weight to the history, in the order in which [`Self::step_correlating`] reads it.
    #[inline(always)]
    unsafe fn store<'h, V: Vector<Elem = T>>(&self, m: usize, field: &[T], mut history: &'h mut [T]) -> &'h mut [T] {
        let weight = T::from_f64(self.weights[m]);
        for (band, segments) in self.windows.at(m) {
            for &seg in segments {
                for z in band.begin..if seg.is_empty() { band.begin } else { band.end } {
                    let (now, rest) = history.split_at_mut(seg.len());
                    let from = &field[self.layout.row(z) + seg.begin..][..seg.len()];
                    unsafe { store_segment::<V>(from, weight, now) };
                    history = rest;
                }
            }
        }
        history
    }

    pub(super) fn inject(&self, m: usize, field: &mut [T]) {
        if let Some(&w) = self.injection.get(m) {
            field[self.source] = field[self.source].plus(w);
        }
    }

    /// Steps `begin..end` forward, recording all and storing those that the gradient needs when asked to.
    #[inline(always)]
    unsafe fn forward_range<V: Vector<Elem = T>>(&self, ws: &mut Workspace<T>, begin: usize, end: usize, keep: bool) {
        let nr = self.receivers.len();
        let mut history = if keep { ws.history.as_mut_slice() } else { &mut [] };
        let [even, odd] = &mut ws.fields;
        for m in begin..end {
            let (field, out) =
                if m % 2 == 0 { (odd.as_slice(), even.as_mut_slice()) } else { (even.as_slice(), odd.as_mut_slice()) };
            unsafe { self.step::<V>(m, field, out) };
            self.inject(m, out);
            for (d, &r) in ws.data[m * nr..][..nr].iter_mut().zip(self.receivers) {
                *d = out[r];
            }
            if keep && self.weights[m] != 0.0 {
                history = unsafe { self.store::<V>(m, out, history) };
            }
        }
        // streaming stores are not ordered by themselves, and the adjoint may run on another thread
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Whether each receiver lies in the window, at a step.
    fn receivers_inside(&self, m: usize) -> Vec<bool> {
        let l = self.layout;
        self.receivers.iter().map(|&r| self.windows.contains(m, r / l.stride, r % l.stride - l.halo)).collect()
    }
}

/// Forward modelling of one shot into `workspace.data`.
pub struct Forward<'a, T> {
    /// The shot.
    pub shot: &'a Shot<'a, T>,
    /// Fields.
    pub workspace: &'a mut Workspace<T>,
    /// In how many segments an adjoint will follow; `None` keeps nothing for it.
    pub segments: Option<usize>,
}

impl<T: Real> Kernel<T> for Forward<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<V: Vector<Elem = T>>(self) {
        let Self { shot, workspace: ws, segments } = self;
        ws.fields.iter_mut().for_each(Buffer::clear);
        ws.data.resize(shot.nt * shot.receivers.len(), T::default());
        let Some(n) = segments else {
            return unsafe { shot.forward_range::<V>(ws, 0, shot.nt, false) };
        };
        let bounds = |k| (segment_begin(shot.nt, n, k), segment_begin(shot.nt, n, k + 1));
        ws.history.reserve(longest_history(shot.windows, shot.weights, n));
        ws.snapshots.resize_with(n - 1, || [0, 1].map(|_| Buffer::zeros(shot.layout.field_len())));
        for k in 0..n {
            let (begin, end) = bounds(k);
            if k > 0 {
                copy_fields(&ws.fields, &mut ws.snapshots[k - 1]);
            }
            unsafe { shot.forward_range::<V>(ws, begin, end, k + 1 == n) };
        }
    }
}

fn copy_fields<T: Real>(from: &[Buffer<T>; 2], to: &mut [Buffer<T>; 2]) {
    for (a, b) in from.iter().zip(to) {
        b.as_mut_slice().copy_from_slice(a.as_slice());
    }
}

/// Adjoint of one shot after a [`Forward`] that kept its history, into `workspace.sums()`.
pub struct Adjoint<'a, T> {
    /// The shot.
    pub shot: &'a Shot<'a, T>,
    /// Fields and history of the forward run.
    pub workspace: &'a mut Workspace<T>,
    /// As in the forward run.
    pub segments: usize,
    /// Adjoint source (time, receiver), each already times its receiver's `alpha`.
    pub residual: &'a [T],
}

impl<T: Real> Kernel<T> for Adjoint<'_, T> {
    /// `sum p_m (lambda_(m+2) - lambda_(m+1)) kappa` over all cells and steps.
    type Out = f64;

    #[inline(always)]
    unsafe fn run<V: Vector<Elem = T>>(self) -> f64 {
        let Self { shot, workspace: ws, segments: n, residual } = self;
        ws.sums.reserve(shot.layout.field_len());
        ws.sums.clear();
        for a in &mut ws.adjoint {
            a.reserve(shot.layout.field_len());
            a.clear();
        }
        let mut damping = 0.0;
        for k in (0..n).rev() {
            let (begin, end) = (segment_begin(shot.nt, n, k), segment_begin(shot.nt, n, k + 1));
            if k + 1 < n {
                if k > 0 {
                    let (fields, snapshots) = (&mut ws.fields, &ws.snapshots);
                    copy_fields(&snapshots[k - 1], fields);
                } else {
                    ws.fields.iter_mut().for_each(Buffer::clear);
                }
                unsafe { shot.forward_range::<V>(ws, begin, end, true) };
            }
            unsafe { shot.adjoint_range::<V>(ws, begin, end, residual, &mut damping) };
        }
        damping
    }
}

impl<T: Real> Shot<'_, T> {
    #[inline(always)]
    unsafe fn adjoint_range<V: Vector<Elem = T>>(
        &self,
        ws: &mut Workspace<T>,
        begin: usize,
        end: usize,
        residual: &[T],
        damping: &mut f64,
    ) {
        let nr = self.receivers.len();
        let [even, odd] = &mut ws.adjoint;
        let mut level_end = history_len(self.windows, self.weights, begin, end);
        let mut inside = Vec::new();
        for m in (begin..end).rev() {
            let (field, out) =
                if m % 2 == 0 { (odd.as_slice(), even.as_mut_slice()) } else { (even.as_slice(), odd.as_mut_slice()) };
            if self.weights[m] != 0.0 {
                let level = level_end - self.windows.size(m)..level_end;
                level_end = level.start;
                let history = &ws.history.as_slice()[level];
                *damping += unsafe { self.step_correlating::<V>(m, field, out, history, ws.sums.as_mut_slice()) };
            } else {
                unsafe { self.step::<V>(m, field, out) };
            }
            if inside.is_empty() || (m + 1) % STEPS_PER_BIN == 0 {
                inside = self.receivers_inside(m);
            }
            for (r, &i) in self.receivers.iter().enumerate() {
                if inside[r] {
                    out[i] = out[i].plus(residual[m * nr + r]);
                }
            }
        }
    }
}

/// Elements that the longest of `segments` histories takes.
pub fn longest_history(windows: &Windows, weights: &[f64], segments: usize) -> usize {
    let nt = weights.len();
    let len = |k| history_len(windows, weights, segment_begin(nt, segments, k), segment_begin(nt, segments, k + 1));
    (0..segments).map(len).max().unwrap_or(0)
}
