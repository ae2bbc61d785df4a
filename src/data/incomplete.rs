//! Samples of which cells are missing: a table, and which of its cells were seen.
//!
//! Invariant: a cell that was not seen holds 0 here, whatever stood in its place, and only this type has it, so that nothing
//! that is computed of rows depends on it.

use super::{Dataset, Table, number_of};
use crate::error::DataError;

/// Samples, of whose cells some may be missing.
///
/// ```
/// use resflow::data::Incomplete;
/// let rows = Incomplete::from_rows(&[[1.0, 2.0], [f64::NAN, 3.0]])?;
/// assert_eq!((rows.missing(), rows.value(1, 0), rows.value(1, 1)), (1, None, Some(3.0)));
/// assert!(rows.complete().is_err());
/// # Ok::<(), resflow::data::DataError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Incomplete {
    data: Dataset,
    /// Which cells were seen, row by row, where some were not.
    seen: Option<Vec<bool>>,
}

impl From<Dataset> for Incomplete {
    /// Takes NaN in a table as missing, which only one that was read with [`Missing::Keep`](crate::data::Missing::Keep) has.
    fn from(mut data: Dataset) -> Self {
        let holes = data.table().filter(|table| table.values().iter().any(|x| x.is_nan())).cloned();
        let seen = holes.map(|table| {
            let seen = table.values().iter().map(|x| !x.is_nan()).collect();
            data.set_table(table.with_values(|x| if x.is_nan() { 0.0 } else { x }));
            seen
        });
        Self { data, seen }
    }
}

impl From<Table> for Incomplete {
    fn from(table: Table) -> Self {
        Dataset::from(table).into()
    }
}

impl Incomplete {
    /// Builds a table of `width` columns from its values, row by row, of which NaN is a missing one.
    ///
    /// # Errors
    /// Returns the errors of [`Table::new`], for values that are infinite too.
    pub fn new(columns: Option<Vec<String>>, width: usize, values: Vec<f64>) -> Result<Self, DataError> {
        let seen: Vec<bool> = values.iter().map(|x| !x.is_nan()).collect();
        let values = values.into_iter().map(|x| if x.is_nan() { 0.0 } else { x }).collect();
        let table = Table::new(columns, width, values)?;
        let seen = seen.contains(&false).then_some(seen);
        Ok(Self { data: table.into(), seen })
    }

    /// Builds a table of rows, each a slice of numbers, of which NaN is a missing one.
    ///
    /// # Errors
    /// Returns [`DataError::UnequalRows`] if their lengths differ, and the errors of [`new`](Self::new).
    pub fn from_rows<R: AsRef<[f64]>>(rows: &[R]) -> Result<Self, DataError> {
        let width = rows.first().map_or(0, |row| row.as_ref().len());
        if let Some(row) = rows.iter().position(|row| row.as_ref().len() != width) {
            return Err(DataError::UnequalRows { row, found: rows[row].as_ref().len(), expected: width });
        }
        Self::new(None, width, rows.iter().flat_map(AsRef::as_ref).copied().collect())
    }

    /// Takes those cells of a table for which `seen`, row by row, is true; the others are missing, whatever they hold.
    ///
    /// # Errors
    /// Returns [`DataError::TableShape`] if there is another number of marks than of cells.
    pub fn masked(table: &Table, seen: Vec<bool>) -> Result<Self, DataError> {
        if seen.len() != table.values().len() {
            return Err(DataError::TableShape { values: seen.len(), width: table.width() });
        }
        let mut cells = seen.iter();
        let table = table.with_values(|x| if cells.next() == Some(&true) { x } else { 0.0 });
        Ok(Self { data: table.into(), seen: seen.contains(&false).then_some(seen) })
    }

    /// Adds the weight of each row, as [`Dataset::with_weights`] does.
    ///
    /// # Errors
    /// Returns the errors of [`Dataset::with_weights`].
    pub fn with_weights(self, weights: Vec<f64>) -> Result<Self, DataError> {
        Ok(Self { data: self.data.with_weights(weights)?, ..self })
    }

    /// The samples, if none of their cells is missing.
    ///
    /// # Errors
    /// Returns [`DataError::Missing`] with the number of missing cells and the columns that they are in.
    pub fn complete(self) -> Result<Dataset, DataError> {
        if self.is_complete() {
            return Ok(self.data);
        }
        let counts = self.missing_by_column();
        let columns = (0..counts.len()).filter(|&j| counts[j] > 0).map(|j| self.label(j)).collect();
        let rows = (0..self.len()).filter(|&i| !self.is_seen(i)).count();
        Err(DataError::Missing { cells: self.missing(), rows, of: self.len(), columns })
    }

    /// Returns `true` if no cell is missing.
    pub fn is_complete(&self) -> bool {
        self.seen.is_none()
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Returns `true` if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// d, the number of columns; of images the numbers of one.
    pub fn width(&self) -> usize {
        self.data.sample_shape().iter().product()
    }

    /// The names of the columns, where they have any.
    pub fn columns(&self) -> Option<&[String]> {
        self.data.table().and_then(Table::columns)
    }

    /// The weights of the rows, where they have any.
    pub fn weights(&self) -> Option<&[f64]> {
        self.data.weights()
    }

    /// A cell, or `None` if it is missing or the samples are images.
    ///
    /// # Panics
    /// If there is no such cell.
    #[track_caller]
    pub fn value(&self, row: usize, column: usize) -> Option<f64> {
        assert!(column < self.width(), "column {column} of a table of {}", self.width());
        let table = self.data.table()?;
        self.sees(row, column).then(|| table.row(row)[column])
    }

    /// The number of missing cells.
    pub fn missing(&self) -> usize {
        self.seen.iter().flatten().filter(|seen| !**seen).count()
    }

    /// The number of missing cells of each column, `[d]`.
    pub fn missing_by_column(&self) -> Vec<usize> {
        let width = self.width();
        let mut counts = vec![0; width];
        for (cell, seen) in self.seen.iter().flatten().enumerate() {
            counts[cell % width] += usize::from(!seen);
        }
        counts
    }

    /// The rows of these numbers, in this order, with their weights.
    ///
    /// # Errors
    /// Returns the errors of [`Dataset::select`].
    ///
    /// # Panics
    /// If there is no row of a number.
    #[track_caller]
    pub fn select(&self, rows: &[usize]) -> Result<Self, DataError> {
        let width = self.width();
        let seen = self
            .seen
            .as_ref()
            .map(|seen| rows.iter().flat_map(|&i| &seen[i * width..(i + 1) * width]).copied().collect::<Vec<_>>());
        Ok(Self { data: self.data.select(rows)?, seen: seen.filter(|seen| seen.contains(&false)) })
    }

    /// Whether all cells of a row were seen.
    pub(crate) fn is_seen(&self, row: usize) -> bool {
        let width = self.width();
        self.seen.as_ref().is_none_or(|seen| !seen[row * width..(row + 1) * width].contains(&false))
    }

    /// Whether a cell was seen.
    pub(crate) fn sees(&self, row: usize, column: usize) -> bool {
        self.seen.as_ref().is_none_or(|seen| seen[row * self.width() + column])
    }

    /// The labels of the columns, and the numbers of the rows, of which no cell was seen.
    pub(crate) fn hollow(&self) -> (Vec<String>, Vec<usize>) {
        if self.is_complete() {
            return (Vec::new(), Vec::new());
        }
        let counts = self.missing_by_column();
        let columns = (0..counts.len()).filter(|&j| counts[j] == self.len()).map(|j| self.label(j)).collect();
        let rows = (0..self.len()).filter(|&i| !(0..self.width()).any(|j| self.sees(i, j))).collect();
        (columns, rows)
    }

    /// The samples, with 0 in the place of missing cells.
    pub(crate) fn data(&self) -> &Dataset {
        &self.data
    }

    /// A row, with 0 in the place of missing cells; nothing of images.
    pub(crate) fn row(&self, i: usize) -> &[f64] {
        self.data.table().map_or(&[], |table| table.row(i))
    }

    /// The cells of a column that were seen, and the weights of their rows.
    pub(crate) fn seen_of(&self, column: usize) -> (Vec<f64>, Option<Vec<f64>>) {
        let rows: Vec<usize> = (0..self.len()).filter(|&i| self.sees(i, column)).collect();
        let weights = self.weights().map(|weights| rows.iter().map(|&i| weights[i]).collect());
        (rows.iter().map(|&i| self.row(i)[column]).collect(), weights)
    }

    /// A number for a row, a function of the cells that were seen and of which these are.
    pub(crate) fn number(&self, i: usize) -> u64 {
        if self.is_seen(i) {
            return number_of(self.row(i));
        }
        let cells = self.row(i).iter().enumerate();
        number_of(&cells.map(|(j, &x)| if self.sees(i, j) { x } else { f64::NAN }).collect::<Vec<_>>())
    }

    /// A column's number, counted from one, and its name, as messages show them.
    pub(crate) fn label(&self, column: usize) -> String {
        self.data.table().map_or_else(|| format!("number {}", column + 1), |table| table.label(column))
    }
}
