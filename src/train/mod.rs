//! Training: gradients, optimiser, schedules, averaging, validation and resumable state.
//!
//! The mathematics is [`PreparedFlow::gradient`](crate::flow::PreparedFlow::gradient); a [`Trainer`] is one run: it
//! draws batches, steps, validates the averaged weights, keeps the best and can be stopped and resumed at any step, bit
//! for bit on the CPU.
//!
//! ```
//! use resflow::backend::Key;
//! use resflow::config::FlowConfig;
//! use resflow::data::ToyDensity;
//! use resflow::train::{Budget, Source, TrainConfig, Trainer};
//! use resflow::{Flow, NdArray};
//!
//! let config = FlowConfig { blocks: 2, hidden: vec![16], ..FlowConfig::new(2) };
//! let flow = Flow::new(NdArray::<f32>::new(), &config, Key::new(0))?;
//! let source = Source::Density(ToyDensity::Moons);
//! let mut trainer = Trainer::new(flow, source, &TrainConfig::default(), Budget::Steps(20), Key::new(1))?;
//! trainer.run(|report, _| assert!(report.train_nll.is_finite()))?;
//! let model = trainer.model();
//! # assert!(model.log_prob(trainer.validation_samples(), Key::new(2))?.mean().is_finite());
//! # Ok::<(), resflow::Error>(())
//! ```

mod batches;
mod columns;
mod config;
mod defaults;
mod done;
mod given;
mod large;
mod limits;
mod measured;
mod optimiser;
mod source;
mod start;
mod state;
mod together;
mod trainer;
mod validation;
mod verdict;

use std::time::Duration;

pub use config::TrainConfig;
pub(crate) use done::Done;
use limits::Limits;
pub use measured::RouletteLaw;
pub(crate) use optimiser::{Optimiser, find_infinite};
use serde::{Deserialize, Serialize};
pub use source::Source;
pub use start::start_from_mixture;
pub use state::is_on_large_table;
pub use together::{Exchange, await_run};
pub use trainer::{StepReport, Trainer};
pub use validation::{Improvement, Validation, Validations};
pub use verdict::Verdict;

use crate::error::ConfigError;

/// A thousand years: durations near the largest overflow when one is added to them.
const MOST_TIME: Duration = Duration::from_secs(1000 * 365 * 86_400);

/// The steps or the time that a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// A number of steps: the run is a function of configuration and key.
    Steps(u64),
    /// A time: the schedule is laid over it.
    Time(Duration),
}

impl Budget {
    /// Checks that the budget is neither nothing nor beyond the limits.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for no steps or more than 2³⁹, and for no time or more than a
    /// thousand years.
    pub fn check(&self) -> Result<(), ConfigError> {
        match *self {
            Self::Steps(steps) => config::check_steps("steps", steps, 1),
            Self::Time(limit) if limit.is_zero() || limit > MOST_TIME => Err(ConfigError::OutOfRange {
                name: "time limit",
                value: limit.as_secs_f64(),
                expected: "more than 0 seconds and at most a thousand years",
            }),
            Self::Time(_) => Ok(()),
        }
    }
}
