//! Gradients on the way back: of functions of x = F⁻¹(z).
//!
//! With x̄ the gradient in x, transform by transform from the data on, by the implicit function theorem:
//!
//! (∂F_l/∂x_l)ᵀ a_l = x̄_l,  θ̄_l = −(∂F_l/∂θ_l)ᵀ a_l,  x̄_{l+1} = a_l,  z̄ = a_L.
//!
//! Invariant: nothing of the inverse's iterations is kept or differentiated; what is needed is x alone. The same solves carry a
//! score over: ∇_y log q(y) = (∂F/∂x)^{−T} (∇_x log q(x) − ∇_x log|det ∂F/∂x|) for y = F(x).

use resflow_backend::{Backend, Key};

use super::parts::{Parts, part_with};
use super::prepared::PreparedChain;
use crate::batch::Batch;
use crate::bijection::{Ask, Cotangents, Draw, Memory, Tape};
use crate::error::Error;
use crate::estimator::{Estimator, Probe, Traces, Truncated};
use crate::invert::{Inversion, SampleReport, Solution, merge_reports};
use crate::module::Grad;

/// The least that a backward pass lets a log det cost: where its gradient is not wanted.
const LEAST: Estimator =
    Estimator::Truncated(Truncated { terms: 1, probes: 1, probe: Probe::Rademacher, traces: Traces::Probed });

/// A forward pass for gradients through y alone, whose log dets are not used.
pub(crate) fn ask_for_tape<'a, B: Backend>(memory: Memory) -> Ask<'a> {
    Ask::gradient::<B>(Draw { estimator: &LEAST, key: Key::new(0) }, memory)
}

/// The error of a transform that kept nothing.
pub(super) fn kept_nothing(number: usize) -> Error {
    Error::Transform { number, problem: "kept nothing for the backward pass that was announced".into() }
}

/// The solution of all transposed solves: z̄ `[n, d]` in the value, the worst of the transforms' reports.
fn finish<B: Backend>(value: B::Tensor, reports: Option<Vec<SampleReport>>) -> Solution<B> {
    Solution { value, reports: reports.unwrap_or_default(), stretch: f64::INFINITY, certified: false }
}

impl<B: Backend> PreparedChain<B> {
    /// Takes a gradient at samples x = F⁻¹(z), `[n, …]`, to the gradient in z, `[n, d]`, and, where `grads` are given, adds
    /// those of the trained tensors. Samples of which a solve failed are in the gradients too; the reports say which.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if a transform has no transposed solve, [`Error::Transform`] if one kept nothing,
    /// [`Error::Backend`] if the device failed.
    pub(crate) fn pull_back_inverse(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        how: &Inversion,
        memory: Memory,
        mut grads: Option<&mut [Grad<B>]>,
    ) -> Result<Solution<B>, Error> {
        let (mut batch, mut gradient) = (batch.clone(), gradient.clone());
        let (mut left, mut reports) = (Vec::new(), None);
        for (l, step) in self.steps.iter().enumerate() {
            let solution = step.transform.solve_transposed(backend, &batch, &gradient, how)?;
            merge_reports(&mut reports, solution.reports);
            let ask = if grads.is_some() { ask_for_tape::<B>(memory) } else { Ask::value::<B>() };
            let mapped = step.transform.forward(backend, &batch, &ask.for_transform(l as u64))?;
            if let Some(own) = mapped.reports {
                merge_reports(&mut reports, own);
            }
            if let Some(grads) = grads.as_deref_mut() {
                let tape = mapped.tape.ok_or_else(|| kept_nothing(l))?;
                let x = backend.affine(solution.value.clone(), -1.0, 0.0);
                let log_det = backend.full(0.0, [batch.len(backend), 1].into());
                let cotangents = Cotangents { x, log_det, context: None };
                let own = &mut grads[step.grads.clone()];
                step.transform.backward_reported(backend, tape, cotangents, own, &mut reports)?;
            }
            batch.x = part_with(backend, mapped.y, step.factored_out).0;
            let (rest, out) = part_with(backend, solution.value, step.factored_out);
            gradient = rest;
            left.extend(out);
        }
        Ok(finish(Parts::join(backend, &left, &gradient), reports))
    }

    /// Carries scores over: from ∇_x log q(x) at x, both `[n, …]`, to ∇_y log q(y) at y = F(x), `[n, d]`, with the sum of the log
    /// dets, `[n, 1]`, of the same draw as their gradient. The log det's gradient is that of the ask's estimator, so the score is
    /// unbiased where that is.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if a transform has no transposed solve, [`Error::Transform`] if one kept nothing,
    /// [`Error::Backend`] if the device failed.
    pub(crate) fn carry_score(
        &self,
        backend: &B,
        batch: &Batch<B>,
        score: &B::Tensor,
        ask: &Ask<'_>,
    ) -> Result<Carried<B>, Error> {
        let (mut batch, mut score) = (batch.clone(), score.clone());
        let (mut left, mut reports) = (Vec::new(), None);
        let n = batch.len(backend);
        let mut log_det = backend.full(0.0, [n, 1].into());
        let mut terms = 0;
        for (l, step) in self.steps.iter().enumerate() {
            let mapped = step.transform.forward(backend, &batch, &ask.for_transform(l as u64))?;
            if let Some(own) = mapped.reports {
                merge_reports(&mut reports, own);
            }
            log_det = mapped.log_dets.iter().fold(log_det, |sum, term| backend.axpy(1.0, &term.value, sum));
            terms += mapped.terms;
            let tape: Tape = mapped.tape.ok_or_else(|| kept_nothing(l))?;
            let cotangents = Cotangents {
                x: backend.full(0.0, backend.shape(&mapped.y)),
                log_det: backend.full(-1.0, [n, 1].into()),
                context: None,
            };
            // the parameters' part of it is not wanted
            let mut unused = vec![None; step.grads.len()];
            let own = step.transform.backward_samples(backend, tape, cotangents, &mut unused, &mut reports)?.x;
            let target = backend.axpy(1.0, &own, score);
            let solution = step.transform.solve_transposed(backend, &batch, &target, &ask.solver)?;
            merge_reports(&mut reports, solution.reports);
            batch.x = part_with(backend, mapped.y, step.factored_out).0;
            let (rest, out) = part_with(backend, solution.value, step.factored_out);
            score = rest;
            left.extend(out);
        }
        Ok(Carried { log_det, terms, score: finish(Parts::join(backend, &left, &score), reports) })
    }
}

/// The scores of samples on the other side of a chain.
pub(crate) struct Carried<B: Backend> {
    /// log|det ∂y/∂x|, `[n, 1]`, nats.
    pub(crate) log_det: B::Tensor,
    /// The number of vector-Jacobian products of the series.
    pub(crate) terms: usize,
    /// ∇_y log q(y), `[n, d]`, and the reports of the solves.
    pub(crate) score: Solution<B>,
}
