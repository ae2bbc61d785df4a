//! ‖W⁻¹‖₂ of a square matrix from above: with any V near the inverse and ‖I − VW‖ ≤ ε < 1, ‖W⁻¹‖₂ ≤ ‖V‖₂/(1 − ε), since
//! W⁻¹ = (I − (I − VW))⁻¹ V.

use super::gram::spectral_norm_bound;
use super::rounding::{Pulled, add, dot, gamma, mul, pull, root, scaled, square_sum};

/// Bounds ‖W⁻¹‖₂ of a matrix `[n, n]` from above: never below it, rounding included. Infinite of a matrix that is singular to double
/// precision, or not finite.
///
/// # Panics
/// If there are not as many numbers.
#[track_caller]
pub fn inverse_norm_bound(n: usize, w: &[f64]) -> f64 {
    assert_eq!(w.len(), n * n, "{} numbers of a matrix [{n}, {n}]", w.len());
    if n == 0 {
        return 0.0;
    }
    let Pulled::Numbers(w, e) = pull(w) else { return f64::INFINITY };
    let Some(v) = invert(n, &w) else { return f64::INFINITY };
    let columns: Vec<f64> = (0..n * n).map(|at| w[at % n * n + at / n]).collect();
    let mut rest = 0.0_f64;
    for (i, row) in v.chunks_exact(n).enumerate() {
        for (j, column) in columns.chunks_exact(n).enumerate() {
            rest += (f64::from(u8::from(i == j)) - dot(row, column)).powi(2);
        }
    }
    let Pulled::Numbers(pulled, v_exponent) = pull(&v) else { return f64::INFINITY };
    let sizes = scaled(mul(root(square_sum(&pulled)), root(square_sum(&w))), v_exponent).next_up();
    let computed = root(mul(rest, 1.0 + 2.0 * gamma(n * n + 2)));
    let off = add(computed, mul(gamma(n + 2), add(sizes, n as f64)));
    // false for what is not a number
    if off < 1.0 {
        scaled(mul(spectral_norm_bound(n, n, &v), (1.0 / (1.0 - off)).next_up()), -e).next_up()
    } else {
        f64::INFINITY
    }
}

/// The inverse by Gauss and Jordan with partial pivoting.
pub(crate) fn invert(n: usize, w: &[f64]) -> Option<Vec<f64>> {
    let width = 2 * n;
    let mut rows: Vec<f64> = Vec::with_capacity(n * width);
    for (i, row) in w.chunks_exact(n).enumerate() {
        rows.extend(row);
        rows.extend((0..n).map(|j| f64::from(u8::from(i == j))));
    }
    for k in 0..n {
        let pivot = (k..n).max_by(|&a, &b| rows[a * width + k].abs().total_cmp(&rows[b * width + k].abs()))?;
        if pivot != k {
            for j in 0..width {
                rows.swap(k * width + j, pivot * width + j);
            }
        }
        let divisor = rows[k * width + k];
        if divisor == 0.0 {
            return None;
        }
        let own: Vec<f64> = rows[k * width..(k + 1) * width].iter().map(|x| x / divisor).collect();
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            if i == k {
                row.copy_from_slice(&own);
                continue;
            }
            let factor = row[k];
            row.iter_mut().zip(&own).for_each(|(x, own)| *x -= factor * own);
        }
    }
    Some(rows.chunks_exact(width).flat_map(|row| row[n..].to_vec()).collect())
}
