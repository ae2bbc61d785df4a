//! The families of flows that a configuration may be of.
//!
//! | family | transforms | log det |
//! |---|---|---|
//! | residual | y = x + g(x) (Chen et al. 2019) | exact or unbiased |
//! | iresnet | the same blocks (Behrmann et al. 2019) | in training cut off after a fixed number of terms: biased |
//! | realnvp | affine couplings (Dinh et al. 2017) | exact |
//! | glow | invertible linear maps and affine couplings (Kingma and Dhariwal 2018) | exact |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{FlowConfig, ImageConfig, Nonlinearity};
use crate::error::ConfigError;
use crate::estimator::{Estimator, Exact, Probe, Truncated};

/// The kind of transforms that a flow is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Residual flows.
    #[default]
    Residual,
    /// i-ResNets: residual blocks trained with a truncated log det.
    IResNet,
    /// Real NVP: affine couplings.
    RealNvp,
    /// Glow: affine couplings between invertible linear maps.
    Glow,
}

/// κ of i-ResNets (Behrmann et al. 2019, appendix).
const IRESNET_COEFFICIENT: f64 = 0.9;
/// The terms of their truncated series.
const IRESNET_TERMS: usize = 10;
impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Residual, Self::IResNet, Self::RealNvp, Self::Glow];

    /// The name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Residual => "residual",
            Self::IResNet => "iresnet",
            Self::RealNvp => "realnvp",
            Self::Glow => "glow",
        }
    }

    /// Returns `true` if its transforms are couplings, whose log det is exact and whose weights are free; else they are
    /// residual blocks.
    pub fn couples(self) -> bool {
        matches!(self, Self::RealNvp | Self::Glow)
    }

    /// i-ResNet's truncated series.
    fn truncated() -> Estimator {
        Estimator::Truncated(Truncated { terms: IRESNET_TERMS, probes: 1, probe: Probe::Rademacher })
    }

    /// Checks that the estimator of training is one that the family has.
    pub(super) fn check_training(self, training: &Estimator) -> Result<(), ConfigError> {
        if self == Self::IResNet && !matches!(training, Estimator::Truncated(_)) {
            return Err(ConfigError::Inconsistent(format!(
                "an i-ResNet is trained with a truncated series (`truncated:terms=…`), not by {training}: \
                 that is model = \"residual\""
            )));
        }
        Ok(())
    }
}

impl FlowConfig {
    /// Returns the default architecture of a family for samples of `dimension` numbers.
    pub fn of(family: Family, dimension: usize) -> Self {
        let residual = Self::new(dimension);
        let coupling = || Self {
            model: family,
            activation: Nonlinearity::Relu,
            training: Estimator::Exact(Exact),
            evaluation: Estimator::Exact(Exact),
            dimension,
            ..Self::default()
        };
        match family {
            Family::Residual => residual,
            Family::IResNet => Self {
                model: family,
                activation: Nonlinearity::Elu,
                coefficient: IRESNET_COEFFICIENT,
                training: Family::truncated(),
                ..residual
            },
            Family::RealNvp => coupling(),
            // as published, a start at the identity
            Family::Glow => Self { initial_scale: 0.0, ..coupling() },
        }
    }
}

impl ImageConfig {
    /// Returns the flow of a family for these images, of as many scales and filters. Couplings move one half of the
    /// numbers at a time, so there are twice as many of them as residual blocks; half of the channels are factored out
    /// between scales, and nothing is fully connected. Glow squeezes first, and has a scale less where the image is too
    /// small for it.
    pub fn of(self, family: Family) -> Self {
        let coupling = |residual: Self| Self {
            model: family,
            activation: Nonlinearity::Relu,
            blocks: residual.blocks.iter().map(|&b| 2 * b).collect(),
            fully_connected: 0,
            factor_out: true,
            training: Estimator::Exact(Exact),
            evaluation: Estimator::Exact(Exact),
            ..residual
        };
        match family {
            Family::Residual => self,
            Family::IResNet => Self {
                model: family,
                activation: Nonlinearity::Elu,
                coefficient: IRESNET_COEFFICIENT,
                training: Family::truncated(),
                ..self
            },
            Family::RealNvp => coupling(self),
            Family::Glow => {
                let mut flow = Self { squeeze_first: true, initial_scale: 0.0, ..coupling(self) };
                let halves = |flow: &Self| {
                    let divisor = 1 << flow.blocks.len().min(32);
                    flow.height.is_multiple_of(divisor) && flow.width.is_multiple_of(divisor)
                };
                while flow.blocks.len() > 1 && !halves(&flow) {
                    flow.blocks.pop();
                }
                flow.squeeze_first = halves(&flow);
                flow
            }
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            ConfigError::Syntax(format!("there is no model `{text}`; there are {names}"))
        })
    }
}
