//! Data from a path, by what it holds.

use std::fs;
use std::path::Path;

use super::image::{self, ImageSize, npy};
use super::reading::{Note, ReadOptions, Reading};
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
    /// What was decided to read a table.
    pub notes: Vec<Note>,
    /// The rows of the file that the table lacks, counted from 0.
    pub dropped: Vec<usize>,
}

impl From<Reading> for Opened {
    fn from(Reading { table, notes, dropped }: Reading) -> Self {
        Self { data: table.into(), test: None, image_size: None, notes, dropped }
    }
}

/// Reads data from a file or a folder: a table as [`read_from`](super::read_from) finds it, images as [`image::open`]
/// finds them, or an NPY array `[n, c, h, w]` of numbers between 0 and 1.
///
/// # Errors
/// Returns [`DataError::File`] with the path and the cause if it cannot be read.
pub fn open(path: impl AsRef<Path>) -> Result<Opened, DataError> {
    open_with(path, &ReadOptions::default())
}

/// Reads data from a file or a folder with what is known of them, should they be a table. A pipe holds a table.
///
/// # Errors
/// Returns [`DataError::File`] with the path and the cause if it cannot be read.
pub fn open_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Opened, DataError> {
    let path = path.as_ref();
    // what is no file can be read but once
    let is_stream = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    if is_stream || !image::looks_like_images(path) {
        return Ok(super::read_with(path, options)?.into());
    }
    match image::open(path) {
        Ok(images) => {
            let image_size = Some(images.training.size());
            let (data, test) = (images.training.into(), images.test.map(Dataset::from));
            Ok(Opened { data, test, image_size, notes: Vec::new(), dropped: Vec::new() })
        }
        // an array of numbers that are no bytes
        Err(e) if is_npy_type(&e) => {
            let named = |e| DataError::File { path: path.to_owned(), source: Box::new(e) };
            let bytes = fs::read(path).map_err(|e| named(e.into()))?;
            let stack = npy::read_stack(&bytes).map_err(named)?;
            let (image_size, width) = (Some(stack.size()), stack.dimension());
            let data = Table::new(None, width, stack.into_values())?.into();
            Ok(Opened { data, test: None, image_size, notes: Vec::new(), dropped: Vec::new() })
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
