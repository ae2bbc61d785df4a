//! One step of an explicit Runge–Kutta method, for x and the log det together, and its pullback.
//!
//! Forward: k_i = f(t + c_i h, X_i), X_i = x + h Σ_j a_ij k_j; x' = x + h Σ b_i k_i and ℓ' = ℓ + h Σ b_i tr ∂f/∂x(X_i). Back, with
//! x̄' and ℓ̄ the gradients in x' and ℓ, stages from the last to the first:
//!
//! ```text
//! k̄_i = h (b_i x̄' + Σ_{j>i} a_ji X̄_j)
//! X̄_i = (∂f/∂x)ᵀ k̄_i + h b_i ℓ̄ ∇tr        one pullback of (f, tr) a stage
//! x̄  = x̄' + Σ X̄_i
//! ```
//!
//! the exact gradient of the numbers that were computed. Stages are computed again, so that a solve keeps x once a step.

use resflow_backend::{Backend, Binary, Element as _};

use super::field::{Field, Slope};
use super::tableau::Tableau;
use crate::batch::per_sample;
use crate::module::Grad;

/// Where the steps of samples begin and how long they are: one for all, or one for each.
#[derive(Debug, Clone)]
pub(super) struct Steps {
    /// t.
    pub(super) times: Vec<f64>,
    /// h, as many.
    pub(super) sizes: Vec<f64>,
}

impl Steps {
    /// t + c h.
    fn at(&self, node: f64) -> Vec<f64> {
        self.times.iter().zip(&self.sizes).map(|(t, h)| t + node * h).collect()
    }

    /// h x, for samples x, `[n, …]`.
    pub(super) fn scale<B: Backend>(&self, backend: &B, x: B::Tensor) -> B::Tensor {
        if let [size] = self.sizes[..] {
            return backend.affine(x, size, 0.0);
        }
        let sizes: Vec<_> = self.sizes.iter().map(|&h| B::Elem::from_f64(h)).collect();
        let sizes = backend.upload(&sizes, [sizes.len(), 1].into());
        let shape = backend.shape(&x);
        backend.binary(Binary::Mul, x, &per_sample(backend, &sizes, shape))
    }

    /// x + h Σ c_i k_i.
    pub(super) fn advance<'t, B: Backend>(
        &self,
        backend: &B,
        x: &B::Tensor,
        coefficients: &'t [f64],
        slopes: impl Iterator<Item = &'t B::Tensor>,
    ) -> B::Tensor {
        let pairs = coefficients.iter().zip(slopes).filter(|(c, _)| **c != 0.0);
        if let [size] = self.sizes[..] {
            return pairs.fold(x.clone(), |sum, (c, k)| backend.axpy(size * c, k, sum));
        }
        match combine(backend, pairs) {
            Some(sum) => backend.axpy(1.0, x, self.scale(backend, sum)),
            None => x.clone(),
        }
    }
}

/// Σ c_i k_i, `None` of nothing.
pub(super) fn combine<'t, B: Backend>(
    backend: &B,
    pairs: impl Iterator<Item = (&'t f64, &'t B::Tensor)>,
) -> Option<B::Tensor> {
    let add = |sum: Option<B::Tensor>, (&c, k): (&f64, &B::Tensor)| {
        Some(match sum {
            None => backend.affine(k.clone(), c, 0.0),
            Some(sum) => backend.axpy(c, k, sum),
        })
    };
    pairs.filter(|(c, _)| **c != 0.0).fold(None, add)
}

/// The slopes of the first `count` stages from x, the first of which may be known.
pub(super) fn stages<B: Backend>(
    field: &Field<'_, B>,
    tableau: &Tableau,
    steps: &Steps,
    x: &B::Tensor,
    first: Option<Slope<B>>,
    count: usize,
    for_pull_back: bool,
) -> Vec<Slope<B>> {
    let mut slopes: Vec<Slope<B>> = Vec::with_capacity(count);
    slopes.extend(first);
    for i in slopes.len()..count {
        let inner = steps.advance(field.backend, x, tableau.matrix[i], slopes.iter().map(|k| &k.f));
        slopes.push(field.at(&steps.at(tableau.nodes[i]), &inner, for_pull_back));
    }
    slopes
}

/// x' and ℓ' of x and ℓ, by the slopes of all stages.
pub(super) fn finish<B: Backend>(
    backend: &B,
    tableau: &Tableau,
    steps: &Steps,
    [x, log_det]: [&B::Tensor; 2],
    slopes: &[Slope<B>],
) -> [B::Tensor; 2] {
    let x = steps.advance(backend, x, tableau.weights, slopes.iter().map(|k| &k.f));
    let traces = slopes.iter().filter_map(|k| k.divergence.as_ref());
    [x, steps.advance(backend, log_det, tableau.weights, traces)]
}

/// Takes the gradients in x', `[n, …]`, and in ℓ, `[n, 1]`, through a step from x: the gradient in x.
pub(super) fn pull_back<B: Backend>(
    field: &Field<'_, B>,
    tableau: &Tableau,
    steps: &Steps,
    x: &B::Tensor,
    [of_x, of_log_det]: [&B::Tensor; 2],
    grads: &mut [Grad<B>],
    context: &mut Grad<B>,
) -> B::Tensor {
    let backend = field.backend;
    let count = tableau.weights.len();
    let slopes = stages(field, tableau, steps, x, None, count, true);
    // X̄, from the last stage on
    let mut inner: Vec<B::Tensor> = Vec::with_capacity(count);
    for i in (0..count).rev() {
        let mut of_f = backend.affine(of_x.clone(), tableau.weights[i], 0.0);
        for (j, of_inner) in (i + 1..count).rev().zip(&inner) {
            let a = tableau.matrix[j][i];
            if a != 0.0 {
                of_f = backend.axpy(a, of_inner, of_f);
            }
        }
        let of_trace = steps.scale(backend, backend.affine(of_log_det.clone(), tableau.weights[i], 0.0));
        let of_f = steps.scale(backend, of_f);
        inner.push(field.pull_back(&slopes[i], of_f, &of_trace, grads, context));
    }
    inner.iter().fold(of_x.clone(), |sum, of_inner| backend.axpy(1.0, of_inner, sum))
}
