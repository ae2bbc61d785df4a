//! The residual block F(x) = x + g(x) with Lip(g) < 1 (Behrmann et al. 2019; Chen et al. 2019).
//!
//! log|det ∂F/∂x| = log det(I + J) with J = ∂g/∂x; the determinant is positive. The inverse is the fixed point of
//! x ↦ y − g(x). The backward pass seeds the pullback of (x, v) ↦ (g(x), Jv) with the incoming cotangent and with u
//! weighted by each row's own weight, so that parameters and x get the gradient of both terms of the likelihood at once.

use resflow_backend::{Backend, BackendError, Binary, Key};

use crate::bijection::{Bijection, Draw, LogDet, Memory, PreparedBijection, Tape, TrainForward};
use crate::error::{ConfigError, Error};
use crate::estimator::{
    CostModel, Estimator, Probe, RussianRoulette, Sharing, Weights, differentiated, exact_log_det, series,
};
use crate::invert::{Inversion, Solution, invert_residual};
use crate::layer::{Keep, Layer, PreparedLayer, Saved, Slot, Spectrum, Visitor, VisitorMut};
use crate::lipschitz::Refresh;
use crate::tiled::{tile_rows, tiled};

/// x ↦ x + g(x).
#[derive(Debug)]
pub struct ResidualBlock<B: Backend> {
    net: Box<dyn Layer<B>>,
    row: Vec<usize>,
}

impl<B: Backend> ResidualBlock<B> {
    /// The block of a contraction g of rows of shape `row`.
    ///
    /// # Errors
    /// If g does not map the row shape to itself, or its Lipschitz bound is not below 1.
    pub fn new(net: Box<dyn Layer<B>>, row: &[usize]) -> Result<Self, ConfigError> {
        let output = net.output(row)?;
        if output != row {
            return Err(ConfigError::Inconsistent(format!(
                "g maps rows of shape {row:?} to {output:?}; a residual needs the same"
            )));
        }
        let bound = net.lipschitz_bound();
        if bound >= 1.0 {
            return Err(ConfigError::OutOfRange {
                name: "Lip(g)",
                value: bound,
                expected: "a bound below 1; constrain its weights",
            });
        }
        Ok(Self { net, row: row.to_vec() })
    }

    /// g.
    pub fn net(&self) -> &dyn Layer<B> {
        &*self.net
    }
}

impl<B: Backend> Bijection<B> for ResidualBlock<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        self.net.visit(&format!("{path}.net"), visitor);
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        self.net.visit_mut(&format!("{path}.net"), visitor);
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        let block = PreparedBlock {
            net: self.net.prepare(backend),
            row: self.row.clone(),
            bound: self.net.lipschitz_bound(),
            cost: self.cost_model(),
            two_norm_factor: self.net.two_norm_factor(&self.row),
        };
        tiled(Box::new(block), tile_rows(backend, &*self.net, &self.row, &self.row))
    }

    fn refresh(&mut self, backend: &B, how: Refresh) {
        self.net.refresh(backend, how);
    }

    fn output(&self, row: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if row == self.row {
            Ok(row.to_vec())
        } else {
            Err(ConfigError::Inconsistent(format!("a residual block of rows {:?} cannot take rows {row:?}", self.row)))
        }
    }

    fn resize(&mut self, backend: &B, row: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let output = self.net.resize(backend, row)?;
        if output != row {
            return Err(ConfigError::Inconsistent(format!("g maps rows of shape {row:?} to {output:?}")));
        }
        self.row = output;
        Ok(row.to_vec())
    }

    fn cost(&self) -> Option<CostModel> {
        Some(self.cost_model())
    }

    fn residual(&self) -> Option<&dyn Layer<B>> {
        Some(&*self.net)
    }

    fn lipschitz_bound(&self) -> Option<f64> {
        Some(self.net.lipschitz_bound())
    }

    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        self.net.spectra(backend, &format!("{path}.net"), report)
    }

    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        self.net.vector_lengths(backend, &format!("{path}.net"), report)
    }

    fn describe(&self, backend: &B) -> String {
        format!("residual block [{}]", self.net.describe(backend))
    }

    fn boxed_clone(&self) -> Box<dyn Bijection<B>> {
        Box::new(Self { net: self.net.boxed_clone(), row: self.row.clone() })
    }
}

impl<B: Backend> ResidualBlock<B> {
    fn cost_model(&self) -> CostModel {
        CostModel { dimension: self.row.iter().product(), multiply_adds: self.net.multiply_adds(&self.row) }
    }
}

/// A residual block with its weights normalised.
#[derive(Debug)]
pub struct PreparedBlock<B: Backend> {
    net: Box<dyn PreparedLayer<B>>,
    row: Vec<usize>,
    bound: f64,
    two_norm_factor: f64,
    cost: CostModel,
}

/// Surrogates of a log det: probes v and cotangents u whose mean of uᵀJv has its gradient.
struct Probed<B: Backend> {
    log_det: B::Tensor,
    probes: Vec<B::Tensor>,
    cotangents: Vec<B::Tensor>,
    terms: usize,
}

impl<B: Backend> PreparedBlock<B> {
    fn dimension(&self) -> usize {
        self.cost.dimension
    }

    /// The probe number `index` of a draw for `rows` rows.
    fn probe(&self, backend: &B, draw: &Draw<'_>, probe: Probe, index: usize, rows: usize) -> B::Tensor {
        let shape = [&[rows], &self.row[..]].concat();
        let first = draw.first_row * self.dimension() as u64;
        backend.noise(draw.key.named("probe").split(index as u64), probe.noise(), first, shape[..].into())
    }

    /// The coefficients of each row of a shard.
    fn row_coefficients(roulette: &RussianRoulette, key: Key, first_row: u64, rows: usize) -> Vec<Vec<f64>> {
        let key = key.named("law");
        (0..rows as u64).map(|r| roulette.coefficients(&roulette.draw(key.split(first_row + r)))).collect()
    }

    /// The log det and the terms of its differentiated series for a training step.
    fn differentiate(&self, backend: &B, saved: &Saved<B>, rows: usize, draw: &Draw<'_>) -> Option<Probed<B>> {
        let (probe, count, coefficients) = match draw.estimator.resolve(&self.cost, true) {
            Estimator::Exact(_) | Estimator::Auto(_) => return None,
            Estimator::Truncated(t) => (t.probe, t.probes, vec![t.coefficients()]),
            Estimator::RussianRoulette(r) if r.sharing == Sharing::Batch => {
                (r.probe, r.probes, vec![r.coefficients(&r.draw(draw.key.named("law")))])
            }
            Estimator::RussianRoulette(r) => {
                (r.probe, r.probes, Self::row_coefficients(&r, draw.key, draw.first_row, rows))
            }
        };
        let mut out = Probed {
            log_det: backend.full(0.0, [rows, 1].into()),
            probes: Vec::new(),
            cotangents: Vec::new(),
            terms: coefficients.iter().map(Vec::len).max().unwrap_or(0),
        };
        let share = 1.0 / count as f64;
        for index in 0..count {
            let v = self.probe(backend, draw, probe, index, rows);
            let d = differentiated(backend, &*self.net, saved, &v, &coefficients);
            out.log_det = backend.axpy(share, &d.value, out.log_det);
            out.probes.extend(d.tangents);
            out.cotangents.extend(d.cotangents.into_iter().map(|u| backend.affine(u, share, 0.0)));
        }
        Some(out)
    }

    /// The log det and its surrogates for a training step.
    fn surrogates(&self, backend: &B, saved: &Saved<B>, rows: usize, draw: &Draw<'_>) -> Probed<B> {
        let (probe, count, weights, order) = match draw.estimator.resolve(&self.cost, true) {
            Estimator::Exact(_) | Estimator::Auto(_) => {
                let exact = exact_log_det(backend, &*self.net, saved, rows, &self.row, true);
                return Probed {
                    log_det: exact.value.0,
                    probes: exact.probes,
                    cotangents: exact.surrogates.into_iter().map(|s| s.u).collect(),
                    terms: self.dimension(),
                };
            }
            Estimator::Truncated(t) => (t.probe, t.probes, Weights::Batch(t.coefficients()), None),
            Estimator::RussianRoulette(r) if r.sharing == Sharing::Batch => {
                (r.probe, r.probes, Weights::Batch(r.coefficients(&r.draw(draw.key.named("law")))), None)
            }
            Estimator::RussianRoulette(r) => {
                let (order, weights) =
                    Weights::rows(backend, &Self::row_coefficients(&r, draw.key, draw.first_row, rows));
                (r.probe, r.probes, weights, Some(order))
            }
        };
        let sorted = order.as_ref().map(|order| saved.take_rows(backend, order));
        let mut out = Probed {
            log_det: backend.full(0.0, [rows, 1].into()),
            probes: Vec::with_capacity(count),
            cotangents: Vec::with_capacity(count),
            terms: weights.terms(),
        };
        for index in 0..count {
            let v = self.probe(backend, draw, probe, index, rows);
            let (value, u) = if let (Some(order), Some(sorted)) = (&order, &sorted) {
                let (value, surrogate) =
                    series(backend, &*self.net, sorted, &backend.take_rows(&v, order), &weights, true);
                let back = inverse_order(order);
                let u = surrogate.expect("asked for").u;
                (backend.take_rows(&value.0, &back), backend.take_rows(&u, &back))
            } else {
                let (value, surrogate) = series(backend, &*self.net, saved, &v, &weights, true);
                (value.0, surrogate.expect("asked for").u)
            };
            out.log_det = backend.axpy(1.0 / count as f64, &value, out.log_det);
            out.probes.push(v);
            out.cotangents.push(if count == 1 { u } else { backend.affine(u, 1.0 / count as f64, 0.0) });
        }
        out
    }

    /// Independent estimates, `[n, replicates]`: each with its own probes and its own N per row.
    fn replicates(&self, backend: &B, saved: &Saved<B>, rows: usize, draw: &Draw<'_>, replicates: usize) -> LogDet<B> {
        let (probe, probes, roulette, truncated) = match draw.estimator.resolve(&self.cost, false) {
            Estimator::Exact(_) | Estimator::Auto(_) => {
                let exact = exact_log_det(backend, &*self.net, saved, rows, &self.row, false);
                return LogDet { value: exact.value.0, exact: true };
            }
            Estimator::Truncated(t) => (t.probe, t.probes, None, Some(t)),
            Estimator::RussianRoulette(r) => (r.probe, r.probes, Some(r), None),
        };
        // all replicates of all rows as one batch: row r of replicate m is number m·n + r
        let keys: Vec<Key> = (0..replicates as u64).map(|m| draw.key.named("replicate").split(m)).collect();
        let (order, weights) = if let Some(roulette) = roulette {
            let coefficients: Vec<_> =
                keys.iter().flat_map(|&key| Self::row_coefficients(&roulette, key, draw.first_row, rows)).collect();
            Weights::rows(backend, &coefficients)
        } else {
            let all = (0..(rows * replicates) as u32).collect();
            (all, Weights::Batch(truncated.map_or_else(Vec::new, |t| t.coefficients())))
        };
        let source: Vec<u32> = order.iter().map(|&i| i % rows.max(1) as u32).collect();
        let saved = saved.take_rows(backend, &source);
        let mut sum = backend.full(0.0, [rows * replicates, 1].into());
        for index in 0..probes {
            let parts: Vec<_> =
                keys.iter().map(|&key| self.probe(backend, &Draw { key, ..*draw }, probe, index, rows)).collect();
            let v = backend.take_rows(&backend.concat(&parts.iter().collect::<Vec<_>>(), 0), &order);
            let (value, _) = series(backend, &*self.net, &saved, &v, &weights, false);
            sum = backend.axpy(1.0 / probes as f64, &value.0, sum);
        }
        let by_replicate = backend.take_rows(&sum, &inverse_order(&order));
        let value = backend.permute(&backend.reshape(&by_replicate, [replicates, rows].into()), &[1, 0]);
        LogDet { value, exact: false }
    }
}

/// The order that undoes an order.
fn inverse_order(order: &[u32]) -> Vec<u32> {
    let mut back = vec![0; order.len()];
    for (to, &from) in order.iter().enumerate() {
        back[from as usize] = to as u32;
    }
    back
}

impl<B: Backend> PreparedBijection<B> for PreparedBlock<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, draw: Option<(Draw<'_>, usize)>) -> (B::Tensor, Option<LogDet<B>>) {
        let keep = if draw.is_some() { Keep::First } else { Keep::Value };
        let (g, saved) = self.net.forward(backend, x, keep);
        let rows = backend.shape(x).rows();
        let log_det = draw.map(|(draw, replicates)| self.replicates(backend, &saved, rows, &draw, replicates));
        (backend.axpy(1.0, x, g), log_det)
    }

    fn inverse(&self, backend: &B, y: &B::Tensor, how: &Inversion) -> Result<Solution<B>, Error> {
        let g = |x: &B::Tensor| self.net.forward(backend, x, Keep::Value).0;
        let mut solution = invert_residual(backend, g, y, self.bound, how)?;
        for row in &mut solution.rows {
            row.error_bound *= self.two_norm_factor;
        }
        solution.stretch *= self.two_norm_factor;
        Ok(solution)
    }

    fn train_forward(&self, backend: &B, x: &B::Tensor, draw: Draw<'_>, memory: Memory) -> TrainForward<B> {
        let rows = backend.shape(x).rows();
        let keep = if memory == Memory::Recompute { Keep::First } else { Keep::Second };
        let (g, saved) = self.net.forward(backend, x, keep);
        let differentiated =
            (memory == Memory::Differentiate).then(|| self.differentiate(backend, &saved, rows, &draw));
        let probed = differentiated.flatten().unwrap_or_else(|| self.surrogates(backend, &saved, rows, &draw));
        let y = backend.axpy(1.0, x, g);
        let mut tape = Tape { probes: probed.probes, cotangents: probed.cotangents, ..Tape::rows(x.clone()) };
        if memory != Memory::Recompute {
            tape.tangents = tape.probes.iter().map(|v| self.net.keep_tangent(backend, &saved, v)).collect();
            tape.saved = Some(saved);
        }
        TrainForward { y, log_det: probed.log_det, tape, terms: probed.terms }
    }

    fn train_backward(
        &self,
        backend: &B,
        mut tape: Tape<B>,
        gy: B::Tensor,
        g_log_det: &B::Tensor,
        slots: &mut [Slot<B>],
    ) -> B::Tensor {
        let saved = tape.saved.take().unwrap_or_else(|| {
            let (_, saved) = self.net.forward(backend, &tape.rows, Keep::Second);
            tape.tangents = tape.probes.iter().map(|v| self.net.keep_tangent(backend, &saved, v)).collect();
            saved
        });
        let shape = backend.shape(&tape.rows);
        let mut weight_shape = vec![1; shape.rank()];
        weight_shape[0] = shape.rows();
        let weights = backend.reshape(g_log_det, weight_shape[..].into());
        // each row's own weight: a weighted loss must not take the first row's for all
        let gdy = tape.cotangents.into_iter().map(|u| backend.binary(Binary::Mul, u, &weights)).collect();
        let tangents: Vec<_> = tape.tangents.iter().collect();
        let (gx, _) = self.net.tangent_vjp(backend, &saved, &tangents, gy.clone(), gdy, slots);
        backend.axpy(1.0, &gy, gx)
    }

    fn slots(&self) -> usize {
        self.net.slots()
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) {
        // a chain owns its orders: nothing is left over
        let _ = self.net.pull_back(backend, slots);
    }
}
