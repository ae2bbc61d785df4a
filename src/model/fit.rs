//! Fitting with one call.

use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

use resflow_backend::{Backend, Key};

use super::{IntoDataset, Model};
use crate::config::ModelConfig;
use crate::data::Dataset;
use crate::device::{Device, DeviceOptions};
use crate::error::Error;
use crate::flow::Flow;
use crate::train::{Budget, Source, StepReport, TrainConfig, Trainer, Validation};

/// Fits a residual flow to samples with all defaults: the architecture by the shape of a sample, a tenth of the samples
/// set aside for validation, [`TrainConfig::default`]'s number of steps, on all cores. [`Fit`] has settings.
///
/// # Errors
/// Returns [`Error::Data`] for data that are none, [`Error::Diverged`] if training became non-finite.
pub fn fit(x: impl IntoDataset) -> Result<Model, Error> {
    Fit::new().run(x)
}

/// The progress of a fit after a step.
#[derive(Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The step.
    pub step: &'a StepReport,
    /// The validation that followed it, if one did.
    pub validation: Option<&'a Validation>,
    /// The fraction of the budget that is spent, from 0 to 1.
    pub fraction: f64,
}

type OnProgress<'a> = Box<dyn FnMut(&Progress<'_>) -> ControlFlow<()> + 'a>;

/// The settings of a fit.
///
/// ```
/// use std::ops::ControlFlow;
/// use resflow::Fit;
///
/// let rows: Vec<[f64; 2]> = (0..100).map(|i| [f64::from(i % 10), f64::from(i % 7)]).collect();
/// let model = Fit::new()
///     .steps(50)
///     .seed(3)
///     .on_progress(|progress| if progress.step.step < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
///     .run(&rows)?;
/// assert_eq!(model.provenance().steps, 10);
/// # Ok::<(), resflow::Error>(())
/// ```
#[derive(Default)]
pub struct Fit<'a> {
    budget: Option<Budget>,
    device: DeviceOptions,
    seed: u64,
    model: Option<ModelConfig>,
    train: Option<TrainConfig>,
    validation: Option<Dataset>,
    validation_fraction: Option<f64>,
    on_progress: Option<OnProgress<'a>>,
}

impl fmt::Debug for Fit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fit")
            .field("budget", &self.budget)
            .field("device", &self.device)
            .field("seed", &self.seed)
            .field("model", &self.model)
            .field("train", &self.train)
            .finish_non_exhaustive()
    }
}

impl<'a> Fit<'a> {
    /// Builds a fit with all defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of steps; the result is a function of data, settings and seed then.
    #[must_use]
    pub fn steps(self, steps: u64) -> Self {
        Self { budget: Some(Budget::Steps(steps)), ..self }
    }

    /// Sets the time that training may take; the learning-rate schedule is laid over it.
    #[must_use]
    pub fn time_limit(self, limit: Duration) -> Self {
        Self { budget: Some(Budget::Time(limit)), ..self }
    }

    /// Sets the device, [`DeviceOptions::best`] or a chosen one; the processor in single precision unless said
    /// otherwise.
    #[must_use]
    pub fn device(self, device: DeviceOptions) -> Self {
        Self { device, ..self }
    }

    /// Sets the seed of weights, batches and estimates, 0 unless said otherwise.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets the architecture and the estimators.
    #[must_use]
    pub fn model(self, model: impl Into<ModelConfig>) -> Self {
        Self { model: Some(model.into()), ..self }
    }

    /// Sets the settings of training.
    #[must_use]
    pub fn train(self, train: TrainConfig) -> Self {
        Self { train: Some(train), ..self }
    }

    /// Validates on these samples instead of some that are set aside.
    ///
    /// # Errors
    /// Returns [`Error::Data`] for data that are none.
    pub fn validation(self, x: impl IntoDataset) -> Result<Self, Error> {
        Ok(Self { validation: Some(x.into_dataset()?), ..self })
    }

    /// Sets the fraction of the samples that is set aside for validation.
    #[must_use]
    pub fn validation_fraction(self, fraction: f64) -> Self {
        Self { validation_fraction: Some(fraction), ..self }
    }

    /// Sets an observer, which is told of every step and may stop the run with [`ControlFlow::Break`]; the model is the
    /// best one so far then.
    #[must_use]
    pub fn on_progress(self, observe: impl FnMut(&Progress<'_>) -> ControlFlow<()> + 'a) -> Self {
        Self { on_progress: Some(Box::new(observe)), ..self }
    }

    /// Fits a model to samples.
    ///
    /// # Errors
    /// Returns [`Error::Data`] for data that are none, [`Error::Config`] for settings out of range, [`Error::Input`]
    /// for settings that do not fit the data, [`Error::Diverged`] if training became non-finite, [`Error::Backend`] if
    /// the device failed.
    pub fn run(self, x: impl IntoDataset) -> Result<Model, Error> {
        let data = x.into_dataset()?;
        let device = Device::open(&self.device)?;
        crate::with_device!(device, |backend| self.run_on(backend, data))
    }

    fn run_on<B: Backend>(mut self, backend: B, data: Dataset) -> Result<Model, Error> {
        let config = match self.model.take() {
            Some(model) => model,
            None => ModelConfig::for_shape(&data.sample_shape())?,
        };
        let mut train = self.train.take().unwrap_or_else(|| TrainConfig::for_model(&config));
        if let Some(fraction) = self.validation_fraction {
            train.validation_fraction = fraction;
        }
        let source = match self.validation.take() {
            Some(validation) => Source::Split { training: data, validation },
            None => data.into(),
        };
        let budget = self.budget.unwrap_or_else(|| train.budget());
        let key = Key::new(self.seed);
        let flow = Flow::new(backend, config, key)?;
        let mut trainer = Trainer::new(flow, source, &train, budget, key)?;
        let mut stopped = false;
        if trainer.validation_due() {
            trainer.validate()?;
        }
        while !(trainer.finished() || stopped) {
            let step = trainer.step()?;
            let due = trainer.validation_due();
            let validation = if due { Some(trainer.validate()?) } else { None };
            let progress = Progress { step: &step, validation: validation.as_ref(), fraction: trainer.progress() };
            stopped = self.on_progress.as_mut().is_some_and(|observe| observe(&progress).is_break());
        }
        // a run that was stopped before its first validation has no best model yet
        if trainer.last_validation().is_none() {
            trainer.validate()?;
        }
        let mut model = trainer.model();
        let provenance = model.provenance().clone();
        model.set_provenance(crate::flow::Provenance { seed: self.seed, ..provenance });
        Ok(Model::new(model))
    }
}
