//! The base density: what z is distributed by.
//!
//! log p(x) = log p(z) + log|det ∂z/∂x|. A base has parameters like a layer, a density with its gradient, and samples
//! that are functions of a key. What depends on z is split from what does not: a training step minimises the *energy*
//! E(z) = −log p(z) + const., and the constant, in double precision, is added where a number is reported.

use std::fmt::Debug;

use resflow_backend::{Backend, Element as _, Key, Noise};

use crate::batch::Batch;
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

    /// Returns `true` for the standard normal density, the only one that model files know.
    fn is_standard_normal(&self) -> bool {
        false
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

    /// Turns the gradients of what is computed with into those of what is stored. Tensors that got none
    /// may be left empty.
    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        let _ = (backend, grads);
    }
}

/// The standard normal density N(0, I): −log p(z) = ½‖z‖² + ½ d ln 2π.
#[derive(Debug, Clone, Copy)]
pub struct Normal {
    dimension: usize,
}

impl Normal {
    /// Builds the density in d dimensions.
    pub fn new(dimension: usize) -> Self {
        Self { dimension }
    }
}

impl<B: Backend> Module<B> for Normal {
    fn describe(&self) -> String {
        format!("standard normal in {} dimensions", self.dimension)
    }
}

impl<B: Backend> Base<B> for Normal {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn prepare(&self, _backend: &B) -> Box<dyn PreparedBase<B>> {
        Box::new(*self)
    }

    fn is_standard_normal(&self) -> bool {
        true
    }
}

impl<B: Backend> PreparedBase<B> for Normal {
    fn energy(&self, backend: &B, z: &Batch<B>) -> B::Tensor {
        backend.affine(backend.dot_rows(&z.x, &z.x), 0.5, 0.0)
    }

    fn constant(&self) -> f64 {
        0.5 * self.dimension as f64 * (2.0 * std::f64::consts::PI).ln()
    }

    fn pull_back(&self, backend: &B, z: Batch<B>, weights: &B::Tensor, _grads: &mut [Grad<B>]) -> B::Tensor {
        backend.binary(resflow_backend::Binary::Mul, z.x, weights)
    }

    // in double precision, so that single precision costs z its last digits only
    fn log_prob(&self, backend: &B, z: &Batch<B>) -> Result<Vec<f64>, Error> {
        let values = backend.download(&z.x)?;
        let constant = PreparedBase::<B>::constant(self);
        let one = |sample: &[B::Elem]| -constant - 0.5 * sample.iter().map(|z| z.to_f64() * z.to_f64()).sum::<f64>();
        Ok(values.chunks_exact(self.dimension.max(1)).map(one).collect())
    }

    fn sample(&self, backend: &B, key: Key, first: u64, count: usize, _context: Option<&B::Tensor>) -> B::Tensor {
        let d = self.dimension;
        backend.noise(key, Noise::Normal, first * d as u64, [count, d].into())
    }
}
