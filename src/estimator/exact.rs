//! The exact log det for small d: J as d stacked vector-Jacobian products, then LU of I + J.
//!
//! Its gradient is tr((I+J)⁻¹ ∂J) = Σ_i u_iᵀ ∂J e_i with u_i = (I+J)^{−T} e_i: the same surrogate as that of the
//! Neumann series, with d probes that are the unit vectors.

use resflow_backend::{Backend, Binary, Element as _, Shape};

use super::bottleneck::cyclic_jacobian;
use super::{Bottleneck, Expansion, SeriesValue, Surrogate, Vjp};
use crate::layer::Saved;

/// ln|det(I + J)| of each sample, and what its gradient needs.
#[derive(Debug, Clone)]
pub struct ExactLogDet<B: Backend> {
    /// The value, `[n, 1]`, nats.
    pub value: SeriesValue<B>,
    /// The unit vectors e_1, …, e_d as probes, `[n, …]` of the shape of the samples.
    pub probes: Vec<B::Tensor>,
    /// u_i for each of them, `[n, …]`.
    pub surrogates: Vec<Surrogate<B>>,
}

/// Computes the Jacobian of g at each of `rows` samples of shape `row`, with d numbers: `[n, d, d]`, entry (i, j) =
/// ∂g_i/∂x_j.
pub fn jacobian<B: Backend>(
    backend: &B,
    net: &(impl Vjp<B> + ?Sized),
    saved: &Saved<B>,
    rows: usize,
    row: &[usize],
) -> B::Tensor {
    let d: usize = row.iter().product();
    let shape = row;
    let columns: Vec<B::Tensor> = (0..d)
        .map(|i| {
            let row = net.vjp(backend, saved, unit_vector(backend, rows, shape, i));
            backend.reshape(&row, [rows, 1, d].into())
        })
        .collect();
    backend.concat(&columns.iter().collect::<Vec<_>>(), 1)
}

/// Computes the log det of `rows` samples of shape `row` and, if `gradient`, the surrogates.
pub fn exact_log_det<B: Backend>(
    backend: &B,
    net: &(impl Vjp<B> + ?Sized),
    saved: &Saved<B>,
    rows: usize,
    row: &[usize],
    gradient: bool,
) -> ExactLogDet<B> {
    Expansion::Whole.exact(backend, net, saved, rows, row, gradient)
}

impl Expansion {
    /// Computes the log det of `rows` samples of shape `row` without error and, if `gradient`, the surrogates.
    pub(super) fn exact<B: Backend>(
        self,
        backend: &B,
        net: &(impl Vjp<B> + ?Sized),
        saved: &Saved<B>,
        rows: usize,
        row: &[usize],
        gradient: bool,
    ) -> ExactLogDet<B> {
        let (value, matrix) = self.decompose(backend, jacobian(backend, net, saved, rows, row));
        surrogates(backend, value, gradient.then_some(&matrix), rows, row)
    }

    /// Computes the same value through a bottleneck, `[n, 1]`.
    pub(super) fn exact_inside<B: Backend>(
        self,
        backend: &B,
        net: &(impl Vjp<B> + ?Sized),
        saved: &Saved<B>,
        rows: usize,
        bottleneck: &Bottleneck,
    ) -> B::Tensor {
        self.decompose(backend, cyclic_jacobian(backend, net, saved, rows, bottleneck)).0
    }

    /// Computes the log det that square matrices J, `[n, d, d]`, have, and the matrix whose rows are the cotangents u of the
    /// surrogates: (I + J)⁻¹; of the odd log det, by two LUs of one J, −((I − J)⁻¹ + (I + J)⁻¹).
    fn decompose<B: Backend>(self, backend: &B, j: B::Tensor) -> (B::Tensor, B::Tensor) {
        let identity = identity(backend, backend.shape(&j)[1]);
        if self == Self::Whole {
            return backend.lu(&backend.binary(Binary::Add, j, &identity));
        }
        let (plus, plus_inverse) = backend.lu(&backend.binary(Binary::Add, j.clone(), &identity));
        let minus = backend.binary(Binary::Add, backend.affine(j, -1.0, 0.0), &identity);
        let (minus, minus_inverse) = backend.lu(&minus);
        let inverse = backend.affine(backend.axpy(1.0, &plus_inverse, minus_inverse), -1.0, 0.0);
        (backend.axpy(-1.0, &plus, minus), inverse)
    }
}

/// I, `[1, d, d]`.
fn identity<B: Backend>(backend: &B, d: usize) -> B::Tensor {
    let identity: Vec<B::Elem> = (0..d * d).map(|e| B::Elem::from_f64(f64::from(u8::from(e % (d + 1) == 0)))).collect();
    backend.upload(&identity, [1, d, d].into())
}

/// Takes the rows of a matrix, `[n, d, d]`, as the surrogates of the unit vectors.
fn surrogates<B: Backend>(
    backend: &B,
    value: B::Tensor,
    matrix: Option<&B::Tensor>,
    rows: usize,
    row: &[usize],
) -> ExactLogDet<B> {
    let mut out = ExactLogDet { value: SeriesValue(value), probes: Vec::new(), surrogates: Vec::new() };
    if let Some(matrix) = matrix {
        for i in 0..row.iter().product() {
            // row i of the inverse is (I+J)^{−T} e_i
            let u = backend.narrow(matrix, 1, i, 1);
            out.surrogates.push(Surrogate { u: backend.reshape(&u, with_rows(rows, row)) });
            out.probes.push(unit_vector(backend, rows, row, i));
        }
    }
    out
}

/// The shape of `rows` samples, `[n, …]`.
fn with_rows(rows: usize, row: &[usize]) -> Shape {
    Shape::new(&[&[rows], row].concat())
}

/// e_i in every sample, `[n, …]`.
pub(super) fn unit_vector<B: Backend>(backend: &B, rows: usize, row: &[usize], i: usize) -> B::Tensor {
    let mut one = vec![B::Elem::ZERO; row.iter().product()];
    one[i] = B::Elem::ONE;
    let one = backend.upload(&one, row.into());
    backend.binary(Binary::Add, backend.full(0.0, with_rows(rows, row)), &one)
}
