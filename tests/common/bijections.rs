//! What every link of a flow promises, on rows of any shape: the same numbers in evaluation and in training, an inverse, a
//! log det that is that of the Jacobian, and gradients by differences.

use nalgebra::DMatrix;
use resflow::backend::{Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Draw, Memory, PreparedBijection};
use resflow::chain::Chain;
use resflow::estimator::{Estimator, Exact};
use resflow::invert::{Inversion, Status};
use resflow::module::Role;

use super::asking::{Trained, count_grads, precise, pull_back, train, value, with_log_det};
use super::{Cpu, Tensor, dot, down, inner, norm, normal};

pub(crate) const EXACT: Estimator = Estimator::Exact(Exact);

pub(crate) fn draw(key: Key) -> Draw<'static> {
    Draw { estimator: &EXACT, key }
}

/// The larger of two errors; one that is NaN stays, unlike with `f64::max`.
fn worst(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Σ gy·y + Σ w·log det, the function whose gradient the backward pass gives.
fn objective(b: &Cpu, link: &dyn PreparedBijection<Cpu>, x: &Tensor, gy: &Tensor, weights: &Tensor) -> f64 {
    let (y, log_det) = with_log_det(b, link, &Batch::new(x.clone()), draw(Key::new(0)), 1);
    inner(b, &y, gy) + inner(b, &log_det.value, weights)
}

/// A derivative at 0 by Richardson's extrapolation of central differences.
pub(crate) fn slope(f: impl Fn(f64) -> f64) -> f64 {
    slope_by(1e-4, f)
}

/// The same by differences of step h.
pub(crate) fn slope_by(h: f64, f: impl Fn(f64) -> f64) -> f64 {
    let central = |h: f64| (f(h) - f(-h)) / (2.0 * h);
    (4.0 * central(h) - central(2.0 * h)) / 3.0
}

/// Returns `true` if a derivative is that by differences of a step, relative to 1 + its size: nets with kinks have one within
/// reach of a long step now and then, and not of a short one; of a steep net a long step leaves the tangent.
pub(crate) fn is_slope(found: f64, tolerance: f64, f: impl Fn(f64) -> f64) -> bool {
    [1e-4, 1e-5, 1e-6].into_iter().any(|h| (found - slope_by(h, &f)).abs() < tolerance * (1.0 + found.abs()))
}

/// ln|det| of each row's Jacobian, by central differences of a map of rows.
pub(crate) fn log_det_by_differences(b: &Cpu, x: &Tensor, f: impl Fn(&Tensor) -> Tensor) -> Vec<f64> {
    log_det_by_steps(b, x, 1e-5, f)
}

/// The same by differences of step h.
pub(crate) fn log_det_by_steps(b: &Cpu, x: &Tensor, h: f64, f: impl Fn(&Tensor) -> Tensor) -> Vec<f64> {
    let shape = b.shape(x);
    let (n, d) = (shape.rows(), shape.row_elements());
    let column = |j: usize| {
        let unit: Vec<f64> = (0..n * d).map(|e| f64::from(u8::from(e % d == j))).collect();
        let unit = b.upload(&unit, shape);
        let at = |h: f64| down(b, &f(&b.axpy(h, &unit, x.clone())));
        at(h).iter().zip(at(-h)).map(|(p, q)| (p - q) / (2.0 * h)).collect::<Vec<_>>()
    };
    let columns: Vec<_> = (0..d).map(column).collect();
    (0..n).map(|r| DMatrix::from_fn(d, d, |i, j| columns[j][r * d + i]).determinant().abs().ln()).collect()
}

/// Everything that every link promises, at x.
pub(crate) fn check_bijection(b: &Cpu, link: &dyn Bijection<Cpu>, x: &Tensor, key: Key) {
    let what = link.describe();
    let (shape, rows) = (b.shape(x), b.shape(x).rows());
    let prepared = link.prepare(b);
    let y = value(b, &*prepared, x);
    let output = link.output_shape(&shape[1..]).expect("rows that it takes");
    assert!(b.shape(&y)[1..] == output && b.shape(&y).rows() == rows, "{what}");
    // a prepared chain of it parts with as many channels as the link says, and has a gradient for each trained tensor
    let chain = Chain::new(vec![link.boxed_clone()], &shape[1..]).expect("rows that it takes").prepare_chain(b);
    let mut seen = Vec::new();
    let mut observe = |l, y: &Tensor, factored_out| seen.push((l, down(b, y), factored_out));
    let z = chain.forward_observed(b, &Batch::new(x.clone()), &precise::<Cpu>(Ask::value::<Cpu>()), &mut observe);
    assert_eq!(b.shape(&z.expect("no device fault").y)[..], [rows, shape.row_elements()], "{what}");
    assert_eq!(seen, [(0, down(b, &y), link.factored_out())], "{what}");
    assert_eq!(chain.grads(), count_grads(link), "{what}");
    let (y2, log_det) = with_log_det(b, &*prepared, &Batch::new(x.clone()), draw(key), 1);
    assert!(log_det.exact && b.shape(&log_det.value)[..] == [rows, 1], "{what}");
    assert_eq!(down(b, &y), down(b, &y2), "{what}");

    let back = prepared.inverse(b, &Batch::new(y.clone()), &Inversion::for_backend::<Cpu>()).expect("no device fault");
    assert!(back.reports.iter().all(|r| r.status == Status::Converged) && back.reports.len() == rows, "{what}");
    assert_eq!(b.shape(&back.value), shape, "{what}");
    let error = down(b, &back.value).iter().zip(down(b, x)).map(|(p, q)| (p - q).abs()).fold(0.0, worst);
    assert!(error < 1e-10, "{what}: the inverse is {error:e} away");

    let expected = log_det_by_differences(b, x, |x| value(b, &*prepared, x));
    for (value, expected) in down(b, &log_det.value).into_iter().zip(expected) {
        let scale = 1.0 + expected.abs();
        assert!((value - expected).abs() < 1e-7 * scale, "{what}: log det {value}, by differences {expected}");
    }
    check_gradients(b, link, x, key, &down(b, &log_det.value));
}

/// The training pass computes the same numbers, and its backward pass the derivatives.
pub(crate) fn check_gradients(b: &Cpu, link: &dyn Bijection<Cpu>, x: &Tensor, key: Key, log_det: &[f64]) {
    let (what, prepared) = (link.describe(), link.prepare(b));
    let (shape, y) = (b.shape(x), value(b, &*prepared, x));
    // parameters: the same in both visits, each with a gradient
    let (mut seen, mut grads) = (Vec::new(), 0);
    link.visit("p", &mut |name, _, role| {
        grads += usize::from(role.is_trained());
        seen.push((name.to_owned(), role));
    });
    let mut again = Vec::new();
    link.boxed_clone().visit_mut("p", &mut |name, _, role: Role| again.push((name.to_owned(), role)));
    assert_eq!(seen, again, "{what}");
    assert!(seen.iter().all(|(name, _)| name.starts_with("p.")), "{what}");
    let trained: Vec<Role> = seen.iter().map(|s| s.1).filter(|r| r.is_trained()).collect();
    let gy = normal(b, key.named("gy"), b.shape(&y));
    let weights = normal(b, key.named("weights"), [shape.rows(), 1]);
    let backward = |memory| {
        let batch = Batch::new(x.clone());
        let Trained { y: trained, log_det: value, tape, .. } = train(b, &*prepared, &batch, draw(key), memory);
        assert_eq!(down(b, &trained), down(b, &y), "{what}");
        let difference = down(b, &value).into_iter().zip(log_det).map(|(p, q)| (p - q).abs() / (1.0 + q.abs()));
        assert!(difference.fold(0.0, worst) < 1e-13, "{what}");
        let mut gradients = vec![None; grads];
        let gx = pull_back(b, &*prepared, tape, gy.clone(), &weights, &mut gradients);
        assert_eq!(b.shape(&gx), shape, "{what}");
        prepared.finish_gradients(b, &mut gradients);
        let gradients: Vec<_> = gradients.iter().map(|g| down(b, g.as_ref().expect("filled"))).collect();
        (down(b, &gx), gradients)
    };
    let (gx, gradients) = backward(Memory::Store);
    for other in [Memory::Recompute, Memory::Unroll] {
        assert_eq!((&gx, &gradients), (&backward(other).0, &backward(other).1), "{what}");
    }
    let near = |derivative: f64, f: &dyn Fn(f64) -> f64, name: &str| {
        let expected = slope(f);
        let scale = 1.0 + expected.abs();
        assert!(
            (derivative - expected).abs() < 2e-8 * scale,
            "{what}, {name}: {derivative}, by differences {expected}"
        );
    };
    // the logit's third derivative is large where x is near 0 or 1
    let direction = b.affine(normal(b, key.named("direction"), shape), 0.1, 0.0);
    let in_x = |h: f64| objective(b, &*prepared, &b.axpy(h, &direction, x.clone()), &gy, &weights);
    near(dot(&gx, &down(b, &direction)), &in_x, "x");
    for (slot, gradient) in gradients.iter().enumerate() {
        // a normalised weight of which one number counts is ±κ whatever it is; `near` sees that it is so
        let scalar = trained[slot] == Role::Weight;
        assert!(scalar || norm(gradient) > 0.0, "{what}: slot {slot} has no gradient");
        let mut directions = vec![0.0; gradient.len()];
        Noise::Normal.fill(key.named("move").split(slot as u64), 0, &mut directions);
        let in_parameter = |h: f64| {
            let (mut link, mut number) = (link.boxed_clone(), 0);
            link.visit_mut("", &mut |_, t, role| {
                if role.is_trained() {
                    if number == slot {
                        *t = b.axpy(h, &b.upload(&directions, b.shape(t)), t.clone());
                    }
                    number += 1;
                }
            });
            objective(b, &*link.prepare(b), x, &gy, &weights)
        };
        near(dot(gradient, &directions), &in_parameter, &format!("slot {slot}"));
    }
}
