//! CSV: rows of numbers in text, after RFC 4180.
//!
//! UTF-8 with or without a byte order mark; lines end in LF, CRLF or CR; cells are separated by commas, may be
//! quoted, and are trimmed; blank lines are skipped. If no cell of the first row is a number, it is a header; if
//! some are, that is an error, never a guess. Numbers are Rust's (`-1.5`, `.5`, `2e-3`), rounded to the nearest
//! double; the writer prints the shortest text that reads back as the same double, so that write and read are
//! inverse to each other.
//!
//! Places are counted from one: the line on which the row starts, blank lines and header included, and the column.
//! Memory is bounded by a small multiple of the input.

use std::borrow::Cow;
use std::io::Write;

use csv::{ByteRecord, ReaderBuilder, Terminator, WriterBuilder};

use super::table::{Table, trim};
use crate::error::{DataError, Place};

/// Reads a table.
///
/// # Errors
///
/// Returns [`DataError::Empty`] for an empty file, [`DataError::HeaderOnly`] for a header without rows,
/// [`DataError::Ragged`] for a row of another length than the first, and [`DataError::Missing`],
/// [`DataError::NotANumber`] or [`DataError::NotFinite`] for a cell that is empty, not a number, NaN or infinite: each
/// with its line, column and, after a header, the column's name. [`DataError::Utf16`], [`DataError::ColumnName`] and
/// the like are for text that is no such table.
///
/// ```
/// use resflow::data::csv;
/// let table = csv::read(b"height,weight\n1.81,77\n1.62,58\n")?;
/// assert_eq!(table.row(1), [1.62, 58.0]);
/// let error = csv::read(b"height,weight\n1.81,77\n1.62,unknown\n").unwrap_err();
/// assert!(error.to_string().starts_with("line 3, column 2 (`weight`): `unknown` is not a number"));
/// # Ok::<(), resflow::data::DataError>(())
/// ```
pub fn read(bytes: &[u8]) -> Result<Table, DataError> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(DataError::Utf16);
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).buffer_capacity(1 << 16).from_reader(bytes);
    let mut lines = Lines { bytes, at: 0, line: 1 };
    let mut record = ByteRecord::new();
    let mut columns: Option<Vec<String>> = None;
    let mut width = 0;
    let mut values = Vec::new();
    let mut first = true;
    while reader.read_byte_record(&mut record).map_err(std::io::Error::from)? {
        let line = lines.of_row_from(record.position().map_or(0, csv::Position::byte));
        if first {
            first = false;
            width = record.len();
            columns = header(&record, line)?;
            if columns.is_some() {
                continue;
            }
        }
        if record.len() != width {
            return Err(DataError::Ragged { line, found: record.len(), expected: width });
        }
        for (i, cell) in record.iter().enumerate() {
            let place = || Place::Line { line, column: i + 1, name: columns.as_ref().map(|names| names[i].clone()) };
            values.push(number(cell, place)?);
        }
    }
    match columns {
        Some(names) if values.is_empty() => Err(DataError::HeaderOnly { columns: names.len() }),
        None if values.is_empty() => Err(DataError::Empty),
        columns => Table::new(columns, width, values),
    }
}

/// Writes a table, with a header if its columns have names.
///
/// # Errors
///
/// Returns [`DataError::Io`] if `out` cannot be written.
pub fn write(table: &Table, out: impl Write) -> Result<(), DataError> {
    write_values(table.columns(), table.width(), table.values(), out)
}

/// Writes numbers that may be NaN or infinite (`NaN`, `inf`, `-inf`), `width` a row. [`read`] refuses a file with
/// such a number in it.
///
/// # Errors
///
/// Returns [`DataError::TableShape`] if there is no column or the number of values is no multiple of `width`,
/// [`DataError::Width`] if the number of names is not the width, [`DataError::Io`] if `out` cannot be written.
pub fn write_values(
    columns: Option<&[String]>,
    width: usize,
    values: &[f64],
    out: impl Write,
) -> Result<(), DataError> {
    if width == 0 || !values.len().is_multiple_of(width) {
        return Err(DataError::TableShape { values: values.len(), width });
    }
    let mut writer = WriterBuilder::new().terminator(Terminator::Any(b'\n')).from_writer(out);
    if let Some(names) = columns {
        if names.len() != width {
            return Err(DataError::Width { found: names.len(), expected: width });
        }
        writer.write_record(names).map_err(std::io::Error::from)?;
    }
    for row in values.chunks_exact(width) {
        // `{:?}` is the shortest text that reads back as the same number, with an exponent where that is shorter
        writer.write_record(row.iter().map(|v| format!("{v:?}"))).map_err(std::io::Error::from)?;
    }
    Ok(writer.flush()?)
}

/// The header's names, or `None` if the first row is data.
fn header(row: &ByteRecord, line: u64) -> Result<Option<Vec<String>>, DataError> {
    let is_number = |cell: &[u8]| text(cell).parse::<f64>().is_ok();
    let Some(odd) = row.iter().position(|cell| !is_number(cell)) else { return Ok(None) };
    if row.iter().any(is_number) {
        let place = Place::Line { line, column: odd + 1, name: None };
        let text = text(&row[odd]);
        return Err(if text.is_empty() {
            DataError::Missing { place }
        } else {
            DataError::MixedHeader { place, text: text.into_owned() }
        });
    }
    let names: Vec<String> = row.iter().map(|cell| text(cell).into_owned()).collect();
    let width = names.len();
    // the table's rules for names, before any row is read
    Table::new(Some(names), width, Vec::new()).map(|table| table.columns().map(<[String]>::to_vec))
}

/// A cell's number.
fn number(cell: &[u8], place: impl Fn() -> Place) -> Result<f64, DataError> {
    let text = text(cell);
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(value) => Err(DataError::NotFinite { place: place(), value }),
        Err(_) if text.is_empty() => Err(DataError::Missing { place: place() }),
        Err(_) => Err(DataError::NotANumber { place: place(), text: text.into_owned() }),
    }
}

/// A cell's text, trimmed; what is not UTF-8 becomes U+FFFD, which no number has.
fn text(cell: &[u8]) -> Cow<'_, str> {
    match String::from_utf8_lossy(cell) {
        Cow::Borrowed(text) => Cow::Borrowed(trim(text)),
        Cow::Owned(text) => Cow::Owned(trim(&text).to_owned()),
    }
}

/// Line numbers of rows. The parser's own number is that of the end of the row before, and knows no CR.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line of the first row at or after byte `from`, which must not decrease from call to call.
    fn of_row_from(&mut self, from: u64) -> u64 {
        let mut start = usize::try_from(from).unwrap_or(usize::MAX).min(self.bytes.len());
        while matches!(self.bytes.get(start), Some(b'\r' | b'\n')) {
            start += 1;
        }
        while self.at < start {
            let ends_line = match self.bytes[self.at] {
                b'\n' => true,
                b'\r' => self.bytes.get(self.at + 1) != Some(&b'\n'),
                _ => false,
            };
            self.line += u64::from(ends_line);
            self.at += 1;
        }
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &[u8]) -> String {
        read(text).expect_err("an error").to_string()
    }

    #[test]
    fn header_is_recognised() {
        let with = read(b"a,b\n1,2\n3,4\n").expect("a table");
        assert_eq!(with.columns().map(<[String]>::to_vec), Some(vec!["a".to_owned(), "b".to_owned()]));
        let without = read(b"1,2\n3,4\n").expect("a table");
        assert_eq!(without.columns(), None);
        assert_eq!(with.values(), without.values());
    }

    #[test]
    fn dialects_agree() {
        let plain = read(b"a,b\n1,2\n3,4\n").expect("a table");
        for text in [
            &b"\xef\xbb\xbfa,b\n1,2\n3,4\n"[..],
            b"a,b\r\n1,2\r\n3,4\r\n",
            b"a,b\r1,2\r3,4",
            b"a,b\n1,2\n3,4",
            b"\n\na , b\n\n 1,\t2 \n\n\n+3.0,4e0\n\n",
            b"\"a\",\"b\"\n\"1\",\"2\"\n3,4\n",
        ] {
            assert_eq!(read(text).expect("a table"), plain, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn faults_have_a_place() {
        assert_eq!(message(b""), "the file is empty: it needs at least one row of numbers");
        assert_eq!(message(b"\xef\xbb\xbf\r\n\n"), message(b""));
        assert!(message(b"a,b\n").starts_with("the file has a header (2 columns) but no rows"));
        assert!(message(b"a\n").starts_with("the file has a header (1 column) but no rows"));
        assert!(message(b"1,2\n3\n").starts_with("line 2 has 1 cell, but the rows before it have 2"));
        assert!(message(b"a,b\r\n\r\n1,2\r\n3,4,5\r\n").starts_with("line 4 has 3 cells"));
        assert!(message(b"1,2\n3,x\n").starts_with("line 2, column 2: `x` is not a number"));
        assert!(message(b"a,b\n\n\n1,2\n\nx,4\n").starts_with("line 6, column 1 (`a`): `x` is not a number"));
        assert!(message(b"a,b\r1,2\rx,4\r").starts_with("line 3, column 1 (`a`): `x` is not a number"));
        assert!(message(b"\"a\nb\",c\n1,2\n3,x\n").starts_with("line 4, column 2 (`c`): `x`"));
        assert!(message(b"a,b\n1,NaN\n").starts_with("line 2, column 2 (`b`): the value is NaN"));
        assert!(message(b"nan,1\n").starts_with("line 1, column 1: the value is NaN"));
        assert!(message(b"1,-inf\n").starts_with("line 1, column 2: the value is -inf"));
        assert!(message(b"1\n1e999\n").starts_with("line 2, column 1: the value is inf"));
        assert!(message(b"1,2\n3,\n").starts_with("line 2, column 2: the cell is empty"));
        assert!(message(b"1,,2\n").starts_with("line 1, column 2: the cell is empty"));
        assert!(message(b"1,b\n3,4\n").starts_with("line 1, column 2: `b` is not a number, but other cells"));
        assert!(message(b",a\n0,1\n").starts_with("the name of column 1, ``, is empty"));
        assert!(message(b"1;2\n3;4\n").contains("header (1 column)") || message(b"1;2\n3;4\n").contains("line 2"));
        assert!(message(b"1,2\n3,\xff\n").starts_with("line 2, column 2: `\u{fffd}` is not a number"));
        assert!(message(b"\xff\xfe1\0,\x002\0").contains("UTF-16"));
    }

    #[test]
    fn messages_are_short_and_printable() {
        let long = [b"1\n\"\x1b[31m".as_slice(), &vec![b'x'; 100_000]].concat();
        let text = message(&long);
        assert!(text.len() < 400 && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn special_values_are_written() {
        let mut out = Vec::new();
        let names = ["log_prob".to_owned(), "se".to_owned()];
        write_values(Some(&names), 2, &[f64::NEG_INFINITY, f64::NAN, -1.5, 1e300], &mut out).expect("written");
        assert_eq!(out, b"log_prob,se\n-inf,NaN\n-1.5,1e300\n");
        assert!(write_values(None, 0, &[], &mut out).is_err());
        assert!(write_values(None, 2, &[1.0], &mut out).is_err());
        assert!(write_values(Some(&names), 1, &[1.0], &mut out).is_err());
    }
}
