//! The settings of variational training.

use serde::{Deserialize, Serialize};

use crate::bijection::Memory;
use crate::error::ConfigError;
use crate::train::TrainConfig;

/// The estimator of the reverse divergence's gradient; both have the same mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GradientEstimator {
    /// The gradient along the samples and through log q: one pass forward and back.
    #[default]
    Reparametrised,
    /// The path gradient: along the samples alone, ∂x/∂θ · (∇ₓ log q − ∇ₓ log p̃). Its variance vanishes where q = p, so that
    /// training ends quieter; a step costs some two to three times as much, for the score is carried through the flow by transposed
    /// solves (Roeder et al. 2017, arXiv 1703.09194; Vaitl et al. 2022, arXiv 2206.09016).
    Path,
}

/// The settings by which a variational flow is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VariationalConfig {
    /// The samples that a step draws.
    pub batch: usize,
    /// The number of steps of a run that is given no other [`Budget`](crate::train::Budget).
    pub steps: u64,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup: u64,
    /// The learning rate at the end, as a fraction of the highest; the way there is half a cosine.
    pub final_fraction: f64,
    /// Adam's β₁ and β₂.
    pub betas: [f64; 2],
    /// Adam's ε.
    pub epsilon: f64,
    /// AdamW's decoupled weight decay, of the weights only.
    pub weight_decay: f64,
    /// The largest 2-norm of the gradient; longer ones are scaled down. 0 leaves them alone.
    pub clip: f64,
    /// The decay of the exponential moving average (EMA) of the weights; 0 keeps the last weights.
    pub average: f64,
    /// Power iterations of each weight after a step.
    pub power_iterations: usize,
    /// The activations that a forward pass keeps.
    pub memory: Memory,
    /// The estimator of the gradient.
    pub gradient: GradientEstimator,
    /// β at the beginning, by which ln p̃ is multiplied (annealing): below 1 a flow finds more of a target's modes before it has to
    /// choose.
    pub initial_beta: f64,
    /// The fraction of the run over which β rises linearly to 1.
    pub anneal: f64,
}

impl Default for VariationalConfig {
    fn default() -> Self {
        let TrainConfig {
            batch,
            steps,
            learning_rate,
            warmup,
            final_fraction,
            betas,
            epsilon,
            weight_decay,
            clip,
            average,
            power_iterations,
            memory,
            ..
        } = TrainConfig::default();
        Self {
            batch,
            steps,
            learning_rate,
            warmup,
            final_fraction,
            betas,
            epsilon,
            weight_decay,
            clip,
            average,
            power_iterations,
            memory,
            gradient: GradientEstimator::default(),
            initial_beta: 1.0,
            anneal: 0.0,
        }
    }
}

impl VariationalConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first setting that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |name, value, expected| Err(ConfigError::OutOfRange { name, value, expected });
        if !(self.initial_beta > 0.0 && self.initial_beta <= 1.0) {
            return wrong("initial_beta", self.initial_beta, "above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&self.anneal) {
            return wrong("anneal", self.anneal, "0 to 1");
        }
        if self.memory == Memory::Unroll && self.gradient == GradientEstimator::Path {
            let problem = "a path gradient is not unrolled: `memory` is \"store\" or \"recompute\"";
            return Err(ConfigError::Inconsistent(problem.into()));
        }
        self.optimiser().check()
    }

    /// β at a progress from 0 to 1.
    pub fn beta(&self, progress: f64) -> f64 {
        let done = if self.anneal > 0.0 { (progress / self.anneal).clamp(0.0, 1.0) } else { 1.0 };
        self.initial_beta + (1.0 - self.initial_beta) * done
    }

    /// What the optimiser looks at.
    pub(super) fn optimiser(&self) -> TrainConfig {
        TrainConfig {
            batch: self.batch,
            steps: self.steps,
            learning_rate: self.learning_rate,
            warmup: self.warmup,
            final_fraction: self.final_fraction,
            betas: self.betas,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            clip: self.clip,
            average: self.average,
            power_iterations: self.power_iterations,
            memory: self.memory,
            ..TrainConfig::default()
        }
    }
}
