//! Evaluation: log p and its gradient, latents, classes.

use std::ops::Range;

use resflow_backend::{Backend, Element as _, Key};

use super::context::Given;
use super::gradient::Objective;
use super::log_prob::{LogProb, evaluate};
use super::prepared::PreparedFlow;
use super::upload::Upload;
use crate::batch::Batch;
use crate::bijection::Memory;
use crate::classifier::Classification;
use crate::data::{Samples, Table};
use crate::error::Error;
use crate::invert::{Inversion, Status};
use crate::transform::to_vectors;

/// Samples in latent space, with the log det of the forward transform.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Encoded {
    /// z = F(s(x)), `[n, d]`; of images in (C, H, W) order. NaN for a sample outside of a column's support, which has
    /// none; with columns on grids, that of the first draw of noise.
    pub latents: Table,
    /// log|det ∂z/∂x| of each sample, `[n]`, nats.
    pub log_det: Vec<f64>,
    /// The standard error of each log det, `[n]`, nats; 0 where exact.
    pub standard_error: Vec<f64>,
    /// [`Status::OutOfSupport`] for a sample outside of a column's support, [`Status::NonFinite`] for one so far out that
    /// the arithmetic overflowed, else [`Status::Converged`].
    pub status: Vec<Status>,
}

/// log p of some samples and its gradients.
pub(super) struct LogProbGradients {
    pub(super) log_prob: LogProb,
    /// That in each sample, `[n, d]`, in nats per unit of the data.
    pub(super) samples: Table,
    /// Those in the contexts, in standardised units: of runs of samples, each its own or one for all of the run.
    pub(super) contexts: Vec<(Range<usize>, Vec<f64>)>,
}

impl<B: Backend> PreparedFlow<B> {
    /// Computes log p of each sample with its standard error, in nats; a function of samples and key. Images are
    /// dequantised with noise of the key; log p is the density of the dequantised image in \[0, 1\]ᵈ. With a variational
    /// dequantiser it is log p(x + u) − log q(u | x) for u of q, in the mean a lower bound on log P of the bytes in the same units.
    ///
    /// Columns on grids are dequantised too: log p is ln of (the probability of the sample's cell over the product of
    /// the grids' steps), estimated by the mean density over
    /// [`ColumnMaps::draws`](crate::data::ColumnMaps::draws) draws of noise. Its logarithm is below the truth
    /// in the mean, by about half the squared standard error. Where log dets are estimated, the densities are corrected by the estimates'
    /// standard errors, to second order. The noise is a function of the key and the sample's
    /// numbers: a sample has the same score alone, in another batch and in another order.
    ///
    /// Of a conditional flow it is log p(x | c) with the context that each sample brings
    /// ([`Dataset::with_context`](crate::data::Dataset::with_context)); [`condition`](Self::condition) takes one for all. Of one that
    /// models categories it is log p(k) + log p(x | k).
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the samples are of another width or image size than the model's, or have no context that it
    /// needs, [`Error::Transform`] if a transform of your own gives something of a wrong shape, [`Error::Backend`] if the
    /// device failed.
    pub fn log_prob<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<LogProb, Error> {
        self.log_prob_from(samples, 0, key)
    }

    /// Computes [`log_prob`](Self::log_prob) of samples of which the first is number `first` of its data set. Where log
    /// dets are estimated, a sample's noise is a function of the key and its number: scored alone as number i it gets
    /// the estimate that it has as number i of a batch, up to rounding (products of matrices of other sizes may add in
    /// another order: about 1e-5 of its scale in single precision). A service that scores samples as they come numbers
    /// them by what they are, with [`data::number_of`](crate::data::number_of), so that the same sample has the same
    /// noise, and so the same score up to rounding.
    ///
    /// # Errors
    /// Returns [`Error::Input`], [`Error::Transform`] or [`Error::Backend`] as [`log_prob`](Self::log_prob) does.
    pub fn log_prob_from<'a>(&self, samples: impl Into<Samples<'a>>, first: u64, key: Key) -> Result<LogProb, Error> {
        let samples = samples.into();
        let contexts = self.contexts_of(&samples)?;
        let (_, mut log_prob) = evaluate(self, samples, Given::brought(contexts.as_ref()), first, key, false)?;
        self.add_categories(&mut log_prob, contexts.as_ref());
        Ok(log_prob)
    }

    /// Computes log p of each sample in nats, and its gradient in the sample, `[n, d]`, in nats per unit of the data
    /// (of images in \[0, 1\] and (C, H, W) order). The gradient is that of the training estimator, unbiased for the
    /// estimators that are; with columns on grids, at the first draw of noise; of images of bytes that of log p where their noise has
    /// put them. It is 0 outside of a column's support, and of samples of which a solve failed, in either direction, as their
    /// status says.
    ///
    /// # Errors
    /// Returns [`Error::Input`], [`Error::Transform`] or [`Error::Backend`] as [`log_prob`](Self::log_prob) does.
    pub fn log_prob_and_gradient<'a>(
        &self,
        samples: impl Into<Samples<'a>>,
        key: Key,
    ) -> Result<(LogProb, Table), Error> {
        let samples = samples.into();
        let contexts = self.contexts_of(&samples)?;
        let mut found = self.gradients_given(samples, Given::brought(contexts.as_ref()), key)?;
        self.add_categories(&mut found.log_prob, contexts.as_ref());
        Ok((found.log_prob, found.samples))
    }

    /// Computes log p of samples that have the contexts that are given, and its gradients in both.
    pub(super) fn gradients_given(
        &self,
        samples: Samples<'_>,
        given: Given<'_, B>,
        key: Key,
    ) -> Result<LogProbGradients, Error> {
        let (_, mut log_prob) = evaluate(self, samples, given, 0, key, false)?;
        let source = Upload::new(self, samples, key)?;
        let (backend, d) = (&self.backend, self.columns.width());
        let memory = if self.bits.is_some() { Memory::Recompute } else { Memory::Store };
        let mut gradient = Vec::with_capacity(samples.len() * d);
        let mut contexts = Vec::new();
        for range in self.plan(samples.len()).ranges() {
            let batch = self.dequantised(&source.all(self, range.clone()), key)?.0;
            let batch = batch.with_context(given.standard(self, range.clone()));
            let weights = backend.full(1.0, [range.len(), 1].into());
            let key = key.named("gradient");
            let (weights, input_gradient) = (&weights, true);
            let objective = Objective { batch: &batch, weights, key, memory, input_gradient, supervision: None };
            let found = self.gradient_solved(&self.training, &Inversion::for_backend::<B>(), &objective)?;
            for (i, failed) in found.failed {
                let status = &mut log_prob.status[range.start + i];
                *status = failed.max(*status);
            }
            if let Some(context) = found.context {
                let values: Vec<f64> = backend.download(&context)?.iter().map(|g| -g.to_f64()).collect();
                contexts.push((range.clone(), values));
            }
            if let Some(input) = found.input {
                let values = backend.download(&to_vectors(backend, &input))?;
                // of −log p, in standardised units
                let values: Vec<f64> = values.iter().map(|g| -g.to_f64()).collect();
                gradient.extend(source.pull_back(self, range, &values));
            }
        }
        Ok(LogProbGradients { log_prob, samples: Table::of_computed(d, gradient), contexts })
    }

    /// Computes z = F(s(x)) of each sample (the forward transform), `[n, d]`, with log|det ∂z/∂x| in nats.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the samples are of another width or image size than the model's,
    /// [`Error::Transform`] if a transform of your own gives something of a wrong shape, [`Error::Backend`] if the
    /// device failed.
    #[doc(alias = "forward")]
    pub fn encode<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<Encoded, Error> {
        self.encode_from(samples, 0, key)
    }

    /// Computes [`encode`](Self::encode) of samples of which the first is number `first` of its data set, as
    /// [`log_prob_from`](Self::log_prob_from) does.
    ///
    /// # Errors
    /// Returns the errors of [`encode`](Self::encode).
    pub fn encode_from<'a>(&self, samples: impl Into<Samples<'a>>, first: u64, key: Key) -> Result<Encoded, Error> {
        let samples = samples.into();
        let contexts = self.contexts_of(&samples)?;
        self.encode_given(samples, Given::brought(contexts.as_ref()), first, key)
    }

    /// Encodes samples that have the contexts that are given.
    pub(super) fn encode_given(
        &self,
        samples: Samples<'_>,
        given: Given<'_, B>,
        first: u64,
        key: Key,
    ) -> Result<Encoded, Error> {
        let (z, log_prob) = evaluate(self, samples, given, first, key, true)?;
        let latents = z.unwrap_or_else(|| Table::of_computed(self.columns.width(), Vec::new()));
        let LogProb { log_det, standard_error, status, .. } = log_prob;
        Ok(Encoded { latents, log_det, standard_error, status })
    }

    /// Maps latents z of a base density to ones that are standard normal where the model is right, so that log p(x) =
    /// log N(u; 0, I) + log det whatever the base is: the triangular map of the base's conditional distribution functions
    /// (Rosenblatt 1952). Of the standard normal base, and of one without such a map, they are z itself.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn normal_scores(&self, encoded: Encoded) -> Result<Encoded, Error> {
        let z = encoded.latents.values();
        let Some(scores) = self.base.to_normal(&self.backend, z)? else { return Ok(encoded) };
        let d = encoded.latents.width();
        let uploaded: Vec<B::Elem> = z.iter().map(|&z| B::Elem::from_f64(z)).collect();
        let rows = Batch::new(self.backend.upload(&uploaded, [z.len() / d, d].into()));
        let base = self.base.log_prob(&self.backend, &rows)?;
        let normal =
            |u: &[f64]| -0.5 * (u.iter().map(|u| u * u).sum::<f64>() + d as f64 * (2.0 * std::f64::consts::PI).ln());
        let own = base.iter().zip(scores.chunks_exact(d)).map(|(base, u)| base - normal(u));
        let log_det = encoded.log_det.iter().zip(own).map(|(l, own)| l + own).collect();
        Ok(Encoded { latents: Table::of_computed(d, scores), log_det, ..encoded })
    }

    /// Computes log p(y | x) of each image, or each vector of an image's numbers, `[n, K]` in nats; a function of
    /// samples and key. With the key of a [`log_prob`](Self::log_prob) it looks at the same dequantised images.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the model has no classifier or the images are of another size, [`Error::Transform`]
    /// if a transform of your own gives something of a wrong shape, [`Error::Backend`] if the device failed.
    pub fn classify<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<Classification, Error> {
        let Some(classifier) = &self.classifier else {
            return Err(Error::Input("the model has no classifier: it was made with `classes = 0`".into()));
        };
        let upload = Upload::new(self, samples.into(), key)?;
        let plan = self.plan(upload.count());
        let parts = self.backend.run(plan.shards(), |i| {
            let x = self.dequantised(&upload.all(self, plan.rows(i)), key)?.0;
            let mut seen = Vec::new();
            self.chain.observe(&self.backend, &x, classifier.last_transform() + 1, &mut |l, y, factored_out| {
                seen.extend(classifier.look(&self.backend, l, y, factored_out));
            })?;
            Ok::<_, Error>(self.backend.download(&classifier.log_probabilities(&self.backend, &seen)?)?)
        });
        let mut log_probabilities = Vec::with_capacity(upload.count() * classifier.classes());
        for part in parts {
            log_probabilities.extend(part?.iter().map(|p| p.to_f64()));
        }
        Ok(Classification { classes: classifier.classes(), log_probabilities })
    }
}
