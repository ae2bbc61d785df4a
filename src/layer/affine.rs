//! The affine layer y = W_eff x + b, linear or a convolution, with ‖W_eff‖ ≤ κ as far as the power iteration has
//! converged; see [`lipschitz`](crate::lipschitz). A free layer has W_eff = W and no singular vectors.
//!
//! All that the two differ in is a [`Kind`]: the action of W, that of its transpose, and the gradient of W.

use resflow_backend::{Backend, BackendError, Element, Key, NetLayer, Over, Reduce, Shape};

use super::normalised::{Constraint, LayerNorms, Normalised, OrderGradients, uniform};
use super::{Derivatives, Layer, LayerGrads, PreparedLayer, Saved};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::lipschitz::{Coefficient, LinearOperator, PowerIteration, SingularPair, WeightBounds};
use crate::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, Spectrum, accumulate};
use crate::stage::LayerStage;

/// The action of a weight: a matrix or a kernel. W's first axis is that of the outputs, its last that of the inputs.
pub trait Kind<B: Backend>: std::fmt::Debug + Copy + Send + Sync + 'static {
    /// Returns W as a power iteration sees it, between vectors of the shapes of u and v.
    fn operator<'a>(&self, weight: &'a B::Tensor, v: Shape) -> Box<dyn LinearOperator<B> + 'a>;

    /// Returns W_eff in the form in which [`apply`](Self::apply) wants it: of a matrix the transpose `[i, o]`, of a
    /// kernel itself.
    fn arrange(&self, backend: &B, effective: &B::Tensor) -> B::Tensor;

    /// Computes W_eff x + b, without b a tangent, for x `[n, …]`.
    fn apply(&self, backend: &B, arranged: &B::Tensor, bias: Option<&B::Tensor>, x: &B::Tensor) -> B::Tensor;

    /// Computes W_effᵀ gy, `[n, …]` of the shape of x.
    fn adjoint(&self, backend: &B, effective: &B::Tensor, gy: &B::Tensor) -> B::Tensor;

    /// Adds the gradient of W_eff, from that of the output, `[n, …]`, and the input, `[n, …]`.
    fn add_gradient(&self, backend: &B, sum: Grad<B>, gradient: &B::Tensor, input: &B::Tensor) -> B::Tensor;

    /// Returns the shape that samples of this shape are mapped to; `largest` is the largest height and width, in
    /// pixels, that σ bounds.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the layer does not take them.
    fn output_shape(&self, input: &[usize], largest: Option<[usize; 2]>) -> Result<Vec<usize>, ConfigError>;

    /// The shapes of u and v on samples of this shape, where they depend on it.
    fn vector_shapes(&self, input: &[usize]) -> Option<[Shape; 2]>;

    /// Counts the entries of W.
    fn elements(&self) -> u64;

    /// The layer in words, without κ.
    fn describe(&self) -> String;

    /// Describes the layer as a model file does.
    fn stage(&self, coefficient: Option<f64>) -> LayerStage;

    /// Bounds ‖W‖₂ from above, certainly, of the numbers of W on the host; on images up to the size that σ is taken on.
    fn norm_bound(&self, weight: &[f64], largest: Option<[usize; 2]>) -> f64;

    /// Describes the layer as a backend knows it.
    fn net_layer(&self, effective: &B::Tensor, arranged: &B::Tensor, bias: &B::Tensor) -> NetLayer<B::Tensor>;
}

/// The ε by which a sealed weight stays below κ, so that σ, computed with rounding, is not above it.
const SEAL: f64 = 8.0;
/// Attempts at a seal, with four times the margin each.
const TRIES: usize = 6;

/// An affine layer whose weight's norm is kept at or below a coefficient κ, or one that is free.
#[derive(Debug, Clone)]
pub struct Affine<B: Backend, K: Kind<B>> {
    pub(super) weight: B::Tensor,
    pub(super) bias: B::Tensor,
    pub(super) constraint: Option<Constraint<B>>,
    pub(super) kind: K,
}

impl<B: Backend, K: Kind<B>> Affine<B, K> {
    /// Builds a layer of zeros, to be filled from a file; constrained if there are a coefficient and the
    /// shapes of u and v.
    pub(super) fn of_zeros(
        backend: &B,
        kind: K,
        weight: &[usize],
        vectors: [Shape; 2],
        coefficient: Option<Coefficient>,
    ) -> Self {
        let zeros = |shape: Shape| backend.full(0.0, shape);
        let constraint = coefficient.map(|coefficient| {
            let [u, v] = vectors.map(zeros);
            Constraint::new(SingularPair::new(backend, u, v), coefficient)
        });
        Self { weight: zeros(weight.into()), bias: zeros([weight[0]].into()), constraint, kind }
    }

    /// Draws weights and biases uniform in ±1/√(inputs of an output) and runs the power iteration.
    pub(super) fn of_random(
        backend: &B,
        kind: K,
        weight: &[usize],
        vectors: [Shape; 2],
        coefficient: Option<Coefficient>,
        how: PowerIteration,
        key: Key,
    ) -> Self {
        let constraint = coefficient.map(|coefficient| {
            let [u, v] = vectors;
            Constraint::new(SingularPair::random(backend, u, v, key.named("singular vectors")), coefficient)
        });
        let fan_in = weight[1..].iter().product();
        let mut layer = Self {
            weight: uniform(backend, fan_in, key.named("weight"), weight.into()),
            bias: uniform(backend, fan_in, key.named("bias"), [weight[0]].into()),
            constraint,
            kind,
        };
        layer.update_spectral_norms(backend, how);
        layer
    }

    /// Multiplies the weights by a factor, and the biases of a free layer, and runs the power iteration again.
    pub(super) fn scale(&mut self, backend: &B, factor: f64, how: PowerIteration) {
        self.weight = backend.affine(self.weight.clone(), factor, 0.0);
        if self.constraint.is_none() {
            self.bias = backend.affine(self.bias.clone(), factor, 0.0);
        }
        self.update_spectral_norms(backend, how);
    }

    /// Sets the weight and the bias to zero. The singular vectors stay unit vectors, of which any belong to σ = 0: the
    /// gradient passes, and the next weight finds its own.
    pub fn clear(&mut self, backend: &B) {
        self.weight = backend.full(0.0, backend.shape(&self.weight));
        self.bias = backend.full(0.0, backend.shape(&self.bias));
    }

    /// The raw weight: `[o, i]`, of a convolution `[c_out, kh, kw, c_in]`.
    pub fn weight(&self) -> &B::Tensor {
        &self.weight
    }

    /// The singular vectors, of a constrained layer.
    pub fn pair(&self) -> Option<&SingularPair<B>> {
        self.constraint.as_ref().map(|c| &c.pair)
    }

    /// κ, of a constrained layer.
    pub fn coefficient(&self) -> Option<Coefficient> {
        self.constraint.as_ref().map(|c| c.coefficient)
    }

    /// W_eff, of the shape of W.
    pub fn normalised_weight(&self, backend: &B) -> B::Tensor {
        self.normalise(backend).effective
    }

    fn normalise(&self, backend: &B) -> Normalised<B> {
        let constrained = self.constrained();
        Normalised::new(backend, &self.weight, constrained.as_ref().map(|(c, operator)| (*c, &**operator)))
    }

    fn constrained(&self) -> Option<(&Constraint<B>, Box<dyn LinearOperator<B> + '_>)> {
        let constraint = self.constraint.as_ref()?;
        let (_, v) = constraint.pair.shapes();
        Some((constraint, self.kind.operator(&self.weight, v)))
    }

    /// W_eff on the host and the certified bound on its norm.
    fn certified(&self, backend: &B) -> Result<(Vec<f64>, f64), BackendError> {
        let weight = backend.download(&self.normalised_weight(backend))?;
        let weight: Vec<f64> = weight.into_iter().map(Element::to_f64).collect();
        let bound = self.kind.norm_bound(&weight, self.largest());
        Ok((weight, bound))
    }

    /// The height and width that σ is taken on.
    fn largest(&self) -> Option<[usize; 2]> {
        self.pair().map(|pair| pair.shapes().1).filter(|v| v.rank() == 4).map(|v| [v[1], v[2]])
    }
}

impl<B: Backend, K: Kind<B>> Module<B> for Affine<B, K> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        show("weight", Part::Tensor(&self.weight, Role::Weight));
        show("bias", Part::Tensor(&self.bias, Role::Parameter));
        if let Some(constraint) = &self.constraint {
            show("u", Part::Tensor(&constraint.pair.u, Role::Buffer));
            show("v", Part::Tensor(&constraint.pair.v, Role::Buffer));
        }
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        show("weight", PartMut::Tensor(&mut self.weight, Role::Weight));
        show("bias", PartMut::Tensor(&mut self.bias, Role::Parameter));
        if let Some(constraint) = &mut self.constraint {
            show("u", PartMut::Tensor(&mut constraint.pair.u, Role::Buffer));
            show("v", PartMut::Tensor(&mut constraint.pair.v, Role::Buffer));
        }
    }

    fn describe(&self) -> String {
        let kappa = self.coefficient().map_or(String::new(), |c| format!(", κ = {}", c.get()));
        format!("{}{kappa}", self.kind.describe())
    }

    fn update_spectral_norms(&mut self, backend: &B, how: PowerIteration) {
        let updated = self.constrained().map(|(constraint, operator)| constraint.updated(backend, &*operator, how));
        self.constraint = updated;
    }

    fn seal(&mut self, backend: &B) -> Result<(), BackendError> {
        let Some(constraint) = self.constraint.as_ref().filter(|c| c.norms.is_none()) else { return Ok(()) };
        let kappa = constraint.coefficient.get();
        let mut margin = SEAL * B::Elem::EPSILON;
        for _ in 0..TRIES {
            let stored = backend.download(&self.weight)?;
            let (effective, bound) = self.certified(backend)?;
            let as_stored = stored.iter().zip(&effective).all(|(stored, effective)| stored.to_f64() == *effective);
            // a bound that is not finite is of numbers that are not, and nothing helps
            if !bound.is_finite() || as_stored && bound <= kappa {
                break;
            }
            let factor = (kappa * (1.0 - margin) / bound).min(1.0);
            let sealed: Vec<B::Elem> = effective.iter().map(|w| B::Elem::from_f64(w * factor)).collect();
            self.weight = backend.upload(&sealed, backend.shape(&self.weight));
            margin *= 4.0;
        }
        Ok(())
    }

    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        if let Some((constraint, operator)) = self.constrained() {
            report(constraint.spectrum(backend, path, &*operator)?);
        }
        Ok(())
    }

    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        self.constraint.as_ref().map_or(Ok(()), |c| c.vector_lengths(backend, path, report))
    }
}

impl<B: Backend, K: Kind<B>> Layer<B> for Affine<B, K> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        let weight = self.normalise(backend);
        let arranged = self.kind.arrange(backend, &weight.effective);
        Box::new(PreparedAffine { arranged, weight, layer: self.clone() })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.kind.output_shape(input, self.largest())
    }

    fn resize(&mut self, backend: &B, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let outgrown = self.largest().is_some_and(|[h, w]| input.len() == 3 && (input[0] > h || input[1] > w));
        if let (true, Some([u, v]), Some(constraint)) =
            (outgrown, self.kind.vector_shapes(input), self.constraint.as_mut())
        {
            constraint.pair = SingularPair::random(backend, u, v, Key::new(0).named("resize"));
            self.update_spectral_norms(backend, PowerIteration::converge::<B>());
        }
        self.output_shape(input)
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        let pixels: usize = input.iter().rev().skip(1).product();
        self.kind.elements() * pixels as u64
    }

    fn lipschitz_bound(&self) -> f64 {
        self.constraint.as_ref().map_or(f64::INFINITY, |c| c.coefficient.get())
    }

    fn reached_lipschitz(&self, backend: &B) -> Result<f64, BackendError> {
        let mut reached = f64::INFINITY;
        self.spectra(backend, "", &mut |spectrum| reached = spectrum.effective())?;
        Ok(reached)
    }

    fn certified_bound(
        &self,
        backend: &B,
        path: &str,
        report: &mut dyn FnMut(WeightBounds),
    ) -> Result<Option<f64>, BackendError> {
        let Some((constraint, operator)) = self.constrained() else { return Ok(Some(self.certified(backend)?.1)) };
        let spectrum = constraint.spectrum(backend, path, &*operator)?;
        let euclidean = constraint.norms.is_none();
        let upper = if euclidean { Some(self.certified(backend)?.1) } else { None };
        let lower = spectrum.effective();
        report(WeightBounds { name: spectrum.name, lower, upper, coefficient: spectrum.coefficient });
        Ok(upper)
    }

    fn set_norms(&mut self, norms: &LayerNorms<B>) -> bool {
        let Some(constraint) = &mut self.constraint else { return false };
        constraint.norms = Some(norms.clone());
        true
    }

    fn stage(&self) -> Option<LayerStage> {
        Some(self.kind.stage(self.coefficient().map(Coefficient::get)))
    }
}

/// An affine layer ready for computing.
#[derive(Debug)]
struct PreparedAffine<B: Backend, K: Kind<B>> {
    layer: Affine<B, K>,
    weight: Normalised<B>,
    arranged: B::Tensor,
}

impl<B: Backend, K: Kind<B>> PreparedLayer<B> for PreparedAffine<B, K> {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let y = self.layer.kind.apply(backend, &self.arranged, Some(&self.layer.bias), &batch.x);
        (y, Saved::tensors(if keep == Derivatives::Second { vec![batch.x.clone()] } else { Vec::new() }))
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let dy = self.layer.kind.apply(backend, &self.arranged, None, dx);
        (dy, self.keep_tangent(backend, saved, dx))
    }

    fn keep_tangent(&self, _backend: &B, _saved: &Saved<B>, dx: &B::Tensor) -> Saved<B> {
        Saved::tensors(vec![dx.clone()])
    }

    fn vjp(&self, backend: &B, _saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        self.layer.kind.adjoint(backend, &self.weight.effective, &gy)
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
        let mut add = |gradient: &B::Tensor, input: &B::Tensor| {
            let sum = grads.trained[0].take();
            grads.trained[0] = Some(self.layer.kind.add_gradient(backend, sum, gradient, input));
        };
        add(&gy, &saved.tensors[0]);
        for (gdy, tangent) in gdy.iter().zip(tangents) {
            add(gdy, &tangent.tensors[0]);
        }
        accumulate(backend, &mut grads.trained[1], &backend.reduce(Reduce::Sum, Over::Channel, &gy));
        (self.vjp(backend, saved, gy), gdy.into_iter().map(|g| self.vjp(backend, saved, g)).collect())
    }

    fn net_layer(&self) -> Option<NetLayer<B::Tensor>> {
        Some(self.layer.kind.net_layer(&self.weight.effective, &self.arranged, &self.layer.bias))
    }

    fn is_constrained(&self) -> bool {
        self.layer.constraint.is_some()
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        grads[1].get_or_insert_with(|| backend.full(0.0, backend.shape(&self.layer.bias)));
        let constrained = self.layer.constrained();
        let constrained = constrained.as_ref().map(|(c, operator)| (*c, &**operator));
        self.weight.finish_gradient(backend, &self.layer.weight, constrained, &mut grads[0])
    }
}
