//! Default training settings of the models that configurations name.

use super::{Improvement, TrainConfig, Validations};
use crate::bijection::Memory;
use crate::config::{Family, ModelConfig, Preset, Start};
use crate::data::ColumnFit;

/// The highest learning rate of couplings and continuous flows, which have no Lipschitz bound to keep them tame.
const COUPLING_RATE: f64 = 5e-3;

/// The highest learning rate of couplings by splines and by mixtures, and the largest norm of their gradients.
const SPLINE_RATE: f64 = 1e-3;
const SPLINE_CLIP: f64 = 5.0;

/// The highest learning rate of a flow that begins at a mixture, whose steep components a larger one would miss.
const TABLE_RATE: f64 = 1e-3;
/// The same of a built-in density, of which there are always new points.
const DENSITY_RATE: f64 = 3e-3;
/// Weight decay is this over the number of rows, at most [`MOST_DECAY`].
const DECAYED_ROWS: f64 = 100.0;
const MOST_DECAY: f64 = 0.5;
/// The rows that validation is to have, where a tenth of a table is less.
const VALIDATION_ROWS: f64 = 100.0;
/// It takes no more than this part of a small table, whose rows a mixture needs more,
const MOST_OF_FEW: f64 = 0.15;
/// unless these are not so many rows,
const FEWEST_VALIDATION_ROWS: f64 = 20.0;
/// and has no more than these of a large one.
const MOST_VALIDATION_ROWS: f64 = 10_000.0;
/// A mixture is fitted to no fewer rows.
const FEWEST_FITTED: usize = 10;

impl TrainConfig {
    /// Returns the settings for a model: those of toys for vectors, those of a small published model for images, and what
    /// the family needs. Those of a table are [`for_table`](Self::for_table).
    pub fn for_model(model: &ModelConfig) -> Self {
        match model {
            ModelConfig::Rows(c) => Self::default().for_family(c.model),
            ModelConfig::Images(c) => Self::of_preset(Preset::MnistSmall).for_family(c.model),
        }
    }

    /// Returns the settings for a table of so many rows, whose flow begins as the identity
    /// ([`FlowConfig::for_table`](crate::config::FlowConfig::for_table)): columns are mapped by what they ask for, the base
    /// density is a mixture fitted beforehand, validation begins at once, and what is not significantly better replaces
    /// nothing.
    pub fn for_table(family: Family, rows: usize) -> Self {
        let few = rows.max(1) as f64;
        let settings = Self::default().for_family(family);
        Self {
            batch: (rows / 5).clamp(16, 256),
            learning_rate: settings.learning_rate.min(TABLE_RATE),
            weight_decay: (DECAYED_ROWS / few).min(MOST_DECAY),
            warmup: 50,
            validation_fraction: (VALIDATION_ROWS / few)
                .clamp((MOST_VALIDATION_ROWS / few).min(0.1), MOST_OF_FEW)
                .max((FEWEST_VALIDATION_ROWS / few).min(0.3)),
            validations: Validations::Early,
            improvement: Improvement::Significant,
            patience: 10,
            fit_base: rows >= FEWEST_FITTED,
            columns: ColumnFit::Auto,
            ..settings
        }
    }

    /// Returns the settings for a built-in density, whose flow begins as the identity
    /// ([`FlowConfig::for_density`](crate::config::FlowConfig::for_density)): the base density is a mixture fitted to points of it
    /// beforehand, and validation begins at once.
    pub fn for_density(family: Family) -> Self {
        let settings = Self::default().for_family(family);
        Self {
            learning_rate: settings.learning_rate.min(DENSITY_RATE),
            validations: Validations::Early,
            fit_base: true,
            ..settings
        }
    }

    /// Adapts settings to a model: no base density is fitted to one that does not begin at it as the identity, or whose base
    /// was chosen already.
    #[must_use]
    pub fn with_fitting_base(self, model: &ModelConfig) -> Self {
        // the mixture of all samples is no start for what they are like at one context
        let begins = model.start() == Start::Identity && model.base().is_normal() && model.context().is_none();
        Self { fit_base: self.fit_base && begins, ..self }
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
            // in little time steps count more than what each of them knows: docs/images.md has what batches of 64 reach
            Preset::MnistSmall | Preset::Cifar10Small => Self {
                batch: 16,
                steps: 36_000,
                learning_rate: 2e-2,
                warmup: 800,
                final_fraction: 0.02,
                validation_rows: 400,
                average: 0.999,
                ..published
            },
            _ => published,
        }
    }

    /// Adapts settings for residual flows to a family.
    #[must_use]
    pub fn for_family(self, family: Family) -> Self {
        if matches!(family, Family::Nsf | Family::FlowPlusPlus) {
            let learning_rate = self.learning_rate.min(SPLINE_RATE);
            return Self { learning_rate, clip: SPLINE_CLIP, ..self };
        }
        if family.contracts() { self } else { Self { learning_rate: self.learning_rate.min(COUPLING_RATE), ..self } }
    }
}
