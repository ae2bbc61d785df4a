//! The configuration of a flow over images: the multi-scale network of Chen et al. 2019 (appendix E).
//!
//! ```text
//! [squeeze,] [logit,] ActNorm, (block, ActNorm) × n₁, squeeze, (block, ActNorm) × n₂, squeeze, …, (block, ActNorm) × n_S
//! [, flatten, (fully connected block, ActNorm) × m]
//! ```
//!
//! In a block g = (activation, convolution) × kernels, c → w → … → w → c channels; the very first one begins with its
//! convolution, since an activation of the data themselves would only lose some. With factor-out half of the channels
//! are factored out after each squeeze between scales, with a conditional prior if that is asked for. Of families that couple, couplings are in the place of blocks; of dense
//! flows (`dense`) g is made of dense layers; of continuous ones (`ffjord`) ODEs are in their place, of whose f it is true that is said of g.

use serde::{Deserialize, Serialize};

use super::OdeSolver;
use super::rows::{is_default_evaluation_solver, is_default_solver};
use super::{
    BaseConfig, COMPONENTS, ContextConfig, DENSE_BOUND, DequantisationConfig, Family, GatedConfig, MOST_BLOCKS,
    MOST_LAYERS, MOST_PARAMETERS, MOST_WIDTH, Nonlinearity, Start, check_shared, count, flatten, is_default_components,
    is_default_dense_bound, is_false, is_true, net,
};
use crate::error::ConfigError;
use crate::estimator::{Estimator, Law, Probe, RussianRoulette, Sharing, Traces};
use crate::lipschitz::NormChain;
use crate::stage::{Logistics, Repeated, Size, Stage};
use crate::transform::{Logit, bits_per_dim};

/// The architecture of a flow over images and the estimators it is trained and evaluated with.
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageConfig {
    /// The family of its transforms.
    pub model: Family,
    /// The height of an image, in pixels.
    pub height: usize,
    /// The width of an image, in pixels.
    pub width: usize,
    /// The channels of an image.
    pub channels: usize,
    /// The bits of a channel that are modelled, 1 to 8; lower ones are dropped.
    pub bits: u32,
    /// Begins with the logit. Without it the first ActNorm is what normalises the channels, by the first batch, which
    /// hybrid models of CIFAR-10 are better off with; samples may lie outside \[0, 1\] then.
    pub logit: bool,
    /// α, the margin of the logit.
    pub logit_alpha: f64,
    /// Squeezes images before anything else.
    pub squeeze_first: bool,
    /// The number of convolutional blocks, or of couplings, of each scale.
    pub blocks: Vec<usize>,
    /// w, the channels inside g or f, or inside the net of a coupling; of a dense flow the growth of each dense layer.
    pub filters: usize,
    /// The sizes of the convolutions' kernels, in pixels.
    pub kernels: Vec<usize>,
    /// K, the logistics of each mixture of Flow++, 1 to 64; other families have none.
    #[serde(skip_serializing_if = "is_default_components")]
    pub components: usize,
    /// The nets of Flow++'s couplings where they are gated residual ones with attention, such as `{ blocks = 10, heads = 4 }`; without, and
    /// of other families, they are convolutions of the `kernels`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gated: Option<GatedConfig>,
    /// The nonlinearity of g, or of a coupling's net.
    pub activation: Nonlinearity,
    /// Begins g with an activation, in all blocks but the first; a coupling's net and a dense flow's g do not.
    pub leading_activation: bool,
    /// Begins g of the very first block with an activation.
    pub first_activation: bool,
    /// Factors out half of the channels after each squeeze between scales.
    pub factor_out: bool,
    /// Gives what is factored out a Gaussian whose mean and scale a convolution of the channels that go on gives, instead of
    /// N(0, 1) (the prior of Kingma & Dhariwal 2018).
    #[serde(skip_serializing_if = "is_false")]
    pub conditional_prior: bool,
    /// The number of fully connected blocks at the end.
    pub fully_connected: usize,
    /// The hidden width of fully connected blocks; they have two hidden layers. Those of a dense flow begin with a linear
    /// layer of this width.
    pub fully_connected_width: usize,
    /// Of a dense flow the growth of each dense layer of fully connected blocks.
    #[serde(skip_serializing_if = "is_default_growth")]
    pub fully_connected_growth: usize,
    /// ℓ, above 0 and at most 1: of a dense flow the bound on each dense layer's Lipschitz constant.
    #[serde(skip_serializing_if = "is_default_dense_bound")]
    pub dense_bound: f64,
    /// Learns how much of a dense layer's output is its input and how much is new; else both are alike.
    #[serde(skip_serializing_if = "is_true")]
    pub learned_concatenation: bool,
    /// Normalises activations between blocks (ActNorm).
    pub actnorm: bool,
    /// The classes of a hybrid model's classifier, which has a head on every scale; 0 is none.
    pub classes: usize,
    /// The channels of each head.
    pub head_width: usize,
    /// κ, the bound on each layer's norm; Lip(g) ≤ κ^(number of layers). Couplings have none.
    pub coefficient: f64,
    /// The norms between which weights are constrained: `"2"` for the spectral norm everywhere, one letter a layer
    /// boundary such as `"2222"` (`f` is ∞), or `"learned"`.
    pub norms: NormChain,
    /// The factor on the initial weights of each block's last layer, and on the biases of a coupling's.
    pub initial_scale: f64,
    /// The base density: `"normal"`, `"mixture:components=8,covariance=full"` (or `diagonal`), `"student-t"`.
    #[serde(skip_serializing_if = "BaseConfig::is_normal")]
    pub base: BaseConfig,
    /// How the weights begin: `"random"`, or `"identity"`, by which the untrained flow is its base density.
    #[serde(skip_serializing_if = "Start::is_random")]
    pub start: Start,
    /// The estimator of the log det's gradient in training; couplings are exact, whatever it says.
    pub training: Estimator,
    /// The estimator of log p.
    pub evaluation: Estimator,
    /// The number of independent estimates of each sample's log p that give its standard error.
    pub replicates: usize,
    /// The context of a conditional flow p(x | c), such as `{ columns = 10 }` for one-hot classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextConfig>,
    /// The solver of a continuous flow in training, such as `"rk4:steps=16"`; other families have none.
    #[serde(skip_serializing_if = "is_default_solver")]
    pub solver: OdeSolver,
    /// Its solver in evaluation, decoding and sampling, `"dopri5"`, as accurate as it is asked to be, or such as
    /// `"dopri5:rtol=1e-5,atol=1e-6,limit=10000"`.
    #[serde(skip_serializing_if = "is_default_evaluation_solver")]
    pub evaluation_solver: OdeSolver,
    /// The noise that images of bytes get: `{ kind = "uniform" }`, or `{ kind = "variational" }` with the settings of its flow.
    #[serde(skip_serializing_if = "DequantisationConfig::is_default")]
    pub dequantisation: DequantisationConfig,
}

/// The kernel of conditional priors.
const PRIOR_KERNEL: usize = 3;

/// The published growth of dense layers in fully connected blocks.
const CONNECTED_GROWTH: usize = 32;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_default_growth(growth: &usize) -> bool {
    *growth == CONNECTED_GROWTH
}

impl Default for ImageConfig {
    /// The published MNIST model.
    fn default() -> Self {
        let roulette = |exact_terms, sharing, traces| {
            Estimator::RussianRoulette(RussianRoulette {
                law: Law::Poisson { rate: 2.0 },
                exact_terms,
                draws: 1,
                probes: 1,
                probe: Probe::Rademacher,
                sharing,
                traces,
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
            components: COMPONENTS,
            gated: None,
            activation: Nonlinearity::LipSwish,
            leading_activation: true,
            first_activation: false,
            factor_out: false,
            conditional_prior: false,
            fully_connected: 4,
            fully_connected_width: 128,
            fully_connected_growth: CONNECTED_GROWTH,
            dense_bound: DENSE_BOUND,
            learned_concatenation: true,
            actnorm: true,
            classes: 0,
            head_width: 256,
            coefficient: 0.98,
            norms: NormChain::default(),
            initial_scale: 1.0,
            base: BaseConfig::Normal,
            start: Start::Random,
            training: roulette(2, Sharing::Batch, Traces::Probed),
            evaluation: roulette(20, Sharing::Sample, Traces::Exact),
            replicates: 2,
            context: None,
            solver: OdeSolver::for_training(),
            evaluation_solver: OdeSolver::for_evaluation(),
            dequantisation: DequantisationConfig::default(),
        }
    }
}

/// No honest image is larger along an axis.
const MOST_PIXELS: usize = 1 << 14;
const MOST_SCALES: usize = 12;

impl ImageConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first setting that is out of its range,
    /// [`ConfigError::Inconsistent`] for settings that do not go together.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.model.check_images()?;
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
        self.base.check()?;
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
        if self.model.has_dense_nets() {
            self.check_dense()?;
        }
        if self.model == Family::Ffjord {
            self.check_continuous()?;
        }
        if let Some(context) = &self.context {
            context.check()?;
            if self.classes > 0 {
                let problem = "a hybrid model p(x) p(y | x) has no context: leave out `classes`, or `context`";
                return Err(ConfigError::Inconsistent(problem.into()));
            }
        }
        match &self.gated {
            Some(_) if self.model != Family::FlowPlusPlus => {
                let problem = format!("`gated` nets are those of flowpp, {} has none: leave it out", self.model);
                return Err(ConfigError::Inconsistent(problem));
            }
            Some(gated) => gated.check()?,
            None => {}
        }
        self.dequantisation.check()?;
        if self.dequantisation.is_variational() && self.dequantisation.model == Family::FlowPlusPlus {
            Logistics { components: self.components }.check()?;
        }
        if self.conditional_prior && !self.factor_out {
            let problem = "conditional_prior = true is of what is factored out: it needs factor_out = true";
            return Err(ConfigError::Inconsistent(problem.into()));
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

    /// As many blocks on every scale, scales down to below 16 pixels, half of the channels leaving between them; the
    /// fully connected end only where what is left is small.
    pub(super) fn for_large_images(self) -> Self {
        /// Numbers that a matrix is affordable for.
        const SMALL: usize = 64 * 64 * 3;
        let (mut h, mut w, mut blocks) = (self.height, self.width, vec![self.blocks[0]]);
        while h % 2 == 0 && w % 2 == 0 && h.min(w) >= 16 && blocks.len() < 6 {
            (h, w) = (h / 2, w / 2);
            blocks.push(self.blocks[0]);
        }
        let last = (h * w * self.channels) << (blocks.len() - 1);
        let fully_connected = if last > SMALL { 0 } else { self.fully_connected };
        Self { factor_out: blocks.len() > 1, blocks, fully_connected, ..self }
    }

    /// Bits per dimension of a log density in nats.
    pub fn to_bits_per_dim(&self, log_prob: f64) -> f64 {
        bits_per_dim(log_prob, self.dimension(), self.bits)
    }

    /// The shapes of the images in each scale, `[h, w, c]`.
    pub(super) fn scales(&self) -> Vec<[usize; 3]> {
        let halved = |[h, w, c]: [usize; 3], factor: usize| [h / 2, w / 2, factor * c];
        let image = [self.height, self.width, self.channels];
        let first = if self.squeeze_first { halved(image, 4) } else { image };
        let next = |&image: &[usize; 3]| Some(halved(image, if self.factor_out { 2 } else { 4 }));
        std::iter::successors(Some(first), next).take(self.blocks.len()).collect()
    }

    /// The chain, first applied first, equal rounds counted.
    pub fn chain(&self) -> Vec<Repeated> {
        let chain = self.unconditional_chain();
        match &self.context {
            Some(context) => context.condition(chain, None),
            None => chain,
        }
    }

    fn unconditional_chain(&self) -> Vec<Repeated> {
        let mut chain = Vec::new();
        let scales = self.scales();
        let [mut h, mut w, mut c] = scales.first().copied().unwrap_or_default();
        let mut first = Vec::new();
        if self.squeeze_first {
            first.push(Stage::Squeeze { factored_out: 0 });
        }
        if self.logit {
            first.push(Stage::Logit { alpha: self.logit_alpha });
        }
        let norm = |features: usize| self.actnorm.then_some(Stage::ActNorm { features });
        first.extend(norm(c));
        chain.push(Repeated::once(first));
        for (scale, &blocks) in self.blocks.iter().enumerate() {
            if scale > 0 {
                let factored_out = if self.factor_out && !self.conditional_prior { 2 * c } else { 0 };
                chain.push(Repeated::once(vec![Stage::Squeeze { factored_out }]));
                [h, w, c] = scales[scale];
                if self.conditional_prior {
                    chain.push(Repeated::once(vec![self.prior([h, w, c])]));
                }
            }
            if self.model.couples() {
                chain.extend(self.coupling_chain([h, w, c], blocks));
                continue;
            }
            if self.model == Family::Ffjord {
                let stages = [self.continuous([h, w, c])].into_iter().chain(norm(c)).collect();
                chain.push(Repeated { stages, times: blocks });
                continue;
            }
            let round = |leading: bool, times: usize| {
                let net = if self.model.has_dense_nets() {
                    self.dense_net(c)
                } else {
                    let layers = self.convolutions(c, leading);
                    net(&layers, self.activation, leading, Some(self.coefficient), &self.norms)
                };
                let block = self.model.block(&[h, w, c], net);
                Repeated { stages: block.into_iter().chain(norm(c)).collect(), times }
            };
            if scale == 0 {
                chain.extend([round(self.first_activation, 1), round(self.leading_activation, blocks - 1)]);
            } else {
                chain.push(round(self.leading_activation, blocks));
            }
        }
        if self.fully_connected > 0 {
            let d = h * w * c;
            chain.push(Repeated::once(vec![Stage::Flatten { image: [h, w, c] }]));
            let net = if self.model.has_dense_nets() {
                self.dense_end(d)
            } else {
                let widths = [d, self.fully_connected_width, self.fully_connected_width, d];
                let layers: Vec<_> = widths.windows(2).map(|w| (0, w[0] * self.activation.widening(), w[1])).collect();
                // the norms are those of convolutional blocks
                net(&layers, self.activation, true, Some(self.coefficient), &NormChain::Two)
            };
            let block = self.model.block(&[d], net);
            let stages = block.into_iter().chain(norm(d)).collect();
            chain.push(Repeated { stages, times: self.fully_connected });
        }
        chain
    }

    /// The prior of as many channels as go on, images of this shape, by one convolution.
    fn prior(&self, [h, w, c]: [usize; 3]) -> Stage {
        let layers = [(PRIOR_KERNEL, c, 2 * c)];
        let net = net(&layers, self.activation, false, None, &NormChain::Two);
        Stage::ConditionalPrior { shape: vec![h, w, 2 * c], net }
    }

    /// The chain, first applied first.
    pub fn stages(&self) -> Vec<Stage> {
        flatten(&self.chain())
    }

    /// (kernel, inputs, outputs) of the convolutions of a block over c channels.
    pub(super) fn convolutions(&self, c: usize, leading: bool) -> Vec<(usize, usize, usize)> {
        let mut widths = vec![self.filters; self.kernels.len() + 1];
        widths[0] = c;
        widths[self.kernels.len()] = c;
        let widen = |i: usize| if i > 0 || leading { self.activation.widening() } else { 1 };
        self.kernels.iter().enumerate().map(|(i, &k)| (k, widths[i] * widen(i), widths[i + 1])).collect()
    }

    /// The number of trained numbers, those of the base density, the classifier, an embedding and a dequantiser included.
    pub fn parameters(&self) -> u64 {
        let context = self.context.as_ref().map_or(Size::default(), ContextConfig::size);
        let chain = self.chain().iter().map(Repeated::size).sum::<Size>().plus(context).plus(self.dequantiser_size());
        chain.plus(self.base.size(self.dimension())).plus(self.head_size()).parameters
    }
}
