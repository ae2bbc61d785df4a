//! Estimates of log det(I + J) at samples where a forward pass has kept what the products with J need.
//!
//! Whoever has a vector-Jacobian product ([`Vjp`]) has the log det: independent replicates for an evaluation
//! ([`Estimate::replicates`]), or one value with the surrogates of its gradient for a training step
//! ([`Estimate::surrogates`]). Noise is addressed by the number of the sample in the whole batch, so it does not depend
//! on how the batch is cut, and results do by rounding only.

use resflow_backend::{Backend, Key};

use super::{
    CostModel, Draw, Estimator, Expansion, Known, LogDet, Phase, Probe, RussianRoulette, Sharing, Traces, Vjp, Weights,
    differentiated,
};
use crate::layer::{PreparedLayer, Saved};

/// The part of the products of all replicates that an exact first trace may cost: it has a fraction of a control variate's
/// variance.
const DEAR: f64 = 0.5;

/// The samples at which a log det is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Samples<'a> {
    /// n, the number of samples.
    pub count: usize,
    /// The shape of a sample, without the axis of samples.
    pub shape: &'a [usize],
    /// The number of the first sample in the whole batch.
    pub first: u64,
}

/// Surrogates of a log det: probes v and cotangents u, `[n, …]`; the sum of uᵀJv has its gradient, together with that of
/// the traces that are known.
#[derive(Debug, Clone)]
pub struct Surrogates<B: Backend> {
    /// The value, `[n, 1]`, nats.
    pub log_det: LogDet<B>,
    /// The probes v, `[n, …]`.
    pub probes: Vec<B::Tensor>,
    /// The cotangents u, `[n, …]`, divided by the number of probes that are averaged.
    pub cotangents: Vec<B::Tensor>,
    /// m, the number of traces that are known: the gradient of Σ_{k≤m} (−1)^{k+1} tr(Jᵏ)/k is the net's own
    /// ([`PreparedLayer::tangent_trace_vjp`]).
    pub powers: usize,
    /// Terms of the longest series.
    pub terms: usize,
}

/// The log det of a map at some samples.
#[derive(Debug)]
pub struct Estimate<'a, B: Backend, N: ?Sized> {
    /// The device.
    pub backend: &'a B,
    /// The map whose Jacobian is J.
    pub net: &'a N,
    /// The activations that its forward pass kept, at least for the first derivative.
    pub saved: &'a Saved<B>,
    /// The samples.
    pub samples: Samples<'a>,
    /// The cost of the log det, by which `Auto` chooses.
    pub cost: CostModel,
}

/// The coefficients of each sample.
fn coefficients(roulette: &RussianRoulette, key: Key, first: u64, count: usize) -> Vec<Vec<f64>> {
    let key = key.named("law");
    (0..count as u64).map(|i| roulette.coefficients(&roulette.draw(key.split(first.wrapping_add(i))))).collect()
}

/// The order that undoes an order.
fn inverse_order(order: &[u32]) -> Vec<u32> {
    let mut back = vec![0; order.len()];
    for (to, &from) in order.iter().enumerate() {
        back[from as usize] = to as u32;
    }
    back
}

impl<B: Backend, N: ?Sized> Estimate<'_, B, N> {
    /// Draws the probe number `index` of a key, `[n, …]`.
    fn probe(&self, key: Key, probe: Probe, index: usize) -> B::Tensor {
        let shape = [&[self.samples.count], self.samples.shape].concat();
        // addresses wrap around beyond any honest number
        let first = self.samples.first.wrapping_mul(self.samples.shape.iter().product::<usize>() as u64);
        self.backend.noise(key.named("probe").split(index as u64), probe.noise(), first, shape[..].into())
    }
}

impl<B: Backend, N: Vjp<B> + ?Sized> Estimate<'_, B, N> {
    /// Computes the traces that an estimator does not leave to probes; a truncated series has so many terms.
    fn known_traces(&self, setting: Traces, expansion: Expansion, terms: Option<usize>) -> Known<B> {
        if setting == Traces::Probed {
            return Known::Nothing;
        }
        let mut traces = self.net.traces(self.backend, self.saved);
        traces.truncate(terms.unwrap_or(usize::MAX).min(expansion.most_known()));
        if traces.is_empty() { Known::Nothing } else { Known::Traces(traces) }
    }

    /// Computes independent estimates, `[n, replicates]`, nats, each with its own probes and its own N per sample;
    /// `[n, 1]` where exact.
    pub fn replicates(&self, draw: &Draw<'_>, replicates: usize) -> LogDet<B> {
        self.replicates_by(Expansion::Whole, draw, replicates)
    }

    /// Computes [`replicates`](Self::replicates) of the log det of an expansion.
    pub fn replicates_by(&self, expansion: Expansion, draw: &Draw<'_>, replicates: usize) -> LogDet<B> {
        let (backend, count) = (self.backend, self.samples.count);
        let (probe, probes, traces, roulette, truncated) = match draw.estimator.resolve(&self.cost, Phase::Evaluation) {
            Estimator::Exact(_) | Estimator::Auto(_) => {
                return LogDet::exact(match self.cost.narrower() {
                    Some(b) => expansion.exact_inside(backend, self.net, self.saved, count, b),
                    None => expansion.exact(backend, self.net, self.saved, count, self.samples.shape, false).value.0,
                });
            }
            Estimator::Truncated(t) => (t.probe, t.probes, t.traces, None, Some(t)),
            Estimator::RussianRoulette(r) => (r.probe, r.probes, r.traces, Some(r), None),
        };
        // all replicates of all samples as one batch: sample i of replicate m is number m·n + i
        let keys: Vec<Key> = (0..replicates as u64).map(|m| draw.key.named("replicate").split(m)).collect();
        let terms = match (&roulette, &truncated) {
            (Some(roulette), _) => roulette.expected_terms(),
            (None, truncated) => truncated.as_ref().map_or(0.0, |t| t.terms as f64),
        };
        let known = match (self.known_traces(traces, expansion, truncated.as_ref().map(|t| t.terms)), traces) {
            (Known::Nothing, Traces::Exact) => {
                let products = (replicates * probes) as f64 * terms * self.cost.multiply_adds as f64;
                let dear = self.net.dear_trace(backend, self.saved, (DEAR * products) as u64);
                let control = || self.net.control(backend, self.saved).map_or(Known::Nothing, Known::Control);
                dear.map_or_else(control, |trace| Known::Traces(vec![trace]))
            }
            (known, _) => known,
        };
        let (order, weights) = if let Some(roulette) = roulette {
            let all = keys.iter().flat_map(|&key| coefficients(&roulette, key, self.samples.first, count));
            Weights::rows(backend, &all.collect::<Vec<_>>())
        } else {
            let all = (0..(count * replicates) as u32).collect();
            (all, Weights::Batch(truncated.map_or_else(Vec::new, |t| t.coefficients())))
        };
        let source: Vec<u32> = order.iter().map(|&i| i % count.max(1) as u32).collect();
        let saved = self.saved.take_rows(backend, &source);
        let known = known.take_rows(backend, &source);
        let mut sum = backend.full(0.0, [count * replicates, 1].into());
        for index in 0..probes {
            let parts: Vec<_> = keys.iter().map(|&key| self.probe(key, probe, index)).collect();
            let v = backend.take_rows(&backend.concat(&parts.iter().collect::<Vec<_>>(), 0), &order);
            let (value, _) = expansion.series(backend, self.net, &saved, &known, &v, &weights, false);
            sum = backend.axpy(1.0 / probes as f64, &value.0, sum);
        }
        let by_replicate = backend.take_rows(&sum, &inverse_order(&order));
        let value = backend.permute(&backend.reshape(&by_replicate, [replicates, count].into()), &[1, 0]);
        LogDet { value, exact: false }
    }

    /// Computes the log det and its surrogates for a training step: exact, or the Neumann series from the same vectors
    /// as the value.
    pub fn surrogates(&self, draw: &Draw<'_>) -> Surrogates<B> {
        self.surrogates_by(Expansion::Whole, draw)
    }

    /// Computes [`surrogates`](Self::surrogates) of the log det of an expansion. The gradient of traces that are known is to
    /// be multiplied by −2 for the odd one.
    pub fn surrogates_by(&self, expansion: Expansion, draw: &Draw<'_>) -> Surrogates<B> {
        let (backend, n) = (self.backend, self.samples.count);
        let mut terms = None;
        let (probe, count, traces, weights, order) = match draw.estimator.resolve(&self.cost, Phase::Training) {
            Estimator::Exact(_) | Estimator::Auto(_) => {
                let exact = expansion.exact(backend, self.net, self.saved, n, self.samples.shape, true);
                return Surrogates {
                    log_det: LogDet::exact(exact.value.0),
                    probes: exact.probes,
                    cotangents: exact.surrogates.into_iter().map(|s| s.u).collect(),
                    powers: 0,
                    terms: self.cost.dimension,
                };
            }
            Estimator::Truncated(t) => {
                terms = Some(t.terms);
                (t.probe, t.probes, t.traces, Weights::Batch(t.coefficients()), None)
            }
            Estimator::RussianRoulette(r) if r.sharing == Sharing::Batch => {
                let weights = Weights::Batch(r.coefficients(&r.draw(draw.key.named("law"))));
                (r.probe, r.probes, r.traces, weights, None)
            }
            Estimator::RussianRoulette(r) => {
                let (order, weights) = Weights::rows(backend, &coefficients(&r, draw.key, self.samples.first, n));
                (r.probe, r.probes, r.traces, weights, Some(order))
            }
        };
        let known = self.known_traces(traces, expansion, terms);
        let sorted =
            order.as_ref().map(|order| (self.saved.take_rows(backend, order), known.take_rows(backend, order)));
        let mut out = Surrogates {
            log_det: LogDet { value: backend.full(0.0, [n, 1].into()), exact: false },
            probes: Vec::with_capacity(count),
            cotangents: Vec::with_capacity(count),
            powers: known.powers(),
            terms: weights.terms(),
        };
        for index in 0..count {
            let v = self.probe(draw.key, probe, index);
            let (value, u) = if let (Some(order), Some((saved, known))) = (&order, &sorted) {
                let v = backend.take_rows(&v, order);
                let (value, surrogate) = expansion.series(backend, self.net, saved, known, &v, &weights, true);
                let back = inverse_order(order);
                let u = surrogate.expect("asked for").u;
                (backend.take_rows(&value.0, &back), backend.take_rows(&u, &back))
            } else {
                let (value, surrogate) = expansion.series(backend, self.net, self.saved, &known, &v, &weights, true);
                (value.0, surrogate.expect("asked for").u)
            };
            out.log_det.value = backend.axpy(1.0 / count as f64, &value, out.log_det.value);
            out.probes.push(v);
            out.cotangents.push(if count == 1 { u } else { backend.affine(u, 1.0 / count as f64, 0.0) });
        }
        out
    }
}

impl<B: Backend> Estimate<'_, B, dyn PreparedLayer<B>> {
    /// Computes the log det and the terms of its differentiated series, for comparison; `None` where it is exact.
    pub fn unrolled(&self, draw: &Draw<'_>) -> Option<Surrogates<B>> {
        self.unrolled_by(Expansion::Whole, draw)
    }

    /// Computes [`unrolled`](Self::unrolled) of the log det of an expansion.
    pub fn unrolled_by(&self, expansion: Expansion, draw: &Draw<'_>) -> Option<Surrogates<B>> {
        let (backend, n) = (self.backend, self.samples.count);
        let (probe, count, coefficients) = match draw.estimator.resolve(&self.cost, Phase::Training) {
            Estimator::Exact(_) | Estimator::Auto(_) => return None,
            Estimator::Truncated(t) => (t.probe, t.probes, vec![t.coefficients()]),
            Estimator::RussianRoulette(r) if r.sharing == Sharing::Batch => {
                (r.probe, r.probes, vec![r.coefficients(&r.draw(draw.key.named("law")))])
            }
            Estimator::RussianRoulette(r) => (r.probe, r.probes, coefficients(&r, draw.key, self.samples.first, n)),
        };
        let mut out = Surrogates {
            log_det: LogDet { value: backend.full(0.0, [n, 1].into()), exact: false },
            probes: Vec::new(),
            cotangents: Vec::new(),
            powers: 0,
            terms: coefficients.iter().map(Vec::len).max().unwrap_or(0),
        };
        let coefficients: Vec<_> = coefficients.into_iter().map(|c| expansion.powers(c)).collect();
        let share = expansion.factor() / count as f64;
        for index in 0..count {
            let v = self.probe(draw.key, probe, index);
            let d = differentiated(backend, self.net, self.saved, &v, &coefficients);
            out.log_det.value = backend.axpy(share, &d.value, out.log_det.value);
            out.probes.extend(d.tangents);
            out.cotangents.extend(d.cotangents.into_iter().map(|u| backend.affine(u, share, 0.0)));
        }
        Some(out)
    }
}
