//! What a flow is evaluated on: rows of numbers, or images.

use super::Table;
use super::image::ImageSet;

/// Rows of numbers, in the data's units (of images: \[0, 1\], in (C, H, W) order), or images as bytes, to which uniform noise
/// is added.
#[derive(Debug, Clone, Copy)]
pub enum Samples<'a> {
    /// Rows of numbers.
    Rows(&'a Table),
    /// Images as bytes.
    Images(&'a ImageSet),
}

impl<'a> Samples<'a> {
    /// The table, where these are rows of numbers.
    pub fn table(&self) -> Option<&'a Table> {
        if let Self::Rows(table) = self { Some(table) } else { None }
    }

    /// The images, where these are images.
    pub fn images(&self) -> Option<&'a ImageSet> {
        if let Self::Images(set) = self { Some(set) } else { None }
    }

    /// The number of samples.
    pub fn count(&self) -> usize {
        match self {
            Self::Rows(table) => table.rows(),
            Self::Images(set) => set.len(),
        }
    }
}

impl<'a> From<&'a Table> for Samples<'a> {
    fn from(table: &'a Table) -> Self {
        Self::Rows(table)
    }
}

impl<'a> From<&'a ImageSet> for Samples<'a> {
    fn from(set: &'a ImageSet) -> Self {
        Self::Images(set)
    }
}
