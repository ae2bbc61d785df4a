//! The convolution on images `[h, w, c]`, zero-padded so that the size stays.
//!
//! σ is the norm of the zero-padded convolution itself on images of the size that u and v have, never that of the
//! reshaped kernel. The padded map on a smaller image is a part of it (restricting in- and output), so σ bounds smaller
//! images too, and the layer takes any of them; for larger ones [`resize`](super::Layer::resize) finds new vectors. A
//! free convolution has K_eff = K, no singular vectors, and takes images of any size.

use resflow_backend::{Backend, Binary, Key, NetLayer, Padding, Shape};

use super::affine::{Affine, Kind};
use super::normalised::Constraint;
use crate::error::ConfigError;
use crate::lipschitz::{
    Coefficient, ConvOperator, LinearOperator, PowerIteration, SingularPair, convolution_norm_bound,
};
use crate::module::Grad;
use crate::stage::LayerStage;

/// The extents of a kernel, `[c_out, kh, kw, c_in]`.
#[derive(Debug, Clone, Copy)]
pub struct Kernel([usize; 4]);

/// A stride-1 convolution with odd kernel `[c_out, kh, kw, c_in]` whose norm is kept at or below a coefficient κ, or
/// one that is free.
pub type LipschitzConv<B> = Affine<B, Kernel>;

impl<B: Backend> LipschitzConv<B> {
    /// Takes stored tensors: kernel `[c_out, kh, kw, c_in]`, bias `[c_out]` and the singular pair, u `[1, h, w, c_out]`
    /// and v `[1, h, w, c_in]`.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the shapes do not belong together, the kernel's sizes are not odd, or u or v
    /// is no unit vector.
    pub fn from_parts(
        backend: &B,
        kernel: B::Tensor,
        bias: B::Tensor,
        pair: SingularPair<B>,
        coefficient: Coefficient,
    ) -> Result<Self, ConfigError> {
        let (k, b) = (backend.shape(&kernel), backend.shape(&bias));
        let (u, v) = pair.shapes();
        let fits = k.rank() == 4
            && k[1] % 2 == 1
            && k[2] % 2 == 1
            && b[..] == k[..1]
            && u.rank() == 4
            && v.rank() == 4
            && u[..3] == v[..3]
            && u[0] == 1
            && u[3] == k[0]
            && v[3] == k[3];
        if !fits {
            return Err(ConfigError::Inconsistent(format!(
                "a convolution with kernel {k}, bias {b}, u {u} and v {v}: expected [c_out, odd, odd, c_in], [c_out], \
                 [1, h, w, c_out] and [1, h, w, c_in]"
            )));
        }
        pair.check_lengths(backend)?;
        let kind = Kernel([k[0], k[1], k[2], k[3]]);
        Ok(Self { weight: kernel, bias, constraint: Some(Constraint::new(pair, coefficient)), kind })
    }

    /// Takes the stored tensors of a free convolution: kernel `[c_out, kh, kw, c_in]` and bias `[c_out]`.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the shapes do not belong together, or the kernel's sizes are not odd.
    pub fn free(backend: &B, kernel: B::Tensor, bias: B::Tensor) -> Result<Self, ConfigError> {
        let (k, b) = (backend.shape(&kernel), backend.shape(&bias));
        if k.rank() != 4 || k[1] % 2 == 0 || k[2] % 2 == 0 || b[..] != k[..1] {
            return Err(ConfigError::Inconsistent(format!(
                "a convolution with kernel {k} and bias {b}: expected [c_out, odd, odd, c_in] and [c_out]"
            )));
        }
        Ok(Self { weight: kernel, bias, constraint: None, kind: Kernel([k[0], k[1], k[2], k[3]]) })
    }

    /// Builds a layer of zeros, to be filled from a file; for images `[h, w]` of a size, with a kernel of height and
    /// width `size`, in pixels. Free without a coefficient.
    pub fn zeros(
        backend: &B,
        image: [usize; 2],
        size: impl Into<KernelSize>,
        inputs: usize,
        outputs: usize,
        coefficient: impl Into<Option<Coefficient>>,
    ) -> Self {
        let extents = size.into().extents(inputs, outputs);
        Self::of_zeros(backend, Kernel(extents), &extents, vectors(image, inputs, outputs), coefficient.into())
    }

    /// Draws weights and biases uniform in ±1/√(inputs of an output) and nearly converges the power iteration on images
    /// `[h, w]` of this size. Free without a coefficient.
    pub fn initialise(
        backend: &B,
        image: [usize; 2],
        size: impl Into<KernelSize>,
        inputs: usize,
        outputs: usize,
        coefficient: impl Into<Option<Coefficient>>,
        key: Key,
    ) -> Self {
        let extents = size.into().extents(inputs, outputs);
        let (vectors, how) = (vectors(image, inputs, outputs), PowerIteration::initial());
        Self::of_random(backend, Kernel(extents), &extents, vectors, coefficient.into(), how, key)
    }

    /// Multiplies the weights by a factor, and the biases of a free layer, and runs the power iteration again.
    pub fn scale_weight(&mut self, backend: &B, factor: f64) {
        self.scale(backend, factor, PowerIteration::initial());
    }

    /// The raw kernel, `[c_out, kh, kw, c_in]`.
    pub fn kernel(&self) -> &B::Tensor {
        &self.weight
    }

    /// The padding that keeps the size.
    pub fn padding(&self) -> Padding {
        self.kind.padding()
    }
}

/// The height and width of a kernel, in pixels.
#[derive(Debug, Clone, Copy)]
pub struct KernelSize([usize; 2]);

impl KernelSize {
    fn extents(self, inputs: usize, outputs: usize) -> [usize; 4] {
        let Self([kh, kw]) = self;
        [outputs, kh, kw, inputs]
    }
}

impl From<usize> for KernelSize {
    fn from(size: usize) -> Self {
        Self([size; 2])
    }
}

impl From<[usize; 2]> for KernelSize {
    fn from(size: [usize; 2]) -> Self {
        Self(size)
    }
}

/// The shapes of u and v on images of a size.
fn vectors([h, w]: [usize; 2], inputs: usize, outputs: usize) -> [Shape; 2] {
    [[1, h, w, outputs].into(), [1, h, w, inputs].into()]
}

impl Kernel {
    fn padding(self) -> Padding {
        Padding::same([self.0[1], self.0[2]])
    }
}

impl<B: Backend> Kind<B> for Kernel {
    fn operator<'a>(&self, weight: &'a B::Tensor, v: Shape) -> Box<dyn LinearOperator<B> + 'a> {
        Box::new(ConvOperator::same(weight, self.0, [v[1], v[2]]))
    }

    fn arrange(&self, _backend: &B, effective: &B::Tensor) -> B::Tensor {
        effective.clone()
    }

    fn apply(&self, backend: &B, kernel: &B::Tensor, bias: Option<&B::Tensor>, x: &B::Tensor) -> B::Tensor {
        let y = backend.conv2d(x, kernel, self.padding());
        match bias {
            Some(bias) => backend.binary(Binary::Add, y, bias),
            None => y,
        }
    }

    fn adjoint(&self, backend: &B, effective: &B::Tensor, gy: &B::Tensor) -> B::Tensor {
        let shape = backend.shape(gy);
        backend.conv2d_input(gy, effective, self.padding(), [shape[1], shape[2]])
    }

    fn add_gradient(&self, backend: &B, sum: Grad<B>, gradient: &B::Tensor, input: &B::Tensor) -> B::Tensor {
        match sum {
            None => backend.conv2d_kernel(input, gradient, self.padding(), [self.0[1], self.0[2]]),
            Some(sum) => backend.conv2d_kernel_add(sum, input, gradient, self.padding()),
        }
    }

    fn output_shape(&self, input: &[usize], largest: Option<[usize; 2]>) -> Result<Vec<usize>, ConfigError> {
        let [outputs, _, _, inputs] = self.0;
        let [most_h, most_w] = largest.unwrap_or([usize::MAX; 2]);
        match *input {
            [h, w, c] if c == inputs && h > 0 && w > 0 && h <= most_h && w <= most_w => Ok(vec![h, w, outputs]),
            [h, w, c] if c == inputs && h > 0 && w > 0 => Err(ConfigError::Inconsistent(format!(
                "the norm of a convolution is known for images up to {most_h} × {most_w}, these are {h} × {w}: resize the flow"
            ))),
            _ => Err(ConfigError::Inconsistent(format!(
                "a convolution of {inputs} channels cannot take samples of shape {input:?}"
            ))),
        }
    }

    fn vector_shapes(&self, input: &[usize]) -> Option<[Shape; 2]> {
        let [outputs, _, _, inputs] = self.0;
        match *input {
            [h, w, c] if c == inputs => Some(vectors([h, w], inputs, outputs)),
            _ => None,
        }
    }

    fn elements(&self) -> u64 {
        self.0.iter().map(|&e| e as u64).product()
    }

    fn describe(&self) -> String {
        let [outputs, kh, kw, inputs] = self.0;
        format!("convolution {kh}×{kw} {inputs} → {outputs}")
    }

    fn stage(&self, coefficient: Option<f64>) -> LayerStage {
        let [outputs, kh, kw, inputs] = self.0;
        LayerStage::Convolution { kernel: [kh, kw], inputs, outputs, coefficient }
    }

    fn norm_bound(&self, weight: &[f64], largest: Option<[usize; 2]>) -> f64 {
        convolution_norm_bound(weight, self.0, largest.map(|image| (image, self.padding())))
    }

    fn net_layer(&self, effective: &B::Tensor, _arranged: &B::Tensor, bias: &B::Tensor) -> NetLayer<B::Tensor> {
        NetLayer::Convolution { kernel: effective.clone(), bias: bias.clone(), padding: self.padding() }
    }
}
