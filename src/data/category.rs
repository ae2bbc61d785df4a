//! Columns of categories: labels without an order, for which no number stands.
//!
//! A [`Category`] is a column: its name and its levels. [`Categories`] are the columns of some rows, each cell the number
//! of its level (its code). What a code means is the level's text and nothing else: another table's codes are taken to a
//! model's by their texts ([`Categories::codes_in`]).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::table::trim;
use crate::error::{DataError, UnseenLevel};

/// The most levels of a column.
pub const MOST_LEVELS: usize = 4096;

/// A column of categories: its name, and its levels in the order of their codes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Category {
    name: String,
    levels: Vec<String>,
    place: usize,
}

/// The form in files, which anything can be written into.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    name: String,
    levels: Vec<String>,
    place: usize,
}

impl From<Category> for Stored {
    fn from(Category { name, levels, place }: Category) -> Self {
        Self { name, levels, place }
    }
}

impl TryFrom<Stored> for Category {
    type Error = DataError;

    fn try_from(Stored { name, levels, place }: Stored) -> Result<Self, DataError> {
        Ok(Self::new(name, levels)?.at(place))
    }
}

impl Category {
    /// Builds a column of a name and of levels, in the order of their codes; both are trimmed.
    ///
    /// # Errors
    /// Returns [`DataError::Category`] for an empty name, no levels or more than [`MOST_LEVELS`], and for a level that is empty or
    /// comes twice.
    pub fn new(name: impl Into<String>, levels: Vec<String>) -> Result<Self, DataError> {
        let name = trim(&name.into()).to_owned();
        let levels: Vec<String> = levels.iter().map(|level| trim(level).to_owned()).collect();
        let refuse = |problem: String| Err(DataError::Category { column: name.clone(), problem });
        if name.is_empty() {
            return refuse("its name is empty".into());
        }
        if levels.is_empty() || levels.len() > MOST_LEVELS {
            return refuse(format!("it has {} levels, expected 1 to {MOST_LEVELS}", levels.len()));
        }
        if levels.iter().any(String::is_empty) {
            return refuse("a level is empty: a missing category is none".into());
        }
        let mut sorted: Vec<&String> = levels.iter().collect();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(format!("its level `{}` comes twice", crate::error::Excerpt(pair[0])));
        }
        Ok(Self { name, levels, place: 0 })
    }

    /// Says where it stands among the columns of numbers: behind so many of them.
    #[must_use]
    pub fn at(self, place: usize) -> Self {
        Self { place, ..self }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The levels, in the order of their codes.
    pub fn levels(&self) -> &[String] {
        &self.levels
    }

    /// The columns of numbers that it stands behind, so that a table can be written in the order that it was read in.
    pub fn place(&self) -> usize {
        self.place
    }
}

/// The categories of n rows: m columns, `[n, m]` codes.
///
/// ```
/// use resflow::data::Categories;
/// let birds = Categories::of_rows(&["species", "sex"], &[["adelie", "f"], ["gentoo", "m"], ["adelie", "m"]])?;
/// assert_eq!(birds.columns()[0].levels(), ["adelie", "gentoo"]);
/// assert_eq!((birds.rows(), birds.row(2), birds.level(2, 0)), (3, &[0, 1][..], "adelie"));
/// # Ok::<(), resflow::data::DataError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Categories {
    columns: Vec<Category>,
    codes: Vec<u32>,
}

impl Categories {
    /// Builds the categories of rows from their codes, row by row.
    ///
    /// # Errors
    /// Returns [`DataError::TableShape`] for no columns or codes that are no whole number of rows, [`DataError::Repeated`] for two
    /// columns of a name, [`DataError::Category`] for a code that no level has.
    pub fn new(columns: Vec<Category>, codes: Vec<u32>) -> Result<Self, DataError> {
        let width = columns.len();
        if width == 0 || !codes.len().is_multiple_of(width) {
            return Err(DataError::TableShape { values: codes.len(), width });
        }
        if let Some(i) = (1..width).find(|&i| columns[..i].iter().any(|other| other.name == columns[i].name)) {
            return Err(DataError::Repeated { name: columns[i].name.clone() });
        }
        for (i, &code) in codes.iter().enumerate() {
            let column = &columns[i % width];
            if code as usize >= column.levels.len() {
                let problem =
                    format!("row {} has code {code} of {} levels, from 0", i / width + 1, column.levels.len());
                return Err(DataError::Category { column: column.name.clone(), problem });
            }
        }
        Ok(Self { columns, codes })
    }

    /// Builds the categories of rows from their texts; levels get their codes in the order in which they come.
    ///
    /// # Errors
    /// Returns [`DataError::UnequalRows`] for a row of another length than there are names, and the errors of [`Category::new`] and
    /// [`new`](Self::new).
    pub fn of_rows<N: AsRef<str>, R: AsRef<[S]>, S: AsRef<str>>(names: &[N], rows: &[R]) -> Result<Self, DataError> {
        let width = names.len();
        let mut levels = vec![Levels::default(); width];
        let mut codes = Vec::with_capacity(rows.len() * width);
        for (i, row) in rows.iter().enumerate() {
            let row = row.as_ref();
            if row.len() != width {
                return Err(DataError::UnequalRows { row: i, found: row.len(), expected: width });
            }
            codes.extend(row.iter().zip(&mut levels).map(|(cell, levels)| levels.code(trim(cell.as_ref()))));
        }
        let columns = names.iter().zip(levels).map(|(name, levels)| Category::new(name.as_ref(), levels.into_levels()));
        Self::new(columns.collect::<Result<_, _>>()?, codes)
    }

    /// n, the number of rows.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.columns.len()
    }

    /// The columns.
    pub fn columns(&self) -> &[Category] {
        &self.columns
    }

    /// The codes of row `i`, one a column.
    #[track_caller]
    pub fn row(&self, i: usize) -> &[u32] {
        &self.codes[i * self.columns.len()..(i + 1) * self.columns.len()]
    }

    /// All codes, row by row.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// The level of row `i` in column `j`.
    #[track_caller]
    pub fn level(&self, i: usize, j: usize) -> &str {
        &self.columns[j].levels[self.row(i)[j] as usize]
    }

    /// Selects the given rows, in the given order; a row may come more than once.
    #[track_caller]
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        Self { columns: self.columns.clone(), codes: rows.iter().flat_map(|&i| self.row(i)).copied().collect() }
    }

    /// Divides the columns by their names: those that are among `names`, and the others; `None` where there are none.
    pub(super) fn divide(&self, is_first: impl Fn(&Category) -> bool) -> [Option<Self>; 2] {
        [true, false].map(|wanted| {
            let which: Vec<usize> = (0..self.columns.len()).filter(|&j| is_first(&self.columns[j]) == wanted).collect();
            let codes = (0..self.rows()).flat_map(|i| which.iter().map(move |&j| self.row(i)[j])).collect();
            let columns: Vec<Category> = which.iter().map(|&j| self.columns[j].clone()).collect();
            (!columns.is_empty()).then_some(Self { columns, codes })
        })
    }

    /// Tells the columns that one of numbers is no longer before them, which stood behind so many others.
    pub(super) fn without_number(&mut self, place: usize) {
        for column in &mut self.columns {
            column.place -= usize::from(column.place > place);
        }
    }

    /// The weight of each level of column `j`: how many rows have it, or the sum of their weights.
    ///
    /// # Panics
    /// If there is no such column, or weights are fewer than rows.
    #[track_caller]
    pub fn counts(&self, j: usize, weights: Option<&[f64]>) -> Vec<f64> {
        let mut counts = vec![0.0; self.columns[j].levels.len()];
        for i in 0..self.rows() {
            counts[self.row(i)[j] as usize] += weights.map_or(1.0, |weights| weights[i]);
        }
        counts
    }

    /// The codes that the rows have in other columns, `[n, m]`, which are found by their names, and their levels by their texts.
    ///
    /// # Errors
    /// Returns [`DataError::ColumnsMissing`] for columns that are not there, [`DataError::UnseenLevels`] with all levels that the other
    /// columns do not have.
    ///
    /// ```
    /// use resflow::data::Categories;
    /// let model = Categories::of_rows(&["species"], &[["adelie"], ["gentoo"]])?;
    /// let new = Categories::of_rows(&["species"], &[["gentoo"], ["emperor"]])?;
    /// let error = new.codes_in(model.columns()).expect_err("a level that the model does not know");
    /// assert!(error.to_string().contains("`emperor`") && error.to_string().contains("`adelie`, `gentoo`"));
    /// assert_eq!(new.select(&[0]).codes_in(model.columns())?, [1]);
    /// # Ok::<(), resflow::data::DataError>(())
    /// ```
    pub fn codes_in(&self, columns: &[Category]) -> Result<Vec<u32>, DataError> {
        let place = |column: &Category| self.columns.iter().position(|own| own.name == column.name);
        let missing: Vec<String> =
            columns.iter().filter(|column| place(column).is_none()).map(|column| column.name.clone()).collect();
        if !missing.is_empty() {
            let others = self.columns.iter().filter(|own| columns.iter().all(|column| column.name != own.name));
            let others = others.map(|own| own.name.clone()).collect();
            return Err(DataError::ColumnsMissing { missing, others, by_position: false });
        }
        let places: Vec<usize> = columns.iter().filter_map(place).collect();
        let mut unseen = Vec::new();
        let mut codes: Vec<Vec<Option<u32>>> = Vec::with_capacity(columns.len());
        for (column, &j) in columns.iter().zip(&places) {
            let known: HashMap<&str, u32> =
                column.levels.iter().enumerate().map(|(code, level)| (level.as_str(), code as u32)).collect();
            let own = &self.columns[j];
            let of: Vec<Option<u32>> = own.levels.iter().map(|level| known.get(level.as_str()).copied()).collect();
            for (code, level) in own.levels.iter().enumerate().filter(|(code, _)| of[*code].is_none()) {
                // a level that no row has is none
                let mut rows = (0..self.rows()).filter(|&i| self.row(i)[j] as usize == code);
                if let Some(row) = rows.next() {
                    let (column, level, known) = (column.name.clone(), level.clone(), column.levels.clone());
                    unseen.push(UnseenLevel { column, level, rows: 1 + rows.count(), row, known });
                }
            }
            codes.push(of);
        }
        if !unseen.is_empty() {
            return Err(DataError::UnseenLevels(unseen));
        }
        let row = |i: usize| {
            let codes = &codes;
            places.iter().enumerate().filter_map(move |(c, &j)| codes[c][self.row(i)[j] as usize])
        };
        Ok((0..self.rows()).flat_map(row).collect())
    }
}

/// The levels of a column that is being read, in the order in which they come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Levels {
    codes: HashMap<String, u32>,
    levels: Vec<String>,
}

impl Levels {
    /// The code of a level, a new one if it did not come before.
    pub(crate) fn code(&mut self, level: &str) -> u32 {
        if let Some(&code) = self.codes.get(level) {
            return code;
        }
        let code = self.levels.len() as u32;
        self.levels.push(level.to_owned());
        self.codes.insert(level.to_owned(), code);
        code
    }

    #[cfg(feature = "formats")]
    pub(crate) fn len(&self) -> usize {
        self.levels.len()
    }

    pub(crate) fn into_levels(self) -> Vec<String> {
        self.levels
    }
}
