//! Cells: numbers, missing values, text.

use std::borrow::Cow;

use super::options::Decimal;
use crate::data::table::trim;

/// What a cell holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cell {
    Number(f64),
    /// Infinite, as written or beyond the range of doubles.
    Infinite(f64),
    Missing,
    Text,
}

/// How missing values are spelled, in lower case.
const MISSING: [&[u8]; 28] = [
    b"", b"na", b"n/a", b"#n/a", b"#na", b"n.a.", b"<na>", b"nan", b"-nan", b"+nan", b"null", b"\\n", b"none", b"nil",
    b"missing", b"?", b"-", b"--", b".", b"..", b"*", b"---", b"#value!", b"#div/0!", b"#ref!", b"#num!", b"#null!",
    b"#name?",
];

/// Reads a cell.
pub(super) fn parse(cell: &[u8], decimal: Decimal) -> Cell {
    let cell = bare(cell);
    match number(cell, decimal) {
        Some(value) if value.is_finite() => Cell::Number(value),
        Some(value) if value.is_nan() => Cell::Missing,
        Some(value) => Cell::Infinite(value),
        None if is_missing(cell) => Cell::Missing,
        None => Cell::Text,
    }
}

fn number(cell: &[u8], decimal: Decimal) -> Option<f64> {
    match decimal {
        Decimal::Point => std::str::from_utf8(cell).ok()?.parse().ok(),
        Decimal::Comma => {
            // no number is longer; what is, is read as text
            let mut plain = [0; 400];
            let plain = plain.get_mut(..cell.len())?;
            for (to, &from) in plain.iter_mut().zip(cell) {
                *to = if from == b',' { b'.' } else { from };
            }
            if cell.contains(&b'.') {
                return None;
            }
            std::str::from_utf8(plain).ok()?.parse().ok()
        }
    }
}

fn is_missing(cell: &[u8]) -> bool {
    cell.len() <= 7 && MISSING.iter().any(|spelling| cell.eq_ignore_ascii_case(spelling))
}

/// The level of a number in a column of categories: its shortest text, of a whole number without a point.
pub(super) fn level_of(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 { format!("{}", value + 0.0) } else { format!("{value:?}") }
}

/// Whether a number is written with zeros in front, as codes are that only look like numbers.
pub(super) fn is_padded(cell: &[u8]) -> bool {
    let cell = bare(cell);
    let digits = cell.strip_prefix(b"-").or(cell.strip_prefix(b"+")).unwrap_or(cell);
    matches!(digits, [b'0', next, ..] if next.is_ascii_digit())
}

/// A cell without the white space around it.
pub(super) fn bare(cell: &[u8]) -> &[u8] {
    let cell = cell.trim_ascii();
    match (cell.first(), cell.last()) {
        (Some(first), Some(last)) if !first.is_ascii() || !last.is_ascii() => {
            // other white space and byte order marks
            std::str::from_utf8(cell).map_or(cell, |text| trim(text).as_bytes())
        }
        _ => cell,
    }
}

/// A cell as text, trimmed; what is not UTF-8 becomes U+FFFD, which no number has.
pub(super) fn text(cell: &[u8]) -> String {
    match String::from_utf8_lossy(cell) {
        Cow::Borrowed(text) => trim(text).to_owned(),
        Cow::Owned(text) => trim(&text).to_owned(),
    }
}

/// A name: UTF-8, or else Latin-1, which older spreadsheets write.
pub(super) fn name(cell: &[u8]) -> (String, bool) {
    if let Ok(text) = std::str::from_utf8(cell) {
        (trim(text).to_owned(), false)
    } else {
        let text: String = cell.iter().map(|&b| b as char).collect();
        (trim(&text).to_owned(), true)
    }
}

/// Digits alone, as a counter has them.
pub(super) fn is_count(cell: &[u8]) -> bool {
    !cell.is_empty() && cell.len() <= 15 && cell.iter().all(u8::is_ascii_digit) && (cell.len() == 1 || cell[0] != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_told_apart() {
        for (text, expected) in [
            ("1.5", Cell::Number(1.5)),
            (" +3. ", Cell::Number(3.0)),
            ("\u{a0}2e-3\u{feff}", Cell::Number(2e-3)),
            ("1e999", Cell::Infinite(f64::INFINITY)),
            ("-Inf", Cell::Infinite(f64::NEG_INFINITY)),
            ("1,5", Cell::Text),
            ("0x1", Cell::Text),
            ("yes", Cell::Text),
        ] {
            assert_eq!(parse(text.as_bytes(), Decimal::Point), expected, "{text}");
        }
        for text in ["", "  ", "NA", "n/a", "?", "null", "nan", "NaN", "None", "-", ".", "#N/A", "<NA>", "-nan"] {
            assert_eq!(parse(text.as_bytes(), Decimal::Point), Cell::Missing, "{text}");
            assert_eq!(parse(text.as_bytes(), Decimal::Comma), Cell::Missing, "{text}");
        }
        for (text, level) in [(1.0, "1"), (-0.0, "0"), (2.5, "2.5"), (1e300, "1e300"), (f64::INFINITY, "inf")] {
            assert_eq!(level_of(text), level);
        }
        assert!(is_padded(b" 007") && is_padded(b"-01") && !is_padded(b"0.5") && !is_padded(b"0"));
        assert_eq!(parse(b"-1,5e3", Decimal::Comma), Cell::Number(-1500.0));
        assert_eq!(parse(b"7", Decimal::Comma), Cell::Number(7.0));
        for text in ["1.5", "1.234,5", "1,2,3"] {
            assert_eq!(parse(text.as_bytes(), Decimal::Comma), Cell::Text, "{text}");
        }
    }
}
