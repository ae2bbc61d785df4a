//! The determinant of a g that is narrower inside: where its samples become h < d numbers, J = AB with B `[h, d]` the Jacobian of
//! what comes before and A `[d, h]` that of what comes behind, and
//!
//! det(I_d + AB) = det(I_h + BA) (Sylvester's determinant theorem).
//!
//! Row k of BA is (BA)ᵀe_k = Aᵀ(Bᵀe_k): a product with Bᵀ, then one with Aᵀ, which is one pass through g in a circle that begins at the
//! narrow place. h of these make the matrix instead of d, and the LU is h × h. The same holds of det(I_d − AB).
//!
//! For values alone: the gradient asks for (I + J)⁻¹ = I − A(I + BA)⁻¹B, which has rank d.

use resflow_backend::{Backend, Shape};

use super::Vjp;
use super::exact::unit_vector;
use crate::layer::Saved;

/// The place inside a net where samples are the fewest numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bottleneck {
    /// The number of the net's layers before it.
    pub layers: usize,
    /// The shape of a sample there, without the axis of samples.
    pub shape: Shape,
}

impl Bottleneck {
    /// Returns h, the numbers of a sample there.
    pub fn width(&self) -> usize {
        self.shape.elements()
    }
}

/// Computes BA at each of `rows` samples, `[n, h, h]`.
pub(super) fn cyclic_jacobian<B: Backend>(
    backend: &B,
    net: &(impl Vjp<B> + ?Sized),
    saved: &Saved<B>,
    rows: usize,
    bottleneck: &Bottleneck,
) -> B::Tensor {
    let h = bottleneck.width();
    let products: Vec<B::Tensor> = (0..h)
        .map(|k| {
            let unit = unit_vector(backend, rows, &bottleneck.shape, k);
            backend.reshape(&net.cyclic_vjp(backend, saved, bottleneck, unit), [rows, 1, h].into())
        })
        .collect();
    backend.concat(&products.iter().collect::<Vec<_>>(), 1)
}
