//! Pixels: filled rectangles, anti-aliased lines and text on an RGB image, encoded as PNG.

use crate::{Error, Result};
use ab_glyph::{Font, FontRef, GlyphId, PxScale, ScaleFont, point};
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, codecs::png::PngEncoder};
use std::sync::OnceLock;

/// Text and frames.
pub(super) const INK: Rgb<u8> = Rgb([30, 30, 30]);
/// Grid lines and minor marks.
pub(super) const FAINT: Rgb<u8> = Rgb([205, 205, 205]);
/// The paper.
const WHITE: Rgb<u8> = Rgb([255, 255, 255]);

/// Font sizes in pixels per em.
pub(super) const TITLE: f32 = 26.0;
pub(super) const LABEL: f32 = 24.0;
pub(super) const TICK: f32 = 21.0;
pub(super) const CAPTION: f32 = 18.0;

/// Largest figure that is drawn: 192 MB of pixels.
const MAX_PIXELS: u64 = 64_000_000;

/// Which point of a text stands at the given coordinate.
#[derive(Clone, Copy)]
pub(super) enum Align {
    Start,
    Middle,
    End,
}

/// An RGB image under construction.
pub(super) struct Canvas {
    pub(super) image: RgbImage,
}

fn font() -> &'static FontRef<'static> {
    static FONT: OnceLock<FontRef<'static>> = OnceLock::new();
    FONT.get_or_init(|| FontRef::try_from_slice(dejavu::sans::regular()).expect("the embedded font parses"))
}

/// ab_glyph scales by ascent minus descent, typographers by the em.
fn px_scale(size: f32) -> PxScale {
    let f = font();
    PxScale::from(size * f.height_unscaled() / f.units_per_em().unwrap_or(2048.0))
}

/// Glyphs with their pen positions, and the width of the whole line.
fn lay_out(text: &str, size: f32) -> (Vec<(GlyphId, f32)>, f32) {
    let scaled = font().as_scaled(px_scale(size));
    let (mut pen, mut last) = (0.0, None);
    let mut glyphs = Vec::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        let id = scaled.glyph_id(c);
        if let Some(previous) = last {
            pen += scaled.kern(previous, id);
        }
        glyphs.push((id, pen));
        pen += scaled.h_advance(id);
        last = Some(id);
    }
    (glyphs, pen)
}

/// Width of a line of text, pixels.
pub(super) fn text_width(text: &str, size: f32) -> u32 {
    lay_out(text, size).1.ceil() as u32
}

/// `text`, cut with an ellipsis where it is wider than `width` pixels.
pub(super) fn fitted(text: &str, size: f32, width: u32) -> String {
    if text_width(text, size) <= width {
        return text.to_string();
    }
    // No glyph is narrower than a pixel, so the longest candidate is bounded whatever the caption.
    let mut kept: Vec<char> = text.chars().take(width as usize).collect();
    while kept.pop().is_some() {
        let cut = kept.iter().collect::<String>() + "…";
        if text_width(&cut, size) <= width {
            return cut;
        }
    }
    String::new()
}

impl Canvas {
    /// A white canvas; errors when it would be absurdly large.
    pub(super) fn new(width: u32, height: u32) -> Result<Self> {
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(Error::Usage(format!(
                "the figure would have {width} x {height} pixels, more than {MAX_PIXELS}; plot fewer or smaller panels"
            )));
        }
        Ok(Self { image: RgbImage::from_pixel(width.max(1), height.max(1), WHITE) })
    }

    /// The figure as a PNG file.
    pub(super) fn png(&self) -> Result<Vec<u8>> {
        let (width, height) = self.image.dimensions();
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes)
            .write_image(&self.image, width, height, ExtendedColorType::Rgb8)
            .map_err(|e| Error::Memory(format!("cannot encode a figure of {width} x {height} pixels as PNG: {e}")))?;
        Ok(bytes)
    }

    /// Mixes a colour into a pixel with weight `alpha`; outside the canvas nothing happens.
    pub(super) fn blend(&mut self, x: i32, y: i32, colour: Rgb<u8>, alpha: f32) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        if let Some(pixel) = self.image.get_pixel_mut_checked(x, y) {
            for (old, new) in pixel.0.iter_mut().zip(colour.0) {
                *old = (f32::from(*old) + (f32::from(new) - f32::from(*old)) * alpha.clamp(0.0, 1.0)).round() as u8;
            }
        }
    }

    /// Fills `w` x `h` pixels from the corner (x, y).
    pub(super) fn fill(&mut self, x: i32, y: i32, w: u32, h: u32, colour: Rgb<u8>) {
        let clip = |from: i32, n: u32, end: u32| {
            let last = from.saturating_add_unsigned(n).clamp(0, end as i32);
            from.clamp(0, last) as u32..last as u32
        };
        for py in clip(y, h, self.image.height()) {
            for px in clip(x, w, self.image.width()) {
                self.image.put_pixel(px, py, colour);
            }
        }
    }

    /// A two-pixel frame just outside a rectangle, so that no data pixel is covered.
    pub(super) fn frame(&mut self, x: i32, y: i32, w: u32, h: u32) {
        self.fill(x - 2, y - 2, w + 4, 2, INK);
        self.fill(x - 2, y + h as i32, w + 4, 2, INK);
        self.fill(x - 2, y - 2, 2, h + 4, INK);
        self.fill(x + w as i32, y - 2, 2, h + 4, INK);
    }

    /// An anti-aliased line with round ends; from a point to itself it is a dot.
    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), width: f64, colour: Rgb<u8>) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let square = dx * dx + dy * dy;
        let reach = 0.5 * width + 1.0;
        let x_range = (from.0.min(to.0) - reach).floor() as i32..=(from.0.max(to.0) + reach).ceil() as i32;
        for y in (from.1.min(to.1) - reach).floor() as i32..=(from.1.max(to.1) + reach).ceil() as i32 {
            for x in x_range.clone() {
                let (px, py) = (f64::from(x) + 0.5 - from.0, f64::from(y) + 0.5 - from.1);
                let t = if square > 0.0 { ((px * dx + py * dy) / square).clamp(0.0, 1.0) } else { 0.0 };
                let distance = (px - t * dx).hypot(py - t * dy);
                self.blend(x, y, colour, (0.5 * width + 0.5 - distance) as f32);
            }
        }
    }

    /// A line of text whose capitals are centred on `y`.
    pub(super) fn text(&mut self, text: &str, x: i32, y: i32, size: f32, align: Align) {
        self.glyphs(text, size, align, |along, up| (x + along, y - up));
    }

    /// A line of text running upwards whose capitals are centred on `x`.
    pub(super) fn text_up(&mut self, text: &str, x: i32, y: i32, size: f32, align: Align) {
        self.glyphs(text, size, align, |along, up| (x - up, y - along));
    }

    /// `place` maps pixels along the line and above its middle to pixels of the canvas.
    fn glyphs(&mut self, text: &str, size: f32, align: Align, place: impl Fn(i32, i32) -> (i32, i32)) {
        let (glyphs, width) = lay_out(text, size);
        let start = match align {
            Align::Start => 0.0,
            Align::Middle => -0.5 * width,
            Align::End => -width,
        }
        .round();
        // DejaVu's capitals are 0.73 em high.
        let baseline = (0.365 * size).round();
        for (id, pen) in glyphs {
            let glyph = id.with_scale_and_position(px_scale(size), point(start + pen, baseline));
            if let Some(outline) = font().outline_glyph(glyph) {
                let corner = outline.px_bounds().min;
                outline.draw(|gx, gy, coverage| {
                    let (px, py) = place(corner.x as i32 + gx as i32, -(corner.y as i32 + gy as i32));
                    self.blend(px, py, INK, coverage);
                });
            }
        }
    }
}
