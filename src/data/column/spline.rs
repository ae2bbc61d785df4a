//! Monotone rational-quadratic splines with linear tails (Gregory and Delbourgo 1982; Durkan et al. 2019).
//!
//! Between knots (x₀, y₀, d₀) and (x₁, y₁, d₁), with s = (y₁ − y₀)/(x₁ − x₀) and ξ = (x − x₀)/(x₁ − x₀),
//!
//! y = y₀ + (y₁ − y₀)(s ξ² + d₀ ξ(1 − ξ))/D, dy/dx = s²(d₁ ξ² + 2s ξ(1 − ξ) + d₀(1 − ξ)²)/D²,
//! D = s + (d₀ + d₁ − 2s) ξ(1 − ξ).
//!
//! Beyond the outermost knots the map goes on with their slopes: it is C¹ and increases everywhere. Slopes are bounded on both
//! sides, so that neither direction stretches an error by more than that.

use super::point::Point;
use crate::error::ConfigError;

/// The bounds of a spline's slopes, at its knots and from knot to knot.
const SLOPES: std::ops::RangeInclusive<f64> = 1e-6..=1e6;
/// The bounds of the slopes from knot to knot of one that is fitted.
const FITTED: [f64; 2] = [1e-3, 1e3];
/// The most knots that a file may want.
pub(super) const MOST_KNOTS: usize = 4096;

/// A monotone rational-quadratic spline with linear tails.
#[derive(Debug, Clone, PartialEq)]
pub struct Spline {
    x: Vec<f64>,
    y: Vec<f64>,
    slopes: Vec<f64>,
}

impl Spline {
    /// Builds the spline through knots (x, y) with these slopes.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if there are fewer than two knots or more than 4096, they do not increase,
    /// or a slope at a knot or from one to the next is outside 1e−6 to 1e6.
    pub fn new(x: Vec<f64>, y: Vec<f64>, slopes: Vec<f64>) -> Result<Self, ConfigError> {
        let wrong = |problem: &str| Err(ConfigError::Inconsistent(format!("a column's spline {problem}")));
        if x.len() != y.len() || x.len() != slopes.len() || !(2..=MOST_KNOTS).contains(&x.len()) {
            return wrong("needs 2 to 4096 knots, each with a slope");
        }
        if !x.iter().chain(&y).all(|v| v.is_finite()) {
            return wrong("has a knot that is not finite");
        }
        let secants = x.windows(2).zip(y.windows(2)).map(|(x, y)| (y[1] - y[0]) / (x[1] - x[0]));
        if !x.windows(2).chain(y.windows(2)).all(|w| w[0] < w[1]) {
            return wrong("does not increase");
        }
        if !secants.chain(slopes.iter().copied()).all(|s| SLOPES.contains(&s)) {
            return wrong("has a slope outside 1e-6 to 1e6");
        }
        Ok(Self { x, y, slopes })
    }

    /// Lays a spline through points that increase in y, leaving out those that would make it too steep or too flat;
    /// none if fewer than three are left.
    pub(super) fn through(points: impl Iterator<Item = (f64, f64)>) -> Option<Self> {
        let (mut x, mut y): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
        for (to, value) in points.filter(|(to, value)| to.is_finite() && value.is_finite()) {
            let steep = |x: &[f64], y: &[f64]| match (x.last(), y.last()) {
                (Some(from), Some(start)) => (value - start) / (to - from),
                _ => 1.0,
            };
            // NaN where two points coincide
            let slope = steep(&x, &y);
            if slope < FITTED[0] && x.len() == 1 {
                // a far first point: the tail begins later
                (x[0], y[0]) = (to, value);
            } else if (FITTED[0]..=FITTED[1]).contains(&slope) {
                x.push(to);
                y.push(value);
            }
        }
        if x.len() < 3 {
            return None;
        }
        let secants: Vec<f64> = x.windows(2).zip(y.windows(2)).map(|(x, y)| (y[1] - y[0]) / (x[1] - x[0])).collect();
        let inner = secants.windows(2).map(|s| (s[0] * s[1]).sqrt().min(3.0 * s[0].min(s[1])));
        let slopes = std::iter::once(secants[0]).chain(inner).chain(secants.last().copied()).collect();
        Self::new(x, y, slopes).ok()
    }

    /// The number of knots.
    pub fn knots(&self) -> usize {
        self.x.len()
    }

    /// The knots' x, their y and the slopes there, `[3][knots]`.
    pub fn parts(&self) -> [&[f64]; 3] {
        [&self.x, &self.y, &self.slopes]
    }

    /// The piece that a number lies in, by its place among the knots' x or y; `None` before the first, and after the last.
    fn piece(knots: &[f64], at: f64) -> Result<usize, usize> {
        match knots.partition_point(|k| *k <= at) {
            0 => Err(0),
            n if n == knots.len() => Err(n - 1),
            n => Ok(n - 1),
        }
    }

    /// y at x.
    pub fn evaluate(&self, x: f64) -> Point {
        match Self::piece(&self.x, x) {
            Err(end) => {
                let slope = self.slopes[end];
                Point { value: self.y[end] + slope * (x - self.x[end]), log_slope: slope.ln(), bend: 0.0 }
            }
            Ok(k) => self.within(k, x),
        }
    }

    fn within(&self, k: usize, x: f64) -> Point {
        let (width, height) = (self.x[k + 1] - self.x[k], self.y[k + 1] - self.y[k]);
        let (d0, d1, s) = (self.slopes[k], self.slopes[k + 1], height / width);
        let xi = (x - self.x[k]) / width;
        let (rest, both) = (1.0 - xi, xi * (1.0 - xi));
        let bottom = s + (d0 + d1 - 2.0 * s) * both;
        let top = d1 * xi * xi + 2.0 * s * both + d0 * rest * rest;
        let top_slope = 2.0 * (d1 * xi + s * (1.0 - 2.0 * xi) - d0 * rest);
        let bottom_slope = (d0 + d1 - 2.0 * s) * (1.0 - 2.0 * xi);
        Point {
            value: self.y[k] + height * (s * xi * xi + d0 * both) / bottom,
            log_slope: 2.0 * (s / bottom).ln() + top.ln(),
            bend: (top_slope / top - 2.0 * bottom_slope / bottom) / width,
        }
    }

    /// x with the value y.
    pub fn invert(&self, y: f64) -> f64 {
        let k = match Self::piece(&self.y, y) {
            Err(end) => return self.x[end] + (y - self.y[end]) / self.slopes[end],
            Ok(k) => k,
        };
        let (width, height) = (self.x[k + 1] - self.x[k], self.y[k + 1] - self.y[k]);
        let (d0, d1, s) = (self.slopes[k], self.slopes[k + 1], height / width);
        let (above, bend) = (y - self.y[k], d0 + d1 - 2.0 * s);
        // the root of a ξ² + b ξ + c in [0, 1], in the form that does not cancel
        let (a, b, c) = (height * (s - d0) + above * bend, height * d0 - above * bend, -s * above);
        let root = 2.0 * c / (-b - (b * b - 4.0 * a * c).max(0.0).sqrt());
        let x = self.x[k] + width * root.clamp(0.0, 1.0);
        let at = self.within(k, x);
        let better = x - (at.value - y) * (-at.log_slope).exp();
        better.clamp(self.x[k], self.x[k + 1])
    }
}
