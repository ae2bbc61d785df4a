//! Samples of a variational flow with their densities.

use crate::data::Table;
use crate::invert::SampleReport;

/// Samples with log q, which may be an estimate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Drawn {
    /// x, `[n, d]`, in the target's units.
    pub samples: Table,
    /// log q(x) of each, nats; unbiased if the estimator is. For e^{log q} it must be exact: see [`ExactSamples`].
    pub log_prob: Vec<f64>,
    /// The standard error of each, nats; 0 where exact.
    pub standard_error: Vec<f64>,
    /// How well T of each was solved for; empty where T is no solve. A sample that is not [solved](crate::invert::Status::is_solved) is
    /// none of q's.
    pub reports: Vec<SampleReport>,
}

/// Samples with log q by exact log determinants, which alone may be exponentiated.
#[derive(Debug, Clone)]
pub struct ExactSamples {
    pub(super) samples: Table,
    pub(super) log_prob: Vec<f64>,
    pub(super) reports: Vec<SampleReport>,
}

impl ExactSamples {
    /// x, `[n, d]`, in the target's units.
    pub fn samples(&self) -> &Table {
        &self.samples
    }

    /// log q(x) of each, nats, exact up to rounding.
    pub fn log_prob(&self) -> &[f64] {
        &self.log_prob
    }

    /// How well T of each was solved for; empty where T is no solve. [`Importance`](super::Importance) leaves samples out that are not
    /// [solved](crate::invert::Status::is_solved).
    pub fn reports(&self) -> &[SampleReport] {
        &self.reports
    }

    /// Whether sample `i` was solved for, if it had to be.
    pub(super) fn is_solved(&self, i: usize) -> bool {
        self.reports.get(i).is_none_or(|report| report.status.is_solved())
    }
}

/// log q of points that were given, for which the flow is inverted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Located {
    /// z of each point, `[n, d]`.
    pub latents: Table,
    /// log q of each, nats, at the point that z is mapped to; −∞ where that is not finite.
    pub log_prob: Vec<f64>,
    /// The standard error of the log det's estimates, nats; 0 where exact.
    pub standard_error: Vec<f64>,
    /// How well each was inverted: log q is that of a point that is off by at most the residual, in units of s.
    pub reports: Vec<SampleReport>,
}
