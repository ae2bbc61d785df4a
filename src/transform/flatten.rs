//! Images as vectors in (C, H, W) order, `[h, w, c]` → `[c·h·w]`: a permutation, log|det| = 0.
//!
//! Tensors are channels last; the order of a vector, of z and of the weights of fully connected blocks is that of the
//! reference implementation.

use resflow_backend::{Backend, Shape};

use crate::bijection::{Bijection, Draw, LogDet, Memory, PreparedBijection, Tape, TrainForward};
use crate::error::{ConfigError, Error};
use crate::invert::{Inversion, Solution};
use crate::layer::{Slot, Visitor, VisitorMut};

/// Rows of shape `row`, `[n, h, w, c]` or already `[n, d]`, as vectors `[n, d]` in (C, H, W) order.
pub(crate) fn to_vectors<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    let flat = [shape.rows(), shape.row_elements()].into();
    if shape.rank() == 4 && shape[3] > 1 {
        backend.reshape(&backend.permute(x, &[0, 3, 1, 2]), flat)
    } else {
        backend.reshape(x, flat)
    }
}

/// The inverse of [`to_vectors`] for rows of a shape.
pub(crate) fn from_vectors<B: Backend>(backend: &B, x: &B::Tensor, row: &[usize]) -> B::Tensor {
    let n = backend.shape(x).rows();
    match *row {
        [h, w, c] if c > 1 => backend.permute(&backend.reshape(x, [n, c, h, w].into()), &[0, 2, 3, 1]),
        _ => {
            let mut shape = vec![n];
            shape.extend(row);
            backend.reshape(x, Shape::new(&shape))
        }
    }
}

/// Makes vectors of images, for fully connected blocks.
#[derive(Debug, Clone)]
pub struct Flatten {
    row: Vec<usize>,
}

impl Flatten {
    /// For images `[h, w, c]`.
    pub fn new(image: [usize; 3]) -> Self {
        Self { row: image.to_vec() }
    }
}

impl<B: Backend> Bijection<B> for Flatten {
    fn visit(&self, _path: &str, _visitor: Visitor<'_, B>) {}

    fn visit_mut(&mut self, _path: &str, _visitor: VisitorMut<'_, B>) {}

    fn prepare(&self, _backend: &B) -> Box<dyn PreparedBijection<B>> {
        Box::new(self.clone())
    }

    fn output(&self, row: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if row == self.row {
            Ok(vec![row.iter().product()])
        } else {
            Err(ConfigError::Inconsistent(format!(
                "fully connected blocks are made for rows of shape {:?}, not {row:?}: such a flow is tied to its image size",
                self.row
            )))
        }
    }

    fn describe(&self, _backend: &B) -> String {
        "flatten".into()
    }

    fn boxed_clone(&self) -> Box<dyn Bijection<B>> {
        Box::new(self.clone())
    }
}

impl<B: Backend> PreparedBijection<B> for Flatten {
    fn forward(&self, backend: &B, x: &B::Tensor, draw: Option<(Draw<'_>, usize)>) -> (B::Tensor, Option<LogDet<B>>) {
        (to_vectors(backend, x), draw.map(|_| LogDet::zero(backend, backend.shape(x).rows())))
    }

    fn inverse(&self, backend: &B, y: &B::Tensor, _how: &Inversion) -> Result<Solution<B>, Error> {
        Ok(Solution::closed_form(backend, from_vectors(backend, y, &self.row), 1.0))
    }

    fn train_forward(&self, backend: &B, x: &B::Tensor, _draw: Draw<'_>, _memory: Memory) -> TrainForward<B> {
        TrainForward::volume_preserving(backend, to_vectors(backend, x), x)
    }

    fn train_backward(
        &self,
        backend: &B,
        _tape: Tape<B>,
        gy: B::Tensor,
        _g_log_det: &B::Tensor,
        _slots: &mut [Slot<B>],
    ) -> B::Tensor {
        from_vectors(backend, &gy, &self.row)
    }

    fn slots(&self) -> usize {
        0
    }

    fn pull_back(&self, _backend: &B, _slots: &mut [Slot<B>]) {}
}
