//! The monotone block x ↦ y with y = √2·w − x, where w + g(w) = √2·x and Lip(g) < 1 (Ahn et al. 2022, arXiv 2210.08176): the
//! Cayley operator of a monotone operator. x = (w + g(w))/√2 and y = (w − g(w))/√2, so the inverse is the same block with −g, and both
//! share w. With c = Lip(g) it is (1 − c)/(1 + c)-strongly monotone and (1 + c)/(1 − c)-Lipschitz.
//!
//! With J = ∂g/∂w at w (not at x), ∂y/∂x = (I − J)(I + J)⁻¹ and log det = log det(I − J) − log det(I + J) =
//! −2 Σ_m tr J^{2m+1}/(2m+1), in absolute value at most d·ln((1 + c)/(1 − c)). Only odd traces enter, and roulette draws the number
//! of odd terms ([`Expansion::Odd`]).
//!
//! Backward, with S the log det, ω its weight and ȳ the gradient in y: w̄ = √2·ȳ + ω ∂S/∂w, a = (I + Jᵀ)⁻¹w̄, x̄ = √2·a − ȳ, and
//! −(∂g/∂θ)ᵀa + ω ∂S/∂θ for the parameters.

use std::f64::consts::SQRT_2;

use resflow_backend::Backend;

use super::contraction::{At, Kept, PreparedContraction, without_infinite};
use super::contractive::{ContractiveBlock, Kind};
use crate::batch::Batch;
use crate::bijection::{Ask, Cotangents, Mapped, PreparedBijection, Tape, Wanted};
use crate::error::Error;
use crate::estimator::Expansion;
use crate::invert::{Inversion, SampleReport, Solution, mark_unsolved, merge_reports, without_samples};
use crate::layer::{Derivatives, LayerGrads};
use crate::lipschitz::BiLipschitz;
use crate::module::Grad;
use crate::reference::ReferenceMap;
use crate::stage::{Net, Stage};

/// x ↦ √2·w − x with w + g(w) = √2·x.
#[derive(Debug, Clone, Copy)]
pub struct Monotone;

/// x ↦ √2·w − x with w + g(w) = √2·x.
pub type MonotoneBlock<B> = ContractiveBlock<B, Monotone>;

impl Kind for Monotone {
    const NAME: &'static str = "monotone";
    const EXPANSION: Expansion = Expansion::Odd;

    fn stage(shape: Vec<usize>, net: Net) -> Stage {
        Stage::MonotoneBlock { shape, net }
    }

    fn constants(c: f64) -> Option<BiLipschitz> {
        BiLipschitz::of_monotone(c)
    }

    fn prepare<B: Backend>(g: PreparedContraction<B>) -> Box<dyn PreparedBijection<B>> {
        Box::new(PreparedMonotone { g })
    }
}

/// A monotone block with its weights normalised.
#[derive(Debug)]
struct PreparedMonotone<B: Backend> {
    g: PreparedContraction<B>,
}

/// What a monotone block keeps for its backward pass: g at w, and how to solve.
struct Solved<B: Backend> {
    kept: Kept<B>,
    how: Inversion,
}

impl<B: Backend> PreparedMonotone<B> {
    /// Solves w ± g(w) = √2·x: g's samples w, and √2·w − x, with reports in units of the latter.
    fn reflect(
        &self,
        backend: &B,
        sign: f64,
        batch: &Batch<B>,
        how: &Inversion,
    ) -> Result<(At<B>, Solution<B>), Error> {
        let target = self.g.at(backend, batch).with_x(backend.affine(batch.x.clone(), SQRT_2, 0.0));
        let mut solution = self.g.solve(backend, sign, &target, how)?;
        let w = target.with_x(solution.value.clone());
        solution.value = backend.axpy(-1.0, &batch.x, backend.affine(solution.value, SQRT_2, 0.0));
        for report in &mut solution.reports {
            report.error_bound *= SQRT_2;
        }
        solution.stretch = self.g.two_norm_factor * (1.0 + self.g.bound) / (1.0 - self.g.bound);
        Ok((w, solution))
    }

    /// Goes back; where the gradients in the samples alone are wanted, those of the parameters and the context are not complete.
    fn go_back(
        &self,
        backend: &B,
        tape: Tape,
        mut cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
        samples_alone: bool,
        reports: &mut Option<Vec<SampleReport>>,
    ) -> Result<Cotangents<B>, Error> {
        let Solved { kept, how } = tape.into_value::<Solved<B>>();
        let point = self.g.restore(backend, kept);
        let (gy, own) = (cotangents.x, LayerGrads { trained: grads, context: &mut cotangents.context });
        let gw = backend.affine(gy.clone(), SQRT_2, 0.0);
        let found = self.g.pull_back_solve(backend, &point, gw, cotangents.log_det, &how, own, samples_alone)?;
        let mut gx = backend.axpy(-1.0, &gy, backend.affine(found.value, SQRT_2, 0.0));
        if let Some(failed) = mark_unsolved(backend, &found.reports) {
            gx = without_samples(backend, &failed, gx);
        }
        merge_reports(reports, found.reports);
        Ok(Cotangents { x: gx, log_det: found.weights, context: cotangents.context })
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedMonotone<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let (mut at, Solution { value: mut y, reports, .. }) = self.reflect(backend, 1.0, batch, &ask.solver)?;
        if matches!(ask.wanted, Wanted::Value) {
            return Ok(Mapped { reports: Some(reports), ..Mapped::value(y) });
        }
        if matches!(ask.wanted, Wanted::Gradient { .. }) {
            at = at.with_x(without_infinite(backend, at.batch.x.clone(), &reports));
            y = without_infinite(backend, y, &reports);
        }
        let (_, saved) = self.g.forward(backend, &at, PreparedContraction::<B>::derivatives(ask));
        let found = self.g.measure(backend, &at, saved, Expansion::Odd, ask);
        let log_dets = found.log_det.into_iter().collect();
        let tape = found.kept.map(|kept| Tape::new(Solved { kept, how: ask.solver }));
        Ok(Mapped { log_dets, tape, terms: found.terms, reports: Some(reports), ..Mapped::value(y) })
    }

    fn solves_forward(&self) -> Option<f64> {
        Some(self.g.residual_factor())
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, how: &Inversion) -> Result<Solution<B>, Error> {
        Ok(self.reflect(backend, -1.0, batch, how)?.1)
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        let net = self.g.net.reference(backend)?;
        Ok(net.map(|net| ReferenceMap::Monotone { net, shape: self.g.shape.clone() }))
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        // (I + J)^{−T} (I − J)ᵀ a = g
        let (w, Solution { reports, .. }) = self.reflect(backend, 1.0, batch, how)?;
        let (_, saved) = self.g.forward(backend, &w, Derivatives::First);
        let target = backend.axpy(1.0, gradient, self.g.net.vjp(backend, &saved, gradient.clone()));
        let solution = self.g.solve_transposed(backend, -1.0, &saved, &target, how)?;
        let mut all = Some(reports);
        merge_reports(&mut all, solution.reports);
        Ok(Solution { reports: all.unwrap_or_default(), ..solution })
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
        self.go_back(backend, tape, cotangents, grads, false, reports)
    }

    fn backward_samples(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        scratch: &mut [Grad<B>],
        reports: &mut Option<Vec<SampleReport>>,
    ) -> Result<Cotangents<B>, Error> {
        self.go_back(backend, tape, cotangents, scratch, true, reports)
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        self.g.finish_gradients(backend, grads);
    }
}
