//! The standard normal density N(0, I): −log p(z) = ½‖z‖² + ½ d ln 2π.

use resflow_backend::{Backend, Binary, Element as _, Key, Noise};

use super::{Base, PreparedBase};
use crate::batch::Batch;
use crate::config::BaseConfig;
use crate::error::Error;
use crate::module::{Grad, Module};

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

    fn config(&self) -> Option<BaseConfig> {
        Some(BaseConfig::Normal)
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
        backend.binary(Binary::Mul, z.x, weights)
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
