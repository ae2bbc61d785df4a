//! The rows of an NPY file, where they stand.
//!
//! Value (i, j) stands at a place that is affine in i: in C order and in structured arrays a row is in one piece, in Fortran order a
//! column is. The header is checked as that of any NPY file; see [`npy`](mod@crate::data::npy).

use std::ops::Range;
use std::path::Path;

use npyz::{DType, Order};

use super::StoredRows;
use super::unchanged::Unchanged;
use crate::data::npy::{HEAD, Scalar, parse};
use crate::data::reading::{Missing, Note, ReadOptions, choose};
use crate::data::structured;
use crate::error::DataError;

/// The rows of an NPY file of one or two dimensions or of a structured array, read as they are needed.
///
/// The file must not change meanwhile: its length and the time of its last change are looked at with every reading.
#[derive(Debug)]
pub struct NpyRows {
    file: Unchanged,
    /// Where the data begin.
    start: u64,
    rows: usize,
    names: Option<Vec<String>>,
    columns: Vec<Column>,
    /// The bytes from a row to the next, where rows are in one piece.
    stride: Option<usize>,
    notes: Vec<Note>,
}

/// The values of a column.
#[derive(Debug)]
struct Column {
    scalar: Scalar,
    /// Where the first one stands, behind where the data begin.
    offset: u64,
}

impl NpyRows {
    /// Opens a file, of which the header alone is read; `options` choose columns.
    ///
    /// # Errors
    /// Returns [`DataError::File`] with the path and the cause: an error of [`npy::read`](crate::data::npy::read) about the header or
    /// the length, [`DataError::NoColumn`] or [`DataError::ColumnsMissing`] for columns that are not there, [`DataError::Options`] for
    /// options or columns that ask for a look at all values first: rows that are left out, categories, an index.
    pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self, DataError> {
        let path = path.as_ref();
        Self::open_unnamed(path, options).map_err(|error| at(path, error))
    }

    fn open_unnamed(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        options.check()?;
        let file = Unchanged::open(path)?;
        let head = file.beginning(HEAD)?;
        if head.is_empty() {
            return Err(DataError::Empty);
        }
        let (header, rest) = parse(&head)?;
        let start = (head.len() - rest.len()) as u64;
        let behind = file.length() - start;
        let wrong_shape = || DataError::NpyShape { shape: header.shape().to_vec() };
        let mut names = None;
        let (rows, fields, size, stride) = match header.dtype() {
            DType::Plain(plain) => {
                let unsupported = || DataError::NpyType { dtype: plain.to_string() };
                let scalar = Scalar::of(&plain).ok_or_else(unsupported)?;
                let (rows, width) = match *header.shape() {
                    [rows] if rows > 0 => (rows, 1),
                    [rows, width] if rows > 0 && width > 0 => (rows, width),
                    _ => return Err(wrong_shape()),
                };
                let (by_rows, own) = (header.order() == Order::C, scalar.size as u64);
                // the header's numbers multiply to less than 2^64
                let step = own.checked_mul(if by_rows { 1 } else { rows }).ok_or(DataError::NpyOverflow)?;
                let size = own.checked_mul(width).ok_or(DataError::NpyOverflow)?;
                let length = size.checked_mul(rows).ok_or(DataError::NpyOverflow)?;
                expect(length, behind)?;
                let fields = (0..width).map(|j| Some(Column { scalar, offset: j * step })).collect::<Vec<_>>();
                (rows, fields, size, by_rows.then_some(size as usize))
            }
            DType::Record(described) => {
                let rows = match *header.shape() {
                    [rows] | [rows, 1] if rows > 0 => rows,
                    _ => return Err(wrong_shape()),
                };
                let (columns, size) = structured::columns(&described)?;
                expect(rows.checked_mul(size as u64).ok_or(DataError::NpyOverflow)?, behind)?;
                names = Some(columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>());
                let fields = columns
                    .iter()
                    .map(|column| column.scalar.map(|scalar| Column { scalar, offset: column.offset as u64 }));
                (rows, fields.collect(), size as u64, Some(size))
            }
            dtype @ DType::Array(..) => return Err(DataError::NpyType { dtype: dtype.descr() }),
        };
        usize::try_from(size.saturating_mul(rows)).map_err(|_| DataError::NpyOverflow)?;
        let mut layout = choose(names.as_deref(), fields.len(), options)?;
        let width = layout.len();
        if (0..width).any(|slot| layout.is_declared(slot) || layout.is_suspect(slot)) {
            return Err(DataError::Options("columns of categories and indices are found by a look at the whole table"));
        }
        if options.missing != Missing::Refuse {
            return Err(DataError::Options("rows that lack values are found by a look at the whole table"));
        }
        if let Some(expected) = layout.wanted.map(|wanted| wanted + layout.beside).filter(|wanted| *wanted != width) {
            return Err(DataError::Width {
                found: width - layout.beside.min(width),
                expected: expected - layout.beside,
            });
        }
        let mut fields: Vec<Option<Column>> = fields;
        let chosen = layout.columns().iter().map(|&place| fields[place].take());
        let columns = chosen.collect::<Option<Vec<_>>>();
        let columns = columns.ok_or(DataError::Options("columns of text are found by a look at the whole table"))?;
        let names = (0..width).map(|slot| layout.name(slot)).collect();
        let notes = std::mem::take(&mut layout.notes);
        Ok(Self { file, start, rows: rows as usize, names, columns, stride, notes })
    }

    /// What was decided in choosing columns.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    fn read_unnamed(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        let mut file = self.file.places()?;
        let mut read = |offset: u64, length: usize| file.read(self.start + offset, length);
        if let Some(stride) = self.stride {
            let bytes = read((rows.start * stride) as u64, rows.len() * stride)?;
            for row in bytes.chunks_exact(stride) {
                let value =
                    |column: &Column| column.scalar.decode(&row[column.offset as usize..][..column.scalar.size]);
                out.extend(self.columns.iter().map(value));
            }
            return Ok(());
        }
        let (begin, width) = (out.len(), self.columns.len());
        out.resize(begin + rows.len() * width, 0.0);
        for (j, Column { scalar, offset }) in self.columns.iter().enumerate() {
            let bytes = read(offset + (rows.start * scalar.size) as u64, rows.len() * scalar.size)?;
            for (i, value) in bytes.chunks_exact(scalar.size).enumerate() {
                out[begin + i * width + j] = scalar.decode(value);
            }
        }
        Ok(())
    }
}

impl StoredRows for NpyRows {
    fn rows(&self) -> usize {
        self.rows
    }

    fn width(&self) -> usize {
        self.columns.len()
    }

    fn columns(&self) -> Option<&[String]> {
        self.names.as_deref()
    }

    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        self.read_unnamed(rows, out).map_err(|error| self.file.at(error))
    }
}

fn at(path: &Path, error: DataError) -> DataError {
    DataError::File { path: path.to_owned(), source: Box::new(error) }
}

fn expect(expected: u64, found: u64) -> Result<(), DataError> {
    if expected == found { Ok(()) } else { Err(DataError::NpyLength { expected, found }) }
}
