//! The residual block F(x) = x + g(x) with Lip(g) < 1 (Behrmann et al. 2019; Chen et al. 2019).
//!
//! log|det ∂F/∂x| = log det(I + J) with J = ∂g/∂x; the determinant is positive. The inverse is the fixed point of x ↦ y
//! − g(x). The backward pass seeds the pullback of (x, v) ↦ (g(x), Jv) with the incoming cotangent and with u weighted
//! by each sample's own weight, so that parameters and x get the gradient of both terms of the likelihood at once.

use resflow_backend::Backend;

use super::contraction::{Kept, PreparedContraction};
use super::contractive::{ContractiveBlock, Kind};
use crate::batch::Batch;
use crate::bijection::{Ask, Cotangents, Mapped, PreparedBijection, Tape};
use crate::error::Error;
use crate::estimator::Expansion;
use crate::invert::{Inversion, Solution};
use crate::layer::{Derivatives, LayerGrads};
use crate::lipschitz::BiLipschitz;
use crate::module::Grad;
use crate::reference::ReferenceMap;
use crate::stage::{Net, Stage};

/// x ↦ x + g(x).
#[derive(Debug, Clone, Copy)]
pub struct Residual;

/// x ↦ x + g(x).
pub type ResidualBlock<B> = ContractiveBlock<B, Residual>;

impl Kind for Residual {
    const NAME: &'static str = "residual";
    const EXPANSION: Expansion = Expansion::Whole;

    fn stage(shape: Vec<usize>, net: Net) -> Stage {
        Stage::ResidualBlock { shape, net }
    }

    fn constants(c: f64) -> Option<BiLipschitz> {
        BiLipschitz::of_residual(c)
    }

    fn prepare<B: Backend>(g: PreparedContraction<B>) -> Box<dyn PreparedBijection<B>> {
        Box::new(PreparedBlock { g })
    }
}

/// A residual block with its weights normalised.
#[derive(Debug)]
struct PreparedBlock<B: Backend> {
    g: PreparedContraction<B>,
}

impl<B: Backend> PreparedBijection<B> for PreparedBlock<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let at = self.g.at(backend, batch);
        let (g, saved) = self.g.forward(backend, &at, PreparedContraction::<B>::derivatives(ask));
        let found = self.g.measure(backend, &at, saved, Expansion::Whole, ask);
        let (log_dets, tape) = (found.log_det.into_iter().collect(), found.kept.map(Tape::new));
        Ok(Mapped { log_dets, tape, terms: found.terms, ..Mapped::value(backend.axpy(1.0, &batch.x, g)) })
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, how: &Inversion) -> Result<Solution<B>, Error> {
        self.g.solve(backend, 1.0, &self.g.at(backend, batch), how)
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
        let (_, saved) = self.g.forward(backend, &self.g.at(backend, batch), Derivatives::First);
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
