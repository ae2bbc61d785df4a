//! The resumable state of a variational run: the flow as the last step left it, both moments of Adam, the average of the weights (EMA), the
//! settings and the numbers of the run. A run resumed from it makes the same steps as one that was never interrupted, bit for bit on the
//! CPU. The target is the caller's, and no part of it.

use std::collections::BTreeMap;

use resflow_backend::Backend;
use serde::{Deserialize, Serialize};

use super::{Target, VariationalConfig, VariationalFlow, VariationalTrainer};
use crate::checkpoint::{Archive, ModelDocument, VARIATIONAL, VARIATIONAL_RUN, document_value, section};
use crate::error::Error;
use crate::flow::Flow;
use crate::registry::Registry;
use crate::train::{Budget, Done};

/// The tensors of the flow are under this name.
const FLOW: &str = "flow.";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunDocument {
    config: VariationalConfig,
    budget: Budget,
    done: Done,
    initialised: bool,
}

impl<B: Backend, T: Target> VariationalTrainer<B, T> {
    /// Collects the state of the run.
    ///
    /// # Errors
    /// Returns [`Error::Unregistered`] for a transform that does not say what it is, [`Error::Input`] for a base density that cannot be
    /// saved, [`Error::Backend`] if the device failed.
    pub fn to_archive(&self) -> Result<Archive, Error> {
        let run = RunDocument {
            config: self.config.clone(),
            budget: self.budget,
            done: Done::new(self.key, self.step, self.elapsed),
            initialised: self.initialised,
        };
        let flow = &self.flow.flow;
        let document = serde_json::json!({
            VARIATIONAL_RUN: document_value(&run)?,
            VARIATIONAL: document_value(&ModelDocument::of(flow)?)?,
        });
        let mut archive = Archive { tensors: BTreeMap::new(), document };
        flow.store(FLOW, &mut archive)?;
        self.optimiser.store(flow.backend(), &mut archive)?;
        Ok(archive)
    }

    /// Goes on with a run where it was saved, towards the target that it had.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] for a state that does not belong together or is none of a variational run, [`Error::Config`] for
    /// settings out of range, [`Error::Input`] if the target is in another number of dimensions than the flow.
    pub fn resume(backend: B, archive: &Archive, target: T) -> Result<Self, Error> {
        Self::resume_with(backend, archive, target, &Registry::new())
    }

    /// Goes on with a run of a flow with parts of your own, which the registry makes.
    ///
    /// # Errors
    /// Returns the errors of [`resume`](Self::resume), and [`Error::Config`] for a part that is not in the registry.
    pub fn resume_with(backend: B, archive: &Archive, target: T, registry: &Registry<B>) -> Result<Self, Error> {
        let run: RunDocument = section(archive, VARIATIONAL_RUN)?;
        let model: ModelDocument = section(archive, VARIATIONAL)?;
        run.config.check()?;
        let (key, step, elapsed) = run.done.check()?;
        let flow = VariationalFlow::from_flow(Flow::restore(backend.clone(), &model, FLOW, archive, registry)?)?;
        let mut trainer = Self::new(flow, target, &run.config, run.budget, key)?;
        trainer.optimiser.restore(&backend, archive)?;
        (trainer.step, trainer.elapsed, trainer.initialised) = (step, elapsed, run.initialised);
        Ok(trainer)
    }

    /// Gives the run another budget, for example more steps.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for a budget of no steps or no time, or beyond the limits.
    pub fn set_budget(&mut self, budget: Budget) -> Result<(), Error> {
        budget.check()?;
        self.budget = budget;
        Ok(())
    }
}
