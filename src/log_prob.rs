//! log p with its standard error.
//!
//! Where the log dets are estimated, each row gets M ≥ 2 replicates that share one forward pass and have their own probes
//! and their own N, keyed by (row, replicate). A replicate's log p is the sum over all links, so the error is taken over
//! replicates of the sum over blocks, correlations included. Parts are added on the host in double precision.

use resflow_backend::{Backend, Element, Key};
use statrs::distribution::{ContinuousCDF as _, StudentsT};

use crate::data::Table;
use crate::error::Error;
use crate::flow::PreparedFlow;

/// log p of some rows, in nats and in the data's units.
#[derive(Debug, Clone)]
pub struct LogProb {
    /// log p of each row: the mean over replicates.
    pub values: Vec<f64>,
    /// The standard error of each value; 0 where the log det is exact.
    pub standard_error: Vec<f64>,
    /// log|det ∂z/∂x| of each row, the part of the value besides the base density.
    pub log_det: Vec<f64>,
    /// The number of replicates behind each value, 1 where exact.
    pub replicates: usize,
    /// The estimator, in words.
    pub estimator: String,
}

impl LogProb {
    /// The mean over rows.
    pub fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// The standard error of the mean over rows as an estimate of E\[log p\]: the spread of the rows, in which the error
    /// of each row is contained. For a single row, that row's own error.
    pub fn mean_standard_error(&self) -> f64 {
        if self.values.len() < 2 {
            return self.standard_error.first().copied().unwrap_or(0.0);
        }
        let n = self.values.len() as f64;
        let mean = self.mean();
        let variance = self.values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (variance / n).sqrt()
    }

    /// The interval around row `i` that covers its log p with this confidence: Student's t over the replicates.
    ///
    /// # Errors
    /// A confidence outside (0, 1), or no such row.
    pub fn interval(&self, i: usize, confidence: f64) -> Result<(f64, f64), Error> {
        if !(confidence > 0.0 && confidence < 1.0) {
            return Err(Error::Input(format!("a confidence is above 0 and below 1, not {confidence}")));
        }
        let (Some(&value), Some(&error)) = (self.values.get(i), self.standard_error.get(i)) else {
            return Err(Error::Input(format!("row {i} of {} (counted from 0)", self.values.len())));
        };
        let half = if self.replicates < 2 {
            0.0
        } else {
            let t = StudentsT::new(0.0, 1.0, (self.replicates - 1) as f64).map_err(|e| Error::Input(e.to_string()))?;
            t.inverse_cdf(f64::midpoint(1.0, confidence)) * error
        };
        Ok((value - half, value + half))
    }
}

/// z and log p of all rows.
pub(crate) fn evaluate<B: Backend>(flow: &PreparedFlow<B>, rows: &Table, key: Key) -> Result<(Table, LogProb), Error> {
    flow.check_width(rows)?;
    let d = rows.width();
    let standard = flow.standardiser().apply(rows)?;
    let backend = flow.backend();
    let plan = flow.plan(rows.rows());
    let parts = backend.run(plan.shards(), |i| {
        let range = plan.rows(i);
        let values: Vec<B::Elem> =
            standard.values()[range.start * d..range.end * d].iter().map(|&v| B::Elem::from_f64(v)).collect();
        let x = backend.upload(&values, [range.len(), d].into());
        shard(flow, &x, key, range.start as u64)
    });
    let offset = flow.standardiser().log_det();
    let base = -0.5 * d as f64 * (2.0 * std::f64::consts::PI).ln();
    let mut z = Vec::with_capacity(rows.values().len());
    let mut out = LogProb {
        values: Vec::with_capacity(rows.rows()),
        standard_error: Vec::with_capacity(rows.rows()),
        log_det: Vec::with_capacity(rows.rows()),
        replicates: 1,
        estimator: flow.resolved().to_string(),
    };
    for part in parts {
        let (shard_z, estimates, replicates) = part?;
        out.replicates = replicates;
        for (row, estimates) in shard_z.chunks_exact(d).zip(estimates.chunks_exact(replicates)) {
            let square: f64 = row.iter().map(|z| z * z).sum();
            let m = replicates as f64;
            let mean = estimates.iter().sum::<f64>() / m;
            let spread: f64 = estimates.iter().map(|e| (e - mean).powi(2)).sum();
            out.standard_error.push(if replicates > 1 { (spread / (m - 1.0) / m).sqrt() } else { 0.0 });
            out.log_det.push(mean + offset);
            out.values.push(base - 0.5 * square + mean + offset);
        }
        z.extend(shard_z);
    }
    Ok((Table::of_computed(d, z), out))
}

/// z of a shard, its log det estimates (row-major, one a replicate) and the number of replicates.
fn shard<B: Backend>(
    flow: &PreparedFlow<B>,
    x: &B::Tensor,
    key: Key,
    first_row: u64,
) -> Result<(Vec<f64>, Vec<f64>, usize), Error> {
    let backend = flow.backend();
    let rows = backend.shape(x).rows();
    let evaluated = flow.forward(x, key, first_row);
    let replicates = if evaluated.log_dets.iter().all(|l| l.exact) { 1 } else { flow.replicates() };
    let mut sums = vec![0.0; rows * replicates];
    if !evaluated.log_dets.is_empty() {
        let columns: Vec<_> = evaluated.log_dets.iter().map(|l| &l.value).collect();
        let joined = backend.concat(&columns, 1);
        let width = backend.shape(&joined).channels();
        let values = backend.download(&joined)?;
        for (row, sums) in values.chunks_exact(width).zip(sums.chunks_exact_mut(replicates)) {
            let mut at = 0;
            for log_det in &evaluated.log_dets {
                let own = if log_det.exact { 1 } else { replicates };
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum += row[at + if log_det.exact { 0 } else { m }].to_f64();
                }
                at += own;
            }
        }
    }
    let z = backend.download(&evaluated.z)?.into_iter().map(Element::to_f64).collect();
    Ok((z, sums, replicates))
}
