//! Data from a path, by what it holds.

use std::fs;
use std::path::Path;

use super::image::{self, ImageSize, npy};
use super::{Dataset, Table};
use crate::error::{DataError, ImageError};

/// The contents of a path.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// The samples to learn from, or all there are.
    pub data: Dataset,
    /// The data set's own test samples, where they come with it.
    pub test: Option<Dataset>,
    /// The size of the images in pixels, also where they are numbers between 0 and 1 instead of bytes (the samples are
    /// tabular then, in (C, H, W) order).
    pub image_size: Option<ImageSize>,
}

/// Reads data from a file or a folder: a table from CSV or NPY, images as [`image::open`] finds them, or an NPY array
/// `[n, c, h, w]` of numbers between 0 and 1.
///
/// # Errors
/// Returns [`DataError::File`] with the path and the cause if it cannot be read.
pub fn open(path: impl AsRef<Path>) -> Result<Opened, DataError> {
    let path = path.as_ref();
    if !image::looks_like_images(path) {
        return Ok(Opened { data: super::read(path)?.into(), test: None, image_size: None });
    }
    match image::open(path) {
        Ok(images) => {
            let image_size = Some(images.training.size());
            Ok(Opened { data: images.training.into(), test: images.test.map(Dataset::from), image_size })
        }
        // an array of numbers that are no bytes
        Err(e) if is_npy_type(&e) => {
            let named = |e| DataError::File { path: path.to_owned(), source: Box::new(e) };
            let bytes = fs::read(path).map_err(|e| named(e.into()))?;
            let stack = npy::read_stack(&bytes).map_err(named)?;
            let (image_size, width) = (Some(stack.size()), stack.dimension());
            Ok(Opened { data: Table::new(None, width, stack.into_values())?.into(), test: None, image_size })
        }
        Err(e) => Err(e),
    }
}

fn is_npy_type(error: &DataError) -> bool {
    match error {
        DataError::File { source, .. } => is_npy_type(source),
        DataError::Image(ImageError::NpyType { .. }) => true,
        _ => false,
    }
}
