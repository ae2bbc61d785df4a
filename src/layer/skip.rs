//! A net around which its input is led, x ↦ x + f(x) (He et al. 2016, arXiv 1512.03385): a part of nets of free weights, and no transform of a
//! flow, since nothing bounds f.

use resflow_backend::Backend;

use super::{Derivatives, Layer, LayerGrads, OrderGradients, PreparedLayer, Saved, Sequence};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::module::{Grad, Module, Part, PartMut, ShowPart, ShowPartMut};
use crate::stage::LayerStage;

/// x + f(x).
#[derive(Debug, Clone)]
pub struct Skip<B: Backend> {
    net: Sequence<B>,
}

impl<B: Backend> Skip<B> {
    /// Leads the input around a net, which keeps the shape of samples and is told of no context.
    pub fn new(net: Sequence<B>) -> Self {
        Self { net }
    }
}

impl<B: Backend> Module<B> for Skip<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        show("net", Part::Module(&self.net));
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        show("net", PartMut::Module(&mut self.net));
    }

    fn describe(&self) -> String {
        format!("x + [{}]", self.net.describe())
    }
}

impl<B: Backend> Layer<B> for Skip<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(PreparedSkip { net: self.net.prepare(backend) })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let output = self.net.output_shape(input)?;
        if output == input {
            return Ok(output);
        }
        let problem =
            format!("a net that is skipped keeps the shape of samples, this one maps {input:?} to {output:?}");
        Err(ConfigError::Inconsistent(problem))
    }

    fn resize(&mut self, backend: &B, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.net.resize(backend, input)
    }

    fn activations(&self, input: &[usize]) -> usize {
        self.net.activations(input)
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        self.net.multiply_adds(input)
    }

    fn lipschitz_bound(&self) -> f64 {
        1.0 + self.net.lipschitz_bound()
    }

    fn stage(&self) -> Option<LayerStage> {
        let net = self.net.net()?;
        Some(LayerStage::Skip { layers: net.layers })
    }
}

#[derive(Debug)]
struct PreparedSkip<B: Backend> {
    net: Box<dyn PreparedLayer<B>>,
}

impl<B: Backend> PreparedLayer<B> for PreparedSkip<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let (y, saved) = self.net.forward(backend, batch, keep);
        (backend.axpy(1.0, &y, batch.x.clone()), Saved { tensors: Vec::new(), parts: vec![saved] })
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let (dy, kept) = self.net.jvp(backend, &saved.parts[0], dx);
        (backend.axpy(1.0, &dy, dx.clone()), Saved { tensors: Vec::new(), parts: vec![kept] })
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        let through = self.net.vjp(backend, &saved.parts[0], gy.clone());
        backend.axpy(1.0, &through, gy)
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
        let own: Vec<_> = tangents.iter().map(|t| &t.parts[0]).collect();
        let (gx, gdx) = self.net.tangent_vjp(backend, &saved.parts[0], &own, gy.clone(), gdy.clone(), grads);
        let around = |g: &B::Tensor, through: B::Tensor| backend.axpy(1.0, g, through);
        let gdx = gdy.iter().zip(gdx).map(|(g, through)| around(g, through)).collect();
        (around(&gy, gx), gdx)
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        self.net.finish_gradients(backend, grads)
    }
}
