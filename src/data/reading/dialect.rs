//! The dialect of text, from a sample of its first rows.
//!
//! A separator is judged by how many of the sample's rows it cuts into as many cells as most, and by how many of these
//! are numbers; a comma in a cell makes it a number if decimals stand behind commas. What is a number between one
//! separator is none between another, but for commas: one column of `1,23` is two of integers, and refused as ambiguous.

use super::header::{self, Header};
use super::note::Note;
use super::number::{self, Cell};
use super::options::{Decimal, ReadOptions, Separator};
use super::record::{self, Line, Span};
use crate::error::DataError;

/// The rows that decide.
const ROWS: usize = 100;

/// How a text is to be read.
#[derive(Debug)]
pub(super) struct Dialect {
    pub(super) separator: Separator,
    pub(super) decimal: Decimal,
    /// Whether the text is one column, whose cells are whole lines.
    pub(super) one_column: bool,
    /// The bytes before the rows: a line that says the separator.
    pub(super) skip: usize,
    /// Whether the first row has names.
    pub(super) header: bool,
    /// Whether rows end in a separator that counts for nothing.
    pub(super) trailing: bool,
    /// The number of columns, that of a trailing separator aside.
    pub(super) width: usize,
    /// Their names, which the last comment before the first row has where that is no header.
    pub(super) names: Option<Vec<String>>,
    pub(super) notes: Vec<Note>,
}

/// The sample between one separator.
pub(super) struct Rows<'a> {
    text: &'a [u8],
    spans: Vec<Vec<Span>>,
    /// The last comment before the first row.
    pub(super) comment: Option<&'a [u8]>,
    /// The line of the first row, from 1 at the sample's beginning.
    pub(super) first_line: u64,
}

impl<'a> Rows<'a> {
    /// The first rows of a text, which goes on unless `whole`.
    fn of(text: &'a [u8], whole: bool, separator: Separator) -> Self {
        let mut found = Self { text, spans: Vec::new(), comment: None, first_line: 1 };
        let (mut at, mut cells) = (0, Vec::new());
        while found.spans.len() < ROWS {
            at = match record::line(text, at, whole, separator, &mut cells) {
                Line::Row(end) => {
                    if found.spans.is_empty() {
                        found.first_line = 1 + record::line_ends(&text[..at]);
                    }
                    found.spans.push(cells.clone());
                    end
                }
                Line::Comment(end) => {
                    if found.spans.is_empty() {
                        found.comment = Some(&text[at..end]);
                    }
                    end
                }
                Line::Blank(end) => end,
                Line::Incomplete | Line::End => break,
            };
        }
        found
    }

    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// The number of cells of a row.
    pub(super) fn width(&self, row: usize) -> usize {
        self.spans[row].len()
    }

    /// A cell, without white space around it, and whether it was quoted; none beyond the row's end.
    pub(super) fn cell(&self, row: usize, column: usize) -> Option<(Vec<u8>, bool)> {
        let span = self.spans[row].get(column)?;
        let mut spare = Vec::new();
        Some((number::bare(span.of(self.text, &mut spare)).to_vec(), span.quoted))
    }

    pub(super) fn kind(&self, row: usize, column: usize, decimal: Decimal) -> Option<Cell> {
        self.cell(row, column).map(|(cell, _)| number::parse(&cell, decimal))
    }

    /// The number of cells that most rows have, those of the first aside if there are others, and how many have as many.
    fn mode(&self) -> (usize, usize) {
        let first = usize::from(self.len() > 1);
        let mut counts: Vec<(usize, usize)> = Vec::new();
        for row in first..self.len() {
            let width = self.width(row);
            match counts.iter_mut().find(|(w, _)| *w == width) {
                Some((_, n)) => *n += 1,
                None => counts.push((width, 1)),
            }
        }
        // of equals the first
        counts.into_iter().rev().max_by_key(|&(_, n)| n).unwrap_or((0, 0))
    }

    /// The numbers among the cells, with decimals behind a point (or none) and behind a comma, and all cells that are
    /// not missing.
    fn numbers(&self) -> Count {
        let mut count = Count::default();
        let first = usize::from(self.len() > 1);
        for row in first..self.len() {
            for column in 0..self.width(row) {
                let Some((cell, _)) = self.cell(row, column) else { continue };
                match number::parse(&cell, Decimal::Point) {
                    Cell::Missing => continue,
                    Cell::Number(_) | Cell::Infinite(_) if cell.contains(&b'.') => count.points += 1,
                    Cell::Number(_) | Cell::Infinite(_) => count.integers += 1,
                    Cell::Text => {
                        let comma = matches!(number::parse(&cell, Decimal::Comma), Cell::Number(_));
                        count.commas += usize::from(comma);
                    }
                }
                count.all += 1;
            }
        }
        count
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    points: usize,
    commas: usize,
    integers: usize,
    all: usize,
}

impl Count {
    /// The decimal mark of most numbers, and the share of the cells that are numbers with it.
    fn decimal(&self, separator: Separator, asked: Option<Decimal>) -> (Decimal, f64) {
        let comma = separator != Separator::Comma && self.commas > 0 && self.points == 0;
        let decimal = asked.unwrap_or(if comma { Decimal::Comma } else { Decimal::Point });
        let with_mark = if decimal == Decimal::Comma { self.commas } else { self.points };
        (decimal, (self.integers + with_mark) as f64 / self.all.max(1) as f64)
    }
}

/// Finds the dialect of text that begins with `sample`; `whole` if that is all of it.
pub(super) fn find(sample: &[u8], whole: bool, options: &ReadOptions) -> Result<Dialect, DataError> {
    let mut notes = Vec::new();
    let (skip, said) = separator_line(sample);
    let body = &sample[skip..];
    let asked = options.separator.or(said);
    if let Some(separator) = said {
        notes.push(Note::SeparatorLine(separator));
    }
    let (mut separator, mut one_column) = match asked {
        Some(separator) => (separator, false),
        None => match best(body, whole, options.decimal) {
            Some(separator) => (separator, false),
            None => (Separator::Comma, true),
        },
    };
    let mut rows = Rows::of(body, whole, separator);
    if asked.is_none() && separator == Separator::Comma && !one_column && decimals_in_commas(&rows, options)? {
        one_column = true;
    }
    if one_column && options.decimal != Some(Decimal::Point) {
        // whole lines: nothing that a number has is a bar
        let lines = Rows::of(body, whole, Separator::Bar);
        if lines.numbers().commas > 0 || options.decimal == Some(Decimal::Comma) {
            separator = Separator::Bar;
            rows = lines;
        }
    }
    let (decimal, _) = rows.numbers().decimal(separator, options.decimal);
    if rows.len() == 0 {
        // a file of one line that does not end in the sample, or of none
        return Err(if whole {
            DataError::Empty
        } else {
            DataError::Encoding("has no line end within 64 MiB: it is no table")
        });
    }
    if !one_column && said.is_none() && separator != Separator::Comma {
        notes.push(Note::Separator(separator));
    }
    if decimal == Decimal::Comma {
        notes.push(Note::DecimalComma);
    }
    let trailing = has_trailing(&rows, separator);
    if trailing {
        notes.push(Note::TrailingSeparator);
    }
    let Header { first_row, names, width, note } = header::find(&rows, separator, decimal, trailing, options)?;
    notes.extend(note);
    Ok(Dialect { separator, decimal, one_column, skip, header: first_row, trailing, width, names, notes })
}

/// Excel's first line, `sep=;`: its length with the line end, and the separator.
fn separator_line(text: &[u8]) -> (usize, Option<Separator>) {
    let end = text.iter().take(16).position(|b| matches!(b, b'\n' | b'\r'));
    let Some(end) = end else { return (0, None) };
    let line = text[..end].trim_ascii_start();
    let said = line.get(..4).is_some_and(|key| key.eq_ignore_ascii_case(b"sep=")).then(|| &line[4..]);
    let separator = match said {
        Some(b"\t") => Some(Separator::Tab),
        Some(mark) => match mark.trim_ascii_end() {
            b"," => Some(Separator::Comma),
            b";" => Some(Separator::Semicolon),
            b"|" => Some(Separator::Bar),
            _ => None,
        },
        None => None,
    };
    if separator.is_none() {
        return (0, None);
    }
    let crlf = text[end] == b'\r' && text.get(end + 1) == Some(&b'\n');
    (end + 1 + usize::from(crlf), separator)
}

/// The separator between which most rows have as many cells, most of them numbers; none if there is but one column.
fn best(text: &[u8], whole: bool, decimal: Option<Decimal>) -> Option<Separator> {
    let mut best: Option<(f64, Separator)> = None;
    for separator in Separator::ALL {
        let there = match separator.byte() {
            Some(byte) => text.contains(&byte),
            None => text.contains(&b' ') || text.contains(&b'\t'),
        };
        if !there || (separator == Separator::Comma && decimal == Some(Decimal::Comma)) {
            continue;
        }
        let rows = Rows::of(text, whole, separator);
        let (width, as_many) = rows.mode();
        if width < 2 {
            continue;
        }
        let others = rows.len() - usize::from(rows.len() > 1);
        let (_, numbers) = rows.numbers().decimal(separator, decimal);
        let score = as_many as f64 / others.max(1) as f64 * (numbers + 0.05);
        // of equals the first
        if best.is_none_or(|(other, _)| score > other + 1e-9) {
            best = Some((score, separator));
        }
    }
    best.map(|(_, separator)| separator)
}

/// Whether two cells a row between commas are one number with a decimal comma.
fn decimals_in_commas(rows: &Rows, options: &ReadOptions) -> Result<bool, DataError> {
    let halves = |row: usize| {
        let [Some((before, false)), Some((behind, false)), None] = [0, 1, 2].map(|column| rows.cell(row, column))
        else {
            return None;
        };
        let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
        let sign = before.strip_prefix(b"-").or(before.strip_prefix(b"+")).unwrap_or(&before);
        (digits(sign) && digits(&behind)).then_some((before, behind))
    };
    let alone = rows.width(0) == 1;
    let pairs: Option<Vec<_>> = (usize::from(alone)..rows.len()).map(halves).collect();
    let Some(pairs) = pairs.filter(|pairs| !pairs.is_empty()) else { return Ok(false) };
    match options.decimal {
        Some(Decimal::Comma) => return Ok(true),
        Some(Decimal::Point) => return Ok(false),
        None => {}
    }
    let ambiguous = |other| DataError::Ambiguous {
        what: "every row is two integers with a comma between them",
        readings: [other, "one column with decimal commas: --decimal ,"],
    };
    let length = pairs[0].1.len();
    let even = pairs.len() > 1 && length > 1 && pairs.iter().all(|(_, behind)| behind.len() == length);
    let zeros = pairs.iter().any(|(_, behind)| behind.len() > 1 && behind[0] == b'0');
    if alone {
        // a name above, and one column: or the numbers of the rows before it, as R writes them
        let counts = pairs.iter().enumerate();
        let counting =
            |from: usize| counts.clone().all(|(i, (before, _))| *before == (i + from).to_string().into_bytes());
        if pairs.len() > 1 && (counting(0) || counting(1)) {
            return Err(ambiguous("one column behind the rows' numbers: --separator ,"));
        }
        return Ok(true);
    }
    if even || zeros { Err(ambiguous("two columns of integers: --separator ,")) } else { Ok(false) }
}

/// Whether every row ends in a separator, and the first has no name there.
fn has_trailing(rows: &Rows, separator: Separator) -> bool {
    if separator == Separator::Blanks || rows.len() < 2 {
        return false;
    }
    let hollow =
        |row: usize| rows.cell(row, rows.width(row) - 1).is_some_and(|(cell, quoted)| cell.is_empty() && !quoted);
    let width = rows.width(1);
    let others = (1..rows.len()).all(|row| rows.width(row) == width && hollow(row));
    others && width > 1 && ((rows.width(0) == width && hollow(0)) || rows.width(0) + 1 == width)
}
