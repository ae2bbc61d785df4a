//! The logit of \[0, 1\] data (Dinh et al. 2017, §4.1): s = α + (1 − 2α)x, y = ln s − ln(1 − s),
//! log|det ∂y/∂x| = Σ [ln(1 − 2α) − ln s − ln(1 − s)].
//!
//! 1 − s is computed as α + (1 − 2α)(1 − x), so that pixels of exactly 0 and 1 stay finite and keep their precision, in
//! single precision too.

use resflow_backend::{Backend, BackendError, Binary, Over, Reduce, Unary};

use crate::batch::{Batch, per_sample};
use crate::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use crate::error::{ConfigError, Error};
use crate::invert::Solution;
use crate::lipschitz::TransformBounds;
use crate::module::{Grad, Module};
use crate::reference::ReferenceMap;
use crate::stage::Stage;

/// The logit with margin α.
#[derive(Debug, Clone, Copy)]
pub struct Logit {
    alpha: f64,
}

impl Logit {
    /// Builds the logit with margin α.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for α outside (0, ½): at 0 a pixel that is exactly 0 or 1 has
    /// no finite logit.
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
}

impl<B: Backend> Module<B> for Logit {
    fn describe(&self) -> String {
        format!("logit, α = {}", self.alpha)
    }
}

impl<B: Backend> Bijection<B> for Logit {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedBijection<B>> {
        closed_form(*self)
    }

    fn certified_bounds(&self, _backend: &B, _path: &str) -> Result<TransformBounds, BackendError> {
        // on [0, 1]: |∂y/∂x| ≤ (1 − 2α)/(α(1 − α)), |∂x/∂y| ≤ ¼/(1 − 2α)
        let slope = 1.0 - 2.0 * self.alpha;
        let few = 1.0 + 8.0 * f64::EPSILON;
        Ok(TransformBounds::of_map(few * slope / (self.alpha * (1.0 - self.alpha)), few * 0.25 / slope))
    }

    fn stage(&self) -> Option<Stage> {
        Some(Stage::Logit { alpha: self.alpha })
    }

    fn saturates(&self) -> bool {
        true
    }
}

impl<B: Backend> ClosedForm<B> for Logit {
    fn map(&self, backend: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        let [low, high] = self.sides(backend, &batch.x).map(|s| backend.unary(Unary::Ln, s));
        let shape = batch.shape(backend);
        let sums = backend.axpy(1.0, &low, high.clone());
        let flat = backend.reshape(&sums, [shape.rows(), shape.row_elements()].into());
        let constant = shape.row_elements() as f64 * (1.0 - 2.0 * self.alpha).ln();
        let log_det = backend.affine(backend.reduce(Reduce::Sum, Over::Row, &flat), -1.0, constant);
        (backend.axpy(-1.0, &high, low), log_det)
    }

    fn reference(&self, _backend: &B) -> Result<Option<ReferenceMap>, Error> {
        Ok(Some(ReferenceMap::Logit { alpha: self.alpha }))
    }

    fn unmap(&self, backend: &B, batch: &Batch<B>) -> Result<Solution<B>, Error> {
        let y = &batch.x;
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

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
    ) -> Result<Option<B::Tensor>, Error> {
        // ∂x/∂y = s(1 − s)/(1 − 2α)
        let [low, high] = self.sides(backend, &batch.x);
        let slope = backend.binary(Binary::Mul, low, &high);
        let a = backend.binary(Binary::Mul, gradient.clone(), &slope);
        Ok(Some(backend.affine(a, 1.0 / (1.0 - 2.0 * self.alpha), 0.0)))
    }

    fn pull_back(&self, backend: &B, kept: Batch<B>, cotangents: Cotangents<B>, _: &mut [Grad<B>]) -> Cotangents<B> {
        // ∂y/∂x = (1 − 2α)(1/s + 1/(1 − s)), ∂log det/∂x = (1 − 2α)(1/(1 − s) − 1/s)
        let [low, high] = self.sides(backend, &kept.x).map(|s| backend.unary(Unary::Reciprocal, s));
        let Cotangents { x: gy, log_det, context } = cotangents;
        let weight = per_sample(backend, &log_det, kept.shape(backend));
        let slope = backend.axpy(1.0, &low, high.clone());
        let bend = backend.binary(Binary::Mul, backend.axpy(-1.0, &low, high), &weight);
        let sum = backend.axpy(1.0, &bend, backend.binary(Binary::Mul, gy, &slope));
        Cotangents { x: backend.affine(sum, 1.0 - 2.0 * self.alpha, 0.0), log_det, context }
    }
}
