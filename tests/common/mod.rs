//! Shared by the property tests: random networks and flows in double precision, and a little linear algebra on the host.
#![allow(dead_code)] // each test binary uses its own part

pub(crate) mod asking;
pub(crate) mod bijections;
pub(crate) mod cut;
pub(crate) mod derivatives;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use nalgebra::DMatrix;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use resflow::NdArray;
use resflow::backend::{Backend, Key, Noise, Padding, Shape};
use resflow::batch::Batch;
use resflow::block::ResidualBlock;
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity};
use resflow::coupling::{Coupling, Mask};
use resflow::data::Table;
use resflow::data::image::ImageSet;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::layer::{
    Derivatives, Layer, LayerGrads, LipschitzConv, LipschitzLinear, OrderGradients, PreparedLayer, Saved, Sequence,
};
use resflow::lipschitz::{Coefficient, ConvOperator, DenseOperator, LinearOperator, PowerIteration, SingularPair};
use resflow::module::{Grad, Module as _};
use resflow::transform::InvertibleLinear;

/// The backend of most tests: double precision, one thread.
pub(crate) type Cpu = NdArray<f64>;
pub(crate) type Tensor = <Cpu as Backend>::Tensor;

pub(crate) fn cpu() -> Cpu {
    NdArray::with_threads(NonZeroUsize::MIN).expect("one thread")
}

/// So many cases, with failures written beside the test's source.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    }
}

pub(crate) fn normal(b: &Cpu, key: Key, shape: impl Into<Shape>) -> Tensor {
    b.noise(key, Noise::Normal, 0, shape.into())
}

pub(crate) fn down(b: &Cpu, x: &Tensor) -> Vec<f64> {
    b.download(x).expect("no device fault")
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// ⟨a, b⟩ over everything.
pub(crate) fn inner(b: &Cpu, x: &Tensor, y: &Tensor) -> f64 {
    dot(&down(b, x), &down(b, y))
}

/// The largest singular value, by nalgebra.
pub(crate) fn spectral_norm(rows: usize, columns: usize, w: &[f64]) -> f64 {
    DMatrix::from_row_slice(rows, columns, w).singular_values().iter().fold(0.0, |a, &s| a.max(s))
}

/// ln det of a row-major d × d matrix by nalgebra, which must be positive.
pub(crate) fn log_det(d: usize, a: &[f64]) -> f64 {
    let determinant = DMatrix::from_row_slice(d, d, a).determinant();
    assert!(determinant > 0.0, "det(I + J) = {determinant}");
    determinant.ln()
}

/// A random g: the widths from input to output, and for each linear layer σ/κ of its raw weight.
#[derive(Debug, Clone)]
pub(crate) struct Net {
    pub(crate) seed: u64,
    pub(crate) widths: Vec<usize>,
    pub(crate) activation: Nonlinearity,
    pub(crate) leading: bool,
    pub(crate) kappa: f64,
    pub(crate) stretch: Vec<f64>,
    /// Power iterations behind u, v; `None` for convergence.
    pub(crate) iterations: Option<usize>,
}

impl Net {
    pub(crate) fn key(&self) -> Key {
        Key::new(self.seed)
    }

    pub(crate) fn layers(&self, b: &Cpu) -> Vec<Box<dyn Layer<Cpu>>> {
        let mut layers: Vec<Box<dyn Layer<Cpu>>> = Vec::new();
        for (i, w) in self.widths.windows(2).enumerate() {
            let key = self.key().named("net").split(i as u64);
            let act = i > 0 || self.leading;
            if act {
                layers.push(activation(b, self.activation, key.named("beta")));
            }
            let inputs = if act { self.activation.widening() * w[0] } else { w[0] };
            layers.push(Box::new(linear(b, inputs, w[1], self.kappa, self.stretch[i], self.iterations, key)));
        }
        layers
    }

    pub(crate) fn sequence(&self, b: &Cpu) -> Sequence<Cpu> {
        Sequence::new(self.layers(b))
    }

    pub(crate) fn block(&self, b: &Cpu) -> ResidualBlock<Cpu> {
        ResidualBlock::new(Box::new(self.sequence(b)), &[self.widths[0]]).expect("a contraction")
    }

    pub(crate) fn dimension(&self) -> usize {
        self.widths[0]
    }
}

/// A linear layer whose raw weight has σ = stretch · κ, and a bias of about 0.5.
pub(crate) fn linear(
    b: &Cpu,
    inputs: usize,
    outputs: usize,
    kappa: f64,
    stretch: f64,
    iterations: Option<usize>,
    key: Key,
) -> LipschitzLinear<Cpu> {
    let raw = normal(b, key.named("w"), [outputs, inputs]);
    let sigma = spectral_norm(outputs, inputs, &down(b, &raw));
    let weight = b.affine(raw, stretch * kappa / sigma, 0.0);
    let bias = b.affine(normal(b, key.named("b"), [outputs]), 0.5, 0.0);
    let how = iterations.map_or_else(PowerIteration::converge::<Cpu>, PowerIteration::Iterations);
    let operator = DenseOperator::new(b, &weight).expect("a matrix");
    let pair = SingularPair::random(b, [outputs], [inputs], key.named("uv")).updated(b, &operator, how);
    // u, v that have not converged may find σ at κ, where the normalisation has a kink: step aside
    let found = down(b, &pair.sigma(b, &operator))[0] / kappa;
    let weight = if (found - 1.0).abs() < 0.03 { b.affine(weight, 1.1, 0.0) } else { weight };
    let coefficient = Coefficient::new(kappa).expect("a coefficient");
    LipschitzLinear::from_parts(b, weight, bias, pair, coefficient).expect("shapes that fit")
}

/// A linear map as a matrix (rows, columns, entries), column by column.
pub(crate) fn matrix_of(b: &Cpu, operator: &dyn LinearOperator<Cpu>) -> (usize, usize, Vec<f64>) {
    let input = operator.input_shape();
    let (o, i) = (operator.output_shape().elements(), input.elements());
    let mut w = vec![0.0; o * i];
    for j in 0..i {
        let unit: Vec<f64> = (0..i).map(|e| f64::from(u8::from(e == j))).collect();
        for (r, y) in down(b, &operator.apply(b, &b.upload(&unit, input))).into_iter().enumerate() {
            w[r * i + j] = y;
        }
    }
    (o, i, w)
}

/// The norm of the zero-padded convolution with this kernel on images of a size, by SVD of its matrix.
pub(crate) fn conv_norm(b: &Cpu, kernel: &Tensor, image: [usize; 2]) -> f64 {
    let shape = b.shape(kernel);
    let operator = ConvOperator::new(b, kernel, Padding::same([shape[1], shape[2]]), image).expect("a kernel");
    let (o, i, w) = matrix_of(b, &operator);
    spectral_norm(o, i, &w)
}

/// A convolution whose norm on images of this size is stretch · κ, and a bias of about 0.5.
pub(crate) fn conv(
    b: &Cpu,
    image: [usize; 2],
    kernel: [usize; 2],
    [inputs, outputs]: [usize; 2],
    kappa: f64,
    stretch: f64,
    iterations: Option<usize>,
    key: Key,
) -> LipschitzConv<Cpu> {
    let raw = normal(b, key.named("w"), [outputs, kernel[0], kernel[1], inputs]);
    let factor = stretch * kappa / conv_norm(b, &raw, image);
    let weight = b.affine(raw, factor, 0.0);
    let bias = b.affine(normal(b, key.named("b"), [outputs]), 0.5, 0.0);
    let how = iterations.map_or_else(PowerIteration::converge::<Cpu>, PowerIteration::Iterations);
    let operator = ConvOperator::new(b, &weight, Padding::same(kernel), image).expect("a kernel");
    let (output, input) =
        (LinearOperator::<Cpu>::output_shape(&operator), LinearOperator::<Cpu>::input_shape(&operator));
    let pair = SingularPair::random(b, output, input, key.named("uv")).updated(b, &operator, how);
    let found = down(b, &pair.sigma(b, &operator))[0] / kappa;
    let weight = if (found - 1.0).abs() < 0.03 { b.affine(weight, 1.1, 0.0) } else { weight };
    let coefficient = Coefficient::new(kappa).expect("a coefficient");
    LipschitzConv::from_parts(b, weight, bias, pair, coefficient).expect("shapes that fit")
}

/// A random g on images c → w → c: (activation,) convolution, activation, linear on the channels, activation, convolution.
pub(crate) fn image_net(
    b: &Cpu,
    image: [usize; 3],
    width: usize,
    which: Nonlinearity,
    leading: bool,
    key: Key,
) -> Sequence<Cpu> {
    let [h, w, c] = image;
    let wide = which.widening();
    let mut layers: Vec<Box<dyn Layer<Cpu>>> = Vec::new();
    if leading {
        layers.push(activation(b, which, key.named("first")));
    }
    let inputs = if leading { c * wide } else { c };
    layers.push(Box::new(conv(b, [h, w], [3, 3], [inputs, width], 0.8, 1.6, None, key.named("conv"))));
    layers.push(activation(b, which, key.named("second")));
    layers.push(Box::new(linear(b, width * wide, width, 0.9, 0.7, None, key.named("linear"))));
    layers.push(activation(b, which, key.named("third")));
    layers.push(Box::new(conv(b, [h, w], [1, 3], [width * wide, c], 0.9, 2.0, None, key.named("last"))));
    Sequence::new(layers)
}

/// A random affine coupling: free layers of one hidden width, linear for vectors, 3 × 3 and 1 × 3 convolutions for images.
pub(crate) fn coupling(
    b: &Cpu,
    row: &[usize],
    mask: Mask,
    width: usize,
    which: Nonlinearity,
    key: Key,
) -> Coupling<Cpu> {
    Coupling::new(Box::new(coupling_net(b, row, mask, width, which, key)), mask, row).expect("shapes that fit")
}

/// A conditional prior of images, whose net has random weights.
pub(crate) fn prior(b: &Cpu, image: [usize; 3], which: Nonlinearity, key: Key) -> Coupling<Cpu> {
    let net = coupling_net(b, &image, Mask::Channels { swapped: false }, 3, which, key);
    Coupling::prior(Box::new(net), &image).expect("an even number of channels")
}

fn coupling_net(b: &Cpu, row: &[usize], mask: Mask, width: usize, which: Nonlinearity, key: Key) -> Sequence<Cpu> {
    let [input, output] = mask.net_shapes(row).expect("two sides");
    let (from, to) = (input[input.len() - 1], output[output.len() - 1]);
    let layer = |kernel: [usize; 2], inputs: usize, outputs: usize, key: Key| -> Box<dyn Layer<Cpu>> {
        let bias = b.affine(normal(b, key.named("b"), [outputs]), 0.5, 0.0);
        let spread = 1.0 / ((kernel[0] * kernel[1] * inputs) as f64).sqrt();
        if row.len() == 1 {
            let weight = b.affine(normal(b, key.named("w"), [outputs, inputs]), spread, 0.0);
            return Box::new(LipschitzLinear::free(b, weight, bias).expect("shapes that fit"));
        }
        let weight = b.affine(normal(b, key.named("w"), [outputs, kernel[0], kernel[1], inputs]), spread, 0.0);
        Box::new(LipschitzConv::free(b, weight, bias).expect("shapes that fit"))
    };
    Sequence::new(vec![
        layer([3, 3], from, width, key.named("first")),
        activation(b, which, key.named("beta")),
        layer([1, 3], width * which.widening(), to, key.named("last")),
    ])
}

/// A random invertible linear map: a rotation with its factors moved.
pub(crate) fn invertible(b: &Cpu, features: usize, key: Key) -> InvertibleLinear<Cpu> {
    let mut link = InvertibleLinear::rotation(b, features, key).expect("a rotation");
    link.visit_mut("", &mut |_, t, role| {
        if role.is_trained() {
            *t = b.axpy(0.3, &normal(b, key.named("moved"), b.shape(t)), t.clone());
        }
    });
    link
}

/// The masks under which rows of a shape have two sides.
pub(crate) fn masks(row: &[usize]) -> Vec<Mask> {
    let all = [false, true].into_iter();
    let all = all.flat_map(|swapped| [Mask::Channels { swapped }, Mask::Checkerboard { swapped }]);
    all.filter(|mask| mask.net_shapes(row).is_ok()).collect()
}

/// An activation with random parameters in (−1, 2) where it has some.
pub(crate) fn activation(b: &Cpu, which: Nonlinearity, key: Key) -> Box<dyn Layer<Cpu>> {
    let mut layer = resflow::layer::activation_layer(b, which);
    let mut next = 0;
    layer.visit_mut("", &mut |_, t, _| {
        *t = b.affine(b.noise(key.split(next), Noise::Uniform, 0, [1].into()), 3.0, -1.0);
        next += 1;
    });
    layer
}

/// Activations with a continuous second derivative, for Taylor tests.
pub(crate) const SMOOTH: [Nonlinearity; 8] = [
    Nonlinearity::LipSwish,
    Nonlinearity::ClipSwish,
    Nonlinearity::Softplus,
    Nonlinearity::Tanh,
    Nonlinearity::Sin,
    Nonlinearity::Pila,
    Nonlinearity::ConcatenatedPila,
    Nonlinearity::LeakyLipSwish,
];

/// σ/κ well below and well above 1, where the normalisation is off and on.
pub(crate) fn stretch() -> impl Strategy<Value = f64> {
    prop_oneof![0.2..0.8, 1.25..4.0]
}

/// Networks from d to d (`square`) or to another width, through one or two hidden layers.
pub(crate) fn nets(
    dimension: std::ops::RangeInclusive<usize>,
    activations: &'static [Nonlinearity],
    square: bool,
) -> impl Strategy<Value = Net> {
    let shape = (dimension, proptest::collection::vec(1_usize..10, 1..3), 1_usize..6);
    let rest = (any::<u64>(), proptest::sample::select(activations), any::<bool>(), 0.5..0.95);
    let weights = (proptest::collection::vec(stretch(), 3), proptest::option::of(1_usize..4));
    (shape, rest, weights).prop_map(move |(shape, rest, weights)| {
        let (d, hidden, out) = shape;
        let (seed, activation, leading, kappa) = rest;
        let (stretch, iterations) = weights;
        let mut widths = vec![d];
        widths.extend(hidden);
        widths.push(if square { d } else { out });
        Net { seed, widths, activation, leading, kappa, stretch, iterations }
    })
}

/// A small flow, exact in training and evaluation.
pub(crate) fn exact_config(dimension: usize, blocks: usize, hidden: &[usize]) -> FlowConfig {
    FlowConfig {
        blocks,
        hidden: hidden.to_vec(),
        coefficient: 0.9,
        training: Estimator::Exact(Exact),
        evaluation: Estimator::Exact(Exact),
        ..FlowConfig::new(dimension)
    }
}

/// Families whose log dets a test may have computed exactly in training.
pub(crate) fn exact_families() -> impl Strategy<Value = Family> {
    prop_oneof![2 => Just(Family::Residual), 1 => Just(Family::RealNvp), 1 => Just(Family::Glow)]
}

/// The last part of a tensor's name.
pub(crate) fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// A flow with every trained tensor moved by noise, so that nothing is at a special value; ActNorm is counted as
/// initialised. σ stays as the power iteration finds it.
pub(crate) fn random_flow<B: Backend>(b: &B, config: impl Into<ModelConfig>, key: Key, spread: f64) -> Flow<B> {
    let mut flow = Flow::new(b.clone(), config, key).expect("a configuration");
    let mut number = 0;
    flow.visit_mut(&mut |name, t, role| {
        number += 1;
        if name.ends_with("initialised") {
            *t = b.full(1.0, [1].into());
        } else if role.is_trained() {
            let noise = b.noise(key.named("spread").split(number), Noise::Normal, 0, b.shape(t));
            *t = b.axpy(spread, &noise, t.clone());
        }
    });
    flow.update_spectral_norms(PowerIteration::converge::<B>());
    flow
}

/// The largest absolute value; NaN if there is one, unlike with `f64::max`.
pub(crate) fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |a: f64, v| if a.is_nan() || v.is_nan() { f64::NAN } else { a.max(v.abs()) })
}

/// How far the numbers that lie farthest apart are.
pub(crate) fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    largest(a.iter().zip(b).map(|(a, b)| a - b))
}

/// A small flow over images, exact in training and evaluation; without fully connected blocks.
pub(crate) fn exact_images(image: [usize; 3], blocks: &[usize]) -> ImageConfig {
    let [height, width, channels] = image;
    ImageConfig {
        height,
        width,
        channels,
        logit_alpha: 0.05,
        blocks: blocks.to_vec(),
        filters: 3,
        fully_connected: 0,
        fully_connected_width: 3,
        coefficient: 0.9,
        training: Estimator::Exact(Exact),
        evaluation: Estimator::Exact(Exact),
        ..ImageConfig::default()
    }
}

/// Random images.
pub(crate) fn images(n: usize, [h, w, c]: [usize; 3], key: Key) -> ImageSet {
    let mut noise = vec![0.0; n * h * w * c];
    Noise::Uniform.fill(key, 0, &mut noise);
    let bytes = noise.iter().map(|u: &f64| (u * 256.0) as u8).collect();
    ImageSet::new(h, w, c, bytes, None).expect("whole images")
}

/// Where entry (y, x, c) of an image is in the (C, H, W) order of a table's row.
pub(crate) fn channels_first([h, w, _]: [usize; 3], [y, x, c]: [usize; 3]) -> usize {
    (c * h + y) * w + x
}

/// Rows of a table in (C, H, W) order as images `[n, h, w, c]`.
pub(crate) fn as_images(values: &[f64], image: [usize; 3]) -> Vec<f64> {
    let [h, w, c] = image;
    let d = h * w * c;
    let from = |e: usize| e / d * d + channels_first(image, [e % d / (w * c), e % (w * c) / c, e % c]);
    (0..values.len()).map(|e| values[from(e)]).collect()
}

/// Numbers well inside (0, 1), as rows of images.
pub(crate) fn uniform_rows(n: usize, d: usize, key: Key) -> Table {
    let mut values = vec![0.0; n * d];
    Noise::Uniform.fill(key, 0, &mut values);
    table(d, values.iter().map(|u| 0.02 + 0.96 * u).collect())
}

pub(crate) fn table(width: usize, values: Vec<f64>) -> Table {
    Table::new(None, width, values).expect("finite values")
}

/// Rows of standard normals.
pub(crate) fn rows(n: usize, d: usize, key: Key) -> Table {
    let mut values = vec![0.0; n * d];
    Noise::Normal.fill(key, 0, &mut values);
    table(d, values)
}

/// The (two-sided) quantile of a standard normal at which `tests` z-scores together exceed it with probability `rate`.
pub(crate) fn bonferroni(rate: f64, tests: usize) -> f64 {
    use statrs::distribution::{ContinuousCDF as _, Normal};
    Normal::standard().inverse_cdf(1.0 - rate / (2.0 * tests as f64))
}

/// Mean and its standard error.
pub(crate) fn mean_and_error(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let variance = samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// Counts the calls of a layer's vjp, and the subnormal numbers that go in or come out.
#[derive(Debug)]
pub(crate) struct Spy<'a> {
    inner: &'a dyn PreparedLayer<Cpu>,
    pub(crate) subnormal: AtomicUsize,
    pub(crate) calls: AtomicUsize,
}

impl<'a> Spy<'a> {
    pub(crate) fn new(inner: &'a dyn PreparedLayer<Cpu>) -> Self {
        Self { inner, subnormal: AtomicUsize::new(0), calls: AtomicUsize::new(0) }
    }
}

impl PreparedLayer<Cpu> for Spy<'_> {
    fn forward(&self, b: &Cpu, x: &Batch<Cpu>, keep: Derivatives) -> (Tensor, Saved<Cpu>) {
        self.inner.forward(b, x, keep)
    }
    fn jvp(&self, b: &Cpu, saved: &Saved<Cpu>, dx: &Tensor) -> (Tensor, Saved<Cpu>) {
        self.inner.jvp(b, saved, dx)
    }
    fn vjp(&self, b: &Cpu, saved: &Saved<Cpu>, gy: Tensor) -> Tensor {
        let out = self.inner.vjp(b, saved, gy.clone());
        let subnormal = down(b, &gy).into_iter().chain(down(b, &out)).filter(|x| x.is_subnormal()).count();
        self.subnormal.fetch_add(subnormal, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        out
    }
    fn tangent_vjp(
        &self,
        b: &Cpu,
        saved: &Saved<Cpu>,
        tangents: &[&Saved<Cpu>],
        gy: Tensor,
        gdy: Vec<Tensor>,
        grads: LayerGrads<'_, Cpu>,
    ) -> (Tensor, Vec<Tensor>) {
        self.inner.tangent_vjp(b, saved, tangents, gy, gdy, grads)
    }
    fn finish_gradients(&self, b: &Cpu, grads: &mut [Grad<Cpu>]) -> OrderGradients<Cpu> {
        self.inner.finish_gradients(b, grads)
    }
}
