//! The Lipschitz-constrained convolution y = K_eff ∗ x + b on images `[h, w, c]`, zero-padded so that the size stays.
//!
//! σ is the norm of the zero-padded convolution itself on images of the size that u and v have, never that of the reshaped
//! kernel. The padded map on a smaller image is a part of it (restricting in- and output), so σ bounds smaller images too,
//! and the layer takes any of them; for larger ones [`resize`](Layer::resize) finds new vectors. A free convolution has
//! K_eff = K, no singular vectors, and takes images of any size.

use resflow_backend::{Backend, BackendError, Binary, Key, Over, Padding, Reduce, Shape};

use super::normalised::{Constraint, LayerNorms, Normalised, OrderGradients, uniform};
use super::{Keep, Layer, PreparedLayer, Role, Saved, Slot, Spectrum, Visitor, VisitorMut, accumulate};
use crate::error::ConfigError;
use crate::lipschitz::{Coefficient, ConvOperator, Refresh, SingularPair};

/// A stride-1 convolution with odd kernel whose spectral norm is kept at or below a coefficient κ, or one that is free.
#[derive(Debug, Clone)]
pub struct LipschitzConv<B: Backend> {
    kernel: B::Tensor,
    bias: B::Tensor,
    constraint: Option<Constraint<B>>,
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
        let extents = [k[0], k[1], k[2], k[3]];
        Ok(Self { kernel, bias, constraint: Some(Constraint::new(pair, coefficient)), extents })
    }

    /// A free convolution from stored tensors: kernel `[c_out, kh, kw, c_in]` and bias `[c_out]`.
    ///
    /// # Errors
    /// If the shapes do not belong together, or the kernel's sizes are not odd.
    pub fn free(backend: &B, kernel: B::Tensor, bias: B::Tensor) -> Result<Self, ConfigError> {
        let (k, b) = (backend.shape(&kernel), backend.shape(&bias));
        if k.rank() != 4 || k[1] % 2 == 0 || k[2] % 2 == 0 || b[..] != k[..1] {
            return Err(ConfigError::Inconsistent(format!(
                "a convolution with kernel {k} and bias {b}: expected [c_out, odd, odd, c_in] and [c_out]"
            )));
        }
        Ok(Self { kernel, bias, constraint: None, extents: [k[0], k[1], k[2], k[3]] })
    }

    /// All zeros, to be filled from a file; for images of a size, with a square kernel. Free without a coefficient.
    pub fn zeros(
        backend: &B,
        image: [usize; 2],
        size: usize,
        inputs: usize,
        outputs: usize,
        coefficient: impl Into<Option<Coefficient>>,
    ) -> Self {
        let zeros = |shape: Shape| backend.full(0.0, shape);
        let [h, w] = image;
        let constraint = coefficient.into().map(|coefficient| {
            let vectors = [outputs, inputs].map(|channels| zeros([1, h, w, channels].into()));
            let [u, v] = vectors;
            Constraint::new(SingularPair::new(backend, u, v), coefficient)
        });
        let extents = [outputs, size, size, inputs];
        Self { kernel: zeros(extents.into()), bias: zeros([outputs].into()), constraint, extents }
    }

    /// Weights and biases uniform in ±1/√(inputs of an output); the power iteration converged on images of this size. Free
    /// without a coefficient.
    pub fn initialise(
        backend: &B,
        image: [usize; 2],
        size: usize,
        inputs: usize,
        outputs: usize,
        coefficient: impl Into<Option<Coefficient>>,
        key: Key,
    ) -> Self {
        let extents = [outputs, size, size, inputs];
        let [h, w] = image;
        let constraint = coefficient.into().map(|coefficient| {
            let key = key.named("singular vectors");
            Constraint::new(SingularPair::random(backend, [1, h, w, outputs], [1, h, w, inputs], key), coefficient)
        });
        let fan_in = size * size * inputs;
        let mut layer = Self {
            kernel: uniform(backend, fan_in, key.named("weight"), extents.into()),
            bias: uniform(backend, fan_in, key.named("bias"), [outputs].into()),
            constraint,
            extents,
        };
        layer.refresh(backend, Refresh::initial());
        layer
    }

    /// Multiplies the weights by a factor, and the biases of a free layer, and converges the power iteration again.
    pub fn scale_weight(&mut self, backend: &B, factor: f64) {
        self.kernel = backend.affine(self.kernel.clone(), factor, 0.0);
        if self.constraint.is_none() {
            self.bias = backend.affine(self.bias.clone(), factor, 0.0);
        }
        self.refresh(backend, Refresh::initial());
    }

    /// The raw kernel, `[c_out, kh, kw, c_in]`.
    pub fn kernel(&self) -> &B::Tensor {
        &self.kernel
    }

    /// The singular vectors, of a constrained layer.
    pub fn pair(&self) -> Option<&SingularPair<B>> {
        self.constraint.as_ref().map(|c| &c.pair)
    }

    /// The padding that keeps the size.
    pub fn padding(&self) -> Padding {
        Padding::same([self.extents[1], self.extents[2]])
    }

    fn constrained(&self) -> Option<(&Constraint<B>, ConvOperator<'_, B>)> {
        let constraint = self.constraint.as_ref()?;
        let (_, v) = constraint.pair.shapes();
        Some((constraint, ConvOperator::same(&self.kernel, self.extents, [v[1], v[2]])))
    }

    /// The largest images that it takes, those that σ is taken on.
    fn largest(&self) -> [usize; 2] {
        self.pair().map_or([usize::MAX; 2], |pair| [pair.shapes().1[1], pair.shapes().1[2]])
    }
}

impl<B: Backend> Layer<B> for LipschitzConv<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        visitor(&format!("{path}.weight"), &self.kernel, Role::Weight);
        visitor(&format!("{path}.bias"), &self.bias, Role::Parameter);
        if let Some(constraint) = &self.constraint {
            constraint.visit(path, visitor);
        }
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        visitor(&format!("{path}.weight"), &mut self.kernel, Role::Weight);
        visitor(&format!("{path}.bias"), &mut self.bias, Role::Parameter);
        if let Some(constraint) = &mut self.constraint {
            constraint.visit_mut(path, visitor);
        }
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        let weight = Normalised::new(backend, &self.kernel, self.constrained());
        Box::new(PreparedConv { layer: self.clone(), weight })
    }

    fn refresh(&mut self, backend: &B, how: Refresh) {
        let renewed = self.constrained().map(|(constraint, operator)| constraint.refreshed(backend, &operator, how));
        self.constraint = renewed;
    }

    fn output(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let [outputs, _, _, inputs] = self.extents;
        let [most_h, most_w] = self.largest();
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
        let [most_h, most_w] = self.largest();
        if let [h, w, c] = *input
            && c == inputs
            && (h > most_h || w > most_w)
        {
            let key = Key::new(0).named("resize");
            if let Some(constraint) = &mut self.constraint {
                constraint.pair = SingularPair::random(backend, [1, h, w, outputs], [1, h, w, inputs], key);
            }
            self.refresh(backend, Refresh::converge::<B>());
        }
        self.output(input)
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        let pixels: usize = input.iter().rev().skip(1).product();
        self.extents.iter().map(|&e| e as u64).product::<u64>() * pixels as u64
    }

    fn lipschitz_bound(&self) -> f64 {
        self.constraint.as_ref().map_or(f64::INFINITY, |c| c.coefficient.get())
    }

    fn set_norms(&mut self, norms: &LayerNorms<B>) -> bool {
        let Some(constraint) = &mut self.constraint else { return false };
        constraint.norms = Some(norms.clone());
        true
    }

    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        if let Some((constraint, operator)) = self.constrained() {
            report(constraint.spectrum(backend, path, &operator)?);
        }
        Ok(())
    }

    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        self.constraint.as_ref().map_or(Ok(()), |c| c.vector_lengths(backend, path, report))
    }

    fn describe(&self, _backend: &B) -> String {
        let [outputs, kh, kw, inputs] = self.extents;
        let kappa = self.constraint.as_ref().map_or(String::new(), |c| format!(", κ = {}", c.coefficient.get()));
        format!("convolution {kh}×{kw} {inputs} → {outputs}{kappa}")
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
        self.layer.constraint.is_some()
    }

    fn slots(&self) -> usize {
        2
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) -> OrderGradients<B> {
        slots[1].get_or_insert_with(|| backend.full(0.0, backend.shape(&self.layer.bias)));
        self.weight.pull_back(backend, &self.layer.kernel, self.layer.constrained(), &mut slots[0])
    }
}
