//! The memory that a sample takes, by which batches are cut into shards.
//!
//! Counted from the configuration alone, so that a plan is a function of it.

use resflow_backend::Backend;

use super::Flow;
use crate::config::ModelConfig;

/// Samples that one task of an evaluation takes at most, however many the device would.
const MOST_SAMPLES: usize = 1 << 16;

impl<B: Backend> Flow<B> {
    /// Activations that a sample keeps alive on its way through the model in training, in bytes. Of images only what
    /// passes from block to block: a block takes them in tiles of its own.
    pub(crate) fn sample_bytes(&self) -> usize {
        let numbers = match &self.config {
            ModelConfig::Rows(c) => {
                let activations = 6 * c.linear_layers().iter().map(|&(i, _)| i).sum::<usize>();
                // what the nets are told
                let told = if c.context.is_some() { c.hidden.iter().sum::<usize>() } else { 0 };
                // the backward pass of a step holds all of its stages, and a pass x at the beginning of each step
                let (stages, steps) = c.solver_footprint();
                ((activations + c.raw_parameters() + told) * stages + steps * c.dimension) * c.blocks
            }
            // an ODE holds a step's stages of all samples, and x at the beginning of each step
            ModelConfig::Images(c) if c.solver_footprint().1 > 0 => {
                let (stages, steps) = c.solver_footprint();
                let inside = 6 * c.height * c.width * (c.channels + c.filters * c.kernels.len().saturating_sub(1));
                (inside * stages + steps * c.dimension()) * self.config.blocks()
            }
            // x, u and v
            ModelConfig::Images(c) => 3 * c.dimension() * self.config.blocks(),
        };
        (numbers + self.config.base().activations(self.dimension())) * size_of::<B::Elem>()
    }

    /// The samples of one task of an evaluation, which keeps only a block's activations alive. A block takes images in
    /// tiles of its own; what is counted of them is what passes from block to block, some dozens of times.
    pub(super) fn evaluation_samples(&self) -> usize {
        let bytes = match &self.config {
            ModelConfig::Rows(_) => self.sample_bytes() / self.transforms().len().max(1),
            ModelConfig::Images(c) => 64 * c.dimension() * size_of::<B::Elem>(),
        };
        self.backend.shard_rows(bytes).min(MOST_SAMPLES)
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use resflow_backend::Key;
    use resflow_ndarray::NdArray;

    use super::*;
    use crate::config::{Family, FlowConfig};

    #[test]
    fn raw_parameters_of_splines_are_counted() {
        let bytes = |family: Family, bins: usize| {
            let config = FlowConfig { bins, blocks: 3, hidden: vec![4], ..FlowConfig::of(family, 5) };
            Flow::new(NdArray::<f32>::new(), config, Key::new(0)).expect("a configuration").sample_bytes()
        };
        // three couplings of five numbers with 3K − 1 raw parameters of four bytes each
        let raw = |bins: usize| 3 * 5 * (3 * bins - 1) * 4;
        assert_eq!(bytes(Family::Nsf, 40) - bytes(Family::Nsf, 4), raw(40) - raw(4));
        assert_eq!(bytes(Family::Nsf, 4) - bytes(Family::RealNvp, 4), raw(4));
        assert_eq!(bytes(Family::RealNvp, 40), bytes(Family::RealNvp, 4));
    }
}
