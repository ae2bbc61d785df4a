//! Device memory: buffers by size class, returned to free lists when the last handle goes.
//!
//! There is one in-order queue, and an operation is recorded before its operands are dropped, so a returned buffer may be
//! taken again at once. A tensor that could not be made carries its fault, and so does everything computed from it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use resflow_backend::BackendError;

/// The smallest buffer, in bytes.
const SMALLEST: u64 = 256;

/// Free buffers by size class, and the number of bytes in use and free.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<HashMap<u64, Vec<(u64, wgpu::Buffer)>>>,
    /// Bytes of all buffers that exist.
    total: AtomicU64,
    next_id: AtomicU64,
}

impl Pool {
    /// The size of the class that holds `bytes`: four classes an octave.
    pub(crate) fn class(bytes: u64) -> u64 {
        let bytes = bytes.max(SMALLEST);
        let step = (bytes.next_power_of_two() / 8).max(SMALLEST / 4);
        bytes.next_multiple_of(step)
    }

    pub(crate) fn take(&self, class: u64) -> Option<(u64, wgpu::Buffer)> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&class)?.pop()
    }

    fn give(&self, class: u64, id: u64, buffer: wgpu::Buffer) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).entry(class).or_default().push((id, buffer));
    }

    /// Counts a buffer that now exists and numbers it.
    pub(crate) fn register(&self, bytes: u64) -> u64 {
        self.total.fetch_add(bytes, Ordering::Relaxed);
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn forget(&self, bytes: u64) {
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of all buffers, in use or free.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Drops all free buffers.
    pub(crate) fn trim(&self) {
        let free = std::mem::take(&mut *self.free.lock().unwrap_or_else(PoisonError::into_inner));
        for (class, buffers) in free {
            self.forget(class * buffers.len() as u64);
        }
    }
}

/// A buffer that tensors are windows of.
#[derive(Debug)]
pub(crate) struct Storage {
    buffer: wgpu::Buffer,
    id: u64,
    bytes: u64,
    origin: Origin,
    /// Whether later operations are likely to bind it again.
    kept: bool,
    fault: Option<BackendError>,
}

/// Where a buffer goes when the last handle is dropped.
#[derive(Debug)]
enum Origin {
    /// To its class.
    Pool(Arc<Pool>),
    /// Nowhere: it was made for one upload.
    Upload(Arc<Pool>),
    /// It belongs to the device.
    Shared,
}

impl Storage {
    pub(crate) fn pooled(pool: &Arc<Pool>, id: u64, buffer: wgpu::Buffer, class: u64) -> Self {
        Self { buffer, id, bytes: class, origin: Origin::Pool(Arc::clone(pool)), kept: true, fault: None }
    }

    /// A buffer made for one upload; `kept` if many operations will use it.
    pub(crate) fn uploaded(pool: &Arc<Pool>, buffer: wgpu::Buffer, bytes: u64, kept: bool) -> Self {
        let id = pool.register(bytes);
        Self { id, buffer, bytes, origin: Origin::Upload(Arc::clone(pool)), kept, fault: None }
    }

    /// Of no elements, or of none because of a fault.
    pub(crate) fn empty(id: u64, buffer: wgpu::Buffer, fault: Option<BackendError>) -> Self {
        Self { buffer, id, bytes: 0, origin: Origin::Shared, kept: true, fault }
    }

    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// A number that no other buffer of the device ever has.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether later operations are likely to bind the buffer again.
    pub(crate) fn recurs(&self) -> bool {
        self.kept
    }

    pub(crate) fn fault(&self) -> Option<&BackendError> {
        self.fault.as_ref()
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        match &self.origin {
            Origin::Pool(pool) => pool.give(self.bytes, self.id, self.buffer.clone()),
            Origin::Upload(pool) => pool.forget(self.bytes),
            Origin::Shared => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_a_quarter_at_most() {
        for bytes in (1..5000).chain([1 << 20, (1 << 20) + 4, 3 << 27, (3 << 27) + 4]) {
            let class = Pool::class(bytes);
            assert!(class >= bytes && class.is_multiple_of(4) && Pool::class(class) == class, "{bytes} in {class}");
            assert!(bytes < SMALLEST || class as f64 <= 1.26 * bytes as f64, "{bytes} in {class}");
        }
    }
}
