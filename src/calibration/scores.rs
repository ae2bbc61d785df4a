//! The continuous ranked probability score (CRPS) of a prediction, a distribution, against what came true,
//!
//! ```text
//! CRPS(F, y) = ∫ (F(x) − 1{x ≥ y})² dx = E|X − y| − ½ E|X − X′| ,   X, X′ ~ F independent,
//! ```
//!
//! in the units of y, less is better, and proper: the least expected score is that of the distribution of y (Gneiting &
//! Raftery 2007, J. Amer. Statist. Assoc. 102).

use crate::error::Error;

/// The CRPS of draws of a prediction, without bias for any number of them: the second expectation is that over pairs of
/// different draws (Ferro 2014, Q. J. R. Meteorol. Soc. 140), so it may come out below zero.
///
/// # Errors
/// Returns [`Error::Input`] for fewer than two draws, or numbers that are not finite.
pub fn crps_of_draws(draws: &[f64], truth: f64) -> Result<f64, Error> {
    if draws.len() < 2 {
        return Err(Error::Input(format!("a CRPS needs at least two draws, not {}", draws.len())));
    }
    let sorted = sorted(draws, truth)?;
    let n = sorted.len() as f64;
    let to_truth = sorted.iter().map(|x| (x - truth).abs()).sum::<f64>() / n;
    // Σ over pairs of |x_i − x_j| = 2 Σ (2 i − n + 1) x_(i), i from 0; sums from the middle keep far draws from cancelling
    let centre = sorted[sorted.len() / 2];
    let pairs = sorted.iter().enumerate().map(|(i, x)| (2.0 * i as f64 - n + 1.0) * (x - centre)).sum::<f64>();
    Ok(to_truth - pairs / (n * (n - 1.0)))
}

/// The CRPS of a prediction whose quantiles at the levels (k − ½)/K are given, k from 1 to K: the mean of the quantiles'
/// pinball losses, twice, which is the integral over all levels by the midpoint rule.
///
/// # Errors
/// Returns [`Error::Input`] if there is no quantile, one falls behind the one before it, or a number is not finite.
pub fn crps_of_quantiles(quantiles: &[f64], truth: f64) -> Result<f64, Error> {
    if quantiles.is_empty() {
        return Err(Error::Input("a CRPS needs at least one quantile".into()));
    }
    if sorted(quantiles, truth)? != quantiles {
        return Err(Error::Input("the quantiles of a prediction rise with their levels, these do not".into()));
    }
    let count = quantiles.len() as f64;
    let loss = |(k, q): (usize, &f64)| {
        let level = (k as f64 + 0.5) / count;
        let below = if truth <= *q { 1.0 } else { 0.0 };
        (below - level) * (q - truth)
    };
    Ok(2.0 * quantiles.iter().enumerate().map(loss).sum::<f64>() / count)
}

fn sorted(values: &[f64], truth: f64) -> Result<Vec<f64>, Error> {
    if let Some(wrong) = values.iter().chain([&truth]).find(|v| !v.is_finite()) {
        return Err(Error::Input(format!("a CRPS is of finite numbers, not of {wrong}")));
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use resflow_backend::{Key, Noise};

    use super::*;

    /// Of N(0, 1) at y = 0.7 the score is y (2Φ(y) − 1) + 2φ(y) − 1/√π = 0.421274. Seeded draws, four errors.
    #[test]
    fn of_a_normal() {
        let exact = 0.421_274_3;
        let mut draws = vec![0.0; 40_000];
        Noise::Normal.fill(Key::new(4), 0, &mut draws);
        let found = crps_of_draws(&draws, 0.7).expect("draws");
        assert!((found - exact).abs() < 4.0 * 0.9 / 200.0, "{found}");
        // a uniform distribution on [0, 1]: ∫ over x of (x − 1{x ≥ y})² = (y³ + (1 − y)³)/3
        let quantiles: Vec<f64> = (0..1000).map(|k| (f64::from(k) + 0.5) / 1000.0).collect();
        for y in [0.0_f64, 0.3, 1.0] {
            let exact = (y.powi(3) + (1.0 - y).powi(3)) / 3.0;
            assert!((crps_of_quantiles(&quantiles, y).expect("quantiles") - exact).abs() < 1e-6, "{y}");
        }
    }

    /// Both are the double sum.
    #[test]
    fn of_few_draws() {
        let draws = [3.0, -1.0, 2.5, 2.5];
        let mut pairs = 0.0;
        for a in draws {
            for b in draws {
                pairs += f64::abs(a - b) / 12.0;
            }
        }
        let to_truth = draws.map(|x| f64::abs(x - 1.0)).iter().sum::<f64>() / 4.0;
        assert!((crps_of_draws(&draws, 1.0).expect("draws") - (to_truth - pairs / 2.0)).abs() < 1e-12);
        let far = draws.map(|x| x + 1e9);
        assert!((crps_of_draws(&far, 1e9 + 1.0).expect("draws") - (to_truth - pairs / 2.0)).abs() < 1e-6);
        assert_eq!(crps_of_quantiles(&[2.0], 5.0).expect("one quantile"), 3.0);
    }

    #[test]
    fn mistakes() {
        assert!(crps_of_draws(&[1.0], 0.0).is_err() && crps_of_draws(&[1.0, f64::NAN], 0.0).is_err());
        assert!(crps_of_draws(&[1.0, 2.0], f64::INFINITY).is_err());
        assert!(crps_of_quantiles(&[], 0.0).is_err() && crps_of_quantiles(&[2.0, 1.0], 0.0).is_err());
    }
}
