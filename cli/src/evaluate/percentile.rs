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
    pub(crate) summary: Summary,
}

/// What is told of all percentiles together.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    /// The rows that have a percentile, and the median of these.
    rows: usize,
    median: Option<f64>,
    training_rows: usize,
    flagged: Option<Flagged>,
}

/// The rows below a fraction of the training rows.
#[derive(Debug, Clone)]
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
        let (Some(ReferenceScores { training, .. }), Some(summary)) =
            (reference, Summary::of_none(reference, contamination)?)
        else {
            return Ok(None);
        };
        let percentile = |(i, s): (usize, &f64)| if whole(i) { training.percentile(*s) } else { f64::NAN };
        let values: Vec<f64> = scores.values.iter().enumerate().map(percentile).collect();
        let flagged = summary.flagged.map(|flagged| Flagged {
            count: values.iter().filter(|p| below(**p, flagged.contamination)).count(),
            ..flagged
        });
        let rows = values.iter().filter(|p| !p.is_nan()).count();
        let summary = Summary { rows, median: median(&values), flagged, ..summary };
        Ok(Some(Self { values, summary }))
    }

    /// Whether each row is an outlier, if that was asked.
    pub(crate) fn outliers(&self) -> Option<impl Iterator<Item = bool>> {
        let contamination = self.summary.flagged.as_ref()?.contamination;
        Some(self.values.iter().map(move |p| below(*p, contamination)))
    }
}

fn median(percentiles: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = percentiles.iter().copied().filter(|p| !p.is_nan()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some(f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]))
}

impl Summary {
    /// That of no rows.
    fn of_none(reference: Option<&ReferenceScores>, contamination: Option<f64>) -> Result<Option<Self>> {
        let Some(ReferenceScores { training, validation }) = reference else {
            return match contamination {
                None => Ok(None),
                Some(fraction) => Err(usage(format_args!(
                    "--contamination {fraction}: the model does not know the scores of its training rows; `resflow fit` \
                     stores them at the end of a fit of a table, and `resflow fit … --resume` adds them to a run that is done"
                ))),
            };
        };
        let flagged = contamination.map(|contamination| {
            let threshold = training.quantile(contamination);
            let held_out = validation.as_ref().map(|v| v.percentile(threshold));
            Flagged { contamination, threshold, count: 0, held_out }
        });
        Ok(Some(Self { rows: 0, median: None, training_rows: training.rows(), flagged }))
    }

    /// Adds what is known to an object.
    pub(crate) fn add(&self, object: &mut serde_json::Value) {
        object["training_rows"] = self.training_rows.into();
        object["median_percentile"] = self.median.into();
        if let Some(Flagged { contamination, threshold, count, held_out }) = self.flagged {
            object["contamination"] = contamination.into();
            object["threshold"] = threshold.into();
            object["outlier_count"] = count.into();
            object["outlier_fraction"] = (count as f64 / self.rows as f64).into();
            object["outlier_fraction_held_out"] = held_out.map(|h| h / 100.0).into();
        }
    }

    /// The same in words, a line each.
    pub(crate) fn lines(&self) -> String {
        let Some(median) = self.median else { return String::new() };
        let mut out = format!("percentile  median {median:.1} among {} training rows\n", self.training_rows);
        if let Some(Flagged { contamination, threshold, count, held_out }) = self.flagged {
            let rows = self.rows;
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

/// Percentiles of pieces of rows, counted in hundredths of a percent.
#[derive(Debug, Clone)]
pub(crate) struct Counted {
    counts: Vec<u64>,
    /// That of one piece, for what all have in common.
    piece: Summary,
    flagged: usize,
}

/// Hundredths of a percent.
const HUNDREDTHS: usize = 10_000;

impl Counted {
    /// The percentiles of a first piece.
    pub(crate) fn of(piece: &Percentiles) -> Self {
        let mut counts = vec![0; HUNDREDTHS + 1];
        for percentile in piece.values.iter().filter(|p| !p.is_nan()) {
            counts[(100.0 * percentile).round().clamp(0.0, HUNDREDTHS as f64) as usize] += 1;
        }
        let flagged = piece.summary.flagged.as_ref().map_or(0, |flagged| flagged.count);
        Self { counts, piece: piece.summary.clone(), flagged }
    }

    /// The same of no rows, if the model knows how likely its training rows were, as [`Percentiles::of`].
    pub(crate) fn of_none(reference: Option<&ReferenceScores>, contamination: Option<f64>) -> Result<Option<Self>> {
        let none = Summary::of_none(reference, contamination)?;
        Ok(none.map(|piece| Self { counts: vec![0; HUNDREDTHS + 1], piece, flagged: 0 }))
    }

    /// The counts, those of the flagged rows last, as they go from a process to another.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.counts.iter().chain([&(self.flagged as u64)]).flat_map(|count| count.to_le_bytes()).collect()
    }

    /// Adds what another process counted in the next piece.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let counts = bytes.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
        let mut counts = counts.collect::<Vec<_>>();
        self.flagged += counts.pop().unwrap_or(0) as usize;
        self.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }

    /// The summary of all pieces; the median to a hundredth of a percent.
    pub(crate) fn summary(self) -> Summary {
        let rows: u64 = self.counts.iter().sum();
        let mut below = 0;
        let median = self.counts.iter().position(|count| {
            below += count;
            2 * below >= rows
        });
        let flagged = self.piece.flagged.map(|flagged| Flagged { count: self.flagged, ..flagged });
        let median = median.filter(|_| rows > 0).map(|hundredths| hundredths as f64 / 100.0);
        Summary { rows: rows as usize, median, flagged, ..self.piece }
    }
}

fn below(percentile: f64, contamination: f64) -> bool {
    percentile < 100.0 * contamination
}
