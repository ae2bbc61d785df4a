//! The families of flows that a configuration may be of.
//!
//! | family | transforms | log det |
//! |---|---|---|
//! | residual | y = x + g(x) (Chen et al. 2019) | exact or unbiased |
//! | iresnet | the same blocks (Behrmann et al. 2019) | in training cut off after a fixed number of terms: biased |
//! | implicit | a residual block and the inverse of another, z with x + g₁(x) = z + g₂(z) (Lu et al. 2021) | exact or unbiased |
//! | monotone | y = √2·w − x with w + g(w) = √2·x (Ahn et al. 2022), g of dense layers | exact or unbiased |
//! | realnvp | affine couplings (Dinh et al. 2017) | exact |
//! | glow | invertible linear maps and affine couplings (Kingma and Dhariwal 2018) | exact |
//! | flowpp | invertible linear maps and couplings by mixtures of logistics (Ho et al. 2019) | exact |
//! | nsf | LU linear maps and spline couplings (Durkan et al. 2019), of rows only | exact |
//! | ffjord | continuous flows dx/dt = f(t, x) (Grathwohl et al. 2019) | exact, to the solver's tolerance, or of images with other nets by a probe |
//! | dense | residual blocks whose g is made of dense layers (Perugachi-Diaz, Tomczak, Bhulai 2021) | exact or unbiased |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::estimator::Estimator;
use crate::stage::{Net, Stage};

/// The kind of transforms that a flow is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Family {
    /// Residual flows.
    #[default]
    Residual,
    /// i-ResNets: residual blocks trained with a truncated log det.
    IResNet,
    /// Implicit flows: residual blocks, each with an inverted one behind it.
    Implicit,
    /// Monotone flows: Cayley operators of monotone operators.
    Monotone,
    /// Real NVP: affine couplings.
    RealNvp,
    /// Glow: affine couplings between invertible linear maps.
    Glow,
    /// Flow++: couplings by mixtures of logistics between invertible linear maps.
    #[serde(rename = "flowpp")]
    FlowPlusPlus,
    /// Neural spline flows: spline couplings between LU linear maps, of rows.
    Nsf,
    /// Dense flows (i-DenseNets): residual blocks whose layers keep what they get.
    Dense,
    /// Continuous flows: ordinary differential equations.
    Ffjord,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Residual,
        Self::IResNet,
        Self::RealNvp,
        Self::Glow,
        Self::Nsf,
        Self::Dense,
        Self::Implicit,
        Self::Monotone,
        Self::Ffjord,
        Self::FlowPlusPlus,
    ];

    /// The name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Residual => "residual",
            Self::IResNet => "iresnet",
            Self::Implicit => "implicit",
            Self::Monotone => "monotone",
            Self::RealNvp => "realnvp",
            Self::Glow => "glow",
            Self::Nsf => "nsf",
            Self::FlowPlusPlus => "flowpp",
            Self::Dense => "dense",
            Self::Ffjord => "ffjord",
        }
    }

    /// Returns `true` if its transforms are couplings, whose log det is exact and whose weights are free; else they are
    /// blocks of a contraction.
    pub fn couples(self) -> bool {
        matches!(self, Self::RealNvp | Self::Glow | Self::Nsf | Self::FlowPlusPlus)
    }

    /// Returns `true` if the forward pass of its blocks is a solve.
    pub fn solves(self) -> bool {
        matches!(self, Self::Implicit | Self::Monotone | Self::Ffjord)
    }

    /// Returns `true` if its nets are contractions, whose weights are constrained; else they are free.
    pub fn contracts(self) -> bool {
        !self.couples() && self != Self::Ffjord
    }

    /// Returns `true` if its nets are made of dense layers.
    pub fn has_dense_nets(self) -> bool {
        matches!(self, Self::Dense | Self::Monotone)
    }

    /// The transforms of one block, each with a net like this.
    pub(super) fn block(self, shape: &[usize], net: Net) -> Vec<Stage> {
        let shape = shape.to_vec();
        match self {
            Self::Implicit => {
                let first = Stage::ResidualBlock { shape: shape.clone(), net: net.clone() };
                vec![first, Stage::InvertedBlock { shape, net }]
            }
            Self::Monotone => vec![Stage::MonotoneBlock { shape, net }],
            _ => vec![Stage::ResidualBlock { shape, net }],
        }
    }

    /// Returns `true` if there are flows of it over images, not only over rows.
    pub fn takes_images(self) -> bool {
        self != Self::Nsf
    }

    /// Checks that there are flows of it over images.
    pub(super) fn check_images(self) -> Result<(), ConfigError> {
        if self.takes_images() {
            return Ok(());
        }
        let others = Self::ALL.into_iter().filter(|f| f.takes_images()).map(Self::name).collect::<Vec<_>>().join(", ");
        Err(ConfigError::Inconsistent(format!("{self} is for rows of numbers: of images there are {others}")))
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
