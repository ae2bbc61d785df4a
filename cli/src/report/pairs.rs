//! The pairs of columns that depend on each other most, data beside samples.
//!
//! Dependence is the mutual information of the data's ranks, which sees what is not monotone too. No column is in more
//! than two pairs, and each pair has a new column, so that a few copies of one column do not fill the page. Few rows are dots, many are counted in
//! hexagons; both pictures of a pair have the same number of rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Evidence;
use super::axis::{Axis, count, number};
use super::page::{LEGEND, escape, figure, grid, name, paragraph, section, short};
use super::statistic::{correlation, mutual_information, quantile, ranks, sorted};
use super::svg::{Panel, px, thinned};

/// Pairs that are shown.
const SHOWN: usize = 6;
/// Pairs that a column may be in.
const EACH: usize = 2;
/// Tables of at most so many columns show all their pairs.
const FEW: usize = 4;
/// Rows that dependence is measured with, and columns between which.
const ROWS: usize = 2000;
const COLUMNS: usize = 200;
/// Up to so many rows are drawn as dots.
const DOTS: usize = 700;
/// Hexagons across a picture, and shades of them.
const ACROSS: f64 = 24.0;
const SHADES: usize = 8;
/// The part of the data at either end of an axis that may lie beyond the picture.
const BEYOND: f64 = 0.002;

/// Two columns and how they depend on each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pair {
    pub(super) columns: [usize; 2],
    /// Mutual information of the data's ranks, nats.
    pub(super) information: f64,
}

/// The most dependent pairs, each column in at most a few.
pub(super) fn most_dependent(data: &[Vec<f64>]) -> Vec<Pair> {
    let ranked: Vec<Vec<f64>> =
        data.iter().take(COLUMNS).map(|column| ranks(&column[..column.len().min(ROWS)])).collect();
    let d = ranked.len();
    let mut pairs: Vec<Pair> = (0..d)
        .flat_map(|i| (i + 1..d).map(move |j| [i, j]))
        .map(|[i, j]| Pair { columns: [i, j], information: mutual_information(&ranked[i], &ranked[j]) })
        .collect();
    pairs.sort_by(|a, b| b.information.total_cmp(&a.information));
    let mut used = vec![0; d];
    let mut chosen = Vec::new();
    for pair in pairs {
        let free = pair.columns.iter().all(|&j| used[j] < EACH);
        // a pair of columns that are shown already, beside others, tells little that is new
        let new = d <= FEW || pair.columns.iter().any(|&j| used[j] == 0);
        if chosen.len() < SHOWN && free && new {
            for j in pair.columns {
                used[j] += 1;
            }
            chosen.push(pair);
        }
    }
    chosen
}

/// The section; none of a single column.
pub(super) fn draw(evidence: &Evidence) -> String {
    let pairs = most_dependent(&evidence.data);
    if pairs.is_empty() {
        return String::new();
    }
    let (d, rows) = (evidence.dimension(), evidence.excerpt.rows().min(evidence.sample_count()));
    let mut text = if d == 2 {
        format!("The two columns together: {} rows of the data on the left, as many samples on the right.", count(rows))
    } else {
        format!(
            "{} of {} pairs of columns, those that depend on each other most: {} rows of the data on the left, as many \
             samples on the right.",
            pairs.len(),
            count(d * (d - 1) / 2),
            count(rows)
        )
    };
    if d > COLUMNS {
        let _ = write!(text, " Only the first {COLUMNS} of {d} columns were compared.");
    }
    let pictures: Vec<String> = pairs.iter().map(|pair| picture(evidence, *pair, rows)).collect();
    section("pairs", "Pairs of columns", &(paragraph(&text) + LEGEND + &grid("pairs", &pictures)))
}

fn picture(evidence: &Evidence, Pair { columns: [i, j], information }: Pair, rows: usize) -> String {
    let axis = |column: usize| {
        let (data, samples) = (sorted(&evidence.data[column]), sorted(&evidence.samples[column]));
        let low = quantile(&data, BEYOND).min(quantile(&samples, 5.0 * BEYOND));
        let high = quantile(&data, 1.0 - BEYOND).max(quantile(&samples, 1.0 - 5.0 * BEYOND));
        Axis::new(low, high).padded(0.04)
    };
    let rank = |from: &[Vec<f64>]| correlation(&ranks(&from[i]), &ranks(&from[j]));
    let correlations = [rank(&evidence.data), rank(&evidence.samples)].map(|r| number((100.0 * r).round() / 100.0, 2));
    let (a, b) = (&evidence.names[i], &evidence.names[j]);
    let axes = [axis(i), axis(j)];
    let panels: Vec<String> = [(&evidence.data, "data", "hd"), (&evidence.samples, "model", "hm")]
        .into_iter()
        .map(|(from, class, fill)| {
            let points: Vec<[f64; 2]> = from[i].iter().zip(&from[j]).take(rows).map(|(x, y)| [*x, *y]).collect();
            let left = class == "data";
            // the same size of the inner picture on both sides
            let mut panel = Panel::new([258.0, 240.0], axes[0], axes[1], true).with_margins(14.0, 15.0);
            if rows <= DOTS {
                panel.dots(&format!("{class} dots"), thinned(&points, DOTS));
            } else {
                hexagons(&mut panel, fill, &points);
            }
            panel.axes(true, &short(a), &if left { short(b) } else { String::new() });
            let what = if left { "data" } else { "samples" };
            panel.finish(&format!("{} against {}, {what}", short(b), short(a)))
        })
        .collect();
    let caption = format!(
        "{} and {} — rank correlation {} in the data, {} in samples; mutual information {} nats",
        name(a),
        name(b),
        escape(&correlations[0]),
        escape(&correlations[1]),
        number(information, 2)
    );
    figure(&caption, &format!("<div class=\"two\">{}</div>", panels.concat()))
}

/// Counts points in hexagons, and shades these by the square root of their counts.
fn hexagons(panel: &mut Panel, class: &str, points: &[[f64; 2]]) {
    let [width, height] = panel.inner();
    let side = width / ACROSS / 3_f64.sqrt();
    let (dx, dy) = (side * 3_f64.sqrt(), side * 1.5);
    let mut counts: BTreeMap<(i32, i32), usize> = BTreeMap::new();
    for [x, y] in points {
        let at = [panel.across(*x), panel.down(*y)];
        if !(0.0..=width).contains(&at[0]) || !(0.0..=height).contains(&at[1]) {
            continue;
        }
        *counts.entry(nearest(at, dx, dy)).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(1) as f64;
    let mut shades = vec![String::new(); SHADES];
    for ((row, column), n) in counts {
        let shade = ((n as f64 / most).sqrt() * SHADES as f64).ceil().clamp(1.0, SHADES as f64) as usize - 1;
        let [x, y] = centre(row, column, dx, dy);
        let (half, rise) = (px(dx / 2.0), px(side / 2.0));
        let (down, up) = (px(side), px(-side));
        let _ = write!(
            shades[shade],
            "M{} {}l{half} {rise}v{down}l-{half} {rise}l-{half} -{rise}v{up}z",
            px(x),
            px(y - side)
        );
    }
    for (i, d) in shades.iter().enumerate() {
        panel.path(&format!("{class} o{}", i + 1), d);
    }
}

fn centre(row: i32, column: i32, dx: f64, dy: f64) -> [f64; 2] {
    let shift = if row.rem_euclid(2) == 1 { 0.5 } else { 0.0 };
    [(f64::from(column) + shift) * dx, f64::from(row) * dy]
}

/// The hexagon whose centre is nearest: one of two rows of centres.
fn nearest([x, y]: [f64; 2], dx: f64, dy: f64) -> (i32, i32) {
    let rows = [(y / dy).floor() as i32, (y / dy).floor() as i32 + 1];
    let candidates = rows.map(|row| {
        let shift = if row.rem_euclid(2) == 1 { 0.5 } else { 0.0 };
        (row, (x / dx - shift).round() as i32)
    });
    let away = |(row, column): (i32, i32)| {
        let [a, b] = centre(row, column, dx, dy);
        (a - x).powi(2) + (b - y).powi(2)
    };
    if away(candidates[0]) <= away(candidates[1]) { candidates[0] } else { candidates[1] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_dependent_columns_come_first() {
        let x: Vec<f64> = (0..1000).map(f64::from).collect();
        let noise: Vec<f64> = (0..1000).map(|i| f64::from(i * 7919 % 1000)).collect();
        let bent: Vec<f64> = x.iter().map(|v| (v - 500.0).abs()).collect();
        let pairs = most_dependent(&[noise, x, bent]);
        assert_eq!(pairs[0].columns, [1, 2]);
        assert!(pairs[0].information > 1.0 && pairs[1].information < 0.1, "{pairs:?}");
        assert!(most_dependent(&[vec![1.0, 2.0]]).is_empty());
    }

    #[test]
    fn copies_of_a_column_do_not_fill_the_page() {
        let x: Vec<f64> = (0..200).map(f64::from).collect();
        let pairs = most_dependent(&vec![x; 20]);
        assert_eq!(pairs.len(), SHOWN);
        for j in 0..20 {
            assert!(pairs.iter().filter(|pair| pair.columns.contains(&j)).count() <= EACH);
        }
    }

    #[test]
    fn a_point_is_in_the_hexagon_around_it() {
        let (dx, dy) = (3_f64.sqrt(), 1.5);
        for i in 0..500 {
            let point = [f64::from(i * 37 % 101) / 7.0, f64::from(i * 53 % 97) / 7.0];
            let (row, column) = nearest(point, dx, dy);
            let [x, y] = centre(row, column, dx, dy);
            // the corners are one side away
            assert!((x - point[0]).hypot(y - point[1]) <= 1.0 + 1e-9, "{point:?}");
        }
    }
}
