//! The findings, in words.

use super::dependence::Dependent;
use super::{Concern, Finding, Severity};
use crate::data::Table;
use crate::data::column::{ColumnKind, ColumnSummary};
use crate::data::copies::DISTINCT_SHARE;
use crate::error::Excerpt;

/// 1 − R² below which a column is a combination of others, rounded.
const EXACTLY: f64 = 1e-9;
/// 1 − R² below which it nearly is.
pub(super) const NEARLY: f64 = 1e-5;
/// A share of one value that a continuous column has no honest reason for.
const SPIKE: f64 = 0.02;
/// A tail so many times longer than the half next to the median; 4.6 of a normal, 9.2 of an exponential, 318 of a Cauchy.
const LONG: f64 = 40.0;
/// A share of copies that needs no explanation.
const CHANCE: f64 = 1e-3;
/// Columns that one sentence names.
const NAMED: usize = 12;

fn finding(severity: Severity, concern: Concern, columns: Vec<usize>, sentence: String, remedy: &str) -> Finding {
    Finding { severity, concern, columns, sentence, remedy: remedy.to_owned() }
}

/// The names of columns, as a message shows them.
fn named(table: &Table, columns: &[usize]) -> String {
    let name = |&j: &usize| match table.columns() {
        Some(names) => format!("`{}`", Excerpt(&names[j])),
        None => format!("{}", j + 1),
    };
    let mut all: Vec<String> = columns.iter().take(NAMED).map(name).collect();
    if columns.len() > NAMED {
        all.push(format!("{} more", columns.len() - NAMED));
    }
    let word = if columns.len() == 1 { "column" } else { "columns" };
    match all.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{word} {} and {last}", rest.join(", ")),
        _ => format!("{word} {}", all.concat()),
    }
}

/// The columns for which something holds.
fn those(columns: &[ColumnSummary], holds: impl Fn(&ColumnSummary) -> bool) -> Vec<usize> {
    columns.iter().enumerate().filter(|(_, column)| holds(column)).map(|(j, _)| j).collect()
}

pub(super) fn of_columns(table: &Table, columns: &[ColumnSummary]) -> Vec<Finding> {
    let continuous = |c: &ColumnSummary| c.kind == ColumnKind::Continuous;
    let mut found = Vec::new();
    // of a single row every value is
    let constant = those(columns, |c| c.kind == ColumnKind::Constant && table.rows() > 1);
    if !constant.is_empty() {
        let be = if constant.len() == 1 { "has" } else { "have" };
        let sentence = format!("{} {be} one value in every row", named(table, &constant));
        let remedy = "a constant column has no density, so leave it out (--drop)";
        found.push(finding(Severity::Grave, Concern::Constant, constant, sentence, remedy));
    }
    let rounding = those(columns, |c| c.rounding);
    if !rounding.is_empty() {
        let sentence = format!("the values of {} differ by rounding alone", named(table, &rounding));
        let remedy = "subtract what they have in common before they are written, or leave them out (--drop)";
        found.push(finding(Severity::Grave, Concern::Rounding, rounding, sentence, remedy));
    }
    for j in those(columns, |c| c.counter && !c.rounding && c.count > 20) {
        let sentence = format!("{} numbers the rows ({}, …)", named(table, &[j]), columns[j].minimum);
        let remedy = "its density says nothing of new rows; leave it out (--drop, or --index to keep it as their name)";
        found.push(finding(Severity::Warning, Concern::Counter, vec![j], sentence, remedy));
    }
    for j in those(columns, |c| c.ruled_by_few) {
        let c = &columns[j];
        let far = if (c.maximum - c.median).abs() >= (c.median - c.minimum).abs() { c.maximum } else { c.minimum };
        let sentence = format!(
            "{} has values such as {far} where most are within {} and {}",
            named(table, &[j]),
            c.quantiles[1].1,
            c.quantiles[7].1
        );
        let remedy =
            "if they mark missing values, leave those rows out; a robust scale keeps them from ruling the rest";
        found.push(finding(Severity::Warning, Concern::Outliers, vec![j], sentence, remedy));
    }
    let discrete = those(columns, |c| c.kind.grid().is_some());
    if !discrete.is_empty() {
        let fewest = discrete.iter().map(|&j| columns[j].distinct).min().unwrap_or(0);
        let most = discrete.iter().map(|&j| columns[j].distinct).max().unwrap_or(0);
        let values = if fewest == most { format!("{most}") } else { format!("{fewest} to {most}") };
        let be = if discrete.len() == 1 { "holds" } else { "hold" };
        let sentence = format!("{} {be} {values} distinct values, on a grid", named(table, &discrete));
        let remedy = "they are dequantised, log p is that of whole cells of the grid; codes of categories, which no order tells \
                      apart, are taken as such by --category";
        found.push(finding(Severity::Warning, Concern::Discrete, discrete, sentence, remedy));
    }
    for j in those(columns, |c| continuous(c) && c.share > SPIKE && c.count > 50) {
        let c = &columns[j];
        let sentence = format!("{} is {} in {:.1} % of the rows", named(table, &[j]), c.most_frequent, 100.0 * c.share);
        let remedy = "log p has no bound at a value that comes again and again; if it marks missing or censored values, leave \
                      those rows out";
        found.push(finding(Severity::Warning, Concern::Spike, vec![j], sentence, remedy));
    }
    let long = |c: &ColumnSummary| continuous(c) && !c.ruled_by_few && c.tails.iter().any(|t| t.ratio > LONG);
    let tails = those(columns, long);
    if !tails.is_empty() {
        let be = if tails.len() == 1 { "has" } else { "have" };
        let sentence = format!("{} {be} long tails", named(table, &tails));
        let remedy = "a monotone map of the column takes them in";
        found.push(finding(Severity::Note, Concern::Tails, tails, sentence, remedy));
    }
    found
}

pub(super) fn of_rows(table: &Table, columns: &[ColumnSummary], copies: usize) -> Vec<Finding> {
    let (rows, d) = (table.rows(), table.width());
    let mut found = Vec::new();
    let all_discrete = columns.iter().all(|c| c.kind.grid().is_some());
    // of decimals some come twice by chance
    if copies as f64 > CHANCE * rows as f64 && !all_discrete && ((rows - copies) as f64) >= DISTINCT_SHARE * rows as f64
    {
        let share = 100.0 * copies as f64 / rows as f64;
        let word = if copies == 1 { "row equals an earlier one" } else { "rows equal earlier ones" };
        let sentence = format!("{copies} {word} ({share:.1} %)");
        let severity = if share < 1.0 { Severity::Note } else { Severity::Warning };
        let remedy = "copies stay on one side of the validation split; leave them out unless the data are like that";
        found.push(finding(severity, Concern::Copies, Vec::new(), sentence, remedy));
    }
    if rows < 5 * d || rows < 50 {
        let (row, column) = (if rows == 1 { "row" } else { "rows" }, if d == 1 { "column" } else { "columns" });
        let sentence = format!("the data has {rows} {row}, few for {d} {column}");
        let remedy = "expect little more than a normal density; fewer columns (--columns) are known better";
        found.push(finding(Severity::Warning, Concern::FewRows, Vec::new(), sentence, remedy));
    }
    found
}

pub(super) fn of_missing(table: &Table, missing: &[usize], incomplete: usize) -> Finding {
    let cells: usize = missing.iter().sum();
    let lacking: Vec<usize> = (0..missing.len()).filter(|&j| missing[j] > 0).collect();
    let (word, be) = if cells == 1 { ("cell", "is") } else { ("cells", "are") };
    let of = named(table, &lacking);
    let sentence = format!("{cells} {word} of {of} {be} missing, in {incomplete} of {} rows", table.rows());
    let remedy = "a fit refuses them unless --impute learns to fill them in (`Fit::missing` in the library), or --missing drop-rows \
                  leaves such rows out";
    finding(Severity::Warning, Concern::Missing, lacking, sentence, remedy)
}

pub(super) fn of_dependence(table: &Table, columns: &[ColumnSummary], dependent: &[Dependent]) -> Vec<Finding> {
    let discrete = |j: usize| columns[j].kind.grid().is_some();
    dependent
        .iter()
        .map(|Dependent { column, on, unexplained }| {
            let others = named(table, on);
            // of whole cells of a grid there is a density all the same
            let exactly = *unexplained < EXACTLY && !(discrete(*column) && on.iter().all(|&j| discrete(j)));
            let (severity, how) = if exactly {
                (Severity::Grave, "is a linear combination of")
            } else {
                (Severity::Warning, "nearly is a linear combination of")
            };
            let sentence = format!("{} {how} {others}", named(table, &[*column]));
            let remedy = if exactly {
                "the rows lie on a plane and log p has no bound; leave it out (--drop)"
            } else {
                "log p is ruled by how nearly; leave it out (--drop) unless that is meant"
            };
            let columns = std::iter::once(*column).chain(on.iter().copied()).collect();
            finding(severity, Concern::Dependent, columns, sentence, remedy)
        })
        .collect()
}
