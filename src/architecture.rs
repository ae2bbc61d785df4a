//! Builds the transforms of stages, which a configuration or a file describes.

use resflow_backend::{Backend, Key};

use crate::bijection::Bijection;
use crate::block::{InvertedBlock, MonotoneBlock, ResidualBlock};
use crate::config::{ImageConfig, ModelConfig, Start};
use crate::coupling::Coupling;
use crate::error::ConfigError;
use crate::layer::{
    Attention, Conditioner, ContextBias, ContextGate, DenseLayer, GatedUnit, Layer, LayerNorm, LipschitzConv,
    LipschitzLinear, PixelBias, Sequence, Skip, Told, activation_layer,
};
use crate::lipschitz::{Coefficient, PowerIteration};
use crate::mixture_coupling::MixtureCoupling;
use crate::module::Module as _;
use crate::ode::OdeFlow;
use crate::registry::Registry;
use crate::spline::SplineCoupling;
use crate::stage::{LayerStage, Net, Splines, Stage};
use crate::transform::{
    ActNorm, ConditionalActNorm, Flatten, InvertibleLinear, Logit, LuLinear, Squeeze, draw_permutation,
};

/// The initial weights.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Initial {
    /// A function of the key.
    Random(Key),
    /// To be filled from a file.
    Zeros,
}

type Transforms<B> = Vec<Box<dyn Bijection<B>>>;

/// Builds the transforms of a configuration, first applied first.
pub(crate) fn transforms<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    initial: Initial,
) -> Result<Transforms<B>, ConfigError> {
    config.check()?;
    let identity = config.start() == Start::Identity;
    let maker = Maker { backend, initial, identity, initial_scale: config.initial_scale(), registry: &Registry::new() };
    maker.transforms(&config.stages())
}

/// Builds the transforms that a file describes, with zeros to be filled.
pub(crate) fn described<B: Backend>(
    backend: &B,
    stages: &[Stage],
    registry: &Registry<B>,
) -> Result<Transforms<B>, ConfigError> {
    Maker { backend, initial: Initial::Zeros, identity: false, initial_scale: 1.0, registry }.transforms(stages)
}

/// Builds the net that looks at the pixels and the transforms of a variational dequantiser, which begin as the identity.
pub(crate) fn dequantiser<B: Backend>(
    backend: &B,
    config: &ImageConfig,
    initial: Initial,
) -> Result<(Sequence<B>, Transforms<B>), ConfigError> {
    let initial = match initial {
        Initial::Random(key) => Initial::Random(key.named("dequantiser")),
        Initial::Zeros => Initial::Zeros,
    };
    let registry = &Registry::new();
    let maker = Maker { backend, initial, identity: true, initial_scale: 0.0, registry };
    let transforms = maker.transforms(&config.dequantiser_stages())?;
    let maker = Maker { identity: false, initial_scale: 1.0, ..maker };
    let image = [config.height, config.width, config.channels];
    Ok((maker.net(&config.encoder(), &image, transforms.len())?, transforms))
}

/// The factor on the initial weights of the last layer of what is skipped (Ho et al. 2019, the authors' code).
const SKIPPED: f64 = 0.1;

struct Maker<'a, B: Backend> {
    backend: &'a B,
    initial: Initial,
    /// Begins as the identity.
    identity: bool,
    /// The factor on the initial weights of each net's last layer.
    initial_scale: f64,
    registry: &'a Registry<B>,
}

impl<B: Backend> Maker<'_, B> {
    fn transforms(&self, stages: &[Stage]) -> Result<Transforms<B>, ConfigError> {
        // the number of each block or coupling among them
        let numbers: Vec<usize> = stages
            .iter()
            .scan(0, |blocks, stage| {
                let number = *blocks;
                *blocks += usize::from(stage.is_block());
                Some(number)
            })
            .collect();
        let permutations = self.permutations(stages);
        let made = self.backend.run(stages.len(), |i| self.transform(&stages[i], numbers[i], &permutations[i]));
        made.into_iter().collect()
    }

    /// The permutations of fresh LU linear maps: random ones, of which the last undoes all others, so that a flow that
    /// starts at the identity does so in every number's own place.
    fn permutations(&self, stages: &[Stage]) -> Vec<Vec<usize>> {
        let Initial::Random(key) = self.initial else { return vec![Vec::new(); stages.len()] };
        let key = key.named("permutation");
        let last = stages.iter().rposition(|stage| matches!(stage, Stage::LuLinear { .. }));
        // the number that each place holds after the maps so far
        let mut held = Vec::new();
        // what a context adds does not count, so that a conditional flow begins as the unconditional one
        let mut added = 0;
        let permutations = stages.iter().enumerate().map(|(i, stage)| {
            added += usize::from(matches!(stage, Stage::ConditionalActNorm { .. }));
            let Stage::LuLinear { features } = *stage else { return Vec::new() };
            if held.len() != features {
                held = (0..features).collect();
            }
            let mut permutation = draw_permutation(features, key.split((i - added) as u64));
            if last == Some(i) {
                held.iter().enumerate().for_each(|(place, &number)| permutation[number] = place);
            }
            held = permutation.iter().map(|&place| held[place]).collect();
            permutation
        });
        permutations.collect()
    }

    fn transform(
        &self,
        stage: &Stage,
        number: usize,
        permutation: &[usize],
    ) -> Result<Box<dyn Bijection<B>>, ConfigError> {
        let backend = self.backend;
        Ok(match stage {
            Stage::Squeeze { factored_out: 0 } => Box::new(Squeeze::new()),
            Stage::Squeeze { factored_out } if factored_out % 2 == 0 => {
                Box::new(Squeeze::with_factor_out(factored_out / 2))
            }
            Stage::Squeeze { factored_out } => {
                let problem = format!("a squeeze that factors out {factored_out} channels: half of them are even");
                return Err(ConfigError::Inconsistent(problem));
            }
            Stage::Logit { alpha } => Box::new(Logit::new(*alpha)?),
            Stage::ActNorm { features } if self.identity => Box::new(ActNorm::identity(backend, *features)),
            Stage::ActNorm { features } => Box::new(ActNorm::new(backend, *features)),
            Stage::ConditionalActNorm { features, context } => {
                Box::new(ConditionalActNorm::new(backend, *features, *context))
            }
            Stage::Flatten { image } => Box::new(Flatten::new(*image)),
            Stage::InvertibleLinear { features } => match self.initial {
                Initial::Zeros => Box::new(InvertibleLinear::zeros(backend, *features)),
                Initial::Random(_) if self.identity => Box::new(InvertibleLinear::identity(backend, *features)?),
                Initial::Random(key) => {
                    let key = key.named("invertible").split(number as u64);
                    Box::new(InvertibleLinear::rotation(backend, *features, key)?)
                }
            },
            Stage::LuLinear { features } => match self.initial {
                Initial::Zeros => Box::new(LuLinear::zeros(backend, *features)),
                Initial::Random(_) => Box::new(LuLinear::permuting(backend, permutation)?),
            },
            Stage::ResidualBlock { shape, net } => {
                Box::new(ResidualBlock::new(Box::new(self.net(net, shape, number)?), shape)?)
            }
            Stage::InvertedBlock { shape, net } => {
                Box::new(InvertedBlock::new(Box::new(self.net(net, shape, number)?), shape)?)
            }
            Stage::MonotoneBlock { shape, net } => {
                Box::new(MonotoneBlock::new(Box::new(self.net(net, shape, number)?), shape)?)
            }
            Stage::Coupling { shape, mask, net, centred } => {
                let coupling = Coupling::new(Box::new(self.net(net, shape, number)?), *mask, shape)?;
                Box::new(coupling.with_centre(*centred))
            }
            // zeros at first, whatever the others begin with
            Stage::ConditionalPrior { shape, net } => {
                let maker = Maker { identity: true, ..*self };
                Box::new(Coupling::prior(Box::new(maker.net(net, shape, number)?), shape)?)
            }
            Stage::SplineCoupling { features, swapped, splines, net } => {
                let [(_, stays), _] = Splines::sides(*features, *swapped);
                let net = Box::new(self.net(net, &[stays], number)?);
                Box::new(SplineCoupling::new(backend, net, *features, *swapped, *splines)?)
            }
            Stage::MixtureCoupling { shape, mask, logistics, net } => {
                Box::new(MixtureCoupling::new(Box::new(self.net(net, shape, number)?), *mask, shape, *logistics)?)
            }
            Stage::OdeFlow { shape, net, training, evaluation } => {
                Box::new(OdeFlow::new(Box::new(self.net(net, shape, number)?), shape, *training, *evaluation)?)
            }
            Stage::Custom(custom) => self.registry.transform(backend, custom)?,
        })
    }

    /// Builds a linear layer or a convolution, of random weights if there is a key; the last one of a net begins smaller.
    fn affine(
        &self,
        layer: &LayerStage,
        shape: &[usize],
        key: Option<Key>,
        last: bool,
    ) -> Result<Box<dyn Layer<B>>, ConfigError> {
        let backend = self.backend;
        let (clear, scale) = (self.identity && last, if last { self.initial_scale } else { 1.0 });
        match *layer {
            LayerStage::Linear { inputs, outputs, coefficient } => {
                let kappa = coefficient.map(Coefficient::new).transpose()?;
                let Some(key) = key else {
                    return Ok(Box::new(LipschitzLinear::zeros(backend, inputs, outputs, kappa)));
                };
                let mut layer = LipschitzLinear::initialise(backend, inputs, outputs, kappa, key);
                if clear {
                    layer.clear(backend);
                } else if scale != 1.0 {
                    layer.scale_weight(backend, scale);
                }
                Ok(Box::new(layer))
            }
            LayerStage::Convolution { kernel, inputs, outputs, coefficient } => {
                let &[h, w, _] = shape else {
                    return Err(ConfigError::Inconsistent(format!(
                        "a convolution is for images, not for samples of shape {shape:?}"
                    )));
                };
                if kernel.iter().any(|size| size % 2 == 0) {
                    return Err(ConfigError::Inconsistent(format!("a kernel of {kernel:?}: its sizes are odd")));
                }
                let kappa = coefficient.map(Coefficient::new).transpose()?;
                let Some(key) = key else {
                    return Ok(Box::new(LipschitzConv::zeros(backend, [h, w], kernel, inputs, outputs, kappa)));
                };
                let mut layer = LipschitzConv::initialise(backend, [h, w], kernel, inputs, outputs, kappa, key);
                if clear {
                    layer.clear(backend);
                } else if scale != 1.0 {
                    layer.scale_weight(backend, scale);
                }
                Ok(Box::new(layer))
            }
            _ => unreachable!("only affine layers"),
        }
    }

    /// The key of a layer of net `number` that is no affine one, if weights are random.
    fn own_key(&self, number: usize, kind: &str, layer: usize) -> Option<Key> {
        match self.initial {
            Initial::Random(key) => Some(key.split(number as u64).named(kind).split(layer as u64)),
            Initial::Zeros => None,
        }
    }

    /// Builds a net over samples of a shape.
    fn net(&self, net: &Net, shape: &[usize], number: usize) -> Result<Sequence<B>, ConfigError> {
        let backend = self.backend;
        if !matches!(shape.len(), 1 | 3) {
            let problem = format!("samples of {} axes: they are [d] or [h, w, c]", shape.len());
            return Err(ConfigError::Inconsistent(problem));
        }
        // of nothing anything may be large
        let affine: Vec<_> = net.layers.iter().map(LayerStage::affine).collect();
        let empty = |layer: &LayerStage| match layer {
            LayerStage::Linear { inputs, outputs, .. } | LayerStage::Convolution { inputs, outputs, .. } => {
                *inputs == 0 || *outputs == 0
            }
            _ => false,
        };
        if affine.iter().flatten().any(empty) {
            return Err(ConfigError::Inconsistent("a layer without inputs or outputs".into()));
        }
        let count = affine.iter().flatten().count();
        let mut layers: Vec<Box<dyn Layer<B>>> = Vec::with_capacity(net.layers.len());
        let mut weighted = 0;
        let (all, mut offset) = (net.told(), 0);
        if (all > 0) != (net.context > 0) {
            let problem = "a net with a context of which no layer is told, or the reverse";
            return Err(ConfigError::Inconsistent(problem.into()));
        }
        for (i, (layer, affine)) in net.layers.iter().zip(&affine).enumerate() {
            let told = Told { offset, features: layer.told(), all };
            offset += told.features;
            let key = match self.initial {
                Initial::Random(key) => Some(key.split(number as u64).split(weighted as u64)),
                Initial::Zeros => None,
            };
            weighted += usize::from(affine.is_some());
            // the last layer that has a weight, behind which there is nothing of the input
            let last = weighted == count && !matches!(layer, LayerStage::Dense { .. });
            layers.push(match (layer, affine) {
                (LayerStage::Activation(f), _) => activation_layer(backend, *f),
                (LayerStage::Custom(custom), _) => self.registry.layer(backend, custom)?,
                (LayerStage::ContextBias { .. }, _) => Box::new(ContextBias::new(told)),
                (LayerStage::ContextGate { .. }, _) => Box::new(ContextGate::new(told)),
                (LayerStage::PixelBias { .. }, _) => Box::new(PixelBias::new(told)),
                (LayerStage::Gate { features }, _) => Box::new(GatedUnit::new(*features)),
                (LayerStage::LayerNorm { features }, _) => Box::new(LayerNorm::new(backend, *features)),
                (LayerStage::Attention { image, heads }, _) => {
                    let key = self.own_key(number, "attention", i);
                    Box::new(Attention::new(backend, *image, *heads, key)?)
                }
                (LayerStage::Skip { layers }, _) => {
                    if layers.iter().any(|layer| layer.told() > 0) {
                        let problem = "layers that are skipped are told of a context";
                        return Err(ConfigError::Inconsistent(problem.into()));
                    }
                    let initial = self.own_key(number, "skip", i).map_or(Initial::Zeros, Initial::Random);
                    // an untrained net is nearly what it skips
                    let maker = Maker { initial, identity: false, initial_scale: SKIPPED, ..*self };
                    let net = Net { layers: layers.clone(), ..Net::default() };
                    Box::new(Skip::new(maker.net(&net, shape, 0)?))
                }
                (LayerStage::Dense { inputs, activation, concatenation, context, .. }, Some(affine)) => {
                    let affine = self.affine(affine, shape, key, last)?;
                    let activation = activation_layer(backend, *activation);
                    let dense = DenseLayer::new(backend, *inputs, affine, activation, *concatenation)?;
                    Box::new(if *context { dense.with_context(told) } else { dense })
                }
                (affine, _) => self.affine(affine, shape, key, last)?,
            });
        }
        let conditioner = (all > 0).then(|| Conditioner::new(backend, net.context, all));
        let sequence = if net.norms.is_empty() {
            Sequence::new(layers)
        } else {
            let mut sequence = Sequence::with_norms(backend, layers, net.norms.clone())?;
            if matches!(self.initial, Initial::Random(_)) {
                sequence.update_spectral_norms(backend, PowerIteration::initial());
            }
            sequence
        };
        match conditioner {
            Some(conditioner) => sequence.with_conditioner(backend, conditioner),
            None => Ok(sequence),
        }
    }
}
