//! The transposed solve (I + Jᵀ)a = b of implicit differentiation.
//!
//! If z solves z + g(z) = y, then by the implicit function theorem ∂z/∂y = (I + J)⁻¹ with J = ∂g/∂z: a gradient z̄ in z
//! becomes ȳ = (I + J)^{−T} z̄ in y and −(∂g/∂θ)ᵀȳ in the parameters (Bai et al. 2019, arXiv 1909.01377, theorem 1; for
//! flows Lu et al. 2021, arXiv 2103.09527). No iteration of the forward solve is kept or differentiated.
//!
//! a is the fixed point of a ↦ b − Jᵀa, which contracts as g does, and is found by the same iteration as an inverse, a
//! vector-Jacobian product an evaluation. The equation is linear, so each sample is divided by its max|b| first:
//! accuracies, residuals and bounds are relative to that, however small a gradient is.

use resflow_backend::{Backend, BackendError, Binary, Element as _, Over, Reduce, Unary};

use super::{Inversion, Solution, iterate};
use crate::batch::{Batch, per_sample};
use crate::estimator::Vjp;
use crate::layer::Saved;

/// Solves (I + Jᵀ)a = b for each sample, with b and a `[n, …]`, J the Jacobian of `net` where its forward pass kept
/// `saved`, and ‖J‖ ≤ `bound` < 1. Works for whatever has a vector-Jacobian product.
///
/// The report of a sample has ‖b − a − Jᵀa‖₂ / ‖b‖₂ as its residual (of the point one step before the answer), a bound on
/// ‖a − a*‖₂ / max|b|, and the number of products. The accuracy of `how` is relative in the same way. A b of zeros has the
/// answer zero, after one product.
///
/// # Errors
/// Returns [`BackendError`] if the device failed. A sample that does not converge is no error but a status.
pub fn solve_transposed<B: Backend>(
    backend: &B,
    net: &(impl Vjp<B> + ?Sized),
    saved: &Saved<B>,
    b: &B::Tensor,
    bound: f64,
    how: &Inversion,
) -> Result<Solution<B>, BackendError> {
    let shape = backend.shape(b);
    let rows = backend.reshape(b, [shape.rows(), shape.row_elements()].into());
    let scale = backend.reduce(Reduce::Max, Over::Row, &backend.unary(Unary::Abs, rows));
    // a gradient of zeros stays one
    let scale = backend.binary(Binary::Max, scale, &backend.full(B::Elem::TINY, [1].into()));
    let scale = per_sample(backend, &scale, shape);
    let target = Batch::new(backend.binary(Binary::Div, b.clone(), &scale));
    // the samples still going become fewer, never others
    let mut narrowed: Option<(usize, Saved<B>)> = None;
    let product = |batch: &Batch<B>, numbers: &[u32]| {
        if numbers.len() == shape.rows() {
            return net.vjp(backend, saved, batch.x.clone());
        }
        if narrowed.as_ref().is_none_or(|(count, _)| *count != numbers.len()) {
            // the larger copy goes before the smaller one is made
            narrowed = None;
            narrowed = Some((numbers.len(), saved.take_rows(backend, numbers)));
        }
        let (_, saved) = narrowed.as_ref().expect("set above");
        net.vjp(backend, saved, batch.x.clone())
    };
    let solution = iterate(backend, product, &target, bound, how)?;
    Ok(Solution { value: backend.binary(Binary::Mul, solution.value, &scale), ..solution })
}
