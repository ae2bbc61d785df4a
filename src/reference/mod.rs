//! Prepared transforms on the host, in double precision: by them the inverse of a device is measured.
//!
//! What is exact here is F with the numbers that the device holds (normalised weights, exponentials, factors multiplied), in exact
//! arithmetic. An x that a device found for y is off by at most
//!
//! ‖x − F⁻¹(y)‖₂ ≤ Lip(F⁻¹) ‖y − F(x)‖₂,
//!
//! whatever was done to find it: no device needs to be trusted. F(x) is computed in double precision, with a bound on the
//! rounding of that ([`ReferenceNet`]); where the inverse is a formula, x is compared with it. With the
//! [constants](crate::lipschitz::BiLipschitz) that are certified this is a proof for every sample.

mod net;

use std::f64::consts::{FRAC_1_SQRT_2, SQRT_2};

pub use net::ReferenceNet;
pub(crate) use net::length;
pub(crate) use net::numbers;

use crate::lipschitz::{BiLipschitz, invert};

/// A transform on the host.
#[derive(Debug, Clone)]
pub enum ReferenceMap {
    /// x + g(x) of samples of a shape, `[d]` or `[h, w, c]`.
    Residual {
        /// g.
        net: ReferenceNet,
        /// The shape of a sample.
        shape: Vec<usize>,
    },
    /// The z with z + g(z) = x, of samples of a shape.
    Inverted {
        /// g.
        net: ReferenceNet,
        /// The shape of a sample.
        shape: Vec<usize>,
    },
    /// √2·w − x with w + g(w) = √2·x, of samples of a shape.
    Monotone {
        /// g.
        net: ReferenceNet,
        /// The shape of a sample.
        shape: Vec<usize>,
    },
    /// (x + bias)·scale, with a number for each feature or channel: the last axis.
    Scale {
        /// What is added, `[c]`.
        bias: Vec<f64>,
        /// What is multiplied by, `[c]`.
        scale: Vec<f64>,
    },
    /// Wx + bias on the last axis.
    Linear {
        /// W, `[c, c]`.
        weight: Vec<f64>,
        /// Its inverse as far as double precision goes, `[c, c]`.
        inverse: Vec<f64>,
        /// What is added, `[c]`.
        bias: Vec<f64>,
    },
    /// ln s − ln(1 − s) with s = α + (1 − 2α)x.
    Logit {
        /// α.
        alpha: f64,
    },
    /// The same numbers in another order, which no arithmetic touches.
    Permutation,
}

/// The relative error of a few operations and elementary functions in double precision.
const FEW: f64 = 16.0 * f64::EPSILON;

/// The most steps of a fixed point, and the part of ‖x‖₂ below which steps that do not shrink are rounding.
const MOST: usize = 20_000;
const STILL: f64 = 1e-10;

/// Solves x ± g(x) = y by fixed points from a point near it.
fn solve(
    net: &ReferenceNet,
    shape: &[usize],
    sign: f64,
    y: &[f64],
    start: Vec<f64>,
    accuracy: f64,
) -> Option<Vec<f64>> {
    let (mut x, mut last) = (start, f64::INFINITY);
    for _ in 0..MOST {
        let g = net.value(&x, shape).value;
        let next: Vec<f64> = y.iter().zip(&g).map(|(y, g)| y - sign * g).collect();
        let step = length(&next.iter().zip(&x).map(|(a, b)| a - b).collect::<Vec<_>>());
        x = next;
        if !step.is_finite() {
            return None;
        }
        // rounding is reached: steps no longer shrink
        if step <= accuracy.max(f64::EPSILON) * length(&x) || (step >= last && step <= STILL * length(&x).max(1.0)) {
            return Some(x);
        }
        last = step;
    }
    None
}

/// (x + y)/√2, the w of a monotone block.
fn middle(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| (x + y) * FRAC_1_SQRT_2).collect()
}

impl ReferenceMap {
    /// Builds the linear map of a matrix `[c, c]`; `None` of one that is singular.
    pub(crate) fn linear(weight: Vec<f64>, bias: Vec<f64>) -> Option<Self> {
        let inverse = invert(bias.len(), &weight)?;
        Some(Self::Linear { weight, inverse, bias })
    }

    /// Computes F⁻¹(y) of one sample in double precision: by formulas, or by fixed points from a point near it, until a step is below this part of
    /// ‖x‖₂ or rounding. `None` where that does not end. A permutation does not know its order: the point is returned.
    pub fn inverse(&self, y: &[f64], start: &[f64], accuracy: f64) -> Option<Vec<f64>> {
        match self {
            Self::Residual { net, shape } => solve(net, shape, 1.0, y, start.to_vec(), accuracy),
            Self::Inverted { net, shape } => {
                Some(y.iter().zip(net.value(y, shape).value).map(|(z, g)| z + g).collect())
            }
            Self::Monotone { net, shape } => {
                // w − g(w) = √2·y, and x = √2·w − y
                let target: Vec<f64> = y.iter().map(|y| SQRT_2 * y).collect();
                let w = solve(net, shape, -1.0, &target, middle(start, y), accuracy)?;
                Some(w.iter().zip(y).map(|(w, y)| SQRT_2 * w - y).collect())
            }
            Self::Scale { bias, scale } => {
                let parts = bias.iter().zip(scale).cycle();
                Some(y.iter().zip(parts).map(|(y, (bias, scale))| y / scale - bias).collect())
            }
            Self::Linear { weight, inverse, bias } => {
                let n = bias.len();
                let apply = |m: &[f64], x: &[f64]| -> Vec<f64> {
                    m.chunks_exact(n).map(|row| row.iter().zip(x).map(|(a, x)| a * x).sum()).collect()
                };
                let rows = |y: &[f64]| -> Vec<f64> {
                    let shifted: Vec<f64> = y.iter().zip(bias).map(|(y, b)| y - b).collect();
                    let x = apply(inverse, &shifted);
                    // once more for what is left
                    let rest: Vec<f64> = shifted.iter().zip(apply(weight, &x)).map(|(y, wx)| y - wx).collect();
                    x.iter().zip(apply(inverse, &rest)).map(|(x, more)| x + more).collect()
                };
                Some(y.chunks_exact(n).flat_map(rows).collect())
            }
            Self::Logit { alpha } => {
                let slope = 1.0 - 2.0 * alpha;
                Some(y.iter().map(|y| (1.0 / (1.0 + (-y).exp()) - alpha) / slope).collect())
            }
            Self::Permutation => Some(start.to_vec()),
        }
    }

    /// Bounds ‖x − F⁻¹(y)‖₂ of one sample from above, infinite where a number is not finite.
    pub fn inverse_error(&self, x: &[f64], y: &[f64], constants: BiLipschitz) -> f64 {
        let found = match self {
            Self::Residual { net, shape } => {
                let g = net.value(x, shape);
                let rest: Vec<f64> = y.iter().zip(x).zip(&g.value).map(|((y, x), g)| y - x - g).collect();
                let rounding = f64::EPSILON * 2.0 * (length(y) + length(x) + length(&g.value));
                constants.inverse * (length(&rest) + g.off + rounding)
            }
            Self::Inverted { net, shape } => {
                // y + g(y) directly
                let g = net.value(y, shape);
                let off: Vec<f64> = x.iter().zip(y).zip(&g.value).map(|((x, y), g)| y + g - x).collect();
                let rounding = f64::EPSILON * 2.0 * (length(y) + length(x) + length(&g.value));
                length(&off) + g.off + rounding
            }
            Self::Monotone { net, shape } => {
                // at w = (x + y)/√2 what is left of w − g(w) = √2·y, over 1 − c, and x moves √2 times as far as w; with L = (1 + c)/(1 − c)
                // 1/(1 − c) is (L + 1)/2
                let w = middle(x, y);
                let g = net.value(&w, shape);
                let rest: Vec<f64> = w.iter().zip(&g.value).zip(y).map(|((w, g), y)| w - g - SQRT_2 * y).collect();
                let sizes = length(y) + length(x) + length(&g.value);
                let rounding = 8.0 * f64::EPSILON * sizes;
                let steep = FRAC_1_SQRT_2 * (constants.inverse + 1.0);
                steep * (length(&rest) + g.off + rounding) + rounding
            }
            Self::Scale { bias, scale } => {
                // y/scale − bias directly
                let parts = x.iter().zip(y).zip(bias.iter().zip(scale).cycle());
                let off = parts.map(|((x, y), (bias, scale))| {
                    let quotient = y / scale;
                    ((quotient - bias - x).abs() + FEW * (quotient.abs() + bias.abs() + x.abs())).powi(2)
                });
                off.sum::<f64>().sqrt()
            }
            Self::Linear { weight, bias, .. } => {
                let n = bias.len();
                let mut rest = Vec::with_capacity(x.len());
                for (x, y) in x.chunks_exact(n).zip(y.chunks_exact(n)) {
                    let product = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                    let rows = weight.chunks_exact(n).zip(bias).zip(y);
                    rest.extend(rows.map(|((row, bias), y)| y - bias - product(row)));
                }
                let copies = (x.len() / n.max(1)) as f64;
                let sizes = length(weight) * length(x) + length(y) + copies.sqrt() * length(bias);
                constants.inverse * (length(&rest) + (n + 4) as f64 * f64::EPSILON * sizes)
            }
            Self::Logit { alpha } => {
                let slope = 1.0 - 2.0 * alpha;
                let off = x.iter().zip(y).map(|(x, y)| {
                    let s = 1.0 / (1.0 + (-y).exp());
                    (((s - alpha) / slope - x).abs() + FEW / slope * (1.0 + y.abs().min(40.0) + x.abs())).powi(2)
                });
                off.sum::<f64>().sqrt()
            }
            Self::Permutation => 0.0,
        };
        // the few operations of the bound itself
        let found = found * (1.0 + 1e-9);
        if found.is_nan() { f64::INFINITY } else { found }
    }
}
