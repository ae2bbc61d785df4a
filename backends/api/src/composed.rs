//! The fused operations of [`Backend`] as compositions of the required ones: its default bodies, and what an override
//! must agree with.

mod fixed_point;
mod net;

pub use fixed_point::{fixed_point, net_fixed_point, ridge};
pub use net::{net_forward, net_jvp, net_pullback, net_series, net_tangents, net_vjp};

use crate::activation::pila_least;
pub use crate::bounded_affine::{bounded_affine, bounded_affine_reverse};
pub use crate::spline::{spline, spline_inverse, spline_reverse};
use crate::{
    Activation, ActivationReverse, AdamStep, Backend, Binary, Element, FixedPointColumn, FixedPointRule,
    FixedPointState, LIPSWISH_SCALE, Over, Padding, Reduce, SeriesState, TermWeight, Unary,
};

/// Small expressions over tensors; every operand is a handle.
pub(crate) struct Expr<'a, B: Backend>(pub(crate) &'a B);

impl<B: Backend> Expr<'_, B> {
    pub(crate) fn mul(&self, a: &B::Tensor, b: &B::Tensor) -> B::Tensor {
        self.0.binary(Binary::Mul, a.clone(), b)
    }
    pub(crate) fn add(&self, a: &B::Tensor, b: &B::Tensor) -> B::Tensor {
        self.0.binary(Binary::Add, a.clone(), b)
    }
    pub(crate) fn sub(&self, a: &B::Tensor, b: &B::Tensor) -> B::Tensor {
        self.0.binary(Binary::Sub, a.clone(), b)
    }
    pub(crate) fn div(&self, a: &B::Tensor, b: &B::Tensor) -> B::Tensor {
        self.0.binary(Binary::Div, a.clone(), b)
    }
    pub(crate) fn square(&self, x: &B::Tensor) -> B::Tensor {
        self.unary(Unary::Square, x)
    }
    pub(crate) fn unary(&self, op: Unary, x: &B::Tensor) -> B::Tensor {
        self.0.unary(op, x.clone())
    }
    pub(crate) fn affine(&self, x: &B::Tensor, scale: f64, shift: f64) -> B::Tensor {
        self.0.affine(x.clone(), scale, shift)
    }
    /// 1 where x < `bound`.
    pub(crate) fn below(&self, x: &B::Tensor, bound: f64) -> B::Tensor {
        self.0.binary(Binary::Less, x.clone(), &self.0.full(bound, [1].into()))
    }
    /// 1 where x > `bound`.
    pub(crate) fn above(&self, x: &B::Tensor, bound: f64) -> B::Tensor {
        self.below(&self.affine(x, -1.0, 0.0), -bound)
    }
    pub(crate) fn zeros(&self, x: &B::Tensor) -> B::Tensor {
        self.0.full(0.0, self.0.shape(x))
    }
    pub(crate) fn ones(&self, x: &B::Tensor) -> B::Tensor {
        self.0.full(1.0, self.0.shape(x))
    }
    /// 1/(1 + e^{−x}).
    pub(crate) fn sigmoid(&self, x: &B::Tensor) -> B::Tensor {
        let e = self.unary(Unary::Exp, &self.affine(x, -1.0, 0.0));
        self.unary(Unary::Reciprocal, &self.affine(&e, 1.0, 1.0))
    }
}

/// [`Backend::activation`] without fusion.
pub fn activation<B: Backend>(
    backend: &B,
    f: Activation,
    parameter: Option<&B::Tensor>,
    x: &B::Tensor,
    order: usize,
) -> Vec<B::Tensor> {
    assert!(order <= 2, "activation: derivatives up to order 2 exist, not {order}");
    let e = Expr(backend);
    let [y, d1, d2] = match f {
        Activation::LipSwish => lipswish(&e, parameter.expect("activation: LipSwish needs its parameter b"), x),
        Activation::Elu => {
            let negative = e.below(x, 0.0);
            // the exponential of positive numbers is never used, but must not overflow into a product
            let low = backend.binary(Binary::Min, x.clone(), &backend.full(0.0, [1].into()));
            let exp = e.unary(Unary::Exp, &low);
            [
                backend.select(&e.above(x, 0.0), x, &e.unary(Unary::ExpM1, &low)),
                backend.select(&negative, &exp, &e.ones(x)),
                backend.select(&negative, &exp, &e.zeros(x)),
            ]
        }
        Activation::Softplus => {
            let decay = e.unary(Unary::Exp, &e.affine(&e.unary(Unary::Abs, x), -1.0, 0.0));
            let positive = backend.binary(Binary::Max, x.clone(), &backend.full(0.0, [1].into()));
            let s = e.sigmoid(x);
            let t = e.sigmoid(&e.affine(x, -1.0, 0.0));
            [e.add(&positive, &e.unary(Unary::Ln1p, &decay)), s.clone(), e.mul(&s, &t)]
        }
        Activation::Tanh => {
            let t = e.unary(Unary::Tanh, x);
            let d = e.affine(&e.unary(Unary::Square, &t), -1.0, 1.0);
            [t.clone(), d.clone(), e.affine(&e.mul(&t, &d), -2.0, 0.0)]
        }
        Activation::Relu => {
            let on = e.above(x, 0.0);
            [backend.select(&on, x, &e.zeros(x)), on, e.zeros(x)]
        }
        Activation::LipschitzCube => {
            let inside = e.below(&e.unary(Unary::Abs, x), 1.0);
            let square = e.unary(Unary::Square, x);
            let outer = backend.select(&e.above(x, 0.0), &e.affine(x, 1.0, -2.0 / 3.0), &e.affine(x, 1.0, 2.0 / 3.0));
            [
                backend.select(&inside, &e.affine(&e.mul(&square, x), 1.0 / 3.0, 0.0), &outer),
                backend.select(&inside, &square, &e.ones(x)),
                backend.select(&inside, &e.affine(x, 2.0, 0.0), &e.zeros(x)),
            ]
        }
        Activation::Sin => {
            let two_pi = std::f64::consts::TAU;
            let t = e.affine(x, two_pi, 0.0);
            let s = e.unary(Unary::Sin, &t);
            [e.affine(&s, 1.0 / two_pi, 0.0), e.unary(Unary::Cos, &t), e.affine(&s, -two_pi, 0.0)]
        }
        Activation::Pila => {
            let constant = |value: f64| backend.full(value, [1].into());
            let low = backend.binary(Binary::Min, x.clone(), &constant(0.0));
            let v = backend.binary(Binary::Max, low, &constant(pila_least::<B::Elem>()));
            let half = e.unary(Unary::Exp, &e.affine(&v, 2.5, 0.0));
            let square = e.unary(Unary::Square, &v);
            let below = |polynomial: &B::Tensor| e.mul(&e.mul(polynomial, &half), &half);
            let linear = e.affine(&v, -5.0, 1.0);
            let y = e.mul(&v, &e.add(&e.affine(&square, 12.5, 0.0), &linear));
            let d1 = e.add(&e.mul(&e.affine(&v, 62.5, 12.5), &square), &linear);
            let d2 = e.mul(&e.affine(&square, 62.5, 0.0), &e.affine(&v, 5.0, 4.0));
            let above = e.above(x, 0.0);
            [
                backend.select(&above, x, &below(&y)),
                backend.select(&above, &e.ones(x), &below(&d1)),
                backend.select(&above, &e.zeros(x), &below(&d2)),
            ]
        }
    };
    [y, d1, d2].into_iter().take(order + 1).collect()
}

fn lipswish<B: Backend>(e: &Expr<'_, B>, b: &B::Tensor, x: &B::Tensor) -> [B::Tensor; 3] {
    let t = e.mul(x, b);
    let s = e.sigmoid(&t);
    let q = e.affine(&s, -1.0, 1.0);
    let tq = e.mul(&t, &q);
    let scale = 1.0 / LIPSWISH_SCALE;
    let y = e.affine(&e.mul(x, &s), scale, 0.0);
    let d1 = e.affine(&e.mul(&e.affine(&tq, 1.0, 1.0), &s), scale, 0.0);
    let bracket = e.sub(&e.affine(&tq, 1.0, 2.0), &e.mul(&t, &s));
    let d2 = e.affine(&e.mul(&e.mul(&e.mul(&s, &q), &bracket), b), scale, 0.0);
    [y, d1, d2]
}

/// [`Backend::activation_reverse`] without fusion.
pub fn activation_reverse<B: Backend>(
    backend: &B,
    f: Activation,
    parameter: Option<&B::Tensor>,
    x: &B::Tensor,
    derivatives: &[B::Tensor],
    tangents: &[B::Tensor],
    gy: B::Tensor,
    gdy: Vec<B::Tensor>,
) -> ActivationReverse<B::Tensor> {
    assert_eq!(tangents.len(), gdy.len(), "activation_reverse: as many tangents as cotangents");
    let e = Expr(backend);
    let [y, d1, d2] = derivatives else { panic!("activation_reverse: needs the derivatives 0, 1 and 2") };
    // Σ dx·gdy, shared by gx and by the parameter's gradient
    let crossed = tangents.iter().zip(&gdy).map(|(dx, gdy)| e.mul(dx, gdy)).reduce(|a, b| e.add(&a, &b));
    let gradient = parameter.filter(|_| f.has_parameter()).map(|b| {
        let mut terms = e.mul(&gy, &e.sub(&e.mul(x, d1), y));
        if let Some(crossed) = &crossed {
            terms = e.add(&terms, &e.mul(&e.mul(crossed, x), d2));
        }
        backend.binary(Binary::Div, backend.reduce(Reduce::Sum, Over::All, &terms), b)
    });
    let mut gx = backend.binary(Binary::Mul, gy, d1);
    if let Some(crossed) = &crossed {
        gx = e.add(&gx, &e.mul(crossed, d2));
    }
    let gdx = gdy.into_iter().map(|g| backend.binary(Binary::Mul, g, d1)).collect();
    ActivationReverse { gx, gdx, parameter: gradient }
}

/// [`Backend::series_term`] without fusion.
pub fn series_term<B: Backend>(
    backend: &B,
    k: usize,
    weight: TermWeight<'_, B::Tensor>,
    probe: &B::Tensor,
    negligible: f64,
    state: SeriesState<B::Tensor>,
) -> SeriesState<B::Tensor> {
    let sign = if k % 2 == 1 { 1.0 } else { -1.0 };
    let k = k as f64;
    let weigh = |x: B::Tensor| match weight {
        TermWeight::Batch(c) => backend.affine(x, c, 0.0),
        TermWeight::PerRow(c) => backend.binary(Binary::Mul, x, c),
    };
    let shape = backend.shape(&state.power);
    let flat = |x: &B::Tensor| backend.reshape(x, [shape.rows(), shape.row_elements()].into());
    let (power, probe) = (flat(&state.power), flat(probe));
    let value = backend.axpy(sign / k, &weigh(backend.dot_rows(&power, &probe)), state.value);
    let neumann = state.neumann.map(|u| backend.reshape(&backend.axpy(-sign, &weigh(power.clone()), flat(&u)), shape));
    let product = backend.binary(Binary::Mul, backend.dot_rows(&power, &power), &backend.dot_rows(&probe, &probe));
    let bound = backend.affine(weigh(backend.unary(Unary::Sqrt, product)), 1.0 / k, 0.0);
    let stop = backend.binary(Binary::Less, bound, &backend.full(negligible, [1].into()));
    let power = backend.select(&stop, &backend.full(0.0, backend.shape(&power)), &power);
    SeriesState { power: backend.reshape(&power, shape), neumann, value }
}

/// [`Backend::fixed_point_step`] without fusion.
pub fn fixed_point_step<B: Backend>(
    backend: &B,
    rule: &FixedPointRule,
    y: &B::Tensor,
    g: &B::Tensor,
    state: FixedPointState<B::Tensor>,
) -> FixedPointState<B::Tensor> {
    let e = Expr(backend);
    let column = |c: FixedPointColumn| backend.narrow(&state.rows, 1, c as usize, 1);
    let constant = |value: f64| backend.full(value, [1].into());
    let at_most = |x: &B::Tensor, bound: f64| backend.binary(Binary::LessEqual, x.clone(), &constant(bound));
    let length = |x: &B::Tensor| backend.unary(Unary::Sqrt, backend.dot_rows(x, x));

    let next = e.sub(y, g);
    let r = e.sub(&next, &state.x);
    let (length_of_y, norm) = (length(y), length(&r));
    let scale = backend.binary(Binary::Max, length_of_y.clone(), &constant(1.0));
    let size = backend.binary(Binary::Div, norm.clone(), &scale);
    // a y whose square overflows would make any residual look like none
    let infinite = backend.full(f64::INFINITY, backend.shape(&size));
    let size = backend.select(&e.unary(Unary::IsFinite, &length_of_y), &size, &infinite);

    let (residual, active) = (column(FixedPointColumn::Residual), column(FixedPointColumn::Active));
    let better = e.mul(&backend.binary(Binary::Less, size.clone(), &residual), &active);
    let residual = backend.select(&better, &size, &residual);
    let norm = backend.select(&better, &norm, &column(FixedPointColumn::Norm));
    let best = backend.select(&better, &next, &state.best);
    let latest = backend.select(&active, &size, &column(FixedPointColumn::Latest));
    let stall = column(FixedPointColumn::Stall);
    let stall = backend.select(&better, &e.zeros(&stall), &e.add(&stall, &active));
    let steps = e.add(&column(FixedPointColumn::Steps), &active);

    let patient = backend.binary(Binary::LessEqual, backend.full(rule.patience, backend.shape(&stall)), &stall);
    let floor = e.mul(&patient, &at_most(&residual, rule.floor));
    let broken = e.affine(&e.unary(Unary::IsFinite, &size), -1.0, 1.0);
    let done = backend.binary(Binary::Max, at_most(&residual, rule.accuracy), &floor);
    let done = backend.binary(Binary::Max, done, &broken);
    let active = e.mul(&active, &e.affine(&done, -1.0, 1.0));
    let x = backend.select(&active, &next, &state.x);
    let rows = backend.concat(&[&residual, &norm, &latest, &stall, &steps, &active], 1);
    FixedPointState { x, best, rows }
}

/// Returns the smallest length whose square has all its digits: what is shorter is not divided by its length, since the
/// result would be no unit vector.
pub fn least_length<E: Element>() -> f64 {
    (E::TINY / E::EPSILON).sqrt()
}

/// Computes x/‖x‖, or `old` where x is shorter than [`least_length`], so long that its square overflows, or not a number.
pub fn unit_or<B: Backend>(backend: &B, x: B::Tensor, old: &B::Tensor) -> B::Tensor {
    let norm = backend.unary(Unary::Sqrt, backend.dot(&x, &x));
    let scaled = backend.binary(Binary::Div, x, &norm);
    let least = backend.full(least_length::<B::Elem>(), [1].into());
    let usable = backend.binary(Binary::LessEqual, least, &norm);
    let usable = backend.binary(Binary::Mul, usable, &backend.unary(Unary::IsFinite, norm));
    backend.select(&usable, &scaled, old)
}

/// [`Backend::power_iteration`] without fusion.
pub fn power_iteration<B: Backend>(
    backend: &B,
    w: &B::Tensor,
    u: B::Tensor,
    v: B::Tensor,
    count: usize,
) -> [B::Tensor; 3] {
    let shape = backend.shape(w);
    let (o, i) = (shape[0], shape[1]);
    let mut u = backend.reshape(&u, [o, 1].into());
    let mut v = backend.reshape(&v, [i, 1].into());
    let unit = |x, old: &_| unit_or(backend, x, old);
    for _ in 0..count {
        v = unit(backend.matmul(w, true, &u, false), &v);
        u = unit(backend.matmul(w, false, &v, false), &u);
    }
    let sigma = backend.dot(&u, &backend.matmul(w, false, &v, false));
    [backend.reshape(&u, [o].into()), backend.reshape(&v, [i].into()), sigma]
}

/// [`Backend::conv2d_power_iteration`] without fusion.
pub fn conv2d_power_iteration<B: Backend>(
    backend: &B,
    kernel: &B::Tensor,
    padding: Padding,
    mut u: B::Tensor,
    mut v: B::Tensor,
    count: usize,
) -> [B::Tensor; 3] {
    let inputs = backend.shape(&v);
    let image = [inputs[1], inputs[2]];
    let unit = |x, old: &_| unit_or(backend, x, old);
    for _ in 0..count {
        v = unit(backend.conv2d_input(&u, kernel, padding, image), &v);
        u = unit(backend.conv2d(&v, kernel, padding), &u);
    }
    let sigma = backend.dot(&u, &backend.conv2d(&v, kernel, padding));
    [u, v, sigma]
}

/// [`Backend::adam_step`] without fusion.
pub fn adam_step<B: Backend>(
    backend: &B,
    rule: &AdamStep,
    scale: &B::Tensor,
    gate: &B::Tensor,
    decayed: &B::Tensor,
    parameters: B::Tensor,
    [first, second]: [B::Tensor; 2],
    gradient: &B::Tensor,
) -> (B::Tensor, [B::Tensor; 2]) {
    let (c1, c2) = rule.bias_corrections();
    let g = backend.binary(Binary::Mul, gradient.clone(), scale);
    let m = backend.axpy(1.0 - rule.beta1, &g, backend.affine(first.clone(), rule.beta1, 0.0));
    let square = backend.unary(Unary::Square, g);
    let v = backend.axpy(1.0 - rule.beta2, &square, backend.affine(second.clone(), rule.beta2, 0.0));
    let root = backend.affine(backend.unary(Unary::Sqrt, backend.affine(v.clone(), 1.0 / c2, 0.0)), 1.0, rule.epsilon);
    let update = backend.binary(Binary::Div, backend.affine(m.clone(), 1.0 / c1, 0.0), &root);
    let decay = backend.binary(Binary::Mul, parameters.clone(), decayed);
    let p = backend.axpy(-rule.learning_rate * rule.weight_decay, &decay, parameters.clone());
    let p = backend.axpy(-rule.learning_rate, &update, p);
    let pick = |new: &B::Tensor, old: &B::Tensor| backend.select(gate, new, old);
    (pick(&p, &parameters), [pick(&m, &first), pick(&v, &second)])
}
