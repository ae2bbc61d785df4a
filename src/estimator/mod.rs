//! Estimators of log det(I + J) and of its gradient.
//!
//! | type | log det | bias | variance |
//! |---|---|---|---|
//! | [`Exact`] | LU of I + J, from d vector-Jacobian products, or for values from the h < d of a [`Bottleneck`] | none | none |
//! | [`Truncated`] | Σ_{k≤K} (−1)^{k+1} tr(Jᵏ)/k by probes (i-ResNet, arXiv 1811.00995 eq. 4) | ≤ d·(−ln(1−c) − Σ_{k≤K} cᵏ/k) | of the probes |
//! | [`RussianRoulette`] | the same with a random number of reweighted terms (arXiv 1906.02735 eq. 6) | none | of probes and N |
//! | [`Auto`] | exact where its counted cost allows, else roulette | none | as chosen |
//!
//! The first terms have no noise where their traces are known without a probe ([`Known`]), or less of it.
//!
//! Monotone blocks have the odd terms only ([`Expansion::Odd`]), which the same estimators count, draw and weigh.
//!
//! Drawing ([`RussianRoulette::draw`]) is separate from computing ([`series()`]): the latter takes probes and
//! weights as arguments. The *value* of a log det and the *surrogate* whose gradient is that of the log det are
//! different types: [`SeriesValue`] is a value; [`Surrogate`] has no value that means anything.

mod auto;
mod bottleneck;
mod differentiated;
mod draw;
mod estimate;
mod exact;
mod known;
mod law;
mod odd;
mod roulette;
mod series;
mod spec;
mod vjp;

pub use auto::{Auto, CostModel};
pub use bottleneck::Bottleneck;
pub use differentiated::{Differentiated, differentiated};
pub use draw::{Draw, LogDet};
pub use estimate::{Estimate, Samples, Surrogates};
pub use exact::{ExactLogDet, exact_log_det, jacobian};
pub use known::{Control, Known, Traces};
pub use law::Law;
pub use odd::{Expansion, odd_series};
pub use roulette::{RussianRoulette, Sharing, Truncated, VarianceWarning};
use serde::{Deserialize, Serialize};
pub use series::{SeriesValue, Surrogate, Weights, series, series_beyond};
pub use vjp::Vjp;

use crate::error::ConfigError;

/// The use of an estimator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The gradient of a training step.
    Training,
    /// The evaluation of log p.
    Evaluation,
}

/// Log det by the full Jacobian and LU, or by that of a [`Bottleneck`] where only the value is wanted: deterministic, error 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Empty", into = "Empty")]
pub struct Exact;

/// The serialised form of [`Exact`]: TOML has no word for a unit.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

impl From<Empty> for Exact {
    fn from(_: Empty) -> Self {
        Self
    }
}

impl From<Exact> for Empty {
    fn from(_: Exact) -> Self {
        Self {}
    }
}

/// The distribution of trace probes; all have E[v vᵀ] = I.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// ±1: never a larger variance than Gaussian, by 2 Σ a_ii² for the trace of A.
    #[default]
    Rademacher,
    /// Standard normal, as Chen et al. state it.
    Gaussian,
}

impl Probe {
    pub(crate) fn noise(self) -> resflow_backend::Noise {
        match self {
            Self::Rademacher => resflow_backend::Noise::Rademacher,
            Self::Gaussian => resflow_backend::Noise::Normal,
        }
    }
}

/// One of the estimators, as a setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// See [`Exact`].
    Exact(Exact),
    /// See [`Truncated`].
    Truncated(Truncated),
    /// See [`RussianRoulette`].
    RussianRoulette(RussianRoulette),
    /// See [`Auto`].
    Auto(Auto),
}

impl Default for Estimator {
    fn default() -> Self {
        Self::Auto(Auto::default())
    }
}

impl Estimator {
    /// Checks what deserialising cannot.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a parameter out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Exact(_) => Ok(()),
            Self::Truncated(t) => t.check(),
            Self::RussianRoulette(r) => r.check(),
            Self::Auto(a) => a.otherwise.check(),
        }
    }

    /// Replaces `Auto` by its choice for this cost, for training or for evaluation.
    pub fn resolve(&self, cost: &CostModel, phase: Phase) -> Self {
        match self {
            Self::Auto(auto) => auto.choose(cost, phase),
            other => other.clone(),
        }
    }
}

/// What an estimator that uses known traces says of it.
fn known(traces: Traces) -> &'static str {
    if traces == Traces::Exact { ", first traces exact where known" } else { "" }
}

impl std::fmt::Display for Estimator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(_) => write!(f, "exact"),
            Self::Truncated(t) => {
                write!(f, "truncated after {} terms, {} probes{}", t.terms, t.probes, known(t.traces))
            }
            Self::RussianRoulette(r) => write!(
                f,
                "Russian roulette, {}, {} exact terms, {} draws, {} {} probes, N {}{}",
                r.law,
                r.exact_terms,
                r.draws,
                r.probes,
                if r.probe == Probe::Rademacher { "Rademacher" } else { "Gaussian" },
                if r.sharing == Sharing::Batch { "per batch" } else { "per sample" },
                known(r.traces),
            ),
            Self::Auto(a) => write!(f, "auto (exact or {})", Self::RussianRoulette(a.otherwise.clone())),
        }
    }
}
