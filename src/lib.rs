//! Residual flows.
#![forbid(unsafe_code)]

pub mod bijection;
pub mod block;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod error;
pub mod estimator;
pub mod flow;
pub mod invert;
pub mod layer;
pub mod lipschitz;
pub mod log_prob;
pub mod train;
pub mod transform;

pub use error::Error;
pub use flow::Flow;
pub use resflow_backend as backend;
#[cfg(feature = "cpu")]
pub use resflow_ndarray::NdArray;
