//! Text to tables, row by row.

use std::io::Read;

use super::cells::Cells;
use super::columns::{self, Layout};
use super::dialect::{self, Dialect};
use super::note::Note;
use super::number::{self, Cell};
use super::options::{ReadOptions, Separator};
use super::record::{self, Line, Span};
use super::source::{self, Window};
use super::{Reading, SAMPLE};
use crate::error::{DataError, Place};

/// The most that decides on the dialect where lines are longer than the usual sample.
const LONGEST: usize = 64 << 20;

/// Reads text that begins with `head`.
pub(super) fn read(head: Vec<u8>, mut stream: Box<dyn Read + '_>, options: &ReadOptions) -> Result<Reading, DataError> {
    let mut notes = Vec::new();
    let mut head = head;
    let mut whole = head.len() < SAMPLE;
    if let Some(encoding) = source::utf16(&head) {
        stream.read_to_end(&mut head)?;
        head = encoding.decode(&head)?;
        notes.push(Note::Encoding(encoding.name()));
        stream = Box::new(std::io::empty());
        whole = true;
    }
    if head.starts_with(b"\xef\xbb\xbf") {
        head.drain(..3);
    }
    // rows of very many columns are long
    while !whole && head.len() < LONGEST && record::line_ends(&head) < 4 {
        let more = head.len() as u64;
        whole = (stream.by_ref().take(more).read_to_end(&mut head)? as u64) < more;
    }
    let dialect = dialect::find(&head, whole, options)?;
    notes.extend(dialect.notes.iter().cloned());
    let layout = columns::choose(dialect.names.as_deref(), dialect.width, options)?;
    rows(Window::new(head, stream), &dialect, layout, options, notes)
}

fn rows(
    mut window: Window,
    dialect: &Dialect,
    layout: Layout,
    options: &ReadOptions,
    mut notes: Vec<Note>,
) -> Result<Reading, DataError> {
    let mut rows = RowReader {
        // the column of the file that each cell goes to
        places: layout.places(dialect.width),
        faults: Cells::watching(&layout, options),
        values: Vec::new(),
        row: vec![0.0; layout.len()],
        spare: Vec::new(),
    };
    let mut line = 1 + u64::from(dialect.skip > 0);
    window.advance(dialect.skip);
    let (mut cells, mut header, mut comments) = (Vec::new(), dialect.header, 0);
    loop {
        let text = window.text();
        let found = record::line(text, 0, window.is_last(), dialect.separator, &mut cells);
        let end = match found {
            Line::Incomplete => {
                window.fill()?;
                continue;
            }
            Line::End => break,
            Line::Blank(end) => end,
            Line::Comment(end) => {
                comments += 1;
                end
            }
            Line::Row(end) => {
                if header {
                    header = false;
                } else {
                    rows.take(text, &cells, line, dialect, &layout)?;
                }
                end
            }
        };
        line += if cells.iter().any(|span| span.quoted) { record::line_ends(&text[..end]) } else { 1 };
        window.advance(end);
    }
    if comments > 0 {
        notes.push(Note::Comments { lines: comments, names: !dialect.header && dialect.names.is_some() });
    }
    let RowReader { faults, values, .. } = rows;
    match (values.is_empty(), &dialect.names) {
        (true, Some(_)) if dialect.header => Err(DataError::HeaderOnly { columns: dialect.width }),
        (true, _) => Err(DataError::Empty),
        _ => super::finish(layout, values, faults, options, notes),
    }
}

struct RowReader {
    places: Vec<Option<usize>>,
    faults: Cells,
    values: Vec<f64>,
    row: Vec<f64>,
    spare: Vec<u8>,
}

impl RowReader {
    fn take(
        &mut self,
        text: &[u8],
        cells: &[Span],
        line: u64,
        dialect: &Dialect,
        layout: &Layout,
    ) -> Result<(), DataError> {
        let ragged = || DataError::Ragged {
            line,
            found: cells.len(),
            expected: dialect.width,
            between: between(dialect.separator, dialect.one_column),
        };
        let cells = match cells.len().checked_sub(dialect.width) {
            Some(0) => cells,
            Some(1) if dialect.trailing => {
                let (behind, cells) = cells.split_last().ok_or_else(ragged)?;
                if !number::bare(behind.of(text, &mut self.spare)).is_empty() {
                    return Err(ragged());
                }
                cells
            }
            _ => return Err(ragged()),
        };
        for (column, (span, place)) in cells.iter().zip(&self.places).enumerate() {
            let Some(slot) = *place else { continue };
            let cell = span.of(text, &mut self.spare);
            let parsed = number::parse(cell, dialect.decimal);
            let width = self.row.len();
            self.faults.watch(slot, parsed, cell, || self.values.iter().skip(slot).step_by(width).copied());
            self.row[slot] = match parsed {
                Cell::Number(value) => value,
                other => {
                    let place = Place::Line { line, column: column + 1, name: layout.name(slot) };
                    self.faults.add(slot, other, number::bare(cell), place);
                    // an infinite one may turn out to be a word
                    if let Cell::Infinite(value) = other { value } else { f64::NAN }
                }
            };
        }
        self.faults.next_row();
        self.values.extend_from_slice(&self.row);
        Ok(())
    }
}

fn between(separator: Separator, one_column: bool) -> &'static str {
    if one_column { "commas" } else { separator.name() }
}
