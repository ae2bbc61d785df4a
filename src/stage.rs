//! Stages: descriptions of a chain's transforms, as configurations spell them out and model files store them.
//!
//! A stage has no weights. It says of itself how many numbers it stores ([`Stage::size`]), which is the one place where
//! parameters are counted before anything is built, and what a hostile file is held to. Equal stages one after the
//! other are written once and counted ([`Repeated`]), so that a hostile number of them costs nothing.
//!
//! Invariant: the transform built of a stage returns it ([`Bijection::stage`](crate::bijection::Bijection::stage)) and
//! stores as many numbers as its size says; of the user's own parts nothing is said.

mod coupling;
mod nonlinearity;
mod ode;
mod size;

pub use coupling::{Logistics, Mask, Splines};
pub use nonlinearity::Nonlinearity;
pub use ode::OdeSolver;
use serde::{Deserialize, Serialize};
pub use size::{Repeated, Size};

use crate::error::ConfigError;
use crate::lipschitz::Order;

/// A part of the user's own: the name that it is registered under, and what its maker needs to make it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    /// The name in the [`Registry`](crate::registry::Registry).
    pub name: String,
    /// Its settings: sizes, constants. Tensors are stored apart.
    #[serde(default)]
    pub settings: serde_json::Value,
}

impl Custom {
    /// Names a part, with settings that serialise to JSON.
    ///
    /// # Errors
    /// Returns [`ConfigError::Syntax`] if the settings do not serialise.
    pub fn new(name: &str, settings: impl Serialize) -> Result<Self, ConfigError> {
        let settings = serde_json::to_value(settings).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        Ok(Self { name: name.to_owned(), settings })
    }
}

/// How a dense layer puts its input and what it makes of it side by side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concatenation {
    /// ℓ = √(η₁² + η₂²), above 0 and at most 1.
    pub bound: f64,
    /// Learns the two weights' shares; else they stay as they are.
    pub learned: bool,
}

impl Concatenation {
    /// Checks ℓ.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] if it is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.bound > 0.0 && self.bound <= 1.0 {
            return Ok(());
        }
        let expected = "a number above 0 and at most 1";
        Err(ConfigError::OutOfRange { name: "dense_bound", value: self.bound, expected })
    }
}

/// A layer of a net.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum LayerStage {
    /// A linear layer; of images a 1 × 1 convolution.
    Linear {
        /// The number of input features.
        inputs: usize,
        /// The number of output features.
        outputs: usize,
        /// κ, the bound on the weight's norm; free without.
        coefficient: Option<f64>,
    },
    /// A zero-padded convolution.
    Convolution {
        /// Height and width of the kernel in pixels, odd.
        kernel: [usize; 2],
        /// The number of input channels.
        inputs: usize,
        /// The number of output channels.
        outputs: usize,
        /// κ, the bound on the weight's norm; free without.
        coefficient: Option<f64>,
    },
    /// An affine layer and an activation, whose output stands behind their input.
    Dense {
        /// Height and width of the kernel in pixels, odd; none of a linear layer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kernel: Option<[usize; 2]>,
        /// The number of input features or channels.
        inputs: usize,
        /// The number of outputs of the affine layer.
        outputs: usize,
        /// κ, the bound on the weight's norm; free without.
        coefficient: Option<f64>,
        /// The activation.
        activation: Nonlinearity,
        /// The weights of both parts.
        concatenation: Concatenation,
        /// Adds a bias by the context before the activation.
        #[serde(default, skip_serializing_if = "is_false")]
        context: bool,
    },
    /// An activation.
    Activation(Nonlinearity),
    /// A bias by the context.
    ContextBias {
        /// The number of features or channels.
        features: usize,
    },
    /// A gate by the context.
    ContextGate {
        /// The number of features or channels.
        features: usize,
    },
    /// A bias by the pixels of a context that is an image.
    PixelBias {
        /// The number of channels.
        features: usize,
    },
    /// Layers around which their input is led: x + f(x).
    Skip {
        /// f, whose layers are free and told of no context.
        layers: Vec<LayerStage>,
    },
    /// A gated linear unit of twice as many features.
    Gate {
        /// The number of features that it makes.
        features: usize,
    },
    /// Layer normalisation.
    LayerNorm {
        /// The number of features or channels.
        features: usize,
    },
    /// Self-attention over the pixels of an image, of which it makes twice as many channels.
    Attention {
        /// The shape of an image, `[h, w, c]`.
        image: [usize; 3],
        /// The number of heads.
        heads: usize,
    },
    /// One of the user's own.
    Custom(Custom),
}

/// A chain of layers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// The layers, first applied first.
    pub layers: Vec<LayerStage>,
    /// The (domain, codomain) of each constrained layer, where they are not all the 2-norm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub norms: Vec<(Order, Order)>,
    /// k, the numbers of the embedding of a context that the net is told of; 0 without one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub context: usize,
}

/// One transform of a chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Stage {
    /// A squeeze.
    Squeeze {
        /// The number of the last channels that are factored out after it.
        factored_out: usize,
    },
    /// The logit.
    Logit {
        /// Its margin α.
        alpha: f64,
    },
    /// ActNorm.
    ActNorm {
        /// The number of features or channels.
        features: usize,
    },
    /// Images as vectors.
    Flatten {
        /// The shape of an image, `[h, w, c]`.
        image: [usize; 3],
    },
    /// A scale and a shift by the context.
    ConditionalActNorm {
        /// The number of features or channels.
        features: usize,
        /// k, the numbers of the context's embedding.
        context: usize,
    },
    /// An invertible linear map.
    InvertibleLinear {
        /// The number of features or channels.
        features: usize,
    },
    /// The linear map of neural spline flows.
    LuLinear {
        /// The number of features.
        features: usize,
    },
    /// A residual block.
    ResidualBlock {
        /// The shape of its samples: `[h, w, c]`, or `[d]`.
        shape: Vec<usize>,
        /// g.
        net: Net,
    },
    /// The inverse of a residual block.
    InvertedBlock {
        /// The shape of its samples: `[h, w, c]`, or `[d]`.
        shape: Vec<usize>,
        /// g.
        net: Net,
    },
    /// A monotone block.
    MonotoneBlock {
        /// The shape of its samples: `[h, w, c]`, or `[d]`.
        shape: Vec<usize>,
        /// g.
        net: Net,
    },
    /// An affine coupling.
    Coupling {
        /// The shape of its samples: `[h, w, c]`, or `[d]`.
        shape: Vec<usize>,
        /// The part that stays.
        mask: Mask,
        /// Its net, whose output is s and t side by side.
        net: Net,
        /// Divides the scale by its value at s = 0, so that a net of zeros makes the identity.
        #[serde(default, skip_serializing_if = "is_false")]
        centred: bool,
    },
    /// A conditional prior of the last half of the channels, which leave the chain behind it.
    ConditionalPrior {
        /// The shape of its samples, `[h, w, c]`.
        shape: Vec<usize>,
        /// Its net, c/2 → c channels, whose output is s and t side by side.
        net: Net,
    },
    /// A spline coupling of rows.
    SplineCoupling {
        /// The number of features.
        features: usize,
        /// The last ⌊d/2⌋ features stay, instead of the first ⌈d/2⌉.
        swapped: bool,
        /// Its splines.
        splines: Splines,
        /// Its net, whose output are the raw parameters of each number that moves, one number after the other.
        net: Net,
    },
    /// A coupling by mixtures of logistics.
    MixtureCoupling {
        /// The shape of its samples: `[h, w, c]`, or `[d]`.
        shape: Vec<usize>,
        /// The part that stays.
        mask: Mask,
        /// Its mixtures.
        logistics: Logistics,
        /// Its net, whose output are α̂ of all numbers that move, β of all, and then π̂, μ̂ and ŝ of all, component by component.
        net: Net,
    },
    /// A continuous flow.
    OdeFlow {
        /// The shape of its samples: `[d]`.
        shape: Vec<usize>,
        /// f, whose context begins with what it is told of the time.
        net: Net,
        /// The solver of training.
        training: OdeSolver,
        /// The solver of everything else.
        evaluation: OdeSolver,
    },
    /// One of the user's own.
    Custom(Custom),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// The product of some extents.
fn product(extents: &[usize]) -> u64 {
    extents.iter().map(|&e| e as u64).fold(1, u64::saturating_mul)
}

impl LayerStage {
    /// The affine layer itself, or that in a dense layer.
    pub(crate) fn affine(&self) -> Option<Self> {
        match *self {
            Self::Linear { .. } | Self::Convolution { .. } => Some(self.clone()),
            Self::Dense { kernel: None, inputs, outputs, coefficient, .. } => {
                Some(Self::Linear { inputs, outputs, coefficient })
            }
            Self::Dense { kernel: Some(kernel), inputs, outputs, coefficient, .. } => {
                Some(Self::Convolution { kernel, inputs, outputs, coefficient })
            }
            Self::Activation(_)
            | Self::ContextBias { .. }
            | Self::ContextGate { .. }
            | Self::PixelBias { .. }
            | Self::Skip { .. }
            | Self::Gate { .. }
            | Self::LayerNorm { .. }
            | Self::Attention { .. }
            | Self::Custom(_) => None,
        }
    }

    /// Returns `true` if it is, or holds, one of the user's own.
    fn is_custom(&self) -> bool {
        match self {
            Self::Custom(_) => true,
            Self::Skip { layers } => layers.iter().any(Self::is_custom),
            _ => false,
        }
    }

    /// Counts the numbers that the layer is told of a context.
    pub(crate) fn told(&self) -> usize {
        match *self {
            Self::ContextBias { features } | Self::ContextGate { features } | Self::PixelBias { features } => features,
            Self::Dense { outputs, context: true, .. } => outputs,
            _ => 0,
        }
    }

    /// Counts the numbers that the layer stores, on samples of this shape.
    pub fn size(&self, shape: &[usize]) -> Size {
        let weighted = |kernel: &[usize], inputs: usize, outputs: usize, pixels: u64, constrained: bool| Size {
            parameters: product(kernel).saturating_mul(product(&[inputs, outputs])).saturating_add(outputs as u64),
            buffers: if constrained { pixels.saturating_mul(inputs.saturating_add(outputs) as u64) } else { 0 },
            tensors: if constrained { 4 } else { 2 },
            constrained_layers: u64::from(constrained),
        };
        match self {
            Self::Linear { inputs, outputs, coefficient } => weighted(&[], *inputs, *outputs, 1, coefficient.is_some()),
            Self::Convolution { kernel, inputs, outputs, coefficient } => {
                let pixels = product(&shape[..shape.len().saturating_sub(1)]);
                weighted(kernel, *inputs, *outputs, pixels, coefficient.is_some())
            }
            Self::Dense { activation, concatenation, .. } => {
                let affine = self.affine().map_or(Size::default(), |affine| affine.size(shape));
                let (parameters, buffers) = if concatenation.learned { (2, 0) } else { (0, 2) };
                let raw = Size { parameters, buffers, tensors: 2, ..Size::default() };
                affine.plus(Self::Activation(*activation).size(shape)).plus(raw)
            }
            Self::Activation(f) => {
                let count = f.parameters().len() as u64;
                Size { parameters: count, tensors: count, ..Size::default() }
            }
            Self::Skip { layers } => layers.iter().map(|layer| layer.size(shape)).sum(),
            Self::LayerNorm { features } => {
                Size { parameters: product(&[2, *features]), tensors: 2, ..Size::default() }
            }
            Self::Attention { image: [h, w, c], .. } => Size {
                parameters: product(&[*h, *w, *c])
                    .saturating_add(product(&[5, *c, *c]))
                    .saturating_add(product(&[5, *c])),
                tensors: 5,
                ..Size::default()
            },
            Self::ContextBias { .. }
            | Self::ContextGate { .. }
            | Self::PixelBias { .. }
            | Self::Gate { .. }
            | Self::Custom(_) => Size::default(),
        }
    }
}

impl Net {
    /// Counts the numbers that the net is told of a context.
    pub(crate) fn told(&self) -> usize {
        self.layers.iter().map(LayerStage::told).fold(0, usize::saturating_add)
    }

    /// Tells the hidden layers of a context whose embedding has k numbers: a bias behind each affine layer but the last, and a gate
    /// behind each activation of these, if there are to be gates.
    #[must_use]
    pub(crate) fn conditional(self, context: usize, gates: bool) -> Self {
        let count = self.layers.iter().filter(|layer| layer.affine().is_some()).count();
        let (mut layers, mut affine, mut hidden) = (Vec::with_capacity(2 * self.layers.len()), 0, None);
        for layer in self.layers {
            affine += usize::from(layer.affine().is_some());
            let last = affine == count;
            match layer {
                LayerStage::Linear { outputs, .. } | LayerStage::Convolution { outputs, .. } => {
                    layers.push(layer);
                    hidden = (!last).then_some(outputs);
                    layers.extend(hidden.map(|features| LayerStage::ContextBias { features }));
                }
                LayerStage::Dense { kernel, inputs, outputs, coefficient, activation, concatenation, .. } => {
                    let context = true;
                    layers.push(LayerStage::Dense {
                        kernel,
                        inputs,
                        outputs,
                        coefficient,
                        activation,
                        concatenation,
                        context,
                    });
                }
                LayerStage::Activation(function) => {
                    layers.push(layer);
                    let features = hidden.take().filter(|_| gates).map(|width| width * function.widening());
                    layers.extend(features.map(|features| LayerStage::ContextGate { features }));
                }
                other => layers.push(other),
            }
        }
        let net = Self { layers, norms: self.norms, context };
        // a net of one layer has no hidden ones
        if net.told() > 0 { net } else { Self { context: 0, ..net } }
    }

    /// Tells the hidden layers of each pixel of a context that is an image, whose embedding has k channels: a bias behind each affine
    /// layer but the last.
    #[must_use]
    pub(crate) fn told_by_pixels(self, context: usize) -> Self {
        let count = self.layers.iter().filter(|layer| layer.affine().is_some()).count();
        let (mut layers, mut affine) = (Vec::with_capacity(2 * self.layers.len()), 0);
        for layer in self.layers {
            affine += usize::from(layer.affine().is_some());
            let hidden = match layer {
                LayerStage::Linear { outputs, .. } | LayerStage::Convolution { outputs, .. } => {
                    (affine < count).then_some(outputs)
                }
                _ => None,
            };
            layers.push(layer);
            layers.extend(hidden.map(|features| LayerStage::PixelBias { features }));
        }
        Self { layers, norms: self.norms, context }
    }

    /// Counts the numbers that the net stores, on samples of this shape.
    pub fn size(&self, shape: &[usize]) -> Size {
        let learned = self.norms.iter().flat_map(|&(p, q)| [p, q]).filter_map(|order| match order {
            Order::Learned(number) => Some(number as u64 + 1),
            _ => None,
        });
        let orders = learned.max().unwrap_or(0);
        let orders = Size { parameters: orders, tensors: orders, ..Size::default() };
        let told = Size { parameters: product(&[self.told(), self.context]), tensors: 1, ..Size::default() };
        let told = if self.context > 0 { told } else { Size::default() };
        self.layers.iter().map(|layer| layer.size(shape)).chain([orders, told]).sum()
    }
}

impl Stage {
    /// Counts the numbers that the transform stores; none of the user's own.
    pub fn size(&self) -> Size {
        match self {
            Self::ActNorm { features } => {
                Size { parameters: product(&[2, *features]), buffers: 1, tensors: 3, constrained_layers: 0 }
            }
            Self::ConditionalActNorm { features, context } => {
                Size { parameters: product(&[2, *features, context.saturating_add(1)]), tensors: 2, ..Size::default() }
            }
            Self::InvertibleLinear { features } => Size {
                parameters: product(&[*features, *features]),
                buffers: product(&[2, *features]),
                tensors: 3,
                constrained_layers: 0,
            },
            Self::LuLinear { features } => Size {
                parameters: product(&[*features, *features]).saturating_add(*features as u64),
                buffers: *features as u64,
                tensors: 3,
                constrained_layers: 0,
            },
            Self::ResidualBlock { shape, net }
            | Self::InvertedBlock { shape, net }
            | Self::MonotoneBlock { shape, net }
            | Self::Coupling { shape, net, .. }
            | Self::MixtureCoupling { shape, net, .. }
            | Self::OdeFlow { shape, net, .. }
            | Self::ConditionalPrior { shape, net } => net.size(shape),
            Self::SplineCoupling { features, swapped, splines, net } => {
                let [(_, stays), _] = Splines::sides(*features, *swapped);
                let own = Size { parameters: product(&[stays, splines.parameters()]), tensors: 1, ..Size::default() };
                net.size(&[stays]).plus(if splines.unconditional { own } else { Size::default() })
            }
            Self::Squeeze { .. } | Self::Logit { .. } | Self::Flatten { .. } | Self::Custom(_) => Size::default(),
        }
    }

    /// Returns `true` if it is, or holds, a part of the user's own.
    pub(crate) fn is_custom(&self) -> bool {
        match self {
            Self::Custom(_) => true,
            other => other.net().is_some_and(|net| net.layers.iter().any(LayerStage::is_custom)),
        }
    }

    /// Returns the net of a block, a coupling or a conditional prior.
    pub fn net(&self) -> Option<&Net> {
        match self {
            Self::ResidualBlock { net, .. }
            | Self::InvertedBlock { net, .. }
            | Self::MonotoneBlock { net, .. }
            | Self::Coupling { net, .. }
            | Self::MixtureCoupling { net, .. }
            | Self::OdeFlow { net, .. }
            | Self::ConditionalPrior { net, .. }
            | Self::SplineCoupling { net, .. } => Some(net),
            _ => None,
        }
    }

    /// The features or channels of the samples of a block or a coupling.
    pub(crate) fn features(&self) -> Option<usize> {
        match self {
            Self::ResidualBlock { shape, .. }
            | Self::InvertedBlock { shape, .. }
            | Self::MonotoneBlock { shape, .. }
            | Self::Coupling { shape, .. }
            | Self::MixtureCoupling { shape, .. }
            | Self::OdeFlow { shape, .. } => shape.last().copied(),
            Self::SplineCoupling { features, .. } => Some(*features),
            _ => None,
        }
    }

    /// Tells the hidden layers of its net, if it has one, of a context whose embedding has k numbers.
    #[must_use]
    pub(crate) fn conditional(mut self, context: usize, gates: bool) -> Self {
        if let Self::OdeFlow { net, .. } = &mut self {
            // its hidden layers are told the time already
            let told = net.context.saturating_add(context);
            let mut own = std::mem::take(net);
            own.layers.retain(|layer| !matches!(layer, LayerStage::ContextBias { .. }));
            *net = own.conditional(told, gates);
        }
        if let Self::ResidualBlock { net, .. }
        | Self::InvertedBlock { net, .. }
        | Self::MonotoneBlock { net, .. }
        | Self::Coupling { net, .. }
        | Self::MixtureCoupling { net, .. }
        | Self::SplineCoupling { net, .. } = &mut self
        {
            *net = std::mem::take(net).conditional(context, gates);
        }
        self
    }

    /// Returns `true` for a block or a coupling.
    pub(crate) fn is_block(&self) -> bool {
        self.net().is_some() && !matches!(self, Self::ConditionalPrior { .. })
    }
}
