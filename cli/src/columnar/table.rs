//! A table while it is read: which of its columns are, and their numbers, batch by batch.
//!
//! What is not chosen is never decoded. A few bytes can announce any number of rows, all alike: what the numbers take is
//! bounded by the length of the file before they are decoded.

use std::collections::HashMap;
use std::io;

use anyhow::{Result, bail};
use arrow_array::RecordBatch;
use arrow_schema::Schema;
use resflow::data::{ColumnValues, DataError, NamedColumn, Note, ReadOptions, Reading, chosen_columns, read_columns};
use serde_json::Value;

use super::{number, word};

/// What the numbers of a file may take in bytes: so many in any case, and so many for each of its own.
const ALWAYS: u64 = 256 << 20;
const EXPANSION: u64 = 200;

/// The most bytes that so many bytes of a file may become.
pub(super) fn most(bytes: u64) -> u64 {
    bytes.saturating_mul(EXPANSION).max(ALWAYS)
}

/// The error of a file that becomes more.
pub(super) fn expands() -> anyhow::Error {
    invalid(format!(
        "the file becomes more than {EXPANSION} times as large, and more than {} MiB; --columns A,B takes some of its columns",
        ALWAYS >> 20
    ))
    .into()
}

/// An error of a file that is not what it should be.
pub(super) fn invalid(problem: String) -> DataError {
    DataError::Io(io::Error::new(io::ErrorKind::InvalidData, problem))
}

/// At most so many characters of what comes from a file, on one line.
pub(super) fn shown(text: &str, most: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect()
}

/// The columns of a table that is read.
pub(super) struct Table {
    columns: Vec<NamedColumn>,
    /// The places of those that are read, in the order of the file.
    places: Vec<usize>,
    /// The same in the order of the table.
    order: Vec<usize>,
    /// The whole numbers of each that were rounded.
    rounded: Vec<usize>,
    /// The codes of the words of each.
    levels: Vec<HashMap<String, u32>>,
    rows: usize,
    options: ReadOptions,
    notes: Vec<Note>,
}

impl Table {
    /// A table of no rows yet.
    pub(super) fn new(schema: &Schema, options: &ReadOptions) -> Result<Self> {
        let fields = schema.fields().iter();
        let columns: Vec<NamedColumn> = fields
            .map(|field| {
                let values = match number::other(field.data_type()) {
                    None => ColumnValues::Numbers(Vec::new()),
                    Some(name) if word::are_words(field.data_type()) => {
                        ColumnValues::Words { type_name: name.to_owned(), words: Vec::new(), codes: Vec::new() }
                    }
                    Some(name) => ColumnValues::Other(name.to_owned()),
                };
                NamedColumn { name: field.name().clone(), values }
            })
            .collect();
        let mut options = options.clone();
        let pandas = schema.metadata().get("pandas");
        let notes = pandas.map_or_else(Vec::new, |said| leave_index_out(&columns, said, &mut options));
        let order = chosen_columns(&columns, &options)?;
        let mut places = order.clone();
        places.sort_unstable();
        places.dedup();
        let levels = vec![HashMap::new(); places.len()];
        Ok(Self { rounded: vec![0; places.len()], levels, columns, places, order, rows: 0, options, notes })
    }

    /// The places of the columns that are read, in the order of the file.
    pub(super) fn places(&self) -> &[usize] {
        &self.places
    }

    /// The rows that were read.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Refuses so many more rows if a file of so many bytes cannot have them.
    pub(super) fn check(&self, more: usize, bytes: u64) -> Result<()> {
        let rows = self.rows.saturating_add(more) as u64;
        if rows.saturating_mul(8 * self.places.len() as u64) > most(bytes) { Err(expands()) } else { Ok(()) }
    }

    /// Adds the rows of a batch of the columns that are read, of a file of so many bytes.
    pub(super) fn add(&mut self, batch: &RecordBatch, bytes: u64) -> Result<()> {
        self.check(batch.num_rows(), bytes)?;
        if batch.num_columns() != self.places.len() {
            bail!("it has {} columns where {} were announced", batch.num_columns(), self.places.len());
        }
        for (slot, array) in batch.columns().iter().enumerate() {
            match &mut self.columns[self.places[slot]].values {
                ColumnValues::Numbers(values) => self.rounded[slot] += number::extend(values, array)?,
                ColumnValues::Words { words, codes, .. } => word::extend(&mut self.levels[slot], words, codes, array)?,
                ColumnValues::Other(_) => {}
            }
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    /// Whether the columns that are read are numbers, none of which may be an index, as many as are wanted.
    pub(super) fn is_plain(&self, options: &ReadOptions) -> bool {
        let is_plain = |&place: &usize| {
            let NamedColumn { name, values } = &self.columns[place];
            let may_be_index = name.is_empty() || name.starts_with("Unnamed: ") || name.starts_with("__index_level_");
            matches!(values, ColumnValues::Numbers(_)) && !may_be_index
        };
        let wanted = options.model.as_ref().map(|model| model.width + usize::from(model.beside.is_some()));
        let repeated = self.order.len() != self.places.len();
        self.order.iter().all(is_plain) && !repeated && wanted.is_none_or(|wanted| wanted == self.order.len())
    }

    /// The names of the columns that are read, in the order of the table.
    pub(super) fn names(&self) -> Vec<String> {
        self.order.iter().map(|&place| self.columns[place].name.clone()).collect()
    }

    /// Takes the numbers of the rows that were added since, row by row in the order of the table.
    pub(super) fn take_values(&mut self) -> Vec<f64> {
        let take = |&place: &usize| match &mut self.columns[place].values {
            ColumnValues::Numbers(values) => std::mem::take(values),
            _ => Vec::new(),
        };
        let columns: Vec<Vec<f64>> = self.order.iter().map(take).collect();
        let rows = columns.first().map_or(0, Vec::len);
        (0..rows).flat_map(|row| columns.iter().map(move |column| column[row])).collect()
    }

    /// The cells of each column that is read which were rounded so far.
    pub(super) fn rounded(&self) -> &[usize] {
        &self.rounded
    }

    /// Counts cells that were rounded elsewhere.
    pub(super) fn add_rounded(&mut self, cells: impl Iterator<Item = usize>) {
        self.rounded.iter_mut().zip(cells).for_each(|(own, others)| *own += others);
    }

    /// What was decided, and found so far.
    pub(super) fn notes(&self) -> Vec<Note> {
        let rounded = self.places.iter().zip(&self.rounded).filter(|(_, cells)| **cells > 0);
        let rounded = rounded.map(|(&place, &cells)| Note::Rounded { column: label(&self.columns, place), cells });
        self.notes.iter().cloned().chain(rounded).collect()
    }

    /// The table of all rows, by the rules of the library.
    pub(super) fn finish(self) -> Result<Reading> {
        let notes = self.notes();
        let Self { columns, options, .. } = self;
        let mut reading = read_columns(columns, &options)?;
        reading.notes.splice(0..0, notes);
        Ok(reading)
    }
}

/// A column's number, from one, and its name.
fn label(columns: &[NamedColumn], place: usize) -> String {
    format!("column {} (`{}`)", place + 1, shown(&columns[place].name, 60))
}

/// Leaves columns out that pandas says are the index of its rows, unless something asks for them by their names.
fn leave_index_out(columns: &[NamedColumn], said: &str, options: &mut ReadOptions) -> Vec<Note> {
    let mut notes = Vec::new();
    if options.columns.is_some() {
        return notes;
    }
    let said: Value = serde_json::from_str(said).unwrap_or_default();
    // an index that only counts is no column, and no name here
    for name in said["index_columns"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let mut there = (0..columns.len()).filter(|&place| columns[place].name == name);
        let (Some(place), None) = (there.next(), there.next()) else { continue };
        let model = options.model.iter().flat_map(|model| model.names.iter().flatten().chain(&model.beside));
        let mut asked = model.chain(&options.index).chain(&options.drop);
        if asked.any(|other| other == name) {
            continue;
        }
        options.drop.push(name.to_owned());
        notes.push(Note::Index { column: label(columns, place), what: "the index of a pandas table" });
    }
    notes
}
