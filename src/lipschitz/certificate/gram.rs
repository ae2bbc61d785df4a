//! ‖W‖₂ of a matrix from above, by Gram iteration (Delattre et al. 2023, arXiv 2305.16173): ‖A‖₂ ≤ ‖A^{2ᵗ}‖_F^{2⁻ᵗ}.
//!
//! With A₁ = fl(WWᵀ) and Aₖ₊₁ = fl(Bₖ²), Bₖ being Aₖ without a power of two, Aₖ = 2^{eₖ} Bₖ. Each square is off by E with
//! ‖E‖_F ≤ γ_n ‖Bₖ‖_F², so
//!
//! ‖Bₖ‖₂² = ‖Bₖ²‖₂ ≤ 2^{eₖ₊₁} ‖Bₖ₊₁‖₂ + γ_n ‖Bₖ‖_F²,
//!
//! and the last ‖B‖₂ ≤ ‖B‖_F. The inequalities are followed back from the last to the first, each operation rounded upwards: so the
//! result is a bound on ‖W‖₂ of the matrix as it is stored, rounding included, and nothing is assumed of the numbers that were
//! computed but that they are symmetric. It is above ‖W‖₂ by at most n^{1/(4·2ᵗ)} and rounding, for t squares. A few power iterations
//! with the last square find the first singular vector, and a [factor](super::cholesky) just above its Rayleigh quotient makes the bound sharp.

use super::cholesky::sharpened;
use super::rounding::{Pulled, add, dot, gamma, mul, pull, root, scaled, square_sum};

/// The squares end when one of them lowers the bound on ‖A‖₂ by less than this part of it: what those to come would lower it
/// by is no more. The bound on ‖W‖₂ is its root.
const IMPROVEMENT: f64 = 1e-4;
/// The most squares.
const SQUARES: usize = 40;

/// Bounds ‖W‖₂ of a matrix `[rows, columns]` from above: never below it, rounding included, and above it by some 10⁻¹⁰ and n²ε of it, n being
/// the shorter side; where several singular values nearly agree by up to 10⁻⁴. 0 of zeros, infinite of numbers that are not finite.
///
/// # Panics
/// If there are not as many numbers.
#[track_caller]
pub fn spectral_norm_bound(rows: usize, columns: usize, w: &[f64]) -> f64 {
    assert_eq!(w.len(), rows * columns, "{} numbers of a matrix [{rows}, {columns}]", w.len());
    let (m, e) = match pull(w) {
        Pulled::Zero => return 0.0,
        Pulled::NotFinite => return f64::INFINITY,
        Pulled::Numbers(m, e) => (m, e),
    };
    // products of the shorter side
    let (n, terms, m) =
        if rows <= columns { (rows, columns, m) } else { (columns, rows, transposed(rows, columns, &m)) };
    let slack = add(mul(gamma(terms), square_sum(&m)), f64::MIN_POSITIVE);
    let square = add(eigenvalue_bound(n, &products(n, &m)), slack);
    scaled(root(square), e).next_up()
}

/// The transpose of a matrix `[rows, columns]`.
fn transposed(rows: usize, columns: usize, m: &[f64]) -> Vec<f64> {
    (0..rows * columns).map(|at| m[at % rows * columns + at / rows]).collect()
}

/// M Mᵀ of a matrix with n rows, exactly symmetric.
fn products(n: usize, m: &[f64]) -> Vec<f64> {
    let width = m.len() / n.max(1);
    let row = |i: usize| &m[i * width..(i + 1) * width];
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let product = dot(row(i), row(j));
            (out[i * n + j], out[j * n + i]) = (product, product);
        }
    }
    out
}

/// Bounds the largest eigenvalue of a matrix `[n, n]`, exactly symmetric and with numbers around 1, from above.
pub(super) fn eigenvalue_bound(n: usize, a: &[f64]) -> f64 {
    let (bound, last) = squared(n, a, 0.0);
    if bound > 0.0 && bound.is_finite() { sharpened(n, a, bound, &last) } else { bound }
}

/// Bounds ‖A‖₂ of a matrix `[n, n]` that is exactly symmetric from above. Whether it is below `enough` is all that is wanted: once the
/// bound is, it is good enough.
pub(super) fn symmetric_norm_bound(n: usize, a: &[f64], enough: f64) -> f64 {
    squared(n, a, enough).0
}

/// A bound on ‖A‖₂, and the last power that was computed, without a power of two.
fn squared(n: usize, a: &[f64], enough: f64) -> (f64, Vec<f64>) {
    let (mut b, first) = match pull(a) {
        Pulled::Zero => return (0.0, a.to_vec()),
        Pulled::NotFinite => return (f64::INFINITY, a.to_vec()),
        Pulled::Numbers(b, e) => (b, e),
    };
    // of each square: the exponent that was pulled out of it, and what it may be off by
    let mut steps: Vec<(i32, f64)> = Vec::new();
    let mut last = f64::INFINITY;
    loop {
        let square = square_sum(&b);
        let bound = steps.iter().rev().fold(root(square), |b, &(e, slack)| root(add(scaled(b, e), slack)));
        let bound = scaled(bound, first).next_up();
        if bound <= enough || last - bound <= IMPROVEMENT * bound || steps.len() == SQUARES {
            return (bound.min(last), b);
        }
        last = bound;
        let slack = add(mul(gamma(n), square), f64::MIN_POSITIVE);
        match pull(&products(n, &b)) {
            // the square of what is not zero: everything underflowed, and the slack says so
            Pulled::Zero | Pulled::NotFinite => return (bound, b),
            Pulled::Numbers(next, e) => {
                steps.push((e, slack));
                b = next;
            }
        }
    }
}
