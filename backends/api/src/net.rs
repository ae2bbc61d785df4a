//! Nets as a backend sees them: layers one after the other, handed over whole, so that what is between them need never
//! leave the device's fastest memory.
//!
//! For g = f_L ∘ … ∘ f₁ with J = ∂g/∂x at some samples: an affine layer is its weight, an activation is its slopes φ′ there,
//! and Jᵀ is a product and a multiplication after the other, from the last layer to the first. Whatever a backend does not
//! know how to chain it leaves to the compositions ([`composed`](crate::composed)), which are its reference, too.

use crate::Padding;

/// A layer of a [`Net`].
#[derive(Debug, Clone)]
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
    Activation,
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
        self.layers.iter().filter(|layer| matches!(layer, NetLayer::Activation)).count()
    }
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
