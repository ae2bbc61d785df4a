//! Columns of words: their levels and the code of each row, gathered as rows go by.
//!
//! A column is watched from its first word on, or from its first row if it is declared; what came before were numbers, whose levels are
//! their shortest texts. Codes stand among the numbers until rows with missing cells are dropped, then the two are parted.

use super::columns::Layout;
use super::number::{self, Cell};
use crate::data::category::{Categories, Category, Levels, MOST_LEVELS};
use crate::data::table::trim;
use crate::error::DataError;

/// The code of a missing cell.
const NONE: u32 = u32::MAX;
/// The rows that a level has at least in the mean, if nobody said that the column holds categories.
const ROWS_OF_A_LEVEL: usize = 3;
/// The most levels, if nobody said so.
const FEW: usize = 256;

/// The words of a column.
#[derive(Debug, Clone, Default)]
pub(super) struct Words {
    levels: Levels,
    codes: Vec<u32>,
    /// There are more levels than any column has.
    beyond: bool,
    /// Somebody said that it holds categories.
    pub(super) declared: bool,
}

impl Words {
    /// A column that is watched from some row on, in front of which are these values, NaN where one is missing.
    pub(super) fn behind(values: impl Iterator<Item = f64>) -> Self {
        let mut words = Self::default();
        values.for_each(|value| words.add_number(value));
        words
    }

    pub(super) fn declared() -> Self {
        Self { declared: true, ..Self::default() }
    }

    /// A number of an array, NaN for a missing one.
    pub(super) fn add_number(&mut self, value: f64) {
        if value.is_nan() { self.codes.push(NONE) } else { self.add_level(&number::level_of(value)) }
    }

    /// A cell of text.
    pub(super) fn add(&mut self, cell: Cell, text: &[u8]) {
        match cell {
            Cell::Missing => self.codes.push(NONE),
            Cell::Number(value) if !number::is_padded(text) => self.add_level(&number::level_of(value)),
            _ => self.add_level(&number::text(text)),
        }
    }

    /// A word, or none.
    pub(super) fn add_word(&mut self, word: Option<&str>) {
        match word.map(trim) {
            Some(word) if !word.is_empty() => self.add_level(word),
            _ => self.codes.push(NONE),
        }
    }

    fn add_level(&mut self, level: &str) {
        if self.beyond {
            return;
        }
        self.codes.push(self.levels.code(level));
        if self.levels.len() > MOST_LEVELS {
            (self.beyond, self.codes) = (true, Vec::new());
        }
    }

    /// The number of levels, as far as they were counted.
    pub(super) fn levels(&self) -> usize {
        self.levels.len()
    }

    /// Whether the words of so many rows are categories.
    pub(super) fn are_categories(&self, rows: usize) -> bool {
        let few = self.levels() <= FEW && self.levels().saturating_mul(ROWS_OF_A_LEVEL) <= rows;
        !self.beyond && self.levels() > 0 && (self.declared || few)
    }

    /// The code of a row as a number, NaN of a missing one.
    pub(super) fn code(&self, row: usize) -> f64 {
        self.codes.get(row).filter(|code| **code != NONE).map_or(f64::NAN, |code| f64::from(*code))
    }

    fn into_levels(self) -> Vec<String> {
        self.levels.into_levels()
    }
}

/// Numbers and codes, row by row, parted: the width of what are numbers with these, and the categories. `words` are those of each place
/// that holds codes.
pub(super) fn part(
    values: Vec<f64>,
    words: Vec<Option<Words>>,
    name: impl Fn(usize) -> String,
) -> Result<(usize, Vec<f64>, Option<Categories>), DataError> {
    let width = words.len();
    let numbers = words.iter().filter(|words| words.is_none()).count();
    if numbers == width {
        return Ok((width, values, None));
    }
    let is_code: Vec<bool> = words.iter().map(Option::is_some).collect();
    let (mut kept, mut codes) = (Vec::with_capacity(values.len() / width * numbers), Vec::new());
    for row in values.chunks_exact(width) {
        for (&value, is_code) in row.iter().zip(&is_code) {
            if *is_code { codes.push(value as u32) } else { kept.push(value) }
        }
    }
    let mut before = 0;
    let mut columns = Vec::new();
    for (place, words) in words.into_iter().enumerate() {
        match words {
            None => before += 1,
            Some(words) => columns.push(Category::new(name(place), words.into_levels())?.at(before)),
        }
    }
    // levels whose rows were all dropped stay: they are levels all the same
    Ok((numbers, kept, Some(Categories::new(columns, codes)?)))
}

/// The name of a column of categories that the file does not say, or that is taken for another: that of the model's, its own, or, in a
/// table without names, `c` and its number.
pub(super) fn name(layout: &Layout, slot: usize, model: Option<&str>) -> String {
    model.map(str::to_owned).or_else(|| layout.name(slot)).unwrap_or_else(|| numbered(layout, slot))
}

/// The name of a column in a table without names that has categories.
pub(super) fn numbered(layout: &Layout, slot: usize) -> String {
    format!("c{}", layout.columns()[slot] + 1)
}
