//! The backward pass of a transform: the gradient of Σ wᵢ (⟨cᵢ, yᵢ⟩ + log detᵢ) in x and in every trained tensor.

use resflow_backend::{Backend, Binary};

use super::bijection::{LogDets, Subject};
use super::differences::{Apart, differ, disagree_along, dot, down, moves, up};
use super::parts::{Stored, shift, trained};
use super::{Property, Report, tolerance};
use crate::batch::per_sample;
use crate::bijection::{Ask, Cotangents, Memory, PreparedBijection};
use crate::error::Error;
use crate::lipschitz::PowerIteration;
use crate::module::Grad;

/// Draws over which the gradient of a log det that is never exact is averaged.
const DRAWS: u64 = 256;

/// The gradients that a backward pass gave.
#[derive(Debug, Clone, PartialEq)]
struct Gradients {
    x: Vec<f64>,
    /// Of each trained tensor that got one.
    parameters: Vec<Option<Vec<f64>>>,
}

/// A way through a transform and back.
#[derive(Clone, Copy)]
struct Pass<'w> {
    memory: Memory,
    /// The number of the first sample that goes, of as many as there are weights.
    start: usize,
    /// The number of the draw.
    draw: u64,
    /// w, one a sample.
    weights: &'w [f64],
    /// The number of times that the backward pass adds to the same gradients.
    times: usize,
}

struct Backward<'a, 'b, B: Backend> {
    subject: &'a Subject<'b, B>,
    trained: Vec<Stored>,
    /// c, of the shape of y.
    cotangent: B::Tensor,
    /// Makes the log det part of the function.
    log_det: bool,
    exact: bool,
}

/// Checks the backward pass; the log det is left out if it did not come.
pub(super) fn check<B: Backend>(
    report: &mut Report,
    subject: &Subject<'_, B>,
    log_det: Option<LogDets>,
) -> Result<(), Error> {
    let backward = Backward {
        subject,
        trained: trained(subject.backend, &*subject.transform),
        cotangent: subject.normal("cotangent", subject.output),
        log_det: log_det.is_some(),
        exact: log_det.is_none_or(|l| l.exact),
    };
    // no two weights are alike, and none is 1
    let weights: Vec<f64> = (0..subject.samples()).map(|i| 0.6 + 0.75 * i as f64).collect();
    let pass = Pass { memory: Memory::Store, start: 0, draw: 0, weights: &weights, times: 1 };
    let Some(gradients) = backward.pass(report, pass)? else { return Ok(()) };
    backward.by_samples(report, pass, &gradients)?;
    backward.adds(report, pass, &gradients)?;
    backward.memory(report, pass, &gradients)?;
    let mut mean = gradients;
    let mut all = vec![mean.clone()];
    if !backward.exact {
        for draw in 1..DRAWS {
            let Some(next) = backward.pass(report, Pass { draw, ..pass })? else { return Ok(()) };
            all.push(next);
        }
        mean = Gradients::mean(&all);
    }
    backward.in_x(report, &weights, &mean, &all)?;
    for slot in 0..backward.trained.len() {
        backward.in_parameter(report, &weights, slot, &mean, &all)?;
    }
    Ok(())
}

impl Gradients {
    fn mean(all: &[Self]) -> Self {
        let count = all.len() as f64;
        let mean = |each: &dyn Fn(&Self) -> Option<&[f64]>| {
            all.iter().filter_map(each).fold(None, |sum: Option<Vec<f64>>, next| {
                let sum = sum.unwrap_or_else(|| vec![0.0; next.len()]);
                Some(sum.iter().zip(next).map(|(s, x)| s + x / count).collect())
            })
        };
        let parameters = (0..all[0].parameters.len()).map(|slot| mean(&|g| g.parameters[slot].as_deref())).collect();
        Self { x: mean(&|g| Some(&g.x)).unwrap_or_default(), parameters }
    }
}

impl<B: Backend> Backward<'_, '_, B> {
    fn pass(&self, report: &mut Report, pass: Pass<'_>) -> Result<Option<Gradients>, Error> {
        let s = self.subject;
        let backend = s.backend;
        let mut grads: Vec<Grad<B>> = vec![None; self.trained.len()];
        let n = pass.weights.len();
        let batch = s.batch.narrow(backend, pass.start, n);
        let cotangent = backend.narrow(&self.cotangent, 0, pass.start, n);
        let weights = up(backend, pass.weights, [n, 1].into());
        let log_det = if self.log_det { weights.clone() } else { backend.full(0.0, backend.shape(&weights)) };
        let weights = per_sample(backend, &weights, s.output.with_rows(n));
        let mut x = None;
        for _ in 0..pass.times {
            let ask = Ask::gradient::<B>(s.exact(pass.draw), pass.memory);
            let Some(tape) = s.prepared.forward(backend, &batch, &ask)?.tape else {
                report.find(
                    Property::Gradient,
                    "no tape comes when a gradient is asked for: keep in `Mapped::tape` what `backward` needs".into(),
                );
                return Ok(None);
            };
            let cotangents = Cotangents {
                x: backend.binary(Binary::Mul, cotangent.clone(), &weights),
                log_det: log_det.clone(),
                context: None,
            };
            let back = s.prepared.backward(backend, tape, cotangents, &mut grads)?;
            if backend.shape(&back.log_det) != backend.shape(&log_det)
                || down(backend, &back.log_det)? != down(backend, &log_det)?
            {
                report.find(
                    Property::Gradient,
                    "`backward` changes the cotangent of the log det, which is that of all transforms of a chain: hand it on, with `Cotangents::with_x`".into(),
                );
            }
            x = Some(back.x);
        }
        s.prepared.finish_gradients(backend, &mut grads);
        let Some(x) = x else { return Ok(None) };
        let (found, expected) = (backend.shape(&x), batch.shape(backend));
        let mut sound = found == expected;
        if !sound {
            report
                .find(Property::Gradient, format!("the gradient in x is {found}, expected {expected}, the shape of x"));
        }
        let mut parameters = Vec::new();
        for (Stored { name, shape, .. }, grad) in self.trained.iter().zip(&grads) {
            let found = grad.as_ref().map(|g| backend.shape(g));
            if let Some(found) = found.filter(|found| found != shape) {
                sound = false;
                report.find(
                    Property::Gradient,
                    format!("that of `{name}` is {found}, expected {shape}, the shape of the tensor"),
                );
            }
            parameters.push(grad.as_ref().map(|g| down(backend, g)).transpose()?);
        }
        Ok(if sound { Some(Gradients { x: down(backend, &x)?, parameters }) } else { None })
    }

    /// Compares gradients with expected ones, x first; zeros where there is none.
    fn compare(&self, found: &Gradients, expected: &Gradients, mut off: impl FnMut(&str, Apart)) {
        if let Some(apart) = differ::<B>(&found.x, &expected.x) {
            off("x", apart);
        }
        for (slot, Stored { name, shape, .. }) in self.trained.iter().enumerate() {
            let filled = |g: &Gradients| g.parameters[slot].clone().unwrap_or_else(|| vec![0.0; shape.elements()]);
            if let Some(apart) = differ::<B>(&filled(found), &filled(expected)) {
                off(&format!("`{name}`"), apart);
            }
        }
    }

    /// The gradients of the samples one by one, together.
    fn one_by_one(&self, report: &mut Report, pass: Pass<'_>) -> Result<Option<Gradients>, Error> {
        let mut sum = Gradients { x: Vec::new(), parameters: vec![None; self.trained.len()] };
        for (start, weight) in pass.weights.iter().enumerate() {
            let weights = &[*weight];
            let Some(one) = self.pass(report, Pass { start, weights, ..pass })? else { return Ok(None) };
            sum.x.extend(one.x);
            for (sum, one) in sum.parameters.iter_mut().zip(one.parameters) {
                let Some(one) = one else { continue };
                let all = sum.get_or_insert_with(|| vec![0.0; one.len()]);
                all.iter_mut().zip(one).for_each(|(sum, g)| *sum += g);
            }
        }
        Ok(Some(sum))
    }

    /// The gradients are those of the samples one by one, together.
    fn by_samples(&self, report: &mut Report, pass: Pass<'_>, gradients: &Gradients) -> Result<(), Error> {
        let Some(single) = self.one_by_one(report, pass)? else { return Ok(()) };
        // with equal weights a mistake in the weights alone is not seen
        let equal = Pass { weights: &vec![1.0; pass.weights.len()], ..pass };
        let (Some(together), Some(apart)) = (self.pass(report, equal)?, self.one_by_one(report, equal)?) else {
            return Ok(());
        };
        let mut same = true;
        self.compare(&together, &apart, |_, _| same = false);
        self.compare(gradients, &single, |what, Apart { at, found, expected }| {
            let (property, how) = if same {
                (
                    Property::SampleWeights,
                    "it is right where all weights are 1: `Cotangents::log_det` is [n, 1], each sample's own weight, as `batch::per_sample` multiplies with it",
                )
            } else {
                (Property::BatchCut, "a sample must not depend on the others")
            };
            report.find(
                property,
                format!(
                    "number {at} of the gradient in {what} is {found:e} for the whole batch, and {expected:e} for its samples one by one: {how}"
                ),
            );
        });
        Ok(())
    }

    /// Gradients in trained tensors are added to what is there.
    fn adds(&self, report: &mut Report, pass: Pass<'_>, gradients: &Gradients) -> Result<(), Error> {
        let Some(twice) = self.pass(report, Pass { times: 2, ..pass })? else { return Ok(()) };
        let double = |g: &Vec<f64>| g.iter().map(|g| 2.0 * g).collect();
        let expected = Gradients {
            x: gradients.x.clone(),
            parameters: gradients.parameters.iter().map(|g| g.as_ref().map(double)).collect(),
        };
        self.compare(&twice, &expected, |what, Apart { at, found, expected }| {
            report.find(
                Property::Accumulation,
                format!(
                    "after two backward passes number {at} of the gradient in {what} is {found:e}, expected {expected:e}: parameters' gradients are added to what is there (`module::accumulate`), that in x is not"
                ),
            );
        });
        Ok(())
    }

    /// The gradient is the same whatever is kept; of log dets that are never exact it depends on how they are
    /// differentiated.
    fn memory(&self, report: &mut Report, pass: Pass<'_>, gradients: &Gradients) -> Result<(), Error> {
        if !self.exact {
            return Ok(());
        }
        for memory in [Memory::Recompute, Memory::Unroll] {
            let Some(other) = self.pass(report, Pass { memory, ..pass })? else { return Ok(()) };
            self.compare(&other, gradients, |what, Apart { at, found, expected }| {
                report.find(
                    Property::Memory,
                    format!(
                        "number {at} of the gradient in {what} is {expected:e} with Memory::Store and {found:e} with Memory::{memory:?}"
                    ),
                );
            });
        }
        Ok(())
    }

    /// Σ wᵢ (⟨cᵢ, yᵢ⟩ + log detᵢ) of a transform at samples x.
    fn objective(&self, prepared: &dyn PreparedBijection<B>, x: &B::Tensor, weights: &[f64]) -> Result<f64, Error> {
        let s = self.subject;
        let ask = Ask::log_det::<B>(s.exact(0), 1);
        let mapped = prepared.forward(s.backend, &s.batch.with_x(x.clone()), &ask)?;
        let (y, c) = (down(s.backend, &mapped.y)?, down(s.backend, &self.cotangent)?);
        let width = s.output.row_elements().max(1);
        let pairs = y.chunks_exact(width).zip(c.chunks_exact(width));
        let through_y: f64 = pairs.zip(weights).map(|((y, c), w)| w * dot(y, c)).sum();
        if !self.log_det {
            return Ok(through_y);
        }
        let log_det = if self.exact {
            let total = s.total(&mut Report::default(), &mapped, [s.samples(), 1], "the log det")?;
            total.map_or_else(|| vec![f64::NAN; weights.len()], |total| total.values)
        } else {
            let [log_det, _] = s.by_differences(prepared, x, tolerance::steps::<B>()[0])?;
            down(s.backend, &log_det)?
        };
        Ok(through_y + dot(&log_det, weights))
    }

    /// The error that an average over draws may have.
    fn spread(&self, all: &[Gradients], along: impl Fn(&Gradients) -> f64) -> f64 {
        let n = all.len() as f64;
        if self.exact {
            return 0.0;
        }
        let values: Vec<_> = all.iter().map(along).collect();
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        tolerance::STANDARD_ERRORS * (variance / n).sqrt()
    }

    fn in_x(&self, report: &mut Report, weights: &[f64], mean: &Gradients, all: &[Gradients]) -> Result<(), Error> {
        let s = self.subject;
        if !self.exact && !s.is_small() {
            let sentence = "not checked: the log det is never exact, and a sample is large; check a smaller shape";
            report.note(Property::Gradient, sentence.into());
            return Ok(());
        }
        let direction = s.normal("direction", s.batch.shape(s.backend));
        let along = down(s.backend, &direction)?;
        let spread = self.spread(all, |g| dot(&g.x, &along));
        let at = |h: f64| self.objective(&*s.prepared, &s.backend.axpy(h, &direction, s.batch.x.clone()), weights);
        if let Some(off) = disagree_along::<B>(&mean.x, &along, at)?
            && (off.found - off.expected).abs() > spread
        {
            report.find(Property::Gradient, self.sentence("x", off));
        }
        Ok(())
    }

    fn in_parameter(
        &self,
        report: &mut Report,
        weights: &[f64],
        slot: usize,
        mean: &Gradients,
        all: &[Gradients],
    ) -> Result<(), Error> {
        let s = self.subject;
        if !self.exact && !s.is_small() {
            return Ok(());
        }
        let Stored { name, shape, .. } = &self.trained[slot];
        let direction = s.normal(&format!("direction of {name}"), *shape);
        let along = down(s.backend, &direction)?;
        let value = |h: f64, how: Option<PowerIteration>| {
            let mut moved = s.transform.boxed_clone();
            shift(s.backend, &mut *moved, name, &direction, h);
            if let Some(how) = how {
                moved.update_spectral_norms(s.backend, how);
            }
            self.objective(&*moved.prepare(s.backend), &s.batch.x, weights)
        };
        let at = |h: f64| value(h, None);
        let Some(gradient) = &mean.parameters[slot] else {
            match moves::<B>(at)? {
                Some(slope) => report.find(
                    Property::Gradient,
                    format!("`{name}` gets none, while by differences it is {slope:e} along a random direction: add it to `grads[{slot}]`"),
                ),
                None => report.note(Property::Gradient, format!("`{name}` gets none, and y and the log det do not depend on it")),
            }
            return Ok(());
        };
        let spread = self.spread(all, |g| g.parameters[slot].as_deref().map_or(0.0, |g| dot(g, &along)));
        // learned orders of norms move the singular vectors, which stay where they are otherwise
        if let Some(off) = disagree_along::<B>(gradient, &along, at)?
            && disagree_along::<B>(gradient, &along, |h| value(h, Some(PowerIteration::converge::<B>())))?.is_some()
            && (off.found - off.expected).abs() > spread
        {
            report.find(Property::Gradient, self.sentence(&format!("`{name}`, trained tensor {slot},"), off));
        }
        Ok(())
    }

    fn sentence(&self, what: &str, off: Apart) -> String {
        let log_det = if self.log_det { "log detᵢ" } else { "0" };
        format!(
            "that of Σ wᵢ (⟨cᵢ, yᵢ⟩ + {log_det}) in {what} is {:e} along a random direction, by differences {:e}{}",
            off.found,
            off.expected,
            off.guess()
        )
    }
}
