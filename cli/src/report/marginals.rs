//! Each column by itself: a histogram of the data, and the samples' as a line over it.
//!
//! Columns are ordered by the distance of the two distribution functions, the worst first.

use std::fmt::Write as _;

use super::Evidence;
use super::axis::{Axis, count, number};
use super::page::{LEGEND, figure, grid, name, paragraph, section, short};
use super::statistic::{chance, distance, quantile, sorted};
use super::svg::{Panel, px};

/// Columns that are shown.
const SHOWN: usize = 24;
/// Bins of a histogram.
const FEWEST: usize = 8;
const MOST: usize = 48;
/// The part of the data at either end that may lie beyond the picture.
const BEYOND: f64 = 0.002;
/// Quantiles that are marked below the axis.
const MARKED: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// A column, its values in rising order.
struct Column {
    at: usize,
    data: Vec<f64>,
    samples: Vec<f64>,
    distance: f64,
}

/// The section.
pub(super) fn draw(evidence: &Evidence) -> String {
    let mut columns: Vec<Column> = (0..evidence.dimension())
        .map(|at| {
            let (data, samples) = (sorted(&evidence.data[at]), sorted(&evidence.samples[at]));
            let distance = distance(&data, &samples);
            Column { at, data, samples, distance }
        })
        .collect();
    columns.sort_by(|a, b| b.distance.total_cmp(&a.distance));
    let of = columns.len();
    columns.truncate(SHOWN);
    let (rows, samples) = (evidence.excerpt.rows(), evidence.sample_count());
    let mut text = format!(
        "The {} of the data and {} of the model, a column at a time, the largest difference first: by how many percent of \
         the rows the two shares below any value differ at most. Heights are percent of the rows in a bin; below each \
         axis the middle 90 % (thin), the middle half (thick) and the median.",
        words(rows, "row", "rows"),
        words(samples, "sample", "samples")
    );
    if of > SHOWN {
        let _ = write!(text, " These are {SHOWN} of {of} columns; the other {} differ less.", of - SHOWN);
    }
    // differences that chance alone makes once in a hundred columns
    let alike = columns.iter().filter(|c| chance(c.distance, c.data.len(), c.samples.len()) > 0.01).count();
    let _ = write!(
        text,
        " {} of the {} shown differ{} by no more than chance may make of so many rows.",
        if alike == columns.len() { "All".to_owned() } else { alike.to_string() },
        columns.len(),
        if alike == 1 && columns.len() > 1 { "s" } else { "" }
    );
    let figures: Vec<String> = columns.iter().map(|column| panel(evidence, column)).collect();
    section("marginals", "Columns", &(paragraph(&text) + LEGEND + &grid("thirds", &figures)))
}

fn words(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// The part of a column that is shown.
fn range(data: &[f64], samples: &[f64]) -> Axis {
    let ends = |sorted: &[f64]| [quantile(sorted, 0.0), quantile(sorted, 1.0)];
    let core = |sorted: &[f64]| [quantile(sorted, BEYOND), quantile(sorted, 1.0 - BEYOND)];
    let join = |a: [f64; 2], b: [f64; 2]| [a[0].min(b[0]), a[1].max(b[1])];
    let ([low, high], inner) = (join(ends(data), ends(samples)), core(data));
    let inner = join(inner, [quantile(samples, 0.01), quantile(samples, 0.99)]);
    // all of it, unless a few values would squeeze the others
    let whole = high / 2.0 - low / 2.0 <= 1.6 * (inner[1] / 2.0 - inner[0] / 2.0);
    let [low, high] = if whole { [low, high] } else { inner };
    Axis::new(low, high)
}

/// The step of values that lie on a grid of few points.
fn grid_step(sorted: &[f64]) -> Option<f64> {
    let mut distinct = sorted.to_vec();
    distinct.dedup();
    if distinct.len() < 2 || distinct.len() > MOST {
        return None;
    }
    let step = distinct.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
    let places = distinct.iter().map(|v| (v - distinct[0]) / step);
    let on_grid = places.clone().all(|p| (p - p.round()).abs() < 1e-3);
    (on_grid && places.fold(0.0, f64::max) < MOST as f64).then_some(step)
}

/// The borders of the bins.
fn borders(data: &[f64], axis: Axis) -> Vec<f64> {
    let on_grid = grid_step(data).map(|step| {
        let first = data[0] - ((data[0] - axis.low) / step).round().max(0.0) * step - step / 2.0;
        (first, step, ((axis.high - first) / step).ceil().max(1.0))
    });
    // samples may lie so far beyond the grid that its steps are too fine
    let (low, width, bins) = if let Some((first, step, bins)) = on_grid.filter(|(.., bins)| *bins <= 2.0 * MOST as f64)
    {
        (first, step, bins as usize)
    } else {
        // Freedman and Diaconis
        let spread = quantile(data, 0.75) - quantile(data, 0.25);
        let width = 2.0 * spread / (data.len().max(1) as f64).cbrt();
        let bins = ((axis.high - axis.low) / width).ceil();
        let bins = if bins.is_finite() { bins.clamp(FEWEST as f64, MOST as f64) } else { MOST as f64 };
        (axis.low, (axis.high - axis.low) / bins, bins as usize)
    };
    (0..=bins).map(|i| low + width * i as f64).collect()
}

/// The share of all values in each bin, in percent; the last bin has its upper border.
fn shares(sorted: &[f64], borders: &[f64]) -> Vec<f64> {
    let last = borders.len() - 1;
    let below = |i: usize| sorted.partition_point(|v| if i == last { *v <= borders[i] } else { *v < borders[i] });
    (0..last).map(|i| 100.0 * (below(i + 1) - below(i)) as f64 / sorted.len().max(1) as f64).collect()
}

fn panel(evidence: &Evidence, Column { at, data, samples, distance }: &Column) -> String {
    let label = &evidence.names[*at];
    let caption = |more: &str| format!("{} — {more}", name(label));
    if samples.is_empty() || data.is_empty() {
        return figure(&caption("no finite samples"), "");
    }
    let borders = borders(data, range(data, samples));
    let axis = Axis::new(borders[0], borders[borders.len() - 1]);
    let (rows, drawn) = (shares(data, &borders), shares(samples, &borders));
    let most = rows.iter().chain(&drawn).copied().fold(0.0, f64::max);
    let mut panel =
        Panel::new([320.0, 196.0], axis, Axis::new(0.0, 1.05 * most.max(1e-9)), true).with_margins(0.0, 16.0);
    let mut steps = format!("M{} {}", px(0.0), px(panel.down(0.0)));
    for (i, share) in rows.iter().enumerate() {
        let _ = write!(steps, "V{}H{}", px(panel.down(*share)), px(panel.across(borders[i + 1])));
    }
    let _ = write!(steps, "V{}", px(panel.down(0.0)));
    panel.path("fill", &steps);
    panel.line("model", drawn.iter().enumerate().map(|(i, share)| [f64::midpoint(borders[i], borders[i + 1]), *share]));
    panel.axes(true, "", "");
    for (sorted, class, below) in [(data, "data", 22.0), (samples, "model", 29.0)] {
        mark(&mut panel, sorted, class, below);
    }
    let beyond =
        |sorted: &[f64]| 100.0 * sorted.iter().filter(|v| !axis.contains(**v)).count() as f64 / sorted.len() as f64;
    let (out, drawn_out) = (beyond(data), beyond(samples));
    let mut text = format!("differs by {} %", number(100.0 * distance, 2));
    let parts = [(out, "the rows"), (drawn_out, "samples")].into_iter().filter(|(share, _)| *share > 0.0);
    let parts: Vec<String> = parts.map(|(share, of)| format!("{} % of {of}", number(share, 2))).collect();
    if !parts.is_empty() {
        let _ = write!(text, "; beyond the picture {}", parts.join(", "));
    }
    let [low, median, high] = [0.05, 0.5, 0.95].map(|q| number(quantile(data, q), 4));
    let [model_low, model_median, model_high] = [0.05, 0.5, 0.95].map(|q| number(quantile(samples, q), 4));
    let title = format!(
        "{}: 5 %, median and 95 % of the data {low}, {median}, {high}; of samples {model_low}, {model_median}, {model_high}",
        short(label)
    );
    figure(&caption(&text), &panel.finish(&title))
}

/// Marks the quantiles below the axis.
fn mark(panel: &mut Panel, sorted: &[f64], class: &str, below: f64) {
    let [left, _, right, bottom] = panel.frame();
    let y = px(bottom + below);
    let at = |q: f64| px((left + panel.across(quantile(sorted, q))).clamp(left, right));
    let [a, b, c, d, e] = MARKED.map(at);
    let median = format!("<path class=\"{class} dots\" style=\"stroke-width:6;opacity:1\" d=\"M{c} {y}h0\"/>");
    panel.outside(&format!(
        "<path class=\"{class}\" style=\"stroke-width:1\" d=\"M{a} {y}H{e}\"/>\
         <path class=\"{class} thick\" d=\"M{b} {y}H{d}\"/>{median}"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_everything_in_range_once() {
        let data: Vec<f64> = (0..1000).map(|i| f64::from(i).sqrt()).collect();
        let borders = borders(&data, range(&data, &data));
        let shares = shares(&data, &borders);
        assert!((FEWEST..=MOST).contains(&shares.len()));
        assert!((shares.iter().sum::<f64>() - 100.0).abs() < 1e-9);
    }

    #[test]
    fn integers_are_in_the_middle_of_their_bins() {
        let data: Vec<f64> = (0..60).map(|i| f64::from(i % 6)).collect();
        assert_eq!(grid_step(&data.iter().map(|v| v * 0.25).collect::<Vec<_>>()), None, "not in rising order");
        let sorted = sorted(&data);
        assert_eq!(borders(&sorted, range(&sorted, &sorted)), [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5]);
        assert_eq!(grid_step(&[0.0, 1.0, 1.5, 2.71]), None);
    }

    #[test]
    fn a_few_far_values_do_not_squeeze_the_others() {
        let mut data: Vec<f64> = (0..2000).map(|i| f64::from(i) / 2000.0).collect();
        data.push(1e9);
        let axis = range(&data, &data);
        assert!(axis.high < 1.1, "{axis:?}");
        assert!(borders(&data, axis).iter().all(|v| v.is_finite()));
        for odd in [vec![3.0; 5], vec![-f64::MAX, f64::MAX]] {
            assert!(borders(&odd, range(&odd, &odd)).iter().all(|v| v.is_finite()), "{odd:?}");
        }
    }
}
