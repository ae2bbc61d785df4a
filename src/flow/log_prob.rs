//! log p with its standard error.
//!
//! Where the log dets are estimated, each sample gets M ≥ 2 replicates that share one forward pass and have their own
//! probes and their own N, keyed by (sample, replicate). A replicate's log p is the sum over all transforms, so the
//! error is taken over replicates of the sum over blocks, correlations included. Parts are added on the host in double
//! precision.
//!
//! "Until the standard error is below ε" draws further replicates for the samples that are above it. A rule that looks
//! at the error to decide when to stop makes the reported error somewhat too small; no sample stops before eight
//! replicates.

use std::ops::Range;

use resflow_backend::{Backend, Element, Key, ShardPlan};
use statrs::distribution::{ContinuousCDF as _, StudentsT};

use super::context::Given;
use super::draws::{average, corrected_average};
use super::exact::ExactLogProb;
use super::prepared::{PreparedFlow, Target};
use super::upload::Upload;
use crate::batch::Batch;
use crate::bijection::{Ask, Draw, LogDet, Memory};
use crate::data::{Samples, Table};
use crate::error::Error;
use crate::estimator::Estimator;
use crate::invert::{Inversion, SampleReport, Status};

/// log p of some samples, in nats and in the data's units.
#[derive(Debug, Clone)]
pub struct LogProb {
    /// log p of each sample, `[n]`, nats: the mean over replicates; of samples with columns on grids the log of the mean
    /// over draws of noise.
    pub values: Vec<f64>,
    /// The standard error of each value, `[n]`, nats; 0 where the log det is exact and no column is on a grid.
    pub standard_error: Vec<f64>,
    /// A bound on the bias of each value, nats: 0 unless a series is truncated. A truncated series estimates another number than
    /// log p, and neither replicates nor probes tell how far off that is: for blocks with Lip(g) ≤ c it is at most
    /// d Σ_{k>K} cᵏ/k each, by the coefficients that their weights are normalised to. It is no part of the standard error.
    pub bias_bound: f64,
    /// log|det ∂z/∂x| of each sample, `[n]`, nats: the part of the value besides the base density and log p(k) of categories that are
    /// a part of the sample; with columns on grids, at the first draw of noise; with a dequantiser's −log q(u | x).
    pub log_det: Vec<f64>,
    /// [`Status::NonFinite`] for a sample so far out that the arithmetic overflowed, [`Status::OutOfSupport`] for one
    /// outside of a column's support: their log p is −∞. Else the worst status of the solves of transforms whose forward pass is
    /// one, [`Status::Converged`] without any.
    pub status: Vec<Status>,
    /// The error that inexact solves leave in each value, `[n]`, nats; 0 without solves and where log p is −∞. No part of the standard
    /// error, which is that of the estimates. Of inverted and monotone blocks what the residuals do to first order at most, by the gradient
    /// of all that follows, the log dets included; ∞ where that gradient was not found. The gradient is an estimate where log p is one, and in
    /// more than 16 dimensions where gradients in training are. Of continuous flows the error that their solver estimates of z, as
    /// the base density feels it. With columns on grids the mean over draws, by their densities. Empty where it was left out
    /// ([`PreparedFlow::without_solve_errors`]).
    pub solve_error: Vec<f64>,
    /// Evaluations of g, or of a continuous flow's f, that the forward solves of the sample with the most of them took, summed over
    /// transforms; 0 without solves.
    pub most_evaluations: u32,
    /// The weight of each sample, `[n]`, where the samples had weights.
    pub weights: Option<Vec<f64>>,
    /// The number of replicates behind each value, or of draws of noise where these are fewer or the log det is exact; 1
    /// where all is exact. More for some samples where a standard error was asked for, which is that of the log dets'
    /// estimates.
    pub replicates: usize,
    /// The estimator, in words.
    pub estimator: String,
}

impl LogProb {
    /// The mean over samples, weighted if they have weights; NaN of no samples.
    pub fn mean(&self) -> f64 {
        match &self.weights {
            None => self.values.iter().sum::<f64>() / self.values.len() as f64,
            Some(weights) => weighted(weights, &self.values).0,
        }
    }

    /// The standard error of the mean over samples as an estimate of E\[log p\]: the spread of the samples, in which
    /// the error of each is contained. For a single sample, that sample's own error; NaN of no samples. Of weighted
    /// samples n is Kish's effective number, (Σ wᵢ)²/Σ wᵢ².
    pub fn mean_standard_error(&self) -> f64 {
        if self.values.len() < 2 {
            return self.standard_error.first().copied().unwrap_or(f64::NAN);
        }
        if let Some(weights) = &self.weights {
            let (mean, n) = weighted(weights, &self.values);
            let squares: Vec<f64> = self.values.iter().map(|v| (v - mean).powi(2)).collect();
            let variance = weighted(weights, &squares).0;
            // one sample with all the weight says nothing of a spread
            return if n > 1.0 { (variance / (n - 1.0)).sqrt() } else { f64::INFINITY };
        }
        let n = self.values.len() as f64;
        let mean = self.mean();
        let variance = self.values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (variance / n).sqrt()
    }

    /// Returns the mean of the paired differences to another model's log p of the same samples, in nats, positive where
    /// this one's is the better, and its standard error. What the samples have in common cancels, so this tells two
    /// models apart that their means' own errors do not. A sample that both find impossible does not differ.
    ///
    /// # Panics
    /// If the numbers of samples differ.
    #[track_caller]
    pub fn compare(&self, other: &Self) -> (f64, f64) {
        assert_eq!(self.values.len(), other.values.len(), "log p of other samples");
        let pairs = self.values.iter().zip(&other.values);
        let values = pairs.map(|(a, b)| if a == b { 0.0 } else { a - b }).collect::<Vec<_>>();
        let differences = Self { values, standard_error: vec![0.0; self.values.len()], ..self.clone() };
        (differences.mean(), differences.mean_standard_error())
    }

    /// Returns the interval in nats that covers log p of sample `i` with this confidence: Student's t over the
    /// replicates, and the bound on the bias and the error of solves to both sides, unless the latter were left out.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the confidence is outside (0, 1) or there is no sample `i`.
    pub fn interval(&self, i: usize, confidence: f64) -> Result<(f64, f64), Error> {
        if !(confidence > 0.0 && confidence < 1.0) {
            return Err(Error::Input(format!("a confidence is above 0 and below 1, not {confidence}")));
        }
        let (Some(&value), Some(&error)) = (self.values.get(i), self.standard_error.get(i)) else {
            return Err(Error::Input(format!("row {i} of {} (counted from 0)", self.values.len())));
        };
        let half = self.bias_bound
            + if self.replicates < 2 {
                0.0
            } else {
                let t =
                    StudentsT::new(0.0, 1.0, (self.replicates - 1) as f64).map_err(|e| Error::Input(e.to_string()))?;
                t.inverse_cdf(f64::midpoint(1.0, confidence)) * error
            };
        // what solves left open is no chance, and widens the interval
        let half = half + self.solve_error.get(i).copied().unwrap_or(0.0);
        Ok((value - half, value + half))
    }
}

/// The weighted mean, and the effective number of samples. A value of weight 0 is not there, whatever it is.
fn weighted(weights: &[f64], values: &[f64]) -> (f64, f64) {
    let heaviest = weights.iter().copied().fold(0.0, f64::max);
    let there = || weights.iter().zip(values).filter(|(w, _)| **w > 0.0).map(|(w, v)| (w / heaviest, v));
    let total: f64 = there().map(|(w, _)| w).sum();
    let mean = there().map(|(w, v)| w * v).sum::<f64>() / total;
    (mean, total * total / there().map(|(w, _)| w * w).sum::<f64>())
}

/// The moments of a sample's replicates: their number, their mean and the sum of their squared deviations from it.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    spread: f64,
}

impl Moments {
    fn of(estimates: &[f64]) -> Self {
        let count = estimates.len() as f64;
        let mean = estimates.iter().sum::<f64>() / count;
        Self { count, mean, spread: estimates.iter().map(|e| (e - mean).powi(2)).sum() }
    }

    /// Both together (Chan, Golub and LeVeque 1979).
    fn and(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        let count = self.count + other.count;
        let difference = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + difference * other.count / count,
            spread: self.spread + other.spread + difference.powi(2) * self.count * other.count / count,
        }
    }

    fn standard_error(self) -> f64 {
        if self.count > 1.0 { (self.spread / (self.count - 1.0) / self.count).sqrt() } else { 0.0 }
    }
}

/// Computes log p of all samples, of which the first is number `first`, or z, `[n, d]`, with log p at z. Of columns on
/// grids log p is the log of the mean density over draws of noise; z is the first draw's.
pub(crate) fn evaluate<B: Backend>(
    flow: &PreparedFlow<B>,
    samples: Samples<'_>,
    given: Given<'_, B>,
    first: u64,
    key: Key,
    latent: bool,
) -> Result<(Option<Table>, LogProb), Error> {
    let (z, mut scores) = evaluate_draw(flow, samples, given, first, key, latent, 0)?;
    let draws = flow.columns().draws();
    if draws > 1 && !latent {
        let next = (1..draws).map(|draw| Ok(evaluate_draw(flow, samples, given, first, key, false, draw)?.1));
        let found = std::iter::once(Ok(scores)).chain(next).collect::<Result<Vec<_>, Error>>()?;
        let exact: Result<Vec<_>, _> = found.iter().cloned().map(ExactLogProb::try_from).collect();
        scores = match exact {
            Ok(exact) => average(&exact),
            Err(_) => corrected_average(&found.iter().collect::<Vec<_>>()),
        };
        scores.replicates = if scores.replicates > 1 { scores.replicates.min(draws) } else { draws };
        scores.estimator = format!("{}; mean over {draws} draws of the noise of grids", scores.estimator);
    }
    Ok((z, scores))
}

/// Computes log p with the grids' noise of number `draw`, and z if wanted.
fn evaluate_draw<B: Backend>(
    flow: &PreparedFlow<B>,
    samples: Samples<'_>,
    given: Given<'_, B>,
    first: u64,
    key: Key,
    latent: bool,
    draw: usize,
) -> Result<(Option<Table>, LogProb), Error> {
    let source = Upload::starting_at(flow, samples, first, key, draw)?;
    let d = flow.columns().width();
    let count = samples.len();
    let mut z = Vec::with_capacity(if latent { count * d } else { 0 });
    let mut base = Vec::with_capacity(count);
    let mut moments = vec![Moments::default(); count];
    let mut replicates = 1;
    let (mut status, mut solve_error) = (vec![Status::Converged; count], vec![0.0; count]);
    let mut most_evaluations = 0;
    let pass = Pass { key, latent, solve_errors: flow.solve_errors && !latent };
    run(flow, &source, given, None, &pass, |sample, at| {
        base.push(sample.base);
        (status[at], solve_error[at]) = (sample.solve.status, sample.solve.error);
        most_evaluations = most_evaluations.max(sample.solve.evaluations);
        z.extend_from_slice(sample.z);
        moments[at] = Moments::of(sample.estimates);
        replicates = sample.estimates.len();
    })?;
    if let Some(target) = flow.target().filter(|_| replicates > 1) {
        for round in 1.. {
            let open: Vec<usize> = (0..count).filter(|&i| target.wants_more(moments[i], replicates)).collect();
            if open.is_empty() {
                break;
            }
            let pass = Pass { key: key.named("again").split(round), latent: false, solve_errors: false };
            run(flow, &source, given, Some(&open), &pass, |sample, at| {
                let own = &mut moments[open[at]];
                *own = own.and(Moments::of(sample.estimates));
            })?;
        }
    }
    let mut log_det: Vec<f64> = moments.iter().enumerate().map(|(i, m)| m.mean + source.log_det(i)).collect();
    let mut values: Vec<f64> = log_det.iter().zip(&base).map(|(l, base)| base + l).collect();
    let mut standard_error: Vec<f64> = moments.iter().map(|m| m.standard_error()).collect();
    for i in 0..count {
        if source.is_outside(i) {
            (values[i], standard_error[i], status[i]) = (f64::NEG_INFINITY, 0.0, Status::OutOfSupport);
            (log_det[i], solve_error[i]) = (f64::NEG_INFINITY, 0.0);
            if latent {
                z[i * d..(i + 1) * d].fill(f64::NAN);
            }
        } else if !values[i].is_finite() {
            // so far out that the arithmetic overflowed: the density is 0 to every precision
            solve_error[i] = 0.0;
            (values[i], standard_error[i], status[i]) = (f64::NEG_INFINITY, 0.0, Status::NonFinite);
        }
    }
    if !flow.solve_errors {
        solve_error.clear();
    }
    let out = LogProb {
        values,
        standard_error,
        status,
        solve_error,
        most_evaluations,
        log_det,
        weights: samples.weights().map(<[f64]>::to_vec),
        replicates,
        estimator: flow.resolved().to_string(),
        bias_bound: flow.bias_bound(),
    };
    Ok((latent.then(|| Table::of_computed(d, z)), out))
}

/// Replicates before a standard error is believed: that of two is one difference.
const LEAST_REPLICATES: f64 = 8.0;

impl Target {
    fn wants_more(&self, row: Moments, replicates: usize) -> bool {
        // a sample that is not finite never gets better
        row.mean.is_finite()
            && (row.standard_error() > self.standard_error || row.count < LEAST_REPLICATES)
            && row.count as usize + replicates <= self.most
    }
}

/// The evaluation of one sample.
struct Found<'a> {
    /// z, `[d]`, where it is wanted.
    z: &'a [f64],
    /// log p₀(z), nats.
    base: f64,
    /// The estimates of the log det in nats, one a replicate.
    estimates: &'a [f64],
    solve: Solve,
}

/// What the solves of a sample came to.
#[derive(Debug, Clone, Copy)]
struct Solve {
    /// The worst of them.
    status: Status,
    /// The error that they leave in log p, nats.
    error: f64,
    /// Evaluations of g or f.
    evaluations: u32,
}

impl Solve {
    /// Of a sample without solves.
    const NONE: Self = Self { status: Status::Converged, error: 0.0, evaluations: 0 };
}

/// The settings of a pass over samples.
struct Pass {
    key: Key,
    /// Whether z is wanted, and its log det.
    latent: bool,
    /// Whether it is wanted what the errors of solves do to log p.
    solve_errors: bool,
}

/// Evaluates all samples, or those of `which`; shows `each` the evaluation and its place among them, in order.
fn run<B: Backend>(
    flow: &PreparedFlow<B>,
    source: &Upload<'_>,
    given: Given<'_, B>,
    which: Option<&[usize]>,
    pass: &Pass,
    mut each: impl FnMut(Found<'_>, usize),
) -> Result<(), Error> {
    let count = which.map_or(source.count(), <[usize]>::len);
    let d = flow.columns().width();
    let backend = flow.backend();
    // random numbers are those of the sample, not of its place in `which`: each piece is a run of consecutive samples
    let number = |at: usize| which.map_or(at, |which| which[at]);
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for range in flow.plan(count).ranges() {
        let mut start = range.start;
        for at in range.start + 1..=range.end {
            if at == range.end || number(at) != number(at - 1) + 1 {
                pieces.push(start..at);
                start = at;
            }
        }
    }
    // some pieces at a time: z of a million images is not kept
    let largest = pieces.iter().map(Range::len).max().unwrap_or(0) * d * size_of::<f64>();
    let wave = (WAVE_BYTES / largest.max(1)).clamp(1, WAVE);
    let mut at = 0;
    for pieces in pieces.chunks(wave) {
        let share = flow.team().map_or(0..pieces.len(), |team| team.share(pieces.len()));
        let parts = backend.run(share.len(), |i| {
            let range = pieces[share.start + i].clone();
            let x =
                which.map_or_else(|| source.all(flow, range.clone()), |which| source.some(flow, &which[range.clone()]));
            let x = x.with_context(given.embedding(flow, &mut range.map(number)));
            shard(flow, &x, pass)
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>, _>>();
        let parts = match flow.team() {
            None => parts?,
            Some(team) => team.gather_parts(parts, Shard::to_numbers, Shard::take_from)?,
        };
        for part in parts {
            let Shard { z, base, estimates, replicates, solves } = part;
            for (i, (base, estimates)) in base.into_iter().zip(estimates.chunks_exact(replicates)).enumerate() {
                let z = z.as_ref().map_or(&[][..], |z| &z[i * d..(i + 1) * d]);
                let solve = solves.as_ref().map_or(Solve::NONE, |solves| solves[i]);
                each(Found { z, base, estimates, solve }, at);
                at += 1;
            }
        }
    }
    Ok(())
}

/// Pieces that are evaluated before their results are gathered, and the bytes of z in them.
const WAVE: usize = 256;
const WAVE_BYTES: usize = 256 << 20;

/// The evaluations of consecutive samples, one after the other.
struct Shard {
    z: Option<Vec<f64>>,
    base: Vec<f64>,
    estimates: Vec<f64>,
    replicates: usize,
    /// Those of each sample, where a transform solves.
    solves: Option<Vec<Solve>>,
}

impl Shard {
    /// All that it is, for another process: rows, replicates, whether a transform solves, numbers of z; then these.
    fn to_numbers(&self) -> Vec<f64> {
        let z = self.z.as_deref().unwrap_or_default();
        let mut numbers = vec![self.base.len() as f64, self.replicates as f64];
        numbers.extend([f64::from(u8::from(self.solves.is_some())), self.z.as_ref().map_or(-1.0, |z| z.len() as f64)]);
        numbers.extend(self.base.iter().chain(&self.estimates).chain(z));
        for Solve { status, error, evaluations } in self.solves.iter().flatten() {
            numbers.extend([f64::from(*status as u8), *error, f64::from(*evaluations)]);
        }
        numbers
    }

    fn take_from(rest: &mut &[f64]) -> Option<Self> {
        let mut take = |count: usize| {
            let (own, others) = rest.split_at_checked(count)?;
            *rest = others;
            Some(own)
        };
        let [rows, replicates, solves, z] = take(4)? else { return None };
        let (rows, replicates) = (*rows as usize, *replicates as usize);
        let (base, estimates) = (take(rows)?.to_vec(), take(rows.checked_mul(replicates)?)?.to_vec());
        let z = if *z < 0.0 { None } else { Some(take(*z as usize)?.to_vec()) };
        let solves = if *solves == 0.0 { None } else { Some(take(3 * rows)?) };
        let of = |own: &[f64]| {
            let (status, error, evaluations) = (Status::from_number(own[0])?, own[1], own[2] as u32);
            Some(Solve { status, error, evaluations })
        };
        let solves = match solves {
            None => None,
            Some(numbers) => Some(numbers.chunks_exact(3).map(of).collect::<Option<_>>()?),
        };
        Some(Self { z, base, estimates, replicates, solves })
    }
}

/// The accuracy of the solves by which the derivatives are found that errors of solves are multiplied by.
const SLOPES: f64 = 1e-3;

/// The estimator of the log dets by which these derivatives are found: that of log p, but for exact ones of many dimensions, of which
/// a gradient would keep as many tangents.
fn slopes<B: Backend>(flow: &PreparedFlow<B>) -> &Estimator {
    const MOST: usize = 16;
    let is_exact = |estimator: &Estimator| matches!(estimator, Estimator::Exact(_));
    let large = is_exact(&flow.resolved) && !is_exact(&flow.training) && flow.dimension() > MOST;
    if large { &flow.training } else { &flow.resolved }
}

/// What the solves of each sample came to, with what their errors do to log p where that is wanted.
fn solves<B: Backend>(
    flow: &PreparedFlow<B>,
    x: &Batch<B>,
    z: &Batch<B>,
    reports: &[SampleReport],
    pass: &Pass,
) -> Result<Vec<Solve>, Error> {
    let backend = flow.backend();
    // of −log p₀
    let pull_back = |z: Batch<B>| {
        let ones = backend.full(1.0, [z.len(backend), 1].into());
        flow.base().pull_back(backend, z, &ones, &mut vec![None; flow.base_shapes.len()])
    };
    let errors = if !pass.solve_errors {
        vec![0.0; reports.len()]
    } else if flow.chain.has_solves() {
        let draw = Draw { estimator: slopes(flow), key: pass.key };
        // a derivative need not be accurate where what it is multiplied by is small
        let solver = Inversion::for_training::<B>().with_accuracy(SLOPES)?;
        let ask = Ask { solver, ..Ask::gradient::<B>(draw, Memory::Recompute) };
        let x = flow.dequantised(x, pass.key)?.0;
        let of_log_prob = |z| backend.affine(pull_back(z), -1.0, 0.0);
        // what a backward pass keeps is more than what an evaluation does
        let plan = ShardPlan::new(reports.len(), backend.shard_rows(flow.sample_bytes), 1);
        let of = |range: Range<usize>| {
            let part = x.narrow(backend, range.start, range.len());
            flow.chain.bound_solve_errors(backend, &part, &reports[range], &ask, of_log_prob)
        };
        plan.ranges().map(of).collect::<Result<Vec<_>, _>>()?.concat()
    } else {
        let gradient = pull_back(z.clone());
        let gradient = backend.reshape(&gradient, [reports.len(), backend.shape(&gradient).row_elements()].into());
        let squares = backend.download(&backend.dot_rows(&gradient, &gradient))?;
        let of = |(report, square): (&SampleReport, B::Elem)| {
            let error = report.error_bound * square.to_f64().sqrt();
            // nothing is known of steps that are not estimated, wherever z is
            if error.is_nan() { f64::INFINITY } else { error }
        };
        reports.iter().zip(squares).map(of).collect()
    };
    let of =
        |(report, error): (&SampleReport, f64)| Solve { status: report.status, error, evaluations: report.iterations };
    Ok(reports.iter().zip(errors).map(of).collect())
}

fn shard<B: Backend>(flow: &PreparedFlow<B>, x: &Batch<B>, pass: &Pass) -> Result<Shard, Error> {
    let backend = flow.backend();
    let count = x.len(backend);
    let evaluated = flow.forward(x, pass.key)?;
    let mut log_dets = evaluated.log_dets;
    if !pass.latent {
        // z and its log det are those of the image with its noise
        log_dets.extend(evaluated.of_noise);
    }
    let (estimates, replicates) = sum_estimates(backend, &log_dets, count, flow.replicates())?;
    let z = &evaluated.z;
    let base = flow.base().log_prob(backend, z)?;
    let solves = evaluated.reports.as_ref().map(|reports| solves(flow, x, z, reports, pass)).transpose()?;
    let z = if pass.latent { Some(backend.download(&z.x)?.into_iter().map(Element::to_f64).collect()) } else { None };
    Ok(Shard { z, base, estimates, replicates, solves })
}

/// Sums the log dets of transforms on the host, `[n, replicates]`, with the number of replicates: 1 where all are exact.
pub(crate) fn sum_estimates<B: Backend>(
    backend: &B,
    log_dets: &[LogDet<B>],
    count: usize,
    replicates: usize,
) -> Result<(Vec<f64>, usize), Error> {
    let replicates = if log_dets.iter().all(|l| l.exact) { 1 } else { replicates };
    let mut estimates = vec![0.0; count * replicates];
    if !log_dets.is_empty() {
        let columns: Vec<_> = log_dets.iter().map(|l| &l.value).collect();
        let joined = backend.concat(&columns, 1);
        let width = backend.shape(&joined).channels();
        let values = backend.download(&joined)?;
        for (values, sums) in values.chunks_exact(width).zip(estimates.chunks_exact_mut(replicates)) {
            let mut at = 0;
            for log_det in log_dets {
                let own = if log_det.exact { 1 } else { replicates };
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum += values[at + if log_det.exact { 0 } else { m }].to_f64();
                }
                at += own;
            }
        }
    }
    Ok((estimates, replicates))
}
