//! torch's format since 1.6: a zip of stored entries, `NAME/data.pkl` with the pickle and `NAME/data/KEY` with the
//! storages.

use std::collections::BTreeMap;
use std::io;

use zip::{CompressionMethod, ZipArchive};

use crate::error::ImportError;

/// The entries of a file.
pub(super) struct TorchZip<'a> {
    bytes: &'a [u8],
    archive: ZipArchive<io::Cursor<&'a [u8]>>,
    folder: String,
    /// The entries that were read, their checksums verified.
    verified: BTreeMap<String, &'a [u8]>,
    /// Bytes that were verified; entries that overlap could make work and memory out of nothing.
    spent: usize,
}

fn damaged(e: impl std::fmt::Display) -> ImportError {
    ImportError::Format(format!("not a readable zip file: {e}"))
}

impl<'a> TorchZip<'a> {
    /// Reads the directory.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, ImportError> {
        let archive = ZipArchive::new(io::Cursor::new(bytes)).map_err(damaged)?;
        let pickles: Vec<_> =
            archive.file_names_raw().filter_map(|name| name.strip_suffix(b"/data.pkl")).take(2).collect();
        let &[folder] = pickles.as_slice() else {
            let problem = "a zip file without exactly one data.pkl: no checkpoint of torch";
            return Err(ImportError::Format(problem.into()));
        };
        let folder = String::from_utf8(folder.to_vec()).map_err(damaged)?;
        let mut zip = Self { bytes, archive, folder, verified: BTreeMap::new(), spent: 0 };
        // absent in files of older versions, which knew only one order
        if zip.index("byteorder").is_some() && zip.entry("byteorder")? != b"little" {
            return Err(ImportError::Format("numbers with the big end first are not supported".into()));
        }
        Ok(zip)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.archive.index_for_name(&format!("{}/{name}", self.folder))
    }

    /// The contents of an entry.
    pub(super) fn entry(&mut self, name: &str) -> Result<&'a [u8], ImportError> {
        if let Some(&contents) = self.verified.get(name) {
            return Ok(contents);
        }
        let index = self.index(name).ok_or_else(|| damaged(format_args!("no entry {name}")))?;
        let contents = {
            let mut entry = self.archive.by_index(index).map_err(damaged)?;
            if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
                return Err(damaged(format_args!("entry {name} is compressed, which torch never does")));
            }
            let range = entry.data_start().zip(entry.size().into()).and_then(|(start, size)| {
                Some(usize::try_from(start).ok()?..usize::try_from(start.checked_add(size)?).ok()?)
            });
            let contents = range.and_then(|range| self.bytes.get(range));
            let contents = contents.ok_or_else(|| damaged(format_args!("entry {name} is cut off")))?;
            self.spent += contents.len();
            if self.spent > self.bytes.len() {
                return Err(damaged("entries overlap"));
            }
            // the reader verifies the checksum at the end
            io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
            contents
        };
        self.verified.insert(name.to_owned(), contents);
        Ok(contents)
    }
}
