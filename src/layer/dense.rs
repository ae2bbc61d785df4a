//! The dense layer, which keeps what it gets: h ↦ [η₁h ; η₂φ(Wh + b)] (Perugachi-Diaz, Tomczak, Bhulai 2021, arXiv
//! 2102.02694, i-DenseNets, with their learned concatenation).
//!
//! Of raw K₁ and K₂, η̂ = softplus(K) + 0.1 and η = ℓ·η̂/‖η̂‖, so that η₁² + η₂² = ℓ² whatever is learned. What was there
//! comes first, what is new behind it, along the last axis: features of rows, channels of images.
//!
//! Invariant: ‖Δh'‖² ≤ (η₁² + η₂²L²)‖Δh‖² with L = Lip(φ)·‖W‖. For L ≤ 1 that is at most ℓ², which is the bound by
//! construction; the tighter one for the present K and σ is [`Layer::reached_lipschitz`]. Layers with ℓ = 1 do not expand, so
//! in a net of them only the last weight needs κ < 1; the paper has ℓ = 0.98.
//!
//! Derivatives: J dx = [η₁dx ; η₂ DW dx], Jᵀ gy = η₁g₁ + Wᵀ(η₂D g₂); η gets Σ h·g₁ and Σ φ·g₂, with tangents as well, and
//! ∂ηᵢ/∂η̂ⱼ = ℓ(δᵢⱼ/n − η̂ᵢη̂ⱼ/n³) with n = ‖η̂‖.

use resflow_backend::{Backend, BackendError, Binary, Element as _, Unary};

use super::activation::{finish_softplus, softplus};
use super::{ContextBias, Derivatives, Layer, LayerGrads, OrderGradients, PreparedLayer, Saved, Sequence, Told};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::lipschitz::WeightBounds;
use crate::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, accumulate};
use crate::reference::{ReferenceNet, numbers};
use crate::stage::{Concatenation, LayerStage};

/// The raw K of fresh layers.
const INITIAL: f64 = 1.0;
/// What η̂ stays above.
const LEAST: f64 = 0.1;

/// An affine layer and an activation, beside what they are given.
#[derive(Debug, Clone)]
pub struct DenseLayer<B: Backend> {
    /// The features or channels that enter.
    inputs: usize,
    /// φ(W· + b).
    net: Sequence<B>,
    /// K₁ and K₂, `[1]` each.
    raw: [B::Tensor; 2],
    concatenation: Concatenation,
}

impl<B: Backend> DenseLayer<B> {
    /// Puts what an affine layer and an activation make of h, which has so many features or channels, behind h, with K₁ =
    /// K₂ = 1.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] if ℓ is not above 0 and at most 1.
    pub fn new(
        backend: &B,
        inputs: usize,
        affine: Box<dyn Layer<B>>,
        activation: Box<dyn Layer<B>>,
        concatenation: Concatenation,
    ) -> Result<Self, ConfigError> {
        concatenation.check()?;
        let raw = [0, 1].map(|_| backend.full(INITIAL, [1].into()));
        Ok(Self { inputs, net: Sequence::new(vec![affine, activation]), raw, concatenation })
    }

    /// Adds a bias by the context before the activation, where there was none.
    #[must_use]
    pub fn with_context(self, told: Told) -> Self {
        let mut layers = self.net.layers().to_vec();
        layers.insert(1, Box::new(ContextBias::new(told)));
        Self { net: Sequence::new(layers), ..self }
    }

    /// Replaces K₁, of what was there, and K₂, of what is new, `[1]` each.
    #[must_use]
    pub fn with_raw(self, raw: [B::Tensor; 2]) -> Self {
        Self { raw, ..self }
    }

    /// The affine layer, then the activation.
    pub fn net(&self) -> &Sequence<B> {
        &self.net
    }

    fn role(&self) -> Role {
        if self.concatenation.learned { Role::Concatenation } else { Role::Buffer }
    }

    /// η̂ and η, `[1]` each.
    fn weights(&self, backend: &B) -> Weights<B> {
        let soft = self.raw.each_ref().map(|raw| softplus(backend, raw));
        let hat = soft.each_ref().map(|soft| backend.affine(soft.clone(), 1.0, LEAST));
        let [a, b] = hat.each_ref().map(|hat| backend.unary(Unary::Square, hat.clone()));
        let length = backend.unary(Unary::Sqrt, backend.axpy(1.0, &a, b));
        let eta = hat.each_ref().map(|hat| {
            let unit = backend.binary(Binary::Div, hat.clone(), &length);
            backend.affine(unit, self.concatenation.bound, 0.0)
        });
        Weights { soft, length, eta, bound: self.concatenation.bound }
    }

    /// The features that the net gives of rows, or of one pixel; `None` of a net that takes neither.
    fn growth(&self) -> Option<usize> {
        let pixel = [1, 1, self.inputs];
        let new = [&pixel[2..], &pixel].into_iter().find_map(|one| self.net.output_shape(one).ok());
        new.and_then(|shape| shape.last().copied())
    }

    /// η₁ and η₂.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    pub fn shares(&self, backend: &B) -> Result<[f64; 2], BackendError> {
        let [a, b] = self.weights(backend).eta;
        let eta = backend.download(&backend.concat(&[&a, &b], 0))?;
        Ok([eta[0].to_f64(), eta[1].to_f64()])
    }
}

const RAW: [&str; 2] = ["skip", "growth"];

impl<B: Backend> Module<B> for DenseLayer<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        for (name, raw) in RAW.into_iter().zip(&self.raw) {
            show(name, Part::Tensor(raw, self.role()));
        }
        show("net", Part::Module(&self.net));
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        let role = self.role();
        for (name, raw) in RAW.into_iter().zip(&mut self.raw) {
            show(name, PartMut::Tensor(raw, role));
        }
        show("net", PartMut::Module(&mut self.net));
    }

    fn describe(&self) -> String {
        format!("what enters, and behind it {{{}}}", self.net.describe())
    }
}

/// The shape of samples with so many channels, and what is new behind them.
fn behind(inputs: usize, input: &[usize], new: &[usize]) -> Result<Vec<usize>, ConfigError> {
    match (input, new) {
        ([pixels @ .., c], [same @ .., more]) if pixels == same && *c == inputs => {
            Ok([pixels, &[c.saturating_add(*more)]].concat())
        }
        _ => Err(ConfigError::Inconsistent(format!(
            "a dense layer puts samples of shape {new:?} behind its {inputs} features, its input is of shape {input:?}"
        ))),
    }
}

impl<B: Backend> Layer<B> for DenseLayer<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        let weights = self.weights(backend);
        Box::new(PreparedDense {
            inputs: self.inputs,
            net: self.net.prepare(backend),
            factors: self.growth().map(|new| weights.factors(backend, [self.inputs, new])),
            weights,
            learned: self.concatenation.learned,
        })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        behind(self.inputs, input, &self.net.output_shape(input)?)
    }

    fn resize(&mut self, backend: &B, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        behind(self.inputs, input, &self.net.resize(backend, input)?)
    }

    fn activations(&self, input: &[usize]) -> usize {
        self.net.activations(input) + self.output_shape(input).map_or(0, |shape| shape.iter().product())
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        self.net.multiply_adds(input)
    }

    fn lipschitz_bound(&self) -> f64 {
        self.concatenation.bound * self.net.lipschitz_bound().max(1.0)
    }

    fn reached_lipschitz(&self, backend: &B) -> Result<f64, BackendError> {
        let [skip, growth] = self.shares(backend)?;
        Ok(skip.hypot(growth * self.net.reached_lipschitz(backend)?))
    }

    fn certified_bound(
        &self,
        backend: &B,
        path: &str,
        report: &mut dyn FnMut(WeightBounds),
    ) -> Result<Option<f64>, BackendError> {
        let [skip, growth] = self.shares(backend)?;
        let new = self.net.certified_bound(backend, &format!("{path}.net"), report)?;
        // a product, two squares, a sum and a root, each rounded to nearest: four units of rounding are more than all of them
        Ok(new.map(|new| (skip * skip + (growth * new).powi(2)).sqrt() * (1.0 + 4.0 * f64::EPSILON)))
    }

    fn told(&self) -> usize {
        self.net.told()
    }

    fn stage(&self) -> Option<LayerStage> {
        let (affine, activation, context) = match self.net.layers() {
            [affine, activation] => (affine, activation, false),
            [affine, _, activation] => (affine, activation, true),
            _ => return None,
        };
        let LayerStage::Activation(activation) = activation.stage()? else { return None };
        let concatenation = self.concatenation;
        Some(match affine.stage()? {
            LayerStage::Linear { inputs, outputs, coefficient } => {
                LayerStage::Dense { kernel: None, inputs, outputs, coefficient, activation, concatenation, context }
            }
            LayerStage::Convolution { kernel, inputs, outputs, coefficient } => LayerStage::Dense {
                kernel: Some(kernel),
                inputs,
                outputs,
                coefficient,
                activation,
                concatenation,
                context,
            },
            _ => return None,
        })
    }
}

/// η and what its gradient needs.
#[derive(Debug)]
struct Weights<B: Backend> {
    /// softplus(K), `[1]` each.
    soft: [B::Tensor; 2],
    /// n, `[1]`.
    length: B::Tensor,
    /// η, `[1]` each.
    eta: [B::Tensor; 2],
    /// ℓ.
    bound: f64,
}

impl<B: Backend> Weights<B> {
    /// η₁ for each feature that enters, η₂ for each that is new, `[c]`.
    fn factors(&self, backend: &B, features: [usize; 2]) -> B::Tensor {
        let [skip, growth] =
            [0, 1].map(|i| backend.binary(Binary::Mul, backend.full(1.0, [features[i]].into()), &self.eta[i]));
        backend.concat(&[&skip, &growth], 0)
    }
}

// what is kept: for the second derivative h and φ(Wh + b), of a tangent dx and that behind it; below it what the net keeps
#[derive(Debug)]
struct PreparedDense<B: Backend> {
    inputs: usize,
    net: Box<dyn PreparedLayer<B>>,
    weights: Weights<B>,
    /// The weights of each feature behind the layer, where their number is known beforehand.
    factors: Option<B::Tensor>,
    learned: bool,
}

impl<B: Backend> PreparedDense<B> {
    /// [η₁h ; η₂new].
    fn join(&self, backend: &B, h: &B::Tensor, new: &B::Tensor) -> B::Tensor {
        let axis = backend.shape(h).rank() - 1;
        self.weigh(backend, backend.concat(&[h, new], axis))
    }

    /// A cotangent's two parts: of what entered, and of what is new.
    fn split(&self, backend: &B, g: &B::Tensor) -> [B::Tensor; 2] {
        let shape = backend.shape(g);
        let (axis, inputs) = (shape.rank() - 1, self.inputs);
        [backend.narrow(g, axis, 0, inputs), backend.narrow(g, axis, inputs, shape.channels() - inputs)]
    }

    /// The two parts of η times a cotangent.
    fn split_weighted(&self, backend: &B, g: B::Tensor) -> [B::Tensor; 2] {
        self.split(backend, &self.weigh(backend, g))
    }

    /// η times what has the features behind the layer.
    fn weigh(&self, backend: &B, x: B::Tensor) -> B::Tensor {
        if let Some(factors) = &self.factors {
            return backend.binary(Binary::Mul, x, factors);
        }
        let new = backend.shape(&x).channels() - self.inputs;
        backend.binary(Binary::Mul, x, &self.weights.factors(backend, [self.inputs, new]))
    }
}

impl<B: Backend> PreparedLayer<B> for PreparedDense<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let (new, saved) = self.net.forward(backend, batch, keep);
        let y = self.join(backend, &batch.x, &new);
        let tensors = if keep == Derivatives::Second { vec![batch.x.clone(), new] } else { Vec::new() };
        (y, Saved { tensors, parts: vec![saved] })
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let (new, kept) = self.net.jvp(backend, &saved.parts[0], dx);
        let dy = self.join(backend, dx, &new);
        (dy, Saved { tensors: vec![dx.clone(), new], parts: vec![kept] })
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        let [kept, new] = self.split_weighted(backend, gy);
        let through = self.net.vjp(backend, &saved.parts[0], new);
        backend.axpy(1.0, &through, kept)
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
        let LayerGrads { trained, context } = grads;
        let (own, inner) = trained.split_at_mut(if self.learned { 2 } else { 0 });
        let (mut skips, mut news) = (Vec::new(), Vec::new());
        let values = std::iter::once(&saved.tensors).chain(tangents.iter().map(|t| &t.tensors));
        for (g, values) in std::iter::once(gy).chain(gdy).zip(values) {
            if self.learned {
                for ((grad, part), value) in own.iter_mut().zip(&self.split(backend, &g)).zip(values) {
                    accumulate(backend, grad, &backend.dot(part, value));
                }
            }
            let [skip, new] = self.split_weighted(backend, g);
            skips.push(skip);
            news.push(new);
        }
        let kept: Vec<_> = tangents.iter().map(|t| &t.parts[0]).collect();
        let of_new = news.remove(0);
        let grads = LayerGrads { trained: inner, context };
        let (gx, gdx) = self.net.tangent_vjp(backend, &saved.parts[0], &kept, of_new, news, grads);
        let mut skips = skips.into_iter();
        let gx = backend.axpy(1.0, &gx, skips.next().expect("that of gy"));
        (gx, skips.zip(&gdx).map(|(skip, g)| backend.axpy(1.0, g, skip)).collect())
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceNet>, BackendError> {
        let [skip, growth] = &self.weights.eta;
        let eta = numbers(backend, &backend.concat(&[skip, growth], 0))?;
        Ok(self.net.reference(backend)?.map(|net| ReferenceNet::dense([eta[0], eta[1]], net)))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        let (own, inner) = grads.split_at_mut(if self.learned { 2 } else { 0 });
        if let [skip, growth] = own {
            let Weights { soft, length, eta, bound } = &self.weights;
            // with e = η̂/n = η/ℓ: η̂ gets ℓ/n·(η̄ − e·(e·η̄))
            let unit = eta.each_ref().map(|eta| backend.affine(eta.clone(), 1.0 / bound, 0.0));
            let zero = || backend.full(0.0, [1].into());
            let bars = [skip.take().unwrap_or_else(zero), growth.take().unwrap_or_else(zero)];
            let along = |i: usize| backend.binary(Binary::Mul, bars[i].clone(), &unit[i]);
            let along = backend.axpy(1.0, &along(0), along(1));
            for (i, (grad, soft)) in [skip, growth].into_iter().zip(soft).enumerate() {
                let turned = backend.axpy(-1.0, &backend.binary(Binary::Mul, unit[i].clone(), &along), bars[i].clone());
                let of_hat = backend.affine(backend.binary(Binary::Div, turned, length), *bound, 0.0);
                *grad = Some(of_hat);
                finish_softplus(backend, soft, grad);
            }
        }
        self.net.finish_gradients(backend, inner);
        [None, None]
    }
}
