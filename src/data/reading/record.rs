//! Rows of text: cells between separators, quoted after RFC 4180.
//!
//! A cell that begins with `"`, blanks before it aside, goes to the next single `"`, line ends included; what stands
//! behind it is a part of it. Lines end in LF, CRLF or CR. Blank lines and lines that begin with `#` are no rows.

use super::options::Separator;

/// A cell, as a piece of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    start: usize,
    end: usize,
    /// Whether it begins with a quote.
    pub(super) quoted: bool,
    /// Whether quotes within must be taken out of it.
    doubled: bool,
}

impl Span {
    /// The cell's contents; `spare` holds them where they are not a piece of the text.
    pub(super) fn of<'a>(&self, text: &'a [u8], spare: &'a mut Vec<u8>) -> &'a [u8] {
        let cell = &text[self.start..self.end];
        if !self.doubled {
            return cell;
        }
        spare.clear();
        let mut inside = true;
        let mut bytes = cell.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' if inside && bytes.peek() == Some(&b'"') => {
                    bytes.next();
                    spare.push(b'"');
                }
                b'"' if inside => inside = false,
                _ => spare.push(byte),
            }
        }
        spare
    }
}

/// What stands at a place of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// A row, whose cells were found; it ends here.
    Row(usize),
    /// No row: a blank line, or several.
    Blank(usize),
    /// No row: a comment.
    Comment(usize),
    /// The text goes on, and more of it is needed.
    Incomplete,
    /// There is no more.
    End,
}

/// The bytes that tell a comment from an error value.
const MARK: usize = 8;

/// Whether a line begins with one of a spreadsheet's values that are none.
fn is_error_value(text: &[u8]) -> bool {
    let values: [&[u8]; 8] = [b"#N/A", b"#NA", b"#NAME?", b"#VALUE!", b"#DIV/0!", b"#REF!", b"#NUM!", b"#NULL!"];
    let ends = |rest: &[u8]| !rest.first().is_some_and(u8::is_ascii_alphanumeric);
    values.iter().any(|value| text.strip_prefix(*value).is_some_and(ends))
}

/// Finds what stands at `from`; `last` if the text does not go on behind its end.
pub(super) fn line(text: &[u8], from: usize, last: bool, separator: Separator, cells: &mut Vec<Span>) -> Line {
    cells.clear();
    let mut at = from;
    // blanks, which may be all of the line
    while let Some(&byte) = text.get(at) {
        match byte {
            b' ' => at += 1,
            b'\t' if separator != Separator::Tab => at += 1,
            b'\n' | b'\r' => return end_of_line(text, at, last).map_or(Line::Incomplete, Line::Blank),
            b'#' if !last && text.len() - at < MARK => return Line::Incomplete,
            b'#' if is_error_value(&text[at..]) => break,
            b'#' => {
                let end = text[at..].iter().position(|b| matches!(b, b'\n' | b'\r')).map(|i| at + i);
                return match end {
                    Some(end) => end_of_line(text, end, last).map_or(Line::Incomplete, Line::Comment),
                    None if last => Line::Comment(text.len()),
                    None => Line::Incomplete,
                };
            }
            _ => break,
        }
    }
    if at == text.len() {
        return match (last, at == from) {
            (false, _) => Line::Incomplete,
            (true, true) => Line::End,
            (true, false) => Line::Blank(at),
        };
    }
    let found = match separator.byte() {
        Some(byte) => row(text, from, last, byte, cells),
        None => row_of_blanks(text, at, last, cells),
    };
    found.map_or(Line::Incomplete, Line::Row)
}

/// Behind the line end at a place.
fn end_of_line(text: &[u8], at: usize, last: bool) -> Option<usize> {
    match (text[at], text.get(at + 1)) {
        (b'\r', Some(b'\n')) => Some(at + 2),
        (b'\r', None) if !last => None,
        _ => Some(at + 1),
    }
}

fn row(text: &[u8], from: usize, last: bool, separator: u8, cells: &mut Vec<Span>) -> Option<usize> {
    let mut start = from;
    loop {
        let mut at = start;
        while matches!(text.get(at), Some(&(b' ' | b'\t'))) && text[at] != separator {
            at += 1;
        }
        let (span, end) = if text.get(at) == Some(&b'"') {
            quoted(text, at, last, |b| b == separator)?
        } else {
            let end = text[at..].iter().position(|&b| b == separator || b == b'\n' || b == b'\r');
            let end = end.map_or(text.len(), |i| at + i);
            (Span { start: at, end, quoted: false, doubled: false }, end)
        };
        cells.push(span);
        match text.get(end) {
            Some(&byte) if byte == separator => start = end + 1,
            Some(_) => return end_of_line(text, end, last),
            None if last => return Some(end),
            None => return None,
        }
    }
}

fn row_of_blanks(text: &[u8], from: usize, last: bool, cells: &mut Vec<Span>) -> Option<usize> {
    let blank = |b: u8| b == b' ' || b == b'\t';
    let mut at = from;
    loop {
        while text.get(at).copied().is_some_and(blank) {
            at += 1;
        }
        match text.get(at) {
            None if last => return Some(at),
            None => return None,
            Some(b'\n' | b'\r') => return end_of_line(text, at, last),
            Some(b'"') => {
                let (span, end) = quoted(text, at, last, blank)?;
                cells.push(span);
                at = end;
            }
            Some(_) => {
                let end = text[at..].iter().position(|&b| blank(b) || b == b'\n' || b == b'\r');
                let end = end.map_or(text.len(), |i| at + i);
                cells.push(Span { start: at, end, quoted: false, doubled: false });
                at = end;
            }
        }
    }
}

/// The cell of the quote at a place, and where its separator or line end is.
fn quoted(text: &[u8], open: usize, last: bool, separates: impl Fn(u8) -> bool) -> Option<(Span, usize)> {
    let mut at = open + 1;
    let mut doubled = false;
    // the closing quote
    let close = loop {
        match text[at..].iter().position(|&b| b == b'"').map(|i| at + i) {
            Some(quote) if text.get(quote + 1) == Some(&b'"') => {
                doubled = true;
                at = quote + 2;
            }
            Some(quote) if quote + 1 < text.len() || last => break quote,
            None if last => break text.len(),
            _ => return None,
        }
    };
    let behind = (close + 1).min(text.len());
    let end = text[behind..].iter().position(|&b| separates(b) || b == b'\n' || b == b'\r');
    let end = match end {
        Some(i) => behind + i,
        None if last => text.len(),
        None => return None,
    };
    let more = !text[behind..end].trim_ascii().is_empty();
    let span = if doubled || more {
        Span { start: open + 1, end, quoted: true, doubled: true }
    } else {
        Span { start: open + 1, end: close, quoted: true, doubled: false }
    };
    Some((span, end))
}

/// The line ends of a piece of text that does not end between CR and LF.
pub(super) fn line_ends(text: &[u8]) -> u64 {
    let ends = |i: usize| match text[i] {
        b'\n' => true,
        b'\r' => text.get(i + 1) != Some(&b'\n'),
        _ => false,
    };
    (0..text.len()).filter(|&i| ends(i)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[u8], separator: Separator) -> Vec<Vec<String>> {
        let (mut at, mut cells, mut rows, mut spare) = (0, Vec::new(), Vec::new(), Vec::new());
        loop {
            match line(text, at, true, separator, &mut cells) {
                Line::Row(end) => {
                    let cell = |span: &Span, spare: &mut Vec<u8>| String::from_utf8_lossy(span.of(text, spare)).into();
                    rows.push(cells.iter().map(|span| cell(span, &mut spare)).collect());
                    at = end;
                }
                Line::Blank(end) | Line::Comment(end) => at = end,
                Line::Incomplete => panic!("the text is whole"),
                Line::End => return rows,
            }
        }
    }

    #[test]
    fn quotes_and_line_ends() {
        let text = b"a,\"b,\"\"\r\nc\"\r\n\n# no row\n , \"d\"e ,\rf,g\"h";
        let expected = [vec!["a", "b,\"\r\nc"], vec!["", "de ", ""], vec!["f", "g\"h"]];
        assert_eq!(rows(text, Separator::Comma), expected);
        let text = b"  1.5\t \"a b\"   3 \r\n#\n4 5 6";
        assert_eq!(rows(text, Separator::Blanks), [["1.5", "a b", "3"], ["4", "5", "6"]]);
        assert_eq!(rows(b"1\t\t3\n\t\t\n", Separator::Tab), [["1", "", "3"], ["", "", ""]]);
        assert_eq!(rows(b"\"open,1\n2", Separator::Comma), [["open,1\n2"]]);
        assert_eq!(rows(b"#N/A,1\n#NAME,2\n#VALUE!,3", Separator::Comma), [["#N/A", "1"], ["#VALUE!", "3"]]);
    }

    /// Wherever a text is cut, what stands before the cut is never read as something else than in the whole.
    #[test]
    fn pieces_say_that_more_is_needed() {
        let text = b"a,\"b\"\"\",c\r\n# x\r\n \r\n1,\"2\r\n\",3\r\n";
        let (mut whole, mut part) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < text.len() {
            let found = line(text, at, true, Separator::Comma, &mut whole);
            for cut in at..text.len() {
                match line(&text[..cut], at, false, Separator::Comma, &mut part) {
                    Line::Incomplete => {}
                    early => assert_eq!((early, &part), (found, &whole), "{at} {cut}"),
                }
            }
            at = match found {
                Line::Row(end) | Line::Blank(end) | Line::Comment(end) => end,
                other => panic!("{other:?}"),
            };
        }
    }
}
