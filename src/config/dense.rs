//! The nets of dense flows (Perugachi-Diaz, Tomczak, Bhulai 2021, arXiv 2102.02694), as configurations spell them out.
//!
//! ```text
//! rows:            (dense layer of growth hidden_i) × depth, linear to d
//! images:          (dense layer of kernels_i and growth `filters`) × depth, convolution of the last of `kernels` to c
//! fully connected: linear to fully_connected_width, (dense layer of growth fully_connected_growth) × depth, linear to d
//! ```
//!
//! A growth is what stands behind the input, so the weight of a dense layer has half as many outputs before a concatenated
//! activation. No activation leads, and none stands before the last layer. Every dense layer is of ℓ = `dense_bound`, so
//! Lip(g) ≤ ℓ^depth·κ, and κ once more of a fully connected block.

use super::{ConfigError, Family, FlowConfig, ImageConfig, MOST_WIDTH, Nonlinearity};
use crate::lipschitz::NormChain;
use crate::stage::{Concatenation, LayerStage, Net};

/// What all layers of a dense net have in common.
#[derive(Debug, Clone, Copy)]
struct Dense {
    activation: Nonlinearity,
    coefficient: f64,
    concatenation: Concatenation,
}

/// A linear layer of size 0 or 1, or a convolution.
fn affine(size: usize, inputs: usize, outputs: usize, coefficient: f64) -> LayerStage {
    let coefficient = Some(coefficient);
    if size <= 1 {
        LayerStage::Linear { inputs, outputs, coefficient }
    } else {
        LayerStage::Convolution { kernel: [size; 2], inputs, outputs, coefficient }
    }
}

impl Dense {
    /// Dense layers of (kernel size, growth), and a last layer of a kernel size.
    fn net(self, inputs: usize, layers: &[(usize, usize)], last: usize, outputs: usize) -> Net {
        let Self { activation, coefficient, concatenation } = self;
        let mut stages = Vec::with_capacity(layers.len() + 1);
        let mut width = inputs;
        for &(size, growth) in layers {
            stages.push(LayerStage::Dense {
                kernel: (size > 1).then_some([size; 2]),
                inputs: width,
                outputs: growth / activation.widening(),
                coefficient: Some(coefficient),
                activation,
                concatenation,
                context: false,
            });
            width = width.saturating_add(growth);
        }
        stages.push(affine(last, width, outputs, coefficient));
        Net { layers: stages, norms: Vec::new(), context: 0 }
    }

    /// Checks growths, ℓ and norms.
    fn check(self, growths: &[(&'static str, usize)], norms: &NormChain) -> Result<(), ConfigError> {
        self.concatenation.check()?;
        if *norms != NormChain::Two {
            let problem = "the weights of dense flows are bounded in the 2-norm: leave `norms` at \"2\"";
            return Err(ConfigError::Inconsistent(problem.into()));
        }
        let halves = self.activation.widening();
        match growths.iter().find(|(_, growth)| !growth.is_multiple_of(halves)) {
            Some(&(name, growth)) => Err(ConfigError::OutOfRange {
                name,
                value: growth as f64,
                expected: "an even growth: the activation is concatenated of two halves",
            }),
            None => Ok(()),
        }
    }
}

impl FlowConfig {
    fn dense(&self) -> Dense {
        let concatenation = Concatenation { bound: self.dense_bound, learned: self.learned_concatenation };
        Dense { activation: self.activation, coefficient: self.coefficient, concatenation }
    }

    /// Checks the settings of dense flows.
    pub(super) fn check_dense(&self) -> Result<(), ConfigError> {
        let growths: Vec<_> = self.hidden.iter().map(|&growth| ("hidden", growth)).collect();
        let widest = self.hidden.iter().fold(self.dimension, |sum, &growth| sum.saturating_add(growth));
        super::count("hidden", widest, MOST_WIDTH, "growths that are 65536 at most together with the dimension")?;
        self.dense().check(&growths, &self.norms)
    }

    /// g of a dense block.
    pub(super) fn dense_net(&self) -> Net {
        let layers: Vec<_> = self.hidden.iter().map(|&growth| (0, growth)).collect();
        self.dense().net(self.dimension, &layers, 0, self.dimension)
    }

    /// (inputs, outputs) of its weights.
    pub(super) fn dense_layers(&self) -> Vec<(usize, usize)> {
        let weights = self.dense_net().layers.into_iter().filter_map(|layer| match layer.affine()? {
            LayerStage::Linear { inputs, outputs, .. } => Some((inputs, outputs)),
            _ => None,
        });
        weights.collect()
    }
}

impl ImageConfig {
    fn dense(&self) -> Dense {
        let concatenation = Concatenation { bound: self.dense_bound, learned: self.learned_concatenation };
        Dense { activation: self.activation, coefficient: self.coefficient, concatenation }
    }

    fn depth(&self) -> usize {
        self.kernels.len() - 1
    }

    /// Checks the settings of dense flows.
    pub(super) fn check_dense(&self) -> Result<(), ConfigError> {
        let growths = [("filters", self.filters), ("fully_connected_growth", self.fully_connected_growth)];
        let growths = &growths[..if self.fully_connected > 0 { 2 } else { 1 }];
        super::count("fully_connected_growth", self.fully_connected_growth, MOST_WIDTH, "1 to 65536")?;
        self.dense().check(growths, &self.norms)
    }

    /// g of a dense block over c channels.
    pub(super) fn dense_net(&self, channels: usize) -> Net {
        let layers: Vec<_> = self.kernels[..self.depth()].iter().map(|&size| (size, self.filters)).collect();
        self.dense().net(channels, &layers, self.kernels[self.depth()], channels)
    }

    /// g of a fully connected dense block over d numbers.
    pub(super) fn dense_end(&self, d: usize) -> Net {
        let width = self.fully_connected_width;
        let mut net = self.dense().net(width, &vec![(0, self.fully_connected_growth); self.depth()], 0, d);
        net.layers.insert(0, affine(0, d, width, self.coefficient));
        net
    }

    /// Returns the dense flow of these images (see [`ImageConfig::of`]): of published sizes where the residual flow is,
    /// three layers of growth 172 for 512 channels, which are as many parameters.
    pub(super) fn of_dense(self) -> Self {
        /// Published growth and channels.
        const PUBLISHED: [usize; 2] = [172, 512];
        Self {
            model: Family::Dense,
            activation: Nonlinearity::ClipSwish,
            filters: (self.filters * PUBLISHED[0] / PUBLISHED[1] / 2 * 2).max(2),
            kernels: vec![3, 3, 3, 1],
            leading_activation: false,
            fully_connected_width: self.fully_connected_width.div_ceil(2),
            ..self
        }
    }
}
