//! log p of what was seen of a row: ln E_q\[p(x_seen, x_missing) N(u) / q(x_missing, u | x_seen)\] by importance weights.
//!
//! Everything is a density of values that are spread over their cells where a column is on a grid: in those units the joint and the
//! imputer, whose maps may differ, meet.

use std::ops::Range;

use resflow_backend::{Backend, Key, Noise};

use super::DRAWS;
use super::imputer::{PreparedImputer, Wanted};
use crate::data::{ColumnMaps, Incomplete, Samples, Table};
use crate::error::{ConfigError, Error};
use crate::estimator::{Estimator, Phase};
use crate::flow::draws::log_mean_exp;
use crate::flow::{ExactLogProb, Flow, LogProb, PreparedFlow};
use crate::invert::Status;

/// Draws that are scored at once.
const AT_ONCE: usize = 8192;
/// ½ ln 2π.
const HALF_LOG_TAU: f64 = 0.918_938_533_204_672_8;

/// log p of what was seen of some rows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SeenLogProb {
    /// log p(x_seen) of each row, nats in the units of the cells that were seen, with its standard error. Of rows that lack nothing it
    /// is log p; of a row of which nothing was seen it is 0.
    pub scores: LogProb,
    /// The effective number of draws behind each estimate, (Σw)²/Σw²; `None` where nothing was drawn, since all of the row was seen, or
    /// nothing. Near 1 a single draw has nearly all the weight, and the standard error is not to be trusted.
    pub effective: Vec<Option<f64>>,
    /// K, the draws behind each estimate.
    pub draws: usize,
}

/// A joint flow with its imputer, ready to score what was seen of rows; it serves any number of threads.
#[derive(Debug)]
pub struct PreparedMarginal<B: Backend> {
    joint: PreparedFlow<B>,
    /// The joint behind the maps of its columns, and these.
    standard: PreparedFlow<B>,
    columns: ColumnMaps,
    imputer: PreparedImputer<B>,
    draws: usize,
}

impl<B: Backend> Flow<B> {
    /// Prepares the flow with its imputer, to score what was seen of rows.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for a flow that has no imputer, and for one whose log dets are estimated: an estimate of log p may not
    /// be exponentiated.
    pub fn prepare_marginal(&self) -> Result<PreparedMarginal<B>, Error> {
        let imputer = self.prepare_imputer()?;
        if !matches!(self.resolved(Phase::Evaluation), Estimator::Exact(_)) {
            return Err(Error::Input(format!(
                "log p of rows with missing cells is a mean of e^(log p), which estimates of log p would bias: the model's are by {}; ask for \
                 exact ones (`Flow::set_log_prob_estimator`, --estimator exact)",
                self.resolved(Phase::Evaluation)
            )));
        }
        let standard = self.prepare().behind_maps();
        Ok(PreparedMarginal { joint: self.prepare(), standard, columns: self.columns().clone(), imputer, draws: DRAWS })
    }
}

/// What is known of the draws of some rows before the joint has scored them.
struct Weighed {
    /// The joint's z, `[rows·K, d]`.
    z: Vec<f64>,
    /// The logarithm of each weight but for the joint's log p(z); −∞ where a draw is outside of a support.
    log_weight: Vec<f64>,
    /// What solves leave in the imputer's part of each, nats.
    solve_error: Vec<f64>,
}

impl<B: Backend> PreparedMarginal<B> {
    /// Sets K, the draws behind each estimate, [`DRAWS`] unless said otherwise.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for less than two, of which there is no standard error, and for more than 1,000,000.
    pub fn with_draws(self, draws: usize) -> Result<Self, ConfigError> {
        if (2..=1_000_000).contains(&draws) {
            return Ok(Self { draws, ..self });
        }
        Err(ConfigError::OutOfRange { name: "draws", value: draws as f64, expected: "2 to 1,000,000" })
    }

    /// The imputer.
    pub fn imputer(&self) -> &PreparedImputer<B> {
        &self.imputer
    }

    /// Computes log p of what was seen of each row, in nats. Rows that lack nothing are scored by the joint alone: to the bit as
    /// [`PreparedFlow::log_prob`] scores them, if no row lacks anything. The estimate of another row is a function of its seen cells and of
    /// the key, wherever it stands.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for rows of another width, and the errors of [`PreparedFlow::log_prob`].
    pub fn log_prob(&self, rows: &Incomplete, key: Key) -> Result<SeenLogProb, Error> {
        let (n, draws) = (rows.len(), self.draws);
        if rows.is_complete() {
            let scores = self.joint.log_prob(rows.data(), key)?;
            return Ok(SeenLogProb { scores, effective: vec![None; n], draws });
        }
        self.imputer.check(rows)?;
        let whole: Vec<usize> = (0..n).filter(|&i| rows.is_seen(i)).collect();
        let mut scores = LogProb {
            values: vec![0.0; n],
            standard_error: vec![0.0; n],
            log_det: vec![f64::NAN; n],
            status: vec![Status::Converged; n],
            solve_error: vec![0.0; n],
            most_evaluations: 0,
            weights: rows.weights().map(<[f64]>::to_vec),
            replicates: draws,
            bias_bound: 0.0,
            estimator: format!(
                "{}; of rows with missing cells, importance weights of {draws} draws",
                self.joint.resolved()
            ),
        };
        if !whole.is_empty() {
            let own = self.joint.log_prob(&rows.data().select(&whole)?, key)?;
            scores.most_evaluations = own.most_evaluations;
            for (k, &i) in whole.iter().enumerate() {
                (scores.values[i], scores.standard_error[i]) = (own.values[k], own.standard_error[k]);
                (scores.log_det[i], scores.status[i]) = (own.log_det[k], own.status[k]);
                scores.solve_error[i] = own.solve_error[k];
            }
        }
        let mut effective = vec![None; n];
        let mut wanted = Vec::new();
        for i in (0..n).filter(|&i| !rows.is_seen(i) && (0..rows.width()).any(|j| rows.sees(i, j))) {
            if let Some(own) = self.imputer.wanted(rows, i, key.named("missing").split(rows.number(i))) {
                wanted.push(own);
            } else {
                (scores.values[i], scores.status[i]) = (f64::NEG_INFINITY, Status::OutOfSupport);
            }
        }
        for wanted in wanted.chunks((AT_ONCE / draws).max(1)) {
            let mut weighed = self.weigh(rows, wanted)?;
            let z = Table::of_computed(self.columns.width(), std::mem::take(&mut weighed.z));
            let joint = ExactLogProb::try_from(self.standard.log_prob(Samples::from(&z), key)?)?;
            let of_draws = joint.scores();
            scores.most_evaluations = scores.most_evaluations.max(of_draws.most_evaluations);
            for (k, own) in wanted.iter().enumerate() {
                let range = k * draws..(k + 1) * draws;
                let i = own.row;
                let summary = Summary::of(&weighed, &joint, range.clone());
                (scores.values[i], scores.standard_error[i]) = (summary.value, summary.error);
                (scores.solve_error[i], effective[i]) = (summary.solve_error, summary.effective);
                let worst =
                    of_draws.status[range].iter().find(|s| matches!(s, Status::NotConverged | Status::FloatFloor));
                scores.status[i] = match worst {
                    _ if !summary.value.is_finite() => Status::NonFinite,
                    Some(worst) => *worst,
                    None => Status::Converged,
                };
            }
        }
        Ok(SeenLogProb { scores, effective, draws })
    }

    /// Draws what is missing of some rows, and takes it to the joint's z.
    fn weigh(&self, rows: &Incomplete, wanted: &[Wanted]) -> Result<Weighed, Error> {
        let (d, draws) = (self.columns.width(), self.draws);
        let (own, others) = (self.columns.maps(), self.imputer.columns().maps());
        let drawn = self.imputer.draw(rows, wanted, draws, true)?;
        let LogProb { values: log_q, solve_error, .. } = drawn.log_prob.expect("asked for").into_scores();
        let mut z = vec![0.0; wanted.len() * draws * d];
        let mut log_weight = vec![f64::NEG_INFINITY; wanted.len() * draws];
        let mut noise = vec![0.5; draws * d];
        for (k, Wanted { row, key, .. }) in wanted.iter().enumerate() {
            if self.columns.has_grids() {
                Noise::Uniform.fill(key.named("cell"), 0, &mut noise);
                // multiples of 2⁻²⁴ from 0: in the middle between two
                for u in &mut noise {
                    *u += 0.5 / 16_777_216.0;
                }
            }
            for draw in 0..draws {
                let at = k * draws + draw;
                let (from, to) = (drawn.z.row(at), &mut z[at * d..(at + 1) * d]);
                let mut sum = -log_q[at];
                for j in 0..d {
                    let x = if rows.sees(*row, j) {
                        sum -= 0.5 * from[j] * from[j] + HALF_LOG_TAU;
                        own[j].spread(rows.row(*row)[j], noise[draw * d + j])
                    } else {
                        let x = others[j].unspread(from[j]);
                        sum -= others[j].evaluate(x).map_or(f64::INFINITY, |point| point.log_slope);
                        x
                    };
                    match own[j].evaluate(x).filter(|point| point.value.is_finite()) {
                        Some(point) => {
                            to[j] = point.value;
                            sum += point.log_slope;
                        }
                        None => sum = f64::NEG_INFINITY,
                    }
                }
                if sum.is_finite() {
                    log_weight[at] = sum;
                } else {
                    to.fill(0.0);
                }
            }
        }
        Ok(Weighed { z, log_weight, solve_error })
    }
}

/// What the weights of a row's draws say.
struct Summary {
    value: f64,
    error: f64,
    solve_error: f64,
    effective: Option<f64>,
}

impl Summary {
    /// Of the draws of a row: weights but for log p of the joint, and that.
    fn of(weighed: &Weighed, joint: &ExactLogProb, draws: Range<usize>) -> Self {
        let LogProb { values, solve_error, .. } = joint.scores();
        let log_weights: Vec<f64> = draws.clone().map(|at| weighed.log_weight[at] + values[at]).collect();
        let errors = draws.map(|at| weighed.solve_error[at] + solve_error[at]);
        let (value, error) = log_mean_exp(&log_weights);
        if !value.is_finite() {
            return Self { value: f64::NEG_INFINITY, error: 0.0, solve_error: 0.0, effective: None };
        }
        let weights: Vec<f64> = log_weights.iter().map(|l| (l - value).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let squares: f64 = weights.iter().map(|w| w * w).sum();
        let solve_error = weights.iter().zip(errors).filter(|(w, _)| **w > 0.0).map(|(w, e)| w / sum * e).sum();
        Self { value, error, solve_error, effective: Some(sum * sum / squares) }
    }
}
