//! The configuration of a flow over rows of numbers.

use serde::{Deserialize, Serialize};

use super::{MOST_BLOCKS, MOST_LAYERS, MOST_PARAMETERS, MOST_WIDTH, Nonlinearity, check_shared, count};
use crate::error::ConfigError;
use crate::estimator::{Auto, CostModel, Estimator, Law, Probe, RussianRoulette, Sharing};
use crate::lipschitz::NormChain;

/// The architecture of a flow over rows of numbers, and the estimators it is trained and evaluated with.
///
/// The chain is `[ActNorm,] (block [, ActNorm]) × blocks`; in each block
/// g = (activation, linear) × (hidden + 1), through the hidden widths and back to the dimension.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowConfig {
    /// d, the numbers in a row.
    pub dimension: usize,
    /// The number of residual blocks.
    pub blocks: usize,
    /// The hidden widths of g.
    pub hidden: Vec<usize>,
    /// The nonlinearity of g.
    pub activation: Nonlinearity,
    /// Whether g begins with an activation (of the input itself) or with a linear layer.
    pub leading_activation: bool,
    /// κ, the bound on each linear layer's norm; Lip(g) ≤ κ^(hidden + 1).
    pub coefficient: f64,
    /// The norms between which weights are constrained: `"2"` for the spectral norm everywhere, one digit a layer boundary
    /// such as `"2112"` (`f` is the max norm), or `"learned"`.
    pub norms: NormChain,
    /// Whether to normalise activations between blocks.
    pub actnorm: bool,
    /// The factor on the initial weights of each block's last layer; small makes a flow start near the identity.
    pub initial_scale: f64,
    /// The estimator of the log det's gradient in training.
    pub training: Estimator,
    /// The estimator of log p.
    pub evaluation: Estimator,
    /// How many independent estimates of each row's log p give its standard error.
    pub replicates: usize,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            dimension: 2,
            blocks: 16,
            hidden: vec![64, 64],
            activation: Nonlinearity::default(),
            leading_activation: true,
            coefficient: 0.99,
            norms: NormChain::Two,
            actnorm: true,
            initial_scale: 1.0,
            training: Estimator::default(),
            evaluation: Estimator::Auto(Auto {
                otherwise: RussianRoulette {
                    law: Law::ShiftedGeometric { p: 0.3 },
                    exact_terms: 6,
                    draws: 1,
                    probes: 1,
                    probe: Probe::Rademacher,
                    sharing: Sharing::Sample,
                },
            }),
            replicates: 8,
        }
    }
}

impl FlowConfig {
    /// The default architecture for rows of `dimension` numbers. Where the log det is exact in training, blocks may come
    /// close to Lip(g) = 1; where it is estimated, κ and the laws keep the estimators' variance bounded.
    pub fn new(dimension: usize) -> Self {
        let config = Self { dimension, ..Self::default() };
        let (inputs, outputs): (Vec<_>, Vec<_>) = config.linear_layers().into_iter().unzip();
        let multiply_adds = inputs.iter().zip(outputs).map(|(&i, o)| i as u64 * o as u64).sum();
        let cost = CostModel { dimension, multiply_adds };
        if matches!(config.training.resolve(&cost, true), Estimator::Exact(_)) {
            return config;
        }
        let roulette = |p, exact_terms, sharing| {
            let law = Law::ShiftedGeometric { p };
            let probe = Probe::Rademacher;
            Estimator::Auto(Auto {
                otherwise: RussianRoulette { law, exact_terms, draws: 1, probes: 1, probe, sharing },
            })
        };
        Self {
            coefficient: 0.95,
            training: roulette(0.25, 2, Sharing::Batch),
            evaluation: roulette(0.25, 6, Sharing::Sample),
            ..config
        }
    }

    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        count("dimension", self.dimension, MOST_WIDTH, "1 to 65536")?;
        count("blocks", self.blocks, MOST_BLOCKS, "1 to 10000")?;
        count("hidden layers", self.hidden.len(), MOST_LAYERS, "1 to 64 widths")?;
        for &width in &self.hidden {
            count("hidden", width, MOST_WIDTH, "widths from 1 to 65536")?;
        }
        check_shared(self.coefficient, self.initial_scale, self.replicates, [&self.training, &self.evaluation])?;
        self.norms.check(self.linear_layers().len(), self.activation.widening() == 1)?;
        if self.parameters() > MOST_PARAMETERS {
            return Err(ConfigError::Inconsistent(format!(
                "{} parameters are more than this library handles",
                self.parameters()
            )));
        }
        Ok(())
    }

    /// (inputs, outputs) of the linear layers of one block.
    pub fn linear_layers(&self) -> Vec<(usize, usize)> {
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

    /// The number of trained numbers.
    pub fn parameters(&self) -> u64 {
        let layers = self.linear_layers();
        let activations = layers.len() as u64 - u64::from(!self.leading_activation);
        let block: u64 = layers.iter().map(|&(i, o)| (i as u64 + 1) * o as u64).sum();
        let norms = if self.actnorm { 2 * self.dimension as u64 * (self.blocks as u64 + 1) } else { 0 };
        let orders = self.norms.parameters(layers.len());
        self.blocks as u64 * (block + orders + if self.activation.has_parameter() { activations } else { 0 }) + norms
    }
}
