//! Default training settings of the models that configurations name.

use super::TrainConfig;
use crate::bijection::Memory;
use crate::config::{Family, ModelConfig, Preset};

/// The highest learning rate of couplings, which have no Lipschitz bound to keep them tame.
const COUPLING_RATE: f64 = 5e-3;

/// The highest learning rate of spline couplings, and the largest norm of their gradients.
const SPLINE_RATE: f64 = 1e-3;
const SPLINE_CLIP: f64 = 5.0;

impl TrainConfig {
    /// Returns the settings for a model: those of toys and tables for vectors, those of a small published model for
    /// images, and what the family needs.
    pub fn for_model(model: &ModelConfig) -> Self {
        match model {
            ModelConfig::Rows(c) => Self::default().for_family(c.model),
            ModelConfig::Images(c) => Self::of_preset(Preset::MnistSmall).for_family(c.model),
        }
    }

    /// Returns the settings of a named model.
    pub fn of_preset(preset: Preset) -> Self {
        let published = Self {
            batch: 64,
            learning_rate: 1e-3,
            warmup: 1000,
            final_fraction: 1.0,
            clip: 1.0,
            average: 0.999,
            memory: Memory::Recompute,
            validation_fraction: 0.02,
            validation_rows: 1000,
            flips: matches!(preset, Preset::Cifar10 | Preset::Cifar10Small),
            // ours: a hundred epochs of CIFAR-10
            steps: 78_000,
            ..Self::default()
        };
        match preset {
            Preset::CelebAHq256 => Self { batch: 8, accumulate: 5, ..published },
            Preset::MnistSmall | Preset::Cifar10Small => Self {
                steps: 9_000,
                learning_rate: 2e-2,
                warmup: 200,
                final_fraction: 0.02,
                validation_rows: 400,
                average: 0.998,
                ..published
            },
            _ => published,
        }
    }

    /// Adapts settings for residual flows to a family.
    #[must_use]
    pub fn for_family(self, family: Family) -> Self {
        if family == Family::Nsf {
            let learning_rate = self.learning_rate.min(SPLINE_RATE);
            return Self { learning_rate, clip: SPLINE_CLIP, ..self };
        }
        if family.couples() { Self { learning_rate: self.learning_rate.min(COUPLING_RATE), ..self } } else { self }
    }
}
