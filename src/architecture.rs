//! The chain of links that a configuration spells out.

use resflow_backend::{Backend, Key};

use crate::bijection::Bijection;
use crate::block::ResidualBlock;
use crate::config::{FlowConfig, ImageConfig, ModelConfig, Nonlinearity, Stage};
use crate::error::ConfigError;
use crate::layer::{ActivationLayer, ConcatenatedLipSwish, Layer, LipschitzConv, LipschitzLinear, Sequence};
use crate::lipschitz::{Coefficient, NormChain, Refresh};
use crate::transform::{ActNorm, Flatten, Logit, Squeeze};

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
    match config {
        ModelConfig::Rows(config) => rows(backend, config, *initial),
        ModelConfig::Images(config) => images(backend, config, *initial),
    }
}

fn rows<B: Backend>(backend: &B, config: &FlowConfig, initial: Initial) -> Result<Links<B>, ConfigError> {
    let d = config.dimension;
    let actnorm = || -> Box<dyn Bijection<B>> { Box::new(ActNorm::new(backend, d)) };
    let mut links = Vec::new();
    if config.actnorm {
        links.push(actnorm());
    }
    let layers: Vec<_> = config.linear_layers().into_iter().map(|(i, o)| (0, i, o)).collect();
    let net = Net::new(config.activation, config.coefficient, config.initial_scale, initial, &config.norms)?;
    let blocks =
        backend.run(config.blocks, |block| net.build(backend, &[d], block, &layers, config.leading_activation));
    for block in blocks {
        links.push(block?);
        if config.actnorm {
            links.push(actnorm());
        }
    }
    Ok(links)
}

fn images<B: Backend>(backend: &B, config: &ImageConfig, initial: Initial) -> Result<Links<B>, ConfigError> {
    let net = Net::new(config.activation, config.coefficient, config.initial_scale, initial, &config.norms)?;
    let plain = NormChain::Two;
    let flat = Net { norms: &plain, ..net };
    let stages = config.stages();
    // the number of each block among the blocks
    let numbers: Vec<usize> = stages
        .iter()
        .scan(0, |blocks, stage| {
            let number = *blocks;
            *blocks += usize::from(matches!(stage, Stage::Block(_)));
            Some(number)
        })
        .collect();
    let links = backend.run(stages.len(), |i| -> Result<Box<dyn Bijection<B>>, ConfigError> {
        Ok(match &stages[i] {
            Stage::Squeeze { channels, factor_out: true } => Box::new(Squeeze::with_factor_out(*channels)),
            Stage::Squeeze { .. } => Box::new(Squeeze::new()),
            Stage::Logit => Box::new(Logit::new(config.logit_alpha)?),
            Stage::ActNorm(features) => Box::new(ActNorm::new(backend, *features)),
            Stage::Flatten(image) => Box::new(Flatten::new(*image)),
            Stage::Block(block) => {
                // the norms are those of convolutional blocks
                let net = if block.row.len() == 3 { &net } else { &flat };
                net.build(backend, &block.row, numbers[i], &block.layers, block.leading_activation)?
            }
        })
    });
    links.into_iter().collect()
}

/// How the residual functions of a flow are made.
#[derive(Clone, Copy)]
struct Net<'a> {
    activation: Nonlinearity,
    coefficient: Coefficient,
    initial_scale: f64,
    initial: Initial,
    norms: &'a NormChain,
}

impl<'a> Net<'a> {
    fn new(
        activation: Nonlinearity,
        coefficient: f64,
        initial_scale: f64,
        initial: Initial,
        norms: &'a NormChain,
    ) -> Result<Self, ConfigError> {
        Ok(Self { activation, coefficient: Coefficient::new(coefficient)?, initial_scale, initial, norms })
    }

    /// A residual block over rows of a shape, of layers (kernel size, inputs, outputs); size 0 is linear, and so is 1 in the 2-norm.
    fn build<B: Backend>(
        &self,
        backend: &B,
        row: &[usize],
        number: usize,
        layers: &[(usize, usize, usize)],
        leading_activation: bool,
    ) -> Result<Box<dyn Bijection<B>>, ConfigError> {
        let mut net: Vec<Box<dyn Layer<B>>> = Vec::new();
        for (i, &layer) in layers.iter().enumerate() {
            if i > 0 || leading_activation {
                net.push(match self.activation.activation() {
                    Some(function) => Box::new(ActivationLayer::new(backend, function)),
                    None => Box::new(ConcatenatedLipSwish::new(backend)),
                });
            }
            let scale = if i + 1 == layers.len() { self.initial_scale } else { 1.0 };
            net.push(self.constrained(backend, row, layer, self.initial.key(number, i), scale));
        }
        let net = match self.norms.orders(layers.len()) {
            None => Sequence::new(net),
            Some(norms) => {
                let mut net = Sequence::with_norms(backend, net, norms)?;
                if matches!(self.initial, Initial::Random(_)) {
                    net.refresh(backend, Refresh::initial());
                }
                net
            }
        };
        Ok(Box::new(ResidualBlock::new(Box::new(net), row)?))
    }

    fn constrained<B: Backend>(
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
