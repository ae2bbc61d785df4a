//! Value semantics: an operation changes nothing that another handle sees.
//!
//! Operations that take a tensor by value may reuse its memory if it is the last handle to all of it. A backend that
//! miscounts, for a slice of a buffer, its whole, or a reshaped view, corrupts saved activations silently.

use std::slice::from_ref;

use resflow_backend::{
    Activation, AdamStep, Backend, Binary, Over, Padding, Reduce, SeriesState, Shape, TermWeight, Unary,
};

use crate::draw::{Draw, download, upload};
use crate::reference::Array;
use crate::tolerance::{assert_equal, assert_same_bits};

const PADDING: Padding = Padding { height: 1, width: 1 };

/// An operation that consumes its operand.
type Consumer<'a, B> = (&'static str, Shape, Box<dyn Fn(<B as Backend>::Tensor) + 'a>);

fn consume<'a, B: Backend>(name: &'static str, shape: impl Into<Shape>, f: impl Fn(B::Tensor) + 'a) -> Consumer<'a, B> {
    (name, shape.into(), Box::new(f))
}

/// Operations of one line that consume a tensor.
fn simple_consumers<B: Backend>(backend: &B) -> Vec<Consumer<'_, B>> {
    let draw = move |shape: &[usize]| upload(backend, &Draw::new(1).array::<B::Elem>(shape));
    let mut out = vec![
        consume::<B>("affine", [4, 3], |x| drop(backend.affine(x, 2.0, 1.0))),
        consume::<B>("axpy", [4, 3], move |y| drop(backend.axpy(2.0, &draw(&[4, 3]), y))),
        consume::<B>("matmul_add", [4, 3], move |sum| {
            drop(backend.matmul_add(sum, &draw(&[4, 2]), false, &draw(&[2, 3]), false));
        }),
        consume::<B>("conv2d_kernel_add", [2, 3, 3, 2], move |sum| {
            let image = draw(&[1, 4, 4, 2]);
            drop(backend.conv2d_kernel_add(sum, &image, &image, PADDING));
        }),
    ];
    out.extend(Unary::ALL.map(|op| consume::<B>("unary", [4, 3], move |x| drop(backend.unary(op, x)))));
    for op in Binary::ALL {
        out.push(consume::<B>("binary", [4, 3], move |a| drop(backend.binary(op, a, &draw(&[4, 3])))));
        out.push(consume::<B>("binary", [4, 3], move |a| drop(backend.binary(op, a, &draw(&[3])))));
    }
    out
}

/// The fused operations that consume a tensor, once for each operand that they consume.
fn fused_consumers<B: Backend>(backend: &B) -> Vec<Consumer<'_, B>> {
    let draw = move |shape: &[usize]| upload(backend, &Draw::new(1).array::<B::Elem>(shape));
    let one = move || backend.full(1.0, [1].into());
    let rule = AdamStep { learning_rate: 0.1, beta1: 0.9, beta2: 0.9, epsilon: 1e-8, weight_decay: 0.1, step: 1 };
    let mut out = Vec::new();
    for place in 0..3 {
        out.push(consume::<B>("adam_step", [6], move |x| {
            let mut state = [draw(&[6]), draw(&[6]), draw(&[6])];
            state[place] = x;
            let [p, m, v] = state;
            drop(backend.adam_step(&rule, &one(), &one(), &draw(&[6]), p, [m, v], &draw(&[6])));
        }));
        let shape: &[usize] = if place == 2 { &[4, 1] } else { &[4, 3] };
        out.push(consume::<B>("series_term", shape, move |x| {
            let mut state = SeriesState { power: draw(&[4, 3]), neumann: Some(draw(&[4, 3])), value: draw(&[4, 1]) };
            match place {
                0 => state.power = x,
                1 => state.neumann = Some(x),
                _ => state.value = x,
            }
            drop(backend.series_term(2, TermWeight::Batch(0.5), &draw(&[4, 3]), 0.5, state));
        }));
    }
    for place in 0..2 {
        out.push(consume::<B>("power_iteration", [4], move |x| {
            let mut state = [draw(&[4]), draw(&[4])];
            state[place] = x;
            let [u, v] = state;
            drop(backend.power_iteration(&draw(&[4, 4]), u, v, 2));
        }));
        out.push(consume::<B>("activation_reverse", [4, 3], move |g| {
            let (x, b) = (draw(&[4, 3]), one());
            let derivatives = backend.activation(Activation::LipSwish, Some(&b), &x, 2);
            let (gy, gdy) = if place == 0 { (g, draw(&[4, 3])) } else { (draw(&[4, 3]), g) };
            let f = Activation::LipSwish;
            drop(backend.activation_reverse(f, Some(&b), &x, &derivatives, from_ref(&x), gy, vec![gdy]));
        }));
    }
    out
}

/// An operand taken by value may be shared in any way: cloned, a slice, the whole of a slice, reshaped.
pub fn consumed_operands_are_values<B: Backend>(backend: &B) {
    for (name, shape, consume) in simple_consumers(backend).into_iter().chain(fused_consumers(backend)) {
        let rows = shape.rows();
        let data = Draw::new(2).array::<B::Elem>(shape.with_rows(rows + 2));
        let middle = data.narrow(0, 1, rows);
        let kept = |what: &str, x: &B::Tensor, want: &Array| {
            assert_same_bits(&format!("{name} of a tensor that is {what}"), &download(backend, x), want);
        };

        let x = upload(backend, &middle);
        let other = x.clone();
        consume(x);
        kept("cloned", &other, &middle);

        let whole = upload(backend, &data);
        let part = backend.narrow(&whole, 0, 1, rows);
        let twin = part.clone();
        consume(part);
        kept("a cloned slice", &twin, &middle);
        consume(twin);
        kept("a slice", &whole, &data);

        let x = upload(backend, &middle);
        let [slice, flat] = [backend.narrow(&x, 0, 0, 1), backend.reshape(&x, [shape.elements()].into())];
        consume(x);
        kept("sliced", &slice, &middle.narrow(0, 0, 1));
        kept("reshaped", &flat, &middle.reshape([shape.elements()]));
        consume(backend.reshape(&flat, shape));
        kept("a reshaped view", &flat, &middle.reshape([shape.elements()]));
        kept("a reshaped view, sliced", &slice, &middle.narrow(0, 0, 1));

        // two slices of one buffer that has no handle to all of it any more
        let halves = upload(backend, &Array::concat(&[&middle, &middle], 0));
        let [first, second] = [0, rows].map(|start| backend.narrow(&halves, 0, start, rows));
        drop(halves);
        consume(first);
        kept("a sibling", &second, &middle);
    }
}

/// One tensor may be both operands.
pub fn aliased_operands<B: Backend>(backend: &B) {
    let mut draw = Draw::new(4);
    let a = draw.array::<B::Elem>([5, 5]).map(f64::round);
    for _ in 0..6 {
        let x = draw.tensor(backend, &a);
        let same = |what: &str, got: &B::Tensor, want: &Array| assert_equal(what, &download(backend, got), want);
        for op in Binary::ALL.into_iter().filter(|op| *op != Binary::Div) {
            same("binary of x and x", &backend.binary(op, x.clone(), &x), &a.zip(&a, |x, y| op.apply(x, y)));
        }
        same("axpy of x and x", &backend.axpy(2.0, &x, x.clone()), &a.map(|x| 3.0 * x));
        same("select of x by x", &backend.select(&x, &x, &x), &a);
        same("concat of x and x", &backend.concat(&[&x, &x], 1), &Array::concat(&[&a, &a], 1));
        let product = a.matmul(true, &a, false);
        same("matmul of x and x", &backend.matmul(&x, true, &x, false), &product);
        let sum = backend.matmul_add(x.clone(), &x, true, &x, false);
        same("matmul_add of x, x and x", &sum, &product.zip(&a, |p, a| p + a));
        same(
            "dot_rows of x and x",
            &backend.dot_rows(&x, &x),
            &Array::from_fn([5, 1], |i| a.narrow(0, i[0], 1).data.iter().map(|x| x * x).sum()),
        );
        same("x afterwards", &x, &a);
    }
}

/// Operations leave borrowed operands as they are.
pub fn borrowed_operands_are_kept<B: Backend>(backend: &B) {
    let mut draw = Draw::new(5);
    let [x, w, b] = [draw.array::<B::Elem>([4, 4]), draw.array::<B::Elem>([4, 4]), draw.array::<B::Elem>([4])];
    let [image, kernel] = [draw.array::<B::Elem>([2, 5, 4, 3]), draw.array::<B::Elem>([3, 3, 3, 3])];
    let hosts = [&x, &w, &b, &image, &kernel];
    let devices = hosts.map(|x| draw.tensor(backend, x));
    let [dx, dw, db, di, dk] = &devices;
    let one = backend.full(1.0, [1].into());

    drop(backend.binary(Binary::Mul, dx.clone(), db));
    drop(backend.axpy(2.0, dx, dw.clone()));
    drop(backend.select(db, dx, dw));
    drop([Over::All, Over::Row, Over::Channel].map(|over| backend.reduce(Reduce::Sum, over, dx)));
    drop(backend.matmul(dx, true, dw, false));
    drop(backend.linear(dx, dw, db));
    drop(backend.matmul_add(dx.clone(), dx, false, dw, true));
    drop([backend.conv2d(di, dk, PADDING), backend.conv2d_input(di, dk, PADDING, [5, 4])]);
    drop(backend.conv2d_kernel_add(dk.clone(), di, di, PADDING));
    drop(backend.lu(&backend.reshape(dx, [1, 4, 4].into())));
    drop([backend.permute(dx, &[1, 0]), backend.narrow(dx, 0, 1, 2), backend.take_rows(dx, &[3, 3])]);
    drop([backend.dot(dx, dw), backend.dot_rows(dx, dw), backend.all_finite(dx)]);
    for f in Activation::ALL {
        drop(backend.activation(f, Some(&one), dx, 2));
    }
    let state = SeriesState { power: dx.clone(), neumann: Some(dw.clone()), value: backend.reshape(db, [4, 1].into()) };
    let weights = backend.reshape(db, [4, 1].into());
    drop(backend.series_term(1, TermWeight::PerRow(&weights), dw, 0.1, state));
    drop(backend.power_iteration(dx, db.clone(), db.clone(), 2));

    for (host, device) in hosts.into_iter().zip(&devices) {
        assert_same_bits("an operand afterwards", &download(backend, device), host);
    }
}
