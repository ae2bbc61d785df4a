//! A flow ready for computing: evaluation, encoding, decoding, sampling.
//!
//! The weights are normalised once; any number of calls and threads share them.

use resflow_backend::{Backend, Element as _, Key, Noise, ShardPlan};

use super::upload::Upload;
use crate::bijection::{Draw, LogDet, PreparedBijection};
use crate::chain::{Back, Forth, Parts};
use crate::classifier::{Classification, PreparedClassifier};
use crate::data::{Samples, Standardiser, Table};
use crate::error::{ConfigError, Error};
use crate::estimator::Estimator;
use crate::invert::{Inversion, RowReport, Status};
use crate::log_prob::{self, LogProb, Target};
use crate::transform::{from_vectors, to_vectors};

/// Rows in latent space, with the log det of the way there.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// z = F(s(x)).
    pub rows: Table,
    /// log|det ∂z/∂x| of each row, in nats.
    pub log_det: Vec<f64>,
    /// Its standard error; 0 where exact.
    pub standard_error: Vec<f64>,
}

/// Rows in data space, with how well each is known.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// x = s⁻¹(F⁻¹(z)), in the data's units.
    pub rows: Table,
    /// How the inversion of each row ended; the bound is in standardised units.
    pub reports: Vec<RowReport>,
    /// max|F(x) − z| / max(1, max|z|), the largest over rows: measured through the whole flow (of images from the logit's
    /// output on: x itself is rounded where the logit is steepest), or, if the check was left out, the largest of any block.
    pub residual: f64,
}

/// A flow with its weights normalised.
#[derive(Debug)]
pub struct PreparedFlow<B: Backend> {
    pub(super) backend: B,
    pub(super) links: Vec<Box<dyn PreparedBijection<B>>>,
    pub(super) standardiser: Standardiser,
    /// The shape of a row.
    pub(super) row: Vec<usize>,
    pub(super) parts: Parts,
    pub(super) classifier: Option<PreparedClassifier<B>>,
    pub(super) estimator: Estimator,
    pub(super) resolved: Estimator,
    pub(super) replicates: usize,
    pub(super) target: Option<Target>,
    pub(super) shard_rows: usize,
    /// The bits of a channel of images, or 0.
    pub(super) bits: u32,
}

/// The larger; NaN if either is NaN.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// What one shard of an evaluation returns: z and the parts of log p that the host adds up.
pub(crate) struct Evaluated<B: Backend> {
    pub(crate) z: B::Tensor,
    pub(crate) log_dets: Vec<LogDet<B>>,
}

impl<B: Backend> PreparedFlow<B> {
    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The estimator of log p, `Auto` resolved.
    pub fn resolved(&self) -> &Estimator {
        &self.resolved
    }

    pub(crate) fn links(&self) -> &[Box<dyn PreparedBijection<B>>] {
        &self.links
    }

    pub(crate) fn standardiser(&self) -> &Standardiser {
        &self.standardiser
    }

    /// The same, but evaluations draw replicates of a row until its standard error is at most `standard_error`, or there are
    /// `most` replicates of it.
    ///
    /// # Errors
    /// An error that is not above 0.
    pub fn within(self, standard_error: f64, most: usize) -> Result<Self, ConfigError> {
        if standard_error > 0.0 && standard_error.is_finite() {
            Ok(Self { target: Some(Target { standard_error, most }), ..self })
        } else {
            let expected = "a number of nats above 0";
            Err(ConfigError::OutOfRange { name: "standard error", value: standard_error, expected })
        }
    }

    /// log p of each row or image, with standard errors; a function of samples and key. Images are dequantised with noise of
    /// the key; log p is the density of the dequantised image in \[0, 1\]ᵈ.
    ///
    /// # Errors
    /// Rows of another width or images of another size, or faults of the device.
    pub fn log_prob<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<LogProb, Error> {
        Ok(log_prob::evaluate(self, samples.into(), key, false)?.1)
    }

    /// z of each row or image, with log|det ∂z/∂x|.
    ///
    /// # Errors
    /// Rows of another width or images of another size, or faults of the device.
    pub fn encode<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<Encoded, Error> {
        let (z, log_prob) = log_prob::evaluate(self, samples.into(), key, true)?;
        let rows = z.unwrap_or_else(|| Table::of_computed(self.standardiser.width(), Vec::new()));
        Ok(Encoded { rows, log_det: log_prob.log_det, standard_error: log_prob.standard_error })
    }

    /// Whether there is a classifier.
    pub fn classifies(&self) -> bool {
        self.classifier.is_some()
    }

    /// p(y | x) of each image, or each row of an image's numbers; a function of samples and key. With the key of a
    /// [`log_prob`](Self::log_prob) it looks at the same dequantised images.
    ///
    /// # Errors
    /// A model without a classifier, images of another size, or faults of the device.
    pub fn classify<'a>(&self, samples: impl Into<Samples<'a>>, key: Key) -> Result<Classification, Error> {
        let Some(classifier) = &self.classifier else {
            return Err(Error::Input("the model has no classifier: it was made with `classes = 0`".into()));
        };
        let upload = Upload::new(self, samples.into(), key)?;
        let plan = self.plan(upload.count());
        let parts = self.backend.run(plan.shards(), |i| {
            let mut way = Forth::new(upload.all(self, plan.rows(i)));
            let mut seen = Vec::new();
            for (l, link) in self.links.iter().enumerate().take(classifier.last_link() + 1) {
                let y = link.forward(&self.backend, &way.rows, None).0;
                seen.extend(classifier.look(&self.backend, l, &y, link.leaving()));
                way.pass(&self.backend, y, link.leaving());
            }
            self.backend.download(&classifier.log_probabilities(&self.backend, &seen))
        });
        let mut log_probabilities = Vec::with_capacity(upload.count() * classifier.classes());
        for part in parts {
            log_probabilities.extend(part?.iter().map(|p| p.to_f64()));
        }
        Ok(Classification { classes: classifier.classes(), log_probabilities })
    }

    /// x of each row of z. The log det of this direction is the negative of [`encode`](Self::encode)'s at x.
    ///
    /// # Errors
    /// Rows of another width, or faults of the device. A row that does not converge is no error: see the reports.
    pub fn decode(&self, z: &Table, how: &Inversion) -> Result<Decoded, Error> {
        self.check_width(z)?;
        let plan = self.plan(z.rows());
        let parts = self.backend.run(plan.shards(), |i| {
            let rows = plan.rows(i);
            let values = &z.values()[rows.start * z.width()..rows.end * z.width()];
            let values: Vec<B::Elem> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
            self.invert(&self.backend.upload(&values, [rows.len(), z.width()].into()), how)
        });
        self.join(parts)
    }

    /// Rows drawn from the model; row i is a function of the key and i alone.
    ///
    /// # Errors
    /// Faults of the device. A row that does not converge is no error: see the reports.
    pub fn sample(&self, rows: usize, key: Key, how: &Inversion) -> Result<Decoded, Error> {
        let d = self.standardiser.width();
        let plan = self.plan(rows);
        let parts = self.backend.run(plan.shards(), |i| {
            let range = plan.rows(i);
            let first = (range.start * d) as u64;
            let z = self.backend.noise(key.named("sample"), Noise::Normal, first, [range.len(), d].into());
            self.invert(&z, how)
        });
        self.join(parts)
    }

    fn join(&self, parts: Vec<Result<(Vec<f64>, Vec<RowReport>), Error>>) -> Result<Decoded, Error> {
        let (mut values, mut reports) = (Vec::new(), Vec::new());
        for part in parts {
            let (v, r) = part?;
            values.extend(v);
            reports.extend(r);
        }
        let residual = reports.iter().map(|r| r.residual).fold(0.0, larger);
        Ok(Decoded { rows: self.standardiser.invert_computed(values), reports, residual })
    }

    /// x of z on the device, and the reports; the residual is measured through the whole chain.
    fn invert(&self, z: &B::Tensor, how: &Inversion) -> Result<(Vec<f64>, Vec<RowReport>), Error> {
        let backend = &self.backend;
        let mut back = Back::new(backend, z, &self.parts);
        let fresh = RowReport { residual: 0.0, error_bound: 0.0, iterations: 0, status: Status::Converged };
        let mut reports = vec![fresh; backend.shape(z).rows()];
        let mut measured_from = None;
        for (l, link) in self.links.iter().enumerate().rev() {
            let y = back.output(backend, link.leaving());
            let solution = link.inverse(backend, &y, how)?;
            let nothing_left = self.links[..l].iter().all(|link| link.leaving() == 0);
            if link.crowds() && nothing_left && measured_from.is_none() {
                measured_from = Some((l + 1, y));
            }
            back.pass(solution.value);
            for (total, row) in reports.iter_mut().zip(&solution.rows) {
                // where nothing is off, nothing grows, by however much it might
                let grown = if total.error_bound > 0.0 { total.error_bound * solution.stretch } else { 0.0 };
                total.error_bound = grown + row.error_bound;
                total.iterations += row.iterations;
                total.residual = total.residual.max(row.residual);
                total.status = total.status.max(row.status);
            }
        }
        let x = back.finish();
        if how.checks() {
            let (first, rows) = measured_from.unwrap_or((0, x.clone()));
            self.measure(&self.links[first..], rows, z, &mut reports)?;
        }
        let x = backend.download(&to_vectors(backend, &x))?;
        Ok((x.iter().map(|x| x.to_f64()).collect(), reports))
    }

    /// Replaces the residuals of the blocks by that of the whole way back through these links.
    fn measure(
        &self,
        links: &[Box<dyn PreparedBijection<B>>],
        rows: B::Tensor,
        z: &B::Tensor,
        reports: &mut [RowReport],
    ) -> Result<(), Error> {
        let backend = &self.backend;
        let mut way = Forth::new(rows);
        for link in links {
            way.pass(backend, link.forward(backend, &way.rows, None).0, link.leaving());
        }
        let (again, _) = way.finish(backend);
        let (z, again) = (backend.download(z)?, backend.download(&again)?);
        let d = self.standardiser.width();
        for (i, report) in reports.iter_mut().enumerate() {
            let row = i * d..(i + 1) * d;
            let scale = largest(z[row.clone()].iter().map(|z| z.to_f64().abs())).max(1.0);
            let distance = |e: usize| (again[e].to_f64() - z[e].to_f64()).abs();
            report.residual = largest(row.map(distance)) / scale;
            if !report.residual.is_finite() {
                report.status = Status::NonFinite;
            }
        }
        Ok(())
    }

    /// Some rows of a table on the device, as the first link wants them.
    pub(crate) fn upload(&self, table: &Table, rows: std::ops::Range<usize>) -> B::Tensor {
        let d = table.width();
        let values = &table.values()[rows.start * d..rows.end * d];
        let values: Vec<B::Elem> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
        from_vectors(&self.backend, &self.backend.upload(&values, [rows.len(), d].into()), &self.row)
    }

    /// One shard forward through all links.
    pub(crate) fn forward(&self, x: &B::Tensor, key: Key, first_row: u64) -> Evaluated<B> {
        let mut way = Forth::new(x.clone());
        let mut log_dets = Vec::with_capacity(self.links.len());
        for (l, link) in self.links.iter().enumerate() {
            let draw = Draw { estimator: &self.estimator, key: key.split(l as u64), first_row };
            let (y, log_det) = link.forward(&self.backend, &way.rows, Some((draw, self.replicates)));
            way.pass(&self.backend, y, link.leaving());
            log_dets.extend(log_det);
        }
        Evaluated { z: way.finish(&self.backend).0, log_dets }
    }

    pub(crate) fn replicates(&self) -> usize {
        self.replicates
    }

    pub(crate) fn target(&self) -> Option<Target> {
        self.target
    }

    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }

    pub(crate) fn check_samples(&self, samples: Samples<'_>) -> Result<(), Error> {
        match samples {
            Samples::Rows(rows) => self.check_width(rows),
            Samples::Images(set) if self.row == [set.height(), set.width(), set.channels()] => Ok(()),
            Samples::Images(set) => Err(Error::Input(format!(
                "images of {} for a model of {}",
                set.size(),
                match self.row[..] {
                    [h, w, c] => format!("{h}x{w} pixels with {c} channel{}", if c == 1 { "" } else { "s" }),
                    _ => format!("rows of {} numbers", self.standardiser.width()),
                }
            ))),
        }
    }

    pub(crate) fn check_width(&self, rows: &Table) -> Result<(), Error> {
        if rows.width() == self.standardiser.width() {
            Ok(())
        } else {
            Err(Error::Input(format!(
                "the data has {} columns, the model is for {}",
                rows.width(),
                self.standardiser.width()
            )))
        }
    }

    pub(crate) fn plan(&self, rows: usize) -> ShardPlan {
        ShardPlan::new(rows, self.shard_rows, 1)
    }
}

/// The largest of some numbers, NaN if any is.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |a: f64, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
}
