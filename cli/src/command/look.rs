//! `resflow look`: what a table is like.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use resflow::data::column::ColumnKind;
use resflow::data::{self, CategorySummary, Incomplete, Look, Missing, Severity};

use crate::arguments;
use crate::data::{check_there, reading};
use crate::output::print;

pub(crate) fn run(arguments: &arguments::Look) -> Result<()> {
    check_there(&arguments.data)?;
    let mut options = arguments.reading.options();
    if arguments.reading.missing.is_none() {
        options.missing = Missing::Keep;
    }
    let rows = Incomplete::from(reading::rows(&arguments.data, &options)?);
    let look = data::look_incomplete(&rows).with_context(|| arguments.data.display().to_string())?;
    print(&if arguments.json { serde_json::to_string_pretty(&look)? + "\n" } else { text(&look) })
}

/// Levels that are shown.
const LEVELS: usize = 12;
/// What log p of rows with categories is.
const SUM: &str = "log p of a row is log p(categories) + log p(numbers | categories), nats: a probability (mass) of its categories \
                   times a density of its numbers";

/// A text from a file as one short line, whatever is in it.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(30).collect()
}

/// A number in few characters.
fn short(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 || (1e-3..1e6).contains(&size) {
        let text = format!("{x:.4}");
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        text.to_owned()
    } else {
        format!("{x:.3e}")
    }
}

fn kind(kind: &ColumnKind) -> String {
    match kind {
        ColumnKind::Constant => "constant".to_owned(),
        ColumnKind::Integer => "integers".to_owned(),
        ColumnKind::Grid { step, .. } => format!("grid of {}", short(*step)),
        ColumnKind::Continuous => "continuous".to_owned(),
    }
}

fn text(look: &Look) -> String {
    let name = |j: usize| look.names.as_ref().map_or_else(|| (j + 1).to_string(), |names| names[j].clone());
    let name = |j: usize| line(&name(j));
    let mut head = vec!["column", "kind", "least", "median", "largest", "distinct", "most frequent", "tails"];
    let lacking = look.missing.iter().any(|count| *count > 0);
    if lacking {
        head.push("missing");
    }
    let mut rows = vec![head.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()];
    let mut of_categories = look.categories.iter().peekable();
    let category = |c: &CategorySummary| {
        let [none, least, median] = [String::new(), String::new(), String::new()];
        let most = c
            .levels
            .first()
            .map_or(String::new(), |(level, share)| format!("{} ({:.1} %)", line(level), 100.0 * share));
        let levels = c.levels.len().to_string();
        let mut row =
            vec![line(&c.name), "category".to_owned(), least, median, none.clone(), levels, most, none.clone()];
        row.extend(lacking.then_some(none));
        row
    };
    for (j, c) in look.columns.iter().enumerate() {
        while let Some(own) = of_categories.next_if(|own| own.place <= j) {
            rows.push(category(own));
        }
        let mut row = vec![
            name(j),
            kind(&c.kind),
            short(c.minimum),
            short(c.median),
            short(c.maximum),
            c.distinct.to_string(),
            format!("{} ({:.1} %)", short(c.most_frequent), 100.0 * c.share),
            format!("{:.1} {:.1}", c.tails[0].ratio, c.tails[1].ratio),
        ];
        if lacking {
            let share = 100.0 * look.missing[j] as f64 / look.rows as f64;
            row.push(format!("{} ({share:.1} %)", look.missing[j]));
        }
        rows.push(row);
    }
    rows.extend(of_categories.map(category));
    let width = |k: usize| rows.iter().map(|row| row[k].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = format!("{} rows, {} columns\n\n", look.rows, look.columns.len() + look.categories.len());
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(k, (cell, &w))| if k < 2 { format!("{cell:<w$}") } else { format!("{cell:>w$}") });
        // writing to a String cannot fail
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    for c in &look.categories {
        let shown =
            c.levels.iter().take(LEVELS).map(|(level, share)| format!("{} {:.1} %", line(level), 100.0 * share));
        let more = c.levels.len().saturating_sub(LEVELS);
        let more = if more > 0 { format!(", {more} more") } else { String::new() };
        let _ = writeln!(out, "\n{}: {}{more}", line(&c.name), shown.collect::<Vec<_>>().join(", "));
    }
    if !look.categories.is_empty() {
        let _ = writeln!(out, "\n{SUM}");
    }
    out.push_str(if look.findings.is_empty() { "\nnothing that stands in the way of a density\n" } else { "\n" });
    for finding in &look.findings {
        let severity = match finding.severity {
            Severity::Grave => "grave",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let _ = writeln!(out, "{severity}: {finding}");
    }
    out
}
