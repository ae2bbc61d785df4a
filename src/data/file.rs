//! Tables from files and into files, whose format their names tell.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use super::{Table, csv, npy};
use crate::error::DataError;

/// The file formats, told apart by the file's name.
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

/// Reads a table from a file whose name ends in `.csv` or `.npy`.
///
/// # Errors
///
/// Returns [`DataError::File`] with the path and the cause: the file cannot be read, its name has another ending, or
/// the format's reader refuses it.
pub fn read(path: impl AsRef<Path>) -> Result<Table, DataError> {
    let path = path.as_ref();
    let attempt = || {
        let format = Format::of(path)?;
        let bytes = fs::read(path)?;
        match format {
            Format::Csv => csv::read(&bytes),
            Format::Npy => npy::read(&bytes),
        }
    };
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
