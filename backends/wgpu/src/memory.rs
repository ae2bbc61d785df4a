//! Device memory: buffers by size class, returned to free lists when the last handle goes.
//!
//! There is one in-order queue, and an operation is recorded before its operands are dropped, so a returned buffer may be
//! taken again at once. A tensor that could not be made carries its fault, and so does everything computed from it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use resflow_backend::BackendError;

use crate::arena::Region;

/// The smallest buffer, in bytes.
const SMALLEST: u64 = 256;

/// Free bytes that may always be kept.
const HOARD: u64 = 256 << 20;

/// Free buffers by size class, and the number of bytes in use and free.
///
/// The buffer with the lowest number is taken first: which one an operation gets then depends on what is in use, not on the
/// order in which it was returned, so that repeated work binds the same buffers and finds their bind groups made.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<HashMap<u64, BTreeMap<u64, wgpu::Buffer>>>,
    /// Bytes of all buffers that exist, and of those that are free.
    total: AtomicU64,
    idle: AtomicU64,
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
        let taken = self.free.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&class)?.pop_first()?;
        self.idle.fetch_sub(class, Ordering::Relaxed);
        Some(taken)
    }

    fn give(&self, class: u64, id: u64, buffer: wgpu::Buffer) {
        self.idle.fetch_add(class, Ordering::Relaxed);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).entry(class).or_default().insert(id, buffer);
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

    /// Whether more is free than in use, and more than is worth keeping: sizes have changed.
    pub(crate) fn hoards(&self) -> bool {
        let idle = self.idle.load(Ordering::Relaxed);
        idle > HOARD && idle > self.total() / 2
    }

    /// Drops all free buffers.
    pub(crate) fn trim(&self) {
        let free = std::mem::take(&mut *self.free.lock().unwrap_or_else(PoisonError::into_inner));
        for (class, buffers) in free {
            let bytes = class * buffers.len() as u64;
            self.forget(bytes);
            self.idle.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// A buffer that tensors are windows of.
#[derive(Debug)]
pub(crate) struct Storage {
    buffer: wgpu::Buffer,
    id: u64,
    bytes: u64,
    pool: Arc<Pool>,
    origin: Origin,
    fault: OnceLock<BackendError>,
    /// The part of an arena that it is, and whether what belongs there is still to be computed.
    region: Option<Region>,
    pending: AtomicBool,
}

/// Where a buffer comes from, and so where it goes when the last handle is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The free list of its class.
    Pool,
    /// One upload: it goes nowhere, and few operations bind it.
    Upload,
    /// The upload of a constant that is kept.
    Constant,
    /// A region of an arena.
    Arena,
    /// The device, which lends it to tensors of no elements.
    Shared,
}

impl Storage {
    fn new(pool: &Arc<Pool>, id: u64, buffer: wgpu::Buffer, bytes: u64, origin: Origin) -> Self {
        Self {
            buffer,
            id,
            bytes,
            pool: Arc::clone(pool),
            origin,
            fault: OnceLock::new(),
            region: None,
            pending: AtomicBool::new(false),
        }
    }

    pub(crate) fn pooled(pool: &Arc<Pool>, id: u64, buffer: wgpu::Buffer, class: u64) -> Self {
        Self::new(pool, id, buffer, class, Origin::Pool)
    }

    /// A region of an arena, which shares its buffer with others.
    pub(crate) fn in_arena(pool: &Arc<Pool>, region: Region) -> Self {
        let (buffer, id) = (region.arena.buffer.clone(), region.arena.id);
        let mut new = Self::new(pool, id, buffer, 0, Origin::Arena);
        new.region = Some(region);
        new
    }

    /// All of an arena, for those who write to regions of it.
    pub(crate) fn whole_arena(pool: &Arc<Pool>, (id, buffer): (u64, wgpu::Buffer)) -> Self {
        Self::new(pool, id, buffer, 0, Origin::Arena)
    }

    /// Where a region begins, in elements.
    pub(crate) fn start(&self) -> usize {
        self.region.as_ref().map_or(0, |region| region.start)
    }

    pub(crate) fn is_in_arena(&self) -> bool {
        self.origin == Origin::Arena
    }

    /// Whether what belongs here is still to be computed.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    pub(crate) fn set_pending(&self, pending: bool) {
        self.pending.store(pending, Ordering::Release);
    }

    /// A buffer made for one upload; `kept` if many operations will use it.
    pub(crate) fn uploaded(pool: &Arc<Pool>, buffer: wgpu::Buffer, bytes: u64, kept: bool) -> Self {
        let origin = if kept { Origin::Constant } else { Origin::Upload };
        Self::new(pool, pool.register(bytes), buffer, bytes, origin)
    }

    /// Of no elements, or of none because of a fault.
    pub(crate) fn empty(pool: &Arc<Pool>, (id, buffer): (u64, wgpu::Buffer), fault: Option<BackendError>) -> Self {
        let new = Self::new(pool, id, buffer, 0, Origin::Shared);
        if let Some(fault) = fault {
            new.poison(&fault);
        }
        new
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
        self.origin != Origin::Upload
    }

    /// Whether the buffer is of the device with this pool.
    pub(crate) fn is_of(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    pub(crate) fn fault(&self) -> Option<&BackendError> {
        self.fault.get()
    }

    /// Says that what should be in the buffer is not; the first reason stays.
    pub(crate) fn poison(&self, fault: &BackendError) {
        let _ = self.fault.set(fault.clone());
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        match self.origin {
            Origin::Pool => self.pool.give(self.bytes, self.id, self.buffer.clone()),
            Origin::Upload | Origin::Constant => self.pool.forget(self.bytes),
            Origin::Arena | Origin::Shared => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use resflow_backend::{Key, Noise};

    use super::*;
    use crate::adapter::AdapterChoice;
    use crate::device::Gpu;
    use crate::options::WgpuOptions;

    /// In whatever order buffers come back, they are taken again by their numbers.
    #[test]
    fn the_lowest_number_is_taken_first() {
        let Ok(gpu) = Gpu::open(&WgpuOptions { adapter: AdapterChoice::from_env(), ..WgpuOptions::default() }) else {
            assert!(std::env::var("RESFLOW_REQUIRE_GPU").is_err(), "no adapter");
            return eprintln!("SKIPPED, NOT TESTED: no adapter");
        };
        let make = || gpu.noise(Key::new(1), Noise::Uniform, 0, [1000].into());
        let mut kept = vec![make(), make(), make(), make()];
        let ids: Vec<u64> = kept.iter().map(|x| x.storage().id()).collect();
        for place in [2, 0, 1, 0] {
            drop(kept.remove(place));
        }
        let again = [make(), make(), make(), make()];
        assert!(ids.is_sorted() && again.each_ref().map(|x| x.storage().id())[..] == ids[..]);
    }

    #[test]
    fn classes_waste_a_quarter_at_most() {
        for bytes in (1..5000).chain([1 << 20, (1 << 20) + 4, 3 << 27, (3 << 27) + 4]) {
            let class = Pool::class(bytes);
            assert!(class >= bytes && class.is_multiple_of(4) && Pool::class(class) == class, "{bytes} in {class}");
            assert!(bytes < SMALLEST || class as f64 <= 1.26 * bytes as f64, "{bytes} in {class}");
        }
    }
}
