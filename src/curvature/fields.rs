//! Fields on the map and the padding around it, kept at every few steps.

use crate::wave::Propagator;
use crate::{Model, Position, Result, Survey};
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

/// The field of a source at every `every`-th step.
pub fn record(
    propagator: &dyn Propagator,
    model: &Model,
    (at, wavelet): (Position, &[f64]),
    every: usize,
    region: &Region,
    what: Recorder,
) -> Result<Fields> {
    let levels = propagator.survey().nt.div_ceil(every);
    let cells = region.cells();
    let values = Mutex::new(vec![0.0f32; levels * cells]);
    let stencil = Stencil::new(region);
    propagator.wavefields(model, &[at], wavelet, every, &|_, level, p| {
        let mut values = values.lock().unwrap_or_else(|e| e.into_inner());
        let out = &mut values[level * cells..][..cells];
        let (width, rows) = (p.ncols(), p.as_standard_layout());
        let rows = rows.as_slice().expect("row by row");
        let row = |z: usize| &rows[z * width..][..width];
        match what {
            Recorder::Field => copy(region, row, out),
            Recorder::Laplacian => stencil.apply(region, row, out),
        }
    })?;
    Ok(Fields { levels, what, values: values.into_inner().unwrap_or_else(|e| e.into_inner()) })
}

fn copy<'p>(region: &Region, row: impl Fn(usize) -> &'p [f64], out: &mut [f32]) {
    let Axis { at, whole, .. } = &region.across;
    let gather = |row: &[f64], to: &mut [f32], at: &[usize]| {
        to.iter_mut().zip(at).for_each(|(to, &x)| *to = row[x] as f32);
    };
    for (&z, to) in region.down.at.iter().zip(out.chunks_exact_mut(at.len())) {
        let row = row(z);
        gather(row, &mut to[..whole.start], &at[..whole.start]);
        gather(row, &mut to[whole.end..], &at[whole.end..]);
        to[whole.clone()].iter_mut().zip(&row[at[whole.start]..]).for_each(|(to, x)| *to = *x as f32);
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

    fn apply<'p>(&self, region: &Region, row: impl Fn(usize) -> &'p [f64], out: &mut [f32]) {
        let (down, across) = (&region.down, &region.across);
        for (i, to) in out.chunks_exact_mut(across.len()).enumerate() {
            let here = row(down.at[i]);
            let [a, b, c, d] = [0, 1, 2, 3].map(|k| row(self.down[k][i]));
            for (j, to) in to.iter_mut().enumerate() {
                let x = across.at[j];
                let beside = |k: usize| here[self.across[k][j]];
                let near = b[x] + c[x] + beside(1) + beside(2);
                let far = a[x] + d[x] + beside(0) + beside(3);
                let weight = f64::from(down.weight[i] * across.weight[j]);
                *to = (weight * (4.0 / 3.0 * near - far / 12.0 - 5.0 * here[x])) as f32;
            }
        }
    }
}
