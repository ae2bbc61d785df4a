//! Data from a path, by what it holds.

use std::fs;
use std::path::Path;

use super::image::{self, Contents, ImageSize, ImageStack};
use super::reading::{Note, ReadOptions, Reading};
use super::{Dataset, Table, Values};
use crate::error::DataError;

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
    /// What was decided in reading.
    pub notes: Vec<Note>,
    /// The rows of the file that the table lacks, counted from 0.
    pub dropped: Vec<usize>,
}

impl From<Reading> for Opened {
    fn from(Reading { table, notes, dropped }: Reading) -> Self {
        Self { data: table.into(), test: None, image_size: None, notes, dropped }
    }
}

impl Opened {
    /// Returns images as bytes, which is what is learned from, where they are numbers between 0 and 1 (see
    /// [`ImageStack::quantised`]); anything else as it is.
    ///
    /// # Errors
    /// Returns [`DataError::Image`] for numbers that are not between 0 and 1, or are no whole number of images.
    pub fn quantised(self) -> Result<Self, DataError> {
        let Some(ImageSize { height, width, channels }) = self.image_size else { return Ok(self) };
        if self.data.images().is_some() {
            return Ok(self);
        }
        let bytes = |data: Dataset| match data.into_values() {
            Values::Tabular(table) => {
                let stack = ImageStack::new(height, width, channels, table.into_values())?;
                Ok::<Dataset, DataError>(stack.quantised()?.into())
            }
            Values::Images(set) => Ok(set.into()),
        };
        let Self { data, test, image_size, mut notes, dropped } = self;
        let said = "numbers between 0 and 1 are learned as bytes: the largest whole number up to 256 times each";
        notes.push(Note::Images(said.into()));
        Ok(Self { data: bytes(data)?, test: test.map(bytes).transpose()?, image_size, notes, dropped })
    }
}

/// Reads data from a file or a folder: a table as [`read_from`](super::read_from) finds it, images as [`image::open`]
/// finds them, or an NPY array `[n, c, h, w]`, `[n, h, w, c]` or `[n, h, w]` of numbers between 0 and 1.
///
/// # Errors
/// Returns [`DataError::File`] with the path and the cause if it cannot be read.
pub fn open(path: impl AsRef<Path>) -> Result<Opened, DataError> {
    open_with(path, &ReadOptions::default())
}

/// Reads data from a file or a folder with what is known of them. A pipe holds a table.
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
    let said = |notes: Vec<String>| notes.into_iter().map(Note::Images).collect();
    Ok(match image::open_contents(path, options.image_size)? {
        Contents::Bytes(images) => Opened {
            test: images.test.map(Dataset::from),
            notes: said(images.notes),
            image_size: Some(images.training.size()),
            data: images.training.into(),
            dropped: Vec::new(),
        },
        Contents::Continuous(stack, notes) => {
            let (image_size, width) = (Some(stack.size()), stack.dimension());
            let data = Table::new(None, width, stack.into_values())?.into();
            Opened { data, test: None, image_size, notes: said(notes), dropped: Vec::new() }
        }
    })
}
