//! Supports: where a column's values can lie, and the link ℓ from there to the real line.
//!
//! (a, ∞): ln(x − a); (−∞, b): −ln(b − x); (a, b): ln((x − a)/(b − x)). All increase. A support is declared, never
//! fitted: one with bounds taken from the data would make a new row beyond them impossible.

use serde::{Deserialize, Serialize};

use super::point::Point;
use crate::error::ConfigError;

/// Where a column's values can lie, in the data's units. A value on the border is outside, unless the column is on a
/// grid, whose cells reach half a step further.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Support {
    /// Anywhere.
    #[default]
    Real,
    /// Above a bound.
    Above(f64),
    /// Below a bound.
    Below(f64),
    /// Between a lower and an upper bound.
    Between(f64, f64),
}

impl std::fmt::Display for Support {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Real => f.write_str("the real line"),
            Self::Above(a) => write!(f, "above {a}"),
            Self::Below(b) => write!(f, "below {b}"),
            Self::Between(a, b) => write!(f, "between {a} and {b}"),
        }
    }
}

impl Support {
    /// Checks the bounds.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a bound that is not finite, [`ConfigError::Inconsistent`] if there is
    /// nothing between two of them or their distance is not finite.
    pub fn check(&self) -> Result<(), ConfigError> {
        let finite = |value: f64| {
            let wrong = ConfigError::OutOfRange { name: "supports", value, expected: "finite bounds" };
            if value.is_finite() { Ok(()) } else { Err(wrong) }
        };
        match *self {
            Self::Real => Ok(()),
            Self::Above(bound) | Self::Below(bound) => finite(bound),
            Self::Between(a, b) => {
                finite(a)?;
                finite(b)?;
                if a.next_up() < b && (b - a).is_finite() {
                    Ok(())
                } else {
                    Err(ConfigError::Inconsistent(format!("there is no support between {a} and {b}")))
                }
            }
        }
    }

    /// Returns `true` if a value lies inside, or `closed` and on the border.
    pub fn contains(&self, x: f64, closed: bool) -> bool {
        let above = |a: f64| x > a || (closed && x == a);
        let below = |b: f64| x < b || (closed && x == b);
        match *self {
            Self::Real => true,
            Self::Above(a) => above(a),
            Self::Below(b) => below(b),
            Self::Between(a, b) => above(a) && below(b),
        }
    }

    /// The support with each border moved outwards.
    pub(super) fn widened(&self, by: f64) -> Self {
        match *self {
            Self::Real => Self::Real,
            Self::Above(a) => Self::Above(a - by),
            Self::Below(b) => Self::Below(b + by),
            Self::Between(a, b) => Self::Between(a - by, b + by),
        }
    }

    /// ℓ at a value inside.
    pub(super) fn link(&self, x: f64) -> Point {
        match *self {
            Self::Real => Point::start(x),
            Self::Above(a) => {
                let value = (x - a).ln();
                Point { value, log_slope: -value, bend: -1.0 / (x - a) }
            }
            Self::Below(b) => {
                let value = -(b - x).ln();
                Point { value, log_slope: value, bend: 1.0 / (b - x) }
            }
            Self::Between(a, b) => {
                let [low, high] = [x - a, b - x].map(f64::ln);
                Point { value: low - high, log_slope: (b - a).ln() - low - high, bend: 1.0 / (b - x) - 1.0 / (x - a) }
            }
        }
    }

    /// The value inside that ℓ takes to y: where rounding would leave the support, the number next to its border.
    pub(super) fn unlink(&self, y: f64) -> f64 {
        if y.is_nan() {
            return y;
        }
        match *self {
            Self::Real => y,
            Self::Above(a) => (a + y.exp()).max(a.next_up()),
            Self::Below(b) => (b - (-y).exp()).min(b.next_down()),
            Self::Between(a, b) => {
                let small = (-y.abs()).exp();
                let part = (b - a) * (small / (1.0 + small));
                let x = if y < 0.0 { a + part } else { b - part };
                x.clamp(a.next_up(), b.next_down())
            }
        }
    }
}
