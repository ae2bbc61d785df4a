//! The map of one column.

use super::grid::Grid;
use super::marginal::Asinh;
use super::point::Point;
use super::spline::Spline;
use super::support::Support;
use crate::error::ConfigError;

/// z = m((ℓ(x) − c)/s) with the link ℓ of a support and a monotone map m, a spline after an inverse hyperbolic sine; of
/// values on a grid x is first spread over its cell.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnMap {
    support: Support,
    grid: Option<Grid>,
    centre: f64,
    scale: f64,
    asinh: Option<Asinh>,
    spline: Option<Spline>,
    /// The support of what is spread over its cell.
    domain: Support,
}

impl ColumnMap {
    /// Builds the map z = (x − centre)/scale.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] if the centre is not finite or the scale not a positive normal number.
    pub fn affine(centre: f64, scale: f64) -> Result<Self, ConfigError> {
        if !centre.is_finite() {
            return Err(ConfigError::OutOfRange { name: "centre", value: centre, expected: "a finite number" });
        }
        if !(scale.is_normal() && scale > 0.0) {
            return Err(ConfigError::OutOfRange { name: "scale", value: scale, expected: "a number above 0" });
        }
        let (support, domain) = (Support::Real, Support::Real);
        Ok(Self { support, grid: None, centre, scale, asinh: None, spline: None, domain })
    }

    /// Sets the support, and the grid of the column's values if it has one.
    ///
    /// # Errors
    /// Returns the errors of [`Support::check`].
    pub fn with_values(self, support: Support, grid: Option<Grid>) -> Result<Self, ConfigError> {
        support.check()?;
        let domain = support.widened(grid.map_or(0.0, |grid| 0.5 * grid.step()));
        domain.check()?;
        Ok(Self { support, grid, domain, ..self })
    }

    /// Sets the monotone map after centre and scale: the inverse hyperbolic sine, if any, and then the spline.
    #[must_use]
    pub fn with_marginal(self, asinh: Option<Asinh>, spline: Option<Spline>) -> Self {
        Self { asinh, spline, ..self }
    }

    /// Where values can lie.
    pub fn support(&self) -> Support {
        self.support
    }

    /// The grid that values are on.
    pub fn grid(&self) -> Option<Grid> {
        self.grid
    }

    /// c, in the units of ℓ(x): the data's on the real line.
    pub fn centre(&self) -> f64 {
        self.centre
    }

    /// s, in the units of ℓ(x).
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The inverse hyperbolic sine, if there is one.
    pub fn asinh(&self) -> Option<Asinh> {
        self.asinh
    }

    /// The spline, if there is one.
    pub fn spline(&self) -> Option<&Spline> {
        self.spline.as_ref()
    }

    /// Returns `true` if the map is z = (x − c)/s and nothing more.
    pub fn is_affine(&self) -> bool {
        self.support == Support::Real && self.grid.is_none() && self.asinh.is_none() && self.spline.is_none()
    }

    /// Returns `true` if the support has a value: its border belongs to it on a grid.
    pub fn contains(&self, x: f64) -> bool {
        self.support.contains(x, self.grid.is_some())
    }

    /// The place of a value in its cell for u in (0, 1), or the value itself if there is no grid.
    pub fn spread(&self, x: f64, u: f64) -> f64 {
        self.grid.map_or(x, |grid| grid.spread(x, u))
    }

    /// z of a value that was [spread](Self::spread), with ln dz/dx and its derivative; `None` outside of the support.
    pub fn evaluate(&self, x: f64) -> Option<Point> {
        // not negated: NaN is outside
        if !self.domain.contains(x, false) {
            return None;
        }
        let mut point = self.domain.link(x).then(|y| Point {
            value: (y - self.centre) / self.scale,
            log_slope: -self.scale.ln(),
            bend: 0.0,
        });
        if let Some(asinh) = &self.asinh {
            point = point.then(|t| asinh.evaluate(t));
        }
        if let Some(spline) = &self.spline {
            point = point.then(|t| spline.evaluate(t));
        }
        Some(point)
    }

    /// ℓ(x) of a value that was spread.
    pub(super) fn link(&self, x: f64) -> f64 {
        self.domain.link(x).value
    }

    /// x of z: inside the support and, on a grid, the value of the cell that z is in.
    pub fn invert(&self, z: f64) -> f64 {
        let x = self.unspread(z);
        let Some(grid) = self.grid else { return x };
        let value = grid.round(x);
        if value.is_nan() || self.contains(value) {
            return value;
        }
        // a border between two values of the grid
        let (low, high) = match self.support {
            Support::Real => return value,
            Support::Above(a) => (a, f64::INFINITY),
            Support::Below(b) => (f64::NEG_INFINITY, b),
            Support::Between(a, b) => (a, b),
        };
        let (end, inwards) = if value < low { (low, grid.step()) } else { (high, -grid.step()) };
        let nearest = grid.round(end);
        if self.contains(nearest) { nearest } else { grid.round(end + inwards) }
    }

    /// x of z before it is rounded to its grid.
    pub fn unspread(&self, z: f64) -> f64 {
        let z = self.spline.as_ref().map_or(z, |spline| spline.invert(z));
        let t = self.asinh.map_or(z, |asinh| asinh.invert(z));
        self.domain.unlink(t * self.scale + self.centre)
    }
}
