//! The Lipschitz-constrained convolution y = K_eff ∗ x + b on images `[h, w, c]`, zero-padded so that the size stays.
//!
//! σ is the norm of the zero-padded convolution itself on images of the size that u and v have, never that of the reshaped
//! kernel. The padded map on a smaller image is a part of it (restricting in- and output), so σ bounds smaller images too,
//! and the layer takes any of them; for larger ones [`resize`](Layer::resize) finds new vectors.

use resflow_backend::{Backend, BackendError, Binary, Element as _, Key, Noise, Over, Padding, Reduce, Shape};

use super::normalised::{LayerNorms, Normalised, OrderGradients, refreshed, vector_lengths};
use super::{Keep, Layer, PreparedLayer, Role, Saved, Slot, Spectrum, Visitor, VisitorMut, accumulate};
use crate::error::ConfigError;
use crate::lipschitz::{Coefficient, ConvOperator, Refresh, SingularPair};

/// A stride-1 convolution with odd kernel whose spectral norm is kept at or below a coefficient κ.
#[derive(Debug, Clone)]
pub struct LipschitzConv<B: Backend> {
    kernel: B::Tensor,
    bias: B::Tensor,
    pair: SingularPair<B>,
    coefficient: Coefficient,
    /// Other norms than the 2-norm.
    norms: Option<LayerNorms<B>>,
    /// `[c_out, kh, kw, c_in]`.
    extents: [usize; 4],
}

impl<B: Backend> LipschitzConv<B> {
    /// From stored tensors: kernel `[c_out, kh, kw, c_in]`, bias `[c_out]` and the singular pair, u `[1, h, w, c_out]`
    /// and v `[1, h, w, c_in]`.
    ///
    /// # Errors
    /// If the shapes do not belong together, or the kernel's sizes are not odd.
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
        Ok(Self { kernel, bias, pair, coefficient, norms: None, extents: [k[0], k[1], k[2], k[3]] })
    }

    /// All zeros, to be filled from a file; for images of a size, with a square kernel.
    pub fn zeros(
        backend: &B,
        image: [usize; 2],
        size: usize,
        inputs: usize,
        outputs: usize,
        coefficient: Coefficient,
    ) -> Self {
        let zeros = |shape: Shape| backend.full(0.0, shape);
        let [h, w] = image;
        let pair = SingularPair::new(backend, zeros([1, h, w, outputs].into()), zeros([1, h, w, inputs].into()));
        let extents = [outputs, size, size, inputs];
        Self { kernel: zeros(extents.into()), bias: zeros([outputs].into()), pair, coefficient, norms: None, extents }
    }

    /// Weights and biases uniform in ±1/√(inputs of an output); the power iteration converged on images of this size.
    pub fn initialise(
        backend: &B,
        image: [usize; 2],
        size: usize,
        inputs: usize,
        outputs: usize,
        coefficient: Coefficient,
        key: Key,
    ) -> Self {
        let bound = 1.0 / ((size * size * inputs).max(1) as f64).sqrt();
        let uniform =
            |key: Key, shape: Shape| backend.affine(backend.noise(key, Noise::Uniform, 0, shape), 2.0 * bound, -bound);
        let extents = [outputs, size, size, inputs];
        let [h, w] = image;
        let pair = SingularPair::random(backend, [1, h, w, outputs], [1, h, w, inputs], key.named("singular vectors"));
        let mut layer = Self {
            kernel: uniform(key.named("weight"), extents.into()),
            bias: uniform(key.named("bias"), [outputs].into()),
            pair,
            coefficient,
            norms: None,
            extents,
        };
        layer.refresh(backend, Refresh::initial());
        layer
    }

    /// Multiplies the weights by a factor and converges the power iteration again.
    pub fn scale_weight(&mut self, backend: &B, factor: f64) {
        self.kernel = backend.affine(self.kernel.clone(), factor, 0.0);
        self.refresh(backend, Refresh::initial());
    }

    /// The raw kernel, `[c_out, kh, kw, c_in]`.
    pub fn kernel(&self) -> &B::Tensor {
        &self.kernel
    }

    /// The singular vectors.
    pub fn pair(&self) -> &SingularPair<B> {
        &self.pair
    }

    /// The padding that keeps the size.
    pub fn padding(&self) -> Padding {
        Padding::same([self.extents[1], self.extents[2]])
    }

    fn operator(&self) -> ConvOperator<'_, B> {
        ConvOperator::same(&self.kernel, self.extents, self.image())
    }

    /// The image size that σ is taken on.
    fn image(&self) -> [usize; 2] {
        let (_, v) = self.pair.shapes();
        [v[1], v[2]]
    }
}

impl<B: Backend> Layer<B> for LipschitzConv<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        visitor(&format!("{path}.weight"), &self.kernel, Role::Weight);
        visitor(&format!("{path}.bias"), &self.bias, Role::Parameter);
        visitor(&format!("{path}.u"), &self.pair.u, Role::Buffer);
        visitor(&format!("{path}.v"), &self.pair.v, Role::Buffer);
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        visitor(&format!("{path}.weight"), &mut self.kernel, Role::Weight);
        visitor(&format!("{path}.bias"), &mut self.bias, Role::Parameter);
        visitor(&format!("{path}.u"), &mut self.pair.u, Role::Buffer);
        visitor(&format!("{path}.v"), &mut self.pair.v, Role::Buffer);
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        let weight =
            Normalised::new(backend, &self.kernel, &self.operator(), &self.pair, self.coefficient, self.norms.as_ref());
        Box::new(PreparedConv { layer: self.clone(), weight })
    }

    fn refresh(&mut self, backend: &B, how: Refresh) {
        self.pair = refreshed(backend, &self.pair, &self.operator(), self.norms.as_ref(), how);
    }

    fn output(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let [outputs, _, _, inputs] = self.extents;
        let [most_h, most_w] = self.image();
        match *input {
            [h, w, c] if c == inputs && h > 0 && w > 0 && h <= most_h && w <= most_w => Ok(vec![h, w, outputs]),
            [h, w, c] if c == inputs && h > 0 && w > 0 => Err(ConfigError::Inconsistent(format!(
                "the norm of a convolution is known for images up to {most_h} × {most_w}, these are {h} × {w}: resize the flow"
            ))),
            _ => Err(ConfigError::Inconsistent(format!(
                "a convolution of {inputs} channels cannot take rows of shape {input:?}"
            ))),
        }
    }

    fn resize(&mut self, backend: &B, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let [outputs, _, _, inputs] = self.extents;
        let [most_h, most_w] = self.image();
        if let [h, w, c] = *input
            && c == inputs
            && (h > most_h || w > most_w)
        {
            let key = Key::new(0).named("resize");
            self.pair = SingularPair::random(backend, [1, h, w, outputs], [1, h, w, inputs], key);
            self.refresh(backend, Refresh::converge::<B>());
        }
        self.output(input)
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        let pixels: usize = input.iter().rev().skip(1).product();
        self.extents.iter().map(|&e| e as u64).product::<u64>() * pixels as u64
    }

    fn lipschitz_bound(&self) -> f64 {
        self.coefficient.get()
    }

    fn set_norms(&mut self, norms: &LayerNorms<B>) -> bool {
        self.norms = Some(norms.clone());
        true
    }

    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        let sigma = backend.download(&self.pair.sigma(backend, &self.operator()))?[0].to_f64();
        report(Spectrum { name: format!("{path}.weight"), sigma, coefficient: self.coefficient.get() });
        Ok(())
    }

    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        let [u, v] = vector_lengths(backend, &self.pair, self.norms.as_ref())?;
        report(format!("{path}.u"), u);
        report(format!("{path}.v"), v);
        Ok(())
    }

    fn describe(&self, _backend: &B) -> String {
        let [outputs, kh, kw, inputs] = self.extents;
        format!("convolution {kh}×{kw} {inputs} → {outputs}, κ = {}", self.coefficient.get())
    }

    fn boxed_clone(&self) -> Box<dyn Layer<B>> {
        Box::new(self.clone())
    }
}

/// A convolution ready for computing.
#[derive(Debug)]
struct PreparedConv<B: Backend> {
    layer: LipschitzConv<B>,
    weight: Normalised<B>,
}

impl<B: Backend> PreparedConv<B> {
    fn apply(&self, backend: &B, x: &B::Tensor) -> B::Tensor {
        backend.conv2d(x, &self.weight.effective, self.layer.padding())
    }
}

impl<B: Backend> PreparedLayer<B> for PreparedConv<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, keep: Keep) -> (B::Tensor, Saved<B>) {
        let y = backend.binary(Binary::Add, self.apply(backend, x), &self.layer.bias);
        (y, Saved::tensors(if keep == Keep::Second { vec![x.clone()] } else { Vec::new() }))
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        (self.apply(backend, dx), self.keep_tangent(backend, saved, dx))
    }

    fn keep_tangent(&self, _backend: &B, _saved: &Saved<B>, dx: &B::Tensor) -> Saved<B> {
        Saved::tensors(vec![dx.clone()])
    }

    fn vjp(&self, backend: &B, _saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        let shape = backend.shape(&gy);
        backend.conv2d_input(&gy, &self.weight.effective, self.layer.padding(), [shape[1], shape[2]])
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
        let padding = self.layer.padding();
        let [_, kh, kw, _] = self.layer.extents;
        let mut add = |gradient: &B::Tensor, input: &B::Tensor| {
            slots[0] = Some(match slots[0].take() {
                None => backend.conv2d_kernel(input, gradient, padding, [kh, kw]),
                Some(sum) => backend.conv2d_kernel_add(sum, input, gradient, padding),
            });
        };
        add(&gy, &saved.tensors[0]);
        for (gdy, tangent) in gdy.iter().zip(tangents) {
            add(gdy, &tangent.tensors[0]);
        }
        accumulate(backend, &mut slots[1], &backend.reduce(Reduce::Sum, Over::Channel, &gy));
        (self.vjp(backend, saved, gy), gdy.into_iter().map(|g| self.vjp(backend, saved, g)).collect())
    }

    fn is_constrained(&self) -> bool {
        true
    }

    fn slots(&self) -> usize {
        2
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) -> OrderGradients<B> {
        let LipschitzConv { kernel, bias, pair, coefficient, .. } = &self.layer;
        slots[1].get_or_insert_with(|| backend.full(0.0, backend.shape(bias)));
        self.weight.pull_back(backend, kernel, &self.layer.operator(), pair, *coefficient, &mut slots[0])
    }
}
