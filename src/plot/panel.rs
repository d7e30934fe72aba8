//! Panels: an array as an image with frame, axes, title and colour bar, and rows of such panels.

use super::axis::{Axis, Direction, Ticks, axis_label, widest};
use super::canvas::{Align, Canvas, FAINT, INK, LABEL, TICK, TITLE, text_width};
use super::colour::ColourScale;
use ndarray::{ArrayView2, s};

/// Length of a tick mark and the space after it, pixels.
const MARK: u32 = 8;
const PAD: u32 = 6;
/// Space between neighbouring panels, and between a panel and its colour bar.
const GAP: u32 = 26;
const BAR_GAP: u32 = 18;
const BAR_WIDTH: u32 = 20;

/// A rectangle of data pixels on the canvas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) w: u32,
    pub(super) h: u32,
}

/// What an axis or a colour bar shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantity {
    pub(super) name: &'static str,
    /// Empty where there is none.
    pub(super) unit: &'static str,
}

impl Quantity {
    fn label(&self, ticks: &Ticks) -> String {
        axis_label(self.name, self.unit, ticks.exponent)
    }
}

/// Least side of a panel, pixels: axis labels are about as long.
const LEAST: u32 = 170;

/// Pixels (width, height) of a panel of rows x columns square cells whose longer side should be about `target`.
///
/// A cell takes a whole number of pixels, unless there are more than `2 * target` of them along a side. The panel is larger
/// where the shorter side would come out below [`LEAST`], and its cells are stretched along that side where that fails too.
pub(super) fn panel_size((rows, columns): (usize, usize), target: u32) -> (u32, u32) {
    let (rows, columns) = (rows.max(1) as u64, columns.max(1) as u64);
    let (least, target) = (u64::from(LEAST.min(target)), u64::from(target));
    let (shortest, longest) = (rows.min(columns), rows.max(columns));
    if longest > 2 * target {
        let side = |n: u64| (n as f64 / longest as f64 * target as f64).round().max(least as f64) as u32;
        return (side(columns), side(rows));
    }
    let factor = (target / longest).max(least.div_ceil(shortest).min(2 * target / longest)).max(1);
    let side = |n: u64| (n * factor.max(least.div_ceil(n))) as u32;
    (side(columns), side(rows))
}

/// Pixels of a side with `n` samples, about `target`; a whole number a sample, unless there are more than `2 * target`.
pub(super) fn panel_length(n: usize, target: u32) -> u32 {
    panel_size((n, n), target).0
}

/// Draws (rows, columns) into an area without smoothing; where a pixel covers several cells it shows their mean.
pub(super) fn draw_image(canvas: &mut Canvas, area: Area, data: ArrayView2<f64>, scale: &ColourScale) {
    let (rows, columns) = data.dim();
    if rows == 0 || columns == 0 {
        return;
    }
    let covered = |pixel: u32, n: usize, length: u32| {
        let at = |p: u32| p as usize * n;
        let first = at(pixel) / length as usize;
        first..at(pixel + 1).div_ceil(length as usize).clamp(first + 1, n)
    };
    let across: Vec<_> = (0..area.w).map(|px| covered(px, columns, area.w)).collect();
    let down: Vec<_> = (0..area.h).map(|py| covered(py, rows, area.h)).collect();
    let (mut x, mut y) = (area.x, area.y);
    // Neighbouring pixels of the same cells are one block.
    for r in down.chunk_by(|a, b| a == b) {
        for c in across.chunk_by(|a, b| a == b) {
            let cells = data.slice(s![r[0].clone(), c[0].clone()]);
            let colour = scale.colour(if cells.len() == 1 { cells[[0, 0]] } else { mean(cells) });
            canvas.fill(x, y, c.len() as u32, r.len() as u32, colour);
            x += c.len() as i32;
        }
        (x, y) = (area.x, y + r.len() as i32);
    }
}

/// Divides before it adds, so that huge values do not overflow.
fn mean(cells: ArrayView2<f64>) -> f64 {
    let n = cells.len() as f64;
    cells.iter().map(|v| v / n).sum()
}

/// Space that an axis takes on the left of a panel, pixels.
pub(super) fn left_margin(axis: Axis, height: u32) -> u32 {
    widest(&axis.ticks(height, Direction::Vertical)) + MARK + 2 * PAD + (1.4 * LABEL) as u32
}

/// Space that an axis takes below a panel, pixels.
pub(super) fn bottom_margin() -> u32 {
    MARK + PAD + (1.1 * TICK + 1.5 * LABEL) as u32
}

/// Ticks below an area, with numbers and label where `quantity` is given.
pub(super) fn draw_bottom_axis(canvas: &mut Canvas, area: Area, axis: Axis, quantity: Option<Quantity>) {
    let ticks = axis.ticks(area.w, Direction::Horizontal);
    let bottom = area.y + area.h as i32;
    for (value, label) in &ticks.marks {
        let x = area.x + (axis.fraction(*value) * f64::from(area.w)).floor() as i32;
        canvas.fill(x - 1, bottom + 2, 2, MARK, INK);
        if quantity.is_some() {
            canvas.text(label, x, bottom + (MARK + PAD) as i32 + (0.6 * TICK) as i32, TICK, Align::Middle);
        }
    }
    if let Some(q) = quantity {
        let y = bottom + (MARK + PAD) as i32 + (1.1 * TICK + 0.8 * LABEL) as i32;
        canvas.text(&q.label(&ticks), area.x + area.w as i32 / 2, y, LABEL, Align::Middle);
    }
}

/// Ticks left of an area, downwards or upwards, with numbers and label where `quantity` is given.
pub(super) fn draw_left_axis(canvas: &mut Canvas, area: Area, axis: Axis, downwards: bool, quantity: Option<Quantity>) {
    let ticks = axis.ticks(area.h, Direction::Vertical);
    let y_of = |value: f64| {
        let f = axis.fraction(value);
        area.y + ((if downwards { f } else { 1.0 - f }) * f64::from(area.h)).floor() as i32
    };
    let mark = MARK as i32;
    for value in axis.minor() {
        canvas.fill(area.x - 2 - mark / 2, y_of(value), MARK / 2, 1, INK);
    }
    for (value, label) in &ticks.marks {
        let y = y_of(*value);
        canvas.fill(area.x - 2 - mark, y - 1, MARK, 2, INK);
        if quantity.is_some() {
            canvas.text(label, area.x - 2 - mark - PAD as i32, y, TICK, Align::End);
        }
    }
    if let Some(q) = quantity {
        let x = area.x - (widest(&ticks) + MARK + 2 * PAD) as i32 - (0.7 * LABEL) as i32;
        canvas.text_up(&q.label(&ticks), x, area.y + area.h as i32 / 2, LABEL, Align::Middle);
    }
}

/// Space that a colour bar of this height takes with its numbers and label, pixels.
pub(super) fn bar_margin(scale: &ColourScale, height: u32) -> u32 {
    let ticks = Axis::linear(scale.lo, scale.hi).ticks(height, Direction::Vertical);
    BAR_GAP + BAR_WIDTH + MARK + 2 * PAD + widest(&ticks) + (1.5 * LABEL) as u32
}

/// A colour bar right of an area; pointed ends say that values lie beyond the scale.
pub(super) fn draw_bar(canvas: &mut Canvas, area: Area, scale: &ColourScale, quantity: Quantity) {
    let x = area.x + (area.w + BAR_GAP) as i32;
    let point = if scale.clipped { BAR_WIDTH.min(area.h / 4) } else { 0 };
    let (top, h) = (area.y + point as i32, area.h - 2 * point);
    let axis = Axis::linear(scale.lo, scale.hi);
    canvas.frame(x, top, BAR_WIDTH, h);
    for py in 0..h {
        let value = scale.hi - (f64::from(py) + 0.5) / f64::from(h) * (scale.hi - scale.lo);
        canvas.fill(x, top + py as i32, BAR_WIDTH, 1, scale.colour(value));
    }
    let (left, middle, right) = (f64::from(x) - 1.0, f64::from(x) + 10.0, f64::from(x) + 21.0);
    for py in 0..point {
        // Narrows from the whole width to nothing.
        let w = BAR_WIDTH * (point - py) / point;
        let inset = x + (BAR_WIDTH - w) as i32 / 2;
        canvas.fill(inset, top - 1 - py as i32, w, 1, scale.colour(scale.hi));
        canvas.fill(inset, top + (h + py) as i32, w, 1, scale.colour(scale.lo));
    }
    if point > 0 {
        for (base, tip) in [(f64::from(top), area.y), (f64::from(top) + f64::from(h), area.y + area.h as i32)] {
            canvas.line((left, base), (middle, f64::from(tip)), 2.0, INK);
            canvas.line((middle, f64::from(tip)), (right, base), 2.0, INK);
        }
    }
    let ticks = axis.ticks(h, Direction::Vertical);
    let right = x + BAR_WIDTH as i32 + 2;
    for (value, label) in &ticks.marks {
        let y = top + ((1.0 - axis.fraction(*value)) * f64::from(h)).floor() as i32;
        canvas.fill(right, y - 1, MARK, 2, INK);
        canvas.text(label, right + (MARK + PAD) as i32, y, TICK, Align::Start);
    }
    let label_x = right + (MARK + 2 * PAD + widest(&ticks)) as i32 + (0.6 * LABEL) as i32;
    canvas.text_up(&quantity.label(&ticks), label_x, area.y + area.h as i32 / 2, LABEL, Align::Middle);
}

/// A titled array in a row of panels, with a colour bar where `bar` names what it shows.
pub(super) struct Panel<'a> {
    pub(super) data: ArrayView2<'a, f64>,
    pub(super) title: String,
    pub(super) scale: &'a ColourScale,
    pub(super) bar: Option<Quantity>,
}

/// Panels of one size side by side, on the same axes.
pub(super) struct Row<'a> {
    /// Written upwards on the far left where there is one.
    pub(super) name: Option<String>,
    pub(super) panels: Vec<Panel<'a>>,
    /// Width and height of one panel, pixels.
    pub(super) size: (u32, u32),
    pub(super) x: (Axis, Quantity),
    pub(super) y: (Axis, Quantity),
    /// Whether the horizontal axis gets numbers (in a stack of rows only the last does).
    pub(super) numbered: bool,
}

impl Row<'_> {
    fn left(&self) -> u32 {
        let name = if self.name.is_some() { (1.5 * TITLE) as u32 } else { 0 };
        PAD + name + left_margin(self.y.0, self.size.1)
    }

    fn top(&self) -> u32 {
        if self.panels.iter().all(|p| p.title.is_empty()) { 12 } else { (1.6 * TITLE) as u32 }
    }

    /// A slot is as wide as its panel, or the panel's title or axis label where that is wider.
    fn slot(&self, panel: &Panel) -> u32 {
        let label = self.x.1.label(&self.x.0.ticks(self.size.0, Direction::Horizontal));
        self.size.0.max(text_width(&panel.title, TITLE)).max(text_width(&label, LABEL))
    }

    /// Width of the row with all margins, pixels.
    pub(super) fn width(&self) -> u32 {
        let panels: u32 = self
            .panels
            .iter()
            .map(|p| self.slot(p) + p.bar.map_or(0, |_| bar_margin(p.scale, self.size.1)) + GAP)
            .sum();
        self.left() + panels
    }

    /// Height of the row with all margins, pixels.
    pub(super) fn height(&self) -> u32 {
        self.top() + self.size.1 + if self.numbered { bottom_margin() + PAD } else { MARK + PAD }
    }

    /// Draws the row with its upper left corner at (0, y).
    pub(super) fn draw(&self, canvas: &mut Canvas, y: i32) {
        let (w, h) = self.size;
        let y = y + self.top() as i32;
        if let Some(name) = &self.name {
            canvas.text_up(name, PAD as i32 + TITLE as i32 / 2, y + h as i32 / 2, TITLE, Align::Middle);
        }
        let mut x = self.left() as i32;
        for (i, panel) in self.panels.iter().enumerate() {
            let slot = self.slot(panel);
            let area = Area { x: x + (slot - w) as i32 / 2, y, w, h };
            draw_image(canvas, area, panel.data, panel.scale);
            canvas.frame(area.x, area.y, w, h);
            canvas.text(&panel.title, area.x + w as i32 / 2, y - (0.7 * TITLE) as i32, TITLE, Align::Middle);
            draw_left_axis(canvas, area, self.y.0, true, (i == 0).then_some(self.y.1));
            draw_bottom_axis(canvas, area, self.x.0, self.numbered.then_some(self.x.1));
            x += (slot + GAP) as i32;
            if let Some(quantity) = panel.bar {
                let beside = Area { w: slot - (slot - w) / 2, ..area };
                draw_bar(canvas, beside, panel.scale, quantity);
                x += bar_margin(panel.scale, h) as i32;
            }
        }
    }
}

/// Grid lines across an area at the ticks of its vertical axis (upwards).
pub(super) fn draw_grid(canvas: &mut Canvas, area: Area, axis: Axis) {
    for (value, _) in axis.ticks(area.h, Direction::Vertical).marks {
        let y = area.y + ((1.0 - axis.fraction(value)) * f64::from(area.h)).floor() as i32;
        canvas.fill(area.x, y, area.w, 1, FAINT);
    }
}

#[cfg(test)]
mod tests {
    use super::super::colour::ColourMap;
    use super::*;
    use ndarray::array;

    #[test]
    fn cells_become_blocks_of_their_colour() {
        let data = array![[1.0, 2.0, f64::NAN], [3.0, 4.0, 5.0]];
        let scale = ColourScale::spanning(ColourMap::Viridis, data.iter().copied());
        let mut canvas = Canvas::new(40, 30).unwrap();
        let area = Area { x: 5, y: 3, w: 12, h: 8 };
        draw_image(&mut canvas, area, data.view(), &scale);
        for py in 0..8 {
            for px in 0..12 {
                let expected = scale.colour(data[[py / 4, px / 4]]);
                assert_eq!(*canvas.image.get_pixel(5 + px as u32, 3 + py as u32), expected, "{px} {py}");
            }
        }
        assert_eq!(canvas.image.get_pixel(4, 3).0, [255; 3]);
        assert_eq!(canvas.image.get_pixel(17, 3).0, [255; 3]);
    }

    #[test]
    fn more_cells_than_pixels_are_averaged() {
        let data = array![[0.0, 2.0, 4.0, 4.0], [0.0, 2.0, 4.0, 4.0]];
        let scale = ColourScale::spanning(ColourMap::Viridis, [0.0, 4.0]);
        let mut canvas = Canvas::new(2, 1).unwrap();
        draw_image(&mut canvas, Area { x: 0, y: 0, w: 2, h: 1 }, data.view(), &scale);
        assert_eq!(*canvas.image.get_pixel(0, 0), scale.colour(1.0));
        assert_eq!(*canvas.image.get_pixel(1, 0), scale.colour(4.0));
    }

    #[test]
    fn panels_upscale_by_whole_numbers() {
        assert_eq!(panel_size((70, 70), 420), (420, 420));
        assert_eq!(panel_size((35, 70), 420), (420, 210));
        assert_eq!(panel_size((33, 90), 420), (540, 198));
        assert_eq!(panel_size((1, 1), 420), (420, 420));
        assert_eq!(panel_size((1, 70), 420), (840, 170));
        assert_eq!(panel_size((5000, 2500), 420), (210, 420));
        assert_eq!(panel_size((1, usize::MAX), 420), (420, 170));
        assert_eq!((panel_length(71, 420), panel_length(1000, 420), panel_length(500, 420)), (355, 420, 500));
    }

    #[test]
    fn a_bar_runs_from_the_high_end_down() {
        let scale = ColourScale::spanning(ColourMap::Viridis, [1500.0, 4500.0]);
        let mut canvas = Canvas::new(300, 220).unwrap();
        let area = Area { x: 10, y: 10, w: 50, h: 200 };
        draw_bar(&mut canvas, area, &scale, Quantity { name: "Velocity", unit: "m/s" });
        let at = |y: u32| *canvas.image.get_pixel(60 + BAR_GAP + 10, y);
        let near = |a: image::Rgb<u8>, b: image::Rgb<u8>| a.0.iter().zip(b.0).all(|(a, b)| a.abs_diff(b) <= 2);
        assert!(near(at(10), scale.colour(4500.0)));
        assert!(near(at(209), scale.colour(1500.0)));
        assert!(near(at(110), scale.colour(3000.0)));
    }
}
