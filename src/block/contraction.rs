//! What all blocks compute with: the contraction g, the log dets that its Jacobian J gives, and the gradients through it.

use resflow_backend::{Backend, Binary};

use crate::batch::{Batch, per_sample};
use crate::bijection::{Ask, LogDet, Memory, Wanted};
use crate::error::Error;
use crate::estimator::{CostModel, Estimate, Expansion, Samples, Vjp};
use crate::invert::{
    Inversion, SampleReport, Solution, Status, invert_net, invert_residual, mark_samples, mark_unsolved,
    solve_transposed, without_samples,
};
use crate::layer::{Derivatives, LayerGrads, PreparedLayer, Saved, WeightedTraces};
use crate::module::{Grad, accumulate};

/// A contraction with its weights normalised.
#[derive(Debug)]
pub struct PreparedContraction<B: Backend> {
    pub(super) net: Box<dyn PreparedLayer<B>>,
    pub(super) shape: Vec<usize>,
    pub(super) bound: f64,
    pub(super) two_norm_factor: f64,
    pub(super) cost: CostModel,
}

/// Samples, of whose context g is told already.
#[derive(Debug, Clone)]
pub(super) struct At<B: Backend> {
    /// The samples with what g is told of each.
    pub(super) batch: Batch<B>,
    /// The embedding of their context that it is told by.
    embedding: Option<B::Tensor>,
}

impl<B: Backend> At<B> {
    /// Replaces the numbers of the samples, `[n, …]`, which stay the same samples.
    pub(super) fn with_x(&self, x: B::Tensor) -> Self {
        Self { batch: self.batch.with_x(x), embedding: self.embedding.clone() }
    }
}

/// The log det that an expansion gives at some samples, and what its gradient needs.
pub(super) struct Measured<B: Backend> {
    pub(super) log_det: Option<LogDet<B>>,
    pub(super) kept: Option<Kept<B>>,
    pub(super) terms: usize,
}

/// What is kept of g and of a log det for the backward pass.
pub(super) struct Kept<B: Backend> {
    at: At<B>,
    expansion: Expansion,
    probes: Vec<B::Tensor>,
    cotangents: Vec<B::Tensor>,
    /// The number of traces whose gradient is g's own.
    powers: usize,
    /// The activations of g and of the tangents of the probes, unless they are to be computed again.
    saved: Option<(Saved<B>, Vec<Saved<B>>)>,
}

/// g at the samples of a backward pass.
pub(super) struct Point<B: Backend> {
    kept: Kept<B>,
    saved: Saved<B>,
    tangents: Vec<Saved<B>>,
}

/// The result of differentiating a solve.
pub(super) struct Implicit<B: Backend> {
    /// a = (I + Jᵀ)⁻¹ b, `[n, …]`; zero where it was not found.
    pub(super) value: B::Tensor,
    /// The weights of the log dets, `[n, 1]`; zero where a was not found.
    pub(super) weights: B::Tensor,
    pub(super) reports: Vec<SampleReport>,
}

impl<B: Backend> PreparedContraction<B> {
    /// The derivatives that a forward pass keeps activations for.
    pub(super) fn derivatives(ask: &Ask<'_>) -> Derivatives {
        match ask.wanted {
            Wanted::Value => Derivatives::None,
            Wanted::LogDet { .. } | Wanted::Gradient { memory: Memory::Recompute, .. } => Derivatives::First,
            Wanted::Gradient { .. } => Derivatives::Second,
        }
    }

    /// Tells g of the context of some samples, once for all that is done at them.
    pub(super) fn at(&self, backend: &B, batch: &Batch<B>) -> At<B> {
        At { batch: self.net.tell(backend, batch), embedding: batch.context.clone() }
    }

    /// Computes g, `[n, …]`, keeping what derivatives ask for.
    pub(super) fn forward(&self, backend: &B, at: &At<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        self.net.forward(backend, &at.batch, keep)
    }

    fn tangents(&self, backend: &B, saved: &Saved<B>, probes: &[B::Tensor]) -> Vec<Saved<B>> {
        probes.iter().map(|v| self.net.keep_tangent(backend, saved, v)).collect()
    }

    /// Computes the log det of an expansion at samples where `saved` was kept, as far as it was asked for.
    pub(super) fn measure(
        &self,
        backend: &B,
        at: &At<B>,
        saved: Saved<B>,
        expansion: Expansion,
        ask: &Ask<'_>,
    ) -> Measured<B> {
        let batch = &at.batch;
        let samples = Samples { count: batch.len(backend), shape: &self.shape, first: batch.first };
        let estimate = Estimate { backend, net: &*self.net, saved: &saved, samples, cost: self.cost };
        match ask.wanted {
            Wanted::Value => Measured { log_det: None, kept: None, terms: 0 },
            Wanted::LogDet { draw, replicates } => {
                let log_det = Some(estimate.replicates_by(expansion, &draw, replicates));
                Measured { log_det, kept: None, terms: 0 }
            }
            Wanted::Gradient { draw, memory } => {
                let unrolled = (memory == Memory::Unroll).then(|| estimate.unrolled_by(expansion, &draw));
                let found = unrolled.flatten().unwrap_or_else(|| estimate.surrogates_by(expansion, &draw));
                let saved = (memory != Memory::Recompute).then(|| {
                    let tangents = self.tangents(backend, &saved, &found.probes);
                    (saved, tangents)
                });
                let (probes, cotangents, powers) = (found.probes, found.cotangents, found.powers);
                let kept = Kept { at: at.clone(), expansion, probes, cotangents, powers, saved };
                Measured { log_det: Some(found.log_det), kept: Some(kept), terms: found.terms }
            }
        }
    }

    /// Returns g at the samples that were kept, computing again what was not.
    pub(super) fn restore(&self, backend: &B, mut kept: Kept<B>) -> Point<B> {
        let (saved, tangents) = kept.saved.take().unwrap_or_else(|| {
            let (_, saved) = self.forward(backend, &kept.at, Derivatives::Second);
            let tangents = self.tangents(backend, &saved, &kept.probes);
            (saved, tangents)
        });
        Point { kept, saved, tangents }
    }

    /// Computes the gradient in x of gy·g(x) + Σ wᵢ Sᵢ(x), with S the log det of the expansion and w of `[n, 1]`, and adds that
    /// in the parameters. Without weights S does not enter.
    pub(super) fn pull_back(
        &self,
        backend: &B,
        point: &Point<B>,
        weights: Option<&B::Tensor>,
        gy: B::Tensor,
        own: LayerGrads<'_, B>,
    ) -> B::Tensor {
        let Point { kept, saved, tangents } = point;
        let LayerGrads { trained, context } = own;
        let mut told = None;
        let inner = LayerGrads { trained: &mut *trained, context: &mut told };
        let gx = match weights {
            None => self.net.tangent_vjp(backend, saved, &[], gy, Vec::new(), inner).0,
            Some(weights) => {
                // each sample's own weight: a weighted loss must not take the first sample's for all
                let spread = per_sample(backend, weights, kept.at.batch.shape(backend));
                let gdy = kept.cotangents.iter().map(|u| backend.binary(Binary::Mul, u.clone(), &spread)).collect();
                let tangents: Vec<_> = tangents.iter().collect();
                if kept.powers == 0 {
                    self.net.tangent_vjp(backend, saved, &tangents, gy, gdy, inner).0
                } else {
                    let weights = backend.affine(weights.clone(), kept.expansion.factor(), 0.0);
                    let traces = WeightedTraces { powers: kept.powers, weights: &weights };
                    self.net.tangent_trace_vjp(backend, saved, &tangents, traces, gy, gdy, inner).0
                }
            }
        };
        self.net.pull_back_told(backend, kept.at.embedding.as_ref(), told, LayerGrads { trained, context });
        gx
    }

    /// What the residual that a solve reports, which is that of one step before its answer, is multiplied by to bound the answer's.
    pub(super) fn residual_factor(&self) -> f64 {
        self.bound * self.two_norm_factor
    }

    /// Finds the x with x ± g(x) = y, `[n, …]`, in units of x.
    pub(super) fn solve(&self, backend: &B, sign: f64, at: &At<B>, how: &Inversion) -> Result<Solution<B>, Error> {
        let batch = &at.batch;
        let mut solution = if let Some(net) = self.net.net_at(backend, batch.context.as_ref()) {
            invert_net(backend, &net, sign, batch, self.bound, how)?
        } else {
            let g = |x: &Batch<B>| {
                let g = self.net.forward(backend, x, Derivatives::None).0;
                if sign > 0.0 { g } else { backend.affine(g, sign, 0.0) }
            };
            invert_residual(backend, g, batch, self.bound, how)?
        };
        for report in &mut solution.reports {
            report.error_bound *= self.two_norm_factor;
        }
        solution.stretch *= self.two_norm_factor;
        Ok(solution)
    }

    /// Solves (I ± Jᵀ)a = b with J at samples where g was evaluated, b `[n, …]`.
    pub(super) fn solve_transposed(
        &self,
        backend: &B,
        sign: f64,
        saved: &Saved<B>,
        b: &B::Tensor,
        how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        let map = Signed { net: &*self.net, sign };
        // a bound in other norms than the 2-norm contracts there alone: the solve is checked by its residual in any case
        Ok(solve_transposed(backend, &map, saved, b, self.bound, how)?)
    }

    /// Differentiates the solve of z + g(z) = y for a loss whose gradient in z is z̄ + Σ wᵢ ∂Sᵢ/∂z: solves (I + Jᵀ)a = that,
    /// and adds −(∂g/∂θ)ᵀa + Σ wᵢ ∂Sᵢ/∂θ to the gradients, unless `samples_alone`. A sample whose a is not found counts for nothing.
    pub(super) fn pull_back_solve(
        &self,
        backend: &B,
        point: &Point<B>,
        gz: B::Tensor,
        weights: B::Tensor,
        how: &Inversion,
        grads: LayerGrads<'_, B>,
        samples_alone: bool,
    ) -> Result<Implicit<B>, Error> {
        // the pass that gives ∂S/∂z has the parameters' share too: kept apart until all samples are known to count
        let (mut own, mut own_context): (Vec<Grad<B>>, _) = (vec![None; grads.trained.len()], None);
        let zero = backend.full(0.0, backend.shape(&gz));
        let apart = LayerGrads { trained: &mut own, context: &mut own_context };
        let of_log_det = self.pull_back(backend, point, Some(&weights), zero, apart);
        let total = backend.axpy(1.0, &of_log_det, gz);
        let solution = self.solve_transposed(backend, 1.0, &point.saved, &total, how)?;
        let (mut value, mut weights) = (solution.value, weights);
        let failed = mark_unsolved(backend, &solution.reports);
        if let Some(failed) = &failed {
            value = without_samples(backend, failed, value);
            weights = without_samples(backend, failed, weights);
        }
        if samples_alone {
            return Ok(Implicit { value, weights, reports: solution.reports });
        }
        let LayerGrads { trained, context } = grads;
        if failed.is_none() {
            for (grad, own) in trained.iter_mut().zip(&own) {
                if let Some(own) = own {
                    accumulate(backend, grad, own);
                }
            }
            if let Some(own) = &own_context {
                accumulate(backend, context, own);
            }
        }
        let again = failed.is_some().then_some(&weights);
        let minus = backend.affine(value.clone(), -1.0, 0.0);
        self.pull_back(backend, point, again, minus, LayerGrads { trained, context });
        Ok(Implicit { value, weights, reports: solution.reports })
    }

    pub(super) fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        // the net is a Sequence, which keeps the gradients of its norm orders itself
        let _ = self.net.finish_gradients(backend, grads);
    }
}

/// ±g, as far as products with its transposed Jacobian go.
struct Signed<'a, B: Backend> {
    net: &'a dyn PreparedLayer<B>,
    sign: f64,
}

impl<B: Backend> Vjp<B> for Signed<'_, B> {
    fn vjp(&self, backend: &B, saved: &Saved<B>, u: B::Tensor) -> B::Tensor {
        let product = self.net.vjp(backend, saved, u);
        if self.sign > 0.0 { product } else { backend.affine(product, self.sign, 0.0) }
    }
}

/// Replaces samples that are not finite by zeros, so that a gradient can leave them out: 0·NaN would not.
pub(super) fn without_infinite<B: Backend>(backend: &B, x: B::Tensor, reports: &[SampleReport]) -> B::Tensor {
    match mark_samples(backend, reports, |report| report.status == Status::NonFinite) {
        None => x,
        Some(lost) => without_samples(backend, &lost, x),
    }
}
