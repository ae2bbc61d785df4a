//! The CPU backend of resflow.
