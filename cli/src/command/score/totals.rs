//! What is told of all scores together, found at once or piece by piece.
//!
//! Pieces are merged in their order: counts add up, and of finite scores (n, μ, s) and (m, ν, t) with δ = ν − μ the mean is
//! μ + δ m/(n + m) and the mean square deviation s² n/(n + m) + t² m/(n + m) + δ² nm/(n + m)² (Chan, Golub and LeVeque 1983).

use resflow::flow::LogProb;
use resflow::invert::Status;

use crate::data::weight::effective_count;
use crate::evaluate;

/// The rows without a finite log p that are named.
const SHOWN: usize = 5;

/// What is told of all scores together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Totals {
    pub(super) rows: usize,
    /// The mean log p and its standard error, nats.
    pub(super) mean: f64,
    pub(super) error: f64,
    /// The mean standard error of a row, nats.
    pub(super) each: f64,
    /// The rows whose standard error is above what was asked for.
    pub(super) above: usize,
    /// The rows without a finite log p, and the first of them.
    pub(super) lost: usize,
    pub(super) first_lost: Vec<usize>,
    /// The mean of the others.
    pub(super) finite: Option<f64>,
    pub(super) outside: usize,
    /// The largest error that solves leave in a row's log p, nats.
    pub(super) solve_error: f64,
    /// Evaluations of g or f for the row with the most.
    pub(super) evaluations: u32,
    /// A bound on the bias of a row's log p, nats.
    pub(super) bias: f64,
    /// The rows of which a solve did not converge.
    pub(super) unsolved: usize,
    pub(super) replicates: usize,
    pub(super) estimator: String,
    /// The number of rows of equal weight, where rows have weights.
    pub(super) effective: Option<f64>,
}

impl Totals {
    /// Those of all rows at once; `is_large` tells a standard error that is above what was asked for.
    pub(super) fn of(scores: &LogProb, is_large: impl Fn(f64) -> bool) -> Self {
        let with = |status: Status| scores.status.iter().filter(|own| **own == status).count();
        let lost: Vec<usize> = evaluate::non_finite(scores).collect();
        Self {
            rows: scores.values.len(),
            mean: scores.mean(),
            error: scores.mean_standard_error(),
            each: mean_of_finite(&scores.standard_error, scores.weights.as_deref()).unwrap_or(0.0),
            above: scores.standard_error.iter().filter(|e| is_large(**e)).count(),
            lost: lost.len(),
            first_lost: lost.into_iter().take(SHOWN).collect(),
            finite: mean_of_finite(&scores.values, scores.weights.as_deref()),
            outside: with(Status::OutOfSupport),
            solve_error: scores.solve_error.iter().copied().fold(0.0, f64::max),
            evaluations: scores.most_evaluations,
            bias: scores.bias_bound,
            unsolved: with(Status::NotConverged),
            replicates: scores.replicates,
            estimator: scores.estimator.clone(),
            effective: scores.weights.as_deref().map(effective_count),
        }
    }
}

/// The mean over the rows whose value is finite, by their weights if they have any; none of no rows.
fn mean_of_finite(values: &[f64], weights: Option<&[f64]>) -> Option<f64> {
    let heaviest = weights.map_or(1.0, |weights| weights.iter().copied().fold(0.0, f64::max));
    let weight = |i: usize| weights.map_or(1.0, |weights| weights[i] / heaviest);
    let finite = values.iter().enumerate().filter(|(_, v)| v.is_finite());
    let (sum, total) = finite.fold((0.0, 0.0), |(sum, total), (i, v)| (sum + weight(i) * v, total + weight(i)));
    (total > 0.0).then(|| sum / total)
}

/// Numbers of which count, mean and root mean square deviation are known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Moments {
    count: f64,
    mean: f64,
    deviation: f64,
}

impl Moments {
    fn of(values: &[f64]) -> Self {
        let finite = || values.iter().copied().filter(|v| v.is_finite());
        let count = finite().count() as f64;
        let mean = finite().sum::<f64>() / count.max(1.0);
        let deviation = (finite().map(|v| (v - mean).powi(2)).sum::<f64>() / count.max(1.0)).sqrt();
        Self { count, mean, deviation }
    }

    fn and(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let (before, own, difference) = (self.count / count, other.count / count, other.mean - self.mean);
        let within = (self.deviation * before.sqrt()).hypot(other.deviation * own.sqrt());
        Self { count, mean: self.mean + difference * own, deviation: within.hypot(difference * (before * own).sqrt()) }
    }
}

/// The same of pieces of rows, which have no weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Tally {
    rows: usize,
    values: Moments,
    errors: Moments,
    above: usize,
    lost: usize,
    first_lost: Vec<usize>,
    outside: usize,
    solve_error: f64,
    evaluations: u32,
    bias: f64,
    unsolved: usize,
    replicates: usize,
    estimator: String,
}

impl Tally {
    /// That of a piece whose first row has this number.
    pub(super) fn of(scores: &LogProb, first: usize, is_large: impl Fn(f64) -> bool) -> Self {
        let all = Totals::of(scores, is_large);
        Self {
            rows: all.rows,
            values: Moments::of(&scores.values),
            errors: Moments::of(&scores.standard_error),
            above: all.above,
            lost: all.lost,
            first_lost: all.first_lost.iter().map(|row| row + first).collect(),
            outside: all.outside,
            solve_error: all.solve_error,
            evaluations: all.evaluations,
            bias: all.bias,
            unsolved: all.unsolved,
            replicates: all.replicates,
            estimator: all.estimator,
        }
    }

    /// Adds the next piece.
    pub(super) fn add(&mut self, next: Self) {
        let mut first_lost = std::mem::take(&mut self.first_lost);
        first_lost.extend(next.first_lost);
        first_lost.truncate(SHOWN);
        *self = Self {
            rows: self.rows + next.rows,
            values: self.values.and(next.values),
            errors: self.errors.and(next.errors),
            above: self.above + next.above,
            lost: self.lost + next.lost,
            first_lost,
            outside: self.outside + next.outside,
            solve_error: self.solve_error.max(next.solve_error),
            evaluations: self.evaluations.max(next.evaluations),
            bias: self.bias.max(next.bias),
            unsolved: self.unsolved + next.unsolved,
            replicates: self.replicates.max(next.replicates),
            estimator: next.estimator,
        };
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The mean of the finite scores so far, nats.
    pub(super) fn mean(&self) -> f64 {
        self.values.mean
    }

    pub(super) fn totals(self) -> Totals {
        let Moments { count, mean, deviation } = self.values;
        let (mean, error) = match (self.lost, self.rows) {
            (0, 1) => (mean, self.errors.mean),
            (0, _) => (mean, deviation / (count - 1.0).sqrt()),
            _ => (f64::NEG_INFINITY, f64::NAN),
        };
        Totals {
            rows: self.rows,
            mean,
            error,
            each: self.errors.mean,
            above: self.above,
            lost: self.lost,
            first_lost: self.first_lost,
            finite: (count > 0.0).then_some(self.values.mean),
            outside: self.outside,
            solve_error: self.solve_error,
            evaluations: self.evaluations,
            bias: self.bias,
            unsolved: self.unsolved,
            replicates: self.replicates,
            estimator: self.estimator,
            effective: None,
        }
    }

    /// As it goes from a process to another.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Self { values, errors, first_lost, .. } = self;
        let counts = [self.rows, self.above, self.lost, self.outside, self.unsolved, self.replicates, first_lost.len()];
        let numbers = counts.into_iter().chain(first_lost.iter().copied()).map(|count| count as f64);
        let moments = [values, errors].into_iter().flat_map(|m| [m.count, m.mean, m.deviation]);
        let numbers = moments.chain([self.solve_error, f64::from(self.evaluations), self.bias]).chain(numbers);
        numbers.flat_map(f64::to_le_bytes).chain(self.estimator.bytes()).collect()
    }

    /// `None` for bytes that are none.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut number = || {
            let (number, others) = rest.split_first_chunk::<8>()?;
            rest = others;
            Some(f64::from_le_bytes(*number))
        };
        let mut moments = || Some(Moments { count: number()?, mean: number()?, deviation: number()? });
        let (values, errors) = (moments()?, moments()?);
        let (solve_error, evaluations, bias) = (number()?, number()? as u32, number()?);
        let mut count = || number().map(|count| count as usize);
        let (rows, above, lost) = (count()?, count()?, count()?);
        let (outside, unsolved, replicates) = (count()?, count()?, count()?);
        let first_lost = (0..count()?.min(SHOWN)).map(|_| count()).collect::<Option<Vec<_>>>()?;
        let estimator = String::from_utf8(rest.to_vec()).ok()?;
        Some(Self {
            rows,
            values,
            errors,
            above,
            lost,
            first_lost,
            outside,
            solve_error,
            evaluations,
            bias,
            unsolved,
            replicates,
            estimator,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores() -> LogProb {
        let flow = resflow::Flow::new(
            resflow::NdArray::<f64>::new(),
            resflow::config::FlowConfig::new(1),
            resflow::backend::Key::new(1),
        );
        let rows = (0..300).map(|i| f64::from((i * 37) % 101) * 0.07 - 3.0).collect();
        let table = resflow::data::Table::new(None, 1, rows).expect("rows");
        flow.expect("a flow").prepare().log_prob(&table, resflow::backend::Key::new(2)).expect("scores")
    }

    fn piece(all: &LogProb, rows: std::ops::Range<usize>) -> LogProb {
        LogProb {
            values: all.values[rows.clone()].to_vec(),
            standard_error: all.standard_error[rows.clone()].to_vec(),
            log_det: all.log_det[rows.clone()].to_vec(),
            status: all.status[rows.clone()].to_vec(),
            solve_error: all.solve_error[rows].to_vec(),
            ..all.clone()
        }
    }

    #[test]
    fn pieces_tell_what_all_tell() {
        let is_large = |e: f64| e > 0.001;
        let scores = scores();
        let all = Totals::of(&scores, is_large);
        let mut tally = Tally::default();
        for rows in [0..100, 100..101, 101..300] {
            let own = Tally::of(&piece(&scores, rows.clone()), rows.start, is_large);
            assert_eq!(Tally::from_bytes(&own.to_bytes()).as_ref(), Some(&own));
            tally.add(own);
        }
        let found = tally.totals();
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs();
        assert!(near(found.mean, all.mean) && near(found.error, all.error) && near(found.each, all.each));
        let rounded = Totals { mean: all.mean, error: all.error, each: all.each, finite: all.finite, ..found };
        assert_eq!(rounded, all);
        let mut lost = piece(&scores, 0..100);
        (lost.values[7], lost.status[7]) = (f64::NEG_INFINITY, Status::OutOfSupport);
        let mut tally = Tally::of(&lost, 0, is_large);
        tally.add(Tally::of(&lost, 100, is_large));
        let found = tally.totals();
        assert_eq!((found.lost, found.outside, &found.first_lost[..]), (2, 2, &[7, 107][..]));
        assert_eq!((found.mean, found.finite), (f64::NEG_INFINITY, Totals::of(&lost, is_large).finite));
        assert_eq!(Tally::from_bytes(&[1, 2, 3]), None);
        // of one row nothing is known of what solves leave: it is said, on the way back from another process too
        lost.solve_error = vec![1e-7; 100];
        lost.solve_error[3] = f64::INFINITY;
        let tally = Tally::from_bytes(&Tally::of(&lost, 0, is_large).to_bytes()).expect("its own bytes");
        let line = super::super::line_of_solves(&tally.totals(), "row");
        assert!(line.contains("an error that is not known"), "{line}");
        lost.solve_error[3] = 2e-3;
        let line = super::super::line_of_solves(&Totals::of(&lost, is_large), "row");
        assert!(line.contains("up to 2.0e-3 nats"), "{line}");
    }
}
