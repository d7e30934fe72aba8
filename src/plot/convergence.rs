//! The figure of an inversion's progress.

use super::axis::Axis;
use super::canvas::{Align, Canvas, LABEL, TICK, text_width};
use super::panel::{Area, Quantity, bottom_margin, draw_bottom_axis, draw_grid, draw_left_axis, left_margin};
use crate::Result;
use image::Rgb;

const RMS: Quantity = Quantity { name: "Data rms", unit: "" };
const MAE: Quantity = Quantity { name: "MAE", unit: "m/s" };
const EVALUATIONS: Quantity = Quantity { name: "Evaluations", unit: "" };

const BLUE: Rgb<u8> = Rgb([31, 119, 180]);
const ORANGE: Rgb<u8> = Rgb([214, 96, 20]);
const STAGE: Rgb<u8> = Rgb([120, 120, 120]);

/// Rows of stage labels above the first panel; labels that find no room in them are left out, their lines stay.
const LABEL_ROWS: usize = 5;
const OVERHANG: u32 = 250;

/// A state of an inversion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Evaluations of misfit and gradient so far.
    pub evaluations: usize,
    /// Root mean square of the data residual.
    pub rms: f64,
    /// Mean absolute error of the map in m/s, where the truth is known.
    pub mae: Option<f64>,
}

/// Where a stage of an inversion begins.
#[derive(Clone, Debug, PartialEq)]
pub struct StageStart {
    /// Evaluations made before it.
    pub evaluations: usize,
    /// What it is, in a word or two ("below 8 Hz", "full band").
    pub name: String,
}

/// Data rms (logarithmic) and, where known, MAE in m/s against evaluations, with the stages marked, as PNG bytes.
///
/// States without a finite number (or, for the rms, a positive one) interrupt the curve; an empty history says so.
///
/// # Errors
/// Only when the PNG cannot be encoded.
pub fn convergence_figure(history: &[Progress], stages: &[StageStart]) -> Result<Vec<u8>> {
    const WIDTH: u32 = 1000;
    let x_of = |p: &Progress| p.evaluations as f64;
    let rms: Vec<_> = history.iter().map(|p| (x_of(p), (p.rms > 0.0).then_some(p.rms))).collect();
    let mae: Vec<_> = history.iter().map(|p| (x_of(p), p.mae)).collect();
    let (lo, hi) = extent(&rms).unwrap_or((0.1, 1.0));
    let mut curves = vec![Curve { points: rms, axis: Axis::log(lo, hi), quantity: RMS, colour: BLUE, height: 420 }];
    if let Some((_, hi)) = extent(&mae) {
        let axis = Axis::linear(0.0, if hi > 0.0 { 1.08 * hi.min(1e290) } else { 1.0 });
        curves.push(Curve { points: mae, axis, quantity: MAE, colour: ORANGE, height: 280 });
    }

    let last = history.iter().map(|p| p.evaluations).chain(stages.iter().map(|s| s.evaluations)).max();
    let x_axis = Axis::linear(0.0, last.unwrap_or(0).max(10) as f64);
    let left = 6 + curves.iter().map(|c| left_margin(c.axis, c.height)).max().unwrap_or(0);
    let labels = stage_labels(stages, x_axis, WIDTH);
    let label_height = (1.5 * TICK) as u32;
    let rows = labels.iter().map(|l| l.1 as u32 + 1).max().unwrap_or(0);
    let top = 16 + rows * label_height;
    let heights: u32 = curves.iter().map(|c| c.height + 24).sum();
    let right = labels.iter().map(|l| l.2.saturating_sub(WIDTH)).max().unwrap_or(0).max(30) + 10;
    let mut canvas = Canvas::new(left + WIDTH + right, top + heights + bottom_margin() + 4)?;

    let mut area = Area { x: left as i32, y: top as i32, w: WIDTH, h: 0 };
    for (i, curve) in curves.iter().enumerate() {
        area.h = curve.height;
        draw_grid(&mut canvas, area, curve.axis);
        for stage in stages {
            dashed(&mut canvas, area, x_axis.fraction(stage.evaluations as f64));
        }
        curve.draw(&mut canvas, area, x_axis);
        canvas.frame(area.x, area.y, area.w, area.h);
        draw_left_axis(&mut canvas, area, curve.axis, false, Some(curve.quantity));
        draw_bottom_axis(&mut canvas, area, x_axis, (i + 1 == curves.len()).then_some(EVALUATIONS));
        area.y += (curve.height + 24) as i32;
    }
    for (stage, row, _) in labels {
        let x = left as i32 + (x_axis.fraction(stage.evaluations as f64) * f64::from(WIDTH)) as i32;
        let y = top as i32 - 2 - (row as u32 * label_height) as i32;
        canvas.fill(x, y - label_height as i32 + 6, 2, label_height - 6 + row as u32 * label_height, STAGE);
        canvas.text(&stage.name, x + 8, y - label_height as i32 / 2, TICK, Align::Start);
    }
    if history.is_empty() {
        let (x, y) = (left as i32 + WIDTH as i32 / 2, top as i32 + 210);
        canvas.text("no evaluation yet", x, y, LABEL, Align::Middle);
    }
    canvas.png()
}

/// Least and largest finite value.
fn extent(points: &[(f64, Option<f64>)]) -> Option<(f64, f64)> {
    points.iter().filter_map(|p| p.1).filter(|v| v.is_finite()).fold(None, |range, v| {
        let (lo, hi) = range.unwrap_or((v, v));
        Some((v.min(lo), v.max(hi)))
    })
}

/// The stages whose names find room right of their line, each with the row (0 the lowest) that it stands in and the pixel
/// that it ends at (up to [`OVERHANG`] beyond the panel).
fn stage_labels(stages: &[StageStart], axis: Axis, width: u32) -> Vec<(&StageStart, usize, u32)> {
    let mut ordered: Vec<&StageStart> = stages.iter().collect();
    ordered.sort_by_key(|s| s.evaluations);
    // From right to left: a line that rises to a higher row then crosses no name placed before.
    let mut ends = [f64::from(width + OVERHANG); LABEL_ROWS];
    let mut placed = Vec::new();
    for stage in ordered.into_iter().rev() {
        let x = axis.fraction(stage.evaluations as f64) * f64::from(width);
        let end = x + 16.0 + f64::from(text_width(&stage.name, TICK));
        if let Some(row) = ends.iter().position(|&next| end <= next) {
            ends[..=row].iter_mut().for_each(|e| *e = e.min(x));
            placed.push((stage, row, end as u32));
        }
    }
    placed
}

fn dashed(canvas: &mut Canvas, area: Area, fraction: f64) {
    let x = area.x + (fraction * f64::from(area.w)) as i32;
    for y in (0..area.h).step_by(12) {
        canvas.fill(x, area.y + y as i32, 2, 7.min(area.h - y), STAGE);
    }
}

/// One quantity against evaluations.
struct Curve {
    points: Vec<(f64, Option<f64>)>,
    axis: Axis,
    quantity: Quantity,
    colour: Rgb<u8>,
    height: u32,
}

impl Curve {
    fn draw(&self, canvas: &mut Canvas, area: Area, x_axis: Axis) {
        let few = self.points.len() <= 40;
        let mut previous = None;
        for &(x, value) in &self.points {
            let point = value.filter(|v| v.is_finite()).map(|v| {
                let up = self.axis.fraction(v).clamp(0.0, 1.0);
                let px = f64::from(area.x) + x_axis.fraction(x) * f64::from(area.w);
                (px, f64::from(area.y) + (1.0 - up) * f64::from(area.h))
            });
            if let Some(to) = point {
                canvas.line(previous.unwrap_or(to), to, 3.0, self.colour);
                if few {
                    canvas.line(to, to, 9.0, self.colour);
                }
            }
            previous = point;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(evaluations: usize, name: &str) -> StageStart {
        StageStart { evaluations, name: name.into() }
    }

    #[test]
    fn stage_names_do_not_overlap() {
        let stages: Vec<_> = (0..30).map(|i| stage(i * i, "below 8 Hz")).collect();
        let axis = Axis::linear(0.0, 900.0);
        let placed = stage_labels(&stages, axis, 1000);
        assert!(placed.len() > 5 && placed.len() < 30);
        for (i, (a, row, end)) in placed.iter().enumerate() {
            // `a` stands further left: where the line of `b` rises past its row it must end before.
            for (b, other, _) in &placed[..i] {
                if row > other {
                    continue;
                }
                assert!(
                    f64::from(*end) < axis.fraction(b.evaluations as f64) * 1000.0,
                    "{} and {}",
                    a.evaluations,
                    b.evaluations
                );
            }
        }
    }

    #[test]
    fn extent_skips_what_is_not_finite() {
        let points =
            [(0.0, Some(f64::NAN)), (1.0, None), (2.0, Some(3.0)), (3.0, Some(1.0)), (4.0, Some(f64::INFINITY))];
        assert_eq!(extent(&points), Some((1.0, 3.0)));
        assert_eq!(extent(&[]), None);
    }
}
