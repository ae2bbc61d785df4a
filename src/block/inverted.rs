//! The inverse of a residual block as a block of its own: y ↦ z with z + g(z) = y, Lip(g) < 1.
//!
//! log|det ∂z/∂y| = −log det(I + J) with J = ∂g/∂z at z, so any estimator of a residual block's log det serves. A residual
//! block with an inverted one behind it is an implicit block (Lu et al. 2021, arXiv 2103.09527): x + g₁(x) = z + g₂(z).
//!
//! Backward, with S = log det(I + J), ω the weight of a sample's log det, −S, and z̄ the gradient in z: (a) z̄ −= ω ∂S/∂z;
//! (b) a = (I + Jᵀ)⁻¹z̄ ([`solve_transposed`](crate::invert::solve_transposed)); (c) ȳ = a, and −(∂g/∂θ)ᵀa − ω ∂S/∂θ for
//! the parameters (the implicit function theorem). Nothing of the iterations is kept.
//!
//! A solve that stops early finds the ẑ of another ŷ = ẑ + g(ẑ), whose distance to y is the residual: ẑ and the log det at ẑ
//! are exactly those of ŷ, so an error of a solve is one of the input, and never one between z and its log det.

use resflow_backend::Backend;

use super::contraction::{Kept, PreparedContraction, without_infinite};
use super::contractive::{ContractiveBlock, Kind};
use crate::batch::Batch;
use crate::bijection::{Ask, Cotangents, LogDet, Mapped, PreparedBijection, Tape, Wanted};
use crate::error::Error;
use crate::estimator::Expansion;
use crate::invert::{Inversion, SampleReport, Solution, merge_reports};
use crate::layer::{Derivatives, LayerGrads};
use crate::lipschitz::BiLipschitz;
use crate::module::Grad;
use crate::reference::ReferenceMap;
use crate::stage::{Net, Stage};

/// y ↦ z with z + g(z) = y.
#[derive(Debug, Clone, Copy)]
pub struct Inverted;

/// y ↦ z with z + g(z) = y.
pub type InvertedBlock<B> = ContractiveBlock<B, Inverted>;

impl Kind for Inverted {
    const NAME: &'static str = "inverted residual";
    const EXPANSION: Expansion = Expansion::Whole;

    fn stage(shape: Vec<usize>, net: Net) -> Stage {
        Stage::InvertedBlock { shape, net }
    }

    fn constants(c: f64) -> Option<BiLipschitz> {
        BiLipschitz::of_residual(c).map(BiLipschitz::inverted)
    }

    fn prepare<B: Backend>(g: PreparedContraction<B>) -> Box<dyn PreparedBijection<B>> {
        Box::new(PreparedInverted { g })
    }
}

/// An inverted block with its weights normalised.
#[derive(Debug)]
struct PreparedInverted<B: Backend> {
    g: PreparedContraction<B>,
}

/// What an inverted block keeps for its backward pass: g at z, and how to solve.
struct Solved<B: Backend> {
    kept: Kept<B>,
    how: Inversion,
}

impl<B: Backend> PreparedInverted<B> {
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
        let weights = backend.affine(cotangents.log_det, -1.0, 0.0);
        let own = LayerGrads { trained: grads, context: &mut cotangents.context };
        let found = self.g.pull_back_solve(backend, &point, cotangents.x, weights, &how, own, samples_alone)?;
        merge_reports(reports, found.reports);
        let log_det = backend.affine(found.weights, -1.0, 0.0);
        Ok(Cotangents { x: found.value, log_det, context: cotangents.context })
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedInverted<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let at = self.g.at(backend, batch);
        let Solution { value: mut z, reports, .. } = self.g.solve(backend, 1.0, &at, &ask.solver)?;
        if matches!(ask.wanted, Wanted::Value) {
            return Ok(Mapped { reports: Some(reports), ..Mapped::value(z) });
        }
        if matches!(ask.wanted, Wanted::Gradient { .. }) {
            z = without_infinite(backend, z, &reports);
        }
        let at = at.with_x(z);
        let (_, saved) = self.g.forward(backend, &at, PreparedContraction::<B>::derivatives(ask));
        let found = self.g.measure(backend, &at, saved, Expansion::Whole, ask);
        let negative = |s: LogDet<B>| LogDet { value: backend.affine(s.value, -1.0, 0.0), exact: s.exact };
        let log_dets = found.log_det.map(negative).into_iter().collect();
        let tape = found.kept.map(|kept| Tape::new(Solved { kept, how: ask.solver }));
        Ok(Mapped { log_dets, tape, terms: found.terms, reports: Some(reports), ..Mapped::value(at.batch.x) })
    }

    fn solves_forward(&self) -> Option<f64> {
        Some(self.g.residual_factor())
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, _how: &Inversion) -> Result<Solution<B>, Error> {
        let (g, _) = self.g.forward(backend, &self.g.at(backend, batch), Derivatives::None);
        let stretch = 1.0 + self.g.bound * self.g.two_norm_factor;
        Ok(Solution::by_formula(backend, backend.axpy(1.0, &batch.x, g), stretch)?)
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        let net = self.g.net.reference(backend)?;
        Ok(net.map(|net| ReferenceMap::Inverted { net, shape: self.g.shape.clone() }))
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        // ∂z/∂y = (I + J)⁻¹: a is a product, and the solve is that of z
        let at = self.g.at(backend, batch);
        let z = self.g.solve(backend, 1.0, &at, how)?;
        let (_, saved) = self.g.forward(backend, &at.with_x(z.value), Derivatives::First);
        let a = backend.axpy(1.0, gradient, self.g.net.vjp(backend, &saved, gradient.clone()));
        Ok(Solution { value: a, ..z })
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
