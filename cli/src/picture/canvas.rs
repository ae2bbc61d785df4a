//! A square panel with a frame, ticks, numbers and a title: what every picture is drawn on.

use font8x8::legacy::BASIC_LEGACY;
use image::{Rgb, RgbImage};

/// The side of the plotted square, in pixels.
pub(crate) const SIDE: u32 = 560;
const LEFT: u32 = 100;
const RIGHT: u32 = 24;
const TOP: u32 = 48;
const BOTTOM: u32 = 48;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([60, 60, 60]);

/// Pixels of a letter's dot.
const DOT: u32 = 2;

/// The ranges of a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Axes {
    pub(crate) x: [f64; 2],
    pub(crate) y: [f64; 2],
}

impl Axes {
    /// Ranges that hold all but 2 in 1000 points at each end, with a margin; the same scale on both axes where that
    /// wastes little.
    pub(crate) fn around(points: &[[f64; 2]]) -> Self {
        let range = |axis: usize| {
            let mut values: Vec<f64> = points.iter().map(|p| p[axis]).filter(|v| v.is_finite()).collect();
            values.sort_by(f64::total_cmp);
            let Some(last) = values.len().checked_sub(1) else { return [-1.0, 1.0] };
            let cut = last / 500;
            let (low, high) = (values[cut], values[last - cut]);
            // a single point, and distances beyond the largest number, still make a range
            let span = (high - low).clamp(1e-12 * low.abs().max(high.abs()).max(1e-300), f64::MAX / 16.0);
            [low - 0.08 * span, high + 0.08 * span]
        };
        let (mut x, mut y) = (range(0), range(1));
        let (dx, dy) = (x[1] - x[0], y[1] - y[0]);
        let side = dx.max(dy);
        if side <= 1.7 * dx.min(dy) {
            let widen = |[low, high]: [f64; 2], d: f64| [low - 0.5 * (side - d), high + 0.5 * (side - d)];
            (x, y) = (widen(x, dx), widen(y, dy));
        }
        Self { x, y }
    }

    /// Pixels from the lower left corner of the plotted square.
    pub(crate) fn place(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let along = |v: f64, [low, high]: [f64; 2]| (v - low) / (high - low) * f64::from(SIDE);
        [along(x, self.x), along(y, self.y)]
    }
}

/// A panel to draw on.
#[derive(Debug)]
pub(crate) struct Canvas {
    image: RgbImage,
}

impl Canvas {
    pub(crate) fn new() -> Self {
        Self { image: RgbImage::from_pixel(LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM, PAPER) }
    }

    /// Colours each pixel of the plotted square by a function of its place from the lower left corner.
    pub(crate) fn fill(&mut self, colour: impl Fn(f64, f64) -> [u8; 3]) {
        for i in 0..SIDE {
            for j in 0..SIDE {
                let pixel = Rgb(colour(f64::from(i) + 0.5, f64::from(j) + 0.5));
                self.image.put_pixel(LEFT + i, TOP + SIDE - 1 - j, pixel);
            }
        }
    }

    /// Adds a dot of about three pixels, transparent so that dense places look dense.
    pub(crate) fn dot(&mut self, [x, y]: [f64; 2], [r, g, b]: [u8; 3], opacity: f64) {
        let (ci, cj) = (x.floor(), y.floor());
        for di in -1..=1 {
            for dj in -1..=1 {
                let (i, j) = (ci + f64::from(di), cj + f64::from(dj));
                let inside = |v: f64| (0.0..f64::from(SIDE)).contains(&v);
                if inside(i) && inside(j) {
                    let weight = if di == 0 && dj == 0 { opacity } else { opacity * 0.4 };
                    let pixel = self.image.get_pixel_mut(LEFT + i as u32, TOP + SIDE - 1 - j as u32);
                    for (old, new) in pixel.0.iter_mut().zip([r, g, b]) {
                        *old = (f64::from(*old) * (1.0 - weight) + f64::from(new) * weight).round() as u8;
                    }
                }
            }
        }
    }

    /// Draws a line between two places.
    pub(crate) fn line(&mut self, [x0, y0]: [f64; 2], [x1, y1]: [f64; 2], colour: [u8; 3], opacity: f64) {
        let dots = (x1 - x0).abs().max((y1 - y0).abs()).clamp(1.0, 5000.0).ceil();
        for i in 0..=dots as usize {
            let t = i as f64 / dots;
            self.dot([x0 + t * (x1 - x0), y0 + t * (y1 - y0)], colour, opacity);
        }
    }

    /// Tints what lies between two lines: at each end x, and the lower and the upper y there.
    pub(crate) fn band(&mut self, [x0, low0, high0]: [f64; 3], [x1, low1, high1]: [f64; 3], [r, g, b]: [u8; 3]) {
        const TINT: f64 = 0.22;
        let most = f64::from(SIDE);
        for i in x0.clamp(0.0, most).floor() as u32..x1.clamp(0.0, most).floor() as u32 {
            let t = ((f64::from(i) + 0.5 - x0) / (x1 - x0)).clamp(0.0, 1.0);
            let [low, high] = [low0 + t * (low1 - low0), high0 + t * (high1 - high0)].map(|v| v.clamp(0.0, most));
            for j in low.floor() as u32..high.ceil() as u32 {
                let pixel = self.image.get_pixel_mut(LEFT + i, TOP + SIDE - 1 - j.min(SIDE - 1));
                for (old, new) in pixel.0.iter_mut().zip([r, g, b]) {
                    *old = (f64::from(*old) * (1.0 - TINT) + f64::from(new) * TINT).round() as u8;
                }
            }
        }
    }

    /// Names in their colours, one below the other, in the upper right corner; what the x axis shows, in the lower one.
    pub(crate) fn legend(&mut self, names: &[(String, [u8; 3])], x_axis: &str) {
        for (k, (name, colour)) in names.iter().enumerate() {
            self.text(name, LEFT + SIDE - 8, TOP + 16 + 22 * k as u32, Align::Right, Rgb(*colour));
        }
        self.text(x_axis, LEFT + SIDE - 8, TOP + SIDE - 14, Align::Right, INK);
    }

    /// Draws frame, ticks, numbers and title, and hands the picture out.
    pub(crate) fn finish(self, title: &str, axes: &Axes) -> RgbImage {
        self.finish_with(title, axes, [&ticks(axes.x), &ticks(axes.y)])
    }

    /// The same with ticks of one's own along x and y, each a place on the axis and a label.
    pub(crate) fn finish_with(mut self, title: &str, axes: &Axes, [along, up]: [&[(f64, String)]; 2]) -> RgbImage {
        for i in 0..SIDE + 2 {
            for (x, y) in [(i, 0), (i, SIDE + 1), (0, i), (SIDE + 1, i)] {
                self.image.put_pixel(LEFT - 1 + x, TOP - 1 + y, INK);
            }
        }
        self.text(title, LEFT + SIDE / 2, TOP / 2, Align::Middle, INK);
        for (value, label) in along {
            let at = LEFT + axes.place([*value, 0.0])[0].clamp(0.0, f64::from(SIDE - 1)) as u32;
            for k in 0..6 {
                self.image.put_pixel(at, TOP + SIDE + 1 + k, INK);
            }
            self.text(label, at, TOP + SIDE + 22, Align::Middle, INK);
        }
        for (value, label) in up {
            let at = TOP + SIDE - 1 - axes.place([0.0, *value])[1].clamp(0.0, f64::from(SIDE - 1)) as u32;
            for k in 0..6 {
                self.image.put_pixel(LEFT - 2 - k, at, INK);
            }
            self.text(label, LEFT - 12, at, Align::Right, INK);
        }
        self.image
    }

    /// Text around a height: in the middle of x, or ending there; what would reach over the edge stays within it.
    fn text(&mut self, text: &str, x: u32, y: u32, align: Align, ink: Rgb<u8>) {
        let width = 8 * DOT * text.chars().count() as u32;
        let start = x.saturating_sub(if align == Align::Middle { width / 2 } else { width });
        let start = start.min(self.image.width().saturating_sub(width));
        for (k, c) in text.chars().enumerate() {
            let glyph = BASIC_LEGACY.get(c as usize).unwrap_or(&BASIC_LEGACY[usize::from(b'?')]);
            for (row, bits) in glyph.iter().enumerate() {
                for column in (0..8).filter(|c| bits >> c & 1 == 1) {
                    let left = start + DOT * (8 * k as u32 + column);
                    let top = (y + DOT * row as u32).saturating_sub(4 * DOT);
                    for (i, j) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                        if left + i < self.image.width() && top + j < self.image.height() {
                            self.image.put_pixel(left + i, top + j, ink);
                        }
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Middle,
    Right,
}

/// Round numbers in a range, three to six of them, and how to write them in at most five letters where that suffices.
pub(crate) fn ticks([low, high]: [f64; 2]) -> Vec<(f64, String)> {
    let rough = (high - low) / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = power
        * if rough < 1.5 * power {
            1.0
        } else if rough < 3.5 * power {
            2.0
        } else {
            5.0
        };
    if !(step.is_normal() && (low / step).abs() < 1e9) {
        return Vec::new();
    }
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let largest = low.abs().max(high.abs());
    let digits = (largest.log10().floor() - step.log10().floor()).max(0.0) as usize;
    (first..=last)
        .map(|i| {
            let value = i as f64 * step;
            let plain = decimals <= 3 && largest < 1e5;
            (value, if plain { format!("{value:.decimals$}") } else { format!("{value:.digits$e}") })
        })
        .collect()
}

/// Panels from left to right.
pub(crate) fn side_by_side(panels: &[RgbImage]) -> RgbImage {
    grid(panels, panels.len())
}

/// Panels in rows of so many.
pub(crate) fn grid(panels: &[RgbImage], columns: usize) -> RgbImage {
    let rows: Vec<_> = panels.chunks(columns.max(1)).collect();
    let height = |row: &[RgbImage]| row.iter().map(RgbImage::height).max().unwrap_or(0);
    let width = rows.iter().map(|row| row.iter().map(RgbImage::width).sum()).max().unwrap_or(0);
    let mut all = RgbImage::from_pixel(width, rows.iter().map(|row| height(row)).sum(), PAPER);
    let mut top = 0;
    for row in rows {
        let mut left = 0;
        for panel in row {
            image::imageops::replace(&mut all, panel, i64::from(left), i64::from(top));
            left += panel.width();
        }
        top += height(row);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let labels = |range| ticks(range).into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ");
        assert_eq!(labels([-4.6, 4.6]), "-4 -2 0 2 4");
        assert_eq!(labels([0.0, 1.0]), "0.0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(labels([1e6, 3e6]), "1.0e6 1.5e6 2.0e6 2.5e6 3.0e6");
    }

    #[test]
    fn text_stays_within_the_edge() {
        let ink = |x| {
            let mut canvas = Canvas::new();
            let before = canvas.image.pixels().filter(|p| **p == INK).count();
            canvas.text("20000", x, 300, Align::Middle, INK);
            canvas.image.pixels().filter(|p| **p == INK).count() - before
        };
        assert_eq!(ink(LEFT + SIDE), ink(LEFT + SIDE / 2));
    }

    #[test]
    fn any_points_make_axes() {
        for points in [
            vec![],
            vec![[1.0, 1.0]],
            vec![[0.0, 0.0]],
            vec![[f64::NAN, f64::INFINITY]],
            vec![[-f64::MAX, 0.0], [f64::MAX, 1e-300]],
        ] {
            let axes = Axes::around(&points);
            assert!(axes.x[0] < axes.x[1] && axes.y[0] < axes.y[1], "{points:?}: {axes:?}");
            let _ = Canvas::new().finish("title", &axes);
        }
    }
}
