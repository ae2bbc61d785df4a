//! Some rows in place of all of them: what is scored or shown where all would take too long.

use resflow_backend::Key;

use super::permutation::permutation;

/// The most rows of an excerpt.
const ROWS: usize = 20_000;
/// The fewest, of tables so wide that [`NUMBERS`] would be reached earlier.
const FEWEST: usize = 1000;
/// Numbers in the excerpt of a wide table, about.
const NUMBERS: usize = 300_000;

/// The rows that stand for a table of so many columns: 20 000, of wide tables as many as make 300 000 numbers, but no fewer
/// than 1000.
pub fn excerpt_rows(columns: usize) -> usize {
    (NUMBERS / columns.max(1)).clamp(FEWEST, ROWS)
}

/// Draws the numbers of at most `most` of `count` samples, in random order: a function of the key. Without weights each
/// comes once at most; with weights sample i comes about m wᵢ / Σ w times, m the smaller of both numbers (systematic
/// sampling, Kitagawa 1996).
///
/// ```
/// use resflow::{backend::Key, data::excerpt};
/// assert_eq!(excerpt(100, None, 10, Key::new(1)).len(), 10);
/// assert!(excerpt(3, Some(&[1.0, 0.0, 2.0]), 3, Key::new(1)).iter().all(|&i| i != 1));
/// ```
pub fn excerpt(count: usize, weights: Option<&[f64]>, most: usize, key: Key) -> Vec<usize> {
    let most = most.min(count);
    match weights {
        None => {
            let mut numbers = permutation(count, key);
            numbers.truncate(most);
            numbers
        }
        Some(weights) => drawn(weights, most, key),
    }
}

/// Draws `n` numbers by their weights: number i about n wᵢ / Σ w times, then shuffled.
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

    #[test]
    fn wide_tables_have_fewer_rows() {
        assert_eq!([1, 15, 30, 100_000].map(excerpt_rows), [20_000, 20_000, 10_000, 1000]);
    }

    #[test]
    fn without_weights_each_comes_once() {
        let mut all = excerpt(50, None, 1000, Key::new(2));
        assert_ne!(all, (0..50).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
