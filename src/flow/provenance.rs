//! Where a model comes from.

use serde::{Deserialize, Serialize};

use super::scores::ReferenceScores;
use crate::base::Ladder;

/// The data, the training and the score behind a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Provenance {
    /// The data it was fitted to.
    pub data: String,
    /// The names of the data's columns.
    pub columns: Option<Vec<String>>,
    /// The columns of the contexts that a conditional model was fitted given: their names, or `column N`, N from 1, in a table
    /// without names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub given: Option<Vec<String>>,
    /// The names of the classes that a classifier tells apart, in the order of their numbers, where they have names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// The training steps behind the weights.
    pub steps: u64,
    /// The seed of the run's key.
    pub seed: u64,
    /// Negative log likelihood on the validation data, nats per sample.
    pub validation_nll: Option<f64>,
    /// What mixtures of Gaussians gave the validation rows before training, nats a row in the data's units, where the base
    /// density was fitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ladder: Option<Ladder>,
    /// How likely the rows of the fit are under the model, where they were scored; files of earlier versions have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<ReferenceScores>,
}
