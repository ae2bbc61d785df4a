//! One buffer for many small tensors, so that one launch can read and write any of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::fault::lock;

/// Regions begin at multiples of this, in elements.
const STEP: usize = 64;

/// A buffer that lends regions, the lowest that is free first, so that repeated work gets the same ones.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) id: u64,
    /// The lengths of free regions by where they begin, none of which touch.
    free: Mutex<BTreeMap<usize, usize>>,
}

impl Arena {
    pub(crate) fn new(buffer: wgpu::Buffer, id: u64, elements: usize) -> Self {
        Self { buffer, id, free: Mutex::new(BTreeMap::from([(0, elements / STEP * STEP)])) }
    }

    /// A region of so many elements; `None` where there is none.
    pub(crate) fn take(self: &Arc<Self>, elements: usize) -> Option<Region> {
        let length = elements.next_multiple_of(STEP);
        let mut free = lock(&self.free);
        let (start, found) = free.iter().find(|(_, found)| **found >= length).map(|(s, f)| (*s, *f))?;
        free.remove(&start);
        if found > length {
            free.insert(start + length, found - length);
        }
        Some(Region { arena: Arc::clone(self), start, length })
    }

    fn give(&self, mut start: usize, mut length: usize) {
        let mut free = lock(&self.free);
        if let Some((&before, &own)) = free.range(..start).next_back().filter(|(before, own)| **before + **own == start)
        {
            free.remove(&before);
            (start, length) = (before, length + own);
        }
        if let Some(own) = free.remove(&(start + length)) {
            length += own;
        }
        free.insert(start, length);
    }
}

/// A part of an arena, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) arena: Arc<Arena>,
    pub(crate) start: usize,
    length: usize,
}

impl Drop for Region {
    fn drop(&mut self) {
        self.arena.give(self.start, self.length);
    }
}
