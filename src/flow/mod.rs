//! The flow: a chain of bijections F over a base density, after the maps of the data's columns.
//!
//! log p(x) = log p₀(F(s(x))) + Σ log|det ∂F_l| + log|det ∂s|, in nats and in the data's own units; p₀ is the base,
//! N(0, I) unless another is given. The columns' maps s, at their simplest a standardisation, belong to the model. A [`PreparedFlow`] holds the
//! normalised weights and serves any number of calls and threads.

mod bounds;
mod categories;
mod conditioned;
mod context;
mod decode_gradient;
mod dequantised;
pub(crate) mod draws;
mod evaluate;
mod exact;
mod footprint;
mod gradient;
mod imputing;
mod inverse;
pub(crate) mod log_prob;
mod matching;
mod pairing;
mod prediction;
mod prepared;
mod provenance;
mod scores;
mod upload;

pub use categories::FlowCategories;
pub use conditioned::Conditioned;
pub use context::FlowContext;
pub use decode_gradient::DecodeGradient;
pub use evaluate::Encoded;
pub use exact::ExactLogProb;
pub use gradient::{Gradient, Objective, Solves, Supervision};
pub use inverse::Decoded;
pub use log_prob::LogProb;
pub use matching::{FlowMatching, MOST_PAIRED, Pairing, TrainingObjective};
pub(crate) use matching::{not_one, too_many};
pub use prediction::Prediction;
pub use prepared::PreparedFlow;
use prepared::count_numbers;
pub use provenance::Provenance;
use resflow_backend::{Backend, Key};
pub use scores::{ReferenceScores, ScoreQuantiles};
use std::sync::Arc;

use crate::architecture::{self, Initial};
use crate::base::{self, Base, BaseConfig, Normal};
use crate::batch::Batch;
use crate::bijection::{Bijection, Memory};
use crate::chain::Chain;
use crate::classifier::{Classification, Classifier};
use crate::config::{ImageConfig, ModelConfig};
use crate::data::{ColumnMaps, Samples, Standardiser};
use crate::dequantiser::Dequantiser;
use crate::error::{ConfigError, Error};
use crate::estimator::{CostModel, Estimator, Exact, Phase, Sharing, VarianceWarning};
use crate::invert::Inversion;
use crate::lipschitz::PowerIteration;
use crate::missing::Imputer;
use crate::module::{Module as _, Role, trained_shapes};
use crate::stage::Stage;

/// A flow: parameters, configuration and the device they live on.
#[derive(Debug, Clone)]
pub struct Flow<B: Backend> {
    backend: B,
    config: ModelConfig,
    columns: ColumnMaps,
    chain: Chain<B>,
    base: Box<dyn Base<B>>,
    classifier: Option<Classifier<B>>,
    context: Option<FlowContext<B>>,
    /// The flow of the noise that images of bytes get, unless that is uniform.
    dequantiser: Option<Dequantiser<B>>,
    categories: Option<Arc<FlowCategories>>,
    /// What fills in missing cells, of a flow that knows them.
    imputer: Option<Arc<Imputer<B>>>,
    provenance: Provenance,
    /// Whether nothing was changed since all weights were sealed.
    sealed: bool,
}

impl<B: Backend> Flow<B> {
    /// Builds a flow with random weights, a function of the configuration and the key.
    ///
    /// # Errors
    /// Returns [`ConfigError`] if the configuration is invalid.
    pub fn new(backend: B, config: impl Into<ModelConfig>, key: Key) -> Result<Self, ConfigError> {
        Self::configured(backend, config.into(), Initial::Random(key))
    }

    /// A flow whose tensors are all zero, to be filled.
    pub(crate) fn zeros(backend: B, config: &ModelConfig) -> Result<Self, ConfigError> {
        Self::configured(backend, config.clone(), Initial::Zeros)
    }

    fn configured(backend: B, config: ModelConfig, initial: Initial) -> Result<Self, ConfigError> {
        let transforms = architecture::transforms(&backend, &config, initial)?;
        let key = match initial {
            Initial::Random(key) => Some(key),
            Initial::Zeros => None,
        };
        let hybrid = config.images().filter(|images| images.classes > 0);
        let classifier = hybrid.map(|c| Classifier::new(&backend, &c.heads(), c.head_width, c.classes, key));
        Ok(Self { classifier, ..Self::of_transforms(backend, config, transforms, initial)? })
    }

    /// Builds a flow of any transforms, without a classifier. The configuration supplies the estimators, the base
    /// density (the means of a mixture are drawn by key 0) and the sample shape.
    ///
    /// A flow with transforms of your own trains like any other. To be saved, moved to another device or resumed each
    /// transform must say what it is ([`Bijection::stage`]), and be registered where it is loaded
    /// ([`Registry`](crate::registry::Registry)).
    ///
    /// # Errors
    /// Returns [`Error::Config`] if the configuration is invalid or has classes, or if samples of its shape cannot pass
    /// through the transforms; [`Error::Transform`] if a transform of your own, which is tried on a few zeros, gives something of a
    /// wrong shape.
    pub fn from_transforms(
        backend: B,
        config: impl Into<ModelConfig>,
        transforms: Vec<Box<dyn Bijection<B>>>,
    ) -> Result<Self, Error> {
        let config = config.into();
        if config.classes() > 0 {
            let problem = "a flow of given transforms has no classifier: leave `classes` at 0";
            return Err(ConfigError::Inconsistent(problem.into()).into());
        }
        let flow = Self::of_transforms(backend, config, transforms, Initial::Random(Key::new(0)))?;
        flow.chain.try_own(&flow.backend, flow.config.training())?;
        Ok(flow)
    }

    fn of_transforms(
        backend: B,
        config: ModelConfig,
        transforms: Vec<Box<dyn Bijection<B>>>,
        initial: Initial,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let chain = Chain::new(transforms, &config.sample_shape())?;
        let dimension = config.dimension();
        if chain.dimension() != dimension {
            return Err(ConfigError::Inconsistent(format!(
                "the transforms make {} numbers of samples of {dimension}: a bijection keeps their number",
                chain.dimension()
            )));
        }
        Ok(Self {
            base: base::configured(&backend, config.base(), dimension, initial),
            context: config.context().map(|context| FlowContext::configured(&backend, context, initial)),
            dequantiser: config
                .images()
                .filter(|images| images.dequantisation.is_variational())
                .map(|images| Dequantiser::configured(&backend, images, initial))
                .transpose()?,
            backend,
            config,
            columns: ColumnMaps::identity(dimension),
            chain,
            classifier: None,
            categories: None,
            imputer: None,
            provenance: Provenance::default(),
            sealed: false,
        })
    }

    /// Replaces the base density, see [`set_base`](Self::set_base).
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the base is for another number of dimensions.
    pub fn with_base(mut self, base: Box<dyn Base<B>>) -> Result<Self, ConfigError> {
        self.replace_base(base)?;
        Ok(self)
    }

    /// Replaces the base density, for example by a mixture that was fitted to data, and says so in the configuration. A
    /// flow over a base of your own, which no configuration describes, trains like any other but cannot be saved.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the base is for another number of dimensions.
    pub fn set_base(&mut self, base: impl Base<B> + 'static) -> Result<(), ConfigError> {
        self.replace_base(Box::new(base))
    }

    fn replace_base(&mut self, base: Box<dyn Base<B>>) -> Result<(), ConfigError> {
        if base.dimension() != self.dimension() {
            let (found, d) = (base.dimension(), self.dimension());
            return Err(ConfigError::Inconsistent(format!("a base density in {found} dimensions for a flow in {d}")));
        }
        if let Some(config) = base.config() {
            self.config.set_base(config);
        }
        self.base = base;
        Ok(())
    }

    /// Returns the flow for images of another height and width, in pixels. Weights stay; a convolution's σ stays where
    /// it bounds the new size, and is estimated anew where an axis is larger.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for a flow that is tied to its size (one over vectors or with fully
    /// connected blocks, or with another base density than the standard normal) and for a size that cannot be squeezed as
    /// often as the flow wants, [`ConfigError::OutOfRange`] for a size of zero or beyond the limits.
    pub fn resized(&self, height: usize, width: usize) -> Result<Self, ConfigError> {
        let ModelConfig::Images(config) = &self.config else {
            return Err(ConfigError::Inconsistent("a flow over rows of numbers has no image size".into()));
        };
        let resized = (height, width) != (config.height, config.width);
        let config = ImageConfig { height, width, ..config.clone() };
        config.check()?;
        let mut flow = self.clone();
        if resized {
            if self.base.config() != Some(BaseConfig::Normal) {
                return Err(ConfigError::Inconsistent(format!(
                    "a flow over a {} is tied to its size: what its base density learned is of single pixels",
                    self.base.describe()
                )));
            }
            flow.base = Box::new(Normal::new(config.dimension()));
        }
        flow.sealed = false;
        let image = [height, width, config.channels];
        flow.chain.resize(&self.backend, &image)?;
        if let Some(dequantiser) = &mut flow.dequantiser {
            dequantiser.resize(&self.backend, &image)?;
        }
        flow.columns = ColumnMaps::identity(config.dimension());
        flow.classifier = self.classifier.as_ref().map(|c| c.resized(config.heads()));
        flow.config = config.into();
        Ok(flow)
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Replaces the estimator of log p, of which each sample gets `replicates` independent estimates.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for parameters out of range.
    pub fn set_log_prob_estimator(&mut self, estimator: Estimator, replicates: usize) -> Result<(), ConfigError> {
        let mut config = self.config.clone();
        config.set_evaluation(estimator, replicates);
        config.check()?;
        self.config = config;
        Ok(())
    }

    /// Replaces the estimator of the log dets' gradient.
    ///
    /// # Errors
    /// Returns [`ConfigError`] for parameters out of range, and for an estimator that the family is not trained with.
    pub fn set_training_estimator(&mut self, estimator: Estimator) -> Result<(), ConfigError> {
        let mut config = self.config.clone();
        config.set_training(estimator);
        config.check()?;
        self.config = config;
        Ok(())
    }

    /// d, the numbers in a sample.
    pub fn dimension(&self) -> usize {
        self.config.dimension()
    }

    /// The transforms, first applied first.
    pub fn transforms(&self) -> &[Box<dyn Bijection<B>>] {
        self.chain.transforms()
    }

    /// The chain of the transforms.
    pub fn chain(&self) -> &Chain<B> {
        &self.chain
    }

    /// Describes each transform as a model file does, first applied first.
    ///
    /// # Errors
    /// Returns [`Error::Unregistered`] with the first transform whose [`stage`](Bijection::stage) is `None`.
    pub fn stages(&self) -> Result<Vec<Stage>, Error> {
        let transforms = self.transforms().iter().enumerate();
        let stages = transforms.map(|(number, transform)| {
            transform.stage().ok_or_else(|| Error::Unregistered { number, description: transform.describe() })
        });
        stages.collect()
    }

    /// The base density.
    pub fn base(&self) -> &dyn Base<B> {
        &*self.base
    }

    /// The classifier, of a hybrid model.
    pub fn classifier(&self) -> Option<&Classifier<B>> {
        self.classifier.as_ref()
    }

    pub(crate) fn classifier_mut(&mut self) -> Option<&mut Classifier<B>> {
        self.classifier.as_mut()
    }

    /// The context of a conditional flow: its standardisation and its embedding.
    pub fn context(&self) -> Option<&FlowContext<B>> {
        self.context.as_ref()
    }

    /// The flow q(u | x) of the noise that images of bytes get, unless that is uniform.
    pub fn dequantiser(&self) -> Option<&Dequantiser<B>> {
        self.dequantiser.as_ref()
    }

    pub(crate) fn dequantiser_mut(&mut self) -> Option<&mut Dequantiser<B>> {
        self.sealed = false;
        self.dequantiser.as_mut()
    }

    pub(crate) fn context_mut(&mut self) -> Option<&mut FlowContext<B>> {
        self.context.as_mut()
    }

    pub(crate) fn base_mut(&mut self) -> &mut dyn Base<B> {
        &mut *self.base
    }

    pub(crate) fn chain_mut(&mut self) -> &mut Chain<B> {
        self.sealed = false;
        &mut self.chain
    }

    /// The data, the training and the score behind the model.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Replaces the provenance.
    pub fn set_provenance(&mut self, provenance: Provenance) {
        self.provenance = provenance;
    }

    /// The maps of the columns, from the data's units to those of the first transform.
    pub fn columns(&self) -> &ColumnMaps {
        &self.columns
    }

    /// Makes maps of columns part of the model.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if they are for samples of another width, or change images.
    pub fn set_columns(&mut self, columns: ColumnMaps) -> Result<(), ConfigError> {
        if columns.width() != self.dimension() {
            return Err(ConfigError::Inconsistent(format!(
                "maps of {} columns for a flow of {}",
                columns.width(),
                self.dimension()
            )));
        }
        let moves = |columns: &ColumnMaps| {
            !columns.is_standardisation() || *columns.standardiser() != Standardiser::identity(columns.width())
        };
        if self.config.images().is_some() && moves(&columns) {
            return Err(ConfigError::Inconsistent("images are not standardised: their numbers are in [0, 1]".into()));
        }
        self.columns = columns;
        Ok(())
    }

    /// The centres and scales of the columns' maps: all that these are if
    /// [`columns`](Self::columns)`().is_standardisation()`, else one step of them.
    pub fn standardiser(&self) -> &Standardiser {
        self.columns.standardiser()
    }

    /// Makes a standardisation the columns' maps.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if it is for samples of another width, or changes images.
    pub fn set_standardiser(&mut self, standardiser: Standardiser) -> Result<(), ConfigError> {
        self.set_columns(standardiser.into())
    }

    /// Shows every stored tensor: name, tensor, role. Names are `links.<l>.…` for the transforms, `base.…`, `classifier.…`,
    /// `embedding.…` and `dequantiser.…`, in this order.
    pub fn visit(&self, visitor: &mut dyn FnMut(&str, &B::Tensor, Role)) {
        self.chain.visit("links", visitor);
        self.base.visit("base", visitor);
        if let Some(classifier) = &self.classifier {
            classifier.visit("classifier", visitor);
        }
        if let Some(context) = &self.context {
            context.embedding().visit("embedding", visitor);
        }
        if let Some(dequantiser) = &self.dequantiser {
            dequantiser.visit("dequantiser", visitor);
        }
    }

    /// Lets every stored tensor be changed, in the same order. Call
    /// [`update_spectral_norms`](Self::update_spectral_norms) after changing weights without their singular vectors.
    pub fn visit_mut(&mut self, visitor: &mut dyn FnMut(&str, &mut B::Tensor, Role)) {
        self.sealed = false;
        self.chain.visit_mut("links", visitor);
        self.base.visit_mut("base", visitor);
        if let Some(classifier) = &mut self.classifier {
            classifier.visit_mut("classifier", visitor);
        }
        if let Some(context) = &mut self.context {
            context.embedding_mut().visit_mut("embedding", visitor);
        }
        if let Some(dequantiser) = &mut self.dequantiser {
            dequantiser.visit_mut("dequantiser", visitor);
        }
    }

    /// Continues the power iteration of every constrained weight.
    pub fn update_spectral_norms(&mut self, how: PowerIteration) {
        self.sealed = false;
        self.chain.update_all_spectral_norms(&self.backend, how);
        if let Some(dequantiser) = &mut self.dequantiser {
            dequantiser.update_spectral_norms(&self.backend, how);
        }
    }

    /// The number of trained numbers.
    pub fn parameters(&self) -> u64 {
        count_numbers(&self.trained_shapes())
    }

    /// The transforms, and those of the noise, whose log dets are estimated alike.
    fn estimated(&self) -> impl Iterator<Item = &dyn Bijection<B>> {
        let of_noise = self.dequantiser.iter().flat_map(|dequantiser| dequantiser.chain().transforms());
        self.transforms().iter().chain(of_noise).map(|transform| &**transform)
    }

    /// Returns the estimator in use, `Auto` resolved by the first block's cost; exact where no transform estimates
    /// anything, and of `Auto` where columns on grids make log p the logarithm of a mean of densities: the exponential of an estimate
    /// is biased.
    pub fn resolved(&self, phase: Phase) -> Estimator {
        let setting = match phase {
            Phase::Training => self.config.training(),
            Phase::Evaluation => self.config.evaluation(),
        };
        let cost = self.estimated().find_map(Bijection::cost);
        match cost.map_or(Estimator::Exact(Exact), |cost| setting.resolve(&cost, phase)) {
            Estimator::RussianRoulette(_)
                if phase == Phase::Evaluation && matches!(setting, Estimator::Auto(_)) && self.columns.draws() > 1 =>
            {
                Estimator::Exact(Exact)
            }
            // in evaluation every sample draws its own N, whatever the setting says
            Estimator::RussianRoulette(r) if phase == Phase::Evaluation => {
                Estimator::RussianRoulette(r.with_sharing(Sharing::Sample))
            }
            estimator => estimator,
        }
    }

    /// Returns a warning for each of training and evaluation whose estimator's variance has no bound for these blocks.
    pub fn variance_warnings(&self) -> Vec<VarianceWarning> {
        let bounds = self.transforms().iter().filter_map(|t| Some(t.expansion().ratio(t.lipschitz_bound()?)));
        let bound = bounds.fold(0.0, f64::max);
        let warnings = [Phase::Training, Phase::Evaluation].map(|phase| match self.resolved(phase) {
            Estimator::RussianRoulette(r) => r.variance_warning(bound),
            _ => None,
        });
        let mut warnings: Vec<_> = warnings.into_iter().flatten().collect();
        warnings.dedup();
        warnings
    }

    /// A bound on the bias of log p, nats, by the blocks' coefficients; only a truncated series has one.
    fn bias_bound(&self) -> f64 {
        let Estimator::Truncated(truncated) = self.config.evaluation() else { return 0.0 };
        let blocks = self.estimated().filter_map(|t| Some((t.expansion(), t.cost()?, t.lipschitz_bound())));
        let bound = |(expansion, cost, bound): (_, CostModel, Option<f64>)| {
            truncated.bias_bound_of(expansion, cost.dimension, bound.unwrap_or(f64::INFINITY))
        };
        blocks.map(bound).sum()
    }

    /// Normalises the weights once, for any number of evaluations and threads. This costs about as much as scoring one
    /// sample; every method of a [`Flow`] that computes does it anew.
    pub fn prepare(&self) -> PreparedFlow<B> {
        self.prepare_with(self.chain.prepare_chain(&self.backend))
    }

    /// Prepares the flow with what certifies its inverses: the error bounds of [`decode`](PreparedFlow::decode) and
    /// [`sample`](PreparedFlow::sample) then hold, rounding included, if [`Decoded::certified`] says so. Each answer is compared with one that the
    /// host finds from it in double precision, by some tens of evaluations of every block.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn prepare_certified(&self) -> Result<PreparedFlow<B>, Error> {
        Ok(self.prepare_with(self.chain.prepare_certified(&self.backend)?))
    }

    /// Prepares the flow around a chain that is prepared already.
    pub(crate) fn prepare_with(&self, chain: crate::chain::PreparedChain<B>) -> PreparedFlow<B> {
        let backend = &self.backend;
        let shapes = self.trained_shapes();
        PreparedFlow {
            backend: backend.clone(),
            steps: backend.clone(),
            columns: self.columns.clone(),
            sample_shape: self.config.sample_shape(),
            chain,
            base: self.base.prepare(backend),
            base_shapes: trained_shapes(backend, &*self.base),
            parameters: count_numbers(&shapes),
            trained_shapes: shapes,
            classifier: self.classifier.as_ref().map(|c| c.prepare(backend)),
            context: self.context.as_ref().map(|context| context.prepare(backend)),
            dequantiser: self.dequantiser.as_ref().map(|dequantiser| dequantiser.prepare(backend)),
            categories: self.categories.clone(),
            training: self.config.training().clone(),
            evaluation: self.config.evaluation().clone(),
            resolved: self.resolved(Phase::Evaluation),
            replicates: self.config.replicates(),
            bias_bound: self.bias_bound(),
            target: None,
            solve_errors: true,
            shard_samples: self.evaluation_samples(),
            sample_bytes: self.sample_bytes(),
            bits: self.config.images().map(|c| c.bits),
            lanes: 0,
            team: None,
        }
    }

    /// Computes the gradient of −Σ wᵢ log p(xᵢ), in nats, for samples x in standardised units, `[n, d]` or images
    /// `[n, h, w, c]`, with weights `[n, 1]` (1/n each if none are given), by the training estimator. Includes the
    /// gradient in x, of the shape of x. A classifier has no part in log p: its gradients are zeros.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the shapes do not fit and for a conditional flow, whose batches have a context
    /// ([`PreparedFlow::gradient`] takes them), [`Error::Transform`] if a transform of your own gives something of a wrong shape,
    /// [`Error::Backend`] if the device failed.
    pub fn gradient(&self, x: &B::Tensor, weights: Option<&B::Tensor>, key: Key) -> Result<Gradient<B>, Error> {
        let shape = self.backend.shape(x);
        let wanted = self.config.sample_shape();
        if shape.rank() == 0 || shape[1..] != wanted || shape.rows() == 0 {
            let axes = wanted.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(Error::Input(format!(
                "a tensor of shape {shape} for a flow whose batches are [n, {axes}], n > 0"
            )));
        }
        let mean = self.backend.full(1.0 / shape.rows() as f64, [shape.rows(), 1].into());
        let weights = weights.unwrap_or(&mean);
        if self.backend.shape(weights)[..] != [shape.rows(), 1] {
            return Err(Error::Input(format!(
                "weights of shape {} for {} samples: expected [n, 1]",
                self.backend.shape(weights),
                shape.rows()
            )));
        }
        if self.context.is_some() {
            return Err(context::missing());
        }
        let memory = if self.config.images().is_some() { Memory::Recompute } else { Memory::Store };
        let batch = Batch::new(x.clone());
        let objective = Objective { batch: &batch, weights, key, memory, input_gradient: true, supervision: None };
        self.prepare().gradient(&objective)
    }

    /// Computes log p of samples in the data's units, in nats, see [`PreparedFlow::log_prob`]. Normalises the weights
    /// first: [`prepare`](Self::prepare) once for many calls.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the samples do not fit, [`Error::Transform`] if a transform of your own fails,
    /// [`Error::Backend`] if the device does.
    pub fn log_prob<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<LogProb, Error> {
        self.prepare().log_prob(samples, key)
    }

    /// Computes p(y | x) of images by a hybrid model, see [`PreparedFlow::classify`].
    ///
    /// # Errors
    /// Returns [`Error::Input`] if there is no classifier or the images do not fit, [`Error::Transform`] if a transform
    /// of your own fails, [`Error::Backend`] if the device does.
    pub fn classify<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<Classification, Error> {
        self.prepare().classify(samples, key)
    }

    /// Draws samples from the model, see [`PreparedFlow::sample`].
    ///
    /// # Errors
    /// Returns [`Error::Transform`] if a transform of your own fails, [`Error::Backend`] if the device does.
    pub fn sample(&self, count: usize, key: Key) -> Result<Decoded, Error> {
        self.prepare().sample(count, key, &Inversion::for_backend::<B>())
    }
}
