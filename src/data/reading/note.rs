//! What was decided in order to read a table.

use std::fmt;

use super::options::Separator;
use crate::error::{Count, Excerpt};

/// A decision about a table, as a line to be shown once. What every table of numbers between commas has is not worth
/// one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// The file was compressed.
    Gzip,
    /// Its text is in this encoding, not UTF-8.
    Encoding(&'static str),
    /// The array of an NPZ file, or the file of a zip, that was taken.
    Member(String),
    /// Cells are separated by something else than commas.
    Separator(Separator),
    /// Decimals stand behind a comma.
    DecimalComma,
    /// Excel's first line `sep=…`, which says the separator.
    SeparatorLine(Separator),
    /// Lines that begin with `#` are no rows.
    Comments {
        /// Their number.
        lines: usize,
        /// Whether the last one before the first row gives the columns' names.
        names: bool,
    },
    /// The first line is taken for names though they could be numbers of a row.
    NumbersAsNames,
    /// Every row ends in a separator, behind which nothing stands.
    TrailingSeparator,
    /// A column that only numbers or names the rows is left out.
    Index {
        /// Its label.
        column: String,
        /// What it holds.
        what: &'static str,
    },
    /// A column without name and values is left out.
    Hollow {
        /// Its label.
        column: String,
    },
    /// Columns that the model does not have are ignored.
    Ignored(Vec<String>),
    /// The model's columns are there in another order: they are taken by name.
    Reordered,
    /// The model's columns have names, the table's have not: they are taken in their order.
    ByPosition {
        /// Whether they have others.
        named: bool,
    },
    /// A decision about images.
    Images(String),
    /// Whole numbers of a column have more digits than a double keeps, which is 53 bits.
    Rounded {
        /// Its label.
        column: String,
        /// The number of such cells.
        cells: usize,
    },
    /// Columns hold categories: their names, and the number of their levels.
    Categories(Vec<(String, usize)>),
    /// Cells are missing in rows that stay.
    Missing {
        /// Their number.
        cells: usize,
        /// The columns that they are in.
        columns: Vec<String>,
        /// The number of rows that lack some,
        rows: usize,
        /// of all.
        of: usize,
    },
    /// Rows with missing cells are left out.
    Dropped {
        /// Their number.
        rows: usize,
        /// The number of all rows.
        of: usize,
    },
}

impl Note {
    /// Whether it changes which numbers are taken, and not only how they are read.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::Index { .. }
            | Self::Hollow { .. }
            | Self::Reordered
            | Self::Dropped { .. }
            | Self::Rounded { .. } => true,
            Self::ByPosition { named } => *named,
            _ => false,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gzip => f.write_str("compressed by gzip"),
            Self::Encoding(name) => write!(f, "the text is in {name}"),
            Self::Member(name) => write!(f, "taking `{}`", Excerpt(name)),
            Self::Separator(separator) => write!(f, "cells are separated by {} (--separator)", separator.name()),
            Self::DecimalComma => f.write_str("decimals stand behind a comma (--decimal)"),
            Self::SeparatorLine(separator) => {
                write!(f, "the first line, sep=, says that cells are separated by {}", separator.name())
            }
            Self::Comments { lines, names } => {
                let names = if *names { "; the columns' names are in the last one before the rows" } else { "" };
                write!(f, "{} with # left out{names}", Count(*lines, "line"))
            }
            Self::NumbersAsNames => f.write_str("the first line is taken for the columns' names (--header no: a row)"),
            Self::TrailingSeparator => f.write_str("every row ends in a separator, behind which nothing stands"),
            Self::Index { column, what } => write!(f, "{column} holds {what}: left out as the rows' index"),
            Self::Hollow { column } => write!(f, "{column} holds nothing: left out"),
            Self::Ignored(names) => {
                f.write_str("the model does not have these columns, which are ignored: ")?;
                list(names, f)
            }
            Self::Reordered => {
                f.write_str("columns are in another order than the model's: they are taken by their names")
            }
            Self::ByPosition { named: true } => f.write_str("columns are taken in their order, whatever their names"),
            Self::ByPosition { named: false } => {
                f.write_str("the columns have no names: they are taken in the order of the model's")
            }
            Self::Images(sentence) => f.write_str(sentence),
            Self::Rounded { column, cells } => {
                write!(f, "{column}: {} beyond 2^53 rounded to double precision", Count(*cells, "whole number"))
            }
            Self::Categories(columns) => {
                f.write_str("categories: ")?;
                for (i, (name, levels)) in columns.iter().take(8).enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}`{}` ({})", Excerpt(name), Count(*levels, "level"))?;
                }
                if columns.len() > 8 { write!(f, " and {} more", columns.len() - 8) } else { Ok(()) }
            }
            Self::Missing { cells, columns, rows, of } => {
                write!(f, "{} missing, in {rows} of {}, of ", Count(*cells, "cell"), Count(*of, "row"))?;
                list(columns, f)
            }
            Self::Dropped { rows, of } => write!(f, "{rows} of {} with missing values left out", Count(*of, "row")),
        }
    }
}

fn list(names: &[String], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (i, name) in names.iter().take(8).enumerate() {
        write!(f, "{}`{}`", if i > 0 { ", " } else { "" }, Excerpt(name))?;
    }
    if names.len() > 8 { write!(f, " and {} more", names.len() - 8) } else { Ok(()) }
}
