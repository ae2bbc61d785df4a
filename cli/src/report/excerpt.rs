//! Some rows of the data, drawn by a key: what a report shows, and what scores are held against.

use std::collections::HashSet;

use resflow::backend::Key;
use resflow::data::{Table, number_of, permutation};

use crate::data::Data;

/// The most rows.
const ROWS: usize = 20_000;
/// The fewest, of tables so wide that [`NUMBERS`] would be reached earlier.
const FEWEST: usize = 1000;
/// Numbers in the excerpt of a wide table, about.
const NUMBERS: usize = 300_000;

/// Rows of the data in random order, so that the first of them are an excerpt too.
#[derive(Debug, Clone)]
pub(crate) struct Excerpt {
    pub(crate) table: Table,
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
        let (table, numbers, all, weighted) = match data {
            Data::Density(density) => {
                let table = density.sample(key, ROWS);
                (table, (0..ROWS).collect(), None, false)
            }
            Data::Stored(opened) => {
                let table = data.table()?;
                let weights = opened.data.weights();
                let most = (NUMBERS / table.width()).clamp(FEWEST, ROWS).min(table.rows());
                let numbers = match weights {
                    None => permutation(table.rows(), key).into_iter().take(most).collect(),
                    Some(weights) => drawn(weights, most, key),
                };
                let rows = table.select(&numbers);
                (rows, in_file(numbers, data.dropped()), Some(table.rows()), weights.is_some())
            }
        };
        Some(Self { held_out: vec![false; numbers.len()], table, numbers, all, weighted })
    }

    /// Marks the rows that are among those held out of training.
    pub(crate) fn mark(&mut self, held_out: &Table) {
        if self.all.is_some() {
            let known: HashSet<u64> = (0..held_out.rows()).map(|i| number_of(held_out.row(i))).collect();
            for (i, mark) in self.held_out.iter_mut().enumerate() {
                *mark = known.contains(&number_of(self.table.row(i)));
            }
        }
    }

    /// Marks all rows: they are those of other data than the model was trained on.
    pub(crate) fn mark_all(&mut self) {
        self.held_out.fill(true);
    }

    /// The number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.numbers.len()
    }
}

/// The numbers that rows of a table have in its file, some of whose rows, in rising order, are no part of the table.
fn in_file(numbers: Vec<usize>, dropped: &[usize]) -> Vec<usize> {
    // the k-th that was dropped comes after dropped[k] - k rows of the table
    let kept_before: Vec<usize> = dropped.iter().enumerate().map(|(k, number)| number - k).collect();
    numbers.into_iter().map(|i| i + kept_before.partition_point(|kept| *kept <= i)).collect()
}

/// At most so many rows of a table by their weights, in random order.
pub(crate) fn some_rows(table: &Table, weights: Option<&[f64]>, most: usize) -> Table {
    let (key, most) = (Key::new(0).named("held out"), most.min(table.rows()));
    match weights {
        None if most == table.rows() => table.clone(),
        None => table.select(&permutation(table.rows(), key)[..most]),
        Some(weights) => table.select(&drawn(weights, most, key)),
    }
}

/// Draws numbers of rows by their weights: row i about n wᵢ / Σ w times, systematically (Kitagawa 1996), then shuffled.
fn drawn(weights: &[f64], n: usize, key: Key) -> Vec<usize> {
    let heaviest = weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let step = weights.iter().map(|w| w / heaviest).sum::<f64>() / n as f64;
    let offset = (key.split(0).seed() >> 11) as f64 / (1_u64 << 53) as f64;
    let (mut chosen, mut reached) = (Vec::with_capacity(n), 0.0);
    for (i, weight) in weights.iter().enumerate() {
        reached += weight / heaviest;
        while chosen.len() < n && step * (chosen.len() as f64 + offset) < reached {
            chosen.push(i);
        }
    }
    permutation(chosen.len(), key.split(1)).into_iter().map(|i| chosen[i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_the_numbers_of_their_file() {
        // rows 0, 3 and 4 of seven were left out
        assert_eq!(in_file(vec![0, 1, 2, 3], &[0, 3, 4]), [1, 2, 5, 6]);
        assert_eq!(in_file(vec![2, 0], &[]), [2, 0]);
    }

    #[test]
    fn rows_are_drawn_by_their_weights() {
        let key = Key::new(3);
        let count = |weights: &[f64], n| {
            let rows = drawn(weights, n, key);
            (0..weights.len()).map(|i| rows.iter().filter(|&&r| r == i).count()).collect::<Vec<_>>()
        };
        assert_eq!(count(&[1.0, 0.0, 3.0], 8), [2, 0, 6]);
        assert_eq!(count(&[1e-300; 4], 4), [1; 4]);
        let few = count(&[1.0, 1e9], 10);
        assert_eq!((few[0] + few[1], few[1] >= 9), (10, true));
    }
}
