//! The clock of a run with a time limit: what is left for training once the last validation, the model and the pictures
//! have their share, which is measured on the way.

use std::time::{Duration, Instant};

use resflow::train::Budget;

/// The run's clock.
#[derive(Debug)]
pub(crate) struct Pace {
    start: Instant,
    /// Time spent before this process.
    before: Duration,
    limit: Option<Duration>,
    /// What the end of the run takes.
    reserve: Duration,
}

impl Pace {
    pub(crate) fn new(start: Instant, before: Duration, limit: Option<Duration>) -> Self {
        Self { start, before, limit, reserve: Duration::ZERO }
    }

    /// The run's time so far, over all resumptions.
    pub(crate) fn elapsed(&self) -> Duration {
        self.before + self.start.elapsed()
    }

    pub(crate) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// When everything must be written.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.limit.map(|limit| self.start + limit.saturating_sub(self.before))
    }

    /// Sets time aside for the last validation, for the pictures and for writing, each with a margin: a trained flow
    /// takes longer to invert than a fresh one, and the machine may be busy.
    pub(crate) fn reserve(&mut self, validation: Duration, pictures: Duration, writing: Duration) {
        self.reserve = validation.mul_f64(1.3) + pictures.mul_f64(1.3) + writing * 3 + Duration::from_millis(200);
    }

    /// What is left for training, if there is a limit.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.limit.map(|limit| limit.saturating_sub(self.reserve).saturating_sub(self.elapsed()))
    }

    /// Whether training must end.
    pub(crate) fn over(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// The budget of a trainer that has spent `trained` so far: its clock leaves out what happens between steps.
    pub(crate) fn budget(&self, trained: Duration) -> Option<Budget> {
        self.left().map(|left| Budget::Time((trained + left).max(Duration::from_nanos(1))))
    }
}
