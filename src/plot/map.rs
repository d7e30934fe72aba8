//! Figures of velocity maps.

use super::axis::{Axis, number};
use super::canvas::{Align, CAPTION, Canvas, fitted};
use super::colour::{ColourMap, ColourScale};
use super::panel::{Area, Panel, Quantity, Row, bar_margin, draw_bar, draw_image, panel_size};
use crate::{Error, Result};
use ndarray::{ArrayView2, ArrayView3, Axis as Dimension};

const VELOCITY: Quantity = Quantity { name: "Velocity", unit: "m/s" };
const DIFFERENCE: Quantity = Quantity { name: "Difference", unit: "m/s" };
const DISTANCE: Quantity = Quantity { name: "Distance", unit: "m" };
const DEPTH: Quantity = Quantity { name: "Depth", unit: "m" };

/// Percentile of the magnitudes at which differences are clipped, so that a few cells at an interface hide nothing.
const CLIP_PERCENT: f64 = 99.0;

/// A velocity map (nz, nx) in m/s with its axes in m, as PNG bytes; `dx` is the cell size in m.
///
/// With the `start` of the inversion a panel of it stands before the map; with the `truth` two panels follow, the true
/// map and `map - truth` with the mean absolute error (over the cells finite in both) in its title. Velocities share one
/// colour scale. The difference has its own, symmetric one, clipped at the 99th percentile (pointed ends of the bar say so).
/// Cells are drawn as blocks centred on `i * dx`, unsmoothed; cells that are not finite are grey.
///
/// # Errors
/// [`Error::Usage`] for an empty map, shapes that differ, or a `dx` that is not positive and finite.
pub fn map_figure(
    map: ArrayView2<f64>,
    dx: f64,
    start: Option<ArrayView2<f64>>,
    truth: Option<ArrayView2<f64>>,
) -> Result<Vec<u8>> {
    let (nz, nx) = map.dim();
    if nz == 0 || nx == 0 {
        return Err(Error::Usage(format!("a map of {nz} x {nx} cells cannot be drawn; give at least one cell")));
    }
    if !(dx.is_finite() && dx > 0.0) {
        return Err(Error::Usage(format!("the cell size must be positive and finite to draw a map, not {dx} m")));
    }
    for (what, other) in [("starting", start), ("true", truth)] {
        if let Some((z, x)) = other.map(|o| o.dim()).filter(|&d| d != (nz, nx)) {
            return Err(Error::Usage(format!(
                "the {what} map has {z} x {x} cells, the map {nz} x {nx}; they must agree to be drawn together"
            )));
        }
    }
    let shown = [start, Some(map), truth];
    let velocities = shown.iter().flatten().flat_map(|m| m.iter().copied());
    let scale = ColourScale::spanning(ColourMap::Viridis, velocities);
    let difference = truth.map(|t| (&map - &t, mean_absolute_error(map, t)));
    let difference_scale = ColourScale::symmetric(
        ColourMap::BlueRed,
        difference.iter().flat_map(|(d, _)| d.iter().copied()),
        CLIP_PERCENT,
    );

    let alone = start.is_none() && truth.is_none();
    let names = ["Start", if alone { "" } else { "Inverted" }, "True"];
    let mut panels: Vec<Panel> = shown
        .into_iter()
        .zip(names)
        .filter_map(|(data, name)| Some(Panel { data: data?, title: name.into(), scale: &scale, bar: None }))
        .collect();
    if let Some(last) = panels.last_mut() {
        last.bar = Some(VELOCITY);
    }
    if let Some((data, mae)) = &difference {
        let title = format!("Inverted − true, MAE {} m/s", number(*mae));
        panels.push(Panel { data: data.view(), title, scale: &difference_scale, bar: Some(DIFFERENCE) });
    }
    let target = if alone { 560 } else { 420 };
    let row = Row {
        name: None,
        panels,
        size: panel_size((nz, nx), target),
        x: (Axis::nodes(0.0, dx, nx), DISTANCE),
        y: (Axis::nodes(0.0, dx, nz), DEPTH),
        numbered: true,
    };
    let mut canvas = Canvas::new(row.width(), row.height() + 8)?;
    row.draw(&mut canvas, 4);
    canvas.png()
}

/// Over the cells that are finite in both; NaN where there is none.
fn mean_absolute_error(a: ArrayView2<f64>, b: ArrayView2<f64>) -> f64 {
    let errors: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).filter(|e| e.is_finite()).collect();
    let n = errors.len() as f64;
    if errors.is_empty() { f64::NAN } else { errors.iter().map(|e| e / n).sum() }
}

/// Many velocity maps (n, nz, nx) in m/s in a grid, with a caption each and one colour bar for all, as PNG bytes.
///
/// Captions too wide for their map end in an ellipsis. Cells that are not finite are grey.
///
/// # Errors
/// [`Error::Usage`] when there is no map or no cell, when there are not as many captions as maps, or when the sheet
/// would be larger than 64 million pixels (some 2,000 maps).
pub fn contact_sheet(maps: ArrayView3<f64>, captions: &[String]) -> Result<Vec<u8>> {
    const GAP: u32 = 14;
    const LEAST_BAR: u32 = 160;
    let (n, nz, nx) = maps.dim();
    if n == 0 || nz == 0 || nx == 0 {
        return Err(Error::Usage(format!("{n} maps of {nz} x {nx} cells cannot be drawn; give at least one cell")));
    }
    if captions.len() != n {
        return Err(Error::Usage(format!("{n} maps need as many captions, not {}", captions.len())));
    }
    let (w, h) = panel_size((nz, nx), 140);
    let caption = (1.4 * CAPTION) as u32;
    let (pitch_x, pitch_y) = (w + GAP, h + caption + GAP);
    // About 4 : 3, wider than high.
    let columns = (n as f64 * 4.0 / 3.0 * f64::from(pitch_y) / f64::from(pitch_x)).sqrt().round();
    let columns = (columns as usize).clamp(1, n);
    let rows = n.div_ceil(columns);

    let scale = ColourScale::spanning(ColourMap::Viridis, maps.iter().copied());
    let too_many = || Error::Usage(format!("{n} maps do not fit on one sheet; plot fewer"));
    let across = u32::try_from(columns).ok().and_then(|c| c.checked_mul(pitch_x)).ok_or_else(too_many)?;
    let down = u32::try_from(rows).ok().and_then(|r| r.checked_mul(pitch_y)).ok_or_else(too_many)?;
    // Room for the label of the colour bar even beside one small map.
    let bar_height = (down - caption - GAP).clamp(LEAST_BAR, (3 * h).max(LEAST_BAR));
    let mut canvas =
        Canvas::new(across + GAP + bar_margin(&scale, bar_height) + GAP, (down + GAP).max(LEAST_BAR + 60))?;
    for (i, map) in maps.axis_iter(Dimension(0)).enumerate() {
        let (column, row) = ((i % columns) as u32, (i / columns) as u32);
        let area = Area { x: (GAP + column * pitch_x) as i32, y: (GAP + caption + row * pitch_y) as i32, w, h };
        draw_image(&mut canvas, area, map, &scale);
        canvas.frame(area.x, area.y, w, h);
        let text = fitted(&captions[i], CAPTION, w + GAP - 4);
        canvas.text(&text, area.x + w as i32 / 2, area.y - (0.75 * CAPTION) as i32, CAPTION, Align::Middle);
    }
    let bar = Area { x: GAP as i32, y: (GAP + caption) as i32, w: across - GAP, h: bar_height };
    draw_bar(&mut canvas, bar, &scale, VELOCITY);
    canvas.png()
}
