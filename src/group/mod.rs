//! Groups of processes that compute one thing together, with the bits of one process.
//!
//! A [`Group`] carries messages between ranks 0, 1, …, R − 1; what they are for is above it ([`collective`]). A gradient is the
//! sum over lanes g = ((g₀ + g₁) + g₂) + …, whose order is part of the result in floating point. Rank r has the lanes
//! ⌊rL/R⌋ to ⌊(r + 1)L/R⌋ − 1, gets the sum of those before from rank r − 1, adds its own one after the other and hands it on to
//! rank r + 1; the last rank's sum goes back the same way. It does so section by section, while the backward pass is still at work on the rest. So the additions are those of one process, whatever R is, and no rank
//! holds more than its own lanes and one sum.
//!
//! Invariant: all ranks make the same calls in the same order. Whoever cannot go on says so ([`Group::abort`]), and whoever
//! waits for a message waits no longer than the group's time limit, so that nothing hangs.
//!
//! [`Threads`] are the ranks of a group in one process; those of a machine or of many are made by MPI (the crate `resflow-mpi`).

pub mod collective;
mod outbox;
mod team;
mod threads;

use std::fmt::Debug;

pub(crate) use outbox::{Outbox, Section};
pub(crate) use team::{LaneSum, Team};
pub use threads::Threads;

use crate::error::GroupError;

/// One rank's end of a group of processes.
pub trait Group: Debug + Send + Sync {
    /// The number of this process, from 0. Rank 0 leads: it writes files, talks, and decides.
    fn rank(&self) -> usize;

    /// R, the number of processes.
    fn size(&self) -> usize;

    /// Hands a message to another rank, and returns before it has arrived: a later call may still be sending it. Messages from one
    /// rank to another arrive in their order.
    ///
    /// # Errors
    /// Returns [`GroupError::Failed`] if another rank has ended, [`GroupError::TimedOut`] if too much of what was sent does not
    /// arrive, [`GroupError::Transport`] if the transport fails.
    fn send(&self, to: usize, message: Vec<u8>) -> Result<(), GroupError>;

    /// Waits for the next message of another rank.
    ///
    /// # Errors
    /// Returns [`GroupError::Failed`] if another rank has ended, [`GroupError::TimedOut`] after the time limit,
    /// [`GroupError::Transport`] if the transport fails.
    fn receive(&self, from: usize) -> Result<Vec<u8>, GroupError>;

    /// Tells all other ranks that this one ends, and why: what they wait for fails with [`GroupError::Failed`].
    fn abort(&self, cause: &str);
}

/// The group of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn send(&self, to: usize, _: Vec<u8>) -> Result<(), GroupError> {
        Err(GroupError::Transport(format!("there is no rank {to} in a group of one")))
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>, GroupError> {
        Err(GroupError::Transport(format!("there is no rank {from} in a group of one")))
    }

    fn abort(&self, _: &str) {}
}
