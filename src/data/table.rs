//! Tables of numbers: what every reader makes and every writer takes.
//!
//! A table has at least one column; its values are finite (but for the missing ones of a table that was read with them, which are
//! NaN until [`Incomplete`](super::Incomplete) takes it) and stored row by row; its columns are all named or none
//! is. A name is not empty and does not read as a number, so that a file's header is never taken for a row; but for names
//! that a file itself has so.

use resflow_backend::{Element, Key};

use super::permutation::permutation;
use crate::error::{DataError, Place};

/// Rows of finite numbers.
///
/// ```
/// use resflow::data::Table;
/// let table = Table::new(None, 2, vec![1.0, 2.0, 3.0, 4.0])?;
/// assert_eq!((table.rows(), table.width()), (2, 2));
/// assert_eq!(table.row(1), [3.0, 4.0]);
/// # Ok::<(), resflow::data::DataError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    columns: Option<Vec<String>>,
    width: usize,
    rows: usize,
    values: Vec<f64>,
}

impl Table {
    /// Builds a table of `width` columns from its values, row by row. Names are trimmed. A table may have no rows; the
    /// readers refuse a file without any.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::TableShape`] if there is no column or the number of values is no multiple of the width,
    /// [`DataError::NotFinite`] if a value is not finite, [`DataError::Width`] if the number of names is not the width,
    /// [`DataError::ColumnName`] if a name is empty or reads as a number.
    pub fn new(columns: Option<Vec<String>>, width: usize, values: Vec<f64>) -> Result<Self, DataError> {
        if width == 0 || !values.len().is_multiple_of(width) {
            return Err(DataError::TableShape { values: values.len(), width });
        }
        let columns = columns.map(|names| checked_names(names, width)).transpose()?;
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let (row, column) = (i / width, i % width);
            let name = columns.as_ref().map(|names| names[column].clone());
            return Err(DataError::NotFinite { place: Place::Index { row, column, name }, value: values[i] });
        }
        Ok(Self { columns, width, rows: values.len() / width, values })
    }

    /// Builds a table of rows, each a slice of numbers.
    ///
    /// # Errors
    /// Returns [`DataError::UnequalRows`] if their lengths differ, and the errors of [`new`](Self::new).
    ///
    /// ```
    /// use resflow::data::Table;
    /// assert_eq!(Table::from_rows(&[vec![1.0, 2.0], vec![3.0, 4.0]])?.row(1), [3.0, 4.0]);
    /// assert!(Table::from_rows(&[vec![1.0, 2.0], vec![3.0]]).is_err());
    /// # Ok::<(), resflow::data::DataError>(())
    /// ```
    pub fn from_rows<R: AsRef<[f64]>>(rows: &[R]) -> Result<Self, DataError> {
        let width = rows.first().map_or(0, |row| row.as_ref().len());
        if let Some(row) = rows.iter().position(|row| row.as_ref().len() != width) {
            return Err(DataError::UnequalRows { row, found: rows[row].as_ref().len(), expected: width });
        }
        Self::new(None, width, rows.iter().flat_map(AsRef::as_ref).copied().collect())
    }

    /// Takes the column of a name out of the table: the table without it, and the column; `None` if there is no such
    /// column.
    ///
    /// # Errors
    /// Returns [`DataError::TableShape`] if nothing would be left.
    pub fn without_column(&self, name: &str) -> Result<Option<(Self, Vec<f64>)>, DataError> {
        let Some(at) = self.columns.as_ref().and_then(|names| names.iter().position(|n| n == name)) else {
            return Ok(None);
        };
        if self.width == 1 {
            return Err(DataError::TableShape { values: 0, width: 0 });
        }
        let column = self.values.iter().skip(at).step_by(self.width).copied().collect();
        let rest = self.values.iter().enumerate().filter(|(i, _)| i % self.width != at).map(|(_, &v)| v).collect();
        let names = self.columns.clone().map(|mut names| {
            names.remove(at);
            names
        });
        Ok(Some((Self { columns: names, width: self.width - 1, rows: self.rows, values: rest }, column)))
    }

    /// Takes the columns of these names, in this order.
    ///
    /// # Errors
    /// Returns [`DataError::NoColumn`] for the first name that no column has, [`DataError::Repeated`] for one that several
    /// have, [`DataError::TableShape`] for no names.
    ///
    /// ```
    /// use resflow::data::Table;
    /// let table = Table::new(Some(vec!["a".into(), "b".into()]), 2, vec![1.0, 2.0, 3.0, 4.0])?;
    /// assert_eq!(table.select_columns(&["b".to_owned()])?.values(), [2.0, 4.0]);
    /// # Ok::<(), resflow::data::DataError>(())
    /// ```
    pub fn select_columns(&self, names: &[String]) -> Result<Self, DataError> {
        let own = self.columns.as_deref().unwrap_or_default();
        let place = |name: &String| {
            let mut there = (0..own.len()).filter(|&i| own[i] == *name);
            match (there.next(), there.next()) {
                (Some(place), None) => Ok(place),
                (Some(_), Some(_)) => Err(DataError::Repeated { name: name.clone() }),
                _ => Err(DataError::NoColumn { name: name.clone(), known: own.to_vec() }),
            }
        };
        let places: Vec<usize> = names.iter().map(place).collect::<Result<_, _>>()?;
        if places.is_empty() {
            return Err(DataError::TableShape { values: 0, width: 0 });
        }
        let values = (0..self.rows).flat_map(|i| places.iter().map(move |&place| self.row(i)[place]));
        let (width, values) = (places.len(), values.collect());
        Ok(Self { columns: Some(names.to_vec()), width, rows: self.rows, values })
    }

    /// A table of values that were read, finite but for NaN where cells may be missing, whose names may be numbers where a file says that they are names.
    pub(super) fn of_read(columns: Option<Vec<String>>, width: usize, values: Vec<f64>) -> Self {
        debug_assert!(width > 0 && values.len().is_multiple_of(width) && !values.iter().any(|v| v.is_infinite()));
        Self { columns, width, rows: values.len() / width, values }
    }

    /// Rows of no numbers at all, which have categories alone.
    pub(crate) fn of_no_columns(rows: usize) -> Self {
        Self { columns: None, width: 0, rows, values: Vec::new() }
    }

    /// A table of finite values under lawful names, which nothing needs to check.
    pub(super) fn of_finite(columns: Vec<String>, values: Vec<f64>) -> Self {
        debug_assert!(values.iter().all(|v| v.is_finite()));
        Self { width: columns.len(), rows: values.len() / columns.len(), columns: Some(columns), values }
    }

    /// Computed values, which may be infinite or NaN where a model was asked too much.
    pub(crate) fn of_computed(width: usize, values: Vec<f64>) -> Self {
        debug_assert!(width > 0 && values.len().is_multiple_of(width));
        Self { width, columns: None, rows: values.len() / width, values }
    }

    /// The table with each value replaced by a function of it, which is called row by row.
    pub(super) fn with_values(&self, each: impl FnMut(f64) -> f64) -> Self {
        let values = self.values.iter().copied().map(each).collect();
        Self { columns: self.columns.clone(), width: self.width, rows: self.rows, values }
    }

    /// Computed rows under the names of another table's columns.
    pub(crate) fn of_rows_like(other: &Self, values: Vec<f64>) -> Self {
        debug_assert!(other.width > 0 && values.len().is_multiple_of(other.width));
        Self { columns: other.columns.clone(), width: other.width, rows: values.len() / other.width, values }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns: at least one, but for the rows of a [`Dataset`](super::Dataset) that has categories alone.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The names of the columns, where they have any.
    pub fn columns(&self) -> Option<&[String]> {
        self.columns.as_deref()
    }

    /// A column's number, counted from one, and its name, as error messages show them.
    pub fn label(&self, column: usize) -> String {
        match &self.columns {
            Some(names) => format!("column {} (`{}`)", column + 1, crate::error::Excerpt(&names[column])),
            None => format!("column {}", column + 1),
        }
    }

    /// Row `i`.
    #[track_caller]
    pub fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    /// The values of a column, one a row.
    #[track_caller]
    pub fn column(&self, column: usize) -> Vec<f64> {
        assert!(column < self.width, "column {column} of a table of {}", self.width);
        self.values.iter().skip(column).step_by(self.width).copied().collect()
    }

    /// The values, row by row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The values, row by row, without a copy.
    pub fn into_values(self) -> Vec<f64> {
        self.values
    }

    /// The values, row by row, rounded to a backend's precision. Beyond 3.4e38 single precision is infinite:
    /// standardise first.
    pub fn to_elements<E: Element>(&self) -> Vec<E> {
        self.values.iter().map(|&v| E::from_f64(v)).collect()
    }

    /// Selects the given rows, in the given order; a row may come more than once.
    #[track_caller]
    pub fn select(&self, rows: &[usize]) -> Self {
        let mut values = Vec::with_capacity(rows.len() * self.width);
        for &i in rows {
            values.extend_from_slice(self.row(i));
        }
        Self { columns: self.columns.clone(), width: self.width, rows: rows.len(), values }
    }

    /// Sets rows aside for validation: `(training, validation)`.
    ///
    /// The key's permutation shuffles the rows; the first round(`fraction` · rows) of them, at least one and at most
    /// all but one, are the validation rows. Every row is in exactly one of the two tables.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Fraction`] if `fraction` is not strictly between 0 and 1, [`DataError::TooFewRows`] if
    /// there are fewer than two rows.
    pub fn split(&self, fraction: f64, key: Key) -> Result<(Self, Self), DataError> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(DataError::Fraction(fraction));
        }
        let rows = self.rows();
        if rows < 2 {
            return Err(DataError::TooFewRows { rows, needed: 2, purpose: "to set some aside for validation" });
        }
        let validation = ((rows as f64 * fraction).round() as usize).clamp(1, rows - 1);
        let order = permutation(rows, key);
        Ok((self.select(&order[validation..]), self.select(&order[..validation])))
    }
}

/// Without the white space and byte order marks around it.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

fn checked_names(names: Vec<String>, width: usize) -> Result<Vec<String>, DataError> {
    if names.len() != width {
        return Err(DataError::Width { found: names.len(), expected: width });
    }
    names
        .into_iter()
        .enumerate()
        .map(|(i, name)| {
            let name = trim(&name).to_owned();
            let reason = if name.is_empty() {
                "is empty: name it, or leave the column out if it only numbers the rows (pandas: index=False)"
            } else if name.parse::<f64>().is_ok() {
                "reads as a number: choose another name"
            } else {
                return Ok(name);
            };
            Err(DataError::ColumnName { column: i + 1, name, reason })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn construction_is_checked() {
        assert!(matches!(Table::new(None, 0, vec![]), Err(DataError::TableShape { values: 0, width: 0 })));
        assert!(matches!(Table::new(None, 2, vec![1.0; 3]), Err(DataError::TableShape { values: 3, width: 2 })));
        assert!(matches!(Table::new(Some(names(&["a"])), 2, vec![]), Err(DataError::Width { found: 1, expected: 2 })));
        for bad in ["", "  ", "1", "nan", " -inf", "1e3"] {
            let error = Table::new(Some(names(&["a", bad])), 2, vec![]).expect_err(bad);
            assert!(matches!(error, DataError::ColumnName { column: 2, .. }), "{bad}: {error}");
        }
        let error = Table::new(Some(names(&["a", "b"])), 2, vec![0.0, 1.0, 2.0, f64::NAN]).expect_err("NaN");
        assert_eq!(
            error.to_string(),
            "row 2, column 2 (index [1, 1]) (`b`): the value is NaN: every value must be finite, so replace it or \
             leave the row out"
        );
        assert_eq!(Table::new(Some(names(&[" a ", "b"])), 2, vec![]).expect("names are trimmed").rows(), 0);
    }

    #[test]
    fn split_needs_a_fraction_and_two_rows() {
        let table = Table::new(None, 1, vec![1.0, 2.0, 3.0]).expect("a table");
        for fraction in [0.0, 1.0, -0.1, 2.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(table.split(fraction, Key::new(0)), Err(DataError::Fraction(_))), "{fraction}");
        }
        let single = table.select(&[1]);
        assert!(matches!(single.split(0.5, Key::new(0)), Err(DataError::TooFewRows { rows: 1, .. })));
        for fraction in [1e-9, 0.999_999] {
            let (training, validation) = table.split(fraction, Key::new(0)).expect("a split");
            assert!(training.rows() > 0 && validation.rows() > 0);
        }
    }

    #[test]
    fn elements_are_rounded() {
        let table = Table::new(None, 1, vec![0.1]).expect("a table");
        assert_eq!(table.to_elements::<f32>(), [0.1_f32]);
        assert_eq!(table.to_elements::<f64>(), [0.1_f64]);
    }
}
