//! Named settings: the published models (Chen et al. 2019, appendix E) and small ones that two cores can train.

use std::fmt;
use std::str::FromStr;

use super::{ImageConfig, Nonlinearity};
use crate::error::ConfigError;
use crate::estimator::Estimator;

/// A named model; [`TrainConfig::of_preset`](crate::train::TrainConfig::of_preset) says how it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preset {
    /// MNIST as published: 16-16-16 blocks of 512 channels.
    Mnist,
    /// CIFAR-10 as published.
    Cifar10,
    /// ImageNet 32 × 32 as published.
    ImageNet32,
    /// ImageNet 64 × 64 as published.
    ImageNet64,
    /// CelebA-HQ 256 × 256 in 5 bits as published.
    CelebAHq256,
    /// CelebA 64 × 64 in 5 bits.
    CelebA64FiveBit,
    /// MNIST on two cores.
    MnistSmall,
    /// CIFAR-10 on two cores.
    Cifar10Small,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Mnist,
        Self::Cifar10,
        Self::ImageNet32,
        Self::ImageNet64,
        Self::CelebAHq256,
        Self::CelebA64FiveBit,
        Self::MnistSmall,
        Self::Cifar10Small,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::Cifar10 => "cifar10",
            Self::ImageNet32 => "imagenet32",
            Self::ImageNet64 => "imagenet64",
            Self::CelebAHq256 => "celebahq256",
            Self::CelebA64FiveBit => "celeba64-5bit",
            Self::MnistSmall => "mnist-small",
            Self::Cifar10Small => "cifar10-small",
        }
    }

    /// The architecture and the estimators.
    pub fn flow(self) -> ImageConfig {
        let mnist = ImageConfig::default();
        let colour = |size, blocks: &[usize]| ImageConfig {
            height: size,
            width: size,
            channels: 3,
            logit_alpha: 0.05,
            blocks: blocks.to_vec(),
            ..ImageConfig::default()
        };
        match self {
            Self::Mnist => mnist,
            Self::Cifar10 => colour(32, &[16, 16, 16]),
            Self::ImageNet32 => colour(32, &[32, 32, 32]),
            Self::ImageNet64 => ImageConfig { factor_out: true, squeeze_first: true, ..colour(64, &[32, 32, 32]) },
            Self::CelebAHq256 => ImageConfig {
                bits: 5,
                activation: Nonlinearity::Elu,
                factor_out: true,
                squeeze_first: true,
                fully_connected: 0,
                training: exact_terms(&mnist.training, 8),
                ..colour(256, &[16; 6])
            },
            Self::CelebA64FiveBit => {
                ImageConfig { bits: 5, factor_out: true, squeeze_first: true, ..colour(64, &[16, 16, 16]) }
            }
            Self::MnistSmall => ImageConfig {
                blocks: vec![4, 4, 4],
                filters: 64,
                evaluation: exact_terms(&mnist.evaluation, 8),
                ..mnist
            },
            Self::Cifar10Small => {
                let flow = colour(32, &[4, 4, 4]);
                ImageConfig { filters: 64, evaluation: exact_terms(&flow.evaluation, 8), ..flow }
            }
        }
    }
}

/// Replaces a roulette's number of exact terms.
pub(super) fn exact_terms(estimator: &Estimator, terms: usize) -> Estimator {
    match estimator {
        Estimator::RussianRoulette(roulette) => {
            Estimator::RussianRoulette(crate::estimator::RussianRoulette { exact_terms: terms, ..roulette.clone() })
        }
        other => other.clone(),
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|p| p.name()).collect();
            ConfigError::Syntax(format!("there is no preset `{text}`; there are {}", names.join(", ")))
        })
    }
}
