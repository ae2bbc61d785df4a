//! Columns of different types under names: structured NPY arrays, and what other readers bring.

use npyz::{DType, Field};

use super::npy::{Scalar, finish_array};
use super::reading::{Cells, Layout, ReadOptions, Reading, TextColumns, choose, finish};
use crate::error::{DataError, Place};

/// A column that a reader of another format brings.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedColumn {
    /// Its name.
    pub name: String,
    /// What it holds; no values where it is not read.
    pub values: ColumnValues,
}

/// What a column holds.
#[derive(Debug, Clone, PartialEq)]
pub enum ColumnValues {
    /// Numbers, NaN where one is missing.
    Numbers(Vec<f64>),
    /// Words, which may be categories.
    Words {
        /// The name of their type.
        type_name: String,
        /// Those that there are.
        words: Vec<String>,
        /// The place of each row's among them, `None` where it is missing.
        codes: Vec<Option<u32>>,
    },
    /// Something else, of a type with this name.
    Other(String),
}

/// The places of those columns that [`read_columns`] takes, in the order of the table, so that no others need to be read.
/// Only names and types are looked at.
///
/// # Errors
/// Returns [`DataError::Cells`] if a column that is taken holds no numbers, with all such columns, and the errors of
/// [`read_from`](super::read_from) for columns that are not there.
///
/// ```
/// use resflow::data::{ColumnValues, NamedColumn, ReadOptions, chosen_columns};
/// let column = |name: &str, values| NamedColumn { name: name.to_owned(), values };
/// let numbers = ColumnValues::Numbers(Vec::new());
/// let columns = [column("species", ColumnValues::Other("string".to_owned())), column("height", numbers)];
/// let error = chosen_columns(&columns, &ReadOptions::default()).expect_err("a column of words");
/// assert!(error.to_string().contains("column 1 (`species`) holds no numbers but values of type string"));
/// let options = ReadOptions { drop: vec!["species".to_owned()], ..ReadOptions::default() };
/// assert_eq!(chosen_columns(&columns, &options)?, [1]);
/// # Ok::<(), resflow::data::DataError>(())
/// ```
pub fn chosen_columns(columns: &[NamedColumn], options: &ReadOptions) -> Result<Vec<usize>, DataError> {
    Ok(layout(columns, options)?.columns().to_vec())
}

/// Makes a table of named columns by the rules of [`read_from`](super::read_from): which columns are taken, what becomes
/// of missing values, what is an index. Columns that are no numbers are faults unless they are left out; what is left out
/// may have no values at all ([`chosen_columns`]).
///
/// # Errors
/// Returns [`DataError::Belongings`] if the columns that are taken differ in length, [`DataError::Empty`] if there are no
/// rows, and [`DataError::Cells`] and the like as [`read_from`](super::read_from) does.
///
/// ```
/// use resflow::data::{ColumnValues, NamedColumn, ReadOptions, read_columns};
/// let column = |name: &str, values| NamedColumn { name: name.to_owned(), values };
/// let columns = vec![
///     column("species", ColumnValues::Other("utf8".to_owned())),
///     column("height", ColumnValues::Numbers(vec![1.5, 2.5])),
/// ];
/// assert!(read_columns(columns.clone(), &ReadOptions::default()).is_err());
/// let options = ReadOptions { drop: vec!["species".to_owned()], ..ReadOptions::default() };
/// assert_eq!(read_columns(columns, &options)?.table.values(), [1.5, 2.5]);
/// # Ok::<(), resflow::data::DataError>(())
/// ```
pub fn read_columns(columns: Vec<NamedColumn>, options: &ReadOptions) -> Result<Reading, DataError> {
    let layout = layout(&columns, options)?;
    let len = |place: usize| match &columns[place].values {
        ColumnValues::Numbers(values) => values.len(),
        ColumnValues::Words { codes, .. } => codes.len(),
        ColumnValues::Other(_) => 0,
    };
    let rows = layout.columns().first().map_or(0, |&place| len(place));
    if let Some(&other) = layout.columns().iter().find(|&&place| len(place) != rows) {
        return Err(DataError::Belongings { what: "values of a column", found: len(other), samples: rows });
    }
    if rows == 0 {
        return Err(DataError::Empty);
    }
    let width = layout.len();
    let mut faults = Cells::watching(&layout, options);
    let mut table = vec![f64::NAN; rows * width];
    for (slot, &place) in layout.columns().iter().enumerate() {
        let at = |row: usize| Place::Index { row, column: place, name: layout.name(slot) };
        match &columns[place].values {
            ColumnValues::Numbers(values) => {
                for (row, &value) in values.iter().enumerate() {
                    table[row * width + slot] = value;
                    faults.watch_value(slot, value);
                    if !value.is_finite() {
                        faults.add_value(slot, value, at(row));
                    }
                }
            }
            ColumnValues::Words { words, codes, .. } => {
                let word = |code: &Option<u32>| words.get(code.as_ref().copied()? as usize).map(String::as_str);
                let there = |word: &&str| !word.trim().is_empty();
                faults.watch_words(slot, codes.iter().map(word));
                let mut lacking = 0;
                for row in (0..rows).filter(|&row| word(&codes[row]).is_none_or(|word| !there(&word))) {
                    faults.add_value(slot, f64::NAN, at(row));
                    lacking += 1;
                }
                faults.add_text_column(slot, words.first().map_or("", String::as_str), rows - lacking);
            }
            ColumnValues::Other(_) => {}
        }
    }
    faults.set_rows(rows);
    finish(layout, table, faults, options, Vec::new())
}

/// The columns that are taken, all of them numbers, or words where these may be categories.
fn layout(columns: &[NamedColumn], options: &ReadOptions) -> Result<Layout, DataError> {
    let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let mut layout = choose(Some(&names), columns.len(), options)?;
    layout.leave_row_names_out(|place| !matches!(columns[place].values, ColumnValues::Numbers(_)));
    if layout.len() == 0 {
        return Err(DataError::TableShape { values: 0, width: 0 });
    }
    // how many rows there are is not known yet: of a type are all
    let mut faults = Cells::new(layout.len());
    faults.set_rows(1);
    let mut all_numbers = true;
    for (slot, &place) in layout.columns().iter().enumerate() {
        let categories = options.text == TextColumns::Categories && options.model.is_none();
        match &columns[place].values {
            ColumnValues::Words { .. } if categories || layout.is_declared(slot) => {}
            ColumnValues::Other(name) | ColumnValues::Words { type_name: name, .. } => {
                faults.add_type(slot, name, 1);
                all_numbers = false;
            }
            ColumnValues::Numbers(_) => {}
        }
    }
    if all_numbers {
        return Ok(layout);
    }
    Err(finish(layout, Vec::new(), faults, options, Vec::new()).err().unwrap_or(DataError::Empty))
}

/// A field that is a column.
pub(super) struct Column {
    pub(super) name: String,
    /// Its first byte in a row.
    pub(super) offset: usize,
    /// The type of its numbers, if it has any.
    pub(super) scalar: Option<Scalar>,
    dtype: String,
}

/// Reads a table of the fields; those that are no numbers are faults unless they are left out.
pub(super) fn read(fields: &[Field], shape: &[u64], data: &[u8], options: &ReadOptions) -> Result<Reading, DataError> {
    let rows = match *shape {
        [rows] | [rows, 1] if rows > 0 => rows,
        _ => return Err(DataError::NpyShape { shape: shape.to_vec() }),
    };
    let (columns, size) = columns(fields)?;
    let expected = rows.checked_mul(size as u64).ok_or(DataError::NpyOverflow)?;
    let found = data.len() as u64;
    if expected != found {
        return Err(DataError::NpyLength { expected, found });
    }
    let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let layout = choose(Some(&names), columns.len(), options)?;
    let kept: Vec<&Column> = layout.columns().iter().map(|&c| &columns[c]).collect();
    let mut others = kept.iter().enumerate().filter(|(_, column)| column.scalar.is_none());
    if others.clone().next().is_some() {
        let mut others = others.by_ref().map(|(slot, column)| (slot, column.dtype.trim_matches('\'')));
        return refuse(&mut others, layout, rows as usize, options);
    }
    let mut values = Vec::with_capacity(kept.len() * rows as usize);
    for row in data.chunks_exact(size) {
        for column in &kept {
            values.push(column.scalar.map_or(f64::NAN, |s| s.decode(&row[column.offset..][..s.size])));
        }
    }
    finish_array(layout, values, options)
}

/// The columns among the fields, and the size of a row.
pub(super) fn columns(fields: &[Field]) -> Result<(Vec<Column>, usize), DataError> {
    let mut columns = Vec::new();
    let mut offset = 0_usize;
    for Field { name, dtype } in fields {
        let size = dtype.num_bytes().ok_or_else(|| DataError::NpyType { dtype: dtype.descr() })?;
        let scalar = if let DType::Plain(plain) = dtype { Scalar::of(plain) } else { None };
        // what fills a row up has no name
        if !(name.is_empty() && scalar.is_none()) {
            columns.push(Column { name: name.clone(), offset, scalar, dtype: dtype.descr() });
        }
        offset = offset.checked_add(size).ok_or(DataError::NpyOverflow)?;
    }
    if columns.is_empty() || offset == 0 {
        return Err(DataError::TableShape { values: 0, width: 0 });
    }
    Ok((columns, offset))
}

/// All columns that are no numbers, in one error: their slots and the names of their types.
fn refuse(
    others: &mut dyn Iterator<Item = (usize, &str)>,
    layout: Layout,
    rows: usize,
    options: &ReadOptions,
) -> Result<Reading, DataError> {
    let mut faults = Cells::new(layout.len());
    for (slot, dtype) in others {
        faults.add_text_column(slot, dtype, rows);
    }
    faults.set_rows(rows);
    finish(layout, Vec::new(), faults, options, Vec::new())
}
