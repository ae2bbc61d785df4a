//! What columns of categories are like.

use serde::Serialize;

use super::{Concern, Finding, Severity};
use crate::data::{Categories, Samples};
use crate::error::{Count, Excerpt};

/// A level of fewer rows is rare: its probability is known, what the numbers are like at it is not.
const FEW_ROWS: f64 = 5.0;
/// Levels that a sentence names.
const NAMED: usize = 6;

/// The statistics of a column of categories.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CategorySummary {
    /// The name.
    pub name: String,
    /// The columns of numbers that it stands behind.
    pub place: usize,
    /// The levels with their shares of the rows, by weight, the most frequent first.
    pub levels: Vec<(String, f64)>,
}

/// The statistics of all columns of categories, and what there is to say of them.
pub(super) fn summarise(samples: Samples<'_>) -> (Vec<CategorySummary>, Vec<Finding>) {
    let Some(categories) = samples.categories().or(samples.context_categories()) else { return Default::default() };
    let weights = samples.weights();
    let total: f64 = weights.map_or(categories.rows() as f64, |weights| weights.iter().sum());
    let mut findings = Vec::new();
    let of = |j: usize| {
        let column = &categories.columns()[j];
        let counts = categories.counts(j, weights);
        let levels = column.levels().iter().zip(&counts).map(|(level, count)| (level.clone(), count / total));
        let mut levels: Vec<(String, f64)> = levels.collect();
        levels.sort_by(|a, b| b.1.total_cmp(&a.1));
        findings.extend(findings_of(categories, j, &counts));
        CategorySummary { name: column.name().to_owned(), place: column.place(), levels }
    };
    let summaries = (0..categories.columns().len()).map(of).collect();
    (summaries, findings)
}

fn findings_of(categories: &Categories, j: usize, counts: &[f64]) -> Option<Finding> {
    let column = &categories.columns()[j];
    let name = Excerpt(column.name());
    let note = |concern, sentence, remedy: &str| {
        Some(Finding { severity: Severity::Note, concern, columns: Vec::new(), sentence, remedy: remedy.to_owned() })
    };
    if let [only] = column.levels() {
        let sentence = format!("category `{name}` is `{}` in every row", Excerpt(only));
        return note(Concern::Constant, sentence, "it says nothing of a row, and may be left out (--drop)");
    }
    let rare: Vec<String> = column
        .levels()
        .iter()
        .zip(counts)
        .filter(|(_, count)| **count < FEW_ROWS)
        .map(|(level, _)| format!("`{}`", Excerpt(level)))
        .collect();
    if rare.is_empty() {
        return None;
    }
    let more = if rare.len() > NAMED { format!(" and {} more", rare.len() - NAMED) } else { String::new() };
    let named = rare[..rare.len().min(NAMED)].join(", ");
    let sentence =
        format!("{} of category `{name}` in fewer than 5 rows each: {named}{more}", Count(rare.len(), "level"));
    note(Concern::RareLevel, sentence, "what numbers are like at them is hardly known")
}
