//! The least likely rows, and the columns that make them so.
//!
//! A column is judged by the density of its value given the row's other columns, p(xⱼ | x₋ⱼ), which is log p of the row as
//! a function of xⱼ alone, up to a constant. What is told of a cell is how many nats log p of the row would gain if this
//! cell alone had its likeliest value,
//!
//! ```text
//! gain_j = max_v log p(v, x₋ⱼ) − log p(x)
//! ```
//!
//! over a grid of values, and the middle 90 % of p(· | x₋ⱼ), by the trapezoidal rule on a second grid where the first found
//! the mass. Both are exact up to their grids: nothing is linearised. A row may be strange without such a cell, if it
//! takes two or more columns to mend it.

use std::time::Instant;

use anyhow::Result;
use resflow::backend::{Backend, Key};
use resflow::data::{Dataset, Table};
use resflow::flow::PreparedFlow;

use super::Evidence;
use super::axis::{count, number};
use super::evidence::{RowScores, log_prob};
use super::excerpt::Excerpt;
use super::page::{name, paragraph, section, table};
use super::statistic::{quantile, share_below, sorted};

/// Rows that are shown.
pub(super) const ROWS: usize = 10;
/// Columns of a row that are looked at, of wide tables those of the steepest log p.
const LOOKED_AT: usize = 64;
/// Cells of a row that are shown.
const CELLS: usize = 3;
/// A gain that is worth a word, nats.
const WORTH: f64 = 1.0;
/// Values of a column that are tried: quantiles of the data and steps away from the row's value.
const QUANTILES: usize = 12;
const STEPS: i32 = 8;
/// A column of at most so many different values is tried at these.
const DISTINCT: usize = 32;
/// Values of the second grid.
const FINE: usize = 48;
/// Beyond so many nats below the best there is no mass.
const NO_MASS: f64 = 16.0;

/// A row and what is strange about it.
#[derive(Debug, Clone)]
pub(crate) struct Strange {
    /// Its place in the excerpt.
    pub(crate) at: usize,
    pub(crate) log_p: f64,
    /// The cells that gain most, if there was time to look.
    pub(crate) cells: Option<Vec<Cell>>,
}

/// A cell that is unlikely beside the others of its row.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    pub(crate) column: usize,
    pub(crate) value: f64,
    /// Nats that log p would gain by its likeliest value.
    pub(crate) gain: f64,
    /// The middle 90 % of the values that the other columns leave, or the likeliest of a few.
    pub(crate) expected: [f64; 2],
}

/// Evaluations of log p for a row of `d` columns, about.
pub(super) fn evaluations(d: usize) -> usize {
    d.min(LOOKED_AT) * (QUANTILES + 2 * STEPS as usize) + CELLS * FINE
}

/// Finds the strangest rows of those that were scored, and explains them one after the other while there is time.
pub(super) fn find<B: Backend>(
    flow: &PreparedFlow<B>,
    excerpt: &Excerpt,
    scores: &RowScores,
    data: &[Vec<f64>],
    until: Option<Instant>,
) -> Result<Vec<Strange>> {
    let mut order: Vec<usize> = (0..scores.excerpt.len()).collect();
    // a row that was drawn twice by its weight is one row
    order.sort_by(|&i, &j| {
        scores.excerpt[i].total_cmp(&scores.excerpt[j]).then(excerpt.numbers[i].cmp(&excerpt.numbers[j]))
    });
    order.dedup_by_key(|i| excerpt.numbers[*i]);
    order.truncate(ROWS);
    let columns: Vec<Vec<f64>> = data.iter().map(|column| sorted(column)).collect();
    let mut rows = Vec::new();
    for at in order {
        let log_p = scores.excerpt[at];
        let time = log_p.is_finite() && until.is_none_or(|until| Instant::now() < until);
        let whole = excerpt.data().select(&[at])?;
        let row = Row { values: excerpt.table.row(at), whole: &whole };
        let cells = if time { Some(explain(flow, row, log_p, &columns)?) } else { None };
        rows.push(Strange { at, log_p, cells });
    }
    Ok(rows)
}

/// A row, alone with its categories and its context.
#[derive(Clone, Copy)]
struct Row<'a> {
    values: &'a [f64],
    whole: &'a Dataset,
}

impl Row<'_> {
    /// Rows, one after the other, with the categories and at the context of this one.
    fn others(&self, values: Vec<f64>) -> Result<Dataset> {
        let d = self.values.len();
        let rows = values.len() / d;
        Ok(self.whole.select(&vec![0; rows])?.with_numbers(Table::new(None, d, values)?)?)
    }
}

/// The cells of a row that gain most.
fn explain<B: Backend>(flow: &PreparedFlow<B>, row: Row<'_>, log_p: f64, columns: &[Vec<f64>]) -> Result<Vec<Cell>> {
    let looked_at = steepest(flow, row, columns)?;
    let tried: Vec<(usize, Vec<f64>)> =
        looked_at.into_iter().map(|j| (j, candidates(row.values[j], &columns[j]))).collect();
    let found = along(flow, row, &tried)?;
    let mut cells: Vec<_> = tried
        .iter()
        .zip(found)
        .map(|((j, values), log_ps)| {
            let best = log_ps.iter().copied().filter(|v| v.is_finite()).fold(log_p, f64::max);
            (best - log_p, *j, values, log_ps)
        })
        .filter(|(gain, ..)| *gain >= WORTH)
        .collect();
    cells.sort_by(|a, b| b.0.total_cmp(&a.0));
    cells.truncate(CELLS);
    let refined: Vec<(usize, Vec<f64>)> = cells
        .iter()
        .map(|(_, j, values, log_ps)| (*j, if few(&columns[*j]) { (*values).clone() } else { refine(values, log_ps) }))
        .collect();
    let found = along(flow, row, &refined)?;
    let explained = cells.iter().zip(refined.iter().zip(&found)).map(|((gain, j, ..), ((_, values), log_ps))| {
        let best = log_ps.iter().copied().filter(|v| v.is_finite()).fold(log_p, f64::max);
        let expected = middle(values, log_ps, few(&columns[*j]));
        Cell { column: *j, value: row.values[*j], gain: gain.max(best - log_p), expected }
    });
    let mut cells: Vec<Cell> = explained.collect();
    cells.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    Ok(cells)
}

/// The columns to look at: all, or those along which log p is steepest, by the scale of their data.
fn steepest<B: Backend>(flow: &PreparedFlow<B>, row: Row<'_>, columns: &[Vec<f64>]) -> Result<Vec<usize>> {
    let d = columns.len();
    if d <= LOOKED_AT {
        return Ok((0..d).collect());
    }
    let (_, gradient) = flow.log_prob_and_gradient(&row.others(row.values.to_vec())?, Key::new(0))?;
    let steepness = |j: usize| (gradient.row(0)[j] * scale(&columns[j])).abs();
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|&i, &j| steepness(j).total_cmp(&steepness(i)));
    order.truncate(LOOKED_AT);
    Ok(order)
}

/// The scale of a column: its middle 68 %, halved, or whatever there is.
fn scale(sorted: &[f64]) -> f64 {
    let between = |q: f64| (quantile(sorted, 1.0 - q) - quantile(sorted, q)) / 2.0;
    [0.16, 0.01, 0.0].map(between).into_iter().find(|s| *s > 0.0 && s.is_finite()).unwrap_or(1.0)
}

/// Whether a column has few different values.
fn few(sorted: &[f64]) -> bool {
    distinct(sorted).len() <= DISTINCT
}

fn distinct(sorted: &[f64]) -> Vec<f64> {
    let mut values: Vec<f64> = Vec::new();
    for &v in sorted {
        if values.last() != Some(&v) {
            values.push(v);
            if values.len() > DISTINCT {
                break;
            }
        }
    }
    values
}

/// Values to try in the place of one, in rising order, the value itself among them.
fn candidates(value: f64, sorted: &[f64]) -> Vec<f64> {
    let mut values = if few(sorted) {
        distinct(sorted)
    } else {
        let scale = scale(sorted);
        let quantiles = (0..QUANTILES).map(|i| quantile(sorted, (i as f64 + 0.5) / QUANTILES as f64));
        let steps = (0..STEPS).map(|k| 0.05 * scale * 2_f64.powi(k)).flat_map(|step| [value - step, value + step]);
        // what no row is near is no candidate, whatever a density says out there
        let (low, high) = (sorted[0].min(value), sorted[sorted.len() - 1].max(value));
        quantiles.chain(steps.filter(|v| (low..=high).contains(v))).collect()
    };
    values.push(value);
    values.retain(|v| v.is_finite());
    values.sort_unstable_by(f64::total_cmp);
    values.dedup();
    values
}

/// Evenly spaced values where the first ones found mass.
fn refine(values: &[f64], log_ps: &[f64]) -> Vec<f64> {
    let best = log_ps.iter().copied().filter(|v| v.is_finite()).fold(f64::NEG_INFINITY, f64::max);
    let there = |i: &usize| log_ps[*i] > best - NO_MASS;
    let (Some(first), Some(last)) = ((0..values.len()).find(there), (0..values.len()).rev().find(there)) else {
        return values.to_vec();
    };
    let (low, high) = (values[first.saturating_sub(1)], values[(last + 1).min(values.len() - 1)]);
    let t = |i: usize| i as f64 / (FINE - 1) as f64;
    (0..FINE).map(|i| low * (1.0 - t(i)) + high * t(i)).collect()
}

/// log p of a row with other values in one of its columns, for some columns.
fn along<B: Backend>(flow: &PreparedFlow<B>, row: Row<'_>, tried: &[(usize, Vec<f64>)]) -> Result<Vec<Vec<f64>>> {
    let mut values = Vec::new();
    for (j, tried) in tried {
        for &v in tried {
            let from = values.len();
            values.extend_from_slice(row.values);
            values[from + j] = v;
        }
    }
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let mut log_ps = log_prob(flow, row.others(values)?.samples(), Key::new(0), None)?.into_iter();
    Ok(tried.iter().map(|(_, tried)| log_ps.by_ref().take(tried.len()).collect()).collect())
}

/// The middle 90 % of a density given on a grid in rising order; of a few values the least range with as much.
fn middle(values: &[f64], log_ps: &[f64], few: bool) -> [f64; 2] {
    let best = log_ps.iter().copied().filter(|v| v.is_finite()).fold(f64::NEG_INFINITY, f64::max);
    let density: Vec<f64> = log_ps.iter().map(|v| if v.is_finite() { (v - best).exp() } else { 0.0 }).collect();
    if few {
        let total: f64 = density.iter().sum();
        let at = |q: f64| {
            let mut sum = 0.0;
            let reached = density.iter().position(|p| {
                sum += p;
                sum >= q * total
            });
            values[reached.unwrap_or(values.len() - 1)]
        };
        return [at(0.05), at(0.95)];
    }
    let masses: Vec<f64> =
        (1..values.len()).map(|i| (values[i] - values[i - 1]) * f64::midpoint(density[i - 1], density[i])).collect();
    let total: f64 = masses.iter().sum();
    let at = |q: f64| {
        let (mut sum, mut last) = (0.0, values[values.len() - 1]);
        for (i, mass) in masses.iter().enumerate() {
            if sum + mass >= q * total && *mass > 0.0 {
                last = values[i] + (values[i + 1] - values[i]) * ((q * total - sum) / mass).clamp(0.0, 1.0);
                break;
            }
            sum += mass;
        }
        last
    };
    [at(0.05), at(0.95)]
}

/// The section.
pub(super) fn draw(evidence: &Evidence) -> String {
    let scored = sorted(&evidence.scores.excerpt);
    let rows: Vec<Vec<String>> = evidence.strange.iter().map(|strange| row(evidence, &scored, strange)).collect();
    if rows.is_empty() {
        return String::new();
    }
    let among = match (evidence.excerpt.all, evidence.scores.excerpt.len()) {
        (Some(all), scored) if scored < all => {
            format!(" among {} of {} rows, drawn at random", count(scored), count(all))
        }
        (Some(all), _) => format!(" of all {} rows", count(all)),
        (None, scored) => format!(" of {} points", count(scored)),
    };
    let intro = paragraph(&format!(
        "The least likely rows{among}. The cells named are those that stand out <em>beside the row’s other columns</em>: \
         how many nats log p would gain if that cell alone had its likeliest value, and where 90 % of the values would \
         be that the model expects there. A row without such a cell is strange only as a combination of several columns."
    ));
    let first = if evidence.excerpt.all.is_some() { "row" } else { "point" };
    let header = [first, "log p, nats", "less likely", "part", "cells that make it so"];
    let caption = "Rows are counted from 1, without the header. “Less likely” is the share of the rows shown to the model \
                   that score lower.";
    section("strange", "The strangest rows", &(intro + &table(caption, &header, &rows)))
}

fn row(evidence: &Evidence, scored: &[f64], strange: &Strange) -> Vec<String> {
    let excerpt = &evidence.excerpt;
    let cells = match &strange.cells {
        None if strange.log_p.is_finite() => "not looked at: the time was up".to_owned(),
        None => "outside of a column’s support, or beyond the arithmetic".to_owned(),
        Some(cells) if cells.is_empty() => "no single cell".to_owned(),
        Some(cells) => {
            let items: Vec<String> = cells.iter().map(|cell| item(&evidence.names, cell)).collect();
            format!("<ul>{}</ul>", items.concat())
        }
    };
    let below = share_below(scored, strange.log_p) - 0.5 / scored.len().max(1) as f64;
    vec![
        count(excerpt.numbers[strange.at] + 1),
        number(strange.log_p, 4),
        format!("{} %", number(100.0 * below.max(0.0), 2)),
        if excerpt.held_out[strange.at] { "held out" } else { "training" }.to_owned(),
        cells,
    ]
}

fn item(names: &[String], cell: &Cell) -> String {
    let [low, high] = cell.expected.map(|v| number(v, 4));
    let expected = if low == high { low } else { format!("{low} to {high}") };
    format!(
        "<li>{} = {}, expected {expected} <span class=\"note\">(+{} nats)</span></li>",
        name(&names[cell.column]),
        number(cell.value, 4),
        number(cell.gain, 2)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_normal_density() {
        let values: Vec<f64> = (0..200).map(|i| -6.0 + 0.06 * f64::from(i)).collect();
        let log_ps: Vec<f64> = values.iter().map(|v| 7.0 - v * v / 2.0).collect();
        let [low, high] = middle(&values, &log_ps, false);
        assert!((low + 1.645).abs() < 0.01 && (high - 1.645).abs() < 0.01, "{low} {high}");
        assert_eq!(middle(&[0.0, 1.0, 2.0], &[0.0, -20.0, f64::NEG_INFINITY], true), [0.0, 0.0]);
        let nothing = middle(&[0.0, 1.0], &[f64::NEG_INFINITY; 2], false);
        assert!(nothing.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn candidates_are_values_of_the_data_or_between_them() {
        let sorted: Vec<f64> = (0..1000).map(f64::from).collect();
        let tried = candidates(2000.0, &sorted);
        assert!(tried.windows(2).all(|pair| pair[0] < pair[1]) && tried.contains(&2000.0));
        assert!(tried.iter().all(|v| (0.0..=2000.0).contains(v)));
        let grid: Vec<f64> = (0..100).map(|i| f64::from(i / 20)).collect();
        assert_eq!(candidates(2.0, &grid), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(candidates(0.5, &[0.5; 9]), [0.5]);
    }

    #[test]
    fn the_second_grid_surrounds_the_mass() {
        let values = [0.0, 1.0, 2.0, 3.0, 4.0];
        let fine = refine(&values, &[-99.0, -50.0, 0.0, -60.0, f64::NEG_INFINITY]);
        assert_eq!((fine[0], fine[FINE - 1], fine.len()), (1.0, 3.0, FINE));
    }
}
