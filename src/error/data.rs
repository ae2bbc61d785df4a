//! Errors of data, with their places.
//!
//! Every message says which file, which place in it, what is wrong there and what to do. Text that comes from the
//! file is shortened and its control characters are escaped, so that no message is longer than a few lines.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::cells::CellFaults;
use super::image::ImageError;
use super::text::{Count, Dimensions, Excerpt, Known, Listed, Names};

/// The place of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a text file: the line on which the row starts and the cell's column, both counted from one.
    Line {
        /// The line, counted from one; blank lines and the header count.
        line: u64,
        /// The column, counted from one.
        column: usize,
        /// The column's name, where the file has a header.
        name: Option<String>,
    },
    /// In an array: row and column counted from zero, as NumPy indexes them.
    Index {
        /// The row, counted from zero.
        row: usize,
        /// The column, counted from zero.
        column: usize,
        /// The column's name, where there is one.
        name: Option<String>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Line { line, column, name } => {
                write!(f, "line {line}, column {column}")?;
                name
            }
            Self::Index { row, column, name } => {
                write!(f, "row {}, column {} (index [{row}, {column}])", row + 1, column + 1)?;
                name
            }
        };
        name.as_ref().map_or(Ok(()), |name| write!(f, " (`{}`)", Excerpt(name)))
    }
}

/// A column with values outside of its declared support.
#[derive(Debug, Clone, PartialEq)]
pub struct OutsideSupport {
    /// The column's number and name.
    pub label: String,
    /// The support, in words.
    pub support: String,
    /// The rows whose value is outside.
    pub rows: usize,
    /// The first of them, from 0.
    pub row: usize,
    /// Its value.
    pub value: f64,
}

impl fmt::Display for OutsideSupport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, support, rows, row, value } = self;
        write!(
            f,
            "{label}: {} outside of the declared support {support}, the first in row {}: {value}; declare a wider one, or leave \
             such rows out",
            Count(*rows, "value"),
            row + 1
        )
    }
}

/// A level of a column of categories that a model does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnseenLevel {
    /// The column.
    pub column: String,
    /// The level.
    pub level: String,
    /// The rows that have it.
    pub rows: usize,
    /// The first of them, from 0.
    pub row: usize,
    /// The levels that the model knows.
    pub known: Vec<String>,
}

impl fmt::Display for UnseenLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { column, level, rows, row, known } = self;
        write!(
            f,
            "`{}` in column `{}` ({}, the first is row {}){}",
            Excerpt(level),
            Excerpt(column),
            Count(*rows, "row"),
            row + 1,
            Names(known, "", ": the model knows", ": the model knows")
        )
    }
}

/// The levels that a message describes.
const UNSEEN: usize = 6;

fn unseen(levels: &[UnseenLevel]) -> String {
    let mut all: Vec<String> = levels.iter().take(UNSEEN).map(ToString::to_string).collect();
    if levels.len() > UNSEEN {
        all.push(format!("{} more", levels.len() - UNSEEN));
    }
    all.join("; ")
}

/// An error of data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// An error about one file.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<DataError>,
    },
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Rows that are read as they are needed are no longer what they were.
    #[error("the file changed while it was in use: begin again with the file as it is now")]
    Changed,
    /// The file's name does not say what it holds.
    #[error("the file's name must end in .csv or .npy")]
    Extension,

    /// An error of images.
    #[error(transparent)]
    Image(#[from] ImageError),

    /// There is nothing in the file.
    #[error("the file is empty: it needs at least one row of numbers")]
    Empty,
    /// A CSV file with a header and nothing else.
    #[error("the file has a header ({}) but no rows: it needs at least one row of numbers", Count(*columns, "column"))]
    HeaderOnly {
        /// The number of columns that the header names.
        columns: usize,
    },
    /// Text that is in no encoding that is read, or has no rows.
    #[error("the text {0}")]
    Encoding(&'static str),
    /// A file of another format.
    #[error("the file is {what}: {help}")]
    Foreign {
        /// The format.
        what: &'static str,
        /// What helps.
        help: &'static str,
    },
    /// Compressed data that are damaged, or larger than a table's can be.
    #[error("the gzip data are damaged: {problem}")]
    Gzip {
        /// The problem with them.
        problem: String,
    },
    /// A zip or NPZ file that cannot be unpacked.
    #[error("not a readable zip file: {}", Excerpt(problem))]
    Zip {
        /// The problem with it.
        problem: String,
    },
    /// An NPZ file of several arrays, or without the one that was asked for.
    #[error(
        "{}: --array NAME chooses one, and there {}",
        match asked {
            Some(name) => format!("there is no array `{}` in the .npz file", Excerpt(name)),
            None => "a .npz file of several arrays, none of which is named x".to_owned(),
        },
        Names(known, "is none", "is", "are")
    )]
    Arrays {
        /// The array that was asked for.
        asked: Option<String>,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Text that can be read in two ways.
    #[error("{what}: are these {}, or {}? The option says which", readings[0], readings[1])]
    Ambiguous {
        /// What the text looks like.
        what: &'static str,
        /// The two readings, each with the option that chooses it.
        readings: [&'static str; 2],
    },
    /// Options that contradict each other.
    #[error("{0}")]
    Options(&'static str),
    /// A row is longer or shorter than the first.
    #[error("line {line} has {}, but the rows before it have {expected}: every row needs one cell per column, separated by {between}", Count(*found, "cell"))]
    Ragged {
        /// The line on which the row starts, counted from one.
        line: u64,
        /// Its cells.
        found: usize,
        /// The cells of the first row.
        expected: usize,
        /// What separates them, in words.
        between: &'static str,
    },
    /// Cells that are missing, text or infinite, or columns that are constant: all of them.
    #[error("{0}")]
    Cells(Box<CellFaults>),
    /// Cells are missing where none may be.
    #[error(
        "{} of {} {} missing, in {rows} of {of} rows: every value must be finite, so fill them in or leave these rows out, or learn a \
         second flow that fills them in and scores such rows (`Fit::missing`)",
        Count(*cells, "cell"),
        columns.iter().take(8).cloned().collect::<Vec<_>>().join(", ") + if columns.len() > 8 { " and more" } else { "" },
        if *cells == 1 { "is" } else { "are" }
    )]
    Missing {
        /// The missing cells.
        cells: usize,
        /// The rows with a missing cell,
        rows: usize,
        /// of so many.
        of: usize,
        /// The numbers and names of the columns with missing cells.
        columns: Vec<String>,
    },
    /// Rows or columns of which no cell was seen, which say nothing.
    #[error(
        "{}no cell was seen{}",
        columns.iter().take(8).fold(String::new(), |all, label| all + label + ": "),
        match (rows.first(), columns.is_empty()) {
            (Some(first), true) => format!(" of {}, the first row {}: leave them out", Count(rows.len(), "row"), first + 1),
            (Some(first), false) => format!(
                " in any row; nor any of {}, the first row {}: leave these columns and rows out (--drop, and without them)",
                Count(rows.len(), "row"),
                first + 1
            ),
            (None, _) => " in any row: leave the column out (--drop)".to_owned(),
        }
    )]
    NothingSeen {
        /// The numbers and names of such columns.
        columns: Vec<String>,
        /// The numbers of such rows, counted from 0.
        rows: Vec<usize>,
    },
    /// A value is NaN or infinite.
    #[error("{place}: the value is {value}: every value must be finite, so replace it or leave the row out")]
    NotFinite {
        /// The place of the value.
        place: Place,
        /// The value, NaN or infinite.
        value: f64,
    },
    /// The first line has cells that are numbers and cells that are not.
    #[error(
        "{place}: `{}` is not a number, but other cells of the same line are: a header has no numbers, a row of data has nothing else (--header yes or no says which it is)",
        Excerpt(text)
    )]
    MixedHeader {
        /// The first cell that is not a number.
        place: Place,
        /// Its text.
        text: String,
    },
    /// A column cannot have this name.
    #[error("the name of column {column}, `{}`, {reason}", Excerpt(name))]
    ColumnName {
        /// The column, counted from one.
        column: usize,
        /// The name.
        name: String,
        /// The reason, and what to do.
        reason: &'static str,
    },
    /// A column that has no name and counts the rows, which may be an index or be meant.
    #[error(
        "column {column} has no name and counts the rows, 0, 1, 2, …: if that is their index, --index {column} leaves it out (and pandas writes none with index=False); if it belongs to the data, name it"
    )]
    Unnamed {
        /// The column, counted from one.
        column: usize,
    },

    /// Not an NPY file, or one with a header that cannot be read.
    #[error("not a readable NPY file: {problem}")]
    NpyHeader {
        /// The problem with the header.
        problem: String,
    },
    /// An NPY array of something other than real numbers.
    #[error(
        "the array's type is {}: {}convert it to float32, float64 or integers of at most 64 bits, for example array.astype('f8')",
        Excerpt(dtype),
        match dtype.as_bytes().get(1) {
            Some(b'c') => "array.real and array.imag have its parts; ",
            Some(b'O') => "those are any objects of Python; if they are numbers, ",
            Some(b'b') => "that is yes or no; if it is to be a number, ",
            Some(b'M' | b'm') => "that is a time; if it is to be a number, ",
            _ => "",
        }
    )]
    NpyType {
        /// The type, as the header has it.
        dtype: String,
    },
    /// An NPY array that is not a table.
    #[error(
        "the array's shape is {}: it must be (rows, columns) or (rows,), with at least one of each",
        Dimensions(shape)
    )]
    NpyShape {
        /// The shape.
        shape: Vec<u64>,
    },
    /// An NPY header whose numbers multiply to more than any file holds.
    #[error("the array's shape is too large for any file: the header is damaged")]
    NpyOverflow,
    /// An NPY file that is shorter or longer than its header says.
    #[error("the header announces {expected} bytes of data, but {found} follow it: the file is {}", if found < expected { "cut short" } else { "damaged, or holds more than one array" })]
    NpyLength {
        /// The bytes that the header announces.
        expected: u64,
        /// The bytes that are there.
        found: u64,
    },
    /// A value is too large for single precision.
    #[error("{place}: {value} is too large for float32: write float64")]
    TooLarge {
        /// The place of the value.
        place: Place,
        /// The value.
        value: f64,
    },

    /// The number of values is no multiple of the number of columns, or there is no column.
    #[error("{} do not make a table of {}", Count(*values, "value"), Count(*width, "column"))]
    TableShape {
        /// The number of values.
        values: usize,
        /// The number of columns.
        width: usize,
    },
    /// The number of columns is not the expected one.
    #[error("the data has {}, but {expected} {} expected", Count(*found, "column"), if *expected == 1 { "is" } else { "are" })]
    Width {
        /// The columns that there are.
        found: usize,
        /// The columns that there should be.
        expected: usize,
    },
    /// Fewer rows than the operation needs.
    #[error("the data has {}, but at least {needed} are needed {purpose}", Count(*rows, "row"))]
    TooFewRows {
        /// The rows that there are.
        rows: usize,
        /// The rows that are needed.
        needed: usize,
        /// The purpose.
        purpose: &'static str,
    },
    /// A column with the same value in every row.
    #[error("{label} is {value} in every row: a constant column has no density, so leave it out")]
    Constant {
        /// The column's number and name.
        label: String,
        /// The value.
        value: f64,
    },
    /// A table whose density has no meaning: all that [`look`](crate::data::look()) finds grave, each with what helps.
    #[error(
        "no density can be learned:{}--regardless in the program, `Fit::regardless` in the library learns one all the same",
        Listed(.0)
    )]
    NoDensity(Vec<String>),
    /// A column whose standard deviation is not a usable number.
    #[error(
        "the standard deviation of {label} is {deviation:e}, outside the range of double precision: change the column's unit"
    )]
    Spread {
        /// The column's number and name.
        label: String,
        /// The standard deviation, as computed.
        deviation: f64,
    },
    /// Values outside of the supports that were declared for their columns, all columns at once.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Outside(Vec<OutsideSupport>),
    /// A column's declaration that does not fit its values.
    #[error("{label}: {problem}")]
    Column {
        /// The column's number and name.
        label: String,
        /// The problem.
        problem: super::ConfigError,
    },
    /// A fraction that is not strictly between zero and one.
    #[error("the validation fraction is {0}: it must lie strictly between 0 and 1")]
    Fraction(f64),
    /// Rows of different lengths.
    #[error("row {} has {found} numbers, the first row has {expected}: all rows of a table have the same length", row + 1)]
    UnequalRows {
        /// The first row that differs, from 0.
        row: usize,
        /// Its length.
        found: usize,
        /// The length of the first row.
        expected: usize,
    },
    /// Contexts, labels or weights in another number than the samples.
    #[error("{found} {what} for {samples} samples: there must be one for each")]
    Belongings {
        /// Contexts, labels or weights.
        what: &'static str,
        /// Their number.
        found: usize,
        /// The number of samples.
        samples: usize,
    },
    /// A weight that no sample can have.
    #[error("the weight of sample {} is {weight}: weights are finite numbers, 0 or above", sample + 1)]
    Weight {
        /// The number of the sample, from 0.
        sample: usize,
        /// Its weight.
        weight: f64,
    },
    /// Samples none of which counts.
    #[error(
        "all weights are 0, in training or in what is set aside for validation: nothing could be learned or measured"
    )]
    NoWeight,
    /// A column that a table does not have.
    #[error("there is no column `{}`{}", Excerpt(name), Known(known))]
    NoColumn {
        /// The name that was asked for.
        name: String,
        /// The names that there are; none if the columns have no names.
        known: Vec<String>,
    },
    /// A name that several columns have.
    #[error("there are several columns `{}`: rename them", Excerpt(name))]
    Repeated {
        /// The name.
        name: String,
    },
    /// A table that lacks columns of the model that it is for.
    #[error(
        "the model's {} {} not there{}{}",
        Names(missing, "columns", "column", "columns"),
        if missing.len() == 1 { "is" } else { "are" },
        Names(others, "", ", but there is", ", but there are"),
        if *by_position { ": rename them, or --by-position takes the columns in their order" } else { "" }
    )]
    ColumnsMissing {
        /// The names of the model's columns that are not there.
        missing: Vec<String>,
        /// The names that are there and not the model's.
        others: Vec<String>,
        /// Whether there are as many columns as the model has.
        by_position: bool,
    },
    /// A column of categories that cannot be one.
    #[error("the categories of column `{}`: {problem}", Excerpt(column))]
    Category {
        /// The column.
        column: String,
        /// The problem.
        problem: String,
    },
    /// Levels of categories that a model does not know, of which it has no probability: all of them.
    #[error(
        "categories that the model does not know: {}. Leave such rows out, or fit a model to a table that has them",
        unseen(.0)
    )]
    UnseenLevels(Vec<UnseenLevel>),
    /// A name that is no built-in density's.
    #[error("there is no built-in density `{}`: the names are {}", Excerpt(name), known)]
    UnknownDensity {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
}
