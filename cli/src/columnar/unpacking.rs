//! The numbers of a Parquet file as an array in a temporary file, row by row.
//!
//! A Parquet file has its rows in groups that are compressed column by column: a few rows from anywhere would cost the decoding of all groups.
//! So it is decoded once, in memory for a batch of rows and the pages at hand; by the processes of a machine together.

use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::Path;

use resflow::data::npy::{self, Element};
use resflow::data::{DataError, Missing, Note, NpyRows, ReadOptions, StoredRows};
use resflow::error::Error;
use resflow::group::{Group, collective};
use tempfile::TempPath;

use super::guard::guarded;
use super::sharing::SharedFile;
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
/// that a look at all rows tells: missing values that are left out, categories, an index. The ranks of a group that share a disk unpack
/// row groups each into one file.
pub(crate) fn unpack(
    path: &Path,
    options: &ReadOptions,
    is_large: impl Fn(usize, usize) -> bool + Send + Sync,
    group: Option<&dyn Group>,
) -> Result<Option<(Unpacked, Vec<Note>)>, Error> {
    let categories = options.model.as_ref().map_or(&[][..], |model| &model.categories);
    if options.missing != Missing::Refuse || !options.categories.is_empty() || !categories.is_empty() {
        return Ok(None);
    }
    let decoded = |error| Error::from(reading::told(Kind::Parquet, error));
    let open = || {
        let file = parquet_file::Rows::open(File::open(path)?, options, None)?;
        Ok(file.filter(|file| is_large(file.rows(), file.width())).map(|file| (file.groups().to_vec(), file.width())))
    };
    let Some((groups, width)) = guarded(open).map_err(decoded)? else { return Ok(None) };
    let count: usize = groups.iter().sum();
    let mut shared = SharedFile::create(group)?;
    let (place, sharing) = shared.place();
    let part = |place: usize| place * groups.len() / sharing;
    let own = part(place)..part(place + 1);
    let header = npy::header(&[count, width], Element::F8)?;
    let before: usize = groups[..own.start].iter().sum();
    let offset = (header.len() + 8 * before * width) as u64;
    let out = shared.file();
    let attempt = || {
        if place == 0 {
            out.write_all(&header)?;
            // as long as it becomes, whoever is the last
            out.set_len((header.len() + 8 * count * width) as u64)?;
        }
        let mut out = BufWriter::new(out);
        out.seek(SeekFrom::Start(offset))?;
        let Some(mut file) = parquet_file::Rows::open(File::open(path)?, options, Some(own))? else {
            return Err(DataError::Changed.into());
        };
        while let Some(values) = file.next_batch()? {
            out.write_all(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        out.flush()?;
        Ok((file.names(), file.rounded().to_vec(), file))
    };
    let (names, rounded, mut file) = guarded(attempt).map_err(decoded)?;
    if let Some(group) = group {
        // what the others of this machine have rounded; also, all have written their parts
        let told: Vec<u8> = rounded.iter().flat_map(|&cells| (cells as u64).to_le_bytes()).collect();
        let all = collective::gather(group, [shared.path().to_string_lossy().as_bytes(), b"\n", &told].concat())?;
        let beginning = [shared.path().to_string_lossy().as_bytes(), b"\n"].concat();
        for (_, cells) in all.iter().enumerate().filter(|(rank, _)| *rank != group.rank()) {
            let Some(cells) = cells.strip_prefix(&*beginning) else { continue };
            let cells = cells.chunks_exact(8).map(|cells| u64::from_le_bytes(cells.try_into().unwrap_or_default()));
            file.add_rounded(cells.map(|cells| cells as usize));
        }
    }
    let rows = NpyRows::open(shared.path(), &ReadOptions::default())?;
    if let Some(group) = group {
        collective::wait_for_all(group)?;
    }
    let path = shared.into_own().into_temp_path();
    let path = if cfg!(unix) {
        // the file is there as long as it is open, however the process ends
        path.close().map_err(DataError::from)?;
        None
    } else {
        Some(path)
    };
    Ok(Some((Unpacked { rows, names, _path: path }, file.notes())))
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
