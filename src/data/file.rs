//! Tables from files, whose content tells their format, and into files, whose names do.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use super::reading::{ReadOptions, Reading, read_from};
use super::{Table, csv, npy};
use crate::error::DataError;

/// The file formats that are written, told apart by the file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Csv,
    Npy,
}

impl Format {
    fn of(path: &Path) -> Result<Self, DataError> {
        let extension = path.extension().unwrap_or_default();
        if extension.eq_ignore_ascii_case("csv") {
            Ok(Self::Csv)
        } else if extension.eq_ignore_ascii_case("npy") {
            Ok(Self::Npy)
        } else {
            Err(DataError::Extension)
        }
    }
}

/// Reads a table from a file, whatever its name: text, NPY, NPZ, also compressed by gzip.
///
/// # Errors
///
/// Returns [`DataError::File`] with the path and the cause: the file cannot be read, or [`read_from`] refuses it.
pub fn read(path: impl AsRef<Path>) -> Result<Table, DataError> {
    Ok(read_with(path, &ReadOptions::default())?.table)
}

/// Reads a table from a file with what is known of it, and says what was decided. The file is opened once and read to
/// its end, so that it may be a pipe.
///
/// # Errors
///
/// Returns [`DataError::File`] with the path and the cause: the file cannot be read, or [`read_from`] refuses it.
pub fn read_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Reading, DataError> {
    let path = path.as_ref();
    let attempt = || read_from(File::open(path)?, options);
    attempt().map_err(|source| DataError::File { path: path.to_owned(), source: Box::new(source) })
}

/// Writes a table to a file whose name ends in `.csv` or `.npy` (then in double precision), replacing it.
///
/// # Errors
///
/// Returns [`DataError::File`] with the path and the cause: the file cannot be written, or its name has another ending.
pub fn write(table: &Table, path: impl AsRef<Path>) -> Result<(), DataError> {
    let path = path.as_ref();
    let attempt = || {
        let format = Format::of(path)?;
        let mut out = BufWriter::new(File::create(path)?);
        match format {
            Format::Csv => csv::write(table, &mut out)?,
            Format::Npy => npy::write(table, npy::Float::F8, &mut out)?,
        }
        Ok(out.flush()?)
    };
    attempt().map_err(|source| DataError::File { path: path.to_owned(), source: Box::new(source) })
}
