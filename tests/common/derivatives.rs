//! The derivatives of a layer on rows of any shape: the adjoint identity, and Taylor's theorem in x, in the tangents and in
//! every parameter.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::layer::{Derivatives, Layer, LayerGrads, Saved};

use super::asking::count_grads;
use super::{Cpu, Tensor, dot, down, inner, norm, normal};

const COTANGENTS: u64 = 6;
const H: f64 = 1e-3;
const HALVINGS: i32 = 6;

/// The layer with every trained tensor moved along its direction.
fn moved(b: &Cpu, layer: &dyn Layer<Cpu>, directions: &[Option<Tensor>], h: f64) -> Box<dyn Layer<Cpu>> {
    let mut layer = layer.boxed_clone();
    let mut directions = directions.iter();
    layer.visit_mut("", &mut |_, t, role| {
        if role.is_trained()
            && let Some(d) = directions.next().expect("one a tensor")
        {
            *t = b.axpy(h, d, t.clone());
        }
    });
    layer
}

fn trained(layer: &dyn Layer<Cpu>) -> Vec<Tensor> {
    let mut out = Vec::new();
    layer.visit("", &mut |_, t, role| {
        if role.is_trained() {
            out.push(t.clone());
        }
    });
    out
}

/// Halves the step: first-order remainders fall by 2, second-order ones by 4, unless they are rounding. A step past the place where an
/// activation's higher derivatives jump has a remainder that falls by anything from 3 on, and is halved until it no longer is past it;
/// that of a wrong derivative falls by 2 all the way.
fn taylor(what: &str, f: impl Fn(f64) -> Vec<f64>, derivative: &[f64]) -> Result<(), TestCaseError> {
    let f0 = f(0.0);
    let rounding = 1e-12 * (1.0 + norm(&f0));
    let remainders = |h: f64| {
        let d: Vec<f64> = f(h).iter().zip(&f0).map(|(a, b)| a - b).collect();
        let r: Vec<f64> = d.iter().zip(derivative).map(|(d, g)| d - h * g).collect();
        (norm(&d), norm(&r))
    };
    let ((zeroth, first), (zeroth2, first2)) = (remainders(H), remainders(H / 2.0));
    let (mut whole, mut half) = (first, first2);
    for halvings in 1..=HALVINGS {
        let ratio = whole / half;
        if whole <= rounding || (3.5..4.6).contains(&ratio) {
            break;
        }
        let falls = ratio >= 2.9 && halvings < HALVINGS;
        prop_assert!(
            falls,
            "{what}: first-order ratio {ratio} ({whole:e}, {half:e}) of the step {}",
            H / 2_f64.powi(halvings - 1)
        );
        (whole, half) = (half, remainders(H / 2_f64.powi(halvings + 1)).1);
    }
    if zeroth > rounding && first < 0.02 * zeroth {
        let ratio = zeroth / zeroth2;
        prop_assert!((1.95..2.05).contains(&ratio), "{what}: zeroth-order ratio {ratio}");
    }
    Ok(())
}

/// f(x), J dx_1, … one after the other.
fn evaluate(b: &Cpu, layer: &dyn Layer<Cpu>, x: &Tensor, dx: &[Tensor]) -> Vec<Vec<f64>> {
    let prepared = layer.prepare(b);
    let (y, saved) = prepared.forward(b, &Batch::new(x.clone()), Derivatives::First);
    let mut out = vec![down(b, &y)];
    out.extend(dx.iter().map(|dx| down(b, &prepared.jvp(b, &saved, dx).0)));
    out
}

pub(crate) fn adjoint(b: &Cpu, layer: &dyn Layer<Cpu>, x: &Tensor, key: Key) -> Result<(), TestCaseError> {
    let prepared = layer.prepare(b);
    let dx = normal(b, key.named("dx"), b.shape(x));
    let (y, first) = prepared.forward(b, &Batch::new(x.clone()), Derivatives::First);
    let gy = normal(b, key.named("gy"), b.shape(&y));
    let (y2, second) = prepared.forward(b, &Batch::new(x.clone()), Derivatives::Second);
    let (y0, _) = prepared.forward(b, &Batch::new(x.clone()), Derivatives::None);
    prop_assert_eq!(down(b, &y), down(b, &y2));
    prop_assert_eq!(down(b, &y), down(b, &y0));
    let (dy, back) = (prepared.jvp(b, &first, &dx).0, prepared.vjp(b, &first, gy.clone()));
    prop_assert_eq!(down(b, &dy), down(b, &prepared.jvp(b, &second, &dx).0));
    prop_assert_eq!(down(b, &back), down(b, &prepared.vjp(b, &second, gy.clone())));
    let (left, right) = (inner(b, &dy, &gy), inner(b, &dx, &back));
    let scale = norm(&down(b, &dy)) * norm(&down(b, &gy)) + norm(&down(b, &dx)) * norm(&down(b, &back));
    prop_assert!((left - right).abs() <= 1e-13 * scale, "{left} and {right}");
    // Lip ≤ 1 or κ: no direction is stretched more than the bound that the layer states
    let bound = layer.lipschitz_bound() * norm(&down(b, &dx));
    prop_assert!(norm(&down(b, &dy)) <= bound * (1.0 + 1e-9), "{} > {bound}", norm(&down(b, &dy)));
    Ok(())
}

/// jvp, vjp and the pullback with `tangents` tangents, in x, in the tangents and in each parameter.
pub(crate) fn derivatives(
    b: &Cpu,
    layer: &dyn Layer<Cpu>,
    x: &Tensor,
    tangents: u64,
    key: Key,
) -> Result<(), TestCaseError> {
    let prepared = layer.prepare(b);
    let shape = b.shape(x);
    let (y, saved) = prepared.forward(b, &Batch::new(x.clone()), Derivatives::Second);
    let direction = normal(b, key.named("direction"), shape);
    let value = |h: f64, dx: &[Tensor]| evaluate(b, layer, &b.axpy(h, &direction, x.clone()), dx);
    taylor("jvp in x", |h| value(h, &[])[0].clone(), &down(b, &prepared.jvp(b, &saved, &direction).0))?;

    let dx: Vec<_> = (0..tangents).map(|m| normal(b, key.named("tangent").split(m), shape)).collect();
    let kept: Vec<Saved<Cpu>> = dx.iter().map(|dx| prepared.jvp(b, &saved, dx).1).collect();
    let parameters = trained(layer);
    let moves: Vec<_> =
        (0u64..).zip(&parameters).map(|(i, p)| normal(b, key.named("move").split(i), b.shape(p))).collect();
    let dx_moves: Vec<_> = (0..tangents).map(|m| normal(b, key.named("dx move").split(m), shape)).collect();

    // for each cotangent: its own numbers, and the derivative along x, along the tangents and along each parameter
    let mut cotangents = Vec::new();
    let mut slopes = vec![Vec::new(); 3 + parameters.len()];
    for c in 0..COTANGENTS {
        let key = key.named("cotangent").split(c);
        let gy = normal(b, key.named("gy"), b.shape(&y));
        let gdy: Vec<_> = (0..tangents).map(|m| normal(b, key.split(m), b.shape(&y))).collect();
        let mut grads = vec![None; count_grads(layer)];
        let kept: Vec<_> = kept.iter().collect();
        let (gx, gdx) = prepared.tangent_vjp(
            b,
            &saved,
            &kept,
            gy.clone(),
            gdy.clone(),
            LayerGrads { trained: &mut grads, context: &mut None },
        );
        prepared.finish_gradients(b, &mut grads);
        let back = prepared.vjp(b, &saved, gy.clone());
        slopes[0].push(inner(b, &back, &direction));
        slopes[1].push(inner(b, &gx, &direction));
        slopes[2].push(gdx.iter().zip(&dx_moves).map(|(g, d)| inner(b, g, d)).sum());
        for (i, (slot, d)) in grads.iter().zip(&moves).enumerate() {
            slopes[3 + i].push(inner(b, slot.as_ref().expect("filled by finish_gradients"), d));
        }
        prop_assert_eq!(grads.len(), parameters.len());
        cotangents.push(std::iter::once(gy).chain(gdy).map(|g| down(b, &g)).collect::<Vec<_>>());
    }
    let paired = |outputs: Vec<Vec<f64>>| -> Vec<f64> {
        cotangents.iter().map(|c| outputs.iter().zip(c).map(|(o, g)| dot(o, g)).sum()).collect()
    };
    taylor("vjp in x", |h| paired(value(h, &[])), &slopes[0])?;
    taylor("tangent_vjp in x", |h| paired(value(h, &dx)), &slopes[1])?;
    let shifted = |h: f64| -> Vec<_> { dx.iter().zip(&dx_moves).map(|(x, d)| b.axpy(h, d, x.clone())).collect() };
    taylor("tangent_vjp in dx", |h| paired(evaluate(b, layer, x, &shifted(h))), &slopes[2])?;
    let step = |h: f64, only: Option<usize>| -> Box<dyn Layer<Cpu>> {
        let chosen = |i| only.is_none_or(|o| o == i);
        let moves: Vec<_> = moves.iter().enumerate().map(|(i, d)| chosen(i).then(|| d.clone())).collect();
        moved(b, layer, &moves, h)
    };
    for i in 0..parameters.len() {
        let what = format!("tangent_vjp in parameter {i}");
        taylor(&what, |h| paired(evaluate(b, &*step(h, Some(i)), x, &dx)), &slopes[3 + i])?;
    }
    let total: Vec<f64> = (0..COTANGENTS as usize).map(|c| slopes[1..].iter().map(|s| s[c]).sum()).collect();
    let everything = |h: f64| {
        let x = b.axpy(h, &direction, x.clone());
        paired(evaluate(b, &*step(h, None), &x, &shifted(h)))
    };
    taylor("tangent_vjp in everything", everything, &total)
}

/// x moved away from the kinks of ELU, ReLU (0) and the cube (±1), and from where Pila bends the other way (−0.8): there its
/// remainder is of the third order.
pub(crate) fn away_from_kinks(b: &Cpu, x: &Tensor) -> Tensor {
    let clear = |x: f64| [-1.0, -0.8, 0.0, 1.0].iter().all(|k| (x - k).abs() > 0.05);
    let values: Vec<f64> = down(b, x).iter().map(|&x| if clear(x) { x } else { x + 0.11 }).collect();
    b.upload(&values, b.shape(x))
}

pub(crate) fn tangents() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0_u64), Just(1), Just(3)]
}
