//! The flow: a chain of bijections F over a standard normal base, after the standardisation of the data.
//!
//! log p(x) = log N(F(s(x)); 0, I) + Σ log|det ∂F_l| + log|det ∂s|, in nats and in the data's own units. The standardising
//! map s belongs to the model. A [`PreparedFlow`] holds the normalised weights and serves any number of calls and threads.

use resflow_backend::{Backend, Element as _, Key, Noise};

use crate::bijection::{Bijection, Draw, LogDet, Memory, PreparedBijection};
use crate::block::ResidualBlock;
use crate::checkpoint::Provenance;
use crate::config::FlowConfig;
use crate::data::{Standardiser, Table};
use crate::error::{ConfigError, Error};
use crate::estimator::{Estimator, VarianceWarning};
use crate::invert::{Inversion, RowReport, Status};
use crate::layer::{ActivationLayer, ConcatenatedLipSwish, Layer, LipschitzLinear, Role, Sequence, Spectrum};
use crate::lipschitz::{Coefficient, Refresh};
use crate::log_prob::{self, LogProb};
use crate::train::{Gradient, Objective, gradient};
use crate::transform::ActNorm;

/// Rows that one task of an evaluation takes at most, however many the device would.
const MOST_ROWS: usize = 1 << 16;

/// A residual flow: parameters, configuration and the device they live on.
#[derive(Debug)]
pub struct Flow<B: Backend> {
    backend: B,
    config: FlowConfig,
    standardiser: Standardiser,
    links: Vec<Box<dyn Bijection<B>>>,
    provenance: Provenance,
}

impl<B: Backend> Clone for Flow<B> {
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            config: self.config.clone(),
            standardiser: self.standardiser.clone(),
            links: self.links.iter().map(|l| l.boxed_clone()).collect(),
            provenance: self.provenance.clone(),
        }
    }
}

impl<B: Backend> Flow<B> {
    /// A flow with random weights; a function of the configuration and the key.
    ///
    /// # Errors
    /// A configuration that cannot be.
    pub fn new(backend: B, config: &FlowConfig, key: Key) -> Result<Self, ConfigError> {
        Self::build(backend, config, |backend, (inputs, outputs), coefficient, block, layer| {
            LipschitzLinear::initialise(
                backend,
                inputs,
                outputs,
                coefficient,
                key.split(block as u64).split(layer as u64),
            )
        })
        .map(|mut flow| {
            if config.initial_scale != 1.0 {
                flow.scale_last_layers(config.initial_scale);
            }
            flow
        })
    }

    /// A flow whose tensors are all zero, to be filled.
    pub(crate) fn zeros(backend: B, config: &FlowConfig) -> Result<Self, ConfigError> {
        Self::build(backend, config, |backend, (inputs, outputs), coefficient, _, _| {
            LipschitzLinear::zeros(backend, inputs, outputs, coefficient)
        })
    }

    fn build(
        backend: B,
        config: &FlowConfig,
        linear: impl Fn(&B, (usize, usize), Coefficient, usize, usize) -> LipschitzLinear<B>,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let coefficient = Coefficient::new(config.coefficient)?;
        let d = config.dimension;
        let actnorm = || -> Box<dyn Bijection<B>> { Box::new(ActNorm::new(&backend, d)) };
        let mut links: Vec<Box<dyn Bijection<B>>> = Vec::new();
        if config.actnorm {
            links.push(actnorm());
        }
        for block in 0..config.blocks {
            let mut layers: Vec<Box<dyn Layer<B>>> = Vec::new();
            for (i, &extents) in config.linear_layers().iter().enumerate() {
                if i > 0 || config.leading_activation {
                    layers.push(match config.activation.activation() {
                        Some(function) => Box::new(ActivationLayer::new(&backend, function)),
                        None => Box::new(ConcatenatedLipSwish::new(&backend)),
                    });
                }
                layers.push(Box::new(linear(&backend, extents, coefficient, block, i)));
            }
            links.push(Box::new(ResidualBlock::new(Box::new(Sequence::new(layers)), &[d])?));
            if config.actnorm {
                links.push(actnorm());
            }
        }
        Self::from_links(backend, config.clone(), links)
    }

    /// A flow of any links. The configuration is stored with it and supplies the estimators; its architecture is that of
    /// the links as far as the model is to be saved and loaded.
    ///
    /// # Errors
    /// If rows of the configured dimension cannot pass through the links.
    pub fn from_links(backend: B, config: FlowConfig, links: Vec<Box<dyn Bijection<B>>>) -> Result<Self, ConfigError> {
        config.check()?;
        links.iter().try_for_each(|link| link.check(&[config.dimension]))?;
        let standardiser = Standardiser::identity(config.dimension);
        Ok(Self { backend, config, standardiser, links, provenance: Provenance::default() })
    }

    /// Multiplies the weights of each block's last layer.
    fn scale_last_layers(&mut self, factor: f64) {
        let backend = self.backend.clone();
        let last = format!(
            ".{}.weight",
            2 * self.config.linear_layers().len() - 1 - usize::from(!self.config.leading_activation)
        );
        self.visit_mut(&mut |name, tensor, _| {
            if name.ends_with(&last) {
                *tensor = backend.affine(tensor.clone(), factor, 0.0);
            }
        });
        self.refresh(Refresh::converge::<B>());
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The configuration.
    pub fn config(&self) -> &FlowConfig {
        &self.config
    }

    /// Replaces the estimator of log p.
    ///
    /// # Errors
    /// Parameters out of range.
    pub fn set_evaluation(&mut self, estimator: Estimator, replicates: usize) -> Result<(), ConfigError> {
        let config = FlowConfig { evaluation: estimator, replicates, ..self.config.clone() };
        config.check()?;
        self.config = config;
        Ok(())
    }

    /// The numbers in a row.
    pub fn dimension(&self) -> usize {
        self.config.dimension
    }

    /// The links, first applied first.
    pub fn links(&self) -> &[Box<dyn Bijection<B>>] {
        &self.links
    }

    pub(crate) fn replace_links(&mut self, links: Vec<Box<dyn Bijection<B>>>) {
        self.links = links;
    }

    pub(crate) fn links_mut(&mut self) -> &mut [Box<dyn Bijection<B>>] {
        &mut self.links
    }

    /// Where the model comes from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Says where the model comes from.
    pub fn set_provenance(&mut self, provenance: Provenance) {
        self.provenance = provenance;
    }

    /// The standardising map.
    pub fn standardiser(&self) -> &Standardiser {
        &self.standardiser
    }

    /// Makes a standardising map part of the model.
    ///
    /// # Errors
    /// If it is for rows of another width.
    pub fn set_standardiser(&mut self, standardiser: Standardiser) -> Result<(), ConfigError> {
        if standardiser.width() != self.dimension() {
            return Err(ConfigError::Inconsistent(format!(
                "a standardisation of {} columns for a flow of {}",
                standardiser.width(),
                self.dimension()
            )));
        }
        self.standardiser = standardiser;
        Ok(())
    }

    /// Shows every stored tensor: name, tensor, role. Names are `links.<l>.…`.
    pub fn visit(&self, visitor: &mut dyn FnMut(&str, &B::Tensor, Role)) {
        for (i, link) in self.links.iter().enumerate() {
            link.visit(&format!("links.{i}"), visitor);
        }
    }

    /// Lets every stored tensor be changed, in the same order. Call [`refresh`](Self::refresh) after changing weights
    /// without their singular vectors.
    pub fn visit_mut(&mut self, visitor: &mut dyn FnMut(&str, &mut B::Tensor, Role)) {
        for (i, link) in self.links.iter_mut().enumerate() {
            link.visit_mut(&format!("links.{i}"), visitor);
        }
    }

    /// Renews all power iterations.
    pub fn refresh(&mut self, how: Refresh) {
        let backend = &self.backend;
        let links = &self.links;
        let renewed = backend.run(links.len(), |i| {
            let mut link = links[i].boxed_clone();
            link.refresh(backend, how);
            link
        });
        self.links = renewed;
    }

    /// The number of trained numbers.
    pub fn parameters(&self) -> u64 {
        let mut total = 0;
        self.visit(&mut |_, tensor, role| {
            if role.is_trained() {
                total += self.backend.shape(tensor).elements() as u64;
            }
        });
        total
    }

    /// σ of every constrained weight.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn spectra(&self) -> Result<Vec<Vec<Spectrum>>, Error> {
        let one = |i: usize| {
            let mut spectra = Vec::new();
            self.links[i].spectra(&self.backend, &format!("links.{i}"), &mut |s| spectra.push(s))?;
            Ok(spectra)
        };
        (0..self.links.len()).map(one).collect()
    }

    /// The largest estimated Lipschitz bound of a block: the product of its normalised weights' σ.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn lipschitz_estimate(&self) -> Result<f64, Error> {
        let blocks = self.spectra()?.into_iter().filter(|s| !s.is_empty());
        Ok(blocks.map(|s| s.iter().map(Spectrum::effective).product()).fold(0.0, f64::max))
    }

    /// The estimator in use, `Auto` resolved by the first block's cost.
    pub fn resolved(&self, training: bool) -> Estimator {
        let setting = if training { &self.config.training } else { &self.config.evaluation };
        self.links
            .iter()
            .find_map(|l| l.cost())
            .map_or_else(|| setting.clone(), |cost| setting.resolve(&cost, training))
    }

    /// A warning for each of training and evaluation whose estimator's variance has no bound for these blocks.
    pub fn variance_warnings(&self) -> Vec<VarianceWarning> {
        let bound = self.links.iter().filter_map(|l| l.lipschitz_bound()).fold(0.0, f64::max);
        let warnings = [true, false].map(|training| match self.resolved(training) {
            Estimator::RussianRoulette(r) => r.variance_warning(bound),
            _ => None,
        });
        let mut warnings: Vec<_> = warnings.into_iter().flatten().collect();
        warnings.dedup();
        warnings
    }

    /// The flow with its weights normalised once, for any number of evaluations.
    pub fn prepare(&self) -> PreparedFlow<B> {
        let backend = &self.backend;
        let links = &self.links;
        PreparedFlow {
            links: backend.run(links.len(), |i| links[i].prepare(backend)),
            backend: backend.clone(),
            standardiser: self.standardiser.clone(),
            estimator: self.config.evaluation.clone(),
            resolved: self.resolved(false),
            replicates: self.config.replicates,
            row_bytes: self.row_bytes(),
        }
    }

    /// Activations that a row keeps alive on its way through the model, in bytes.
    pub(crate) fn row_bytes(&self) -> usize {
        let layers = self.config.linear_layers();
        let widths: usize = layers.iter().map(|&(i, _)| i).sum();
        6 * size_of::<B::Elem>() * widths * self.config.blocks
    }

    /// The gradient of −Σ wᵢ log p(xᵢ) for rows x in standardised units, `[n, d]`, with weights `[n, 1]` (1/n each if
    /// none are given), by the training estimator. Includes the gradient in x.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn gradient(&self, x: &B::Tensor, weights: Option<&B::Tensor>, key: Key) -> Result<Gradient<B>, Error> {
        let shape = self.backend.shape(x);
        if shape[..] != [shape.rows(), self.dimension()] || shape.rows() == 0 {
            return Err(Error::Input(format!("rows of shape {shape} for a flow of dimension {}", self.dimension())));
        }
        let mean = self.backend.full(1.0 / shape.rows() as f64, [shape.rows(), 1].into());
        let weights = weights.unwrap_or(&mean);
        if self.backend.shape(weights)[..] != [shape.rows(), 1] {
            return Err(Error::Input(format!(
                "weights of shape {} for {} rows",
                self.backend.shape(weights),
                shape.rows()
            )));
        }
        let objective = Objective {
            x,
            weights,
            estimator: &self.config.training,
            key,
            memory: Memory::Keep,
            row_bytes: self.row_bytes(),
            parameters: self.parameters(),
            input_gradient: true,
        };
        Ok(gradient(&self.backend, self.prepare().links(), &objective))
    }

    /// log p of rows in the data's units, see [`PreparedFlow::log_prob`].
    ///
    /// # Errors
    /// Rows of another width, or faults of the device.
    pub fn log_prob(&self, rows: &Table, key: Key) -> Result<LogProb, Error> {
        self.prepare().log_prob(rows, key)
    }

    /// Rows drawn from the model, see [`PreparedFlow::sample`].
    ///
    /// # Errors
    /// Faults of the device.
    pub fn sample(&self, rows: usize, key: Key) -> Result<Decoded, Error> {
        self.prepare().sample(rows, key, &Inversion::for_backend::<B>())
    }
}

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
    /// max|F(x) − z| / max(1, max|z|), the largest over rows: measured through the whole flow, or, if the check was left
    /// out, the largest of any block.
    pub residual: f64,
}

/// A flow with its weights normalised.
#[derive(Debug)]
pub struct PreparedFlow<B: Backend> {
    backend: B,
    links: Vec<Box<dyn PreparedBijection<B>>>,
    standardiser: Standardiser,
    estimator: Estimator,
    resolved: Estimator,
    replicates: usize,
    row_bytes: usize,
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

    /// log p of each row, with standard errors; a function of rows and key.
    ///
    /// # Errors
    /// Rows of another width, or faults of the device.
    pub fn log_prob(&self, rows: &Table, key: Key) -> Result<LogProb, Error> {
        Ok(log_prob::evaluate(self, rows, key)?.1)
    }

    /// z of each row, with log|det ∂z/∂x|.
    ///
    /// # Errors
    /// Rows of another width, or faults of the device.
    pub fn encode(&self, rows: &Table, key: Key) -> Result<Encoded, Error> {
        let (rows, log_prob) = log_prob::evaluate(self, rows, key)?;
        Ok(Encoded { rows, log_det: log_prob.log_det, standard_error: log_prob.standard_error })
    }

    /// x of each row of z. The log det of this direction is the negative of [`encode`](Self::encode)'s at x.
    ///
    /// # Errors
    /// Rows of another width, or faults of the device. A row that does not converge is no error: see the reports.
    pub fn decode(&self, z: &Table, how: &Inversion) -> Result<Decoded, Error> {
        self.check_width(z)?;
        let d = z.width();
        let backend = &self.backend;
        let plan = self.plan(z.rows());
        let parts = backend.run(plan.shards(), |i| {
            let rows = plan.rows(i);
            let values: Vec<B::Elem> =
                z.values()[rows.start * d..rows.end * d].iter().map(|&v| B::Elem::from_f64(v)).collect();
            self.invert(&backend.upload(&values, [rows.len(), d].into()), how)
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
        let fresh = RowReport { residual: 0.0, error_bound: 0.0, iterations: 0, status: Status::Converged };
        let mut reports = vec![fresh; backend.shape(z).rows()];
        let mut x = z.clone();
        for link in self.links.iter().rev() {
            let solution = link.inverse(backend, &x, how)?;
            x = solution.value;
            for (total, row) in reports.iter_mut().zip(&solution.rows) {
                total.error_bound = total.error_bound * solution.stretch + row.error_bound;
                total.iterations += row.iterations;
                total.residual = total.residual.max(row.residual);
                total.status = total.status.max(row.status);
            }
        }
        if how.checks() {
            self.measure(&x, z, &mut reports)?;
        }
        let x = backend.download(&x)?;
        Ok((x.iter().map(|x| x.to_f64()).collect(), reports))
    }

    /// Replaces the residuals of the blocks by that of the whole way back.
    fn measure(&self, x: &B::Tensor, z: &B::Tensor, reports: &mut [RowReport]) -> Result<(), Error> {
        let backend = &self.backend;
        let again = self.links.iter().fold(x.clone(), |x, link| link.forward(backend, &x, None).0);
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

    /// One shard forward through all links.
    pub(crate) fn forward(&self, x: &B::Tensor, key: Key, first_row: u64) -> Evaluated<B> {
        let mut z = x.clone();
        let mut log_dets = Vec::with_capacity(self.links.len());
        for (l, link) in self.links.iter().enumerate() {
            let draw = Draw { estimator: &self.estimator, key: key.split(l as u64), first_row };
            let (y, log_det) = link.forward(&self.backend, &z, Some((draw, self.replicates)));
            z = y;
            log_dets.extend(log_det);
        }
        Evaluated { z, log_dets }
    }

    pub(crate) fn replicates(&self) -> usize {
        self.replicates
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

    pub(crate) fn plan(&self, rows: usize) -> resflow_backend::ShardPlan {
        // an evaluation keeps only a block's activations alive: larger pieces than in training
        let preferred = self.backend.shard_rows(self.row_bytes / self.links.len().max(1)).min(MOST_ROWS);
        resflow_backend::ShardPlan::new(rows, preferred, 1)
    }
}

/// The largest of some numbers, NaN if any is.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |a: f64, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
}
