//! Missing cells: rows of which cells were not seen are learned from, scored by what was seen of them, and filled in.
//!
//! Two flows belong together. The joint p(x) is a flow like any other. The imputer q is a flow over the same d columns given which
//! cells are given, m, and which are wanted, t, with the context \[x⊙m, m, t\] (an "arbitrary conditional" density: Ivanov, Figurnov
//! and Vetrov 2019, arXiv 1806.02382; Li, Akbar and Oliva 2020, arXiv 1909.06319). Where a cell is not wanted its number in the
//! vector is standard normal noise u, so that one net serves all masks:
//!
//! ```text
//! q(x_t, u | x_m, m, t) ≈ p(x_t | x_m) N(u; 0, I)                                        learned: random m and t of what was seen
//! log p(x_seen) = log E_q [ p(x_seen, x_missing) N(u; 0, I) / q(x_missing, u | x_seen) ]  K draws, log-mean-exp
//! ```
//!
//! The expectation is exact whatever q is; how far off K draws are is in the standard error (delta method), and in the effective
//! number of draws, (Σw)²/Σw². Of finitely many draws the logarithm is too low by half that error squared, to first order. An
//! estimate of log p may not be exponentiated, so the joint's log dets must be exact.
//!
//! The joint learns from rows that q has filled in, of which each stands there several times with other draws. That presumes that
//! cells are missing at random (MAR): whether one is missing may depend on what was seen of its row, not on what would have been
//! there.
//!
//! Everything random is a function of the key and of what was seen of a row: neither what stood in a missing cell nor the place
//! of the row among others changes anything, but that rows in which the same was seen are filled in with other draws.

mod completed;
mod fit;
mod imputer;
mod marginal;
mod masking;

pub use completed::Completed;
pub use fit::MissingFit;
pub use imputer::{Imputer, PreparedImputer};
pub use marginal::{PreparedMarginal, SeenLogProb};

/// The draws of an imputer behind log p of a row with missing cells, where nothing else is said.
pub const DRAWS: usize = 64;

/// The share of a limited time that the imputer learns for.
pub const TIME_SHARE: f64 = 0.4;
