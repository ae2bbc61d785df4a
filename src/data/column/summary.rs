//! What a column is like: range, quantiles, frequent values, kind, tails.

use serde::Serialize;

use super::kind::ColumnKind;
use super::sorted::Sorted;
use crate::data::Table;
use crate::data::standardise::moments;
use crate::error::DataError;

/// The probabilities of [`ColumnSummary::quantiles`].
const PROBABILITIES: [f64; 9] = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999];
/// A standard deviation below this part of the largest magnitude is rounding.
const ROUNDING: f64 = 1e-12;
/// The part of a side on which its tail index is estimated.
const TAIL: f64 = 0.02;
/// The least distinct values in it.
const TAIL_VALUES: usize = 10;

/// One of a column's tails.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tail {
    /// (q₉₉.₉ − q₅₀)/(q₇₅ − q₅₀), on the lower side mirrored: 4.6 of a normal, 2 of a uniform, hundreds of a Cauchy;
    /// infinite where the half next to the median is one value.
    pub ratio: f64,
    /// Hill's estimate of the tail index α, P(|x − median| > t) ~ t^{−α}, on the outermost 2 % of the side, at least ten values:
    /// small is heavy. `None` of too few.
    pub index: Option<f64>,
}

/// The statistics of one column. Weights count: weight 2 is the row twice, and a row of weight 0 is not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ColumnSummary {
    /// The rows that count.
    pub count: usize,
    /// The least value.
    pub minimum: f64,
    /// The largest value.
    pub maximum: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation (std); NaN where it is outside the range of double precision, 0 of a constant.
    pub deviation: f64,
    /// The median.
    pub median: f64,
    /// The quantiles at 0.1, 1, 5, 25, 50, 75, 95, 99 and 99.9 %, as (probability, value).
    pub quantiles: [(f64, f64); 9],
    /// The width between the quartiles as that of a normal's standard deviation; between wider quantiles where the
    /// quartiles coincide, and 0 where they all do.
    pub robust_scale: f64,
    /// The number of distinct values.
    pub distinct: usize,
    /// The most frequent value; the least of several.
    pub most_frequent: f64,
    /// Its share of the weight, 0 to 1.
    pub share: f64,
    /// The kind of the values.
    #[serde(flatten)]
    pub kind: ColumnKind,
    /// The lower and the upper tail.
    pub tails: [Tail; 2],
    /// (q₉₅ + q₅ − 2 q₅₀)/(q₉₅ − q₅), −1 to 1: 0 of what is symmetric, 0.45 of an exponential; 0 where they coincide.
    pub skew: f64,
    /// Whether the values differ by no more than rounding: the standard deviation is below 1e−12 of the largest.
    pub rounding: bool,
    /// Whether the column only numbers the rows: neighbours always differ by the same, in the rows' order or sorted.
    pub counter: bool,
    /// Whether a thousandth of the rows rules a standard deviation of more than three times the robust scale.
    pub ruled_by_few: bool,
}

impl ColumnSummary {
    /// Summarises the values of a column, one a row, in the rows' order.
    ///
    /// # Errors
    /// Returns [`DataError::TooFewRows`] if no row counts, [`DataError::Belongings`] for weights in another number.
    pub fn of(values: &[f64], weights: Option<&[f64]>) -> Result<Self, DataError> {
        check(values.len(), weights)?;
        if let Some(all) = weights.filter(|weights| weights.iter().any(|w| *w <= 0.0)) {
            let there = values.iter().zip(all).filter(|(_, w)| **w > 0.0);
            let (values, weights): (Vec<f64>, Vec<f64>) = there.map(|(&v, &w)| (v, w)).unzip();
            return Self::of(&values, Some(&weights));
        }
        let count = values.len();
        if count == 0 {
            return Err(DataError::TooFewRows { rows: 0, needed: 1, purpose: "to summarise a column" });
        }
        let sorted = Sorted::of(values, weights);
        let found = sorted.quantiles(&PROBABILITIES);
        let quantiles = std::array::from_fn(|i| (PROBABILITIES[i], found[i]));
        let q = |i: usize| found[i];
        let constant = sorted.values.len() == 1;
        let (mean, deviation) = if constant {
            (sorted.low(), 0.0)
        } else {
            moments(values, weights, &String::new).unwrap_or((f64::NAN, f64::NAN))
        };
        let (most_frequent, share) = sorted.most_frequent();
        let ratio = |far: f64, near: f64| if far == 0.0 { 0.0 } else { far / near };
        let spread = q(6) - q(2);
        let largest = sorted.low().abs().max(sorted.high().abs());
        let tail = |sign: f64, far: f64, near: f64| Tail {
            ratio: ratio((far - q(4)).abs(), (near - q(4)).abs()),
            index: hill(&sorted, q(4), sign),
        };
        Ok(Self {
            count,
            minimum: sorted.low(),
            maximum: sorted.high(),
            mean,
            deviation,
            median: q(4),
            quantiles,
            robust_scale: sorted.robust_scale(),
            distinct: sorted.values.len(),
            most_frequent,
            share,
            kind: ColumnKind::of(&sorted, count),
            tails: [tail(-1.0, q(0), q(3)), tail(1.0, q(8), q(5))],
            skew: if spread > 0.0 { (q(6) - q(4)) / spread + (q(2) - q(4)) / spread } else { 0.0 },
            rounding: !constant && deviation < ROUNDING * largest,
            counter: !constant && (counts(values.iter().copied()) || is_shuffled_counter(&sorted, count)),
            ruled_by_few: !constant && sorted.is_ruled_by_few(mean, deviation),
        })
    }

    /// Summarises each column of a table.
    ///
    /// # Errors
    /// Returns [`DataError::TooFewRows`] or [`DataError::Belongings`] as [`of`](Self::of) does.
    pub fn of_table(table: &Table, weights: Option<&[f64]>) -> Result<Vec<Self>, DataError> {
        check(table.rows(), weights)?;
        (0..table.width()).map(|column| Self::of(&table.column(column), weights)).collect()
    }
}

fn check(samples: usize, weights: Option<&[f64]>) -> Result<(), DataError> {
    match weights {
        Some(weights) if weights.len() != samples => {
            Err(DataError::Belongings { what: "weights", found: weights.len(), samples })
        }
        _ => Ok(()),
    }
}

/// Hill's estimate over the outermost part of a side: 1/α is the mean of ln(|x − median|/t) beyond t.
fn hill(sorted: &Sorted, median: f64, sign: f64) -> Option<f64> {
    let distance = |i: usize| sign * (sorted.values[i] - median);
    let n = sorted.values.len();
    let order = (0..n).map(|i| if sign > 0.0 { n - 1 - i } else { i });
    let (mut weight, mut logs, mut values) = (0.0, 0.0, 0);
    for i in order {
        let own = sorted.weights[i];
        let far = distance(i);
        if far <= 0.0 {
            return None;
        }
        if values >= TAIL_VALUES && weight + own > 0.5 * TAIL * sorted.total {
            // the mean of ln(far/t) is that of ln(far) less ln(t)
            let mean = logs / weight - far.ln();
            return (mean > 0.0).then(|| 1.0 / mean);
        }
        weight += own;
        logs += own * far.ln();
        values += 1;
    }
    None
}

/// Whether at least three values go on by the same difference.
fn counts(mut values: impl Iterator<Item = f64> + Clone) -> bool {
    let all = values.clone();
    let (Some(first), Some(second)) = (values.next(), values.next()) else { return false };
    let step = second - first;
    if step == 0.0 {
        return false;
    }
    let mut number = 0;
    for (i, value) in all.enumerate() {
        let expected = first + step * i as f64;
        if (value - expected).abs() > 1e-9 * step.abs() {
            return false;
        }
        number += 1;
    }
    number > 2
}

/// Whether each of the numbers of a counter comes once.
fn is_shuffled_counter(sorted: &Sorted, count: usize) -> bool {
    sorted.values.len() == count && counts(sorted.values.iter().copied())
}
