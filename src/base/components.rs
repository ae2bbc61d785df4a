//! A mixture of Gaussians on the host, in double precision:
//!
//! p(z) = Σ_k π_k |det A_k| (2π)^{−d/2} exp(−½‖A_k (z − m_k)‖²),  Σ_k = (A_kᵀ A_k)⁻¹, A_k lower triangular.
//!
//! With the factor of the precision a density is products alone, and a sample the solution of a triangular system:
//! z = m_k + A_k⁻¹ ε. A_k is the inverse of the covariance's Cholesky factor. Invariant: weights are above 0 and add up to
//! 1, the diagonals of the factors are above 0.

use std::f64::consts::TAU;

use resflow_backend::{Key, Noise};

use super::{Covariance, MixtureConfig};
use crate::error::ConfigError;

/// Rows that are evaluated side by side, each as if it were alone.
pub(super) const LANES: usize = 8;

/// The numbers of a mixture of Gaussians.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture {
    dimension: usize,
    covariance: Covariance,
    weights: Vec<f64>,
    /// m, `[K, d]`.
    means: Vec<f64>,
    /// A, `[K, d, d]`, or its diagonal `[K, d]`.
    factors: Vec<f64>,
    /// ln π_k + Σ_i ln A_ii − ½ d ln 2π.
    offsets: Vec<f64>,
}

impl Mixture {
    /// Takes the parts of a mixture: weights above 0, which are divided by their sum, `[K]`; means, `[K, d]`; lower
    /// triangular factors A of the precisions, `[K, d, d]`, or `[K, d]` of diagonal ones, row-major.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for parts whose sizes do not belong together, numbers that are not finite,
    /// weights or diagonals that are not above 0, and factors that are not lower triangular.
    pub fn new(
        dimension: usize,
        covariance: Covariance,
        weights: Vec<f64>,
        means: Vec<f64>,
        factors: Vec<f64>,
    ) -> Result<Self, ConfigError> {
        let wrong = |problem: &str| Err(ConfigError::Inconsistent(format!("a mixture of Gaussians with {problem}")));
        let config = MixtureConfig { components: weights.len(), covariance };
        let size = config.factor_numbers(dimension);
        if dimension == 0 || weights.is_empty() {
            return wrong("no columns or no components");
        }
        if means.len() != weights.len() * dimension || Some(factors.len()) != weights.len().checked_mul(size) {
            return wrong(&format!(
                "{} weights, {} numbers of means and {} of factors in {dimension} dimensions: they do not belong together",
                weights.len(),
                means.len(),
                factors.len()
            ));
        }
        if !means.iter().chain(&factors).all(|x| x.is_finite()) {
            return wrong("means or factors that are not finite");
        }
        if !weights.iter().all(|w| w.is_finite() && *w > 0.0) {
            return wrong("weights that are not above 0");
        }
        let stride = config.diagonal_stride(dimension);
        if factors.chunks_exact(size).any(|a| a.iter().step_by(stride).any(|d| *d <= 0.0)) {
            return wrong("a diagonal of a factor that is not above 0");
        }
        let above =
            |a: &[f64]| (0..dimension).any(|i| a[i * dimension + i + 1..(i + 1) * dimension].iter().any(|x| *x != 0.0));
        if covariance == Covariance::Full && factors.chunks_exact(size).any(above) {
            return wrong("a factor that is not lower triangular");
        }
        Ok(Self::of_parts(dimension, covariance, weights, means, factors))
    }

    /// Takes parts that are known to belong together. Numbers that are not finite make densities that are not.
    pub(super) fn of_parts(
        dimension: usize,
        covariance: Covariance,
        mut weights: Vec<f64>,
        means: Vec<f64>,
        factors: Vec<f64>,
    ) -> Self {
        let total: f64 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= total;
        }
        let config = MixtureConfig { components: weights.len(), covariance };
        let (size, stride) = (config.factor_numbers(dimension), config.diagonal_stride(dimension));
        let constant = 0.5 * dimension as f64 * TAU.ln();
        let offset = |(w, a): (&f64, &[f64])| w.ln() + a.iter().step_by(stride).map(|x| x.ln()).sum::<f64>() - constant;
        let offsets = weights.iter().zip(factors.chunks_exact(size)).map(offset).collect();
        Self { dimension, covariance, weights, means, factors, offsets }
    }

    /// d, the numbers of a sample.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Its size, as a configuration has it.
    pub fn config(&self) -> MixtureConfig {
        MixtureConfig { components: self.weights.len(), covariance: self.covariance }
    }

    /// π, `[K]`.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// m, `[K, d]`, row-major.
    pub fn means(&self) -> &[f64] {
        &self.means
    }

    /// The lower triangular factors A of the precisions, `[K, d, d]`, or their diagonals `[K, d]`, row-major.
    pub fn factors(&self) -> &[f64] {
        &self.factors
    }

    pub(super) fn mean(&self, k: usize) -> &[f64] {
        &self.means[k * self.dimension..(k + 1) * self.dimension]
    }

    pub(super) fn factor(&self, k: usize) -> &[f64] {
        let size = self.config().factor_numbers(self.dimension);
        &self.factors[k * size..(k + 1) * size]
    }

    /// Computes log p of each row of values, `[n, d]`, nats.
    ///
    /// # Panics
    /// If the values are no multiple of d.
    pub fn log_densities(&self, rows: &[f64]) -> Vec<f64> {
        assert!(rows.len().is_multiple_of(self.dimension), "{} values in rows of {}", rows.len(), self.dimension);
        let mut terms = self.workspace();
        let mut out = Vec::with_capacity(rows.len() / self.dimension);
        for some in rows.chunks(LANES * self.dimension) {
            let densities = terms.evaluate(self, some);
            out.extend_from_slice(&densities[..some.len() / self.dimension]);
        }
        out
    }

    /// Memory for evaluating rows.
    pub(super) fn workspace(&self) -> Terms {
        let components = self.weights.len();
        Terms { centred: vec![[0.0; LANES]; self.dimension], shares: vec![[0.0; LANES]; components] }
    }

    /// ln π_k + ln N(z; m_k, Σ_k) of some rows.
    fn term(&self, k: usize, rows: &[f64], centred: &mut [[f64; LANES]]) -> [f64; LANES] {
        let (d, mean, factor) = (self.dimension, self.mean(k), self.factor(k));
        for (lane, row) in rows.chunks_exact(d).enumerate() {
            for ((c, x), m) in centred.iter_mut().zip(row).zip(mean) {
                c[lane] = x - m;
            }
        }
        let mut square = [0.0; LANES];
        for i in 0..d {
            let mut y = [0.0; LANES];
            match self.covariance {
                Covariance::Full => {
                    for (a, c) in factor[i * d..=i * d + i].iter().zip(&*centred) {
                        y.iter_mut().zip(c).for_each(|(y, c)| *y += a * c);
                    }
                }
                Covariance::Diagonal => y.iter_mut().zip(&centred[i]).for_each(|(y, c)| *y = factor[i] * c),
            }
            square.iter_mut().zip(&y).for_each(|(square, y)| *square += y * y);
        }
        square.map(|square| self.offsets[k] - 0.5 * square)
    }

    /// Draws `count` samples of a key, `[count, d]`, of which the first is number `first`: each is a function of the key
    /// and its number alone.
    pub fn sample(&self, key: Key, first: u64, count: usize) -> Vec<f64> {
        let d = self.dimension;
        let mut uniform = vec![0.0; count];
        Noise::Uniform.fill(key.named("component"), first, &mut uniform);
        let mut out = vec![0.0; count * d];
        Noise::Normal.fill(key.named("normal"), first.wrapping_mul(d as u64), &mut out);
        for (u, z) in uniform.into_iter().zip(out.chunks_exact_mut(d)) {
            let mut below = 0.0;
            let chosen = self.weights.iter().position(|w| {
                below += w;
                u < below
            });
            let k = chosen.unwrap_or(self.weights.len() - 1);
            let factor = self.factor(k);
            match self.covariance {
                Covariance::Diagonal => z.iter_mut().zip(factor).for_each(|(z, a)| *z /= a),
                // A y = ε from the first row on
                Covariance::Full => {
                    for i in 0..d {
                        let (solved, rest) = z.split_at_mut(i);
                        let row = &factor[i * d..=i * d + i];
                        let known: f64 = row.iter().zip(&*solved).map(|(a, y)| a * y).sum();
                        rest[0] = (rest[0] - known) / row[i];
                    }
                }
            }
            z.iter_mut().zip(self.mean(k)).for_each(|(z, m)| *z += m);
        }
        out
    }
}

impl MixtureConfig {
    /// The distance between the entries of a factor's diagonal.
    pub(super) fn diagonal_stride(self, dimension: usize) -> usize {
        match self.covariance {
            Covariance::Full => dimension + 1,
            Covariance::Diagonal => 1,
        }
    }
}

/// What evaluating some rows needs and leaves behind.
#[derive(Debug)]
pub(super) struct Terms {
    centred: Vec<[f64; LANES]>,
    /// p(k | z) of each component and row.
    pub(super) shares: Vec<[f64; LANES]>,
}

impl Terms {
    /// Computes log p of up to [`LANES`] rows, and each component's share in it.
    pub(super) fn evaluate(&mut self, mixture: &Mixture, rows: &[f64]) -> [f64; LANES] {
        let mut largest = [f64::NEG_INFINITY; LANES];
        for k in 0..self.shares.len() {
            let term = mixture.term(k, rows, &mut self.centred);
            largest.iter_mut().zip(&term).for_each(|(l, t)| *l = l.max(*t));
            self.shares[k] = term;
        }
        // of a row that is infinitely far from all of them no component has a share
        let anchor = largest.map(|l| if l.is_finite() { l } else { 0.0 });
        let mut sum = [0.0; LANES];
        for share in &mut self.shares {
            for lane in 0..LANES {
                share[lane] = (share[lane] - anchor[lane]).exp();
                sum[lane] += share[lane];
            }
        }
        for share in &mut self.shares {
            share.iter_mut().zip(&sum).for_each(|(share, sum)| *share /= sum);
        }
        std::array::from_fn(|lane| anchor[lane] + sum[lane].ln())
    }
}
