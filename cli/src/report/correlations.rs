//! Rank correlations of all columns, of the data and of samples.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Evidence;
use super::axis::number;
use super::page::{escape, figure, grid, name, paragraph, section, short};
use super::pairs::most_dependent;
use super::statistic::{correlation, ranks};
use super::svg::px;

/// Columns that are shown.
const SHOWN: usize = 24;
/// Up to so many columns cells have their number.
const NUMBERED: usize = 10;
/// Shades of either sign.
const SHADES: f64 = 8.0;
/// Pixels of the picture, and of the names beside it.
const SIDE: f64 = 360.0;
const NAMES: f64 = 120.0;

/// The section; none of a single column.
pub(super) fn draw(evidence: &Evidence) -> String {
    let d = evidence.dimension();
    if d < 2 || evidence.sample_count() < 2 {
        return String::new();
    }
    let chosen = chosen(&evidence.data);
    let matrix = |from: &[Vec<f64>]| {
        let ranked: Vec<Vec<f64>> = chosen.iter().map(|&j| ranks(&from[j])).collect();
        ranked.iter().map(|a| ranked.iter().map(|b| correlation(a, b)).collect()).collect::<Vec<Vec<f64>>>()
    };
    let (data, samples) = (matrix(&evidence.data), matrix(&evidence.samples));
    let pairs = (0..chosen.len()).flat_map(|i| (0..i).map(move |j| [i, j]));
    let furthest = pairs.max_by(|a, b| {
        let away = |[i, j]: &[usize; 2]| (data[*i][*j] - samples[*i][*j]).abs();
        away(a).total_cmp(&away(b))
    });
    let mut text =
        "Rank correlations: blue of columns that rise together, orange of those of which one falls.".to_owned();
    if let Some([i, j]) = furthest {
        let _ = write!(
            text,
            " The largest difference is that of {} and {}: {} in the data, {} in samples.",
            name(&evidence.names[chosen[i]]),
            name(&evidence.names[chosen[j]]),
            rounded(data[i][j]),
            rounded(samples[i][j])
        );
    }
    if chosen.len() < d {
        let _ =
            write!(text, " These are {} of {d} columns, those of the most dependent pairs among them.", chosen.len());
    }
    let names: Vec<&str> = chosen.iter().map(|&j| evidence.names[j].as_str()).collect();
    let pictures = [("Data", data), ("Samples", samples)]
        .map(|(what, matrix)| figure(&format!("<b class=\"name\">{what}</b>"), &picture(what, &names, &matrix)));
    section("correlations", "Correlations", &(paragraph(&text) + &grid("halves", &pictures)))
}

fn rounded(r: f64) -> String {
    number((100.0 * r).round() / 100.0, 2)
}

/// The columns to show, in the table's order.
fn chosen(data: &[Vec<f64>]) -> Vec<usize> {
    let dependent = most_dependent(data).into_iter().flat_map(|pair| pair.columns);
    let mut chosen = Vec::new();
    for j in dependent.chain(0..data.len()) {
        if chosen.len() < SHOWN && !chosen.contains(&j) {
            chosen.push(j);
        }
    }
    chosen.sort_unstable();
    chosen
}

fn picture(what: &str, names: &[&str], matrix: &[Vec<f64>]) -> String {
    let n = names.len();
    let cell = (SIDE - NAMES) / n as f64;
    let cell = cell.min(34.0);
    let side = cell * n as f64;
    let mut shades: BTreeMap<(bool, usize), String> = BTreeMap::new();
    let mut numbers = String::new();
    for (i, row) in matrix.iter().enumerate() {
        for (j, r) in row.iter().enumerate() {
            let (x, y) = (NAMES + cell * j as f64, cell * i as f64);
            let shade = (r.abs() * SHADES).round() as usize;
            if shade > 0 {
                let gap = if cell > 12.0 { 1.0 } else { 0.3 };
                let inner = px(cell - gap);
                let path = shades.entry((*r > 0.0, shade)).or_default();
                let _ = write!(path, "M{} {}h{inner}v{inner}h-{inner}z", px(x), px(y));
            }
            if n <= NUMBERED && i != j {
                let (x, y) = (px(x + cell / 2.0), px(y + cell / 2.0 + 3.2));
                let _ = write!(numbers, "<text class=\"c m\" x=\"{x}\" y=\"{y}\">{}</text>", rounded(*r));
            }
        }
    }
    let mut out = String::new();
    for ((positive, shade), d) in shades {
        let class = if positive { "up" } else { "dn" };
        let _ = write!(out, "<path class=\"{class} o{shade}\" d=\"{d}\"/>");
    }
    out.push_str(&numbers);
    let _ = write!(out, "<path class=\"rule\" d=\"M{0} 0h{1}v{1}h-{1}z\"/>", px(NAMES), px(side));
    for (i, label) in names.iter().enumerate() {
        let label = escape(&fitted(label));
        let y = cell * (i as f64 + 0.5) + 3.5;
        let _ = write!(out, "<text class=\"t e\" x=\"{}\" y=\"{}\">{label}</text>", px(NAMES - 5.0), px(y));
        let (x, y) = (px(NAMES + cell * (i as f64 + 0.5) + 3.5), px(side + 6.0));
        let _ = write!(out, "<text class=\"t e\" x=\"{x}\" y=\"{y}\" transform=\"rotate(-60 {x} {y})\">{label}</text>");
    }
    format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\"><title>{what}: rank correlations of {n} columns</title>{out}</svg>",
        px(NAMES + side + 4.0),
        px(side + NAMES)
    )
}

/// A name that has room beside the picture.
fn fitted(name: &str) -> String {
    let short = short(name);
    if short.chars().count() <= 18 { short } else { short.chars().take(17).chain(['…']).collect() }
}
