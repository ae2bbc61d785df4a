//! Images as vectors in (C, H, W) order, `[h, w, c]` → `[c·h·w]`: a permutation, log|det| = 0.
//!
//! Tensors are channels last; the order of a vector, of z and of the weights of fully connected blocks is that of the
//! reference implementation.

use resflow_backend::{Backend, BackendError, Shape};

use crate::batch::Batch;
use crate::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use crate::error::{ConfigError, Error};
use crate::invert::Solution;
use crate::lipschitz::TransformBounds;
use crate::module::{Grad, Module};
use crate::reference::ReferenceMap;
use crate::stage::Stage;

/// Samples `[n, h, w, c]` or already `[n, d]`, as vectors `[n, d]` in (C, H, W) order.
pub fn to_vectors<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    let flat = [shape.rows(), shape.row_elements()].into();
    if shape.rank() == 4 && shape[3] > 1 {
        backend.reshape(&backend.permute(x, &[0, 3, 1, 2]), flat)
    } else {
        backend.reshape(x, flat)
    }
}

/// The inverse of [`to_vectors`]: vectors `[n, d]` as samples of a shape, `[h, w, c]` or `[d]`, with n of them.
pub fn from_vectors<B: Backend>(backend: &B, x: &B::Tensor, shape: &[usize]) -> B::Tensor {
    let n = backend.shape(x).rows();
    match *shape {
        [h, w, c] if c > 1 => backend.permute(&backend.reshape(x, [n, c, h, w].into()), &[0, 2, 3, 1]),
        _ => {
            let all = [&[n], shape].concat();
            backend.reshape(x, Shape::new(&all))
        }
    }
}

/// Makes vectors of images, for fully connected blocks.
#[derive(Debug, Clone, Copy)]
pub struct Flatten {
    image: [usize; 3],
}

impl Flatten {
    /// Builds the map for images `[h, w, c]`.
    pub fn new(image: [usize; 3]) -> Self {
        Self { image }
    }
}

impl<B: Backend> Module<B> for Flatten {
    fn describe(&self) -> String {
        "flatten".into()
    }
}

impl<B: Backend> Bijection<B> for Flatten {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedBijection<B>> {
        closed_form(*self)
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if shape == self.image {
            Ok(vec![shape.iter().product()])
        } else {
            Err(ConfigError::Inconsistent(format!(
                "fully connected blocks are made for samples of shape {:?}, not {shape:?}: such a flow is tied to its image size",
                self.image
            )))
        }
    }

    fn certified_bounds(&self, _backend: &B, _path: &str) -> Result<TransformBounds, BackendError> {
        Ok(TransformBounds::of_map(1.0, 1.0))
    }

    fn stage(&self) -> Option<Stage> {
        Some(Stage::Flatten { image: self.image })
    }
}

impl<B: Backend> ClosedForm<B> for Flatten {
    fn map(&self, backend: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        (to_vectors(backend, &batch.x), backend.full(0.0, [batch.len(backend), 1].into()))
    }

    fn reference(&self, _backend: &B) -> Result<Option<ReferenceMap>, Error> {
        Ok(Some(ReferenceMap::Permutation))
    }

    fn unmap(&self, backend: &B, batch: &Batch<B>) -> Result<Solution<B>, Error> {
        Ok(Solution::closed_form(backend, from_vectors(backend, &batch.x, &self.image), 1.0))
    }

    fn solve_transposed(&self, backend: &B, _: &Batch<B>, gradient: &B::Tensor) -> Result<Option<B::Tensor>, Error> {
        Ok(Some(to_vectors(backend, gradient)))
    }

    fn pull_back(&self, backend: &B, _: Batch<B>, cotangents: Cotangents<B>, _: &mut [Grad<B>]) -> Cotangents<B> {
        let x = from_vectors(backend, &cotangents.x, &self.image);
        cotangents.with_x(x)
    }

    // the next transform keeps it anyway
    fn keeps_output(&self) -> bool {
        true
    }
}
