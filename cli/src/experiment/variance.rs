//! The variance of the gradient by roulette law and expected number of terms, and what it costs in time.
//!
//! At fixed weights and on a fixed batch, g_r is `Flow::gradient` with the r-th of R keys. Reported are tr Cov(g) =
//! Σ‖g_r − ḡ‖² / (R − 1) over ‖g*‖², g* the exact gradient; ‖ḡ − g*‖ beside √(tr Cov(g) / R), which it equals in the root
//! mean square where there is no bias; and time × variance, the price of a given accuracy (Chen et al. 2019, §3.1; Beatson
//! and Adams 2019).

use std::time::Instant;

use anyhow::Result;
use resflow::Flow;
use resflow::backend::{Backend, Element, Key};
use resflow::data::Table as Rows;
use resflow::estimator::{Estimator, Exact, Law};
use resflow::with_device;
use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::chart::{Chart, Point, Scale, Series, draw};
use super::estimate::Estimate;
use super::grid::{Case, title};
use super::laboratory::Laboratory;
use super::report::{Report, Table};
use super::section::Grid;
use super::training::points;
use crate::failure::usage;
use crate::model::Stored;
use crate::picture::canvas::grid;

/// What a cell found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variance {
    /// The expected number of terms of a block.
    terms: f64,
    /// Vector-Jacobian products over all blocks that were computed, the mean over repeats.
    products: f64,
    /// ‖g_r − ḡ‖² R / (R − 1) over ‖g*‖², whose mean is the relative variance.
    relative: Estimate,
    interval: [f64; 2],
    /// ‖ḡ − g*‖ / ‖g*‖.
    deviation: f64,
    /// What it would be without a bias, in the root mean square.
    expected_deviation: f64,
    /// ‖g*‖.
    exact_norm: f64,
    /// The time of a gradient, the median.
    seconds: f64,
}

pub(super) fn run(laboratory: &Laboratory, section: &Grid) -> Result<()> {
    let cases = section.cases(laboratory)?;
    let cells = section.cells(laboratory, "variance", &cases, |case, stored, _| {
        with_device!(laboratory.arithmetic.open(stored.precision)?, |backend| {
            measure(laboratory, section, case, stored, backend)
        })
    })?;
    report(laboratory, section, &cases, &cells)
}

fn measure<B: Backend>(
    laboratory: &Laboratory,
    section: &Grid,
    case: &Case<'_>,
    stored: &Stored,
    backend: B,
) -> Result<Variance> {
    let mut flow = stored.flow(backend)?;
    let seed = laboratory.file.seed;
    let points = points(&case.training.settings, case.training.data, seed, section.points)?;
    let Some(rows) = points.table() else { return Err(usage("a batch of rows is needed")) };
    let key = Key::new(seed).named("variance").named(&case.name());
    let rows = flow.columns().forward(rows, key.named("dequantise"))?.table;
    flow.set_training_estimator(Estimator::Exact(Exact))?;
    let (exact, _) = gradient(&flow, &rows, key)?;
    flow.set_training_estimator(case.estimator.clone())?;
    let (mut gradients, mut products, mut times) = (Vec::new(), 0, Vec::new());
    for repeat in 0..section.repeats as u64 {
        let start = Instant::now();
        let (one, terms) = gradient(&flow, &rows, key.split(repeat))?;
        times.push(start.elapsed().as_secs_f64());
        products += terms;
        gradients.push(one);
    }
    let count = gradients.len() as f64;
    let mean: Vec<f64> = (0..exact.len()).map(|i| gradients.iter().map(|g| g[i]).sum::<f64>() / count).collect();
    let square = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let norm = exact.iter().map(|g| g * g).sum::<f64>();
    let spread: Vec<f64> = gradients.iter().map(|g| square(g, &mean) * count / (count - 1.0) / norm).collect();
    let relative = Estimate::of(&spread);
    times.sort_by(f64::total_cmp);
    Ok(Variance {
        terms: case.terms(),
        products: products as f64 / count,
        interval: relative.interval()?,
        deviation: (square(&mean, &exact) / norm).sqrt(),
        expected_deviation: (relative.mean / count).sqrt(),
        relative,
        exact_norm: norm.sqrt(),
        seconds: times[times.len() / 2],
    })
}

/// The gradient of the mean of −log p by the flow's training estimator, and the products that it took.
fn gradient<B: Backend>(flow: &Flow<B>, rows: &Rows, key: Key) -> Result<(Vec<f64>, usize)> {
    let backend = flow.backend();
    let x = backend.upload(&rows.to_elements(), [rows.rows(), rows.width()].into());
    let gradient = flow.gradient(&x, None, key)?;
    let values = backend.download(&gradient.flat)?;
    Ok((values.into_iter().map(Element::to_f64).collect(), gradient.terms))
}

/// The line of a plot that an estimator belongs to.
fn line(estimator: &Estimator) -> String {
    match estimator {
        Estimator::RussianRoulette(r) => {
            let law = match r.law {
                Law::ShiftedGeometric { .. } | Law::Geometric { .. } => "geometric",
                Law::Poisson { .. } => "Poisson",
            };
            format!("{law}, {} exact", r.exact_terms)
        }
        Estimator::Truncated(_) => "truncated".to_owned(),
        Estimator::Exact(_) | Estimator::Auto(_) => "exact".to_owned(),
    }
}

fn report(laboratory: &Laboratory, section: &Grid, cases: &[Case<'_>], cells: &[Cell<Variance>]) -> Result<()> {
    let columns = [
        "width",
        "c",
        "estimator",
        "terms",
        "relative variance",
        "95 % interval",
        "deviation from exact (expected)",
        "ms a gradient",
        "ms × variance",
    ];
    let mut table = Table::new(&columns);
    for (case, cell) in cases.iter().zip(cells) {
        let begin = [case.width.map_or(String::new(), |w| w.to_string()), case.bound.to_string(), case.text.to_owned()];
        let rest = match cell.result() {
            None => [String::new(), "diverged".into(), String::new(), String::new(), String::new(), String::new()],
            Some(found) => [
                format!("{:.1}", found.terms),
                format!("{:.2e}", found.relative.mean),
                format!("{:.2e} … {:.2e}", found.interval[0], found.interval[1]),
                format!("{:.1e} ({:.1e})", found.deviation, found.expected_deviation),
                format!("{:.2}", 1e3 * found.seconds),
                format!("{:.2e}", 1e3 * found.seconds * found.relative.mean),
            ],
        };
        table.row(begin.into_iter().chain(rest));
    }
    let mut panels = Vec::new();
    for (what, price) in [("variance", false), ("ms x variance", true)] {
        for width in section.widths() {
            let charts = section.bounds.iter().map(|&bound| {
                let title = format!("{what}: {}", title(bound, width));
                chart(title, cases, cells, price, |case| (case.bound, case.width) == (bound, width))
            });
            panels.extend(draw(&charts.collect::<Vec<_>>()));
        }
    }
    let about = format!(
        "tr Cov of the gradient over the squared norm of the exact one, {} repeats on a batch of {} points of {}; `deviation` \
         is that of the mean gradient from the exact one over its norm, beside what it is expected to be without a bias.",
        section.repeats, section.points, laboratory.file.data[0]
    );
    let pictures = vec![("variance.png".to_owned(), grid(&panels, section.bounds.len()))];
    Report { cells, about, tables: vec![(String::new(), table)], findings: Vec::new(), pictures }.write(laboratory)
}

/// The variance, or its price, over the expected number of terms; a series for each law.
fn chart(
    title: String,
    cases: &[Case<'_>],
    cells: &[Cell<Variance>],
    price: bool,
    shown: impl Fn(&Case<'_>) -> bool,
) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for (case, cell) in cases.iter().zip(cells).filter(|(case, _)| shown(case)) {
        let Some(found) = cell.result() else { continue };
        let factor = if price { 1e3 * found.seconds } else { 1.0 };
        let point = Point {
            x: found.terms,
            y: factor * found.relative.mean,
            interval: found.interval.map(|v| factor * v.max(0.1 * found.relative.mean)),
        };
        let name = line(&case.estimator);
        match series.iter_mut().find(|s| s.name == name) {
            Some(own) => own.points.push(point),
            None => series.push(Series { name, points: vec![point] }),
        }
    }
    for own in &mut series {
        own.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    Chart { title, x_axis: "expected terms".into(), scale: Scale::Logarithmic, series, joined: true, shown: None }
}
