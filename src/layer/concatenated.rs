//! Concatenated activations, x ↦ [φ(x), φ(−x)]: Lipschitz constant at most 1, the number of features doubles.
//!
//! | name | φ(x) | source |
//! |---|---|---|
//! | CLipSwish | LipSwish(x)/1.004 | Perugachi-Diaz, Tomczak, Bhulai 2021, arXiv 2102.02694, §3.3 |
//! | CPila | Pila(x − 0.2)/1.06 | Ahn et al. 2022, arXiv 2210.08176 |
//!
//! The divisors are bounds of √(ψ'(x)² + ψ'(−x)²) of what they divide: of LipSwish it is at most 1.003965 for any b, of the
//! shifted Pila 1.058821, at x = ±0.6.

use resflow_backend::{Activation, Backend, BackendError, Binary};

use super::activation::{INITIAL_BETA, finish_softplus, kept, slope, softplus};
use super::{Derivatives, Layer, LayerGrads, OrderGradients, PreparedLayer, Saved};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::lipschitz::WeightBounds;
use crate::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, accumulate};
use crate::reference::{ReferenceNet, numbers};
use crate::stage::{LayerStage, Nonlinearity};

/// The function of which a concatenated activation is made.
#[derive(Debug, Clone, Copy)]
struct Half {
    function: Activation,
    /// What is added to ±x,
    shift: f64,
    /// and what multiplies the value.
    scale: f64,
    name: Nonlinearity,
}

const LIPSWISH: Half =
    Half { function: Activation::LipSwish, shift: 0.0, scale: 1.0 / 1.004, name: Nonlinearity::ClipSwish };
const PILA: Half =
    Half { function: Activation::Pila, shift: -0.2, scale: 1.0 / 1.06, name: Nonlinearity::ConcatenatedPila };

/// A concatenated activation, with one learnable raw β for both halves where its function has a parameter.
#[derive(Debug, Clone)]
pub struct ConcatenatedActivation<B: Backend> {
    half: Half,
    beta: Option<B::Tensor>,
}

impl<B: Backend> ConcatenatedActivation<B> {
    /// Builds CLipSwish with its initial parameter.
    pub fn lipswish(backend: &B) -> Self {
        Self { half: LIPSWISH, beta: Some(backend.full(INITIAL_BETA, [1].into())) }
    }

    /// Builds CPila, which has no parameter.
    pub fn pila() -> Self {
        Self { half: PILA, beta: None }
    }
}

impl<B: Backend> Module<B> for ConcatenatedActivation<B> {
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
        format!("C{:?}", self.half.function)
    }
}

impl<B: Backend> Layer<B> for ConcatenatedActivation<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(Prepared::<B> { half: self.half, b: self.beta.as_ref().map(|beta| softplus(backend, beta)) })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let mut output = input.to_vec();
        let last = output
            .last_mut()
            .ok_or_else(|| ConfigError::Inconsistent("a concatenated activation needs a feature axis".into()))?;
        *last = last.saturating_mul(2);
        Ok(output)
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
        Some(LayerStage::Activation(self.half.name))
    }
}

#[derive(Debug)]
struct Prepared<B: Backend> {
    half: Half,
    b: Option<B::Tensor>,
}

// parts: what is kept of φ at x and of φ at −x, as the plain activation keeps it
impl Half {
    /// [positive, sign · negative] along the features, times the scale.
    fn join<B: Backend>(self, backend: &B, positive: B::Tensor, negative: B::Tensor, sign: f64) -> B::Tensor {
        let axis = backend.shape(&positive).rank() - 1;
        let negative = backend.affine(negative, sign * self.scale, 0.0);
        backend.concat(&[&backend.affine(positive, self.scale, 0.0), &negative], axis)
    }

    /// The halves of a cotangent, each times the scale.
    fn split<B: Backend>(self, backend: &B, g: &B::Tensor) -> [B::Tensor; 2] {
        let shape = backend.shape(g);
        let (axis, width) = (shape.rank() - 1, shape.channels() / 2);
        [0, width].map(|start| backend.affine(backend.narrow(g, axis, start, width), self.scale, 0.0))
    }
}

impl<B: Backend> PreparedLayer<B> for Prepared<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let x = &batch.x;
        let mut parts = Vec::with_capacity(2);
        let [positive, negative] = [1.0, -1.0].map(|sign| {
            let as_it_is = sign > 0.0 && self.half.shift == 0.0;
            let x = if as_it_is { x.clone() } else { backend.affine(x.clone(), sign, self.half.shift) };
            let orders = backend.activation(self.half.function, self.b.as_ref(), &x, keep as usize);
            let value = orders[0].clone();
            parts.push(kept(&x, orders, keep));
            value
        });
        (self.half.join(backend, positive, negative, 1.0), Saved { tensors: Vec::new(), parts })
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let [p, n] = [0, 1].map(|i| backend.binary(Binary::Mul, dx.clone(), slope(&saved.parts[i])));
        (self.half.join(backend, p, n, -1.0), Saved::tensors(vec![dx.clone()]))
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        let [p, n] = self.half.split(backend, &gy);
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
        let gy = self.half.split(backend, &gy);
        let gdy: Vec<_> = gdy.iter().map(|g| self.half.split(backend, g)).collect();
        let mut sums: Option<(B::Tensor, Vec<B::Tensor>)> = None;
        for (half, (sign, gy)) in [1.0, -1.0].into_iter().zip(gy).enumerate() {
            let dx: Vec<_> = tangents.iter().map(|t| backend.affine(t.tensors[0].clone(), sign, 0.0)).collect();
            let gdy: Vec<_> = gdy.iter().map(|g| g[half].clone()).collect();
            let (x, derivatives) = saved.parts[half].tensors.split_first().expect("kept for the second derivative");
            let (f, b) = (self.half.function, self.b.as_ref());
            let out = backend.activation_reverse(f, b, x, derivatives, &dx, gy, gdy);
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

    fn reference(&self, backend: &B) -> Result<Option<ReferenceNet>, BackendError> {
        let b = self.b.as_ref().map(|b| numbers(backend, b)).transpose()?.map(|b| b[0]);
        Ok(Some(ReferenceNet::concatenated(self.half.function, b, self.half.shift, self.half.scale)))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        if let Some(b) = &self.b {
            finish_softplus(backend, b, &mut grads[0]);
        }
        [None, None]
    }
}
