//! How far a run is, as its state says it.

use std::time::Duration;

use resflow_backend::Key;
use serde::{Deserialize, Serialize};

use super::{MOST_TIME, config};
use crate::error::{CheckpointError, Error};

/// The key, the steps and the time of a run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Done {
    /// The seed of the key as text: JSON numbers of other readers lose the low bits of large ones.
    pub(super) key: String,
    pub(super) step: u64,
    /// In seconds.
    pub(super) elapsed: f64,
}

impl Done {
    pub(crate) fn new(key: Key, step: u64, elapsed: Duration) -> Self {
        Self { key: key.seed().to_string(), step, elapsed: elapsed.as_secs_f64() }
    }

    /// Returns the key, the steps and the time.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] for a key that is no number and a time that is no duration of less than a thousand years,
    /// [`Error::Config`] for more steps than a run makes.
    pub(crate) fn check(&self) -> Result<(Key, u64, Duration), Error> {
        let format = |problem: &str| Error::Checkpoint(CheckpointError::Format(problem.into()));
        config::check_steps("step", self.step, 0)?;
        let key = Key::new(self.key.parse().map_err(|_| format("the run's key is not a number"))?);
        let elapsed =
            Duration::try_from_secs_f64(self.elapsed).map_err(|_| format("the run's time is not a duration"))?;
        if elapsed > MOST_TIME {
            return Err(format("the run's time is longer than a thousand years"));
        }
        Ok((key, self.step, elapsed))
    }
}
