//! Activations: φ, φ', φ'' and LipSwish's derivative in its raw β, by the formula of one number, by the backend's fused
//! operation and by the layer; what is made of several functions by the layer alone. Compared over all x, and once more inside |x| ≤ 6 where large values of φ hide nothing.

use resflow::backend::{Activation, Backend, Element as _};
use resflow::batch::Batch;
use resflow::config::Nonlinearity;
use resflow::layer::{ActivationLayer, Derivatives, Layer, LayerGrads, activation_layer};

use crate::common::asking::count_grads;
use crate::golden::fixture::{Comparison, Fixture, host};

const FUNCTIONS: [(Activation, &str); 6] = [
    (Activation::LipSwish, "lipswish"),
    (Activation::Elu, "elu"),
    (Activation::Softplus, "softplus"),
    (Activation::Tanh, "tanh"),
    (Activation::Relu, "relu"),
    (Activation::LipschitzCube, "lipschitz_cube"),
];
const BETA: f64 = 0.5;

struct Points<'a> {
    file: &'a Fixture,
    central: Vec<usize>,
}

impl<'a> Points<'a> {
    fn of(file: &'a Fixture) -> Self {
        let x = file.values("x");
        Self { file, central: (0..x.len()).filter(|&i| x[i].abs() <= 6.0).collect() }
    }

    fn close(&self, comparison: &mut Comparison, key: &str, how: &str, actual: &[f64]) {
        let reference = self.file.values(key);
        comparison.close(&format!("{key} {how}"), actual, reference);
        let central = |values: &[f64]| self.central.iter().map(|&i| values[i]).collect::<Vec<_>>();
        comparison.close(&format!("{key} {how}, |x| ≤ 6"), &central(actual), &central(reference));
    }
}

/// Compares every tensor of the file.
pub(crate) fn compare<B: Backend>(backend: &B) {
    let file = Fixture::open("activations");
    let mut comparison = Comparison::new::<B>("activations");
    let c = B::Elem::from_f64;
    let x = file.values("x");
    let points = Points::of(&file);
    let b = BETA.exp().ln_1p();
    for (function, name) in FUNCTIONS {
        elementwise(&mut comparison, backend, &points, function, name);
    }
    // d softplus(β) = σ(β)
    let slope = 1.0 / (1.0 + (-BETA).exp());
    let formula = x.iter().map(|&x| {
        let values = Activation::LipSwish.derivatives(c(x), c(b));
        Activation::LipSwish.parameter_derivatives(c(x), c(b), values)[0].to_f64() * slope
    });
    points.close(&mut comparison, "lipswish.dbeta", "by the formula", &formula.collect::<Vec<_>>());
    comparison.finish();
    file.assert_all_read();
}

/// A function that backends know.
fn elementwise<B: Backend>(
    comparison: &mut Comparison,
    backend: &B,
    points: &Points<'_>,
    function: Activation,
    name: &str,
) {
    let c = B::Elem::from_f64;
    let b = BETA.exp().ln_1p();
    let values: Vec<_> = points.file.values("x").iter().map(|&x| function.derivatives(c(x), c(b))).collect();
    let row = points.file.tensor(backend, "x");
    let parameter = function.has_parameter().then(|| backend.full(b, [1].into()));
    let fused = backend.activation(function, parameter.as_ref(), &row, 2);
    for (order, suffix) in ["y", "d1", "d2"].into_iter().enumerate() {
        let key = format!("{name}.{suffix}");
        let formula: Vec<f64> = values.iter().map(|v| v[order].to_f64()).collect();
        points.close(comparison, &key, "by the formula", &formula);
        points.close(comparison, &key, "fused", &host(backend, &fused[order]));
    }
    layer(comparison, backend, points, function, name);
}

/// Compares every tensor of the second file.
pub(crate) fn compare_more<B: Backend>(backend: &B) {
    let file = Fixture::open("activations2");
    let mut comparison = Comparison::new::<B>("activations2");
    let points = Points::of(&file);
    elementwise(&mut comparison, backend, &points, Activation::Sin, "sine");
    elementwise(&mut comparison, backend, &points, Activation::Pila, "pila");
    for (which, name, raw) in [
        (Nonlinearity::ClipSwish, "clipswish", &["dbeta"][..]),
        (Nonlinearity::ConcatenatedPila, "cpila", &[]),
        (Nonlinearity::LeakyLipSwish, "leaky_lswish", &["dalpha", "dbeta"]),
    ] {
        made_of_others(&mut comparison, backend, &file, which, name, raw);
    }
    comparison.finish();
    file.assert_all_read();
}

/// A layer of `width` numbers for each x, of which the file has one row each: y, φ', φ'' and the gradients of its raw parameters.
fn made_of_others<B: Backend>(
    comparison: &mut Comparison,
    backend: &B,
    file: &Fixture,
    which: Nonlinearity,
    name: &str,
    raw: &[&str],
) {
    let layer = activation_layer(backend, which);
    let prepared = layer.prepare(backend);
    let (n, width) = (file.values("x").len(), which.widening());
    let x = backend.reshape(&file.tensor(backend, "x"), [n, 1].into());
    let unit = |rows: usize, column: usize| {
        let values = (0..rows * width).map(|i| B::Elem::from_f64(f64::from(u8::from(i % width == column))));
        backend.upload(&values.collect::<Vec<_>>(), [rows, width].into())
    };
    let (y, saved) = prepared.forward(backend, &Batch::new(x.clone()), Derivatives::Second);
    let y = host(backend, &y);
    let by_column: Vec<f64> = (0..width).flat_map(|j| y.iter().skip(j).step_by(width).copied()).collect();
    comparison.close(&format!("{name}.y"), &by_column, file.values(&format!("{name}.y")));
    let (_, first) = prepared.forward(backend, &Batch::new(x.clone()), Derivatives::First);
    let (_, tangent) = prepared.jvp(backend, &saved, &backend.full(1.0, [n, 1].into()));
    let (mut slopes, mut curvatures) = (Vec::new(), Vec::new());
    for j in 0..width {
        let slope = host(backend, &prepared.vjp(backend, &saved, unit(n, j)));
        assert_eq!(slope, host(backend, &prepared.vjp(backend, &first, unit(n, j))), "{name}: φ' of either order");
        slopes.extend(slope);
        let mut grads = vec![None; count_grads(&*layer)];
        let grads = LayerGrads { trained: &mut grads, context: &mut None };
        let (none, gdy) = (backend.full(0.0, [n, width].into()), vec![unit(n, j)]);
        let (curvature, gdx) = prepared.tangent_vjp(backend, &saved, &[&tangent], none, gdy, grads);
        curvatures.extend(host(backend, &curvature));
        comparison.close(&format!("{name}.d1 of a tangent"), &host(backend, &gdx[0]), &slopes[j * n..]);
    }
    comparison.close(&format!("{name}.d1"), &slopes, file.values(&format!("{name}.d1")));
    comparison.close(&format!("{name}.d2"), &curvatures, file.values(&format!("{name}.d2")));
    // one point at a time, since a gradient is a sum
    let mut gradients = vec![Vec::new(); raw.len()];
    for (j, i) in (0..width).flat_map(|j| (0..n).map(move |i| (j, i))).filter(|_| !raw.is_empty()) {
        let (_, saved) = prepared.forward(backend, &Batch::new(backend.narrow(&x, 0, i, 1)), Derivatives::Second);
        let mut grads = vec![None; count_grads(&*layer)];
        let own = LayerGrads { trained: &mut grads, context: &mut None };
        prepared.tangent_vjp(backend, &saved, &[], unit(1, j), Vec::new(), own);
        prepared.finish_gradients(backend, &mut grads);
        for (list, grad) in gradients.iter_mut().zip(&grads) {
            list.push(host(backend, grad.as_ref().expect("a gradient"))[0]);
        }
    }
    for (suffix, gradient) in raw.iter().zip(&gradients) {
        comparison.close(&format!("{name}.{suffix}"), gradient, file.values(&format!("{name}.{suffix}")));
    }
}

/// The layer: y, φ' as a vjp, φ'' as the pullback of a tangent, and the gradient in β.
fn layer<B: Backend>(comparison: &mut Comparison, backend: &B, points: &Points<'_>, function: Activation, name: &str) {
    let layer = ActivationLayer::new(backend, function);
    let prepared = layer.prepare(backend);
    let n = points.file.values("x").len();
    let x = backend.reshape(&points.file.tensor(backend, "x"), [n, 1].into());
    let ones = |rows: usize| backend.full(1.0, [rows, 1].into());
    let (y, saved) = prepared.forward(backend, &Batch::new(x.clone()), Derivatives::Second);
    points.close(comparison, &format!("{name}.y"), "of the layer", &host(backend, &y));
    let (_, first) = prepared.forward(backend, &Batch::new(x.clone()), Derivatives::First);
    for (how, saved) in [("of the layer", &saved), ("of the layer, first", &first)] {
        let slope = prepared.vjp(backend, saved, ones(n));
        points.close(comparison, &format!("{name}.d1"), how, &host(backend, &slope));
    }
    let (_, tangent) = prepared.jvp(backend, &saved, &ones(n));
    let mut grads = vec![None; count_grads(&layer)];
    let none = backend.full(0.0, [n, 1].into());
    let (curvature, _) = prepared.tangent_vjp(
        backend,
        &saved,
        &[&tangent],
        none,
        vec![ones(n)],
        LayerGrads { trained: &mut grads, context: &mut None },
    );
    points.close(comparison, &format!("{name}.d2"), "of the layer", &host(backend, &curvature));

    if function.has_parameter() {
        // one point at a time, since the gradient is a sum
        let gradients = (0..n).map(|i| {
            let point = Batch::new(backend.narrow(&x, 0, i, 1));
            let (_, saved) = prepared.forward(backend, &point, Derivatives::Second);
            let mut grads = vec![None; count_grads(&layer)];
            prepared.tangent_vjp(
                backend,
                &saved,
                &[],
                ones(1),
                Vec::new(),
                LayerGrads { trained: &mut grads, context: &mut None },
            );
            prepared.finish_gradients(backend, &mut grads);
            host(backend, grads[0].as_ref().expect("a gradient"))[0]
        });
        points.close(comparison, &format!("{name}.dbeta"), "of the layer", &gradients.collect::<Vec<_>>());
    }
}
