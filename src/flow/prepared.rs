//! A flow ready for computing.
//!
//! The weights are normalised once; any number of calls and threads share them. What is computed is in the files beside:
//! `evaluate.rs`, `inverse.rs`, `gradient.rs`.

use std::sync::Arc;

use resflow_backend::{Backend, Element as _, Key, Products, Shape, ShardPlan};

use super::Flow;
use super::categories::FlowCategories;
use super::context::PreparedContext;
use crate::base::PreparedBase;
use crate::batch::Batch;
use crate::bijection::{Ask, Draw, LogDet};
use crate::chain::PreparedChain;
use crate::classifier::PreparedClassifier;
use crate::data::{ColumnMaps, Samples, Standardiser, Table, Values};
use crate::dequantiser::PreparedDequantiser;
use crate::error::{ConfigError, Error};
use crate::estimator::Estimator;
use crate::group::{Group, Team};
use crate::invert::SampleReport;
use crate::transform::from_vectors;

/// The precision at which an evaluation has drawn enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Target {
    /// The standard error that every sample is to reach, nats.
    pub(crate) standard_error: f64,
    /// The most replicates of a sample.
    pub(crate) most: usize,
}

/// A flow with its weights normalised. It is `Send` and `Sync`: one serves any number of threads.
#[derive(Debug)]
pub struct PreparedFlow<B: Backend> {
    pub(super) backend: B,
    /// What computes the shards of a gradient.
    pub(super) steps: B,
    pub(super) chain: PreparedChain<B>,
    pub(super) base: Box<dyn PreparedBase<B>>,
    /// The shapes of the base's trained tensors.
    pub(super) base_shapes: Vec<Shape>,
    /// The shapes of all trained tensors, in the order of a visit.
    pub(super) trained_shapes: Vec<Shape>,
    pub(super) columns: ColumnMaps,
    pub(super) sample_shape: Vec<usize>,
    pub(super) classifier: Option<PreparedClassifier<B>>,
    pub(super) context: Option<PreparedContext<B>>,
    pub(super) dequantiser: Option<PreparedDequantiser<B>>,
    pub(super) categories: Option<Arc<FlowCategories>>,
    pub(super) training: Estimator,
    pub(super) evaluation: Estimator,
    pub(super) resolved: Estimator,
    pub(super) replicates: usize,
    /// A bound on the bias of log p, nats.
    pub(super) bias_bound: f64,
    pub(super) target: Option<Target>,
    /// Whether log p comes with what the errors of solves leave in it.
    pub(super) solve_errors: bool,
    /// Samples of one task of an evaluation.
    pub(super) shard_samples: usize,
    /// Bytes that a sample keeps alive in training.
    pub(super) sample_bytes: usize,
    /// The trained numbers.
    pub(super) parameters: u64,
    /// The bits of a channel of images.
    pub(super) bits: Option<u32>,
    /// The lanes of a gradient; 0 for as many as the device likes.
    pub(super) lanes: usize,
    /// The processes that compute gradients and log p together.
    pub(super) team: Option<Arc<Team>>,
}

/// One shard's evaluation: z, and the parts of log p that the host adds up, `[n, 1]` or `[n, replicates]`.
pub(crate) struct Evaluated<B: Backend> {
    pub(crate) z: Batch<B>,
    pub(crate) log_dets: Vec<LogDet<B>>,
    /// The terms of −log q of the noise that images got, where a flow of its own draws it.
    pub(crate) of_noise: Vec<LogDet<B>>,
    /// The report of each sample, where a transform solves.
    pub(crate) reports: Option<Vec<SampleReport>>,
}

/// The numbers in tensors of these shapes.
pub(super) fn count_numbers(shapes: &[Shape]) -> u64 {
    shapes.iter().map(|shape| shape.elements() as u64).sum()
}

impl<B: Backend> Flow<B> {
    /// The shapes of all trained tensors, in the order of a visit.
    pub(crate) fn trained_shapes(&self) -> Vec<Shape> {
        let mut shapes = Vec::new();
        self.visit(&mut |_, tensor, role| shapes.extend(role.is_trained().then(|| self.backend.shape(tensor))));
        shapes
    }
}

impl<B: Backend> PreparedFlow<B> {
    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Multiplies matrices by this arithmetic wherever gradients are computed; values, inverses and norms stay what they are.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device does not have such products.
    pub fn with_products(self, products: Products) -> Result<Self, Error> {
        let steps = self.backend.with_products(products)?;
        Ok(self.with_steps_on(steps))
    }

    /// Computes gradients by another handle to the same device.
    pub(crate) fn with_steps_on(self, steps: B) -> Self {
        Self { steps, ..self }
    }

    /// Sums gradients in so many lanes, 0 for as many as the device likes, by the processes of a group.
    pub(crate) fn with_lanes(self, lanes: usize, team: Option<Arc<Team>>) -> Self {
        Self { lanes, team, ..self }
    }

    /// Lets the processes of a group compute log p, latents, samples and gradients in the parameters together, each of a part of
    /// them: all of them must make the same calls with the same samples, and get the same, bit for bit what one process gets.
    #[must_use]
    pub fn with_group(self, group: Arc<dyn Group>) -> Self {
        let team = Team::new(group, self.trained_shapes.clone());
        Self { team: Some(Arc::new(team)), ..self }
    }

    /// The estimator of log p, `Auto` resolved.
    pub fn resolved(&self) -> &Estimator {
        &self.resolved
    }

    pub(crate) fn bias_bound(&self) -> f64 {
        self.bias_bound
    }

    /// d, the numbers in a sample.
    pub fn dimension(&self) -> usize {
        self.columns.width()
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

    /// The maps of the columns, from the data's units to those of the first transform.
    pub fn columns(&self) -> &ColumnMaps {
        &self.columns
    }

    /// The centres and scales of the columns' maps: all that these are if
    /// [`columns`](Self::columns)`().is_standardisation()`, else one step of them.
    pub fn standardiser(&self) -> &Standardiser {
        self.columns.standardiser()
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

    /// Leaves out what the errors of forward solves do to log p ([`LogProb::solve_error`](super::LogProb::solve_error) is empty then). Of
    /// flows with inverted or monotone blocks a backward pass finds it, without which log p takes a third (tables of few columns) to two thirds
    /// (images) of the time.
    #[must_use]
    pub fn without_solve_errors(self) -> Self {
        Self { solve_errors: false, ..self }
    }

    /// Returns `true` if there is a classifier.
    pub fn classifies(&self) -> bool {
        self.classifier.is_some()
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
        let (x, of_noise) = self.dequantised(x, key)?;
        let mapped = self.chain.forward_observed(&self.backend, &x, &ask, &mut |_, _, _| ())?;
        Ok(Evaluated { z: x.with_x(mapped.y), log_dets: mapped.log_dets, of_noise, reports: mapped.reports })
    }

    /// The estimator of gradients.
    pub(crate) fn training(&self) -> &Estimator {
        &self.training
    }

    /// What computes the shards of a gradient.
    pub(crate) fn steps(&self) -> &B {
        &self.steps
    }

    /// The shapes of the base's trained tensors.
    pub(crate) fn base_shapes(&self) -> &[Shape] {
        &self.base_shapes
    }

    pub(crate) fn replicates(&self) -> usize {
        self.replicates
    }

    pub(crate) fn target(&self) -> Option<Target> {
        self.target
    }

    pub(crate) fn team(&self) -> Option<&Team> {
        self.team.as_deref()
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
                    _ => format!("rows of {} numbers", self.columns.width()),
                }
            ))),
        }
    }

    pub(crate) fn check_width(&self, rows: &Table) -> Result<(), Error> {
        if rows.width() == self.columns.width() {
            Ok(())
        } else {
            Err(Error::Input(format!(
                "the data has {} columns, the model is for {}",
                rows.width(),
                self.columns.width()
            )))
        }
    }

    pub(crate) fn plan(&self, rows: usize) -> ShardPlan {
        ShardPlan::new(rows, self.shard_samples, 1)
    }
}
