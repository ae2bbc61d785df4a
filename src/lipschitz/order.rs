//! The order p of a norm ‖x‖_p = (Σ|xᵢ|^p)^{1/p}, fixed or learned.
//!
//! A learned order comes from a raw parameter a (Chen et al. 2019, appendix): p = 3 + 2·tanh(−s) with
//! s = leaky_elu(½ ln 3 − a), leaky_elu(t) = 0.3·t + 0.7·ELU(t). It grows with a from 1 to 5; a = 0 gives 2.
//!
//! Invariant: p is 1, 2, ∞, or at least 1e−4 away from 1 and from ∞ in the sense 1e−4 ≤ p − 1 ≤ 1e4. Dual vectors raise
//! to the powers p − 1 and 1/(p − 1); nearer to 1 the second would lose all digits in f32, or be 1/0 once p rounds to
//! 1. So a learned order is clamped where s is, at ±5.3, and p − 1 = 4/(1 + e^{2s}) is computed rather than p.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// ½ ln 3 as the reference implementation has it, rounded to single precision and 4e−8 too large: its checkpoints, and
/// ours, mean that number. So a = 0 gives 2 − 6e−8.
pub(super) const CENTRE: f64 = 0.549_306_182_998_657_2;
/// Where |s| is clamped: p stays between 1.0001 and 4.9999.
pub(super) const STEEPEST: f64 = 5.3;
/// The share of the linear part in leaky_elu.
pub(super) const LEAK: f64 = 0.3;
/// The fixed orders other than 1 and ∞.
const BETWEEN: std::ops::RangeInclusive<f64> = 1.0001..=10001.0;

/// The order of a norm. Serialised it is a text: a number, `inf`, or `learned:` and the number of its parameter.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Order {
    /// Σ|xᵢ|.
    One,
    /// The Euclidean norm.
    #[default]
    Two,
    /// max|xᵢ|.
    Infinity,
    /// Another order between.
    Fixed(Exponent),
    /// A learned order, by the number of its raw parameter: equal numbers mean one parameter, shared.
    Learned(usize),
}

/// An order p with 1e−4 ≤ p − 1 ≤ 1e4.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Exponent(f64);

impl Exponent {
    /// Returns p.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Order {
    /// Builds the fixed order p.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] unless p is 1, ∞, or between 1.0001 and 10001.
    pub fn fixed(p: f64) -> Result<Self, ConfigError> {
        if p == 1.0 {
            Ok(Self::One)
        } else if p == 2.0 {
            Ok(Self::Two)
        } else if p == f64::INFINITY {
            Ok(Self::Infinity)
        } else if BETWEEN.contains(&p) {
            Ok(Self::Fixed(Exponent(p)))
        } else {
            Err(ConfigError::OutOfRange {
                name: "order of a norm",
                value: p,
                expected: "1, infinity, or a number between 1.0001 and 10001",
            })
        }
    }

    /// Returns p, unless it is learned.
    pub fn exponent(self) -> Option<f64> {
        match self {
            Self::One => Some(1.0),
            Self::Two => Some(2.0),
            Self::Infinity => Some(f64::INFINITY),
            Self::Fixed(p) => Some(p.get()),
            Self::Learned(_) => None,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => f.write_str("1-norm"),
            Self::Two => f.write_str("2-norm"),
            Self::Infinity => f.write_str("max norm"),
            Self::Fixed(p) => write!(f, "{}-norm", p.get()),
            Self::Learned(raw) => write!(f, "norm of learned order {raw}"),
        }
    }
}

impl From<Order> for String {
    fn from(order: Order) -> Self {
        match order {
            Order::Learned(number) => format!("learned:{number}"),
            other => other.exponent().unwrap_or(2.0).to_string(),
        }
    }
}

impl TryFrom<String> for Order {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Syntax(format!("`{text}` is no order of a norm"));
        match text.strip_prefix("learned:") {
            // no block has more than 64 layers
            Some(number) => number.parse().ok().filter(|&n| n < 65).map(Self::Learned).ok_or_else(wrong),
            None => Self::fixed(text.parse().map_err(|_| wrong())?),
        }
    }
}

/// Computes the learned order p of a raw parameter a, on the host.
pub fn learned_exponent(a: f64) -> f64 {
    let t = CENTRE - a;
    let s = LEAK * t + (1.0 - LEAK) * if t > 0.0 { t } else { t.exp_m1() };
    1.0 + 4.0 / (1.0 + (2.0 * s.clamp(-STEEPEST, STEEPEST)).exp())
}

/// Computes d^{|1/p − 1/2|}: if e shrinks by c per step in the p-norm, its 2-norm after n steps is at most this times
/// cⁿ times the 2-norm of the start, in dimension d.
pub fn two_norm_factor(p: f64, dimension: usize) -> f64 {
    (dimension.max(1) as f64).powf((1.0 / p - 0.5).abs())
}
