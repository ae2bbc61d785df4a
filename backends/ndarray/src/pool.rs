//! Memory for results, recycled by size.
//!
//! Asking the allocator for a fresh zero-filled buffer for each result costs 10 to 40 % of a training step. A buffer whose
//! last tensor is dropped goes back to the free list it came from and is handed out again with its old contents: the caller
//! writes every element. Lists belong to threads, so that threads do not wait for one another.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::CpuElement;
use crate::tiles::Packed;

/// What the free lists of one thread may hold at most, in bytes.
const KEPT_BYTES: usize = 64 << 20;
/// Sizes are looked up in this many short lists.
const BINS: usize = 64;

/// Free lists, one for each thread of the pool and one for all others.
#[derive(Debug)]
pub(crate) struct Pool<E> {
    lists: Vec<Arc<FreeList<E>>>,
}

impl<E: CpuElement> Pool<E> {
    pub(crate) fn new(threads: usize) -> Self {
        Self { lists: (0..=threads).map(|_| Arc::new(FreeList::default())).collect() }
    }

    /// A buffer of `len` elements with unspecified values; the only handle to it.
    pub(crate) fn take(&self, len: usize) -> Arc<Buffer<E>> {
        let list = &self.lists[rayon::current_thread_index().map_or(0, |i| 1 + i % (self.lists.len() - 1))];
        list.take(len).unwrap_or_else(|| {
            Arc::new(Buffer { data: vec![E::ZERO; len], packed: OnceLock::new(), home: Arc::clone(list) })
        })
    }
}

/// Memory of one or more tensors.
#[derive(Debug)]
pub(crate) struct Buffer<E> {
    pub(crate) data: Vec<E>,
    /// The numbers as the right operand of products on tiles, while they are these.
    pub(crate) packed: OnceLock<Packed>,
    home: Arc<FreeList<E>>,
}

impl<E> Buffer<E> {
    /// Takes a handle that is no longer wanted: the last one goes back to where it came from.
    pub(crate) fn release(mut buffer: Arc<Self>) {
        // with one handle left, nobody else can make a second one
        if let Some(own) = Arc::get_mut(&mut buffer) {
            own.packed.take();
            let home = Arc::clone(&own.home);
            home.put(buffer);
        }
    }
}

// aligned: lists of different threads on one cache line would make them wait for one another after all
#[derive(Debug)]
#[repr(align(128))]
struct FreeList<E>(Mutex<Kept<E>>);

#[derive(Debug)]
struct Kept<E> {
    bins: [Vec<(usize, Vec<Arc<Buffer<E>>>)>; BINS],
    bytes: usize,
}

impl<E> Default for FreeList<E> {
    fn default() -> Self {
        Self(Mutex::new(Kept { bins: std::array::from_fn(|_| Vec::new()), bytes: 0 }))
    }
}

fn bin(len: usize) -> usize {
    // Fibonacci hashing: the top six bits
    ((len as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58) as usize
}

impl<E> FreeList<E> {
    fn take(&self, len: usize) -> Option<Arc<Buffer<E>>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, stack) = kept.bins[bin(len)].iter_mut().find(|(l, _)| *l == len)?;
        let found = stack.pop()?;
        kept.bytes -= len * size_of::<E>();
        Some(found)
    }

    fn put(&self, buffer: Arc<Buffer<E>>) {
        let len = buffer.data.len();
        let bytes = len * size_of::<E>();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + bytes > KEPT_BYTES {
            return;
        }
        kept.bytes += bytes;
        let bin = &mut kept.bins[bin(len)];
        match bin.iter_mut().find(|(l, _)| *l == len) {
            Some((_, stack)) => stack.push(buffer),
            None => bin.push((len, vec![buffer])),
        }
    }
}
