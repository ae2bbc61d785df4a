//! What the errors of forward solves change in log p, to first order.
//!
//! A solve that stops early finds y and the log det of another input x̂ = x + δ, exactly but for a part of δ in y. With
//! L = log p₀(z) + Σ log det as a function of what enters a transform, and of what leaves it,
//!
//! |ΔL| ≤ Σ_l ‖δ_l‖₂ (‖∂L/∂x_l‖₂ + ‖∂L/∂y_l‖₂) + O(δ²),
//!
//! over the transforms that solve, with ‖δ_l‖₂ ≤ f_l · the largest residual of all · max(1, ‖x_l‖₂) + 2ε(‖x_l‖₂ + ‖y_l‖₂). A transform that reports an error of its y
//! alone counts with ‖∂L/∂y_l‖₂ times that. One backward pass finds all derivatives; what the log dets feel is in them.
//!
//! Invariant: a sample whose derivatives are not found, since a solve of theirs failed, has an error of ∞, never of 0.

use resflow_backend::{Backend, Element as _, Unary};

use super::parts::{Parts, part_with, reunite};
use super::prepared::PreparedChain;
use super::transposed::kept_nothing;
use crate::batch::Batch;
use crate::bijection::{Ask, Cotangents};
use crate::error::Error;
use crate::invert::{ROUNDING, SampleReport, merge_reports};

/// A transform that solved: the norms that weigh its error.
struct Link<B: Backend> {
    /// What its residual is multiplied by, if the error is one of its input.
    factor: Option<f64>,
    /// ‖x_l‖₂, ‖y_l‖₂, then ‖∂L/∂y_l‖₂ and ‖∂L/∂x_l‖₂, `[n, 1]` each.
    norms: Vec<B::Tensor>,
}

impl<B: Backend> Link<B> {
    /// The number of norms of a link.
    const NORMS: usize = 4;

    /// The nats that the error of a sample leaves, by its norms.
    fn error(&self, report: &SampleReport, norms: &[B::Elem]) -> f64 {
        let [x, y, of_y, of_x] = [0, 1, 2, 3].map(|at| norms[at].to_f64());
        let (size, slope) = match self.factor {
            Some(factor) if factor.is_finite() => {
                let rounding = ROUNDING * B::Elem::EPSILON * (x + y);
                (factor * report.residual * x.max(1.0) + rounding, of_x + of_y)
            }
            Some(_) => return f64::INFINITY,
            None => (report.error_bound, of_y),
        };
        if size == 0.0 { 0.0 } else { size * slope }
    }
}

impl<B: Backend> PreparedChain<B> {
    /// Whether a transform solves an equation on the way forward.
    pub fn has_solves(&self) -> bool {
        self.steps.iter().any(|step| step.transform.solves_forward().is_some())
    }

    /// Bounds, to first order, what the errors of forward solves change in log p of each sample, nats: `[n]`, ∞ where that is not
    /// known. `reports` are those of the forward pass that is in question, the worst or the sum of all transforms, as it says. The derivatives
    /// are at the solutions of another pass, which need not be as accurate, and of the ask's estimate of the log det; `pull_back` takes
    /// z to ∂ log p₀/∂z, `[n, d]`.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if there is not one report for each sample, [`Error::Transform`] if a transform kept nothing,
    /// [`Error::Backend`] if the device failed.
    pub fn bound_solve_errors(
        &self,
        backend: &B,
        batch: &Batch<B>,
        reports: &[SampleReport],
        ask: &Ask<'_>,
        pull_back: impl FnOnce(Batch<B>) -> B::Tensor,
    ) -> Result<Vec<f64>, Error> {
        let norm = |x: &B::Tensor| {
            let rows = backend.reshape(x, [backend.shape(x).rows(), backend.shape(x).row_elements()].into());
            backend.unary(Unary::Sqrt, backend.dot_rows(&rows, &rows))
        };
        let n = batch.len(backend);
        if reports.len() != n {
            return Err(Error::Input(format!("{} reports of {n} samples", reports.len())));
        }
        let mut way = batch.clone();
        let (mut links, mut tapes, mut left) = (Vec::new(), Vec::new(), Vec::new());
        let mut found: Option<Vec<SampleReport>> = None;
        for (l, step) in self.steps.iter().enumerate() {
            let mapped = step.transform.forward(backend, &way, &ask.for_transform(l as u64))?;
            let (factor, norms) = (step.transform.solves_forward(), vec![norm(&way.x), norm(&mapped.y)]);
            links.push(mapped.reports.as_ref().map(|_| Link::<B> { factor, norms }));
            if let Some(own) = mapped.reports {
                merge_reports(&mut found, own);
            }
            tapes.push(mapped.tape.ok_or_else(|| kept_nothing(l))?);
            let (rest, out) = part_with(backend, mapped.y, step.factored_out);
            way.x = rest;
            left.extend(out);
        }
        let z = Parts::join(backend, &left, &way.x);
        let mut parts = self.parts.split(backend, &pull_back(batch.with_x(z)));
        let x = parts.pop().expect("z has at least one part");
        let mut passing = Cotangents::<B> { x, log_det: backend.full(1.0, [n, 1].into()), context: None };
        for ((link, step), tape) in links.iter_mut().zip(&self.steps).zip(tapes).rev() {
            let gy = reunite(backend, passing.x.clone(), &mut parts, step.factored_out);
            if let Some(link) = link {
                link.norms.push(norm(&gy));
            }
            // the parameters' part is not wanted
            let mut unused = vec![None; step.grads.len()];
            passing = step.transform.backward_samples(backend, tape, passing.with_x(gy), &mut unused, &mut found)?;
            if let Some(link) = link {
                link.norms.push(norm(&passing.x));
            }
        }
        let links: Vec<_> = links.into_iter().flatten().collect();
        let norms: Vec<_> = links.iter().flat_map(|link| &link.norms).collect();
        if norms.is_empty() {
            return Ok(vec![0.0; n]);
        }
        let norms = backend.download(&backend.concat(&norms, 1))?;
        let of = |(i, norms): (usize, &[B::Elem])| {
            let lost = found.as_ref().is_some_and(|found| !found[i].status.is_solved());
            let own = links.iter().zip(norms.chunks_exact(Link::<B>::NORMS));
            let errors = own.map(|(link, norms)| link.error(&reports[i], norms));
            Some(errors.sum::<f64>()).filter(|error| !lost && !error.is_nan()).unwrap_or(f64::INFINITY)
        };
        Ok(norms.chunks_exact(links.len() * Link::<B>::NORMS).enumerate().map(of).collect())
    }
}
