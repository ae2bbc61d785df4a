//! The linear map of neural spline flows (Durkan et al. 2019, arXiv 1906.04032, §4.1; Oliva et al. 2018) on rows:
//!
//! y = L U P x + b,  log|det ∂y/∂x| = Σ ln U_ii.
//!
//! P is a fixed permutation, (P x)_i = x_{p_i}, L is unit lower triangular, U upper triangular with
//! U_ii = m + softplus(r_i + ln(e^{1−m} − 1)), m = 10⁻³. All that is trained besides b is one matrix: L below its
//! diagonal, U above it, r on it. Zeros are P alone. Invariant: U_ii ≥ m, so the map is invertible wherever the optimiser
//! goes, and by triangular solves.

use std::sync::OnceLock;

use resflow_backend::{Activation, Backend, BackendError, Binary, Element, Key, Noise, Over, Reduce, Spline, Unary};

use super::invertible_linear::{Masks, check_permutation, counting};
use crate::batch::Batch;
use crate::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use crate::error::{ConfigError, Error};
use crate::invert::Solution;
use crate::lipschitz::{TransformBounds, inverse_norm_bound, spectral_norm_bound};
use crate::module::{Grad, Module, accumulate};
use crate::reference::{ReferenceMap, numbers};
use crate::stage::Stage;

/// The least number on U's diagonal, and what raw numbers of zero are shifted to, as of splines' slopes.
const LEAST: f64 = Spline::FLOOR;
const SHIFT: f64 = Spline::SHIFT;

/// An invertible linear map of rows by its factors, with a shift.
#[derive(Debug, Clone)]
pub struct LuLinear<B: Backend> {
    lu: B::Tensor,
    bias: B::Tensor,
    /// Entry i of P x is entry `permutation[i]` of x.
    permutation: B::Tensor,
    /// 0, 1, …, d − 1.
    count: B::Tensor,
    features: usize,
}

impl<B: Backend> LuLinear<B> {
    /// Builds the map x ↦ P x of rows of as many numbers as the permutation has.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if it is none, or of nothing.
    pub fn permuting(backend: &B, permutation: &[usize]) -> Result<Self, ConfigError> {
        let features = permutation.len();
        let mut seen = vec![false; features];
        let once = |&p: &usize| seen.get_mut(p).is_some_and(|seen| !std::mem::replace(seen, true));
        if features == 0 || !permutation.iter().all(once) {
            return Err(ConfigError::Inconsistent(format!("{features} numbers that are no permutation")));
        }
        let permutation: Vec<_> = permutation.iter().map(|&p| B::Elem::from_f64(p as f64)).collect();
        Ok(Self { permutation: backend.upload(&permutation, [features].into()), ..Self::zeros(backend, features) })
    }

    /// Builds a map of zeros, to be filled from a file.
    pub fn zeros(backend: &B, features: usize) -> Self {
        let zeros = || backend.full(0.0, [features].into());
        let lu = backend.full(0.0, [features, features].into());
        Self { lu, bias: zeros(), permutation: zeros(), count: counting(backend, features), features }
    }
}

/// Draws a permutation of 0, …, d − 1, a function of the key.
pub(crate) fn draw_permutation(features: usize, key: Key) -> Vec<usize> {
    let mut draws = vec![0.0_f64; features];
    Noise::Uniform.fill(key, 0, &mut draws);
    let mut permutation: Vec<usize> = (0..features).collect();
    permutation.sort_by(|&a, &b| draws[a].total_cmp(&draws[b]));
    permutation
}

impl<B: Backend> Module<B> for LuLinear<B> {
    crate::parts!(B; lu: Parameter, bias: Parameter, permutation: Buffer);

    fn describe(&self) -> String {
        format!("LU linear map of {} features", self.features)
    }

    fn check_stored(&self, backend: &B, path: &str) -> Result<(), Error> {
        check_permutation(backend, &self.permutation, path)
    }
}

impl<B: Backend> LuLinear<B> {
    /// The map with its factors multiplied.
    fn prepared(&self, backend: &B) -> Prepared<B> {
        let masks = Masks::new(backend, &self.count, &self.permutation);
        let part = |mask: &B::Tensor| backend.binary(Binary::Mul, self.lu.clone(), mask);
        let raw = backend.reduce(Reduce::Sum, Over::Channel, &part(&masks.diagonal));
        let mut orders = backend.activation(Activation::Softplus, None, &backend.affine(raw, 1.0, SHIFT), 1);
        let slopes = orders.swap_remove(1);
        let pivots = backend.affine(orders.swap_remove(0), 1.0, LEAST);
        let lower = backend.axpy(1.0, &masks.diagonal, part(&masks.below));
        let diagonal = backend.binary(Binary::Mul, masks.diagonal.clone(), &pivots);
        let upper = backend.axpy(1.0, &diagonal, part(&masks.above));
        let product = backend.matmul(&lower, false, &upper, false);
        let weight = backend.matmul(&product, false, &masks.permutation, false);
        Prepared {
            transposed: backend.permute(&weight, &[1, 0]),
            weight,
            inverse: OnceLock::new(),
            log_det: backend.reduce(Reduce::Sum, Over::All, &backend.unary(Unary::Ln, pivots.clone())),
            masks,
            lower,
            upper,
            pivots,
            slopes,
            stored: self.clone(),
        }
    }
}

impl<B: Backend> Bijection<B> for LuLinear<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        closed_form(self.prepared(backend))
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if shape == [self.features] {
            Ok(shape.to_vec())
        } else {
            Err(ConfigError::Inconsistent(format!(
                "an LU linear map of {} features cannot take samples {shape:?}",
                self.features
            )))
        }
    }

    fn certified_bounds(&self, backend: &B, _path: &str) -> Result<TransformBounds, BackendError> {
        let weight = numbers(backend, &self.prepared(backend).weight)?;
        let forward = spectral_norm_bound(self.features, self.features, &weight);
        Ok(TransformBounds::of_map(forward, inverse_norm_bound(self.features, &weight)))
    }

    fn stage(&self) -> Option<Stage> {
        Some(Stage::LuLinear { features: self.features })
    }
}

/// The map with its factors multiplied.
#[derive(Debug)]
struct Prepared<B: Backend> {
    /// W = L U P and its transpose.
    weight: B::Tensor,
    transposed: B::Tensor,
    /// W⁻¹ and its Frobenius norm, once it is asked for: training never does.
    inverse: OnceLock<(B::Tensor, f64)>,
    log_det: B::Tensor,
    masks: Masks<B>,
    lower: B::Tensor,
    upper: B::Tensor,
    /// U_ii, and ∂U_ii/∂r_i.
    pivots: B::Tensor,
    slopes: B::Tensor,
    stored: LuLinear<B>,
}

impl<B: Backend> Prepared<B> {
    /// W⁻¹ and its Frobenius norm.
    fn inverse(&self, backend: &B) -> Result<&(B::Tensor, f64), Error> {
        if let Some(inverse) = self.inverse.get() {
            return Ok(inverse);
        }
        let inverse = self.invert(backend)?;
        Ok(self.inverse.get_or_init(|| inverse))
    }

    /// Solves for W⁻¹ in double precision.
    fn invert(&self, backend: &B) -> Result<(B::Tensor, f64), Error> {
        let n = self.stored.features;
        let numbers = |x: &B::Tensor| -> Result<Vec<f64>, Error> {
            Ok(backend.download(x)?.into_iter().map(Element::to_f64).collect())
        };
        let (lu, permutation) = (numbers(&self.stored.lu)?, numbers(&self.stored.permutation)?);
        let pivot = |i: usize| {
            let r = lu[i * n + i] + SHIFT;
            LEAST + r.max(0.0) + (-r.abs()).exp().ln_1p()
        };
        // row i of U⁻¹L⁻¹ is row `permutation[i]` of W⁻¹
        let mut rows = vec![0.0; n * n];
        for i in 0..n {
            // L z = e
            let (before, rest) = rows.split_at_mut(i * n);
            rest[i] = 1.0;
            for (j, z) in before.chunks_exact(n).enumerate() {
                rest[..n].iter_mut().zip(z).for_each(|(a, z)| *a -= lu[i * n + j] * z);
            }
        }
        for i in (0..n).rev() {
            // U x = z
            let (before, after) = rows.split_at_mut((i + 1) * n);
            let row = &mut before[i * n..];
            for (j, x) in after.chunks_exact(n).enumerate() {
                row.iter_mut().zip(x).for_each(|(a, x)| *a -= lu[i * n + i + 1 + j] * x);
            }
            let pivot = pivot(i);
            for a in row.iter_mut() {
                *a /= pivot;
            }
        }
        let norm = rows.iter().map(|a| a * a).sum::<f64>().sqrt();
        let mut inverse = vec![B::Elem::ZERO; n * n];
        for (row, &at) in rows.chunks_exact(n).zip(&permutation) {
            let out = &mut inverse[at as usize * n..][..n];
            out.iter_mut().zip(row).for_each(|(out, &a)| *out = B::Elem::from_f64(a));
        }
        Ok((backend.upload(&inverse, [n, n].into()), norm))
    }
}

impl<B: Backend> ClosedForm<B> for Prepared<B> {
    fn map(&self, backend: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        let y = backend.linear(&batch.x, &self.transposed, &self.stored.bias);
        (y, backend.binary(Binary::Add, backend.full(0.0, [batch.len(backend), 1].into()), &self.log_det))
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        let bias = numbers(backend, &self.stored.bias)?;
        Ok(ReferenceMap::linear(numbers(backend, &self.weight)?, bias))
    }

    fn unmap(&self, backend: &B, batch: &Batch<B>) -> Result<Solution<B>, Error> {
        let (inverse, norm) = self.inverse(backend)?;
        let shifted = backend.binary(Binary::Sub, batch.x.clone(), &self.stored.bias);
        // ‖W⁻¹‖₂ is at most the root of the sum of squares
        Ok(Solution::by_formula(backend, backend.matmul(&shifted, false, inverse, true), *norm)?)
    }

    fn solve_transposed(&self, backend: &B, _: &Batch<B>, gradient: &B::Tensor) -> Result<Option<B::Tensor>, Error> {
        let (inverse, _) = self.inverse(backend)?;
        Ok(Some(backend.matmul(gradient, false, inverse, false)))
    }

    fn pull_back(
        &self,
        backend: &B,
        kept: Batch<B>,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Cotangents<B> {
        // what is added up is the gradient of W, and below it a row of that of Σ ln U_ii
        let gy = &cotangents.x;
        let outer = backend.matmul(gy, true, &kept.x, false);
        let total = backend.reduce(Reduce::Sum, Over::All, &cotangents.log_det);
        let total = backend.binary(Binary::Add, backend.full(0.0, [1, self.stored.features].into()), &total);
        accumulate(backend, &mut grads[0], &backend.concat(&[&outer, &total], 0));
        accumulate(backend, &mut grads[1], &backend.reduce(Reduce::Sum, Over::Channel, gy));
        let gx = backend.matmul(gy, false, &self.weight, false);
        cotangents.with_x(gx)
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        let n = self.stored.features;
        grads[1].get_or_insert_with(|| backend.full(0.0, [n].into()));
        let Some(sum) = grads[0].take() else {
            grads[0] = Some(backend.full(0.0, [n, n].into()));
            return;
        };
        let Masks { below, diagonal, above, permutation } = &self.masks;
        let product = backend.matmul(&backend.narrow(&sum, 0, 0, n), false, permutation, true);
        let lower = backend.matmul(&product, false, &self.upper, true);
        let upper = backend.matmul(&self.lower, true, &product, false);
        // ∂ ln U_ii/∂U_ii = 1/U_ii
        let logs =
            backend.binary(Binary::Div, backend.narrow(&sum, 0, n, 1), &backend.reshape(&self.pivots, [1, n].into()));
        let pivots = backend.binary(Binary::Add, upper.clone(), &logs);
        let pivots = backend.binary(Binary::Mul, pivots, &self.slopes);
        let parts = [(lower, below), (pivots, diagonal), (upper, above)];
        let masked = parts.map(|(gradient, mask)| backend.binary(Binary::Mul, gradient, mask));
        grads[0] = masked.into_iter().reduce(|a, b| backend.axpy(1.0, &b, a));
    }
}
