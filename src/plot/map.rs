//! Figures of velocity maps.

use super::axis::{Axis, number};
use super::canvas::{Align, CAPTION, Canvas, LABEL, fitted};
use super::colour::{ColourMap, ColourScale};
use super::panel::{Area, Panel, Quantity, Row, bar_margin, draw_bar, draw_image, panel_size};
use crate::{Error, Result};
use ndarray::{ArrayView2, ArrayView3, Axis as Dimension};

const VELOCITY: Quantity = Quantity { name: "Velocity", unit: "m/s" };
const DIFFERENCE: Quantity = Quantity { name: "Difference", unit: "m/s" };
const DEVIATION: Quantity = Quantity { name: "Standard deviation", unit: "m/s" };
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
    check((nz, nx), dx)?;
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
    draw_row(panels, (nz, nx), dx, target)
}

/// Standard deviations (nz, nx) of the cells of a map, in m/s, with their axes in m, as PNG bytes; `title` stands above them.
///
/// # Errors
/// As [`map_figure`].
pub fn uncertainty_figure(deviations: ArrayView2<f64>, dx: f64, title: &str) -> Result<Vec<u8>> {
    check(deviations.dim(), dx)?;
    let scale = ColourScale::spanning(ColourMap::Viridis, deviations.iter().copied().chain([0.0]));
    let panel = Panel { data: deviations, title: title.into(), scale: &scale, bar: Some(DEVIATION) };
    draw_row(vec![panel], deviations.dim(), dx, 560)
}

fn check((nz, nx): (usize, usize), dx: f64) -> Result<()> {
    if nz == 0 || nx == 0 {
        return Err(Error::Usage(format!("a map of {nz} x {nx} cells cannot be drawn; give at least one cell")));
    }
    if !(dx.is_finite() && dx > 0.0) {
        return Err(Error::Usage(format!("the cell size must be positive and finite to draw a map, not {dx} m")));
    }
    Ok(())
}

fn draw_row(panels: Vec<Panel>, (nz, nx): (usize, usize), dx: f64, target: u32) -> Result<Vec<u8>> {
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
    let n = same_number(maps, captions)?;
    let cell = cell_size(maps.dim())?;
    // About 4 : 3, wider than high.
    let columns = (n as f64 * 4.0 / 3.0 * cell.pitch_y() / cell.pitch_x()).sqrt().round();
    let columns = (columns as usize).clamp(1, n);
    let rows: Vec<Vec<(usize, String)>> = (0..n)
        .step_by(columns)
        .map(|i| (i..(i + columns).min(n)).map(|j| (j, captions[j].clone())).collect())
        .collect();
    draw_sheet(maps, cell, &rows, &[])
}

/// [`contact_sheet`] in given rows: `rows` holds their titles and the places of their maps in the stack.
///
/// # Errors
/// As [`contact_sheet`]; and [`Error::Usage`] for a place beyond the stack.
pub fn contact_sheet_in_rows(
    maps: ArrayView3<f64>,
    captions: &[String],
    rows: &[(String, Vec<usize>)],
) -> Result<Vec<u8>> {
    let n = same_number(maps, captions)?;
    if rows.is_empty() || rows.iter().any(|r| r.1.is_empty() || r.1.iter().any(|&i| i >= n)) {
        return Err(Error::Usage(format!("every row of a sheet needs maps out of the {n} there are")));
    }
    let titles: Vec<&str> = rows.iter().map(|r| r.0.as_str()).collect();
    let rows: Vec<Vec<(usize, String)>> =
        rows.iter().map(|r| r.1.iter().map(|&i| (i, captions[i].clone())).collect()).collect();
    draw_sheet(maps, cell_size(maps.dim())?, &rows, &titles)
}

/// The number of maps, which is that of captions.
fn same_number(maps: ArrayView3<f64>, captions: &[String]) -> Result<usize> {
    let n = maps.len_of(Dimension(0));
    match captions.len() == n {
        true => Ok(n),
        false => Err(Error::Usage(format!("{n} maps need as many captions, not {}", captions.len()))),
    }
}

/// A map on a sheet, pixels.
#[derive(Clone, Copy)]
struct Cell {
    w: u32,
    h: u32,
}

const GAP: u32 = 14;
const CAPTION_HEIGHT: u32 = (1.4 * CAPTION) as u32;

impl Cell {
    fn pitch_x(self) -> f64 {
        f64::from(self.w + GAP)
    }
    fn pitch_y(self) -> f64 {
        f64::from(self.h + CAPTION_HEIGHT + GAP)
    }
}

fn cell_size((n, nz, nx): (usize, usize, usize)) -> Result<Cell> {
    if n == 0 || nz == 0 || nx == 0 {
        return Err(Error::Usage(format!("{n} maps of {nz} x {nx} cells cannot be drawn; give at least one cell")));
    }
    let (w, h) = panel_size((nz, nx), 140);
    Ok(Cell { w, h })
}

/// Rows of maps with their captions, and titles written upwards on their left, if there are any.
fn draw_sheet(
    maps: ArrayView3<f64>,
    Cell { w, h }: Cell,
    rows: &[Vec<(usize, String)>],
    titles: &[&str],
) -> Result<Vec<u8>> {
    const LEAST_BAR: u32 = 160;
    let (pitch_x, pitch_y) = (w + GAP, h + CAPTION_HEIGHT + GAP);
    let scale = ColourScale::spanning(ColourMap::Viridis, maps.iter().copied());
    let columns = rows.iter().map(Vec::len).max().unwrap_or(1);
    let n: usize = rows.iter().map(Vec::len).sum();
    let too_many = || Error::Usage(format!("{n} maps do not fit on one sheet; plot fewer"));
    let across = u32::try_from(columns).ok().and_then(|c| c.checked_mul(pitch_x)).ok_or_else(too_many)?;
    let down = u32::try_from(rows.len()).ok().and_then(|r| r.checked_mul(pitch_y)).ok_or_else(too_many)?;
    let left = GAP + if titles.is_empty() { 0 } else { (1.6 * LABEL) as u32 };
    // Room for the label of the colour bar even beside one small map.
    let bar_height = (down - CAPTION_HEIGHT - GAP).clamp(LEAST_BAR, (3 * h).max(LEAST_BAR));
    let mut canvas =
        Canvas::new(left + across + bar_margin(&scale, bar_height) + GAP, (down + GAP).max(LEAST_BAR + 60))?;
    for (r, row) in rows.iter().enumerate() {
        let y = (GAP + CAPTION_HEIGHT + r as u32 * pitch_y) as i32;
        for (c, (index, caption)) in row.iter().enumerate() {
            let area = Area { x: (left + c as u32 * pitch_x) as i32, y, w, h };
            draw_image(&mut canvas, area, maps.index_axis(Dimension(0), *index), &scale);
            canvas.frame(area.x, area.y, w, h);
            let text = fitted(caption, CAPTION, w + GAP - 4);
            canvas.text(&text, area.x + w as i32 / 2, area.y - (0.75 * CAPTION) as i32, CAPTION, Align::Middle);
        }
        if let Some(title) = titles.get(r) {
            let text = fitted(title, LABEL, pitch_y - 4);
            canvas.text_up(
                &text,
                (left - GAP / 2) as i32 - (0.7 * LABEL) as i32,
                y + h as i32 / 2,
                LABEL,
                Align::Middle,
            );
        }
    }
    let bar = Area { x: left as i32, y: (GAP + CAPTION_HEIGHT) as i32, w: across - GAP, h: bar_height };
    draw_bar(&mut canvas, bar, &scale, VELOCITY);
    canvas.png()
}
