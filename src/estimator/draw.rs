//! What a log det is computed with, and what is found.

use resflow_backend::{Backend, Key};

use super::Estimator;

/// The estimator of a log det and its randomness. Random numbers are addressed by (key, number of the sample in the
/// whole batch), so they do not depend on how the batch is cut.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a> {
    /// The estimator; a transform resolves `Auto` by its own cost.
    pub estimator: &'a Estimator,
    /// The key of this transform.
    pub key: Key,
}

/// The log det of some samples, each estimated one or more times, in nats.
#[derive(Debug, Clone)]
pub struct LogDet<B: Backend> {
    /// `[n, r]`, nats: r independent replicates, or `[n, 1]` if the value is exact. An estimate of the log det, never a
    /// surrogate.
    pub value: B::Tensor,
    /// Marks a value without estimation error.
    pub exact: bool,
}

impl<B: Backend> LogDet<B> {
    /// Takes an exact value, `[n, 1]`.
    pub fn exact(value: B::Tensor) -> Self {
        Self { value, exact: true }
    }
}
