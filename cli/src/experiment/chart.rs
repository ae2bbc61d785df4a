//! Lines with confidence bands over an axis, on the panel that every picture is drawn on.

use image::RgbImage;

use crate::picture::canvas::{Axes, Canvas, ticks};

/// Colours that can be told apart, in the order of their use.
const COLOURS: [[u8; 3]; 7] =
    [[200, 60, 40], [40, 90, 180], [30, 130, 70], [150, 80, 160], [190, 130, 20], [70, 70, 70], [0, 140, 160]];

/// How values are laid along an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    Linear,
    /// log₁₀; values must be above 0.
    Logarithmic,
    /// asinh(v / threshold): linear around 0, logarithmic far from it, for values of either sign.
    Symmetric {
        threshold: f64,
    },
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.log10(),
            Self::Symmetric { threshold } => (value / threshold).asinh(),
        }
    }

    /// Places along the axis, and labels.
    fn ticks(self, range: [f64; 2]) -> Vec<(f64, String)> {
        let powers = || {
            (-12..=12).map(|k| {
                let value = 10_f64.powi(k);
                (value, if (-2..=3).contains(&k) { format!("{value}") } else { format!("1e{k}") })
            })
        };
        let inside = |(place, _): &(f64, String)| (range[0]..=range[1]).contains(place);
        match self {
            Self::Linear => ticks(range),
            Self::Logarithmic => {
                let decades: Vec<_> = powers().map(|(v, label)| (v.log10(), label)).filter(inside).collect();
                if decades.len() > 1 {
                    return decades;
                }
                // within a decade or so
                let between = |(v, _): (f64, String)| [1.0, 2.0, 5.0].map(|f| (f * v, format!("{:.0e}", f * v)));
                powers().flat_map(between).map(|(v, label)| (v.log10(), label)).filter(inside).collect()
            }
            Self::Symmetric { threshold } => {
                let both = powers().filter(|(v, _)| *v >= 0.99 * threshold);
                let both = both.flat_map(|(v, label)| [(-v, format!("-{label}")), (v, label)]);
                let all = std::iter::once((0.0, "0".to_owned())).chain(both);
                all.map(|(v, label)| (self.place(v), label)).filter(inside).collect()
            }
        }
    }
}

/// A value and the interval around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) interval: [f64; 2],
}

/// Points of one name.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
}

/// A panel with some series.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x_axis: String,
    pub(super) scale: Scale,
    pub(super) series: Vec<Series>,
    /// Whether the points of a series are values of one curve.
    pub(super) joined: bool,
    /// What the y axis is to show, if not everything.
    pub(super) shown: Option<[f64; 2]>,
}

/// All charts, with one range of the y axis where they have one scale.
pub(super) fn draw(charts: &[Chart]) -> Vec<RgbImage> {
    let ranges: Vec<_> = charts.iter().map(Chart::range).collect();
    let common = |scale: Scale| {
        let own = || charts.iter().zip(&ranges).filter(|(c, _)| c.scale == scale).map(|(_, r)| r);
        [own().map(|r| r[0]).fold(f64::INFINITY, f64::min), own().map(|r| r[1]).fold(f64::NEG_INFINITY, f64::max)]
    };
    charts.iter().map(|chart| chart.draw(common(chart.scale))).collect()
}

impl Chart {
    fn points(&self) -> impl Iterator<Item = &Point> {
        self.series.iter().flat_map(|s| &s.points)
    }

    /// The places that the y axis shows.
    fn range(&self) -> [f64; 2] {
        let ends = self.points().flat_map(|p| [p.interval[0], p.interval[1], p.y]);
        let ends = self.shown.map_or_else(|| ends.collect(), |shown| shown.to_vec());
        let places = || ends.iter().map(|&v| self.scale.place(v)).filter(|v| v.is_finite());
        let (low, high) = (places().fold(f64::INFINITY, f64::min), places().fold(f64::NEG_INFINITY, f64::max));
        if low > high { [-1.0, 1.0] } else { [low, high] }
    }

    fn draw(&self, [low, high]: [f64; 2]) -> RgbImage {
        let margin = 0.06 * (high - low).max(1e-9);
        let xs = || self.points().map(|p| p.x);
        let (left, right) = (xs().fold(f64::INFINITY, f64::min), xs().fold(f64::NEG_INFINITY, f64::max));
        let (left, right) = if left > right { (0.0, 1.0) } else { (left, right) };
        let side = 0.05 * (right - left).max(0.2);
        // room for the names above
        let room = if self.series.len() > 1 { 0.045 * self.series.len() as f64 * (high - low) } else { 0.0 };
        let axes = Axes { x: [left - side, right + side], y: [low - margin, high + margin + room] };
        let mut canvas = Canvas::new();
        let place = |x: f64, y: f64| {
            let y = self.scale.place(y);
            // what is below a logarithmic axis
            axes.place([x, if y.is_nan() { f64::MIN / 1e10 } else { y.clamp(-1e9, 1e9) }])
        };
        let zero = self.scale.place(0.0);
        if self.scale != Scale::Logarithmic && (low..=high).contains(&zero) {
            canvas.line(place(axes.x[0], 0.0), place(axes.x[1], 0.0), [60, 60, 60], 0.3);
        }
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            for pair in series.points.windows(2).filter(|_| self.joined) {
                let end = |p: &Point| {
                    let [x, low] = place(p.x, p.interval[0]);
                    [x, low, place(p.x, p.interval[1])[1]]
                };
                canvas.band(end(&pair[0]), end(&pair[1]), *colour);
                canvas.line(place(pair[0].x, pair[0].y), place(pair[1].x, pair[1].y), *colour, 0.7);
            }
            for p in &series.points {
                let [x, y] = place(p.x, p.y);
                canvas.line(place(p.x, p.interval[0]), place(p.x, p.interval[1]), *colour, 0.4);
                for (i, j) in [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.0, 0.0)] {
                    canvas.dot([x + i, y + j], *colour, 1.0);
                }
            }
        }
        let names: Vec<_> = self.series.iter().zip(COLOURS.iter().cycle()).map(|(s, c)| (s.name.clone(), *c)).collect();
        canvas.legend(&names, &self.x_axis);
        canvas.finish_with(&self.title, &axes, [&ticks(axes.x), &self.scale.ticks(axes.y)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, range: [f64; 2]) -> String {
        scale.ticks(range).into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ticks_are_powers_of_ten() {
        assert_eq!(labels(Scale::Logarithmic, [-1.5, 2.2]), "0.1 1 10 100");
        assert_eq!(labels(Scale::Logarithmic, [0.1, 0.9]), "2e0 5e0");
        let symmetric = Scale::Symmetric { threshold: 0.1 };
        assert_eq!(labels(symmetric, [symmetric.place(-2.0), symmetric.place(0.5)]), "0 -0.1 0.1 -1");
    }

    #[test]
    fn any_points_make_a_picture() {
        let point = |y: f64| Point { x: 1.0, y, interval: [f64::NEG_INFINITY, f64::NAN] };
        for scale in [Scale::Linear, Scale::Logarithmic, Scale::Symmetric { threshold: 0.1 }] {
            for points in [vec![], vec![point(0.0)], vec![point(-3.0), point(f64::INFINITY), point(1e300)]] {
                let series = vec![Series { name: "a".into(), points }];
                let chart = Chart { title: "t".into(), x_axis: "x".into(), scale, series, joined: true, shown: None };
                assert_eq!(draw(&[chart]).len(), 1);
            }
        }
    }
}
