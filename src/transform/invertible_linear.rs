//! The invertible linear map of Glow (Kingma and Dhariwal 2018, arXiv 1807.03039, §3.2) on the last axis, of images the
//! invertible 1 × 1 convolution:
//!
//! y = W x,  W = P·L·U,  log|det ∂y/∂x| = (pixels)·Σ ln|U_ii|.
//!
//! P is a fixed permutation, L unit lower triangular and U upper triangular with fixed signs on its diagonal. All that
//! is trained is one matrix: L below its diagonal, U above it, and ln|U_ii| on it. Invariant: as long as these are
//! finite, W is invertible and its log det a sum, wherever the optimiser goes.

use std::sync::OnceLock;

use resflow_backend::{Backend, BackendError, Binary, Element as _, Key, Noise, Over, Reduce, Unary};

use crate::batch::Batch;
use crate::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use crate::error::{CheckpointError, ConfigError, Error};
use crate::invert::Solution;
use crate::layer::{by_rows, matrix};
use crate::lipschitz::{TransformBounds, inverse_norm_bound, spectral_norm_bound};
use crate::module::{Grad, Module, accumulate};
use crate::reference::{ReferenceMap, numbers};
use crate::stage::Stage;

/// A pivot of at most this many n ε of the largest number is what rounding leaves of a row that the others span.
const SINGULAR: f64 = 64.0;

/// An invertible matrix by its factors.
#[derive(Debug, Clone)]
pub struct InvertibleLinear<B: Backend> {
    lu: B::Tensor,
    /// Row i of W is row `permutation[i]` of L·U.
    permutation: B::Tensor,
    sign: B::Tensor,
    /// 0, 1, …, c − 1.
    count: B::Tensor,
    features: usize,
}

impl<B: Backend> InvertibleLinear<B> {
    /// Builds a map of zeros, to be filled from a file.
    pub fn zeros(backend: &B, features: usize) -> Self {
        let zeros = || backend.full(0.0, [features].into());
        let lu = backend.full(0.0, [features, features].into());
        Self { lu, permutation: zeros(), sign: zeros(), count: counting(backend, features), features }
    }

    /// Factors a given matrix `[c, c]`, row-major.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for a matrix that is not square, not finite, or singular to the precision
    /// of doubles.
    pub fn from_matrix(backend: &B, features: usize, matrix: &[f64]) -> Result<Self, ConfigError> {
        let Factors { lu, order, sign } = Factors::of(features, matrix)?;
        let mut permutation = vec![B::Elem::ZERO; features];
        for (at, &row) in order.iter().enumerate() {
            permutation[row] = B::Elem::from_f64(at as f64);
        }
        let upload = |values: &[f64], shape: &[usize]| {
            let values: Vec<_> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
            backend.upload(&values, shape.into())
        };
        Ok(Self {
            lu: upload(&lu, &[features, features]),
            permutation: backend.upload(&permutation, [features].into()),
            sign: upload(&sign, &[features]),
            count: counting(backend, features),
            features,
        })
    }

    /// Builds the identity.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for a map of no features.
    pub fn identity(backend: &B, features: usize) -> Result<Self, ConfigError> {
        let numbers = features.saturating_mul(features);
        let one: Vec<f64> = (0..numbers).map(|e| f64::from(u8::from(e % (features + 1) == 0))).collect();
        Self::from_matrix(backend, features, &one)
    }

    /// Draws a random orthogonal matrix, a function of the key: its log det is 0.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for a matrix of normal numbers that is singular: never in practice.
    pub fn rotation(backend: &B, features: usize, key: Key) -> Result<Self, ConfigError> {
        let mut rows = vec![0.0; features * features];
        Noise::Normal.fill(key.named("rotation"), 0, &mut rows);
        orthogonalise(features, &mut rows);
        Self::from_matrix(backend, features, &rows)
    }
}

/// 0, 1, …, c − 1.
pub(super) fn counting<B: Backend>(backend: &B, features: usize) -> B::Tensor {
    let count: Vec<_> = (0..features).map(|i| B::Elem::from_f64(i as f64)).collect();
    backend.upload(&count, [features].into())
}

/// Matrices of zeros and ones, `[c, c]`.
#[derive(Debug)]
pub(super) struct Masks<B: Backend> {
    pub(super) below: B::Tensor,
    pub(super) diagonal: B::Tensor,
    pub(super) above: B::Tensor,
    /// A one in row i and column `permutation[i]`.
    pub(super) permutation: B::Tensor,
}

impl<B: Backend> Masks<B> {
    /// Of a permutation `[c]` and of 0, 1, …, c − 1.
    pub(super) fn new(backend: &B, count: &B::Tensor, permutation: &B::Tensor) -> Self {
        let n = backend.shape(count).elements();
        let spread = |x: &B::Tensor| backend.binary(Binary::Add, backend.full(0.0, [n, n].into()), x);
        let column = |x: &B::Tensor| backend.reshape(x, [n, 1].into());
        let columns = spread(count);
        // ones where the number of the column is that of a vector's entry
        let hot = |numbers: &B::Tensor| {
            let apart = backend.binary(Binary::Sub, columns.clone(), &column(numbers));
            let apart = backend.unary(Unary::Abs, apart);
            backend.binary(Binary::LessEqual, apart, &backend.full(0.5, [1].into()))
        };
        let diagonal = hot(count);
        let below = backend.binary(Binary::Less, columns.clone(), &column(count));
        let above = backend.binary(Binary::Less, spread(&column(count)), &columns);
        Self { below, diagonal, above, permutation: hot(permutation) }
    }
}

/// Checks that a stored tensor `[c]` holds each of 0 to c − 1 once.
pub(super) fn check_permutation<B: Backend>(backend: &B, permutation: &B::Tensor, path: &str) -> Result<(), Error> {
    let mut seen = vec![false; backend.shape(permutation).elements()];
    for at in backend.download(permutation)? {
        let at = at.to_f64();
        match seen.get_mut(at as usize) {
            Some(seen) if at >= 0.0 && at.fract() == 0.0 && !*seen => *seen = true,
            _ => {
                let (name, problem) = (format!("{path}.permutation"), "is no permutation".into());
                return Err(Error::Checkpoint(CheckpointError::Tensor { name, problem }));
            }
        }
    }
    Ok(())
}

/// Makes the rows orthonormal by Gram and Schmidt, twice over.
fn orthogonalise(n: usize, rows: &mut [f64]) {
    for i in 0..n {
        let (before, rest) = rows.split_at_mut(i * n);
        let row = &mut rest[..n];
        for _ in 0..2 {
            for other in before.chunks_exact(n) {
                let along: f64 = other.iter().zip(&*row).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let norm = row.iter().map(|a| a * a).sum::<f64>().sqrt();
            for a in &mut *row {
                *a /= norm;
            }
        }
    }
}

/// The factors of a matrix, with ln|U_ii| on the diagonal and row `order[k]` of the matrix as row k of L·U.
struct Factors {
    lu: Vec<f64>,
    order: Vec<usize>,
    sign: Vec<f64>,
}

impl Factors {
    fn of(n: usize, matrix: &[f64]) -> Result<Self, ConfigError> {
        let wrong = |problem: String| Err(ConfigError::Inconsistent(format!("an invertible linear map {problem}")));
        if n == 0 || matrix.len() != n * n {
            return wrong(format!("of {n} features from {} numbers", matrix.len()));
        }
        let largest = matrix.iter().fold(0.0, |a: f64, x| if x.is_finite() { a.max(x.abs()) } else { f64::INFINITY });
        if !largest.is_finite() {
            return wrong("from a matrix that is not finite".into());
        }
        let mut lu = matrix.to_vec();
        let mut order: Vec<usize> = (0..n).collect();
        for k in 0..n {
            let size = |row: &usize| lu[row * n + k].abs();
            let pivot = (k..n).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or(k);
            if size(&pivot) <= SINGULAR * n as f64 * f64::EPSILON * largest {
                return wrong(format!("from a singular matrix: pivot {} of {n} is {:e}", k + 1, size(&pivot)));
            }
            if pivot != k {
                order.swap(k, pivot);
                (0..n).for_each(|j| lu.swap(k * n + j, pivot * n + j));
            }
            let (upper, lower) = lu.split_at_mut((k + 1) * n);
            let top = &upper[k * n..];
            for row in lower.chunks_exact_mut(n) {
                row[k] /= top[k];
                let factor = row[k];
                row[k + 1..].iter_mut().zip(&top[k + 1..]).for_each(|(a, b)| *a -= factor * b);
            }
        }
        let sign = (0..n).map(|k| lu[k * n + k].signum()).collect();
        (0..n).for_each(|k| lu[k * n + k] = lu[k * n + k].abs().ln());
        Ok(Self { lu, order, sign })
    }
}

impl<B: Backend> Module<B> for InvertibleLinear<B> {
    crate::parts!(B; lu: Parameter, permutation: Buffer, sign: Buffer);

    fn describe(&self) -> String {
        format!("invertible linear map of {} features, LU", self.features)
    }

    fn check_stored(&self, backend: &B, path: &str) -> Result<(), Error> {
        let wrong = |leaf: &str, problem: &str| {
            let name = format!("{path}.{leaf}");
            Err(Error::Checkpoint(CheckpointError::Tensor { name, problem: problem.into() }))
        };
        check_permutation(backend, &self.permutation, path)?;
        if backend.download(&self.sign)?.iter().any(|s| s.to_f64().abs() != 1.0) {
            return wrong("sign", "holds other numbers than 1 and −1");
        }
        let lu = backend.download(&self.lu)?;
        let pivots = lu.iter().step_by(self.features + 1).map(|l| l.exp().to_f64());
        if pivots.into_iter().any(|p| p < B::Elem::TINY || !p.is_finite()) {
            return wrong("lu", "is singular to the precision: a number on its diagonal is ln 0 or ln ∞");
        }
        Ok(())
    }
}

impl<B: Backend> InvertibleLinear<B> {
    /// The map with its factors multiplied.
    fn prepared(&self, backend: &B) -> Prepared<B> {
        let n = self.features;
        let Masks { below, diagonal, above, permutation } = Masks::new(backend, &self.count, &self.permutation);
        let part = |mask: &B::Tensor| backend.binary(Binary::Mul, self.lu.clone(), mask);
        let logarithms = backend.reduce(Reduce::Sum, Over::Channel, &part(&diagonal));
        let pivots = backend.binary(Binary::Mul, backend.unary(Unary::Exp, logarithms.clone()), &self.sign);
        let lower = backend.axpy(1.0, &diagonal, part(&below));
        let upper = backend.axpy(1.0, &backend.binary(Binary::Mul, diagonal.clone(), &pivots), part(&above));
        let product = backend.matmul(&lower, false, &upper, false);
        Prepared {
            weight: backend.matmul(&permutation, false, &product, false),
            inverse: OnceLock::new(),
            log_det: backend.reduce(Reduce::Sum, Over::All, &logarithms),
            masks: [below, diagonal, above],
            permutation,
            lower,
            upper,
            pivots,
            features: n,
        }
    }
}

impl<B: Backend> Bijection<B> for InvertibleLinear<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        closed_form(self.prepared(backend))
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if matches!(shape.len(), 1 | 3) && shape.last() == Some(&self.features) {
            Ok(shape.to_vec())
        } else {
            Err(ConfigError::Inconsistent(format!(
                "an invertible linear map of {} features cannot take samples {shape:?}",
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
        Some(Stage::InvertibleLinear { features: self.features })
    }
}

/// The map with its factors multiplied.
#[derive(Debug)]
struct Prepared<B: Backend> {
    weight: B::Tensor,
    /// W⁻¹, once it is asked for: training never does.
    inverse: OnceLock<B::Tensor>,
    log_det: B::Tensor,
    /// Ones below the diagonal, on it, above it.
    masks: [B::Tensor; 3],
    permutation: B::Tensor,
    lower: B::Tensor,
    upper: B::Tensor,
    /// U_ii.
    pivots: B::Tensor,
    features: usize,
}

impl<B: Backend> Prepared<B> {
    /// The pixels of a sample that share the map.
    fn pixels(&self, backend: &B, x: &B::Tensor) -> f64 {
        (backend.shape(x).row_elements() / self.features) as f64
    }

    /// W⁻¹.
    fn inverse(&self, backend: &B) -> &B::Tensor {
        let n = self.features;
        self.inverse.get_or_init(|| {
            let (_, inverse) = backend.lu(&backend.reshape(&self.weight, [1, n, n].into()));
            backend.reshape(&inverse, [n, n].into())
        })
    }
}

impl<B: Backend> ClosedForm<B> for Prepared<B> {
    fn map(&self, backend: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        let x = &batch.x;
        let y = by_rows(backend, x, |x| backend.matmul(x, false, &self.weight, true));
        let total = backend.affine(self.log_det.clone(), self.pixels(backend, x), 0.0);
        (y, backend.binary(Binary::Add, backend.full(0.0, [batch.len(backend), 1].into()), &total))
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        Ok(ReferenceMap::linear(numbers(backend, &self.weight)?, vec![0.0; self.features]))
    }

    fn unmap(&self, backend: &B, batch: &Batch<B>) -> Result<Solution<B>, Error> {
        let inverse = self.inverse(backend);
        let x = by_rows(backend, &batch.x, |y| backend.matmul(y, false, inverse, true));
        // ‖W⁻¹‖₂ is at most the root of the sum of squares
        let square = backend.download(&backend.dot(inverse, inverse))?[0].to_f64();
        Ok(Solution::by_formula(backend, x, square.sqrt())?)
    }

    fn solve_transposed(&self, backend: &B, _: &Batch<B>, gradient: &B::Tensor) -> Result<Option<B::Tensor>, Error> {
        let inverse = self.inverse(backend);
        Ok(Some(by_rows(backend, gradient, |g| backend.matmul(g, false, inverse, false))))
    }

    fn pull_back(
        &self,
        backend: &B,
        kept: Batch<B>,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Cotangents<B> {
        // what is added up is the gradient of W, and below it a row of that of Σ ln|U_ii|
        let gy = &cotangents.x;
        let outer = backend.matmul(&matrix(backend, gy), true, &matrix(backend, &kept.x), false);
        let total = backend.reduce(Reduce::Sum, Over::All, &cotangents.log_det);
        let total = backend.affine(total, self.pixels(backend, &kept.x), 0.0);
        let total = backend.binary(Binary::Add, backend.full(0.0, [1, self.features].into()), &total);
        accumulate(backend, &mut grads[0], &backend.concat(&[&outer, &total], 0));
        let gx = by_rows(backend, gy, |gy| backend.matmul(gy, false, &self.weight, false));
        cotangents.with_x(gx)
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        let n = self.features;
        let Some(sum) = grads[0].take() else {
            grads[0] = Some(backend.full(0.0, [n, n].into()));
            return;
        };
        let [below, diagonal, above] = &self.masks;
        let weight = backend.narrow(&sum, 0, 0, n);
        let product = backend.matmul(&self.permutation, true, &weight, false);
        let lower = backend.matmul(&product, false, &self.upper, true);
        let upper = backend.matmul(&self.lower, true, &product, false);
        // ∂U_ii/∂ln|U_ii| = U_ii
        let pivots = backend.binary(Binary::Mul, upper.clone(), &self.pivots);
        let pivots = backend.binary(Binary::Add, pivots, &backend.narrow(&sum, 0, n, 1));
        let parts = [(lower, below), (pivots, diagonal), (upper, above)];
        let masked = parts.map(|(gradient, mask)| backend.binary(Binary::Mul, gradient, mask));
        grads[0] = masked.into_iter().reduce(|a, b| backend.axpy(1.0, &b, a));
    }
}
