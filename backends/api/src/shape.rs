//! Shapes: up to five axes, row-major, the last axis contiguous.

use std::fmt;
use std::ops::Deref;

/// The largest number of axes that a tensor may have.
pub const MAX_RANK: usize = 5;

/// The extents of a tensor, first axis outermost. The first axis counts rows (samples) wherever samples occur;
/// images are `[n, h, w, c]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: u8,
    extents: [usize; MAX_RANK],
}

impl Shape {
    /// A shape with these extents.
    ///
    /// # Panics
    /// With more than [`MAX_RANK`] axes.
    #[track_caller]
    pub fn new(extents: &[usize]) -> Self {
        assert!(extents.len() <= MAX_RANK, "a tensor has at most {MAX_RANK} axes, not {}", extents.len());
        let mut stored = [1; MAX_RANK];
        stored[..extents.len()].copy_from_slice(extents);
        Self { rank: extents.len() as u8, extents: stored }
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.iter().product()
    }

    /// The first extent, 1 for a shape without axes.
    pub fn rows(&self) -> usize {
        self.first().copied().unwrap_or(1)
    }

    /// The number of elements of one row: the product of all extents but the first.
    pub fn row_elements(&self) -> usize {
        self.iter().skip(1).product()
    }

    /// The last extent, 1 for a shape without axes.
    pub fn channels(&self) -> usize {
        self.last().copied().unwrap_or(1)
    }

    /// Replaces the number of rows, the first extent.
    #[track_caller]
    pub fn with_rows(&self, rows: usize) -> Self {
        assert!(self.rank > 0, "a shape without axes has no rows");
        let mut out = *self;
        out.extents[0] = rows;
        out
    }

    /// Replaces the last extent.
    #[track_caller]
    pub fn with_channels(&self, channels: usize) -> Self {
        assert!(self.rank > 0, "a shape without axes has no channels");
        let mut out = *self;
        out.extents[self.rank as usize - 1] = channels;
        out
    }

    /// Returns `true` if a tensor of this shape can be broadcast to `to`: extents aligned at the last axis,
    /// each equal or 1.
    pub fn broadcasts_to(&self, to: &Shape) -> bool {
        self.rank <= to.rank && self.iter().rev().zip(to.iter().rev()).all(|(&a, &b)| a == b || a == 1)
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.extents[..self.rank as usize]
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(extents: [usize; N]) -> Self {
        Self::new(&extents)
    }
}

impl From<&[usize]> for Shape {
    fn from(extents: &[usize]) -> Self {
        Self::new(extents)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
