//! A chain as the one net that a backend knows: what goes to it, and what comes back, in the form that layers keep.

use resflow_backend::{Backend, Net, NetLayer};

use super::Saved;
use super::activation::slope;

/// All layers as one net, if a backend knows all, and each trains what a backend thinks.
pub(super) fn whole<T: Clone>(known: &[Option<NetLayer<T>>], counts: &[usize]) -> Option<Net<T>> {
    let layers: Vec<_> = known.iter().cloned().collect::<Option<_>>()?;
    let alike = layers.iter().zip(counts).all(|(layer, count)| layer.trained() == *count);
    (alike && !layers.is_empty()).then_some(Net { layers })
}

/// φ′ of a net's activations, of what its layers kept.
pub(super) fn slopes<'a, B: Backend>(net: &Net<B::Tensor>, saved: &'a [Saved<B>]) -> Vec<&'a B::Tensor> {
    let activations = net.layers.iter().zip(saved).filter(|(layer, _)| layer.is_activation());
    activations.map(|(_, saved)| slope(saved)).collect()
}

/// One tensor for each layer.
pub(super) fn each_its_own<B: Backend>(tensors: Vec<B::Tensor>) -> Saved<B> {
    let parts = tensors.into_iter().map(|x| Saved::tensors(vec![x])).collect();
    Saved { tensors: Vec::new(), parts }
}
