//! The Lipschitz-constrained linear layer y = W_eff x + b, on the last axis of its rows: of images it is a 1 × 1 convolution.
//!
//! ‖W_eff‖₂ ≤ κ as far as the power iteration has converged; see [`lipschitz`](crate::lipschitz). A free layer has
//! W_eff = W and no singular vectors.

use resflow_backend::{Backend, BackendError, Key, Over, Reduce, Shape};

use super::normalised::{Constraint, LayerNorms, Normalised, OrderGradients, uniform};
use super::{Keep, Layer, PreparedLayer, Role, Saved, Slot, Spectrum, Visitor, VisitorMut, accumulate};
use crate::error::ConfigError;
use crate::lipschitz::{Coefficient, DenseOperator, Refresh, SingularPair};

/// A linear layer whose spectral norm is kept at or below a coefficient κ, or one that is free.
#[derive(Debug, Clone)]
pub struct LipschitzLinear<B: Backend> {
    weight: B::Tensor,
    bias: B::Tensor,
    constraint: Option<Constraint<B>>,
    /// (outputs, inputs).
    extents: [usize; 2],
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
        Ok(Self { weight, bias, constraint: Some(Constraint::new(pair, coefficient)), extents: [w[0], w[1]] })
    }

    /// A free layer from stored tensors: weight `[o, i]` and bias `[o]`.
    ///
    /// # Errors
    /// If the shapes do not belong together.
    pub fn free(backend: &B, weight: B::Tensor, bias: B::Tensor) -> Result<Self, ConfigError> {
        let (w, b) = (backend.shape(&weight), backend.shape(&bias));
        if w.rank() != 2 || b[..] != w[..1] {
            return Err(ConfigError::Inconsistent(format!(
                "a linear layer with weight {w} and bias {b}: expected [o, i] and [o]"
            )));
        }
        Ok(Self { weight, bias, constraint: None, extents: [w[0], w[1]] })
    }

    /// All zeros, to be filled from a file; free without a coefficient.
    pub fn zeros(backend: &B, inputs: usize, outputs: usize, coefficient: impl Into<Option<Coefficient>>) -> Self {
        let zeros = |shape: Shape| backend.full(0.0, shape);
        let constraint = coefficient.into().map(|coefficient| {
            let pair = SingularPair::new(backend, zeros([outputs].into()), zeros([inputs].into()));
            Constraint::new(pair, coefficient)
        });
        let (weight, bias) = (zeros([outputs, inputs].into()), zeros([outputs].into()));
        Self { weight, bias, constraint, extents: [outputs, inputs] }
    }

    /// Weights and biases uniform in ±1/√inputs; the power iteration converged. Free without a coefficient.
    pub fn initialise(
        backend: &B,
        inputs: usize,
        outputs: usize,
        coefficient: impl Into<Option<Coefficient>>,
        key: Key,
    ) -> Self {
        let constraint = coefficient.into().map(|coefficient| {
            let pair = SingularPair::random(backend, [outputs], [inputs], key.named("singular vectors"));
            Constraint::new(pair, coefficient)
        });
        let weight = uniform(backend, inputs, key.named("weight"), [outputs, inputs].into());
        let bias = uniform(backend, inputs, key.named("bias"), [outputs].into());
        let mut layer = Self { weight, bias, constraint, extents: [outputs, inputs] };
        layer.refresh(backend, Refresh::converge::<B>());
        layer
    }

    /// Multiplies the weights by a factor, and the biases of a free layer, and converges the power iteration again.
    pub fn scale_weight(&mut self, backend: &B, factor: f64) {
        self.weight = backend.affine(self.weight.clone(), factor, 0.0);
        if self.constraint.is_none() {
            self.bias = backend.affine(self.bias.clone(), factor, 0.0);
        }
        self.refresh(backend, Refresh::converge::<B>());
    }

    /// The raw weight, `[o, i]`.
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

    /// W_eff, `[o, i]`.
    pub fn normalised_weight(&self, backend: &B) -> B::Tensor {
        Normalised::new(backend, &self.weight, self.constrained()).effective
    }

    fn constrained(&self) -> Option<(&Constraint<B>, DenseOperator<'_, B>)> {
        self.constraint.as_ref().map(|c| (c, DenseOperator::of(&self.weight, self.extents)))
    }
}

impl<B: Backend> Layer<B> for LipschitzLinear<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        visitor(&format!("{path}.weight"), &self.weight, Role::Weight);
        visitor(&format!("{path}.bias"), &self.bias, Role::Parameter);
        if let Some(constraint) = &self.constraint {
            constraint.visit(path, visitor);
        }
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        visitor(&format!("{path}.weight"), &mut self.weight, Role::Weight);
        visitor(&format!("{path}.bias"), &mut self.bias, Role::Parameter);
        if let Some(constraint) = &mut self.constraint {
            constraint.visit_mut(path, visitor);
        }
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        let weight = Normalised::new(backend, &self.weight, self.constrained());
        let transposed = backend.permute(&weight.effective, &[1, 0]);
        Box::new(PreparedLinear { transposed, weight, layer: self.clone() })
    }

    fn refresh(&mut self, backend: &B, how: Refresh) {
        let renewed = self.constrained().map(|(constraint, operator)| constraint.refreshed(backend, &operator, how));
        self.constraint = renewed;
    }

    fn output(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let [outputs, inputs] = self.extents;
        match input.split_last() {
            Some((last, others)) if *last == inputs => Ok([others, &[outputs]].concat()),
            _ => Err(ConfigError::Inconsistent(format!(
                "a linear layer of {inputs} inputs cannot take rows of shape {input:?}"
            ))),
        }
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        let [outputs, inputs] = self.extents;
        let pixels: usize = input.iter().rev().skip(1).product();
        (pixels * outputs * inputs) as u64
    }

    fn lipschitz_bound(&self) -> f64 {
        self.constraint.as_ref().map_or(f64::INFINITY, |c| c.coefficient.get())
    }

    fn set_norms(&mut self, norms: &LayerNorms<B>) -> bool {
        let Some(constraint) = &mut self.constraint else { return false };
        constraint.norms = Some(norms.clone());
        true
    }

    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        if let Some((constraint, operator)) = self.constrained() {
            report(constraint.spectrum(backend, path, &operator)?);
        }
        Ok(())
    }

    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        self.constraint.as_ref().map_or(Ok(()), |c| c.vector_lengths(backend, path, report))
    }

    fn describe(&self, _backend: &B) -> String {
        let [outputs, inputs] = self.extents;
        let kappa = self.coefficient().map_or(String::new(), |c| format!(", κ = {}", c.get()));
        format!("linear {inputs} → {outputs}{kappa}")
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
pub(crate) fn matrix<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    if shape.rank() == 2 {
        return x.clone();
    }
    let count: usize = shape.iter().rev().skip(1).product();
    backend.reshape(x, [count, shape.channels()].into())
}

/// x·m on the last axis of x, by a product of matrices.
pub(crate) fn by_rows<B: Backend>(
    backend: &B,
    x: &B::Tensor,
    product: impl FnOnce(&B::Tensor) -> B::Tensor,
) -> B::Tensor {
    let shape = backend.shape(x);
    let y = product(&matrix(backend, x));
    if shape.rank() == 2 {
        return y;
    }
    let shape = shape.with_channels(backend.shape(&y)[1]);
    backend.reshape(&y, shape)
}

impl<B: Backend> PreparedLayer<B> for PreparedLinear<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, keep: Keep) -> (B::Tensor, Saved<B>) {
        let y = by_rows(backend, x, |x| backend.linear(x, &self.transposed, &self.layer.bias));
        (y, Saved::tensors(if keep == Keep::Second { vec![x.clone()] } else { Vec::new() }))
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let dy = by_rows(backend, dx, |dx| backend.matmul(dx, false, &self.transposed, false));
        (dy, self.keep_tangent(backend, saved, dx))
    }

    fn keep_tangent(&self, _backend: &B, _saved: &Saved<B>, dx: &B::Tensor) -> Saved<B> {
        Saved::tensors(vec![dx.clone()])
    }

    fn vjp(&self, backend: &B, _saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        by_rows(backend, &gy, |gy| backend.matmul(gy, false, &self.weight.effective, false))
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

    fn product(&self) -> Option<[&B::Tensor; 2]> {
        Some([&self.transposed, &self.layer.bias])
    }

    fn is_constrained(&self) -> bool {
        self.layer.constraint.is_some()
    }

    fn slots(&self) -> usize {
        2
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) -> OrderGradients<B> {
        slots[1].get_or_insert_with(|| backend.full(0.0, backend.shape(&self.layer.bias)));
        self.weight.pull_back(backend, &self.layer.weight, self.layer.constrained(), &mut slots[0])
    }
}
