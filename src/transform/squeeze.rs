//! Squeeze (Dinh et al. 2017): `[2h, 2w, c]` → `[h, w, 4c]`, output channel = c·4 + dy·2 + dx; log|det| = 0.
//!
//! The inverse of a pixel shuffle. With factor-out the second half of the channels is finished after it and leaves for z.

use resflow_backend::{Backend, Shape};

use crate::bijection::{Bijection, Draw, LogDet, Memory, PreparedBijection, Tape, TrainForward};
use crate::error::{ConfigError, Error};
use crate::invert::{Inversion, Solution};
use crate::layer::{Slot, Visitor, VisitorMut};

/// Trades each 2 × 2 pixels for four times the channels.
#[derive(Debug, Clone, Copy)]
pub struct Squeeze {
    leaving: usize,
}

impl Squeeze {
    /// A squeeze after which everything goes on.
    pub fn new() -> Self {
        Self { leaving: 0 }
    }

    /// A squeeze of images of `channels` channels after which the second half of the new channels leaves for z.
    pub fn with_factor_out(channels: usize) -> Self {
        Self { leaving: 2 * channels }
    }
}

impl Default for Squeeze {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> Bijection<B> for Squeeze {
    fn visit(&self, _path: &str, _visitor: Visitor<'_, B>) {}

    fn visit_mut(&mut self, _path: &str, _visitor: VisitorMut<'_, B>) {}

    fn prepare(&self, _backend: &B) -> Box<dyn PreparedBijection<B>> {
        Box::new(*self)
    }

    fn output(&self, row: &[usize]) -> Result<Vec<usize>, ConfigError> {
        match *row {
            [h, w, c] if h > 0 && w > 0 && h % 2 == 0 && w % 2 == 0 && (self.leaving == 0 || self.leaving == 2 * c) => {
                Ok(vec![h / 2, w / 2, 4 * c])
            }
            [h, w, _] if h % 2 == 1 || w % 2 == 1 => Err(ConfigError::Inconsistent(format!(
                "images of {h} × {w} cannot be squeezed: height and width must be even"
            ))),
            _ => Err(ConfigError::Inconsistent(format!("rows of shape {row:?} cannot be squeezed"))),
        }
    }

    fn leaving(&self) -> usize {
        self.leaving
    }

    fn describe(&self, _backend: &B) -> String {
        match self.leaving {
            0 => "squeeze".into(),
            n => format!("squeeze; the last {n} channels leave"),
        }
    }

    fn boxed_clone(&self) -> Box<dyn Bijection<B>> {
        Box::new(*self)
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

impl<B: Backend> PreparedBijection<B> for Squeeze {
    fn forward(&self, backend: &B, x: &B::Tensor, draw: Option<(Draw<'_>, usize)>) -> (B::Tensor, Option<LogDet<B>>) {
        (squeeze(backend, x), draw.map(|_| LogDet::zero(backend, backend.shape(x).rows())))
    }

    fn inverse(&self, backend: &B, y: &B::Tensor, _how: &Inversion) -> Result<Solution<B>, Error> {
        Ok(Solution::closed_form(backend, unsqueeze(backend, y), 1.0))
    }

    fn train_forward(&self, backend: &B, x: &B::Tensor, _draw: Draw<'_>, _memory: Memory) -> TrainForward<B> {
        TrainForward::volume_preserving(backend, squeeze(backend, x), x)
    }

    fn train_backward(
        &self,
        backend: &B,
        _tape: Tape<B>,
        gy: B::Tensor,
        _g_log_det: &B::Tensor,
        _slots: &mut [Slot<B>],
    ) -> B::Tensor {
        unsqueeze(backend, &gy)
    }

    fn leaving(&self) -> usize {
        self.leaving
    }

    fn slots(&self) -> usize {
        0
    }

    fn pull_back(&self, _backend: &B, _slots: &mut [Slot<B>]) {}
}
