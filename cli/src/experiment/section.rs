//! The sections of an experiment's file that say what is measured, as they are written.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Table;

/// Settings of one row of a table that differ from the file's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    pub(super) name: String,
    #[serde(default)]
    pub(super) flow: Table,
    #[serde(default)]
    pub(super) images: Table,
    #[serde(default)]
    pub(super) train: Table,
}

/// The section `[comparison]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Comparison {
    pub(super) rows: Vec<Row>,
    /// Trainings of each row, with consecutive seeds.
    #[serde(default = "one")]
    pub(super) runs: u64,
    /// The seconds that each training gets, validations included, in place of its `steps`: rows at equal time, on a machine that
    /// does nothing else.
    #[serde(default)]
    pub(super) seconds: Option<f64>,
    /// Held-out points; without it 10000 of a density, all test images of a data set.
    #[serde(default)]
    pub(super) test_rows: Option<usize>,
    /// The held-out rows of tables, each by the name that its training rows have in `data`: a table without them is scored by its best
    /// validation, which chose its weights.
    #[serde(default)]
    pub(super) tests: BTreeMap<String, String>,
    /// Data that log p is to tell from the held-out points.
    #[serde(default)]
    pub(super) outliers: Vec<String>,
}

fn one() -> u64 {
    1
}

/// The section `[bias]` or `[variance]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grid {
    pub(super) estimators: Vec<String>,
    /// c, the bounds on Lip(g).
    pub(super) bounds: Vec<f64>,
    /// Widths of all hidden layers; without them, those of `[flow]`.
    #[serde(default)]
    pub(super) widths: Vec<usize>,
    /// The estimator that models are trained with: "own", each model with the one that is measured on it, or one for all.
    #[serde(default = "exact")]
    pub(super) trained_with: String,
    /// Points at which the bias is measured, or of the batch whose gradient is.
    #[serde(default = "thousand")]
    pub(super) points: usize,
    /// Independent estimates.
    #[serde(default = "thirty_two")]
    pub(super) repeats: usize,
}

fn exact() -> String {
    "exact".to_owned()
}

fn thousand() -> usize {
    1000
}

fn thirty_two() -> usize {
    32
}
