//! Residual flows.
#![forbid(unsafe_code)]
pub mod data;
pub use resflow_backend as backend;
