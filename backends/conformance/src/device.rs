//! The device itself: transfer, constants, tasks, hints, and batches of no rows.

use std::slice::from_ref;

use resflow_backend::{Activation, Backend, Binary, Key, Noise, Over, Padding, Reduce, SeriesState, TermWeight, Unary};

use crate::draw::{Draw, check, download, seed, shape, upload};
use crate::elementwise::special;
use crate::reference::Array;
use crate::tolerance::{assert_equal, assert_same_bits};

/// A tensor comes down as it went up, bit for bit, special values and empty tensors included.
pub fn transfer<B: Backend>(backend: &B) {
    check("transfer", (shape(), seed()), |(shape, seed)| {
        let x = Draw::new(seed).wide::<B::Elem>(shape);
        let device = upload(backend, &x);
        assert_eq!(backend.shape(&device), shape, "shape");
        assert_same_bits("download", &download(backend, &device), &x);
        assert_same_bits("download of a clone", &download(backend, &device.clone()), &x);
    });
    let x = special::<B::Elem>();
    let got = download(backend, &upload(backend, &x));
    assert_equal("download", &got, &x);
    // all but NaN, whose payload may change, keep their sign
    for (got, want) in got.data.iter().zip(&x.data).filter(|(_, x)| !x.is_nan()) {
        assert_eq!(got.to_bits(), want.to_bits(), "download of {want:e}");
    }
    backend.synchronize().expect("the device is sound");
}

/// `full` rounds its value to the element.
pub fn full<B: Backend>(backend: &B) {
    check("full", (shape(), 0usize..8), |(shape, which)| {
        let value = [0.0, 1.0, -0.1, 1e-30, 3e7, f64::INFINITY, f64::NEG_INFINITY, f64::NAN][which];
        let want = Array::full(shape, value).rounded::<B::Elem>();
        assert_equal("full", &download(backend, &backend.full(value, shape)), &want);
    });
}

/// `run` returns results in order, and its tasks compute what they compute alone.
pub fn run<B: Backend>(backend: &B) {
    for tasks in [0, 1, 2, 17, 100] {
        assert_eq!(backend.run(tasks, |i| i * i), (0..tasks).map(|i| i * i).collect::<Vec<_>>(), "run of {tasks}");
    }
    let mut draw = Draw::new(8);
    let (x, w) = (draw.array::<B::Elem>([40, 6]), draw.array::<B::Elem>([6, 5]));
    let (x, w) = (upload(backend, &x), upload(backend, &w));
    // shards of shared tensors; each result is dropped or kept by another thread than made it
    let task = |i: usize| {
        let shard = backend.narrow(&x, 0, 4 * i, 4);
        let product = backend.matmul(&backend.affine(shard, 2.0, 1.0), false, &w, false);
        let noise = backend.noise(Key::new(1), Noise::Normal, 20 * i as u64, [4, 5].into());
        backend.binary(Binary::Mul, product, &noise)
    };
    for _ in 0..10 {
        for (i, got) in backend.run(10, task).iter().enumerate() {
            assert_same_bits("run", &download(backend, got), &download(backend, &task(i)));
        }
    }
}

/// Hints answer always the same and usefully.
pub fn hints<B: Backend>(backend: &B) {
    assert!(!backend.name().is_empty(), "name: a backend has one");
    assert!(backend.poll_interval() > 0, "poll_interval: at least 1");
    for bytes in [0, 1, 100, 1 << 16, 1 << 40] {
        let rows = backend.shard_rows(bytes);
        assert!(rows > 0, "shard_rows: at least one row");
        assert_eq!(rows, backend.shard_rows(bytes), "shard_rows: a function of its argument");
        assert!(backend.run(4, |_| backend.shard_rows(bytes)).iter().all(|&r| r == rows), "shard_rows: in tasks too");
    }
}

/// `known_zero` never says so of a tensor that is not.
pub fn known_zero<B: Backend>(backend: &B) {
    let zero = || backend.full(0.0, [3, 3].into());
    let one = upload(backend, &Array::full([3, 3], 1.0));
    let sparse = upload(backend, &Array::from_fn([3, 3], |i| f64::from(u8::from(i == [2, 2]))));
    let nan = upload(backend, &Array::full([3, 3], f64::NAN));
    let tensors = [
        zero(),
        backend.full(-0.0, [3, 3].into()),
        sparse.clone(),
        backend.affine(zero(), 2.0, 1.0),
        backend.axpy(1.0, &one, zero()),
        backend.axpy(0.5, &zero(), one.clone()),
        backend.binary(Binary::Add, zero(), &one),
        backend.binary(Binary::LessEqual, zero(), &one),
        backend.binary(Binary::Mul, zero(), &nan),
        backend.unary(Unary::Exp, zero()),
        backend.matmul(&zero(), false, &nan, false),
        backend.matmul_add(zero(), &one, false, &sparse, false),
        backend.concat(&[&zero(), &one], 0),
        backend.narrow(&sparse, 0, 2, 1),
        backend.narrow(&backend.concat(&[&zero(), &one], 0), 0, 3, 3),
        backend.select(&sparse, &one, &zero()),
        backend.activation(Activation::Softplus, None, &zero(), 0).remove(0),
        backend.reduce(Reduce::Max, Over::All, &backend.full(0.0, [0].into())),
    ];
    for (i, x) in tensors.iter().enumerate() {
        let zero = download(backend, x).data.iter().all(|&x| x == 0.0);
        assert!(zero || !backend.known_zero(x), "known_zero: tensor {i} is not zero");
    }
}

/// Batches of no rows go through everything and keep their shapes.
pub fn empty_batches<B: Backend>(backend: &B) {
    let z = |shape: &[usize]| backend.full(0.0, shape.into());
    let is = |what: &str, x: &B::Tensor, shape: &[usize]| {
        assert_eq!(&*backend.shape(x), shape, "{what} of an empty batch");
        assert_eq!(download(backend, x).data.len(), shape.iter().product::<usize>(), "{what} of an empty batch");
    };
    let (x, w, b) = (z(&[0, 3]), z(&[3, 2]), z(&[2]));
    is("upload", &backend.upload(&[], [0, 3].into()), &[0, 3]);
    is("noise", &backend.noise(Key::new(1), Noise::Normal, 3, [0, 3].into()), &[0, 3]);
    is("unary", &backend.unary(Unary::Exp, x.clone()), &[0, 3]);
    is("binary", &backend.binary(Binary::Add, x.clone(), &z(&[3])), &[0, 3]);
    is("axpy", &backend.axpy(1.0, &x, x.clone()), &[0, 3]);
    is("select", &backend.select(&z(&[0, 1]), &x, &x), &[0, 3]);
    is("linear", &backend.linear(&x, &w, &b), &[0, 2]);
    is("matmul", &backend.matmul(&x, true, &z(&[0, 2]), false), &[3, 2]);
    is("dot_rows", &backend.dot_rows(&x, &x), &[0, 1]);
    is("dot", &backend.dot(&x, &x), &[1]);
    is("take_rows", &backend.take_rows(&z(&[4, 3]), &[]), &[0, 3]);
    is("concat", &backend.concat(&[&x, &z(&[2, 3])], 0), &[2, 3]);
    is("permute", &backend.permute(&x, &[1, 0]), &[3, 0]);
    is("narrow", &backend.narrow(&x, 1, 1, 2), &[0, 2]);
    is("reshape", &backend.reshape(&x, [0, 7, 5].into()), &[0, 7, 5]);

    let (image, kernel, pad) = (z(&[0, 4, 5, 3]), z(&[2, 3, 3, 3]), Padding::same([3, 3]));
    let y = backend.conv2d(&image, &kernel, pad);
    is("conv2d", &y, &[0, 4, 5, 2]);
    is("conv2d_input", &backend.conv2d_input(&y, &kernel, pad, [4, 5]), &[0, 4, 5, 3]);
    is("conv2d_kernel", &backend.conv2d_kernel(&image, &y, pad, [3, 3]), &[2, 3, 3, 3]);
    let (log_det, inverse) = backend.lu(&z(&[0, 3, 3]));
    is("lu", &log_det, &[0, 1]);
    is("lu", &inverse, &[0, 3, 3]);

    let one = backend.full(1.0, [1].into());
    let d = backend.activation(Activation::LipSwish, Some(&one), &image, 2);
    for d in &d {
        is("activation", d, &[0, 4, 5, 3]);
    }
    let f = Activation::LipSwish;
    let g = backend.activation_reverse(f, Some(&one), &image, &d, from_ref(&image), image.clone(), vec![image.clone()]);
    is("activation_reverse", &g.gx, &[0, 4, 5, 3]);
    let parameter = download(backend, &g.parameter.expect("activation_reverse: LipSwish has a parameter"));
    assert_eq!(parameter.data, [0.0], "activation_reverse: the parameter's gradient of an empty batch");
    let state = SeriesState { power: image.clone(), neumann: Some(image.clone()), value: z(&[0, 1]) };
    for weight in [TermWeight::Batch(1.0), TermWeight::PerRow(&z(&[0, 1]))] {
        let state = backend.series_term(1, weight, &image, 0.1, state.clone());
        is("series_term", &state.power, &[0, 4, 5, 3]);
        is("series_term", &state.value, &[0, 1]);
    }

    // rows of no elements
    let (x, value) = (z(&[3, 0]), z(&[3, 1]));
    is("dot_rows", &backend.dot_rows(&x, &x), &[3, 1]);
    let state = SeriesState { power: x.clone(), neumann: Some(x.clone()), value };
    is("series_term", &backend.series_term(1, TermWeight::Batch(1.0), &x, 0.1, state).value, &[3, 1]);
}
