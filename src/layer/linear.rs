//! The Lipschitz-constrained linear layer y = W_eff x + b, on the last axis of its rows: of images it is a 1 × 1 convolution.
//!
//! ‖W_eff‖₂ ≤ κ as far as the power iteration has converged; see [`lipschitz`](crate::lipschitz).

use resflow_backend::{Backend, BackendError, Element as _, Key, Noise, Over, Reduce, Shape};

use super::normalised::{LayerNorms, Normalised, OrderGradients, refreshed, vector_lengths};
use super::{Keep, Layer, PreparedLayer, Role, Saved, Slot, Spectrum, Visitor, VisitorMut, accumulate};
use crate::error::ConfigError;
use crate::lipschitz::{Coefficient, DenseOperator, Refresh, SingularPair};

/// A linear layer whose spectral norm is kept at or below a coefficient κ.
#[derive(Debug, Clone)]
pub struct LipschitzLinear<B: Backend> {
    weight: B::Tensor,
    bias: B::Tensor,
    pair: SingularPair<B>,
    coefficient: Coefficient,
    /// Other norms than the 2-norm.
    norms: Option<LayerNorms<B>>,
}

impl<B: Backend> LipschitzLinear<B> {
    /// From stored tensors: weight `[o, i]`, bias `[o]` and the singular pair.
    ///
    /// # Errors
    /// If the shapes do not belong together.
    pub fn from_parts(
        backend: &B,
        weight: B::Tensor,
        bias: B::Tensor,
        pair: SingularPair<B>,
        coefficient: Coefficient,
    ) -> Result<Self, ConfigError> {
        let (w, b) = (backend.shape(&weight), backend.shape(&bias));
        let (u, v) = (backend.shape(&pair.u), backend.shape(&pair.v));
        if w.rank() != 2 || b[..] != w[..1] || u[..] != w[..1] || v[..] != w[1..] {
            return Err(ConfigError::Inconsistent(format!(
                "a linear layer with weight {w}, bias {b}, u {u} and v {v}: expected [o, i], [o], [o] and [i]"
            )));
        }
        Ok(Self { weight, bias, pair, coefficient, norms: None })
    }

    /// All zeros, to be filled from a file.
    pub fn zeros(backend: &B, inputs: usize, outputs: usize, coefficient: Coefficient) -> Self {
        let zeros = |shape: Shape| backend.full(0.0, shape);
        let pair = SingularPair::new(backend, zeros([outputs].into()), zeros([inputs].into()));
        Self { weight: zeros([outputs, inputs].into()), bias: zeros([outputs].into()), pair, coefficient, norms: None }
    }

    /// Weights and biases uniform in ±1/√inputs; the power iteration converged.
    pub fn initialise(backend: &B, inputs: usize, outputs: usize, coefficient: Coefficient, key: Key) -> Self {
        let bound = 1.0 / (inputs.max(1) as f64).sqrt();
        let uniform =
            |key: Key, shape: Shape| backend.affine(backend.noise(key, Noise::Uniform, 0, shape), 2.0 * bound, -bound);
        let weight = uniform(key.named("weight"), [outputs, inputs].into());
        let bias = uniform(key.named("bias"), [outputs].into());
        let pair = SingularPair::random(backend, [outputs], [inputs], key.named("singular vectors"));
        let mut layer = Self { weight, bias, pair, coefficient, norms: None };
        layer.refresh(backend, Refresh::converge::<B>());
        layer
    }

    /// Multiplies the weights by a factor and converges the power iteration again.
    pub fn scale_weight(&mut self, backend: &B, factor: f64) {
        self.weight = backend.affine(self.weight.clone(), factor, 0.0);
        self.refresh(backend, Refresh::converge::<B>());
    }

    /// The raw weight, `[o, i]`.
    pub fn weight(&self) -> &B::Tensor {
        &self.weight
    }

    /// The singular vectors.
    pub fn pair(&self) -> &SingularPair<B> {
        &self.pair
    }

    /// κ.
    pub fn coefficient(&self) -> Coefficient {
        self.coefficient
    }

    /// W_eff, `[o, i]`.
    pub fn normalised_weight(&self, backend: &B) -> B::Tensor {
        self.normalised(backend).effective
    }

    fn normalised(&self, backend: &B) -> Normalised<B> {
        Normalised::new(backend, &self.weight, &self.operator(), &self.pair, self.coefficient, self.norms.as_ref())
    }

    fn operator(&self) -> DenseOperator<'_, B> {
        let (outputs, inputs) = self.extents();
        DenseOperator::of(&self.weight, [outputs, inputs])
    }

    /// (outputs, inputs).
    fn extents(&self) -> (usize, usize) {
        let (outputs, inputs) = self.pair.shapes();
        (outputs.elements(), inputs.elements())
    }
}

impl<B: Backend> Layer<B> for LipschitzLinear<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        visitor(&format!("{path}.weight"), &self.weight, Role::Weight);
        visitor(&format!("{path}.bias"), &self.bias, Role::Parameter);
        visitor(&format!("{path}.u"), &self.pair.u, Role::Buffer);
        visitor(&format!("{path}.v"), &self.pair.v, Role::Buffer);
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        visitor(&format!("{path}.weight"), &mut self.weight, Role::Weight);
        visitor(&format!("{path}.bias"), &mut self.bias, Role::Parameter);
        visitor(&format!("{path}.u"), &mut self.pair.u, Role::Buffer);
        visitor(&format!("{path}.v"), &mut self.pair.v, Role::Buffer);
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        let weight = self.normalised(backend);
        let transposed = backend.permute(&weight.effective, &[1, 0]);
        Box::new(PreparedLinear { transposed, weight, layer: self.clone() })
    }

    fn refresh(&mut self, backend: &B, how: Refresh) {
        self.pair = refreshed(backend, &self.pair, &self.operator(), self.norms.as_ref(), how);
    }

    fn output(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let (outputs, inputs) = self.extents();
        match input.split_last() {
            Some((last, others)) if *last == inputs => Ok([others, &[outputs]].concat()),
            _ => Err(ConfigError::Inconsistent(format!(
                "a linear layer of {inputs} inputs cannot take rows of shape {input:?}"
            ))),
        }
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        let (outputs, inputs) = self.extents();
        let pixels: usize = input.iter().rev().skip(1).product();
        (pixels * outputs * inputs) as u64
    }

    fn lipschitz_bound(&self) -> f64 {
        self.coefficient.get()
    }

    fn set_norms(&mut self, norms: &LayerNorms<B>) -> bool {
        self.norms = Some(norms.clone());
        true
    }

    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        let sigma = backend.download(&self.pair.sigma(backend, &self.operator()))?[0].to_f64();
        report(Spectrum { name: format!("{path}.weight"), sigma, coefficient: self.coefficient.get() });
        Ok(())
    }

    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        let [u, v] = vector_lengths(backend, &self.pair, self.norms.as_ref())?;
        report(format!("{path}.u"), u);
        report(format!("{path}.v"), v);
        Ok(())
    }

    fn describe(&self, _backend: &B) -> String {
        let (outputs, inputs) = self.extents();
        format!("linear {inputs} → {outputs}, κ = {}", self.coefficient.get())
    }

    fn boxed_clone(&self) -> Box<dyn Layer<B>> {
        Box::new(self.clone())
    }
}

/// A linear layer ready for computing.
#[derive(Debug)]
struct PreparedLinear<B: Backend> {
    layer: LipschitzLinear<B>,
    weight: Normalised<B>,
    transposed: B::Tensor,
}

/// Rows as a matrix: all axes but the last together.
fn matrix<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    if shape.rank() == 2 {
        return x.clone();
    }
    let count: usize = shape.iter().rev().skip(1).product();
    backend.reshape(x, [count, shape.channels()].into())
}

impl<B: Backend> PreparedLinear<B> {
    /// x·m on the last axis of x, by a product of matrices.
    fn by_rows(backend: &B, x: &B::Tensor, product: impl FnOnce(&B::Tensor) -> B::Tensor) -> B::Tensor {
        let shape = backend.shape(x);
        let y = product(&matrix(backend, x));
        if shape.rank() == 2 {
            return y;
        }
        let shape = shape.with_channels(backend.shape(&y)[1]);
        backend.reshape(&y, shape)
    }
}

impl<B: Backend> PreparedLayer<B> for PreparedLinear<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, keep: Keep) -> (B::Tensor, Saved<B>) {
        let y = Self::by_rows(backend, x, |x| backend.linear(x, &self.transposed, &self.layer.bias));
        (y, Saved::tensors(if keep == Keep::Second { vec![x.clone()] } else { Vec::new() }))
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let dy = Self::by_rows(backend, dx, |dx| backend.matmul(dx, false, &self.transposed, false));
        (dy, self.keep_tangent(backend, saved, dx))
    }

    fn keep_tangent(&self, _backend: &B, _saved: &Saved<B>, dx: &B::Tensor) -> Saved<B> {
        Saved::tensors(vec![dx.clone()])
    }

    fn vjp(&self, backend: &B, _saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        Self::by_rows(backend, &gy, |gy| backend.matmul(gy, false, &self.weight.effective, false))
    }

    fn tangent_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        slots: &mut [Slot<B>],
    ) -> (B::Tensor, Vec<B::Tensor>) {
        let mut add = |gradient: &B::Tensor, input: &B::Tensor| {
            let (gradient, input) = (matrix(backend, gradient), matrix(backend, input));
            slots[0] = Some(match slots[0].take() {
                None => backend.matmul(&gradient, true, &input, false),
                Some(sum) => backend.matmul_add(sum, &gradient, true, &input, false),
            });
        };
        add(&gy, &saved.tensors[0]);
        for (gdy, tangent) in gdy.iter().zip(tangents) {
            add(gdy, &tangent.tensors[0]);
        }
        accumulate(backend, &mut slots[1], &backend.reduce(Reduce::Sum, Over::Channel, &gy));
        (self.vjp(backend, saved, gy), gdy.into_iter().map(|g| self.vjp(backend, saved, g)).collect())
    }

    fn is_constrained(&self) -> bool {
        true
    }

    fn slots(&self) -> usize {
        2
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) -> OrderGradients<B> {
        let LipschitzLinear { weight, bias, pair, coefficient, .. } = &self.layer;
        slots[1].get_or_insert_with(|| backend.full(0.0, backend.shape(bias)));
        self.weight.pull_back(backend, weight, &self.layer.operator(), pair, *coefficient, &mut slots[0])
    }
}
