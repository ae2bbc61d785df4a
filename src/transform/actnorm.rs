//! ActNorm (Kingma and Dhariwal 2018): y = (x + b)·eˢ per feature or channel, log|det ∂y/∂x| = H·W·Σ s.
//!
//! Features are the last axis; of images `[h, w, c]` they are the channels, which h·w pixels share. Initialised from
//! the first batch, b = −mean and s = −½ ln max(var, 0.2) with the unbiased variance; of weighted samples wᵢ with Σ wᵢ
//! (xᵢ − mean)²/(Σ wᵢ − 1), so that weight 2 is the sample twice. Whether it has been initialised is saved state:
//! loading a model does not initialise it again.

use resflow_backend::{Backend, BackendError, Binary, Element as _, Over, Reduce, Shape, Unary};

use crate::batch::{Batch, SampleWeights, per_sample};
use crate::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use crate::error::{ConfigError, Error};
use crate::invert::Solution;
use crate::lipschitz::TransformBounds;
use crate::module::{Grad, Module, accumulate};
use crate::reference::{ReferenceMap, numbers};
use crate::stage::Stage;

/// Variances below this count as this, so that a nearly constant feature is not blown up.
const LEAST_VARIANCE: f64 = 0.2;

/// A learned shift and scale of each feature, or of each channel of images.
#[derive(Debug, Clone)]
pub struct ActNorm<B: Backend> {
    log_scale: B::Tensor,
    bias: B::Tensor,
    initialised: B::Tensor,
    features: usize,
}

impl<B: Backend> ActNorm<B> {
    /// Builds an ActNorm for samples of `features` entries, or images of so many channels; not yet initialised: the
    /// identity until then.
    pub fn new(backend: &B, features: usize) -> Self {
        let zeros = || backend.full(0.0, [features].into());
        Self { log_scale: zeros(), bias: zeros(), initialised: backend.full(0.0, [1].into()), features }
    }

    /// Builds the identity, which no batch changes: it counts as initialised.
    pub fn identity(backend: &B, features: usize) -> Self {
        Self { initialised: backend.full(1.0, [1].into()), ..Self::new(backend, features) }
    }

    /// Takes stored s and b, `[d]` each; counts as initialised.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if their shapes differ.
    pub fn from_parts(backend: &B, log_scale: B::Tensor, bias: B::Tensor) -> Result<Self, ConfigError> {
        let (s, b) = (backend.shape(&log_scale), backend.shape(&bias));
        if s != b || s.rank() != 1 {
            return Err(ConfigError::Inconsistent(format!("an ActNorm with s {s} and b {b}: expected [d] twice")));
        }
        Ok(Self { log_scale, bias, initialised: backend.full(1.0, [1].into()), features: s[0] })
    }
}

impl<B: Backend> Module<B> for ActNorm<B> {
    crate::parts!(B; log_scale: Parameter, bias: Parameter, initialised: Buffer);

    fn describe(&self) -> String {
        format!("ActNorm over {} features", self.features)
    }
}

impl<B: Backend> Bijection<B> for ActNorm<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        closed_form(PreparedActNorm::<B> {
            bias: self.bias.clone(),
            scale: backend.unary(Unary::Exp, self.log_scale.clone()),
            inverse_scale: backend.unary(Unary::Exp, backend.affine(self.log_scale.clone(), -1.0, 0.0)),
            log_det: backend.reduce(Reduce::Sum, Over::All, &self.log_scale),
        })
    }

    fn initialise(
        &mut self,
        backend: &B,
        shards: &[Batch<B>],
        weights: Option<&SampleWeights<'_, B>>,
    ) -> Result<(), Error> {
        if backend.download(&self.initialised)?[0].to_f64() != 0.0 {
            return Ok(());
        }
        let samples: usize = shards.iter().map(|s| s.shape(backend).elements() / self.features.max(1)).sum();
        if samples < 2 {
            return Err(Error::Input(format!(
                "ActNorm is initialised from the variance of the first batch, which has {samples} row(s): use a batch of at least 2"
            )));
        }
        let count = match weights {
            None => Count { total: samples as f64, less_one: (samples - 1) as f64 },
            Some(weights) => Count::of_weights(backend, shards, weights)?,
        };
        // two passes in the order of the shards
        let total = |f: &dyn Fn(&B::Tensor) -> B::Tensor| {
            let sums = shards.iter().enumerate().map(|(i, shard)| {
                let mut values = f(&shard.x);
                if let Some(weights) = weights {
                    let weights = per_sample(backend, &weights.shards[i], backend.shape(&values));
                    values = backend.binary(Binary::Mul, values, &weights);
                }
                backend.reduce(Reduce::Sum, Over::Channel, &values)
            });
            sums.reduce(|a, b| backend.axpy(1.0, &b, a)).expect("at least one shard")
        };
        let mean = backend.affine(total(&|x| x.clone()), 1.0 / count.total, 0.0);
        let square = |x: &B::Tensor| backend.unary(Unary::Square, backend.binary(Binary::Sub, x.clone(), &mean));
        let variance = backend.affine(total(&square), 1.0 / count.less_one, 0.0);
        let floored = backend.binary(Binary::Max, variance, &backend.full(LEAST_VARIANCE, [1].into()));
        let log_scale = backend.affine(backend.unary(Unary::Ln, floored), -0.5, 0.0);
        let finite = backend.all_finite(&backend.concat(&[&log_scale, &mean], 0));
        if backend.download(&finite)?[0].to_f64() == 0.0 {
            return Err(Error::Input(
                "ActNorm is initialised from the first batch, whose mean or variance is not finite here".into(),
            ));
        }
        self.log_scale = log_scale;
        self.bias = backend.affine(mean, -1.0, 0.0);
        self.initialised = backend.full(1.0, [1].into());
        Ok(())
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if matches!(shape.len(), 1 | 3) && shape.last() == Some(&self.features) {
            Ok(shape.to_vec())
        } else {
            Err(ConfigError::Inconsistent(format!(
                "an ActNorm of {} features cannot take samples {shape:?}",
                self.features
            )))
        }
    }

    fn certified_bounds(&self, backend: &B, _path: &str) -> Result<TransformBounds, BackendError> {
        let scale = backend.download(&backend.unary(Unary::Exp, self.log_scale.clone()))?;
        let scale = || scale.iter().map(|s| s.to_f64());
        let (forward, least) = (scale().fold(0.0, f64::max), scale().fold(f64::INFINITY, f64::min));
        Ok(TransformBounds::of_map(forward, (1.0 / least).next_up()))
    }

    fn stage(&self) -> Option<Stage> {
        Some(Stage::ActNorm { features: self.features })
    }
}

/// The number of values of a feature by which a mean and a variance are divided.
struct Count {
    total: f64,
    less_one: f64,
}

impl Count {
    /// Weights count how often a sample is there. Where all of a feature's together are less than two samples they can
    /// only be importances, and Kish's effective number of samples says what one less of them is.
    fn of_weights<B: Backend>(backend: &B, shards: &[Batch<B>], weights: &SampleWeights<'_, B>) -> Result<Self, Error> {
        let (mut total, mut squares) = (0.0, 0.0);
        for (shard, weights) in shards.iter().zip(weights.shards) {
            let shape = shard.shape(backend);
            let pixels = (shape.row_elements() / shape.channels().max(1)) as f64;
            for w in backend.download(weights)? {
                total += pixels * w.to_f64();
                squares += pixels * w.to_f64().powi(2);
            }
        }
        let effective = total * total / squares;
        // a little more than one: rounding
        if !(total > 0.0 && effective > 1.0 + 1e-9) {
            return Err(Error::Input(
                "ActNorm is initialised from the variance of the first batch, in which all weight is on one row: use a larger batch"
                    .into(),
            ));
        }
        let whole = total >= 2.0 * weights.unit;
        Ok(Self { total, less_one: if whole { total - weights.unit } else { total * (1.0 - 1.0 / effective) } })
    }
}

/// ActNorm with its exponentials taken.
#[derive(Debug)]
struct PreparedActNorm<B: Backend> {
    bias: B::Tensor,
    scale: B::Tensor,
    inverse_scale: B::Tensor,
    log_det: B::Tensor,
}

impl<B: Backend> PreparedActNorm<B> {
    /// The pixels of a sample that share the parameters.
    fn pixels(shape: Shape) -> f64 {
        (shape.row_elements() / shape.channels().max(1)) as f64
    }

    fn log_det(&self, backend: &B, x: &B::Tensor) -> B::Tensor {
        let shape = backend.shape(x);
        let total = backend.affine(self.log_det.clone(), Self::pixels(shape), 0.0);
        backend.binary(Binary::Add, backend.full(0.0, [shape.rows(), 1].into()), &total)
    }
}

impl<B: Backend> ClosedForm<B> for PreparedActNorm<B> {
    fn map(&self, backend: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        let x = &batch.x;
        let shift = backend.binary(Binary::Add, x.clone(), &self.bias);
        (backend.binary(Binary::Mul, shift, &self.scale), self.log_det(backend, x))
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        Ok(Some(ReferenceMap::Scale { bias: numbers(backend, &self.bias)?, scale: numbers(backend, &self.scale)? }))
    }

    fn unmap(&self, backend: &B, batch: &Batch<B>) -> Result<Solution<B>, Error> {
        let x = backend.binary(Binary::Mul, batch.x.clone(), &self.inverse_scale);
        let stretch = backend.download(&backend.reduce(Reduce::Max, Over::All, &self.inverse_scale))?[0].to_f64();
        Ok(Solution::closed_form(backend, backend.binary(Binary::Sub, x, &self.bias), stretch))
    }

    fn solve_transposed(&self, backend: &B, _: &Batch<B>, gradient: &B::Tensor) -> Result<Option<B::Tensor>, Error> {
        Ok(Some(backend.binary(Binary::Mul, gradient.clone(), &self.inverse_scale)))
    }

    fn pull_back(
        &self,
        backend: &B,
        kept: Batch<B>,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Cotangents<B> {
        // ∂y/∂s = y, and every pixel's log det grows by each entry of s
        let Cotangents { x: gy, log_det, context } = cotangents;
        let through_y = backend.reduce(Reduce::Sum, Over::Channel, &backend.binary(Binary::Mul, gy.clone(), &kept.x));
        let pixels = Self::pixels(kept.shape(backend));
        let through_log_det = backend.affine(backend.reduce(Reduce::Sum, Over::All, &log_det), pixels, 0.0);
        accumulate(backend, &mut grads[0], &backend.binary(Binary::Add, through_y, &through_log_det));
        let gx = backend.binary(Binary::Mul, gy, &self.scale);
        accumulate(backend, &mut grads[1], &backend.reduce(Reduce::Sum, Over::Channel, &gx));
        Cotangents { x: gx, log_det, context }
    }

    fn keeps_output(&self) -> bool {
        true
    }
}
