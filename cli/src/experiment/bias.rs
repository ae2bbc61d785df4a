//! The bias of log-det estimators: the mean of (estimate − exact log p) over points, with its confidence interval.
//!
//! Behrmann et al. 2019 (arXiv 1811.00995) truncate the series, which is biased; Chen et al. 2019 (arXiv 1906.02735, eq. 6)
//! reweigh a random number of terms, which is not. Points and weights are fixed; each of R repeats has a key of its own and
//! gives one mean over the points, so that the interval over the R means holds whatever the points share.

use anyhow::Result;
use resflow::backend::{Backend, Key};
use resflow::estimator::{Estimator, Exact};
use resflow::with_device;
use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::chart::{Chart, Point, Scale, Series, draw};
use super::estimate::Estimate;
use super::grid::{Case, title};
use super::laboratory::Laboratory;
use super::report::{Report, Table};
use super::section::Grid;
use super::training::{Spent, points};
use crate::model::Stored;
use crate::picture::canvas::grid;

/// Replicates of a row in one evaluation, the least that has an error.
const REPLICATES: usize = 2;

/// What a cell found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bias {
    /// The expected number of terms.
    terms: f64,
    /// Estimated minus exact log p, nats, over repeats.
    difference: Estimate,
    interval: [f64; 2],
    /// The largest possible bias of a truncated series.
    bound: Option<f64>,
    /// The mean of the exact log p over the points, and its standard error.
    exact: [f64; 2],
    trained_steps: u64,
    trained_seconds: f64,
}

pub(super) fn run(laboratory: &Laboratory, section: &Grid) -> Result<()> {
    let cases = section.cases(laboratory)?;
    let cells = section.cells(laboratory, "bias", &cases, |case, stored, spent| {
        with_device!(laboratory.arithmetic.open(stored.precision)?, |backend| {
            measure(laboratory, section, case, stored, spent, backend)
        })
    })?;
    report(laboratory, section, &cases, &cells)
}

fn measure<B: Backend>(
    laboratory: &Laboratory,
    section: &Grid,
    case: &Case<'_>,
    stored: &Stored,
    spent: &Spent,
    backend: B,
) -> Result<Bias> {
    let mut flow = stored.flow(backend)?;
    let seed = laboratory.file.seed;
    let points = points(&case.training.settings, case.training.data, seed, section.points)?;
    flow.set_log_prob_estimator(Estimator::Exact(Exact), REPLICATES)?;
    // each cell has probes of its own: a deviation that all of them shared would look like a bias
    let key = Key::new(seed).named("bias").named(&case.name());
    let exact = flow.log_prob(points.samples(), key)?;
    flow.set_log_prob_estimator(case.estimator.clone(), REPLICATES)?;
    let flow = flow.prepare().without_solve_errors();
    let mut means = Vec::with_capacity(section.repeats);
    for repeat in 0..section.repeats as u64 {
        let estimated = flow.log_prob(points.samples(), key.split(repeat))?;
        means.push(estimated.mean() - exact.mean());
    }
    let difference = Estimate::of(&means);
    let model = &case.training.settings.model;
    let bound = match &case.estimator {
        Estimator::Truncated(truncated) => {
            Some(model.blocks() as f64 * truncated.bias_bound(model.dimension(), case.bound))
        }
        _ => None,
    };
    Ok(Bias {
        terms: case.terms(),
        difference,
        interval: difference.interval()?,
        bound,
        exact: [exact.mean(), exact.mean_standard_error()],
        trained_steps: spent.steps,
        trained_seconds: spent.seconds,
    })
}

/// Whether the estimator is of the kind that has no bias.
fn unbiased(case: &Case<'_>) -> bool {
    !matches!(case.estimator, Estimator::Truncated(_))
}

fn report(laboratory: &Laboratory, section: &Grid, cases: &[Case<'_>], cells: &[Cell<Bias>]) -> Result<()> {
    let columns =
        ["width", "c", "estimator", "terms", "bias, nats", "95 % interval", "bound on the bias", "exact log p"];
    let mut table = Table::new(&columns);
    let (mut random, mut outside, mut truncated, mut above) = (0, 0, 0, 0);
    for (case, cell) in cases.iter().zip(cells) {
        let begin = [case.width.map_or(String::new(), |w| w.to_string()), case.bound.to_string(), case.text.to_owned()];
        let Some(found) = cell.result() else {
            let terms = format!("{:.1}", case.terms());
            table.row(begin.into_iter().chain([terms, "diverged".into(), String::new(), String::new(), String::new()]));
            continue;
        };
        let [low, high] = found.interval;
        let misses = u32::from(low > 0.0 || high < 0.0);
        if unbiased(case) {
            random += 1;
            outside += misses;
        } else {
            truncated += 1;
            above += u32::from(low > 0.0);
        }
        table.row(begin.into_iter().chain([
            format!("{:.1}", found.terms),
            format!("{:+.2e}", found.difference.mean),
            format!("{low:+.2e} … {high:+.2e}"),
            found.bound.map_or(String::new(), |b| format!("{b:.2e}")),
            format!("{:.4} ± {:.4}", found.exact[0], found.exact[1]),
        ]));
    }
    let findings = vec![
        format!("the intervals of {outside} of {random} unbiased estimators leave 0 out; 1 in 20 would by chance"),
        format!("the intervals of {above} of {truncated} truncated series lie above 0"),
    ];
    let scale = Scale::Symmetric { threshold: 0.01 };
    let charts: Vec<_> = (section.widths().into_iter())
        .flat_map(|width| section.bounds.iter().map(move |&bound| (bound, width)))
        .map(|(bound, width)| {
            let series = |name: &str, wanted: bool| {
                let own = cases.iter().zip(cells).filter(|(c, _)| (c.bound, c.width) == (bound, width));
                let mut points: Vec<_> = own
                    .filter(|(case, _)| unbiased(case) == wanted)
                    .filter_map(|(_, cell)| cell.result())
                    .map(|b| Point { x: b.terms, y: b.difference.mean, interval: b.interval })
                    .collect();
                points.sort_by(|a, b| a.x.total_cmp(&b.x));
                Series { name: name.to_owned(), points }
            };
            Chart {
                title: format!("bias, nats: {}", title(bound, width)),
                x_axis: "expected terms".into(),
                scale,
                series: vec![series("truncated", false), series("roulette", true)],
                joined: true,
                shown: None,
            }
        })
        .collect();
    let picture = grid(&draw(&charts), section.bounds.len());
    let about = format!(
        "Estimated minus exact log p on {} points of {}, over {} repeats; `terms` are those that are expected.",
        section.points, laboratory.file.data[0], section.repeats
    );
    let pictures = vec![("bias.png".to_owned(), picture)];
    Report { cells, about, tables: vec![(String::new(), table)], findings, pictures }.write(laboratory)
}
