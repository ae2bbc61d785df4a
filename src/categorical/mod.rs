//! Probabilities of categories: p(k) of the m categories of a row.
//!
//! ```text
//! p(k) = p(k₁) p(k₂ | k₁) ⋯ p(k_m | k₁, …, k_{m−1})
//! ```
//!
//! The first factor is a table, smoothed by half a row a level (Krichevsky and Trofimov 1981): p(l) = (n_l + ½)/(n + L/2). Each other
//! one is such a table too, or a softmax of a net of one hidden layer over the one-hot codes of the columns before:
//!
//! ```text
//! log p(k_j | k_<j) = log softmax(b₂ + tanh(b₁ + Σ_{i<j} W₁[k_i]) W₂)
//! ```
//!
//! A net starts as the table (W₂ = 0, b₂ = log p), and replaces it only if it is better on the validation rows by more than the standard
//! error of the paired difference: where a table is enough, it stays one. Everything is on the host in double precision, so that log p(k)
//! is exact, the same on every device, and finite for every row of known levels.

mod file;
mod fit;
mod net;
mod stored;

use std::collections::HashMap;

use rand::Rng as _;
use resflow_backend::Key;

use self::net::SoftmaxNet;
pub(crate) use self::stored::StoredCategories;
use crate::data::{Categories, Category};
use crate::error::DataError;

/// One factor, p(k_j | k_<j).
#[derive(Debug, Clone, PartialEq)]
struct Factor {
    /// The log shares of the levels, smoothed, nats, `[L]`.
    table: Vec<f64>,
    /// What replaces the table where the columns before tell something.
    net: Option<SoftmaxNet>,
}

/// The probability p(k) of categories, exact and in nats.
///
/// ```
/// use resflow::backend::Key;
/// use resflow::categorical::CategoricalDensity;
/// use resflow::data::{Categories, Dataset};
/// let rows: Vec<[&str; 1]> = (0..40).map(|i| [if i % 4 == 0 { "rare" } else { "common" }]).collect();
/// let rows = Dataset::from(Categories::of_rows(&["kind"], &rows)?);
/// let (training, validation) = rows.split(0.1, Key::new(0))?;
/// let density = CategoricalDensity::fit(training.samples(), validation.samples(), Key::new(0))?;
/// let log_p = density.log_prob(rows.categories().expect("categories"))?;
/// assert!((log_p[0].exp() - 0.25).abs() < 0.1 && (log_p[0].exp() + log_p[1].exp() - 1.0).abs() < 1e-12);
/// # Ok::<(), resflow::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct CategoricalDensity {
    columns: Vec<Category>,
    factors: Vec<Factor>,
}

impl CategoricalDensity {
    /// The columns, with the levels that it knows.
    pub fn columns(&self) -> &[Category] {
        &self.columns
    }

    /// The smoothed shares of the levels of column `j` among the training rows, `[L]`, whatever the other columns are.
    #[track_caller]
    pub fn shares(&self, j: usize) -> Vec<f64> {
        self.factors[j].table.iter().map(|log| log.exp()).collect()
    }

    /// Whether the probability of column `j` is one table whatever the columns before are.
    #[track_caller]
    pub fn is_table(&self, j: usize) -> bool {
        self.factors[j].net.is_none()
    }

    /// The number of trained numbers.
    pub fn parameters(&self) -> u64 {
        let of = |factor: &Factor| factor.net.as_ref().map_or(factor.table.len(), SoftmaxNet::parameters) as u64;
        self.factors.iter().map(of).sum()
    }

    /// Computes log p(k) of each row, `[n]`, nats: exact, and the same in every order of the rows. Columns are found by their names and
    /// levels by their texts; a row of levels alone that are known is finite.
    ///
    /// # Errors
    /// Returns the errors of [`Categories::codes_in`]: [`DataError::UnseenLevels`] with all levels that are not known.
    pub fn log_prob(&self, categories: &Categories) -> Result<Vec<f64>, DataError> {
        Ok(self.log_prob_of(&categories.codes_in(&self.columns)?))
    }

    /// log p(k) of rows of own codes, of which equal ones are computed once.
    pub(crate) fn log_prob_of(&self, codes: &[u32]) -> Vec<f64> {
        let mut known: HashMap<&[u32], f64> = HashMap::new();
        let rows = codes.chunks_exact(self.columns.len());
        rows.map(|row| {
            *known
                .entry(row)
                .or_insert_with(|| (0..row.len()).map(|j| self.conditional(j, &row[..j])[row[j] as usize]).sum::<f64>())
        })
        .collect()
    }

    /// log p(k_j | k_<j) of each level, nats.
    fn conditional(&self, j: usize, before: &[u32]) -> Vec<f64> {
        match &self.factors[j].net {
            None => self.factors[j].table.clone(),
            Some(net) => net.log_probabilities(&self.active(before)),
        }
    }

    /// The places of the ones among the one-hot codes of some columns, the first ones.
    fn active(&self, codes: &[u32]) -> Vec<usize> {
        let mut first = 0;
        codes
            .iter()
            .zip(&self.columns)
            .map(|(&code, column)| {
                let place = first + code as usize;
                first += column.levels().len();
                place
            })
            .collect()
    }

    /// Draws the categories of rows number `first` and so on, each a function of the key and its number.
    pub fn sample(&self, first: u64, count: usize, key: Key) -> Categories {
        let m = self.columns.len();
        let mut codes = Vec::with_capacity(count * m);
        let mut known: HashMap<Vec<u32>, Vec<f64>> = HashMap::new();
        for i in 0..count as u64 {
            let mut uniform = key.split(first.wrapping_add(i)).generator();
            let start = codes.len();
            for j in 0..m {
                let before = &codes[start..];
                let log_p = known.entry(before.to_vec()).or_insert_with(|| self.conditional(j, before));
                let mut left = (uniform.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
                let found = log_p.iter().position(|log_p| {
                    left -= log_p.exp();
                    left < 0.0
                });
                // rounding may leave a little beyond the last
                codes.push(found.unwrap_or(log_p.len() - 1) as u32);
            }
        }
        Categories::new(self.columns.clone(), codes).expect("codes of the levels")
    }
}
