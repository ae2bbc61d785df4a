//! Layers one after the other: f = f_L ∘ … ∘ f₁, derivatives by the chain rule, Lip(f) ≤ Π Lip(f_l).

use resflow_backend::{Backend, BackendError};

use super::{Keep, Layer, PreparedLayer, Saved, Slot, Spectrum, Visitor, VisitorMut};
use crate::error::ConfigError;
use crate::lipschitz::Refresh;

/// A chain of layers.
#[derive(Debug)]
pub struct Sequence<B: Backend> {
    layers: Vec<Box<dyn Layer<B>>>,
}

impl<B: Backend> Sequence<B> {
    /// The chain of these layers, the first applied first.
    pub fn new(layers: Vec<Box<dyn Layer<B>>>) -> Self {
        Self { layers }
    }

    /// The layers.
    pub fn layers(&self) -> &[Box<dyn Layer<B>>] {
        &self.layers
    }
}

impl<B: Backend> Layer<B> for Sequence<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        for (i, layer) in self.layers.iter().enumerate() {
            layer.visit(&format!("{path}.{i}"), visitor);
        }
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.visit_mut(&format!("{path}.{i}"), visitor);
        }
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(PreparedSequence { layers: self.layers.iter().map(|l| l.prepare(backend)).collect() })
    }

    fn refresh(&mut self, backend: &B, how: Refresh) {
        for layer in &mut self.layers {
            layer.refresh(backend, how);
        }
    }

    fn output(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.layers.iter().try_fold(input.to_vec(), |shape, layer| layer.output(&shape))
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        let mut shape = input.to_vec();
        let mut total = 0;
        for layer in &self.layers {
            total += layer.multiply_adds(&shape);
            shape = layer.output(&shape).unwrap_or(shape);
        }
        total
    }

    fn lipschitz_bound(&self) -> f64 {
        self.layers.iter().map(|l| l.lipschitz_bound()).product()
    }

    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        self.layers.iter().enumerate().try_for_each(|(i, layer)| layer.spectra(backend, &format!("{path}.{i}"), report))
    }

    fn describe(&self, backend: &B) -> String {
        self.layers.iter().map(|l| l.describe(backend)).collect::<Vec<_>>().join("; ")
    }

    fn boxed_clone(&self) -> Box<dyn Layer<B>> {
        Box::new(Self { layers: self.layers.iter().map(|l| l.boxed_clone()).collect() })
    }
}

#[derive(Debug)]
struct PreparedSequence<B: Backend> {
    layers: Vec<Box<dyn PreparedLayer<B>>>,
}

impl<B: Backend> PreparedLayer<B> for PreparedSequence<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, keep: Keep) -> (B::Tensor, Saved<B>) {
        let mut value = x.clone();
        let mut parts = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (next, saved) = layer.forward(backend, &value, keep);
            value = next;
            parts.push(saved);
        }
        (value, Saved { tensors: Vec::new(), parts })
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let mut tangent = dx.clone();
        let mut parts = Vec::with_capacity(self.layers.len());
        for (layer, saved) in self.layers.iter().zip(&saved.parts) {
            let (next, kept) = layer.jvp(backend, saved, &tangent);
            tangent = next;
            parts.push(kept);
        }
        (tangent, Saved { tensors: Vec::new(), parts })
    }

    fn keep_tangent(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> Saved<B> {
        let mut tangent = dx.clone();
        let mut parts = Vec::with_capacity(self.layers.len());
        let pairs = self.layers.iter().zip(&saved.parts);
        let (last, others) = (pairs.clone().next_back(), pairs.take(self.layers.len().saturating_sub(1)));
        for (layer, saved) in others {
            let (next, kept) = layer.jvp(backend, saved, &tangent);
            tangent = next;
            parts.push(kept);
        }
        parts.extend(last.map(|(layer, saved)| layer.keep_tangent(backend, saved, &tangent)));
        Saved { tensors: Vec::new(), parts }
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        self.layers.iter().zip(&saved.parts).rev().fold(gy, |g, (layer, saved)| layer.vjp(backend, saved, g))
    }

    fn tangent_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        mut gy: B::Tensor,
        mut gdy: Vec<B::Tensor>,
        slots: &mut [Slot<B>],
    ) -> (B::Tensor, Vec<B::Tensor>) {
        let mut end = slots.len();
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let start = end - layer.slots();
            let kept: Vec<_> = tangents.iter().map(|t| &t.parts[i]).collect();
            (gy, gdy) = layer.tangent_vjp(backend, &saved.parts[i], &kept, gy, gdy, &mut slots[start..end]);
            end = start;
        }
        (gy, gdy)
    }

    fn slots(&self) -> usize {
        self.layers.iter().map(|l| l.slots()).sum()
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) {
        let mut rest = slots;
        for layer in &self.layers {
            let (own, others) = rest.split_at_mut(layer.slots());
            layer.pull_back(backend, own);
            rest = others;
        }
    }
}
