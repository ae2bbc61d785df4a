//! The normalisation that constrained layers share: W_eff = W / max(1, σ/κ) with σ = uᵀWv (Gouk et al. 2018; Behrmann
//! et al. 2019, eq. 8), and its pullback with u and v constant. Where σ > κ
//!
//! W̄ = κ/σ · W̄_eff − κ/σ² · ⟨W̄_eff, W⟩ · ∂σ/∂W.
//!
//! σ is the spectral norm, or the norm induced by two others, p → q, whose orders may be learned: ā = σ̄ · ∂σ/∂a.

use resflow_backend::{Backend, BackendError, Binary, Element as _, Key, Noise, Shape};

use crate::error::ConfigError;
use crate::lipschitz::{Coefficient, DualPair, LinearOperator, Norm, Norms, Order, PowerIteration, SingularPair};
use crate::module::{Grad, Spectrum};

/// The orders that a weight's norm is taken between, with the raw parameters of learned ones.
#[derive(Debug, Clone)]
pub struct LayerNorms<B: Backend> {
    /// The norm of what enters: its order, and its raw parameter `[1]` if that is learned.
    pub domain: (Order, Option<B::Tensor>),
    /// The norm of what comes out: its order, and its raw parameter `[1]` if that is learned.
    pub codomain: (Order, Option<B::Tensor>),
}

impl<B: Backend> LayerNorms<B> {
    /// The norms on the device.
    fn norms(&self, backend: &B) -> Result<Norms<B>, ConfigError> {
        let norm = |(order, raw): &(Order, Option<B::Tensor>)| Norm::new(backend, *order, raw.as_ref());
        Ok(Norms { domain: norm(&self.domain)?, codomain: norm(&self.codomain)? })
    }

    /// Checks that each learned order has its parameter, and no other has one.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if a learned order comes without its parameter, or the reverse.
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

/// The constraint that keeps the norm of a weight at or below κ. A weight without it is free.
#[derive(Debug, Clone)]
pub(super) struct Constraint<B: Backend> {
    pub(super) pair: SingularPair<B>,
    pub(super) coefficient: Coefficient,
    /// Other norms than the 2-norm.
    pub(super) norms: Option<LayerNorms<B>>,
}

impl<B: Backend> Constraint<B> {
    /// A constraint in the 2-norm.
    pub(super) fn new(pair: SingularPair<B>, coefficient: Coefficient) -> Self {
        Self { pair, coefficient, norms: None }
    }

    /// The constraint with its pair after more iterations.
    pub(super) fn updated(&self, backend: &B, operator: &dyn LinearOperator<B>, how: PowerIteration) -> Self {
        Self { pair: self.updated_pair(backend, operator, how), ..self.clone() }
    }

    fn updated_pair(&self, backend: &B, operator: &dyn LinearOperator<B>, how: PowerIteration) -> SingularPair<B> {
        let pair = &self.pair;
        let Some(norms) = &self.norms else { return pair.updated(backend, operator, how) };
        let norms = norms.checked(backend);
        let kept = DualPair::new(pair.u.clone(), pair.v.clone()).updated(backend, operator, &norms, how);
        let best = match how {
            PowerIteration::Iterations(_) => kept,
            PowerIteration::Converge { .. } => {
                let found = DualPair::search(backend, operator, &norms, how, STARTS, Key::new(0).named("norms"));
                // on a tie the new pair: its u and v are unit vectors even if W = 0
                found.or_better(backend, operator, kept)
            }
        };
        SingularPair::new(backend, best.u, best.v)
    }

    /// σ of the weight behind an operator, for reports.
    pub(super) fn spectrum(
        &self,
        backend: &B,
        path: &str,
        operator: &dyn LinearOperator<B>,
    ) -> Result<Spectrum, BackendError> {
        let sigma = backend.download(&self.pair.sigma(backend, operator))?[0].to_f64();
        Ok(Spectrum { name: format!("{path}.weight"), sigma, coefficient: self.coefficient.get() })
    }

    /// Reports the lengths of u and v in the norms in which they are unit vectors: that of the codomain's dual, and the
    /// domain's.
    pub(super) fn vector_lengths(
        &self,
        backend: &B,
        path: &str,
        report: &mut dyn FnMut(String, f64),
    ) -> Result<(), BackendError> {
        let norms = self.norms.as_ref().map_or_else(Norms::euclidean, |n| n.checked(backend));
        let pair = &self.pair;
        let lengths = [norms.codomain.dual(backend).norm(backend, &pair.u), norms.domain.norm(backend, &pair.v)];
        let lengths = backend.download(&backend.concat(&[&lengths[0], &lengths[1]], 0))?;
        report(format!("{path}.u"), lengths[0].to_f64());
        report(format!("{path}.v"), lengths[1].to_f64());
        Ok(())
    }
}

/// Gradients of the raw orders of a layer's domain and codomain, `[1]` each, where they are learned.
pub type OrderGradients<B> = [Grad<B>; 2];

/// A weight after its normalisation.
#[derive(Debug)]
pub(super) struct Normalised<B: Backend> {
    /// W_eff; W itself where the weight is free.
    pub(super) effective: B::Tensor,
    scaling: Option<Scaling<B>>,
}

/// The numbers that the pullback of a normalisation needs.
#[derive(Debug)]
struct Scaling<B: Backend> {
    sigma: B::Tensor,
    factor: B::Tensor,
    norms: Option<Norms<B>>,
}

impl<B: Backend> Normalised<B> {
    /// Normalises a weight, the tensor behind the operator, if it is constrained.
    pub(super) fn new(
        backend: &B,
        weight: &B::Tensor,
        constrained: Option<(&Constraint<B>, &dyn LinearOperator<B>)>,
    ) -> Self {
        let Some((constraint, operator)) = constrained else {
            return Self { effective: weight.clone(), scaling: None };
        };
        let sigma = constraint.pair.sigma(backend, operator);
        let factor = constraint.coefficient.factor(backend, &sigma);
        let effective = backend.binary(Binary::Mul, weight.clone(), &factor);
        let norms = constraint.norms.as_ref().map(|n| n.checked(backend));
        Self { effective, scaling: Some(Scaling { sigma, factor, norms }) }
    }

    /// Turns the gradient of W_eff into that of W; returns those of the raw parameters of the domain's and of the
    /// codomain's order, where they are learned.
    pub(super) fn finish_gradient(
        &self,
        backend: &B,
        weight: &B::Tensor,
        constrained: Option<(&Constraint<B>, &dyn LinearOperator<B>)>,
        grad: &mut Grad<B>,
    ) -> OrderGradients<B> {
        let Some(effective) = grad.take() else {
            *grad = Some(backend.full(0.0, backend.shape(weight)));
            return [None, None];
        };
        let (Some(scaling), Some((constraint, operator))) = (&self.scaling, constrained) else {
            *grad = Some(effective);
            return [None, None];
        };
        let pair = &constraint.pair;
        let inner = backend.dot(&effective, weight);
        let shrink = constraint.coefficient.pull_back_weight(backend, &scaling.sigma, &inner);
        let scaled = backend.binary(Binary::Mul, effective, &scaling.factor);
        let outer = backend.binary(Binary::Mul, operator.pair_gradient(backend, &pair.u, &pair.v), &shrink);
        *grad = Some(backend.axpy(1.0, &outer, scaled));
        let Some(norms) = &scaling.norms else { return [None, None] };
        DualPair::new(pair.u.clone(), pair.v.clone()).order_gradient(backend, operator, norms, &shrink)
    }
}

/// Draws initial weights or biases, uniform in ±1/√`fan_in`.
pub(super) fn uniform<B: Backend>(backend: &B, fan_in: usize, key: Key, shape: Shape) -> B::Tensor {
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    backend.affine(backend.noise(key, Noise::Uniform, 0, shape), 2.0 * bound, -bound)
}
