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
}

/// Samples with log q by exact log determinants, which alone may be exponentiated.
#[derive(Debug, Clone)]
pub struct ExactSamples {
    pub(super) samples: Table,
    pub(super) log_prob: Vec<f64>,
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
