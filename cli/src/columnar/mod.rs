//! Tables that are stored by columns: Parquet and Arrow files. They are told by their first bytes; what reads and writes them
//! is there with the feature `parquet`, and without it they are refused with what to do.

#[cfg(feature = "parquet")]
mod arrow_file;
mod column;
#[cfg(feature = "parquet")]
mod guard;
#[cfg(feature = "parquet")]
mod number;
#[cfg(feature = "parquet")]
mod page;
#[cfg(feature = "parquet")]
mod parquet_file;
#[cfg(feature = "parquet")]
mod reading;
#[cfg(not(feature = "parquet"))]
mod refusal;
#[cfg(feature = "parquet")]
mod sharing;
#[cfg(feature = "parquet")]
mod table;
#[cfg(all(test, feature = "parquet"))]
mod tests;
#[cfg(feature = "parquet")]
mod unpacking;
#[cfg(feature = "parquet")]
mod word;
#[cfg(feature = "parquet")]
mod writing;

use std::fs::File;
use std::io::Read;

pub(crate) use column::{Cells, Column, columns_with, csv, csv_rows};
#[cfg(feature = "parquet")]
pub(crate) use reading::read;
#[cfg(not(feature = "parquet"))]
pub(crate) use refusal::{read, write};
#[cfg(feature = "parquet")]
pub(crate) use unpacking::unpack;
#[cfg(feature = "parquet")]
pub(crate) use writing::write;

/// Whether the program reads and writes these formats.
pub(crate) const BUILT_IN: bool = cfg!(feature = "parquet");
/// The most first bytes that tell one of them.
pub(crate) const MAGIC: u64 = 6;

/// A format of tables that are stored by columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Parquet,
    /// Arrow's file format, of which Feather (version 2) is another name.
    ArrowFile,
    /// The same without a directory, as it goes through pipes.
    ArrowStream,
}

impl Kind {
    /// The format of what begins so.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        let formats: [(&[u8], Self); 3] =
            [(b"PAR1", Self::Parquet), (b"ARROW1", Self::ArrowFile), (b"\xff\xff\xff\xff", Self::ArrowStream)];
        formats.into_iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, kind)| kind)
    }

    /// What such a file is called in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Parquet => "a Parquet file",
            Self::ArrowFile => "an Arrow (Feather) file",
            Self::ArrowStream => "an Arrow stream",
        }
    }
}

/// Where a table is read from, from its beginning.
#[cfg_attr(not(feature = "parquet"), allow(dead_code))]
pub(crate) enum Input {
    File(File),
    Stream(Box<dyn Read + Send>),
}
