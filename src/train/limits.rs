//! What a run may take, and who may stop it before it has begun.

use std::time::Duration;

use super::Budget;

/// The budget of a run, the time after which it will be ended whatever that is, and whether it is stopped.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    pub(super) budget: Budget,
    pub(super) time: Option<Duration>,
    pub(super) is_stopped: &'a dyn Fn() -> bool,
}

impl Limits<'_> {
    /// A budget, and nobody who stops it.
    pub(super) fn of(budget: Budget) -> Self {
        Self { budget, time: None, is_stopped: &|| false }
    }
}
