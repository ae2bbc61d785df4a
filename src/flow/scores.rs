//! How likely a fit's own rows were: the distribution of log p that a score is held against.
//!
//! ```text
//! percentile(s) = 100 · #{i : log p(xᵢ) < s} / n          the share of rows less likely than a row that scores s
//! ```
//!
//! Of n ≤ 1001 rows all scores are kept and the percentile is exact. Of more, 1001 order statistics of evenly spaced rank
//! are kept and counts between them are interpolated: the percentile is off by less than 0.1.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The order statistics that are kept, but for the first.
const INTERVALS: usize = 1000;

/// The distribution of log p over some rows.
///
/// ```
/// use resflow::flow::ScoreQuantiles;
/// let scores = ScoreQuantiles::of(&[-3.0, -1.0, -2.0, f64::NEG_INFINITY])?;
/// assert_eq!([scores.percentile(-2.5), scores.percentile(-2.0), scores.percentile(0.0)], [50.0, 50.0, 100.0]);
/// # Ok::<(), resflow::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct ScoreQuantiles {
    rows: usize,
    /// The rows whose log p is −∞; they are less likely than all others.
    lost: usize,
    /// The k-th of K + 1 is the score of rank round(k (m − 1) / K), from 0, among the m that are finite.
    values: Vec<f64>,
}

/// The form in files, which anything can be written into.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    rows: usize,
    #[serde(default, skip_serializing_if = "is_zero")]
    lost: usize,
    values: Vec<f64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl From<ScoreQuantiles> for Stored {
    fn from(ScoreQuantiles { rows, lost, values }: ScoreQuantiles) -> Self {
        Self { rows, lost, values }
    }
}

impl TryFrom<Stored> for ScoreQuantiles {
    type Error = String;

    fn try_from(Stored { rows, lost, values }: Stored) -> Result<Self, String> {
        let finite = rows.checked_sub(lost).filter(|_| rows > 0).ok_or("scores of no rows")?;
        if values.len() != finite.min(INTERVALS + 1) {
            return Err(format!("{} scores are kept of {finite} rows, expected {}", values.len(), INTERVALS + 1));
        }
        if values.iter().any(|v| !v.is_finite()) || values.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err("the scores are not in order".to_owned());
        }
        Ok(Self { rows, lost, values })
    }
}

impl ScoreQuantiles {
    /// Builds the distribution of some rows' log p, nats; −∞ is allowed.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for no scores, and for one that is NaN or +∞.
    pub fn of(log_p: &[f64]) -> Result<Self, Error> {
        if log_p.is_empty() {
            return Err(Error::Input("a distribution of scores needs at least one".into()));
        }
        if let Some(i) = log_p.iter().position(|s| s.is_nan() || *s == f64::INFINITY) {
            return Err(Error::Input(format!("the score of row {} is {}", i + 1, log_p[i])));
        }
        let mut sorted: Vec<f64> = log_p.iter().copied().filter(|s| s.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let finite = sorted.len();
        let kept = finite.min(INTERVALS + 1);
        let values = (0..kept).map(|k| sorted[rank(k, finite)]).collect();
        Ok(Self { rows: log_p.len(), lost: log_p.len() - finite, values })
    }

    /// The number of rows behind the distribution.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the share of the rows that are less likely than one of this log p (nats), in percent: from 0 to 100, and
    /// no smaller for a larger score. Exact for up to 1001 rows, else off by less than 0.1. NaN for NaN.
    pub fn percentile(&self, log_p: f64) -> f64 {
        if log_p.is_nan() {
            return f64::NAN;
        }
        if log_p == f64::NEG_INFINITY {
            return 0.0;
        }
        let finite = self.rows - self.lost;
        let k = self.values.partition_point(|v| *v < log_p);
        // between rank(k - 1) + 1 and rank(k) finite scores are below
        let below = match k {
            0 => 0.0,
            k if k == self.values.len() => finite as f64,
            k => {
                let (low, high) = (rank(k - 1, finite) as f64 + 1.0, rank(k, finite) as f64);
                let width = self.values[k] - self.values[k - 1];
                let t = (log_p - self.values[k - 1]) / width;
                low + (high - low) * if width.is_finite() { t } else { 1.0 }
            }
        };
        100.0 * (self.lost as f64 + below) / self.rows as f64
    }

    /// Returns the log p that a share of the rows, from 0 to 1, is below, nats: the inverse of
    /// [`percentile`](Self::percentile) up to its error. −∞ where that many rows have no finite log p.
    pub fn quantile(&self, share: f64) -> f64 {
        let finite = self.rows - self.lost;
        let below = share.clamp(0.0, 1.0) * self.rows as f64 - self.lost as f64;
        if finite == 0 || below < 0.0 {
            return f64::NEG_INFINITY;
        }
        let last = self.values.len() - 1;
        let k = (0..=last).find(|&k| rank(k, finite) as f64 >= below).unwrap_or(last + 1);
        match k {
            0 => self.values[0],
            k if k > last => self.values[last],
            k => {
                let (low, high) = (rank(k - 1, finite) as f64, rank(k, finite) as f64);
                let t = (below - low) / (high - low);
                let (low, high) = (self.values[k - 1], self.values[k]);
                // between equal scores rounding must not fall below them
                (low * (1.0 - t) + high * t).clamp(low, high)
            }
        }
    }
}

/// The rank of the k-th order statistic that is kept of `n`, both from 0.
fn rank(k: usize, n: usize) -> usize {
    let intervals = (n - 1).min(INTERVALS);
    (k * (n - 1) + intervals / 2).checked_div(intervals).unwrap_or(0)
}

/// log p of the rows that a model was fitted to, and of those that it was validated on.
///
/// The training rows' scores are optimistic: a model that has learnt some of its rows by heart finds them likelier than
/// fresh ones of the same law. By how much, the other distribution shows: `validation.percentile(training.quantile(q))` is
/// the share of fresh rows that fall below a fraction q of the training rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceScores {
    /// Of training rows, at most a few ten thousand drawn by the run's key.
    pub training: ScoreQuantiles,
    /// Of the validation rows, where they were scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ScoreQuantiles>,
}

impl ReferenceScores {
    /// Builds both distributions of log p of training rows and of validation rows, nats. Scores that are +∞ or NaN are left
    /// out; `None` if no training row is left.
    pub fn of(training: &[f64], validation: &[f64]) -> Option<Self> {
        let lawful = |scores: &[f64]| -> Vec<f64> { scores.iter().copied().filter(|s| *s < f64::INFINITY).collect() };
        Some(Self {
            training: ScoreQuantiles::of(&lawful(training)).ok()?,
            validation: ScoreQuantiles::of(&lawful(validation)).ok(),
        })
    }
}
