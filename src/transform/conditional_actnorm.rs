//! A scale and a shift of each feature or channel that depend on the context: y = e^{a(c)} ∘ x + m(c), with log|det ∂y/∂x| = H·W·Σ a.
//!
//! [â | m] = A e(c) + bias and a = 3·tanh(â/3), so that a link stretches by at most e³ either way whatever the context is. The shift
//! comes after the scale, unlike [`ActNorm`](super::ActNorm)'s. Fresh A and bias are zero: the identity. Blocks have Lip(g) < 1, so
//! that the widths and places of densities which change by orders of magnitude with the context need it. Behind all else it makes
//! the standard normal base one of N(μ(c), diag σ(c)²).

use resflow_backend::{Activation, Backend, BackendError, Binary, Element as _, Over, Reduce, Shape, Unary};

use crate::batch::Batch;
use crate::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use crate::error::{ConfigError, Error};
use crate::invert::Solution;
use crate::layer::sum_pixels;
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

/// The map of some samples, `[n, d]` each, or `[1, d]` if they share a context.
struct Affine<B: Backend> {
    /// tanh(â/3) = a/3, and its slope where that is asked for.
    share: B::Tensor,
    slope: Option<B::Tensor>,
    m: B::Tensor,
}

impl<B: Backend> Affine<B> {
    /// e^{±a}, in the rank of the samples.
    fn scale(&self, backend: &B, sign: f64, samples: Shape) -> B::Tensor {
        spread(backend, &backend.unary(Unary::Exp, backend.affine(self.share.clone(), sign * MOST, 0.0)), samples)
    }
}

/// Numbers of each sample's features, `[n, d]`, in the rank of the samples, `[n, …, d]`.
fn spread<B: Backend>(backend: &B, x: &B::Tensor, samples: Shape) -> B::Tensor {
    if samples.rank() == 2 {
        return x.clone();
    }
    let own = backend.shape(x);
    let mut shape = vec![1; samples.rank()];
    (shape[0], shape[samples.rank() - 1]) = (own.rows(), own.channels());
    backend.reshape(x, shape[..].into())
}

/// The pixels of a sample that share the numbers.
fn pixels(shape: Shape) -> f64 {
    (shape.row_elements() / shape.channels().max(1)) as f64
}

impl<B: Backend> PreparedActNorm<B> {
    #[track_caller]
    fn affine(&self, backend: &B, batch: &Batch<B>, orders: usize) -> Affine<B> {
        let context = batch.context.as_ref().expect("a conditional ActNorm was given samples without a context");
        let both = backend.linear(context, &self.transposed, &self.bias);
        let d = self.features;
        let raw = backend.affine(backend.narrow(&both, 1, 0, d), 1.0 / MOST, 0.0);
        // an activation, which a backend computes sooner than a function of its own
        let mut found = backend.activation(Activation::Tanh, None, &raw, orders).into_iter();
        let share = found.next().expect("the value itself");
        Affine { share, slope: found.next(), m: backend.narrow(&both, 1, d, d) }
    }
}

impl<B: Backend> ClosedForm<B> for PreparedActNorm<B> {
    fn map(&self, backend: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        let shape = batch.shape(backend);
        let affine = self.affine(backend, batch, 0);
        let scaled = backend.binary(Binary::Mul, batch.x.clone(), &affine.scale(backend, 1.0, shape));
        let y = backend.binary(Binary::Add, scaled, &spread(backend, &affine.m, shape));
        let sums = backend.reduce(Reduce::Sum, Over::Row, &affine.share);
        let own = backend.affine(sums, MOST * pixels(shape), 0.0);
        (y, backend.binary(Binary::Add, backend.full(0.0, [shape.rows(), 1].into()), &own))
    }

    fn unmap(&self, backend: &B, batch: &Batch<B>) -> Result<Solution<B>, Error> {
        let shape = batch.shape(backend);
        let affine = self.affine(backend, batch, 0);
        let shifted = backend.binary(Binary::Sub, batch.x.clone(), &spread(backend, &affine.m, shape));
        let inverse = affine.scale(backend, -1.0, shape);
        let stretch = backend.download(&backend.reduce(Reduce::Max, Over::All, &inverse))?[0].to_f64();
        Ok(Solution::closed_form(backend, backend.binary(Binary::Mul, shifted, &inverse), stretch))
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
    ) -> Result<Option<B::Tensor>, Error> {
        let inverse = self.affine(backend, batch, 0).scale(backend, -1.0, batch.shape(backend));
        Ok(Some(backend.binary(Binary::Mul, gradient.clone(), &inverse)))
    }

    fn pull_back(
        &self,
        backend: &B,
        kept: Batch<B>,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Cotangents<B> {
        let shape = kept.shape(backend);
        let affine = self.affine(backend, &kept, 1);
        let Cotangents { x: gy, log_det, mut context } = cotangents;
        let gx = backend.binary(Binary::Mul, gy.clone(), &affine.scale(backend, 1.0, shape));
        // ∂y/∂a = e^a x, and every pixel's log det grows by each entry of a; ∂a/∂â = 1 − tanh²
        let through = sum_pixels(backend, &backend.binary(Binary::Mul, gx.clone(), &kept.x));
        let of_a = backend.binary(Binary::Add, through, &backend.affine(log_det.clone(), pixels(shape), 0.0));
        let of_raw = backend.binary(Binary::Mul, of_a, &affine.slope.expect("asked for"));
        let mut both = backend.concat(&[&of_raw, &sum_pixels(backend, &gy)], 1);
        accumulate(backend, &mut grads[1], &backend.reduce(Reduce::Sum, Over::Channel, &both));
        let embedding = kept.context.as_ref().expect("looked at before");
        if backend.shape(embedding).rows() == 1 && shape.rows() != 1 {
            let sum = backend.reduce(Reduce::Sum, Over::Channel, &both);
            both = backend.reshape(&sum, [1, 2 * self.features].into());
        }
        grads[0] = Some(match grads[0].take() {
            None => backend.matmul(&both, true, embedding, false),
            Some(sum) => backend.matmul_add(sum, &both, true, embedding, false),
        });
        accumulate(backend, &mut context, &backend.matmul(&both, false, &self.weight, false));
        Cotangents { x: gx, log_det, context }
    }
}
