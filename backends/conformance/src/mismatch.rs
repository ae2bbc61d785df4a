//! Shapes that do not fit panic, with a message that names the operation and both shapes.
//!
//! A silent broadcast or a read beyond the end would be a wrong gradient; a bare index out of bounds would tell its
//! caller nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice::from_ref;

use resflow_backend::{Activation, Backend, Binary, Element, Padding, Shape, Spline};

const PADDING: Padding = Padding { height: 0, width: 0 };

/// The message of the panic that `f` must end in.
fn message<T>(what: &str, f: impl FnOnce() -> T) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(f()))) else {
        panic!("{what}: shapes that do not fit must panic");
    };
    match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(message), _) => message.clone(),
        (None, Some(message)) => (*message).to_owned(),
        (None, None) => panic!("{what}: the panic carries no message"),
    }
}

/// Makes zeros of a shape.
fn zeros<B: Backend>(backend: &B) -> impl Fn(&[usize]) -> B::Tensor {
    move |shape| backend.full(0.0, shape.into())
}

/// `f` must panic, naming one of the operations and all the shapes.
fn refuses<T>(names: &[&str], shapes: &[&[usize]], f: impl FnOnce() -> T) {
    let message = message(names[0], f);
    assert!(names.iter().any(|name| message.contains(name)), "{}: not named in {message:?}", names[0]);
    for shape in shapes {
        let shape = Shape::new(shape).to_string();
        assert!(message.contains(&shape), "{}: {shape} is not in {message:?}", names[0]);
    }
}

/// Elementwise operations and transfer.
pub fn mismatched_elementwise<B: Backend>(backend: &B) {
    let z = zeros(backend);
    let elements = [B::Elem::ZERO; 5];
    refuses(&["upload"], &[&[2, 3]], || backend.upload(&elements, [2, 3].into()));
    for (a, b) in [(&[2, 3][..], &[2][..]), (&[1, 3], &[2, 3]), (&[3], &[1, 3]), (&[2, 3], &[2, 0]), (&[2, 1], &[2, 2])]
    {
        for op in Binary::ALL {
            refuses(&["binary"], &[a, b], || backend.binary(op, z(a), &z(b)));
        }
        refuses(&["axpy"], &[a, b], || backend.axpy(1.0, &z(a), z(b)));
        refuses(&["select"], &[a, b], || backend.select(&z(b), &z(a), &z(a)));
        refuses(&["select"], &[a, b], || backend.select(&z(&[1]), &z(a), &z(b)));
    }
    // axpy does not broadcast
    refuses(&["axpy"], &[&[1], &[4]], || backend.axpy(1.0, &z(&[1]), z(&[4])));
    refuses(&["axpy"], &[&[2, 3], &[3, 2]], || backend.axpy(1.0, &z(&[2, 3]), z(&[3, 2])));
}

/// Products.
pub fn mismatched_products<B: Backend>(backend: &B) {
    let z = zeros(backend);
    let (a, b) = (&[2, 3][..], &[4, 5][..]);
    for flags in 0..4 {
        refuses(&["matmul"], &[], || backend.matmul(&z(a), flags & 1 == 1, &z(b), flags & 2 == 2));
    }
    refuses(&["matmul"], &[a, b], || backend.matmul(&z(a), false, &z(b), false));
    refuses(&["matmul"], &[&[2, 3, 1]], || backend.matmul(&z(&[2, 3, 1]), false, &z(&[3, 2]), false));
    refuses(&["matmul"], &[&[3]], || backend.matmul(&z(&[2, 3]), false, &z(&[3]), false));

    let (x, k) = (&[1, 4, 4, 2][..], &[3, 2, 2, 5][..]);
    refuses(&["conv2d"], &[x, k], || backend.conv2d(&z(x), &z(k), PADDING));
    let k = &[3, 5, 1, 2][..];
    refuses(&["conv2d"], &[x, k], || backend.conv2d(&z(x), &z(k), PADDING));
    refuses(&["conv2d"], &[&[4, 4, 2]], || backend.conv2d(&z(&[4, 4, 2]), &z(&[3, 2, 2, 2]), PADDING));
    let (gy, k) = (&[1, 3, 3, 3][..], &[3, 2, 2, 2][..]);
    refuses(&["conv2d_input"], &[gy, k], || backend.conv2d_input(&z(gy), &z(k), PADDING, [5, 4]));
    refuses(&["conv2d_input"], &[gy, k], || backend.conv2d_input(&z(gy), &z(k), PADDING, [4, 3]));
    let k = &[4, 2, 2, 2][..];
    refuses(&["conv2d_input"], &[gy, k], || backend.conv2d_input(&z(gy), &z(k), PADDING, [4, 4]));
    refuses(&["conv2d_kernel"], &[x, gy], || backend.conv2d_kernel(&z(x), &z(gy), PADDING, [3, 2]));
    let gy = &[2, 3, 3, 3][..];
    refuses(&["conv2d_kernel"], &[x, gy], || backend.conv2d_kernel(&z(x), &z(gy), PADDING, [2, 2]));

    refuses(&["lu"], &[&[2, 3, 4]], || backend.lu(&z(&[2, 3, 4])));
    refuses(&["lu"], &[&[3, 3]], || backend.lu(&z(&[3, 3])));
}

/// Layout operations.
pub fn mismatched_layout<B: Backend>(backend: &B) {
    let z = zeros(backend);
    let x = z(&[2, 3]);
    refuses(&["reshape"], &[&[2, 3], &[5]], || backend.reshape(&x, [5].into()));
    refuses(&["reshape"], &[&[2, 3], &[0]], || backend.reshape(&x, [0].into()));
    for axes in [&[0][..], &[0, 0], &[0, 2], &[0, 1, 2], &[]] {
        refuses(&["permute"], &[&[2, 3]], || backend.permute(&x, axes));
    }
    refuses(&["concat"], &[], || backend.concat(&[], 0));
    refuses(&["concat"], &[&[2, 3], &[2, 4]], || backend.concat(&[&x, &z(&[2, 4])], 0));
    refuses(&["concat"], &[&[2, 3], &[2, 3, 1]], || backend.concat(&[&x, &z(&[2, 3, 1])], 0));
    refuses(&["concat"], &[&[2, 3]], || backend.concat(&[&x, &x], 2));
    for (axis, start, length) in [(0, 0, 3), (0, 2, 1), (1, 4, 0), (1, 1, 3), (2, 0, 1)] {
        refuses(&["narrow"], &[&[2, 3]], || backend.narrow(&x, axis, start, length));
    }
    refuses(&["take_rows"], &[&[2, 3]], || backend.take_rows(&x, &[0, 2]));
    refuses(&["take_rows"], &[&[0, 3]], || backend.take_rows(&z(&[0, 3]), &[0]));
}

/// Fused operations, which may name the operation that they are composed of.
pub fn mismatched_fused<B: Backend>(backend: &B) {
    let z = zeros(backend);
    refuses(&["linear", "matmul"], &[], || backend.linear(&z(&[2, 3]), &z(&[4, 5]), &z(&[5])));
    refuses(&["linear", "binary"], &[], || backend.linear(&z(&[2, 3]), &z(&[3, 5]), &z(&[4])));
    let add = |sum: &[usize], b: &[usize]| backend.matmul_add(z(sum), &z(&[2, 3]), false, &z(b), false);
    refuses(&["matmul_add", "matmul"], &[], || add(&[2, 4], &[4, 4]));
    refuses(&["matmul_add", "axpy"], &[], || add(&[2, 5], &[3, 4]));
    let add = |sum: &[usize]| backend.conv2d_kernel_add(z(sum), &z(&[1, 4, 4, 2]), &z(&[1, 3, 3, 3]), PADDING);
    refuses(&["conv2d_kernel_add", "conv2d_kernel", "axpy"], &[], || add(&[4, 2, 2, 2]));
    refuses(&["conv2d_kernel_add", "conv2d_kernel"], &[], || add(&[3, 3, 2, 2]));
    refuses(&["dot", "binary"], &[], || backend.dot(&z(&[2, 3]), &z(&[2, 4])));
    refuses(&["dot_rows", "binary"], &[], || backend.dot_rows(&z(&[2, 3]), &z(&[2, 4])));

    let x = z(&[2, 3]);
    refuses(&["activation"], &[], || backend.activation(Activation::Tanh, None, &x, 3));
    refuses(&["activation"], &[], || backend.activation(Activation::LipSwish, None, &x, 0));
    let d = backend.activation(Activation::Tanh, None, &x, 2);
    let reverse = |d: &[B::Tensor], tangents: &[B::Tensor]| {
        backend.activation_reverse(Activation::Tanh, None, &x, d, tangents, x.clone(), vec![x.clone()])
    };
    refuses(&["activation_reverse"], &[], || reverse(&d, &[]));
    refuses(&["activation_reverse"], &[], || reverse(&d[..2], from_ref(&x)));
    refuses(&["activation_reverse", "binary"], &[], || reverse(&d, &[z(&[2, 2])]));

    let rule = Spline { bins: 4, bound: 3.0, sharpness: 1.0 };
    let (x, raw) = (&[2, 3][..], &[2, 32][..]);
    refuses(&["spline"], &[x, raw], || backend.spline(&rule, &z(x), &z(raw)));
    refuses(&["spline_inverse"], &[x, raw], || backend.spline_inverse(&rule, &z(x), &z(raw)));
    refuses(&["spline"], &[&[6], &[66]], || backend.spline(&rule, &z(&[6]), &z(&[66])));
    let reverse = |raw: &[usize], gy: &[usize], weights: &[usize]| {
        backend.spline_reverse(&rule, &z(x), &z(raw), &z(gy), &z(weights))
    };
    refuses(&["spline_reverse"], &[x, raw], || reverse(raw, x, &[2, 1]));
    refuses(&["spline_reverse"], &[x, &[3, 2]], || reverse(&[2, 33], &[3, 2], &[2, 1]));
    refuses(&["spline_reverse"], &[x, &[3, 1]], || reverse(&[2, 33], x, &[3, 1]));

    let told = &[2, 6][..];
    refuses(&["bounded_affine"], &[x, &[2, 5]], || backend.bounded_affine(3.0, &z(x), &z(&[2, 5])));
    refuses(&["bounded_affine"], &[x, &[3, 6]], || backend.bounded_affine(3.0, &z(x), &z(&[3, 6])));
    let reverse = |told: &[usize], gy: &[usize], weights: &[usize]| {
        backend.bounded_affine_reverse(3.0, &z(x), &z(told), &z(gy), &z(weights))
    };
    refuses(&["bounded_affine_reverse"], &[x, &[2, 5]], || reverse(&[2, 5], x, &[2, 1]));
    refuses(&["bounded_affine_reverse"], &[x, &[3, 2]], || reverse(told, &[3, 2], &[2, 1]));
    refuses(&["bounded_affine_reverse"], &[x, &[3, 1]], || reverse(told, x, &[3, 1]));
}
