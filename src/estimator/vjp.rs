//! All that an estimator needs of a map.

use resflow_backend::Backend;

use crate::layer::{PreparedLayer, Saved};

/// A map that multiplies with the transpose of its Jacobian.
pub trait Vjp<B: Backend> {
    /// Computes Jᵀ u for cotangents u `[n, …]`, at the samples where `saved` was kept.
    fn vjp(&self, backend: &B, saved: &Saved<B>, u: B::Tensor) -> B::Tensor;
}

impl<B: Backend, L: PreparedLayer<B> + ?Sized> Vjp<B> for L {
    fn vjp(&self, backend: &B, saved: &Saved<B>, u: B::Tensor) -> B::Tensor {
        PreparedLayer::vjp(self, backend, saved, u)
    }
}
