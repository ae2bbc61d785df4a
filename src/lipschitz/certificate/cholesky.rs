//! The largest eigenvalue of a symmetric matrix from above, by a Cholesky factor (Rump 2006, BIT 46, "Verification of positive
//! definiteness").
//!
//! If the factorisation of A' = fl(θI − A) runs to its end in double precision, LLᵀ = A' + Δ with |Δ| ≤ γ_{n+1} |L||Lᵀ| (Higham 2002,
//! Theorem 10.3, in any order of the sums). ‖|L||Lᵀ|‖₂ ≤ ‖L‖_F² = tr LLᵀ ≤ tr A'/(1 − γ_{n+1}), and only the diagonal of A' was rounded, by at
//! most u of what it is. LLᵀ has no negative eigenvalue, so
//!
//! λ_max(A) ≤ θ + (γ_{n+1}/(1 − γ_{n+1}) + u) tr A' ≤ θ + (n + 3) ε tr A'.
//!
//! One factor costs a third of a square, and some six are tried at most. With θ just above the eigenvalue the bound is sharp to 10⁻¹⁰ and n²ε,
//! where squares of the matrix end at 10⁻⁴.

use super::rounding::{add, dot, gamma, mul};

/// How far above the eigenvalue that is tried first, and how much farther each time that there is no factor.
const ABOVE: f64 = 1e-10;
const FARTHER: f64 = 16.0;
/// Power iterations with the power.
const ITERATIONS: usize = 16;

/// Bounds the largest eigenvalue of a matrix `[n, n]`, exactly symmetric and with numbers around 1, from above, sharper than `bound`
/// if it can. `power` is a high power of it but for a factor.
pub(super) fn sharpened(n: usize, a: &[f64], bound: f64, power: &[f64]) -> f64 {
    let diagonal = |i: usize| power[i * n + i];
    let Some(largest) = (0..n).max_by(|&i, &j| diagonal(i).total_cmp(&diagonal(j))) else { return bound };
    // the powers are symmetric: a row is a column
    let mut direction = power[largest * n..][..n].to_vec();
    for _ in 0..ITERATIONS {
        direction = image(power, &direction);
        let largest = direction.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
        for v in &mut direction {
            *v /= largest;
        }
    }
    // Rayleigh's quotient: not above the eigenvalue but for rounding
    let least = dot(&direction, &image(a, &direction)) / dot(&direction, &direction);
    let mut above = ABOVE;
    // false for what is not a number
    while least > 0.0 && least * (1.0 + above) < bound {
        if let Some(found) = eigenvalue_bound(n, a, least * (1.0 + above)) {
            return found.min(bound);
        }
        above *= FARTHER;
    }
    bound
}

/// A v.
fn image(a: &[f64], v: &[f64]) -> Vec<f64> {
    a.chunks_exact(v.len()).map(|row| dot(row, v)).collect()
}

/// θ and what rounding may hide, if θI − A has a Cholesky factor.
fn eigenvalue_bound(n: usize, a: &[f64], theta: f64) -> Option<f64> {
    let mut factor = vec![0.0; n * n];
    let mut trace = 0.0;
    for i in 0..n {
        let (above, row) = factor.split_at_mut(i * n);
        for j in 0..i {
            let other = &above[j * n..][..=j];
            row[j] = (-a[i * n + j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let diagonal = theta - a[i * n + i];
        let pivot = diagonal - dot(&row[..i], &row[..i]);
        // false for what is not a number
        if pivot > 0.0 {
            row[i] = pivot.sqrt();
            trace = add(trace, diagonal);
        } else {
            return None;
        }
    }
    // what underflows is far below the last part
    Some(add(add(theta, mul(gamma(n + 3), trace)), f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use resflow_backend::{Key, Noise};

    /// A number from ¼ to 4 in units of 2⁻⁵⁴, exactly.
    fn whole(x: f64) -> i128 {
        (x * 2.0_f64.powi(54)) as i128
    }

    /// Whether θI − A has no negative eigenvalue, of two rows, exactly.
    fn is_above(theta: f64, [a, b, c]: [f64; 3]) -> bool {
        let [theta, a, b, c] = [theta, a, b, c].map(whole);
        theta >= a && (theta - a) * (theta - c) >= b * b
    }

    /// Factors at θ some ulps around the eigenvalue: some run to their end though θ is below it, and what rounding may hide makes up for that.
    #[test]
    fn rounding_hides_no_more_than_is_added() {
        let mut noise = vec![0.0_f64; 8000];
        Noise::Normal.fill(Key::new(1), 0, &mut noise);
        let (mut factors, mut below) = (0, 0);
        for pair in noise.chunks_exact(2) {
            let [v, w] = [pair[0], pair[1]].map(|x| 0.5 + 0.5 * x.abs().fract());
            let a = [v * v, v * w, w * w];
            let eigenvalue = v * v + w * w;
            for ulps in -4..=4 {
                let theta = eigenvalue + f64::from(ulps) * f64::EPSILON;
                if let Some(bound) = eigenvalue_bound(2, &[a[0], a[1], a[1], a[2]], theta) {
                    factors += 1;
                    below += usize::from(!is_above(theta, a));
                    assert!(is_above(bound, a), "{bound} for {a:?}");
                }
            }
        }
        assert!(factors > 10_000 && below > 0, "{factors} factors, {below} of a θ that is below");
    }
}
