//! The configuration of a flow: checked before anything is built, stored inside every model file.
//!
//! [`FlowConfig`] is for rows of numbers, [`ImageConfig`] for images; a [`ModelConfig`] is either.

mod coupling;
mod family;
mod hybrid;
mod image;
mod preset;
mod rows;

pub use coupling::CouplingBlock;
pub use family::Family;
pub use hybrid::HeadPlace;
pub use image::{ImageBlock, ImageConfig, Stage};
pub use preset::Preset;
use resflow_backend::Activation;
pub use rows::FlowConfig;
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::estimator::Estimator;
use crate::lipschitz::Coefficient;
use crate::transform::bits_per_dim;

/// The nonlinearity of g.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nonlinearity {
    /// xσ(bx)/1.1 with learned b.
    #[default]
    LipSwish,
    /// LipSwish of x and of −x side by side, over 1.004: twice the features.
    ClipSwish,
    /// See [`Activation::Elu`].
    Elu,
    /// See [`Activation::Softplus`].
    Softplus,
    /// See [`Activation::Tanh`].
    Tanh,
    /// See [`Activation::Relu`].
    Relu,
    /// See [`Activation::LipschitzCube`].
    LipschitzCube,
    /// See [`Activation::Sin`].
    Sin,
}

impl Nonlinearity {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::LipSwish,
        Self::ClipSwish,
        Self::Elu,
        Self::Softplus,
        Self::Tanh,
        Self::Relu,
        Self::LipschitzCube,
        Self::Sin,
    ];

    /// The elementwise function, or `None` for the concatenated one.
    pub fn activation(self) -> Option<Activation> {
        Some(match self {
            Self::ClipSwish => return None,
            Self::LipSwish => Activation::LipSwish,
            Self::Elu => Activation::Elu,
            Self::Softplus => Activation::Softplus,
            Self::Tanh => Activation::Tanh,
            Self::Relu => Activation::Relu,
            Self::LipschitzCube => Activation::LipschitzCube,
            Self::Sin => Activation::Sin,
        })
    }

    /// How many times as many features come out as go in.
    pub fn widening(self) -> usize {
        if self == Self::ClipSwish { 2 } else { 1 }
    }

    /// Whether it learns a parameter.
    pub fn has_parameter(self) -> bool {
        matches!(self, Self::LipSwish | Self::ClipSwish)
    }
}

/// The architecture of a flow and the estimators it is trained and evaluated with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelConfig {
    /// Over rows of numbers.
    Rows(FlowConfig),
    /// Over images.
    Images(ImageConfig),
}

impl ModelConfig {
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Rows(c) => c.check(),
            Self::Images(c) => c.check(),
        }
    }

    /// What its links are.
    pub fn family(&self) -> Family {
        match self {
            Self::Rows(c) => c.model,
            Self::Images(c) => c.model,
        }
    }

    /// The chain, first applied first.
    pub fn stages(&self) -> Vec<Stage> {
        match self {
            Self::Rows(c) => c.stages(),
            Self::Images(c) => c.stages(),
        }
    }

    /// d, the numbers in a row.
    pub fn dimension(&self) -> usize {
        match self {
            Self::Rows(c) => c.dimension,
            Self::Images(c) => c.dimension(),
        }
    }

    /// The shape of a row: `[d]`, or `[h, w, c]` of an image.
    pub fn row(&self) -> Vec<usize> {
        match self {
            Self::Rows(c) => vec![c.dimension],
            Self::Images(c) => vec![c.height, c.width, c.channels],
        }
    }

    /// The classes of a hybrid model, 0 of a flow alone.
    pub fn classes(&self) -> usize {
        self.images().map_or(0, |c| c.classes)
    }

    /// Bits per dimension of a log density in nats, for images.
    pub fn bits_per_dim(&self, log_prob: f64) -> Option<f64> {
        self.images().map(|c| bits_per_dim(log_prob, c.dimension(), c.bits))
    }

    /// A standard error in nats as one in bits per dimension, for images.
    pub fn bits_per_dim_error(&self, error: f64) -> Option<f64> {
        self.images().map(|c| error / (c.dimension() as f64 * std::f64::consts::LN_2))
    }

    /// The number of numbers that a file of the model holds at least: trained ones, singular vectors, standardisation.
    pub(crate) fn stored(&self) -> u64 {
        let vectors = match self {
            Self::Rows(_) => 0,
            Self::Images(c) => c.singular_vectors(),
        };
        self.parameters().saturating_add(vectors).saturating_add(2 * self.dimension() as u64)
    }

    /// The number of trained numbers.
    pub fn parameters(&self) -> u64 {
        match self {
            Self::Rows(c) => c.parameters(),
            Self::Images(c) => c.parameters(),
        }
    }

    /// The number of constrained layers, each of which stores weight, bias, u and v.
    pub fn constrained_layers(&self) -> u64 {
        match self {
            Self::Rows(c) if c.model.couples() => 0,
            Self::Rows(c) => c.blocks as u64 * c.linear_layers().len() as u64,
            Self::Images(c) => c.constrained_layers(),
        }
    }

    /// The number of tensors that a file of the model holds at least: weight, bias, u and v of each constrained layer, weight
    /// and bias of each layer of a coupling; the classifier's.
    pub(crate) fn stored_tensors(&self) -> u64 {
        let layers = match self {
            Self::Rows(c) => c.hidden.len() + 1,
            Self::Images(c) => c.kernels.len(),
        };
        let links = if self.family().couples() {
            2 * layers as u64 * self.blocks() as u64
        } else {
            4 * self.constrained_layers()
        };
        links + self.images().map_or(0, ImageConfig::head_tensors)
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

    /// How many independent estimates of each row's log p give its standard error.
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

    /// The configuration of a flow over rows of numbers, if it is one.
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

/// Limits that no honest configuration meets, so that a hostile one cannot exhaust the memory.
const MOST_BLOCKS: usize = 10_000;
const MOST_WIDTH: usize = 1 << 16;
const MOST_LAYERS: usize = 64;
const MOST_PARAMETERS: u64 = 1 << 32;

/// Whether a count is from 1 to `most`.
fn count(name: &'static str, value: usize, most: usize, expected: &'static str) -> Result<(), ConfigError> {
    if (1..=most).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { name, value: value as f64, expected })
    }
}

/// The settings that all flows have.
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
