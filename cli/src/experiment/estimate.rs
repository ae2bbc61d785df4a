//! The mean of independent estimates, with Student's t interval.

use anyhow::Result;
use resflow::flow::LogProb;
use resflow::invert::Status;
use serde::{Deserialize, Serialize};

/// The confidence of all intervals.
pub(super) const CONFIDENCE: f64 = 0.95;

/// A mean and how well it is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Estimate {
    pub(super) mean: f64,
    pub(super) standard_error: f64,
    /// The number of independent values.
    pub(super) count: usize,
}

impl Estimate {
    /// The mean of at least two values.
    pub(super) fn of(values: &[f64]) -> Self {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let spread: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let standard_error = (spread / (count as f64 - 1.0).max(1.0) / count as f64).sqrt();
        Self { mean, standard_error, count }
    }

    /// The interval that covers the expectation with [`CONFIDENCE`].
    pub(super) fn interval(&self) -> Result<[f64; 2]> {
        let one = LogProb {
            values: vec![self.mean],
            standard_error: vec![self.standard_error],
            log_det: vec![self.mean],
            status: vec![Status::Converged],
            solve_error: vec![0.0],
            most_evaluations: 0,
            weights: None,
            replicates: self.count,
            bias_bound: 0.0,
            estimator: String::new(),
        };
        let (low, high) = one.interval(0, CONFIDENCE)?;
        Ok([low, high])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_three_values() {
        let estimate = Estimate::of(&[1.0, 2.0, 6.0]);
        assert_eq!(estimate.mean, 3.0);
        assert!((estimate.standard_error - (7.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        let [low, high] = estimate.interval().expect("an interval");
        // the quantile of Student's t with two degrees of freedom
        assert!((high - low - 2.0 * 4.302_652_7 * estimate.standard_error).abs() < 1e-5);
    }
}
