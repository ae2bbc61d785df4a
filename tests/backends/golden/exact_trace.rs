//! Known traces: tr J and tr J² of nets with one and with two hidden layers and their gradients, and the series that begins
//! behind them, with the reference's probe v and coefficients c_k, by weights of the batch and of each row.

use resflow::backend::{Activation, Backend};
use resflow::batch::Batch;
use resflow::estimator::{Known, Weights, series_beyond};
use resflow::layer::{
    ActivationLayer, Derivatives, Layer, LayerGrads, LipschitzLinear, PreparedLayer, Saved, Sequence, WeightedTraces,
};
use resflow::module::{Grad, Module as _, Role};

use crate::golden::fixture::{Comparison, Fixture, host};

const FUNCTIONS: [(Activation, &str); 4] = [
    (Activation::LipSwish, "lipswish"),
    (Activation::Tanh, "tanh"),
    (Activation::Softplus, "softplus"),
    (Activation::Sin, "sine"),
];

/// Compares every tensor of the file.
pub(crate) fn compare<B: Backend>(backend: &B) {
    let file = Fixture::open("exact_trace");
    let mut comparison = Comparison::new::<B>("exact traces");
    for (function, name) in FUNCTIONS {
        for (layers, depth) in [(2, "one"), (3, "two")] {
            let key = format!("{depth}.{name}.");
            Net::new(backend, &file, key, function, layers).compare(&mut comparison);
        }
    }
    // tr J² of two hidden layers is not cheap
    file.mark_read(|key| key.starts_with("two.") && key.contains("square"));
    comparison.finish();
    file.assert_all_read();
}

struct Net<'a, B: Backend> {
    backend: &'a B,
    file: &'a Fixture,
    key: String,
    chain: Sequence<B>,
    prepared: Box<dyn PreparedLayer<B>>,
    saved: Saved<B>,
    x: B::Tensor,
    layers: usize,
}

/// The gradients in x and in the parameters that are compared, by name.
type Gradients = Vec<(String, Vec<f64>)>;

impl<'a, B: Backend> Net<'a, B> {
    fn new(backend: &'a B, file: &'a Fixture, key: String, function: Activation, layers: usize) -> Self {
        let tensor = |name: &str| file.tensor(backend, &format!("{key}{name}"));
        let mut chain: Vec<Box<dyn Layer<B>>> = Vec::new();
        for i in 1..=layers {
            if i > 1 {
                chain.push(Box::new(ActivationLayer::new(backend, function)));
            }
            let (weight, bias) = (tensor(&format!("W{i}")), tensor(&format!("b{i}")));
            chain.push(Box::new(LipschitzLinear::free(backend, weight, bias).expect("a layer")));
        }
        let chain = Sequence::new(chain);
        let prepared = chain.prepare(backend);
        let x = tensor("x");
        let (_, saved) = prepared.forward(backend, &Batch::new(x.clone()), Derivatives::Second);
        Self { backend, file, key, chain, prepared, saved, x, layers }
    }

    fn values(&self, name: &str) -> &'a [f64] {
        self.file.values(&format!("{}{name}", self.key))
    }

    fn compare(&self, comparison: &mut Comparison) {
        let (backend, key) = (self.backend, &self.key);
        let value = self.prepared.forward(backend, &Batch::new(self.x.clone()), Derivatives::None).0;
        comparison.tensor(backend, &format!("{key}g"), &value, self.values("g"));
        // evaluation keeps less
        let (_, first) = self.prepared.forward(backend, &Batch::new(self.x.clone()), Derivatives::First);
        for saved in [&self.saved, &first] {
            let traces = self.prepared.traces(backend, saved);
            comparison.tensor(backend, &format!("{key}trace"), &traces[0], self.values("trace"));
            assert_eq!(traces.len(), 4 - self.layers);
            if let Some(square) = traces.get(1) {
                comparison.tensor(backend, &format!("{key}trace_of_square"), square, self.values("trace_of_square"));
            }
        }
        let weight = self.file.tensor(backend, &format!("{key}weight"));
        let weight = backend.reshape(&weight, [backend.shape(&weight).elements(), 1].into());
        let of_trace = self.gradients(1, &weight, None);
        for (name, gradient) in &of_trace {
            comparison.close(&format!("{key}{name}"), gradient, self.values(name));
        }
        if self.layers == 2 {
            // that of tr J − tr J²/2
            for ((name, both), (_, trace)) in self.gradients(2, &weight, None).into_iter().zip(&of_trace) {
                let square: Vec<f64> = trace.iter().zip(&both).map(|(t, b)| 2.0 * (t - b)).collect();
                let name = format!("square.{name}");
                if self.file.has(&format!("{key}{name}")) {
                    comparison.close(&format!("{key}{name}"), &square, self.values(&name));
                }
            }
        }
        self.series(comparison, 1, "est");
        if self.layers == 2 {
            self.series(comparison, 2, "est2");
        }
    }

    fn series(&self, comparison: &mut Comparison, powers: usize, name: &str) {
        let (backend, rows) = (self.backend, self.backend.shape(&self.x).rows());
        let coefficients = self.values("est.coefficients").to_vec();
        let probe = self.file.tensor(backend, &format!("{}est.probe", self.key));
        let mut traces = self.prepared.traces(backend, &self.saved);
        traces.truncate(powers);
        let known = Known::Traces(traces);
        let per_row = Weights::rows(backend, &vec![coefficients.clone(); rows]).1;
        for (how, weights) in [("batch", Weights::Batch(coefficients)), ("rows", per_row)] {
            let (value, surrogate) =
                series_beyond(backend, &*self.prepared, &self.saved, &known, &probe, &weights, true);
            let u = surrogate.expect("asked for").u;
            let key = |part: &str| format!("{}{name}.{part} {how}", self.key);
            comparison.tensor(backend, &key("value"), &value.0, self.values(&format!("{name}.value")));
            comparison.tensor(backend, &key("u"), &u, self.values(&format!("{name}.u")));
            let (value, none) = series_beyond(backend, &*self.prepared, &self.saved, &known, &probe, &weights, false);
            assert!(none.is_none(), "a surrogate that was not asked for");
            comparison.tensor(backend, &key("value alone"), &value.0, self.values(&format!("{name}.value")));
            let ones = backend.full(1.0, [rows, 1].into());
            for (part, gradient) in self.gradients(powers, &ones, Some((&probe, u))) {
                comparison.close(&key(&part), &gradient, self.values(&format!("{name}.{part}")));
            }
        }
    }

    /// The gradients of weighted traces, and of uᵀJv.
    fn gradients(&self, powers: usize, weights: &B::Tensor, pair: Option<(&B::Tensor, B::Tensor)>) -> Gradients {
        let backend = self.backend;
        let mut count = 0;
        self.chain.visit("", &mut |_, _, role: Role| count += usize::from(role.is_trained()));
        let mut grads: Vec<Grad<B>> = vec![None; count];
        let (tangents, cotangents): (Vec<_>, Vec<_>) =
            pair.into_iter().map(|(v, u)| (self.prepared.keep_tangent(backend, &self.saved, v), u)).unzip();
        let (gx, _) = self.prepared.tangent_trace_vjp(
            backend,
            &self.saved,
            &tangents.iter().collect::<Vec<_>>(),
            WeightedTraces { powers, weights },
            backend.full(0.0, backend.shape(&self.x)),
            cotangents,
            LayerGrads { trained: &mut grads, context: &mut None },
        );
        self.prepared.finish_gradients(backend, &mut grads);
        let mut found = vec![("grad_x".to_owned(), host(backend, &gx))];
        let mut grads = grads.into_iter();
        self.chain.visit("", &mut |name, _, role| {
            if !role.is_trained() {
                return;
            }
            let gradient = grads.next().flatten().expect("a gradient of every parameter");
            let (layer, part) = name.split_once('.').expect("a layer's number");
            let layer = layer.parse::<usize>().expect("a number") / 2 + 1;
            match part {
                "weight" => found.push((format!("grad.W{layer}"), host(backend, &gradient))),
                "bias" => found.push((format!("grad.b{layer}"), host(backend, &gradient))),
                _ => {}
            }
        });
        found
    }
}
