//! When a run's state is written, and in which order.
//!
//! Metrics first, then the model, then the checkpoint: whatever is interrupted, the checkpoint is never ahead of the
//! others. Writing is atomic, so a full disk or a killed process leaves the state before.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use resflow::backend::Backend;
use resflow::train::Trainer;

use crate::run::directory::RunDirectory;
use crate::run::metrics::Metrics;

/// The longest time between two checkpoints.
const LONGEST: Duration = Duration::from_secs(10);
/// After a validation, a checkpoint is written if it costs less than a twentieth of the time since the last one.
const SHARE: u32 = 20;

/// Writes model and checkpoint of a run.
#[derive(Debug)]
pub(crate) struct Keeper<'a> {
    directory: &'a RunDirectory,
    /// Whether there is a better model than the one in the file.
    pub(crate) improved: bool,
    /// The step of the state in the checkpoint.
    pub(crate) saved: u64,
    last: Instant,
    cost: Duration,
}

impl<'a> Keeper<'a> {
    /// The writer of a run whose checkpoint is that of a step.
    pub(crate) fn new(directory: &'a RunDirectory, saved: u64) -> Self {
        Self { directory, improved: false, saved, last: Instant::now(), cost: Duration::ZERO }
    }

    /// What the last writing cost.
    pub(crate) fn cost(&self) -> Duration {
        self.cost
    }

    /// Whether to write now.
    pub(crate) fn due(&self, validated: bool) -> bool {
        let since = self.last.elapsed();
        since >= LONGEST || (validated && since >= self.cost * SHARE)
    }

    /// Writes what has changed.
    pub(crate) fn save<B: Backend>(&mut self, trainer: &Trainer<B>, metrics: &Metrics) -> Result<()> {
        let start = Instant::now();
        let written = self.write(trainer, metrics);
        self.last = Instant::now();
        self.cost = start.elapsed();
        written.with_context(|| {
            let checkpoint = self.directory.checkpoint();
            if checkpoint.exists() {
                format!("cannot save the run; {} is the state before, ready for --resume", checkpoint.display())
            } else {
                "cannot save the run".to_owned()
            }
        })
    }

    fn write<B: Backend>(&mut self, trainer: &Trainer<B>, metrics: &Metrics) -> Result<()> {
        metrics.synchronise()?;
        if self.improved {
            trainer.model().save(self.directory.model())?;
            self.improved = false;
        }
        trainer.to_archive()?.write(&self.directory.checkpoint())?;
        self.saved = trainer.steps_done();
        Ok(())
    }
}
