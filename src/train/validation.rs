//! Validation: when it is made, what it finds, and whether it makes the present weights the best ones.
//!
//! Weights are judged by the mean of −log p over samples that are never learned from. By [`Improvement::Lower`] a lower
//! mean replaces the best weights. By [`Improvement::Significant`] it does so only if the mean of the paired differences
//! δᵢ = log p(xᵢ) − log p_best(xᵢ) is above its standard error: the spread between samples is in both terms and cancels,
//! so that weights that are no better are told from ones that are.

use resflow_backend::Backend;
use serde::{Deserialize, Serialize};

use super::together::Command;
use super::{Budget, Trainer};
use crate::classifier::ClassificationScore;
use crate::error::Error;
use crate::flow::{Flow, LogProb, Provenance};

/// The steps after which a run validates where its settings name no interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Validations {
    /// Forty evenly over the budget, steps or time.
    #[default]
    Even,
    /// Before the first step, after 10, 20, 40, …, and then evenly: overfitting of a small table begins early.
    Early,
}

/// The rule by which weights replace the best ones so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Improvement {
    /// A lower mean of −log p on the validation samples.
    #[default]
    Lower,
    /// A mean of paired differences above its standard error. Hybrid models are compared by their objective alone.
    Significant,
}

/// A validation of the averaged weights (EMA).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Validation {
    /// The step it follows.
    pub step: u64,
    /// The mean of −log p over the validation samples, nats in the data's units.
    pub nll: f64,
    /// The standard error of that mean, nats.
    pub standard_error: f64,
    /// The score of a hybrid model's classifier on the same samples.
    pub classification: Option<ClassificationScore>,
    /// Marks the best so far, whose weights are kept.
    pub improved: bool,
}

/// Validations of a run whose settings leave it open.
const VALIDATIONS: u64 = 40;
/// The first of the early validations; the next ones are after twice as many steps each.
const EARLIEST: u64 = 10;

/// A fall from one validation to the next counts from this part of the mean's standard error on: what two weights have in
/// common cancels between them, and their difference has an error that is smaller by such a factor.
const RECOVERY: f64 = 0.1;

/// Whether a mean of −log p is clearly below the one of the validation before, though above the best one: a flow that begins at
/// a good base may lose by its first steps what it wins back later, and overfitting only rises.
fn recovers(last: f64, nll: f64, standard_error: f64) -> bool {
    last.is_finite() && last - nll > RECOVERY * standard_error
}

/// The best averaged weights.
#[derive(Debug, Clone)]
pub(super) struct Best<B: Backend> {
    pub(super) nll: f64,
    pub(super) classification: Option<ClassificationScore>,
    pub(super) flow: Flow<B>,
    /// log p of the validation samples, where differences are paired; `None` after resuming, until it is asked for.
    pub(super) log_prob: Option<LogProb>,
}

/// The objective, nats: −log p(x), or with a classifier λ (−log p(x)) − log p(y | x).
fn objective(nll: f64, classification: Option<ClassificationScore>, density_weight: f64) -> f64 {
    classification.map_or(nll, |score| density_weight * nll + score.cross_entropy)
}

impl<B: Backend> Trainer<B> {
    /// Returns `true` if the settings ask for a validation now.
    pub fn validation_due(&self) -> bool {
        let early = self.config.validations == Validations::Early && self.config.validate_every == 0;
        if self.step == 0 {
            return early && self.last_validation.is_none();
        }
        let validated = self.last_validation.as_ref().is_some_and(|v| v.step == self.step);
        let doubled = early && self.step.is_multiple_of(EARLIEST) && (self.step / EARLIEST).is_power_of_two();
        let due = match (self.config.validate_every, self.budget) {
            (0, Budget::Steps(steps)) => {
                let interval = (steps / VALIDATIONS).max(10);
                self.step.is_multiple_of(interval) || (doubled && self.step < interval)
            }
            (0, Budget::Time(_)) => self.milestone() > self.milestone || (doubled && self.milestone() == 0),
            (every, _) => self.step.is_multiple_of(every),
        };
        !validated && (self.finished() || due)
    }

    /// The number of the latest of the validations that are laid over the run.
    pub(super) fn milestone(&self) -> u64 {
        (self.progress() * VALIDATIONS as f64) as u64
    }

    /// Builds the flow with the averaged weights (EMA), its power iterations converged on them.
    pub fn averaged(&self) -> Flow<B> {
        self.optimiser.averaged(&self.flow, &self.config)
    }

    /// Evaluates the averaged weights on the validation samples and keeps them if they are the best. Before the first
    /// step it initialises what depends on the first batch, as that step would.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the first batch cannot initialise a transform, [`Error::Transform`] if a transform of
    /// your own fails, [`Error::Backend`] if the device does.
    pub fn validate(&mut self) -> Result<Validation, Error> {
        self.lead_to(Command::Validate)?;
        let made = self.make_validation();
        self.unless_failed(made)
    }

    /// Validates as one of the processes that all do.
    pub(super) fn make_validation(&mut self) -> Result<Validation, Error> {
        let start = std::time::Instant::now();
        self.initialise_once()?;
        let mut flow = self.averaged();
        // what is scored is what is certified
        flow.seal()?;
        let (samples, key) = (self.validation.samples(), self.key.named("validation"));
        let prepared = flow.prepare().with_lanes(0, self.team.clone()).without_solve_errors();
        let log_prob = prepared.log_prob(samples, key)?;
        let nll = -log_prob.mean();
        let labels = samples.labels().filter(|_| prepared.classifies());
        let score = |labels| prepared.classify(samples, key)?.score_weighted(labels, samples.weights());
        let classification = labels.map(score).transpose()?;
        let weigh = |nll, classification| objective(nll, classification, self.config.density_weight);
        let value = weigh(nll, classification);
        let paired = self.config.improvement == Improvement::Significant && classification.is_none();
        let improved = value.is_finite()
            && match &mut self.best {
                None => true,
                Some(best) if paired && best.nll.is_finite() => {
                    if best.log_prob.is_none() {
                        let before = best.flow.prepare().with_lanes(0, self.team.clone()).without_solve_errors();
                        best.log_prob = Some(before.log_prob(samples, key)?);
                    }
                    best.log_prob.as_ref().is_some_and(|best| {
                        let (difference, error) = log_prob.compare(best);
                        difference > error
                    })
                }
                Some(best) => value < weigh(best.nll, best.classification),
            };
        let (step, standard_error) = (self.step, log_prob.mean_standard_error());
        if improved {
            flow.set_provenance(Provenance { validation_nll: Some(nll), ..flow.provenance().clone() });
            self.best = Some(Best { nll, classification, flow, log_prob: paired.then_some(log_prob) });
            self.without_improvement = 0;
        } else if !(paired && self.last_validation.as_ref().is_some_and(|last| recovers(last.nll, nll, standard_error)))
        {
            self.without_improvement = self.without_improvement.saturating_add(1);
        }
        let validation = Validation { step, nll, standard_error, classification, improved };
        self.last_validation = Some(validation.clone());
        self.elapsed += start.elapsed();
        self.milestone = self.milestone();
        Ok(validation)
    }
}

#[cfg(test)]
mod tests {
    use super::recovers;

    #[test]
    fn only_clear_falls_are_recoveries() {
        assert!(recovers(3.0, 2.9, 0.5));
        for (last, nll) in [(3.0, 2.99), (3.0, 3.0), (3.0, 3.5), (f64::INFINITY, 3.0), (f64::NAN, 3.0), (3.0, f64::NAN)]
        {
            assert!(!recovers(last, nll, 0.5), "{last} and {nll}");
        }
    }
}
