//! Induced norms ‖W‖_{p→q} = max ‖Wv‖_q/‖v‖_p by a power iteration with dual vectors (Boyd 1974; Chen et al. 2019,
//! appendix): v ← the unit vector of the p-norm that maximises ⟨Wᵀu, v⟩, u ← the dual vector of Wv, σ = uᵀWv.
//!
//! Invariant: after an iteration ‖v‖_p = 1 and ‖u‖_{q*} = 1, so σ = ‖Wv‖_q, and σ never falls. It is a *lower* bound on
//! the norm. For p = q = 2 it approaches the norm. For other orders it may end at a lower stationary point, unless p ≥
//! q and neither W nor the start has a negative entry; so pairs are [searched](DualPair::search) for from several
//! starts.
//!
//! In the gradient u and v are constants (the envelope theorem): ∂σ/∂W = uvᵀ, ∂σ/∂p = −σ·∂ln‖v‖_p/∂p and
//! ∂σ/∂q = σ·∂ln‖Wv‖_q/∂q.

use resflow_backend::{Backend, Binary, Key, Noise, Unary};

use super::power::{SHAKE, STRIDE, iterate_to_rest};
use super::{LinearOperator, Norm, PowerIteration};

/// The norms before and after a linear map.
#[derive(Debug, Clone)]
pub struct Norms<B: Backend> {
    /// ‖·‖_p of what enters.
    pub domain: Norm<B>,
    /// ‖·‖_q of what comes out.
    pub codomain: Norm<B>,
}

impl<B: Backend> Norms<B> {
    /// The 2-norm on both sides.
    pub fn euclidean() -> Self {
        Self { domain: Norm::Two, codomain: Norm::Two }
    }
}

/// The vectors u, v of the power iteration.
#[derive(Debug, Clone)]
pub struct DualPair<B: Backend> {
    /// u, of the operator's output shape, ‖u‖_{q*} = 1.
    pub u: B::Tensor,
    /// v, of the operator's input shape, ‖v‖_p = 1.
    pub v: B::Tensor,
}

impl<B: Backend> DualPair<B> {
    /// Takes stored vectors, of the operator's shapes.
    pub fn new(u: B::Tensor, v: B::Tensor) -> Self {
        Self { u, v }
    }

    /// Draws random directions.
    pub fn random(backend: &B, operator: &dyn LinearOperator<B>, norms: &Norms<B>, key: Key) -> Self {
        let [u, v] = [(0, operator.output_shape()), (1, operator.input_shape())]
            .map(|(tag, shape)| backend.noise(key.split(tag), Noise::Normal, 0, shape));
        Self {
            u: norms.codomain.dual_vector(backend, &u, &u),
            v: norms.domain.dual(backend).dual_vector(backend, &v, &v),
        }
    }

    /// Searches for the pair with the largest σ from a number of random starts (at least one). Does not wait for the
    /// device except as `how` does.
    pub fn search(
        backend: &B,
        operator: &dyn LinearOperator<B>,
        norms: &Norms<B>,
        how: PowerIteration,
        starts: usize,
        key: Key,
    ) -> Self {
        let start = |i: usize| {
            Self::random(backend, operator, norms, key.split(i as u64)).updated(backend, operator, norms, how)
        };
        (1..starts).fold(start(0), |best, i| best.or_better(backend, operator, start(i)))
    }

    /// Chooses the pair of the two with the larger σ, on the device.
    pub fn or_better(self, backend: &B, operator: &dyn LinearOperator<B>, other: Self) -> Self {
        let better = backend.binary(Binary::Less, self.sigma(backend, operator), &other.sigma(backend, operator));
        Self { u: backend.select(&better, &other.u, &self.u), v: backend.select(&better, &other.v, &self.v) }
    }

    /// Computes σ = uᵀWv, `[1]`, without iterating.
    pub fn sigma(&self, backend: &B, operator: &dyn LinearOperator<B>) -> B::Tensor {
        backend.dot(&self.u, &operator.apply(backend, &self.v))
    }

    /// Returns the pair after more iterations on this operator.
    pub fn updated(
        &self,
        backend: &B,
        operator: &dyn LinearOperator<B>,
        norms: &Norms<B>,
        how: PowerIteration,
    ) -> Self {
        let dual = norms.domain.dual(backend);
        let advance = |mut pair: Self, count: usize| {
            for _ in 0..count {
                let v =
                    dual.dual_vector(backend, &operator.adjoint(backend, &pair.u), &dual.dual_unit(backend, &pair.v));
                let old = norms.codomain.dual_unit(backend, &pair.u);
                let u = norms.codomain.dual_vector(backend, &operator.apply(backend, &v), &old);
                pair = Self { u, v };
            }
            pair
        };
        match how {
            PowerIteration::Iterations(count) => advance(self.clone(), count),
            PowerIteration::Converge { tolerance, limit } => {
                let rest = |pair: Self| {
                    iterate_to_rest(backend, tolerance, limit, pair, |pair| {
                        let pair = advance(pair, STRIDE);
                        let sigma = pair.sigma(backend, operator);
                        (pair, sigma)
                    })
                };
                let (first, sigma) = rest(self.clone());
                // as for singular pairs: a start near another stationary point stands still there
                let (second, again) = rest(first.shaken(backend));
                if again > sigma { second } else { first }
            }
        }
    }

    /// The pair with a fixed random direction mixed into u, whose length does not matter: v follows at the next
    /// iteration.
    fn shaken(&self, backend: &B) -> Self {
        let noise = backend.noise(Key::new(0), Noise::Normal, 0, backend.shape(&self.u));
        let ratio = backend.binary(Binary::Div, backend.dot(&self.u, &self.u), &backend.dot(&noise, &noise));
        let noise = backend.binary(Binary::Mul, noise, &backend.unary(Unary::Sqrt, ratio));
        Self { u: backend.axpy(SHAKE, &noise, self.u.clone()), v: self.v.clone() }
    }

    /// Computes, from the gradient of σ, `[1]`, those of the raw parameters of the domain's and of the codomain's
    /// order, `[1]`; `None` where an order is not learned. Where both are one parameter, its gradient is the sum.
    pub fn order_gradient(
        &self,
        backend: &B,
        operator: &dyn LinearOperator<B>,
        norms: &Norms<B>,
        sigma_gradient: &B::Tensor,
    ) -> [Option<B::Tensor>; 2] {
        if norms.domain.slope().is_none() && norms.codomain.slope().is_none() {
            return [None, None];
        }
        let product = operator.apply(backend, &self.v);
        let scale = backend.binary(Binary::Mul, backend.dot(&self.u, &product), sigma_gradient);
        let through = |norm: &Norm<B>, x: &B::Tensor, sign: f64| {
            let slope = norm.slope()?;
            let derivative = backend.binary(Binary::Mul, norm.log_derivative(backend, x)?, slope);
            // finite where Wv = 0, so that σ = 0 makes it 0
            Some(backend.affine(backend.binary(Binary::Mul, derivative, &scale), sign, 0.0))
        };
        [through(&norms.domain, &self.v, -1.0), through(&norms.codomain, &product, 1.0)]
    }
}
