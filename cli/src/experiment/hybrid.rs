//! What a comparison says beyond log p: how right classifiers are, and how well log p tells outliers.
//!
//! Chen et al. 2019 (arXiv 1906.02735, section 5.4) compare hybrid models by accuracy; calibration is that of Guo et
//! al. 2017 (arXiv 1706.04599).

use anyhow::{Context as _, Result};
use resflow::classifier::CalibrationBin;
use resflow::config::ModelConfig;

use super::chart::{Chart, Point, Scale, Series};
use super::estimate::Estimate;
use super::score::{OutlierScore, Score};
use crate::data::Data;
use crate::evaluate::classification::Quality;
use crate::evaluate::outliers;
use crate::failure::usage;

/// The quantile of 95 % intervals.
const Z: f64 = 1.96;

/// Whether a model of some data can be held against all outliers.
pub(super) fn check_outliers(names: &[String], data: &Data, name: &str, model: &ModelConfig) -> Result<()> {
    if data.table().is_some() && !names.is_empty() {
        return Err(usage(format_args!(
            "`outliers`: {name} has no held-out points to tell them from; take a built-in density or images"
        )));
    }
    names.iter().try_for_each(|other| outliers::check(&Data::open(other)?, other, model)).context("outliers")
}

/// The columns of a table that only some comparisons have.
#[derive(Debug)]
pub(super) struct Columns<'a> {
    /// Whether any row has a classifier.
    classes: bool,
    outliers: &'a [String],
}

impl<'a> Columns<'a> {
    pub(super) fn of<'s>(mut scores: impl Iterator<Item = &'s Score>, outliers: &'a [String]) -> Self {
        Self { classes: scores.any(|s| s.classification.is_some()), outliers }
    }

    /// What they mean.
    pub(super) fn about(&self) -> String {
        let mut about = String::new();
        if self.classes {
            about +=
                " Accuracy, cross-entropy and expected calibration error are those of p(y | x) on the same points.";
        }
        if !self.outliers.is_empty() {
            about += " The AUROC is the chance that a point is likelier than an outlier, 1/2 where log p does \
                      not tell them apart.";
        }
        about
    }

    pub(super) fn names(&self) -> Vec<String> {
        let classes = ["accuracy, %", "cross-entropy, nats", "expected calibration error"];
        let classes = classes.iter().filter(|_| self.classes).map(ToString::to_string);
        classes.chain(self.outliers.iter().map(|name| format!("AUROC log p: {name}"))).collect()
    }

    /// The means over the runs of a row.
    pub(super) fn cells(&self, runs: &[&Score]) -> Vec<String> {
        let mut cells = Vec::new();
        if self.classes {
            let of = |value: fn(&Quality) -> f64| {
                runs.iter().filter_map(|run| run.classification.as_ref().map(value)).collect::<Vec<_>>()
            };
            let error = of(|q| 100.0 * q.accuracy_error);
            cells.extend([
                over_runs(&of(|q| 100.0 * q.accuracy), Some(&error), 2),
                over_runs(&of(|q| q.cross_entropy.unwrap_or(f64::NAN)), None, 4),
                over_runs(&of(|q| q.calibration.expected_error), None, 4),
            ]);
        }
        for name in self.outliers {
            let of = |value: fn(&OutlierScore) -> Option<f64>| {
                let own = runs.iter().filter_map(|run| run.outliers.iter().find(|o| o.name == *name));
                own.filter_map(value).collect::<Vec<_>>()
            };
            cells.push(over_runs(&of(|o| o.auroc), Some(&of(|o| o.standard_error)), 4));
        }
        cells
    }
}

/// The mean over runs, with that of their errors over points and, of several runs, the error over runs.
fn over_runs(values: &[f64], errors: Option<&[f64]>, digits: usize) -> String {
    if values.is_empty() {
        return String::new();
    }
    let mean = Estimate::of(values);
    let points = errors.map_or(String::new(), |errors| format!(" ± {:.digits$}", Estimate::of(errors).mean));
    let runs = if mean.count > 1 { format!(" (runs ± {:.digits$})", mean.standard_error) } else { String::new() };
    format!("{:.digits$}{points}{runs}", mean.mean)
}

/// Accuracy against confidence, of the first run of each row that has a classifier; that of a calibrated one is the
/// diagonal.
pub(super) fn reliability<'a>(data: &str, rows: impl Iterator<Item = (&'a str, Option<&'a Score>)>) -> Option<Chart> {
    let mut series: Vec<_> = rows
        .filter_map(|(name, score)| {
            let bins = &score?.classification.as_ref()?.calibration.bins;
            Some(Series { name: name.to_owned(), points: bins.iter().map(point).collect() })
        })
        .collect();
    if series.is_empty() {
        return None;
    }
    let ends = [0.0, 1.0].map(|x| Point { x, y: x, interval: [x, x] });
    series.push(Series { name: "calibrated".to_owned(), points: ends.into() });
    Some(Chart {
        title: format!("{data}: accuracy"),
        x_axis: "confidence".to_owned(),
        scale: Scale::Linear,
        series,
        joined: true,
        shown: Some([0.0, 1.0]),
    })
}

/// An accuracy with Wilson's interval, which has a width even where all rows are right.
fn point(bin: &CalibrationBin) -> Point {
    let (n, a) = (bin.count as f64, bin.accuracy);
    let shrink = 1.0 / (1.0 + Z * Z / n);
    let centre = shrink * (a + Z * Z / (2.0 * n));
    let half = shrink * Z * (a * (1.0 - a) / n + Z * Z / (4.0 * n * n)).sqrt();
    Point { x: bin.confidence, y: a, interval: [centre - half, centre + half] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_accuracy() {
        let [low, high] = point(&CalibrationBin { count: 10, confidence: 0.9, accuracy: 1.0 }).interval;
        // Wilson's interval of 10 of 10
        assert!((low - 0.722_5).abs() < 1e-3 && (high - 1.0).abs() < 1e-12, "{low} {high}");
    }

    #[test]
    fn means_over_runs() {
        assert_eq!(over_runs(&[], None, 2), "");
        assert_eq!(over_runs(&[0.5], Some(&[0.25]), 2), "0.50 ± 0.25");
        assert_eq!(over_runs(&[1.0, 3.0], None, 1), "2.0 (runs ± 1.0)");
    }
}
