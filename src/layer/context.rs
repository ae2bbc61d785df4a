//! What a net is told of a context: biases of its hidden layers, and gates behind its activations.
//!
//! With e the embedding of a context and U free weights, the net is told u = U e, one number for each feature of each such layer
//! ([`Conditioner`]); layer l has its run u_l of them:
//!
//! ```text
//! h ↦ h + u_l                a bias             ([`ContextBias`])
//! h ↦ tanh(u_l + 1.5) ∘ h    a gate             ([`ContextGate`])
//! ```
//!
//! Of images all pixels have the same, unless the context is an image itself ([`PixelBias`](super::PixelBias)), whose embedding
//! `[n, h, w, k]` tells each pixel its own, `[n, h, w, u]`. Invariant: neither makes a Lipschitz constant in h larger, whatever U and e are: the bias
//! has derivative 1, the gate |tanh| ≤ 1. So for every context the bound on Lip(g), the series, the certificates and the inverse
//! are those of the net without a context. U = 0 adds nothing.

use resflow_backend::{Backend, BackendError, Binary, Element as _, Over, Reduce, Shape, Unary};

use super::linear::{by_rows, matrix};
use super::{Derivatives, Layer, LayerGrads, PreparedLayer, Saved};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::lipschitz::WeightBounds;
use crate::module::{Grad, Module, accumulate};
use crate::stage::LayerStage;

/// What a gate is opened by where it is told nothing: tanh 1.5 ≈ 0.905.
const OPEN: f64 = 1.5;

/// U, the weight that makes of an embedding `[n, k]` what a net is told, `[n, u]`; zero at the beginning.
#[derive(Debug, Clone)]
pub struct Conditioner<B: Backend> {
    /// `[u, k]`.
    pub(super) weight: B::Tensor,
    /// k.
    width: usize,
}

impl<B: Backend> Conditioner<B> {
    /// Builds the conditioner that says zeros: u numbers of an embedding of k.
    pub fn new(backend: &B, embedding: usize, told: usize) -> Self {
        Self { weight: backend.full(0.0, [told, embedding].into()), width: embedding }
    }

    /// Takes a weight, `[u, k]`.
    ///
    /// # Panics
    /// If it is no matrix.
    #[track_caller]
    pub fn from_weight(backend: &B, weight: B::Tensor) -> Self {
        let shape = backend.shape(&weight);
        assert_eq!(shape.rank(), 2, "the weight of a conditioner is a matrix [u, k], not {shape}");
        Self { weight, width: shape[1] }
    }

    /// Returns k, the numbers of an embedding.
    pub(super) fn embedding(&self) -> usize {
        self.width
    }

    /// Prepares the weight for computing.
    pub(super) fn prepare(&self, backend: &B) -> PreparedConditioner<B> {
        PreparedConditioner { weight: self.weight.clone(), transposed: backend.permute(&self.weight, &[1, 0]) }
    }
}

/// U, ready for computing.
#[derive(Debug)]
pub(super) struct PreparedConditioner<B: Backend> {
    /// `[u, k]`.
    weight: B::Tensor,
    /// `[k, u]`, by which a backend multiplies sooner.
    transposed: B::Tensor,
}

impl<B: Backend> PreparedConditioner<B> {
    /// Computes U e, `[n, u]`, for embeddings `[n, k]`; one for all, `[1, k]`, stays one. Of images `[n, h, w, u]`.
    pub(super) fn tell(&self, backend: &B, embedding: &B::Tensor) -> B::Tensor {
        by_rows(backend, embedding, |rows| backend.matmul(rows, false, &self.transposed, false))
    }

    /// The gradient of a weight that had none.
    pub(super) fn zeros(&self, backend: &B) -> B::Tensor {
        backend.full(0.0, backend.shape(&self.weight))
    }

    /// Adds the gradients of the weight and of the embedding to those that were there, from that in what was told, of each sample,
    /// `[n, u]`, or of each pixel, `[n, h, w, u]`.
    pub(super) fn pull_back(
        &self,
        backend: &B,
        embedding: &B::Tensor,
        gradient: B::Tensor,
        weight: &mut Grad<B>,
        context: &mut Grad<B>,
    ) {
        let whole = backend.shape(embedding);
        let (embedding, gradient) = (&matrix(backend, embedding), matrix(backend, &gradient));
        let shape = backend.shape(&gradient);
        let shared = backend.shape(embedding).rows() == 1 && shape.rows() != 1;
        let gradient = if shared {
            backend.reshape(&backend.reduce(Reduce::Sum, Over::Channel, &gradient), [1, shape.channels()].into())
        } else {
            gradient
        };
        *weight = Some(match weight.take() {
            None => backend.matmul(&gradient, true, embedding, false),
            Some(sum) => backend.matmul_add(sum, &gradient, true, embedding, false),
        });
        let of_embedding = backend.matmul(&gradient, false, &self.weight, false);
        accumulate(backend, context, &backend.reshape(&of_embedding, whole));
    }
}

impl<B: Backend> Module<B> for Conditioner<B> {
    crate::parts!(B; weight: Weight);

    fn describe(&self) -> String {
        "what a net is told of a context".into()
    }
}

/// The run of what a net is told that one of its layers has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// The number of its first.
    pub offset: usize,
    /// Its length: the features or channels of the layer.
    pub features: usize,
    /// u, the numbers that the whole net is told.
    pub all: usize,
}

impl Told {
    /// The layer's own of what the net is told, `[n, features]`, of images `[n, 1, 1, features]`, or `[n, h, w, features]` where each
    /// pixel is told its own.
    ///
    /// # Panics
    /// If the samples have no context.
    #[track_caller]
    pub(super) fn of<B: Backend>(self, backend: &B, context: Option<&B::Tensor>, samples: Shape) -> B::Tensor {
        let context = context.expect("a conditional net was given samples without a context");
        let found = backend.shape(context);
        let told = found.channels();
        assert_eq!(told, self.all, "a net that is told {} numbers of a context was told {told}", self.all);
        let own = backend.narrow(context, found.rank() - 1, self.offset, self.features);
        if samples.rank() == found.rank() {
            return own;
        }
        let mut shape = vec![1; samples.rank()];
        (shape[0], shape[samples.rank() - 1]) = (found.rows(), self.features);
        backend.reshape(&own, shape[..].into())
    }

    /// Adds the gradient of the layer's own, of the shape of its samples `[n, …, features]`, to that of all, `[n, u]`.
    pub(super) fn add<B: Backend>(self, backend: &B, gradient: &B::Tensor, all: &mut Grad<B>) {
        Self::add_all(backend, vec![(self, gradient.clone())], all);
    }

    /// Adds the gradient of the layer's own, `[n, h, w, features]`, to that of all that the pixels are told, `[n, h, w, u]`.
    pub(super) fn add_pixels<B: Backend>(self, backend: &B, gradient: &B::Tensor, all: &mut Grad<B>) {
        let shape = backend.shape(gradient);
        let zeros = |width: usize| (width > 0).then(|| backend.full(0.0, shape.with_channels(width)));
        let (before, behind) = (zeros(self.offset), zeros(self.all - self.offset - self.features));
        let parts: Vec<_> = before.iter().chain([gradient]).chain(&behind).collect();
        accumulate(backend, all, &backend.concat(&parts, shape.rank() - 1));
    }

    /// Adds the gradients of several runs, which do not overlap.
    pub(super) fn add_all<B: Backend>(backend: &B, mut runs: Vec<(Self, B::Tensor)>, sum: &mut Grad<B>) {
        runs.sort_by_key(|(told, _)| told.offset);
        let Some((Self { all, .. }, first)) = runs.first() else { return };
        let (all, n) = (*all, backend.shape(first).rows());
        let zeros = |width: usize| (width > 0).then(|| backend.full(0.0, [n, width].into()));
        let (mut parts, mut at) = (Vec::with_capacity(2 * runs.len() + 1), 0);
        for (told, gradient) in &runs {
            parts.extend(zeros(told.offset - at));
            parts.push(sum_pixels(backend, gradient));
            at = told.offset + told.features;
        }
        parts.extend(zeros(all - at));
        accumulate(backend, sum, &backend.concat(&parts.iter().collect::<Vec<_>>(), 1));
    }

    /// Checks the shape of what enters, which is that of what comes out.
    fn output_shape(self, what: &str, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if input.last() == Some(&self.features) {
            return Ok(input.to_vec());
        }
        Err(ConfigError::Inconsistent(format!(
            "{what} of {} features cannot take samples of shape {input:?}",
            self.features
        )))
    }
}

/// Sums samples `[n, …, c]` over pixels: `[n, c]`.
fn sum_pixels<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    let (n, c) = (shape.rows(), shape.channels());
    let pixels = shape.row_elements() / c.max(1);
    if pixels == 1 {
        return backend.reshape(x, [n, c].into());
    }
    let turned = backend.permute(&backend.reshape(x, [n, pixels, c].into()), &[0, 2, 1]);
    let rows = backend.reshape(&turned, [n * c, pixels].into());
    backend.reshape(&backend.reduce(Reduce::Sum, Over::Row, &rows), [n, c].into())
}

/// A bias that depends on the context, of each feature or channel.
#[derive(Debug, Clone)]
pub struct ContextBias(Told);

impl ContextBias {
    /// Builds the bias that is told this.
    pub fn new(told: Told) -> Self {
        Self(told)
    }
}

impl<B: Backend> Module<B> for ContextBias {
    fn describe(&self) -> String {
        format!("bias of {} features by the context", self.0.features)
    }
}

impl<B: Backend> Layer<B> for ContextBias {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(PreparedBias(self.0))
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.0.output_shape("a bias", input)
    }

    fn activations(&self, _input: &[usize]) -> usize {
        0
    }

    fn multiply_adds(&self, _input: &[usize]) -> u64 {
        0
    }

    fn lipschitz_bound(&self) -> f64 {
        1.0
    }

    fn certified_bound(
        &self,
        _backend: &B,
        _path: &str,
        _report: &mut dyn FnMut(WeightBounds),
    ) -> Result<Option<f64>, BackendError> {
        Ok(Some(1.0))
    }

    fn told(&self) -> usize {
        self.0.all
    }

    fn stage(&self) -> Option<LayerStage> {
        Some(LayerStage::ContextBias { features: self.0.features })
    }
}

#[derive(Debug)]
struct PreparedBias(Told);

impl<B: Backend> PreparedLayer<B> for PreparedBias {
    fn forward(&self, backend: &B, batch: &Batch<B>, _keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let own = self.0.of(backend, batch.context.as_ref(), batch.shape(backend));
        (backend.binary(Binary::Add, batch.x.clone(), &own), Saved::tensors(Vec::new()))
    }

    fn jvp(&self, _backend: &B, _saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        (dx.clone(), Saved::tensors(Vec::new()))
    }

    fn vjp(&self, _backend: &B, _saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        gy
    }

    fn tangent_vjp(
        &self,
        backend: &B,
        _saved: &Saved<B>,
        _tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        self.0.add(backend, &gy, grads.context);
        (gy, gdy)
    }

    fn context_bias(&self) -> Option<Told> {
        Some(self.0)
    }
}

/// A factor in (−1, 1) that depends on the context, of each feature or channel (FiLM, with its scale bounded).
#[derive(Debug, Clone)]
pub struct ContextGate(Told);

impl ContextGate {
    /// Builds the gate that is told this.
    pub fn new(told: Told) -> Self {
        Self(told)
    }
}

impl<B: Backend> Module<B> for ContextGate {
    fn describe(&self) -> String {
        format!("gate of {} features by the context", self.0.features)
    }
}

impl<B: Backend> Layer<B> for ContextGate {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(PreparedGate(self.0))
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.0.output_shape("a gate", input)
    }

    fn multiply_adds(&self, _input: &[usize]) -> u64 {
        0
    }

    fn lipschitz_bound(&self) -> f64 {
        1.0
    }

    fn certified_bound(
        &self,
        _backend: &B,
        _path: &str,
        _report: &mut dyn FnMut(WeightBounds),
    ) -> Result<Option<f64>, BackendError> {
        // tanh may be rounded to a little above 1
        Ok(Some(1.0 + 4.0 * B::Elem::EPSILON))
    }

    fn told(&self) -> usize {
        self.0.all
    }

    fn stage(&self) -> Option<LayerStage> {
        Some(LayerStage::ContextGate { features: self.0.features })
    }
}

// what is kept: the gates s, `[n, features]` or `[n, 1, 1, features]`, for the second derivative x behind them; of a tangent dx
#[derive(Debug)]
struct PreparedGate(Told);

impl PreparedGate {
    fn times<B: Backend>(backend: &B, saved: &Saved<B>, x: B::Tensor) -> B::Tensor {
        backend.binary(Binary::Mul, x, &saved.tensors[0])
    }
}

impl<B: Backend> PreparedLayer<B> for PreparedGate {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let own = self.0.of(backend, batch.context.as_ref(), batch.shape(backend));
        let mut gates = backend.unary(Unary::Tanh, backend.affine(own, 1.0, OPEN));
        let y = backend.binary(Binary::Mul, batch.x.clone(), &gates);
        let (n, shape) = (batch.len(backend), backend.shape(&gates));
        if shape.rows() != n {
            // what is kept is cut and sorted with the samples
            gates = backend.binary(Binary::Add, backend.full(0.0, shape.with_rows(n)), &gates);
        }
        let tensors = match keep {
            Derivatives::None => Vec::new(),
            Derivatives::First => vec![gates],
            Derivatives::Second => vec![gates, batch.x.clone()],
        };
        (y, Saved::tensors(tensors))
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        (Self::times(backend, saved, dx.clone()), Saved::tensors(vec![dx.clone()]))
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        Self::times(backend, saved, gy)
    }

    fn tangent_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        // s̄ = x·ȳ + Σ dx·dȳ, through tanh' = 1 − s²
        let mut of_gates = backend.binary(Binary::Mul, gy.clone(), &saved.tensors[1]);
        for (g, tangent) in gdy.iter().zip(tangents) {
            of_gates = backend.axpy(1.0, &backend.binary(Binary::Mul, g.clone(), &tangent.tensors[0]), of_gates);
        }
        let slopes = backend.affine(backend.unary(Unary::Square, saved.tensors[0].clone()), -1.0, 1.0);
        self.0.add(backend, &backend.binary(Binary::Mul, of_gates, &slopes), grads.context);
        (Self::times(backend, saved, gy), gdy.into_iter().map(|g| Self::times(backend, saved, g)).collect())
    }
}
