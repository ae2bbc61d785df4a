//! An activation as a layer: y = φ(x), with b = softplus(β) where φ has a parameter.

use resflow_backend::{Activation, Backend, BackendError, Binary, NetLayer, Unary};

use super::{
    ConcatenatedActivation, Derivatives, Layer, LayerGrads, LeakyLipSwish, OrderGradients, PreparedLayer, Saved,
};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::lipschitz::WeightBounds;
use crate::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, accumulate};
use crate::stage::{LayerStage, Nonlinearity};

/// The raw β of a fresh LipSwish (Chen et al. 2019): b = softplus(0.5).
pub(super) const INITIAL_BETA: f64 = 0.5;

/// An elementwise activation with Lipschitz constant at most 1; LipSwish learns its raw β.
#[derive(Debug, Clone)]
pub struct ActivationLayer<B: Backend> {
    function: Activation,
    beta: Option<B::Tensor>,
}

impl<B: Backend> ActivationLayer<B> {
    /// Builds the activation with its initial parameter.
    pub fn new(backend: &B, function: Activation) -> Self {
        let beta = function.has_parameter().then(|| backend.full(INITIAL_BETA, [1].into()));
        Self { function, beta }
    }

    /// Builds LipSwish with a given raw β, `[1]`.
    pub fn lipswish(beta: B::Tensor) -> Self {
        Self { function: Activation::LipSwish, beta: Some(beta) }
    }
}

/// Builds the layer of a nonlinearity with its initial parameters.
pub fn activation_layer<B: Backend>(backend: &B, nonlinearity: Nonlinearity) -> Box<dyn Layer<B>> {
    match nonlinearity.activation() {
        Some(function) => Box::new(ActivationLayer::new(backend, function)),
        None => match nonlinearity {
            Nonlinearity::ConcatenatedPila => Box::new(ConcatenatedActivation::pila()),
            Nonlinearity::LeakyLipSwish => Box::new(LeakyLipSwish::new(backend)),
            _ => Box::new(ConcatenatedActivation::lipswish(backend)),
        },
    }
}

/// Computes b = softplus(β) = max(β, 0) + ln(1 + e^{−|β|}), `[1]`.
pub(super) fn softplus<B: Backend>(backend: &B, beta: &B::Tensor) -> B::Tensor {
    let decay = backend.unary(Unary::Exp, backend.affine(backend.unary(Unary::Abs, beta.clone()), -1.0, 0.0));
    let positive = backend.binary(Binary::Max, beta.clone(), &backend.full(0.0, [1].into()));
    backend.axpy(1.0, &backend.unary(Unary::Ln1p, decay), positive)
}

/// Multiplies the gradient in b by ∂b/∂β = σ(β) = 1 − e^{−b}; without one it becomes zero.
pub(super) fn finish_softplus<B: Backend>(backend: &B, b: &B::Tensor, grad: &mut Grad<B>) {
    let gradient = grad.take().unwrap_or_else(|| backend.full(0.0, [1].into()));
    let slope = backend.affine(backend.unary(Unary::ExpM1, backend.affine(b.clone(), -1.0, 0.0)), -1.0, 0.0);
    *grad = Some(backend.binary(Binary::Mul, gradient, &slope));
}

impl<B: Backend> Module<B> for ActivationLayer<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        if let Some(beta) = &self.beta {
            show("beta", Part::Tensor(beta, Role::Parameter));
        }
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        if let Some(beta) = &mut self.beta {
            show("beta", PartMut::Tensor(beta, Role::Parameter));
        }
    }

    fn describe(&self) -> String {
        format!("{:?}", self.function)
    }
}

impl<B: Backend> Layer<B> for ActivationLayer<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        let b = self.beta.as_ref().map(|beta| softplus(backend, beta));
        Box::new(PreparedActivation::<B> { function: self.function, b })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        Ok(input.to_vec())
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
        Ok(Some(self.lipschitz_bound()))
    }

    fn stage(&self) -> Option<LayerStage> {
        Nonlinearity::of(self.function).map(LayerStage::Activation)
    }
}

/// An activation ready for computing.
#[derive(Debug)]
struct PreparedActivation<B: Backend> {
    function: Activation,
    b: Option<B::Tensor>,
}

/// The tensors that an activation keeps of x and of the derivatives at x, `[n, …]`: φ' alone for `First`; x, φ, φ', φ''
/// for `Second`.
pub(super) fn kept<B: Backend>(x: &B::Tensor, mut orders: Vec<B::Tensor>, keep: Derivatives) -> Saved<B> {
    Saved::tensors(match keep {
        Derivatives::None => Vec::new(),
        Derivatives::First => vec![orders.swap_remove(1)],
        Derivatives::Second => {
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
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let x = &batch.x;
        let orders = backend.activation(self.function, self.b.as_ref(), x, keep as usize);
        (orders[0].clone(), kept(x, orders, keep))
    }

    fn net_layer(&self) -> Option<NetLayer<B::Tensor>> {
        Some(NetLayer::Activation { function: self.function, parameter: self.b.clone() })
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
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        let dx: Vec<_> = tangents.iter().map(|t| t.tensors[0].clone()).collect();
        let (x, derivatives) = saved.tensors.split_first().expect("kept for the second derivative");
        let out = backend.activation_reverse(self.function, self.b.as_ref(), x, derivatives, &dx, gy, gdy);
        if let Some(gradient) = out.parameter {
            accumulate(backend, &mut grads.trained[0], &gradient);
        }
        (out.gx, out.gdx)
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        if let Some(b) = &self.b {
            finish_softplus(backend, b, &mut grads[0]);
        }
        [None, None]
    }
}
