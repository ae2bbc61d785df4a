//! A conditional model at some contexts.

use ndarray::{Array1, Array2};

use super::array::array;
use super::{Answer, Asked, IntoDataset, Model, latents};
use crate::data::Dataset;
use crate::error::Error;
use crate::flow::{Decoded, LogProb};

/// A conditional model p(x | c) at m contexts.
///
/// Of one context all samples are samples; of several, sample i is one of context i, or they are drawn.
#[derive(Debug, Clone)]
pub struct ConditionedModel {
    model: Model,
    contexts: Dataset,
}

/// What an answer has if it was asked for.
fn asked<T>(part: Option<T>) -> T {
    part.expect("what is asked for is in the answer")
}

impl ConditionedModel {
    pub(super) fn new(model: &Model, contexts: Dataset) -> Result<Self, Error> {
        model.held.check_contexts(contexts.samples())?;
        Ok(Self { model: model.clone(), contexts })
    }

    fn ask(&self, what: Asked<'_>) -> Result<Answer, Error> {
        self.model.held.at(self.contexts.samples(), what, self.model.key)
    }

    /// m, the number of contexts.
    pub fn contexts(&self) -> usize {
        self.contexts.len()
    }

    /// Computes log p(x | c) of each sample, `[n]`, nats. [`score`](Self::score) has the standard errors.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for samples of another shape, or if there are neither one context nor as many as samples,
    /// [`Error::Data`] for data that are none, [`Error::Backend`] if the device failed.
    pub fn log_prob(&self, x: impl IntoDataset) -> Result<Array1<f64>, Error> {
        Ok(Array1::from(self.score(x)?.values))
    }

    /// Computes log p(x | c) of each sample with its standard error, their mean and its standard error, nats.
    ///
    /// # Errors
    /// Returns the errors of [`log_prob`](Self::log_prob).
    pub fn score(&self, x: impl IntoDataset) -> Result<LogProb, Error> {
        Ok(asked(self.ask(Asked::LogProb(x.into_dataset()?.samples()))?.log_prob))
    }

    /// Computes log p(x | c) of each sample, `[n]`, nats, its gradient in the sample, `[n, d]`, and that of their sum in the
    /// contexts, `[m, k]`, nats per unit of the data.
    ///
    /// # Errors
    /// Returns the errors of [`log_prob`](Self::log_prob).
    pub fn log_prob_and_gradient(&self, x: impl IntoDataset) -> Result<(Array1<f64>, Array2<f64>, Array2<f64>), Error> {
        let answer = self.ask(Asked::Gradients(x.into_dataset()?.samples()))?;
        let [of_samples, of_contexts] = asked(answer.gradients);
        Ok((Array1::from(asked(answer.log_prob).values), array(of_samples), array(of_contexts)))
    }

    /// Draws `each` samples of every context, `[m·each, d]`: sample j of context i is row i·each + j. They are the same at every call
    /// of a model with the same key.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn sample(&self, each: usize) -> Result<Array2<f64>, Error> {
        Ok(array(self.sample_with_reports(each)?.samples))
    }

    /// Draws samples, with the residual, error bound and status of each.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn sample_with_reports(&self, each: usize) -> Result<Decoded, Error> {
        Ok(asked(self.ask(Asked::Samples(each))?.samples))
    }

    /// Draws samples, `[m·each, d]`, with log p(x | c) of each, `[m·each]`, nats.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn sample_and_log_prob(&self, each: usize) -> Result<(Array2<f64>, Array1<f64>), Error> {
        let answer = self.ask(Asked::SamplesWithLogProb(each))?;
        Ok((array(asked(answer.samples).samples), Array1::from(asked(answer.log_prob).values)))
    }

    /// Computes z of each sample at its context, `[n, d]`: standard normal if samples and contexts are the model's.
    ///
    /// # Errors
    /// Returns the errors of [`log_prob`](Self::log_prob).
    #[doc(alias = "transform")]
    pub fn encode(&self, x: impl IntoDataset) -> Result<Array2<f64>, Error> {
        Ok(array(asked(self.ask(Asked::Latents(x.into_dataset()?.samples()))?.latents)))
    }

    /// Computes x of each z at its context, `[n, d]` (the inverse transform). [`decode_with_reports`](Self::decode_with_reports) has
    /// the accuracy of each.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for another number of columns than d, or if there are neither one context nor as many as rows,
    /// [`Error::Backend`] if the device failed.
    #[doc(alias = "inverse")]
    pub fn decode(&self, z: impl IntoDataset) -> Result<Array2<f64>, Error> {
        Ok(array(self.decode_with_reports(z)?.samples))
    }

    /// Computes x of each z at its context with the residual, error bound and status of its inversion.
    ///
    /// # Errors
    /// Returns the errors of [`decode`](Self::decode).
    pub fn decode_with_reports(&self, z: impl IntoDataset) -> Result<Decoded, Error> {
        Ok(asked(self.ask(Asked::Decoded(&latents(z)?))?.samples))
    }
}
