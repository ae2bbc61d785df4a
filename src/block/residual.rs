//! The residual block F(x) = x + g(x) with Lip(g) < 1 (Behrmann et al. 2019; Chen et al. 2019).
//!
//! log|det ∂F/∂x| = log det(I + J) with J = ∂g/∂x; the determinant is positive. The inverse is the fixed point of x ↦ y
//! − g(x). The backward pass seeds the pullback of (x, v) ↦ (g(x), Jv) with the incoming cotangent and with u weighted
//! by each sample's own weight, so that parameters and x get the gradient of both terms of the likelihood at once.

use resflow_backend::{Backend, BackendError};

use super::contraction::{Contraction, Kept, PreparedContraction};
use crate::batch::Batch;
use crate::bijection::{Ask, Bijection, Cotangents, Mapped, PreparedBijection, Tape};
use crate::error::{ConfigError, Error};
use crate::estimator::{CostModel, Expansion};
use crate::invert::{Inversion, Solution};
use crate::layer::{Derivatives, Layer, LayerGrads};
use crate::lipschitz::{BiLipschitz, TransformBounds};
use crate::module::{Grad, Module, ShowPart, ShowPartMut};
use crate::reference::ReferenceMap;
use crate::stage::Stage;

/// x ↦ x + g(x).
#[derive(Debug, Clone)]
pub struct ResidualBlock<B: Backend> {
    g: Contraction<B>,
}

impl<B: Backend> ResidualBlock<B> {
    /// Builds the block of a contraction g of samples of a shape, `[d]` or `[h, w, c]`.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if g does not map the shape to itself, [`ConfigError::OutOfRange`] if its
    /// Lipschitz bound is not below 1.
    pub fn new(net: Box<dyn Layer<B>>, shape: &[usize]) -> Result<Self, ConfigError> {
        Ok(Self { g: Contraction::new(net, shape)? })
    }

    /// g.
    pub fn net(&self) -> &dyn Layer<B> {
        self.g.net()
    }
}

impl<B: Backend> Module<B> for ResidualBlock<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        self.g.parts(show);
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        self.g.parts_mut(show);
    }

    fn describe(&self) -> String {
        format!("residual block [{}]", self.net().describe())
    }
}

impl<B: Backend> Bijection<B> for ResidualBlock<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        self.g.prepare(backend, |g| PreparedBlock { g })
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.g.output_shape("a residual", shape)
    }

    fn stage(&self) -> Option<Stage> {
        Some(Stage::ResidualBlock { shape: self.g.shape().to_vec(), net: self.net().net()? })
    }

    fn resize(&mut self, backend: &B, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.g.resize(backend, shape)
    }

    fn cost(&self) -> Option<CostModel> {
        Some(self.g.cost())
    }

    fn residual(&self) -> Option<&dyn Layer<B>> {
        Some(self.net())
    }

    fn lipschitz_bound(&self) -> Option<f64> {
        Some(self.g.bound())
    }

    fn certified_bounds(&self, backend: &B, path: &str) -> Result<TransformBounds, BackendError> {
        self.g.certified_bounds(backend, path, BiLipschitz::of_residual)
    }
}

/// A residual block with its weights normalised.
#[derive(Debug)]
struct PreparedBlock<B: Backend> {
    g: PreparedContraction<B>,
}

impl<B: Backend> PreparedBijection<B> for PreparedBlock<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let (g, saved) = self.g.net.forward(backend, batch, PreparedContraction::<B>::derivatives(ask));
        let found = self.g.measure(backend, batch, saved, Expansion::Whole, ask);
        let (log_dets, tape) = (found.log_det.into_iter().collect(), found.kept.map(Tape::new));
        Ok(Mapped { log_dets, tape, terms: found.terms, ..Mapped::value(backend.axpy(1.0, &batch.x, g)) })
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, how: &Inversion) -> Result<Solution<B>, Error> {
        self.g.solve(backend, 1.0, batch, how)
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        let net = self.g.net.reference(backend)?;
        Ok(net.map(|net| ReferenceMap::Residual { net, shape: self.g.shape.clone() }))
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        let (_, saved) = self.g.net.forward(backend, batch, Derivatives::First);
        self.g.solve_transposed(backend, 1.0, &saved, gradient, how)
    }

    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        mut cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error> {
        let point = self.g.restore(backend, tape.into_value::<Kept<B>>());
        let gy = cotangents.x.clone();
        let own = LayerGrads { trained: grads, context: &mut cotangents.context };
        let gx = self.g.pull_back(backend, &point, Some(&cotangents.log_det), gy.clone(), own);
        Ok(cotangents.with_x(backend.axpy(1.0, &gy, gx)))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        self.g.finish_gradients(backend, grads);
    }
}
