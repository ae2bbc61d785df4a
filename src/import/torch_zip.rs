//! torch's format since 1.6: a zip, `NAME/data.pkl` with the pickle and `NAME/data/KEY` with the storages. torch stores
//! the entries as they are; a zip that was packed anew may have them deflated.
//!
//! Stored entries are windows of the file. What is decompressed takes memory of its own, at most [`EXPANSION`] times the
//! file's size: numbers of a network hardly shrink, so a file that holds more is no checkpoint.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read as _};

use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use crate::data::looks_like;
use crate::error::ImportError;

/// Bytes that come out of one of the file, at most; the slack is for files of a few hundred.
const EXPANSION: (usize, usize) = (16, 4_096);

/// The entries of a file.
pub(super) struct TorchZip<'a> {
    bytes: &'a [u8],
    archive: ZipArchive<io::Cursor<&'a [u8]>>,
    folder: String,
    /// The entries that were read, their checksums verified.
    verified: BTreeMap<String, Cow<'a, [u8]>>,
    /// Bytes that were verified; entries that overlap could make work and memory out of nothing.
    spent: usize,
    /// Bytes that came out of deflated entries.
    decompressed: usize,
}

fn damaged(e: impl std::fmt::Display) -> ImportError {
    ImportError::Format(format!("not a readable zip file: {e}"))
}

impl<'a> TorchZip<'a> {
    /// Reads the directory.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, ImportError> {
        let archive = ZipArchive::new(io::Cursor::new(bytes)).map_err(|e| match looks_like::describe(bytes) {
            Some(what) if what.ends_with(looks_like::CUT) => damaged("it is cut short"),
            _ => damaged(e),
        })?;
        let pickles: Vec<_> =
            archive.file_names_raw().filter_map(|name| name.strip_suffix(b"/data.pkl")).take(2).collect();
        let &[folder] = pickles.as_slice() else {
            let problem = "a zip file without exactly one data.pkl: no checkpoint of torch";
            return Err(ImportError::Format(problem.into()));
        };
        let folder = String::from_utf8(folder.to_vec()).map_err(damaged)?;
        let (verified, spent, decompressed) = (BTreeMap::new(), 0, 0);
        let mut zip = Self { bytes, archive, folder, verified, spent, decompressed };
        // absent in files of older versions, which knew only one order
        if zip.index("byteorder").is_some() && zip.entry("byteorder")?.trim_ascii() != b"little" {
            let problem = "its numbers have the big end first (big-endian), which is not supported: load the file with \
                           torch on a usual machine and save it again";
            return Err(ImportError::Format(problem.into()));
        }
        Ok(zip)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.archive.index_for_name(&format!("{}/{name}", self.folder))
    }

    /// The pickle.
    pub(super) fn pickle(&mut self) -> Result<Cow<'a, [u8]>, ImportError> {
        self.read("data.pkl")
    }

    /// The contents of an entry.
    pub(super) fn entry(&mut self, name: &str) -> Result<&[u8], ImportError> {
        if !self.verified.contains_key(name) {
            let contents = self.read(name)?;
            self.verified.insert(name.to_owned(), contents);
        }
        self.verified.get(name).map(|contents| &**contents).ok_or_else(|| damaged(format_args!("no entry {name}")))
    }

    /// Bytes that came out of deflated entries.
    pub(super) fn decompressed(&self) -> usize {
        self.decompressed
    }

    fn read(&mut self, name: &str) -> Result<Cow<'a, [u8]>, ImportError> {
        let index = self.index(name).ok_or_else(|| damaged(format_args!("no entry {name}")))?;
        // as it stands in the file, whatever it is compressed by
        let entry = self.archive.by_index_raw(index).map_err(damaged)?;
        let (method, size, sum) = (entry.compression(), entry.size(), entry.crc32());
        let range = entry.data_start().and_then(|start| {
            let end = start.checked_add(entry.compressed_size())?;
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        drop(entry);
        let stored = range.and_then(|range| self.bytes.get(range));
        let stored = stored.ok_or_else(|| damaged(format_args!("entry {name} is cut off")))?;
        self.spent = self.spent.saturating_add(stored.len());
        if self.spent > self.bytes.len() {
            return Err(damaged("entries overlap"));
        }
        let contents = match method {
            CompressionMethod::Stored => Cow::Borrowed(stored),
            CompressionMethod::DEFLATE => Cow::Owned(self.inflate(name, stored, size)?),
            other => {
                let problem = format!("entry {name} is compressed by {other}: pack the file anew without compression");
                return Err(damaged(problem));
            }
        };
        if contents.len() as u64 != size {
            return Err(damaged(format_args!("entry {name} has {} bytes, {size} are declared", contents.len())));
        }
        let mut crc = Crc::new();
        crc.update(&contents);
        if crc.sum() != sum {
            return Err(damaged(format_args!("entry {name} has a wrong checksum")));
        }
        Ok(contents)
    }

    fn inflate(&mut self, name: &str, deflated: &[u8], size: u64) -> Result<Vec<u8>, ImportError> {
        let (ratio, slack) = EXPANSION;
        let most = self.bytes.len().saturating_mul(ratio).saturating_add(slack).saturating_sub(self.decompressed);
        if size > most as u64 {
            return Err(damaged(format_args!("entry {name} is compressed to far less than the numbers of a network")));
        }
        let mut contents = Vec::new();
        // a byte beyond what was declared shows that there is more
        let read = DeflateDecoder::new(deflated).take(size.saturating_add(1)).read_to_end(&mut contents);
        read.map_err(|e| damaged(format_args!("the compressed entry {name} is damaged: {e}")))?;
        contents.shrink_to_fit();
        self.decompressed = self.decompressed.saturating_add(contents.len());
        Ok(contents)
    }
}
