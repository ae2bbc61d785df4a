//! The passes through a net as one operation: forward, tangents, pullback, against plain loops in double precision and against
//! their compositions.
//!
//! What a forward pass keeps is checked layer by layer, each from what entered it, so that its tolerance is that of one
//! operation; a pullback is linear in its cotangents and is checked as a whole.

use proptest::prelude::*;
use resflow_backend::{
    Activation, Backend, Element, Net, NetForward, NetLayer, Over, Padding, Reduce, Shape, composed,
};

use crate::activation::{magnitudes, parameter};
use crate::draw::{Draw, check_some, download, seed};
use crate::net::{LARGE, chains, large_chains, taps};
use crate::reference::Array;
use crate::tolerance::{ACTIVATION, AFFINE, assert_close, assert_equal, sum};

/// The cases of each property: a device may compile kernels for every net.
const NETS: u32 = 24;

/// A layer on the host.
#[derive(Debug)]
enum Layer {
    /// The weight `[o, kh, kw, i]` and the bias `[o]`; a matrix if it has one tap.
    Affine(Array, Array),
    /// The function and its b.
    Activation(Activation, f64),
}

/// A net of such layers, which keep the magnitude of what passes.
#[derive(Debug)]
struct Passes {
    layers: Vec<Layer>,
}

/// The padding that keeps the size.
fn padding(kernel: &Array) -> Padding {
    Padding::same([kernel.shape[1], kernel.shape[2]])
}

/// Rows as images of one pixel.
fn pixels(x: &Array) -> Array {
    if x.shape.rank() == 4 { x.clone() } else { x.reshape([x.shape[0], 1, 1, x.shape[1]]) }
}

/// What has become of images of one pixel, as rows if this shape is of rows.
fn like(x: &Array, shape: Shape) -> Array {
    x.reshape(shape.with_channels(x.shape.channels()))
}

impl Passes {
    fn new<E: Element>(
        draw: &mut Draw,
        shape: Shape,
        widths: &[usize],
        [leading, trailing]: [bool; 2],
        functions: &[Activation],
    ) -> Self {
        let mut functions = functions.iter().copied().cycle();
        let mut activation = |draw: &mut Draw| {
            let b = draw.uniform::<E>([1], 0.5, 2.0).data[0];
            Layer::Activation(functions.next().expect("at least one"), b)
        };
        let mut layers = Vec::new();
        let ends: Vec<usize> = [shape.channels()].iter().chain(widths).chain(&[shape.channels()]).copied().collect();
        for (l, pair) in ends.windows(2).enumerate() {
            if l > 0 || leading {
                layers.push(activation(draw));
            }
            let taps = if l == 0 || l + 2 == ends.len() { taps(shape) } else { [1, 1] };
            let terms = taps[0] * taps[1] * pair[0];
            let weight = draw.array::<E>([pair[1], taps[0], taps[1], pair[0]]);
            let weight = weight.map(|w| w / (terms as f64).sqrt()).rounded::<E>();
            layers.push(Layer::Affine(weight, draw.uniform::<E>([pair[1]], -0.5, 0.5)));
        }
        if trailing {
            layers.push(activation(draw));
        }
        Self { layers }
    }

    fn on<B: Backend>(&self, backend: &B, draw: &mut Draw) -> Net<B::Tensor> {
        let layers = self.layers.iter().map(|layer| match layer {
            Layer::Affine(w, bias) if w.shape[1] * w.shape[2] == 1 => {
                let matrix = w.reshape([w.shape[0], w.shape[3]]);
                NetLayer::Linear {
                    weight: draw.tensor(backend, &matrix),
                    transposed: draw.tensor(backend, &matrix.permute(&[1, 0])),
                    bias: draw.tensor(backend, bias),
                }
            }
            Layer::Affine(w, bias) => NetLayer::Convolution {
                kernel: draw.tensor(backend, w),
                bias: draw.tensor(backend, bias),
                padding: padding(w),
            },
            Layer::Activation(f, b) => NetLayer::Activation { function: *f, parameter: parameter(backend, *f, *b) },
        });
        Net { layers: layers.collect() }
    }

    /// The units of one product.
    fn units(&self) -> f64 {
        let of = |layer: &Layer| match layer {
            Layer::Affine(w, _) => sum(w.shape.elements() / w.shape[0].min(w.shape[3]).max(1)) + AFFINE,
            Layer::Activation(..) => ACTIVATION,
        };
        self.layers.iter().map(of).sum()
    }
}

/// The result of an affine layer, or the magnitude of its terms.
fn affine(w: &Array, bias: Option<&Array>, x: &Array, absolute: bool) -> Array {
    let of = |a: &Array| if absolute { a.abs() } else { a.clone() };
    let mut y = of(&pixels(x)).conv2d(&of(w), padding(w));
    let channels = y.shape.channels();
    if let Some(bias) = bias {
        y.data.iter_mut().enumerate().for_each(|(e, y)| *y += of(bias).data[e % channels]);
    }
    like(&y, x.shape)
}

/// What was kept, on the host.
fn fetch<B: Backend>(backend: &B, forward: &NetForward<B::Tensor>) -> Vec<Vec<Array>> {
    forward.kept.iter().map(|kept| kept.iter().map(|x| download(backend, x)).collect()).collect()
}

/// Asserts that each layer did what it does with what entered it, and gave it to the next.
fn check_forward<B: Backend>(passes: &Passes, x: &Array, y: &Array, kept: &[Vec<Array>]) {
    assert_eq!(kept.len(), passes.layers.len(), "net_forward: an entry for each layer");
    for (l, (layer, own)) in passes.layers.iter().zip(kept).enumerate() {
        assert_eq!(own.len(), if matches!(layer, Layer::Affine(..)) { 1 } else { 4 }, "net_forward: what is kept");
        if l == 0 {
            assert_equal("net_forward: the input", &own[0], x);
        }
        let next = kept.get(l + 1).map_or(y, |next| &next[0]);
        match layer {
            Layer::Affine(w, bias) => {
                let (want, size) = (affine(w, Some(bias), &own[0], false), affine(w, Some(bias), &own[0], true));
                let units = sum(w.shape.elements() / w.shape[0].max(1) + 1) + AFFINE;
                assert_close::<B::Elem>("net_forward, an affine layer", next, &want, &size, units);
            }
            Layer::Activation(f, b) => {
                for k in 0..3 {
                    let want = own[0].map(|x| f.derivatives(x, *b)[k]);
                    let size = own[0].map(|x| magnitudes::<B::Elem>(*f, x, *b)[k]);
                    let what = format!("net_forward, derivative {k} of {f:?}");
                    assert_close::<B::Elem>(&what, &own[1 + k], &want, &size, ACTIVATION);
                }
                assert_equal("net_forward, a value", next, &own[1]);
            }
        }
    }
}

fn functions() -> impl Strategy<Value = Vec<Activation>> {
    proptest::collection::vec(proptest::sample::select(&Activation::ALL[..]), 1..4)
}

/// `net_forward` for every order.
pub fn net_forward<B: Backend>(backend: &B) {
    forward_of(backend, NETS, chains());
}

/// The same of images and rows that are larger than a tile.
pub fn large_net_forward<B: Backend>(backend: &B) {
    forward_of(backend, LARGE, large_chains());
}

fn forward_of<B: Backend>(backend: &B, cases: u32, chains: impl Strategy<Value = (Shape, Vec<usize>, bool, bool)>) {
    check_some(
        "net_forward",
        cases,
        (chains, functions(), seed()),
        |((shape, widths, leading, trailing), functions, seed)| {
            let mut draw = Draw::new(seed);
            let passes = Passes::new::<B::Elem>(&mut draw, shape, &widths, [leading, trailing], &functions);
            let host = draw.array::<B::Elem>(shape);
            let (net, x) = (passes.on(backend, &mut draw), draw.tensor(backend, &host));
            for order in [2, 1, 0] {
                let composition = composed::net_forward(backend, &net, &x, order);
                for got in [backend.net_forward(&net, &x, order), composition] {
                    let (y, kept) = (download(backend, &got.y), fetch(backend, &got));
                    if order == 2 {
                        check_forward::<B>(&passes, &host, &y, &kept);
                        continue;
                    }
                    // the numbers of order 2, up to what may be added in another order
                    let whole = composed::net_forward(backend, &net, &x, 2);
                    let same = |what: &str, got: &Array, want: &Array, factor: f64| {
                        let size = want.map(|w| factor * (4.0 + w.abs()));
                        assert_close::<B::Elem>(what, got, want, &size, 4.0 * passes.units());
                    };
                    same("net_forward, y", &y, &download(backend, &whole.y), 1.0);
                    for (own, all) in kept.iter().zip(fetch(backend, &whole)) {
                        let slopes = usize::from(order == 1 && all.len() == 4);
                        assert_eq!(own.len(), slopes, "net_forward: what is kept for order {order}");
                        if let [slope] = &own[..] {
                            same("net_forward, slopes", slope, &all[2], 8.0);
                        }
                    }
                }
            }
        },
    );
}

/// `net_tangents` and `net_jvp`.
pub fn net_tangents<B: Backend>(backend: &B) {
    tangents_of(backend, NETS, chains());
}

/// The same of images and rows that are larger than a tile.
pub fn large_net_tangents<B: Backend>(backend: &B) {
    tangents_of(backend, LARGE, large_chains());
}

fn tangents_of<B: Backend>(backend: &B, cases: u32, chains: impl Strategy<Value = (Shape, Vec<usize>, bool, bool)>) {
    check_some(
        "net_tangents",
        cases,
        (chains, functions(), seed()),
        |((shape, widths, leading, trailing), functions, seed)| {
            let mut draw = Draw::new(seed);
            let passes = Passes::new::<B::Elem>(&mut draw, shape, &widths, [leading, trailing], &functions);
            let (host, dx) = (draw.array::<B::Elem>(shape), draw.array::<B::Elem>(shape));
            let (net, x) = (passes.on(backend, &mut draw), draw.tensor(backend, &host));
            let forward = backend.net_forward(&net, &x, 1);
            let kept = fetch(backend, &forward);
            let slopes: Vec<_> = forward.kept.iter().flatten().collect();
            let device = draw.tensor(backend, &dx);
            let (dy, with_end) = backend.net_jvp(&net, &slopes, &device);
            let (composed_dy, composed) = composed::net_jvp(backend, &net, &slopes, &device);
            let alone = backend.net_tangents(&net, &slopes, &device);
            for (tangents, dy) in [(with_end, Some(dy)), (composed, Some(composed_dy)), (alone, None)] {
                let mut tangents: Vec<Array> = tangents.iter().map(|t| download(backend, t)).collect();
                assert_eq!(tangents.len(), passes.layers.len(), "net_tangents: one for each layer");
                assert_equal("net_tangents: the first", &tangents[0], &dx);
                tangents.extend(dy.map(|dy| download(backend, &dy)));
                for (l, pair) in tangents.windows(2).enumerate() {
                    let (want, size, units) = match &passes.layers[l] {
                        Layer::Affine(w, _) => {
                            let units = sum(w.shape.elements() / w.shape[0].max(1)) + AFFINE;
                            (affine(w, None, &pair[0], false), affine(w, None, &pair[0], true), units)
                        }
                        Layer::Activation(..) => {
                            let want = pair[0].zip(&kept[l][0], |dx, slope| dx * slope);
                            (want.clone(), want.abs(), AFFINE)
                        }
                    };
                    assert_close::<B::Elem>("net_tangents", &pair[1], &want, &size, units);
                }
            }
        },
    );
}

/// The cotangents and gradients of a pullback on the host; with `absolute` the magnitudes of their terms.
struct Pulled {
    g: Vec<Array>,
    grads: Vec<Array>,
}

fn pull_back<E: Element>(
    passes: &Passes,
    kept: &[Vec<Array>],
    tangents: &[Vec<Array>],
    cotangents: &[Array],
    absolute: bool,
) -> Pulled {
    let of = |a: &Array| if absolute { a.abs() } else { a.clone() };
    let mut g: Vec<Array> = cotangents.iter().map(of).collect();
    let mut grads = Vec::new();
    for (l, layer) in passes.layers.iter().enumerate().rev() {
        match layer {
            Layer::Affine(w, _) => {
                let image = |x: &Array| pixels(&of(x));
                let inputs = [&kept[l][0]].into_iter().chain(tangents.iter().map(|t| &t[l]));
                let each = g
                    .iter()
                    .zip(inputs)
                    .map(|(g, input)| image(input).conv2d_kernel(&pixels(g), padding(w), [w.shape[1], w.shape[2]]));
                let weight = each.reduce(|a, b| a.zip(&b, |a, b| a + b)).expect("gy is there");
                grads.push(g[0].reduce(Reduce::Sum, Over::Channel));
                grads.push(if w.shape[1] * w.shape[2] == 1 {
                    weight.reshape([w.shape[0], w.shape[3]])
                } else {
                    weight
                });
                for g in &mut g {
                    let images = pixels(g);
                    let size = [images.shape[1], images.shape[2]];
                    *g = like(&images.conv2d_input(&of(w), padding(w), size), g.shape);
                }
            }
            Layer::Activation(f, b) => {
                let mut own = 0.0;
                for e in 0..g[0].data.len() {
                    let at = |k: usize| kept[l][k].data[e];
                    let x = if absolute { at(0).abs() } else { at(0) };
                    let [y, d1, d2] = if absolute { magnitudes::<E>(*f, at(0), *b) } else { [at(1), at(2), at(3)] };
                    let mut crossed = 0.0;
                    for (g, t) in g[1..].iter_mut().zip(tangents) {
                        crossed += g.data[e] * of(&t[l]).data[e];
                        g.data[e] *= d1;
                    }
                    let gy = g[0].data[e];
                    own += gy * if absolute { x * d1 + y } else { x * d1 - y } + crossed * x * d2;
                    g[0].data[e] = gy * d1 + crossed * d2;
                }
                if f.has_parameter() {
                    grads.push(Array::new([1], vec![own / b]));
                }
            }
        }
    }
    grads.reverse();
    Pulled { g, grads }
}

/// `net_pullback` with 0 to 2 tangents, with and without gradients so far.
pub fn net_pullback<B: Backend>(backend: &B) {
    pullback_of(backend, NETS, chains());
}

/// The same of images and rows that are larger than a tile.
pub fn large_net_pullback<B: Backend>(backend: &B) {
    pullback_of(backend, LARGE, large_chains());
}

fn pullback_of<B: Backend>(backend: &B, cases: u32, chains: impl Strategy<Value = (Shape, Vec<usize>, bool, bool)>) {
    let flags = (0usize..3, any::<bool>());
    check_some(
        "net_pullback",
        cases,
        (chains, functions(), flags, seed()),
        |(chain, functions, (count, begun), seed)| {
            let ((shape, widths, leading, trailing), mut draw) = (chain, Draw::new(seed));
            let passes = Passes::new::<B::Elem>(&mut draw, shape, &widths, [leading, trailing], &functions);
            let x = draw.array::<B::Elem>(shape);
            let (net, x) = (passes.on(backend, &mut draw), draw.tensor(backend, &x));
            let forward = backend.net_forward(&net, &x, 2);
            let slopes: Vec<_> = forward.kept.iter().filter(|k| k.len() == 4).map(|k| &k[2]).collect();
            let tangents: Vec<_> = (0..count)
                .map(|_| {
                    let dx = draw.array::<B::Elem>(shape);
                    let dx = draw.tensor(backend, &dx);
                    backend.net_tangents(&net, &slopes, &dx)
                })
                .collect();
            let cotangents: Vec<Array> = (0..=count).map(|_| draw.array::<B::Elem>(shape)).collect();

            let kept = fetch(backend, &forward);
            let on_host: Vec<Vec<Array>> =
                tangents.iter().map(|t| t.iter().map(|x| download(backend, x)).collect()).collect();
            let want = pull_back::<B::Elem>(&passes, &kept, &on_host, &cotangents, false);
            let size = pull_back::<B::Elem>(&passes, &kept, &on_host, &cotangents, true);
            let so_far: Vec<Option<Array>> =
                want.grads.iter().map(|g| begun.then(|| draw.array::<B::Elem>(g.shape))).collect();

            let borrowed: Vec<_> = forward.kept.iter().map(Vec::as_slice).collect();
            let entering: Vec<Vec<_>> = tangents.iter().map(|t| t.iter().collect()).collect();
            let units = 2.0 * passes.units() + sum(shape.elements());
            for overridden in [true, false] {
                let mut grads: Vec<_> = so_far.iter().map(|g| g.as_ref().map(|g| draw.tensor(backend, g))).collect();
                let mut on_device: Vec<_> = cotangents.iter().map(|g| draw.tensor(backend, g)).collect();
                let gy = on_device.remove(0);
                let (gx, gdx) = if overridden {
                    backend.net_pullback(&net, &borrowed, &entering, gy, on_device, &mut grads)
                } else {
                    composed::net_pullback(backend, &net, &borrowed, &entering, gy, on_device, &mut grads)
                };
                assert_eq!(gdx.len(), count, "net_pullback: a cotangent for each tangent");
                for (at, got) in [&gx].into_iter().chain(&gdx).enumerate() {
                    let what = format!("net_pullback, cotangent {at}");
                    assert_close::<B::Elem>(&what, &download(backend, got), &want.g[at], &size.g[at], units);
                }
                for (at, got) in grads.iter().enumerate() {
                    let (mut want, mut size) = (want.grads[at].clone(), size.grads[at].clone());
                    if let Some(so_far) = &so_far[at] {
                        (want, size) = (want.zip(so_far, |a, b| a + b), size.zip(so_far, |a, b| a + b.abs()));
                    }
                    let got = got.as_ref().expect("net_pullback: every gradient is there");
                    let what = format!("net_pullback, gradient {at}");
                    assert_close::<B::Elem>(&what, &download(backend, got), &want, &size, units);
                }
            }
        },
    );
}
