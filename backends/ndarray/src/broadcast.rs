//! Broadcasting as runs: stretches of the larger tensor that meet either one element of the smaller one or as many.
//!
//! Neighbouring axes along which the smaller tensor moves alike are one axis; the last of those is a run.

use resflow_backend::{MAX_RANK, Shape};

/// An axis and how far the smaller tensor moves along it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Axis {
    extent: usize,
    stride: usize,
}

/// How a tensor is broadcast to a shape without extents of 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Broadcast {
    // from the last axis on
    axes: [Axis; MAX_RANK],
}

impl Broadcast {
    /// `from` broadcasts to `to`.
    pub(crate) fn new(from: &Shape, to: &Shape) -> Self {
        let mut axes = [Axis { extent: 1, stride: 0 }; MAX_RANK];
        let (mut found, mut size) = (0_usize, 1);
        for (i, &extent) in to.iter().rev().enumerate().filter(|&(_, &extent)| extent != 1) {
            let own = from.rank().checked_sub(i + 1).map_or(1, |axis| from[axis]);
            let stride = if own == 1 { 0 } else { size };
            size *= own;
            let inner = found.checked_sub(1).map(|last| axes[last]);
            match inner {
                Some(inner) if stride == inner.stride * inner.extent => axes[found - 1].extent *= extent,
                _ => {
                    axes[found] = Axis { extent, stride };
                    found += 1;
                }
            }
        }
        Self { axes }
    }

    /// Elements of the larger tensor in a run.
    pub(crate) fn run(&self) -> usize {
        self.axes[0].extent
    }

    /// Whether a run meets one element of the smaller tensor.
    pub(crate) fn constant(&self) -> bool {
        self.axes[0].stride == 0
    }

    /// Calls `f(start in the larger tensor, start in the smaller one)` for every run in order.
    #[inline(always)]
    pub(crate) fn each(&self, mut f: impl FnMut(usize, usize)) {
        let [run, rows, outer @ ..] = self.axes;
        let mut index = [0; MAX_RANK - 2];
        let (mut at, mut from) = (0, 0);
        for _ in 0..outer.iter().map(|axis| axis.extent).product() {
            for row in 0..rows.extent {
                f(at, from + row * rows.stride);
                at += run.extent;
            }
            for (index, axis) in index.iter_mut().zip(&outer) {
                *index += 1;
                from += axis.stride;
                if *index < axis.extent {
                    break;
                }
                *index = 0;
                from -= axis.extent * axis.stride;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs() {
        for (from, to, run, constant) in [
            (&[3][..], &[4, 5, 3][..], 3, false),
            (&[1, 4, 5, 1], &[2, 4, 5, 3], 3, true),
            (&[1, 4, 5, 3], &[2, 4, 5, 3], 60, false),
            (&[2, 1, 1, 3], &[2, 4, 5, 3], 3, false),
            (&[2, 1, 1, 1], &[2, 4, 5, 3], 60, true),
            (&[2, 4, 5, 3], &[2, 4, 5, 3], 120, false),
            (&[1], &[2, 3], 6, true),
            (&[2, 1, 3, 1, 2], &[2, 3, 3, 4, 2], 2, false),
            (&[4, 1], &[4, 1], 4, false),
        ] {
            let (from, to) = (Shape::new(from), Shape::new(to));
            let b = Broadcast::new(&from, &to);
            assert_eq!((b.run(), b.constant()), (run, constant), "{from} to {to}");
            let mut found = Vec::new();
            b.each(|at, start| {
                assert_eq!(at, found.len());
                found.extend((0..run).map(|i| start + if constant { 0 } else { i }));
            });
            let expected: Vec<usize> = (0..to.elements())
                .map(|mut flat| {
                    let (mut place, mut size) = (0, 1);
                    for (i, &extent) in to.iter().rev().enumerate() {
                        let own = if i < from.rank() { from[from.rank() - 1 - i] } else { 1 };
                        place += if own == 1 { 0 } else { flat % extent * size };
                        (flat, size) = (flat / extent, size * own);
                    }
                    place
                })
                .collect();
            assert_eq!(found, expected, "{from} to {to}");
        }
    }
}
