//! Nets as one operation against plain loops in double precision and against their compositions: Jᵀ, and the terms of the
//! series with the rule by which rows stop.

use proptest::prelude::*;
use resflow_backend::{
    Activation, Backend, Element, Net, NetLayer, Padding, SeriesState, Shape, TermWeights, composed,
};

use crate::draw::{CASES, Draw, check_some, download, seed, upload};
use crate::reference::Array;
use crate::tolerance::{AFFINE, assert_close, assert_equal, sum};

/// A layer on the host.
#[derive(Debug)]
enum Layer {
    /// `[o, i]`.
    Linear(Array),
    /// `[o, kh, kw, i]`.
    Convolution(Array),
    /// Its slopes, `[n, …]`.
    Activation(Array),
}

/// A net with the slopes of its activations at some rows.
#[derive(Debug)]
struct Chain {
    layers: Vec<Layer>,
    /// Rounding units of Jᵀ, of the magnitude of its terms.
    units: f64,
}

impl Chain {
    /// Layers from rows of a shape, `[n, …]`, to rows of the same; every sum of a row of a weight is at most about 1.
    fn new<E: Element>(draw: &mut Draw, shape: Shape, widths: &[usize], leading: bool, trailing: bool) -> Self {
        let (mut layers, mut units) = (Vec::new(), 0.0);
        let at = |channels: usize| shape.with_channels(channels);
        let ends: Vec<usize> = [shape.channels()].iter().chain(widths).chain(&[shape.channels()]).copied().collect();
        for (l, pair) in ends.windows(2).enumerate() {
            if l > 0 || leading {
                layers.push(Layer::Activation(draw.uniform::<E>(at(pair[0]), -0.1, 1.0)));
                units += AFFINE;
            }
            let taps = if l == 0 || l + 2 == ends.len() { taps(shape) } else { [1, 1] };
            let terms = taps[0] * taps[1] * pair[1];
            let weight = draw.array::<E>([pair[1], taps[0], taps[1], pair[0]]);
            let weight = weight.map(|w| w / terms as f64).rounded::<E>();
            layers.push(if taps == [1, 1] {
                Layer::Linear(weight.reshape([pair[1], pair[0]]))
            } else {
                Layer::Convolution(weight)
            });
            units += sum(terms) + AFFINE;
        }
        if trailing {
            layers.push(Layer::Activation(draw.uniform::<E>(shape, -0.1, 1.0)));
            units += AFFINE;
        }
        Self { layers, units }
    }

    /// Jᵀ x by plain loops, or |J|ᵀ x.
    fn transpose(&self, x: &Array, absolute: bool) -> Array {
        let of = |a: &Array| if absolute { a.abs() } else { a.clone() };
        self.layers.iter().rev().fold(x.clone(), |x, layer| match layer {
            Layer::Linear(w) => {
                let channels = x.shape.channels();
                let rows = x.data.len() / channels.max(1);
                let out = x.reshape([rows, channels]).matmul(false, &of(w), false);
                out.reshape(x.shape.with_channels(w.shape[1]))
            }
            Layer::Convolution(k) => {
                let padding = Padding::same([k.shape[1], k.shape[2]]);
                x.conv2d_input(&of(k), padding, [x.shape[1], x.shape[2]])
            }
            Layer::Activation(slopes) => x.zip(&of(slopes), |x, s| x * s),
        })
    }

    fn on<B: Backend>(&self, backend: &B, draw: &mut Draw) -> (Net<B::Tensor>, Vec<B::Tensor>) {
        let mut slopes = Vec::new();
        let layers = self.layers.iter().map(|layer| match layer {
            Layer::Linear(w) => NetLayer::Linear {
                weight: draw.tensor(backend, w),
                transposed: draw.tensor(backend, &w.permute(&[1, 0])),
                bias: backend.full(0.5, [w.shape[0]].into()),
            },
            Layer::Convolution(k) => NetLayer::Convolution {
                kernel: draw.tensor(backend, k),
                bias: backend.full(0.5, [k.shape[0]].into()),
                padding: Padding::same([k.shape[1], k.shape[2]]),
            },
            Layer::Activation(s) => {
                slopes.push(draw.tensor(backend, s));
                // products with J ask for slopes alone
                NetLayer::Activation { function: Activation::Tanh, parameter: None }
            }
        });
        (Net { layers: layers.collect() }, slopes)
    }
}

/// The shape of a batch, hidden widths, and whether activations come first and last.
pub(crate) fn chains() -> impl Strategy<Value = (Shape, Vec<usize>, bool, bool)> {
    let shape = prop_oneof![
        4 => (0usize..30, 1usize..20).prop_map(|(n, d)| Shape::new(&[n, d])),
        1 => (90usize..130, 2usize..5).prop_map(|(n, d)| Shape::new(&[n, d])),
        1 => (1usize..3, 1usize..4, 1usize..4, 1usize..4).prop_map(|(n, h, w, c)| Shape::new(&[n, h, w, c])),
    ];
    let widths = prop_oneof![proptest::collection::vec(1usize..40, 0..4), proptest::collection::vec(60usize..140, 2)];
    (shape, widths, any::<bool>(), any::<bool>())
}

/// The taps of the first and of the last affine layer.
pub(crate) fn taps(shape: Shape) -> [usize; 2] {
    match shape[..] {
        [_, _, w, _] => [3, if w < 5 { 1 } else { 3 }],
        _ => [1, 1],
    }
}

/// The same of images that are larger than what a device computes at a time, and of rows that are longer.
pub(crate) fn large_chains() -> impl Strategy<Value = (Shape, Vec<usize>, bool, bool)> {
    let shape = prop_oneof![
        2 => (1usize..4, 4usize..9, 5usize..9, 1usize..6).prop_map(|(n, h, w, c)| Shape::new(&[n, h, w, c])),
        1 => (1usize..12, 257usize..600).prop_map(|(n, d)| Shape::new(&[n, d])),
    ];
    (shape, proptest::collection::vec(3usize..70, 0..4), any::<bool>(), any::<bool>())
}

/// The cases of properties of such nets.
pub(crate) const LARGE: u32 = 16;

/// `net_vjp` of rows and images through 1 to 4 affine layers.
pub fn net_vjp<B: Backend>(backend: &B) {
    vjp_of(backend, CASES, chains());
}

/// `net_vjp` of images and rows that are larger than a tile.
pub fn large_net_vjp<B: Backend>(backend: &B) {
    vjp_of(backend, LARGE, large_chains());
}

fn vjp_of<B: Backend>(backend: &B, cases: u32, chains: impl Strategy<Value = (Shape, Vec<usize>, bool, bool)>) {
    check_some("net_vjp", cases, (chains, seed()), |((shape, widths, leading, trailing), seed)| {
        let mut draw = Draw::new(seed);
        let chain = Chain::new::<B::Elem>(&mut draw, shape, &widths, leading, trailing);
        let gy = draw.array::<B::Elem>(shape);
        let (want, size) = (chain.transpose(&gy, false), chain.transpose(&gy.abs(), true));
        let (net, slopes) = chain.on(backend, &mut draw);
        let slopes: Vec<_> = slopes.iter().collect();
        let gy = draw.tensor(backend, &gy);
        let composition = composed::net_vjp(backend, &net, &slopes, gy.clone());
        for got in [backend.net_vjp(&net, &slopes, gy), composition] {
            assert_close::<B::Elem>("net_vjp", &download(backend, &got), &want, &size, chain.units);
        }
    });
}

/// `net_series` with one weight a term and with one for each row, with and without the Neumann vector.
pub fn net_series<B: Backend>(backend: &B) {
    series_of(backend, CASES, chains());
}

/// `net_series` of images and rows that are larger than a tile.
pub fn large_net_series<B: Backend>(backend: &B) {
    series_of(backend, LARGE, large_chains());
}

fn series_of<B: Backend>(backend: &B, cases: u32, chains: impl Strategy<Value = (Shape, Vec<usize>, bool, bool)>) {
    let flags = any::<[bool; 2]>();
    check_some(
        "net_series",
        cases,
        (chains, flags, 1usize..4, 0usize..4, seed()),
        |(chain, flags, first, terms, seed)| {
            let ((shape, widths, leading, trailing), [per_row, neumann]) = (chain, flags);
            let mut draw = Draw::new(seed);
            let chain = Chain::new::<B::Elem>(&mut draw, shape, &widths, leading, trailing);
            let (rows, width) = (shape.rows(), shape.row_elements());
            let c: Vec<Array> = (0..terms).map(|_| draw.uniform::<B::Elem>([rows, 1], 0.5, 3.0)).collect();
            let c = if per_row { c } else { c.iter().map(|c| c.map(|_| 1.25)).collect() };
            let probe = draw.array::<B::Elem>(shape);
            let start = [draw.array::<B::Elem>(shape), draw.array::<B::Elem>(shape)];
            let started = draw.array::<B::Elem>([rows, 1]);

            // by plain loops, each with the magnitude of its terms
            let (mut power, mut vector, mut value) = (start[0].clone(), start[1].clone(), started.clone());
            let (mut sizes, mut units) = ([power.abs(), vector.abs(), value.abs()], 0.0);
            for (i, c) in c.iter().enumerate() {
                let k = first + i;
                let sign = if k % 2 == 1 { 1.0 } else { -1.0 };
                power = chain.transpose(&power, false);
                sizes[0] = chain.transpose(&sizes[0], true);
                units += chain.units;
                for row in 0..rows {
                    let weight = c.data[row];
                    for e in row * width..(row + 1) * width {
                        vector.data[e] -= sign * weight * power.data[e];
                        sizes[1].data[e] += weight * sizes[0].data[e];
                        value.data[row] += sign * weight * power.data[e] * probe.data[e] / k as f64;
                        sizes[2].data[row] += weight * sizes[0].data[e] * probe.data[e].abs() / k as f64;
                    }
                }
            }
            units += sum(width) + (2 + 2 * terms) as f64 * AFFINE;

            let (net, slopes) = chain.on(backend, &mut draw);
            let slopes: Vec<_> = slopes.iter().collect();
            let tensors: Vec<_> = c.iter().map(|c| upload(backend, c)).collect();
            let numbers = vec![1.25; terms];
            let weights = if per_row { TermWeights::PerRow(&tensors[..]) } else { TermWeights::Batch(&numbers) };
            let state = SeriesState {
                power: draw.tensor(backend, &start[0]),
                neumann: neumann.then(|| draw.tensor(backend, &start[1])),
                value: draw.tensor(backend, &started),
            };
            let probe = draw.tensor(backend, &probe);
            let composition = composed::net_series(backend, &net, &slopes, first, weights, &probe, 0.0, state.clone());
            for got in [backend.net_series(&net, &slopes, first, weights, &probe, 0.0, state), composition] {
                let close = |what: &str, got: &B::Tensor, want: &Array, size: &Array| {
                    assert_close::<B::Elem>(&format!("net_series, {what}"), &download(backend, got), want, size, units);
                };
                close("value", &got.value, &value, &sizes[2]);
                close("power", &got.power, &power, &sizes[0]);
                assert_eq!(got.neumann.is_some(), neumann, "net_series: the Neumann vector is kept if it was given");
                if let Some(got) = &got.neumann {
                    close("neumann", got, &vector, &sizes[1]);
                }
            }
        },
    );
}

/// Rows whose terms are negligible become exact zeros and stay as they are, while their neighbours go on.
pub fn net_series_stops<B: Backend>(backend: &B) {
    // more than any tile has, and whole tiles that stop
    const ROWS: usize = 500;
    let mut draw = Draw::new(5);
    let chain = Chain::new::<B::Elem>(&mut draw, [ROWS, 7].into(), &[20], false, false);
    let mut power = draw.array::<B::Elem>([ROWS, 7]);
    let small = |row: usize| row % 3 == 1 || (90..400).contains(&row);
    for row in (0..ROWS).filter(|&row| small(row)) {
        power.data[row * 7..(row + 1) * 7].iter_mut().for_each(|x| *x *= 1e-9);
    }
    let power = power.rounded::<B::Elem>();
    let probe = upload(backend, &draw.array::<B::Elem>([ROWS, 7]));
    let (net, slopes) = chain.on(backend, &mut draw);
    let slopes: Vec<_> = slopes.iter().collect();
    let run = |terms: usize| {
        let state = SeriesState {
            power: upload(backend, &power),
            neumann: Some(backend.full(0.0, [ROWS, 7].into())),
            value: backend.full(0.0, [ROWS, 1].into()),
        };
        let weights = vec![1.0; terms];
        let state = backend.net_series(&net, &slopes, 1, TermWeights::Batch(&weights), &probe, 1e-7, state);
        [&state.power, state.neumann.as_ref().expect("net_series: keeps the Neumann vector"), &state.value]
            .map(|x| download(backend, x))
    };
    let (one, three) = (run(1), run(3));
    for row in 0..ROWS {
        let of = |x: &Array| x.narrow(0, row, 1);
        let zero = of(&three[0]).data.iter().all(|&x| x == 0.0);
        assert_eq!(zero, small(row), "net_series: row {row} {}", if zero { "stops" } else { "goes on" });
        if small(row) {
            assert_equal("net_series, the value of a stopped row", &of(&three[2]), &of(&one[2]));
            assert_equal("net_series, the Neumann vector of a stopped row", &of(&three[1]), &of(&one[1]));
        }
    }
}
