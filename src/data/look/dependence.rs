//! Linear dependence between columns.
//!
//! The correlation matrix C of the columns is factored by Cholesky's method with pivoting: the next column is the one
//! whose variance the columns before explain least, and what stays on the diagonal, 1 − R², is the share of a column's
//! variance that the chosen ones leave unexplained. A column for which that is rounding lies in their span: the rows are
//! on a plane, and there is no density in all dimensions.

use crate::data::Table;

/// Products of a pass over the rows; larger tables are looked at row after so many rows.
const WORK: usize = 2_000_000_000;
/// Named at most as what a column depends on.
const NAMED: usize = 6;

/// A column that others explain.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dependent {
    /// The column.
    pub(super) column: usize,
    /// The columns that explain it, the most important first.
    pub(super) on: Vec<usize>,
    /// The share of its variance that they do not explain, 1 − R².
    pub(super) unexplained: f64,
}

/// Finds the columns of which others explain all but this share of the variance; constant columns are left out.
pub(super) fn find(table: &Table, share: f64) -> Vec<Dependent> {
    let d = table.width();
    let stride = (table.rows().saturating_mul(d * d) / WORK).max(1);
    let rows = table.rows().div_ceil(stride);
    // fewer rows than columns always lie on a plane
    if rows <= d + 1 || d < 2 {
        return Vec::new();
    }
    let (columns, mut c) = correlations(table, stride);
    let m = columns.len();
    let mut order: Vec<usize> = (0..m).collect();
    let mut chosen = 0;
    while chosen < m {
        let best = (chosen..m).max_by(|&a, &b| c[order[a] * m + order[a]].total_cmp(&c[order[b] * m + order[b]]));
        let Some(best) = best.filter(|&b| c[order[b] * m + order[b]] > share) else { break };
        order.swap(chosen, best);
        let pivot = order[chosen];
        let root = c[pivot * m + pivot].sqrt();
        // the factor's column stands in the place of the pivot's
        for &i in &order[chosen + 1..] {
            c[i * m + pivot] /= root;
        }
        c[pivot * m + pivot] = root;
        for at in chosen + 1..m {
            let i = order[at];
            let factor = c[i * m + pivot];
            for &j in &order[chosen + 1..=at] {
                let rest = c[i * m + j] - factor * c[j * m + pivot];
                c[i * m + j] = rest;
                c[j * m + i] = rest;
            }
            c[i * m + pivot] = factor;
        }
        chosen += 1;
    }
    let explained = order[chosen..].iter().map(|&i| {
        // L₁₁ᵀ b = l: the coefficients of the chosen columns, in standard deviations
        let mut b: Vec<f64> = order[..chosen].iter().map(|&j| c[i * m + j]).collect();
        for at in (0..chosen).rev() {
            let later: f64 = (at + 1..chosen).map(|k| c[order[k] * m + order[at]] * b[k]).sum();
            b[at] = (b[at] - later) / c[order[at] * m + order[at]];
        }
        let mut on: Vec<usize> = (0..chosen).filter(|&k| b[k].abs() > 1e-3).collect();
        on.sort_by(|&a, &k| b[k].abs().total_cmp(&b[a].abs()));
        let on = on.into_iter().take(NAMED).map(|k| columns[order[k]]).collect();
        Dependent { column: columns[i], on, unexplained: c[i * m + i].max(0.0) }
    });
    let mut found: Vec<_> = explained.collect();
    found.sort_by_key(|dependent| dependent.column);
    found
}

/// The columns that vary and their correlation matrix, row-major.
fn correlations(table: &Table, stride: usize) -> (Vec<usize>, Vec<f64>) {
    let d = table.width();
    let rows = || (0..table.rows()).step_by(stride).map(|i| table.row(i));
    let n = table.rows().div_ceil(stride) as f64;
    // as fractions of the largest, so that no square overflows
    let mut largest = vec![0.0_f64; d];
    rows().for_each(|row| largest.iter_mut().zip(row).for_each(|(m, v)| *m = m.max(v.abs())));
    for m in &mut largest {
        *m = if *m > 0.0 { *m } else { 1.0 };
    }
    let mut mean = vec![0.0; d];
    rows().for_each(|row| (0..d).for_each(|j| mean[j] += row[j] / largest[j] / n));
    let mut deviation = vec![0.0; d];
    rows().for_each(|row| (0..d).for_each(|j| deviation[j] += (row[j] / largest[j] - mean[j]).powi(2) / n));
    for v in &mut deviation {
        *v = v.sqrt();
    }
    let columns: Vec<usize> = (0..d).filter(|&j| deviation[j] > 1e-14).collect();
    let m = columns.len();
    let mut c = vec![0.0; m * m];
    let mut z = vec![0.0; m];
    for row in rows() {
        for (z, &j) in z.iter_mut().zip(&columns) {
            *z = (row[j] / largest[j] - mean[j]) / deviation[j];
        }
        for (i, a) in z.iter().enumerate() {
            c[i * m..=i * m + i].iter_mut().zip(&z).for_each(|(c, b)| *c += a * b / n);
        }
    }
    for i in 0..m {
        c[i * m + i] = 1.0;
        for j in 0..i {
            c[j * m + i] = c[i * m + j];
        }
    }
    (columns, c)
}

#[cfg(test)]
mod tests {
    use resflow_backend::{Key, Noise};

    use super::*;

    fn normal(rows: usize, width: usize) -> Vec<f64> {
        let mut values = vec![0.0; rows * width];
        Noise::Normal.fill(Key::new(3), 0, &mut values);
        values
    }

    fn table(rows: usize, width: usize, of: impl Fn(&[f64]) -> Vec<f64>) -> Table {
        let values = normal(rows, width);
        let rows: Vec<Vec<f64>> = values.chunks(width).map(of).collect();
        Table::from_rows(&rows).expect("a table")
    }

    #[test]
    fn sums_and_copies_are_found() {
        let independent = table(300, 4, <[f64]>::to_vec);
        assert_eq!(find(&independent, 1e-9), []);
        let copy = table(300, 2, |x| vec![x[0], 1e20 * x[0] + 3e21, x[1]]);
        let found = find(&copy, 1e-9);
        assert_eq!(found.len(), 1);
        assert!([0, 1].contains(&found[0].column) && found[0].on.len() == 1 && found[0].on[0] + found[0].column == 1);
        let sum = table(300, 3, |x| vec![x[0], x[1] * 1e-9, x[0] + 1e9 * (x[1] * 1e-9), x[2], 5.0]);
        let found = find(&sum, 1e-9);
        assert_eq!(found.len(), 1);
        let mut all = found[0].on.clone();
        all.push(found[0].column);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
        // nearly
        let near = table(2000, 2, |x| vec![x[0], x[0] + 1e-3 * x[1]]);
        assert_eq!(find(&near, 1e-9), []);
        let found = find(&near, 1e-4);
        assert!(found.len() == 1 && (found[0].unexplained / 1e-6 - 1.0).abs() < 0.2, "{found:?}");
    }

    #[test]
    fn few_rows_say_nothing() {
        assert_eq!(find(&table(5, 5, <[f64]>::to_vec), 1e-9), []);
    }
}
