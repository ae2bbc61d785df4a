//! Nets as a backend sees them: layers one after the other, handed over whole, so that what is between them need never
//! leave the device's fastest memory.
//!
//! For g = f_L ∘ … ∘ f₁ with J = ∂g/∂x at some samples: an affine layer is its weight, an activation is its slopes φ′ there,
//! and Jᵀ is a product and a multiplication after the other, from the last layer to the first. Whatever a backend does not
//! know how to chain it leaves to the compositions ([`composed`](crate::composed)), which are its reference, too.
//!
//! Layers will be added (biases computed from a context, gates, layers that join their input to their output), so a backend
//! has an arm for what it does not know, and leaves such a net, or the part of it, to the compositions.

use crate::{Activation, Padding};

/// A layer of a [`Net`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum NetLayer<T> {
    /// x ↦ x·wᵀ + bias on the last axis.
    Linear {
        /// w, `[o, i]`.
        weight: T,
        /// wᵀ, `[i, o]`.
        transposed: T,
        /// `[o]`.
        bias: T,
    },
    /// A cross-correlation of images of one size with images of the same.
    Convolution {
        /// `[o, kh, kw, i]`.
        kernel: T,
        /// `[o]`.
        bias: T,
        /// That which keeps the size.
        padding: Padding,
    },
    /// A function of each number by itself.
    Activation {
        /// φ.
        function: Activation,
        /// Its parameter b, `[1]`, if it has one.
        parameter: Option<T>,
    },
}

impl<T> NetLayer<T> {
    /// Returns `true` if it is an activation, which has slopes.
    pub fn is_activation(&self) -> bool {
        matches!(self, Self::Activation { .. })
    }

    /// The number of tensors with a gradient: of an affine layer weight and bias, of an activation its parameter.
    pub fn trained(&self) -> usize {
        match self {
            Self::Linear { .. } | Self::Convolution { .. } => 2,
            Self::Activation { parameter, .. } => usize::from(parameter.is_some()),
        }
    }
}

/// A net whose every layer is one of these.
#[derive(Debug, Clone)]
pub struct Net<T> {
    /// The layers, the first applied first.
    pub layers: Vec<NetLayer<T>>,
}

impl<T> Net<T> {
    /// The number of activations: of the slopes that are asked for.
    pub fn activations(&self) -> usize {
        self.layers.iter().filter(|layer| layer.is_activation()).count()
    }

    /// The number of tensors with a gradient.
    pub fn trained(&self) -> usize {
        self.layers.iter().map(NetLayer::trained).sum()
    }

    /// Checks that what a pullback is given is what its layers need.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn check_pullback(&self, kept: &[&[T]], tangents: &[Vec<&T>], cotangents: usize, grads: usize) {
        let layers = self.layers.len();
        assert_eq!(kept.len(), layers, "net_pullback: what {} layers kept of a net of {layers}", kept.len());
        for (layer, kept) in self.layers.iter().zip(kept) {
            let needed = if layer.is_activation() { 4 } else { 1 };
            assert_eq!(kept.len(), needed, "net_pullback: a layer kept {} tensors, not {needed}", kept.len());
        }
        assert!(tangents.iter().all(|t| t.len() == layers), "net_pullback: a tangent of another net");
        assert_eq!(tangents.len(), cotangents, "net_pullback: as many tangents as cotangents");
        assert_eq!(grads, self.trained(), "net_pullback: a gradient for each trained tensor");
    }
}

/// The result of [`Backend::net_forward`](crate::Backend::net_forward).
#[derive(Debug, Clone)]
pub struct NetForward<T> {
    /// g(x), `[n, …]`.
    pub y: T,
    /// What each layer keeps for derivatives up to the order asked for, `[n, …]`. An affine layer keeps its input for order
    /// 2, an activation φ′ for order 1, its input x, φ, φ′ and φ″ for order 2; nothing otherwise.
    pub kept: Vec<Vec<T>>,
}

/// The weights c_k of successive terms of the series.
#[derive(Debug)]
pub enum TermWeights<'a, T> {
    /// One for all rows, a number a term.
    Batch(&'a [f64]),
    /// One for each row, `[n, 1]` a term.
    PerRow(&'a [T]),
}

// not derived: a copy of references asks nothing of what they point at
impl<T> Clone for TermWeights<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for TermWeights<'_, T> {}

impl<T> TermWeights<'_, T> {
    /// The number of terms.
    pub fn terms(&self) -> usize {
        match self {
            Self::Batch(c) => c.len(),
            Self::PerRow(c) => c.len(),
        }
    }

    /// Those of the first term alone.
    pub fn first(&self) -> Self {
        match self {
            Self::Batch(c) => Self::Batch(&c[..c.len().min(1)]),
            Self::PerRow(c) => Self::PerRow(&c[..c.len().min(1)]),
        }
    }

    /// That of one term, from 0 on.
    pub fn term(&self, index: usize) -> crate::TermWeight<'_, T> {
        match self {
            Self::Batch(c) => crate::TermWeight::Batch(c[index]),
            Self::PerRow(c) => crate::TermWeight::PerRow(&c[index]),
        }
    }
}
