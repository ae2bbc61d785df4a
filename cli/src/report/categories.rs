//! Columns of categories: the shares of their levels in the data and among samples.

use std::fmt::Write as _;

use resflow::data::Categories;

use super::Evidence;
use super::axis::{count, number};
use super::page::{escape, name, paragraph, section, table};

/// Columns and levels that are shown.
const COLUMNS: usize = 24;
const LEVELS: usize = 24;
/// The length of a bar of all rows.
const BAR: f64 = 120.0;

/// The section; none without categories.
pub(super) fn draw(evidence: &Evidence) -> String {
    let (Some(data), Some(samples)) = (evidence.excerpt.data().categories(), &evidence.sample_categories) else {
        return String::new();
    };
    let columns = data.columns().len();
    let mut text = format!(
        "The share of each level among {} rows of the data (the bar) and {} samples of the model (the mark), in percent.",
        count(data.rows()),
        count(samples.rows())
    );
    if columns > COLUMNS {
        // writing to a String cannot fail
        let _ = write!(text, " These are {COLUMNS} of {columns} columns.");
    }
    let tables: Vec<String> = (0..columns.min(COLUMNS)).map(|j| column(data, samples, j)).collect();
    section("categories", "Categories", &(paragraph(&text) + &tables.concat()))
}

/// The percent of rows that have each level.
fn shares(categories: &Categories, j: usize) -> Vec<f64> {
    let rows = categories.rows().max(1) as f64;
    categories.counts(j, None).iter().map(|count| 100.0 * count / rows).collect()
}

fn column(data: &Categories, samples: &Categories, j: usize) -> String {
    let own = &data.columns()[j];
    let of_data = shares(data, j);
    let drawn = samples.columns().iter().position(|column| column.name() == own.name());
    let drawn_shares = drawn.map(|k| shares(samples, k)).unwrap_or_default();
    let of_samples = |level: &String| {
        let k = drawn.and_then(|k| samples.columns()[k].levels().iter().position(|other| other == level));
        k.map_or(0.0, |k| drawn_shares[k])
    };
    let mut levels: Vec<(&String, f64)> = own.levels().iter().zip(of_data).collect();
    levels.sort_by(|a, b| b.1.total_cmp(&a.1));
    let row = |(level, share): &(&String, f64)| {
        let drawn = of_samples(level);
        let [bar, mark] = [*share, drawn].map(|percent| number(BAR * percent / 100.0, 4));
        let picture = format!(
            "<svg viewBox=\"0 0 {BAR} 12\" width=\"{BAR}\" height=\"12\" aria-hidden=\"true\">\
             <path class=\"fill\" d=\"M0 2H{bar}V10H0z\"/><path class=\"model\" d=\"M{mark} 0V12\"/></svg>"
        );
        vec![escape(&level.chars().take(60).collect::<String>()), number(*share, 3), number(drawn, 3), picture]
    };
    let rows: Vec<Vec<String>> = levels.iter().take(LEVELS).map(row).collect();
    let more = levels.len().saturating_sub(LEVELS);
    let more =
        if more > 0 { format!(", the {LEVELS} most frequent of {} levels", levels.len()) } else { String::new() };
    table(&format!("{}{more}", name(own.name())), &["level", "data, %", "samples, %", ""], &rows)
}
