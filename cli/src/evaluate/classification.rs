//! What a hybrid model's classifier says of samples, and how right it is where they have labels.

use anyhow::Result;
use resflow::backend::{Backend, Key};
use resflow::classifier::{Calibration, Classification};
use resflow::config::ModelConfig;
use resflow::data::Dataset;
use resflow::flow::PreparedFlow;
use serde::{Deserialize, Serialize};

use crate::evaluate;
use crate::failure::warn;

/// Intervals of confidence over which calibration is measured, as in Guo et al. 2017 (arXiv 1706.04599).
const INTERVALS: usize = 15;

/// p(y | x) of samples.
#[derive(Debug)]
pub(crate) struct Classified {
    said: Classification,
    /// Where the samples have labels.
    pub(crate) quality: Option<Quality>,
}

/// How right a classifier is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Quality {
    /// The fraction of samples whose likeliest class is theirs, and its standard error.
    pub(crate) accuracy: f64,
    pub(crate) accuracy_error: f64,
    /// The mean of −log p(y | x), nats; null where it is infinite.
    pub(crate) cross_entropy: Option<f64>,
    pub(crate) calibration: Calibration,
}

impl Classified {
    /// That of the samples that log p is evaluated on with the same key, if the model has a classifier.
    pub(crate) fn of<B: Backend>(
        flow: &PreparedFlow<B>,
        model: &ModelConfig,
        data: &Dataset,
        key: Key,
    ) -> Result<Option<Self>> {
        if !flow.classifies() {
            return Ok(None);
        }
        let said = evaluate::classify(flow, model, data.samples(), key)?;
        let quality = match data.labels() {
            Some(labels) => Quality::of(&said, labels)?,
            None => None,
        };
        Ok(Some(Self { said, quality }))
    }

    /// The predicted class of each sample, and its probability.
    pub(crate) fn predictions(&self) -> impl Iterator<Item = (usize, f64)> {
        self.said.predicted().into_iter().enumerate().map(|(i, class)| (class, self.said.probability(i, class)))
    }
}

impl Quality {
    /// None where the labels are those of other classes.
    fn of(said: &Classification, labels: &[u8]) -> Result<Option<Self>> {
        if let Some(other) = labels.iter().find(|&&label| usize::from(label) >= said.classes) {
            warn(format_args!(
                "one of the labels is {other}, the model's classes go from 0 to {}: no accuracy",
                said.classes - 1
            ));
            return Ok(None);
        }
        let score = said.score(labels)?;
        Ok(Some(Self {
            accuracy: score.accuracy,
            accuracy_error: score.accuracy_error(),
            cross_entropy: Some(score.cross_entropy).filter(|x| x.is_finite()),
            calibration: said.calibration(labels, INTERVALS)?,
        }))
    }
}
