//! One panel of a picture: two axes with ticks, and marks between them, as SVG that is part of the page.
//!
//! Colours and line widths are classes of the page's style, so that a picture follows its colour scheme. Marks lie in an
//! inner `svg`, which cuts off what leaves it. Coordinates have one decimal.

use std::fmt::Write as _;

use super::axis::Axis;
use super::page::escape;

/// Pixels, written with one decimal at most; what is far out or no number stays near the picture.
pub(super) fn px(value: f64) -> String {
    let value = if value.is_nan() { 0.0 } else { value.clamp(-9999.0, 9999.0) };
    let text = format!("{value:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A panel in the making.
#[derive(Debug)]
pub(super) struct Panel {
    size: [f64; 2],
    /// Left, top, right and bottom.
    margins: [f64; 4],
    pub(super) x: Axis,
    pub(super) y: Axis,
    marks: String,
    around: String,
}

impl Panel {
    /// An empty panel of so many pixels; with labels for the ticks of y or without.
    pub(super) fn new(size: [f64; 2], x: Axis, y: Axis, y_labels: bool) -> Self {
        let mut panel =
            Self { size, margins: [8.0, 8.0, 10.0, 24.0], x, y, marks: String::new(), around: String::new() };
        if y_labels {
            let widest = panel.y_ticks().iter().map(|(_, label)| label.chars().count()).max().unwrap_or(1);
            panel.margins[0] = 10.0 + 6.4 * widest as f64;
        }
        panel
    }

    /// The same with more room below or beside the axes, for their names or for other marks.
    pub(super) fn with_margins(self, left: f64, bottom: f64) -> Self {
        let [l, t, r, b] = self.margins;
        Self { margins: [l + left, t, r, b + bottom], ..self }
    }

    fn y_ticks(&self) -> Vec<(f64, String)> {
        self.y.ticks(self.inner()[1], false)
    }

    /// The pixels between the axes.
    pub(super) fn inner(&self) -> [f64; 2] {
        let [l, t, r, b] = self.margins;
        [self.size[0] - l - r, self.size[1] - t - b]
    }

    /// Where a value lies across, from the left axis.
    pub(super) fn across(&self, x: f64) -> f64 {
        self.x.place(x) * self.inner()[0]
    }

    /// Where a value lies, from the top.
    pub(super) fn down(&self, y: f64) -> f64 {
        (1.0 - self.y.place(y)) * self.inner()[1]
    }

    /// Adds a path of a class.
    pub(super) fn path(&mut self, class: &str, d: &str) {
        if !d.is_empty() {
            let _ = write!(self.marks, "<path class=\"{class}\" d=\"{d}\"/>");
        }
    }

    /// Adds a line through points in the axes' units; points that are not finite are left out.
    pub(super) fn line(&mut self, class: &str, points: impl IntoIterator<Item = [f64; 2]>) {
        let finite = points.into_iter().filter(|p| p[0].is_finite() && p[1].is_finite());
        let places: Vec<String> = finite.map(|[x, y]| format!("{} {}", px(self.across(x)), px(self.down(y)))).collect();
        if places.len() > 1 {
            self.path(class, &format!("M{}", places.join("L")));
        }
    }

    /// Adds dots at points in the axes' units: one path, whose class gives it round ends.
    pub(super) fn dots(&mut self, class: &str, points: impl IntoIterator<Item = [f64; 2]>) {
        let mut d = String::new();
        for [x, y] in points.into_iter().filter(|[x, y]| self.x.contains(*x) && self.y.contains(*y)) {
            let _ = write!(d, "M{} {}h0", px(self.across(x)), px(self.down(y)));
        }
        self.path(class, &d);
    }

    /// Adds a mark outside the axes, in pixels of the whole panel.
    pub(super) fn outside(&mut self, element: &str) {
        self.around.push_str(element);
    }

    /// Where the space between the axes begins, in pixels of the whole panel, and where it ends.
    pub(super) fn frame(&self) -> [f64; 4] {
        let ([l, t, ..], [w, h]) = (self.margins, self.inner());
        [l, t, l + w, t + h]
    }

    /// Adds the ticks of both axes, of y with labels if asked for, and the axes' names.
    pub(super) fn axes(&mut self, y_labels: bool, x_name: &str, y_name: &str) {
        let [left, top, right, bottom] = self.frame();
        let mut lines = String::new();
        let mut out = String::new();
        for (value, label) in self.x.ticks(right - left, true) {
            let x = left + self.across(value);
            let _ = write!(lines, "M{} {}v4", px(x), px(bottom));
            // a label at the border stays inside the picture
            let half = 3.1 * label.chars().count() as f64;
            let at = x.clamp(half + 1.0, (self.size[0] - half - 1.0).max(half + 1.0));
            let _ = write!(out, "<text class=\"t m\" x=\"{}\" y=\"{}\">{label}</text>", px(at), px(bottom + 15.0));
        }
        if y_labels {
            for (value, label) in self.y_ticks() {
                let y = top + self.down(value);
                let _ = write!(lines, "M{} {}h-4", px(left), px(y));
                let _ =
                    write!(out, "<text class=\"t e\" x=\"{}\" y=\"{}\">{label}</text>", px(left - 6.0), px(y + 3.5));
            }
        }
        let _ = write!(lines, "M{} {}H{}", px(left), px(bottom), px(right));
        if y_labels {
            let _ = write!(lines, "M{} {}V{}", px(left), px(bottom), px(top));
        }
        let _ = write!(out, "<path class=\"axis\" d=\"{lines}\"/>");
        if !x_name.is_empty() {
            let (x, y) = (f64::midpoint(left, right), self.size[1] - 4.0);
            let _ = write!(out, "<text class=\"n m\" x=\"{}\" y=\"{}\">{}</text>", px(x), px(y), escape(x_name));
        }
        if !y_name.is_empty() {
            let (x, y) = (px(11.0), px(f64::midpoint(top, bottom)));
            let _ = write!(
                out,
                "<text class=\"n m\" x=\"{x}\" y=\"{y}\" transform=\"rotate(-90 {x} {y})\">{}</text>",
                escape(y_name)
            );
        }
        self.around.push_str(&out);
    }

    /// The picture, with a title for those who cannot see it.
    pub(super) fn finish(self, title: &str) -> String {
        let ([left, top, ..], [w, h]) = (self.frame(), self.inner());
        format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" preserveAspectRatio=\"xMidYMid meet\"><title>{}</title>\
             <svg x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\">{}</svg>{}</svg>",
            px(self.size[0]),
            px(self.size[1]),
            escape(title),
            px(left),
            px(top),
            px(w),
            px(h),
            self.marks,
            self.around
        )
    }
}

/// Evenly taken, at most so many.
pub(super) fn thinned<T: Copy>(values: &[T], most: usize) -> Vec<T> {
    let n = values.len();
    let kept = n.min(most);
    (0..kept).map(|i| values[if kept < 2 { 0 } else { i * (n - 1) / (kept - 1) }]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_short_and_finite() {
        let written = [1.0, 1.25, -0.01, f64::NAN, f64::INFINITY, -1e300].map(px);
        assert_eq!(written, ["1", "1.2", "0", "0", "9999", "-9999"]);
    }

    #[test]
    fn any_points_make_a_picture() {
        let mut panel = Panel::new([300.0, 200.0], Axis::new(0.0, 1.0), Axis::new(5.0, 5.0), true);
        panel.line("a", [[0.0, f64::NAN], [f64::INFINITY, 1.0]]);
        panel.line("b", [[0.0, 5.0], [1.0, 1e308]]);
        panel.dots("c", [[0.5, 5.0], [7.0, 5.0]]);
        panel.axes(true, "a < b", "\"y\" & z");
        let picture = panel.finish("x <script>");
        assert!(!picture.contains("class=\"a\"") && picture.contains("class=\"b\"") && picture.contains("h0"));
        assert!(picture.contains("a &lt; b") && !picture.contains("<script"));
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
    }

    #[test]
    fn thinning_keeps_both_ends() {
        let values: Vec<usize> = (0..1000).collect();
        let kept = thinned(&values, 10);
        assert_eq!((kept.len(), kept[0], kept[9]), (10, 0, 999));
        assert_eq!((thinned(&values[..3], 10), thinned(&values, 1)), (vec![0, 1, 2], vec![0]));
    }
}
