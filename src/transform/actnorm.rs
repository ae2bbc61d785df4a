//! ActNorm (Kingma and Dhariwal 2018): y = (x + b)·eˢ per feature or channel, log|det ∂y/∂x| = H·W·Σ s.
//!
//! Features are the last axis; of images `[h, w, c]` they are the channels, which h·w pixels share. Initialised from the first batch, b = −mean and s = −½ ln max(var, 0.2) with the unbiased variance. Whether it has been
//! initialised is saved state: loading a model does not initialise it again.

use resflow_backend::{Backend, Binary, Element as _, Over, Reduce, Shape, Unary};

use crate::bijection::{Bijection, Draw, LogDet, Memory, PreparedBijection, Tape, TrainForward};
use crate::error::{ConfigError, Error};
use crate::invert::{Inversion, Solution};
use crate::layer::{Role, Slot, Visitor, VisitorMut, accumulate};

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
    /// For rows of `features` entries, or images of so many channels; not yet initialised: the identity until then.
    pub fn new(backend: &B, features: usize) -> Self {
        let zeros = || backend.full(0.0, [features].into());
        Self { log_scale: zeros(), bias: zeros(), initialised: backend.full(0.0, [1].into()), features }
    }

    /// From stored s and b, `[d]` each; counts as initialised.
    ///
    /// # Errors
    /// If their shapes differ.
    pub fn from_parts(backend: &B, log_scale: B::Tensor, bias: B::Tensor) -> Result<Self, ConfigError> {
        let (s, b) = (backend.shape(&log_scale), backend.shape(&bias));
        if s != b || s.rank() != 1 {
            return Err(ConfigError::Inconsistent(format!("an ActNorm with s {s} and b {b}: expected [d] twice")));
        }
        Ok(Self { log_scale, bias, initialised: backend.full(1.0, [1].into()), features: s[0] })
    }
}

impl<B: Backend> Bijection<B> for ActNorm<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        visitor(&format!("{path}.log_scale"), &self.log_scale, Role::Parameter);
        visitor(&format!("{path}.bias"), &self.bias, Role::Parameter);
        visitor(&format!("{path}.initialised"), &self.initialised, Role::Buffer);
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        visitor(&format!("{path}.log_scale"), &mut self.log_scale, Role::Parameter);
        visitor(&format!("{path}.bias"), &mut self.bias, Role::Parameter);
        visitor(&format!("{path}.initialised"), &mut self.initialised, Role::Buffer);
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        Box::new(PreparedActNorm::<B> {
            bias: self.bias.clone(),
            scale: backend.unary(Unary::Exp, self.log_scale.clone()),
            inverse_scale: backend.unary(Unary::Exp, backend.affine(self.log_scale.clone(), -1.0, 0.0)),
            log_det: backend.reduce(Reduce::Sum, Over::All, &self.log_scale),
        })
    }

    fn initialise(&mut self, backend: &B, shards: &[B::Tensor]) -> Result<(), Error> {
        if backend.download(&self.initialised)?[0].to_f64() != 0.0 {
            return Ok(());
        }
        let samples: usize = shards.iter().map(|s| backend.shape(s).elements() / self.features.max(1)).sum();
        if samples < 2 {
            return Err(Error::Input(format!(
                "ActNorm is initialised from the variance of the first batch, which has {samples} row(s): use a batch of at least 2"
            )));
        }
        // two passes in the order of the shards
        let total = |f: &dyn Fn(&B::Tensor) -> B::Tensor| {
            let sums = shards.iter().map(|s| backend.reduce(Reduce::Sum, Over::Channel, &f(s)));
            sums.reduce(|a, b| backend.axpy(1.0, &b, a)).expect("at least one shard")
        };
        let mean = backend.affine(total(&|x| x.clone()), 1.0 / samples as f64, 0.0);
        let square = |x: &B::Tensor| backend.unary(Unary::Square, backend.binary(Binary::Sub, x.clone(), &mean));
        let variance = backend.affine(total(&square), 1.0 / (samples - 1) as f64, 0.0);
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

    fn output(&self, row: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if matches!(row.len(), 1 | 3) && row.last() == Some(&self.features) {
            Ok(row.to_vec())
        } else {
            Err(ConfigError::Inconsistent(format!("an ActNorm of {} features cannot take rows {row:?}", self.features)))
        }
    }

    fn describe(&self, _backend: &B) -> String {
        format!("ActNorm over {} features", self.features)
    }

    fn boxed_clone(&self) -> Box<dyn Bijection<B>> {
        Box::new(self.clone())
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
    fn map(&self, backend: &B, x: &B::Tensor) -> B::Tensor {
        backend.binary(Binary::Mul, backend.binary(Binary::Add, x.clone(), &self.bias), &self.scale)
    }

    /// The pixels of a row that share the parameters.
    fn pixels(shape: Shape) -> f64 {
        (shape.row_elements() / shape.channels().max(1)) as f64
    }

    fn log_det(&self, backend: &B, x: &B::Tensor) -> B::Tensor {
        let shape = backend.shape(x);
        let total = backend.affine(self.log_det.clone(), Self::pixels(shape), 0.0);
        backend.binary(Binary::Add, backend.full(0.0, [shape.rows(), 1].into()), &total)
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedActNorm<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, draw: Option<(Draw<'_>, usize)>) -> (B::Tensor, Option<LogDet<B>>) {
        let log_det = draw.map(|_| LogDet { value: self.log_det(backend, x), exact: true });
        (self.map(backend, x), log_det)
    }

    fn inverse(&self, backend: &B, y: &B::Tensor, _how: &Inversion) -> Result<Solution<B>, Error> {
        let x = backend.binary(Binary::Mul, y.clone(), &self.inverse_scale);
        let stretch = backend.download(&backend.reduce(Reduce::Max, Over::All, &self.inverse_scale))?[0].to_f64();
        Ok(Solution::closed_form(backend, backend.binary(Binary::Sub, x, &self.bias), stretch))
    }

    fn train_forward(&self, backend: &B, x: &B::Tensor, _draw: Draw<'_>, _memory: Memory) -> TrainForward<B> {
        let y = self.map(backend, x);
        let log_det = self.log_det(backend, x);
        TrainForward { y: y.clone(), log_det, tape: Tape::rows(y), terms: 0 }
    }

    fn train_backward(
        &self,
        backend: &B,
        tape: Tape<B>,
        gy: B::Tensor,
        g_log_det: &B::Tensor,
        slots: &mut [Slot<B>],
    ) -> B::Tensor {
        // ∂y/∂s = y, and every pixel's log det grows by each entry of s
        let through_y =
            backend.reduce(Reduce::Sum, Over::Channel, &backend.binary(Binary::Mul, gy.clone(), &tape.rows));
        let pixels = Self::pixels(backend.shape(&tape.rows));
        let through_log_det = backend.affine(backend.reduce(Reduce::Sum, Over::All, g_log_det), pixels, 0.0);
        accumulate(backend, &mut slots[0], &backend.binary(Binary::Add, through_y, &through_log_det));
        let gx = backend.binary(Binary::Mul, gy, &self.scale);
        accumulate(backend, &mut slots[1], &backend.reduce(Reduce::Sum, Over::Channel, &gx));
        gx
    }

    fn slots(&self) -> usize {
        2
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) {
        for slot in slots {
            slot.get_or_insert_with(|| backend.full(0.0, backend.shape(&self.bias)));
        }
    }
}
