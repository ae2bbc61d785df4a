//! The configuration of a flow over vectors, `[d]`: rows of a table.

use serde::{Deserialize, Serialize};

use super::{
    BaseConfig, COMPONENTS, ContextConfig, DENSE_BOUND, Family, MOST_BLOCKS, MOST_LAYERS, MOST_PARAMETERS, MOST_WIDTH,
    Nonlinearity, Start, check_shared, count, flatten, is_default_components, is_default_dense_bound, is_true, net,
};
use crate::error::ConfigError;
use crate::estimator::{Auto, CostModel, Estimator, Law, Phase, Probe, RussianRoulette, Sharing, Traces};
use crate::lipschitz::NormChain;
use crate::stage::{OdeSolver, Repeated, Size, Stage};

/// The architecture of a flow over vectors, and the estimators it is trained and evaluated with.
///
/// The chain is `[ActNorm,] (block [, ActNorm]) × blocks`; in each block g = (activation, linear) × (hidden + 1),
/// through the hidden widths and back to the dimension. Of families that couple, couplings are in the place of blocks;
/// their nets begin with a linear layer. Of neural spline flows (`nsf`) an LU linear map stands before each coupling and
/// at the end. Of continuous flows (`ffjord`) a block is an ODE flow, f = (linear, activation) × hidden and a linear layer.
/// Of dense flows (`dense`) g is a chain of dense layers, whose growths are `hidden`, and a linear layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowConfig {
    /// The family of its transforms.
    pub model: Family,
    /// d, the numbers in a sample.
    pub dimension: usize,
    /// The number of residual blocks, or of couplings.
    pub blocks: usize,
    /// The hidden widths of g, or of a coupling's net; of a dense flow the growths of g's dense layers.
    pub hidden: Vec<usize>,
    /// The nonlinearity of g, or of a coupling's net.
    pub activation: Nonlinearity,
    /// Begins g with an activation (of the input itself) instead of a linear layer; that of a dense flow never does.
    pub leading_activation: bool,
    /// κ, the bound on each linear layer's norm; Lip(g) ≤ κ^(hidden + 1). Couplings have none.
    pub coefficient: f64,
    /// The norms between which weights are constrained: `"2"` for the spectral norm everywhere, one digit a layer
    /// boundary such as `"2112"` (`f` is the max norm), or `"learned"`.
    pub norms: NormChain,
    /// K, the bins of a spline flow's splines, 2 to 256; other families have none.
    #[serde(skip_serializing_if = "is_default_bins")]
    pub bins: usize,
    /// K, the logistics of each mixture of Flow++, 1 to 64; other families have none.
    #[serde(skip_serializing_if = "is_default_components")]
    pub components: usize,
    /// B, the bound of the box [−B, B] in which a spline flow's splines bend; other families have none. The data are
    /// standardised, so B is in deviations: rows farther out are mapped by the linear maps alone.
    #[serde(skip_serializing_if = "is_default_bound")]
    pub bound: f64,
    /// ℓ, above 0 and at most 1: of a dense flow the bound on each dense layer's Lipschitz constant.
    #[serde(skip_serializing_if = "is_default_dense_bound")]
    pub dense_bound: f64,
    /// Learns how much of a dense layer's output is its input and how much is new; else both are alike.
    #[serde(skip_serializing_if = "is_true")]
    pub learned_concatenation: bool,
    /// The solver of a continuous flow in training, such as `"rk4:steps=16"`; other families have none.
    #[serde(skip_serializing_if = "is_default_solver")]
    pub solver: OdeSolver,
    /// Its solver in evaluation, decoding and sampling, `"dopri5"`, as accurate as it is asked to be, or such as
    /// `"dopri5:rtol=1e-4"`.
    #[serde(skip_serializing_if = "is_default_evaluation_solver")]
    pub evaluation_solver: OdeSolver,
    /// Normalises activations between blocks (ActNorm).
    pub actnorm: bool,
    /// The factor on the initial weights of each block's last layer, and on the biases of a coupling's; small makes a
    /// flow start near the identity.
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
    /// The context of a conditional flow p(x | c), such as `{ columns = 3 }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextConfig>,
}

/// Settings of splines that are the defaults leave no trace in files, so that those of older versions stay the same.
const BINS: usize = 8;
const BOUND: f64 = 5.0;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_default_bins(bins: &usize) -> bool {
    *bins == BINS
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_default_bound(bound: &f64) -> bool {
    *bound == BOUND
}

pub(super) fn is_default_solver(solver: &OdeSolver) -> bool {
    *solver == OdeSolver::for_training()
}

pub(super) fn is_default_evaluation_solver(solver: &OdeSolver) -> bool {
    *solver == OdeSolver::for_evaluation()
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            model: Family::Residual,
            dimension: 2,
            blocks: 16,
            hidden: vec![64, 64],
            activation: Nonlinearity::default(),
            leading_activation: true,
            coefficient: 0.99,
            norms: NormChain::Two,
            bins: BINS,
            components: COMPONENTS,
            bound: BOUND,
            dense_bound: DENSE_BOUND,
            learned_concatenation: true,
            solver: OdeSolver::for_training(),
            evaluation_solver: OdeSolver::for_evaluation(),
            actnorm: true,
            initial_scale: 1.0,
            base: BaseConfig::Normal,
            start: Start::Random,
            training: Estimator::default(),
            evaluation: Estimator::Auto(Auto {
                otherwise: RussianRoulette {
                    law: Law::ShiftedGeometric { p: 0.3 },
                    exact_terms: 6,
                    draws: 1,
                    probes: 1,
                    probe: Probe::Rademacher,
                    sharing: Sharing::Sample,
                    traces: Traces::Exact,
                },
            }),
            replicates: 8,
            context: None,
        }
    }
}

impl FlowConfig {
    /// Returns the default architecture for samples of `dimension` numbers. Where the log det is exact in training,
    /// blocks may come close to Lip(g) = 1; where it is estimated, κ and the laws keep the estimators' variance
    /// bounded.
    pub fn new(dimension: usize) -> Self {
        let config = Self { dimension, ..Self::default() };
        let (inputs, outputs): (Vec<_>, Vec<_>) = config.linear_layers().into_iter().unzip();
        let multiply_adds = inputs.iter().zip(outputs).map(|(&i, o)| i as u64 * o as u64).sum();
        let cost = CostModel { dimension, multiply_adds, bottleneck: None };
        if matches!(config.training.resolve(&cost, Phase::Training), Estimator::Exact(_)) {
            return config;
        }
        let roulette = |p, exact_terms, sharing, traces| {
            let law = Law::ShiftedGeometric { p };
            let probe = Probe::Rademacher;
            Estimator::Auto(Auto {
                otherwise: RussianRoulette { law, exact_terms, draws: 1, probes: 1, probe, sharing, traces },
            })
        };
        Self {
            coefficient: 0.95,
            training: roulette(0.25, 2, Sharing::Batch, Traces::Probed),
            evaluation: roulette(0.25, 6, Sharing::Sample, Traces::Exact),
            ..config
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first setting that is out of its range,
    /// [`ConfigError::Inconsistent`] for settings that do not go together.
    pub fn check(&self) -> Result<(), ConfigError> {
        count("dimension", self.dimension, MOST_WIDTH, "1 to 65536")?;
        count("blocks", self.blocks, MOST_BLOCKS, "1 to 10000")?;
        count("hidden layers", self.hidden.len(), MOST_LAYERS, "1 to 64 widths")?;
        for &width in &self.hidden {
            count("hidden", width, MOST_WIDTH, "widths from 1 to 65536")?;
        }
        check_shared(self.coefficient, self.initial_scale, self.replicates, [&self.training, &self.evaluation])?;
        self.base.check()?;
        self.norms.check(self.linear_layers().len(), self.activation.widening() == 1)?;
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
        self.context.as_ref().map_or(Ok(()), ContextConfig::check)?;
        if self.parameters() > MOST_PARAMETERS {
            return Err(ConfigError::Inconsistent(format!(
                "{} parameters are more than this library handles",
                self.parameters()
            )));
        }
        Ok(())
    }

    /// The chain, first applied first, equal rounds counted.
    pub fn chain(&self) -> Vec<Repeated> {
        let chain = self.unconditional_chain();
        match &self.context {
            Some(context) => context.condition(chain, Some(self.dimension)),
            None => chain,
        }
    }

    fn unconditional_chain(&self) -> Vec<Repeated> {
        let norm = || self.actnorm.then_some(Stage::ActNorm { features: self.dimension });
        let mut chain: Vec<_> = norm().map(|norm| Repeated::once(vec![norm])).into_iter().collect();
        if self.model.couples() {
            chain.extend(self.coupling_chain());
            return chain;
        }
        if self.model == Family::Ffjord {
            let flow = self.continuous();
            chain.push(Repeated { stages: std::iter::once(flow).chain(norm()).collect(), times: self.blocks });
            return chain;
        }
        let net = if self.model.has_dense_nets() {
            self.dense_net()
        } else {
            let layers: Vec<_> = self.linear_layers().into_iter().map(|(i, o)| (0, i, o)).collect();
            net(&layers, self.activation, self.leading_activation, Some(self.coefficient), &self.norms)
        };
        let block = self.model.block(&[self.dimension], net);
        chain.push(Repeated { stages: block.into_iter().chain(norm()).collect(), times: self.blocks });
        chain
    }

    /// The chain, first applied first.
    pub fn stages(&self) -> Vec<Stage> {
        flatten(&self.chain())
    }

    /// (inputs, outputs) of the linear layers of one residual block.
    pub fn linear_layers(&self) -> Vec<(usize, usize)> {
        if self.model.has_dense_nets() {
            return self.dense_layers();
        }
        let doubled = |i: usize| i * self.activation.widening();
        let mut widths = vec![self.dimension];
        widths.extend(&self.hidden);
        widths.push(self.dimension);
        let mut layers: Vec<_> = widths.windows(2).map(|w| (doubled(w[0]), w[1])).collect();
        if !self.leading_activation {
            layers[0].0 = self.dimension;
        }
        layers
    }

    /// The number of trained numbers, those of the base density and of an embedding included.
    pub fn parameters(&self) -> u64 {
        let context = self.context.as_ref().map_or(Size::default(), ContextConfig::size);
        let chain = self.chain().iter().map(Repeated::size).sum::<Size>();
        chain.plus(self.base.size(self.dimension)).plus(context).parameters
    }
}
