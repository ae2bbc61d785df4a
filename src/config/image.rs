//! The configuration of a flow over images: the multi-scale network of Chen et al. 2019 (appendix E).
//!
//! ```text
//! [squeeze,] [logit,] ActNorm, (block, ActNorm) × n₁, squeeze, (block, ActNorm) × n₂, squeeze, …, (block, ActNorm) × n_S
//! [, flatten, (fully connected block, ActNorm) × m]
//! ```
//!
//! In a block g = (activation, convolution) × kernels, c → w → … → w → c channels; the very first one begins with its
//! convolution, since an activation of the data themselves would only lose some. With factor-out half of the channels
//! leave after each squeeze between scales. Of families that couple, couplings are in the place of blocks.

use serde::{Deserialize, Serialize};

use super::{
    CouplingBlock, Family, MOST_BLOCKS, MOST_LAYERS, MOST_PARAMETERS, MOST_WIDTH, Nonlinearity, check_shared, count,
};
use crate::error::ConfigError;
use crate::estimator::{Estimator, Law, Probe, RussianRoulette, Sharing};
use crate::lipschitz::NormChain;
use crate::transform::Logit;

/// The architecture of a flow over images and the estimators it is trained and evaluated with.
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageConfig {
    /// What its links are.
    pub model: Family,
    /// The height of an image, in pixels.
    pub height: usize,
    /// The width of an image, in pixels.
    pub width: usize,
    /// The channels of an image.
    pub channels: usize,
    /// The bits of a channel that are modelled, 1 to 8; lower ones are dropped.
    pub bits: u32,
    /// Whether the logit comes first. Without it the first ActNorm is what normalises the channels, by the first batch, which
    /// hybrid models of CIFAR-10 are better off with; samples may lie outside \[0, 1\] then.
    pub logit: bool,
    /// α, the margin of the logit.
    pub logit_alpha: f64,
    /// Whether images are squeezed before anything else.
    pub squeeze_first: bool,
    /// The number of convolutional blocks, or of couplings, of each scale.
    pub blocks: Vec<usize>,
    /// w, the channels inside g, or inside the net of a coupling.
    pub filters: usize,
    /// The sizes of the convolutions' kernels.
    pub kernels: Vec<usize>,
    /// The nonlinearity of g, or of a coupling's net.
    pub activation: Nonlinearity,
    /// Whether g begins with an activation, in all blocks but the first; a coupling's net does not.
    pub leading_activation: bool,
    /// Whether g of the very first block does.
    pub first_activation: bool,
    /// Whether half of the channels leave after each squeeze between scales.
    pub factor_out: bool,
    /// The number of fully connected blocks at the end.
    pub fully_connected: usize,
    /// The hidden width of fully connected blocks; they have two hidden layers.
    pub fully_connected_width: usize,
    /// Whether to normalise activations between blocks.
    pub actnorm: bool,
    /// The classes of a hybrid model's classifier, which has a head on every scale; 0 is none.
    pub classes: usize,
    /// The channels of each head.
    pub head_width: usize,
    /// κ, the bound on each layer's norm; Lip(g) ≤ κ^(number of layers). Couplings have none.
    pub coefficient: f64,
    /// The norms between which weights are constrained: `"2"` for the spectral norm everywhere, one letter a layer boundary
    /// such as `"2222"` (`f` is ∞), or `"learned"`.
    pub norms: NormChain,
    /// The factor on the initial weights of each block's last layer, and on the biases of a coupling's.
    pub initial_scale: f64,
    /// The estimator of the log det's gradient in training; couplings are exact, whatever it says.
    pub training: Estimator,
    /// The estimator of log p.
    pub evaluation: Estimator,
    /// How many independent estimates of each row's log p give its standard error.
    pub replicates: usize,
}

impl Default for ImageConfig {
    /// The published MNIST model.
    fn default() -> Self {
        let roulette = |exact_terms, sharing| {
            Estimator::RussianRoulette(RussianRoulette {
                law: Law::Poisson { rate: 2.0 },
                exact_terms,
                draws: 1,
                probes: 1,
                probe: Probe::Rademacher,
                sharing,
            })
        };
        Self {
            model: Family::Residual,
            height: 28,
            width: 28,
            channels: 1,
            bits: 8,
            logit: true,
            logit_alpha: 1e-6,
            squeeze_first: false,
            blocks: vec![16, 16, 16],
            filters: 512,
            kernels: vec![3, 1, 3],
            activation: Nonlinearity::LipSwish,
            leading_activation: true,
            first_activation: false,
            factor_out: false,
            fully_connected: 4,
            fully_connected_width: 128,
            actnorm: true,
            classes: 0,
            head_width: 256,
            coefficient: 0.98,
            norms: NormChain::default(),
            initial_scale: 1.0,
            training: roulette(2, Sharing::Batch),
            evaluation: roulette(20, Sharing::Sample),
            replicates: 2,
        }
    }
}

/// One link of the chain that a configuration spells out.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// A squeeze, after which this many channels leave.
    Squeeze {
        /// The channels before it.
        channels: usize,
        /// Whether half of those after it leave.
        factor_out: bool,
    },
    /// The logit.
    Logit,
    /// ActNorm over this many features or channels.
    ActNorm(usize),
    /// A residual block.
    Block(ImageBlock),
    /// An invertible linear map over this many features or channels.
    InvertibleLinear(usize),
    /// An affine coupling.
    Coupling(CouplingBlock),
    /// From images to vectors.
    Flatten([usize; 3]),
}

/// A residual block of an image flow.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageBlock {
    /// The shape of its rows: `[h, w, c]`, or `[d]` where it is fully connected.
    pub row: Vec<usize>,
    /// Kernel size, inputs and outputs of its layers; a fully connected one has kernel size 0.
    pub layers: Vec<(usize, usize, usize)>,
    /// Whether it begins with an activation.
    pub leading_activation: bool,
}

/// No honest image is larger along an axis.
const MOST_PIXELS: usize = 1 << 14;
const MOST_SCALES: usize = 12;

impl ImageConfig {
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        count("height", self.height, MOST_PIXELS, "1 to 16384 pixels")?;
        count("width", self.width, MOST_PIXELS, "1 to 16384 pixels")?;
        count("channels", self.channels, 1 << 10, "1 to 1024")?;
        count("bits", self.bits as usize, 8, "1 to 8")?;
        Logit::new(self.logit_alpha)?;
        count("blocks", self.blocks.len(), MOST_SCALES, "1 to 12 scales")?;
        for &blocks in &self.blocks {
            count("blocks", blocks, MOST_BLOCKS, "1 to 10000 in a scale")?;
        }
        count("filters", self.filters, MOST_WIDTH, "1 to 65536")?;
        count("kernels", self.kernels.len(), MOST_LAYERS, "1 to 64 kernel sizes")?;
        for &kernel in &self.kernels {
            if kernel % 2 == 0 || kernel > 31 {
                let expected = "odd sizes from 1 to 31";
                return Err(ConfigError::OutOfRange { name: "kernels", value: kernel as f64, expected });
            }
        }
        if self.fully_connected > MOST_BLOCKS {
            let value = self.fully_connected as f64;
            return Err(ConfigError::OutOfRange { name: "fully_connected", value, expected: "0 to 10000" });
        }
        count("fully_connected_width", self.fully_connected_width, MOST_WIDTH, "1 to 65536")?;
        self.check_heads()?;
        check_shared(self.coefficient, self.initial_scale, self.replicates, [&self.training, &self.evaluation])?;
        self.norms.check(self.kernels.len(), self.activation.widening() == 1)?;
        let halvings = self.blocks.len() - 1 + usize::from(self.squeeze_first);
        let divisor = 1_usize << halvings;
        if !self.height.is_multiple_of(divisor) || !self.width.is_multiple_of(divisor) {
            return Err(ConfigError::Inconsistent(format!(
                "images of {} × {} cannot be squeezed {halvings} times: both must be multiples of {divisor}",
                self.height, self.width
            )));
        }
        let features = (self.channels as u64) << (2 * halvings);
        if features > MOST_WIDTH as u64 || self.dimension() > 1 << 26 {
            return Err(ConfigError::Inconsistent(format!(
                "{} numbers in an image, {features} channels in the last scale: more than this library handles",
                self.dimension()
            )));
        }
        self.model.check_training(&self.training)?;
        if self.model.couples() {
            self.check_couplings()?;
        }
        if self.parameters() > MOST_PARAMETERS {
            return Err(ConfigError::Inconsistent(format!(
                "{} parameters are more than this library handles",
                self.parameters()
            )));
        }
        Ok(())
    }

    /// d, the numbers in an image.
    pub fn dimension(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// The shapes of the images in each scale, `[h, w, c]`.
    pub(super) fn scales(&self) -> Vec<[usize; 3]> {
        let halved = |[h, w, c]: [usize; 3], factor: usize| [h / 2, w / 2, factor * c];
        let image = [self.height, self.width, self.channels];
        let first = if self.squeeze_first { halved(image, 4) } else { image };
        let next = |&image: &[usize; 3]| Some(halved(image, if self.factor_out { 2 } else { 4 }));
        std::iter::successors(Some(first), next).take(self.blocks.len()).collect()
    }

    /// The chain, first applied first.
    pub fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        if self.squeeze_first {
            stages.push(Stage::Squeeze { channels: self.channels, factor_out: false });
        }
        if self.logit {
            stages.push(Stage::Logit);
        }
        let scales = self.scales();
        let [mut h, mut w, mut c] = scales.first().copied().unwrap_or_default();
        if self.actnorm {
            stages.push(Stage::ActNorm(c));
        }
        for (scale, &blocks) in self.blocks.iter().enumerate() {
            if scale > 0 {
                stages.push(Stage::Squeeze { channels: c, factor_out: self.factor_out });
                [h, w, c] = scales[scale];
            }
            if self.model.couples() {
                stages.extend(self.coupling_stages([h, w, c], blocks));
                continue;
            }
            for block in 0..blocks {
                let leading = if scale == 0 && block == 0 { self.first_activation } else { self.leading_activation };
                stages.push(Stage::Block(ImageBlock {
                    row: vec![h, w, c],
                    layers: self.convolutions(c, leading),
                    leading_activation: leading,
                }));
                if self.actnorm {
                    stages.push(Stage::ActNorm(c));
                }
            }
        }
        if self.fully_connected > 0 {
            let d = h * w * c;
            stages.push(Stage::Flatten([h, w, c]));
            for _ in 0..self.fully_connected {
                let widths = [d, self.fully_connected_width, self.fully_connected_width, d];
                let layers = widths.windows(2).map(|w| (0, w[0] * self.activation.widening(), w[1])).collect();
                stages.push(Stage::Block(ImageBlock { row: vec![d], layers, leading_activation: true }));
                if self.actnorm {
                    stages.push(Stage::ActNorm(d));
                }
            }
        }
        stages
    }

    /// (kernel, inputs, outputs) of the convolutions of a block over c channels.
    fn convolutions(&self, c: usize, leading: bool) -> Vec<(usize, usize, usize)> {
        let mut widths = vec![self.filters; self.kernels.len() + 1];
        widths[0] = c;
        widths[self.kernels.len()] = c;
        let widen = |i: usize| if i > 0 || leading { self.activation.widening() } else { 1 };
        self.kernels.iter().enumerate().map(|(i, &k)| (k, widths[i] * widen(i), widths[i + 1])).collect()
    }

    /// The number of trained numbers.
    pub fn parameters(&self) -> u64 {
        self.flow_parameters().saturating_add(self.head_parameters())
    }

    /// Those of the links.
    fn flow_parameters(&self) -> u64 {
        if self.model.couples() {
            let first = self.scales().first().map_or(0, |[_, _, c]| 2 * *c as u64);
            return self.coupling_parameters().saturating_add(if self.actnorm { first } else { 0 });
        }
        self.sum(|stage| match stage {
            Stage::ActNorm(features) => 2 * *features as u64,
            Stage::Block(block) => {
                let weights = |&(k, i, o): &(usize, usize, usize)| {
                    let taps = (k * k).max(1) as u64;
                    taps.saturating_mul(i as u64).saturating_mul(o as u64).saturating_add(o as u64)
                };
                let activations = block.layers.len() as u64 - u64::from(!block.leading_activation);
                let betas = if self.activation.has_parameter() { activations } else { 0 };
                let orders = if block.row.len() == 3 { self.norms.parameters(block.layers.len()) } else { 0 };
                block.layers.iter().map(weights).fold(betas + orders, u64::saturating_add)
            }
            _ => 0,
        })
    }

    /// The numbers in the singular vectors of all layers.
    pub(crate) fn singular_vectors(&self) -> u64 {
        if self.model.couples() {
            return 0;
        }
        self.sum(|stage| match stage {
            Stage::Block(block) => {
                let pixels: usize = block.row.iter().rev().skip(1).product();
                let linear = |k: usize| k == 0 || (k == 1 && self.norms == NormChain::Two);
                let vectors =
                    |&(k, i, o): &(usize, usize, usize)| (if linear(k) { 1 } else { pixels } * (i + o)) as u64;
                block.layers.iter().map(vectors).sum()
            }
            _ => 0,
        })
    }

    /// The sum of something over the chain. Blocks of a scale are equal and counted by one of them, so that a hostile number
    /// of them costs nothing.
    fn sum(&self, count: impl Fn(&Stage) -> u64) -> u64 {
        let reduced = Self {
            blocks: self.blocks.iter().map(|&b| b.min(2)).collect(),
            fully_connected: self.fully_connected.min(1),
            ..self.clone()
        };
        let stages = reduced.stages();
        let total = |total: u64, i: usize| {
            total.saturating_add(count(&stages[i]).saturating_mul(self.multiplicity(&stages, i)))
        };
        (0..stages.len()).fold(0, total)
    }

    /// How many stages of the full chain stage i of the chain with at most two blocks a scale stands for.
    fn multiplicity(&self, stages: &[Stage], i: usize) -> u64 {
        let mut scale = 0;
        let mut blocks = 0;
        let mut flat = false;
        for stage in &stages[..=i] {
            match stage {
                Stage::Squeeze { factor_out: _, .. } if blocks > 0 => {
                    scale += 1;
                    blocks = 0;
                }
                Stage::Flatten(_) => {
                    flat = true;
                    blocks = 0;
                }
                Stage::Block(_) => blocks += 1,
                _ => {}
            }
        }
        if flat {
            return if blocks == 0 { 1 } else { self.fully_connected as u64 };
        }
        if blocks == 2 { self.blocks[scale] as u64 - 1 } else { 1 }
    }

    /// The number of constrained layers.
    pub fn constrained_layers(&self) -> u64 {
        if self.model.couples() {
            return 0;
        }
        let blocks: u64 = self.blocks.iter().map(|&b| b as u64).sum();
        blocks * self.kernels.len() as u64 + 3 * self.fully_connected as u64
    }
}
