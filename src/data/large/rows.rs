//! Rows that can be read by their numbers, wherever they are.

use std::fmt::Debug;
use std::ops::Range;

use super::piece_rows;
use super::statistics::Faults;
use crate::data::image::{ImageSet, ImageSize};
use crate::data::{Dataset, Table};
use crate::error::{DataError, ImageError};

/// Rows of numbers that can be read by their numbers, at a cost and in memory of the order of what is read.
pub trait StoredRows: Debug + Send + Sync {
    /// The number of rows.
    fn rows(&self) -> usize;

    /// The number of columns.
    fn width(&self) -> usize;

    /// The names of the columns, where they have any.
    fn columns(&self) -> Option<&[String]>;

    /// What the rows are if they are images: the bytes of one image each, `[h, w, c]`; `None` for rows of a table.
    fn images(&self) -> Option<ImageRows<'_>> {
        None
    }

    /// Reads consecutive rows, all of which are there, and adds their values to `out`, row by row.
    ///
    /// # Errors
    /// Returns [`DataError::Changed`] if the rows are no longer those that there were, [`DataError::Io`] if they cannot be read.
    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError>;
}

/// What rows have besides their bytes where they are images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageRows<'a> {
    /// The size of every image; a row has h · w · c values.
    pub size: ImageSize,
    /// The labels, one for each image, where there are any. They are in memory.
    pub labels: Option<&'a [u8]>,
    /// The names of the classes, in the order of their labels, where they have names.
    pub class_names: Option<&'a [String]>,
}

impl ImageRows<'_> {
    /// The number of classes, where there are labels: that of their names, or one more than the largest label.
    pub fn classes(&self) -> Option<usize> {
        let labels = self.labels?;
        match self.class_names {
            Some(names) => Some(names.len()),
            None => labels.iter().max().map(|&label| usize::from(label) + 1),
        }
    }

    /// The images of these numbers, whose bytes were read.
    pub(super) fn set(&self, numbers: impl Iterator<Item = usize>, bytes: Vec<u8>) -> Result<ImageSet, DataError> {
        let ImageSize { height, width, channels } = self.size;
        let labels = self.labels.map(|labels| numbers.map(|number| labels[number]).collect());
        let set = ImageSet::new(height, width, channels, bytes, labels)?;
        match self.class_names {
            Some(names) => set.with_class_names(names.to_vec()),
            None => Ok(set),
        }
    }
}

impl<'a> From<&'a ImageSet> for ImageRows<'a> {
    fn from(set: &'a ImageSet) -> Self {
        Self { size: set.size(), labels: set.labels(), class_names: set.class_names() }
    }
}

/// The values of images as bytes.
pub(super) fn bytes(values: &[f64]) -> Result<Vec<u8>, ImageError> {
    match values.iter().find(|&&v| f64::from(v as u8) != v) {
        Some(&value) => Err(ImageError::Byte { value }),
        None => Ok(values.iter().map(|&v| v as u8).collect()),
    }
}

impl dyn StoredRows + '_ {
    /// The ranges of rows that one pass over all reads, one after the other.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, step) = (self.rows(), piece_rows(self.width()));
        (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
    }

    /// Reads consecutive rows of which nobody knows that they are finite, `[n, d]`.
    ///
    /// # Errors
    /// Returns [`DataError::Cells`] for values that are not finite, and the errors of [`StoredRows::read`].
    pub fn read_table(&self, rows: Range<usize>) -> Result<Table, DataError> {
        let mut values = Vec::with_capacity(rows.len() * self.width());
        self.read(rows.clone(), &mut values)?;
        let mut faults = Faults::new(self.width());
        faults.add(self, rows.start, &values);
        faults.check(self)?;
        Ok(Table::of_read(self.columns().map(<[String]>::to_vec), self.width(), values))
    }

    /// Reads consecutive samples: rows as `read_table` does, or images with their labels.
    ///
    /// # Errors
    /// Returns [`ImageError::Byte`] for images whose values are no bytes, and the errors of `read_table`.
    pub fn read_samples(&self, rows: Range<usize>) -> Result<Dataset, DataError> {
        let Some(images) = self.images() else { return Ok(self.read_table(rows)?.into()) };
        let (mut all, mut values) = (Vec::with_capacity(rows.len() * self.width()), Vec::new());
        // numbers take eight times as much memory as bytes
        for first in rows.clone().step_by(piece_rows(self.width())) {
            values.clear();
            self.read(first..rows.end.min(first + piece_rows(self.width())), &mut values)?;
            all.extend(bytes(&values)?);
        }
        Ok(images.set(rows, all)?.into())
    }
}

impl StoredRows for Table {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn width(&self) -> usize {
        self.width()
    }

    fn columns(&self) -> Option<&[String]> {
        self.columns()
    }

    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        out.extend_from_slice(&self.values()[rows.start * self.width()..rows.end * self.width()]);
        Ok(())
    }
}

impl StoredRows for ImageSet {
    fn rows(&self) -> usize {
        self.len()
    }

    fn width(&self) -> usize {
        self.bytes().len() / self.len()
    }

    fn columns(&self) -> Option<&[String]> {
        None
    }

    fn images(&self) -> Option<ImageRows<'_>> {
        Some(self.into())
    }

    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        let width = StoredRows::width(self);
        out.extend(self.bytes()[rows.start * width..rows.end * width].iter().map(|&byte| f64::from(byte)));
        Ok(())
    }
}

impl<R: StoredRows + ?Sized> StoredRows for Box<R> {
    fn rows(&self) -> usize {
        (**self).rows()
    }

    fn width(&self) -> usize {
        (**self).width()
    }

    fn columns(&self) -> Option<&[String]> {
        (**self).columns()
    }

    fn images(&self) -> Option<ImageRows<'_>> {
        (**self).images()
    }

    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        (**self).read(rows, out)
    }
}
