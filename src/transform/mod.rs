//! Bijections besides the residual block.

mod actnorm;

pub use actnorm::ActNorm;
