//! How images of bytes become numbers, as configurations say it, and the flow that a variational dequantiser is made of.
//!
//! ```text
//! encoder:  (3 × 3 convolution, ELU) × 2, from the pixels to k channels e
//! chain:    (scale and shift of each pixel by e, block or coupling whose net is told e) × n
//! ```
//!
//! The chain begins as the identity. Checkerboard masks and, of several channels, channel masks take turns in couplings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Family, ImageConfig, MOST_BLOCKS, MOST_WIDTH, Nonlinearity, count, flatten, net};
use crate::error::ConfigError;
use crate::lipschitz::NormChain;
use crate::stage::{LayerStage, Logistics, Mask, Net, Repeated, Size, Stage};

/// Where the noise that images of bytes get comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dequantisation {
    /// It is uniform.
    #[default]
    Uniform,
    /// It is drawn by a conditional flow that sees the image and is trained with the flow.
    Variational,
}

impl Dequantisation {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Uniform, Self::Variational];

    /// The name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Variational => "variational",
        }
    }
}

impl fmt::Display for Dequantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dequantisation {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            ConfigError::Syntax(format!("there is no dequantisation `{text}`; there are {names}"))
        })
    }
}

/// The dequantisation of a flow over images: its kind, and the flow q(u | x) of a variational one.
///
/// ```
/// use resflow::config::{Dequantisation, DequantisationConfig, ImageConfig};
/// let dequantisation = DequantisationConfig { kind: Dequantisation::Variational, ..DequantisationConfig::default() };
/// let config = ImageConfig { dequantisation, ..ImageConfig::default() };
/// config.check()?;
/// # Ok::<(), resflow::error::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DequantisationConfig {
    /// The kind.
    pub kind: Dequantisation,
    /// What q is made of: `"realnvp"`, `"flowpp"` or `"residual"`, whose log det is estimated as that of the flow is.
    pub model: Family,
    /// The number of its blocks or couplings.
    pub blocks: usize,
    /// The channels inside their nets.
    pub filters: usize,
    /// k, the channels of what is known of the pixels.
    pub features: usize,
}

impl Default for DequantisationConfig {
    fn default() -> Self {
        Self { kind: Dequantisation::Uniform, model: Family::RealNvp, blocks: 4, filters: 32, features: 32 }
    }
}

/// The kernels of the nets of q.
const KERNELS: [usize; 3] = [3, 1, 3];
/// The kernel of the encoder's convolutions.
const ENCODER_KERNEL: usize = 3;

impl DequantisationConfig {
    /// Returns the default of a kind.
    pub fn new(kind: Dequantisation) -> Self {
        Self { kind, ..Self::default() }
    }

    /// Returns `true` of a variational dequantisation, by which log p(x) of bytes is bounded by a trained q.
    pub fn is_variational(&self) -> bool {
        self.kind == Dequantisation::Variational
    }

    /// Returns `true` for what configurations of before there was another have.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !matches!(self.model, Family::RealNvp | Family::FlowPlusPlus | Family::Residual) {
            return Err(ConfigError::Inconsistent(format!(
                "a dequantisation by {}: the flow of the noise is realnvp, flowpp or residual",
                self.model
            )));
        }
        count("dequantisation blocks", self.blocks, MOST_BLOCKS, "1 to 10000")?;
        count("dequantisation filters", self.filters, MOST_WIDTH, "1 to 65536")?;
        count("dequantisation features", self.features, MOST_WIDTH, "1 to 65536")
    }

    /// The masks of its couplings on images of a shape, of which there may be none.
    fn masks([h, w, c]: [usize; 3]) -> Vec<Mask> {
        let both = |mask: fn(bool) -> Mask| [mask(false), mask(true)];
        let boards = (h * w > 1).then(|| both(|swapped| Mask::Checkerboard { swapped }));
        let channels = (c > 1).then(|| both(|swapped| Mask::Channels { swapped }));
        boards.into_iter().chain(channels).flatten().collect()
    }
}

impl ImageConfig {
    /// The net that tells a variational dequantiser of the pixels.
    pub(crate) fn encoder(&self) -> Net {
        let k = self.dequantisation.features;
        let mut encoder = net(
            &[(ENCODER_KERNEL, self.channels, k), (ENCODER_KERNEL, k, k)],
            Nonlinearity::Elu,
            false,
            None,
            &NormChain::Two,
        );
        encoder.layers.push(LayerStage::Activation(Nonlinearity::Elu));
        encoder
    }

    /// The chain of a variational dequantiser, equal rounds counted.
    fn dequantiser_chain(&self) -> Vec<Repeated> {
        let DequantisationConfig { model, blocks, filters, features: context, .. } = self.dequantisation;
        let image = [self.height, self.width, self.channels];
        let (shape, c) = (image.to_vec(), self.channels);
        let scale = Stage::ConditionalActNorm { features: c, context };
        let told = |ends: [usize; 2], activation: Nonlinearity, coefficient: Option<f64>| {
            let widths = [ends[0], filters, filters, ends[1]];
            let layers: Vec<_> = KERNELS.iter().zip(widths.windows(2)).map(|(&k, w)| (k, w[0], w[1])).collect();
            net(&layers, activation, false, coefficient, &NormChain::Two).told_by_pixels(context)
        };
        if model == Family::Residual {
            let net = told([c, c], Nonlinearity::LipSwish, Some(self.coefficient));
            return vec![Repeated { stages: vec![scale, Stage::ResidualBlock { shape, net }], times: blocks }];
        }
        let logistics = Logistics { components: self.components };
        let coupling = |mask: Mask| {
            let ends = match model {
                Family::FlowPlusPlus => logistics.net_shapes(mask, &shape),
                _ => mask.net_shapes(&shape),
            };
            // both sides of the mask hold something, which is all that could be wrong
            let ends = ends.ok()?.map(|end| end.last().copied().unwrap_or(0));
            let net = told(ends, Nonlinearity::Elu, None);
            let shape = shape.clone();
            Some(match model {
                Family::FlowPlusPlus => Stage::MixtureCoupling { shape, mask, logistics, net },
                _ => Stage::Coupling { shape, mask, net, centred: true },
            })
        };
        let masks = DequantisationConfig::masks(image);
        let round = |mask: Option<&Mask>| {
            let coupling = mask.and_then(|mask| coupling(*mask));
            [scale.clone()].into_iter().chain(coupling).collect::<Vec<_>>()
        };
        if masks.is_empty() {
            return vec![Repeated { stages: round(None), times: blocks }];
        }
        let whole =
            Repeated { stages: masks.iter().flat_map(|mask| round(Some(mask))).collect(), times: blocks / masks.len() };
        let rest = masks.iter().take(blocks % masks.len()).map(|mask| Repeated::once(round(Some(mask))));
        [whole].into_iter().filter(|whole| whole.times > 0).chain(rest).collect()
    }

    /// The transforms of a variational dequantiser, first applied first.
    pub(crate) fn dequantiser_stages(&self) -> Vec<Stage> {
        flatten(&self.dequantiser_chain())
    }

    /// Counts the numbers that a variational dequantiser stores; none without one.
    pub(crate) fn dequantiser_size(&self) -> Size {
        if !self.dequantisation.is_variational() {
            return Size::default();
        }
        let encoder = self.encoder().size(&[self.height, self.width, self.channels]);
        self.dequantiser_chain().iter().map(Repeated::size).sum::<Size>().plus(encoder)
    }
}
