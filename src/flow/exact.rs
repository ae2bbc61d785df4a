//! log p whose exponential may be taken.
//!
//! E e^L > e^{E L} for an estimate L of log p: the exponential of an unbiased estimate is too large in the mean. So importance
//! weights are made of [`ExactLogProb`] alone, and of [`ExactSamples`](crate::variational::ExactSamples) where samples come with
//! their density.
//!
//! Invariant: nothing in one is estimated or truncated. The mean over the noise of columns on grids is an estimate.

use super::log_prob::{LogProb, log_mean_exp};
use crate::error::Error;
use crate::invert::Status;

/// log p of some samples, of which nothing is estimated.
#[derive(Debug, Clone)]
pub struct ExactLogProb(LogProb);

impl ExactLogProb {
    /// log p and what is known of it.
    pub fn scores(&self) -> &LogProb {
        &self.0
    }

    /// Takes log p and what is known of it.
    pub fn into_scores(self) -> LogProb {
        self.0
    }

    /// Computes ln (1/k) Σⱼ e^{Lⱼ} of each sample over k of its log p Lⱼ, nats; its standard error is that of the logarithm of the mean
    /// (the delta method), NaN for k = 1. All else is that of the first.
    ///
    /// # Errors
    /// Returns [`Error::Input`] of none, and of different numbers of samples.
    pub fn log_mean_exp(draws: &[Self]) -> Result<LogProb, Error> {
        let Some(Self(first)) = draws.first() else {
            return Err(Error::Input("a mean takes at least 1 draw".into()));
        };
        let n = first.values.len();
        if let Some(Self(other)) = draws.iter().find(|draw| draw.0.values.len() != n) {
            return Err(Error::Input(format!("a mean over draws of {n} and of {} samples", other.values.len())));
        }
        let mut scores = first.clone();
        for i in 0..n {
            let own: Vec<_> = draws.iter().map(|draw| (draw.0.values[i], 0.0)).collect();
            (scores.values[i], scores.standard_error[i]) = log_mean_exp(&own);
            if scores.values[i].is_finite() && scores.status[i] == Status::NonFinite {
                scores.status[i] = Status::Converged;
            }
        }
        scores.replicates = draws.len();
        Ok(scores)
    }
}

impl TryFrom<LogProb> for ExactLogProb {
    type Error = Error;

    /// # Errors
    /// Returns [`Error::Input`] of estimates.
    fn try_from(scores: LogProb) -> Result<Self, Error> {
        if scores.replicates > 1 || scores.bias_bound > 0.0 {
            return Err(Error::Input(format!(
                "log p is only estimated ({}), and the exponential of an estimate is biased: importance weights take exact log \
                 determinants, `exact` as the estimator, or a flow of couplings whose dequantiser is of couplings",
                scores.estimator
            )));
        }
        Ok(Self(scores))
    }
}
