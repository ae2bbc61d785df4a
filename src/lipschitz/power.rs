//! Power iteration with state: v ← Wᵀu/‖Wᵀu‖, u ← Wv/‖Wv‖, σ = uᵀWv, where W is a matrix or a zero-padded convolution
//! on images of one size (the operator itself, not its reshaped kernel).
//!
//! Invariant: σ is a *lower* bound on the spectral norm; it approaches it as the iteration converges, so a bound that
//! rests on it is an estimate and is marked as one. The stop is on the relative change of σ, never below 16 ε of the
//! precision. Where the largest singular values lie close together σ creeps, and its change says nothing of its distance
//! to the norm: who asks for all that the precision allows, of an operator whose iterations cost little, gets ‖Wᵀu − σv‖ ≤
//! 0.1 √ε σ besides, so that σ is within 0.01 ε/γ of the norm in relation to it, γ being the relative gap. In training a fixed number of iterations runs per step from the stored vectors. Loading, scoring and
//! sampling do not iterate.

use resflow_backend::{Backend, Binary, Element as _, Key, Noise, Shape, Unary};

use super::LinearOperator;
use crate::error::ConfigError;

/// The bound κ ∈ (0, 1) on the norm of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficient(f64);

impl Coefficient {
    /// Takes a bound κ.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] outside (0, 1): a layer with κ ≥ 1 does not make the block invertible.
    pub fn new(kappa: f64) -> Result<Self, ConfigError> {
        if kappa > 0.0 && kappa < 1.0 {
            Ok(Self(kappa))
        } else {
            Err(ConfigError::OutOfRange { name: "coefficient", value: kappa, expected: "a number above 0 and below 1" })
        }
    }

    /// κ.
    pub fn get(self) -> f64 {
        self.0
    }

    /// Computes 1/max(1, σ/κ) = κ/max(κ, σ), `[1]`.
    pub fn factor<B: Backend>(self, backend: &B, sigma: &B::Tensor) -> B::Tensor {
        let kappa = backend.full(self.0, [1].into());
        let larger = backend.binary(Binary::Max, sigma.clone(), &kappa);
        backend.binary(Binary::Div, kappa, &larger)
    }

    /// Computes the weight of uvᵀ in the gradient, `[1]`: −κ/σ² · ⟨W̄_eff, W⟩ where σ > κ, else 0.
    pub fn pull_back_weight<B: Backend>(self, backend: &B, sigma: &B::Tensor, inner: &B::Tensor) -> B::Tensor {
        let kappa = backend.full(self.0, [1].into());
        let active = backend.binary(Binary::Less, kappa, sigma);
        let square = backend.binary(Binary::Mul, sigma.clone(), sigma);
        let shrink = backend.affine(backend.binary(Binary::Div, inner.clone(), &square), -self.0, 0.0);
        backend.select(&active, &shrink, &backend.full(0.0, [1].into()))
    }
}

/// How far the length of a singular vector may be from 1.
pub(crate) const UNIT: f64 = 1e-3;
/// Iterations between two looks at σ, since a look waits for the device.
pub(super) const STRIDE: usize = 4;
/// The numbers in u and v together up to which an iteration costs so little that a thousand more do.
const SMALL: usize = 1024;
/// The share of a random direction that is mixed in to see whether σ stood still too early.
pub(super) const SHAKE: f64 = 0.3;

/// The length of a power iteration, by which spectral norms are updated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PowerIteration {
    /// A fixed number of iterations, without waiting for the device.
    Iterations(usize),
    /// Until σ changes by less than a relative tolerance per iteration, or the limit is reached.
    Converge {
        /// The relative change at which to stop.
        tolerance: f64,
        /// The largest number of iterations; as many again may check that σ is not one further down.
        limit: usize,
    },
}

impl PowerIteration {
    /// Close enough for random weights, which the first steps change anyway: a relative change of 10⁻³.
    pub fn initial() -> Self {
        Self::Converge { tolerance: 1e-3, limit: 200 }
    }

    /// Convergence to what the precision allows.
    pub fn converge<B: Backend>() -> Self {
        Self::Converge { tolerance: 16.0 * B::Elem::EPSILON, limit: 1000 }
    }
}

/// Advances a pair, [`STRIDE`] iterations at a time, until its σ stands still; the pair and that σ.
pub(super) fn iterate_to_rest<B: Backend, P>(
    backend: &B,
    tolerance: f64,
    limit: usize,
    mut pair: P,
    advance: impl Fn(P) -> (P, B::Tensor),
) -> (P, f64) {
    let tolerance = tolerance.max(16.0 * B::Elem::EPSILON);
    let mut last = f64::NAN;
    for _ in 0..limit.div_ceil(STRIDE) {
        let (next, sigma) = advance(pair);
        pair = next;
        let Ok(sigma) = backend.download(&sigma) else { break };
        let sigma = sigma[0].to_f64();
        let still = (sigma - last).abs() <= tolerance * STRIDE as f64 * sigma.abs();
        last = sigma;
        if still {
            break;
        }
    }
    (pair, last)
}

/// x/‖x‖.
fn unit<B: Backend>(backend: &B, x: B::Tensor) -> B::Tensor {
    let norm = backend.unary(Unary::Sqrt, backend.dot(&x, &x));
    backend.binary(Binary::Div, x, &norm)
}

/// Unit vectors u, v that approach the leading singular vectors of an operator.
#[derive(Debug, Clone)]
pub struct SingularPair<B: Backend> {
    /// The left vector, of the shape of an output.
    pub u: B::Tensor,
    /// The right vector, of the shape of an input.
    pub v: B::Tensor,
    shapes: (Shape, Shape),
}

impl<B: Backend> SingularPair<B> {
    /// Takes stored vectors, u and v of the operator's shapes.
    pub fn new(backend: &B, u: B::Tensor, v: B::Tensor) -> Self {
        let shapes = (backend.shape(&u), backend.shape(&v));
        Self { u, v, shapes }
    }

    /// Draws random directions for outputs and inputs of these shapes.
    pub fn random(backend: &B, outputs: impl Into<Shape>, inputs: impl Into<Shape>, key: Key) -> Self {
        let shapes = (outputs.into(), inputs.into());
        let draw = |tag: u64, shape: Shape| unit(backend, backend.noise(key.split(tag), Noise::Normal, 0, shape));
        Self { u: draw(0, shapes.0), v: draw(1, shapes.1), shapes }
    }

    /// The shapes of outputs and inputs.
    pub fn shapes(&self) -> (Shape, Shape) {
        self.shapes
    }

    /// Checks that both are unit vectors of the 2-norm up to 10⁻³: with others σ = uᵀWv would bound nothing.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] otherwise. A device's fault is left to the next wait.
    pub(crate) fn check_lengths(&self, backend: &B) -> Result<(), ConfigError> {
        let squares = backend.concat(&[&backend.dot(&self.u, &self.u), &backend.dot(&self.v, &self.v)], 0);
        let Ok(squares) = backend.download(&squares) else { return Ok(()) };
        let lengths = squares.iter().map(|square| square.to_f64().sqrt());
        let wrong: Vec<String> = ["u", "v"]
            .into_iter()
            .zip(lengths)
            .filter(|(_, length)| length.is_nan() || (length - 1.0).abs() > UNIT)
            .map(|(name, length)| format!("{name} of length {length}"))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(ConfigError::Inconsistent(format!(
            "singular vectors that are no unit vectors, so that σ = uᵀWv would bound nothing: {}; divide them by their \
             lengths",
            wrong.join(", ")
        )))
    }

    /// Computes σ = uᵀWv, `[1]`, without iterating.
    pub fn sigma(&self, backend: &B, operator: &dyn LinearOperator<B>) -> B::Tensor {
        let [_, _, sigma] = operator.power_iteration(backend, self.u.clone(), self.v.clone(), 0);
        sigma
    }

    /// Returns the pair after more iterations on this operator.
    pub fn updated(&self, backend: &B, operator: &dyn LinearOperator<B>, how: PowerIteration) -> Self {
        let advance = |pair: Self, count: usize| {
            let [u, v, sigma] = operator.power_iteration(backend, pair.u, pair.v, count);
            (Self { u, v, shapes: self.shapes }, sigma)
        };
        match how {
            PowerIteration::Iterations(count) => advance(self.clone(), count).0,
            PowerIteration::Converge { tolerance, limit } => {
                let rest = |pair| iterate_to_rest(backend, tolerance, limit, pair, |pair| advance(pair, STRIDE));
                let (first, sigma) = rest(self.clone());
                // a start that is nearly orthogonal to the leading pair stands still at the next one: shake,
                // and look again
                let (second, again) = rest(first.shaken(backend));
                let best = if again > sigma { second } else { first };
                let thorough = tolerance <= 16.0 * B::Elem::EPSILON
                    && self.shapes.0.elements() + self.shapes.1.elements() <= SMALL;
                if thorough { best.settled(backend, operator, 4 * limit) } else { best }
            }
        }
    }

    /// Iterates until ‖Wᵀu − σv‖ ≤ 0.1 √ε σ, looking less often the longer it takes.
    fn settled(self, backend: &B, operator: &dyn LinearOperator<B>, limit: usize) -> Self {
        let (mut pair, mut made, mut stride) = (self, 0, STRIDE);
        while made < limit {
            let [u, v, sigma] = operator.power_iteration(backend, pair.u, pair.v, stride);
            let along = backend.binary(Binary::Mul, v.clone(), &sigma);
            let rest = backend.binary(Binary::Sub, operator.adjoint(backend, &u), &along);
            let found = backend.concat(&[&sigma, &backend.dot(&rest, &rest)], 0);
            pair = Self { u, v, shapes: pair.shapes };
            let Ok(found) = backend.download(&found) else { break };
            let [sigma, square] = [found[0].to_f64(), found[1].to_f64()];
            let left = square.sqrt();
            if left.is_nan() || left <= 0.1 * B::Elem::EPSILON.sqrt() * sigma.abs() {
                break;
            }
            made += stride;
            stride = (2 * stride).min(256);
        }
        pair
    }

    /// The pair with a fixed random direction mixed into u; v follows at the next iteration.
    fn shaken(&self, backend: &B) -> Self {
        let noise = unit(backend, backend.noise(Key::new(0), Noise::Normal, 0, backend.shape(&self.u)));
        Self { u: unit(backend, backend.axpy(SHAKE, &noise, self.u.clone())), ..self.clone() }
    }
}
