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
use resflow::batch::Batch;
use resflow::estimator::{Law, RussianRoulette, Weights, differentiated, exact_log_det, jacobian, series};
use resflow::layer::{Derivatives, Layer, LayerGrads, PreparedLayer, Saved};
use resflow::module::{Grad, Role};

use crate::golden::fixture::{Comparison, Fixture, host};

/// A block's net at x.
struct Net<'a, B: Backend> {
    backend: &'a B,
    /// The prefix of its parameters' names.
    parameters: Parameters<'a, B>,
    /// Their number.
    grads: usize,
    prepared: Box<dyn PreparedLayer<B>>,
    saved: Saved<B>,
    x: B::Tensor,
    rows: usize,
    row: Vec<usize>,
}

/// Shows name (inside the net), tensor and role.
type Parameters<'a, B> = Box<dyn Fn(&mut dyn FnMut(&str, &<B as Backend>::Tensor, Role)) + 'a>;

/// Compares every `est.*` of a dense flow's first block.
pub(crate) fn compare<B: Backend>(comparison: &mut Comparison, backend: &B, layer: &dyn Layer<B>, file: &Fixture) {
    let x = file.tensor(backend, "x");
    let parameters: Parameters<'_, B> = Box::new(|f| layer.visit("", f));
    let net = Net::new(backend, layer.prepare(backend), parameters, x);
    comparison.tensor(backend, "est.g", &net.value(), file.values("est.g"));
    let law = Law::ShiftedGeometric { p: file.note("geometric_p") };
    net.estimators(comparison, file, law, file.note("n_exact_terms"), file.note("n_terms"));
    net.exact(comparison, file);
}

/// Compares every `est.*` of an image flow's block.
pub(crate) fn compare_images<B: Backend>(
    comparison: &mut Comparison,
    backend: &B,
    layer: &dyn Layer<B>,
    file: &Fixture,
) {
    assert_eq!(file.text("est_law"), "poisson(2), 2 exact terms, 6 terms");
    let x = backend.permute(&file.tensor(backend, "est.x"), &[0, 2, 3, 1]);
    let parameters: Parameters<'_, B> = Box::new(|f| layer.visit("", f));
    let net = Net::new(backend, layer.prepare(backend), parameters, x);
    comparison.close("est.g", &theirs(backend, &net.value()), file.values("est.g"));
    net.estimators(comparison, file, Law::Poisson { rate: 2.0 }, 2, 6);
}

/// The numbers of a tensor in the reference's order: images and kernels have their channels second.
fn theirs<B: Backend>(backend: &B, x: &B::Tensor) -> Vec<f64> {
    if backend.shape(x).rank() == 4 { host(backend, &backend.permute(x, &[0, 3, 1, 2])) } else { host(backend, x) }
}

impl<'a, B: Backend> Net<'a, B> {
    fn new(backend: &'a B, prepared: Box<dyn PreparedLayer<B>>, parameters: Parameters<'a, B>, x: B::Tensor) -> Self {
        let (_, saved) = prepared.forward(backend, &Batch::new(x.clone()), Derivatives::Second);
        let mut grads = 0;
        parameters(&mut |_, _, role| grads += usize::from(role.is_trained()));
        let shape = backend.shape(&x);
        Self { backend, parameters, grads, prepared, saved, rows: shape.rows(), row: shape[1..].to_vec(), x }
    }

    /// g(x).
    fn value(&self) -> B::Tensor {
        self.prepared.forward(self.backend, &Batch::new(self.x.clone()), Derivatives::None).0
    }

    fn estimators(&self, comparison: &mut Comparison, file: &Fixture, law: Law, exact: usize, terms: usize) {
        let backend = self.backend;
        let roulette = RussianRoulette::new(law, exact).expect("a law");
        let coefficients = roulette.coefficients(&[(terms - exact) as u64]);
        comparison.close("est.coefficients", &coefficients, file.values("est.coefficients"));

        let probe = file.tensor(backend, "est.probe");
        let probe = if self.row.len() == 3 { backend.permute(&probe, &[0, 2, 3, 1]) } else { probe };
        let per_row = Weights::rows(backend, &vec![coefficients.clone(); self.rows]).1;
        for (how, weights) in [("batch", Weights::Batch(coefficients.clone())), ("rows", per_row)] {
            self.neumann(comparison, file, &probe, &weights, how);
        }
        self.gradient_of_series(comparison, file, &probe, &coefficients);
    }

    fn neumann(&self, comparison: &mut Comparison, file: &Fixture, probe: &B::Tensor, weights: &Weights<B>, how: &str) {
        let (backend, net) = (self.backend, &*self.prepared);
        let (value, surrogate) = series(backend, net, &self.saved, probe, weights, true);
        comparison.tensor(backend, &format!("est.basic.value, {how}"), &value.0, file.values("est.basic.value"));
        // evaluation keeps less and asks for no surrogate
        let (_, first) = net.forward(backend, &Batch::new(self.x.clone()), Derivatives::First);
        let (value, none) = series(backend, net, &first, probe, weights, false);
        assert!(none.is_none(), "a surrogate that was not asked for");
        comparison.tensor(backend, &format!("est.basic.value, {how}, first"), &value.0, file.values("est.basic.value"));

        let u = surrogate.expect("asked for").u;
        let (jv, tangent) = net.jvp(backend, &self.saved, probe);
        let flat = |x: &B::Tensor| backend.reshape(x, [self.rows, self.row.iter().product()].into());
        let value = backend.dot_rows(&flat(&u), &flat(&jv));
        comparison.tensor(backend, &format!("est.neumann.value, {how}"), &value, file.values("est.neumann.value"));
        self.finish_gradients(comparison, file, "est.neumann", how, &[&tangent], vec![u]);
    }

    fn gradient_of_series(&self, comparison: &mut Comparison, file: &Fixture, probe: &B::Tensor, coefficients: &[f64]) {
        let (backend, net) = (self.backend, &*self.prepared);
        let d = differentiated(backend, net, &self.saved, probe, &[coefficients.to_vec()]);
        comparison.tensor(backend, "est.basic.value, differentiated", &d.value, file.values("est.basic.value"));
        let kept: Vec<_> = d.tangents.iter().map(|t| net.keep_tangent(backend, &self.saved, t)).collect();
        self.finish_gradients(comparison, file, "est.basic", "", &kept.iter().collect::<Vec<_>>(), d.cotangents);
    }

    /// The gradient in x and in every parameter.
    fn finish_gradients(
        &self,
        comparison: &mut Comparison,
        file: &Fixture,
        key: &str,
        how: &str,
        tangents: &[&Saved<B>],
        cotangents: Vec<B::Tensor>,
    ) {
        let (backend, net) = (self.backend, &*self.prepared);
        let mut grads: Vec<Grad<B>> = vec![None; self.grads];
        let none = backend.full(0.0, backend.shape(&self.x));
        let (gx, _) = net.tangent_vjp(
            backend,
            &self.saved,
            tangents,
            none,
            cotangents,
            LayerGrads { trained: &mut grads, context: &mut None },
        );
        net.finish_gradients(backend, &mut grads);
        let name = format!("{key}.grad_x");
        comparison.close(&format!("{name} {how}"), &theirs(backend, &gx), file.values(&name));
        let mut grads = grads.into_iter();
        (self.parameters)(&mut |name, _, role| {
            if role.is_trained() {
                let gradient = grads.next().flatten().expect("a gradient of every parameter");
                let name = format!("{key}.grad.{name}");
                comparison.close(&format!("{name} {how}"), &theirs(backend, &gradient), file.values(&name));
            }
        });
        assert!(grads.next().is_none(), "a slot that belongs to no parameter");
    }

    fn exact(&self, comparison: &mut Comparison, file: &Fixture) {
        let (backend, net, rows, d) = (self.backend, &*self.prepared, self.rows, self.row[0]);
        let exact = exact_log_det(backend, net, &self.saved, rows, &[d], false);
        comparison.tensor(backend, "est.exact_logdet", &exact.value.0, file.values("est.exact_logdet"));

        let reference = file.values("est.partial_sums");
        let terms = file.shape("est.partial_sums")[1];
        let j = host(backend, &jacobian(backend, net, &self.saved, rows, &[d]));
        let sums: Vec<f64> = j.chunks_exact(d * d).flat_map(|j| partial_sums(j, d, terms)).collect();
        comparison.close("est.partial_sums of the Jacobian", &sums, reference);

        let unit_probes = exact_log_det(backend, net, &self.saved, rows, &[d], true).probes;
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
