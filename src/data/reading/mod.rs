//! Reading tables as they come: the content decides on the format, not the name.
//!
//! A stream is looked at once, from its beginning, so that pipes are as good as files. What it is comes first: gzip
//! (whatever is inside), NPY, NPZ, a zip of one file, text; foreign formats are refused by their name. Text is decoded
//! (UTF-8, UTF-16), and a bounded sample of its first rows decides on the dialect: separator, decimal mark, header,
//! comments, row names. Then rows are read as they stream by; of text no more than a piece is ever in memory beside
//! the numbers.
//!
//! Invariants: what was decided is in the [`Note`]s, and [`ReadOptions`] can decide otherwise; where two readings are as
//! good as each other the text is refused and both are named; a table has finite numbers only; all faults of cells are
//! found before any is reported.

mod cells;
mod columns;
mod dialect;
mod header;
mod note;
mod number;
mod options;
mod record;
mod signature;
mod source;
mod text;
mod words;
mod zipped;

use std::io::{self, Read};

pub use note::Note;
pub use options::{Decimal, Missing, ModelColumns, ReadOptions, Separator, TextColumns};

use super::category::Categories;
use super::npy;
use super::table::Table;
use crate::error::DataError;

/// The first bytes of a stream that tell what it is, and the most that decides on the dialect of text.
const SAMPLE: usize = 512 << 10;
/// How often a file may be compressed: an NPZ file under gzip, say. A hostile one can hold itself.
const NESTED: u8 = 2;

/// A table with what was decided to read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The table of the columns of numbers, of which there may be none where there are categories.
    pub table: Table,
    /// The columns of categories, where the options allow some.
    pub categories: Option<Categories>,
    /// What was decided, in the order of the file.
    pub notes: Vec<Note>,
    /// The rows of the file that the table lacks, counted from 0 without the header, in increasing order.
    pub dropped: Vec<usize>,
}

/// Reads a table from a stream: text, NPY, NPZ, each also under gzip. The stream is read to its end once.
///
/// # Errors
/// Returns [`DataError::Cells`] with every cell that is missing, text or infinite, [`DataError::Ambiguous`] for text that
/// can be read in two ways, [`DataError::Foreign`] for another format, by its name; [`DataError::NoColumn`] and
/// [`DataError::ColumnsMissing`] for columns that are not there; [`DataError::Ragged`], [`DataError::Empty`] and the like
/// for damaged files.
///
/// ```
/// use resflow::data::{ReadOptions, read_from};
/// let text = "height;weight\n1,81;77\n1,62;58\n";
/// let reading = read_from(text.as_bytes(), &ReadOptions::default())?;
/// assert_eq!(reading.table.row(1), [1.62, 58.0]);
/// assert_eq!(reading.notes.len(), 2, "semicolons and decimal commas");
/// # Ok::<(), resflow::data::DataError>(())
/// ```
pub fn read_from(stream: impl Read, options: &ReadOptions) -> Result<Reading, DataError> {
    options.check()?;
    content(Box::new(stream), options, NESTED)
}

/// Reads what a stream holds, which may be compressed so many times.
fn content(mut stream: Box<dyn Read + '_>, options: &ReadOptions, nested: u8) -> Result<Reading, DataError> {
    let mut head = Vec::new();
    stream.by_ref().take(SAMPLE as u64).read_to_end(&mut head)?;
    if head.is_empty() {
        return Err(DataError::Empty);
    }
    let (gzip, zip) = (source::is_gzip(&head), zipped::begins(&head));
    if (gzip || zip) && nested == 0 {
        return Err(DataError::Foreign { what: "compressed several times", help: "decompress it" });
    }
    if gzip {
        let whole: Box<dyn Read + '_> = Box::new(io::Cursor::new(head).chain(stream));
        return match content(Box::new(source::inflate(whole)), options, nested - 1) {
            Ok(mut reading) => {
                reading.notes.insert(0, Note::Gzip);
                Ok(reading)
            }
            Err(DataError::Io(error)) => Err(source::gzip_error(&error)),
            Err(error) => Err(error),
        };
    }
    if npy::begins(&head) {
        return npy::read_with(&rest(head, stream)?, options);
    }
    if zip {
        return zipped::read(&rest(head, stream)?, options, nested - 1);
    }
    if let Some((what, help)) = signature::foreign(&head) {
        return Err(DataError::Foreign { what, help });
    }
    text::read(head, stream, options)
}

/// Reads what was unpacked of a zip file.
#[cfg(feature = "images")]
pub(super) fn read_member(contents: &[u8], options: &ReadOptions) -> Result<Reading, DataError> {
    content(Box::new(contents), options, NESTED - 1)
}

/// Reads text, whatever it begins with.
pub(super) fn read_text(bytes: &[u8], options: &ReadOptions) -> Result<Reading, DataError> {
    options.check()?;
    let (head, rest) = bytes.split_at(bytes.len().min(SAMPLE));
    if head.is_empty() {
        return Err(DataError::Empty);
    }
    text::read(head.to_vec(), Box::new(rest), options)
}

fn rest(mut head: Vec<u8>, mut stream: Box<dyn Read + '_>) -> Result<Vec<u8>, DataError> {
    stream.read_to_end(&mut head)?;
    Ok(head)
}

pub(super) use cells::{Cells, finish};
pub(super) use columns::{Layout, choose};
#[cfg(feature = "images")]
pub(super) use source::{gzip_error, inflate, is_gzip};
#[cfg(feature = "images")]
pub(super) use zipped::{begins as is_zip, member};
