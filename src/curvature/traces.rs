//! From the spectra of a receiver and of all sources to the rows of the Jacobian.

use super::columns::Columns;
use super::fields::{Fields, Region};
use super::spectra::{self, Block, Rows, Timing};
use crate::{Gather, Mask, Model, Survey};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{ArrayView1, s};

/// Some rows of the Jacobian, in the order of their times.
pub struct Panel {
    /// Number of rows.
    pub rows: usize,
    /// Column by column: products of matrices run a quarter faster where what they sum over lies together.
    pub values: Vec<f32>,
}

/// Columns that are written at a time when rows become columns: a cache line of every row.
const TURNED: usize = 16;

/// Share of a trace's largest entry below which its first rows, before any arrival, are left out.
const SILENT: f32 = 1e-4;

/// What the traces of all receivers share.
pub struct Traces<'a> {
    /// The acquisition.
    pub survey: &'a Survey,
    /// Steps and frequencies.
    pub timing: &'a Timing,
    /// Rows of a trace.
    pub rows: Rows,
    /// The cells of the fields.
    pub region: &'a Region,
    /// The map.
    pub model: &'a Model,
    /// What counts.
    pub mask: &'a Mask,
    /// The unknowns.
    pub columns: &'a Columns,
    /// Spectra of every source's field, block by block.
    pub sources: Vec<Vec<Block>>,
    /// Derivative of the data with respect to one more unknown, the last column.
    pub extra: Option<&'a Gather>,
}

impl Traces<'_> {
    /// Rows of the traces of receiver `r` and every live shot, from the receiver's field.
    pub fn panel(&self, green: &Fields, r: usize) -> Panel {
        let Self { survey, timing, .. } = self;
        let n = survey.nz * survey.nx;
        let p = survey.receivers[r];
        let alpha = (self.model.vp[[p.z, p.x]] * survey.dt / survey.dx).powi(2);
        let scale: Vec<f32> = self.model.vp.iter().map(|v| (2.0 * alpha / v) as f32).collect();
        let live: Vec<usize> = (0..self.sources.len()).filter(|&shot| self.mask.live[[shot, r]]).collect();
        let size = 2 * timing.frequencies * n;
        let mut products = vec![0.0f32; live.len() * size];
        for (b, block) in spectra::blocks(green, self.region, timing).enumerate() {
            for (&shot, product) in live.iter().zip(products.chunks_exact_mut(size)) {
                multiply(survey, self.region, &self.sources[shot][b], &block, product);
                self.own_term(&block, shot, product);
            }
        }
        let width = self.columns.len().max(1);
        let mut rows = Vec::with_capacity(live.len() * self.rows.count * width);
        let (mut last, mut order) = (vec![], vec![]);
        for (product, &shot) in products.chunks_exact_mut(size).zip(&live) {
            product.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(&scale).for_each(|(x, s)| *x *= s));
            let before = rows.len();
            self.append(product, &mut rows);
            let silent = self.rows.count - (rows.len() - before) / width;
            order.extend(silent..self.rows.count);
            if let Some(extra) = self.extra {
                let trace = extra.data.slice(s![shot, .., r]);
                last.extend((silent..self.rows.count).map(|i| sample(&trace, self.rows.time(i)) as f32));
            }
        }
        Panel::new(&rows, &last, &order)
    }

    /// Appends a trace's rows from the products' spectra over the cells. Both steps, to the unknowns and to time, are
    /// linear: the order is that of fewer operations.
    fn append(&self, product: &mut [f32], out: &mut Vec<f32>) {
        let (columns, count, n) = (self.columns, self.rows.count, self.survey.nz * self.survey.nx);
        let from = 2 * self.timing.frequencies;
        let cost = columns.operations(self.survey);
        if from * cost + 2 * count * from * columns.len() < count * cost + 2 * count * from * n {
            let mut projected = Vec::with_capacity(from * columns.len());
            columns.project(product, &mut projected);
            out.extend_from_slice(sounding(&mut self.in_time(&projected), columns.len()));
        } else {
            columns.project(sounding(&mut self.in_time(product), n), out);
        }
    }

    /// Rows of spectra as rows of samples.
    fn in_time(&self, spectra: &[f32]) -> Vec<f32> {
        let (count, from) = (self.rows.count, 2 * self.timing.frequencies);
        let n = spectra.len() / from;
        let mut trace = vec![0.0f32; count * n];
        matmul(
            MatMut::from_row_major_slice_mut(&mut trace, count, n),
            Accum::Replace,
            MatRef::from_row_major_slice(&self.rows.inverse, count, from),
            MatRef::from_row_major_slice(spectra, from, n),
            1.0f32,
            Par::Seq,
        );
        trace
    }

    /// What the source cell adds by scaling the wavelet with `(v dt)^2`: in the units of the other products, `dx^2` times
    /// the receiver's response there to the wavelet.
    fn own_term(&self, block: &Block, shot: usize, out: &mut [f32]) {
        let Self { survey, timing, region, .. } = self;
        let p = survey.sources[shot];
        let row = (p.z + region.down.before).checked_sub(block.row).filter(|row| *row < block.rows);
        let Some(row) = row else { return };
        let n = survey.nz * survey.nx;
        let cell = row * region.across.len() + p.x + region.across.before;
        let area = survey.dx * survey.dx;
        for (k, &(c, d)) in timing.wavelet.iter().enumerate() {
            let (re, im) = (k * block.cells + cell, (timing.frequencies + k) * block.cells + cell);
            let (a, b) = (f64::from(block.values[re]) * area, f64::from(block.values[im]) * area);
            out[k * n + p.z * survey.nx + p.x] += (a * c - b * d) as f32;
            out[(timing.frequencies + k) * n + p.z * survey.nx + p.x] += (a * d + b * c) as f32;
        }
    }
}

impl Panel {
    /// From rows of any width, what comes last in each of them, if anything, and keys that tell their order.
    fn new(rows: &[f32], last: &[f32], keys: &[usize]) -> Self {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&i| keys[i]);
        let (count, width) = (order.len(), rows.len() / order.len().max(1));
        let mut values = vec![0.0f32; rows.len()];
        values.reserve_exact(last.len());
        for (strip, to) in values.chunks_mut((TURNED * count).max(1)).enumerate() {
            let columns = strip * TURNED..width.min((strip + 1) * TURNED);
            for (r, &i) in order.iter().enumerate() {
                let row = &rows[i * width..][columns.clone()];
                row.iter().enumerate().for_each(|(c, x)| to[c * count + r] = *x);
            }
        }
        values.extend(order.iter().filter_map(|&i| last.get(i)));
        Self { rows: count, values }
    }
}

/// A trace between its samples: the cubic through the four around, for a wave is twenty samples long and more.
pub(super) fn sample(trace: &ArrayView1<f64>, t: f64) -> f64 {
    let last = trace.len() - 1;
    let at = (t.max(0.0) as usize).saturating_sub(1).min(last.saturating_sub(3));
    let nodes = at..=(at + 3).min(last);
    let weight =
        |i: usize| nodes.clone().filter(|&j| j != i).map(|j| (t - j as f64) / (i as f64 - j as f64)).product::<f64>();
    nodes.clone().map(|i| weight(i) * trace[i]).sum()
}

/// The rows from the first arrival on.
fn sounding(trace: &mut [f32], n: usize) -> &mut [f32] {
    let peak = |row: &[f32]| row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let largest = peak(trace);
    let first = trace.chunks_exact(n.max(1)).position(|row| peak(row) > SILENT * largest);
    first.map_or(&mut [], |first| &mut trace[first * n..])
}

/// Adds the products of two spectra, folded from the region onto the map.
fn multiply(survey: &Survey, region: &Region, a: &Block, b: &Block, out: &mut [f32]) {
    let (n, m, cols) = (survey.nz * survey.nx, region.across.before, region.across.len());
    let frequencies = a.values.len() / a.cells / 2;
    let (ar, ai) = a.values.split_at(frequencies * a.cells);
    let (br, bi) = b.values.split_at(frequencies * a.cells);
    let (re, im) = out.split_at_mut(frequencies * n);
    for k in 0..frequencies {
        let (re, im) = (&mut re[k * n..][..n], &mut im[k * n..][..n]);
        for z in 0..a.rows {
            let at = k * a.cells + z * cols;
            let row = |x: std::ops::Range<usize>| {
                let x = at + x.start..at + x.end;
                (&ar[x.clone()], &ai[x.clone()], &br[x.clone()], &bi[x])
            };
            let to = (a.row + z).saturating_sub(region.down.before).min(survey.nz - 1) * survey.nx;
            let (left, right) = (sum(row(0..m)), sum(row(m + survey.nx..cols)));
            let (ar, ai, br, bi) = row(m..m + survey.nx);
            let (re, im) = (&mut re[to..][..survey.nx], &mut im[to..][..survey.nx]);
            for x in 0..survey.nx {
                re[x] += ar[x] * br[x] - ai[x] * bi[x];
                im[x] += ar[x] * bi[x] + ai[x] * br[x];
            }
            for (x, (a, b)) in [(0, left), (survey.nx - 1, right)] {
                re[x] += a;
                im[x] += b;
            }
        }
    }
}

/// Sums of products along a strip that are kept at a time, so that it vectorises.
const LANES: usize = 16;

/// The sum of products along a strip.
fn sum((ar, ai, br, bi): (&[f32], &[f32], &[f32], &[f32])) -> (f32, f32) {
    let (mut re, mut im) = ([0.0f32; LANES], [0.0f32; LANES]);
    let whole = ar.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        let at = |x: &[f32]| -> [f32; LANES] { x[i..i + LANES].try_into().expect("a whole chunk") };
        let (a, b, c, d) = (at(ar), at(ai), at(br), at(bi));
        for l in 0..LANES {
            re[l] += a[l] * c[l] - b[l] * d[l];
            im[l] += a[l] * d[l] + b[l] * c[l];
        }
    }
    for (l, i) in (whole..ar.len()).enumerate() {
        re[l] += ar[i] * br[i] - ai[i] * bi[i];
        im[l] += ar[i] * bi[i] + ai[i] * br[i];
    }
    (total(re), total(im))
}

/// The sum of lanes, by halves: one after the other they would take longer than what they are sums of.
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        (0..half).for_each(|l| lanes[l] += lanes[l + half]);
        half /= 2;
    }
    lanes[0]
}
