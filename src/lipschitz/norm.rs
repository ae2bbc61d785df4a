//! ‖x‖_p on the device: its value, its dual vectors and its derivative in p.
//!
//! The dual vector of x in the p-norm is the u with ‖u‖_{p*} = 1 and ⟨u, x⟩ = ‖x‖_p, 1/p + 1/p* = 1:
//!
//! | p | u |
//! |---|---|
//! | 1 | sign(x) |
//! | 2 | x/‖x‖₂ |
//! | ∞ | ± the unit vector of the largest \|xᵢ\| |
//! | else | sign(x)·\|x\|^{p−1}/‖x‖_p^{p−1} |
//!
//! Powers are taken of rᵢ = |xᵢ|/max|x| ∈ [0, 1] as e^{t ln r}, so nothing overflows and at least one power is 1; 0^t
//! is set to 0 without ln 0. A vector that is zero or not finite has no dual vector: the caller's old one is kept.

use resflow_backend::{Backend, Binary, Element as _, Key, Noise, Over, Reduce, Unary, composed};

use super::Order;
use super::order::{CENTRE, LEAK, STEEPEST};
use crate::error::ConfigError;

/// A norm of vectors of any shape, with its order on the device.
#[derive(Debug, Clone)]
pub enum Norm<B: Backend> {
    /// Σ|xᵢ|.
    One,
    /// The Euclidean norm, of entries whose squares the precision can hold.
    Two,
    /// max|xᵢ|.
    Infinity,
    /// (Σ|xᵢ|^p)^{1/p}.
    Power {
        /// p − 1 > 0, `[1]`.
        minus_one: B::Tensor,
        /// dp/da of a learned order, `[1]`.
        slope: Option<B::Tensor>,
    },
}

/// |x| brought to [0, 1], and the largest |xᵢ| `[1]`.
struct Ratios<B: Backend> {
    ratio: B::Tensor,
    largest: B::Tensor,
}

impl<B: Backend> Ratios<B> {
    fn new(backend: &B, x: &B::Tensor) -> Self {
        let size = backend.unary(Unary::Abs, x.clone());
        let largest = backend.reduce(Reduce::Max, Over::All, &size);
        let divisor = at_least_tiny(backend, largest.clone());
        Self { ratio: backend.binary(Binary::Div, size, &divisor), largest }
    }

    /// ln r, finite where r is 0.
    fn ln(&self, backend: &B) -> B::Tensor {
        backend.unary(Unary::Ln, at_least_tiny(backend, self.ratio.clone()))
    }

    /// r^t for t > 0, `[1]`.
    fn power(&self, backend: &B, ln: B::Tensor, t: &B::Tensor) -> B::Tensor {
        let positive = backend.binary(Binary::Less, zeros_like(backend, &self.ratio), &self.ratio);
        backend.binary(Binary::Mul, backend.unary(Unary::Exp, backend.binary(Binary::Mul, ln, t)), &positive)
    }
}

/// max(x, the smallest normal number), before a logarithm or a division.
fn at_least_tiny<B: Backend>(backend: &B, x: B::Tensor) -> B::Tensor {
    backend.binary(Binary::Max, x, &backend.full(B::Elem::TINY, [1].into()))
}

fn zeros_like<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    backend.full(0.0, backend.shape(x))
}

/// −1, 0 or 1.
fn sign<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let negative = backend.binary(Binary::Less, x.clone(), &backend.full(0.0, [1].into()));
    let positive = backend.binary(Binary::Less, zeros_like(backend, x), x);
    backend.binary(Binary::Sub, positive, &negative)
}

/// 1 at one largest entry of `ratio`, whose largest entry is 1, else 0. Among equals a fixed draw decides: their mean
/// would be a dual vector too, but power iterations can stand still at it below the norm.
fn one_hot<B: Backend>(backend: &B, ratio: &B::Tensor) -> B::Tensor {
    let among = |score: B::Tensor| {
        let best = backend.reduce(Reduce::Max, Over::All, &score);
        let best = backend.binary(Binary::Add, zeros_like(backend, &score), &best);
        backend.binary(Binary::LessEqual, best, &score)
    };
    let largest = among(ratio.clone());
    // from (0, 1) to (1, 2), so that every entry that is among the largest beats every other
    let draw = backend.noise(Key::new(0), Noise::Uniform, 0, backend.shape(ratio));
    let one = among(backend.binary(Binary::Mul, backend.affine(draw, 1.0, 1.0), &largest));
    // two equal draws share
    let count = backend.reduce(Reduce::Sum, Over::All, &one);
    backend.binary(Binary::Div, one, &count)
}

impl<B: Backend> Norm<B> {
    /// Builds the norm of an order; `raw` is the parameter a, `[1]`, of a learned one.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if a learned order comes without its parameter or with one of another
    /// shape, or a fixed one with a parameter.
    pub fn new(backend: &B, order: Order, raw: Option<&B::Tensor>) -> Result<Self, ConfigError> {
        match (order, raw) {
            (Order::One, None) => Ok(Self::One),
            (Order::Two, None) => Ok(Self::Two),
            (Order::Infinity, None) => Ok(Self::Infinity),
            (Order::Fixed(p), None) => {
                Ok(Self::Power { minus_one: backend.full(p.get() - 1.0, [1].into()), slope: None })
            }
            (Order::Learned(_), Some(raw)) if backend.shape(raw)[..] == [1] => Ok(Self::learned(backend, raw)),
            (Order::Learned(_), Some(raw)) => Err(ConfigError::Inconsistent(format!(
                "the parameter of the {order} has shape {}: expected [1]",
                backend.shape(raw)
            ))),
            (Order::Learned(_), None) => Err(ConfigError::Inconsistent(format!("the {order} has no parameter"))),
            (_, Some(_)) => Err(ConfigError::Inconsistent(format!("the {order} is fixed and has no parameter"))),
        }
    }

    /// Builds the norm of the raw parameter a, `[1]`. At the clamp the derivative goes on as the unclamped function's
    /// would, about 1e−4, so that an order which was driven there can come back.
    fn learned(backend: &B, raw: &B::Tensor) -> Self {
        let [zero, top, bottom] = [0.0, STEEPEST, -STEEPEST].map(|x| backend.full(x, [1].into()));
        let t = backend.affine(raw.clone(), -1.0, CENTRE);
        let below = backend.binary(Binary::Min, t.clone(), &zero);
        let linear = backend.axpy(LEAK / (1.0 - LEAK), &t, backend.binary(Binary::Max, t.clone(), &zero));
        let elu = backend.axpy(1.0, &backend.unary(Unary::ExpM1, below.clone()), linear);
        let s = backend.binary(Binary::Min, backend.affine(elu, 1.0 - LEAK, 0.0), &top);
        let s = backend.binary(Binary::Max, s, &bottom);
        let growth = backend.unary(Unary::Exp, backend.affine(s, 2.0, 0.0));
        let minus_one = backend.affine(backend.unary(Unary::Reciprocal, backend.affine(growth, 1.0, 1.0)), 4.0, 0.0);
        // dp/ds of 3 − 2·tanh s is −(p − 1)(5 − p)/2, and ds/da = −(0.3 + 0.7·e^{min(t, 0)})
        let leaky = backend.affine(backend.unary(Unary::Exp, below), 1.0 - LEAK, LEAK);
        let steep = backend.binary(Binary::Mul, minus_one.clone(), &backend.affine(minus_one.clone(), -0.5, 2.0));
        let slope = Some(backend.binary(Binary::Mul, steep, &leaky));
        Self::Power { minus_one, slope }
    }

    /// Returns the norm of the dual space, of order p* = p/(p − 1).
    pub fn dual(&self, backend: &B) -> Self {
        match self {
            Self::One => Self::Infinity,
            Self::Two => Self::Two,
            Self::Infinity => Self::One,
            // p* − 1 = 1/(p − 1)
            Self::Power { minus_one, .. } => {
                Self::Power { minus_one: backend.unary(Unary::Reciprocal, minus_one.clone()), slope: None }
            }
        }
    }

    /// Returns p, `[1]`.
    pub fn order(&self, backend: &B) -> B::Tensor {
        let full = |p| backend.full(p, [1].into());
        match self {
            Self::One => full(1.0),
            Self::Two => full(2.0),
            Self::Infinity => full(f64::INFINITY),
            Self::Power { minus_one, .. } => backend.affine(minus_one.clone(), 1.0, 1.0),
        }
    }

    /// Returns dp/da, `[1]`, of a learned order.
    pub fn slope(&self) -> Option<&B::Tensor> {
        match self {
            Self::Power { slope, .. } => slope.as_ref(),
            _ => None,
        }
    }

    /// Computes ‖x‖, `[1]`.
    pub fn norm(&self, backend: &B, x: &B::Tensor) -> B::Tensor {
        match self {
            Self::One => backend.reduce(Reduce::Sum, Over::All, &backend.unary(Unary::Abs, x.clone())),
            Self::Two => backend.unary(Unary::Sqrt, backend.dot(x, x)),
            Self::Infinity => backend.reduce(Reduce::Max, Over::All, &backend.unary(Unary::Abs, x.clone())),
            Self::Power { .. } => {
                let ratios = Ratios::new(backend, x);
                let p = self.order(backend);
                let sum = backend.reduce(Reduce::Sum, Over::All, &ratios.power(backend, ratios.ln(backend), &p));
                let ln = backend.unary(Unary::Ln, at_least_tiny(backend, sum));
                let root = backend.unary(Unary::Exp, backend.binary(Binary::Div, ln, &p));
                backend.binary(Binary::Mul, root, &ratios.largest)
            }
        }
    }

    /// Computes the dual vector of x, of its shape: ‖u‖_{p*} = 1 and ⟨u, x⟩ = ‖x‖_p. `old` if x is zero or not finite.
    pub fn dual_vector(&self, backend: &B, x: &B::Tensor, old: &B::Tensor) -> B::Tensor {
        let (vector, size) = match self {
            Self::Two => return composed::unit_or(backend, x.clone(), old),
            Self::One => (sign(backend, x), Self::Infinity.norm(backend, x)),
            Self::Infinity => {
                let ratios = Ratios::new(backend, x);
                let hot = one_hot(backend, &ratios.ratio);
                (backend.binary(Binary::Mul, hot, &sign(backend, x)), ratios.largest)
            }
            Self::Power { minus_one, .. } => {
                let ratios = Ratios::new(backend, x);
                let power = ratios.power(backend, ratios.ln(backend), minus_one);
                // (Σ r^p)^{(p−1)/p}, where r^p = r^{p−1}·r and the sum is at least 1
                let ln = backend.unary(Unary::Ln, at_least_tiny(backend, backend.dot(&power, &ratios.ratio)));
                let share = backend.binary(Binary::Div, minus_one.clone(), &self.order(backend));
                let divisor = backend.unary(Unary::Exp, backend.binary(Binary::Mul, ln, &share));
                let size = backend.binary(Binary::Div, power, &divisor);
                (backend.binary(Binary::Mul, size, &sign(backend, x)), ratios.largest)
            }
        };
        let positive = backend.binary(Binary::Less, backend.full(0.0, [1].into()), &size);
        let usable = backend.binary(Binary::Mul, positive, &backend.unary(Unary::IsFinite, size));
        backend.select(&usable, &vector, old)
    }

    /// Computes x/‖x‖_{p*} in an order between, which may have moved since x had length 1; x itself in the others, and of zero.
    pub(super) fn dual_unit(&self, backend: &B, x: &B::Tensor) -> B::Tensor {
        let Self::Power { .. } = self else { return x.clone() };
        let norm = self.dual(backend).norm(backend, x);
        let positive = backend.binary(Binary::Less, backend.full(0.0, [1].into()), &norm);
        backend.select(&positive, &backend.binary(Binary::Div, x.clone(), &norm), x)
    }

    /// Computes ∂ ln‖x‖_p/∂p = (Σ wᵢ ln rᵢ − (1/p) ln Σ r^p)/p with wᵢ = rᵢ^p/Σ r^p, `[1]`, of an order between; x must
    /// not be zero.
    pub fn log_derivative(&self, backend: &B, x: &B::Tensor) -> Option<B::Tensor> {
        let Self::Power { .. } = self else { return None };
        let ratios = Ratios::new(backend, x);
        let p = self.order(backend);
        let ln = ratios.ln(backend);
        let power = ratios.power(backend, ln.clone(), &p);
        let sum = at_least_tiny(backend, backend.reduce(Reduce::Sum, Over::All, &power));
        let mean = backend.binary(Binary::Div, backend.dot(&power, &ln), &sum);
        let root = backend.binary(Binary::Div, backend.unary(Unary::Ln, sum), &p);
        Some(backend.binary(Binary::Div, backend.binary(Binary::Sub, mean, &root), &p))
    }
}
