//! Base densities: what z is distributed by.
//!
//! log p(x) = log p(z) + log|det ∂z/∂x|. A base has parameters like a layer, a density with its gradient, and samples
//! that are functions of a key. What depends on z is split from what does not: a training step minimises the *energy*
//! E(z) = −log p(z) + const., and the constant, in double precision, is added where a number is reported.
//!
//! | base | density | trained |
//! |---|---|---|
//! | [`Normal`] | N(0, I) | nothing |
//! | [`GaussianMixture`] | Σ_k π_k N(m_k, Σ_k) with full or diagonal Σ_k | π, m, Σ |
//! | [`StudentT`] | Student's t in every column, independently | the degrees of freedom of each column |
//!
//! A flow's configuration says which of them it has ([`BaseConfig`]), and so do model files. A mixture is fitted to rows
//! on the host by expectation and maximisation ([`MixtureFit`]), its number of components chosen on rows that were held
//! out ([`MixtureChoice`]).

mod allowance;
mod components;
mod em;
mod kmeans;
mod ladder;
mod mixture;
mod normal;
mod rows;
mod scores;
mod student;

use std::fmt::Debug;

pub use components::Mixture;
pub use em::{FittedMixture, MixtureFit};
pub use ladder::{Ladder, MixtureChoice, Rung};
pub use mixture::{GaussianMixture, LEAST_SCALE};
pub use normal::Normal;
use resflow_backend::{Backend, Element as _, Key};
pub use rows::Rows;
pub use student::StudentT;

use crate::architecture::Initial;
use crate::batch::Batch;
pub use crate::config::{BaseConfig, Covariance, MixtureConfig};
use crate::error::Error;
use crate::module::{Grad, Module};

/// A copy of a base behind a box; every base that is `Clone` has it.
pub trait CloneBase<B: Backend> {
    /// Copies the base.
    fn boxed_clone(&self) -> Box<dyn Base<B>>;
}

impl<B: Backend, T: Base<B> + Clone + 'static> CloneBase<B> for T {
    fn boxed_clone(&self) -> Box<dyn Base<B>> {
        Box::new(self.clone())
    }
}

impl<B: Backend> Clone for Box<dyn Base<B>> {
    fn clone(&self) -> Self {
        (**self).boxed_clone()
    }
}

/// A base density's parameters and description.
pub trait Base<B: Backend>: Module<B> + CloneBase<B> {
    /// Returns d, the numbers of z.
    fn dimension(&self) -> usize;

    /// Prepares the density for computing.
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBase<B>>;

    /// Describes the base as a configuration does; `None` for one of your own, which a model file cannot hold.
    fn config(&self) -> Option<BaseConfig> {
        None
    }
}

/// A base density ready for computing. z is `[n, d]`.
pub trait PreparedBase<B: Backend>: Debug + Send + Sync {
    /// Computes E(z) = −log p(z) − [`constant`](Self::constant), `[n, 1]`, nats.
    fn energy(&self, backend: &B, z: &Batch<B>) -> B::Tensor;

    /// Returns the part of −log p(z) that does not depend on z, nats.
    fn constant(&self) -> f64;

    /// Computes wᵢ ∂E(zᵢ)/∂z for weights `[n, 1]`, of the shape of z; adds the gradients of the parameters.
    fn pull_back(&self, backend: &B, z: Batch<B>, weights: &B::Tensor, grads: &mut [Grad<B>]) -> B::Tensor;

    /// Computes log p(z) of each sample on the host, nats.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    fn log_prob(&self, backend: &B, z: &Batch<B>) -> Result<Vec<f64>, Error> {
        let energy = backend.download(&self.energy(backend, z))?;
        Ok(energy.into_iter().map(|e| -e.to_f64() - self.constant()).collect())
    }

    /// Draws `count` samples of a key, `[count, d]`, of which the first is number `first`: each is a function of the
    /// key and its number alone. A conditional base looks at the context, `[count, k]`.
    fn sample(&self, backend: &B, key: Key, first: u64, count: usize, context: Option<&B::Tensor>) -> B::Tensor;

    /// Maps rows z, `[n, d]` on the host, to rows u that are standard normal where z has this density, so that
    /// log|det ∂u/∂z| = log p(z) − log N(u; 0, I); `None` of the standard normal density, and of one that has no such map.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    fn to_normal(&self, backend: &B, rows: &[f64]) -> Result<Option<Vec<f64>>, Error> {
        let _ = (backend, rows);
        Ok(None)
    }

    /// Maps rows u back to the rows z, both `[n, d]`, see [`to_normal`](Self::to_normal).
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    fn invert_normal(&self, backend: &B, scores: &[f64]) -> Result<Option<Vec<f64>>, Error> {
        let _ = (backend, scores);
        Ok(None)
    }

    /// Turns the gradients of what is computed with into those of what is stored. Tensors that got none
    /// may be left empty.
    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        let _ = (backend, grads);
    }
}

/// Builds the base of a configuration in d dimensions.
pub(crate) fn configured<B: Backend>(
    backend: &B,
    config: &BaseConfig,
    dimension: usize,
    initial: Initial,
) -> Box<dyn Base<B>> {
    match (config, initial) {
        (BaseConfig::Normal, _) => Box::new(Normal::new(dimension)),
        (BaseConfig::Mixture(mixture), Initial::Random(key)) => {
            let key = key.named("base");
            Box::new(GaussianMixture::initialise(backend, *mixture, dimension, key))
        }
        (BaseConfig::Mixture(mixture), Initial::Zeros) => {
            Box::new(GaussianMixture::zeros(backend, *mixture, dimension))
        }
        (BaseConfig::StudentT, _) => Box::new(StudentT::new(backend, dimension)),
    }
}

/// Puts numbers on the device, rounded to its precision.
fn upload<B: Backend>(backend: &B, values: &[f64], shape: &[usize]) -> B::Tensor {
    let values: Vec<_> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
    backend.upload(&values, shape.into())
}

/// Adds b to zeros of a shape, to which it is broadcast.
fn spread<B: Backend>(backend: &B, b: &B::Tensor, shape: &[usize]) -> B::Tensor {
    backend.binary(resflow_backend::Binary::Add, backend.full(0.0, shape.into()), b)
}

/// Takes a tensor to the host, in double precision.
fn download<B: Backend>(backend: &B, x: &B::Tensor) -> Result<Vec<f64>, Error> {
    Ok(backend.download(x)?.into_iter().map(resflow_backend::Element::to_f64).collect())
}
