//! Text: rows of numbers, after RFC 4180 and its relatives.
//!
//! UTF-8 with or without a byte order mark, or UTF-16; lines end in LF, CRLF or CR; cells are separated by commas,
//! semicolons, tabs, bars or runs of blanks, may be quoted, and are trimmed; blank lines and lines that begin with `#` are
//! skipped. If no cell of the first row is a number, it is a header; if some are, [`ReadOptions`] may have to say what
//! it is. Numbers are Rust's (`-1.5`, `.5`, `2e-3`), with a comma for the point where another separator allows it, rounded
//! to the nearest double; the writer prints the shortest text that reads back as the same double, so that write and read
//! are inverse to each other.
//!
//! Places are counted from one: the line on which the row starts, blank lines and header included, and the column.
//! Memory is bounded by a small multiple of the input.

use std::io::Write;

use csv::{QuoteStyle, Terminator, WriterBuilder};

use super::reading::{ReadOptions, read_text};
use super::table::Table;
use crate::error::DataError;

/// Reads a table of text, whose dialect its content decides.
///
/// # Errors
///
/// Returns [`DataError::Empty`] for an empty file, [`DataError::HeaderOnly`] for a header without rows,
/// [`DataError::Ragged`] for a row of another length than the first, and [`DataError::Cells`] for cells that are missing,
/// not numbers, or infinite: all of them, with line, column and, after a header, the column's name.
/// [`DataError::Ambiguous`], [`DataError::MixedHeader`], [`DataError::ColumnName`] and the like are for text that is no such
/// table.
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
    Ok(read_text(bytes, &ReadOptions::default())?.table)
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
    let builder = |style| {
        let mut builder = WriterBuilder::new();
        builder.terminator(Terminator::Any(b'\n')).comment(Some(b'#')).quote_style(style);
        builder
    };
    let mut out = out;
    if let Some(names) = columns {
        if names.len() != width {
            return Err(DataError::Width { found: names.len(), expected: width });
        }
        let style = if must_quote(names) { QuoteStyle::Always } else { QuoteStyle::Necessary };
        let mut writer = builder(style).from_writer(&mut out);
        writer.write_record(names).map_err(std::io::Error::from)?;
        writer.flush()?;
    }
    let mut writer = builder(QuoteStyle::Necessary).from_writer(out);
    for row in values.chunks_exact(width) {
        // `{:?}` is the shortest text that reads back as the same number, with an exponent where that is shorter
        writer.write_record(row.iter().map(|v| format!("{v:?}"))).map_err(std::io::Error::from)?;
    }
    Ok(writer.flush()?)
}

/// Whether names could be taken for a row of numbers, or for a line that says the separator, and so must be quoted.
fn must_quote(names: &[String]) -> bool {
    names.iter().any(|name| name.parse::<f64>().is_ok() || name.to_ascii_lowercase().starts_with("sep="))
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
            b"a;b\n1;2\n3;4\n",
            b"a\tb\n1\t2\n3\t4\n",
            b"a|b\n1|2\n3|4\n",
            b"a b\n 1   2\n 3   4\n",
            b"a;b\n1,0;2\n3;4,0\n",
            b"# a,b\n1,2\n3,4\n",
            b"sep=,\na,b\n1,2\n3,4\n",
            b"a,b\n1,2,\n3,4,\n",
            b",a,b\n1,1,2\n2,3,4\n",
            b"\xff\xfea\0,\0b\0\n\x001\0,\x002\0\n\x003\0,\x004\0",
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
        assert!(message(b",a\n0.5,1\n").starts_with("the name of column 1, ``, is empty"));
        assert!(message(b"1,2\n3,\xff\n").starts_with("line 2, column 2: `\u{fffd}` is not a number"));
        assert!(message(b"\xff\xfe1\0,\x002").contains("UTF-16"));
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
