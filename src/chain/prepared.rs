//! A chain ready for computing: every walk through its transforms.

use std::ops::Range;
use std::sync::Mutex;

use resflow_backend::{Backend, Shape};

use super::Observer;
use super::certificate::{Certificate, Twin};
use super::parts::{Parts, part_with, reunite};
use crate::batch::Batch;
use crate::bijection::{Ask, Cotangents, Mapped, Memory, PreparedBijection, Tape, Velocity, Wanted};
use crate::error::Error;
use crate::group::Section;
use crate::invert::{Inversion, SampleReport, Solution, Status, merge_reports};
use crate::module::{Grad, accumulate, fill, flatten};

/// A transform of a prepared chain, with what the chain knows of it.
#[derive(Debug)]
pub(super) struct Step<B: Backend> {
    pub(super) transform: Box<dyn PreparedBijection<B>>,
    pub(super) factored_out: usize,
    pub(super) saturates: bool,
    /// The place of the gradients of its trained tensors among the chain's.
    pub(super) grads: Range<usize>,
    /// The shapes of those tensors.
    pub(super) shapes: Vec<Shape>,
}

/// A chain ready for computing.
#[derive(Debug)]
pub struct PreparedChain<B: Backend> {
    pub(super) steps: Vec<Step<B>>,
    pub(super) parts: Parts,
    /// What certifies the inverse of each transform, where that was asked for.
    pub(super) certificates: Option<Vec<Option<Certificate>>>,
}

/// The tape of a chain, for its backward pass.
pub(super) struct ChainTape {
    pub(super) tapes: Vec<Tape>,
}

/// Samples on their way forward.
pub(super) struct Forth<B: Backend> {
    pub(super) batch: Batch<B>,
    left: Vec<B::Tensor>,
    pub(super) tapes: Vec<Tape>,
    found: Mapped<B>,
}

impl<B: Backend> PreparedChain<B> {
    /// The number of transforms.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Returns `true` if there are no transforms.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether all that certifies the inverses was asked for and found.
    pub fn is_certified(&self) -> bool {
        self.certificates.as_ref().is_some_and(|all| all.iter().all(Option::is_some))
    }

    /// Transform number `l`.
    pub fn transform(&self, l: usize) -> &dyn PreparedBijection<B> {
        &*self.steps[l].transform
    }

    /// The number of trained tensors.
    pub fn grads(&self) -> usize {
        self.steps.last().map_or(0, |step| step.grads.end)
    }

    /// Takes samples through some of the transforms.
    pub(super) fn walk(
        &self,
        backend: &B,
        batch: &Batch<B>,
        ask: &Ask<'_>,
        range: Range<usize>,
        observe: Observer<'_, B>,
    ) -> Result<Forth<B>, Error> {
        let mut way =
            Forth { batch: batch.clone(), left: Vec::new(), tapes: Vec::new(), found: Mapped::value(batch.x.clone()) };
        for l in range {
            let step = &self.steps[l];
            let mapped = step.transform.forward(backend, &way.batch, &ask.for_transform(l as u64))?;
            check(backend, l, &way.batch, ask, &mapped)?;
            way.tapes.extend(mapped.tape);
            observe(l, &mapped.y, step.factored_out);
            way.found.log_dets.extend(mapped.log_dets);
            way.found.terms += mapped.terms;
            if let Some(reports) = mapped.reports {
                merge_reports(&mut way.found.reports, reports);
            }
            let (rest, left) = part_with(backend, mapped.y, step.factored_out);
            way.batch.x = rest;
            way.left.extend(left);
        }
        Ok(way)
    }

    /// Makes [`PreparedBijection::forward`], showing the output of each transform.
    ///
    /// # Errors
    /// Returns [`Error::Transform`] if a transform did not give what it was asked for, and the error of one that
    /// failed.
    pub fn forward_observed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        ask: &Ask<'_>,
        observe: Observer<'_, B>,
    ) -> Result<Mapped<B>, Error> {
        self.forward_from(backend, 0, batch, ask, observe)
    }

    /// Goes forward from the input of transform number `first` on.
    pub(crate) fn forward_from(
        &self,
        backend: &B,
        first: usize,
        batch: &Batch<B>,
        ask: &Ask<'_>,
        observe: Observer<'_, B>,
    ) -> Result<Mapped<B>, Error> {
        let Forth { batch, left, tapes, found } = self.walk(backend, batch, ask, first..self.steps.len(), observe)?;
        let y = Parts::join(backend, &left, &batch.x);
        let tape = matches!(ask.wanted, Wanted::Gradient { .. }).then(|| Tape::new(ChainTape { tapes }));
        Ok(Mapped { y, tape, ..found })
    }

    /// Goes through the first `count` transforms only, for what is to be seen on the way.
    pub(crate) fn observe(
        &self,
        backend: &B,
        batch: &Batch<B>,
        count: usize,
        observe: Observer<'_, B>,
    ) -> Result<(), Error> {
        self.walk(backend, batch, &Ask::value::<B>(), 0..count.min(self.steps.len()), observe).map(drop)
    }

    /// Makes [`PreparedBijection::inverse`], showing the output of each transform on the way back.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn inverse_observed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        how: &Inversion,
        observe: Observer<'_, B>,
    ) -> Result<Solution<B>, Error> {
        let mut left = self.parts.split(backend, &batch.x);
        let mut rest = left.pop().expect("z has at least one part");
        let fresh = SampleReport { residual: 0.0, error_bound: 0.0, iterations: 0, status: Status::Converged };
        let mut reports = vec![fresh; batch.len(backend)];
        let (mut stretch, mut certified) = (1.0, true);
        let mut twin = self.is_certified().then(Twin::new);
        for (l, step) in self.steps.iter().enumerate().rev() {
            let y = reunite(backend, rest, &mut left, step.factored_out);
            observe(l, &y, step.factored_out);
            let solution = step.transform.inverse(backend, &batch.with_x(y.clone()), how)?;
            let solution = match (&self.certificates, &mut twin) {
                (Some(all), Some(twin)) => {
                    let certificate = all[l].as_ref().expect("of every transform");
                    twin.go(backend, certificate, step, &y, how, solution)?
                }
                (Some(_), None) => Solution { certified: false, ..solution },
                (None, _) => solution,
            };
            rest = solution.value;
            stretch *= solution.stretch;
            certified &= solution.certified;
            for (total, own) in reports.iter_mut().zip(&solution.reports) {
                // a zero error stays zero even if the stretch is infinite (0·∞ would be NaN)
                let grown = if total.error_bound > 0.0 { total.error_bound * solution.stretch } else { 0.0 };
                // a certified bound is that of the whole way already
                total.error_bound = if twin.is_some() { own.error_bound } else { grown + own.error_bound };
                total.iterations += own.iterations;
                total.residual = total.residual.max(own.residual);
                total.status = total.status.max(own.status);
            }
        }
        Ok(Solution { value: rest, reports, stretch, certified })
    }

    /// Returns the transform at whose input the inverse is best measured: the first, or, if a first one
    /// saturates, the next.
    pub(crate) fn measured_from(&self) -> usize {
        let last = self
            .steps
            .iter()
            .enumerate()
            .rev()
            .find(|(l, step)| step.saturates && self.steps[..*l].iter().all(|before| before.factored_out == 0));
        last.map_or(0, |(l, _)| l + 1)
    }

    /// The one transform that has a velocity: its number, the velocity and the place of its gradients; `None` where none has, or
    /// more than one.
    pub(crate) fn velocity(&self) -> Option<(usize, &dyn Velocity<B>, Range<usize>)> {
        let found = |(l, step): (usize, &'_ Step<B>)| Some((l, step.transform.velocity().map(|_| step.grads.clone())?));
        let mut all = self.steps.iter().enumerate().filter_map(found);
        let (Some((l, grads)), None) = (all.next(), all.next()) else { return None };
        Some((l, self.steps[l].transform.velocity()?, grads))
    }

    /// Takes samples forward through the transforms before number `l`, and z, `[n, d]`, back through those behind it: its input
    /// and its output, of a chain that factors nothing out.
    ///
    /// # Errors
    /// Returns the error of a transform that failed.
    pub(crate) fn both_ends(
        &self,
        backend: &B,
        l: usize,
        batch: &Batch<B>,
        z: B::Tensor,
        how: &Inversion,
    ) -> Result<[B::Tensor; 2], Error> {
        let x = self.walk(backend, batch, &Ask::value::<B>(), 0..l, &mut |_, _, _| ())?.batch.x;
        let mut y = self.parts.split(backend, &z).pop().expect("z has at least one part");
        for step in self.steps[l + 1..].iter().rev() {
            y = step.transform.inverse(backend, &batch.with_x(y), how)?.value;
        }
        Ok([x, y])
    }

    /// The transforms in the order of a backward pass, as many together as have `least` gradients.
    pub(crate) fn sections(&self, least: usize) -> Vec<Section> {
        let mut sections: Vec<Section> = Vec::new();
        let mut numbers = 0;
        for (l, step) in self.steps.iter().enumerate().rev() {
            numbers += step.shapes.iter().map(Shape::elements).sum::<usize>();
            if numbers >= least || l == 0 {
                let end = sections.last().map_or(self.grads(), |before| before.grads.start);
                sections.push(Section { first: l, grads: step.grads.start..end });
                numbers = 0;
            }
        }
        sections
    }

    /// Makes [`PreparedBijection::backward_reported`]; `join` may change the cotangent of each transform's output, `left` sees the
    /// gradients when the pass has left transform number `l`.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed, or another error of the transform whose backward pass failed.
    pub(crate) fn backward_joined(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
        reports: &mut Option<Vec<SampleReport>>,
        join: &dyn Fn(usize, B::Tensor, usize) -> B::Tensor,
        left: &dyn Fn(usize, &[Grad<B>]),
    ) -> Result<Cotangents<B>, Error> {
        let ChainTape { tapes } = tape.into_value::<ChainTape>();
        let mut parts = self.parts.split(backend, &cotangents.x);
        let last = parts.pop().expect("z has at least one part");
        let mut passing = cotangents.with_x(last);
        for ((l, step), tape) in self.steps.iter().enumerate().zip(tapes).rev() {
            let Cotangents { x, log_det, context } = passing;
            let gy = join(l, reunite(backend, x, &mut parts, step.factored_out), step.factored_out);
            let own = &mut grads[step.grads.clone()];
            let cotangents = Cotangents { x: gy, log_det, context };
            passing = step.transform.backward_reported(backend, tape, cotangents, own, reports)?;
            left(l, grads);
        }
        Ok(passing)
    }

    /// Gathers the gradients of all stored tensors, one after the other, of those of the lanes: each transform's are
    /// added in the order of the lanes and finished, all transforms at once.
    ///
    /// # Errors
    /// Returns [`Error::Transform`] if the gradient of a tensor is not of its shape.
    pub(crate) fn gather(&self, backend: &B, lanes: &[Vec<Grad<B>>]) -> Result<Vec<B::Tensor>, Error> {
        let parts = backend.run(self.steps.len(), |l| {
            let step = &self.steps[l];
            let mut sums = add_up(backend, lanes.iter().map(|lane| &lane[step.grads.clone()]));
            step.finish(backend, &mut sums);
            step.check_gradients(backend, l, &sums)?;
            Ok(flatten(backend, sums.iter().flatten()))
        });
        Ok(parts.into_iter().collect::<Result<Vec<_>, Error>>()?.into_iter().flatten().collect())
    }
}

/// Checks that a transform gave what it was asked for, in the right shapes.
fn check<B: Backend>(
    backend: &B,
    number: usize,
    batch: &Batch<B>,
    ask: &Ask<'_>,
    mapped: &Mapped<B>,
) -> Result<(), Error> {
    let problem = |problem: String| Err(Error::Transform { number, problem });
    let n = batch.len(backend);
    let y = backend.shape(&mapped.y);
    if y.rank() < 2 || y.rows() != n {
        return problem(format!("gave a y of shape {y} for {n} samples: expected [{n}, …]"));
    }
    let Some(replicates) = ask.replicates() else { return Ok(()) };
    if mapped.log_dets.is_empty() {
        return problem("gave no log det, although one was asked for".into());
    }
    for log_det in &mapped.log_dets {
        let (found, columns) = (backend.shape(&log_det.value), if log_det.exact { 1 } else { replicates });
        if found[..] != [n, columns] {
            let kind = if log_det.exact { "an exact log det" } else { "estimates of a log det" };
            return problem(format!("gave {kind} of shape {found}: expected [{n}, {columns}]"));
        }
    }
    if matches!(ask.wanted, Wanted::Gradient { .. }) && mapped.tape.is_none() {
        return problem("kept nothing for the backward pass that was announced".into());
    }
    Ok(())
}

/// Sums over lanes, in their order.
pub(crate) fn add_up<'a, B: Backend>(backend: &B, lanes: impl Iterator<Item = &'a [Grad<B>]>) -> Vec<Grad<B>> {
    let mut sums: Vec<Grad<B>> = Vec::new();
    for grads in lanes {
        sums.resize(grads.len(), None);
        for (sum, grad) in sums.iter_mut().zip(grads) {
            if let Some(gradient) = grad {
                accumulate(backend, sum, gradient);
            }
        }
    }
    sums
}

impl<B: Backend> Step<B> {
    /// Finishes the gradients of a transform; what got none becomes zeros.
    fn finish(&self, backend: &B, grads: &mut Vec<Grad<B>>) {
        grads.resize(self.shapes.len(), None);
        self.transform.finish_gradients(backend, grads);
        fill(backend, grads, &self.shapes);
    }

    /// Checks that each gradient has the shape of its tensor.
    fn check_gradients(&self, backend: &B, number: usize, grads: &[Grad<B>]) -> Result<(), Error> {
        for (i, (grad, shape)) in grads.iter().zip(&self.shapes).enumerate() {
            let found = grad.as_ref().map(|grad| backend.shape(grad));
            if let Some(found) = found.filter(|found| found != shape) {
                let problem = format!("gave its trained tensor {i}, of shape {shape}, a gradient of shape {found}");
                return Err(Error::Transform { number, problem });
            }
        }
        Ok(())
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedChain<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        self.forward_observed(backend, batch, ask, &mut |_, _, _| ())
    }

    fn solves_forward(&self) -> Option<f64> {
        // several solves are not one
        self.has_solves().then_some(f64::INFINITY)
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, how: &Inversion) -> Result<Solution<B>, Error> {
        self.inverse_observed(backend, batch, how, &mut |_, _, _| ())
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        self.pull_back_inverse(backend, batch, gradient, how, Memory::Store, None)
    }

    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error> {
        self.backward_reported(backend, tape, cotangents, grads, &mut None)
    }

    fn backward_reported(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
        reports: &mut Option<Vec<SampleReport>>,
    ) -> Result<Cotangents<B>, Error> {
        self.backward_joined(backend, tape, cotangents, grads, reports, &|_, gy, _| gy, &|_, _| ())
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        // each transform takes its own, so that a large sum is nowhere held twice
        let owned: Vec<_> = self
            .steps
            .iter()
            .map(|s| Mutex::new(grads[s.grads.clone()].iter_mut().map(Option::take).collect::<Vec<_>>()))
            .collect();
        let finished = backend.run(self.steps.len(), |l| {
            let mut own = owned[l].lock().map(|mut own| std::mem::take(&mut *own)).unwrap_or_default();
            self.steps[l].finish(backend, &mut own);
            own
        });
        for (grad, finished) in grads.iter_mut().zip(finished.into_iter().flatten()) {
            *grad = finished;
        }
    }
}
