//! The estimators on one block's g, with the reference's probe v and coefficients c_k.
//!
//! * g, and log det(I + J) by LU; the series with exact traces, cut after K terms, from the Jacobian and from unit vectors as
//!   probes, the latter also with other lengths and weights in each row;
//! * the series' value and u, with weights of the batch and of each row; u by the surrogate uᵀJv, its gradient in x and in
//!   every parameter;
//! * the gradient of the series itself (probe and coefficients constant), which no estimator of the library uses but its
//!   derivatives give:
//!   ∂ Σ_k a_k vᵀJᵏv = Σ_k a_k Σ_{i+j=k−1} ((Jᵀ)ʲv)ᵀ ∂J (Jⁱv) with a_k = (−1)^{k+1} c_k/k, that is the
//!   pullback of the tangents Jⁱv with the cotangents Σ_j a_{i+j+1} (Jᵀ)ʲv.

use resflow::backend::Backend;
use resflow::estimator::{Law, RussianRoulette, Weights, exact_log_det, jacobian, series};
use resflow::layer::{Keep, Layer, PreparedLayer, Saved, Slot};

use crate::fixture::{Comparison, Fixture, host};

/// A block's net at x.
struct Net<'a, B: Backend> {
    backend: &'a B,
    layer: &'a dyn Layer<B>,
    prepared: Box<dyn PreparedLayer<B>>,
    saved: Saved<B>,
    rows: usize,
    dimension: usize,
}

/// Compares every `est.*`.
pub(crate) fn compare<B: Backend>(comparison: &mut Comparison, backend: &B, layer: &dyn Layer<B>, file: &Fixture) {
    let x = file.tensor(backend, "x");
    let shape = backend.shape(&x);
    let prepared = layer.prepare(backend);
    let (g, saved) = prepared.forward(backend, &x, Keep::Second);
    comparison.tensor(backend, "est.g", &g, file.values("est.g"));
    let net = Net { backend, layer, prepared, saved, rows: shape.rows(), dimension: shape[1] };

    let terms: usize = file.note("n_terms");
    let exact: usize = file.note("n_exact_terms");
    let law = Law::ShiftedGeometric { p: file.note("geometric_p") };
    let roulette = RussianRoulette::new(law, exact).expect("a law");
    let coefficients = roulette.coefficients(&[(terms - exact) as u64]);
    comparison.close("est.coefficients", &coefficients, file.values("est.coefficients"));

    let probe = file.tensor(backend, "est.probe");
    let per_row = Weights::rows(backend, &vec![coefficients.clone(); net.rows]).1;
    for (how, weights) in [("batch", Weights::Batch(coefficients.clone())), ("rows", per_row)] {
        net.neumann(comparison, file, &probe, &weights, how);
    }
    net.gradient_of_series(comparison, file, &probe, &coefficients);
    net.exact(comparison, file);
}

impl<B: Backend> Net<'_, B> {
    fn neumann(&self, comparison: &mut Comparison, file: &Fixture, probe: &B::Tensor, weights: &Weights<B>, how: &str) {
        let (backend, net) = (self.backend, &*self.prepared);
        let (value, surrogate) = series(backend, net, &self.saved, probe, weights, true);
        comparison.tensor(backend, &format!("est.basic.value, {how}"), &value.0, file.values("est.basic.value"));
        // evaluation keeps less and asks for no surrogate
        let (_, first) = net.forward(backend, &file.tensor(backend, "x"), Keep::First);
        let (value, none) = series(backend, net, &first, probe, weights, false);
        assert!(none.is_none(), "a surrogate that was not asked for");
        comparison.tensor(backend, &format!("est.basic.value, {how}, first"), &value.0, file.values("est.basic.value"));

        let u = surrogate.expect("asked for").u;
        let (jv, tangent) = net.jvp(backend, &self.saved, probe);
        let value = backend.dot_rows(&u, &jv);
        comparison.tensor(backend, &format!("est.neumann.value, {how}"), &value, file.values("est.neumann.value"));
        self.pull_back(comparison, file, "est.neumann", how, &[&tangent], vec![u]);
    }

    fn gradient_of_series(&self, comparison: &mut Comparison, file: &Fixture, probe: &B::Tensor, coefficients: &[f64]) {
        let (backend, net) = (self.backend, &*self.prepared);
        let terms = coefficients.len();
        let mut adjoints = vec![probe.clone()];
        let mut tangents = Vec::new();
        let mut tangent = probe.clone();
        for i in 0..terms {
            adjoints.push(net.vjp(backend, &self.saved, adjoints[i].clone()));
            let (next, kept) = net.jvp(backend, &self.saved, &tangent);
            tangent = next;
            tangents.push(kept);
        }
        let weight = |k: usize| if k % 2 == 1 { 1.0 } else { -1.0 } * coefficients[k - 1] / k as f64;
        let cotangents = (0..terms).map(|i| {
            let zero = backend.full(0.0, backend.shape(probe));
            (0..terms - i).fold(zero, |sum, j| backend.axpy(weight(i + j + 1), &adjoints[j], sum))
        });
        self.pull_back(comparison, file, "est.basic", "", &tangents.iter().collect::<Vec<_>>(), cotangents.collect());
    }

    /// The gradient in x and in every parameter.
    fn pull_back(
        &self,
        comparison: &mut Comparison,
        file: &Fixture,
        key: &str,
        how: &str,
        tangents: &[&Saved<B>],
        cotangents: Vec<B::Tensor>,
    ) {
        let (backend, net) = (self.backend, &*self.prepared);
        let mut slots: Vec<Slot<B>> = vec![None; net.slots()];
        let none = backend.full(0.0, [self.rows, self.dimension].into());
        let (gx, _) = net.tangent_vjp(backend, &self.saved, tangents, none, cotangents, &mut slots);
        net.pull_back(backend, &mut slots);
        comparison.tensor(backend, &format!("{key}.grad_x {how}"), &gx, file.values(&format!("{key}.grad_x")));
        let mut slots = slots.into_iter();
        self.layer.visit("grad", &mut |name, _, role| {
            if role.is_trained() {
                let gradient = slots.next().flatten().expect("a gradient of every parameter");
                let name = format!("{key}.{name}");
                comparison.tensor(backend, &format!("{name} {how}"), &gradient, file.values(&name));
            }
        });
        assert!(slots.next().is_none(), "a slot that belongs to no parameter");
    }

    fn exact(&self, comparison: &mut Comparison, file: &Fixture) {
        let (backend, net, rows, d) = (self.backend, &*self.prepared, self.rows, self.dimension);
        let exact = exact_log_det(backend, net, &self.saved, rows, d, false);
        comparison.tensor(backend, "est.exact_logdet", &exact.value.0, file.values("est.exact_logdet"));

        let reference = file.values("est.partial_sums");
        let terms = file.shape("est.partial_sums")[1];
        let j = host(backend, &jacobian(backend, net, &self.saved, rows, d));
        let sums: Vec<f64> = j.chunks_exact(d * d).flat_map(|j| partial_sums(j, d, terms)).collect();
        comparison.close("est.partial_sums of the Jacobian", &sums, reference);

        let unit_probes = exact_log_det(backend, net, &self.saved, rows, d, true).probes;
        let trace = |saved: &Saved<B>, weights: &Weights<B>| {
            let values = unit_probes.iter().map(|e| series(backend, net, saved, e, weights, false).0.0);
            host(backend, &values.reduce(|a, b| backend.axpy(1.0, &b, a)).expect("d > 0"))
        };
        for k in 1..=terms {
            let sums: Vec<f64> = (0..rows).map(|r| reference[r * terms + k - 1]).collect();
            comparison.close(
                &format!("est.partial_sums, {k} terms"),
                &trace(&self.saved, &Weights::Batch(vec![1.0; k])),
                &sums,
            );
        }
        // rows of different lengths and weights, in an order that the weights choose
        let coefficients: Vec<Vec<f64>> =
            (0..rows).map(|r| (1..=1 + 7 * r % terms).map(|k| 1.0 + 0.25 * ((r + k) % 4) as f64).collect()).collect();
        let (order, weights) = Weights::rows(backend, &coefficients);
        let sums = order.iter().map(|&r| {
            let sums = &reference[r as usize * terms..];
            let term = |k: usize| sums[k] - if k == 0 { 0.0 } else { sums[k - 1] };
            coefficients[r as usize].iter().enumerate().map(|(k, c)| c * term(k)).sum()
        });
        let sums: Vec<f64> = sums.collect();
        let sorted = self.saved.take_rows(backend, &order);
        comparison.close("est.partial_sums, ragged", &trace(&sorted, &weights), &sums);
    }
}

/// Σ_{k≤K} (−1)^{k+1} tr(Jᵏ)/k for K = 1, 2, …
fn partial_sums(j: &[f64], d: usize, terms: usize) -> Vec<f64> {
    let mut power = j.to_vec();
    let mut sum = 0.0;
    (1..=terms)
        .map(|k| {
            let trace: f64 = (0..d).map(|i| power[i * d + i]).sum();
            sum += if k % 2 == 1 { trace } else { -trace } / k as f64;
            let entry = |e: usize| (0..d).map(|m| power[e / d * d + m] * j[m * d + e % d]).sum();
            power = (0..d * d).map(entry).collect();
            sum
        })
        .collect()
}
