//! A scale and a shift that another net chose, x ↦ e^a ∘ x + m, whose scale cannot run away: a = A·tanh(â/A).
//!
//! Of each sample it is told [â | m], `[2d]`; a sample `[…, d]` has the same for all of its pixels. So ln|det| = P·Σ a for P pixels. Of
//! one row of what is told, `[1, 2d]`, all samples have it.

use crate::composed::Expr;
use crate::{Activation, Backend, Binary, Over, Reduce, Shape, Unary};

/// What [`Backend::bounded_affine_reverse`] returns.
#[derive(Debug)]
pub struct BoundedAffineReverse<T> {
    /// The gradient in x.
    pub gx: T,
    /// The gradient in what each sample was told, `[n, 2d]`, also where all were told the same.
    pub gtold: T,
}

/// Checks the shapes of an operation; returns the samples as `[n, P, d]`.
///
/// # Panics
/// If they do not fit.
#[track_caller]
pub fn check(what: &str, x: Shape, told: Shape) -> Shape {
    let fits = x.rank() >= 2 && told.rank() == 2 && told[1] == 2 * x.channels();
    assert!(fits && (told[0] == x[0] || told[0] == 1), "{what}: samples {x} were told {told}");
    let d = x.channels();
    [x[0], x.row_elements().checked_div(d).unwrap_or(1), d].into()
}

/// a/A and e^{a}, `[n, d]` each, or `[1, d]`.
fn scales<B: Backend>(e: &Expr<'_, B>, most: f64, told: &B::Tensor, d: usize) -> [B::Tensor; 2] {
    let raw = e.affine(&e.0.narrow(told, 1, 0, d), 1.0 / most, 0.0);
    let share = e.0.activation(Activation::Tanh, None, &raw, 0).swap_remove(0);
    let scale = e.unary(Unary::Exp, &e.affine(&share, most, 0.0));
    [share, scale]
}

/// `[n, d]` as `[n, 1, d]`.
fn spread<B: Backend>(e: &Expr<'_, B>, x: &B::Tensor) -> B::Tensor {
    let shape = e.0.shape(x);
    e.0.reshape(x, [shape[0], 1, shape[1]].into())
}

/// [`Backend::bounded_affine`] without fusion.
#[track_caller]
pub fn bounded_affine<B: Backend>(backend: &B, most: f64, x: &B::Tensor, told: &B::Tensor) -> [B::Tensor; 2] {
    let (e, shape) = (Expr(backend), backend.shape(x));
    let flat = check("bounded_affine", shape, backend.shape(told));
    let [n, p, d] = [flat[0], flat[1], flat[2]];
    let [share, scale] = scales(&e, most, told, d);
    let scaled = e.mul(&backend.reshape(x, flat), &spread(&e, &scale));
    let y = backend.binary(Binary::Add, scaled, &spread(&e, &backend.narrow(told, 1, d, d)));
    let sums = e.affine(&backend.reduce(Reduce::Sum, Over::Row, &share), most * p as f64, 0.0);
    let log_det = backend.binary(Binary::Add, backend.full(0.0, [n, 1].into()), &sums);
    [backend.reshape(&y, shape), log_det]
}

/// [`Backend::bounded_affine_reverse`] without fusion.
#[track_caller]
pub fn bounded_affine_reverse<B: Backend>(
    backend: &B,
    most: f64,
    x: &B::Tensor,
    told: &B::Tensor,
    gy: &B::Tensor,
    weights: &B::Tensor,
) -> BoundedAffineReverse<B::Tensor> {
    let (e, shape) = (Expr(backend), backend.shape(x));
    let flat = check("bounded_affine_reverse", shape, backend.shape(told));
    check_cotangents(shape, backend.shape(gy), backend.shape(weights));
    let [n, p, d] = [flat[0], flat[1], flat[2]];
    let [share, scale] = scales(&e, most, told, d);
    let gx = e.mul(&backend.reshape(gy, flat), &spread(&e, &scale));
    let over_pixels = |x: &B::Tensor| {
        let turned = backend.reshape(&backend.permute(x, &[0, 2, 1]), [n * d, p].into());
        backend.reshape(&backend.reduce(Reduce::Sum, Over::Row, &turned), [n, d].into())
    };
    // ∂y/∂a = e^a x, and every pixel's log det grows by each entry of a; ∂a/∂â = 1 − tanh²
    let through = over_pixels(&e.mul(&gx, &backend.reshape(x, flat)));
    let of_a = e.add(&through, &e.affine(weights, p as f64, 0.0));
    let slope = e.affine(&e.square(&share), -1.0, 1.0);
    let of_raw = e.mul(&of_a, &slope);
    let of_m = over_pixels(&backend.reshape(gy, flat));
    BoundedAffineReverse { gx: backend.reshape(&gx, shape), gtold: backend.concat(&[&of_raw, &of_m], 1) }
}

/// Checks the cotangents of a pullback.
///
/// # Panics
/// If they do not fit.
#[track_caller]
pub fn check_cotangents(x: Shape, gy: Shape, weights: Shape) {
    let fits = gy == x && weights[..] == [x[0], 1];
    assert!(fits, "bounded_affine_reverse: cotangents {gy} and weights {weights} for {x}");
}
