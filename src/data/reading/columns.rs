//! Which columns of a file become those of the table.

use super::note::Note;
use super::options::{ModelColumns, ReadOptions};
use crate::error::DataError;

/// What an index column of words holds.
pub(super) const ROW_NAMES: &str = "the names of the rows";

/// The columns that are read, in the order of the table.
#[derive(Debug)]
pub(in crate::data) struct Layout {
    /// Their places in the file.
    columns: Vec<usize>,
    /// Whether a column, which has no name or that of pandas' index, may hold the rows' index.
    suspect: Vec<bool>,
    /// The names of the file's columns.
    names: Option<Vec<String>>,
    /// The width that is wanted of what is left without index columns.
    pub(in crate::data) wanted: Option<usize>,
    /// The columns that are kept beside those.
    pub(in crate::data) beside: usize,
    /// Whether somebody said of a column that it holds categories.
    declared: Vec<bool>,
    pub(in crate::data) notes: Vec<Note>,
}

impl Layout {
    pub(in crate::data) fn len(&self) -> usize {
        self.columns.len()
    }

    /// The file's columns, in the table's order.
    pub(in crate::data) fn columns(&self) -> &[usize] {
        &self.columns
    }

    pub(in crate::data) fn is_suspect(&self, slot: usize) -> bool {
        self.suspect[slot]
    }

    /// Whether somebody said of a column that it holds categories.
    pub(in crate::data) fn is_declared(&self, slot: usize) -> bool {
        self.declared[slot]
    }

    pub(super) fn is_unnamed(&self, slot: usize) -> bool {
        self.names.as_ref().is_some_and(|names| names[self.columns[slot]].is_empty())
    }

    pub(in crate::data) fn name(&self, slot: usize) -> Option<String> {
        self.names.as_ref().map(|names| names[self.columns[slot]].clone())
    }

    /// Leaves columns without a name out that hold words, which are the names of the rows.
    pub(in crate::data) fn leave_row_names_out(&mut self, is_text: impl Fn(usize) -> bool) {
        for slot in (0..self.len()).rev() {
            if self.suspect[slot] && self.is_unnamed(slot) && is_text(self.columns[slot]) {
                self.notes.push(Note::Index { column: self.label(slot), what: ROW_NAMES });
                self.columns.remove(slot);
                self.suspect.remove(slot);
                self.declared.remove(slot);
            }
        }
    }

    /// The place of each of the file's columns in the table.
    pub(super) fn places(&self, width: usize) -> Vec<Option<usize>> {
        let mut places = vec![None; width];
        for (slot, &column) in self.columns.iter().enumerate() {
            places[column] = Some(slot);
        }
        places
    }

    /// A column's number in the file, counted from one, and its name.
    pub(super) fn label(&self, slot: usize) -> String {
        label(self.names.as_deref(), self.columns[slot])
    }

    /// What a column is called in the options.
    pub(super) fn handle(&self, slot: usize) -> String {
        match &self.names {
            Some(names) => names[self.columns[slot]].clone(),
            None => (self.columns[slot] + 1).to_string(),
        }
    }
}

fn label(names: Option<&[String]>, column: usize) -> String {
    match names.map(|names| &names[column]) {
        Some(name) => format!("column {} (`{}`)", column + 1, crate::error::Excerpt(name)),
        None => format!("column {}", column + 1),
    }
}

/// The column of a name, or of a number where it has none.
fn find(names: Option<&[String]>, width: usize, asked: &str) -> Result<usize, DataError> {
    let Some(names) = names else {
        let number = asked.parse().ok().filter(|n| (1..=width).contains(n));
        return number
            .map(|n: usize| n - 1)
            .ok_or_else(|| DataError::NoColumn { name: asked.to_owned(), known: Vec::new() });
    };
    let mut found = names.iter().enumerate().filter(|(_, name)| *name == asked).map(|(i, _)| i);
    match (found.next(), found.next()) {
        (Some(column), None) => Ok(column),
        (Some(_), Some(_)) => Err(DataError::Repeated { name: asked.to_owned() }),
        _ => {
            nameless(names, asked).ok_or_else(|| DataError::NoColumn { name: asked.to_owned(), known: names.to_vec() })
        }
    }
}

/// A column without a name, of the number that is asked for.
fn nameless(names: &[String], asked: &str) -> Option<usize> {
    let column = asked.parse::<usize>().ok()?.checked_sub(1)?;
    names.get(column)?.is_empty().then_some(column)
}

/// pandas' names for an index without one.
fn is_pandas_index(name: &str) -> bool {
    if name.starts_with("__index_level_") {
        return true;
    }
    name.strip_prefix("Unnamed: ")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

/// Chooses the columns of a file of some width, which have names or none.
pub(in crate::data) fn choose(
    names: Option<&[String]>,
    width: usize,
    options: &ReadOptions,
) -> Result<Layout, DataError> {
    let mut notes = Vec::new();
    let mut gone = vec![false; width];
    for asked in &options.drop {
        gone[find(names, width, asked)?] = true;
    }
    if let Some(asked) = &options.index {
        // a number is first the place of a column without a name, since others may have numbers as names
        let column = names.and_then(|names| nameless(names, asked)).map_or_else(|| find(names, width, asked), Ok)?;
        gone[column] = true;
        notes.push(Note::Index { column: label(names, column), what: "the rows' index, as --index says" });
    }
    let mut columns: Vec<usize> = match &options.columns {
        Some(asked) => asked.iter().map(|name| find(names, width, name)).collect::<Result<_, _>>()?,
        None => (0..width).collect(),
    };
    columns.retain(|&column| !gone[column]);
    let suspicious = |column: usize| {
        options.columns.is_none() && names.is_some_and(|n| n[column].is_empty() || is_pandas_index(&n[column]))
    };
    let mut wanted = None;
    if let Some(model) = &options.model {
        (columns, wanted) = matched(columns, names, width, model, &suspicious, &mut notes)?;
    }
    if columns.is_empty() {
        return Err(DataError::TableShape { values: 0, width: 0 });
    }
    // what the model has by name is no index
    let by_name = options.model.is_some() && wanted.is_none();
    let suspect: Vec<bool> = columns.iter().map(|&column| !by_name && suspicious(column)).collect();
    let beside = options.model.as_ref().map_or(0, |model| usize::from(model.beside.is_some()));
    let declared = if let Some(model) = &options.model {
        // what turns out to be an index is none of the model's columns
        let own = suspect.iter().scan(0, |next, suspect| {
            let place = *next;
            *next += usize::from(!suspect);
            Some(!suspect && model.categories.contains(&place))
        });
        own.collect()
    } else {
        let asked = options.categories.iter().map(|name| find(names, width, name));
        let asked = asked.collect::<Result<Vec<_>, _>>()?;
        columns.iter().map(|column| asked.contains(column)).collect()
    };
    Ok(Layout { columns, suspect, names: names.map(<[String]>::to_vec), wanted, beside, declared, notes })
}

/// The columns of a model among those that were chosen, and the width that they must have where they are taken by position.
fn matched(
    columns: Vec<usize>,
    names: Option<&[String]>,
    width: usize,
    model: &ModelColumns,
    suspicious: &impl Fn(usize) -> bool,
    notes: &mut Vec<Note>,
) -> Result<(Vec<usize>, Option<usize>), DataError> {
    let beside = match (&model.beside, names) {
        (Some(name), None) => return Err(DataError::NoColumn { name: name.clone(), known: Vec::new() }),
        (Some(name), names) => Some(find(names, width, name)?),
        _ => None,
    };
    let others = |columns: &[usize]| columns.iter().copied().filter(|c| Some(*c) != beside).collect::<Vec<_>>();
    let by_position = |columns: Vec<usize>, note: Option<Note>, notes: &mut Vec<Note>| {
        notes.extend(note);
        let mut columns = others(&columns);
        columns.extend(beside);
        Ok((columns, Some(model.width)))
    };
    let (Some(wanted), Some(names)) = (&model.names, names) else {
        let note = model.names.is_some().then_some(Note::ByPosition { named: false });
        return by_position(columns, note, notes);
    };
    let own = others(&columns);
    if own.iter().map(|&c| &names[c]).eq(wanted) {
        return Ok((own.into_iter().chain(beside).collect(), None));
    }
    if model.by_position {
        return by_position(columns, Some(Note::ByPosition { named: true }), notes);
    }
    let mut taken = Vec::new();
    let mut missing = Vec::new();
    for name in wanted {
        let mut there = columns.iter().copied().filter(|&c| names[c] == *name);
        match (there.next(), there.next()) {
            (Some(column), None) => taken.push(column),
            (Some(_), Some(_)) => return Err(DataError::Repeated { name: name.clone() }),
            _ => missing.push(name.clone()),
        }
    }
    let rest: Vec<String> = others(&columns)
        .into_iter()
        .filter(|c| !taken.contains(c) && !suspicious(*c))
        .map(|c| names[c].clone())
        .collect();
    if !missing.is_empty() {
        let fits = taken.len() + rest.len() == model.width;
        return Err(DataError::ColumnsMissing { missing, others: rest, by_position: fits });
    }
    if !rest.is_empty() {
        notes.push(Note::Ignored(rest));
    }
    if !taken.is_sorted() && !model.in_any_order {
        notes.push(Note::Reordered);
    }
    taken.extend(beside);
    Ok((taken, None))
}
