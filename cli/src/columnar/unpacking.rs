//! The numbers of a Parquet file as an array in a temporary file, row by row.
//!
//! A Parquet file has its rows in groups that are compressed column by column: a few rows from anywhere would cost the decoding of all groups.
//! So it is decoded once, in memory for a batch of rows and the pages at hand.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use resflow::data::npy::RowWriter;
use resflow::data::{DataError, Missing, Note, NpyRows, ReadOptions, StoredRows};
use tempfile::{NamedTempFile, TempPath};

use super::guard::guarded;
use super::{Kind, parquet_file, reading};

/// Rows of a file that was unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    rows: NpyRows,
    names: Vec<String>,
    /// Where the system does not keep an open file that has no name.
    _path: Option<TempPath>,
}

/// Unpacks the chosen columns of a file, if its numbers of rows and of columns say that it is large, and if nothing is asked for or found
/// that a look at all rows tells: missing values that are left out, categories, an index.
pub(crate) fn unpack(
    path: &Path,
    options: &ReadOptions,
    is_large: impl Fn(usize, usize) -> bool + Send + Sync,
) -> Result<Option<(Unpacked, Vec<Note>)>, DataError> {
    let categories = options.model.as_ref().map_or(&[][..], |model| &model.categories);
    if options.missing != Missing::Refuse || !options.categories.is_empty() || !categories.is_empty() {
        return Ok(None);
    }
    let attempt = || {
        let Some(mut file) = parquet_file::Rows::open(File::open(path)?, options)? else { return Ok(None) };
        let (rows, width) = (file.rows(), file.width());
        if !is_large(rows, width) {
            return Ok(None);
        }
        let mut array = RowWriter::new(rows, width, NamedTempFile::new()?)?;
        while let Some(values) = file.next_batch()? {
            array.write(&values)?;
        }
        Ok(Some((array.finish()?.into_temp_path(), file.names(), file.notes())))
    };
    let unpacked = guarded(attempt).map_err(|error| reading::told(Kind::Parquet, error))?;
    let Some((path, names, notes)) = unpacked else { return Ok(None) };
    let rows = NpyRows::open(&path, &ReadOptions::default())?;
    let path = if cfg!(unix) {
        // the file is there as long as it is open, however the process ends
        path.close()?;
        None
    } else {
        Some(path)
    };
    Ok(Some((Unpacked { rows, names, _path: path }, notes)))
}

impl StoredRows for Unpacked {
    fn rows(&self) -> usize {
        self.rows.rows()
    }

    fn width(&self) -> usize {
        self.rows.width()
    }

    fn columns(&self) -> Option<&[String]> {
        Some(&self.names)
    }

    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        self.rows.read(rows, out)
    }
}
