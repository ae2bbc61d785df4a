//! What a cell of a comparison found.

use anyhow::Result;
use resflow::backend::Backend;
use resflow::config::ModelConfig;
use resflow::flow::LogProb;
use resflow::flow::PreparedFlow;
use serde::{Deserialize, Serialize};

use crate::data::Data;
use crate::evaluate::classification::Quality;
use crate::evaluate::outliers::Outliers;

/// What a cell found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Score {
    /// −log p of held-out data, nats, and its standard error over the points.
    pub(super) nll: f64,
    pub(super) standard_error: f64,
    /// The same of images in bits per dimension.
    pub(super) bits_per_dim: Option<[f64; 2]>,
    /// Whether these are upper bounds on those of bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_bound: bool,
    /// Points, and how log p was found; of a table they are those of the best validation.
    pub(super) points: usize,
    pub(super) estimator: String,
    pub(super) parameters: u64,
    pub(super) steps: u64,
    /// Of steps and validations.
    pub(super) trained_seconds: f64,
    /// Of hybrid models on labelled points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) classification: Option<Quality>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) outliers: Vec<OutlierScore>,
}

impl Score {
    /// What a table shows: bits per dimension of images, else nats.
    pub(super) fn shown(&self) -> [f64; 2] {
        self.bits_per_dim.unwrap_or([self.nll, self.standard_error])
    }
}

/// How well log p tells one set of outliers from held-out points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutlierScore {
    pub(super) name: String,
    pub(super) points: usize,
    /// Null where there were not two points of each kind.
    pub(super) auroc: Option<f64>,
    pub(super) standard_error: Option<f64>,
    /// The mean over the outliers, nats; null where it is not finite.
    pub(super) mean_log_prob: Option<f64>,
    /// The same of images.
    pub(super) bits_per_dim: Option<f64>,
}

impl OutlierScore {
    pub(super) fn of<B: Backend>(
        flow: &PreparedFlow<B>,
        model: &ModelConfig,
        inside: &LogProb,
        name: &str,
        seed: u64,
    ) -> Result<Self> {
        let Outliers { scores, auroc } = Outliers::of(flow, model, inside, (name, Data::open(name)?), seed)?;
        let mean_log_prob = Some(scores.mean()).filter(|m| m.is_finite());
        Ok(Self {
            name: name.to_owned(),
            points: scores.values.len(),
            auroc: auroc.map(|a| a.value),
            standard_error: auroc.map(|a| a.standard_error),
            mean_log_prob,
            bits_per_dim: mean_log_prob.and_then(|m| model.bits_per_dim(m)),
        })
    }
}
