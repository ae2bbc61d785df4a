//! Rows that can be read by their numbers, wherever they are.

use std::fmt::Debug;
use std::ops::Range;

use super::piece_rows;
use super::statistics::Faults;
use crate::data::Table;
use crate::error::DataError;

/// Rows of numbers that can be read by their numbers, at a cost and in memory of the order of what is read.
pub trait StoredRows: Debug + Send + Sync {
    /// The number of rows.
    fn rows(&self) -> usize;

    /// The number of columns.
    fn width(&self) -> usize;

    /// The names of the columns, where they have any.
    fn columns(&self) -> Option<&[String]>;

    /// Reads consecutive rows, all of which are there, and adds their values to `out`, row by row.
    ///
    /// # Errors
    /// Returns [`DataError::Changed`] if the rows are no longer those that there were, [`DataError::Io`] if they cannot be read.
    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError>;
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

    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        (**self).read(rows, out)
    }
}
