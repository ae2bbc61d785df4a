//! The flow from latents to samples.

use resflow_backend::{Backend, Key};

use super::prepared::PreparedVariational;
use crate::config::{FlowConfig, ModelConfig};
use crate::data::Standardiser;
use crate::error::{ConfigError, Error};
use crate::flow::Flow;

/// A flow x = m + s ∘ T(z) from latents z of its base density to samples. It wraps a [`Flow`] whose chain is T: what is data
/// to that is z here. The base density is not trained.
#[derive(Debug, Clone)]
pub struct VariationalFlow<B: Backend> {
    pub(super) flow: Flow<B>,
}

impl<B: Backend> VariationalFlow<B> {
    /// Builds a flow with random weights, a function of the configuration and the key, with m = 0 and s = 1.
    ///
    /// # Errors
    /// Returns [`Error::Config`] if the configuration is invalid or has a context.
    pub fn new(backend: B, config: FlowConfig, key: Key) -> Result<Self, Error> {
        Self::from_flow(Flow::new(backend, ModelConfig::from(config), key)?)
    }

    /// Takes the chain of a flow over rows as the way from latents to samples, and its standardisation as m and s.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for a flow of images or with a context, and for one with other maps of columns than a standardisation.
    pub fn from_flow(flow: Flow<B>) -> Result<Self, Error> {
        let problem = if flow.config().rows().is_none() {
            "a variational flow is over rows of numbers, not images"
        } else if flow.context().is_some() {
            "a variational flow has no context"
        } else if !flow.columns().is_standardisation() {
            "a variational flow has a location and a scale for each column, and no other maps"
        } else {
            return Ok(Self { flow });
        };
        Err(ConfigError::Inconsistent(problem.into()).into())
    }

    /// Sets where the samples lie before training: m and s, `[d]` each, in the target's units. A target far from 0 or of another scale
    /// than 1 is found sooner.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for another number of dimensions, [`Error::Data`] unless all are finite and s is above 0.
    pub fn with_location(mut self, location: Vec<f64>, scale: Vec<f64>) -> Result<Self, Error> {
        self.flow.set_standardiser(Standardiser::new(location, scale)?)?;
        Ok(self)
    }

    /// The flow inside, whose chain goes from z to (x − m)/s.
    pub fn flow(&self) -> &Flow<B> {
        &self.flow
    }

    /// d, the numbers in a sample.
    pub fn dimension(&self) -> usize {
        self.flow.dimension()
    }

    /// Normalises the weights once, for any number of calls and threads.
    pub fn prepare(&self) -> PreparedVariational<B> {
        PreparedVariational { flow: self.flow.prepare() }
    }
}
