//! The flow: a chain of bijections F over a standard normal base, after the standardisation of the data.
//!
//! log p(x) = log N(F(s(x)); 0, I) + Σ log|det ∂F_l| + log|det ∂s|, in nats and in the data's own units. The standardising
//! map s belongs to the model. A [`PreparedFlow`] holds the normalised weights and serves any number of calls and threads.

mod prepared;
mod upload;

pub use prepared::{Decoded, Encoded, PreparedFlow};
use resflow_backend::{Backend, Key};
pub(crate) use upload::Upload;

use crate::architecture::{self, Initial};
use crate::bijection::{Bijection, Memory};
use crate::chain::Parts;
use crate::checkpoint::Provenance;
use crate::classifier::{Classification, Classifier};
use crate::config::{ImageConfig, ModelConfig};
use crate::data::{Samples, Standardiser};
use crate::error::{ConfigError, Error};
use crate::estimator::{Estimator, Exact, Sharing, VarianceWarning};
use crate::invert::Inversion;
use crate::layer::{Role, Spectrum};
use crate::lipschitz::Refresh;
use crate::log_prob::LogProb;
use crate::train::{Gradient, Objective, gradient};

/// Rows that one task of an evaluation takes at most, however many the device would.
const MOST_ROWS: usize = 1 << 16;

/// A flow: parameters, configuration and the device they live on.
#[derive(Debug)]
pub struct Flow<B: Backend> {
    backend: B,
    config: ModelConfig,
    standardiser: Standardiser,
    links: Vec<Box<dyn Bijection<B>>>,
    parts: Parts,
    classifier: Option<Classifier<B>>,
    provenance: Provenance,
}

impl<B: Backend> Clone for Flow<B> {
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            config: self.config.clone(),
            standardiser: self.standardiser.clone(),
            links: self.links.iter().map(|l| l.boxed_clone()).collect(),
            parts: self.parts.clone(),
            classifier: self.classifier.clone(),
            provenance: self.provenance.clone(),
        }
    }
}

impl<B: Backend> Flow<B> {
    /// A flow with random weights; a function of the configuration and the key.
    ///
    /// # Errors
    /// A configuration that cannot be.
    pub fn new(backend: B, config: impl Into<ModelConfig>, key: Key) -> Result<Self, ConfigError> {
        Self::configured(backend, config.into(), Initial::Random(key))
    }

    /// A flow whose tensors are all zero, to be filled.
    pub(crate) fn zeros(backend: B, config: &ModelConfig) -> Result<Self, ConfigError> {
        Self::configured(backend, config.clone(), Initial::Zeros)
    }

    fn configured(backend: B, config: ModelConfig, initial: Initial) -> Result<Self, ConfigError> {
        let links = architecture::links(&backend, &config, &initial)?;
        let key = match initial {
            Initial::Random(key) => Some(key),
            Initial::Zeros => None,
        };
        let classifier = config.images().and_then(|images| Classifier::of(&backend, images, key));
        Ok(Self { classifier, ..Self::from_links(backend, config, links)? })
    }

    /// A flow of any links, without a classifier. The configuration is stored with it and supplies the estimators; its
    /// architecture is that of the links as far as the model is to be saved and loaded.
    ///
    /// # Errors
    /// If rows of the configured dimension cannot pass through the links.
    pub fn from_links(
        backend: B,
        config: impl Into<ModelConfig>,
        links: Vec<Box<dyn Bijection<B>>>,
    ) -> Result<Self, ConfigError> {
        let config = config.into();
        config.check()?;
        let parts = Parts::of(&links, &config.row())?;
        let standardiser = Standardiser::identity(config.dimension());
        Ok(Self { backend, config, standardiser, links, parts, classifier: None, provenance: Provenance::default() })
    }

    /// The same flow for images of another height and width. Weights stay; a convolution's σ stays where it bounds the new
    /// size, and is found anew where an axis is larger.
    ///
    /// # Errors
    /// A flow that is tied to its size: one over rows of numbers or with fully connected blocks; or a size that cannot be
    /// squeezed as often as the flow wants.
    pub fn resized(&self, height: usize, width: usize) -> Result<Self, ConfigError> {
        let ModelConfig::Images(config) = &self.config else {
            return Err(ConfigError::Inconsistent("a flow over rows of numbers has no image size".into()));
        };
        let config = ImageConfig { height, width, ..config.clone() };
        config.check()?;
        let mut flow = self.clone();
        let mut row = vec![height, width, config.channels];
        for link in &mut flow.links {
            row = link.resize(&self.backend, &row)?;
            if let Some(channels) = row.last_mut() {
                *channels -= link.leaving();
            }
        }
        let links = std::mem::take(&mut flow.links);
        let classifier = self.classifier.as_ref().map(|c| c.resized(&config));
        let mut resized = Self { classifier, ..Self::from_links(self.backend.clone(), config, links)? };
        resized.provenance = self.provenance.clone();
        Ok(resized)
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Replaces the estimator of log p.
    ///
    /// # Errors
    /// Parameters out of range.
    pub fn set_evaluation(&mut self, estimator: Estimator, replicates: usize) -> Result<(), ConfigError> {
        let mut config = self.config.clone();
        config.set_evaluation(estimator, replicates);
        config.check()?;
        self.config = config;
        Ok(())
    }

    /// Replaces the estimator of the log dets' gradient.
    ///
    /// # Errors
    /// Parameters out of range, or an estimator that the family is not trained with.
    pub fn set_training(&mut self, estimator: Estimator) -> Result<(), ConfigError> {
        let mut config = self.config.clone();
        config.set_training(estimator);
        config.check()?;
        self.config = config;
        Ok(())
    }

    /// The numbers in a row.
    pub fn dimension(&self) -> usize {
        self.config.dimension()
    }

    /// The links, first applied first.
    pub fn links(&self) -> &[Box<dyn Bijection<B>>] {
        &self.links
    }

    /// The classifier, of a hybrid model.
    pub fn classifier(&self) -> Option<&Classifier<B>> {
        self.classifier.as_ref()
    }

    pub(crate) fn classifier_mut(&mut self) -> Option<&mut Classifier<B>> {
        self.classifier.as_mut()
    }

    pub(crate) fn replace_links(&mut self, links: Vec<Box<dyn Bijection<B>>>) {
        self.links = links;
    }

    pub(crate) fn links_mut(&mut self) -> &mut [Box<dyn Bijection<B>>] {
        &mut self.links
    }

    /// Where the model comes from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Says where the model comes from.
    pub fn set_provenance(&mut self, provenance: Provenance) {
        self.provenance = provenance;
    }

    /// The standardising map.
    pub fn standardiser(&self) -> &Standardiser {
        &self.standardiser
    }

    /// Makes a standardising map part of the model.
    ///
    /// # Errors
    /// If it is for rows of another width, or changes images.
    pub fn set_standardiser(&mut self, standardiser: Standardiser) -> Result<(), ConfigError> {
        if standardiser.width() != self.dimension() {
            return Err(ConfigError::Inconsistent(format!(
                "a standardisation of {} columns for a flow of {}",
                standardiser.width(),
                self.dimension()
            )));
        }
        if self.config.images().is_some() && standardiser != Standardiser::identity(self.dimension()) {
            return Err(ConfigError::Inconsistent("images are not standardised: their numbers are in [0, 1]".into()));
        }
        self.standardiser = standardiser;
        Ok(())
    }

    /// Shows every stored tensor: name, tensor, role. Names are `links.<l>.…`, and then `classifier.…`.
    pub fn visit(&self, visitor: &mut dyn FnMut(&str, &B::Tensor, Role)) {
        for (i, link) in self.links.iter().enumerate() {
            link.visit(&format!("links.{i}"), visitor);
        }
        if let Some(classifier) = &self.classifier {
            classifier.visit(visitor);
        }
    }

    /// Lets every stored tensor be changed, in the same order. Call [`refresh`](Self::refresh) after changing weights
    /// without their singular vectors.
    pub fn visit_mut(&mut self, visitor: &mut dyn FnMut(&str, &mut B::Tensor, Role)) {
        for (i, link) in self.links.iter_mut().enumerate() {
            link.visit_mut(&format!("links.{i}"), visitor);
        }
        if let Some(classifier) = &mut self.classifier {
            classifier.visit_mut(visitor);
        }
    }

    /// Renews all power iterations.
    pub fn refresh(&mut self, how: Refresh) {
        let backend = &self.backend;
        let links = &self.links;
        let renewed = backend.run(links.len(), |i| {
            let mut link = links[i].boxed_clone();
            link.refresh(backend, how);
            link
        });
        self.links = renewed;
    }

    /// The number of trained numbers.
    pub fn parameters(&self) -> u64 {
        let mut total = 0;
        self.visit(&mut |_, tensor, role| {
            if role.is_trained() {
                total += self.backend.shape(tensor).elements() as u64;
            }
        });
        total
    }

    /// σ of every constrained weight.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn spectra(&self) -> Result<Vec<Vec<Spectrum>>, Error> {
        let one = |i: usize| {
            let mut spectra = Vec::new();
            self.links[i].spectra(&self.backend, &format!("links.{i}"), &mut |s| spectra.push(s))?;
            Ok(spectra)
        };
        (0..self.links.len()).map(one).collect()
    }

    /// The largest estimated Lipschitz bound of a block: the product of its normalised weights' σ.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn lipschitz_estimate(&self) -> Result<f64, Error> {
        let blocks = self.spectra()?.into_iter().filter(|s| !s.is_empty());
        Ok(blocks.map(|s| s.iter().map(Spectrum::effective).product()).fold(0.0, f64::max))
    }

    /// The estimator in use, `Auto` resolved by the first block's cost; exact where no link estimates anything.
    pub fn resolved(&self, training: bool) -> Estimator {
        let setting = if training { self.config.training() } else { self.config.evaluation() };
        let cost = self.links.iter().find_map(|l| l.cost());
        match cost.map_or(Estimator::Exact(Exact), |cost| setting.resolve(&cost, training)) {
            // in evaluation every row draws its own N, whatever the setting says
            Estimator::RussianRoulette(r) if !training => Estimator::RussianRoulette(r.with_sharing(Sharing::Sample)),
            estimator => estimator,
        }
    }

    /// A warning for each of training and evaluation whose estimator's variance has no bound for these blocks.
    pub fn variance_warnings(&self) -> Vec<VarianceWarning> {
        let bound = self.links.iter().filter_map(|l| l.lipschitz_bound()).fold(0.0, f64::max);
        let warnings = [true, false].map(|training| match self.resolved(training) {
            Estimator::RussianRoulette(r) => r.variance_warning(bound),
            _ => None,
        });
        let mut warnings: Vec<_> = warnings.into_iter().flatten().collect();
        warnings.dedup();
        warnings
    }

    /// The flow with its weights normalised once, for any number of evaluations.
    pub fn prepare(&self) -> PreparedFlow<B> {
        let backend = &self.backend;
        let links = &self.links;
        PreparedFlow {
            links: backend.run(links.len(), |i| links[i].prepare(backend)),
            backend: backend.clone(),
            standardiser: self.standardiser.clone(),
            row: self.config.row(),
            parts: self.parts.clone(),
            classifier: self.classifier.as_ref().map(|c| c.prepare(backend)),
            estimator: self.config.evaluation().clone(),
            resolved: self.resolved(false),
            replicates: self.config.replicates(),
            target: None,
            shard_rows: self.evaluation_rows(),
            bits: self.config.images().map_or(0, |c| c.bits),
        }
    }

    /// Activations that a row keeps alive on its way through the model in training, in bytes. Of images only what passes
    /// from block to block: a block takes them in tiles of its own.
    pub(crate) fn row_bytes(&self) -> usize {
        let numbers = match &self.config {
            ModelConfig::Rows(c) => 6 * c.linear_layers().iter().map(|&(i, _)| i).sum::<usize>() * c.blocks,
            // x, u and v
            ModelConfig::Images(c) => 3 * c.dimension() * self.config.blocks(),
        };
        numbers * size_of::<B::Elem>()
    }

    /// The rows of one task of an evaluation, which keeps only a block's activations alive. A block takes images in tiles of
    /// its own; what is counted of them is what passes from block to block, some dozens of times.
    fn evaluation_rows(&self) -> usize {
        let bytes = match &self.config {
            ModelConfig::Rows(_) => self.row_bytes() / self.links.len().max(1),
            ModelConfig::Images(c) => 64 * c.dimension() * size_of::<B::Elem>(),
        };
        self.backend.shard_rows(bytes).min(MOST_ROWS)
    }

    /// The gradient of −Σ wᵢ log p(xᵢ) for rows x in standardised units, `[n, d]` or images `[n, h, w, c]`, with weights `[n, 1]` (1/n each if
    /// none are given), by the training estimator. Includes the gradient in x. A classifier has no part in log p: its
    /// gradients are zeros.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn gradient(&self, x: &B::Tensor, weights: Option<&B::Tensor>, key: Key) -> Result<Gradient<B>, Error> {
        let shape = self.backend.shape(x);
        if shape.rank() == 0 || shape[1..] != self.config.row() || shape.rows() == 0 {
            return Err(Error::Input(format!("rows of shape {shape} for a flow over rows {:?}", self.config.row())));
        }
        let mean = self.backend.full(1.0 / shape.rows() as f64, [shape.rows(), 1].into());
        let weights = weights.unwrap_or(&mean);
        if self.backend.shape(weights)[..] != [shape.rows(), 1] {
            return Err(Error::Input(format!(
                "weights of shape {} for {} rows",
                self.backend.shape(weights),
                shape.rows()
            )));
        }
        let objective = Objective {
            x,
            weights,
            estimator: self.config.training(),
            key,
            first_row: 0,
            memory: if self.config.images().is_some() { Memory::Recompute } else { Memory::Keep },
            row_bytes: self.row_bytes(),
            parameters: self.parameters(),
            input_gradient: true,
            supervision: None,
        };
        let mut found = gradient(&self.backend, self.prepare().links(), &objective);
        if let Some(classifier) = &self.classifier {
            let zeros = self.backend.full(0.0, [classifier.parameters(&self.backend) as usize].into());
            found.flat = self.backend.concat(&[&found.flat, &zeros], 0);
        }
        Ok(found)
    }

    /// log p of rows in the data's units, or of images, see [`PreparedFlow::log_prob`].
    ///
    /// # Errors
    /// Rows of another width or images of another size, or faults of the device.
    pub fn log_prob<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<LogProb, Error> {
        self.prepare().log_prob(samples, key)
    }

    /// p(y | x) of images by a hybrid model, see [`PreparedFlow::classify`].
    ///
    /// # Errors
    /// A model without a classifier, images of another size, or faults of the device.
    pub fn classify<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<Classification, Error> {
        self.prepare().classify(samples, key)
    }

    /// Rows drawn from the model, see [`PreparedFlow::sample`].
    ///
    /// # Errors
    /// Faults of the device.
    pub fn sample(&self, rows: usize, key: Key) -> Result<Decoded, Error> {
        self.prepare().sample(rows, key, &Inversion::for_backend::<B>())
    }
}
