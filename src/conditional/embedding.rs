//! The embedding e(c) of contexts: linear layers with a SiLU behind each, e = SiLU(E₂ SiLU(E₁ c + e₁) + e₂).
//!
//! There is one behind the last layer too: without it that layer would be one with the weights that are told of e. Without layers
//! a context is its own embedding, for whoever has an embedding of his own: the gradient in c goes back to it
//! ([`Gradient::context`](crate::flow::Gradient)).

use std::sync::atomic::{AtomicU64, Ordering};

use resflow_backend::{Activation, Backend, Binary, Key, Shape};

use crate::batch::Batch;
use crate::layer::{Derivatives, Layer as _, LayerGrads, LipschitzLinear, PreparedLayer, Saved};
use crate::module::{Grad, Module, Part, PartMut, ShowPart, ShowPartMut, fill, trained_shapes};

/// SiLU(x) = xσ(x) over LipSwish's xσ(bx) at b = 1.
const OF_LIPSWISH: f64 = 1.1;

/// The embedding of contexts of k numbers.
#[derive(Debug, Clone)]
pub struct Embedding<B: Backend> {
    layers: Vec<LipschitzLinear<B>>,
    context: usize,
    width: usize,
}

impl<B: Backend> Embedding<B> {
    /// Builds the embedding of contexts of so many numbers through layers of these widths, none for the context itself; with a
    /// key of random weights, without one of zeros to be filled.
    pub fn new(backend: &B, context: usize, widths: &[usize], key: Option<Key>) -> Self {
        let inputs = std::iter::once(&context).chain(widths);
        let layers = inputs.zip(widths).enumerate().map(|(i, (&inputs, &outputs))| match key {
            Some(key) => LipschitzLinear::initialise(backend, inputs, outputs, None, key.split(i as u64)),
            None => LipschitzLinear::zeros(backend, inputs, outputs, None),
        });
        Self { layers: layers.collect(), context, width: widths.last().copied().unwrap_or(context) }
    }

    /// k, the numbers of a context.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The numbers of an embedding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Prepares the embedding for computing.
    pub fn prepare(&self, backend: &B) -> PreparedEmbedding<B> {
        PreparedEmbedding {
            layers: self.layers.iter().map(|layer| layer.prepare(backend)).collect(),
            sharpness: backend.full(1.0, [1].into()),
            shapes: trained_shapes(backend, self),
            context: self.context,
            embedded: AtomicU64::new(0),
        }
    }
}

impl<B: Backend> Module<B> for Embedding<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        for (i, layer) in self.layers.iter().enumerate() {
            show(&i.to_string(), Part::Module(layer));
        }
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            show(&i.to_string(), PartMut::Module(layer));
        }
    }

    fn describe(&self) -> String {
        format!("embedding of {} numbers of a context as {}", self.context, self.width)
    }
}

/// An embedding ready for computing.
#[derive(Debug)]
pub struct PreparedEmbedding<B: Backend> {
    layers: Vec<Box<dyn PreparedLayer<B>>>,
    /// LipSwish's b, `[1]`.
    sharpness: B::Tensor,
    shapes: Vec<Shape>,
    context: usize,
    /// The contexts that were embedded so far.
    embedded: AtomicU64,
}

/// What an embedding keeps of a forward pass: of each layer its own, and SiLU′.
#[derive(Debug)]
pub struct EmbeddingTape<B: Backend>(Vec<(Saved<B>, B::Tensor)>);

impl<B: Backend> PreparedEmbedding<B> {
    /// k, the numbers of a context.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Counts the contexts that were embedded since it was prepared.
    pub fn embedded(&self) -> u64 {
        self.embedded.load(Ordering::Relaxed)
    }

    /// The number of trained tensors.
    pub(crate) fn grads(&self) -> usize {
        self.shapes.len()
    }

    /// Computes e(c) of contexts in standardised units, `[n, k]`.
    pub fn embed(&self, backend: &B, context: &B::Tensor) -> B::Tensor {
        self.forward(backend, context).0
    }

    /// Computes e(c), keeping what [`pull_back`](Self::pull_back) asks for.
    pub fn forward(&self, backend: &B, context: &B::Tensor) -> (B::Tensor, EmbeddingTape<B>) {
        self.embedded.fetch_add(backend.shape(context).rows() as u64, Ordering::Relaxed);
        let (mut value, mut tape) = (context.clone(), Vec::with_capacity(self.layers.len()));
        for layer in &self.layers {
            let (y, saved) = layer.forward(backend, &Batch::new(value), Derivatives::Second);
            let mut orders = backend.activation(Activation::LipSwish, Some(&self.sharpness), &y, 1).into_iter();
            let mut next = || backend.affine(orders.next().expect("two orders"), OF_LIPSWISH, 0.0);
            value = next();
            tape.push((saved, next()));
        }
        (value, EmbeddingTape(tape))
    }

    /// Takes the gradient in e(c), `[n, e]`, to that in c, `[n, k]`, adding to the gradients of the trained tensors.
    pub fn pull_back(
        &self,
        backend: &B,
        tape: EmbeddingTape<B>,
        gradient: B::Tensor,
        grads: &mut [Grad<B>],
    ) -> B::Tensor {
        let (mut gradient, mut end) = (gradient, grads.len());
        for (layer, (saved, slope)) in self.layers.iter().zip(tape.0).rev() {
            let gy = backend.binary(Binary::Mul, gradient, &slope);
            let own = LayerGrads { trained: &mut grads[end - 2..end], context: &mut None };
            gradient = layer.tangent_vjp(backend, &saved, &[], gy, Vec::new(), own).0;
            end -= 2;
        }
        gradient
    }

    /// Turns the gradients of what is computed with into those of what is stored; what got none becomes zeros.
    pub(crate) fn finish_gradients(&self, backend: &B, grads: &mut Vec<Grad<B>>) {
        grads.resize(self.shapes.len(), None);
        fill(backend, grads, &self.shapes);
    }
}
