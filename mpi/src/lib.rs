//! Groups of processes on MPI, for runs of [resflow] on many machines.
//!
//! `Processes` is a [`Group`](resflow::group::Group) whose messages are MPI's: those of all processes that were started together (`mpirun`, `srun`).
//! Messages are sent without waiting, and what waits looks again and again until the time limit, so that a process that is gone, or
//! a network that is cut, ends the others with an error instead of hanging them. A process that ends tells the others why.
//!
//! The feature `system` links to the MPI that is installed (Open MPI or MPICH; `mpicc` and libclang are needed to build). Without it this crate is
//! empty, so that it can be a part of a workspace that is built where there is no MPI.

#[cfg(feature = "system")]
mod processes;
#[cfg(feature = "system")]
mod request;

#[cfg(feature = "system")]
pub use processes::{Processes, is_started_together};
