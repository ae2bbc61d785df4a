//! Importance sampling by exact samples: ln Z, effective sample sizes, expectations.
//!
//! w_i = p̃(x_i)/q(x_i), Z = E_q[w], ESS = (Σ w)²/Σ w² (Kong 1992). The standard error of ln Z is the jackknife's over samples.
//! Invariant: every w is of an exact log q, so that the mean of w is unbiased.

use super::drawn::ExactSamples;
use super::target::{Target, check_dimension, log_densities};
use crate::data::Table;
use crate::error::Error;

/// The importance weights of samples, and what they tell of the target and of the fit.
#[derive(Debug, Clone)]
pub struct Importance {
    /// ln w of each sample, nats; −∞ where the target's density is zero or not a number, and where the sample was not solved for.
    pub log_weights: Vec<f64>,
    /// The samples that were not solved for, of flows whose way there is a solve. They have weight zero, which makes ln Z too low by at
    /// most their part of it, and are left out of the evidence lower bound.
    pub unsolved: usize,
    /// The mean of ln w, the evidence lower bound (ELBO), nats; −∞ if any weight is zero.
    pub evidence_lower_bound: f64,
    /// The standard error of the mean of ln w, nats.
    pub evidence_lower_bound_error: f64,
    /// ln Z, estimated by ln of the mean weight, nats.
    pub log_evidence: f64,
    /// The standard error of ln Z, nats. It believes the weights that were seen: where q misses a part of the target no weight
    /// tells, and ln Z is too low by more.
    pub log_evidence_error: f64,
    /// (Σ w)²/Σ w², from 1 to n: n samples are worth so many of the target itself.
    pub effective_sample_size: f64,
    /// The share of the largest weight in the sum of all: where it is not small the errors are not to be trusted.
    pub largest_share: f64,
    /// e^{ln w} over their sum.
    shares: Vec<f64>,
    samples: Table,
}

impl Importance {
    /// Weighs samples by a target.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the target is in another number of dimensions, there are fewer than two samples, or all weights
    /// are zero, and [`Error::Target`] if the target fails.
    pub fn new(samples: &ExactSamples, target: &(impl Target + ?Sized)) -> Result<Self, Error> {
        let table = samples.samples();
        check_dimension(target, table.width())?;
        let n = table.rows();
        if n < 2 {
            return Err(Error::Input(format!("importance weights of {n} samples: at least 2 are needed for an error")));
        }
        let targets = log_densities(target, table.values(), n)?;
        // a sample whose own density overflowed is as unknown as one that was not solved for
        let solved: Vec<bool> = (0..n).map(|i| samples.is_solved(i) && samples.log_prob()[i].is_finite()).collect();
        let own = targets.iter().zip(samples.log_prob()).zip(&solved);
        let log_weights: Vec<f64> =
            own.map(|((p, q), solved)| if *solved { p - q } else { f64::NEG_INFINITY }).collect();
        let unsolved = solved.iter().filter(|solved| !**solved).count();
        let most = log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if most == f64::NEG_INFINITY {
            let problem = match unsolved {
                0 => "the target's density is zero, or not a number, at every sample".into(),
                k => format!(
                    "{k} of {n} samples were not solved for, and at the others the target's density is zero or not a number"
                ),
            };
            return Err(Error::Input(problem));
        }
        let weights: Vec<f64> = log_weights.iter().map(|l| (l - most).exp()).collect();
        let (sum, squares) = weights.iter().fold((0.0, 0.0), |(sum, squares), w| (sum + w, squares + w * w));
        let count = n as f64;
        let there = || log_weights.iter().zip(&solved).filter(|(_, solved)| **solved).map(|(l, _)| *l);
        let known = (n - unsolved) as f64;
        let lower = there().sum::<f64>() / known;
        let spread: f64 = there().map(|l| (l - lower).powi(2)).sum();
        Ok(Self {
            unsolved,
            evidence_lower_bound: lower,
            evidence_lower_bound_error: if lower.is_finite() && known > 1.0 {
                (spread / (known - 1.0) / known).sqrt()
            } else {
                f64::INFINITY
            },
            log_evidence: most + (sum / count).ln(),
            log_evidence_error: jackknife(&weights, sum),
            effective_sample_size: sum * sum / squares,
            largest_share: 1.0 / sum,
            shares: weights.iter().map(|w| w / sum).collect(),
            log_weights,
            samples: table.clone(),
        })
    }

    /// Estimates the mean of a function of x under the target, Σ w f(x)/Σ w, with its standard error (the delta method's; the
    /// estimate is biased by about 1/ESS).
    pub fn expect(&self, f: impl Fn(&[f64]) -> f64) -> (f64, f64) {
        let values: Vec<f64> = (0..self.samples.rows()).map(|i| f(self.samples.row(i))).collect();
        // a sample of weight zero is not there, whatever f says
        let there = || self.shares.iter().zip(&values).filter(|(w, _)| **w > 0.0);
        let mean: f64 = there().map(|(w, v)| w * v).sum();
        let variance: f64 = there().map(|(w, v)| (w * (v - mean)).powi(2)).sum();
        (mean, variance.sqrt())
    }
}

/// The jackknife's standard error of ln of the mean weight: over the values without one sample each. Infinite if one sample has all
/// the weight.
fn jackknife(weights: &[f64], sum: f64) -> f64 {
    let n = weights.len() as f64;
    let without: Vec<f64> = weights.iter().map(|w| ((sum - w).max(0.0) / (n - 1.0)).ln()).collect();
    let mean = without.iter().sum::<f64>() / n;
    if !mean.is_finite() {
        return f64::INFINITY;
    }
    ((n - 1.0) / n * without.iter().map(|l| (l - mean).powi(2)).sum::<f64>()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invert::{SampleReport, Status};
    use crate::variational::TargetError;

    /// The standard normal density times e^5.
    struct Bell;

    impl Target for Bell {
        fn dimension(&self) -> usize {
            1
        }

        fn evaluate(&self, rows: &[f64], log_density: &mut [f64], gradient: &mut [f64]) -> Result<(), TargetError> {
            for ((x, l), g) in rows.iter().zip(log_density).zip(gradient) {
                (*l, *g) = (5.0 - 0.5 * x * x - 0.5 * (2.0 * std::f64::consts::PI).ln(), -x);
            }
            Ok(())
        }
    }

    fn samples(rows: &[f64], log_prob: Vec<f64>) -> ExactSamples {
        ExactSamples { samples: Table::of_computed(1, rows.to_vec()), log_prob, reports: Vec::new() }
    }

    #[test]
    fn equal_weights_are_exact() {
        let rows = [0.3, -1.2, 2.0, 0.1];
        let normal = rows.iter().map(|x| -0.5 * x * x - 0.5 * (2.0 * std::f64::consts::PI).ln()).collect();
        let found = Importance::new(&samples(&rows, normal), &Bell).expect("weights");
        assert!((found.log_evidence - 5.0).abs() < 1e-12 && found.log_evidence_error < 1e-12);
        assert!((found.effective_sample_size - 4.0).abs() < 1e-9 && (found.largest_share - 0.25).abs() < 1e-12);
        let (mean, error) = found.expect(|x| x[0]);
        assert!((mean - 0.3).abs() < 1e-12 && error > 0.0, "{mean} ± {error}");
    }

    #[test]
    fn samples_that_were_not_solved_for_weigh_nothing() {
        let rows = [0.3, -1.2, 2.0, 0.1];
        let normal = |x: &f64| -0.5 * x * x - 0.5 * (2.0 * std::f64::consts::PI).ln();
        let mut own = samples(&rows, rows.iter().map(normal).collect());
        let good = SampleReport { residual: 0.0, error_bound: 0.0, iterations: 1, status: Status::Converged };
        own.reports = vec![good; 4];
        own.reports[2].status = Status::NotConverged;
        own.log_prob[2] = f64::NAN;
        let found = Importance::new(&own, &Bell).expect("three weights");
        assert_eq!((found.unsolved, found.log_weights[2]), (1, f64::NEG_INFINITY));
        assert!((found.evidence_lower_bound - 5.0).abs() < 1e-12 && found.evidence_lower_bound_error < 1e-12);
        assert!((found.log_evidence - 5.0 - 0.75_f64.ln()).abs() < 1e-12, "{}", found.log_evidence);
        assert!((found.effective_sample_size - 3.0).abs() < 1e-9);
        // a density that overflowed is as unknown: +∞ would be a weight of 0 of its own, −∞ one of infinity
        own.reports.clear();
        for lost in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            own.log_prob[2] = lost;
            let again = Importance::new(&own, &Bell).expect("three weights");
            assert_eq!((again.unsolved, &again.log_weights), (1, &found.log_weights), "{lost}");
            assert_eq!(again.log_evidence, found.log_evidence, "{lost}");
        }
        own.reports.resize(4, good);
        own.reports.fill(SampleReport { status: Status::NonFinite, ..good });
        let error = Importance::new(&own, &Bell).expect_err("no weight").to_string();
        assert!(error.contains("4 of 4 samples were not solved for"), "{error}");
    }

    #[test]
    fn weights_that_cannot_be_are_said() {
        let found = Importance::new(&samples(&[0.0, 1e200], vec![-1.0, -2.0]), &Bell).expect("one weight");
        assert_eq!((found.effective_sample_size, found.largest_share), (1.0, 1.0));
        assert!(found.evidence_lower_bound == f64::NEG_INFINITY && found.log_evidence_error == f64::INFINITY);
        assert!(Importance::new(&samples(&[1e200, 1e200], vec![-1.0, -2.0]), &Bell).is_err());
        assert!(Importance::new(&samples(&[0.0], vec![-1.0]), &Bell).is_err());
    }
}
