//! Rows whose missing cells were filled in.

use crate::data::{Incomplete, Table};
use crate::invert::Status;

/// Rows with their missing cells filled in, some times each.
#[derive(Debug, Clone, PartialEq)]
pub struct Completed {
    table: Table,
    draws: usize,
    status: Vec<Status>,
}

impl Completed {
    pub(super) fn new(rows: &Incomplete, values: Vec<f64>, draws: usize, status: Vec<Status>) -> Self {
        let table = match rows.data().table() {
            Some(table) => Table::of_rows_like(table, values),
            None => Table::of_computed(rows.width(), values),
        };
        Self { table, draws, status }
    }

    /// The filled rows, `[n·draws, d]`: draw j of row i is row i·draws + j.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The filled rows, without a copy.
    pub fn into_table(self) -> Table {
        self.table
    }

    /// The draws of each row.
    pub fn draws(&self) -> usize {
        self.draws
    }

    /// The outcome of each filled row, `[n·draws]`: [`Status::NonFinite`] where a cell overflowed.
    pub fn status(&self) -> &[Status] {
        &self.status
    }

    /// The mean of each cell over the draws, `[n, d]`: what squared errors want. On a column of whole numbers it is none of them.
    pub fn means(&self) -> Table {
        self.of_each(|draws| draws.iter().sum::<f64>() / draws.len() as f64)
    }

    /// The median of each cell over the draws, `[n, d]`, the lower one of two: what absolute errors want. It is one of the draws.
    pub fn medians(&self) -> Table {
        self.of_each(|draws| {
            draws.sort_unstable_by(f64::total_cmp);
            draws[(draws.len() - 1) / 2]
        })
    }

    /// A number of each cell's draws; what was seen is the same in all, and stays what it is.
    fn of_each(&self, number: impl Fn(&mut [f64]) -> f64) -> Table {
        let d = self.table.width();
        let rows = self.table.rows().checked_div(self.draws).unwrap_or(0);
        let mut draws = vec![0.0; self.draws];
        let mut values = Vec::with_capacity(rows * d);
        for i in 0..rows {
            for j in 0..d {
                draws.iter_mut().enumerate().for_each(|(k, x)| *x = self.table.row(i * self.draws + k)[j]);
                let same = draws.iter().all(|x| *x == draws[0]);
                values.push(if same { draws[0] } else { number(&mut draws) });
            }
        }
        Table::of_rows_like(&self.table, values)
    }
}
