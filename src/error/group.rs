//! Errors of a group of processes.

use std::time::Duration;

/// What ended the work of a group of processes: every rank that waits gets one, and the first cause is named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// Another rank did not answer within the time limit: it hangs, its machine is gone, or the network between is cut.
    #[error("waited {} s for rank {from}, which did not answer: it hangs, or its machine or the network is gone", limit.as_secs_f64())]
    TimedOut {
        /// The rank that was waited for.
        from: usize,
        /// The time limit.
        limit: Duration,
    },
    /// Another rank ended.
    #[error("rank {rank} ended: {cause}")]
    Failed {
        /// The rank that ended.
        rank: usize,
        /// Why, in its words.
        cause: String,
    },
    /// What must be the same on all ranks is not.
    #[error("{what} on rank 0 and on {}", ranks(differing))]
    Differ {
        /// What differs, with the verb: "the parameters differ".
        what: String,
        /// The ranks that differ from rank 0.
        differing: Vec<usize>,
    },
    /// A message that is none of this protocol, or a transport that failed.
    #[error("between processes: {0}")]
    Transport(String),
}

fn ranks(numbers: &[usize]) -> String {
    let names: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    format!("rank{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}
