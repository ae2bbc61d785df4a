//! Activations: φ, φ', φ'' and LipSwish's derivative in its raw β, by the formula of one number, by the backend's fused
//! operation and by the layer. Compared over all x, and once more inside |x| ≤ 6 where large values of φ hide nothing.

use resflow::backend::{Activation, Backend, Element as _};
use resflow::batch::Batch;
use resflow::layer::{ActivationLayer, Derivatives, Layer, LayerGrads};

use crate::asking::count_grads;
use crate::fixture::{Comparison, Fixture, host};

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

impl Points<'_> {
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
    let points = Points { file: &file, central: (0..x.len()).filter(|&i| x[i].abs() <= 6.0).collect() };
    let b = BETA.exp().ln_1p();
    for (function, name) in FUNCTIONS {
        let values: Vec<_> = x.iter().map(|&x| function.derivatives(c(x), c(b))).collect();
        let row = file.tensor(backend, "x");
        let parameter = function.has_parameter().then(|| backend.full(b, [1].into()));
        let fused = backend.activation(function, parameter.as_ref(), &row, 2);
        for (order, suffix) in ["y", "d1", "d2"].into_iter().enumerate() {
            let key = format!("{name}.{suffix}");
            let formula: Vec<f64> = values.iter().map(|v| v[order].to_f64()).collect();
            points.close(&mut comparison, &key, "by the formula", &formula);
            points.close(&mut comparison, &key, "fused", &host(backend, &fused[order]));
        }
        layer(&mut comparison, backend, &points, function, name);
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
