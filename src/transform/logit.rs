//! The logit of \[0, 1\] data (Dinh et al. 2017, §4.1): s = α + (1 − 2α)x, y = ln s − ln(1 − s),
//! log|det ∂y/∂x| = Σ [ln(1 − 2α) − ln s − ln(1 − s)].
//!
//! 1 − s is computed as α + (1 − 2α)(1 − x), so that pixels of exactly 0 and 1 stay finite and keep their precision, in
//! single precision too.

use resflow_backend::{Backend, Binary, Over, Reduce, Unary};

use crate::bijection::{Bijection, Draw, LogDet, Memory, PreparedBijection, Tape, TrainForward};
use crate::error::{ConfigError, Error};
use crate::invert::{Inversion, Solution};
use crate::layer::{Slot, Visitor, VisitorMut};

/// The logit with margin α.
#[derive(Debug, Clone, Copy)]
pub struct Logit {
    alpha: f64,
}

impl Logit {
    /// # Errors
    /// α outside (0, ½): at 0 a pixel that is exactly 0 or 1 has no finite logit.
    pub fn new(alpha: f64) -> Result<Self, ConfigError> {
        if alpha > 0.0 && alpha < 0.5 {
            Ok(Self { alpha })
        } else {
            Err(ConfigError::OutOfRange {
                name: "logit_alpha",
                value: alpha,
                expected: "a number above 0 and below 0.5",
            })
        }
    }

    /// s and 1 − s.
    fn sides<B: Backend>(self, backend: &B, x: &B::Tensor) -> [B::Tensor; 2] {
        let slope = 1.0 - 2.0 * self.alpha;
        let rest = backend.affine(x.clone(), -1.0, 1.0);
        [backend.affine(x.clone(), slope, self.alpha), backend.affine(rest, slope, self.alpha)]
    }

    /// y, and the log det of each row.
    fn map<B: Backend>(self, backend: &B, x: &B::Tensor) -> (B::Tensor, B::Tensor) {
        let [low, high] = self.sides(backend, x).map(|s| backend.unary(Unary::Ln, s));
        let shape = backend.shape(x);
        let sums = backend.axpy(1.0, &low, high.clone());
        let flat = backend.reshape(&sums, [shape.rows(), shape.row_elements()].into());
        let constant = shape.row_elements() as f64 * (1.0 - 2.0 * self.alpha).ln();
        let log_det = backend.affine(backend.reduce(Reduce::Sum, Over::Row, &flat), -1.0, constant);
        (backend.axpy(-1.0, &high, low), log_det)
    }
}

impl<B: Backend> Bijection<B> for Logit {
    fn visit(&self, _path: &str, _visitor: Visitor<'_, B>) {}

    fn visit_mut(&mut self, _path: &str, _visitor: VisitorMut<'_, B>) {}

    fn prepare(&self, _backend: &B) -> Box<dyn PreparedBijection<B>> {
        Box::new(*self)
    }

    fn output(&self, row: &[usize]) -> Result<Vec<usize>, ConfigError> {
        Ok(row.to_vec())
    }

    fn describe(&self, _backend: &B) -> String {
        format!("logit, α = {}", self.alpha)
    }

    fn boxed_clone(&self) -> Box<dyn Bijection<B>> {
        Box::new(*self)
    }
}

impl<B: Backend> PreparedBijection<B> for Logit {
    fn forward(&self, backend: &B, x: &B::Tensor, draw: Option<(Draw<'_>, usize)>) -> (B::Tensor, Option<LogDet<B>>) {
        let (y, value) = self.map(backend, x);
        (y, draw.map(|_| LogDet { value, exact: true }))
    }

    fn inverse(&self, backend: &B, y: &B::Tensor, _how: &Inversion) -> Result<Solution<B>, Error> {
        // σ(y) = e/(1 + e) with e = e^{−|y|}, turned over for y > 0: nothing overflows
        let decay = backend.unary(Unary::Exp, backend.affine(backend.unary(Unary::Abs, y.clone()), -1.0, 0.0));
        let whole = backend.affine(decay.clone(), 1.0, 1.0);
        let small = backend.binary(Binary::Div, decay, &whole);
        let negative = backend.binary(Binary::Less, y.clone(), &backend.full(0.0, [1].into()));
        let s = backend.select(&negative, &small, &backend.affine(small.clone(), -1.0, 1.0));
        let slope = 1.0 / (1.0 - 2.0 * self.alpha);
        // |∂x/∂y| ≤ ¼/(1 − 2α)
        let x = backend.affine(s, slope, -self.alpha * slope);
        Ok(Solution::closed_form(backend, x, 0.25 * slope))
    }

    fn train_forward(&self, backend: &B, x: &B::Tensor, _draw: Draw<'_>, _memory: Memory) -> TrainForward<B> {
        let (y, log_det) = self.map(backend, x);
        TrainForward { y, log_det, tape: Tape::rows(x.clone()), terms: 0 }
    }

    fn train_backward(
        &self,
        backend: &B,
        tape: Tape<B>,
        gy: B::Tensor,
        g_log_det: &B::Tensor,
        _slots: &mut [Slot<B>],
    ) -> B::Tensor {
        // ∂y/∂x = (1 − 2α)(1/s + 1/(1 − s)), ∂log det/∂x = (1 − 2α)(1/(1 − s) − 1/s)
        let [low, high] = self.sides(backend, &tape.rows).map(|s| backend.unary(Unary::Reciprocal, s));
        let shape = backend.shape(&tape.rows);
        let mut weight = vec![1; shape.rank()];
        weight[0] = shape.rows();
        let weight = backend.reshape(g_log_det, weight[..].into());
        let slope = backend.axpy(1.0, &low, high.clone());
        let bend = backend.binary(Binary::Mul, backend.axpy(-1.0, &low, high), &weight);
        backend.affine(backend.axpy(1.0, &bend, backend.binary(Binary::Mul, gy, &slope)), 1.0 - 2.0 * self.alpha, 0.0)
    }

    fn crowds(&self) -> bool {
        true
    }

    fn slots(&self) -> usize {
        0
    }

    fn pull_back(&self, _backend: &B, _slots: &mut [Slot<B>]) {}
}
