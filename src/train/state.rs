//! The resumable state of a run, as a safetensors file.
//!
//! It holds the flow (with u, v and ActNorm's flag), both moments of Adam, the average of the weights (EMA), the best
//! model and the numbers of the run. A run resumed from it makes the same steps as one that was never interrupted, bit
//! for bit on the CPU.

use resflow_backend::Backend;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::batches::Contexts;
use super::columns::Columns;
use super::measured::Powers;
use super::together::Command;
use super::validation::Best;
use super::{Budget, Done, Limits, Source, TrainConfig, Trainer, Validation};
use crate::checkpoint::{Archive, ModelDocument, document_value, section};
use crate::classifier::ClassificationScore;
use crate::data::was_large;
use crate::error::Excerpt;
use crate::error::{CheckpointError, Error};
use crate::flow::Flow;
use crate::registry::Registry;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunDocument {
    config: TrainConfig,
    budget: Budget,
    /// The seed of the key as text: JSON numbers of other readers lose the low bits of large ones.
    key: String,
    data: String,
    step: u64,
    elapsed: f64,
    initialised: bool,
    best_nll: Option<f64>,
    /// The classifier's score in the best validation, of hybrid models.
    #[serde(default)]
    best_classification: Option<ClassificationScore>,
    best: Option<ModelDocument>,
    validation: Option<StoredValidation>,
    without_improvement: u32,
    /// What was measured of the terms of gradients, where roulette's law is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    powers: Option<Powers>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredValidation {
    step: u64,
    nll: Option<f64>,
    standard_error: Option<f64>,
    #[serde(default)]
    classification: Option<ClassificationScore>,
    improved: bool,
}

/// Returns `true` if a run's data were a [`LargeTable`](crate::data::LargeTable), by its state: it goes on with one only.
pub fn is_on_large_table(state: &Archive) -> bool {
    state.document["run"]["data"].as_str().is_some_and(was_large)
}

impl<B: Backend> Trainer<B> {
    /// Collects the state of the run.
    ///
    /// # Errors
    /// Returns [`Error::Unregistered`] for a transform that does not say what it is, [`Error::Input`] for a base
    /// density that cannot be saved, [`Error::Backend`] if the device failed.
    pub fn to_archive(&self) -> Result<Archive, Error> {
        let Done { key, step, elapsed } = Done::new(self.key, self.step, self.elapsed);
        let run = RunDocument {
            config: self.config.clone(),
            budget: self.budget,
            key,
            data: self.fingerprint.clone(),
            step,
            elapsed,
            initialised: self.initialised,
            best_nll: self.best.as_ref().map(|b| b.nll),
            best_classification: self.best_classification(),
            best: self.best.as_ref().map(|b| ModelDocument::of(&b.flow)).transpose()?,
            validation: self.last_validation.as_ref().map(|v| StoredValidation {
                step: v.step,
                nll: Some(v.nll).filter(|x| x.is_finite()),
                standard_error: Some(v.standard_error).filter(|x| x.is_finite()),
                classification: v.classification.filter(|c| c.cross_entropy.is_finite()),
                improved: v.improved,
            }),
            without_improvement: self.without_improvement,
            powers: self.law.as_ref().and_then(|law| law.powers.clone()),
        };
        let model = document_value(&ModelDocument::of(&self.flow)?)?;
        let document = serde_json::json!({ "run": document_value(&run)?, "model": model });
        let mut archive = Archive { tensors: BTreeMap::new(), document };
        self.flow.store("flow.", &mut archive)?;
        if let Some(best) = &self.best {
            best.flow.store("best.", &mut archive)?;
        }
        self.optimiser.store(self.flow.backend(), &mut archive)?;
        Ok(archive)
    }

    /// Goes on with a run where it was saved.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] for a state that does not belong together, [`Error::Input`] for other data than
    /// the run had, [`Error::Config`] for settings out of range, [`Error::Data`] for maps of columns that do not fit the
    /// data.
    pub fn resume(backend: B, archive: &Archive, source: impl Into<Source>) -> Result<Self, Error> {
        Self::resume_with(backend, archive, source, &Registry::new())
    }

    /// Goes on with a run of a model with parts of your own, which the registry makes.
    ///
    /// # Errors
    /// Returns the errors of [`resume`](Self::resume), and [`Error::Config`] for a part that is not in the registry.
    pub fn resume_with(
        backend: B,
        archive: &Archive,
        source: impl Into<Source>,
        registry: &Registry<B>,
    ) -> Result<Self, Error> {
        let source = source.into();
        let run: RunDocument = section(archive, "run")?;
        let model: ModelDocument = section(archive, "model")?;
        run.config.check()?;
        let format = |problem: &str| Error::Checkpoint(CheckpointError::Format(problem.into()));
        let fingerprint = source.fingerprint(model.classes());
        if fingerprint != run.data {
            return Err(Error::Input(format!(
                "the run was on other data ({}), this is {fingerprint}",
                Excerpt(&run.data)
            )));
        }
        let (key, step, elapsed) = Done { key: run.key, step: run.step, elapsed: run.elapsed }.check()?;
        let flow = Flow::restore(backend.clone(), &model, "flow.", archive, registry)?;
        let provenance = flow.provenance().clone();
        let best = match (run.best_nll, &run.best) {
            (Some(nll), Some(document)) => {
                let flow = Flow::restore(backend.clone(), document, "best.", archive, registry)?;
                Some(Best { nll, classification: run.best_classification, flow, log_prob: None })
            }
            (None, None) => None,
            _ => return Err(format("a best model without its score, or the reverse")),
        };
        let classifies = flow.classifier().is_some();
        let expected = classifies && best.is_some();
        if run.best_classification.is_some() != expected
            || run.validation.as_ref().is_some_and(|v| v.classification.is_some() && !classifies)
        {
            return Err(format("a classifier's score without a classifier, or the reverse"));
        }
        let scores = [run.best_classification, run.validation.as_ref().and_then(|v| v.classification)];
        let possible = |s: &ClassificationScore| s.cross_entropy >= 0.0 && (0.0..=1.0).contains(&s.accuracy);
        if !scores.iter().flatten().all(possible) {
            return Err(format("the score of a classifier is out of its range"));
        }
        if best.as_ref().is_some_and(|best| best.flow.config() != flow.config()) {
            return Err(format("the best model is of another configuration than the run"));
        }
        let columns = Columns::Given(flow.columns().clone());
        let mut trainer =
            Self::start(flow, source, &run.config, Limits::of(run.budget), key, columns, Contexts::Given)?;
        trainer.flow.set_provenance(provenance);
        trainer.optimiser.restore(&backend, archive)?;
        if let Some(powers) = run.powers {
            let law = trainer.law.take().filter(|_| powers.are_possible());
            let law = law.ok_or_else(|| format("powers of a roulette that measures none, or impossible ones"))?;
            trainer.law = Some(law.with(powers));
        }
        trainer.step = step;
        trainer.elapsed = elapsed;
        trainer.milestone = trainer.milestone();
        trainer.initialised = run.initialised;
        trainer.best = best;
        trainer.without_improvement = run.without_improvement;
        trainer.last_validation = run.validation.map(|v| Validation {
            step: v.step,
            nll: v.nll.unwrap_or(f64::NAN),
            standard_error: v.standard_error.unwrap_or(f64::NAN),
            classification: v.classification,
            improved: v.improved,
        });
        trainer.derive();
        Ok(trainer)
    }

    /// Gives a resumed run another budget, for example more steps.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for a budget of no steps or no time, or beyond the limits.
    pub fn set_budget(&mut self, budget: Budget) -> Result<(), Error> {
        budget.check()?;
        self.lead_to(Command::Budget(budget))?;
        self.take_budget(budget);
        Ok(())
    }

    pub(super) fn take_budget(&mut self, budget: Budget) {
        if let Budget::Steps(steps) = budget {
            self.config.steps = steps;
        }
        self.budget = budget;
    }
}
