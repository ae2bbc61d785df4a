//! An activation as a layer: y = φ(x), with b = softplus(β) where φ has a parameter.

use resflow_backend::{Activation, Backend, Binary, Unary};

use super::{Keep, Layer, OrderGradients, PreparedLayer, Role, Saved, Slot, Visitor, VisitorMut, accumulate};
use crate::error::ConfigError;

/// The raw β of a fresh LipSwish (Chen et al. 2019): b = softplus(0.5).
pub(super) const INITIAL_BETA: f64 = 0.5;

/// An elementwise activation with Lipschitz constant at most 1; LipSwish learns its raw β.
#[derive(Debug, Clone)]
pub struct ActivationLayer<B: Backend> {
    function: Activation,
    beta: Option<B::Tensor>,
}

impl<B: Backend> ActivationLayer<B> {
    /// The activation with its initial parameter.
    pub fn new(backend: &B, function: Activation) -> Self {
        let beta = function.has_parameter().then(|| backend.full(INITIAL_BETA, [1].into()));
        Self { function, beta }
    }

    /// LipSwish with a given raw β, `[1]`.
    pub fn lipswish(beta: B::Tensor) -> Self {
        Self { function: Activation::LipSwish, beta: Some(beta) }
    }
}

/// b = softplus(β) = max(β, 0) + ln(1 + e^{−|β|}).
pub(super) fn softplus<B: Backend>(backend: &B, beta: &B::Tensor) -> B::Tensor {
    let decay = backend.unary(Unary::Exp, backend.affine(backend.unary(Unary::Abs, beta.clone()), -1.0, 0.0));
    let positive = backend.binary(Binary::Max, beta.clone(), &backend.full(0.0, [1].into()));
    backend.axpy(1.0, &backend.unary(Unary::Ln1p, decay), positive)
}

/// Multiplies the gradient in b by ∂b/∂β = σ(β) = 1 − e^{−b}; an empty slot becomes zero.
pub(super) fn pull_back_softplus<B: Backend>(backend: &B, b: &B::Tensor, slot: &mut Slot<B>) {
    let gradient = slot.take().unwrap_or_else(|| backend.full(0.0, [1].into()));
    let slope = backend.affine(backend.unary(Unary::ExpM1, backend.affine(b.clone(), -1.0, 0.0)), -1.0, 0.0);
    *slot = Some(backend.binary(Binary::Mul, gradient, &slope));
}

impl<B: Backend> Layer<B> for ActivationLayer<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        if let Some(beta) = &self.beta {
            visitor(&format!("{path}.beta"), beta, Role::Parameter);
        }
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        if let Some(beta) = &mut self.beta {
            visitor(&format!("{path}.beta"), beta, Role::Parameter);
        }
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        let b = self.beta.as_ref().map(|beta| softplus(backend, beta));
        Box::new(PreparedActivation::<B> { function: self.function, b })
    }

    fn output(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        Ok(input.to_vec())
    }

    fn multiply_adds(&self, _input: &[usize]) -> u64 {
        0
    }

    fn lipschitz_bound(&self) -> f64 {
        1.0
    }

    fn describe(&self, _backend: &B) -> String {
        format!("{:?}", self.function)
    }

    fn boxed_clone(&self) -> Box<dyn Layer<B>> {
        Box::new(self.clone())
    }
}

/// An activation ready for computing.
#[derive(Debug)]
struct PreparedActivation<B: Backend> {
    function: Activation,
    b: Option<B::Tensor>,
}

/// What an activation keeps of x and of the derivatives at x: φ' alone for `First`; x, φ, φ', φ'' for `Second`.
pub(super) fn kept<B: Backend>(x: &B::Tensor, mut orders: Vec<B::Tensor>, keep: Keep) -> Saved<B> {
    Saved::tensors(match keep {
        Keep::Value => Vec::new(),
        Keep::First => vec![orders.swap_remove(1)],
        Keep::Second => {
            orders.insert(0, x.clone());
            orders
        }
    })
}

/// φ' among what an activation keeps: φ' alone for `First`; x, φ, φ', φ'' for `Second`.
pub(super) fn slope<B: Backend>(saved: &Saved<B>) -> &B::Tensor {
    &saved.tensors[if saved.tensors.len() == 1 { 0 } else { 2 }]
}

impl<B: Backend> PreparedLayer<B> for PreparedActivation<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, keep: Keep) -> (B::Tensor, Saved<B>) {
        let orders = backend.activation(self.function, self.b.as_ref(), x, keep as usize);
        (orders[0].clone(), kept(x, orders, keep))
    }

    fn activation(&self) -> Option<(Activation, Option<&B::Tensor>)> {
        Some((self.function, self.b.as_ref()))
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        (backend.binary(Binary::Mul, dx.clone(), slope(saved)), Saved::tensors(vec![dx.clone()]))
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        backend.binary(Binary::Mul, gy, slope(saved))
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
        let dx: Vec<_> = tangents.iter().map(|t| t.tensors[0].clone()).collect();
        let (x, derivatives) = saved.tensors.split_first().expect("kept for the second derivative");
        let out = backend.activation_reverse(self.function, self.b.as_ref(), x, derivatives, &dx, gy, gdy);
        if let Some(gradient) = out.parameter {
            accumulate(backend, &mut slots[0], &gradient);
        }
        (out.gx, out.gdx)
    }

    fn slots(&self) -> usize {
        usize::from(self.b.is_some())
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) -> OrderGradients<B> {
        if let Some(b) = &self.b {
            pull_back_softplus(backend, b, &mut slots[0]);
        }
        [None, None]
    }
}
