//! Certificates: norms of weights from above, with the proof in the arithmetic.
//!
//! Power iteration finds norms from [below](super::PowerIteration). Here are bounds that are certainly not below: of [matrices](spectral_norm_bound), of
//! zero-padded [convolutions](convolution_norm_bound) and of [inverses](inverse_norm_bound), computed on the host in double
//! precision from the very numbers that the device multiplies by, f32 being a part of f64. They follow the field's name for it:
//! *certified* is what holds whatever the data, by an argument that includes rounding.
//!
//! Invariant: each bound is at least the exact norm of the numbers that it is given.

mod bounds;
mod cholesky;
mod convolution;
mod gram;
mod inverse;
mod rounding;

pub use bounds::{BiLipschitz, FlowBounds, TransformBounds, WeightBounds};
pub use convolution::convolution_norm_bound;
pub use gram::spectral_norm_bound;
pub use inverse::inverse_norm_bound;
pub(crate) use inverse::invert;
