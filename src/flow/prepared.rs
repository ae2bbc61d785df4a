//! A flow ready for computing: evaluation, encoding, decoding, sampling.
//!
//! The weights are normalised once; any number of calls and threads share them.

use resflow_backend::{Backend, Element as _, Key, Shape, ShardPlan};

use super::Objective;
use super::log_prob::{self, LogProb, Target};
use super::upload::Upload;
use crate::base::PreparedBase;
use crate::batch::Batch;
use crate::bijection::{Ask, Draw, LogDet, Memory};
use crate::chain::PreparedChain;
use crate::classifier::{Classification, PreparedClassifier};
use crate::data::{Samples, Standardiser, Table, Values};
use crate::error::{ConfigError, Error};
use crate::estimator::Estimator;
use crate::invert::{Inversion, SampleReport, Status};
use crate::transform::{from_vectors, to_vectors};

/// Samples in latent space, with the log det of the forward transform.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// z = F(s(x)), `[n, d]`; of images in (C, H, W) order.
    pub latents: Table,
    /// log|det ∂z/∂x| of each sample, `[n]`, nats.
    pub log_det: Vec<f64>,
    /// The standard error of each log det, `[n]`, nats; 0 where exact.
    pub standard_error: Vec<f64>,
}

/// Samples in data space, with the accuracy of each.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// x = s⁻¹(F⁻¹(z)), `[n, d]`, in the data's units; of images in \[0, 1\] and (C, H, W) order.
    pub samples: Table,
    /// The report of each sample's inversion; its bound is in standardised units.
    pub reports: Vec<SampleReport>,
    /// max|F(x) − z| / max(1, max|z|), the largest over samples: measured through the whole flow (of images from the
    /// logit's output on: x itself is rounded where the logit is steepest), or, if the check was left out, the largest
    /// of any block.
    pub residual: f64,
}

/// A flow with its weights normalised. It is `Send` and `Sync`: one serves any number of threads.
#[derive(Debug)]
pub struct PreparedFlow<B: Backend> {
    pub(super) backend: B,
    pub(super) chain: PreparedChain<B>,
    pub(super) base: Box<dyn PreparedBase<B>>,
    /// The shapes of the base's trained tensors.
    pub(super) base_shapes: Vec<Shape>,
    pub(super) standardiser: Standardiser,
    pub(super) sample_shape: Vec<usize>,
    pub(super) classifier: Option<PreparedClassifier<B>>,
    pub(super) training: Estimator,
    pub(super) evaluation: Estimator,
    pub(super) resolved: Estimator,
    pub(super) replicates: usize,
    pub(super) target: Option<Target>,
    /// Samples of one task of an evaluation.
    pub(super) shard_samples: usize,
    /// Bytes that a sample keeps alive in training.
    pub(super) sample_bytes: usize,
    /// The trained numbers.
    pub(super) parameters: u64,
    /// The bits of a channel of images.
    pub(super) bits: Option<u32>,
}

/// The largest of some numbers, NaN if any is.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |a: f64, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
}

/// One shard's evaluation: z, and the parts of log p that the host adds up, `[n, 1]` or `[n, replicates]`.
pub(crate) struct Evaluated<B: Backend> {
    pub(crate) z: Batch<B>,
    pub(crate) log_dets: Vec<LogDet<B>>,
}

impl<B: Backend> PreparedFlow<B> {
    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The estimator of log p, `Auto` resolved.
    pub fn resolved(&self) -> &Estimator {
        &self.resolved
    }

    /// d, the numbers in a sample.
    pub fn dimension(&self) -> usize {
        self.standardiser.width()
    }

    /// The shape of a sample: `[d]` or `[h, w, c]`.
    pub fn sample_shape(&self) -> &[usize] {
        &self.sample_shape
    }

    /// The chain of transforms.
    pub fn chain(&self) -> &PreparedChain<B> {
        &self.chain
    }

    pub(crate) fn base(&self) -> &dyn PreparedBase<B> {
        &*self.base
    }

    pub(crate) fn classifier(&self) -> Option<&PreparedClassifier<B>> {
        self.classifier.as_ref()
    }

    /// The standardising map.
    pub fn standardiser(&self) -> &Standardiser {
        &self.standardiser
    }

    /// Sets a precision: evaluations draw replicates of a sample until its standard error is at most `standard_error`
    /// nats, or there are `most` replicates of it.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] if the standard error is not a finite number above 0.
    pub fn within(self, standard_error: f64, most: usize) -> Result<Self, ConfigError> {
        if standard_error > 0.0 && standard_error.is_finite() {
            Ok(Self { target: Some(Target { standard_error, most }), ..self })
        } else {
            let expected = "a number of nats above 0";
            Err(ConfigError::OutOfRange { name: "standard error", value: standard_error, expected })
        }
    }

    /// Computes log p of each sample with its standard error, in nats; a function of samples and key. Images are
    /// dequantised with noise of the key; log p is the density of the dequantised image in \[0, 1\]ᵈ.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the samples are of another width or image size than the model's,
    /// [`Error::Transform`] if a transform of your own gives something of a wrong shape, [`Error::Backend`] if the
    /// device failed.
    pub fn log_prob<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<LogProb, Error> {
        Ok(log_prob::evaluate(self, samples.into(), 0, key, false)?.1)
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
        Ok(log_prob::evaluate(self, samples.into(), first, key, false)?.1)
    }

    /// Computes log p of each sample in nats, and its gradient in the sample, `[n, d]`, in nats per unit of the data
    /// (of images in \[0, 1\] and (C, H, W) order). The gradient is that of the training estimator, unbiased for the
    /// estimators that are.
    ///
    /// # Errors
    /// Returns [`Error::Input`], [`Error::Transform`] or [`Error::Backend`] as [`log_prob`](Self::log_prob) does.
    pub fn log_prob_and_gradient<'a>(
        &self,
        samples: impl Into<Samples<'a>>,
        key: Key,
    ) -> Result<(LogProb, Table), Error> {
        let samples = samples.into();
        let (_, log_prob) = log_prob::evaluate(self, samples, 0, key, false)?;
        let source = Upload::new(self, samples, key)?;
        let (backend, d) = (&self.backend, self.standardiser.width());
        let memory = if self.bits.is_some() { Memory::Recompute } else { Memory::Store };
        let mut gradient = Vec::with_capacity(samples.len() * d);
        for range in self.plan(samples.len()).ranges() {
            let batch = source.all(self, range.clone());
            let weights = backend.full(1.0, [range.len(), 1].into());
            let key = key.named("gradient");
            let (weights, input_gradient) = (&weights, true);
            let objective = Objective { batch: &batch, weights, key, memory, input_gradient, supervision: None };
            if let Some(input) = self.gradient(&objective)?.input {
                let values = backend.download(&to_vectors(backend, &input))?;
                // of −log p, in standardised units
                let deviation = self.standardiser.deviation().iter().cycle();
                gradient.extend(values.iter().zip(deviation).map(|(g, s)| -g.to_f64() / s));
            }
        }
        Ok((log_prob, Table::of_computed(d, gradient)))
    }

    /// Computes z = F(s(x)) of each sample (the forward transform), `[n, d]`, with log|det ∂z/∂x| in nats.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the samples are of another width or image size than the model's,
    /// [`Error::Transform`] if a transform of your own gives something of a wrong shape, [`Error::Backend`] if the
    /// device failed.
    pub fn encode<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<Encoded, Error> {
        let (z, log_prob) = log_prob::evaluate(self, samples.into(), 0, key, true)?;
        let latents = z.unwrap_or_else(|| Table::of_computed(self.standardiser.width(), Vec::new()));
        Ok(Encoded { latents, log_det: log_prob.log_det, standard_error: log_prob.standard_error })
    }

    /// Returns `true` if there is a classifier.
    pub fn classifies(&self) -> bool {
        self.classifier.is_some()
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
            let x = upload.all(self, plan.rows(i));
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

    /// Computes x = s⁻¹(F⁻¹(z)) of each row of z, `[n, d]` (the inverse transform). The log det of this direction is
    /// the negative of [`encode`](Self::encode)'s at x.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if z is of another width, [`Error::Transform`] if a transform of your own gives
    /// something of a wrong shape, [`Error::Backend`] if the device failed. A sample that does not converge is no
    /// error: see the reports.
    pub fn decode(&self, z: &Table, how: &Inversion) -> Result<Decoded, Error> {
        self.check_width(z)?;
        let plan = self.plan(z.rows());
        let parts = self.backend.run(plan.shards(), |i| {
            let rows = plan.rows(i);
            let values = &z.values()[rows.start * z.width()..rows.end * z.width()];
            let values: Vec<B::Elem> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
            self.invert(&self.backend.upload(&values, [rows.len(), z.width()].into()), how)
        });
        self.join(parts)
    }

    /// Draws samples from the model. Sample i is a function of the key and i, whatever the count, up to rounding and to
    /// the step at which its inversion stops: products of matrices of other sizes may add in another order.
    ///
    /// # Errors
    /// Returns [`Error::Transform`] if a transform of your own gives something of a wrong shape, [`Error::Backend`] if
    /// the device failed. A sample that does not converge is no error: see the reports.
    pub fn sample(&self, count: usize, key: Key, how: &Inversion) -> Result<Decoded, Error> {
        let plan = self.plan(count);
        let parts = self.backend.run(plan.shards(), |i| {
            let range = plan.rows(i);
            let z = self.base.sample(&self.backend, key.named("sample"), range.start as u64, range.len(), None);
            self.invert(&z, how)
        });
        self.join(parts)
    }

    fn join(&self, parts: Vec<Result<(Vec<f64>, Vec<SampleReport>), Error>>) -> Result<Decoded, Error> {
        let (mut values, mut reports) = (Vec::new(), Vec::new());
        for part in parts {
            let (v, r) = part?;
            values.extend(v);
            reports.extend(r);
        }
        let residual = largest(reports.iter().map(|r| r.residual));
        Ok(Decoded { samples: self.standardiser.invert_computed(values), reports, residual })
    }

    /// Inverts z, `[n, d]`, on the device: x and the reports; the residual is measured through the whole chain.
    fn invert(&self, z: &B::Tensor, how: &Inversion) -> Result<(Vec<f64>, Vec<SampleReport>), Error> {
        let backend = &self.backend;
        let first = self.chain.measured_from();
        let mut measured = None;
        let z = Batch::new(z.clone());
        let solution = self.chain.inverse_observed(backend, &z, how, &mut |l, y, _| {
            if l + 1 == first {
                measured = Some(y.clone());
            }
        })?;
        let (x, mut reports) = (solution.value, solution.reports);
        if how.checks() {
            let from = Batch::new(measured.unwrap_or_else(|| x.clone()));
            self.measure(first, &from, &z.x, &mut reports)?;
        }
        let x = backend.download(&to_vectors(backend, &x))?;
        Ok((x.iter().map(|x| x.to_f64()).collect(), reports))
    }

    /// Replaces the residuals of the blocks by that of the whole way back from the input of transform number `first`.
    fn measure(&self, first: usize, from: &Batch<B>, z: &B::Tensor, reports: &mut [SampleReport]) -> Result<(), Error> {
        let backend = &self.backend;
        let ask = Ask::value::<B>();
        let again = self.chain.forward_from(backend, first, from, &ask, &mut |_, _, _| ())?.y;
        let (z, again) = (backend.download(z)?, backend.download(&again)?);
        let d = self.standardiser.width();
        for (i, report) in reports.iter_mut().enumerate() {
            let row = i * d..(i + 1) * d;
            let scale = largest(z[row.clone()].iter().map(|z| z.to_f64().abs())).max(1.0);
            let distance = |e: usize| (again[e].to_f64() - z[e].to_f64()).abs();
            report.residual = largest(row.map(distance)) / scale;
            if !report.residual.is_finite() {
                report.status = Status::NonFinite;
            }
        }
        Ok(())
    }

    /// Some rows of a table on the device, as the first transform wants them.
    pub(crate) fn upload(&self, table: &Table, rows: std::ops::Range<usize>) -> B::Tensor {
        let d = table.width();
        let values = &table.values()[rows.start * d..rows.end * d];
        let values: Vec<B::Elem> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
        from_vectors(&self.backend, &self.backend.upload(&values, [rows.len(), d].into()), &self.sample_shape)
    }

    /// Takes one shard forward through the chain.
    pub(crate) fn forward(&self, x: &Batch<B>, key: Key) -> Result<Evaluated<B>, Error> {
        let draw = Draw { estimator: &self.evaluation, key };
        let ask = Ask::log_det::<B>(draw, self.replicates);
        let mapped = self.chain.forward_observed(&self.backend, x, &ask, &mut |_, _, _| ())?;
        Ok(Evaluated { z: x.with_x(mapped.y), log_dets: mapped.log_dets })
    }

    pub(crate) fn replicates(&self) -> usize {
        self.replicates
    }

    pub(crate) fn target(&self) -> Option<Target> {
        self.target
    }

    pub(crate) fn bits(&self) -> Option<u32> {
        self.bits
    }

    pub(crate) fn check_samples(&self, samples: Samples<'_>) -> Result<(), Error> {
        match samples.values() {
            Values::Tabular(rows) => self.check_width(rows),
            Values::Images(set) if self.sample_shape == [set.height(), set.width(), set.channels()] => Ok(()),
            Values::Images(set) => Err(Error::Input(format!(
                "images of {} for a model of {}",
                set.size(),
                match self.sample_shape[..] {
                    [h, w, c] => format!("{h}x{w} pixels with {c} channel{}", if c == 1 { "" } else { "s" }),
                    _ => format!("rows of {} numbers", self.standardiser.width()),
                }
            ))),
        }
    }

    pub(crate) fn check_width(&self, rows: &Table) -> Result<(), Error> {
        if rows.width() == self.standardiser.width() {
            Ok(())
        } else {
            Err(Error::Input(format!(
                "the data has {} columns, the model is for {}",
                rows.width(),
                self.standardiser.width()
            )))
        }
    }

    pub(crate) fn plan(&self, rows: usize) -> ShardPlan {
        ShardPlan::new(rows, self.shard_samples, 1)
    }
}
