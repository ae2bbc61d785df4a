//! CLipSwish(x) = [LipSwish(x), LipSwish(−x)]/1.004 (Perugachi-Diaz, Tomczak, Bhulai 2021, arXiv 2102.02694, §3.3).
//!
//! Lipschitz constant at most 1; the number of features doubles.

use resflow_backend::{Activation, Backend, Binary};

use super::activation::{INITIAL_BETA, finish_softplus, kept, slope, softplus};
use super::{Derivatives, Layer, LayerGrads, OrderGradients, PreparedLayer, Saved};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::module::{Grad, Module, accumulate};
use crate::stage::{LayerStage, Nonlinearity};

/// The norm of (φ'(x), φ'(−x)) is at most this.
const SCALE: f64 = 1.004;

/// The concatenated LipSwish, with one learnable raw β for both halves.
#[derive(Debug, Clone)]
pub struct ConcatenatedLipSwish<B: Backend> {
    beta: B::Tensor,
}

impl<B: Backend> ConcatenatedLipSwish<B> {
    /// Builds the activation with its initial parameter.
    pub fn new(backend: &B) -> Self {
        Self { beta: backend.full(INITIAL_BETA, [1].into()) }
    }
}

impl<B: Backend> Module<B> for ConcatenatedLipSwish<B> {
    crate::parts!(B; beta: Parameter);

    fn describe(&self) -> String {
        "CLipSwish".into()
    }
}

impl<B: Backend> Layer<B> for ConcatenatedLipSwish<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(Prepared::<B> { b: softplus(backend, &self.beta) })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let mut output = input.to_vec();
        let last =
            output.last_mut().ok_or_else(|| ConfigError::Inconsistent("CLipSwish needs a feature axis".into()))?;
        *last = last.saturating_mul(2);
        Ok(output)
    }

    fn multiply_adds(&self, _input: &[usize]) -> u64 {
        0
    }

    fn lipschitz_bound(&self) -> f64 {
        1.0
    }

    fn stage(&self) -> Option<LayerStage> {
        Some(LayerStage::Activation(Nonlinearity::ClipSwish))
    }
}

#[derive(Debug)]
struct Prepared<B: Backend> {
    b: B::Tensor,
}

// parts: what is kept of φ at x and of φ at −x, as the plain activation keeps it
/// [positive, sign · negative] along the features, over the scale.
fn join<B: Backend>(backend: &B, positive: &B::Tensor, negative: &B::Tensor, sign: f64) -> B::Tensor {
    let axis = backend.shape(positive).rank() - 1;
    let negative = backend.affine(negative.clone(), sign / SCALE, 0.0);
    backend.concat(&[&backend.affine(positive.clone(), 1.0 / SCALE, 0.0), &negative], axis)
}

/// The halves of a cotangent, each divided by the scale.
fn halves<B: Backend>(backend: &B, g: &B::Tensor) -> [B::Tensor; 2] {
    let shape = backend.shape(g);
    let (axis, width) = (shape.rank() - 1, shape.channels() / 2);
    [0, width].map(|start| backend.affine(backend.narrow(g, axis, start, width), 1.0 / SCALE, 0.0))
}

impl<B: Backend> PreparedLayer<B> for Prepared<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let x = &batch.x;
        let mut values = Vec::with_capacity(2);
        let mut parts = Vec::with_capacity(2);
        for sign in [1.0, -1.0] {
            let x = if sign > 0.0 { x.clone() } else { backend.affine(x.clone(), -1.0, 0.0) };
            let orders = backend.activation(Activation::LipSwish, Some(&self.b), &x, keep as usize);
            values.push(orders[0].clone());
            parts.push(kept(&x, orders, keep));
        }
        (join(backend, &values[0], &values[1], 1.0), Saved { tensors: Vec::new(), parts })
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let [p, n] = [0, 1].map(|i| backend.binary(Binary::Mul, dx.clone(), slope(&saved.parts[i])));
        (join(backend, &p, &n, -1.0), Saved::tensors(vec![dx.clone()]))
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        let [p, n] = halves(backend, &gy);
        let p = backend.binary(Binary::Mul, p, slope(&saved.parts[0]));
        let n = backend.binary(Binary::Mul, n, slope(&saved.parts[1]));
        backend.axpy(-1.0, &n, p)
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
        let gy = halves(backend, &gy);
        let gdy: Vec<_> = gdy.iter().map(|g| halves(backend, g)).collect();
        let mut sums: Option<(B::Tensor, Vec<B::Tensor>)> = None;
        for (half, (sign, gy)) in [1.0, -1.0].into_iter().zip(gy).enumerate() {
            let dx: Vec<_> = tangents.iter().map(|t| backend.affine(t.tensors[0].clone(), sign, 0.0)).collect();
            let gdy: Vec<_> = gdy.iter().map(|g| g[half].clone()).collect();
            let (x, derivatives) = saved.parts[half].tensors.split_first().expect("kept for the second derivative");
            let out = backend.activation_reverse(Activation::LipSwish, Some(&self.b), x, derivatives, &dx, gy, gdy);
            if let Some(gradient) = out.parameter {
                accumulate(backend, &mut grads.trained[0], &gradient);
            }
            sums = Some(match sums {
                None => (out.gx, out.gdx),
                Some((gx, gdx)) => (
                    backend.axpy(sign, &out.gx, gx),
                    gdx.into_iter().zip(&out.gdx).map(|(sum, g)| backend.axpy(sign, g, sum)).collect(),
                ),
            });
        }
        sums.expect("two halves")
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        finish_softplus(backend, &self.b, &mut grads[0]);
        [None, None]
    }
}
