//! Training settings against each other: every row is trained on each of the data and scored on what it never saw.
//!
//! The ablations of Chen et al. 2019 (arXiv 1906.02735, table 3 and figure 5) are files of this kind: estimators, activations,
//! families. Rows share the seed and the held-out points, so their differences are those of the settings. With several runs
//! a row has several seeds, and the spread between them says what a difference is worth.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use image::RgbImage;
use resflow::backend::Backend;
use resflow::data::Dataset;
use resflow::with_device;
use serde_json::json;

use super::cell::Cell;
use super::chart::{Chart, Point, Scale, Series, draw};
use super::estimate::Estimate;
use super::hybrid::{self, Columns};
use super::laboratory::{Laboratory, slug};
use super::report::{Report, Table};
use super::score::{OutlierScore, Score};
use super::section::{Comparison, Row};
use super::training::{Spent, Training, held_out};
use crate::data::part::Part;
use crate::data::{Data, first};
use crate::evaluate;
use crate::evaluate::classification::Classified;
use crate::failure::usage;
use crate::model::Stored;
use crate::picture::canvas::{grid, side_by_side};
use crate::picture::image_grid;
use crate::run::metrics::Entry;

/// Real images beside samples: so many along a side.
const SIDE: usize = 10;

/// A row on some data: a training for each run.
struct Line<'a> {
    data: &'a str,
    row: &'a Row,
    trainings: Vec<Training<'a>>,
}

impl Comparison {
    /// What a training never saw: the test rows of a table, fresh points of a density, the test images of a data set.
    fn held_out(&self, training: &Training<'_>, seed: u64) -> Result<Option<Dataset>> {
        let Some(test) = self.tests.get(training.data) else {
            return held_out(&training.settings, training.data, seed, self.test_rows);
        };
        let rows = Part { split: None }.of(Data::open(test)?, test, &training.settings.model, None)?;
        first(rows, self.test_rows).map(Some)
    }

    fn lines<'a>(&'a self, laboratory: &'a Laboratory) -> Result<Vec<Line<'a>>> {
        if self.rows.is_empty() || !(1..=1000).contains(&self.runs) || self.test_rows.is_some_and(|n| n < 2) {
            return Err(usage("a comparison needs [[comparison.rows]], 1 to 1000 `runs` and at least 2 `test_rows`"));
        }
        let seconds =
            self.seconds.map(|seconds| Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero()));
        if seconds == Some(None) {
            return Err(usage("`seconds` in [comparison]: expected a number above 0"));
        }
        let time = seconds.flatten();
        for (name, test) in &self.tests {
            let is_table = |name: &str| Ok::<_, anyhow::Error>(Data::open(name)?.table().is_some());
            if !laboratory.file.data.contains(name) || !is_table(name)? {
                return Err(usage(format_args!("`tests` in [comparison]: {name} is no table of `data`")));
            }
            // before anything is trained
            if !is_table(test)? {
                return Err(usage(format_args!("`tests` in [comparison]: {test} is no table")));
            }
        }
        let mut lines = Vec::new();
        let mut names = HashSet::new();
        for data in &laboratory.file.data {
            let dataset = Data::open(data)?;
            for (number, row) in self.rows.iter().enumerate() {
                let context = || format!("row `{}` on {data}", row.name);
                let settings = laboratory.file.settings(&dataset, row).with_context(context)?;
                if number == 0 {
                    hybrid::check_outliers(&self.outliers, &dataset, data, &settings.model)?;
                }
                let name = format!("{}-{}", slug(data), slug(&row.name));
                if row.name.is_empty() || !names.insert(name.clone()) {
                    return Err(usage(format_args!("two rows are named `{}`, or one has no name", row.name)));
                }
                let training = |run: u64| {
                    let name = if self.runs == 1 { name.clone() } else { format!("{name}-{run}") };
                    let seed = laboratory.file.seed.wrapping_add(run);
                    Training { name, data, settings: settings.clone(), seed, time, illustrated: true }
                };
                lines.push(Line { data, row, trainings: (0..self.runs).map(training).collect() });
            }
        }
        Ok(lines)
    }
}

pub(super) fn run(laboratory: &Laboratory, section: &Comparison) -> Result<()> {
    let lines = section.lines(laboratory)?;
    let mut cells = Vec::new();
    for training in lines.iter().flat_map(|line| &line.trainings) {
        let mut specification = json!({
            "kind": "comparison",
            "test_rows": section.test_rows,
            "trained": training.specification(laboratory),
        });
        // without outliers a cell is what it was before there could be any
        if !section.outliers.is_empty() {
            specification["outliers"] = json!(section.outliers);
        }
        if let Some(test) = section.tests.get(training.data) {
            specification["test"] = json!(test);
        }
        cells.push(laboratory.cell(&training.name, specification, || {
            let (stored, spent) = training.run(laboratory)?;
            with_device!(laboratory.arithmetic.open(stored.precision)?, |backend| {
                score(laboratory, section, training, &stored, &spent, backend)
            })
        })?);
    }
    report(laboratory, section, &lines, &cells)
}

fn score<B: Backend>(
    laboratory: &Laboratory,
    section: &Comparison,
    training: &Training<'_>,
    stored: &Stored,
    spent: &Spent,
    backend: B,
) -> Result<Score> {
    let flow = stored.flow(backend)?;
    let model = flow.config();
    let seed = laboratory.file.seed;
    let mut classification = None;
    let mut outliers = Vec::new();
    let (nll, standard_error, points, estimator) = match section.held_out(training, seed)? {
        Some(data) => {
            let (flow, key) = (flow.prepare().without_solve_errors(), evaluate::key(seed));
            let found = evaluate::log_prob(&flow, model, data.samples(), key)?;
            classification = Classified::of(&flow, model, &data, key)?.and_then(|c| c.quality);
            for name in &section.outliers {
                outliers.push(OutlierScore::of(&flow, model, &found, name, seed)?);
            }
            (-found.mean(), found.mean_standard_error(), found.values.len(), found.estimator)
        }
        None => best_validation(&training.entries(laboratory)).context("no validation is in the run's metrics")?,
    };
    anyhow::ensure!(nll.is_finite(), "log p of held-out data is not finite; fewer steps or a lower learning_rate");
    Ok(Score {
        nll,
        standard_error,
        bits_per_dim: model.bits_per_dim(-nll).zip(model.bits_per_dim_error(standard_error)).map(|(b, e)| [b, e]),
        is_bound: model.is_variational(),
        points,
        estimator,
        parameters: flow.parameters(),
        steps: spent.steps,
        trained_seconds: spent.seconds,
        classification,
        outliers,
    })
}

/// The best validation of a run: value, error, and that they are of validation.
fn best_validation(entries: &[Entry]) -> Option<(f64, f64, usize, String)> {
    let found = entries.iter().filter_map(|e| e.val_nll.zip(e.val_se));
    let (nll, error) = found.min_by(|a, b| a.0.total_cmp(&b.0))?;
    Some((nll, error, 0, "best validation".to_owned()))
}

fn report(laboratory: &Laboratory, section: &Comparison, lines: &[Line<'_>], cells: &[Cell<Score>]) -> Result<()> {
    let mut tables = Vec::new();
    let mut pictures = Vec::new();
    let mut all = lines.iter().zip(cells.chunks(section.runs as usize)).peekable();
    for data in &laboratory.file.data {
        let mut own = Vec::new();
        while let Some(next) = all.next_if(|(line, _)| line.data == data) {
            own.push(next);
        }
        let scores = || own.iter().flat_map(|(_, runs)| *runs).filter_map(Cell::result);
        let images = scores().any(|s| s.bits_per_dim.is_some());
        let unit = match (images, scores().any(|s| s.is_bound)) {
            (false, _) => "nats",
            (true, false) => "bits/dim",
            (true, true) => "bits/dim (≤ with learnt noise)",
        };
        let more = Columns::of(scores(), &section.outliers);
        let value = format!("{unit} ± error over points");
        let mut names = vec![String::new(), value, "± error over runs".to_owned()];
        names.extend(more.names());
        names.extend(["parameters", "steps", "training, s"].map(str::to_owned));
        let mut table = Table::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for (line, runs) in &own {
            table.row(row(line, runs, &more));
        }
        tables.push((data.clone(), table));
        let charts = [held_out_scores(data, unit, &own), curves(laboratory, data, &own)];
        // the scales of the two have nothing to do with each other
        let panels: Vec<_> = charts.iter().flat_map(|chart| draw(std::slice::from_ref(chart))).collect();
        pictures.push((format!("{}.png", slug(data)), grid(&panels, 2)));
        let rows = own.iter().map(|(line, runs)| (line.row.name.as_str(), runs.iter().find_map(Cell::result)));
        if let Some(chart) = hybrid::reliability(data, rows) {
            pictures.extend(draw(&[chart]).into_iter().map(|p| (format!("calibration-{}.png", slug(data)), p)));
        }
        if images {
            for (line, _) in &own {
                if let Some(picture) = beside(laboratory, section, line)? {
                    pictures.push((format!("samples-{}-{}.png", slug(data), slug(&line.row.name)), picture));
                }
            }
        }
    }
    let runs = match section.runs {
        1 => "one run of each row".to_owned(),
        runs => format!("{runs} runs of each row with seeds of their own"),
    };
    let more = Columns::of(cells.iter().filter_map(Cell::result), &section.outliers).about();
    let about = format!(
        "−log p of held-out data, less is better; {runs}. The points are the same for all rows: the error over points is \
         common to them, that over runs is what a difference is to be held against.{more}"
    );
    Report { cells, about, tables, findings: Vec::new(), pictures }.write(laboratory)
}

/// The mean over runs with both of its errors, if any ended.
fn mean(runs: &[Cell<Score>]) -> Option<(Estimate, f64)> {
    let shown: Vec<_> = runs.iter().filter_map(Cell::result).map(Score::shown).collect();
    let values: Vec<f64> = shown.iter().map(|s| s[0]).collect();
    let error = shown.iter().map(|s| s[1]).sum::<f64>() / shown.len() as f64;
    (!shown.is_empty()).then(|| (Estimate::of(&values), error))
}

fn row(line: &Line<'_>, runs: &[Cell<Score>], more: &Columns<'_>) -> Vec<String> {
    let name = line.row.name.clone();
    let Some((value, error)) = mean(runs) else { return vec![name, "diverged".into()] };
    let results: Vec<_> = runs.iter().filter_map(Cell::result).collect();
    let seconds = results.iter().map(|s| s.trained_seconds).sum::<f64>() / results.len() as f64;
    let between = if value.count > 1 { format!("{:.4}", value.standard_error) } else { String::new() };
    let lost = runs.len() - results.len();
    let diverged = if lost > 0 { format!(" ({lost} of {} diverged)", runs.len()) } else { String::new() };
    let at_most = evaluate::at_most(results.iter().any(|score| score.is_bound));
    let mut cells = vec![name, format!("{at_most}{:.4} ± {error:.4}{diverged}", value.mean), between];
    cells.extend(more.cells(&results));
    cells.extend([results[0].parameters.to_string(), results[0].steps.to_string(), format!("{seconds:.1}")]);
    cells
}

/// The runs of each row, and the interval of their mean.
fn held_out_scores(data: &str, unit: &str, own: &[(&Line<'_>, &[Cell<Score>])]) -> Chart {
    let series = own.iter().enumerate().map(|(i, (line, runs))| {
        let results: Vec<_> = runs.iter().filter_map(Cell::result).map(Score::shown).collect();
        let points = results.iter().enumerate().map(|(k, &[y, error])| Point {
            x: (i + 1) as f64 + 0.08 * k as f64,
            y,
            interval: [y - 1.96 * error, y + 1.96 * error],
        });
        Series { name: format!("{} {}", i + 1, line.row.name), points: points.collect() }
    });
    Chart {
        title: format!("{data}: held-out {unit}"),
        x_axis: "row".into(),
        scale: Scale::Linear,
        series: series.collect(),
        joined: false,
        shown: None,
    }
}

/// Validation over the steps, of the first run of each row.
fn curves(laboratory: &Laboratory, data: &str, own: &[(&Line<'_>, &[Cell<Score>])]) -> Chart {
    let mut late = [f64::INFINITY, f64::NEG_INFINITY];
    let mut series = Vec::new();
    for (line, _) in own {
        let entries = line.trainings[0].entries(laboratory);
        let last = entries.last().map_or(0, |e| e.step);
        let mut points = Vec::new();
        for entry in &entries {
            let nll = entry.bits.as_ref().map_or(entry.val_nll, |b| b.val_bits_per_dim);
            let Some(y) = nll else { continue };
            points.push(Point { x: entry.step as f64, y, interval: [y, y] });
            if entry.step * 5 >= last {
                late = [late[0].min(y), late[1].max(y)];
            }
        }
        series.push(Series { name: line.row.name.clone(), points });
    }
    let shown = Some(late).filter(|[low, high]| low <= high);
    Chart {
        title: format!("{data}: validation"),
        x_axis: "step".into(),
        scale: Scale::Linear,
        series,
        joined: true,
        shown,
    }
}

/// Test images and, to their right, samples of the first run.
fn beside(laboratory: &Laboratory, section: &Comparison, line: &Line<'_>) -> Result<Option<RgbImage>> {
    let training = &line.trainings[0];
    let path = training.directory(laboratory).picture("samples.png");
    let Ok(samples) = image::open(&path) else { return Ok(None) };
    let most = section.test_rows.unwrap_or(usize::MAX).min(SIDE * SIDE);
    let Some(real) = held_out(&training.settings, training.data, laboratory.file.seed, Some(most))? else {
        return Ok(None);
    };
    let (Some(set), Some(config)) = (real.images(), training.settings.model.images()) else {
        return Ok(None);
    };
    let values: Vec<f64> = set.bytes().iter().map(|&b| (f64::from(b) + 0.5) / 256.0).collect();
    let values = image_grid::planes(&values, set.size());
    let real = image_grid::draw(&values, set.size(), config.bits, SIDE)?;
    Ok(Some(side_by_side(&[real, samples.to_rgb8()])))
}
