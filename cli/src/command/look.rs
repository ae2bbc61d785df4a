//! `resflow look`: what a table is like.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use resflow::data::column::ColumnKind;
use resflow::data::{self, Look, Severity};

use crate::arguments;
use crate::data::{check_there, reading};
use crate::output::print;

pub(crate) fn run(arguments: &arguments::Look) -> Result<()> {
    check_there(&arguments.data)?;
    let table = reading::table(&arguments.data, &arguments.reading.options())?.table;
    let look = data::look(&table, None).with_context(|| arguments.data.display().to_string())?;
    print(&if arguments.json { serde_json::to_string_pretty(&look)? + "\n" } else { text(&look) })
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
    // a name from a file is one line here, whatever is in it
    let name = |j: usize| name(j).chars().map(|c| if c.is_control() { '?' } else { c }).take(30).collect::<String>();
    let head = ["column", "kind", "least", "median", "largest", "distinct", "most frequent", "tails"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(look.columns.iter().enumerate().map(|(j, c)| {
        [
            name(j),
            kind(&c.kind),
            short(c.minimum),
            short(c.median),
            short(c.maximum),
            c.distinct.to_string(),
            format!("{} ({:.1} %)", short(c.most_frequent), 100.0 * c.share),
            format!("{:.1} {:.1}", c.tails[0].ratio, c.tails[1].ratio),
        ]
    }));
    let width = |k: usize| rows.iter().map(|row| row[k].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = format!("{} rows, {} columns\n\n", look.rows, look.columns.len());
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(k, (cell, &w))| if k < 2 { format!("{cell:<w$}") } else { format!("{cell:>w$}") });
        // writing to a String cannot fail
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
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
