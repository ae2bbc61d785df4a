//! log p whose exponential may be taken.
//!
//! E e^L > e^{E L} for an estimate L of log p: the exponential of an unbiased estimate is too large in the mean. So importance
//! weights are made of [`ExactLogProb`] alone, and of [`ExactSamples`](crate::variational::ExactSamples) where samples come with
//! their density.
//!
//! Invariant: nothing in one is estimated or truncated, as the number of replicates and the bound on the bias of a [`LogProb`] say, which are
//! taken at their word. The mean over the noise of columns on grids is an estimate, of draws that are exact.

use super::draws::average;
use super::log_prob::LogProb;
use crate::error::Error;

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
    /// (the delta method), NaN for k = 1. Errors of solves are means by the e^{Lⱼ}, statuses the worst that enter, log dets those of the
    /// first.
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
        let mut scores = average(draws);
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
