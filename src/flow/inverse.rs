//! The way back: decoding and sampling, with a report for every sample.

use std::ops::Range;

use resflow_backend::{Backend, Element as _, Key};

use super::categories::{Contexts, FlowCategories};
use super::context::Given;
use super::prepared::PreparedFlow;
use crate::batch::Batch;
use crate::bijection::Ask;
use crate::data::{Categories, Table};
use crate::error::Error;
use crate::invert::{Inversion, SampleReport, Status};
use crate::transform::to_vectors;

/// Samples in data space, with the accuracy of each.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Decoded {
    /// x = s⁻¹(F⁻¹(z)), `[n, d]`, in the data's units, inside the columns' supports and on their grids; of images in \[0, 1\] and (C, H, W) order.
    pub samples: Table,
    /// The report of each sample's inversion; its bound is in standardised units.
    pub reports: Vec<SampleReport>,
    /// Whether the error bounds are certain, rounding included: ‖x − F⁻¹(z)‖₂ of the x and z of the device's precision, before the columns' maps.
    /// Only with [`Flow::prepare_certified`](crate::Flow::prepare_certified), and if every transform has a certificate.
    pub certified: bool,
    /// ‖F(x) − z‖₂ / max(1, ‖z‖₂), the largest over samples: measured through the whole flow (of images from the
    /// logit's output on: x itself is rounded where the logit is steepest), or, if the check was left out, the largest
    /// of any block.
    pub residual: f64,
    /// The categories of each sample that was drawn, of a flow that models some.
    pub categories: Option<Categories>,
}

/// Samples that were inverted together: their values and a report of each.
struct Part {
    values: Vec<f64>,
    reports: Vec<SampleReport>,
}

impl Part {
    /// All that it is, for another process: the number of samples and of values, the values, and four numbers of each report.
    fn to_numbers(&self) -> Vec<f64> {
        let mut numbers = vec![self.reports.len() as f64, self.values.len() as f64];
        numbers.extend(&self.values);
        for SampleReport { residual, error_bound, iterations, status } in &self.reports {
            numbers.extend([*residual, *error_bound, f64::from(*iterations), f64::from(*status as u8)]);
        }
        numbers
    }

    fn take_from(rest: &mut &[f64]) -> Option<Self> {
        let mut take = |count: usize| {
            let (own, others) = rest.split_at_checked(count)?;
            *rest = others;
            Some(own)
        };
        let [samples, values] = take(2)? else { return None };
        let (samples, values) = (*samples as usize, take(*values as usize)?.to_vec());
        let report = |numbers: &[f64]| {
            let status = Status::from_number(numbers[3])?;
            Some(SampleReport { residual: numbers[0], error_bound: numbers[1], iterations: numbers[2] as u32, status })
        };
        let reports = take(samples.checked_mul(4)?)?.chunks_exact(4).map(report).collect::<Option<_>>()?;
        Some(Self { values, reports })
    }
}

/// The largest of some numbers, NaN if any is.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |a: f64, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
}

impl<B: Backend> PreparedFlow<B> {
    /// Whether the error bounds of inverses are certain: whether it was prepared by
    /// [`prepare_certified`](crate::Flow::prepare_certified), and every transform has a certificate.
    pub fn is_certified(&self) -> bool {
        self.chain.is_certified()
    }

    /// Computes x = s⁻¹(F⁻¹(z)) of each row of z, `[n, d]` (the inverse transform). The log det of this direction is
    /// the negative of [`encode`](Self::encode)'s at x.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if z is of another width or the flow conditional, [`Error::Transform`] if a transform of your own gives
    /// something of a wrong shape, [`Error::Backend`] if the device failed. A sample that does not converge is no
    /// error: see the reports.
    #[doc(alias = "inverse")]
    pub fn decode(&self, z: &Table, how: &Inversion) -> Result<Decoded, Error> {
        self.check_unconditional()?;
        self.decode_given(z, Given::Nothing, how)
    }

    /// Decodes rows that have the contexts that are given.
    pub(super) fn decode_given(&self, z: &Table, given: Given<'_, B>, how: &Inversion) -> Result<Decoded, Error> {
        self.check_width(z)?;
        let plan = self.plan(z.rows());
        self.join(if z.rows() == 0 { 0 } else { plan.shards() }, |i| {
            let rows = plan.rows(i);
            let values = &z.values()[rows.start * z.width()..rows.end * z.width()];
            let values: Vec<B::Elem> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
            let z = self.backend.upload(&values, [rows.len(), z.width()].into());
            self.invert(&Batch::new(z).with_context(given.embedding(self, &mut rows.clone())), how)
        })
    }

    /// Maps rows of standard normal latents, `[n, d]`, to latents of the model's base density, which
    /// [`decode`](Self::decode) takes; see [`normal_scores`](Self::normal_scores).
    ///
    /// # Errors
    /// Returns [`Error::Input`] if they are of another width, [`Error::Backend`] if the device failed.
    pub fn invert_normal_scores(&self, scores: &Table) -> Result<Table, Error> {
        self.check_width(scores)?;
        let z = self.base.invert_normal(&self.backend, scores.values())?;
        Ok(z.map_or_else(|| scores.clone(), |z| Table::of_computed(scores.width(), z)))
    }

    /// Draws samples from the model, with their categories where it models some. Sample i is a function of the key and i, whatever the count, up to rounding and to
    /// the step at which its inversion stops: products of matrices of other sizes may add in another order.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for a conditional flow, which [`condition`](Self::condition) makes one of, [`Error::Transform`] if a transform of your own gives something of a wrong shape, [`Error::Backend`] if
    /// the device failed. A sample that does not converge is no error: see the reports.
    pub fn sample(&self, count: usize, key: Key, how: &Inversion) -> Result<Decoded, Error> {
        self.sample_range(0..count, key, how)
    }

    /// Draws the samples of these numbers, of as many as one likes: what [`sample`](Self::sample) draws of more than fit into memory, or
    /// a part of it.
    ///
    /// # Errors
    /// Returns the errors of [`sample`](Self::sample).
    pub fn sample_range(&self, numbers: Range<usize>, key: Key, how: &Inversion) -> Result<Decoded, Error> {
        let (first, plan) = (numbers.start, self.plan(numbers.len()));
        let of_all = |range: &Range<usize>| first + range.start..first + range.end;
        if let Some(own @ FlowCategories::Modelled(density)) = self.categories() {
            let drawn = density.sample(first as u64, numbers.len(), key.named("categories"));
            let contexts = Contexts::drawn(own, &drawn);
            let given = Given::<B>::Rows(&contexts);
            let runs = plan.ranges().map(|range| (of_all(&range), given.embedding(self, &mut range.clone())));
            let decoded = self.sample_runs(&runs.collect::<Vec<_>>(), key, how)?;
            return Ok(Decoded { categories: Some(drawn), ..decoded });
        }
        self.check_unconditional()?;
        self.sample_runs(&plan.ranges().map(|range| (of_all(&range), None)).collect::<Vec<_>>(), key, how)
    }

    /// Draws samples by runs of their numbers, each with the embedding of its contexts, `[n, e]` or `[1, e]`.
    pub(super) fn sample_runs(
        &self,
        runs: &[(Range<usize>, Option<B::Tensor>)],
        key: Key,
        how: &Inversion,
    ) -> Result<Decoded, Error> {
        // no samples are one empty run
        let runs: Vec<_> = runs.iter().filter(|(range, _)| !range.is_empty()).collect();
        self.join(runs.len(), |i| {
            let (range, context) = runs[i];
            let (key, first) = (key.named("sample"), range.start as u64);
            let z = self.base.sample(&self.backend, key, first, range.len(), context.as_ref());
            self.invert(&Batch::new(z).with_context(context.clone()), how)
        })
    }

    /// Inverts so many parts, on the processes of a group if there is one, and joins them in order.
    fn join(&self, count: usize, invert: impl Fn(usize) -> Result<Part, Error> + Sync) -> Result<Decoded, Error> {
        let share = self.team().map_or(0..count, |team| team.share(count));
        let parts = self.backend.run(share.len(), |i| invert(share.start + i));
        let parts = parts.into_iter().collect::<Result<Vec<_>, _>>();
        let parts = match self.team() {
            None => parts?,
            Some(team) => team.gather_parts(parts, Part::to_numbers, Part::take_from)?,
        };
        let (mut values, mut reports) = (Vec::new(), Vec::new());
        for part in parts {
            values.extend(part.values);
            reports.extend(part.reports);
        }
        let residual = largest(reports.iter().map(|r| r.residual));
        let samples = self.columns.inverse_computed(values);
        if !self.columns.is_standardisation() {
            // a map may overflow where what it is given is finite
            for (row, report) in samples.values().chunks_exact(samples.width()).zip(&mut reports) {
                if !row.iter().all(|x| x.is_finite()) {
                    report.status = Status::NonFinite;
                }
            }
        }
        Ok(Decoded { samples, reports, residual, certified: self.is_certified(), categories: None })
    }

    /// Inverts z, `[n, d]`, on the device: x and the reports; the residual is measured through the whole chain.
    fn invert(&self, z: &Batch<B>, how: &Inversion) -> Result<Part, Error> {
        let backend = &self.backend;
        let first = self.chain.measured_from();
        let mut measured = None;
        let solution = self.chain.inverse_observed(backend, z, how, &mut |l, y, _| {
            if l + 1 == first {
                measured = Some(y.clone());
            }
        })?;
        let (x, mut reports) = (solution.value, solution.reports);
        if how.checks() {
            let from = z.with_x(measured.unwrap_or_else(|| x.clone()));
            self.measure(first, &from, &z.x, &mut reports)?;
        }
        let x = backend.download(&to_vectors(backend, &x))?;
        Ok(Part { values: x.iter().map(|x| x.to_f64()).collect(), reports })
    }

    /// Replaces the residuals of the blocks by that of the whole way back from the input of transform number `first`.
    fn measure(&self, first: usize, from: &Batch<B>, z: &B::Tensor, reports: &mut [SampleReport]) -> Result<(), Error> {
        let backend = &self.backend;
        let ask = Ask::value::<B>();
        let again = self.chain.forward_from(backend, first, from, &ask, &mut |_, _, _| ())?.y;
        let (z, again) = (backend.download(z)?, backend.download(&again)?);
        let d = self.columns.width();
        for (i, report) in reports.iter_mut().enumerate() {
            let row = i * d..(i + 1) * d;
            let length = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let scale = length(&mut z[row.clone()].iter().map(|z| z.to_f64())).max(1.0);
            report.residual = length(&mut row.map(|e| again[e].to_f64() - z[e].to_f64())) / scale;
            if !report.residual.is_finite() {
                report.status = Status::NonFinite;
            }
        }
        Ok(())
    }
}
