//! Transforms: bijections of samples, of which a flow is a chain.
//!
//! Every transform maps x to y with log|det ∂y/∂x| per sample (natural logarithm), and back. Like layers, transforms
//! hold parameters ([`Bijection`]) and are prepared once a step ([`PreparedBijection`]). One whose log det and inverse
//! are formulas writes a [`ClosedForm`] and has the rest from [`closed_form`].

use std::any::Any;
use std::fmt::Debug;

use resflow_backend::{Backend, BackendError};

use crate::batch::{Batch, SampleWeights};
use crate::error::{ConfigError, Error};
use crate::estimator::{CostModel, Expansion};
pub use crate::estimator::{Draw, LogDet};
use crate::invert::{Inversion, SampleReport, Solution};
use crate::layer::Layer;
use crate::lipschitz::TransformBounds;
use crate::module::{Grad, Module};
use crate::reference::ReferenceMap;
use crate::stage::Stage;

/// The results of a forward pass besides y.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// Nothing.
    Value,
    /// The log det, estimated `replicates` times independently on one forward pass.
    LogDet {
        /// The estimator and the key.
        draw: Draw<'a>,
        /// The number of estimates of each sample.
        replicates: usize,
    },
    /// One estimate of the log det, and what a backward pass needs.
    Gradient {
        /// The estimator and the key.
        draw: Draw<'a>,
        /// The activations that are kept for the backward pass.
        memory: Memory,
    },
}

/// The settings of a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The results that are wanted.
    pub wanted: Wanted<'a>,
    /// The settings of a transform whose forward pass is a solve.
    pub solver: Inversion,
}

impl<'a> Ask<'a> {
    /// Asks for y alone.
    pub fn value<B: Backend>() -> Self {
        Self { wanted: Wanted::Value, solver: Inversion::for_backend::<B>() }
    }

    /// Asks for y and so many independent estimates of the log det.
    pub fn log_det<B: Backend>(draw: Draw<'a>, replicates: usize) -> Self {
        Self { wanted: Wanted::LogDet { draw, replicates }, solver: Inversion::for_backend::<B>() }
    }

    /// Asks for one estimate of the log det and a backward pass.
    pub fn gradient<B: Backend>(draw: Draw<'a>, memory: Memory) -> Self {
        Self { wanted: Wanted::Gradient { draw, memory }, solver: Inversion::for_backend::<B>() }
    }

    /// Takes the key of transform `number` of a chain, which has one of its own.
    pub fn for_transform(self, number: u64) -> Self {
        let own = |draw: Draw<'a>| Draw { key: draw.key.split(number), ..draw };
        let wanted = match self.wanted {
            Wanted::Value => Wanted::Value,
            Wanted::LogDet { draw, replicates } => Wanted::LogDet { draw: own(draw), replicates },
            Wanted::Gradient { draw, memory } => Wanted::Gradient { draw: own(draw), memory },
        };
        Self { wanted, ..self }
    }

    /// Returns the number of columns that an estimate of the log det goes into; `None` if none is wanted.
    pub fn replicates(&self) -> Option<usize> {
        match self.wanted {
            Wanted::Value => None,
            Wanted::LogDet { replicates, .. } => Some(replicates),
            Wanted::Gradient { .. } => Some(1),
        }
    }
}

/// The tape of a forward pass, for the backward pass: a value that the transform alone knows the type of.
pub struct Tape(Box<dyn Any + Send + Sync>);

impl Tape {
    /// Keeps a value.
    pub fn new<T: Any + Send + Sync>(value: T) -> Self {
        Self(Box::new(value))
    }

    /// Returns the value that was kept.
    ///
    /// # Panics
    /// If it is of another type: the tape is that of another transform.
    #[track_caller]
    pub fn into_value<T: Any>(self) -> T {
        let name = std::any::type_name::<T>();
        *self.0.downcast().unwrap_or_else(|_| panic!("the tape of another transform: it does not hold a {name}"))
    }

    /// Returns the value that was kept, or the tape itself if it is of another type.
    ///
    /// # Errors
    /// Returns the [`Tape`], unchanged, if the value is not a `T`.
    pub fn try_into_value<T: Any>(self) -> Result<T, Self> {
        self.0.downcast().map(|value| *value).map_err(Self)
    }
}

impl Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tape")
    }
}

/// The results of a forward pass.
#[derive(Debug)]
pub struct Mapped<B: Backend> {
    /// y, `[n, …]`.
    pub y: B::Tensor,
    /// The terms of log|det ∂y/∂x|, nats, one of every transform inside; none if it was not wanted.
    pub log_dets: Vec<LogDet<B>>,
    /// The report of each sample's forward pass, where it was a solve.
    pub reports: Option<Vec<SampleReport>>,
    /// The tape of the backward pass, if one was announced.
    pub tape: Option<Tape>,
    /// The number of vector-Jacobian products of the series.
    pub terms: usize,
}

impl<B: Backend> Mapped<B> {
    /// Takes y alone.
    pub fn value(y: B::Tensor) -> Self {
        Self { y, log_dets: Vec::new(), reports: None, tape: None, terms: 0 }
    }
}

/// The gradients that a backward pass takes from the output of a transform to its input.
#[derive(Debug, Clone)]
pub struct Cotangents<B: Backend> {
    /// The gradient in y, `[n, …]`; what comes back is that in x.
    pub x: B::Tensor,
    /// The gradient in each sample's log det, `[n, 1]`; one for all transforms of a chain.
    pub log_det: B::Tensor,
    /// The gradient in the context, `[n, k]`, to which a transform that looks at it adds.
    pub context: Grad<B>,
}

impl<B: Backend> Cotangents<B> {
    /// Replaces the gradient of the samples, on the other side of a transform.
    pub fn with_x(self, x: B::Tensor) -> Self {
        Self { x, ..self }
    }
}

/// The part of the forward pass that a training step keeps for its backward pass (gradient checkpointing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// Everything that g computed: fastest.
    #[default]
    #[serde(alias = "keep")]
    Store,
    /// One activation a transform and the vectors u, v; g is computed again. Memory does not grow with the width of g.
    Recompute,
    /// Every power of the series, which is differentiated itself instead of summed by Neumann's series: for comparison.
    /// Memory grows with the number of terms.
    #[serde(alias = "differentiate")]
    Unroll,
}

/// A copy of a transform behind a box; every transform that is `Clone` has it.
pub trait CloneBijection<B: Backend> {
    /// Copies the transform.
    fn boxed_clone(&self) -> Box<dyn Bijection<B>>;
}

impl<B: Backend, T: Bijection<B> + Clone + 'static> CloneBijection<B> for T {
    fn boxed_clone(&self) -> Box<dyn Bijection<B>> {
        Box::new(self.clone())
    }
}

impl<B: Backend> Clone for Box<dyn Bijection<B>> {
    fn clone(&self) -> Self {
        (**self).boxed_clone()
    }
}

/// A transform's parameters and description.
pub trait Bijection<B: Backend>: Module<B> + CloneBijection<B> {
    /// Prepares the transform for computing: normalises its weights.
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>>;

    /// Returns the shape that samples of this shape are mapped to, without the axis of samples; as it is, unless a
    /// transform says otherwise.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if such samples cannot pass.
    ///
    /// A transform that is made for samples of one shape writes this method, or panics in the backend at others.
    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        Ok(shape.to_vec())
    }

    /// Describes the transform as a model file does; `None` of a transform that cannot be saved.
    fn stage(&self) -> Option<Stage> {
        None
    }

    /// Initialises what depends on the first batch, given as shards, with the weights of their samples,
    /// if they have any.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the batch cannot initialise the transform, [`Error::Backend`] if the device failed.
    fn initialise(
        &mut self,
        backend: &B,
        shards: &[Batch<B>],
        weights: Option<&SampleWeights<'_, B>>,
    ) -> Result<(), Error> {
        let _ = (backend, shards, weights);
        Ok(())
    }

    /// Returns the number of the last channels of y that are factored out: they leave the chain here and
    /// become part of z.
    fn factored_out(&self) -> usize {
        0
    }

    /// Returns `true` if the inverse is ill-conditioned near the edge of its range, as the logit's is: residuals are
    /// then measured at the output of the transform.
    fn saturates(&self) -> bool {
        false
    }

    /// Fits the transform to samples of another shape, from other images of the same channels; returns the shape that
    /// it maps them to. Singular vectors stay where the stored σ bounds the new size, and are estimated anew where it
    /// does not.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the transform is made for one shape.
    fn resize(&mut self, backend: &B, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let _ = backend;
        self.output_shape(shape)
    }

    /// Returns the cost of the log det, for a transform that estimates one.
    fn cost(&self) -> Option<CostModel> {
        None
    }

    /// Returns the log det that it estimates, for a transform that does.
    fn expansion(&self) -> Expansion {
        Expansion::Whole
    }

    /// Returns g, of a block that is made of a contraction: x ↦ x + g(x), its inverse, a monotone block.
    fn residual(&self) -> Option<&dyn Layer<B>> {
        None
    }

    /// Bounds the Lipschitz constants of the transform and of its inverse in the 2-norm, and those of its weights, whose paths begin with
    /// `path`, certainly: of the numbers that are multiplied by, on the host in double precision. Nothing is known of a transform
    /// that does not say.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    fn certified_bounds(&self, backend: &B, path: &str) -> Result<TransformBounds, BackendError> {
        let _ = (backend, path);
        Ok(TransformBounds::default())
    }

    /// Returns the bound on Lip(g) that the normalisation aims at, for a block that is made of one.
    fn lipschitz_bound(&self) -> Option<f64> {
        None
    }
}

/// A transform ready for computing.
pub trait PreparedBijection<B: Backend>: Debug + Send + Sync {
    /// Maps samples x, `[n, …]`, to y, `[n, …]`, with what is asked for besides (the forward transform).
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if a solve waited for the device and it had failed. A sample whose solve does not
    /// converge is no error but a status.
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error>;

    /// Returns a factor f if the forward pass is a solve whose y and log det are those of another sample near x, but for as much in y:
    /// one at a distance of at most f · the report's residual · max(1, ‖x‖₂). So a solve's error is one of the input, of which all
    /// that follows, the log det included, is a function. ∞ says that solves are inside and nothing bounds the distance. A transform that
    /// reports and returns `None` has an error in y, that of its report.
    fn solves_forward(&self) -> Option<f64> {
        None
    }

    /// Finds the x, `[n, …]`, with F(x) = y for samples y, `[n, …]`, and the accuracy of each (the inverse transform).
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed. A sample that does not converge is no error but a status.
    fn inverse(&self, backend: &B, batch: &Batch<B>, how: &Inversion) -> Result<Solution<B>, Error>;

    /// Solves (∂F/∂x)ᵀ a = g at samples x, `[n, …]`, for gradients g in x, `[n, …]`: a, of the shape of y, is the gradient in
    /// y of a function of F⁻¹(y) whose gradient in x = F⁻¹(y) is g. The accuracy of each sample's is in the reports.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed, and [`Error::Input`] if the transform does not do it; none does
    /// unless it says how. A sample that does not converge is no error but a status.
    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        let _ = (backend, batch, gradient, how);
        Err(not_transposed(self))
    }

    /// Copies the transform to the host, where its inverse is measured in double precision; `None` of one that cannot be.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        let _ = backend;
        Ok(None)
    }

    /// Makes the backward pass: from the gradients in y, `[n, …]`, and in the log dets, `[n, 1]`, to those in x, adding
    /// to the gradients of the trained tensors.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if a solve waited for the device and it had failed.
    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error>;

    /// Makes [`backward`](Self::backward), and adds to `reports` that of each sample's solve on the way back, where there was
    /// one. A sample whose solve fails has no gradient from there on: its cotangents are zero.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if a solve waited for the device and it had failed.
    fn backward_reported(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
        reports: &mut Option<Vec<SampleReport>>,
    ) -> Result<Cotangents<B>, Error> {
        let _ = reports;
        self.backward(backend, tape, cotangents, grads)
    }

    /// Makes [`backward_reported`](Self::backward_reported) for the gradients in x and in the log dets, where those of the parameters and of the
    /// context are not wanted: what it puts into `scratch`, if anything, is not used.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if a solve waited for the device and it had failed.
    fn backward_samples(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        scratch: &mut [Grad<B>],
        reports: &mut Option<Vec<SampleReport>>,
    ) -> Result<Cotangents<B>, Error> {
        self.backward_reported(backend, tape, cotangents, scratch, reports)
    }

    /// The velocity of a continuous flow, as a regression sees it; `None` of other transforms.
    fn velocity(&self) -> Option<&dyn Velocity<B>> {
        None
    }

    /// Turns the gradients of what is computed with into those of what is stored. Tensors that got none
    /// may be left empty.
    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        let _ = (backend, grads);
    }
}

/// The velocity f(t, x; θ) of a continuous flow, which carries noise, t = 0, to samples, t = 1.
pub trait Velocity<B: Backend>: Send + Sync {
    /// Computes Σ wᵢ ‖f(tᵢ, xᵢ) − uᵢ‖², `[1]`, and adds its gradients to those of the trained tensors and of the embedding of the
    /// samples' contexts.
    fn regress(
        &self,
        backend: &B,
        regression: &Regression<'_, B>,
        grads: &mut [Grad<B>],
        context: &mut Grad<B>,
    ) -> B::Tensor;
}

/// A regression of a velocity on targets.
#[derive(Debug, Clone, Copy)]
pub struct Regression<'a, B: Backend> {
    /// xᵢ, `[n, …]`, with the embedding of its context.
    pub batch: &'a Batch<B>,
    /// tᵢ, from 0 to 1.
    pub times: &'a [f64],
    /// uᵢ, of the shape of x.
    pub targets: &'a B::Tensor,
    /// wᵢ, `[n, 1]`.
    pub weights: &'a B::Tensor,
}

/// The error of a transform that has no [`PreparedBijection::solve_transposed`].
fn not_transposed(transform: &(impl Debug + ?Sized)) -> Error {
    let described = format!("{transform:?}");
    let name = described.split([' ', '{', '(']).next().unwrap_or_default();
    Error::Input(format!("the transform {name} has no gradient through its inverse: write its `solve_transposed`"))
}

/// A prepared transform whose log det and inverse are formulas; [`closed_form`] makes a [`PreparedBijection`] of it.
pub trait ClosedForm<B: Backend>: Debug + Send + Sync {
    /// Computes y, `[n, …]`, and log|det ∂y/∂x| of each sample, `[n, 1]`, nats.
    fn map(&self, backend: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor);

    /// Computes x of y, `[n, …]`; [`Solution::by_formula`] makes a solution of it.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    fn unmap(&self, backend: &B, batch: &Batch<B>) -> Result<Solution<B>, Error>;

    /// Computes the a with Jᵀa = g at samples x, `[n, …]`, for gradients g in x, `[n, …]`; a is of the shape of y. `None` of a
    /// transform that does not: nothing can be differentiated through its inverse then.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
    ) -> Result<Option<B::Tensor>, Error> {
        let _ = (backend, batch, gradient);
        Ok(None)
    }

    /// Copies the transform to the host, see [`PreparedBijection::reference`].
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        let _ = backend;
        Ok(None)
    }

    /// Computes the gradient in x, x̄ = Jᵀȳ + w ∂(log det)/∂x with ȳ = `cotangents.x`, `[n, …]`, and w = `cotangents.log_det`,
    /// `[n, 1]`, which goes on unchanged like the context ([`Cotangents::with_x`]), and adds to the gradients of the trained
    /// tensors: `grads` has one for each in the order of the parts, buffers left out. `kept` is x, or y if that is what it keeps.
    fn pull_back(&self, backend: &B, kept: Batch<B>, cotangents: Cotangents<B>, grads: &mut [Grad<B>])
    -> Cotangents<B>;

    /// Returns `true` if the backward pass wants y instead of x, which costs no memory where a next transform keeps it
    /// anyway.
    fn keeps_output(&self) -> bool {
        false
    }

    /// See [`PreparedBijection::finish_gradients`].
    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        let _ = (backend, grads);
    }
}

/// Makes a transform by formulas one like any other.
pub fn closed_form<B: Backend, T: ClosedForm<B> + 'static>(transform: T) -> Box<dyn PreparedBijection<B>> {
    Box::new(ByFormula(transform))
}

#[derive(Debug)]
struct ByFormula<T>(T);

impl<B: Backend, T: ClosedForm<B>> PreparedBijection<B> for ByFormula<T> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let (y, log_det) = self.0.map(backend, batch);
        let tape = match ask.wanted {
            Wanted::Gradient { .. } if self.0.keeps_output() => Some(Tape::new(batch.with_x(y.clone()))),
            Wanted::Gradient { .. } => Some(Tape::new(batch.clone())),
            _ => None,
        };
        let log_dets = ask.replicates().map(|_| LogDet::exact(log_det)).into_iter().collect();
        Ok(Mapped { log_dets, tape, ..Mapped::value(y) })
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, _how: &Inversion) -> Result<Solution<B>, Error> {
        self.0.unmap(backend, batch)
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        _how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        let a = self.0.solve_transposed(backend, batch, gradient)?.ok_or_else(|| not_transposed(&self.0))?;
        Ok(Solution::by_formula(backend, a, f64::INFINITY)?)
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        self.0.reference(backend)
    }

    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error> {
        Ok(self.0.pull_back(backend, tape.into_value(), cotangents, grads))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        self.0.finish_gradients(backend, grads);
    }
}
