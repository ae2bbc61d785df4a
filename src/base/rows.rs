//! Rows of numbers with weights, what a mixture is fitted to.

use crate::data::Table;
use crate::error::Error;

/// Rows of finite numbers, each with a weight; weight 2 is the row twice. There is at least one, and weight on it.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    dimension: usize,
    values: &'a [f64],
    weights: Option<&'a [f64]>,
}

impl<'a> Rows<'a> {
    /// Takes the numbers of rows of `dimension` columns, one row after the other, with the weight of each.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if there are no rows, the numbers are no multiple of the dimension or not finite, or the
    /// weights are not as many as rows, negative, not finite, or without a finite sum above 0.
    pub fn new(dimension: usize, values: &'a [f64], weights: Option<&'a [f64]>) -> Result<Self, Error> {
        if dimension == 0 || values.is_empty() || !values.len().is_multiple_of(dimension) {
            return Err(Error::Input(format!(
                "{} numbers for rows of {dimension} columns: at least one whole row is needed",
                values.len()
            )));
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let (row, column) = (at / dimension, at % dimension);
            return Err(Error::Input(format!(
                "row {row}, column {column} (counted from 0) is {}: a mixture is fitted to finite numbers",
                values[at]
            )));
        }
        let rows = values.len() / dimension;
        if let Some(weights) = weights {
            if weights.len() != rows {
                return Err(Error::Input(format!("{} weights for {rows} rows", weights.len())));
            }
            let wrong = |w: &f64| !(w.is_finite() && *w >= 0.0);
            if let Some(row) = weights.iter().position(wrong) {
                return Err(Error::Input(format!("the weight of row {row} (counted from 0) is {}", weights[row])));
            }
            let total: f64 = weights.iter().sum();
            if !(total > 0.0 && total.is_finite()) {
                return Err(Error::Input(format!("the weights add up to {total}: a finite sum above 0 is needed")));
            }
        }
        Ok(Self { dimension, values, weights })
    }

    /// Takes the rows of a table.
    ///
    /// # Errors
    /// Returns the errors of [`new`](Self::new).
    pub fn of_table(table: &'a Table, weights: Option<&'a [f64]>) -> Result<Self, Error> {
        Self::new(table.width(), table.values(), weights)
    }

    /// d, the numbers in a row.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The number of rows, at least 1.
    pub fn count(&self) -> usize {
        self.values.len() / self.dimension
    }

    /// All numbers, row by row.
    pub fn values(&self) -> &'a [f64] {
        self.values
    }

    /// The weights, if there are any.
    pub fn weights(&self) -> Option<&'a [f64]> {
        self.weights
    }

    /// The weight of a row.
    pub fn weight(&self, row: usize) -> f64 {
        self.weights.map_or(1.0, |weights| weights[row])
    }

    /// The numbers of a row.
    pub fn row(&self, row: usize) -> &'a [f64] {
        &self.values[row * self.dimension..(row + 1) * self.dimension]
    }

    /// Σ wᵢ.
    pub fn total_weight(&self) -> f64 {
        self.weights.map_or(self.count() as f64, |weights| weights.iter().sum())
    }

    /// The weighted mean of each column, and its variance about it, divided by Σ wᵢ.
    pub fn moments(&self) -> (Vec<f64>, Vec<f64>) {
        let total = self.total_weight();
        let mut mean = vec![0.0; self.dimension];
        let mut variance = vec![0.0; self.dimension];
        for i in 0..self.count() {
            let share = self.weight(i) / total;
            mean.iter_mut().zip(self.row(i)).for_each(|(sum, x)| *sum += share * x);
        }
        for i in 0..self.count() {
            let share = self.weight(i) / total;
            for ((sum, x), m) in variance.iter_mut().zip(self.row(i)).zip(&mean) {
                *sum += share * (x - m) * (x - m);
            }
        }
        (mean, variance)
    }
}
