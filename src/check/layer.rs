//! The promises of every layer.

use resflow_backend::{Backend, Key, Shape};

use super::differences::{Apart, apart, differ, disagree, dot, down, largest, normal, size, up};
use super::parts;
use super::pullback;
use super::samples::{Samples, draw_samples};
use super::{Failed, Passed, Property, Report, saved, tolerance};
use crate::batch::Batch;
use crate::error::Error;
use crate::layer::{Derivatives, Layer, PreparedLayer, Saved};
use crate::lipschitz::PowerIteration;
use crate::registry::Registry;

/// Products with J and its transpose by which the direction that is stretched most is looked for.
const ITERATIONS: usize = 30;

/// Checks a layer at samples of a shape, `[d]` or `[h, w, c]`: standard normal ones, or where these are mapped to
/// numbers that are not finite, ones between 0 and 1. A registry is needed for a layer of your own that can be saved.
///
/// # Errors
/// Returns [`Failed`] with everything that is wrong.
pub fn check_layer<B: Backend>(
    backend: &B,
    layer: &dyn Layer<B>,
    shape: &[usize],
    key: Key,
    registry: &Registry<B>,
) -> Result<Passed, Failed> {
    check(backend, layer, Samples::Shape(shape), key, registry)
}

/// Checks a layer at samples x `[n, …]`, at least two, for one that does not take any.
///
/// # Errors
/// Returns [`Failed`] with everything that is wrong.
///
/// # Panics
/// With fewer than two samples: how a batch is cut could not be checked.
pub fn check_layer_at<B: Backend>(
    backend: &B,
    layer: &dyn Layer<B>,
    x: &B::Tensor,
    key: Key,
    registry: &Registry<B>,
) -> Result<Passed, Failed> {
    check(backend, layer, Samples::Given(x), key, registry)
}

fn check<B: Backend>(
    backend: &B,
    layer: &dyn Layer<B>,
    samples: Samples<'_, B>,
    key: Key,
    registry: &Registry<B>,
) -> Result<Passed, Failed> {
    let mut report = Report::default();
    let ended = all(&mut report, backend, layer, samples, key, registry);
    report.conclude(layer.describe(), ended)
}

fn all<B: Backend>(
    report: &mut Report,
    backend: &B,
    layer: &dyn Layer<B>,
    samples: Samples<'_, B>,
    key: Key,
    registry: &Registry<B>,
) -> Result<(), Error> {
    let mut moved = layer.boxed_clone();
    parts::check(report, backend, layer, &mut *moved);
    parts::shake(backend, &mut *moved, key);
    moved.update_spectral_norms(backend, PowerIteration::converge::<B>());
    let shape = samples.shape(backend);
    let output = match layer.output_shape(&shape) {
        Ok(output) => output,
        Err(e) => {
            report.find(Property::OutputShape, format!("samples of shape {shape:?} are refused: {e}"));
            return Ok(());
        }
    };
    let candidates = [moved, layer.boxed_clone()];
    let mut value = |number: usize, x: &B::Tensor| {
        let prepared = candidates[number].prepare(backend);
        Ok(prepared.forward(backend, &Batch::new(x.clone()), Derivatives::None).0)
    };
    let Some((number, x)) = draw_samples(report, backend, samples, &output, key, &mut value)? else { return Ok(()) };
    let [moved, given] = candidates;
    let layer = if number == 0 { moved } else { given };
    let prepared = layer.prepare(backend);
    let output = [&[backend.shape(&x).rows()], &output[..]].concat();
    let subject = Subject { backend, layer, prepared, batch: Batch::new(x), output: output[..].into(), key };
    subject.value(report)?;
    if subject.saved(report) && subject.products(report)? {
        pullback::check(report, &subject)?;
    }
    subject.lipschitz(report)?;
    saved::check_layer(report, backend, &*subject.layer, &subject.batch, key, registry)
}

/// A layer and the samples that it is checked at.
pub(super) struct Subject<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) layer: Box<dyn Layer<B>>,
    pub(super) prepared: Box<dyn PreparedLayer<B>>,
    pub(super) batch: Batch<B>,
    /// The shape of y.
    pub(super) output: Shape,
    key: Key,
}

impl<B: Backend> Subject<'_, B> {
    pub(super) fn down(&self, x: &B::Tensor) -> Result<Vec<f64>, Error> {
        down(self.backend, x)
    }

    pub(super) fn normal(&self, purpose: &str, number: u64, shape: Shape) -> B::Tensor {
        normal(self.backend, self.key.named(purpose).split(number), shape)
    }

    pub(super) fn input(&self) -> Shape {
        self.batch.shape(self.backend)
    }

    pub(super) fn forward(&self, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        self.prepared.forward(self.backend, batch, keep)
    }

    /// y is the same whatever is kept, and however the batch is cut.
    fn value(&self, report: &mut Report) -> Result<(), Error> {
        let expected = self.down(&self.forward(&self.batch, Derivatives::None).0)?;
        for keep in [Derivatives::First, Derivatives::Second] {
            let y = self.forward(&self.batch, keep).0;
            let shape = self.backend.shape(&y);
            if shape != self.output {
                report.find(
                    Property::Value,
                    format!("with Derivatives::{keep:?} y is {shape}, expected {}", self.output),
                );
            } else if let Some(Apart { at, found, expected }) = differ::<B>(&self.down(&y)?, &expected) {
                report.find(
                    Property::Value,
                    format!("number {at} of y is {expected:e} with Derivatives::None and {found:e} with Derivatives::{keep:?}"),
                );
            }
        }
        let n = self.output.rows();
        let mut joined = Vec::new();
        for (start, length) in [(0, 1), (1, n - 1)] {
            let piece = self.batch.narrow(self.backend, start, length);
            joined.extend(self.down(&self.forward(&piece, Derivatives::None).0)?);
        }
        if joined.len() != expected.len() {
            let sentence =
                format!("y has {} numbers for the whole batch and {} for its pieces", expected.len(), joined.len());
            report.find(Property::BatchCut, sentence);
        } else if let Some(Apart { at, found, expected }) = differ::<B>(&joined, &expected) {
            report.find(
                Property::BatchCut,
                format!("number {at} of y is {expected:e} in the whole batch and {found:e} in a piece of it: a sample must not depend on the others"),
            );
        }
        Ok(())
    }

    /// Everything that is kept has samples first; returns whether it has.
    fn saved(&self, report: &mut Report) -> bool {
        let before = report.findings.len();
        let n = self.output.rows();
        // two batches, so that an axis that happens to be as long is not taken for that of the samples
        for batch in [self.batch.clone(), self.batch.narrow(self.backend, 0, n - 1)] {
            for keep in [Derivatives::None, Derivatives::First, Derivatives::Second] {
                let (_, kept) = self.forward(&batch, keep);
                self.samples_first(
                    report,
                    &kept,
                    batch.len(self.backend),
                    &format!("forward with Derivatives::{keep:?}"),
                );
                if report.findings.len() > before || keep == Derivatives::None {
                    continue;
                }
                let dx = self.normal("dx", 0, batch.shape(self.backend));
                let kept = self.prepared.jvp(self.backend, &kept, &dx).1;
                self.samples_first(report, &kept, batch.len(self.backend), "jvp");
            }
        }
        report.findings.len() == before
    }

    fn samples_first(&self, report: &mut Report, saved: &Saved<B>, samples: usize, of: &str) {
        for (number, tensor) in saved.tensors.iter().enumerate() {
            let shape = self.backend.shape(tensor);
            if shape.rank() == 0 || shape.rows() != samples {
                report.find(
                    Property::Saved,
                    format!(
                        "tensor {number} that {of} keeps of {samples} samples is {shape}: samples come first, since some of them are taken out and repeated; what is the same for all of them belongs into the prepared layer"
                    ),
                );
            }
        }
        for part in &saved.parts {
            self.samples_first(report, part, samples, of);
        }
    }

    /// `jvp` is the derivative of `forward` and `vjp` its adjoint; returns whether their shapes are right.
    fn products(&self, report: &mut Report) -> Result<bool, Error> {
        let (b, x) = (self.backend, &self.batch.x);
        let (dx, gy) = (self.normal("dx", 0, self.input()), self.normal("gy", 0, self.output));
        let mut products = Vec::new();
        for keep in [Derivatives::First, Derivatives::Second] {
            let (_, kept) = self.forward(&self.batch, keep);
            let (dy, gx) = (self.prepared.jvp(b, &kept, &dx).0, self.prepared.vjp(b, &kept, gy.clone()));
            if b.shape(&dy) != self.output {
                report
                    .find(Property::Jvp, format!("J dx is {}, expected {}, the shape of y", b.shape(&dy), self.output));
                return Ok(false);
            }
            if b.shape(&gx) != self.input() {
                report.find(
                    Property::Vjp,
                    format!("Jᵀ gy is {}, expected {}, the shape of x", b.shape(&gx), self.input()),
                );
                return Ok(false);
            }
            // the same for other samples of what was kept: the last first
            let order: Vec<u32> = (0..self.output.rows() as u32).rev().collect();
            let turned = kept.take_rows(b, &order);
            let back = self.prepared.vjp(b, &turned, b.take_rows(&gy, &order));
            if let Some(Apart { at, found, expected }) =
                differ::<B>(&self.down(&b.take_rows(&back, &order))?, &self.down(&gx)?)
            {
                report.find(
                    Property::Saved,
                    format!("number {at} of Jᵀ gy is {expected:e}, and {found:e} where the samples that were kept are taken in another order"),
                );
            }
            products.push((self.down(&dy)?, self.down(&gx)?));
        }
        let [(dy, gx), second] = &products[..] else { return Ok(false) };
        for (property, what, found, expected) in
            [(Property::Jvp, "J dx", &second.0, dy), (Property::Vjp, "Jᵀ gy", &second.1, gx)]
        {
            if let Some(Apart { at, found, expected }) = differ::<B>(found, expected) {
                report.find(
                    property,
                    format!("number {at} of {what} is {expected:e} with what Derivatives::First keeps and {found:e} with Derivatives::Second"),
                );
            }
        }
        let along = |h: f64| {
            let moved = self.batch.with_x(b.axpy(h, &dx, x.clone()));
            self.down(&self.forward(&moved, Derivatives::None).0)
        };
        if let Some(off) = disagree::<B>(dy, largest(dy), along)? {
            report.find(
                Property::Jvp,
                format!(
                    "number {} of J dx is {:e}, by differences of forward {:e}{}",
                    off.at,
                    off.found,
                    off.expected,
                    off.guess()
                ),
            );
        }
        let (gy, dx) = (self.down(&gy)?, self.down(&dx)?);
        let (left, right) = (dot(&gy, dy), dot(gx, &dx));
        let terms = size(&gy, dy).max(size(gx, &dx));
        if let Some(off) = apart(&[right], &[left], tolerance::rounding::<B>() * (1e-3 + terms)) {
            report.find(
                Property::Vjp,
                format!(
                    "⟨Jᵀ u, v⟩ is {right:e}, while ⟨u, J v⟩ is {left:e}{}: it must be the adjoint of jvp",
                    off.guess()
                ),
            );
        }
        Ok(true)
    }

    /// The lengths of a tensor's samples.
    fn lengths(&self, x: &B::Tensor) -> Result<Vec<f64>, Error> {
        let width = self.backend.shape(x).row_elements().max(1);
        Ok(self.down(x)?.chunks_exact(width).map(|sample| dot(sample, sample).sqrt()).collect())
    }

    /// No pair of samples, near or far, and no direction is stretched more than the bound says.
    fn lipschitz(&self, report: &mut Report) -> Result<(), Error> {
        let b = self.backend;
        let (input, output) = (self.input(), self.output);
        let stated = self.layer.lipschitz_bound();
        if stated.is_nan() || stated < 0.0 {
            report.find(Property::Lipschitz, format!("it is {stated}: say infinity where there is none"));
            return Ok(());
        }
        // in other norms than the 2-norm that in which distances are taken may be larger
        let factor = self.layer.two_norm_factor(&input[1..]).max(self.layer.two_norm_factor(&output[1..]));
        let bound = stated * factor * (1.0 + tolerance::LIPSCHITZ);
        let mut worst: Option<(f64, &str)> = None;
        let mut see = |stretched: &[f64], lengths: &[f64], what: &'static str| {
            for (stretched, length) in stretched.iter().zip(lengths) {
                if *length > 0.0 && *stretched > bound * length && worst.is_none_or(|(w, _)| stretched / length > w) {
                    worst = Some((stretched / length, what));
                }
            }
        };
        let x = &self.batch.x;
        let y = self.forward(&self.batch, Derivatives::None).0;
        for (number, distance) in [0.01, 1.0, 10.0].into_iter().enumerate() {
            let step = b.affine(self.normal("pair", number as u64, input), distance, 0.0);
            let other = self.forward(&self.batch.with_x(b.axpy(1.0, &step, x.clone())), Derivatives::None).0;
            see(&self.lengths(&b.axpy(-1.0, &y, other))?, &self.lengths(&step)?, "a random pair of samples");
        }
        let (_, kept) = self.forward(&self.batch, Derivatives::First);
        let mut v = self.normal("pair", 3, input);
        for _ in 0..ITERATIONS {
            let lengths = self.lengths(&v)?;
            let width = input.row_elements().max(1);
            let values = self.down(&v)?;
            let unit = values.iter().enumerate().map(|(at, v)| v / lengths[at / width].max(f64::MIN_POSITIVE));
            v = up(b, &unit.collect::<Vec<_>>(), input);
            let dy = self.prepared.jvp(b, &kept, &v).0;
            if b.shape(&dy) != output {
                return Ok(());
            }
            see(&self.lengths(&dy)?, &self.lengths(&v)?, "a direction at a sample");
            v = self.prepared.vjp(b, &kept, dy);
            if b.shape(&v) != input {
                return Ok(());
            }
        }
        if let Some((stretch, what)) = worst {
            report.find(
                Property::Lipschitz,
                format!("{what} is stretched {stretch} times, while `lipschitz_bound` says {stated} at most: a block of such layers has no inverse"),
            );
        }
        Ok(())
    }
}
