//! From the spectra of a receiver and of all sources to the rows of the Jacobian.

use super::columns::Columns;
use super::spectra::{Block, Fields, Timing};
use crate::{Mask, Model, Survey};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Some rows of the Jacobian over the columns, one after the other.
pub struct Panel {
    /// The rows.
    pub values: Vec<f32>,
}

/// Share of a trace's largest entry below which its first rows, before any arrival, are left out.
const SILENT: f32 = 1e-7;

/// Rows of the traces of receiver `r` and every live shot.
#[allow(clippy::too_many_arguments, reason = "all of them are needed at one place")]
pub fn panel(
    survey: &Survey,
    timing: &Timing,
    model: &Model,
    mask: &Mask,
    sources: &[Vec<Block>],
    green: &Fields,
    r: usize,
    columns: &Columns,
) -> Panel {
    let n = survey.nz * survey.nx;
    let p = survey.receivers[r];
    let alpha = (model.vp[[p.z, p.x]] * survey.dt / survey.dx).powi(2);
    let scale: Vec<f32> = model.vp.iter().map(|v| (2.0 * alpha / v) as f32).collect();
    let mut products = vec![0.0f32; sources.len() * 2 * timing.frequencies * n];
    for (b, block) in green.blocks(timing).enumerate() {
        for (shot, product) in products.chunks_exact_mut(2 * timing.frequencies * n).enumerate() {
            if mask.live[[shot, r]] {
                multiply(survey, timing.frequencies, &sources[shot][b], &block, green.margin, product);
                own_term(survey, timing, green, &block, shot, product);
            }
        }
    }
    let mut trace = vec![0.0f32; timing.rows * n];
    let mut out = Panel { values: vec![] };
    for (shot, product) in products.chunks_exact(2 * timing.frequencies * n).enumerate() {
        if !mask.live[[shot, r]] {
            continue;
        }
        matmul(
            MatMut::from_row_major_slice_mut(&mut trace, timing.rows, n),
            Accum::Replace,
            MatRef::from_row_major_slice(&timing.inverse, timing.rows, 2 * timing.frequencies),
            MatRef::from_row_major_slice(product, 2 * timing.frequencies, n),
            1.0f32,
            Par::Seq,
        );
        let peak = |row: &[f32]| row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let largest = peak(&trace);
        let first = trace.chunks_exact(n).position(|row| peak(row) > SILENT * largest).unwrap_or(timing.rows);
        let live = &mut trace[first * n..];
        live.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(&scale).for_each(|(x, s)| *x *= s));
        columns.project(live, &mut out.values);
    }
    out
}

/// Adds the products of two spectra, folded from the region onto the map.
fn multiply(survey: &Survey, frequencies: usize, a: &Block, b: &Block, margin: usize, out: &mut [f32]) {
    let (n, m, cols) = (survey.nz * survey.nx, margin, survey.nx + 2 * margin);
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
            let to = (a.row + z).saturating_sub(m).min(survey.nz - 1) * survey.nx;
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

/// The sum of products along a strip, in lanes so that it vectorises.
fn sum((ar, ai, br, bi): (&[f32], &[f32], &[f32], &[f32])) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut re, mut im) = ([0.0f32; LANES], [0.0f32; LANES]);
    let chunks = |x: &'_ [f32]| x.len() / LANES * LANES;
    let whole = chunks(ar);
    for i in (0..whole).step_by(LANES) {
        let at = |x: &[f32]| -> [f32; LANES] { x[i..i + LANES].try_into().expect("a whole chunk") };
        let (a, b, c, d) = (at(ar), at(ai), at(br), at(bi));
        for l in 0..LANES {
            re[l] += a[l] * c[l] - b[l] * d[l];
            im[l] += a[l] * d[l] + b[l] * c[l];
        }
    }
    let (mut x, mut y) = (re.iter().sum::<f32>(), im.iter().sum::<f32>());
    for i in whole..ar.len() {
        x += ar[i] * br[i] - ai[i] * bi[i];
        y += ar[i] * bi[i] + ai[i] * br[i];
    }
    (x, y)
}

/// What the source cell adds by scaling the wavelet with `(v dt)^2`: in the units of the other products, `dx^2` times the
/// receiver's response there to the wavelet.
fn own_term(survey: &Survey, timing: &Timing, green: &Fields, block: &Block, shot: usize, out: &mut [f32]) {
    let p = survey.sources[shot];
    let Some(row) = (p.z + green.margin).checked_sub(block.row).filter(|row| *row < block.rows) else { return };
    let n = survey.nz * survey.nx;
    let cell = row * green.cols + p.x + green.margin;
    let area = survey.dx * survey.dx;
    for (k, &(c, d)) in timing.wavelet.iter().enumerate() {
        let (re, im) = (k * block.cells + cell, (timing.frequencies + k) * block.cells + cell);
        let (a, b) = (f64::from(block.values[re]) * area, f64::from(block.values[im]) * area);
        out[k * n + p.z * survey.nx + p.x] += (a * c - b * d) as f32;
        out[(timing.frequencies + k) * n + p.z * survey.nx + p.x] += (a * d + b * c) as f32;
    }
}
