//! Activations and their reverse, against [`Activation::derivatives`] in double precision and against the compositions.
//!
//! φ' is the log det and φ'' its gradient, so each has its own tolerance, [`ACTIVATION`] units of
//! * order 0: |φ| + |xφ'|, relative near zero; absolutely those of a sine for `Sin`;
//! * order 1: 1 + |xφ''|, since 1 − t² and 1 − σ cancel;
//! * order 2: the supremum of |φ''|;
//!
//! where `Sin` may move its phase 2πx by a relative rounding error.

use resflow_backend::{Activation, Backend, Element, composed};

use crate::draw::{Draw, check, download, seed, shape, upload};
use crate::elementwise::{seen_as, special};
use crate::reference::Array;
use crate::tolerance::{ACTIVATION, assert_close, sum, within};

/// The magnitudes that the errors of φ, φ' and φ'' are measured by.
pub(crate) fn magnitudes<E: Element>(f: Activation, x: f64, b: f64) -> [f64; 3] {
    let [y, d1, d2] = f.derivatives(x, b);
    // an exponential that overflows flushes a factor of x that is below TINY
    let flushed = x.abs() * E::TINY / E::EPSILON;
    let relative = y.abs() + (x * d1).abs() + flushed;
    if f == Activation::Sin {
        let phase = 1.0 + (std::f64::consts::TAU * x).abs();
        // the hardware's sine is accurate absolutely: half of 16 units of sin(2πx)/2π
        [relative + 0.5 / std::f64::consts::TAU, phase, std::f64::consts::TAU * phase]
    } else {
        [relative, 1.0 + (x * d2).abs(), 2.0 * b.max(1.0)]
    }
}

/// The activation's parameter on the device, if it has one.
pub(crate) fn parameter<B: Backend>(backend: &B, f: Activation, b: f64) -> Option<B::Tensor> {
    f.has_parameter().then(|| upload(backend, &Array::new([1], vec![b])))
}

/// A parameter b that the element type holds.
fn some_b<E: Element>(draw: &mut Draw) -> f64 {
    draw.uniform::<E>([1], 0.5, 2.0).data[0]
}

/// `activation` to every order over all shapes, and its composition.
pub fn activation<B: Backend>(backend: &B) {
    for f in Activation::ALL {
        check(&format!("activation {f:?}"), (shape(), seed(), 0usize..3), |(shape, seed, order)| {
            let mut draw = Draw::new(seed);
            let x = draw.wide::<B::Elem>(shape);
            let b = some_b::<B::Elem>(&mut draw);
            let (device, p) = (draw.tensor(backend, &x), parameter(backend, f, b));
            let got = backend.activation(f, p.as_ref(), &device, order);
            let composition = composed::activation(backend, f, p.as_ref(), &device, order);
            assert_eq!((got.len(), composition.len()), (order + 1, order + 1), "activation: derivatives 0 to {order}");
            for (k, (got, composed)) in got.iter().zip(&composition).enumerate() {
                let what = format!("activation {f:?}, derivative {k}");
                let (got, composed) = (download(backend, got), download(backend, composed));
                let (want, size) = (x.map(|x| f.derivatives(x, b)[k]), x.map(|x| magnitudes::<B::Elem>(f, x, b)[k]));
                assert_close::<B::Elem>(&what, &got, &want, &size, ACTIVATION);
                assert_close::<B::Elem>(&what, &got, &composed, &size, 2.0 * ACTIVATION);
            }
        });
    }
}

/// Zeros, kinks, tiny numbers and ±80: finite, and the value that the activation defines at a kink.
pub fn activation_special_values<B: Backend>(backend: &B) {
    let x = special::<B::Elem>();
    let finite: Vec<f64> = x.data.into_iter().filter(|x| x.is_finite()).collect();
    let x = Array::new([finite.len()], finite);
    let b = B::Elem::from_f64(0.974).to_f64();
    for f in Activation::ALL {
        let p = parameter(backend, f, b);
        let device = upload(backend, &x);
        let fused = backend.activation(f, p.as_ref(), &device, 2);
        let composition = composed::activation(backend, f, p.as_ref(), &device, 2);
        for (k, got) in fused.iter().chain(&composition).enumerate() {
            let k = k % 3;
            for (&x, got) in x.data.iter().zip(download(backend, got).data) {
                let fits = |x: f64| {
                    let units = ACTIVATION * B::Elem::EPSILON * magnitudes::<B::Elem>(f, x, b)[k];
                    within::<B::Elem>(got, f.derivatives(x, b)[k], units)
                };
                let found = seen_as::<B::Elem>(x).into_iter().any(fits);
                assert!(found, "activation: derivative {k} of {f:?} at {x:e} is {got:e}");
            }
        }
    }
}

/// One pullback: the inputs on the host.
struct Pullback {
    f: Activation,
    b: f64,
    x: Array,
    derivatives: [Array; 3],
    tangents: Vec<Array>,
    gy: Array,
    gdy: Vec<Array>,
}

impl Pullback {
    fn new<B: Backend>(draw: &mut Draw, f: Activation, x: Array, count: usize) -> Self {
        let b = some_b::<B::Elem>(draw);
        let mut more = |n| (0..n).map(|_| draw.array::<B::Elem>(x.shape)).collect::<Vec<_>>();
        let (tangents, gdy) = (more(count), more(count));
        let gy = draw.array::<B::Elem>(x.shape);
        let derivatives = [0, 1, 2].map(|k| x.map(|x| f.derivatives(x, b)[k]).rounded::<B::Elem>());
        Self { f, b, x, derivatives, tangents, gy, gdy }
    }

    /// (gx, gdx, the parameter's gradient); with `size`, instead, the magnitudes of their terms.
    fn reference<E: Element>(&self, size: bool) -> (Array, Vec<Array>, Array) {
        let abs = |x: f64| if size { x.abs() } else { x };
        let [mut gx, mut terms] = [self.gy.clone(), self.gy.clone()];
        let mut gdx = self.gdy.clone();
        for i in 0..self.x.data.len() {
            let x = self.x.data[i];
            let sizes = magnitudes::<E>(self.f, x, self.b);
            let [y, d1, d2] = if size { sizes } else { [0, 1, 2].map(|k| self.derivatives[k].data[i]) };
            let crossed: f64 = self.tangents.iter().zip(&self.gdy).map(|(a, b)| abs(a.data[i] * b.data[i])).sum();
            let gy = abs(self.gy.data[i]);
            gx.data[i] = gy * d1 + crossed * d2;
            let own = if size { abs(x) * d1 + y } else { x * d1 - y };
            terms.data[i] = (gy * own + crossed * abs(x) * d2) / self.b;
            for g in &mut gdx {
                g.data[i] = abs(g.data[i]) * d1;
            }
        }
        (gx, gdx, Array::new([1], vec![terms.data.iter().sum()]))
    }
}

fn reverse_case<B: Backend>(backend: &B, case: &Pullback, draw: &mut Draw) {
    let p = parameter(backend, case.f, case.b);
    let x = draw.tensor(backend, &case.x);
    let [derivatives, tangents, gdy] = [&case.derivatives[..], &case.tangents, &case.gdy]
        .map(|list| -> Vec<B::Tensor> { list.iter().map(|x| draw.tensor(backend, x)).collect() });
    let gy = draw.tensor(backend, &case.gy);
    let composed =
        composed::activation_reverse(backend, case.f, p.as_ref(), &x, &derivatives, &tangents, gy.clone(), gdy.clone());
    let got = backend.activation_reverse(case.f, p.as_ref(), &x, &derivatives, &tangents, gy, gdy);
    let (gx, gdx, gb) = case.reference::<B::Elem>(false);
    let (gx_size, gdx_size, gb_size) = case.reference::<B::Elem>(true);
    let compare = |what: &str, got: &B::Tensor, composed: &B::Tensor, want: &Array, size: &Array, units: f64| {
        let what = format!("activation_reverse {:?}, {what}", case.f);
        let got = download(backend, got);
        assert_close::<B::Elem>(&what, &got, want, size, units);
        assert_close::<B::Elem>(&what, &got, &download(backend, composed), size, 2.0 * units);
    };
    compare("gx", &got.gx, &composed.gx, &gx, &gx_size, ACTIVATION);
    assert_eq!(got.gdx.len(), gdx.len(), "activation_reverse: one cotangent for each tangent");
    for (i, want) in gdx.iter().enumerate() {
        compare("gdx", &got.gdx[i], &composed.gdx[i], want, &gdx_size[i], ACTIVATION);
    }
    match (&got.parameter, &composed.parameter) {
        (Some(got), Some(composed)) => {
            assert!(case.f.has_parameter(), "activation_reverse: {:?} has no parameter", case.f);
            compare("parameter", got, composed, &gb, &gb_size, ACTIVATION + sum(case.x.data.len()));
        }
        (None, None) => assert!(!case.f.has_parameter(), "activation_reverse: no gradient of {:?}'s b", case.f),
        _ => panic!("activation_reverse: the composition decides whether {:?} has a parameter", case.f),
    }
}

/// `activation_reverse` with 0, 1 and 3 tangents, and its composition.
pub fn activation_reverse<B: Backend>(backend: &B) {
    for f in Activation::ALL {
        for count in [0, 1, 3] {
            check(&format!("activation_reverse {f:?}, {count} tangents"), (shape(), seed()), |(shape, seed)| {
                let mut draw = Draw::new(seed);
                let x = draw.array::<B::Elem>(shape).map(|x| 2.0 * x);
                let case = Pullback::new::<B>(&mut draw, f, x, count);
                reverse_case(backend, &case, &mut draw);
            });
        }
    }
}
