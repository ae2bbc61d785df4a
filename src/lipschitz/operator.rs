//! Linear maps W as a power iteration sees them: through x ↦ Wx and y ↦ Wᵀy.
//!
//! Invariant: ⟨u, Wv⟩ = ⟨Wᵀu, v⟩, and [`LinearOperator::pair_gradient`] is its derivative in the weights.

use resflow_backend::{Backend, Padding, Shape, composed};

use crate::error::ConfigError;

/// A linear map and its transpose.
pub trait LinearOperator<B: Backend> {
    /// Computes Wv, of the output shape.
    fn apply(&self, backend: &B, v: &B::Tensor) -> B::Tensor;

    /// Computes Wᵀu, of the input shape.
    fn adjoint(&self, backend: &B, u: &B::Tensor) -> B::Tensor;

    /// Computes the derivative of uᵀWv in the weights, of their shape.
    fn pair_gradient(&self, backend: &B, u: &B::Tensor, v: &B::Tensor) -> B::Tensor;

    /// Makes `count` power iterations in the 2-norm, v ← Wᵀu/‖Wᵀu‖ and u ← Wv/‖Wv‖; a product that is zero, or so small or
    /// large that its square is not, leaves its vector as it was. Returns u, v and σ = uᵀWv as `[1]`.
    fn power_iteration(&self, backend: &B, mut u: B::Tensor, mut v: B::Tensor, count: usize) -> [B::Tensor; 3] {
        for _ in 0..count {
            v = composed::unit_or(backend, self.adjoint(backend, &u), &v);
            u = composed::unit_or(backend, self.apply(backend, &v), &u);
        }
        let sigma = backend.dot(&u, &self.apply(backend, &v));
        [u, v, sigma]
    }

    /// The shape of v.
    fn input_shape(&self) -> Shape;

    /// The shape of u.
    fn output_shape(&self) -> Shape;
}

/// A matrix `[o, i]`: v is `[i]`, u is `[o]`.
#[derive(Debug, Clone, Copy)]
pub struct DenseOperator<'a, B: Backend> {
    weight: &'a B::Tensor,
    outputs: usize,
    inputs: usize,
}

impl<'a, B: Backend> DenseOperator<'a, B> {
    /// Takes a weight that is known to be `[o, i]`.
    pub(crate) fn of(weight: &'a B::Tensor, [outputs, inputs]: [usize; 2]) -> Self {
        Self { weight, outputs, inputs }
    }

    /// Takes a weight `[o, i]`.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] unless the weight has two axes.
    pub fn new(backend: &B, weight: &'a B::Tensor) -> Result<Self, ConfigError> {
        let shape = backend.shape(weight);
        match shape[..] {
            [outputs, inputs] => Ok(Self { weight, outputs, inputs }),
            _ => Err(ConfigError::Inconsistent(format!("a matrix of shape {shape}: expected [o, i]"))),
        }
    }
}

impl<B: Backend> LinearOperator<B> for DenseOperator<'_, B> {
    fn power_iteration(&self, backend: &B, u: B::Tensor, v: B::Tensor, count: usize) -> [B::Tensor; 3] {
        backend.power_iteration(self.weight, u, v, count)
    }

    fn apply(&self, backend: &B, v: &B::Tensor) -> B::Tensor {
        let column = backend.reshape(v, [self.inputs, 1].into());
        backend.reshape(&backend.matmul(self.weight, false, &column, false), self.output_shape())
    }

    fn adjoint(&self, backend: &B, u: &B::Tensor) -> B::Tensor {
        let column = backend.reshape(u, [self.outputs, 1].into());
        backend.reshape(&backend.matmul(self.weight, true, &column, false), self.input_shape())
    }

    fn pair_gradient(&self, backend: &B, u: &B::Tensor, v: &B::Tensor) -> B::Tensor {
        let (u, v) = (backend.reshape(u, [self.outputs, 1].into()), backend.reshape(v, [1, self.inputs].into()));
        backend.matmul(&u, false, &v, false)
    }

    fn input_shape(&self) -> Shape {
        [self.inputs].into()
    }

    fn output_shape(&self) -> Shape {
        [self.outputs].into()
    }
}

/// A zero-padded stride-1 cross-correlation on images of one size, kernel `[c_out, kh, kw, c_in]`: v is
/// `[1, h, w, c_in]`, u is `[1, h', w', c_out]`.
#[derive(Debug, Clone, Copy)]
pub struct ConvOperator<'a, B: Backend> {
    kernel: &'a B::Tensor,
    padding: Padding,
    /// Height and width of the image, of the kernel, of the output, in pixels.
    image: [usize; 2],
    extent: [usize; 2],
    output: [usize; 2],
    /// c_in, c_out.
    channels: [usize; 2],
}

impl<'a, B: Backend> ConvOperator<'a, B> {
    /// Takes a kernel that is known to be `[c_out, kh, kw, c_in]`, odd and padded so that the size stays.
    pub(crate) fn same(kernel: &'a B::Tensor, [c_out, kh, kw, c_in]: [usize; 4], image: [usize; 2]) -> Self {
        let extent = [kh, kw];
        Self { kernel, padding: Padding::same(extent), image, extent, output: image, channels: [c_in, c_out] }
    }

    /// Takes a kernel `[c_out, kh, kw, c_in]` for images `[h, w]` of one size.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] unless the kernel has four axes and is no larger than the padded image.
    pub fn new(backend: &B, kernel: &'a B::Tensor, padding: Padding, image: [usize; 2]) -> Result<Self, ConfigError> {
        let shape = backend.shape(kernel);
        let [c_out, kh, kw, c_in] = shape[..] else {
            return Err(ConfigError::Inconsistent(format!(
                "a kernel of shape {shape}: expected [c_out, kh, kw, c_in]"
            )));
        };
        let output = padding.output(image, [kh, kw]).ok_or_else(|| {
            ConfigError::Inconsistent(format!(
                "a {kh}×{kw} kernel does not fit images of {image:?} padded by {padding:?}"
            ))
        })?;
        Ok(Self { kernel, padding, image, extent: [kh, kw], output, channels: [c_in, c_out] })
    }
}

impl<B: Backend> LinearOperator<B> for ConvOperator<'_, B> {
    fn power_iteration(&self, backend: &B, u: B::Tensor, v: B::Tensor, count: usize) -> [B::Tensor; 3] {
        backend.conv2d_power_iteration(self.kernel, self.padding, u, v, count)
    }

    fn apply(&self, backend: &B, v: &B::Tensor) -> B::Tensor {
        backend.conv2d(v, self.kernel, self.padding)
    }

    fn adjoint(&self, backend: &B, u: &B::Tensor) -> B::Tensor {
        backend.conv2d_input(u, self.kernel, self.padding, self.image)
    }

    fn pair_gradient(&self, backend: &B, u: &B::Tensor, v: &B::Tensor) -> B::Tensor {
        backend.conv2d_kernel(v, u, self.padding, self.extent)
    }

    fn input_shape(&self) -> Shape {
        [1, self.image[0], self.image[1], self.channels[0]].into()
    }

    fn output_shape(&self) -> Shape {
        [1, self.output[0], self.output[1], self.channels[1]].into()
    }
}
