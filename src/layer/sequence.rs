//! Layers one after the other: f = f_L ∘ … ∘ f₁, derivatives by the chain rule, Lip(f) ≤ Π Lip(f_l).
//!
//! The norms that constrained layers are bounded between meet at their boundaries, so a chain owns the raw parameters of
//! learned ones: one parameter is the codomain of a layer and the domain of the next.

use resflow_backend::{Backend, BackendError};

use super::activation::kept;
use super::{
    Keep, Layer, LayerNorms, OrderGradients, PreparedLayer, Role, Saved, Slot, Spectrum, Visitor, VisitorMut,
    accumulate,
};
use crate::error::ConfigError;
use crate::lipschitz::{Order, Refresh, check_chain, two_norm_factor};

/// A chain of layers.
#[derive(Debug)]
pub struct Sequence<B: Backend> {
    layers: Vec<Box<dyn Layer<B>>>,
    /// The (domain, codomain) of each constrained layer, where they are not all the 2-norm.
    norms: Vec<(Order, Order)>,
    /// The raw parameters of learned orders, `[1]` each.
    orders: Vec<B::Tensor>,
}

impl<B: Backend> Sequence<B> {
    /// The chain of these layers, the first applied first.
    pub fn new(layers: Vec<Box<dyn Layer<B>>>) -> Self {
        Self { layers, norms: Vec::new(), orders: Vec::new() }
    }

    /// The chain of these layers, whose constrained ones are bounded between these norms. Learned orders begin at 2.
    ///
    /// # Errors
    /// Norms that do not meet, or another number of them than of constrained layers.
    pub fn with_norms(
        backend: &B,
        layers: Vec<Box<dyn Layer<B>>>,
        norms: Vec<(Order, Order)>,
    ) -> Result<Self, ConfigError> {
        check_chain(&norms)?;
        let learned = norms.iter().flat_map(|&(p, q)| [p, q]).filter_map(|order| match order {
            Order::Learned(raw) => Some(raw + 1),
            _ => None,
        });
        let orders = (0..learned.max().unwrap_or(0)).map(|_| backend.full(0.0, [1].into())).collect();
        let mut chain = Self { layers, norms, orders };
        let constrained = chain.distribute();
        if constrained != chain.norms.len() {
            return Err(ConfigError::Inconsistent(format!(
                "{} norms for {constrained} constrained layers",
                chain.norms.len()
            )));
        }
        Ok(chain)
    }

    /// Gives the layers their norms with the present orders; returns how many are constrained.
    fn distribute(&mut self) -> usize {
        if self.norms.is_empty() {
            return 0;
        }
        let orders = &self.orders;
        let raw = |order: Order| match order {
            Order::Learned(raw) => (order, orders.get(raw).cloned()),
            other => (other, None),
        };
        let mut given = 0;
        for layer in &mut self.layers {
            let (domain, codomain) = self.norms[given.min(self.norms.len() - 1)];
            if layer.set_norms(&LayerNorms { domain: raw(domain), codomain: raw(codomain) }) {
                given += 1;
            }
        }
        given
    }

    /// The layers.
    pub fn layers(&self) -> &[Box<dyn Layer<B>>] {
        &self.layers
    }
}

impl<B: Backend> Layer<B> for Sequence<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        for (i, order) in self.orders.iter().enumerate() {
            visitor(&format!("{path}.orders.{i}"), order, Role::Parameter);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            layer.visit(&format!("{path}.{i}"), visitor);
        }
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        for (i, order) in self.orders.iter_mut().enumerate() {
            visitor(&format!("{path}.orders.{i}"), order, Role::Parameter);
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.visit_mut(&format!("{path}.{i}"), visitor);
        }
        self.distribute();
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(PreparedSequence {
            layers: self.layers.iter().map(|l| l.prepare(backend)).collect(),
            norms: self.norms.clone(),
            orders: self.orders.len(),
        })
    }

    fn refresh(&mut self, backend: &B, how: Refresh) {
        for layer in &mut self.layers {
            layer.refresh(backend, how);
        }
    }

    fn output(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.layers.iter().try_fold(input.to_vec(), |shape, layer| layer.output(&shape))
    }

    fn resize(&mut self, backend: &B, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.layers.iter_mut().try_fold(input.to_vec(), |shape, layer| layer.resize(backend, &shape))
    }

    fn activations(&self, input: &[usize]) -> usize {
        let mut shape = input.to_vec();
        let mut total = 0;
        for layer in &self.layers {
            total += layer.activations(&shape);
            shape = layer.output(&shape).unwrap_or(shape);
        }
        total
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

    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        let mut layers = self.layers.iter().enumerate();
        layers.try_for_each(|(i, layer)| layer.vector_lengths(backend, &format!("{path}.{i}"), report))
    }

    fn two_norm_factor(&self, input: &[usize]) -> f64 {
        let dimension = input.iter().product();
        match self.norms.first() {
            None => 1.0,
            // a learned order may be anywhere between 1 and 5, and 1 is the worst
            Some((Order::Learned(_), _)) => two_norm_factor(1.0, dimension),
            Some((order, _)) => two_norm_factor(order.exponent().unwrap_or(1.0), dimension),
        }
    }

    fn describe(&self, backend: &B) -> String {
        self.layers.iter().map(|l| l.describe(backend)).collect::<Vec<_>>().join("; ")
    }

    fn boxed_clone(&self) -> Box<dyn Layer<B>> {
        Box::new(Self {
            layers: self.layers.iter().map(|l| l.boxed_clone()).collect(),
            norms: self.norms.clone(),
            orders: self.orders.clone(),
        })
    }
}

#[derive(Debug)]
struct PreparedSequence<B: Backend> {
    layers: Vec<Box<dyn PreparedLayer<B>>>,
    norms: Vec<(Order, Order)>,
    /// The number of learned orders, whose slots come first.
    orders: usize,
}

impl<B: Backend> PreparedLayer<B> for PreparedSequence<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, keep: Keep) -> (B::Tensor, Saved<B>) {
        let mut value = x.clone();
        let mut parts = Vec::with_capacity(self.layers.len());
        let mut layers = self.layers.iter().peekable();
        while let Some(layer) = layers.next() {
            let follows = layers.peek().and_then(|next| next.activation());
            let rows = backend.shape(&value).rank() == 2;
            if let (Some([wt, bias]), Some((f, parameter)), true) = (layer.product(), follows, rows) {
                layers.next();
                let (y, orders) = backend.linear_activation(&value, wt, bias, f, parameter, keep as usize);
                parts.push(Saved::tensors(if keep == Keep::Second { vec![value] } else { Vec::new() }));
                value = orders[0].clone();
                parts.push(kept(y.as_ref().unwrap_or(&value), orders, keep));
            } else {
                let (next, saved) = layer.forward(backend, &value, keep);
                value = next;
                parts.push(saved);
            }
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
        self.orders + self.layers.iter().map(|l| l.slots()).sum::<usize>()
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) -> OrderGradients<B> {
        let (orders, mut rest) = slots.split_at_mut(self.orders);
        let mut norms = self.norms.iter();
        for layer in &self.layers {
            let (own, others) = rest.split_at_mut(layer.slots());
            let gradients = layer.pull_back(backend, own);
            rest = others;
            if !layer.is_constrained() {
                continue;
            }
            let Some(&(domain, codomain)) = norms.next() else { continue };
            for (order, gradient) in [domain, codomain].into_iter().zip(gradients) {
                if let (Order::Learned(raw), Some(gradient)) = (order, gradient) {
                    accumulate(backend, &mut orders[raw], &gradient);
                }
            }
        }
        for slot in orders {
            slot.get_or_insert_with(|| backend.full(0.0, [1].into()));
        }
        [None, None]
    }
}
