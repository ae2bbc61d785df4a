//! Rows that stand in a table more than once.
//!
//! A row on both sides of a split makes validation believe what was learned by heart. In a table of few distinct rows
//! (grids, integers) equal rows are honest repetitions, and keeping them together would validate on values that were
//! never learned from; so rows count as copies only where most are distinct.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::{Categories, Table};

/// The least share of distinct rows of a table whose equal rows are copies.
pub(super) const DISTINCT_SHARE: f64 = 0.25;

/// Returns the number of the first row that equals each row, for a table with copies; else `None`.
pub(super) fn first_of_each(table: &Table, categories: Option<&Categories>) -> Option<Vec<usize>> {
    let (first, copies) = originals(table, categories);
    let distinct = table.rows() - copies;
    (copies > 0 && distinct as f64 >= DISTINCT_SHARE * table.rows() as f64).then_some(first)
}

/// Counts the rows that equal an earlier one.
pub(super) fn count(table: &Table, categories: Option<&Categories>) -> usize {
    originals(table, categories).1
}

/// The number of the first row that equals each row, and how many there are that equal an earlier one.
fn originals(table: &Table, categories: Option<&Categories>) -> (Vec<usize>, usize) {
    let codes =
        |i: usize| categories.map_or(&[][..], |categories| categories.row(i)).iter().map(|&code| u64::from(code));
    let bits = |i: usize| table.row(i).iter().map(|v| (v + 0.0).to_bits()).chain(codes(i));
    let mut seen: HashMap<u64, Vec<usize>> = HashMap::with_capacity(table.rows());
    let mut first = Vec::with_capacity(table.rows());
    let mut copies = 0;
    for i in 0..table.rows() {
        let mut hash = DefaultHasher::new();
        bits(i).for_each(|bits| bits.hash(&mut hash));
        // rows of one hash are compared
        let alike = seen.entry(hash.finish()).or_default();
        let original = alike.iter().copied().find(|&other| bits(other).eq(bits(i)));
        match original {
            Some(_) => copies += 1,
            None => alike.push(i),
        }
        first.push(original.unwrap_or(i));
    }
    (first, copies)
}

/// Divides row numbers, in this order, into `(training, validation)` of about `count` rows, copies on one side.
pub(super) fn divide(order: &[usize], count: usize, first: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut copies: HashMap<usize, Vec<usize>> = HashMap::new();
    for &i in order {
        copies.entry(first[i]).or_default().push(i);
    }
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for i in order {
        let Some(rows) = copies.remove(&first[*i]) else { continue };
        // a family that is too large for what is left of the validation rows is learned from
        let side = if validation.len() + rows.len() <= count { &mut validation } else { &mut training };
        side.extend(rows);
    }
    (training, validation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: &[f64]) -> Table {
        Table::new(None, 1, values.to_vec()).expect("a table")
    }

    #[test]
    fn copies_are_found() {
        assert_eq!(first_of_each(&column(&[1.0, 2.0, 3.0]), None), None);
        assert_eq!(first_of_each(&column(&[1.0, 2.0, 1.0, 0.0, -0.0]), None), Some(vec![0, 1, 0, 3, 3]));
        // rows that differ in a category do not equal each other
        let kinds = Categories::of_rows(&["k"], &[["a"], ["b"], ["b"], ["a"], ["a"]]).expect("rows");
        let table = column(&[1.0, 2.0, 1.0, 0.0, -0.0]);
        assert_eq!(first_of_each(&table, Some(&kinds)), Some(vec![0, 1, 2, 3, 3]));
        // coins
        assert_eq!(first_of_each(&column(&[0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]), None), None);
    }

    #[test]
    fn copies_stay_together() {
        let table = column(&[5.0, 6.0, 5.0, 7.0, 6.0, 8.0, 9.0, 5.0]);
        let first = first_of_each(&table, None).expect("copies");
        for count in 1..8 {
            let (training, validation) = divide(&[7, 3, 0, 1, 2, 4, 5, 6], count, &first);
            assert_eq!(training.len() + validation.len(), 8);
            assert!(
                validation.len() <= count
                    && validation.iter().all(|i| !training.iter().any(|j| first[*i] == first[*j]))
            );
        }
    }
}
