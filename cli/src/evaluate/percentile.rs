//! Where scores stand among those of the rows that a model was trained on.

use std::fmt::Write as _;

use anyhow::Result;
use resflow::flow::{LogProb, ReferenceScores};

use crate::failure::usage;

/// Percentiles of scored rows, and which of them are outliers.
#[derive(Debug)]
pub(crate) struct Percentiles {
    /// The share of training rows less likely than each row, in percent; NaN of rows that lack values, since log p of some columns is not to
    /// be held against that of all.
    pub(crate) values: Vec<f64>,
    training_rows: usize,
    flagged: Option<Flagged>,
}

/// The rows below a fraction of the training rows.
#[derive(Debug)]
struct Flagged {
    contamination: f64,
    /// The log p that rows are flagged below, nats.
    threshold: f64,
    count: usize,
    /// The share of the fit's held-out rows that lie below it.
    held_out: Option<f64>,
}

impl Percentiles {
    /// Those of some scores; none of a model that does not know how likely its training rows were, which is an error if
    /// rows are to be flagged. `whole` says which rows lack nothing.
    pub(crate) fn of(
        scores: &LogProb,
        whole: impl Fn(usize) -> bool,
        reference: Option<&ReferenceScores>,
        contamination: Option<f64>,
    ) -> Result<Option<Self>> {
        let Some(ReferenceScores { training, validation }) = reference else {
            return match contamination {
                None => Ok(None),
                Some(fraction) => Err(usage(format_args!(
                    "--contamination {fraction}: the model does not know the scores of its training rows; `resflow fit` \
                     stores them at the end of a fit of a table, and `resflow fit … --resume` adds them to a run that is done"
                ))),
            };
        };
        let percentile = |(i, s): (usize, &f64)| if whole(i) { training.percentile(*s) } else { f64::NAN };
        let values: Vec<f64> = scores.values.iter().enumerate().map(percentile).collect();
        let flagged = contamination.map(|contamination| {
            let threshold = training.quantile(contamination);
            Flagged {
                contamination,
                threshold,
                count: values.iter().filter(|p| below(**p, contamination)).count(),
                held_out: validation.as_ref().map(|v| v.percentile(threshold)),
            }
        });
        Ok(Some(Self { values, training_rows: training.rows(), flagged }))
    }

    /// Whether each row is an outlier, if that was asked.
    pub(crate) fn outliers(&self) -> Option<impl Iterator<Item = bool>> {
        let contamination = self.flagged.as_ref()?.contamination;
        Some(self.values.iter().map(move |p| below(*p, contamination)))
    }

    /// The rows that have a percentile.
    fn rows(&self) -> usize {
        self.values.iter().filter(|p| !p.is_nan()).count()
    }

    fn median(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.values.iter().copied().filter(|p| !p.is_nan()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        Some(f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]))
    }

    /// Adds what is known to an object.
    pub(crate) fn add(&self, object: &mut serde_json::Value) {
        object["training_rows"] = self.training_rows.into();
        object["median_percentile"] = self.median().into();
        if let Some(Flagged { contamination, threshold, count, held_out }) = self.flagged {
            object["contamination"] = contamination.into();
            object["threshold"] = threshold.into();
            object["outlier_count"] = count.into();
            object["outlier_fraction"] = (count as f64 / self.rows() as f64).into();
            object["outlier_fraction_held_out"] = held_out.map(|h| h / 100.0).into();
        }
    }

    /// The same in words, a line each.
    pub(crate) fn lines(&self) -> String {
        let Some(median) = self.median() else { return String::new() };
        let mut out = format!("percentile  median {median:.1} among {} training rows\n", self.training_rows);
        if let Some(Flagged { contamination, threshold, count, held_out }) = self.flagged {
            let rows = self.rows();
            // writing to a String cannot fail
            let _ = write!(
                out,
                "outliers    {count} of {rows} rows ({:.2} %) have log p below {threshold:.4}, as {} % of the training rows",
                100.0 * count as f64 / rows as f64,
                (1e8 * contamination).round() / 1e6
            );
            if let Some(share) = held_out {
                let _ = write!(out, " and {share:.2} % of those held out");
            }
            out.push('\n');
        }
        out
    }
}

fn below(percentile: f64, contamination: f64) -> bool {
    percentile < 100.0 * contamination
}
