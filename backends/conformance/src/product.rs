//! Matrix products and convolutions against their definitions, their accumulating forms, and ⟨Ax, y⟩ = ⟨x, Aᵀy⟩.
//!
//! The trace estimator and every gradient rest on the adjoints being exact ones: a convolution whose adjoint pads
//! differently gives a log det that no other test finds wrong.

use proptest::prelude::*;
use resflow_backend::{Activation, Backend, Binary, Padding};

use crate::draw::{Draw, check, download, extent, seed};
use crate::reference::Array;
use crate::tolerance::{ACTIVATION, assert_close, sum};

/// A product with rows, inner extent and columns, each operand transposed in memory where the flags say so.
#[derive(Debug, Clone)]
struct Product {
    size: [usize; 3],
    flags: [bool; 2],
    seed: u64,
}

impl Product {
    fn operands<B: Backend>(&self, draw: &mut Draw) -> [Array; 2] {
        let [m, k, n] = self.size;
        let [ta, tb] = self.flags;
        [
            draw.array::<B::Elem>(if ta { [k, m] } else { [m, k] }),
            draw.array::<B::Elem>(if tb { [n, k] } else { [k, n] }),
        ]
    }
}

/// Sizes of any ratio, and squares, whose transposes no check of shapes tells apart.
fn products() -> impl Strategy<Value = Product> {
    let size = prop_oneof![3 => [extent(20), extent(20), extent(20)], 1 => extent(20).prop_map(|n| [n; 3])];
    (size, any::<[bool; 2]>(), seed()).prop_map(|(size, flags, seed)| Product { size, flags, seed })
}

/// Sizes beyond the blocks of matrix kernels, and thin ones.
fn large_products() -> impl Iterator<Item = Product> {
    let sizes = [
        [65, 130, 67],
        [128, 64, 96],
        [1, 300, 1],
        [1, 37, 200],
        [200, 37, 1],
        [33, 1, 47],
        [500, 2, 128],
        [48, 48, 48],
        [130, 65, 9],
        [5, 260, 280],
        [41, 170, 205],
    ];
    sizes.into_iter().flat_map(|size| {
        (0..4).map(move |bits| Product { size, flags: [bits & 1 == 1, bits & 2 == 2], seed: size[0] as u64 + bits })
    })
}

fn matmul_case<B: Backend>(backend: &B, case: &Product) {
    let mut draw = Draw::new(case.seed);
    let [ta, tb] = case.flags;
    let [a, b] = case.operands::<B>(&mut draw);
    let [x, y] = [&a, &b].map(|x| draw.tensor(backend, x));
    let units = sum(case.size[1]);
    let (want, magnitude) = (a.matmul(ta, &b, tb), a.abs().matmul(ta, &b.abs(), tb));
    let got = backend.matmul(&x, ta, &y, tb);
    assert_close::<B::Elem>("matmul", &download(backend, &got), &want, &magnitude, units);

    let c = draw.array::<B::Elem>(want.shape);
    let sum = draw.tensor(backend, &c);
    let composed = backend.axpy(1.0, &got, sum.clone());
    let got = download(backend, &backend.matmul_add(sum, &x, ta, &y, tb));
    let (want, magnitude) = (want.zip(&c, |a, b| a + b), magnitude.zip(&c, |a, b| a + b.abs()));
    assert_close::<B::Elem>("matmul_add", &got, &want, &magnitude, units + 1.0);
    assert_close::<B::Elem>("matmul_add", &got, &download(backend, &composed), &magnitude, 2.0 * units + 2.0);
}

/// `matmul` and `matmul_add` with every combination of transposes.
pub fn matmul<B: Backend>(backend: &B) {
    check("matmul", products(), |case| matmul_case(backend, &case));
    large_products().for_each(|case| matmul_case(backend, &case));
}

fn linear_case<B: Backend>(backend: &B, [n, i, o]: [usize; 3], seed: u64) {
    let mut draw = Draw::new(seed);
    let (x, w, b) = (draw.array::<B::Elem>([n, i]), draw.array::<B::Elem>([i, o]), draw.array::<B::Elem>([o]));
    let [dx, dw, db] = [&x, &w, &b].map(|x| draw.tensor(backend, x));
    let got = download(backend, &backend.linear(&dx, &dw, &db));
    let want = x.matmul(false, &w, false).zip(&b, |a, b| a + b);
    let magnitude = x.abs().matmul(false, &w.abs(), false).zip(&b, |a, b| a + b.abs());
    let units = sum(i) + 1.0;
    assert_close::<B::Elem>("linear", &got, &want, &magnitude, units);
    let composed = download(backend, &backend.binary(Binary::Add, backend.matmul(&dx, false, &dw, false), &db));
    assert_close::<B::Elem>("linear", &got, &composed, &magnitude, 2.0 * units);
}

/// `linear` is a product and a broadcast sum.
pub fn linear<B: Backend>(backend: &B) {
    check("linear", products(), |case| linear_case(backend, case.size, case.seed));
    large_products().step_by(4).for_each(|case| linear_case(backend, case.size, case.seed));
}

/// `linear_activation` is `linear`, and the derivatives of an activation there.
pub fn linear_activation<B: Backend>(backend: &B) {
    let cases = (products(), 0..Activation::ALL.len(), 0usize..3);
    let run = |[n, i, o]: [usize; 3], seed: u64, f: Activation, order: usize| {
        let mut draw = Draw::new(seed);
        let (x, w, b) = (draw.array::<B::Elem>([n, i]), draw.array::<B::Elem>([i, o]), draw.array::<B::Elem>([o]));
        let [x, w, b] = [&x, &w, &b].map(|x| draw.tensor(backend, x));
        let slope = f.has_parameter().then(|| backend.full(0.75, [1].into()));
        let (y, got) = backend.linear_activation(&x, &w, &b, f, slope.as_ref(), order);
        let (want_y, want) = (backend.linear(&x, &w, &b), 2);
        let want = backend.activation(f, slope.as_ref(), &want_y, want);
        assert_eq!((y.is_some(), got.len()), (order == 2, order + 1), "linear_activation of order {order}");
        // the product may be rounded otherwise: let y move by so much, and each derivative by its slope, at most 8 here
        let host = download(backend, &want_y);
        let moved = host.map(|y| 1.0 + y.abs());
        let units = 4.0 * sum(i) * (1.0 + i as f64).sqrt();
        if let Some(y) = y {
            assert_close::<B::Elem>("linear_activation, y", &download(backend, &y), &host, &moved, units);
        }
        for (k, (got, want)) in got.iter().zip(&want).enumerate() {
            let what = format!("linear_activation {f:?}, derivative {k}");
            let size = if f == Activation::Sin { moved.map(|m| 300.0 * m) } else { moved.map(|m| 8.0 * m) };
            assert_close::<B::Elem>(
                &what,
                &download(backend, got),
                &download(backend, want),
                &size,
                units + ACTIVATION,
            );
        }
    };
    check("linear_activation", cases, |(case, f, order)| run(case.size, case.seed, Activation::ALL[f], order));
    for (k, case) in large_products().step_by(4).enumerate() {
        run(case.size, case.seed, [Activation::LipSwish, Activation::Elu, Activation::Tanh][k % 3], k % 3);
    }
}

/// ⟨Wx, y⟩ = ⟨x, Wᵀy⟩, with transposes by flag.
pub fn matmul_adjoint<B: Backend>(backend: &B) {
    check("matmul adjoint", products(), |case| {
        let mut draw = Draw::new(case.seed);
        let [m, k, _] = case.size;
        let (w, x, y) = (draw.array::<B::Elem>([m, k]), draw.array::<B::Elem>([k, 1]), draw.array::<B::Elem>([m, 1]));
        let [dw, dx, dy] = [&w, &x, &y].map(|x| draw.tensor(backend, x));
        let forward = download(backend, &backend.dot(&backend.matmul(&dw, false, &dx, false), &dy));
        let back = download(backend, &backend.dot(&dx, &backend.matmul(&dw, true, &dy, false)));
        // yᵀ W, the same numbers as a row
        let row = backend.matmul(&dy, true, &dw, false);
        let row = download(backend, &backend.dot(&row, &backend.reshape(&dx, [1, k].into())));
        let terms = w.abs().matmul(false, &x.abs(), false).zip(&y, |a, b| a * b.abs());
        let magnitude = Array::new([1], vec![terms.data.iter().sum()]);
        let units = 2.0 * (sum(m) + sum(k));
        assert_close::<B::Elem>("matmul adjoint", &back, &forward, &magnitude, units);
        assert_close::<B::Elem>("matmul adjoint", &row, &forward, &magnitude, units);
    });
}

/// A convolution whose kernel fits.
#[derive(Debug, Clone)]
struct Convolution {
    samples: usize,
    image: [usize; 2],
    channels: [usize; 2],
    kernel: [usize; 2],
    padding: Padding,
    seed: u64,
}

impl Convolution {
    fn new(samples: usize, image: [usize; 2], channels: [usize; 2], kernel: [usize; 2], pad: [usize; 2]) -> Self {
        Self { samples, image, channels, kernel, padding: Padding { height: pad[0], width: pad[1] }, seed: 7 }
    }

    /// x, the kernel and gy, whose shapes say everything else.
    fn operands<B: Backend>(&self, draw: &mut Draw) -> [Array; 3] {
        let [c, o] = self.channels;
        let out = self.padding.output(self.image, self.kernel).expect("cases are filtered");
        [
            draw.array::<B::Elem>([self.samples, self.image[0], self.image[1], c]),
            draw.array::<B::Elem>([o, self.kernel[0], self.kernel[1], c]),
            draw.array::<B::Elem>([self.samples, out[0], out[1], o]),
        ]
    }

    /// The numbers of terms of one element of `conv2d`, `conv2d_input` and `conv2d_kernel`.
    fn terms(&self) -> [usize; 3] {
        let [h, w] = self.padding.output(self.image, self.kernel).expect("cases are filtered");
        let taps = self.kernel[0] * self.kernel[1];
        [taps * self.channels[0], taps * self.channels[1], self.samples * h * w]
    }
}

/// Kernels of even and odd size, padding beyond the kernel, images smaller than the kernel, channels of any ratio.
fn convolutions() -> impl Strategy<Value = Convolution> {
    let kernel = prop_oneof![2 => Just([1, 1]), 3 => Just([3, 3]), 5 => [1usize..=4, 1usize..=4]];
    let channels = prop_oneof![3 => [extent(5), extent(5)], 1 => [extent(40), extent(3)], 1 => [extent(3), extent(40)]];
    (extent(3), [extent(7), extent(7)], channels, kernel, [0usize..3, 0usize..3], seed())
        .prop_map(|(n, image, channels, kernel, pad, seed)| Convolution {
            seed,
            ..Convolution::new(n, image, channels, kernel, pad)
        })
        .prop_filter("the kernel fits", |case| case.padding.output(case.image, case.kernel).is_some())
}

/// The sizes of real blocks: wide 1×1 and 3×3 kernels, images with odd extents, a 7×7 kernel, and kernels between few
/// and many channels in either direction, on which backends may take the patches of either side.
fn large_convolutions() -> [Convolution; 18] {
    [
        Convolution::new(2, [17, 19], [9, 11], [3, 3], [1, 1]),
        Convolution::new(3, [12, 13], [16, 33], [1, 1], [0, 0]),
        Convolution::new(1, [28, 28], [1, 16], [3, 3], [1, 1]),
        Convolution::new(1, [9, 30], [17, 3], [3, 5], [1, 2]),
        Convolution::new(5, [8, 8], [12, 12], [3, 3], [1, 1]),
        Convolution::new(2, [6, 7], [3, 4], [7, 7], [3, 3]),
        Convolution::new(1, [28, 28], [16, 1], [3, 3], [1, 1]),
        Convolution::new(3, [7, 9], [64, 3], [3, 3], [1, 1]),
        Convolution::new(2, [7, 7], [67, 12], [3, 3], [1, 1]),
        Convolution::new(2, [7, 7], [17, 130], [3, 3], [1, 1]),
        // one pixel, and images smaller than the kernel
        Convolution::new(4, [1, 1], [40, 2], [3, 3], [1, 1]),
        Convolution::new(4, [1, 1], [2, 40], [3, 3], [1, 1]),
        Convolution::new(1, [2, 1], [33, 5], [5, 4], [2, 3]),
        // without padding, and with more of it than the kernel reaches
        Convolution::new(2, [9, 8], [35, 2], [3, 2], [0, 0]),
        Convolution::new(2, [5, 6], [35, 4], [4, 4], [0, 0]),
        Convolution::new(2, [4, 5], [36, 2], [2, 3], [4, 5]),
        Convolution::new(2, [4, 5], [2, 36], [1, 3], [3, 2]),
        // kernels without a square
        Convolution::new(1, [11, 10], [34, 3], [5, 2], [2, 1]),
    ]
}

fn convolution_case<B: Backend>(backend: &B, case: &Convolution) {
    let mut draw = Draw::new(case.seed);
    let [x, k, gy] = case.operands::<B>(&mut draw);
    let [dx, dk, dgy] = [&x, &k, &gy].map(|x| draw.tensor(backend, x));
    let (pad, [forward, input, kernel]) = (case.padding, case.terms());

    let got = download(backend, &backend.conv2d(&dx, &dk, pad));
    let (want, magnitude) = (x.conv2d(&k, pad), x.abs().conv2d(&k.abs(), pad));
    assert_close::<B::Elem>("conv2d", &got, &want, &magnitude, sum(forward));

    let got = download(backend, &backend.conv2d_input(&dgy, &dk, pad, case.image));
    let want = gy.conv2d_input(&k, pad, case.image);
    let magnitude = gy.abs().conv2d_input(&k.abs(), pad, case.image);
    assert_close::<B::Elem>("conv2d_input", &got, &want, &magnitude, sum(input));

    let got = backend.conv2d_kernel(&dx, &dgy, pad, case.kernel);
    let want = x.conv2d_kernel(&gy, pad, case.kernel);
    let magnitude = x.abs().conv2d_kernel(&gy.abs(), pad, case.kernel);
    assert_close::<B::Elem>("conv2d_kernel", &download(backend, &got), &want, &magnitude, sum(kernel));

    let start = draw.array::<B::Elem>(want.shape);
    let device = draw.tensor(backend, &start);
    let composed = download(backend, &backend.axpy(1.0, &got, device.clone()));
    let got = download(backend, &backend.conv2d_kernel_add(device, &dx, &dgy, pad));
    let (want, magnitude) = (want.zip(&start, |a, b| a + b), magnitude.zip(&start, |a, b| a + b.abs()));
    let units = sum(kernel) + 1.0;
    assert_close::<B::Elem>("conv2d_kernel_add", &got, &want, &magnitude, units);
    assert_close::<B::Elem>("conv2d_kernel_add", &got, &composed, &magnitude, 2.0 * units);
}

/// `conv2d`, both adjoints and the accumulating form.
pub fn convolution<B: Backend>(backend: &B) {
    check("conv2d", convolutions(), |case| convolution_case(backend, &case));
    for case in large_convolutions() {
        convolution_case(backend, &case);
    }
}

/// ⟨conv(x, k), gy⟩ = ⟨x, conv_input(gy, k)⟩ = ⟨k, conv_kernel(x, gy)⟩.
pub fn convolution_adjoint<B: Backend>(backend: &B) {
    check("conv2d adjoints", convolutions(), |case| {
        let mut draw = Draw::new(case.seed);
        let [x, k, gy] = case.operands::<B>(&mut draw);
        let [dx, dk, dgy] = [&x, &k, &gy].map(|x| draw.tensor(backend, x));
        let pad = case.padding;
        let forward = download(backend, &backend.dot(&backend.conv2d(&dx, &dk, pad), &dgy));
        let input = download(backend, &backend.dot(&dx, &backend.conv2d_input(&dgy, &dk, pad, case.image)));
        let kernel = download(backend, &backend.dot(&dk, &backend.conv2d_kernel(&dx, &dgy, pad, case.kernel)));
        let terms = x.abs().conv2d(&k.abs(), pad).zip(&gy, |a, b| a * b.abs());
        let magnitude = Array::new([1], vec![terms.data.iter().sum()]);
        let units = 2.0 * (sum(terms.data.len()) + case.terms().into_iter().map(sum).sum::<f64>());
        assert_close::<B::Elem>("conv2d_input as an adjoint", &input, &forward, &magnitude, units);
        assert_close::<B::Elem>("conv2d_kernel as an adjoint", &kernel, &forward, &magnitude, units);
    });
}
