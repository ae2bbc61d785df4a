//! The residual block F(x) = x + g(x) with Lip(g) < 1 (Behrmann et al. 2019; Chen et al. 2019).
//!
//! log|det ∂F/∂x| = log det(I + J) with J = ∂g/∂x; the determinant is positive. The inverse is the fixed point of x ↦ y
//! − g(x). The backward pass seeds the pullback of (x, v) ↦ (g(x), Jv) with the incoming cotangent and with u weighted
//! by each sample's own weight, so that parameters and x get the gradient of both terms of the likelihood at once.

use resflow_backend::{Backend, Binary};

use crate::batch::{Batch, per_sample};
use crate::bijection::{Ask, Bijection, Cotangents, Mapped, Memory, PreparedBijection, Tape, Wanted};
use crate::error::{ConfigError, Error};
use crate::estimator::{CostModel, Estimate, Samples};
use crate::invert::{Inversion, Solution, invert_residual, solve_transposed};
use crate::layer::{Derivatives, Layer, LayerGrads, PreparedLayer, Saved, WeightedTraces};
use crate::module::{Grad, Module};
use crate::stage::Stage;
use crate::tiled::{tile_samples, tiled};

/// x ↦ x + g(x).
#[derive(Debug, Clone)]
pub struct ResidualBlock<B: Backend> {
    net: Box<dyn Layer<B>>,
    shape: Vec<usize>,
}

impl<B: Backend> ResidualBlock<B> {
    /// Builds the block of a contraction g of samples of a shape, `[d]` or `[h, w, c]`.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if g does not map the shape to itself, [`ConfigError::OutOfRange`] if its
    /// Lipschitz bound is not below 1.
    pub fn new(net: Box<dyn Layer<B>>, shape: &[usize]) -> Result<Self, ConfigError> {
        let output = net.output_shape(shape)?;
        if output != shape {
            return Err(ConfigError::Inconsistent(format!(
                "g maps samples of shape {shape:?} to {output:?}; a residual needs the same"
            )));
        }
        let bound = net.lipschitz_bound();
        // a bound that is not a number bounds nothing
        if !(0.0..1.0).contains(&bound) {
            return Err(ConfigError::OutOfRange {
                name: "Lip(g)",
                value: bound,
                expected: "a bound below 1; constrain its weights",
            });
        }
        Ok(Self { net, shape: shape.to_vec() })
    }

    /// g.
    pub fn net(&self) -> &dyn Layer<B> {
        &*self.net
    }

    fn cost_model(&self) -> CostModel {
        CostModel { dimension: self.shape.iter().product(), multiply_adds: self.net.multiply_adds(&self.shape) }
    }
}

impl<B: Backend> Module<B> for ResidualBlock<B> {
    crate::parts!(B; net: Module);

    fn describe(&self) -> String {
        format!("residual block [{}]", self.net.describe())
    }
}

impl<B: Backend> Bijection<B> for ResidualBlock<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        let block = PreparedBlock {
            net: self.net.prepare(backend),
            shape: self.shape.clone(),
            bound: self.net.lipschitz_bound(),
            cost: self.cost_model(),
            two_norm_factor: self.net.two_norm_factor(&self.shape),
        };
        tiled(Box::new(block), tile_samples(backend, &*self.net, &self.shape, &self.shape))
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if shape == self.shape {
            Ok(shape.to_vec())
        } else {
            Err(ConfigError::Inconsistent(format!(
                "a residual block of samples {:?} cannot take samples {shape:?}",
                self.shape
            )))
        }
    }

    fn stage(&self) -> Option<Stage> {
        Some(Stage::ResidualBlock { shape: self.shape.clone(), net: self.net.net()? })
    }

    fn resize(&mut self, backend: &B, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let output = self.net.resize(backend, shape)?;
        if output != shape {
            return Err(ConfigError::Inconsistent(format!("g maps samples of shape {shape:?} to {output:?}")));
        }
        self.shape = output;
        Ok(shape.to_vec())
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
}

/// A residual block with its weights normalised.
#[derive(Debug)]
struct PreparedBlock<B: Backend> {
    net: Box<dyn PreparedLayer<B>>,
    shape: Vec<usize>,
    bound: f64,
    two_norm_factor: f64,
    cost: CostModel,
}

/// The tape of a block, from a training step's forward pass.
struct BlockTape<B: Backend> {
    batch: Batch<B>,
    probes: Vec<B::Tensor>,
    cotangents: Vec<B::Tensor>,
    /// The number of traces whose gradient is g's own.
    powers: usize,
    /// The activations of g and of the tangents of the probes, unless they are to be computed again.
    saved: Option<(Saved<B>, Vec<Saved<B>>)>,
}

impl<B: Backend> PreparedBlock<B> {
    fn tangents(&self, backend: &B, saved: &Saved<B>, probes: &[B::Tensor]) -> Vec<Saved<B>> {
        probes.iter().map(|v| self.net.keep_tangent(backend, saved, v)).collect()
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedBlock<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let keep = match ask.wanted {
            Wanted::Value => Derivatives::None,
            Wanted::LogDet { .. } | Wanted::Gradient { memory: Memory::Recompute, .. } => Derivatives::First,
            Wanted::Gradient { .. } => Derivatives::Second,
        };
        let (g, saved) = self.net.forward(backend, batch, keep);
        let samples = Samples { count: batch.len(backend), shape: &self.shape, first: batch.first };
        let estimate = Estimate { backend, net: &*self.net, saved: &saved, samples, cost: self.cost };
        match ask.wanted {
            Wanted::Value => Ok(Mapped::value(backend.axpy(1.0, &batch.x, g))),
            Wanted::LogDet { draw, replicates } => {
                let log_det = estimate.replicates(&draw, replicates);
                Ok(Mapped { log_dets: vec![log_det], ..Mapped::value(backend.axpy(1.0, &batch.x, g)) })
            }
            Wanted::Gradient { draw, memory } => {
                let unrolled = (memory == Memory::Unroll).then(|| estimate.unrolled(&draw));
                let found = unrolled.flatten().unwrap_or_else(|| estimate.surrogates(&draw));
                let y = backend.axpy(1.0, &batch.x, g);
                let saved = (memory != Memory::Recompute).then(|| {
                    let tangents = self.tangents(backend, &saved, &found.probes);
                    (saved, tangents)
                });
                let (probes, cotangents, powers) = (found.probes, found.cotangents, found.powers);
                let tape = Tape::new(BlockTape { batch: batch.clone(), probes, cotangents, powers, saved });
                let log_dets = vec![found.log_det];
                Ok(Mapped { log_dets, tape: Some(tape), terms: found.terms, ..Mapped::value(y) })
            }
        }
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, how: &Inversion) -> Result<Solution<B>, Error> {
        let g = |x: &Batch<B>| self.net.forward(backend, x, Derivatives::None).0;
        let mut solution = invert_residual(backend, g, batch, self.bound, how)?;
        for report in &mut solution.reports {
            report.error_bound *= self.two_norm_factor;
        }
        solution.stretch *= self.two_norm_factor;
        Ok(solution)
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        let (_, saved) = self.net.forward(backend, batch, Derivatives::First);
        // a bound in other norms than the 2-norm contracts there alone: the solve is checked by its residual in any case
        Ok(solve_transposed(backend, &*self.net, &saved, gradient, self.bound, how)?)
    }

    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        mut cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error> {
        let BlockTape { batch, probes, cotangents: u, powers, saved } = tape.into_value::<BlockTape<B>>();
        let (saved, tangents) = saved.unwrap_or_else(|| {
            let (_, saved) = self.net.forward(backend, &batch, Derivatives::Second);
            let tangents = self.tangents(backend, &saved, &probes);
            (saved, tangents)
        });
        // each sample's own weight: a weighted loss must not take the first sample's for all
        let weights = per_sample(backend, &cotangents.log_det, batch.shape(backend));
        let gdy = u.into_iter().map(|u| backend.binary(Binary::Mul, u, &weights)).collect();
        let tangents: Vec<_> = tangents.iter().collect();
        let gy = cotangents.x.clone();
        let own = LayerGrads { trained: grads, context: &mut cotangents.context };
        let (gx, _) = if powers == 0 {
            self.net.tangent_vjp(backend, &saved, &tangents, gy.clone(), gdy, own)
        } else {
            let traces = WeightedTraces { powers, weights: &cotangents.log_det };
            self.net.tangent_trace_vjp(backend, &saved, &tangents, traces, gy.clone(), gdy, own)
        };
        Ok(cotangents.with_x(backend.axpy(1.0, &gy, gx)))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        // the net is a Sequence, which keeps the gradients of its norm orders itself
        let _ = self.net.finish_gradients(backend, grads);
    }
}
