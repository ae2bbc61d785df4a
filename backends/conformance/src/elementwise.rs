//! Elementwise operations against the functions that their enums define, special values included.

use proptest::prelude::*;
use resflow_backend::{Backend, Binary, Element, Shape, Unary};

use crate::draw::{Draw, check, download, seed, shape, upload};
use crate::reference::Array;
use crate::tolerance::{self, AFFINE, assert_close, assert_equal, assert_within, within};

/// The numbers that tend to go wrong: zeros of both signs, tiny and large ones, subnormals, infinities and NaN.
pub(crate) fn special<E: Element>() -> Array {
    let mut values = vec![f64::NAN];
    for x in [0.0, E::TINY / 4.0, E::TINY, 1e-8, 0.5, 1.0, 2.5, 20.0, 80.0, f64::INFINITY] {
        values.extend([x, -x]);
    }
    Array::new([values.len()], values).rounded::<E>()
}

/// The values that a processor which flushes subnormals may see for x.
pub(crate) fn seen_as<E: Element>(x: f64) -> Vec<f64> {
    if x != 0.0 && x.abs() < E::TINY { vec![x, 0.0, -0.0] } else { vec![x] }
}

/// Every [`Unary`] is its [`Unary::apply`] over all shapes.
pub fn unary<B: Backend>(backend: &B) {
    for op in Unary::ALL {
        check(&format!("unary {op:?}"), (shape(), seed()), |(shape, seed)| {
            let mut draw = Draw::new(seed);
            let x = draw.wide::<B::Elem>(shape);
            let got = backend.unary(op, draw.tensor(backend, &x));
            assert_within::<B::Elem>("unary", &download(backend, &got), &x.map(|x| op.apply(x)), |i| {
                tolerance::unary::<B::Elem>(op, x.data[i])
            });
        });
    }
}

/// Every [`Unary`] of zeros, tiny numbers, infinities and NaN.
pub fn unary_special_values<B: Backend>(backend: &B) {
    let x = special::<B::Elem>();
    for op in Unary::ALL {
        let got = download(backend, &backend.unary(op, upload(backend, &x)));
        for (&x, &got) in x.data.iter().zip(&got.data) {
            let fits = |x: f64| within::<B::Elem>(got, op.apply(x), tolerance::unary::<B::Elem>(op, x));
            assert!(seen_as::<B::Elem>(x).into_iter().any(fits), "unary: {op:?} of {x:e} is {got:e}");
        }
    }
}

/// A shape that broadcasts to another: some extents become 1, some leading axes are left out.
fn broadcastable(to: Shape, ones: u8, dropped: usize) -> Shape {
    let extents: Vec<usize> = to.iter().enumerate().map(|(i, &e)| if ones >> i & 1 == 1 { 1 } else { e }).collect();
    Shape::new(&extents[dropped.min(to.rank() - 1)..])
}

fn pair() -> impl Strategy<Value = (Shape, Shape)> {
    // two times out of three without dropped axes
    (shape(), prop_oneof![Just(0u8), any::<u8>()], prop_oneof![2 => Just(0), 1 => 0usize..5])
        .prop_map(|(a, ones, dropped)| (a, broadcastable(a, ones, dropped)))
}

/// Every [`Binary`] is its [`Binary::apply`], whatever is broadcast.
pub fn binary<B: Backend>(backend: &B) {
    for op in Binary::ALL {
        check(&format!("binary {op:?}"), (pair(), seed()), |((a, b), seed)| {
            let mut draw = Draw::new(seed);
            let (a, mut b) = (draw.wide::<B::Elem>(a), draw.wide::<B::Elem>(b));
            // equal elements, for the comparisons
            if !a.data.is_empty() {
                b.data.iter_mut().step_by(3).for_each(|b| *b = a.data[0]);
            }
            let got = backend.binary(op, draw.tensor(backend, &a), &draw.tensor(backend, &b));
            let allowed = a.zip(&b, |a, b| tolerance::binary::<B::Elem>(op, a, b));
            let want = a.zip(&b, |a, b| op.apply(a, b));
            assert_within::<B::Elem>("binary", &download(backend, &got), &want, |i| allowed.data[i]);
        });
    }
}

/// Every [`Binary`] of all pairs of zeros, tiny numbers, infinities and NaN.
pub fn binary_special_values<B: Backend>(backend: &B) {
    let values = special::<B::Elem>();
    let n = values.data.len();
    let a = Array::from_fn([n, n], |i| values.data[i[0]]);
    let b = values.reshape([1, n]);
    for op in Binary::ALL {
        let got = download(backend, &backend.binary(op, upload(backend, &a), &upload(backend, &b)));
        for (i, (&a, &got)) in a.data.iter().zip(&got.data).enumerate() {
            let b = b.data[i % n];
            let fits = |a: f64, b: f64| within::<B::Elem>(got, op.apply(a, b), tolerance::binary::<B::Elem>(op, a, b));
            let mut pairs = seen_as::<B::Elem>(a).into_iter();
            let found = pairs.any(|a| seen_as::<B::Elem>(b).into_iter().any(|b| fits(a, b)));
            assert!(found, "binary: {op:?} of {a:e} and {b:e} is {got:e}");
        }
    }
}

/// `affine` is scale · x + shift.
pub fn affine<B: Backend>(backend: &B) {
    let coefficient = || prop_oneof![Just(0.0), Just(1.0), Just(-1.0), -3.0..3.0];
    check("affine", (shape(), seed(), coefficient(), coefficient()), |(shape, seed, scale, shift)| {
        let mut draw = Draw::new(seed);
        let x = draw.array::<B::Elem>(shape);
        let got = backend.affine(draw.tensor(backend, &x), scale, shift);
        let magnitude = x.map(|x| (scale * x).abs() + shift.abs());
        assert_close::<B::Elem>("affine", &download(backend, &got), &x.map(|x| scale * x + shift), &magnitude, AFFINE);
    });
}

/// `axpy` is alpha · x + y.
pub fn axpy<B: Backend>(backend: &B) {
    let coefficient = prop_oneof![Just(0.0), Just(1.0), Just(-1.0), -3.0..3.0];
    check("axpy", (shape(), seed(), coefficient), |(shape, seed, alpha)| {
        let mut draw = Draw::new(seed);
        let (x, y) = (draw.array::<B::Elem>(shape), draw.array::<B::Elem>(shape));
        let got = backend.axpy(alpha, &draw.tensor(backend, &x), draw.tensor(backend, &y));
        let want = x.zip(&y, |x, y| alpha * x + y);
        let magnitude = x.zip(&y, |x, y| (alpha * x).abs() + y.abs());
        assert_close::<B::Elem>("axpy", &download(backend, &got), &want, &magnitude, AFFINE);
    });
}

/// `select` takes what the broadcast mask says, and what it leaves out may be NaN or infinite.
pub fn select<B: Backend>(backend: &B) {
    check("select", (pair(), seed()), |((shape, mask), seed)| {
        let mut draw = Draw::new(seed);
        // both zeros are 0, and anything else is not
        let mask = draw.uniform::<B::Elem>(mask, 0.0, 5.0).map(|x| [0.0, 1.0, -0.0, -2.5, 1e-3][x as usize]);
        let mask = mask.rounded::<B::Elem>();
        let spoil = |x: &Array, spoiled: bool| {
            x.zip(&mask, |x, m| match (m == 0.0) == spoiled {
                false => x,
                true if x > 0.0 => f64::NAN,
                true => f64::INFINITY,
            })
        };
        let on = spoil(&draw.array::<B::Elem>(shape), true);
        let off = spoil(&draw.array::<B::Elem>(shape), false);
        let [m, a, b] = [&mask, &on, &off].map(|x| draw.tensor(backend, x));
        let want = Array::from_fn(shape, |i| if mask.at(i) == 0.0 { off.at(i) } else { on.at(i) });
        assert_equal("select", &download(backend, &backend.select(&m, &a, &b)), &want);
    });
}
