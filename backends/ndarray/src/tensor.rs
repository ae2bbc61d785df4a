//! The tensor: a shared buffer, an offset and a shape, always row-major and without gaps.
//!
//! A slice of rows shares its parent's buffer. Invariant: `offset + shape.elements()` lies within the buffer.

use std::sync::{Arc, OnceLock};

use ndarray::{ArrayViewD, ArrayViewMutD, IxDyn};
use resflow_backend::Shape;

use crate::pool::Buffer;
use crate::tiles::Packed;

/// An array on the CPU; cloning copies no data.
#[derive(Debug, Clone)]
pub struct Tensor<E> {
    // always there but while being dropped
    buffer: Option<Arc<Buffer<E>>>,
    offset: usize,
    shape: Shape,
}

impl<E> Drop for Tensor<E> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            Buffer::release(buffer);
        }
    }
}

impl<E> Tensor<E> {
    pub(crate) fn new(buffer: Arc<Buffer<E>>) -> Self {
        let shape = [buffer.data.len()].into();
        Self { buffer: Some(buffer), offset: 0, shape }
    }

    /// The same elements in another shape.
    pub(crate) fn with_shape(mut self, shape: Shape) -> Self {
        debug_assert_eq!(self.shape.elements(), shape.elements());
        self.shape = shape;
        self
    }

    /// The elements of fresh memory, for writing.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [E] {
        self.unique_slice().expect("fresh memory has one handle")
    }

    fn memory(&self) -> &[E] {
        self.buffer.as_ref().map_or(&[], |b| &b.data)
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// The elements, row-major.
    pub fn as_slice(&self) -> &[E] {
        &self.memory()[self.offset..self.offset + self.shape.elements()]
    }

    /// The elements for writing, if this is the only handle to all of the buffer.
    pub(crate) fn unique_slice(&mut self) -> Option<&mut [E]> {
        let elements = self.shape.elements();
        let buffer = Arc::get_mut(self.buffer.as_mut()?)?;
        buffer.packed.take();
        (buffer.data.len() == elements).then_some(&mut buffer.data)
    }

    /// The place for this matrix as tiles want it, if it is all of the buffer.
    pub(crate) fn packed(&self) -> Option<&OnceLock<Packed>> {
        self.buffer.as_ref().filter(|b| b.data.len() == self.shape.elements()).map(|b| &b.packed)
    }

    /// `count` elements from `start` on, in another shape, sharing the buffer.
    pub(crate) fn window(&self, start: usize, shape: Shape) -> Self {
        debug_assert!(start + shape.elements() <= self.shape.elements());
        Self { buffer: self.buffer.clone(), offset: self.offset + start, shape }
    }

    /// The tensor as an ndarray.
    pub fn view(&self) -> ArrayViewD<'_, E> {
        view(self.as_slice(), self.shape)
    }
}

pub(crate) fn view<E>(data: &[E], shape: Shape) -> ArrayViewD<'_, E> {
    ArrayViewD::from_shape(IxDyn(&shape), data).expect("the slice has the shape's elements")
}

pub(crate) fn view_mut<E>(data: &mut [E], shape: Shape) -> ArrayViewMutD<'_, E> {
    ArrayViewMutD::from_shape(IxDyn(&shape), data).expect("the slice has the shape's elements")
}
