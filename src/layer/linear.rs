//! The linear layer, on the last axis of its samples: of images it is a 1 × 1 convolution.

use resflow_backend::{Backend, Key, NetLayer, Shape};

use super::affine::{Affine, Kind};
use super::normalised::Constraint;
use crate::error::ConfigError;
use crate::lipschitz::{Coefficient, DenseOperator, LinearOperator, PowerIteration, SingularPair, spectral_norm_bound};
use crate::module::Grad;
use crate::stage::LayerStage;

/// The extents of a matrix `[outputs, inputs]`.
#[derive(Debug, Clone, Copy)]
pub struct Dense {
    outputs: usize,
    inputs: usize,
}

/// A linear layer, weight `[o, i]`, whose norm is kept at or below a coefficient κ, or one that is free.
pub type LipschitzLinear<B> = Affine<B, Dense>;

impl<B: Backend> LipschitzLinear<B> {
    /// Takes stored tensors: weight `[o, i]`, bias `[o]` and the singular pair, u `[o]` and v `[i]`.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the shapes do not belong together, or u or v is no unit vector.
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
        pair.check_lengths(backend)?;
        let kind = Dense { outputs: w[0], inputs: w[1] };
        Ok(Self { weight, bias, constraint: Some(Constraint::new(pair, coefficient)), kind })
    }

    /// Takes the stored tensors of a free layer: weight `[o, i]` and bias `[o]`.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the shapes do not belong together.
    pub fn free(backend: &B, weight: B::Tensor, bias: B::Tensor) -> Result<Self, ConfigError> {
        let (w, b) = (backend.shape(&weight), backend.shape(&bias));
        if w.rank() != 2 || b[..] != w[..1] {
            return Err(ConfigError::Inconsistent(format!(
                "a linear layer with weight {w} and bias {b}: expected [o, i] and [o]"
            )));
        }
        Ok(Self { weight, bias, constraint: None, kind: Dense { outputs: w[0], inputs: w[1] } })
    }

    /// Builds a layer of zeros, to be filled from a file; free without a coefficient.
    pub fn zeros(backend: &B, inputs: usize, outputs: usize, coefficient: impl Into<Option<Coefficient>>) -> Self {
        let vectors = [[outputs].into(), [inputs].into()];
        Self::of_zeros(backend, Dense { outputs, inputs }, &[outputs, inputs], vectors, coefficient.into())
    }

    /// Draws weights and biases uniform in ±1/√inputs and converges the power iteration. Free without a coefficient.
    pub fn initialise(
        backend: &B,
        inputs: usize,
        outputs: usize,
        coefficient: impl Into<Option<Coefficient>>,
        key: Key,
    ) -> Self {
        let vectors = [[outputs].into(), [inputs].into()];
        let how = PowerIteration::converge::<B>();
        let kind = Dense { outputs, inputs };
        Self::of_random(backend, kind, &[outputs, inputs], vectors, coefficient.into(), how, key)
    }

    /// Multiplies the weights by a factor, and the biases of a free layer, and converges the power iteration again.
    pub fn scale_weight(&mut self, backend: &B, factor: f64) {
        self.scale(backend, factor, PowerIteration::converge::<B>());
    }
}

/// Samples `[n, …, c]` as a matrix `[n·…, c]`: all axes but the last together.
pub fn matrix<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    if shape.rank() == 2 {
        return x.clone();
    }
    let count: usize = shape.iter().rev().skip(1).product();
    backend.reshape(x, [count, shape.channels()].into())
}

/// Applies a product of matrices, `[rows, c]` → `[rows, o]`, to the last axis of x: `[n, …, c]` → `[n, …, o]`.
pub fn by_rows<B: Backend>(backend: &B, x: &B::Tensor, product: impl FnOnce(&B::Tensor) -> B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    let y = product(&matrix(backend, x));
    if shape.rank() == 2 {
        return y;
    }
    let shape = shape.with_channels(backend.shape(&y)[1]);
    backend.reshape(&y, shape)
}

impl<B: Backend> Kind<B> for Dense {
    fn operator<'a>(&self, weight: &'a B::Tensor, _v: Shape) -> Box<dyn LinearOperator<B> + 'a> {
        Box::new(DenseOperator::of(weight, [self.outputs, self.inputs]))
    }

    fn arrange(&self, backend: &B, effective: &B::Tensor) -> B::Tensor {
        backend.permute(effective, &[1, 0])
    }

    fn apply(&self, backend: &B, transposed: &B::Tensor, bias: Option<&B::Tensor>, x: &B::Tensor) -> B::Tensor {
        by_rows(backend, x, |x| match bias {
            Some(bias) => backend.linear(x, transposed, bias),
            None => backend.matmul(x, false, transposed, false),
        })
    }

    fn adjoint(&self, backend: &B, effective: &B::Tensor, gy: &B::Tensor) -> B::Tensor {
        by_rows(backend, gy, |gy| backend.matmul(gy, false, effective, false))
    }

    fn add_gradient(&self, backend: &B, sum: Grad<B>, gradient: &B::Tensor, input: &B::Tensor) -> B::Tensor {
        let (gradient, input) = (matrix(backend, gradient), matrix(backend, input));
        match sum {
            None => backend.matmul(&gradient, true, &input, false),
            Some(sum) => backend.matmul_add(sum, &gradient, true, &input, false),
        }
    }

    fn output_shape(&self, input: &[usize], _largest: Option<[usize; 2]>) -> Result<Vec<usize>, ConfigError> {
        match input.split_last() {
            Some((last, others)) if *last == self.inputs => Ok([others, &[self.outputs]].concat()),
            _ => Err(ConfigError::Inconsistent(format!(
                "a linear layer of {} inputs cannot take samples of shape {input:?}",
                self.inputs
            ))),
        }
    }

    fn vector_shapes(&self, _input: &[usize]) -> Option<[Shape; 2]> {
        None
    }

    fn elements(&self) -> u64 {
        (self.outputs * self.inputs) as u64
    }

    fn describe(&self) -> String {
        format!("linear {} → {}", self.inputs, self.outputs)
    }

    fn stage(&self, coefficient: Option<f64>) -> LayerStage {
        LayerStage::Linear { inputs: self.inputs, outputs: self.outputs, coefficient }
    }

    fn norm_bound(&self, weight: &[f64], _largest: Option<[usize; 2]>) -> f64 {
        spectral_norm_bound(self.outputs, self.inputs, weight)
    }

    fn net_layer(&self, effective: &B::Tensor, arranged: &B::Tensor, bias: &B::Tensor) -> NetLayer<B::Tensor> {
        NetLayer::Linear { weight: effective.clone(), transposed: arranged.clone(), bias: bias.clone() }
    }
}
