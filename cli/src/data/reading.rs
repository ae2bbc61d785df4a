//! How tables are read: the options, what is decided without them, and the model's columns.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Error, Result};
use clap::{Args, ValueEnum};
use resflow::data::{
    self, DataError, Dataset, Decimal, ModelColumns, Note, Opened, ReadOptions, Reading, Separator, TextColumns,
};

use super::source::Source;
use crate::columnar;
use crate::failure::{say, usage, warn};

/// Standard input, as DATA.
pub(crate) const STANDARD_INPUT: &str = "-";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum YesNo {
    Yes,
    No,
}

/// What becomes of rows with missing values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Missing {
    /// They are an error.
    #[default]
    Refuse,
    /// They are left out.
    #[value(alias = "drop")]
    DropRows,
}

/// How a table is read where its content does not say it, or says it wrongly.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub(crate) struct TableOptions {
    /// Take these columns of a table, by their names, or by their numbers from 1 if they have none
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = HEADING)]
    pub(crate) columns: Vec<String>,
    /// Leave these columns out
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = HEADING)]
    pub(crate) drop: Vec<String>,
    /// Leave this column out, which numbers or names the rows; those without a name, or that pandas named Unnamed: 0,
    /// are found without
    #[arg(long, value_name = "COLUMN", help_heading = HEADING)]
    pub(crate) index: Option<String>,
    /// What becomes of rows with missing values (empty, NA, NaN, ?, null, -, …) [default: refuse]
    #[arg(long, value_enum, value_name = "WHAT", help_heading = HEADING)]
    pub(crate) missing: Option<Missing>,
    /// Take these columns as categories, such as codes that are no quantities; columns of text with few different words are found
    /// without
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = HEADING)]
    pub(crate) category: Vec<String>,
    /// What separates cells of text: , ; | tab or blanks
    #[arg(long, value_name = "MARK", help_heading = HEADING)]
    pub(crate) separator: Option<Separator>,
    /// The mark before decimals: . or ,
    #[arg(long, value_name = "MARK", help_heading = HEADING)]
    pub(crate) decimal: Option<Decimal>,
    /// Whether the first line of text has the columns' names
    #[arg(long, value_enum, value_name = "WHETHER", help_heading = HEADING)]
    pub(crate) header: Option<YesNo>,
    /// The array of a .npz file
    #[arg(long, value_name = "NAME", help_heading = HEADING)]
    pub(crate) array: Option<String>,
}

const HEADING: &str = "Tables, what their content does not say";

impl TableOptions {
    /// The same for the library.
    pub(crate) fn options(&self) -> ReadOptions {
        ReadOptions {
            separator: self.separator,
            decimal: self.decimal,
            header: self.header.map(|said| said == YesNo::Yes),
            columns: (!self.columns.is_empty()).then(|| self.columns.clone()),
            drop: self.drop.clone(),
            index: self.index.clone(),
            missing: match self.missing.unwrap_or_default() {
                Missing::Refuse => data::Missing::Refuse,
                Missing::DropRows => data::Missing::DropRows,
            },
            text: TextColumns::Categories,
            categories: self.category.clone(),
            array: self.array.clone(),
            ..ReadOptions::default()
        }
    }

    /// For other data beside DATA, of which only the policy holds.
    pub(crate) fn of_others(&self) -> Self {
        Self { missing: self.missing, ..Self::default() }
    }

    /// The options as they are typed, with a space before each.
    pub(crate) fn flags(&self) -> String {
        let mut flags = String::new();
        let mut add = |flag: &str, value: &str| {
            // writing to a String cannot fail
            let _ = write!(flags, " --{flag} {}", quoted(value));
        };
        if !self.columns.is_empty() {
            add("columns", &self.columns.join(","));
        }
        if !self.drop.is_empty() {
            add("drop", &self.drop.join(","));
        }
        if !self.category.is_empty() {
            add("category", &self.category.join(","));
        }
        let missing = self.missing.filter(|m| *m == Missing::DropRows).map(|_| "drop-rows".to_owned());
        let header = self.header.map(|said| if said == YesNo::Yes { "yes" } else { "no" }.to_owned());
        let (separator, decimal) = (self.separator.map(|s| s.to_string()), self.decimal.map(|d| d.to_string()));
        for (flag, value) in [
            ("index", &self.index),
            ("missing", &missing),
            ("separator", &separator),
            ("decimal", &decimal),
            ("header", &header),
            ("array", &self.array),
        ] {
            if let Some(value) = value {
                add(flag, value);
            }
        }
        flags
    }
}

/// A word as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-.,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Whether columns are matched to the model's by their names.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Matching {
    /// Take the columns in their order, though their names are not those of the model's [default: by name, in any order;
    /// other columns are ignored]
    #[arg(long, help_heading = HEADING)]
    pub(crate) by_position: bool,
}

/// Reads a file, a folder or standard input; says what was decided.
pub(crate) fn open(path: &Path, options: &ReadOptions) -> Result<Opened> {
    let name = path.display().to_string();
    let opened = match Source::of(path) {
        Ok(Source::Path) => data::open_with(path, options),
        Ok(Source::Columns(kind, input)) => within(path, columnar::read(kind, input, &name, options).map(Opened::from)),
        Ok(Source::Stream(stream)) => within(path, data::open_from(stream, options)),
        Err(error) => within(path, Err(error.into())),
    };
    let opened = opened.map_err(|e| refused(e, options.model.as_ref()))?;
    tell(&name, &opened.notes);
    Ok(opened)
}

/// Reads a table; says what was decided.
pub(crate) fn table(path: &Path, options: &ReadOptions) -> Result<Reading> {
    let name = path.display().to_string();
    let reading = match Source::of(path) {
        Ok(Source::Path) => data::read_with(path, options),
        Ok(Source::Columns(kind, input)) => within(path, columnar::read(kind, input, &name, options)),
        Ok(Source::Stream(stream)) => within(path, data::read_from(stream, options)),
        Err(error) => within(path, Err(error.into())),
    };
    let reading = reading.map_err(|e| refused(e, options.model.as_ref()))?;
    tell(&name, &reading.notes);
    Ok(reading)
}

/// Reads the rows of a table, numbers and categories; says what was decided.
pub(crate) fn rows(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let Reading { table, categories, .. } = table(path, options)?;
    let rows = Dataset::from(table);
    Ok(match categories {
        Some(categories) => rows.with_categories(categories)?,
        None => rows,
    })
}

/// What was found at a path, which an error names.
fn within<T>(path: &Path, found: Result<T, DataError>) -> Result<T, DataError> {
    found.map_err(|source| {
        let is_input = path == Path::new(STANDARD_INPUT);
        let path = if is_input { "standard input".into() } else { path.to_owned() };
        DataError::File { path, source: Box::new(source) }
    })
}

/// Says what was decided, each once: an experiment opens its data many times.
pub(crate) fn tell(name: &str, notes: &[Note]) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    for note in notes {
        let line = format!("{name}: {note}");
        if !said.insert(line.clone()) {
            continue;
        }
        if note.is_warning() {
            warn(line);
        } else {
            say(format_args!("note: {line}"));
        }
    }
}

/// An error of reading: of the command where an option names what is not there.
pub(super) fn refused(error: DataError, model: Option<&ModelColumns>) -> Error {
    let DataError::File { path, source } = error else { return error.into() };
    let beside = model.and_then(|model| model.beside.as_deref());
    let name = path.display().to_string();
    let told = match (&*source, beside, model) {
        (DataError::NoColumn { name: asked, .. }, Some(weight), _) if asked == weight => {
            Some(usage(format_args!("--weight {weight}: {name}: {source}")))
        }
        (DataError::ColumnsMissing { missing, others, .. }, Some(weight), Some(model))
            if others.is_empty() && missing.len() == model.width =>
        {
            Some(usage(format_args!("--weight {weight}: {name} has no other column")))
        }
        (DataError::Width { found: 0, .. }, Some(weight), _) => {
            Some(usage(format_args!("--weight {weight}: {name} has no other column")))
        }
        (DataError::NoColumn { .. } | DataError::Options(_) | DataError::Arrays { asked: Some(_), .. }, ..) => {
            Some(usage(format_args!("{name}: {source}")))
        }
        (DataError::Width { found, expected }, _, Some(_)) => {
            let columns = if *found == 1 { "column" } else { "columns" };
            let out = if found > expected { "; --drop COLUMN,COLUMN leaves columns out" } else { "" };
            Some(Error::msg(format!("{name}: the data has {found} {columns}, the model is for {expected}{out}")))
        }
        _ => None,
    };
    told.unwrap_or_else(|| DataError::File { path, source }.into())
}
