//! A mixture of Gaussians as a base density, trained with the flow:
//!
//! log p(z) = log Σ_k exp(log π_k + Σ_i log A_k,ii − ½‖y_k‖²) − ½ d ln 2π,  y_k = A_k (z − m_k),  π = softmax(logits).
//!
//! A_k is the lower triangular factor of the precision, Σ_k⁻¹ = A_kᵀ A_k, its diagonal stored as logarithms. So all y are
//! one product `[n, d]·[d, K·d]`, and with r = p(k | z)
//!
//! ∂E/∂z = Σ_k r_k A_kᵀ y_k,  ∂E/∂log A_k,ii = r_k (A_k,ii y_k,i (z − m_k)_i − 1),  ∂E/∂logits = π − r.
//!
//! Invariant: A_k,ii ≤ 1/[`LEAST_SCALE`], so that no component can shrink to one datum and the density is bounded.

use std::sync::OnceLock;

use resflow_backend::{Backend, Binary, Key, Noise, Over, Reduce, Unary};

use super::scores::map_rows;
use super::{Base, Covariance, Mixture, MixtureConfig, PreparedBase, download, spread, upload};
use crate::batch::Batch;
use crate::config::BaseConfig;
use crate::error::{ConfigError, Error};
use crate::module::{Grad, Module, accumulate};

/// The least deviation of a number of z given those before it, 1/A_ii, within a component.
pub const LEAST_SCALE: f64 = 1e-4;

/// Numbers of y that an evaluation on the device keeps at a time.
const MOST_AT_ONCE: usize = 1 << 24;

/// Multiply-adds of a sample up to which log p is computed in double precision on the host.
const MOST_ON_HOST: usize = 1 << 16;

/// A mixture of Gaussians with full or diagonal covariances.
#[derive(Debug, Clone)]
pub struct GaussianMixture<B: Backend> {
    /// `[K]`.
    logits: B::Tensor,
    /// m, `[K, d]`.
    means: B::Tensor,
    /// `[K, d, d]`: A below the diagonal, log A_ii on it, nothing above; of diagonal covariances log A_ii, `[K, d]`.
    factors: B::Tensor,
    config: MixtureConfig,
    dimension: usize,
    /// Ones on the diagonal and below it, `[d, d]`, of full covariances.
    masks: Option<[B::Tensor; 2]>,
}

impl<B: Backend> GaussianMixture<B> {
    /// Puts a mixture on the device.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for a mixture of more components than a configuration may have, and for one
    /// with a scale below [`LEAST_SCALE`]: the rows behind it were not in standardised units.
    pub fn new(backend: &B, mixture: &Mixture) -> Result<Self, ConfigError> {
        let (config, d) = (mixture.config(), mixture.dimension());
        BaseConfig::Mixture(config).check()?;
        let stride = config.diagonal_stride(d);
        let mut factors = mixture.factors().to_vec();
        for factor in factors.chunks_exact_mut(config.factor_numbers(d)) {
            for a in factor.iter_mut().step_by(stride) {
                if *a * LEAST_SCALE > 1.0 {
                    return Err(ConfigError::Inconsistent(format!(
                        "a component of a mixture has a scale of {:e}, below the least of {LEAST_SCALE:e}: standardise \
                         the rows that it is fitted to, or set `least_scale`",
                        1.0 / *a
                    )));
                }
                *a = a.ln();
            }
        }
        let logits: Vec<f64> = mixture.weights().iter().map(|w| w.ln()).collect();
        Ok(Self {
            logits: upload(backend, &logits, &[config.components]),
            means: upload(backend, mixture.means(), &[config.components, d]),
            factors: upload(backend, &factors, &factor_shape(config, d)),
            ..Self::zeros(backend, config, d)
        })
    }

    /// Builds a mixture of equal weights and unit covariances whose means are N(0, I), a function of the key.
    pub fn initialise(backend: &B, config: MixtureConfig, dimension: usize, key: Key) -> Self {
        let shape = [config.components, dimension].into();
        let means = backend.noise(key.named("means"), Noise::Normal, 0, shape);
        Self { means, ..Self::zeros(backend, config, dimension) }
    }

    /// Builds a mixture of zeros, to be filled from a file.
    pub fn zeros(backend: &B, config: MixtureConfig, dimension: usize) -> Self {
        let zeros = |shape: &[usize]| backend.full(0.0, shape.into());
        let d = dimension;
        let mask = |one: &dyn Fn(usize, usize) -> bool| {
            let values: Vec<f64> = (0..d * d).map(|e| f64::from(u8::from(one(e / d, e % d)))).collect();
            upload(backend, &values, &[d, d])
        };
        let full = config.covariance == Covariance::Full;
        Self {
            logits: zeros(&[config.components]),
            means: zeros(&[config.components, d]),
            factors: zeros(&factor_shape(config, d)),
            masks: full.then(|| [mask(&|i, j| i == j), mask(&|i, j| j < i)]),
            config,
            dimension,
        }
    }

    /// Takes stored tensors: logits `[K]`, means `[K, d]`, and factors of the precisions with the logarithms of their
    /// diagonals, `[K, d, d]`, or `[K, d]` of diagonal ones.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the shapes do not belong together, [`ConfigError::OutOfRange`] for a
    /// number of components that no configuration has.
    pub fn from_parts(
        backend: &B,
        logits: B::Tensor,
        means: B::Tensor,
        factors: B::Tensor,
    ) -> Result<Self, ConfigError> {
        let shapes = [&logits, &means, &factors].map(|x| backend.shape(x));
        let [l, m, f] = shapes;
        let covariance = if f.rank() == 3 { Covariance::Full } else { Covariance::Diagonal };
        if l.rank() != 1
            || m.rank() != 2
            || m[0] != l[0]
            || m[1] == 0
            || f[..] != factor_shape(MixtureConfig { components: l[0], covariance }, m[1])[..]
        {
            return Err(ConfigError::Inconsistent(format!(
                "a mixture with logits {l}, means {m} and factors {f}: expected [K], [K, d], and [K, d, d] or [K, d]"
            )));
        }
        let config = MixtureConfig { components: l[0], covariance };
        BaseConfig::Mixture(config).check()?;
        Ok(Self { logits, means, factors, ..Self::zeros(backend, config, m[1]) })
    }

    /// Takes the mixture to the host.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn to_mixture(&self, backend: &B) -> Result<Mixture, Error> {
        let (d, config) = (self.dimension, self.config);
        let logits = download(backend, &self.logits)?;
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights = logits.iter().map(|l| (l - largest).exp()).collect();
        let mut factors = download(backend, &self.factors)?;
        let stride = config.diagonal_stride(d);
        for factor in factors.chunks_exact_mut(config.factor_numbers(d)) {
            factor.iter_mut().step_by(stride).for_each(|a| *a = a.min(-LEAST_SCALE.ln()).exp());
            if config.covariance == Covariance::Full {
                (0..d).for_each(|i| factor[i * d + i + 1..(i + 1) * d].fill(0.0));
            }
        }
        Ok(Mixture::of_parts(d, config.covariance, weights, download(backend, &self.means)?, factors))
    }
}

/// The shape of the factors' tensor.
fn factor_shape(config: MixtureConfig, dimension: usize) -> Vec<usize> {
    match config.covariance {
        Covariance::Full => vec![config.components, dimension, dimension],
        Covariance::Diagonal => vec![config.components, dimension],
    }
}

impl<B: Backend> Module<B> for GaussianMixture<B> {
    crate::parts!(B; logits: Parameter, means: Parameter, factors: Parameter);

    fn describe(&self) -> String {
        let MixtureConfig { components, covariance } = self.config;
        let gaussians = if components == 1 { "Gaussian" } else { "Gaussians" };
        format!("mixture of {components} {gaussians} with {covariance} covariances in {} dimensions", self.dimension)
    }
}

impl<B: Backend> Base<B> for GaussianMixture<B> {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedBase<B>> {
        let (b, d, components) = (backend, self.dimension, self.config.components);
        let logarithms = match &self.masks {
            None => self.factors.clone(),
            Some([diagonal, _]) => sum_last(b, &b.binary(Binary::Mul, self.factors.clone(), diagonal)),
        };
        let most = b.full(-LEAST_SCALE.ln(), [1].into());
        let bounded = b.binary(Binary::Min, logarithms.clone(), &most);
        let scales = b.unary(Unary::Exp, bounded.clone());
        let logits = b.reshape(&self.logits, [1, components].into());
        let log_weights = b.binary(Binary::Sub, logits.clone(), &log_sum_exp(b, &logits).0);
        let determinants = b.reshape(&b.reduce(Reduce::Sum, Over::Row, &bounded), [1, components].into());
        let product = self.masks.clone().map(|[diagonal, below]| {
            let scales = b.reshape(&scales, [components, d, 1].into());
            let diagonal = spread(b, &diagonal, &[components, d, d]);
            let pivots = b.binary(Binary::Mul, diagonal, &scales);
            let factors = b.axpy(1.0, &pivots, b.binary(Binary::Mul, self.factors.clone(), &below));
            let means = b.reshape(&self.means, [components, 1, d].into());
            let shift = sum_last(b, &b.binary(Binary::Mul, factors.clone(), &means));
            let matrix = b.reshape(&factors, [components * d, d].into());
            Product {
                transposed: b.permute(&matrix, &[1, 0]),
                shift: b.reshape(&b.affine(shift, -1.0, 0.0), [components * d].into()),
                matrix,
                factors,
            }
        });
        Box::new(PreparedMixture {
            mixture: self.clone(),
            weights: b.unary(Unary::Exp, log_weights.clone()),
            offsets: b.axpy(1.0, &determinants, log_weights),
            logarithms,
            scales,
            product,
            host: OnceLock::new(),
        })
    }

    fn config(&self) -> Option<BaseConfig> {
        Some(BaseConfig::Mixture(self.config))
    }
}

/// Sums over the last axis: `[K, d, m]` to `[K, d]`.
fn sum_last<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    let rows = backend.reshape(x, [shape[0] * shape[1], shape[2]].into());
    backend.reshape(&backend.reduce(Reduce::Sum, Over::Row, &rows), [shape[0], shape[1]].into())
}

/// Computes log Σ exp of each row, `[n, 1]`, and the shares of its entries, `[n, K]`.
fn log_sum_exp<B: Backend>(backend: &B, terms: &B::Tensor) -> (B::Tensor, B::Tensor) {
    let largest = backend.reduce(Reduce::Max, Over::Row, terms);
    let shares = backend.unary(Unary::Exp, backend.binary(Binary::Sub, terms.clone(), &largest));
    let sum = backend.reduce(Reduce::Sum, Over::Row, &shares);
    let shares = backend.binary(Binary::Div, shares, &sum);
    (backend.axpy(1.0, &backend.unary(Unary::Ln, sum), largest), shares)
}

/// All factors as one matrix.
#[derive(Debug)]
struct Product<B: Backend> {
    /// A, `[K, d, d]`.
    factors: B::Tensor,
    /// The same, `[K·d, d]`.
    matrix: B::Tensor,
    /// Its transpose.
    transposed: B::Tensor,
    /// −A_k m_k, `[K·d]`.
    shift: B::Tensor,
}

/// A mixture ready for computing.
#[derive(Debug)]
struct PreparedMixture<B: Backend> {
    mixture: GaussianMixture<B>,
    /// π, `[1, K]`.
    weights: B::Tensor,
    /// log π_k + Σ_i log A_k,ii, `[1, K]`.
    offsets: B::Tensor,
    /// log A_ii before it was bounded, and A_ii, `[K, d]`.
    logarithms: B::Tensor,
    scales: B::Tensor,
    /// Of full covariances.
    product: Option<Product<B>>,
    /// The mixture on the host, once it is asked for: training never does.
    host: OnceLock<Mixture>,
}

impl<B: Backend> PreparedMixture<B> {
    /// n, K and d.
    fn extents(&self, backend: &B, z: &B::Tensor) -> [usize; 3] {
        [backend.shape(z).rows(), self.mixture.config.components, self.mixture.dimension]
    }

    /// Computes y, `[n, K, d]`.
    fn whiten(&self, backend: &B, z: &B::Tensor) -> B::Tensor {
        let [n, k, d] = self.extents(backend, z);
        if let Some(product) = &self.product {
            let y = backend.linear(z, &product.transposed, &product.shift);
            return backend.reshape(&y, [n, k, d].into());
        }
        let z = spread(backend, &backend.reshape(z, [n, 1, d].into()), &[n, k, d]);
        let of_components = |x: &B::Tensor| backend.reshape(x, [1, k, d].into());
        let centred = backend.binary(Binary::Sub, z, &of_components(&self.mixture.means));
        backend.binary(Binary::Mul, centred, &of_components(&self.scales))
    }

    /// Computes log p + ½ d ln 2π, `[n, 1]`, and p(k | z), `[n, K]`.
    fn judge(&self, backend: &B, y: &B::Tensor) -> (B::Tensor, B::Tensor) {
        let shape = backend.shape(y);
        let [n, k, d] = [shape[0], shape[1], shape[2]];
        let rows = backend.reshape(y, [n * k, d].into());
        let square = backend.reshape(&backend.dot_rows(&rows, &rows), [n, k].into());
        let terms = backend.binary(Binary::Add, backend.affine(square, -0.5, 0.0), &self.offsets);
        log_sum_exp(backend, &terms)
    }

    fn host(&self, backend: &B) -> Result<&Mixture, Error> {
        if let Some(mixture) = self.host.get() {
            return Ok(mixture);
        }
        let mixture = self.mixture.to_mixture(backend)?;
        Ok(self.host.get_or_init(|| mixture))
    }
}

impl<B: Backend> PreparedBase<B> for PreparedMixture<B> {
    fn energy(&self, backend: &B, z: &Batch<B>) -> B::Tensor {
        let (log_density, _) = self.judge(backend, &self.whiten(backend, &z.x));
        backend.affine(log_density, -1.0, 0.0)
    }

    fn constant(&self) -> f64 {
        0.5 * self.mixture.dimension as f64 * std::f64::consts::TAU.ln()
    }

    fn pull_back(&self, backend: &B, z: Batch<B>, weights: &B::Tensor, grads: &mut [Grad<B>]) -> B::Tensor {
        let [n, k, d] = self.extents(backend, &z.x);
        let y = self.whiten(backend, &z.x);
        let (_, shares) = self.judge(backend, &y);
        let shares = backend.binary(Binary::Mul, shares, weights);
        // what is added up: w r, `[K]`; with g = w r y, of which ∂E/∂y is made, Σ g and Σ g zᵀ, or Σ g y
        accumulate(backend, &mut grads[0], &backend.reduce(Reduce::Sum, Over::Channel, &shares));
        let g = backend.binary(Binary::Mul, y.clone(), &backend.reshape(&shares, [n, k, 1].into()));
        let flat = backend.reshape(&g, [n, k * d].into());
        accumulate(backend, &mut grads[1], &backend.reduce(Reduce::Sum, Over::Channel, &flat));
        if let Some(product) = &self.product {
            accumulate(backend, &mut grads[2], &backend.matmul(&flat, true, &z.x, false));
            return backend.matmul(&flat, false, &product.matrix, false);
        }
        let through = backend.reshape(&backend.binary(Binary::Mul, g.clone(), &y), [n, k * d].into());
        accumulate(backend, &mut grads[2], &backend.reduce(Reduce::Sum, Over::Channel, &through));
        let gz = backend.binary(Binary::Mul, g, &backend.reshape(&self.scales, [1, k, d].into()));
        sum_last(backend, &backend.permute(&gz, &[0, 2, 1]))
    }

    // in double precision while that is cheap, so that single precision costs the parameters and z their last digits only
    fn log_prob(&self, backend: &B, z: &Batch<B>) -> Result<Vec<f64>, Error> {
        let MixtureConfig { components, .. } = self.mixture.config;
        let numbers = self.mixture.config.factor_numbers(self.mixture.dimension);
        if components.saturating_mul(numbers) <= MOST_ON_HOST {
            return Ok(self.host(backend)?.log_densities(&download(backend, &z.x)?));
        }
        // y is K times as large as z
        let [n, k, d] = self.extents(backend, &z.x);
        let piece = (MOST_AT_ONCE / (k * d)).max(1);
        let constant = PreparedBase::<B>::constant(self);
        let mut out = Vec::with_capacity(n);
        for start in (0..n).step_by(piece) {
            let part = z.narrow(backend, start, piece.min(n - start));
            out.extend(download(backend, &self.energy(backend, &part))?.into_iter().map(|e| -e - constant));
        }
        Ok(out)
    }

    fn sample(&self, backend: &B, key: Key, first: u64, count: usize, _context: Option<&B::Tensor>) -> B::Tensor {
        let shape = [count, self.mixture.dimension];
        if let Ok(mixture) = self.host(backend) {
            return upload(backend, &mixture.sample(key, first, count), &shape);
        }
        // the device's fault comes again with whatever is computed of its tensors
        let broken = backend.full(f64::NAN, shape.into());
        backend.binary(Binary::Add, broken, &backend.narrow(&self.mixture.means, 0, 0, 1))
    }

    fn to_normal(&self, backend: &B, rows: &[f64]) -> Result<Option<Vec<f64>>, Error> {
        let mixture = self.host(backend)?;
        Ok(Some(map_rows(backend, mixture.dimension(), rows, |rows| mixture.to_normal(rows))))
    }

    fn invert_normal(&self, backend: &B, scores: &[f64]) -> Result<Option<Vec<f64>>, Error> {
        let mixture = self.host(backend)?;
        Ok(Some(map_rows(backend, mixture.dimension(), scores, |scores| mixture.invert_normal(scores))))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        let b = backend;
        let (k, d) = (self.mixture.config.components, self.mixture.dimension);
        let [shares, sums, products] = [grads[0].take(), grads[1].take(), grads[2].take()];
        let (Some(shares), Some(sums), Some(products)) = (shares, sums, products) else { return };
        let total = b.reduce(Reduce::Sum, Over::All, &shares);
        let prior = b.binary(Binary::Mul, b.reshape(&self.weights, [k].into()), &total);
        grads[0] = Some(b.axpy(-1.0, &shares, prior));
        let column = b.reshape(&shares, [k, 1].into());
        let Some(product) = &self.product else {
            let through = b.binary(Binary::Mul, b.reshape(&sums, [k, d].into()), &self.scales);
            grads[1] = Some(b.affine(through, -1.0, 0.0));
            let of_logarithms = b.binary(Binary::Sub, b.reshape(&products, [k, d].into()), &column);
            grads[2] = Some(self.held(b, of_logarithms));
            return;
        };
        let sums = b.reshape(&sums, [k, d, 1].into());
        let through = b.binary(Binary::Mul, product.factors.clone(), &sums);
        grads[1] = Some(b.affine(sum_last(b, &b.permute(&through, &[0, 2, 1])), -1.0, 0.0));
        let outer = spread(b, &sums, &[k, d, d]);
        let outer = b.binary(Binary::Mul, outer, &b.reshape(&self.mixture.means, [k, 1, d].into()));
        let of_factors = b.axpy(-1.0, &outer, b.reshape(&products, [k, d, d].into()));
        let Some([diagonal, below]) = &self.mixture.masks else { return };
        let pivots = sum_last(b, &b.binary(Binary::Mul, of_factors.clone(), diagonal));
        let of_logarithms = b.binary(Binary::Sub, b.binary(Binary::Mul, pivots, &self.scales), &column);
        let of_logarithms = b.reshape(&self.held(b, of_logarithms), [k, d, 1].into());
        let on_diagonal = b.binary(Binary::Mul, spread(b, diagonal, &[k, d, d]), &of_logarithms);
        grads[2] = Some(b.axpy(1.0, &on_diagonal, b.binary(Binary::Mul, of_factors, below)));
    }
}

impl<B: Backend> PreparedMixture<B> {
    /// The gradient of log A_ii, without what would push it further beyond its bound.
    fn held(&self, backend: &B, gradient: B::Tensor) -> B::Tensor {
        let most = backend.full(-LEAST_SCALE.ln(), [1].into());
        let free = backend.binary(Binary::LessEqual, self.logarithms.clone(), &most);
        let zeros = backend.full(0.0, backend.shape(&gradient));
        let returns = backend.binary(Binary::Less, zeros, &gradient);
        backend.binary(Binary::Mul, gradient, &backend.binary(Binary::Max, free, &returns))
    }
}
