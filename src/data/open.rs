//! Data from a path, by what it holds.

use std::path::Path;

use super::image::{self, Contents, ImageSize, ImageStack};
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
    /// Sentences on what was decided in reading them.
    pub notes: Vec<String>,
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
        let Self { data, test, mut notes, .. } = self;
        notes
            .push("numbers between 0 and 1 are learned as bytes: the largest whole number up to 256 times each".into());
        Ok(Self { data: bytes(data)?, test: test.map(bytes).transpose()?, notes, image_size: self.image_size })
    }
}

/// Reads data from a file or a folder: a table from CSV or NPY, images as [`image::open`] finds them, or an NPY array
/// `[n, c, h, w]`, `[n, h, w, c]` or `[n, h, w]` of numbers between 0 and 1.
///
/// # Errors
/// Returns [`DataError::File`] with the path and the cause if it cannot be read.
pub fn open(path: impl AsRef<Path>) -> Result<Opened, DataError> {
    open_sized(path, None)
}

/// Reads data as [`open`] does, images of any size, and cuts or pads all of them about the centre to a height and width.
///
/// # Errors
/// Returns [`DataError::File`] with the path and the cause if it cannot be read.
pub fn open_sized(path: impl AsRef<Path>, size: Option<[usize; 2]>) -> Result<Opened, DataError> {
    let path = path.as_ref();
    if !image::looks_like_images(path) {
        return Ok(Opened { data: super::read(path)?.into(), test: None, image_size: None, notes: Vec::new() });
    }
    match image::open_contents(path, size)? {
        Contents::Bytes(images) => {
            let (image_size, notes) = (Some(images.training.size()), images.notes);
            Ok(Opened { data: images.training.into(), test: images.test.map(Dataset::from), image_size, notes })
        }
        Contents::Continuous(stack, notes) => {
            let (image_size, width) = (Some(stack.size()), stack.dimension());
            let data = Table::new(None, width, stack.into_values())?.into();
            Ok(Opened { data, test: None, image_size, notes })
        }
    }
}
