//! Curves of several data sets side by side: what `fwi stats` draws.

use super::axis::Axis;
use super::canvas::{Align, Canvas, LABEL, TICK, TITLE, fitted, text_width};
use super::panel::{Area, Quantity, bottom_margin, draw_bottom_axis, draw_left_axis, left_margin};
use crate::{Error, Result};
use image::Rgb;

const COLOURS: [Rgb<u8>; 8] = [
    Rgb([31, 119, 180]),
    Rgb([214, 96, 20]),
    Rgb([44, 140, 60]),
    Rgb([170, 40, 50]),
    Rgb([125, 85, 165]),
    Rgb([120, 80, 60]),
    Rgb([200, 90, 170]),
    Rgb([20, 150, 165]),
];

/// An axis: its name, its unit, and whether it is logarithmic.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// What it shows.
    pub name: &'static str,
    /// Its unit, empty where there is none.
    pub unit: &'static str,
    /// Logarithmic; values that are not above 0 are left out.
    pub log: bool,
    /// Whether values grow downwards (the vertical axis only).
    pub downwards: bool,
}

/// One panel of [`curves_figure`].
#[derive(Clone, Debug)]
pub struct CurvePanel {
    /// Over it.
    pub title: &'static str,
    /// The horizontal axis.
    pub x: Scale,
    /// The vertical axis.
    pub y: Scale,
    /// Points (x, y) of each data set, in the order of the names.
    pub curves: Vec<Vec<(f64, f64)>>,
}

/// Panels side by side with a curve for each of `names` in each, and the names below, as PNG bytes.
///
/// Points that are not finite interrupt a curve. Beyond eight curves colours repeat.
///
/// # Errors
/// [`Error::Usage`] where there is nothing to draw.
pub fn curves_figure(panels: &[CurvePanel], names: &[String]) -> Result<Vec<u8>> {
    const SIDE: (u32, u32) = (520, 420);
    if panels.is_empty() || names.is_empty() || panels.iter().any(|p| p.curves.len() != names.len()) {
        return Err(Error::Usage("a figure of curves needs a panel, and in each a curve for each name".into()));
    }
    let axes: Vec<(Axis, Axis)> = panels.iter().map(|p| (axis(p, true), axis(p, false))).collect();
    let lefts: Vec<u32> = axes.iter().map(|(_, y)| 10 + left_margin(*y, SIDE.1)).collect();
    let top = (1.8 * TITLE) as u32;
    let line = (1.6 * LABEL) as u32;
    let width = lefts.iter().sum::<u32>() + panels.len() as u32 * (SIDE.0 + 30);
    let legend = top + SIDE.1 + bottom_margin() + 10;
    let mut canvas = Canvas::new(width, legend + line * names.len() as u32 + 10)?;
    let mut x = 0;
    for ((panel, (x_axis, y_axis)), left) in panels.iter().zip(&axes).zip(&lefts) {
        let area = Area { x: (x + left) as i32, y: top as i32, w: SIDE.0, h: SIDE.1 };
        for (i, curve) in panel.curves.iter().enumerate() {
            draw_curve(&mut canvas, area, (*x_axis, *y_axis), panel.y.downwards, curve, COLOURS[i % COLOURS.len()]);
        }
        canvas.frame(area.x, area.y, area.w, area.h);
        canvas.text(panel.title, area.x + SIDE.0 as i32 / 2, top as i32 - (0.8 * TITLE) as i32, TITLE, Align::Middle);
        let quantity = |s: &Scale| Some(Quantity { name: s.name, unit: s.unit });
        draw_left_axis(&mut canvas, area, *y_axis, panel.y.downwards, quantity(&panel.y));
        draw_bottom_axis(&mut canvas, area, *x_axis, quantity(&panel.x));
        x += left + SIDE.0 + 30;
    }
    for (i, name) in names.iter().enumerate() {
        let y = (legend + line * i as u32 + line / 2) as i32;
        let from = f64::from(lefts[0]);
        canvas.line((from, f64::from(y)), (from + 50.0, f64::from(y)), 4.0, COLOURS[i % COLOURS.len()]);
        let room = width.saturating_sub(lefts[0] + 90).max(text_width("…", TICK));
        canvas.text(&fitted(name, TICK, room), lefts[0] as i32 + 64, y, TICK, Align::Start);
    }
    canvas.png()
}

/// The axis that holds every point of a panel.
fn axis(panel: &CurvePanel, horizontal: bool) -> Axis {
    let scale = if horizontal { &panel.x } else { &panel.y };
    let values = panel.curves.iter().flatten().map(|p| if horizontal { p.0 } else { p.1 });
    let shown = values.filter(|v| v.is_finite() && v.abs() < 1e290 && (*v > 0.0 || !scale.log));
    let (lo, hi) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    match scale.log {
        true => Axis::log(lo, hi),
        // shares and the like stand on zero
        false if !horizontal && !panel.y.downwards && lo >= 0.0 => Axis::linear(0.0, 1.04 * hi),
        // one value in the middle
        false if lo == hi => Axis::linear(lo - lo.abs().mul_add(0.01, 1.0), hi + hi.abs().mul_add(0.01, 1.0)),
        false => Axis::linear(lo, hi),
    }
}

fn draw_curve(
    canvas: &mut Canvas,
    area: Area,
    (x_axis, y_axis): (Axis, Axis),
    downwards: bool,
    curve: &[(f64, f64)],
    colour: Rgb<u8>,
) {
    let mut previous = None;
    for &(x, y) in curve {
        let (right, up) = (x_axis.fraction(x), y_axis.fraction(y));
        let down = if downwards { up } else { 1.0 - up };
        let point = (right.is_finite() && down.is_finite()).then(|| {
            let along = |f: f64, length: u32| f.clamp(0.0, 1.0) * f64::from(length);
            (f64::from(area.x) + along(right, area.w), f64::from(area.y) + along(down, area.h))
        });
        if let Some(to) = point {
            canvas.line(previous.unwrap_or(to), to, 3.0, colour);
        }
        previous = point;
    }
}
