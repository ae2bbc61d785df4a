//! Student's t in every column, independently, as a base density with tails:
//!
//! log p(z) = Σ_j g(ν_j/2) − ½ ln(π ν_j) − ½ (ν_j + 1) ln(1 + z_j²/ν_j),  ν_j = 1 + softplus(raw_j),
//!
//! with g(a) = ln Γ(a + ½) − ln Γ(a). On the device g is the series of a ratio of gamma functions (Tricomi and Erdélyi
//! 1951) at a + 8, taken back to a by Γ(x + 1) = x Γ(x), since the difference of two logarithms of gamma functions would lose
//! single precision its digits; on the host it is that difference. Samples are z = cos(2πv)·√(ν (u^{−2/ν} − 1)) of uniform u
//! and v (Bailey 1994), which need no rejection and so are functions of the key and their number alone.
//!
//! Invariant: ν > 1, so that p has a mean.

use std::f64::consts::{PI, TAU};

use resflow_backend::{Activation, Backend, Binary, Key, Noise, Over, Reduce, Unary};
use statrs::function::gamma::ln_gamma;

use super::scores::{invert_student, map_rows, student_to_normal};
use super::{Base, PreparedBase, download, upload};
use crate::batch::Batch;
use crate::config::BaseConfig;
use crate::error::{ConfigError, Error};
use crate::module::{Grad, Module, accumulate};

/// ν at the start, close to normal.
const INITIAL: f64 = 30.0;
/// Steps of the recurrence of Γ before the series.
const STEPS: usize = 8;
/// g(a) = ½ ln a + Σ_i c_i a^{−(2i+1)}.
const SERIES: [f64; 5] = [-1.0 / 8.0, 1.0 / 192.0, -1.0 / 640.0, 17.0 / 14_336.0, -31.0 / 18_432.0];

/// A product of Student t densities with learned degrees of freedom.
#[derive(Debug, Clone)]
pub struct StudentT<B: Backend> {
    /// `[d]`.
    raw: B::Tensor,
    dimension: usize,
}

impl<B: Backend> StudentT<B> {
    /// Builds the density in d dimensions with ν = 30 in each.
    pub fn new(backend: &B, dimension: usize) -> Self {
        // softplus⁻¹(ν − 1)
        let raw = (INITIAL - 1.0).exp_m1().ln();
        Self { raw: backend.full(raw, [dimension].into()), dimension }
    }

    /// Takes a stored tensor, raw `[d]`, of which ν = 1 + softplus(raw).
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for another shape.
    pub fn from_parts(backend: &B, raw: B::Tensor) -> Result<Self, ConfigError> {
        let shape = backend.shape(&raw);
        if shape.rank() != 1 || shape[0] == 0 {
            let problem = format!("a Student t density with degrees of freedom of shape {shape}: expected [d]");
            return Err(ConfigError::Inconsistent(problem));
        }
        Ok(Self { raw, dimension: shape[0] })
    }
}

impl<B: Backend> Module<B> for StudentT<B> {
    crate::parts!(B; raw: Parameter);

    fn describe(&self) -> String {
        format!("Student t in {} dimensions", self.dimension)
    }
}

impl<B: Backend> Base<B> for StudentT<B> {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedBase<B>> {
        let b = backend;
        let raw = b.reshape(&self.raw, [1, self.dimension].into());
        let mut orders = b.activation(Activation::Softplus, None, &raw, 1);
        let slope = orders.swap_remove(1);
        let nu = b.affine(orders.swap_remove(0), 1.0, 1.0);
        let (ratio, ratio_slope) = gamma_ratio(b, &b.affine(nu.clone(), 0.5, 0.0));
        // ½ ln ν − g(ν/2) and its derivative in ν
        let value = b.axpy(-1.0, &ratio, b.affine(b.unary(Unary::Ln, nu.clone()), 0.5, 0.0));
        let inverse = b.unary(Unary::Reciprocal, nu.clone());
        let own_slope = b.affine(b.axpy(-1.0, &ratio_slope, inverse.clone()), 0.5, 0.0);
        Box::new(PreparedStudent::<B> {
            raw: self.raw.clone(),
            exponent: b.affine(nu, 0.5, 0.5),
            inverse,
            slope,
            own: b.reduce(Reduce::Sum, Over::All, &value),
            own_slope,
            dimension: self.dimension,
        })
    }

    fn config(&self) -> Option<BaseConfig> {
        Some(BaseConfig::StudentT)
    }
}

/// Computes g(a) = ln Γ(a + ½) − ln Γ(a) and its derivative, of the shape of a, `[1, d]`.
fn gamma_ratio<B: Backend>(backend: &B, a: &B::Tensor) -> (B::Tensor, B::Tensor) {
    let b = backend;
    let far = b.affine(a.clone(), 1.0, STEPS as f64);
    let inverse = b.unary(Unary::Reciprocal, far.clone());
    let square = b.unary(Unary::Square, inverse.clone());
    // Horner's rule in 1/a², for Σ c_i a^{−2i} and Σ (2i + 1) c_i a^{−2i}
    let horner = |coefficient: &dyn Fn(usize) -> f64| {
        let start = b.full(coefficient(SERIES.len() - 1), b.shape(a));
        (0..SERIES.len() - 1)
            .rev()
            .fold(start, |sum, i| b.affine(b.binary(Binary::Mul, sum, &square), 1.0, coefficient(i)))
    };
    let series = b.binary(Binary::Mul, horner(&|i| SERIES[i]), &inverse);
    let mut value = b.axpy(0.5, &b.unary(Unary::Ln, far), series);
    let descent = b.binary(Binary::Mul, horner(&|i| (2 * i + 1) as f64 * SERIES[i]), &square);
    let mut slope = b.axpy(-1.0, &descent, b.affine(inverse, 0.5, 0.0));
    for i in 0..STEPS {
        // ln((a + i + ½)/(a + i)), whose derivative is −½/((a + i)(a + i + ½))
        let at = b.affine(a.clone(), 1.0, i as f64);
        let half = b.affine(b.unary(Unary::Reciprocal, at.clone()), 0.5, 0.0);
        value = b.axpy(-1.0, &b.unary(Unary::Ln1p, half.clone()), value);
        slope = b.axpy(1.0, &b.binary(Binary::Div, half, &b.affine(at, 1.0, 0.5)), slope);
    }
    (value, slope)
}

/// Student t densities ready for computing; all `[1, d]` but where said.
#[derive(Debug)]
struct PreparedStudent<B: Backend> {
    /// `[d]`.
    raw: B::Tensor,
    /// ½ (ν + 1).
    exponent: B::Tensor,
    /// 1/ν.
    inverse: B::Tensor,
    /// ∂ν/∂raw.
    slope: B::Tensor,
    /// Σ_j ½ ln ν_j − g(ν_j/2), `[1]`.
    own: B::Tensor,
    /// The derivative of its terms in ν.
    own_slope: B::Tensor,
    dimension: usize,
}

impl<B: Backend> PreparedStudent<B> {
    /// Computes z²/ν, `[n, d]`.
    fn square(&self, backend: &B, z: &B::Tensor) -> B::Tensor {
        backend.binary(Binary::Mul, backend.unary(Unary::Square, z.clone()), &self.inverse)
    }

    /// ν of each column on the host.
    fn freedom(&self, backend: &B) -> Result<Vec<f64>, Error> {
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        Ok(download(backend, &self.raw)?.into_iter().map(|raw| 1.0 + softplus(raw)).collect())
    }
}

impl<B: Backend> PreparedBase<B> for PreparedStudent<B> {
    fn energy(&self, backend: &B, z: &Batch<B>) -> B::Tensor {
        let logarithm = backend.unary(Unary::Ln1p, self.square(backend, &z.x));
        let terms = backend.binary(Binary::Mul, logarithm, &self.exponent);
        backend.binary(Binary::Add, backend.reduce(Reduce::Sum, Over::Row, &terms), &self.own)
    }

    fn constant(&self) -> f64 {
        0.5 * self.dimension as f64 * PI.ln()
    }

    fn pull_back(&self, backend: &B, z: Batch<B>, weights: &B::Tensor, grads: &mut [Grad<B>]) -> B::Tensor {
        let b = backend;
        let q = self.square(b, &z.x);
        let logarithm = b.unary(Unary::Ln1p, q.clone());
        // 1/(1 + q)
        let near = b.unary(Unary::Reciprocal, b.affine(q.clone(), 1.0, 1.0));
        let scaled = b.binary(Binary::Mul, near, &self.exponent);
        // ∂E/∂ν = ½ ln(1 + q) − ½ (ν + 1) q/((1 + q) ν) + the derivative of what does not depend on z
        let loss = b.binary(Binary::Mul, b.binary(Binary::Mul, q, &scaled), &self.inverse);
        let of_nu = b.axpy(-1.0, &loss, b.affine(logarithm, 0.5, 0.0));
        let of_nu = b.binary(Binary::Mul, b.binary(Binary::Add, of_nu, &self.own_slope), weights);
        let sum = b.reshape(&b.reduce(Reduce::Sum, Over::Channel, &of_nu), [1, self.dimension].into());
        let of_raw = b.reshape(&b.binary(Binary::Mul, sum, &self.slope), [self.dimension].into());
        accumulate(b, &mut grads[0], &of_raw);
        // ∂E/∂z = (ν + 1) z/(ν (1 + q))
        let factor = b.affine(b.binary(Binary::Mul, scaled, &self.inverse), 2.0, 0.0);
        b.binary(Binary::Mul, b.binary(Binary::Mul, factor, &z.x), weights)
    }

    fn log_prob(&self, backend: &B, z: &Batch<B>) -> Result<Vec<f64>, Error> {
        let freedom = self.freedom(backend)?;
        let own = |&nu: &f64| ln_gamma(0.5 * (nu + 1.0)) - ln_gamma(0.5 * nu) - 0.5 * (PI * nu).ln();
        let constant: f64 = freedom.iter().map(own).sum();
        let one = |(z, nu): (&f64, &f64)| 0.5 * (nu + 1.0) * (z * z / nu).ln_1p();
        let z = download(backend, &z.x)?;
        Ok(z.chunks_exact(self.dimension).map(|z| constant - z.iter().zip(&freedom).map(one).sum::<f64>()).collect())
    }

    fn to_normal(&self, backend: &B, rows: &[f64]) -> Result<Option<Vec<f64>>, Error> {
        let freedom = self.freedom(backend)?;
        let one = |(&z, &nu): (&f64, &f64)| student_to_normal(z, nu);
        let map = |rows: &[f64]| rows.iter().zip(freedom.iter().cycle()).map(one).collect();
        Ok(Some(map_rows(backend, self.dimension, rows, map)))
    }

    fn invert_normal(&self, backend: &B, scores: &[f64]) -> Result<Option<Vec<f64>>, Error> {
        let freedom = self.freedom(backend)?;
        let one = |(&u, &nu): (&f64, &f64)| invert_student(u, nu);
        let map = |scores: &[f64]| scores.iter().zip(freedom.iter().cycle()).map(one).collect();
        Ok(Some(map_rows(backend, self.dimension, scores, map)))
    }

    fn sample(&self, backend: &B, key: Key, first: u64, count: usize, _context: Option<&B::Tensor>) -> B::Tensor {
        let d = self.dimension;
        let Ok(freedom) = self.freedom(backend) else {
            // the device's fault comes again with whatever is computed of its tensors
            return backend.binary(Binary::Add, backend.full(f64::NAN, [count, d].into()), &self.inverse);
        };
        let draw = |name: &str| {
            let mut out = vec![0.0; count * d];
            Noise::Uniform.fill(key.named(name), first.wrapping_mul(d as u64), &mut out);
            out
        };
        let (mut z, fine, angles) = (draw("radius"), draw("radius, lower digits"), draw("angle"));
        for (i, z) in z.iter_mut().enumerate() {
            let nu = freedom[i % d];
            // in (0, 1], in steps of 2⁻⁴⁸: the far tail is where u is small
            let u: f64 = 1.0 - (*z + fine[i] / 16_777_216.0);
            *z = (TAU * angles[i]).cos() * (nu * (-2.0 / nu * u.ln()).exp_m1()).sqrt();
        }
        upload(backend, &z, &[count, d])
    }
}
