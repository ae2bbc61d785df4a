//! The Lipschitz-constrained linear layer: y = W_eff x + b, W_eff = W / max(1, σ/κ).
//!
//! σ = uᵀWv with u, v kept by power iteration (Miyato et al. 2018; the soft normalisation is Gouk et al. 2018 and
//! Behrmann et al. 2019, eq. 8), so that ‖W_eff‖₂ ≤ κ as far as u, v have converged. In the gradient u and v are constants,
//! ∂σ/∂W = uvᵀ, so where σ > κ
//!
//! W̄ = κ/σ · W̄_eff − κ/σ² · ⟨W̄_eff, W⟩ · uvᵀ.

use resflow_backend::{Backend, BackendError, Binary, Element as _, Key, Noise, Over, Reduce, Shape};

use super::{Keep, Layer, PreparedLayer, Role, Saved, Slot, Spectrum, Visitor, VisitorMut, accumulate};
use crate::error::ConfigError;
use crate::lipschitz::{Coefficient, Refresh, SingularPair};

/// A linear layer whose spectral norm is kept at or below a coefficient κ.
#[derive(Debug, Clone)]
pub struct LipschitzLinear<B: Backend> {
    weight: B::Tensor,
    bias: B::Tensor,
    pair: SingularPair<B>,
    coefficient: Coefficient,
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
        Ok(Self { weight, bias, pair, coefficient })
    }

    /// All zeros, to be filled from a file.
    pub fn zeros(backend: &B, inputs: usize, outputs: usize, coefficient: Coefficient) -> Self {
        let zeros = |shape: Shape| backend.full(0.0, shape);
        let pair = SingularPair::new(backend, zeros([outputs].into()), zeros([inputs].into()));
        Self { weight: zeros([outputs, inputs].into()), bias: zeros([outputs].into()), pair, coefficient }
    }

    /// Weights and biases uniform in ±1/√inputs; the power iteration converged.
    pub fn initialise(backend: &B, inputs: usize, outputs: usize, coefficient: Coefficient, key: Key) -> Self {
        let bound = 1.0 / (inputs.max(1) as f64).sqrt();
        let uniform =
            |key: Key, shape: Shape| backend.affine(backend.noise(key, Noise::Uniform, 0, shape), 2.0 * bound, -bound);
        let weight = uniform(key.named("weight"), [outputs, inputs].into());
        let bias = uniform(key.named("bias"), [outputs].into());
        let pair = SingularPair::random(backend, outputs, inputs, key.named("singular vectors"));
        let mut layer = Self { weight, bias, pair, coefficient };
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
        let sigma = self.pair.sigma(backend, &self.weight);
        backend.binary(Binary::Mul, self.weight.clone(), &self.coefficient.factor(backend, &sigma))
    }

    fn extents(&self, backend: &B) -> (usize, usize) {
        let shape = backend.shape(&self.weight);
        (shape[0], shape[1])
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
        let sigma = self.pair.sigma(backend, &self.weight);
        let factor = self.coefficient.factor(backend, &sigma);
        let effective = backend.binary(Binary::Mul, self.weight.clone(), &factor);
        Box::new(PreparedLinear {
            transposed: backend.permute(&effective, &[1, 0]),
            effective,
            layer: self.clone(),
            sigma,
            factor,
        })
    }

    fn refresh(&mut self, backend: &B, how: Refresh) {
        self.pair = self.pair.refreshed(backend, &self.weight, how);
    }

    fn output(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        // the shape behind a handle needs no backend state; ask the stored vectors
        let (outputs, inputs) = self.pair.extents();
        if input == [inputs] {
            Ok(vec![outputs])
        } else {
            Err(ConfigError::Inconsistent(format!(
                "a linear layer of {inputs} inputs cannot take rows of shape {input:?}"
            )))
        }
    }

    fn multiply_adds(&self, _input: &[usize]) -> u64 {
        let (outputs, inputs) = self.pair.extents();
        (outputs * inputs) as u64
    }

    fn lipschitz_bound(&self) -> f64 {
        self.coefficient.get()
    }

    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        let sigma = backend.download(&self.pair.sigma(backend, &self.weight))?[0].to_f64();
        report(Spectrum { name: format!("{path}.weight"), sigma, coefficient: self.coefficient.get() });
        Ok(())
    }

    fn describe(&self, backend: &B) -> String {
        let (outputs, inputs) = self.extents(backend);
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
    effective: B::Tensor,
    transposed: B::Tensor,
    sigma: B::Tensor,
    factor: B::Tensor,
}

impl<B: Backend> PreparedLayer<B> for PreparedLinear<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, keep: Keep) -> (B::Tensor, Saved<B>) {
        let y = backend.linear(x, &self.transposed, &self.layer.bias);
        (y, Saved::tensors(if keep == Keep::Second { vec![x.clone()] } else { Vec::new() }))
    }

    fn jvp(&self, backend: &B, _saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        (backend.matmul(dx, false, &self.transposed, false), Saved::tensors(vec![dx.clone()]))
    }

    fn keep_tangent(&self, _backend: &B, _saved: &Saved<B>, dx: &B::Tensor) -> Saved<B> {
        Saved::tensors(vec![dx.clone()])
    }

    fn vjp(&self, backend: &B, _saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        backend.matmul(&gy, false, &self.effective, false)
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
            slots[0] = Some(match slots[0].take() {
                None => backend.matmul(gradient, true, input, false),
                Some(sum) => backend.matmul_add(sum, gradient, true, input, false),
            });
        };
        add(&gy, &saved.tensors[0]);
        for (gdy, tangent) in gdy.iter().zip(tangents) {
            add(gdy, &tangent.tensors[0]);
        }
        accumulate(backend, &mut slots[1], &backend.reduce(Reduce::Sum, Over::Channel, &gy));
        let back = |g: &B::Tensor| backend.matmul(g, false, &self.effective, false);
        (back(&gy), gdy.iter().map(back).collect())
    }

    fn slots(&self) -> usize {
        2
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) {
        let (weight, pair) = (&self.layer.weight, &self.layer.pair);
        if let Some(effective) = slots[0].take() {
            let coefficient = self.layer.coefficient;
            let inner = backend.dot(&effective, weight);
            let shrink = coefficient.pull_back_weight(backend, &self.sigma, &inner);
            let scaled = backend.binary(Binary::Mul, effective, &self.factor);
            let (outputs, inputs) = self.layer.extents(backend);
            let u = backend.binary(Binary::Mul, backend.reshape(&pair.u, [outputs, 1].into()), &shrink);
            let v = backend.reshape(&pair.v, [1, inputs].into());
            slots[0] = Some(backend.matmul_add(scaled, &u, false, &v, false));
        }
        for (slot, like) in slots.iter_mut().zip([weight, &self.layer.bias]) {
            slot.get_or_insert_with(|| backend.full(0.0, backend.shape(like)));
        }
    }
}
