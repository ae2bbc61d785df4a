//! What may be said about a table beforehand.

use std::fmt;
use std::str::FromStr;

use crate::error::DataError;

/// What stands between the cells of a row of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// A tab.
    Tab,
    /// `|`
    Bar,
    /// Any run of blanks and tabs, those at the ends of a line aside.
    Blanks,
}

impl Separator {
    pub(super) const ALL: [Self; 5] = [Self::Tab, Self::Semicolon, Self::Bar, Self::Comma, Self::Blanks];

    /// The byte between cells; blanks have none.
    pub(super) fn byte(self) -> Option<u8> {
        match self {
            Self::Comma => Some(b','),
            Self::Semicolon => Some(b';'),
            Self::Tab => Some(b'\t'),
            Self::Bar => Some(b'|'),
            Self::Blanks => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Comma => "commas",
            Self::Semicolon => "semicolons",
            Self::Tab => "tabs",
            Self::Bar => "bars (|)",
            Self::Blanks => "blanks",
        }
    }
}

impl FromStr for Separator {
    type Err = String;

    /// The character itself or its name: `,` `;` `|`, `comma`, `semicolon`, `bar`, `tab` (also `\t`) and `blanks`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "," | "comma" => Ok(Self::Comma),
            ";" | "semicolon" => Ok(Self::Semicolon),
            "\t" | "\\t" | "tab" => Ok(Self::Tab),
            "|" | "bar" => Ok(Self::Bar),
            " " | "blank" | "blanks" | "space" => Ok(Self::Blanks),
            _ => Err("expected , ; | tab or blanks".to_owned()),
        }
    }
}

impl fmt::Display for Separator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Comma => ",",
            Self::Semicolon => ";",
            Self::Tab => "tab",
            Self::Bar => "|",
            Self::Blanks => "blanks",
        })
    }
}

/// The mark before the decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decimal {
    /// `1.5`
    Point,
    /// `1,5`
    Comma,
}

impl FromStr for Decimal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "." | "point" => Ok(Self::Point),
            "," | "comma" => Ok(Self::Comma),
            _ => Err("expected . or ,".to_owned()),
        }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Point { "." } else { "," })
    }
}

/// What becomes of rows with missing cells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Missing {
    /// They are an error.
    #[default]
    Refuse,
    /// They are left out; [`Reading::dropped`](super::Reading::dropped) says which they were.
    DropRows,
    /// They stay, and the table has NaN in their missing cells: [`Incomplete`](crate::data::Incomplete) takes it.
    Keep,
}

/// What becomes of columns of text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TextColumns {
    /// They are an error.
    #[default]
    Refuse,
    /// Those of few levels, 256 at most and three rows each in the mean, are categories; others are an error.
    Categories,
}

/// The columns of a model, to which those of a table are matched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelColumns {
    /// Their names, where the model has some: then columns are taken by name, in any order, and others are ignored.
    pub names: Option<Vec<String>>,
    /// Their number: columns without names are taken by position, and there must be as many.
    pub width: usize,
    /// Whether columns of other names are taken by position too.
    pub by_position: bool,
    /// A column that is kept behind those of the model, by name, such as the rows' weights.
    pub beside: Option<String>,
    /// The places of those that hold categories.
    pub categories: Vec<usize>,
    /// Whether their order in the file is no news, as where some of them are contexts of the others.
    pub in_any_order: bool,
}

/// How a table is read. What is `None` is decided by the content.
///
/// Columns of a table without names go by their numbers, from 1: `columns: Some(vec!["1".into(), "3".into()])`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// What stands between the cells of text.
    pub separator: Option<Separator>,
    /// The mark before the decimals.
    pub decimal: Option<Decimal>,
    /// Whether the first line of text has the names of the columns.
    pub header: Option<bool>,
    /// The columns to take, in this order; others may hold anything.
    pub columns: Option<Vec<String>>,
    /// Columns to leave out; they may hold anything.
    pub drop: Vec<String>,
    /// The column that only numbers or names the rows. Those without a name, or named `Unnamed: 0` by pandas, are found
    /// without it.
    pub index: Option<String>,
    /// What becomes of rows with missing cells.
    pub missing: Missing,
    /// What becomes of columns of text.
    pub text: TextColumns,
    /// Columns that hold categories, of text or of numbers that are labels, however many levels they have (up to
    /// [`MOST_LEVELS`](crate::data::MOST_LEVELS)).
    pub categories: Vec<String>,
    /// Whether a column that is the same in every row is an error, as it is for learning.
    pub refuse_constants: bool,
    /// The array of an NPZ file.
    pub array: Option<String>,
    /// The columns of the model that the table is for.
    pub model: Option<ModelColumns>,
    /// The height and width that images are cut or padded to about the centre, should that be what is read.
    pub image_size: Option<[usize; 2]>,
}

impl ReadOptions {
    pub(in crate::data) fn check(&self) -> Result<(), DataError> {
        if self.separator == Some(Separator::Comma) && self.decimal == Some(Decimal::Comma) {
            return Err(DataError::Options(
                "a comma cannot be both the separator and the decimal mark: give another separator",
            ));
        }
        Ok(())
    }
}
