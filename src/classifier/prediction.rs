//! Predictions of a classifier, and their accuracy and calibration.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// p(y | x) of some samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Classification {
    /// K, the number of classes.
    pub classes: usize,
    /// ln p(y | x), nats, sample by sample, `[n, K]`: probabilities themselves would round to 0 where a classifier is
    /// sure, and wrong.
    pub log_probabilities: Vec<f64>,
}

/// The score of a classifier on labelled samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassificationScore {
    /// The mean of −log p(y | x), nats.
    pub cross_entropy: f64,
    /// The fraction of samples whose likeliest class is theirs; of equally likely ones the first counts,
    /// in training any.
    pub accuracy: f64,
    /// The number of samples.
    pub count: usize,
}

impl ClassificationScore {
    /// Returns the standard error of the accuracy as an estimate of that on all such data: √(a (1 − a)/n), which says
    /// nothing at 0 and 1.
    pub fn accuracy_error(&self) -> f64 {
        (self.accuracy * (1.0 - self.accuracy) / self.count.max(1) as f64).sqrt()
    }
}

/// Samples whose confidence, the probability of the likeliest class, lies in one interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// The number of samples.
    pub count: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// The fraction of them that is right; a calibrated classifier has that of the confidence.
    pub accuracy: f64,
}

/// The calibration of confidences (Guo et al. 2017, arXiv 1706.04599).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Intervals of equal length over \[0, 1\], empty ones left out.
    pub bins: Vec<CalibrationBin>,
    /// The expected calibration error (ECE): the mean over samples of |confidence − accuracy| of their interval.
    pub expected_error: f64,
}

impl Classification {
    /// The number of samples.
    pub fn len(&self) -> usize {
        self.log_probabilities.len() / self.classes.max(1)
    }

    /// Returns `true` if there are no samples.
    pub fn is_empty(&self) -> bool {
        self.log_probabilities.is_empty()
    }

    /// Returns p(y | x) of a sample, by its number, and a class.
    ///
    /// # Panics
    /// If there is no such sample or class.
    pub fn probability(&self, row: usize, class: usize) -> f64 {
        self.log_probability(row, class).exp()
    }

    fn log_probability(&self, row: usize, class: usize) -> f64 {
        assert!(class < self.classes, "class {class} of {}", self.classes);
        self.log_probabilities[row * self.classes + class]
    }

    /// Returns the likeliest class of each sample, the first of equal ones.
    pub fn predicted(&self) -> Vec<usize> {
        self.likeliest().map(|(class, _)| class).collect()
    }

    /// The likeliest class of each sample and its probability, NaN where one of the sample's is.
    fn likeliest(&self) -> impl Iterator<Item = (usize, f64)> {
        self.log_probabilities.chunks_exact(self.classes.max(1)).map(|row| {
            let larger = |best: (usize, f64), (class, &p): (usize, &f64)| if p > best.1 { (class, p) } else { best };
            let (class, log) = row.iter().enumerate().fold((0, f64::NEG_INFINITY), larger);
            (class, if row.iter().any(|p| p.is_nan()) { f64::NAN } else { log.exp() })
        })
    }

    /// Adds the samples of another.
    ///
    /// # Panics
    /// If it has other classes.
    pub fn extend(&mut self, other: Self) {
        assert_eq!(self.classes, other.classes, "rows of other classes");
        self.log_probabilities.extend(other.log_probabilities);
    }

    /// Computes cross-entropy and accuracy against the true classes.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for another number of labels than of samples, or a label that is no class.
    pub fn score(&self, labels: &[u8]) -> Result<ClassificationScore, Error> {
        self.score_weighted(labels, None)
    }

    /// Computes cross-entropy and accuracy of samples with weights: both are weighted means.
    ///
    /// # Errors
    /// Returns [`Error::Input`] as [`score`](Self::score) does, and for another number of weights than of samples.
    pub fn score_weighted(&self, labels: &[u8], weights: Option<&[f64]>) -> Result<ClassificationScore, Error> {
        self.check(labels)?;
        if let Some(weights) = weights.filter(|weights| weights.len() != labels.len()) {
            return Err(Error::Input(format!("{} weights for {} samples", weights.len(), labels.len())));
        }
        let weight = |i: usize| weights.map_or(1.0, |weights| weights[i]);
        let total = weights.map_or(labels.len().max(1) as f64, |weights| weights.iter().sum());
        let loss = |(i, &label): (usize, &u8)| weight(i) * -self.log_probability(i, usize::from(label));
        let right = self.likeliest().zip(labels).enumerate().filter(|(_, (said, label))| is_right(*said, **label));
        Ok(ClassificationScore {
            cross_entropy: labels.iter().enumerate().map(loss).sum::<f64>() / total,
            accuracy: right.map(|(i, _)| weight(i)).sum::<f64>() / total,
            count: labels.len(),
        })
    }

    /// Compares confidence with accuracy, over so many intervals.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for no intervals, another number of labels than of samples, or a label
    /// that is no class.
    pub fn calibration(&self, labels: &[u8], bins: usize) -> Result<Calibration, Error> {
        self.check(labels)?;
        if !(1..=1 << 20).contains(&bins) {
            return Err(Error::Input(format!("a calibration has 1 to 1048576 intervals of confidence, not {bins}")));
        }
        let mut sums = vec![(0_usize, 0.0, 0.0); bins];
        for ((class, p), &label) in self.likeliest().zip(labels) {
            let (count, confidence, right) = &mut sums[((p * bins as f64) as usize).min(bins - 1)];
            *count += 1;
            *confidence += p;
            *right += f64::from(u8::from(is_right((class, p), label)));
        }
        let filled = sums.into_iter().filter(|(count, ..)| *count > 0);
        let bins: Vec<_> = filled
            .map(|(count, confidence, right)| CalibrationBin {
                count,
                confidence: confidence / count as f64,
                accuracy: right / count as f64,
            })
            .collect();
        let error = |b: &CalibrationBin| b.count as f64 * (b.confidence - b.accuracy).abs();
        let expected_error = bins.iter().map(error).sum::<f64>() / labels.len().max(1) as f64;
        Ok(Calibration { bins, expected_error })
    }

    fn check(&self, labels: &[u8]) -> Result<(), Error> {
        if labels.len() != self.len() {
            return Err(Error::Input(format!("{} labels for {} rows", labels.len(), self.len())));
        }
        check_labels(labels, self.classes)
    }
}

/// Returns `true` if the likeliest class is the true one; what is not a number is never right.
fn is_right((class, probability): (usize, f64), label: u8) -> bool {
    class == usize::from(label) && !probability.is_nan()
}

/// Checks that all labels are classes.
pub(crate) fn check_labels(labels: &[u8], classes: usize) -> Result<(), Error> {
    match labels.iter().find(|&&label| usize::from(label) >= classes) {
        Some(label) => {
            Err(Error::Input(format!("a label is {label}, the model has the classes 0 to {}", classes.max(1) - 1)))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_and_calibration_by_hand() {
        let probabilities = [0.9, 0.1, 0.6, 0.4, 0.35, 0.65, 0.2, 0.8_f64];
        let said = Classification { classes: 2, log_probabilities: probabilities.map(f64::ln).to_vec() };
        assert_eq!(said.predicted(), [0, 0, 1, 1]);
        let score = said.score(&[0, 1, 1, 1]).expect("labels");
        let expected = -(0.9_f64.ln() + 0.4_f64.ln() + 0.65_f64.ln() + 0.8_f64.ln()) / 4.0;
        assert!((score.cross_entropy - expected).abs() < 1e-15 && score.accuracy == 0.75 && score.count == 4);
        assert!((score.accuracy_error() - (0.75_f64 * 0.25 / 4.0).sqrt()).abs() < 1e-15);
        // [0.5, 0.75) holds 0.6 and 0.65, one of them right; [0.75, 1] holds 0.9 and 0.8, both right
        let found = said.calibration(&[0, 1, 1, 1], 4).expect("labels");
        assert_eq!(found.bins.iter().map(|b| b.count).collect::<Vec<_>>(), [2, 2]);
        assert!((found.bins[0].confidence - 0.625).abs() < 1e-15 && found.bins[0].accuracy == 0.5);
        assert!((found.expected_error - (2.0 * 0.125 + 2.0 * 0.15) / 4.0).abs() < 1e-15);
    }

    #[test]
    fn labels_are_checked() {
        let said = Classification { classes: 2, log_probabilities: vec![-0.7, -0.7] };
        assert!(said.score(&[]).is_err() && said.score(&[2]).is_err());
        assert!(said.calibration(&[0], 0).is_err() && said.calibration(&[0], usize::MAX).is_err());
    }

    #[test]
    fn what_is_no_number_is_wrong() {
        let said = Classification { classes: 2, log_probabilities: vec![f64::NAN; 2] };
        let score = said.score(&[0]).expect("a label");
        assert!(score.accuracy == 0.0 && score.cross_entropy.is_nan());
        assert_eq!(said.calibration(&[0], 4).expect("a label").bins[0].accuracy, 0.0);
    }
}
