//! The inverse hyperbolic sine as a map for heavy tails: linear in the middle, logarithmic far out.
//!
//! y = (w asinh(x/w) − m)/q, dy/dx = 1/(q √(1 + (x/w)²)).

use super::point::Point;
use crate::error::ConfigError;

/// y = (w asinh(x/w) − m)/q.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asinh {
    width: f64,
    centre: f64,
    scale: f64,
}

impl Asinh {
    /// Builds the map with half-width w of its linear middle, centre m and scale q.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] if a number is not finite, or w or q is outside 1e−6 to 1e6.
    pub fn new(width: f64, centre: f64, scale: f64) -> Result<Self, ConfigError> {
        for (name, value) in [("asinh width", width), ("asinh scale", scale)] {
            if !(1e-6..=1e6).contains(&value) {
                return Err(ConfigError::OutOfRange { name, value, expected: "1e-6 to 1e6" });
            }
        }
        if !centre.is_finite() {
            return Err(ConfigError::OutOfRange { name: "asinh centre", value: centre, expected: "a finite number" });
        }
        Ok(Self { width, centre, scale })
    }

    /// w, m and q.
    pub fn parts(&self) -> [f64; 3] {
        [self.width, self.centre, self.scale]
    }

    /// y at x.
    pub fn evaluate(&self, x: f64) -> Point {
        let r = x / self.width;
        // r/(1 + r²) without its square overflowing
        let fall = if r.abs() > 1.0 { 1.0 / (r + 1.0 / r) } else { r / (1.0 + r * r) };
        Point {
            value: (self.width * r.asinh() - self.centre) / self.scale,
            log_slope: -self.scale.ln() - r.hypot(1.0).ln(),
            bend: -fall / self.width,
        }
    }

    /// x with the value y, infinite where it overflows.
    pub fn invert(&self, y: f64) -> f64 {
        self.width * ((y * self.scale + self.centre) / self.width).sinh()
    }
}
