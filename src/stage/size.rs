//! What stages store, counted, so that a hostile number of them is told before anything is made.

use super::Stage;

/// The numbers, tensors and layers that something stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Trained numbers.
    pub parameters: u64,
    /// Stored numbers that are not trained.
    pub buffers: u64,
    /// Stored tensors.
    pub tensors: u64,
    /// Layers whose weights are constrained.
    pub constrained_layers: u64,
}

impl Size {
    /// Adds two sizes.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            parameters: self.parameters.saturating_add(other.parameters),
            buffers: self.buffers.saturating_add(other.buffers),
            tensors: self.tensors.saturating_add(other.tensors),
            constrained_layers: self.constrained_layers.saturating_add(other.constrained_layers),
        }
    }

    /// Multiplies a size.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self {
            parameters: self.parameters.saturating_mul(count),
            buffers: self.buffers.saturating_mul(count),
            tensors: self.tensors.saturating_mul(count),
            constrained_layers: self.constrained_layers.saturating_mul(count),
        }
    }
}

impl std::iter::Sum for Size {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), Self::plus)
    }
}

/// Stages that come so many times, one round after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Repeated {
    /// The stages of a round.
    pub stages: Vec<Stage>,
    /// The number of rounds.
    pub times: usize,
}

impl Repeated {
    /// Stages that come once, as a round of their own.
    pub fn once(stages: Vec<Stage>) -> Self {
        Self { stages, times: 1 }
    }

    /// Counts the numbers that all rounds store.
    pub fn size(&self) -> Size {
        self.stages.iter().map(Stage::size).sum::<Size>().times(self.times as u64)
    }
}
