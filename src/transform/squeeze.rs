//! Squeeze (Dinh et al. 2017): `[2h, 2w, c]` → `[h, w, 4c]`, output channel = c·4 + dy·2 + dx; log|det| = 0.
//!
//! The inverse of a pixel shuffle. With factor-out the second half of the channels is factored out after it and becomes
//! part of z.

use resflow_backend::{Backend, BackendError, Shape};

use crate::batch::Batch;
use crate::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use crate::error::{ConfigError, Error};
use crate::invert::Solution;
use crate::lipschitz::TransformBounds;
use crate::module::{Grad, Module};
use crate::reference::ReferenceMap;
use crate::stage::Stage;

/// Trades each 2 × 2 pixels for four times the channels.
#[derive(Debug, Clone, Copy)]
pub struct Squeeze {
    factored_out: usize,
}

impl Squeeze {
    /// Builds a squeeze after which everything goes on.
    pub fn new() -> Self {
        Self { factored_out: 0 }
    }

    /// Builds a squeeze of images of `channels` channels after which the second half of the new channels
    /// is factored out.
    pub fn with_factor_out(channels: usize) -> Self {
        Self { factored_out: 2 * channels }
    }
}

impl Default for Squeeze {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> Module<B> for Squeeze {
    fn describe(&self) -> String {
        match self.factored_out {
            0 => "squeeze".into(),
            n => format!("squeeze; the last {n} channels are factored out"),
        }
    }
}

impl<B: Backend> Bijection<B> for Squeeze {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedBijection<B>> {
        closed_form(*self)
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        match *shape {
            [h, w, c]
                if h > 0
                    && w > 0
                    && h % 2 == 0
                    && w % 2 == 0
                    && (self.factored_out == 0 || self.factored_out == 2 * c) =>
            {
                Ok(vec![h / 2, w / 2, 4 * c])
            }
            [h, w, _] if h % 2 == 1 || w % 2 == 1 => Err(ConfigError::Inconsistent(format!(
                "images of {h} × {w} cannot be squeezed: height and width must be even"
            ))),
            _ => Err(ConfigError::Inconsistent(format!("samples of shape {shape:?} cannot be squeezed"))),
        }
    }

    fn certified_bounds(&self, _backend: &B, _path: &str) -> Result<TransformBounds, BackendError> {
        Ok(TransformBounds::of_map(1.0, 1.0))
    }

    fn stage(&self) -> Option<Stage> {
        Some(Stage::Squeeze { factored_out: self.factored_out })
    }

    fn factored_out(&self) -> usize {
        self.factored_out
    }
}

/// `[n, 2h, 2w, c]` → `[n, h, w, 4c]`.
fn squeeze<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let [n, h, w, c] = extents(backend.shape(x));
    // (n, h, dy, w, dx·c) and then (n·h, dy, w, dx, c): five axes are all there are
    let x = backend.reshape(x, [n * h / 2, 2, w / 2, 2, c].into());
    let x = backend.permute(&x, &[0, 2, 4, 1, 3]);
    backend.reshape(&x, [n, h / 2, w / 2, 4 * c].into())
}

/// `[n, h, w, 4c]` → `[n, 2h, 2w, c]`.
fn unsqueeze<B: Backend>(backend: &B, y: &B::Tensor) -> B::Tensor {
    let [n, h, w, c] = extents(backend.shape(y));
    let y = backend.reshape(y, [n * h, w, c / 4, 2, 2].into());
    let y = backend.permute(&y, &[0, 3, 1, 4, 2]);
    backend.reshape(&y, [n, 2 * h, 2 * w, c / 4].into())
}

fn extents(shape: Shape) -> [usize; 4] {
    match shape[..] {
        [n, h, w, c] => [n, h, w, c],
        _ => panic!("squeeze: needs [n, h, w, c], got {shape}"),
    }
}

impl<B: Backend> ClosedForm<B> for Squeeze {
    fn map(&self, backend: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        (squeeze(backend, &batch.x), backend.full(0.0, [batch.len(backend), 1].into()))
    }

    fn reference(&self, _backend: &B) -> Result<Option<ReferenceMap>, Error> {
        Ok(Some(ReferenceMap::Permutation))
    }

    fn unmap(&self, backend: &B, batch: &Batch<B>) -> Result<Solution<B>, Error> {
        Ok(Solution::closed_form(backend, unsqueeze(backend, &batch.x), 1.0))
    }

    fn solve_transposed(&self, backend: &B, _: &Batch<B>, gradient: &B::Tensor) -> Result<Option<B::Tensor>, Error> {
        Ok(Some(squeeze(backend, gradient)))
    }

    fn pull_back(&self, backend: &B, _: Batch<B>, cotangents: Cotangents<B>, _: &mut [Grad<B>]) -> Cotangents<B> {
        let x = unsqueeze(backend, &cotangents.x);
        cotangents.with_x(x)
    }

    // the next transform keeps it anyway
    fn keeps_output(&self) -> bool {
        true
    }
}
