//! The gradient of the series by differentiating the series itself, as automatic differentiation would; for comparison
//! with the Neumann series (Chen et al. 2019, §3.2 and figure 4).
//!
//! With a_k = (−1)^{k+1} c_k/k, probe and coefficients constant,
//!
//! ∂ Σ_k a_k vᵀJᵏv = Σ_k a_k Σ_{i+j=k−1} ((Jᵀ)ʲv)ᵀ ∂J (Jⁱv),
//!
//! the pullback of the tangents Jⁱv with the cotangents Σ_j a_{i+j+1} (Jᵀ)ʲv. Unbiased too, but every power is kept:
//! memory and the work of the backward pass grow with the number of terms.

use resflow_backend::{Backend, Binary, Element as _, Shape};

use crate::layer::{PreparedLayer, Saved};

/// The value, `[n, 1]`, and the pairs of tangents and cotangents whose surrogates add up to the gradient.
#[derive(Debug, Clone)]
pub struct Differentiated<B: Backend> {
    /// Σ_k a_k vᵀJᵏv, `[n, 1]`, nats.
    pub value: B::Tensor,
    /// Jⁱv, i = 0, 1, …, `[n, …]`.
    pub tangents: Vec<B::Tensor>,
    /// Σ_j a_{i+j+1} (Jᵀ)ʲv for each of them, `[n, …]`.
    pub cotangents: Vec<B::Tensor>,
}

/// Differentiates the series for one probe v per sample, `[n, …]`, with coefficients c_1, c_2, … of each sample or, if
/// there is one list only, of all. `saved` is what the forward pass kept (at least
/// [`Derivatives::First`](crate::layer::Derivatives::First)).
pub fn differentiated<B: Backend>(
    backend: &B,
    net: &dyn PreparedLayer<B>,
    saved: &Saved<B>,
    probe: &B::Tensor,
    coefficients: &[Vec<f64>],
) -> Differentiated<B> {
    let shape = backend.shape(probe);
    let rows = shape.rows();
    let terms = coefficients.iter().map(Vec::len).max().unwrap_or(0);
    let mut column = vec![1; shape.rank()];
    column[0] = rows;
    // a_k of each sample; samples that have ended have none
    let weights: Vec<B::Tensor> = (1..=terms)
        .map(|k| {
            let sign = if k % 2 == 1 { 1.0 } else { -1.0 };
            let own = |r: usize| &coefficients[if coefficients.len() == 1 { 0 } else { r }];
            let a = |r: usize| own(r).get(k - 1).map_or(0.0, |c| sign * c / k as f64);
            let values: Vec<B::Elem> = (0..rows).map(|r| B::Elem::from_f64(a(r))).collect();
            backend.upload(&values, Shape::new(&column))
        })
        .collect();
    let flat = |x: &B::Tensor| backend.reshape(x, [rows, shape.row_elements()].into());
    let mut adjoints = vec![probe.clone()];
    let mut tangents = Vec::with_capacity(terms);
    let mut tangent = probe.clone();
    let mut value = backend.full(0.0, [rows, 1].into());
    for (i, weight) in weights.iter().enumerate() {
        adjoints.push(net.vjp(backend, saved, adjoints[i].clone()));
        let dot = backend.dot_rows(&flat(&adjoints[i + 1]), &flat(probe));
        value = backend.axpy(1.0, &backend.binary(Binary::Mul, dot, &backend.reshape(weight, [rows, 1].into())), value);
        tangents.push(tangent.clone());
        if i + 1 < terms {
            tangent = net.jvp(backend, saved, &tangent).0;
        }
    }
    let cotangents = (0..terms).map(|i| {
        (0..terms - i).fold(backend.full(0.0, shape), |sum, j| {
            backend.axpy(1.0, &backend.binary(Binary::Mul, adjoints[j].clone(), &weights[i + j]), sum)
        })
    });
    let cotangents = cotangents.collect();
    Differentiated { value, tangents, cotangents }
}
