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
//! and inverse iterations share. Gradients gather on the normalised weights in slots and are pulled back through the
//! normalisation once ([`PreparedLayer::pull_back`]).

mod activation;
mod concatenated;
mod conv;
mod linear;
mod normalised;
mod sequence;

use std::fmt::Debug;

pub use activation::ActivationLayer;
pub use concatenated::ConcatenatedLipSwish;
pub use conv::LipschitzConv;
pub use linear::LipschitzLinear;
pub(crate) use linear::{by_rows, matrix};
pub use normalised::{LayerNorms, OrderGradients};
use resflow_backend::{Activation, Backend, BackendError};
pub use sequence::Sequence;

use crate::error::ConfigError;
use crate::lipschitz::Refresh;

/// What a stored tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A trained tensor that weight decay applies to.
    Weight,
    /// A trained tensor that weight decay leaves alone: a bias, a scale, an activation's parameter.
    Parameter,
    /// State that is saved but not trained: singular vectors, flags.
    Buffer,
}

impl Role {
    /// Whether the optimiser changes it.
    pub fn is_trained(self) -> bool {
        self != Self::Buffer
    }
}

/// Reads every stored tensor: path, tensor, role.
pub type Visitor<'a, B> = &'a mut dyn FnMut(&str, &<B as Backend>::Tensor, Role);
/// Changes every stored tensor: path, tensor, role.
pub type VisitorMut<'a, B> = &'a mut dyn FnMut(&str, &mut <B as Backend>::Tensor, Role);

/// How much a forward pass keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// Nothing: only the value is wanted.
    Value,
    /// What `jvp` and `vjp` need.
    First,
    /// What `tangent_vjp` needs besides.
    Second,
}

/// What a forward pass kept, one entry a layer.
#[derive(Debug, Clone)]
pub struct Saved<B: Backend> {
    /// Tensors of the layer itself, rows first.
    pub tensors: Vec<B::Tensor>,
    /// What its parts kept.
    pub parts: Vec<Saved<B>>,
}

impl<B: Backend> Saved<B> {
    /// Tensors alone.
    pub fn tensors(tensors: Vec<B::Tensor>) -> Self {
        Self { tensors, parts: Vec::new() }
    }

    /// The same for some of the rows, in the order given.
    pub fn take_rows(&self, backend: &B, rows: &[u32]) -> Self {
        self.map(&|x| backend.take_rows(x, rows))
    }

    /// The same for the first `rows` rows.
    pub fn first_rows(&self, backend: &B, rows: usize) -> Self {
        self.map(&|x| backend.narrow(x, 0, 0, rows))
    }

    fn map(&self, f: &impl Fn(&B::Tensor) -> B::Tensor) -> Self {
        Self { tensors: self.tensors.iter().map(f).collect(), parts: self.parts.iter().map(|p| p.map(f)).collect() }
    }
}

/// The leading singular value of one constrained weight.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Spectrum {
    /// The weight's path.
    pub name: String,
    /// σ of the raw weight, by power iteration: a lower bound that converges from below.
    pub sigma: f64,
    /// κ.
    pub coefficient: f64,
}

impl Spectrum {
    /// σ of the normalised weight: min(σ, κ).
    pub fn effective(&self) -> f64 {
        self.sigma.min(self.coefficient)
    }
}

/// The gradient of one parameter, `None` while nothing was added.
pub type Slot<B> = Option<<B as Backend>::Tensor>;

/// Adds to a slot.
pub(crate) fn accumulate<B: Backend>(backend: &B, slot: &mut Slot<B>, gradient: &B::Tensor) {
    *slot = Some(match slot.take() {
        None => gradient.clone(),
        Some(sum) => backend.axpy(1.0, gradient, sum),
    });
}

/// A layer's parameters.
pub trait Layer<B: Backend>: Debug + Send + Sync {
    /// Shows every stored tensor, in the order of the gradient slots; `path` is the prefix of its name.
    fn visit(&self, path: &str, visitor: Visitor<'_, B>);

    /// Lets every stored tensor be changed, in the same order.
    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>);

    /// The layer ready for computing.
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>>;

    /// Renews the power iteration of constrained weights.
    fn refresh(&mut self, backend: &B, how: Refresh) {
        let _ = (backend, how);
    }

    /// The row shape that a row shape is mapped to.
    ///
    /// # Errors
    /// If the layer does not accept it.
    fn output(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError>;

    /// Prepares the layer for rows of another shape, from other images of the same channels; returns what it maps them to.
    ///
    /// # Errors
    /// If the layer is made for one shape.
    fn resize(&mut self, backend: &B, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let _ = backend;
        self.output(input)
    }

    /// The numbers that one row of this shape becomes on its way through the layer's parts.
    fn activations(&self, input: &[usize]) -> usize {
        self.output(input).map_or(0, |shape| shape.iter().product())
    }

    /// Multiply-adds of one forward pass of one row of this shape.
    fn multiply_adds(&self, input: &[usize]) -> u64;

    /// The bound on the layer's Lipschitz constant that its normalisation aims at: κ for weights, 1 for activations.
    fn lipschitz_bound(&self) -> f64;

    /// Takes the norms that a constrained layer's weight is bounded between; whether this is one.
    fn set_norms(&mut self, norms: &LayerNorms<B>) -> bool {
        let _ = norms;
        false
    }

    /// How much an error bound in the norm in which the layer is a contraction may grow as one in the 2-norm, for rows of
    /// this shape.
    fn two_norm_factor(&self, input: &[usize]) -> f64 {
        let _ = input;
        1.0
    }

    /// Reports the σ of every constrained weight: path, singular value, coefficient.
    ///
    /// # Errors
    /// Faults of the device.
    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        let _ = (backend, path, report);
        Ok(())
    }

    /// Reports the path of each singular vector and its length in the norm in which it should be a unit vector.
    ///
    /// # Errors
    /// Faults of the device.
    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        let _ = (backend, path, report);
        Ok(())
    }

    /// One line on what the layer is.
    fn describe(&self, backend: &B) -> String;

    /// A copy of the layer, behind a box.
    fn boxed_clone(&self) -> Box<dyn Layer<B>>;
}

/// A layer with its weights normalised: a differentiable map of rows.
pub trait PreparedLayer<B: Backend>: Debug + Send + Sync {
    /// f(x), keeping what the derivatives will ask for.
    fn forward(&self, backend: &B, x: &B::Tensor, keep: Keep) -> (B::Tensor, Saved<B>);

    /// J dx, keeping what `tangent_vjp` will ask for.
    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>);

    /// What [`jvp`](Self::jvp) keeps, where its result is not wanted.
    fn keep_tangent(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> Saved<B> {
        self.jvp(backend, saved, dx).1
    }

    /// Jᵀ gy.
    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor;

    /// The pullback of (x, dx₁, …, dx_M) ↦ (f(x), J dx₁, …, J dx_M): from (gy, gdy₁, …) to (gx, gdx₁, …), adding to the
    /// slots. `tangents` is what `jvp` kept of each tangent.
    fn tangent_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        slots: &mut [Slot<B>],
    ) -> (B::Tensor, Vec<B::Tensor>);

    /// The transposed weight and the bias, if the layer is x·wt + b: a net may compute it together with the next layer.
    fn product(&self) -> Option<[&B::Tensor; 2]> {
        None
    }

    /// The function and its parameter, if the layer is an activation.
    fn activation(&self) -> Option<(Activation, Option<&B::Tensor>)> {
        None
    }

    /// The number of trained tensors.
    fn slots(&self) -> usize;

    /// Whether its weight is constrained, so that it has norms.
    fn is_constrained(&self) -> bool {
        false
    }

    /// Turns the gradients of what is computed with into those of what is stored; an empty slot becomes zeros. Returns the
    /// gradients of the orders that a constrained layer was given and that its net owns.
    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) -> OrderGradients<B>;
}
