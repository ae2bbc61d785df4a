//! Whether the first row has the names of the columns.
//!
//! A row without a number is a header. Numbers can be names too: 0, 1, 2, … as pandas numbers columns, above anything but
//! as many integers; or quoted, above rows that are not. A comment right before the rows has the names if it has one for
//! each column and none is a number (np.savetxt's `header`).

use super::dialect::Rows;
use super::note::Note;
use super::number::{self, Cell};
use super::options::{Decimal, ReadOptions, Separator};
use super::record::{self, Line};
use crate::error::{DataError, Place};

/// The names of a sample's columns.
pub(super) struct Header {
    /// Whether they are the first row.
    pub(super) first_row: bool,
    pub(super) names: Option<Vec<String>>,
    /// The number of columns.
    pub(super) width: usize,
    pub(super) note: Vec<Note>,
}

const AMBIGUOUS: [&str; 2] = ["names of columns: --header yes", "a row of numbers: --header no"];

pub(super) fn find(
    rows: &Rows,
    separator: Separator,
    decimal: Decimal,
    trailing: bool,
    options: &ReadOptions,
) -> Result<Header, DataError> {
    let mut note = Vec::new();
    let first_row = if let Some(said) = options.header {
        said
    } else {
        let (is_header, numbers) = judge(rows, decimal, trailing)?;
        if numbers {
            note.push(Note::NumbersAsNames);
        }
        is_header
    };
    let own = rows.width(0) - usize::from(trailing && hollow_end(rows));
    if !first_row {
        let names = rows.comment.filter(|_| options.header.is_none()).and_then(|c| commented(c, separator, own));
        return Ok(Header { first_row, names, width: own, note });
    }
    let mut latin = false;
    let mut names: Vec<String> = (0..own)
        .filter_map(|column| rows.cell(0, column))
        .map(|(cell, _)| {
            let (name, is_latin) = number::name(&cell);
            latin |= is_latin;
            name
        })
        .collect();
    if latin {
        note.push(Note::Encoding("Latin-1"));
    }
    // R has no name above the names of the rows
    if !trailing && is_short(rows, decimal) {
        names.insert(0, String::new());
    }
    Ok(Header { first_row, width: names.len(), names: Some(names), note })
}

fn hollow_end(rows: &Rows) -> bool {
    rows.width(0) == rows.width(1)
}

/// Whether every row has one cell more than the first, and begins with what can be the name or the number of a row.
fn is_short(rows: &Rows, decimal: Decimal) -> bool {
    let wanted = rows.width(0) + 1;
    let others = 1..rows.len();
    let name = |row: usize| match rows.kind(row, 0, decimal) {
        Some(Cell::Number(value)) => value.fract() == 0.0,
        Some(Cell::Text) => true,
        _ => false,
    };
    let mut first: Vec<_> = others.clone().filter_map(|row| rows.cell(row, 0)).map(|(cell, _)| cell).collect();
    first.sort();
    !others.is_empty()
        && others.clone().all(|row| rows.width(row) == wanted && name(row))
        && first.windows(2).all(|pair| pair[0] != pair[1])
}

/// Whether the first row is a header, and whether that has numbers in it.
fn judge(rows: &Rows, decimal: Decimal, trailing: bool) -> Result<(bool, bool), DataError> {
    let width = rows.width(0) - usize::from(trailing && rows.len() > 1 && hollow_end(rows));
    let cells: Vec<(Vec<u8>, bool)> = (0..width).filter_map(|column| rows.cell(0, column)).collect();
    // as Rust has numbers, NaN and infinities among them
    let is_number = |cell: &[u8]| match number::parse(cell, decimal) {
        Cell::Number(_) | Cell::Infinite(_) => true,
        Cell::Missing => cell.to_ascii_lowercase().ends_with(b"nan"),
        Cell::Text => false,
    };
    // R and others quote names, and no numbers
    let below = 1..rows.len();
    let bare = |row: usize| (0..width).any(|column| rows.cell(row, column).is_some_and(|(_, quoted)| !quoted));
    if !below.is_empty() && cells.iter().all(|(_, quoted)| *quoted) && below.clone().all(bare) {
        return Ok((true, cells.iter().any(|(cell, _)| is_number(cell))));
    }
    let Some(odd) = cells.iter().position(|(cell, _)| !is_number(cell)) else {
        return judge_numbers(rows, &cells, decimal).map(|yes| (yes, yes));
    };
    if !cells.iter().any(|(cell, _)| is_number(cell)) {
        return Ok((true, false));
    }
    // an unnamed index before columns that pandas numbered
    if odd == 0 && cells[0].0.is_empty() && rows.len() > 1 {
        let counted = cells[1..].iter().all(|(cell, _)| number::is_count(cell));
        let index = (1..rows.len()).all(|row| rows.cell(row, 0).is_some_and(|(cell, _)| number::is_count(&cell)));
        if counted && index && distinct(&cells[1..]) {
            return Ok((true, true));
        }
    }
    let is_text = |column: usize| number::parse(&cells[column].0, decimal) == Cell::Text;
    let texts: Vec<usize> = (0..width).filter(|&column| is_text(column)).collect();
    if texts.is_empty() {
        // a row with missing cells
        return Ok((false, false));
    }
    // text above numbers is a name, but what are the numbers beside it?
    let text_below = |column: usize| {
        let kinds = (1..rows.len()).filter_map(|row| rows.kind(row, column, decimal));
        let (mut text, mut numbers) = (0, 0);
        for kind in kinds {
            text += usize::from(kind == Cell::Text);
            numbers += usize::from(matches!(kind, Cell::Number(_)));
        }
        text > numbers
    };
    if let Some(&above) = texts.iter().find(|&&column| !text_below(column)) {
        let place = Place::Line { line: rows.first_line, column: above + 1, name: None };
        return Err(DataError::MixedHeader { place, text: number::text(&cells[above].0) });
    }
    let recurs =
        texts.iter().any(|&c| (1..rows.len()).any(|row| rows.cell(row, c).is_some_and(|(cell, _)| cell == cells[c].0)));
    let decimals = cells.iter().any(|(cell, _)| is_number(cell) && !number::is_count(cell));
    if recurs || decimals {
        return Ok((false, false));
    }
    Err(DataError::Ambiguous { what: "the first line has text and whole numbers", readings: AMBIGUOUS })
}

fn distinct(cells: &[(Vec<u8>, bool)]) -> bool {
    let mut sorted: Vec<&[u8]> = cells.iter().map(|(cell, _)| &cell[..]).collect();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

/// Whether a first row of numbers is a header.
fn judge_numbers(rows: &Rows, cells: &[(Vec<u8>, bool)], decimal: Decimal) -> Result<bool, DataError> {
    let width = cells.len();
    let below = 1..rows.len();
    if below.is_empty() {
        return Ok(false);
    }
    if width < 2 || !cells.iter().all(|(cell, _)| number::is_count(cell)) {
        return Ok(false);
    }
    let is_decimal = |row: usize, column: usize| {
        rows.cell(row, column).is_some_and(|(cell, _)| {
            let number = matches!(number::parse(&cell, decimal), Cell::Number(_));
            number && cell.iter().any(|b| matches!(b, b'.' | b',' | b'e' | b'E'))
        })
    };
    let counted = cells.iter().enumerate().all(|(i, (cell, _))| *cell == i.to_string().into_bytes());
    if counted {
        let others = (0..width).any(|column| below.clone().any(|row| !is_count_or_sign(rows, row, column)));
        return match (others, width) {
            (true, _) | (false, 4..) => Ok(true),
            _ => Err(DataError::Ambiguous {
                what: "the first line counts 0, 1, … above integers",
                readings: AMBIGUOUS,
            }),
        };
    }
    // years, say, above measurements
    if below.len() > 2 && distinct(cells) && below.clone().all(|row| (0..width).all(|column| is_decimal(row, column))) {
        let what = "the first line has whole numbers, and no other row does";
        return Err(DataError::Ambiguous { what, readings: AMBIGUOUS });
    }
    Ok(false)
}

/// Whether a cell is an integer.
fn is_count_or_sign(rows: &Rows, row: usize, column: usize) -> bool {
    rows.cell(row, column).is_some_and(|(cell, _)| {
        let digits = cell.strip_prefix(b"-").or(cell.strip_prefix(b"+")).unwrap_or(&cell);
        !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
    })
}

/// The names in a comment, if it has one for each of `width` columns and none is a number.
fn commented(comment: &[u8], separator: Separator, width: usize) -> Option<Vec<String>> {
    let text = comment.trim_ascii_start();
    let text = text.trim_ascii_end();
    let hashes = text.iter().take_while(|&&b| b == b'#').count();
    let text = text[hashes..].trim_ascii();
    let mut cells = Vec::new();
    let Line::Row(_) = record::line(text, 0, true, separator, &mut cells) else { return None };
    let mut spare = Vec::new();
    let names: Vec<String> = cells.iter().map(|span| number::name(number::bare(span.of(text, &mut spare))).0).collect();
    let lawful = |name: &String| !name.is_empty() && number::parse(name.as_bytes(), Decimal::Point) == Cell::Text;
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    // one column is named by one word: a sentence is a remark
    let remark = width == 1 && names.iter().any(|name| name.contains(char::is_whitespace));
    (names.len() == width && sorted.len() == width && names.iter().all(lawful) && !remark).then_some(names)
}
