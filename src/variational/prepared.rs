//! A variational flow ready for computing: samples with their densities, and densities of given points.

use resflow_backend::{Backend, Element as _, Key};

use super::drawn::{Drawn, ExactSamples, Located};
use crate::batch::Batch;
use crate::bijection::{Ask, Draw, PreparedBijection as _};
use crate::data::Table;
use crate::error::Error;
use crate::estimator::{Estimator, Exact};
use crate::flow::PreparedFlow;
use crate::flow::log_prob::sum_estimates;
use crate::invert::{Inversion, SampleReport, merge_reports};

/// A variational flow with its weights normalised. It is `Send` and `Sync`.
#[derive(Debug)]
pub struct PreparedVariational<B: Backend> {
    pub(super) flow: PreparedFlow<B>,
}

/// Some samples on the host: u = T(z), `[n, d]`, log p₀(z), and the estimates of the log det, `[n, replicates]`; one where it is exact.
struct Piece {
    u: Vec<f64>,
    base: Vec<f64>,
    estimates: Vec<f64>,
    replicates: usize,
    /// Where T is a solve.
    reports: Option<Vec<SampleReport>>,
}

/// The mean of estimates and its standard error.
fn mean(estimates: &[f64]) -> (f64, f64) {
    let n = estimates.len() as f64;
    let mean = estimates.iter().sum::<f64>() / n;
    let spread: f64 = estimates.iter().map(|e| (e - mean).powi(2)).sum();
    (mean, if n > 1.0 { (spread / (n - 1.0) / n).sqrt() } else { 0.0 })
}

impl<B: Backend> PreparedVariational<B> {
    /// d, the numbers in a sample.
    pub fn dimension(&self) -> usize {
        self.flow.dimension()
    }

    /// Σ ln s.
    pub(super) fn log_scale(&self) -> f64 {
        -self.flow.standardiser().log_det()
    }

    /// Maps u, `[n, d]`, to x = m + s ∘ u.
    pub(super) fn place(&self, u: &[f64]) -> Vec<f64> {
        let (location, scale) = (self.flow.standardiser().mean(), self.flow.standardiser().deviation());
        let row = |row: &[f64]| row.iter().zip(location).zip(scale).map(|((u, m), s)| m + s * u).collect::<Vec<_>>();
        u.chunks_exact(self.dimension()).flat_map(row).collect()
    }

    /// Takes latents through T.
    fn map(&self, z: Batch<B>, draw: Draw<'_>, replicates: usize, solver: &Inversion) -> Result<Piece, Error> {
        let backend = self.flow.backend();
        let count = z.len(backend);
        let ask = Ask { solver: *solver, ..Ask::log_det::<B>(draw, replicates) };
        let mapped = self.flow.chain().forward(backend, &z, &ask)?;
        let u = backend.download(&mapped.y)?.into_iter().map(B::Elem::to_f64).collect();
        let (estimates, replicates) = sum_estimates(backend, &mapped.log_dets, count, replicates)?;
        let base = self.flow.base().log_prob(backend, &z)?;
        Ok(Piece { u, base, estimates, replicates, reports: mapped.reports })
    }

    /// Draws samples with log q, and tells whether that is exact, of at least two replicates.
    fn draw(&self, count: usize, key: Key, estimator: &Estimator, replicates: usize) -> Result<(Drawn, bool), Error> {
        let backend = self.flow.backend();
        let plan = self.flow.plan(count);
        let how = Inversion::for_backend::<B>();
        let pieces = backend.run(plan.shards(), |i| {
            let range = plan.rows(i);
            let first = range.start as u64;
            let z = self.flow.base().sample(backend, key.named("sample"), first, range.len(), None);
            let draw = Draw { estimator, key: key.named("log det") };
            self.map(Batch::new(z).starting_at(first), draw, replicates, &how)
        });
        let (mut samples, mut log_prob, mut standard_error) = (Vec::new(), Vec::new(), Vec::new());
        let (mut exact, mut reports) = (true, Vec::new());
        for piece in pieces {
            let Piece { u, base, estimates, replicates, reports: own } = piece?;
            exact &= replicates == 1;
            samples.extend(self.place(&u));
            reports.extend(own.into_iter().flatten());
            for (base, estimates) in base.iter().zip(estimates.chunks_exact(replicates)) {
                let (log_det, error) = mean(estimates);
                log_prob.push(base - log_det - self.log_scale());
                standard_error.push(error);
            }
        }
        let samples = Table::of_computed(self.dimension(), samples);
        Ok((Drawn { samples, log_prob, standard_error, reports }, exact))
    }

    /// Draws samples with log q by the evaluation estimator. Sample i is a function of the key and i. Nothing is solved for, unless T
    /// is a solve (implicit and monotone blocks, continuous flows): see the reports.
    ///
    /// # Errors
    /// Returns [`Error::Transform`] if a transform of your own fails, [`Error::Backend`] if the device does.
    pub fn sample(&self, count: usize, key: Key) -> Result<Drawn, Error> {
        Ok(self.draw(count, key, self.flow.resolved(), self.flow.replicates())?.0)
    }

    /// Draws the same samples with exact log q, at the cost of a determinant for each block and sample. Where T is a solve, see
    /// [`ExactSamples::reports`].
    ///
    /// # Errors
    /// Returns [`Error::Transform`] if a transform of your own fails or estimates its log det all the same,
    /// [`Error::Backend`] if the device failed.
    pub fn sample_exact(&self, count: usize, key: Key) -> Result<ExactSamples, Error> {
        let (Drawn { samples, log_prob, reports, .. }, exact) = self.draw(count, key, &Estimator::Exact(Exact), 2)?;
        if !exact {
            let problem =
                "estimates its log det, though an exact one was asked for: its exponential would be biased".into();
            return Err(Error::Transform { number: 0, problem });
        }
        Ok(ExactSamples { samples, log_prob, reports })
    }

    /// Computes log q of given points, `[n, d]` in the target's units, by inverting the flow.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the points are of another width, [`Error::Transform`] if a transform of your own fails,
    /// [`Error::Backend`] if the device does. A point that cannot be inverted is no error: see the reports.
    pub fn log_prob(&self, points: &Table, key: Key, how: &Inversion) -> Result<Located, Error> {
        self.flow.check_width(points)?;
        let standard = self.flow.standardiser().apply(points)?;
        let backend = self.flow.backend();
        let plan = self.flow.plan(points.rows());
        let pieces = backend.run(plan.shards(), |i| -> Result<_, Error> {
            let range = plan.rows(i);
            let u = Batch::new(self.flow.upload(&standard, range.clone()));
            let solution = self.flow.chain().inverse(backend, &u, how)?;
            let latents: Vec<f64> = backend.download(&solution.value)?.into_iter().map(B::Elem::to_f64).collect();
            let z = Batch::new(solution.value).starting_at(range.start as u64);
            let draw = Draw { estimator: self.flow.resolved(), key: key.named("log det") };
            let piece = self.map(z, draw, self.flow.replicates(), how)?;
            let mut reports = Some(solution.reports);
            if let Some(own) = &piece.reports {
                merge_reports(&mut reports, own.clone());
            }
            Ok((latents, reports.unwrap_or_default(), piece))
        });
        let mut located = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for piece in pieces {
            let (latents, reports, Piece { base, estimates, replicates, .. }) = piece?;
            located.0.extend(latents);
            located.3.extend(reports);
            for (base, estimates) in base.iter().zip(estimates.chunks_exact(replicates)) {
                let (log_det, error) = mean(estimates);
                let value = base - log_det - self.log_scale();
                located.1.push(if value.is_finite() { value } else { f64::NEG_INFINITY });
                located.2.push(if value.is_finite() { error } else { 0.0 });
            }
        }
        let (latents, log_prob, standard_error, reports) = located;
        Ok(Located { latents: Table::of_computed(self.dimension(), latents), log_prob, standard_error, reports })
    }
}
