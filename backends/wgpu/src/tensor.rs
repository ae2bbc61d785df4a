//! Tensors: windows of device buffers.

use std::sync::Arc;

use resflow_backend::{BackendError, Shape};

use crate::memory::Storage;

/// A handle to `f32` elements on the device, contiguous and row-major. Slices of rows and reshaped views share memory.
#[derive(Debug, Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    /// In elements.
    offset: usize,
    shape: Shape,
}

impl Tensor {
    pub(crate) fn new(storage: Storage, shape: Shape) -> Self {
        Self { storage: Arc::new(storage), offset: 0, shape }
    }

    /// A region of an arena.
    pub(crate) fn in_arena(storage: Storage, shape: Shape) -> Self {
        Self { offset: storage.start(), storage: Arc::new(storage), shape }
    }

    /// The handle that all windows of the memory share.
    pub(crate) fn handle(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Elements `start..` of the same memory in another shape.
    pub(crate) fn window(&self, start: usize, shape: Shape) -> Self {
        Self { storage: Arc::clone(&self.storage), offset: self.offset + start, shape }
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn fault(&self) -> Option<&BackendError> {
        self.storage.fault()
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.elements()
    }
}
