//! Fields on the map and the padding around it, kept at every few steps.

use crate::wave::{FieldView, Propagator};
use crate::{Model, Position, Result, Survey};
use ndarray::ArrayView2;
use std::f64::consts::PI;
use std::ops::Range;
use std::sync::Mutex;

/// Cells into the padding over which every cell counts: near sources and receivers the fields vary from cell to cell.
const EVERY_CELL: f64 = 16.0;

/// Cells over which every cell passes into every second one.
const BLEND: f64 = 16.0;

/// Cells along one axis and what they weigh in a sum over it: all of the map and, farther and farther into the padding,
/// every second with twice the weight. The smooth passage keeps the sum right for all that varies over more than two cells.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Index in the padded grid.
    pub at: Vec<usize>,
    /// Weight of each.
    pub weight: Vec<f32>,
    /// Number of cells before the map.
    pub before: usize,
    /// Those of the cells around the map, by their place here, none of which is left out.
    whole: Range<usize>,
    /// Cells of the padded grid.
    padded: usize,
}

impl Axis {
    /// Over `cells` of the map and `margin` of the `sponge` cells on both sides of it.
    pub fn new(cells: usize, sponge: usize, margin: usize) -> Self {
        let margin = margin.min(sponge);
        let weight = |d: usize| {
            let u = ((d as f64 - EVERY_CELL) / BLEND).clamp(0.0, 1.0);
            let shift = 0.5 * (1.0 - (PI * u).cos());
            if d.is_multiple_of(2) { 1.0 + shift } else { 1.0 - shift }
        };
        let outside: Vec<(usize, f64)> = (1..=margin).map(|d| (d, weight(d))).filter(|(_, w)| *w > 0.0).collect();
        let left = outside.iter().rev().map(|&(d, w)| (sponge - d, w));
        let map = (sponge..sponge + cells).map(|i| (i, 1.0));
        let right = outside.iter().map(|&(d, w)| (sponge + cells - 1 + d, w));
        let (at, weight): (Vec<usize>, _) = left.chain(map).chain(right).map(|(i, w)| (i, w as f32)).unzip();
        let (before, padded) = (outside.len(), cells + 2 * sponge);
        let beside = outside.iter().enumerate().take_while(|(i, (d, _))| *d == i + 1).count();
        Self { at, weight, before, whole: before - beside..before + cells + beside, padded }
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// Of the cells around the map, those whose neighbours lie beside them in the padded grid, too.
    fn inner(&self) -> Range<usize> {
        let first = self.whole.clone().find(|&j| self.at[j] >= 2).unwrap_or(self.whole.end);
        let last = self.whole.clone().rfind(|&j| self.at[j] + 2 < self.padded).map_or(first, |j| j + 1);
        first..last.max(first)
    }

    /// Indices of the cells `by` farther on, around the torus.
    fn shifted(&self, by: isize) -> Vec<usize> {
        self.at.iter().map(|&i| (i as isize + by).rem_euclid(self.padded as isize) as usize).collect()
    }
}

/// The cells whose share is summed.
#[derive(Clone, Debug)]
pub struct Region {
    /// Rows.
    pub down: Axis,
    /// Columns.
    pub across: Axis,
}

impl Region {
    /// The map and `margin` cells of the padding on each side.
    pub fn new(survey: &Survey, margin: usize) -> Self {
        let axis = |cells| Axis::new(cells, survey.sponge, margin);
        Self { down: axis(survey.nz), across: axis(survey.nx) }
    }

    /// Number of cells.
    pub fn cells(&self) -> usize {
        self.down.len() * self.across.len()
    }
}

/// What of a field is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorder {
    /// The field.
    Field,
    /// `L p` times the cell's weight: 4/3 of the near neighbours less 1/12 of the far ones less five times the field.
    Laplacian,
}

/// The levels of one source's field over the region, (levels, rows x columns).
pub struct Fields {
    /// Number of levels.
    pub levels: usize,
    /// What was kept.
    pub what: Recorder,
    /// The values.
    pub values: Vec<f32>,
}

/// The field of a source at every `every`-th step, in the memory of other fields.
pub fn record(
    propagator: &dyn Propagator,
    model: &Model,
    (at, wavelet): (Position, &[f64]),
    every: usize,
    region: &Region,
    what: Recorder,
    mut values: Vec<f32>,
) -> Result<Fields> {
    let levels = propagator.survey().nt.div_ceil(every);
    let cells = region.cells();
    values.resize(levels * cells, 0.0);
    let (values, stencil) = (Mutex::new(values), Stencil::new(region));
    propagator.wavefields(model, &[at], wavelet, every, &|_, level, field| {
        let mut values = values.lock().unwrap_or_else(|e| e.into_inner());
        let out = &mut values[level * cells..][..cells];
        match (what, field) {
            (Recorder::Field, FieldView::F32(field)) => copy(region, field, out),
            (Recorder::Field, FieldView::F64(field)) => copy(region, field, out),
            (Recorder::Laplacian, FieldView::F32(field)) => stencil.apply(region, field, out),
            (Recorder::Laplacian, FieldView::F64(field)) => stencil.apply(region, field, out),
        }
    })?;
    Ok(Fields { levels, what, values: values.into_inner().unwrap_or_else(|e| e.into_inner()) })
}

/// A row of a field.
fn row<'p, T>(field: &ArrayView2<'p, T>, z: usize) -> &'p [T] {
    (*field).index_axis_move(ndarray::Axis(0), z).to_slice().expect("cells of a row lie together")
}

fn copy<T: Copy + Into<f64>>(region: &Region, field: ArrayView2<T>, out: &mut [f32]) {
    let Axis { at, whole, .. } = &region.across;
    let single = |x: T| -> f32 { x.into() as f32 };
    let gather = |row: &[T], to: &mut [f32], at: &[usize]| {
        to.iter_mut().zip(at).for_each(|(to, &x)| *to = single(row[x]));
    };
    for (&z, to) in region.down.at.iter().zip(out.chunks_exact_mut(at.len())) {
        let row = row(&field, z);
        gather(row, &mut to[..whole.start], &at[..whole.start]);
        gather(row, &mut to[whole.end..], &at[whole.end..]);
        to[whole.clone()].iter_mut().zip(&row[at[whole.start]..]).for_each(|(to, x)| *to = single(*x));
    }
}

/// Indices of the neighbours of the region's cells, by distance -2, -1, 1 and 2.
struct Stencil {
    down: [Vec<usize>; 4],
    across: [Vec<usize>; 4],
}

impl Stencil {
    fn new(region: &Region) -> Self {
        let around = |axis: &Axis| [-2, -1, 1, 2].map(|d| axis.shifted(d));
        Self { down: around(&region.down), across: around(&region.across) }
    }

    fn apply<T: Copy + Into<f64>>(&self, region: &Region, field: ArrayView2<T>, out: &mut [f32]) {
        let (down, across) = (&region.down, &region.across);
        let inner = across.inner();
        for (i, to) in out.chunks_exact_mut(across.len()).enumerate() {
            let here = row(&field, down.at[i]);
            let around = [0, 1, 2, 3].map(|k| row(&field, self.down[k][i]));
            for j in (0..inner.start).chain(inner.end..across.len()) {
                let x = across.at[j];
                let beside = [0, 1, 2, 3].map(|k| here[self.across[k][j]]);
                to[j] = laplacian(here[x], around.map(|row| row[x]), beside, down.weight[i] * across.weight[j]);
            }
            let Some(&x0) = across.at.get(inner.start).filter(|_| !inner.is_empty()) else { continue };
            let n = inner.len();
            let [left2, left, right, right2] = [0, 1, 3, 4].map(|k| &here[x0 + k - 2..][..n]);
            let [up2, up, below, below2] = around.map(|row| &row[x0..][..n]);
            let (here, weight) = (&here[x0..][..n], &across.weight[inner.clone()]);
            for (k, to) in to[inner.clone()].iter_mut().enumerate() {
                let (vertical, beside) =
                    ([up2[k], up[k], below[k], below2[k]], [left2[k], left[k], right[k], right2[k]]);
                *to = laplacian(here[k], vertical, beside, down.weight[i] * weight[k]);
            }
        }
    }
}

/// `L p` from a cell and its neighbours by distance -2, -1, 1 and 2.
#[inline(always)]
fn laplacian<T: Into<f64>>(here: T, vertical: [T; 4], beside: [T; 4], weight: f32) -> f32 {
    let ([up2, up, below, below2], [left2, left, right, right2]) = (vertical.map(T::into), beside.map(T::into));
    let (near, far) = (up + below + left + right, up2 + below2 + left2 + right2);
    (f64::from(weight) * (4.0 / 3.0 * near - far / 12.0 - 5.0 * here.into())) as f32
}
