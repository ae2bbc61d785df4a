//! What a hybrid model's classifier says of samples, and how right it is where they have labels: of all at once, or piece by piece.

use anyhow::Result;
use resflow::backend::{Backend, Key};
use resflow::classifier::{Calibration, CalibrationBin, Classification};
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

    /// That of a piece of images, by the key of the piece, without their labels.
    pub(crate) fn of_piece<B: Backend>(flow: &PreparedFlow<B>, data: &Dataset, key: Key) -> Result<Option<Self>> {
        if !flow.classifies() {
            return Ok(None);
        }
        Ok(Some(Self { said: flow.classify(data.samples(), key)?, quality: None }))
    }

    /// How right it is about a piece of these labels.
    pub(crate) fn judge(&self, labels: &[u8]) -> Result<Judged> {
        let Some(Quality { calibration, cross_entropy, accuracy, .. }) = Quality::of(&self.said, labels)? else {
            return Ok(Judged::default());
        };
        let count = labels.len() as f64;
        let loss = cross_entropy.unwrap_or(f64::INFINITY) * count;
        let mut judged = Judged { count, loss, right: (accuracy * count).round(), ..Judged::default() };
        for CalibrationBin { count, confidence, accuracy } in calibration.bins {
            let bin = ((confidence * INTERVALS as f64) as usize).min(INTERVALS - 1);
            let count = count as f64;
            judged.bins[bin] = [count, confidence * count, (accuracy * count).round()];
        }
        Ok(judged)
    }

    /// The predicted class of each sample, and its probability.
    pub(crate) fn predictions(&self) -> impl Iterator<Item = (usize, f64)> {
        self.said.predicted().into_iter().enumerate().map(|(i, class)| (class, self.said.probability(i, class)))
    }
}

/// Sums over images with labels, from which it follows how right a classifier is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Judged {
    count: f64,
    loss: f64,
    right: f64,
    /// Of each interval of confidence: the images, their confidences, and those that are right.
    bins: [[f64; 3]; INTERVALS],
}

impl Judged {
    pub(crate) fn add(&mut self, other: Self) {
        let own = self.numbers().zip(other.numbers()).map(|(a, b)| a + b).collect::<Vec<_>>();
        *self = Self::from_numbers(&own).unwrap_or_default();
    }

    fn numbers(&self) -> impl Iterator<Item = f64> + use<> {
        let Self { count, loss, right, bins } = *self;
        [count, loss, right].into_iter().chain(bins.into_iter().flatten())
    }

    fn from_numbers(numbers: &[f64]) -> Option<Self> {
        let (&[count, loss, right], bins) = numbers.split_first_chunk()?;
        let bins: Vec<[f64; 3]> = bins.chunks(3).map(TryInto::try_into).collect::<Result<_, _>>().ok()?;
        Some(Self { count, loss, right, bins: bins.try_into().ok()? })
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        self.numbers().flat_map(f64::to_le_bytes).collect()
    }

    /// `None` for bytes that are none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let numbers: Option<Vec<f64>> = bytes.chunks(8).map(|b| b.try_into().ok().map(f64::from_le_bytes)).collect();
        Self::from_numbers(&numbers?)
    }

    /// How right the classifier is; nothing of no images.
    pub(crate) fn quality(&self) -> Option<Quality> {
        let n = self.count;
        if n == 0.0 {
            return None;
        }
        let accuracy = self.right / n;
        let bins: Vec<_> = self
            .bins
            .iter()
            .filter(|[count, ..]| *count > 0.0)
            .map(|&[count, confidence, right]| CalibrationBin {
                count: count as usize,
                confidence: confidence / count,
                accuracy: right / count,
            })
            .collect();
        let expected_error = bins.iter().map(|b| b.count as f64 * (b.confidence - b.accuracy).abs()).sum::<f64>() / n;
        Some(Quality {
            accuracy,
            accuracy_error: (accuracy * (1.0 - accuracy) / n).sqrt(),
            cross_entropy: Some(self.loss / n).filter(|x| x.is_finite()),
            calibration: Calibration { bins, expected_error },
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_judged_as_the_whole() {
        let n = 40;
        let p = |i: usize| [0.2 + 0.6 * (i as f64 * 0.37).fract(), 0.1 + 0.1 * (i % 3) as f64];
        let log_probabilities: Vec<f64> =
            (0..n).flat_map(|i| [p(i)[0], p(i)[1], 1.0 - p(i)[0] - p(i)[1] * 0.5]).map(f64::ln).collect();
        let labels: Vec<u8> = (0..n).map(|i| (i * 7 % 3) as u8).collect();
        let said = |range: std::ops::Range<usize>| Classified {
            said: Classification {
                classes: 3,
                log_probabilities: log_probabilities[3 * range.start..3 * range.end].to_vec(),
            },
            quality: None,
        };
        let whole = Quality::of(&said(0..n).said, &labels).expect("labels").expect("known");
        let mut sums = Judged::default();
        assert_eq!(sums.quality(), None);
        for range in [0..7, 7..7, 7..30, 30..n] {
            let own = said(range.clone()).judge(&labels[range]).expect("labels");
            sums.add(Judged::from_bytes(&own.to_bytes()).expect("whole"));
        }
        let found = sums.quality().expect("images");
        assert_eq!((found.accuracy, found.accuracy_error), (whole.accuracy, whole.accuracy_error));
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(near(found.cross_entropy.expect("finite"), whole.cross_entropy.expect("finite")));
        assert!(near(found.calibration.expected_error, whole.calibration.expected_error));
        for (a, b) in found.calibration.bins.iter().zip(&whole.calibration.bins) {
            assert!(a.count == b.count && near(a.confidence, b.confidence) && near(a.accuracy, b.accuracy));
        }
        assert_eq!(found.calibration.bins.len(), whole.calibration.bins.len());
        assert!(Judged::from_bytes(&[0; 8]).is_none() && Judged::from_bytes(&[0; 9]).is_none());
    }
}
