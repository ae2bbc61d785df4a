//! Activations with Lipschitz constant at most 1, and their first two derivatives.
//!
//! The log det of a residual flow depends on φ', its gradient on φ'', so one formula gives all three
//! ([`Activation::derivatives`]): a derivative that is not the derivative of its forward biases every log det silently.
//! Sources: LipSwish, Chen et al. 2019 (arXiv 1906.02735) §3.3; the cube, its Appendix; the sine, Perugachi-Diaz et al.
//! 2021 (arXiv 2102.02694) §4; the piecewise linear-cubic-exponential Pila, Ahn et al. 2022 (arXiv 2210.08176).

use crate::{Element, Unary};

/// sup of d/dx xσ(x) is 1.09984; LipSwish divides by this.
pub const LIPSWISH_SCALE: f64 = 1.1;

/// An elementwise function φ with |φ'| ≤ 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x σ(b x) / 1.1 with a learnable b > 0, the activation's parameter.
    LipSwish,
    /// x for x > 0, eˣ − 1 below.
    Elu,
    /// ln(1 + eˣ).
    Softplus,
    /// The hyperbolic tangent.
    Tanh,
    /// max(x, 0); its second derivative vanishes, so the log det's gradient does (for comparison).
    Relu,
    /// x³/3 inside [−1, 1], x ∓ 2/3 outside.
    LipschitzCube,
    /// sin(2πx)/(2π).
    Sin,
    /// x for x > 0, (12.5x³ − 5x² + x)·e^{5x} below: twice continuously differentiable, its slope vanishes far below 0.
    Pila,
}

impl Activation {
    /// All activations, for tests that walk them.
    pub const ALL: [Self; 8] =
        [Self::LipSwish, Self::Elu, Self::Softplus, Self::Tanh, Self::Relu, Self::LipschitzCube, Self::Sin, Self::Pila];

    /// Returns `true` if the activation has a learnable parameter b.
    pub fn has_parameter(self) -> bool {
        self == Self::LipSwish
    }

    /// Computes [φ(x), φ'(x), φ''(x)]; `b` is used by LipSwish alone. At kinks: ELU φ''(0) = 0, ReLU φ'(0) = 0, cube
    /// φ''(±1) = 0.
    #[inline(always)]
    pub fn derivatives<E: Element>(self, x: E, b: E) -> [E; 3] {
        self.derivatives_by(Unary::apply, x, b)
    }

    /// Computes them by the caller's own `Exp`, `ExpM1`, `Ln1p` and `Tanh`. The exponential may become constant below
    /// −87 and above 87, and ln(1 + x) is only taken of x in [0, 1].
    #[inline(always)]
    pub fn derivatives_by<E: Element>(self, apply: impl Fn(Unary, E) -> E, x: E, b: E) -> [E; 3] {
        let c = E::from_f64;
        match self {
            Self::LipSwish => {
                let scale = c(1.0 / LIPSWISH_SCALE);
                let t = b * x;
                let s = E::ONE / (E::ONE + apply(Unary::Exp, -t));
                let q = E::ONE - s;
                let tq = t * q;
                [x * s * scale, s * (E::ONE + tq) * scale, b * s * q * (c(2.0) + tq - t * s) * scale]
            }
            Self::Elu => {
                let e = if x < E::ZERO { apply(Unary::Exp, x) } else { E::ONE };
                let y = if x > E::ZERO { x } else { apply(Unary::ExpM1, x) };
                [y, e, if x < E::ZERO { e } else { E::ZERO }]
            }
            Self::Softplus => {
                let e = apply(Unary::Exp, -x.abs());
                let s = if x < E::ZERO { e } else { E::ONE } / (E::ONE + e);
                let t = if x < E::ZERO { E::ONE } else { e } / (E::ONE + e);
                [if x > E::ZERO { x } else { E::ZERO } + apply(Unary::Ln1p, e), s, s * t]
            }
            Self::Tanh => {
                let t = apply(Unary::Tanh, x);
                let d = E::ONE - t * t;
                [t, d, c(-2.0) * t * d]
            }
            Self::Relu => {
                let on = x > E::ZERO;
                [if on { x } else { E::ZERO }, if on { E::ONE } else { E::ZERO }, E::ZERO]
            }
            Self::LipschitzCube => {
                if x.abs() < E::ONE {
                    [x * x * x / c(3.0), x * x, c(2.0) * x]
                } else {
                    [x - if x > E::ZERO { c(2.0 / 3.0) } else { c(-2.0 / 3.0) }, E::ONE, E::ZERO]
                }
            }
            Self::Sin => {
                let two_pi = c(std::f64::consts::TAU);
                let t = two_pi * x;
                [t.sin() / two_pi, t.cos(), -two_pi * t.sin()]
            }
            Self::Pila => {
                let above = x > E::ZERO;
                let least = c(pila_least::<E>());
                let v = if above { E::ZERO } else { x };
                let v = if v < least { least } else { v };
                // e^{5v} in two factors, between which the polynomial is: neither leaves the range of the exponential
                let half = apply(Unary::Exp, c(2.5) * v);
                let square = v * v;
                let below = |polynomial: E| polynomial * half * half;
                let y = below(v * (c(12.5) * square - c(5.0) * v + E::ONE));
                let d1 = below((c(62.5) * v + c(12.5)) * square - c(5.0) * v + E::ONE);
                let d2 = below(c(62.5) * square * (c(5.0) * v + c(4.0)));
                if above { [x, E::ONE, E::ZERO] } else { [y, d1, d2] }
            }
        }
    }

    /// Computes [∂φ/∂b, ∂φ'/∂b] from x and the derivatives: (xφ' − φ)/b and xφ''/b. Zero without a parameter.
    #[inline(always)]
    pub fn parameter_derivatives<E: Element>(self, x: E, b: E, [y, d1, d2]: [E; 3]) -> [E; 2] {
        if self.has_parameter() { [(x * d1 - y) / b, x * d2 / b] } else { [E::ZERO; 2] }
    }
}

/// Where Pila and its derivatives are zero in the numbers of a type, but e^{2.5x} is not yet subnormal.
pub(crate) const fn pila_least<E: Element>() -> f64 {
    if E::TINY < 1e-100 { -280.0 } else { -34.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finite_everywhere_and_lipschitz() {
        let b = 0.974_076_984_180_107_f64;
        for f in Activation::ALL {
            for x in [0.0, -0.0, 1e-8, -1e-8, 0.3, -0.3, 1.0, -1.0, 2.5, 80.0, -80.0, 1e4, -1e4, 1e30, -1e30] {
                for (d, v) in f.derivatives(x, b).into_iter().enumerate() {
                    assert!(v.is_finite(), "{f:?} derivative {d} at {x} is {v}");
                }
                for (d, v) in f.derivatives(x as f32, b as f32).into_iter().enumerate() {
                    assert!(v.is_finite(), "{f:?} f32 derivative {d} at {x} is {v}");
                }
                assert!(f.derivatives(x, b)[1].abs() <= 1.0, "{f:?} is steeper than 1 at {x}");
            }
        }
    }

    #[test]
    fn central_differences() {
        let (b, h) = (1.3_f64, 1e-5);
        for f in Activation::ALL {
            for x in [-2.7, -0.8, -0.31, 0.12, 0.77, 1.9] {
                let [_, d1, d2] = f.derivatives(x, b);
                let (up, down) = (f.derivatives(x + h, b), f.derivatives(x - h, b));
                assert!(((up[0] - down[0]) / (2.0 * h) - d1).abs() < 1e-9, "{f:?} φ' at {x}");
                assert!(((up[1] - down[1]) / (2.0 * h) - d2).abs() < 1e-8, "{f:?} φ'' at {x}");
                let (bu, bd) = (f.derivatives(x, b + h), f.derivatives(x, b - h));
                let [p0, p1] = f.parameter_derivatives(x, b, f.derivatives(x, b));
                assert!(((bu[0] - bd[0]) / (2.0 * h) - p0).abs() < 1e-9, "{f:?} ∂φ/∂b at {x}");
                assert!(((bu[1] - bd[1]) / (2.0 * h) - p1).abs() < 1e-8, "{f:?} ∂φ'/∂b at {x}");
            }
        }
    }
}
