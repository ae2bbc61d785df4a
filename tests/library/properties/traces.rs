//! What is known of traces without a probe: tr J and tr J² against the Jacobian, their gradients against differences, and
//! the control variate by summing over all sign vectors; of nets on rows and on images, at their borders too. With
//! either, the mean over all sign vectors and over the law of N is the log det, and that of u vᵀ the rest of (I + J)^{−T}.

use crate::common::*;
use nalgebra::DMatrix;
use proptest::prelude::*;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::config::Nonlinearity;
use resflow::estimator::{
    CostModel, Draw, Estimate, Estimator, Known, Law, RussianRoulette, Samples, Traces, Truncated, Weights, jacobian,
    series_beyond,
};
use resflow::layer::{Derivatives, Layer, LayerGrads, PreparedLayer, Saved, Sequence, WeightedTraces};
use resflow::lipschitz::Order;
use resflow::module::{Grad, Module as _};

/// The activations with one number in and one out, and a second derivative.
const ELEMENTWISE: [Nonlinearity; 5] =
    [Nonlinearity::LipSwish, Nonlinearity::Softplus, Nonlinearity::Tanh, Nonlinearity::Sin, Nonlinearity::Pila];

/// A random net with one or two hidden layers, on rows (an image of one pixel and kernels of one tap) or on images.
#[derive(Debug, Clone)]
struct Shape {
    seed: u64,
    /// Height, width and channels; of rows 1, 1 and d.
    image: [usize; 3],
    rows: bool,
    kernel: [usize; 2],
    hidden: Vec<usize>,
    activation: Nonlinearity,
    leading: bool,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let size = || proptest::sample::select(&[1_usize, 3, 5][..]);
    let images = (1_usize..5, 1_usize..5, 1_usize..3).prop_filter("few signs", |(h, w, c)| h * w * c <= 9);
    let kind = prop_oneof![
        (1_usize..8).prop_map(|d| ([1, 1, d], true, [1, 1])),
        (images, size(), size()).prop_map(|((h, w, c), kh, kw)| ([h, w, c], false, [kh, kw])),
    ];
    let rest = (proptest::collection::vec(1_usize..7, 1..3), proptest::sample::select(&ELEMENTWISE[..]), any::<bool>());
    (any::<u64>(), kind, rest).prop_map(|(seed, (image, rows, kernel), (hidden, activation, leading))| Shape {
        seed,
        image,
        rows,
        kernel,
        hidden,
        activation,
        leading,
    })
}

impl Shape {
    fn key(&self) -> Key {
        Key::new(self.seed)
    }

    /// The shape of a sample.
    fn row(&self) -> Vec<usize> {
        if self.rows { vec![self.image[2]] } else { self.image.to_vec() }
    }

    fn net(&self, b: &Cpu, kappa: f64) -> Sequence<Cpu> {
        Sequence::new(self.layers(b, kappa))
    }

    /// The net between norms whose orders are learned: their gradients come before those of weights.
    fn learned(&self, b: &Cpu, kappa: f64) -> Sequence<Cpu> {
        let count = self.hidden.len() + 1;
        let norms = (0..count).map(|i| (Order::Learned(i), Order::Learned((i + 1) % count))).collect();
        Sequence::with_norms(b, self.layers(b, kappa), norms).expect("norms that meet")
    }

    fn layers(&self, b: &Cpu, kappa: f64) -> Vec<Box<dyn Layer<Cpu>>> {
        let [h, w, c] = self.image;
        let affine = |inputs: usize, outputs: usize, ends: bool, name: &str| -> Box<dyn Layer<Cpu>> {
            let key = self.key().named(name);
            if self.rows || !ends {
                Box::new(linear(b, inputs, outputs, kappa, 1.5, None, key))
            } else {
                Box::new(conv(b, [h, w], self.kernel, [inputs, outputs], kappa, 1.5, None, key))
            }
        };
        let act = |name: &str| activation(b, self.activation, self.key().named(name));
        let mut layers = Vec::new();
        layers.extend(self.leading.then(|| act("φ0")));
        layers.push(affine(c, self.hidden[0], true, "first"));
        layers.push(act("φ1"));
        if let [one, two] = self.hidden[..] {
            layers.push(affine(one, two, false, "middle"));
            layers.push(act("φ2"));
        }
        layers.push(affine(self.hidden[self.hidden.len() - 1], c, true, "last"));
        layers
    }

    fn samples(&self, b: &Cpu, count: usize) -> Tensor {
        normal(b, self.key().named("x"), &[&[count], &self.row()[..]].concat()[..])
    }

    /// How many traces are known without a leading activation.
    fn powers(&self) -> usize {
        if self.rows && self.hidden.len() == 1 { 2 } else { 1 }
    }
}

/// A net at some samples, with the Jacobian at each.
struct Point {
    b: Cpu,
    net: Box<dyn PreparedLayer<Cpu>>,
    saved: Saved<Cpu>,
    d: usize,
    jacobians: Vec<DMatrix<f64>>,
}

impl Point {
    fn new(shape: &Shape, kappa: f64, samples: usize) -> Self {
        let b = cpu();
        let net = shape.net(&b, kappa).prepare(&b);
        let (_, saved) = net.forward(&b, &Batch::new(shape.samples(&b, samples)), Derivatives::First);
        let d: usize = shape.row().iter().product();
        let j = down(&b, &jacobian(&b, &*net, &saved, samples, &shape.row()));
        let jacobians = j.chunks_exact(d * d).map(|j| DMatrix::from_row_slice(d, d, j)).collect();
        Self { b, net, saved, d, jacobians }
    }

    /// All sign vectors, `[2^d, …]`.
    fn signs(&self, row: &[usize]) -> Tensor {
        let signs = (0..(1 << self.d) * self.d).map(|e| if (e / self.d) >> (e % self.d) & 1 == 1 { 1.0 } else { -1.0 });
        self.b.upload(&signs.collect::<Vec<_>>(), [&[1 << self.d], row].concat()[..].into())
    }
}

fn near(found: &[f64], expected: &[f64], tolerance: f64) -> Result<(), TestCaseError> {
    let scale = expected.iter().fold(1.0, |a: f64, e| a.max(e.abs()));
    let apart = found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= tolerance * scale);
    prop_assert!(found.len() == expected.len() && apart, "{found:?}, expected {expected:?}");
    Ok(())
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn traces_are_those_of_the_jacobian(shape in shapes(), samples in 1_usize..4) {
        let point = Point::new(&shape, 0.9, samples);
        let traces = point.net.traces(&point.b, &point.saved);
        prop_assert_eq!(traces.len(), if shape.leading { 0 } else { shape.powers() });
        for (k, trace) in traces.iter().enumerate() {
            let expected = point.jacobians.iter().map(|j| j.pow(k as u32 + 1).trace());
            near(&down(&point.b, trace), &expected.collect::<Vec<_>>(), 1e-12)?;
        }
        prop_assert_eq!(point.net.control(&point.b, &point.saved).is_some(), shape.leading);
        // feature by feature behind an activation, where it may cost that much
        let dear = point.net.dear_trace(&point.b, &point.saved, 1 << 20);
        prop_assert_eq!(dear.is_some(), shape.leading && shape.rows);
        if let Some(trace) = dear {
            let expected = point.jacobians.iter().map(DMatrix::trace);
            near(&down(&point.b, &trace), &expected.collect::<Vec<_>>(), 1e-12)?;
            prop_assert!(point.net.dear_trace(&point.b, &point.saved, 0).is_none());
        }
    }

    /// The mean of vᵀCv over all sign vectors is tr C.
    #[test]
    fn controls_have_their_trace(shape in shapes()) {
        let shape = Shape { leading: true, ..shape };
        let point = Point::new(&shape, 0.9, 1);
        let (b, row) = (&point.b, shape.row());
        let control = point.net.control(b, &point.saved).expect("a leading activation");
        let rows = vec![0; 1 << point.d];
        let (saved, slopes) = (point.saved.take_rows(b, &rows), b.take_rows(&control.slopes, &rows));
        let signs = point.signs(&row);
        let (product, values) = point.net.controlled_vjp(b, &saved, &slopes, signs.clone());
        near(&down(b, &product), &down(b, &point.net.vjp(b, &saved, signs)), 1e-13)?;
        let mean = down(b, &values).iter().sum::<f64>() / rows.len() as f64;
        near(&[mean], &down(b, &control.trace), 1e-12)?;
    }

    #[test]
    fn gradients_of_traces_are_those_of_differences(shape in shapes(), powers in 1_usize..3, learned: bool) {
        let shape = Shape { leading: false, ..shape };
        let (b, powers) = (cpu(), powers.min(shape.powers()));
        let net = if learned { shape.learned(&b, 0.9) } else { shape.net(&b, 0.9) };
        let x = shape.samples(&b, 3);
        let weights = normal(&b, shape.key().named("weights"), [3, 1]);
        let sum = |net: &Sequence<Cpu>, x: &Tensor| {
            let prepared = net.prepare(&b);
            let (_, saved) = prepared.forward(&b, &Batch::new(x.clone()), Derivatives::First);
            let traces = prepared.traces(&b, &saved).into_iter().take(powers).enumerate();
            traces.map(|(k, t)| inner(&b, &t, &weights) * [1.0, -0.5][k]).sum::<f64>()
        };
        let prepared = net.prepare(&b);
        let (_, saved) = prepared.forward(&b, &Batch::new(x.clone()), Derivatives::Second);
        let mut grads: Vec<Grad<Cpu>> = vec![None; asking::count_grads(&net)];
        let (gx, none) = prepared.tangent_trace_vjp(
            &b,
            &saved,
            &[],
            WeightedTraces { powers, weights: &weights },
            b.full(0.0, b.shape(&x)),
            Vec::new(),
            LayerGrads { trained: &mut grads, context: &mut None },
        );
        prop_assert!(none.is_empty());
        prepared.finish_gradients(&b, &mut grads);
        let moved = |step: f64, part: usize| {
            let (mut net, mut x, mut number) = (net.clone(), x.clone(), 0);
            let push = |t: &Tensor| b.axpy(step, &normal(&b, shape.key().named("direction"), b.shape(t)), t.clone());
            if part == 0 {
                x = push(&x);
            }
            net.visit_mut("", &mut |_, t, role| {
                if role.is_trained() {
                    number += 1;
                    if number == part {
                        *t = push(t);
                    }
                }
            });
            sum(&net, &x)
        };
        // orders move σ through the vectors, which differences hold
        let orders = if learned { shape.hidden.len() + 1 } else { 0 };
        for part in (0..=grads.len()).filter(|&part| part == 0 || part > orders) {
            let gradient = if part == 0 { &gx } else { grads[part - 1].as_ref().expect("a gradient of every parameter") };
            let along = inner(&b, gradient, &normal(&b, shape.key().named("direction"), b.shape(gradient)));
            // the third derivatives of sines are large: two differences, without the first error
            let difference = |step: f64| (moved(step, part) - moved(-step, part)) / (2.0 * step);
            near(&[along], &[(4.0 * difference(1e-5) - difference(2e-5)) / 3.0], 1e-7)?;
        }
    }

    #[test]
    fn the_mean_over_signs_and_n_is_exact(shape in shapes(), exact in 0_usize..3, p in 0.4..0.9, poisson: bool) {
        let layers = shape.hidden.len() as f64 + 1.0;
        let point = Point::new(&shape, 0.5_f64.powf(1.0 / layers), 1);
        let (b, d) = (&point.b, point.d);
        let known = match (point.net.traces(b, &point.saved), point.net.control(b, &point.saved)) {
            (_, Some(control)) => Known::Control(control),
            (traces, None) => Known::Traces(traces),
        };
        let powers = known.powers();
        let law = if poisson { Law::Poisson { rate: 3.0 * p } } else { Law::ShiftedGeometric { p } };
        let r = RussianRoulette::new(law, exact).expect("in range");
        // the mean over N of the weights is 1, and the series is linear in them: lists of one N each, with their mass; N may
        // be 0, and without exact terms there are then none at all
        let mut lists: Vec<(f64, Vec<f64>)> =
            (0..40).map(|n| (law.survival(n) - law.survival(n + 1), r.coefficients(&[n]))).collect();
        lists.push((law.survival(40), r.coefficients(&[40])));
        let (signs, all) = (1 << d, (1 << d) * lists.len());
        let coefficients: Vec<_> = (0..all).map(|i| lists[i / signs].1.clone()).collect();
        let (order, weights) = Weights::rows(b, &coefficients);
        let rows = vec![0; all];
        let probe = b.take_rows(&point.signs(&shape.row()), &order.iter().map(|i| i % signs as u32).collect::<Vec<_>>());
        let (saved, known) = (point.saved.take_rows(b, &rows), known.take_rows(b, &rows));
        // a control variate is for values: the surrogate is that of every term
        let (value, surrogate) = series_beyond(b, &*point.net, &saved, &known, &probe, &weights, true);
        let (value, u, v) = (down(b, &value.0), down(b, &surrogate.expect("asked for").u), down(b, &probe));
        let (mut mean, mut outer) = (0.0, DMatrix::zeros(d, d));
        for (at, &i) in order.iter().enumerate() {
            let mass = lists[i as usize / signs].0 / signs as f64;
            let column = |x: &[f64]| DMatrix::from_column_slice(d, 1, &x[at * d..(at + 1) * d]);
            mean += mass * value[at];
            outer += column(&u) * column(&v).transpose() * mass;
        }
        let j = &point.jacobians[0];
        let whole = DMatrix::identity(d, d) + j;
        near(&[mean], &[whole.determinant().ln()], 1e-10)?;
        let mut rest = whole.try_inverse().expect("invertible").transpose();
        for k in 0..powers {
            rest -= j.transpose().pow(k as u32) * [1.0, -1.0][k];
        }
        near(outer.as_slice(), rest.as_slice(), 1e-10)?;
    }

    /// Of a truncated series no more terms are known than it has.
    #[test]
    fn a_truncated_series_stays_truncated(shape in shapes(), terms in 1_usize..4) {
        let shape = Shape { leading: false, ..shape };
        let point = Point::new(&shape, 0.8, 1);
        let (b, row) = (&point.b, shape.row());
        let estimator = Estimator::Truncated(Truncated { traces: Traces::Exact, ..Truncated::new(terms).expect("in range") });
        let samples = Samples { count: 1, shape: &row, first: 0 };
        let cost = CostModel { dimension: point.d, multiply_adds: 1, bottleneck: None };
        let draw = Draw { estimator: &estimator, key: shape.key() };
        let found = Estimate { backend: b, net: &*point.net, saved: &point.saved, samples, cost }.surrogates(&draw);
        prop_assert_eq!(found.powers, terms.min(shape.powers()));
        if terms <= found.powers {
            let j = &point.jacobians[0];
            let sum = (1..=terms).map(|k| j.pow(k as u32).trace() * [1.0, -0.5][k - 1]).sum::<f64>();
            near(&down(b, &found.log_det.value), &[sum], 1e-12)?;
        }
    }
}

/// Nets of other kinds say nothing: more hidden layers, an activation with two outputs, kernels that do not lead back.
#[test]
fn other_nets_have_no_traces() {
    let b = cpu();
    let net = |activation: Nonlinearity, widths: Vec<usize>| Net {
        seed: 1,
        stretch: vec![1.5; widths.len() - 1],
        widths,
        activation,
        leading: false,
        kappa: 0.9,
        iterations: None,
    };
    let rows = [(Nonlinearity::LipSwish, vec![3, 4, 4, 4, 3]), (Nonlinearity::ClipSwish, vec![3, 4, 3])];
    for (activation, widths) in rows {
        let net = net(activation, widths).sequence(&b).prepare(&b);
        let (_, saved) = net.forward(&b, &Batch::new(normal(&b, Key::new(2), [2, 3])), Derivatives::First);
        assert!(net.traces(&b, &saved).is_empty() && net.control(&b, &saved).is_none());
    }
    let image = image_net(&b, [3, 2, 1], 4, Nonlinearity::Tanh, false, Key::new(3)).prepare(&b);
    let (_, saved) = image.forward(&b, &Batch::new(normal(&b, Key::new(4), [2, 3, 2, 1])), Derivatives::First);
    assert!(image.traces(&b, &saved).is_empty() && image.control(&b, &saved).is_none());
}
