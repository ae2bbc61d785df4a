//! The backend interface of resflow.
//!
//! [`Backend`] is the set of operations that a device offers; everything that makes a residual flow (layers,
//! estimators, inversion, training) is generic code above it. Randomness is a pure function of a [`Key`], so the same
//! key gives the same numbers on every backend, precision and number of threads.
//!
//! To write a backend, implement the required methods and run the properties of `resflow-conformance` on it.
#![forbid(unsafe_code)]

mod activation;
mod backend;
pub mod bounded_affine;
pub mod composed;
mod element;
mod error;
mod key;
mod net;
mod noise;
mod op;
mod products;
mod shape;
mod shard;
mod spline;

pub use activation::{Activation, LIPSWISH_SCALE};
pub use backend::{ActivationReverse, Backend};
pub use bounded_affine::BoundedAffineReverse;
pub use element::Element;
pub use error::BackendError;
pub use key::{Generator, Key, philox4x32_10};
pub use net::{Net, NetForward, NetLayer, TermWeights};
pub use noise::Noise;
pub use op::{
    AdamStep, Binary, FixedPointColumn, FixedPointFound, FixedPointRule, FixedPointSearch, FixedPointState, Over,
    Padding, Reduce, SeriesState, TermWeight, Unary,
};
pub use products::Products;
pub use shape::{MAX_RANK, Shape};
pub use shard::ShardPlan;
pub use spline::{Spline, SplineReverse};
