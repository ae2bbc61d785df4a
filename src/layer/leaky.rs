//! LeakyLipSwish, φ(x) = a·x + (1 − a)·s(x) with s = xσ(bx)/1.1: a share of the identity, learned (Perugachi-Diaz, Tomczak,
//! Bhulai 2021, arXiv 2102.02694, their implementation's LeakyLSwish).
//!
//! a = σ(α) and b = softplus(β) of the raw α and β. Invariant: 0 < a < 1 and |s'| ≤ 1, so |φ'| ≤ 1.

use resflow_backend::{Activation, Backend, BackendError, Binary, Element as _, Unary};

use super::activation::{INITIAL_BETA, finish_softplus, softplus};
use super::{Derivatives, Layer, LayerGrads, OrderGradients, PreparedLayer, Saved};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::lipschitz::WeightBounds;
use crate::module::{Grad, Module, accumulate};
use crate::reference::{ReferenceNet, numbers};
use crate::stage::{LayerStage, Nonlinearity};

/// The raw α of a fresh one: a = σ(−3).
const INITIAL_ALPHA: f64 = -3.0;

/// The activation, which learns its raw α and β.
#[derive(Debug, Clone)]
pub struct LeakyLipSwish<B: Backend> {
    alpha: B::Tensor,
    beta: B::Tensor,
}

impl<B: Backend> LeakyLipSwish<B> {
    /// Builds the activation with its initial parameters.
    pub fn new(backend: &B) -> Self {
        Self { alpha: backend.full(INITIAL_ALPHA, [1].into()), beta: backend.full(INITIAL_BETA, [1].into()) }
    }
}

impl<B: Backend> Module<B> for LeakyLipSwish<B> {
    crate::parts!(B; alpha: Parameter, beta: Parameter);

    fn describe(&self) -> String {
        "LeakyLipSwish".into()
    }
}

impl<B: Backend> Layer<B> for LeakyLipSwish<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        // σ(α) = e^{−softplus(−α)}, which cannot overflow
        let exponent = softplus(backend, &backend.affine(self.alpha.clone(), -1.0, 0.0));
        let exponent = backend.affine(exponent, -1.0, 0.0);
        let rest = backend.affine(backend.unary(Unary::ExpM1, exponent.clone()), -1.0, 0.0);
        Box::new(Prepared::<B> { share: backend.unary(Unary::Exp, exponent), rest, b: softplus(backend, &self.beta) })
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
        // the shares of the identity and of s are rounded, so their sum is 1 up to that
        Ok(Some(1.0 + 4.0 * B::Elem::EPSILON))
    }

    fn stage(&self) -> Option<LayerStage> {
        Some(LayerStage::Activation(Nonlinearity::LeakyLipSwish))
    }
}

// what is kept: φ' alone for the first derivative; φ', x, s, s' and s'' for the second
#[derive(Debug)]
struct Prepared<B: Backend> {
    /// a, `[1]`,
    share: B::Tensor,
    /// 1 − a,
    rest: B::Tensor,
    b: B::Tensor,
}

impl<B: Backend> Prepared<B> {
    /// x of which a share is left and the rest is through s.
    fn mix(&self, backend: &B, x: &B::Tensor, through: &B::Tensor) -> B::Tensor {
        let own = backend.binary(Binary::Mul, x.clone(), &self.share);
        backend.axpy(1.0, &backend.binary(Binary::Mul, through.clone(), &self.rest), own)
    }
}

impl<B: Backend> PreparedLayer<B> for Prepared<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let x = &batch.x;
        let orders = backend.activation(Activation::LipSwish, Some(&self.b), x, keep as usize);
        let y = self.mix(backend, x, &orders[0]);
        let mut kept = Vec::new();
        if let Some(d1) = orders.get(1) {
            let slope = backend.binary(Binary::Mul, d1.clone(), &self.rest);
            kept.push(backend.binary(Binary::Add, slope, &self.share));
        }
        if keep == Derivatives::Second {
            kept.push(x.clone());
            kept.extend(orders);
        }
        (y, Saved::tensors(kept))
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        (backend.binary(Binary::Mul, dx.clone(), &saved.tensors[0]), Saved::tensors(vec![dx.clone()]))
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        backend.binary(Binary::Mul, gy, &saved.tensors[0])
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
        let [_, x, derivatives @ ..] = &saved.tensors[..] else { panic!("kept for the second derivative") };
        let dx: Vec<_> = tangents.iter().map(|t| t.tensors[0].clone()).collect();
        // ∂φ/∂a = x − s and ∂(φ'dx)/∂a = dx − s'dx
        let of_share = |g: &B::Tensor, own: &B::Tensor, through: &B::Tensor| {
            backend.dot(g, &backend.axpy(-1.0, through, own.clone()))
        };
        accumulate(backend, &mut grads.trained[0], &of_share(&gy, x, &derivatives[0]));
        for (g, dx) in gdy.iter().zip(&dx) {
            let through = backend.binary(Binary::Mul, dx.clone(), &derivatives[1]);
            accumulate(backend, &mut grads.trained[0], &of_share(g, dx, &through));
        }
        let rest = |g: &B::Tensor| backend.binary(Binary::Mul, g.clone(), &self.rest);
        let (b, of_s, of_ds) = (Some(&self.b), rest(&gy), gdy.iter().map(rest).collect());
        let out = backend.activation_reverse(Activation::LipSwish, b, x, derivatives, &dx, of_s, of_ds);
        if let Some(gradient) = out.parameter {
            accumulate(backend, &mut grads.trained[1], &gradient);
        }
        let add =
            |g: B::Tensor, through: &B::Tensor| backend.axpy(1.0, through, backend.binary(Binary::Mul, g, &self.share));
        (add(gy, &out.gx), gdy.into_iter().zip(&out.gdx).map(|(g, through)| add(g, through)).collect())
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceNet>, BackendError> {
        let parts = numbers(backend, &backend.concat(&[&self.share, &self.rest, &self.b], 0))?;
        Ok(Some(ReferenceNet::leaky(parts[0], parts[1], parts[2])))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        let slope = backend.binary(Binary::Mul, self.share.clone(), &self.rest);
        let gradient = grads[0].take().unwrap_or_else(|| backend.full(0.0, [1].into()));
        grads[0] = Some(backend.binary(Binary::Mul, gradient, &slope));
        finish_softplus(backend, &self.b, &mut grads[1]);
        [None, None]
    }
}
