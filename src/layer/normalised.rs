//! The normalisation that constrained layers share: W_eff = W / max(1, σ/κ) with σ = uᵀWv (Gouk et al. 2018; Behrmann et al.
//! 2019, eq. 8), and its pullback with u and v constant. Where σ > κ
//!
//! W̄ = κ/σ · W̄_eff − κ/σ² · ⟨W̄_eff, W⟩ · ∂σ/∂W.
//!
//! σ is the spectral norm, or the norm induced by two others, p → q, whose orders may be learned: ā = σ̄ · ∂σ/∂a.

use resflow_backend::{Backend, BackendError, Binary, Element as _, Key};

use super::Slot;
use crate::error::ConfigError;
use crate::lipschitz::{Coefficient, DualPair, LinearOperator, Norm, Norms, Order, Refresh, SingularPair};

/// The orders that a weight's norm is taken between, with the raw parameters of learned ones.
#[derive(Debug, Clone)]
pub struct LayerNorms<B: Backend> {
    /// Of what enters.
    pub domain: (Order, Option<B::Tensor>),
    /// Of what leaves.
    pub codomain: (Order, Option<B::Tensor>),
}

impl<B: Backend> LayerNorms<B> {
    /// The norms on the device.
    fn norms(&self, backend: &B) -> Result<Norms<B>, ConfigError> {
        let norm = |(order, raw): &(Order, Option<B::Tensor>)| Norm::new(backend, *order, raw.as_ref());
        Ok(Norms { domain: norm(&self.domain)?, codomain: norm(&self.codomain)? })
    }

    /// # Errors
    /// If a learned order comes without its parameter, or the reverse.
    pub fn check(&self, backend: &B) -> Result<(), ConfigError> {
        self.norms(backend).map(drop)
    }

    fn checked(&self, backend: &B) -> Norms<B> {
        self.norms(backend).expect("checked when they were set")
    }
}

/// Starts from which a pair of mixed norms is searched for where there is time for it: the iteration may end at a lower
/// stationary point.
const STARTS: usize = 4;

/// The pair after more iterations, in the 2-norm unless others are given.
pub(super) fn refreshed<B: Backend>(
    backend: &B,
    pair: &SingularPair<B>,
    operator: &dyn LinearOperator<B>,
    norms: Option<&LayerNorms<B>>,
    how: Refresh,
) -> SingularPair<B> {
    let Some(norms) = norms else { return pair.refreshed(backend, operator, how) };
    let norms = norms.checked(backend);
    let kept = DualPair::new(pair.u.clone(), pair.v.clone()).refreshed(backend, operator, &norms, how);
    let best = match how {
        Refresh::Iterations(_) => kept,
        Refresh::Converge { .. } => {
            let found = DualPair::search(backend, operator, &norms, how, STARTS, Key::new(0).named("norms"));
            // of equal ones the one found: it has the right lengths even where W = 0
            found.or_better(backend, operator, kept)
        }
    };
    SingularPair::new(backend, best.u, best.v)
}

/// The lengths of u and v in the norms in which they are unit vectors: that of the codomain's dual, and the domain's.
pub(super) fn vector_lengths<B: Backend>(
    backend: &B,
    pair: &SingularPair<B>,
    norms: Option<&LayerNorms<B>>,
) -> Result<[f64; 2], BackendError> {
    let norms = norms.map_or_else(Norms::euclidean, |n| n.checked(backend));
    let lengths = [norms.codomain.dual(backend).norm(backend, &pair.u), norms.domain.norm(backend, &pair.v)];
    let lengths = backend.download(&backend.concat(&[&lengths[0], &lengths[1]], 0))?;
    Ok([lengths[0].to_f64(), lengths[1].to_f64()])
}

/// Gradients of the raw orders of a layer's domain and codomain, where they are learned.
pub type OrderGradients<B> = [Slot<B>; 2];

/// A weight after its normalisation.
#[derive(Debug)]
pub(super) struct Normalised<B: Backend> {
    /// W_eff.
    pub(super) effective: B::Tensor,
    sigma: B::Tensor,
    factor: B::Tensor,
    norms: Option<Norms<B>>,
}

impl<B: Backend> Normalised<B> {
    /// Normalises a weight, the tensor behind the operator.
    pub(super) fn new(
        backend: &B,
        weight: &B::Tensor,
        operator: &dyn LinearOperator<B>,
        pair: &SingularPair<B>,
        coefficient: Coefficient,
        norms: Option<&LayerNorms<B>>,
    ) -> Self {
        let sigma = pair.sigma(backend, operator);
        let factor = coefficient.factor(backend, &sigma);
        let effective = backend.binary(Binary::Mul, weight.clone(), &factor);
        Self { effective, sigma, factor, norms: norms.map(|n| n.checked(backend)) }
    }

    /// Turns the gradient of W_eff in a slot into that of W; returns those of the raw parameters of the domain's and of the
    /// codomain's order, where they are learned.
    pub(super) fn pull_back(
        &self,
        backend: &B,
        weight: &B::Tensor,
        operator: &dyn LinearOperator<B>,
        pair: &SingularPair<B>,
        coefficient: Coefficient,
        slot: &mut Slot<B>,
    ) -> OrderGradients<B> {
        let Some(effective) = slot.take() else {
            *slot = Some(backend.full(0.0, backend.shape(weight)));
            return [None, None];
        };
        let inner = backend.dot(&effective, weight);
        let shrink = coefficient.pull_back_weight(backend, &self.sigma, &inner);
        let scaled = backend.binary(Binary::Mul, effective, &self.factor);
        let outer = backend.binary(Binary::Mul, operator.pair_gradient(backend, &pair.u, &pair.v), &shrink);
        *slot = Some(backend.axpy(1.0, &outer, scaled));
        let Some(norms) = &self.norms else { return [None, None] };
        DualPair::new(pair.u.clone(), pair.v.clone()).order_gradient(backend, operator, norms, &shrink)
    }
}
