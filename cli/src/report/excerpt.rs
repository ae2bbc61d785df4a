//! Some rows of the data, drawn by a key: what a report shows, and what scores are held against.

use std::collections::HashSet;

use resflow::backend::Key;
use resflow::data::{DataError, Dataset, Samples, Table, excerpt, excerpt_rows};

use crate::data::Data;

/// Rows of the data in random order, so that the first of them are an excerpt too.
#[derive(Debug, Clone)]
pub(crate) struct Excerpt {
    pub(crate) table: Table,
    /// The same with their categories and contexts.
    data: Dataset,
    /// The number of each row in the data, from 0.
    rows: Vec<usize>,
    /// Where each row stands in the file, from 0, rows counted that were left out for missing values.
    pub(crate) numbers: Vec<usize>,
    /// Whether a row is one of those that were held out of training.
    pub(crate) held_out: Vec<bool>,
    /// The rows of the data; none of a built-in density, which has as many as one draws.
    pub(crate) all: Option<usize>,
    /// Whether rows were drawn by their weights.
    pub(crate) weighted: bool,
}

impl Excerpt {
    /// The excerpt of some data; none of images.
    pub(crate) fn of(data: &Data) -> Option<Self> {
        let key = Key::new(0).named("excerpt");
        let dropped = data.dropped();
        let (data, rows, all, weighted) = match data {
            Data::Density(density) => {
                let table = density.sample(key, excerpt_rows(2));
                let rows = (0..table.rows()).collect();
                (Dataset::from(table), rows, None, false)
            }
            Data::Stored(opened) => {
                let table = data.table()?;
                let weights = opened.data.weights();
                let rows = excerpt(table.rows(), weights, excerpt_rows(table.width()), key);
                // they are drawn by their weights, and have none then
                let (chosen, all) = (opened.data.select(&rows).ok()?, table.rows());
                (chosen.without_weights(), rows, Some(all), weights.is_some())
            }
            Data::Large(table) if table.images().is_some() => return None,
            Data::Large(table) => {
                let rows = table.choose(excerpt_rows(table.width()), key);
                (Dataset::from(table.select(&rows).ok()?), rows, Some(table.rows()), false)
            }
        };
        let numbers = in_file(&rows, dropped);
        let table = data.table()?.clone();
        Some(Self { held_out: vec![false; rows.len()], table, data, rows, numbers, all, weighted })
    }

    /// Marks the rows whose numbers in the data are among those held out of training.
    pub(crate) fn mark(&mut self, held_out: &[usize]) {
        let known: HashSet<usize> = held_out.iter().copied().collect();
        for (mark, row) in self.held_out.iter_mut().zip(&self.rows) {
            *mark = known.contains(row);
        }
    }

    /// Marks all rows: they are those of other data than the model was trained on.
    pub(crate) fn mark_all(&mut self) {
        self.held_out.fill(true);
    }

    /// The rows with what belongs to them.
    pub(crate) fn data(&self) -> &Dataset {
        &self.data
    }

    /// The number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.numbers.len()
    }
}

/// The numbers that rows of a table have in its file, some of whose rows, in rising order, are no part of the table.
fn in_file(numbers: &[usize], dropped: &[usize]) -> Vec<usize> {
    // the k-th that was dropped comes after dropped[k] - k rows of the table
    let kept_before: Vec<usize> = dropped.iter().enumerate().map(|(k, number)| number - k).collect();
    numbers.iter().map(|i| i + kept_before.partition_point(|kept| kept <= i)).collect()
}

/// At most so many samples by their weights, in random order.
pub(crate) fn some_rows(samples: Samples<'_>, most: usize) -> Result<Dataset, DataError> {
    let (key, rows) = (Key::new(0).named("held out"), samples.len());
    match samples.weights() {
        None if rows <= most => samples.select(&(0..rows).collect::<Vec<_>>()),
        weights => samples.select(&excerpt(rows, weights, most.min(rows), key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_the_numbers_of_their_file() {
        // rows 0, 3 and 4 of seven were left out
        assert_eq!(in_file(&[0, 1, 2, 3], &[0, 3, 4]), [1, 2, 5, 6]);
        assert_eq!(in_file(&[2, 0], &[]), [2, 0]);
    }
}
