//! Layers of the residual function g, and the four derivatives that a residual flow needs of each.
//!
//! For y = f(x; θ) with J = ∂f/∂x:
//!
//! | method | computes |
//! |---|---|
//! | [`forward`](PreparedLayer::forward) | y, keeping what the others need |
//! | [`jvp`](PreparedLayer::jvp) | dx ↦ J dx |
//! | [`vjp`](PreparedLayer::vjp) | ȳ ↦ Jᵀȳ, the inner loop of the series: no parameter gradients |
//! | [`tangent_vjp`](PreparedLayer::tangent_vjp) | the pullback of (x, dx) ↦ (f(x), J dx), with parameter gradients |
//!
//! There is no tape: the four compose through [`Sequence`]. A [`Layer`] holds parameters; [`Layer::prepare`] turns them
//! into a [`PreparedLayer`] once per step (normalised weights, their transposes), which all shards, terms of the series
//! and inverse iterations share. Gradients gather on the normalised weights and are taken back through the
//! normalisation once ([`PreparedLayer::finish_gradients`]).

use std::borrow::Cow;

mod activation;
mod affine;
mod attention;
mod concatenated;
mod context;
mod conv;
mod dense;
mod formula;
mod gate;
mod graph;
mod known;
mod layer_norm;
mod leaky;
mod linear;
mod normalised;
mod pixel_bias;
mod sequence;
mod skip;
mod taps;
mod traces;

pub use activation::{ActivationLayer, activation_layer};
pub use affine::Affine;
pub use attention::Attention;
pub use concatenated::ConcatenatedActivation;
pub use context::{Conditioner, ContextBias, ContextGate, Told};
pub use conv::{Kernel, KernelSize, LipschitzConv};
pub use dense::DenseLayer;
pub use gate::GatedUnit;
pub use layer_norm::LayerNorm;
pub use leaky::LeakyLipSwish;
pub use linear::{Dense, LipschitzLinear, by_rows, matrix};
pub use normalised::{LayerNorms, OrderGradients};
pub use pixel_bias::PixelBias;
use resflow_backend::{Activation, Backend, BackendError, Net as BackendNet, NetLayer};
pub use sequence::Sequence;
pub use skip::Skip;

use crate::batch::Batch;
use crate::error::ConfigError;
use crate::estimator::{Bottleneck, Control};
use crate::lipschitz::WeightBounds;
use crate::module::{Grad, Module, accumulate};
use crate::reference::ReferenceNet;
use crate::stage::{LayerStage, Net};

/// The derivatives for which a forward pass keeps activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Derivatives {
    /// None: only the value is wanted.
    None,
    /// The first: what `jvp` and `vjp` need.
    First,
    /// The second: what `tangent_vjp` needs besides.
    Second,
}

/// The activations that a forward pass kept, one entry a layer.
#[derive(Debug, Clone)]
pub struct Saved<B: Backend> {
    /// Tensors of the layer itself, `[n, …]`.
    pub tensors: Vec<B::Tensor>,
    /// The activations of its parts.
    pub parts: Vec<Saved<B>>,
}

impl<B: Backend> Saved<B> {
    /// Takes tensors alone.
    pub fn tensors(tensors: Vec<B::Tensor>) -> Self {
        Self { tensors, parts: Vec::new() }
    }

    /// Selects some of the samples, in the order given.
    pub fn take_rows(&self, backend: &B, rows: &[u32]) -> Self {
        self.map(&|x| backend.take_rows(x, rows))
    }

    /// Keeps the first `rows` samples.
    pub fn first_rows(&self, backend: &B, rows: usize) -> Self {
        self.map(&|x| backend.narrow(x, 0, 0, rows))
    }

    /// The shape of a tensor whose first axis is not that of `samples` samples, if there is one.
    pub(crate) fn without_samples(&self, backend: &B, samples: usize) -> Option<resflow_backend::Shape> {
        let own = self.tensors.iter().map(|x| backend.shape(x)).find(|s| s.rank() == 0 || s.rows() != samples);
        own.or_else(|| self.parts.iter().find_map(|part| part.without_samples(backend, samples)))
    }

    fn map(&self, f: &impl Fn(&B::Tensor) -> B::Tensor) -> Self {
        Self { tensors: self.tensors.iter().map(f).collect(), parts: self.parts.iter().map(|p| p.map(f)).collect() }
    }
}

/// A weighted sum of known traces, Σ_i w_i Σ_{k≤m} (−1)^{k+1} tr(J_iᵏ)/k, of which a reverse pass computes the gradient too.
#[derive(Debug)]
pub struct WeightedTraces<'a, B: Backend> {
    /// m.
    pub powers: usize,
    /// The weights of the samples, `[n, 1]`.
    pub weights: &'a B::Tensor,
}

/// Where a layer's reverse pass adds gradients.
#[derive(Debug)]
pub struct LayerGrads<'a, B: Backend> {
    /// Those of its trained tensors, in the order of a visit.
    pub trained: &'a mut [Grad<B>],
    /// That of what a conditional net is told of the context, `[n, u]`, for a layer that looks at it.
    pub context: &'a mut Grad<B>,
}

/// A copy of a layer behind a box; every layer that is `Clone` has it.
pub trait CloneLayer<B: Backend> {
    /// The copy.
    fn boxed_clone(&self) -> Box<dyn Layer<B>>;
}

impl<B: Backend, T: Layer<B> + Clone + 'static> CloneLayer<B> for T {
    fn boxed_clone(&self) -> Box<dyn Layer<B>> {
        Box::new(self.clone())
    }
}

impl<B: Backend> Clone for Box<dyn Layer<B>> {
    fn clone(&self) -> Self {
        (**self).boxed_clone()
    }
}

/// A layer's parameters and description. Shapes are those of a sample, without the axis of samples.
pub trait Layer<B: Backend>: Module<B> + CloneLayer<B> {
    /// Prepares the layer for computing: normalises its weights.
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>>;

    /// Returns the shape that samples of this shape are mapped to.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the layer does not take them.
    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError>;

    /// Describes the layer as a model file does; `None` of a layer that cannot be saved.
    fn stage(&self) -> Option<LayerStage> {
        None
    }

    /// Describes a whole net; `None` of a single layer, and of a net that cannot be saved.
    fn net(&self) -> Option<Net> {
        None
    }

    /// Prepares the layer for samples of another shape, from other images of the same channels; returns what it maps
    /// them to.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the layer is made for one shape.
    fn resize(&mut self, backend: &B, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let _ = backend;
        self.output_shape(input)
    }

    /// Counts the numbers that one sample of this shape becomes on its way through the layer's parts.
    fn activations(&self, input: &[usize]) -> usize {
        self.output_shape(input).map_or(0, |shape| shape.iter().product())
    }

    /// Counts the multiply-adds of one forward pass of one sample of this shape.
    fn multiply_adds(&self, input: &[usize]) -> u64;

    /// Returns the place inside a net where a sample of this shape is the fewest numbers, if these are fewer than it has itself:
    /// [`PreparedLayer::cyclic_vjp`] is for it.
    fn bottleneck(&self, input: &[usize]) -> Option<Bottleneck> {
        let _ = input;
        None
    }

    /// The bound on the layer's Lipschitz constant that its normalisation aims at: κ for weights, 1 for activations.
    fn lipschitz_bound(&self) -> f64;

    /// The bound on the layer's Lipschitz constant for the present weights, as far as the power iteration has converged:
    /// min(σ, κ) of a weight, √(η₁² + η₂²L²) of a dense layer, a product along a chain. At most
    /// [`lipschitz_bound`](Self::lipschitz_bound).
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    fn reached_lipschitz(&self, backend: &B) -> Result<f64, BackendError> {
        let _ = backend;
        Ok(self.lipschitz_bound())
    }

    /// Bounds the Lipschitz constant in the 2-norm with the weights that are multiplied by, certainly and not as far as a power
    /// iteration has converged, and reports the bounds of each constrained weight, whose path begins with `path`; `None` where nothing bounds it.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    fn certified_bound(
        &self,
        backend: &B,
        path: &str,
        report: &mut dyn FnMut(WeightBounds),
    ) -> Result<Option<f64>, BackendError> {
        let _ = (backend, path, report);
        Ok(None)
    }

    /// Sets the domain and codomain norms of a constrained layer. Returns `false` if the layer is not constrained.
    fn set_norms(&mut self, norms: &LayerNorms<B>) -> bool {
        let _ = norms;
        false
    }

    /// Returns u, the numbers that the whole net is told of a context; 0 of a layer that does not look at one.
    fn told(&self) -> usize {
        0
    }

    /// The factor by which an error bound may grow from the norm in which the layer is a contraction to the 2-norm, for
    /// samples of this shape.
    fn two_norm_factor(&self, input: &[usize]) -> f64 {
        let _ = input;
        1.0
    }
}

/// A layer with its weights normalised: a differentiable map of samples. Values, tangents and cotangents are `[n, …]`.
pub trait PreparedLayer<B: Backend>: std::fmt::Debug + Send + Sync {
    /// Replaces the embedding of the context that the samples come with, `[n, k]` or one for all, by what the layer is told of it,
    /// which is then what every method takes: once for any number of passes. What looks at no context leaves it as it is.
    fn tell(&self, backend: &B, batch: &Batch<B>) -> Batch<B> {
        let _ = backend;
        batch.clone()
    }

    /// Takes the gradient in what was told, `[n, u]`, to the embedding and to the trained tensors.
    fn pull_back_told(&self, backend: &B, embedding: Option<&B::Tensor>, gradient: Grad<B>, grads: LayerGrads<'_, B>) {
        let _ = embedding;
        if let Some(gradient) = gradient {
            accumulate(backend, grads.context, &gradient);
        }
    }

    /// Computes f(x), `[n, …]`, keeping what the derivatives will ask for.
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>);

    /// Computes J dx, `[n, …]` of the shape of f(x), keeping what `tangent_vjp` will ask for; dx is of the shape of x.
    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>);

    /// Keeps what [`jvp`](Self::jvp) keeps, where its result is not wanted.
    fn keep_tangent(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> Saved<B> {
        self.jvp(backend, saved, dx).1
    }

    /// Computes Jᵀ gy, `[n, …]` of the shape of x; gy is of the shape of f(x).
    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor;

    /// Computes (BA)ᵀ u, `[n, …]` of the shape of u, which is that of a bottleneck: J = AB, with B the Jacobian of what comes before
    /// it and A that of what comes behind ([`Bottleneck`]).
    ///
    /// # Panics
    /// If the layer has none ([`Layer::bottleneck`]).
    fn cyclic_vjp(&self, backend: &B, saved: &Saved<B>, bottleneck: &Bottleneck, u: B::Tensor) -> B::Tensor {
        let _ = (backend, saved, bottleneck, u);
        panic!("a layer without a bottleneck was asked for a product through one");
    }

    /// Computes the pullback of (x, dx₁, …, dx_M) ↦ (f(x), J dx₁, …, J dx_M): from (gy, gdy₁, …) to (gx, gdx₁, …),
    /// adding to the gradients of the trained tensors. gx and gdx are of the shape of x, gy and gdy of that of f(x);
    /// `tangents` is what `jvp` kept of each tangent.
    fn tangent_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>);

    /// Computes tr J, tr J², …, `[n, 1]` each, as far as they cost about what a product with J costs.
    fn traces(&self, backend: &B, saved: &Saved<B>) -> Vec<B::Tensor> {
        let _ = (backend, saved);
        Vec::new()
    }

    /// Computes [`tangent_vjp`](Self::tangent_vjp), and adds to gx and to the gradients of the trained tensors those of
    /// traces that [`traces`](Self::traces) gives.
    ///
    /// # Panics
    /// If the layer does not give as many.
    fn tangent_trace_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        traces: WeightedTraces<'_, B>,
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        assert_eq!(traces.powers, 0, "traces that the layer does not give");
        self.tangent_vjp(backend, saved, tangents, gy, gdy, grads)
    }

    /// Computes tr J, `[n, 1]`, where it costs at most so many multiply-adds a sample: for values alone, of which many are
    /// averaged.
    fn dear_trace(&self, backend: &B, saved: &Saved<B>, most: u64) -> Option<B::Tensor> {
        let _ = (backend, saved, most);
        None
    }

    /// Computes the trace of a map C near J, if there is one that costs less than a product with J.
    fn control(&self, backend: &B, saved: &Saved<B>) -> Option<Control<B>> {
        let _ = (backend, saved);
        None
    }

    /// Computes Jᵀv, `[n, …]`, and vᵀCv, `[n, 1]`, of the map C that [`control`](Self::control) gave, of which `slopes` are.
    ///
    /// # Panics
    /// If the layer has no such C.
    fn controlled_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        slopes: &B::Tensor,
        v: B::Tensor,
    ) -> (B::Tensor, B::Tensor) {
        let _ = (backend, saved, slopes, v);
        panic!("a layer without a control variate was asked for one");
    }

    /// Describes the layer as a backend knows it, if it does: it may then be computed together with its neighbours. Such a layer
    /// keeps what this library's own keep: an activation φ′ for first derivatives, x, φ, φ′ and φ″ for second ones and a tangent's
    /// dx; an affine layer's weight is the first of its trained tensors.
    fn net_layer(&self) -> Option<NetLayer<B::Tensor>> {
        None
    }

    /// Returns the layer as a net of which a backend knows every layer, and φ′ of its activations, `[n, …]` each.
    fn net<'a>(&'a self, saved: &'a Saved<B>) -> Option<(&'a BackendNet<B::Tensor>, Vec<&'a B::Tensor>)> {
        let _ = saved;
        None
    }

    /// Copies the layer to the host, where its values are computed in double precision; `None` of a layer that a backend does not know
    /// ([`net_layer`](Self::net_layer)).
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    fn reference(&self, backend: &B) -> Result<Option<ReferenceNet>, BackendError> {
        self.net_layer().map_or(Ok(None), |layer| ReferenceNet::of(backend, &[layer]))
    }

    /// Returns the function and its parameter, `[1]`, if the layer is an activation.
    fn activation(&self) -> Option<(Activation, Option<&B::Tensor>)> {
        None
    }

    /// Returns what it is told, if the layer does nothing but add it.
    fn context_bias(&self) -> Option<Told> {
        None
    }

    /// Returns the layer as a net of which a backend knows every layer, at samples that were told this; `None` where each of them
    /// was told something else.
    fn net_at(&self, backend: &B, told: Option<&B::Tensor>) -> Option<Cow<'_, BackendNet<B::Tensor>>> {
        let _ = (backend, told);
        None
    }

    /// Returns `true` if its weight is constrained, so that it has norms.
    fn is_constrained(&self) -> bool {
        false
    }

    /// Turns the gradients of what is computed with into those of what is stored. Tensors that got none may be left
    /// empty. Returns the gradients of the orders that a constrained layer was given and that its net owns.
    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        let _ = (backend, grads);
        [None, None]
    }
}
