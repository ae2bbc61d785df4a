//! The promises of every transform.

use resflow_backend::{Backend, Key, Shape};

use super::differences::{Apart, apart, differ, down, jacobian, largest, normal};
use super::gradients;
use super::parts;
use super::samples::{Samples, draw_samples};
use super::{Failed, Passed, Property, Report, saved, tolerance, transposed};
use crate::batch::Batch;
use crate::bijection::{Ask, Bijection, Draw, Mapped, Memory, PreparedBijection};
use crate::error::Error;
use crate::estimator::{Estimator, Exact, Law, Probe, RussianRoulette, Sharing, Traces};
use crate::invert::{Inversion, Status};
use crate::lipschitz::PowerIteration;
use crate::registry::Registry;

/// The numbers in a sample up to which its Jacobian is taken by differences.
const LARGEST: usize = 64;
/// The samples that the first piece has where a batch is cut.
const CUT: usize = 1;

const EXACT: Estimator = Estimator::Exact(Exact);

/// An estimator whose variance is finite for every contraction up to 0.94.
fn roulette() -> Estimator {
    Estimator::RussianRoulette(RussianRoulette {
        law: Law::ShiftedGeometric { p: 0.1 },
        exact_terms: 10,
        draws: 1,
        probes: 1,
        probe: Probe::Rademacher,
        sharing: Sharing::Sample,
        traces: Traces::Exact,
    })
}

/// Checks a transform at samples of a shape, `[d]` or `[h, w, c]`: standard normal ones, or where these are mapped to
/// numbers that are not finite, ones between 0 and 1. Small shapes suffice, and log dets are compared up to 64 numbers
/// in a sample. A registry is needed for a transform of your own that can be saved.
///
/// # Errors
/// Returns [`Failed`] with everything that is wrong.
pub fn check_bijection<B: Backend>(
    backend: &B,
    transform: &dyn Bijection<B>,
    shape: &[usize],
    key: Key,
    registry: &Registry<B>,
) -> Result<Passed, Failed> {
    check(backend, transform, Samples::Shape(shape), key, registry)
}

/// Checks a transform at samples x `[n, …]`, at least two, for one that does not take any.
///
/// # Errors
/// Returns [`Failed`] with everything that is wrong.
///
/// # Panics
/// With fewer than two samples: how a batch is cut could not be checked.
pub fn check_bijection_at<B: Backend>(
    backend: &B,
    transform: &dyn Bijection<B>,
    x: &B::Tensor,
    key: Key,
    registry: &Registry<B>,
) -> Result<Passed, Failed> {
    check(backend, transform, Samples::Given(x), key, registry)
}

fn check<B: Backend>(
    backend: &B,
    transform: &dyn Bijection<B>,
    samples: Samples<'_, B>,
    key: Key,
    registry: &Registry<B>,
) -> Result<Passed, Failed> {
    let mut report = Report::default();
    let ended = all(&mut report, backend, transform, samples, key, registry);
    report.conclude(transform.describe(), ended)
}

fn all<B: Backend>(
    report: &mut Report,
    backend: &B,
    transform: &dyn Bijection<B>,
    samples: Samples<'_, B>,
    key: Key,
    registry: &Registry<B>,
) -> Result<(), Error> {
    let mut moved = transform.boxed_clone();
    parts::check(report, backend, transform, &mut *moved);
    parts::shake(backend, &mut *moved, key);
    moved.update_spectral_norms(backend, PowerIteration::converge::<B>());
    let shape = samples.shape(backend);
    let output = match transform.output_shape(&shape) {
        Ok(output) => output,
        Err(e) => {
            report.find(Property::OutputShape, format!("samples of shape {shape:?} are refused: {e}"));
            return Ok(());
        }
    };
    let candidates = [moved, transform.boxed_clone()];
    let mut value = |number: usize, x: &B::Tensor| {
        let prepared = candidates[number].prepare(backend);
        Ok(prepared.forward(backend, &Batch::new(x.clone()), &Ask::value::<B>())?.y)
    };
    let Some((number, x)) = draw_samples(report, backend, samples, &output, key, &mut value)? else { return Ok(()) };
    let [moved, given] = candidates;
    let transform = if number == 0 { moved } else { given };
    let subject = Subject::new(backend, transform, x, &output, key);
    subject.value(report)?;
    let log_det = subject.log_det(report)?;
    subject.inverse(report)?;
    subject.batch_cut(report)?;
    gradients::check(report, &subject, log_det)?;
    transposed::check(report, &subject)?;
    saved::check(report, backend, &*subject.transform, &subject.batch, key, registry)
}

/// A transform and the samples that it is checked at.
pub(super) struct Subject<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) transform: Box<dyn Bijection<B>>,
    pub(super) prepared: Box<dyn PreparedBijection<B>>,
    pub(super) batch: Batch<B>,
    pub(super) key: Key,
    /// y of the samples.
    pub(super) output: Shape,
}

/// The log dets of some samples, `[n, columns]`.
#[derive(Debug, Clone)]
pub(super) struct LogDets {
    pub(super) values: Vec<f64>,
    columns: usize,
    pub(super) exact: bool,
}

impl<'a, B: Backend> Subject<'a, B> {
    fn new(backend: &'a B, transform: Box<dyn Bijection<B>>, x: B::Tensor, output: &[usize], key: Key) -> Self {
        let prepared = transform.prepare(backend);
        let batch = Batch::new(x);
        let output = [&[batch.len(backend)], output].concat();
        Self { backend, transform, prepared, batch, key, output: output[..].into() }
    }

    /// n.
    pub(super) fn samples(&self) -> usize {
        self.output.rows()
    }

    /// The exact estimator of a log det, in the draw of a number.
    pub(super) fn exact(&self, number: u64) -> Draw<'static> {
        Draw { estimator: &EXACT, key: self.key.named("draw").split(number) }
    }

    fn down(&self, x: &B::Tensor) -> Result<Vec<f64>, Error> {
        down(self.backend, x)
    }

    /// y is the same whatever is asked for.
    fn value(&self, report: &mut Report) -> Result<(), Error> {
        let forward = |ask: Ask<'_>| self.prepared.forward(self.backend, &self.batch, &ask);
        let alone = forward(Ask::value::<B>())?;
        if !alone.log_dets.is_empty() {
            report.find(
                Property::LogDet,
                format!(
                    "{} terms come when y alone is asked for: look at `Ask::replicates`, which is `None` then",
                    alone.log_dets.len()
                ),
            );
        }
        let alone = self.down(&alone.y)?;
        let draw = self.exact(0);
        let asks = [
            ("the log det", Ask::log_det::<B>(draw, 1)),
            ("a gradient", Ask::gradient::<B>(draw, Memory::Store)),
            ("a gradient from little memory", Ask::gradient::<B>(draw, Memory::Recompute)),
        ];
        for (what, ask) in asks {
            let y = forward(ask)?.y;
            let shape = self.backend.shape(&y);
            if shape != self.output {
                let expected = self.output;
                report.find(Property::Value, format!("asked for {what} y is {shape}, and {expected} asked for alone"));
            } else if let Some(Apart { at, found, expected }) = differ::<B>(&self.down(&y)?, &alone) {
                report.find(
                    Property::Value,
                    format!("number {at} of y is {expected:e} asked for alone and {found:e} asked for {what}: it must be the same"),
                );
            }
        }
        Ok(())
    }

    /// The sum of the log dets of a forward pass, if they have the shapes that they should have.
    pub(super) fn total(
        &self,
        report: &mut Report,
        mapped: &Mapped<B>,
        [samples, replicates]: [usize; 2],
        when: &str,
    ) -> Result<Option<LogDets>, Error> {
        if mapped.log_dets.is_empty() {
            report.find(
                Property::LogDet,
                format!("no log det comes when {when} is asked for: put one into `Mapped::log_dets`, zeros [n, 1] of a transform that keeps volumes"),
            );
            return Ok(None);
        }
        let mut sum = LogDets { values: vec![0.0; samples], columns: 1, exact: true };
        for term in &mapped.log_dets {
            let columns = if term.exact { 1 } else { replicates };
            let shape = self.backend.shape(&term.value);
            if shape[..] != [samples, columns] {
                let kind = if term.exact { "exact" } else { "estimated" };
                report.find(
                    Property::LogDet,
                    format!(
                        "asked for {when} of {samples} samples, {replicates} estimates of each, the {kind} log det is {shape}, expected [{samples}, {columns}]: one row a sample, one column an estimate, one where it is exact"
                    ),
                );
                return Ok(None);
            }
            let values = self.down(&term.value)?;
            let both = sum.columns.max(columns);
            let entry = |values: &[f64], columns: usize, at: usize| values[at / both * columns + at % both % columns];
            let added = (0..samples * both).map(|at| entry(&sum.values, sum.columns, at) + entry(&values, columns, at));
            sum = LogDets { values: added.collect(), columns: both, exact: sum.exact && term.exact };
        }
        Ok(Some(sum))
    }

    /// ln|det ∂y/∂x| of each sample, by differences at a step.
    pub(super) fn by_differences(
        &self,
        prepared: &dyn PreparedBijection<B>,
        x: &B::Tensor,
        step: f64,
    ) -> Result<[B::Tensor; 2], Error> {
        let map =
            |x: &B::Tensor| Ok(prepared.forward(self.backend, &self.batch.with_x(x.clone()), &Ask::value::<B>())?.y);
        let jacobian = jacobian(self.backend, x, step, map)?;
        let (log_det, inverse) = self.backend.lu(&jacobian);
        Ok([log_det, inverse])
    }

    /// Returns `true` if the Jacobian is small enough to be taken by differences.
    pub(super) fn is_small(&self) -> bool {
        self.output.row_elements() <= LARGEST
    }

    /// The log det has its shape and is that of the Jacobian; returns it where it came.
    fn log_det(&self, report: &mut Report) -> Result<Option<LogDets>, Error> {
        let n = self.samples();
        let ask = Ask::log_det::<B>(self.exact(0), 1);
        let mapped = self.prepared.forward(self.backend, &self.batch, &ask)?;
        let Some(found) = self.total(report, &mapped, [n, 1], "the log det")? else { return Ok(None) };
        let mapped =
            self.prepared.forward(self.backend, &self.batch, &Ask::gradient::<B>(self.exact(0), Memory::Store))?;
        let Some(training) = self.total(report, &mapped, [n, 1], "a gradient")? else { return Ok(None) };
        if found.exact
            && training.exact
            && let Some(Apart { at, found, expected }) = differ::<B>(&training.values, &found.values)
        {
            report.find(
                Property::LogDet,
                format!("that of sample {at} is {expected:e}, and {found:e} if a gradient is asked for"),
            );
        }
        if !self.is_small() {
            let sentence = format!(
                "not compared with the Jacobian, of {} numbers a sample: check a shape of at most {LARGEST}",
                self.output.row_elements()
            );
            report.note(Property::LogDet, sentence);
            return Ok(Some(found));
        }
        let mut candidates = Vec::new();
        for step in tolerance::steps::<B>() {
            let [log_det, _] = self.by_differences(&*self.prepared, &self.batch.x, step)?;
            candidates.push((step, self.down(&log_det)?));
        }
        if found.exact {
            self.compare(report, &found.values, &candidates);
        } else {
            self.estimate(report, &EXACT, &candidates, "estimates, though an exact one was asked for,")?;
        }
        let estimator = roulette();
        if self.transform.cost().is_some() {
            self.estimate(report, &estimator, &candidates, "estimates")?;
        }
        Ok(Some(found))
    }

    /// An exact log det against those by differences.
    fn compare(&self, report: &mut Report, found: &[f64], candidates: &[(f64, Vec<f64>)]) {
        let wrong = |sample: usize| {
            let off = candidates.iter().map(|(step, expected)| {
                let (found, expected) = (found[sample], expected[sample]);
                // each number of the Jacobian may be off by the noise
                let noise = tolerance::noise::<B>(1.0, *step) * self.output.row_elements() as f64;
                let allowed = tolerance::derivative::<B>() * (1.0 + expected.abs()) + noise;
                apart(&[found], &[expected], allowed)
            });
            off.collect::<Option<Vec<_>>>()?.first().copied()
        };
        let all: Vec<_> = (0..found.len()).filter_map(|sample| Some((sample, wrong(sample)?))).collect();
        if let Some((sample, off)) = all.first() {
            report.find(
                Property::LogDet,
                format!(
                    "that of sample {sample} is {:e}, while ln|det ∂y/∂x| by differences of forward is {:e}{} ({} of {} samples are wrong): it is the logarithm, of the way from x to y, summed over everything in a sample",
                    off.found,
                    off.expected,
                    off.guess(),
                    all.len(),
                    found.len()
                ),
            );
        }
    }

    /// Means of estimated log dets against those by differences.
    fn estimate(
        &self,
        report: &mut Report,
        estimator: &Estimator,
        candidates: &[(f64, Vec<f64>)],
        what: &str,
    ) -> Result<(), Error> {
        let (n, count) = (self.samples(), tolerance::REPLICATES);
        let ask = Ask::log_det::<B>(Draw { estimator, key: self.key.named("estimates") }, count);
        let mapped = self.prepared.forward(self.backend, &self.batch, &ask)?;
        let Some(found) = self.total(report, &mapped, [n, count], "the log det")? else { return Ok(()) };
        if found.exact {
            self.compare(report, &found.values, candidates);
            return Ok(());
        }
        for (sample, estimates) in found.values.chunks_exact(count).enumerate() {
            let mean = estimates.iter().sum::<f64>() / count as f64;
            let variance = estimates.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
            let error = (variance / count as f64).sqrt();
            let allowed = |expected: f64| {
                tolerance::STANDARD_ERRORS * error + tolerance::derivative::<B>() * (1.0 + expected.abs())
            };
            let near = |(_, e): &(f64, Vec<f64>)| (mean - e[sample]).abs() <= allowed(e[sample]);
            if !candidates.iter().any(near) {
                report.find(
                    Property::LogDet,
                    format!(
                        "the mean of {count} {what} of sample {sample} is {mean:e} ± {error:e}, while ln|det ∂y/∂x| by differences of forward is {:e}: the estimates are biased, or not independent of each other",
                        candidates[0].1[sample]
                    ),
                );
                return Ok(());
            }
        }
        Ok(())
    }

    /// The inverse is one, both ways.
    fn inverse(&self, report: &mut Report) -> Result<(), Error> {
        let forward = |x: &B::Tensor| {
            let batch = self.batch.with_x(x.clone());
            Ok::<_, Error>(self.prepared.forward(self.backend, &batch, &Ask::value::<B>())?.y)
        };
        let y = forward(&self.batch.x)?;
        let how = Inversion::for_backend::<B>();
        let back = self.prepared.inverse(self.backend, &self.batch.with_x(y.clone()), &how)?;
        let (shape, input) = (self.backend.shape(&back.value), self.batch.shape(self.backend));
        if shape != input || back.reports.len() != self.samples() {
            report.find(
                Property::Inverse,
                format!(
                    "of y {} it is {shape} with {} reports, expected {input} and one report a sample",
                    self.output,
                    back.reports.len()
                ),
            );
            return Ok(());
        }
        if let Some((at, bad)) = back.reports.iter().enumerate().find(|(_, r)| r.status != Status::Converged) {
            report.find(
                Property::Inverse,
                format!(
                    "that of sample {at} is {} after {} iterations, with residual {:e}",
                    bad.status, bad.iterations, bad.residual
                ),
            );
        }
        let (values, x) = (self.down(&y)?, self.down(&self.batch.x)?);
        let growth = if self.is_small() {
            let [_, inverse] = self.by_differences(&*self.prepared, &self.batch.x, tolerance::steps::<B>()[0])?;
            let inverse = self.down(&inverse)?;
            let norm = |sample: &[f64]| sample.iter().map(|a| a * a).sum::<f64>().sqrt();
            let d = self.output.row_elements();
            inverse.chunks_exact((d * d).max(1)).map(norm).fold(0.0, f64::max)
        } else {
            1e3
        };
        let growth = if growth.is_finite() { 1.0 + growth } else { 1e3 };
        let allowed = tolerance::inverse::<B>() * largest(&values).max(1.0) * growth;
        if let Some(Apart { at, found, expected }) = apart(&self.down(&back.value)?, &x, allowed) {
            report.find(
                Property::Inverse,
                format!(
                    "number {at} of x is {expected:e}, and {found:e} after the way forth and back: {:e} away, allowed {allowed:e}",
                    (found - expected).abs()
                ),
            );
        }
        // the other way, which also holds where x is known badly
        let allowed = tolerance::inverse::<B>() * largest(&values).max(1.0) * 10.0;
        if let Some(Apart { at, found, expected }) = apart(&self.down(&forward(&back.value)?)?, &values, allowed) {
            report.find(
                Property::Inverse,
                format!(
                    "number {at} of y is {expected:e}, and {found:e} after the way back and forth: {:e} away, allowed {allowed:e}",
                    (found - expected).abs()
                ),
            );
        }
        Ok(())
    }

    /// y, log dets and inverses do not depend on how the batch is cut, but for rounding.
    fn batch_cut(&self, report: &mut Report) -> Result<(), Error> {
        let estimator = roulette();
        let key = self.key.named("cut");
        let draws = [Draw { estimator: &EXACT, key }, Draw { estimator: &estimator, key }];
        let asks = draws.into_iter().flat_map(|draw| {
            [("the log det", Ask::log_det::<B>(draw, 2)), ("a gradient", Ask::gradient::<B>(draw, Memory::Recompute))]
        });
        let pieces =
            [self.batch.narrow(self.backend, 0, CUT), self.batch.narrow(self.backend, CUT, self.samples() - CUT)];
        for (what, ask) in asks {
            let outcome = |batch: &Batch<B>| -> Result<[Vec<f64>; 2], Error> {
                let mapped = self.prepared.forward(self.backend, batch, &ask)?;
                let columns =
                    mapped.log_dets.iter().map(|term| self.down(&term.value)).collect::<Result<Vec<_>, _>>()?;
                // terms of one transform are added up; several are those of a chain
                Ok([self.down(&mapped.y)?, columns.into_iter().next().unwrap_or_default()])
            };
            let whole = outcome(&self.batch)?;
            let [first, second] = [outcome(&pieces[0])?, outcome(&pieces[1])?];
            for (part, name) in ["y", "the log det"].into_iter().enumerate() {
                let joined = [&first[part][..], &second[part]].concat();
                if joined.len() != whole[part].len() {
                    let sentence = format!(
                        "asked for {what}, {name} has {} numbers for the whole batch and {} for its pieces",
                        whole[part].len(),
                        joined.len()
                    );
                    report.find(Property::BatchCut, sentence);
                } else if let Some(Apart { at, found, expected }) = differ::<B>(&joined, &whole[part]) {
                    report.find(
                        Property::BatchCut,
                        format!(
                            "asked for {what}, number {at} of {name} is {expected:e} in the whole batch and {found:e} in a piece that begins at sample {CUT}: a sample must not depend on the others, and its noise be that of its number, `Batch::first` and up"
                        ),
                    );
                }
            }
        }
        Ok(())
    }

    /// Normal numbers of a shape, for a purpose.
    pub(super) fn normal(&self, purpose: &str, shape: Shape) -> B::Tensor {
        normal(self.backend, self.key.named(purpose), shape)
    }
}
