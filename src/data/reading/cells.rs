//! The faults of cells, gathered over the whole file, and what is left of a table without its index and its incomplete
//! rows.

use super::Reading;
use super::columns::{Layout, ROW_NAMES};
use super::note::Note;
use super::number::Cell;
use super::options::{Missing, ReadOptions, TextColumns};
use super::words::{self, Words};
use crate::data::category::MOST_LEVELS;
use crate::data::table::Table;
use crate::error::{CellFaults, ColumnFault, DataError, Fault, Place};

/// The places of a fault that are kept for each column.
const SHOWN: usize = 5;

/// One kind of fault in one column.
#[derive(Debug, Default, Clone)]
struct Tally {
    count: usize,
    places: Vec<Place>,
    /// The first cell, or the name of the column's type.
    text: String,
    value: f64,
    is_type: bool,
}

impl Tally {
    fn add(&mut self, text: &[u8], value: f64, place: Place) {
        if self.count == 0 {
            // no message shows more
            self.text = String::from_utf8_lossy(&text[..text.len().min(400)]).into_owned();
            self.value = value;
        }
        self.count += 1;
        if self.places.len() < SHOWN {
            self.places.push(place);
        }
    }
}

/// The faults of all cells so far, column by column.
#[derive(Debug)]
pub(in crate::data) struct Cells {
    rows: usize,
    missing: Vec<Tally>,
    text: Vec<Tally>,
    infinite: Vec<Tally>,
    /// The words of columns that may hold categories.
    words: Vec<Option<Words>>,
    /// Whether columns of text may.
    watches: bool,
}

impl Cells {
    pub(in crate::data) fn new(width: usize) -> Self {
        let none = || vec![Tally::default(); width];
        Self { rows: 0, missing: none(), text: none(), infinite: none(), words: vec![None; width], watches: false }
    }

    /// The same of columns some of which hold categories, or may.
    pub(in crate::data) fn watching(layout: &Layout, options: &ReadOptions) -> Self {
        let words = (0..layout.len()).map(|slot| layout.is_declared(slot).then(Words::declared)).collect();
        // a model says which of its columns hold categories
        let watches = options.text == TextColumns::Categories && options.model.is_none();
        Self { words, watches, ..Self::new(layout.len()) }
    }

    /// A cell of a column that may hold categories; `before` are the values above it.
    pub(super) fn watch<V: Iterator<Item = f64>>(
        &mut self,
        slot: usize,
        cell: Cell,
        text: &[u8],
        before: impl FnOnce() -> V,
    ) {
        if let Some(words) = &mut self.words[slot] {
            words.add(cell, text);
        } else if self.watches && cell == Cell::Text {
            let mut words = Words::behind(before());
            words.add(cell, text);
            self.words[slot] = Some(words);
        }
    }

    /// A number of an array, NaN where it is missing.
    pub(in crate::data) fn watch_value(&mut self, slot: usize, value: f64) {
        if let Some(words) = &mut self.words[slot] {
            words.add_number(value);
        }
    }

    /// The words of a column, where some may be missing.
    pub(in crate::data) fn watch_words<'a>(&mut self, slot: usize, all: impl Iterator<Item = Option<&'a str>>) {
        let declared = self.words[slot].as_ref().is_some_and(|words| words.declared);
        if !declared && !self.watches {
            return;
        }
        let mut words = if declared { Words::declared() } else { Words::default() };
        all.for_each(|word| words.add_word(word));
        self.words[slot] = Some(words);
    }

    /// Whether a column turned out to hold categories.
    fn is_category(&self, slot: usize) -> bool {
        let words = self.words[slot].as_ref();
        words.is_some_and(|w| (w.declared || self.is_text(slot)) && w.are_categories(self.rows))
    }

    pub(in crate::data) fn next_row(&mut self) {
        self.rows += 1;
    }

    /// A cell that is no finite number.
    pub(super) fn add(&mut self, slot: usize, cell: Cell, text: &[u8], place: Place) {
        match cell {
            Cell::Infinite(value) => self.infinite[slot].add(text, value, place),
            Cell::Missing => self.missing[slot].add(text, f64::NAN, place),
            _ => self.text[slot].add(text, f64::NAN, place),
        }
    }

    /// A value of an array that is not finite: NaN is a missing one.
    pub(in crate::data) fn add_value(&mut self, slot: usize, value: f64, place: Place) {
        let cell = if value.is_nan() { Cell::Missing } else { Cell::Infinite(value) };
        self.add(slot, cell, b"NaN", place);
    }

    /// A column of which no cell is a number.
    pub(in crate::data) fn add_text_column(&mut self, slot: usize, text: &str, rows: usize) {
        self.text[slot] = Tally { count: rows, text: text.to_owned(), ..Tally::default() };
    }

    /// A column of a type whose values are no numbers.
    pub(in crate::data) fn add_type(&mut self, slot: usize, name: &str, rows: usize) {
        self.text[slot] = Tally { count: rows, text: name.to_owned(), is_type: true, ..Tally::default() };
    }

    pub(in crate::data) fn set_rows(&mut self, rows: usize) {
        self.rows = rows;
    }

    fn numbers(&self, slot: usize) -> usize {
        self.rows - self.missing[slot].count - self.text[slot].count - self.infinite[slot].count
    }

    /// Whether a column has more words than numbers.
    fn is_text(&self, slot: usize) -> bool {
        self.text[slot].count > self.numbers(slot)
    }
}

/// Makes a table of rows that were read: `values` row by row in the columns of the layout, whose index columns are told
/// and taken out here, and whose rows with missing cells are dropped where the options say so.
pub(in crate::data) fn finish(
    layout: Layout,
    mut values: Vec<f64>,
    faults: Cells,
    options: &ReadOptions,
    mut notes: Vec<Note>,
) -> Result<Reading, DataError> {
    let (width, rows) = (layout.len(), faults.rows);
    notes.extend(layout.notes.iter().cloned());
    let mut kept = Vec::with_capacity(width);
    for slot in 0..width {
        match index(&layout, slot, &values, &faults) {
            // a model says which columns it wants; without one, nobody has said that these numbers are none of the data
            Some(Note::Index { what: FROM_ZERO, .. }) if layout.is_unnamed(slot) && options.model.is_none() => {
                return Err(DataError::Unnamed { column: layout.columns()[slot] + 1 });
            }
            Some(note) => notes.push(note),
            None => kept.push(slot),
        }
    }
    let own = kept.len().saturating_sub(layout.beside);
    if let Some(wanted) = layout.wanted.filter(|wanted| *wanted != own) {
        return Err(DataError::Width { found: own, expected: wanted });
    }
    if kept.is_empty() {
        return Err(DataError::TableShape { values: 0, width: 0 });
    }
    if let Some(&slot) = kept.iter().find(|&&slot| layout.is_unnamed(slot)) {
        let reason = "is empty: name it, or leave the column out if it only numbers the rows (pandas: index=False)";
        return Err(DataError::ColumnName { column: layout.columns()[slot] + 1, name: String::new(), reason });
    }
    if kept.len() < width {
        keep(&mut values, width, |place| kept.contains(&place));
    }
    let width = kept.len();
    let mut faults = faults;
    let words: Vec<Option<Words>> =
        kept.iter().map(|&slot| if faults.is_category(slot) { faults.words[slot].take() } else { None }).collect();
    for (place, words) in words.iter().enumerate().filter_map(|(place, words)| Some((place, words.as_ref()?))) {
        (0..rows).for_each(|row| values[row * width + place] = words.code(row));
    }
    let lacking: Vec<usize> = (0..width).filter(|&place| faults.missing[kept[place]].count > 0).collect();
    let lacks = |row: usize| lacking.iter().any(|place| values[row * width + place].is_nan());
    let incomplete: Vec<usize> =
        if lacking.is_empty() { Vec::new() } else { (0..rows).filter(|&r| lacks(r)).collect() };
    let mut constants = if options.refuse_constants { constants(&values, width) } else { Vec::new() };
    constants.retain(|(place, _)| words[*place].is_none());
    let drop_rows = options.missing == Missing::DropRows && incomplete.len() < rows;
    let keep_rows = options.missing == Missing::Keep;
    let categories: Vec<bool> = words.iter().map(Option::is_some).collect();
    // a category that is missing is none
    let lets_pass = |is_category: bool| drop_rows || (keep_rows && !is_category);
    if let Some(found) = report(&layout, (&kept, &categories), &faults, incomplete.len(), lets_pass, &constants) {
        return Err(DataError::Cells(Box::new(found)));
    }
    let mut dropped = Vec::new();
    if keep_rows && !incomplete.is_empty() {
        let columns = lacking.iter().map(|&place| layout.handle(kept[place])).collect();
        let cells = lacking.iter().map(|&place| faults.missing[kept[place]].count).sum();
        notes.push(Note::Missing { cells, columns, rows: incomplete.len(), of: rows });
    } else if !incomplete.is_empty() {
        let mut next = incomplete.iter().copied().peekable();
        let mut row = 0;
        let mut written = 0;
        while row < rows {
            if next.peek() == Some(&row) {
                next.next();
            } else {
                values.copy_within(row * width..(row + 1) * width, written * width);
                written += 1;
            }
            row += 1;
        }
        values.truncate(written * width);
        notes.push(Note::Dropped { rows: incomplete.len(), of: rows });
        dropped = incomplete;
    }
    let mut names = kept.iter().map(|&slot| layout.name(slot)).collect::<Option<Vec<_>>>();
    let any = categories.contains(&true);
    if any && names.is_none() && options.model.is_none() {
        names = Some(kept.iter().map(|&slot| words::numbered(&layout, slot)).collect());
    }
    let model = options.model.as_ref().and_then(|model| model.names.as_deref());
    // behind index columns that were left out a model's come in their order
    let name = |place: usize| match &names {
        Some(names) if layout.wanted.is_none() => names[place].clone(),
        _ => words::name(&layout, kept[place], model.and_then(|names| names.get(place)).map(String::as_str)),
    };
    let said: Vec<(String, usize)> = if options.model.is_none() {
        let of = |(place, words): (usize, &Option<Words>)| Some((name(place), words.as_ref()?.levels()));
        words.iter().enumerate().filter_map(of).collect()
    } else {
        Vec::new()
    };
    let rows = values.len() / width;
    let (numbers, values, found) = words::part(values, words, name)?;
    notes.extend((!said.is_empty()).then_some(Note::Categories(said)));
    let names = names.map(|names| {
        let numbers = names.into_iter().zip(&categories).filter(|(_, is_category)| !**is_category);
        numbers.map(|(name, _)| name).collect()
    });
    let table = if numbers == 0 { Table::of_no_columns(rows) } else { Table::of_read(names, numbers, values) };
    Ok(Reading { table, categories: found, notes, dropped })
}

/// What a column holds that pandas wrote.
const FROM_ZERO: &str = "0, 1, 2, …";

/// Keeps some places of every row.
fn keep(values: &mut Vec<f64>, width: usize, wanted: impl Fn(usize) -> bool) {
    let wanted: Vec<bool> = (0..width).map(wanted).collect();
    let mut at = 0;
    values.retain(|_| {
        let kept = wanted[at];
        at = (at + 1) % width;
        kept
    });
}

/// What there is to say of a column that turns out to be the rows' index, or nothing at all.
fn index(layout: &Layout, slot: usize, values: &[f64], faults: &Cells) -> Option<Note> {
    if !layout.is_suspect(slot) {
        return None;
    }
    let column = layout.label(slot);
    let unnamed = layout.is_unnamed(slot);
    let (rows, width) = (faults.rows, layout.len());
    if faults.missing[slot].count == rows {
        return Some(Note::Hollow { column });
    }
    if unnamed && faults.text[slot].count > 0 && faults.is_text(slot) {
        return Some(Note::Index { column, what: ROW_NAMES });
    }
    if faults.numbers(slot) < rows {
        return None;
    }
    let own = || values.iter().skip(slot).step_by(width).copied();
    if own().any(|v| v.fract() != 0.0) {
        return None;
    }
    if [0.0, 1.0].into_iter().any(|from| own().enumerate().all(|(i, v)| v == i as f64 + from)) {
        let what = if own().next() == Some(0.0) { FROM_ZERO } else { "1, 2, 3, …" };
        return Some(Note::Index { column, what });
    }
    let mut sorted: Vec<f64> = own().collect();
    sorted.sort_by(f64::total_cmp);
    let distinct = sorted.windows(2).all(|pair| pair[0] != pair[1]);
    distinct.then_some(Note::Index { column, what: "a whole number for each row, no two alike" })
}

/// The places of a row that are the same in every row, of two or more.
fn constants(values: &[f64], width: usize) -> Vec<(usize, f64)> {
    let mut rows = values.chunks_exact(width);
    let Some(first) = rows.next() else { return Vec::new() };
    let mut same: Vec<usize> = (0..width).filter(|_| values.len() > width).collect();
    for row in rows {
        if same.is_empty() {
            break;
        }
        same.retain(|&place| row[place] == first[place]);
    }
    same.into_iter().map(|place| (place, first[place])).collect()
}

/// All faults, if there are any that matter.
fn report(
    layout: &Layout,
    (kept, categories): (&[usize], &[bool]),
    faults: &Cells,
    incomplete: usize,
    lets_pass: impl Fn(bool) -> bool,
    constants: &[(usize, f64)],
) -> Option<CellFaults> {
    let mut columns = Vec::new();
    let mut add = |slot: usize, fault: Fault, tally: &Tally| {
        columns.push(ColumnFault {
            label: layout.label(slot),
            handle: layout.handle(slot),
            fault,
            count: tally.count,
            places: tally.places.clone(),
        });
    };
    for (&slot, &is_category) in kept.iter().zip(categories) {
        let text = &faults.text[slot];
        let many = faults.words[slot].as_ref().filter(|words| words.declared || faults.is_text(slot));
        if is_category {
            // words are what it is made of
        } else if let Some(words) = many {
            let all = Tally { count: faults.rows, ..Tally::default() };
            add(slot, Fault::Levels { levels: words.levels(), beyond: words.levels() > MOST_LEVELS }, &all);
        } else if text.is_type {
            add(slot, Fault::Type { name: text.text.clone() }, text);
        } else if faults.is_text(slot) {
            add(slot, Fault::TextColumn { text: text.text.clone() }, text);
        } else if text.count > 0 {
            add(slot, Fault::Text { text: text.text.clone() }, text);
        }
        let missing = &faults.missing[slot];
        if missing.count > 0 && !lets_pass(is_category) {
            add(slot, Fault::Missing { text: missing.text.clone() }, missing);
        }
        let infinite = &faults.infinite[slot];
        if infinite.count > 0 && !is_category {
            add(slot, Fault::Infinite { value: infinite.value }, infinite);
        }
    }
    for &(place, value) in constants {
        let tally = Tally { count: faults.rows, ..Tally::default() };
        add(kept[place], Fault::Constant { value }, &tally);
    }
    (!columns.is_empty()).then_some(CellFaults { columns, rows: faults.rows, incomplete })
}
