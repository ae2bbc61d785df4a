//! Kolmogorov's and Smirnov's test that numbers are uniform on [0, 1]: the largest distance
//!
//! ```text
//! D = sup_u |F_n(u) − u|
//! ```
//!
//! between their distribution function and that of the uniform distribution.

use crate::error::Error;

/// How far numbers are from uniform on [0, 1], and how often chance takes them as far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Uniformity {
    /// D, the largest distance between the two distribution functions, from 0 to 1.
    pub distance: f64,
    /// The chance of such a distance or a larger one among as many independent uniform numbers.
    pub p_value: f64,
}

impl Uniformity {
    /// Tests numbers, in any order.
    ///
    /// The p-value is [`kolmogorov_p_value`]'s.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if there is no number, or one that is not within [0, 1].
    pub fn of(values: &[f64]) -> Result<Self, Error> {
        if values.is_empty() {
            return Err(Error::Input("a test of uniformity needs at least one number".into()));
        }
        if let Some(wrong) = values.iter().find(|u| !(0.0..=1.0).contains(*u)) {
            return Err(Error::Input(format!("a test of uniformity takes numbers from 0 to 1, not {wrong}")));
        }
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let n = sorted.len() as f64;
        let gap = |(i, u): (usize, &f64)| (u - i as f64 / n).max((i + 1) as f64 / n - u);
        let distance = sorted.iter().enumerate().map(gap).fold(0.0, f64::max);
        Ok(Self { distance, p_value: kolmogorov_p_value(distance, n) })
    }
}

/// Half the width of the band around u in which a distribution function of n uniform numbers stays, all of it, with so much
/// confidence.
///
/// # Errors
/// Returns [`Error::Input`] if the confidence is not between 0 and 1 or there is no number.
pub fn uniform_band(count: usize, confidence: f64) -> Result<f64, Error> {
    if count == 0 || !(confidence > 0.0 && confidence < 1.0) {
        return Err(Error::Input(format!(
            "a band needs numbers and a confidence between 0 and 1, not {count} numbers and {confidence}"
        )));
    }
    let n = count as f64;
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if kolmogorov_p_value(middle, n) > 1.0 - confidence { low = middle } else { high = middle }
    }
    Ok(high)
}

/// The chance that the distribution function of n independent numbers is as far from the true one as `distance`, or, for n =
/// n₁ n₂/(n₁ + n₂), those of two samples of n₁ and n₂ numbers from each other: the limit for many, with Stephens' correction for few
/// (1970, J. R. Statist. Soc. B 32).
pub fn kolmogorov_p_value(distance: f64, n: f64) -> f64 {
    let root = n.sqrt();
    let x = (root + 0.12 + 0.11 / root) * distance;
    // the alternating series converges slowly where its sum is 1 to nine digits
    if x < 0.3 {
        return 1.0;
    }
    let term = |k: i32| {
        let sign = if k % 2 == 1 { 2.0 } else { -2.0 };
        sign * (-2.0 * f64::from(k * k) * x * x).exp()
    };
    (1..=100).map(term).sum::<f64>().clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The critical values of D at 5 % (Miller 1956, J. Amer. Statist. Assoc. 51).
    #[test]
    fn tabulated_values() {
        for (n, critical) in [(10, 0.40925), (20, 0.29408), (30, 0.24170)] {
            let found = uniform_band(n, 0.95).expect("a band");
            assert!((found - critical).abs() < 0.001, "{n}: {found}");
        }
        let half = Uniformity::of(&[0.5]).expect("a number");
        assert_eq!(half.distance, 0.5);
        assert!(half.p_value > 0.8, "{half:?}");
        let grid: Vec<f64> = (0..100).map(|i| (f64::from(i) + 0.5) / 100.0).collect();
        let found = Uniformity::of(&grid).expect("numbers");
        assert!((found.distance - 0.005).abs() < 1e-12 && found.p_value == 1.0);
        assert!(Uniformity::of(&[0.01; 50]).expect("numbers").p_value < 1e-9);
    }

    #[test]
    fn mistakes() {
        assert!(Uniformity::of(&[]).is_err());
        assert!(Uniformity::of(&[0.1, f64::NAN]).is_err());
        assert!(Uniformity::of(&[1.0 + 1e-9]).is_err());
        assert!(uniform_band(0, 0.9).is_err() && uniform_band(5, 1.0).is_err() && uniform_band(5, f64::NAN).is_err());
    }
}
