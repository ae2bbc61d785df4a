//! The regression of a velocity, L = Σ wᵢ ‖f(tᵢ, xᵢ) − uᵢ‖²: one evaluation of f and one pullback of 2 wᵢ (f(tᵢ, xᵢ) − uᵢ), no trace and no
//! solve.

use resflow_backend::{Backend, Binary};

use super::PreparedOdeFlow;
use super::field::{Divergence, flat};
use crate::batch::per_sample;
use crate::bijection::{Regression, Velocity};
use crate::module::Grad;

impl<B: Backend> Velocity<B> for PreparedOdeFlow<B> {
    fn regress(
        &self,
        backend: &B,
        regression: &Regression<'_, B>,
        grads: &mut [Grad<B>],
        context: &mut Grad<B>,
    ) -> B::Tensor {
        let Regression { batch, times, targets, weights } = *regression;
        let field = self.field(backend, batch.context.clone(), Divergence::None);
        let at = field.at(times, &batch.x, true);
        let error = backend.axpy(-1.0, targets, at.f.clone());
        let rows = flat(backend, &error);
        let loss = backend.dot(weights, &backend.dot_rows(&rows, &rows));
        let each = per_sample(backend, &backend.affine(weights.clone(), 2.0, 0.0), backend.shape(&error));
        let nothing = backend.full(0.0, [batch.len(backend), 1].into());
        field.pull_back(&at, backend.binary(Binary::Mul, error, &each), &nothing, grads, context);
        loss
    }
}
