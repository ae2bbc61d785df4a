//! The configuration of a flow: checked before anything is built, stored inside every model file.
//!
//! [`FlowConfig`] is for vectors (rows of a table), [`ImageConfig`] for images; a [`ModelConfig`] is either.

mod base;
mod context;
mod continuous;
mod coupling;
mod defaults;
mod dense;
mod dequantisation;
mod family;
mod gated;
mod hybrid;
mod image;
mod preset;
mod rows;
mod start;

pub use base::{BaseConfig, Covariance, MixtureConfig};
pub use context::ContextConfig;
pub use dequantisation::{Dequantisation, DequantisationConfig};
pub use family::Family;
pub use gated::GatedConfig;
pub use hybrid::HeadPlace;
pub use image::ImageConfig;
pub use preset::Preset;
pub use rows::FlowConfig;
use serde::{Deserialize, Serialize};
pub use start::Start;

use crate::error::ConfigError;
use crate::estimator::Estimator;
use crate::lipschitz::{Coefficient, NormChain};
use crate::stage::{LayerStage, Net, Repeated, Size, Stage};
pub use crate::stage::{Nonlinearity, OdeSolver};

/// The architecture of a flow and the estimators it is trained and evaluated with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelConfig {
    /// Over vectors, `[d]`: rows of a table.
    Rows(FlowConfig),
    /// Over images, `[h, w, c]`.
    Images(ImageConfig),
}

impl ModelConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first setting that is out of its range,
    /// [`ConfigError::Inconsistent`] for settings that do not go together.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Rows(c) => c.check(),
            Self::Images(c) => c.check(),
        }
    }

    /// Returns the default model for samples of a shape, `[d]` or `[h, w, c]`: for images that of two cores, with as
    /// many scales as their size can be halved for, three at most. Of more numbers than 64 × 64 × 3 half of the channels
    /// leave between scales, which go on down to below 16 pixels. For vectors it is [`FlowConfig::new`]; of a table the
    /// number of rows is known too, and [`FlowConfig::for_table`] the default.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for a shape that is neither, [`ConfigError::OutOfRange`] for one that is
    /// too large.
    pub fn for_shape(shape: &[usize]) -> Result<Self, ConfigError> {
        let config = match *shape {
            [d] if d > 0 => Self::Rows(FlowConfig::new(d)),
            [height, width, channels] => {
                let preset = if channels == 1 { Preset::MnistSmall } else { Preset::Cifar10Small };
                let mut config = ImageConfig { height, width, channels, ..preset.flow() };
                while config.blocks.len() > 1 {
                    let divisor = 1 << (config.blocks.len() - 1);
                    if height.is_multiple_of(divisor) && width.is_multiple_of(divisor) {
                        break;
                    }
                    config.blocks.pop();
                }
                if config.dimension() > LARGE {
                    config = config.for_large_images();
                }
                Self::Images(config)
            }
            _ => return Err(ConfigError::Inconsistent(format!("no flow is for samples of shape {shape:?}"))),
        };
        config.check()?;
        Ok(config)
    }

    /// The family of its transforms.
    pub fn family(&self) -> Family {
        match self {
            Self::Rows(c) => c.model,
            Self::Images(c) => c.model,
        }
    }

    /// The chain, first applied first, equal rounds counted.
    pub fn chain(&self) -> Vec<Repeated> {
        match self {
            Self::Rows(c) => c.chain(),
            Self::Images(c) => c.chain(),
        }
    }

    /// The chain, first applied first.
    pub fn stages(&self) -> Vec<Stage> {
        flatten(&self.chain())
    }

    /// Counts the numbers that the model stores: its transforms, its base density, its classifier, its embedding and its dequantiser,
    /// without the standardisations.
    pub fn size(&self) -> Size {
        let classifier = self.images().map_or(Size::default(), ImageConfig::head_size);
        let rest = self.base_size().plus(classifier).plus(self.context_size()).plus(self.dequantiser_size());
        self.chain().iter().map(Repeated::size).sum::<Size>().plus(rest)
    }

    /// The context of a conditional flow p(x | c).
    pub fn context(&self) -> Option<&ContextConfig> {
        match self {
            Self::Rows(c) => c.context.as_ref(),
            Self::Images(c) => c.context.as_ref(),
        }
    }

    /// Makes it the configuration of a conditional flow p(x | c), or of an unconditional one.
    #[must_use]
    pub fn with_context(mut self, context: Option<ContextConfig>) -> Self {
        match &mut self {
            Self::Rows(c) => c.context = context,
            Self::Images(c) => c.context = context,
        }
        self
    }

    /// Counts the numbers that the embedding of a context stores.
    pub(crate) fn context_size(&self) -> Size {
        self.context().map_or(Size::default(), ContextConfig::size)
    }

    /// Counts the numbers that a variational dequantiser stores.
    pub(crate) fn dequantiser_size(&self) -> Size {
        self.images().map_or(Size::default(), ImageConfig::dequantiser_size)
    }

    /// Returns `true` if log p of images of bytes is a bound by a trained dequantiser.
    pub fn is_variational(&self) -> bool {
        self.images().is_some_and(|images| images.dequantisation.is_variational())
    }

    /// Counts the numbers that the base density stores.
    pub(crate) fn base_size(&self) -> Size {
        self.base().size(self.dimension())
    }

    /// The base density.
    pub fn base(&self) -> &BaseConfig {
        match self {
            Self::Rows(c) => &c.base,
            Self::Images(c) => &c.base,
        }
    }

    pub(crate) fn set_base(&mut self, base: BaseConfig) {
        match self {
            Self::Rows(c) => c.base = base,
            Self::Images(c) => c.base = base,
        }
    }

    /// How the weights begin.
    pub fn start(&self) -> Start {
        match self {
            Self::Rows(c) => c.start,
            Self::Images(c) => c.start,
        }
    }

    /// d, the numbers in a sample.
    pub fn dimension(&self) -> usize {
        match self {
            Self::Rows(c) => c.dimension,
            Self::Images(c) => c.dimension(),
        }
    }

    /// The shape of a sample: `[d]`, or `[h, w, c]` of an image.
    pub fn sample_shape(&self) -> Vec<usize> {
        match self {
            Self::Rows(c) => vec![c.dimension],
            Self::Images(c) => vec![c.height, c.width, c.channels],
        }
    }

    /// The classes of a hybrid model, 0 of a flow alone.
    pub fn classes(&self) -> usize {
        self.images().map_or(0, |c| c.classes)
    }

    /// Converts a log density in nats to bits per dimension, for images.
    pub fn bits_per_dim(&self, log_prob: f64) -> Option<f64> {
        self.images().map(|c| c.to_bits_per_dim(log_prob))
    }

    /// Converts a standard error in nats to bits per dimension, for images.
    pub fn bits_per_dim_error(&self, error: f64) -> Option<f64> {
        self.images().map(|c| error / (c.dimension() as f64 * std::f64::consts::LN_2))
    }

    /// The number of trained numbers.
    pub fn parameters(&self) -> u64 {
        self.size().parameters
    }

    /// The number of constrained layers, each of which stores weight, bias, u and v.
    pub fn constrained_layers(&self) -> u64 {
        self.size().constrained_layers
    }

    /// The factor on the initial weights of each net's last layer, 0 of a start at the identity.
    pub(crate) fn initial_scale(&self) -> f64 {
        if self.start() == Start::Identity {
            return 0.0;
        }
        match self {
            Self::Rows(c) => c.initial_scale,
            Self::Images(c) => c.initial_scale,
        }
    }

    /// The number of residual blocks, or of couplings.
    pub fn blocks(&self) -> usize {
        match self {
            Self::Rows(c) => c.blocks,
            Self::Images(c) => c.blocks.iter().sum::<usize>() + c.fully_connected,
        }
    }

    /// The estimator of the log det's gradient in training.
    pub fn training(&self) -> &Estimator {
        match self {
            Self::Rows(c) => &c.training,
            Self::Images(c) => &c.training,
        }
    }

    /// The estimator of log p.
    pub fn evaluation(&self) -> &Estimator {
        match self {
            Self::Rows(c) => &c.evaluation,
            Self::Images(c) => &c.evaluation,
        }
    }

    /// The number of independent estimates of each sample's log p that give its standard error.
    pub fn replicates(&self) -> usize {
        match self {
            Self::Rows(c) => c.replicates,
            Self::Images(c) => c.replicates,
        }
    }

    /// Replaces the estimator of log p.
    pub(crate) fn set_evaluation(&mut self, estimator: Estimator, number: usize) {
        let (evaluation, replicates) = match self {
            Self::Rows(c) => (&mut c.evaluation, &mut c.replicates),
            Self::Images(c) => (&mut c.evaluation, &mut c.replicates),
        };
        *evaluation = estimator;
        *replicates = number;
    }

    /// Replaces the estimator of the log det's gradient.
    pub(crate) fn set_training(&mut self, estimator: Estimator) {
        match self {
            Self::Rows(c) => c.training = estimator,
            Self::Images(c) => c.training = estimator,
        }
    }

    /// The configuration of a flow over vectors, if it is one.
    pub fn rows(&self) -> Option<&FlowConfig> {
        if let Self::Rows(c) = self { Some(c) } else { None }
    }

    /// The configuration of a flow over images, if it is one.
    pub fn images(&self) -> Option<&ImageConfig> {
        if let Self::Images(c) = self { Some(c) } else { None }
    }
}

impl From<&FlowConfig> for ModelConfig {
    fn from(c: &FlowConfig) -> Self {
        Self::Rows(c.clone())
    }
}

impl From<&ImageConfig> for ModelConfig {
    fn from(c: &ImageConfig) -> Self {
        Self::Images(c.clone())
    }
}

impl From<&ModelConfig> for ModelConfig {
    fn from(c: &ModelConfig) -> Self {
        c.clone()
    }
}

impl From<FlowConfig> for ModelConfig {
    fn from(c: FlowConfig) -> Self {
        Self::Rows(c)
    }
}

impl From<ImageConfig> for ModelConfig {
    fn from(c: ImageConfig) -> Self {
        Self::Images(c)
    }
}

/// The stages of a chain, one by one.
fn flatten(chain: &[Repeated]) -> Vec<Stage> {
    let rounds = chain.iter().flat_map(|r| std::iter::repeat_n(&r.stages, r.times));
    rounds.flatten().cloned().collect()
}

/// Spells out a net of affine layers (kernel size, inputs, outputs) with an activation between two, and before the
/// first if it leads. Size 0 is linear, and so is 1 in the 2-norm: between other norms that of a 1 × 1 convolution
/// depends on the image size.
fn net(
    layers: &[(usize, usize, usize)],
    activation: Nonlinearity,
    leading: bool,
    coefficient: Option<f64>,
    norms: &NormChain,
) -> Net {
    let mut stages = Vec::with_capacity(2 * layers.len());
    for (i, &(size, inputs, outputs)) in layers.iter().enumerate() {
        if i > 0 || leading {
            stages.push(LayerStage::Activation(activation));
        }
        stages.push(if size == 0 || (size == 1 && *norms == NormChain::Two) {
            LayerStage::Linear { inputs, outputs, coefficient }
        } else {
            LayerStage::Convolution { kernel: [size; 2], inputs, outputs, coefficient }
        });
    }
    Net { layers: stages, norms: norms.orders(layers.len()).unwrap_or_default(), context: 0 }
}

/// Limits that no honest configuration meets, so that a hostile one cannot exhaust the memory.
const MOST_BLOCKS: usize = 10_000;
const MOST_WIDTH: usize = 1 << 16;
const MOST_LAYERS: usize = 64;
const MOST_PARAMETERS: u64 = 1 << 32;
/// The numbers in an image above which its default model is another.
const LARGE: usize = 64 * 64 * 3;

/// ℓ of dense layers unless said otherwise: nothing expands, so that only the last weight needs κ < 1.
const DENSE_BOUND: f64 = 1.0;

/// K, the logistics of a mixture coupling.
const COMPONENTS: usize = 8;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_default_components(components: &usize) -> bool {
    *components == COMPONENTS
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_default_dense_bound(bound: &f64) -> bool {
    *bound == DENSE_BOUND
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_true(value: &bool) -> bool {
    *value
}

/// Checks that a count is from 1 to `most`.
fn count(name: &'static str, value: usize, most: usize, expected: &'static str) -> Result<(), ConfigError> {
    if (1..=most).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { name, value: value as f64, expected })
    }
}

/// Checks the settings that all flows have.
fn check_shared(
    coefficient: f64,
    initial_scale: f64,
    replicates: usize,
    estimators: [&Estimator; 2],
) -> Result<(), ConfigError> {
    Coefficient::new(coefficient)?;
    if !(initial_scale.is_finite() && initial_scale >= 0.0) {
        return Err(ConfigError::OutOfRange {
            name: "initial_scale",
            value: initial_scale,
            expected: "a finite number, 0 or above",
        });
    }
    if !(2..=1000).contains(&replicates) {
        return Err(ConfigError::OutOfRange { name: "replicates", value: replicates as f64, expected: "2 to 1000" });
    }
    estimators.into_iter().try_for_each(Estimator::check)
}
