//! The chain of links that a configuration spells out.

use resflow_backend::{Backend, Key};

use crate::bijection::Bijection;
use crate::block::ResidualBlock;
use crate::config::{ModelConfig, Nonlinearity, Stage};
use crate::coupling::Coupling;
use crate::error::ConfigError;
use crate::layer::{ActivationLayer, ConcatenatedLipSwish, Layer, LipschitzConv, LipschitzLinear, Sequence};
use crate::lipschitz::{Coefficient, NormChain, Refresh};
use crate::transform::{ActNorm, Flatten, InvertibleLinear, Logit, Squeeze};

/// What weights begin as.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Initial {
    /// A function of the key.
    Random(Key),
    /// To be filled from a file.
    Zeros,
}

impl Initial {
    fn key(self, block: usize, layer: usize) -> Option<Key> {
        match self {
            Self::Random(key) => Some(key.split(block as u64).split(layer as u64)),
            Self::Zeros => None,
        }
    }
}

type Links<B> = Vec<Box<dyn Bijection<B>>>;

/// The links of a flow, first applied first.
pub(crate) fn links<B: Backend>(backend: &B, config: &ModelConfig, initial: &Initial) -> Result<Links<B>, ConfigError> {
    config.check()?;
    let stages = config.stages();
    // the number of each block or coupling among them
    let numbers: Vec<usize> = stages
        .iter()
        .scan(0, |blocks, stage| {
            let number = *blocks;
            *blocks += usize::from(matches!(stage, Stage::Block(_) | Stage::Coupling(_)));
            Some(number)
        })
        .collect();
    let net = Net::new(config, *initial)?;
    let plain = NormChain::Two;
    // of images the norms are those of convolutional blocks
    let flat = if config.images().is_some() { Net { norms: &plain, ..net } } else { net };
    let links = backend.run(stages.len(), |i| -> Result<Box<dyn Bijection<B>>, ConfigError> {
        Ok(match &stages[i] {
            Stage::Squeeze { channels, factor_out: true } => Box::new(Squeeze::with_factor_out(*channels)),
            Stage::Squeeze { .. } => Box::new(Squeeze::new()),
            Stage::Logit => Box::new(Logit::new(net.logit_alpha)?),
            Stage::ActNorm(features) => Box::new(ActNorm::new(backend, *features)),
            Stage::Flatten(image) => Box::new(Flatten::new(*image)),
            Stage::InvertibleLinear(features) => match initial {
                Initial::Zeros => Box::new(InvertibleLinear::zeros(backend, *features)),
                Initial::Random(key) => {
                    let key = key.named("invertible").split(numbers[i] as u64);
                    Box::new(InvertibleLinear::rotation(backend, *features, key)?)
                }
            },
            Stage::Block(block) => {
                let net = if block.row.len() == 3 { &net } else { &flat };
                let g = net.build(backend, &block.row, numbers[i], &block.layers, block.leading_activation)?;
                Box::new(ResidualBlock::new(Box::new(g), &block.row)?)
            }
            Stage::Coupling(coupling) => {
                let layers = net.build(backend, &coupling.row, numbers[i], &coupling.layers, false)?;
                Box::new(Coupling::new(Box::new(layers), coupling.mask, &coupling.row)?)
            }
        })
    });
    links.into_iter().collect()
}

/// How the nets of a flow's blocks and couplings are made.
#[derive(Clone, Copy)]
struct Net<'a> {
    activation: Nonlinearity,
    /// κ, where weights are constrained.
    coefficient: Option<Coefficient>,
    initial_scale: f64,
    initial: Initial,
    norms: &'a NormChain,
    logit_alpha: f64,
}

impl<'a> Net<'a> {
    fn new(config: &'a ModelConfig, initial: Initial) -> Result<Self, ConfigError> {
        let (activation, kappa, initial_scale, norms, logit_alpha) = match config {
            ModelConfig::Rows(c) => (c.activation, c.coefficient, c.initial_scale, &c.norms, 0.0),
            ModelConfig::Images(c) => (c.activation, c.coefficient, c.initial_scale, &c.norms, c.logit_alpha),
        };
        let coefficient = if config.family().couples() { None } else { Some(Coefficient::new(kappa)?) };
        Ok(Self { activation, coefficient, initial_scale, initial, norms, logit_alpha })
    }

    /// A net over rows of a shape, of layers (kernel size, inputs, outputs); size 0 is linear, and so is 1 in the 2-norm.
    fn build<B: Backend>(
        &self,
        backend: &B,
        row: &[usize],
        number: usize,
        layers: &[(usize, usize, usize)],
        leading_activation: bool,
    ) -> Result<Sequence<B>, ConfigError> {
        let mut net: Vec<Box<dyn Layer<B>>> = Vec::new();
        for (i, &layer) in layers.iter().enumerate() {
            if i > 0 || leading_activation {
                net.push(match self.activation.activation() {
                    Some(function) => Box::new(ActivationLayer::new(backend, function)),
                    None => Box::new(ConcatenatedLipSwish::new(backend)),
                });
            }
            let scale = if i + 1 == layers.len() { self.initial_scale } else { 1.0 };
            net.push(self.weighted(backend, row, layer, self.initial.key(number, i), scale));
        }
        Ok(match self.norms.orders(layers.len()) {
            None => Sequence::new(net),
            Some(norms) => {
                let mut net = Sequence::with_norms(backend, net, norms)?;
                if matches!(self.initial, Initial::Random(_)) {
                    net.refresh(backend, Refresh::initial());
                }
                net
            }
        })
    }

    fn weighted<B: Backend>(
        &self,
        backend: &B,
        row: &[usize],
        (size, inputs, outputs): (usize, usize, usize),
        key: Option<Key>,
        scale: f64,
    ) -> Box<dyn Layer<B>> {
        let image = || [row[0], row[1]];
        let kappa = self.coefficient;
        // between other norms than the 2-norm that of a 1 × 1 convolution depends on the image size
        let linear = size == 0 || (size == 1 && *self.norms == NormChain::Two);
        match (if linear { 0 } else { size }, key) {
            (0, None) => Box::new(LipschitzLinear::zeros(backend, inputs, outputs, kappa)),
            (_, None) => Box::new(LipschitzConv::zeros(backend, image(), size, inputs, outputs, kappa)),
            (0, Some(key)) => {
                let mut layer = LipschitzLinear::initialise(backend, inputs, outputs, kappa, key);
                if scale != 1.0 {
                    layer.scale_weight(backend, scale);
                }
                Box::new(layer)
            }
            (_, Some(key)) => {
                let mut layer = LipschitzConv::initialise(backend, image(), size, inputs, outputs, kappa, key);
                if scale != 1.0 {
                    layer.scale_weight(backend, scale);
                }
                Box::new(layer)
            }
        }
    }
}
