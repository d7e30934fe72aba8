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

/// Memory of a thread's work on one panel, for its next: what is given back to the system comes anew page by page, cleared.
#[derive(Default)]
pub struct Scratch {
    /// A receiver's fields.
    pub fields: Vec<f32>,
    block: Vec<f32>,
    /// Spectra of the products with every live shot's field, over the cells.
    products: Vec<f32>,
    /// The rows of all of these traces, over the unknowns.
    rows: Vec<f32>,
    /// A trace's spectra or rows, whichever are projected, before and after it.
    before: Vec<f32>,
    after: Vec<f32>,
}

impl Traces<'_> {
    /// Rows of the traces of receiver `r` and every live shot, from the receiver's field, in the memory of another panel.
    pub fn panel(&self, green: &Fields, r: usize, scratch: &mut Scratch, memory: Vec<f32>) -> Panel {
        let n = self.survey.nz * self.survey.nx;
        let p = self.survey.receivers[r];
        let alpha = (self.model.vp[[p.z, p.x]] * self.survey.dt / self.survey.dx).powi(2);
        let scale: Vec<f32> = self.model.vp.iter().map(|v| (2.0 * alpha / v) as f32).collect();
        let live: Vec<usize> = (0..self.sources.len()).filter(|&shot| self.mask.live[[shot, r]]).collect();
        let (count, width) = (self.rows.count, self.columns.len());
        let size = 2 * self.timing.frequencies * n;
        self.multiply_all(green, &live, scratch);
        let mut rows = std::mem::take(&mut scratch.rows);
        rows.resize(live.len() * count * width, 0.0);
        let mut products = std::mem::take(&mut scratch.products);
        let (mut last, mut order) = (vec![], vec![]);
        for (k, (product, &shot)) in products.chunks_exact_mut(size).zip(&live).enumerate() {
            product.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(&scale).for_each(|(x, s)| *x *= s));
            let sounding = self.trace(product, scratch, &mut rows[k * count * width..][..count * width])..count;
            order.extend(sounding.clone().map(|i| (i, k * count + i)));
            if let Some(extra) = self.extra {
                let trace = extra.data.slice(s![shot, .., r]);
                last.extend(sounding.map(|i| sample(&trace, self.rows.time(i)) as f32));
            }
        }
        let panel = Panel::new(&rows, width, &last, &order, memory);
        (scratch.rows, scratch.products) = (rows, products);
        panel
    }

    /// The products of the receiver's spectra with those of the live shots, over the cells.
    fn multiply_all(&self, green: &Fields, live: &[usize], scratch: &mut Scratch) {
        let size = 2 * self.timing.frequencies * self.survey.nz * self.survey.nx;
        scratch.products.clear();
        scratch.products.resize(live.len() * size, 0.0);
        for (b, row) in spectra::block_rows(self.region).enumerate() {
            let block = spectra::block(green, self.region, self.timing, row, std::mem::take(&mut scratch.block));
            for (&shot, product) in live.iter().zip(scratch.products.chunks_exact_mut(size)) {
                multiply(self.survey, self.region, &self.sources[shot][b], &block, product);
                self.own_term(&block, shot, product);
            }
            scratch.block = block.values;
        }
    }

    /// A trace's rows from the products' spectra over the cells; the number of those before any arrival. Both steps, to the
    /// unknowns and to time, are linear: the order is that of fewer operations.
    fn trace(&self, product: &mut [f32], scratch: &mut Scratch, rows: &mut [f32]) -> usize {
        let (columns, count, n) = (self.columns, self.rows.count, self.survey.nz * self.survey.nx);
        let (width, from) = (columns.len(), 2 * self.timing.frequencies);
        let cost = columns.operations(self.survey);
        if matches!(columns, Columns::Cells { .. }) {
            self.in_time(product, rows);
            silent(rows, n)
        } else if from * cost + 2 * count * from * width < count * cost + 2 * count * from * n {
            scratch.after.clear();
            columns.project(product, &mut scratch.after);
            self.in_time(&scratch.after, rows);
            silent(rows, width)
        } else {
            scratch.before.resize(count * n, 0.0);
            self.in_time(product, &mut scratch.before);
            let silent = silent(&scratch.before, n);
            scratch.after.clear();
            columns.project(&mut scratch.before[silent * n..], &mut scratch.after);
            rows[silent * width..].copy_from_slice(&scratch.after);
            silent
        }
    }

    /// Rows of spectra as rows of samples.
    fn in_time(&self, spectra: &[f32], rows: &mut [f32]) {
        let (count, from) = (self.rows.count, 2 * self.timing.frequencies);
        let n = spectra.len() / from;
        matmul(
            MatMut::from_row_major_slice_mut(rows, count, n),
            Accum::Replace,
            MatRef::from_row_major_slice(&self.rows.inverse, count, from),
            MatRef::from_row_major_slice(spectra, from, n),
            1.0f32,
            Par::Seq,
        );
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
    /// From some rows of any width, by a key that tells their order and by their number, and what comes last in each of them,
    /// if anything.
    fn new(rows: &[f32], width: usize, last: &[f32], taken: &[(usize, usize)], mut values: Vec<f32>) -> Self {
        let mut order: Vec<usize> = (0..taken.len()).collect();
        order.sort_by_key(|&i| taken[i].0);
        let count = order.len();
        values.resize(count * width, 0.0);
        for (strip, to) in values.chunks_mut((TURNED * count).max(1)).enumerate() {
            let columns = strip * TURNED..width.min((strip + 1) * TURNED);
            for (r, &i) in order.iter().enumerate() {
                let row = &rows[taken[i].1 * width..][columns.clone()];
                row.iter().enumerate().for_each(|(c, x)| to[c * count + r] = *x);
            }
        }
        values.reserve_exact(last.len());
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

/// The number of rows before the first arrival.
fn silent(trace: &[f32], n: usize) -> usize {
    let peak = |row: &[f32]| row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let rows = trace.chunks_exact(n.max(1));
    let largest = peak(trace);
    rows.clone().position(|row| peak(row) > SILENT * largest).unwrap_or(rows.len())
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
fn sum((ar, ai, br, bi): Strip) -> (f32, f32) {
    let (mut re, mut im) = ([0.0f32; LANES], [0.0f32; LANES]);
    let whole = ar.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        multiply_lanes::<LANES>((ar, ai, br, bi), i, (&mut re, &mut im));
    }
    // a strip of the padding is four times sixteen cells and twelve long
    let quarters = whole + (ar.len() - whole) / 4 * 4;
    for i in (whole..quarters).step_by(4) {
        multiply_lanes::<4>((ar, ai, br, bi), i, (&mut re, &mut im));
    }
    for i in quarters..ar.len() {
        multiply_lanes::<1>((ar, ai, br, bi), i, (&mut re, &mut im));
    }
    (total(re), total(im))
}

type Strip<'a> = (&'a [f32], &'a [f32], &'a [f32], &'a [f32]);

/// Adds products from place `i` on to the first lanes.
#[inline(always)]
fn multiply_lanes<const N: usize>((ar, ai, br, bi): Strip, i: usize, (re, im): (&mut [f32; LANES], &mut [f32; LANES])) {
    let at = |x: &[f32]| -> [f32; N] { x[i..i + N].try_into().expect("as many") };
    let (a, b, c, d) = (at(ar), at(ai), at(br), at(bi));
    for l in 0..N {
        re[l] += a[l] * c[l] - b[l] * d[l];
        im[l] += a[l] * d[l] + b[l] * c[l];
    }
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
