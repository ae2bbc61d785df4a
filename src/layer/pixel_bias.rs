//! A bias by a context that is an image: h ↦ h + u, with u = U e of each pixel.
//!
//! [`ContextBias`](super::ContextBias) gives all pixels of a sample the same; here the embedding of the context is `[n, h, w, k]`, and
//! each pixel is told its own. Invariant: the derivative in h is 1, whatever U and e are, so that Lip(g), the series and the inverse
//! are those of the net without a context.

use resflow_backend::{Backend, BackendError, Binary};

use super::context::Told;
use super::{Derivatives, Layer, LayerGrads, PreparedLayer, Saved};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::lipschitz::WeightBounds;
use crate::module::Module;
use crate::stage::LayerStage;

/// A bias of each pixel and channel by a context that is an image of the same height and width.
#[derive(Debug, Clone)]
pub struct PixelBias(Told);

impl PixelBias {
    /// Builds the bias that is told this, pixel by pixel.
    pub fn new(told: Told) -> Self {
        Self(told)
    }
}

impl<B: Backend> Module<B> for PixelBias {
    fn describe(&self) -> String {
        format!("bias of {} channels by the pixels of the context", self.0.features)
    }
}

impl<B: Backend> Layer<B> for PixelBias {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(PreparedBias(self.0))
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if input.len() == 3 && input.last() == Some(&self.0.features) {
            return Ok(input.to_vec());
        }
        Err(ConfigError::Inconsistent(format!(
            "a bias of {} channels by the pixels of a context cannot take samples of shape {input:?}",
            self.0.features
        )))
    }

    fn activations(&self, _input: &[usize]) -> usize {
        0
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
        Ok(Some(1.0))
    }

    fn told(&self) -> usize {
        self.0.all
    }

    fn stage(&self) -> Option<LayerStage> {
        Some(LayerStage::PixelBias { features: self.0.features })
    }
}

#[derive(Debug)]
struct PreparedBias(Told);

impl<B: Backend> PreparedLayer<B> for PreparedBias {
    fn forward(&self, backend: &B, batch: &Batch<B>, _keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let own = self.0.of(backend, batch.context.as_ref(), batch.shape(backend));
        (backend.binary(Binary::Add, batch.x.clone(), &own), Saved::tensors(Vec::new()))
    }

    fn jvp(&self, _backend: &B, _saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        (dx.clone(), Saved::tensors(Vec::new()))
    }

    fn vjp(&self, _backend: &B, _saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        gy
    }

    fn tangent_vjp(
        &self,
        backend: &B,
        _saved: &Saved<B>,
        _tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        self.0.add_pixels(backend, &gy, grads.context);
        (gy, gdy)
    }
}
