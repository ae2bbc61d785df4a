//! The norms in which the layers of one g may be bounded.
//!
//! Layer i is bounded from the norm pᵢ to the norm qᵢ. The product of the bounds bounds g only if each layer begins
//! with the norm in which the one before it ended, qᵢ = pᵢ₊₁, and x + g(x) is invertible by it only if g maps one norm
//! to itself, q_n = p₁. The activations between are elementwise, so they are 1-Lipschitz in every such norm.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Order;
use crate::error::ConfigError;

/// Checks the (domain, codomain) of each layer, first to last.
///
/// # Errors
/// Returns [`ConfigError::Inconsistent`] if the norms do not meet between two layers, or the last differs
/// from the first.
pub fn check_chain(layers: &[(Order, Order)]) -> Result<(), ConfigError> {
    for (i, pair) in layers.windows(2).enumerate() {
        let (leaves, enters) = (pair[0].1, pair[1].0);
        if leaves != enters {
            return Err(ConfigError::Inconsistent(format!(
                "weight layer {} is bounded into the {leaves}, weight layer {} from the {enters}: the product of the \
                 layers' bounds then bounds nothing; use one norm at each boundary",
                i + 1,
                i + 2,
            )));
        }
    }
    match (layers.first(), layers.last()) {
        (Some((first, _)), Some((_, last))) if first != last => Err(ConfigError::Inconsistent(format!(
            "the first weight layer is bounded from the {first} and the last into the {last}: g is then no contraction in \
             any one norm, and x + g(x) need not be invertible although every layer is within its bound; end in the norm of \
             the beginning"
        ))),
        _ => Ok(()),
    }
}

/// The digits of the longest chain: no block has more than 64 layers. A file's text is refused before it takes memory.
const MOST_DIGITS: usize = 65;

/// Reads the (domain, codomain) of each layer from n + 1 digits for n layers: `1`, `2`, or `f` for the max norm.
///
/// # Errors
/// Returns [`ConfigError::Syntax`] for other characters, fewer than two of them or more than 65, and
/// [`ConfigError::Inconsistent`] for a chain that does not close.
pub fn chain_from_digits(digits: &str) -> Result<Vec<(Order, Order)>, ConfigError> {
    let order = |digit| match digit {
        '1' => Ok(Order::One),
        '2' => Ok(Order::Two),
        'f' => Ok(Order::Infinity),
        other => Err(ConfigError::Syntax(format!("norms are written with 1, 2 and f (the max norm), not {other:?}"))),
    };
    if digits.len() > MOST_DIGITS {
        return Err(ConfigError::Syntax(format!(
            "{} norms are given, more than the {MOST_DIGITS} of the longest chain",
            digits.len()
        )));
    }
    let orders = digits.chars().map(order).collect::<Result<Vec<_>, _>>()?;
    if orders.len() < 2 {
        return Err(ConfigError::Syntax(format!(
            "{} norms are given; n weight layers have n + 1 of them, so at least 2",
            orders.len()
        )));
    }
    let layers: Vec<_> = orders.windows(2).map(|pair| (pair[0], pair[1])).collect();
    check_chain(&layers)?;
    Ok(layers)
}

/// Builds the chain of n layers whose norms are all learned: n raw parameters, one at each boundary, the last
/// being the first.
pub fn learned_chain(layers: usize) -> Vec<(Order, Order)> {
    (0..layers).map(|i| (Order::Learned(i), Order::Learned((i + 1) % layers))).collect()
}

/// The norms of all blocks of a flow, as a setting: `"2"` (the default), n + 1 digits for blocks of n layers, or
/// `"learned"`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NormChain {
    /// The 2-norm everywhere.
    #[default]
    Two,
    /// The (domain, codomain) of each layer, as the digits say.
    Fixed {
        /// The digits.
        digits: String,
        /// The norms that they stand for.
        layers: Vec<(Order, Order)>,
    },
    /// One learned order for each boundary, the last being the first; all begin at 2.
    Learned,
}

impl NormChain {
    /// Checks the chain for blocks of so many layers; `elementwise` says whether their activations are, which alone are
    /// contractions in every norm.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for a chain of another length, or an activation that is a contraction in
    /// the 2-norm only.
    pub fn check(&self, layers: usize, elementwise: bool) -> Result<(), ConfigError> {
        if *self != Self::Two && !elementwise {
            return Err(ConfigError::Inconsistent(
                "norms other than 2 need an elementwise activation: the concatenated LipSwish is a contraction in the 2-norm only"
                    .into(),
            ));
        }
        match self {
            Self::Fixed { digits, layers: chain } if chain.len() != layers => Err(ConfigError::Inconsistent(format!(
                "norms \"{digits}\" are those of {} layers, a block has {layers}",
                chain.len()
            ))),
            _ => Ok(()),
        }
    }

    /// The (domain, codomain) of each of so many layers, if they are not all the 2-norm.
    pub fn orders(&self, layers: usize) -> Option<Vec<(Order, Order)>> {
        match self {
            Self::Two => None,
            Self::Fixed { layers, .. } => Some(layers.clone()),
            Self::Learned => Some(learned_chain(layers)),
        }
    }

    /// The number of learned orders of a block of so many layers.
    pub fn parameters(&self, layers: usize) -> u64 {
        if *self == Self::Learned { layers as u64 } else { 0 }
    }
}

impl fmt::Display for NormChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Two => "2",
            Self::Learned => "learned",
            Self::Fixed { digits, .. } => digits,
        })
    }
}

impl From<NormChain> for String {
    fn from(chain: NormChain) -> Self {
        chain.to_string()
    }
}

impl TryFrom<String> for NormChain {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl FromStr for NormChain {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "2" => Ok(Self::Two),
            "learned" => Ok(Self::Learned),
            digits => {
                let layers = chain_from_digits(digits)?;
                let two = layers.iter().all(|&pair| pair == (Order::Two, Order::Two));
                Ok(if two { Self::Two } else { Self::Fixed { digits: digits.to_owned(), layers } })
            }
        }
    }
}
