//! Bijections besides the residual block, and the dequantisation of bytes.

mod actnorm;
mod conditional_actnorm;
mod dequantise;
mod flatten;
mod invertible_linear;
mod logit;
mod lu_linear;
mod squeeze;

pub use actnorm::ActNorm;
pub use conditional_actnorm::ConditionalActNorm;
pub(crate) use dequantise::quantised;
pub use dequantise::{bits_per_dim, dequantise, quantise};
pub use flatten::{Flatten, from_vectors, to_vectors};
pub use invertible_linear::InvertibleLinear;
pub use logit::Logit;
pub use lu_linear::LuLinear;
pub(crate) use lu_linear::draw_permutation;
pub use squeeze::Squeeze;

pub use crate::tiled::{tile_samples, tiled};
