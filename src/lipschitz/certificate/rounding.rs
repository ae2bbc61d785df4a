//! Numbers that are certainly not below what they stand for.
//!
//! A result of double precision is off by at most u = 2⁻⁵³ of itself, a sum of n products in any order by γ_n = n u/(1 − n u) of
//! the sum of their absolute values (Higham 2002, §3.1). Here n ε = 2 n u stands for γ_n, which is larger while n u < ½. A
//! power of two is pulled out of what comes in, so that nothing overflows and what underflows is below 2⁻¹⁰⁷⁴ for each
//! number beside a largest one of at least ½.

/// At least γ_n.
pub(super) fn gamma(n: usize) -> f64 {
    n as f64 * f64::EPSILON
}

/// A sum, not below the exact one.
pub(super) fn add(a: f64, b: f64) -> f64 {
    (a + b).next_up()
}

/// A product of numbers that are not negative, not below the exact one.
pub(super) fn mul(a: f64, b: f64) -> f64 {
    (a * b).next_up()
}

/// A root, not below the exact one.
pub(super) fn root(a: f64) -> f64 {
    a.sqrt().next_up()
}

/// x·2ᵉ for |e| up to 2000.
pub(super) fn scaled(x: f64, e: i32) -> f64 {
    let half = e / 2;
    x * 2.0_f64.powi(half) * 2.0_f64.powi(e - half)
}

/// The e with 2ᵉ⁻¹ ≤ x < 2ᵉ, of a positive finite number.
fn exponent(x: f64) -> i32 {
    let of_normal = |x: f64| ((x.to_bits() >> 52) & 0x7ff) as i32 - 1022;
    if x < f64::MIN_POSITIVE { of_normal(x * 2.0_f64.powi(64)) - 64 } else { of_normal(x) }
}

/// What a power of two leaves of some numbers.
pub(super) enum Pulled {
    /// They are all zero, or there are none.
    Zero,
    /// One of them is infinite or not a number.
    NotFinite,
    /// The numbers divided by 2ᵉ, the largest from ½ to 1, and e.
    Numbers(Vec<f64>, i32),
}

/// Pulls a power of two out of some numbers.
pub(super) fn pull(values: &[f64]) -> Pulled {
    if values.iter().any(|v| !v.is_finite()) {
        return Pulled::NotFinite;
    }
    let largest = values.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
    if largest == 0.0 {
        return Pulled::Zero;
    }
    let e = exponent(largest);
    Pulled::Numbers(values.iter().map(|&v| scaled(v, -e)).collect(), e)
}

/// Σ aₖ bₖ, off by at most γ_n Σ |aₖ bₖ|: the order does not matter for that.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// Not below Σ aₖ², of numbers out of which a power of two was pulled.
pub(super) fn square_sum(a: &[f64]) -> f64 {
    mul(dot(a, a), 1.0 + 2.0 * gamma(a.len() + 2))
}
