//! A scale and a shift of each feature or channel that depend on the context: y = e^{a(c)} ∘ x + m(c), with log|det ∂y/∂x| = H·W·Σ a.
//!
//! [â | m] = A e(c) + bias and a = 3·tanh(â/3), so that a link stretches by at most e³ either way whatever the context is. The shift
//! comes after the scale, unlike [`ActNorm`](super::ActNorm)'s. Where the context is an image, whose embedding is `[n, h, w, k]`, each
//! pixel has an a and an m of its own, and the log det is the sum over all of them. Fresh A and bias are zero: the identity. Blocks have Lip(g) < 1, so
//! that the widths and places of densities which change by orders of magnitude with the context need it. Behind all else it makes
//! the standard normal base one of N(μ(c), diag σ(c)²).

use resflow_backend::{
    Activation, Backend, BackendError, Binary, BoundedAffineReverse, Element as _, Over, Reduce, Shape, Unary,
};

use crate::batch::Batch;
use crate::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use crate::error::{ConfigError, Error};
use crate::invert::Solution;
use crate::layer::{by_rows, matrix};
use crate::lipschitz::TransformBounds;
use crate::module::{Grad, Module, accumulate};
use crate::stage::Stage;

/// |a| stays below.
const MOST: f64 = 3.0;

/// A scale and a shift by the context.
#[derive(Debug, Clone)]
pub struct ConditionalActNorm<B: Backend> {
    weight: B::Tensor,
    bias: B::Tensor,
    features: usize,
    context: usize,
}

impl<B: Backend> ConditionalActNorm<B> {
    /// Builds the identity of samples of `features` entries, or images of so many channels, to be told by embeddings of `context`
    /// numbers.
    pub fn new(backend: &B, features: usize, context: usize) -> Self {
        let zeros = |shape: Shape| backend.full(0.0, shape);
        Self { weight: zeros([2 * features, context].into()), bias: zeros([2 * features].into()), features, context }
    }

    /// Takes stored tensors: A `[2d, k]` and its bias `[2d]`, of â first, then of m.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the shapes do not belong together.
    pub fn from_parts(backend: &B, weight: B::Tensor, bias: B::Tensor) -> Result<Self, ConfigError> {
        let (w, b) = (backend.shape(&weight), backend.shape(&bias));
        if w.rank() != 2 || b[..] != w[..1] || w[0] % 2 != 0 {
            return Err(ConfigError::Inconsistent(format!(
                "a conditional ActNorm with weight {w} and bias {b}: expected [2d, k] and [2d]"
            )));
        }
        Ok(Self { weight, bias, features: w[0] / 2, context: w[1] })
    }
}

impl<B: Backend> Module<B> for ConditionalActNorm<B> {
    crate::parts!(B; weight: Weight, bias: Parameter);

    fn describe(&self) -> String {
        format!("ActNorm over {} features by the context", self.features)
    }
}

impl<B: Backend> Bijection<B> for ConditionalActNorm<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        closed_form(PreparedActNorm::<B> {
            transposed: backend.permute(&self.weight, &[1, 0]),
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            features: self.features,
        })
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if matches!(shape.len(), 1 | 3) && shape.last() == Some(&self.features) {
            return Ok(shape.to_vec());
        }
        Err(ConfigError::Inconsistent(format!(
            "a conditional ActNorm of {} features cannot take samples {shape:?}",
            self.features
        )))
    }

    fn certified_bounds(&self, _backend: &B, _path: &str) -> Result<TransformBounds, BackendError> {
        // for every context; what tanh and exp are rounded by is some ε
        let most = MOST.exp() * (1.0 + 64.0 * B::Elem::EPSILON);
        Ok(TransformBounds::of_map(most, most))
    }

    fn stage(&self) -> Option<Stage> {
        Some(Stage::ConditionalActNorm { features: self.features, context: self.context })
    }
}

/// Ready for computing.
#[derive(Debug)]
struct PreparedActNorm<B: Backend> {
    weight: B::Tensor,
    transposed: B::Tensor,
    bias: B::Tensor,
    features: usize,
}

impl<B: Backend> PreparedActNorm<B> {
    /// [â | m] of each sample, `[n, 2d]`, or `[1, 2d]` if they share a context; of pixels `[n, h, w, 2d]`.
    #[track_caller]
    fn told(&self, backend: &B, batch: &Batch<B>) -> B::Tensor {
        let context = batch.context.as_ref().expect("a conditional ActNorm was given samples without a context");
        by_rows(backend, context, |rows| backend.linear(rows, &self.transposed, &self.bias))
    }

    /// Whether each pixel has a context of its own.
    fn by_pixels(backend: &B, batch: &Batch<B>) -> bool {
        batch.context.as_ref().is_some_and(|context| backend.shape(context).rank() == 4)
    }

    /// Takes gradients back where each pixel has a context of its own.
    fn pull_back_pixels(
        &self,
        backend: &B,
        kept: &Batch<B>,
        told: &B::Tensor,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Cotangents<B> {
        let Cotangents { x: gy, log_det, mut context } = cotangents;
        let shape = kept.shape(backend);
        let pixels = shape.row_elements() / self.features.max(1);
        let spread = backend.binary(Binary::Add, backend.full(0.0, [shape.rows(), pixels].into()), &log_det);
        let spread = backend.reshape(&spread, [shape.rows() * pixels, 1].into());
        let [x, told, gy] = [&kept.x, told, &gy].map(|t| matrix(backend, t));
        let BoundedAffineReverse { gx, gtold } = backend.bounded_affine_reverse(MOST, &x, &told, &gy, &spread);
        accumulate(backend, &mut grads[1], &backend.reduce(Reduce::Sum, Over::Channel, &gtold));
        let embedding = kept.context.as_ref().expect("looked at before");
        let rows = matrix(backend, embedding);
        grads[0] = Some(match grads[0].take() {
            None => backend.matmul(&gtold, true, &rows, false),
            Some(sum) => backend.matmul_add(sum, &gtold, true, &rows, false),
        });
        let of_embedding = backend.matmul(&gtold, false, &self.weight, false);
        accumulate(backend, &mut context, &backend.reshape(&of_embedding, backend.shape(embedding)));
        Cotangents { x: backend.reshape(&gx, shape), log_det, context }
    }

    /// e^{−a} and m, in the rank of the samples.
    fn inverse(&self, backend: &B, batch: &Batch<B>) -> [B::Tensor; 2] {
        let (told, d, samples) = (self.told(backend, batch), self.features, batch.shape(backend));
        let axis = backend.shape(&told).rank() - 1;
        let raw = backend.affine(backend.narrow(&told, axis, 0, d), 1.0 / MOST, 0.0);
        // an activation, as in the map itself
        let share = backend.activation(Activation::Tanh, None, &raw, 0).swap_remove(0);
        let scale = backend.unary(Unary::Exp, backend.affine(share, -MOST, 0.0));
        [scale, backend.narrow(&told, axis, d, d)].map(|x| spread(backend, &x, samples))
    }
}

/// Numbers of each sample's features, `[n, d]`, in the rank of the samples, `[n, …, d]`.
fn spread<B: Backend>(backend: &B, x: &B::Tensor, samples: Shape) -> B::Tensor {
    let own = backend.shape(x);
    if samples.rank() == own.rank() {
        return x.clone();
    }
    let mut shape = vec![1; samples.rank()];
    (shape[0], shape[samples.rank() - 1]) = (own.rows(), own.channels());
    backend.reshape(x, shape[..].into())
}

impl<B: Backend> ClosedForm<B> for PreparedActNorm<B> {
    fn map(&self, backend: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        let told = self.told(backend, batch);
        if !Self::by_pixels(backend, batch) {
            let [y, log_det] = backend.bounded_affine(MOST, &batch.x, &told);
            return (y, log_det);
        }
        // pixels are samples of their own
        let shape = batch.shape(backend);
        let pixels = shape.row_elements() / self.features.max(1);
        let [y, log_det] = backend.bounded_affine(MOST, &matrix(backend, &batch.x), &matrix(backend, &told));
        let of_pixels = backend.reshape(&log_det, [shape.rows(), pixels].into());
        (backend.reshape(&y, shape), backend.reduce(Reduce::Sum, Over::Row, &of_pixels))
    }

    fn unmap(&self, backend: &B, batch: &Batch<B>) -> Result<Solution<B>, Error> {
        let [inverse, m] = self.inverse(backend, batch);
        let shifted = backend.binary(Binary::Sub, batch.x.clone(), &m);
        let stretch = backend.download(&backend.reduce(Reduce::Max, Over::All, &inverse))?[0].to_f64();
        Ok(Solution::closed_form(backend, backend.binary(Binary::Mul, shifted, &inverse), stretch))
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
    ) -> Result<Option<B::Tensor>, Error> {
        let [inverse, _] = self.inverse(backend, batch);
        Ok(Some(backend.binary(Binary::Mul, gradient.clone(), &inverse)))
    }

    fn pull_back(
        &self,
        backend: &B,
        kept: Batch<B>,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Cotangents<B> {
        let told = self.told(backend, &kept);
        let Cotangents { x: gy, log_det, mut context } = cotangents;
        if Self::by_pixels(backend, &kept) {
            return self.pull_back_pixels(backend, &kept, &told, Cotangents { x: gy, log_det, context }, grads);
        }
        let BoundedAffineReverse { gx, gtold } = backend.bounded_affine_reverse(MOST, &kept.x, &told, &gy, &log_det);
        let sum = backend.reduce(Reduce::Sum, Over::Channel, &gtold);
        accumulate(backend, &mut grads[1], &sum);
        let embedding = kept.context.as_ref().expect("looked at before");
        let shared = backend.shape(embedding).rows() == 1 && backend.shape(&gtold).rows() != 1;
        let gtold = if shared { backend.reshape(&sum, [1, 2 * self.features].into()) } else { gtold };
        grads[0] = Some(match grads[0].take() {
            None => backend.matmul(&gtold, true, embedding, false),
            Some(sum) => backend.matmul_add(sum, &gtold, true, embedding, false),
        });
        accumulate(backend, &mut context, &backend.matmul(&gtold, false, &self.weight, false));
        Cotangents { x: gx, log_det, context }
    }
}
