//! The nonlinearities of nets, as configurations and files name them.

use resflow_backend::Activation;
use serde::{Deserialize, Serialize};

/// The nonlinearity of g.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nonlinearity {
    /// xσ(bx)/1.1 with learned b.
    #[default]
    LipSwish,
    /// LipSwish of x and of −x side by side, over 1.004: twice the features.
    ClipSwish,
    /// See [`Activation::Elu`].
    Elu,
    /// See [`Activation::Softplus`].
    Softplus,
    /// See [`Activation::Tanh`].
    Tanh,
    /// See [`Activation::Relu`].
    Relu,
    /// See [`Activation::LipschitzCube`].
    LipschitzCube,
    /// See [`Activation::Sin`].
    Sin,
    /// See [`Activation::Pila`].
    Pila,
    /// Pila of x − 0.2 and of −x − 0.2 side by side, over 1.06: twice the features.
    #[serde(rename = "cpila")]
    ConcatenatedPila,
    /// a·x + (1 − a)·LipSwish(x) with learned a and b.
    LeakyLipSwish,
}

impl Nonlinearity {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::LipSwish,
        Self::ClipSwish,
        Self::Elu,
        Self::Softplus,
        Self::Tanh,
        Self::Relu,
        Self::LipschitzCube,
        Self::Sin,
        Self::Pila,
        Self::ConcatenatedPila,
        Self::LeakyLipSwish,
    ];

    /// Returns the elementwise function that backends know, or `None` for one that is made of others.
    pub fn activation(self) -> Option<Activation> {
        Some(match self {
            Self::ClipSwish | Self::ConcatenatedPila | Self::LeakyLipSwish => return None,
            Self::LipSwish => Activation::LipSwish,
            Self::Elu => Activation::Elu,
            Self::Softplus => Activation::Softplus,
            Self::Tanh => Activation::Tanh,
            Self::Relu => Activation::Relu,
            Self::LipschitzCube => Activation::LipschitzCube,
            Self::Sin => Activation::Sin,
            Self::Pila => Activation::Pila,
        })
    }

    /// The nonlinearity of an elementwise function.
    pub(crate) fn of(activation: Activation) -> Option<Self> {
        Self::ALL.into_iter().find(|n| n.activation() == Some(activation))
    }

    /// Returns the factor by which the features grow in number: 1, or 2 for a concatenated one.
    pub fn widening(self) -> usize {
        if matches!(self, Self::ClipSwish | Self::ConcatenatedPila) { 2 } else { 1 }
    }

    /// Returns the names of the parameters that it learns, `[1]` each.
    pub fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::LipSwish | Self::ClipSwish => &["beta"],
            Self::LeakyLipSwish => &["alpha", "beta"],
            _ => &[],
        }
    }
}
