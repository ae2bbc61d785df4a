//! Fitting with one call.

use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

use resflow_backend::{Backend, Key};
use serde_json::{Map, Value};

use super::own_rows::OwnRows;
use super::settings::{Named, settings};
use super::{IntoDataset, Model};
use crate::config::{Family, ModelConfig};
use crate::data::{self, Dataset, Incomplete};
use crate::device::{Device, DeviceOptions};
use crate::error::Error;
use crate::flow::{Flow, Provenance};
use crate::missing::{self, MissingFit};
use crate::train::{Budget, Source, StepReport, TrainConfig, Trainer, Validation};

/// Fits a residual flow to samples with all defaults, on all cores.
///
/// Rows of a table are fitted as the program `resflow` fits them
/// ([`FlowConfig::for_table`](crate::config::FlowConfig::for_table), [`TrainConfig::for_table`]). A
/// [look](crate::data::look()) refuses a table that has no density. A tenth of the rows, of few rows up to three tenths
/// and of many 10,000, is set aside for validation; the columns are brought to a common shape; training begins at the mixture of Gaussians that
/// is best on the validation rows, and ends after ten validations that were not significantly better, after
/// [`TrainConfig::steps`] steps at most. So no model is worse than its mixture on these rows, and a small table takes
/// seconds.
///
/// Images are fitted by [`ModelConfig::for_shape`] and [`TrainConfig::for_model`]. [`Fit`] has settings.
///
/// # Errors
/// Returns [`Error::Data`] for data that are none and for a table whose density has no meaning
/// ([`DataError::NoDensity`](crate::data::DataError::NoDensity), with all that was found), [`Error::Diverged`] if training
/// became non-finite.
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
    /// The fraction of the budget that is spent, from 0 to 1; of rows with missing cells that of the stage.
    pub fraction: f64,
    /// Whether the step is one of the imputer's, the first stage of a fit of rows with missing cells ([`Fit::missing`]).
    pub imputing: bool,
}

type IsAbandoned<'a> = Box<dyn Fn() -> bool + 'a>;

type OnProgress<'a> = Box<dyn FnMut(&Progress<'_>) -> ControlFlow<()> + 'a>;

/// The settings of a fit; what is not set is as [`fit`] has it. A model is a function of the data, the settings and the
/// seed, unless a time limits it.
///
/// ```
/// use std::ops::ControlFlow;
/// use resflow::Fit;
/// use resflow::config::Family;
///
/// let spread = |i: i32, by: f64| (f64::from(i) * by).fract();
/// let rows: Vec<[f64; 2]> = (0..100).map(|i| [spread(i, 0.754_877), spread(i, 0.569_840).sqrt()]).collect();
/// let mut steps = 0;
/// let model = Fit::new()
///     .family(Family::Nsf)
///     .steps(50)
///     .seed(3)
///     .on_progress(|progress| {
///         steps = progress.step.step;
///         if steps < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
///     })
///     .run(&rows)?;
/// // the steps behind the best weights; 0 if those are the mixture's
/// assert!(steps == 10 && model.provenance().steps <= 10);
/// # Ok::<(), resflow::Error>(())
/// ```
#[derive(Default)]
pub struct Fit<'a> {
    budget: Option<Budget>,
    device: DeviceOptions,
    seed: u64,
    family: Option<Family>,
    model: Option<ModelConfig>,
    train: Option<TrainConfig>,
    named: Option<Named>,
    regardless: bool,
    missing: bool,
    given: Option<Dataset>,
    validation: Option<Incomplete>,
    validation_fraction: Option<f64>,
    on_progress: Option<OnProgress<'a>>,
    is_abandoned: Option<IsAbandoned<'a>>,
}

impl fmt::Debug for Fit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fit")
            .field("budget", &self.budget)
            .field("device", &self.device)
            .field("seed", &self.seed)
            .field("family", &self.family)
            .field("model", &self.model)
            .field("train", &self.train)
            .field("named", &self.named)
            .field("regardless", &self.regardless)
            .field("missing", &self.missing)
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

    /// Sets the time that training may take; the learning-rate schedule is laid over it. Choosing a mixture before and
    /// scoring rows afterwards come on top.
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

    /// Sets the family whose default architecture is fitted, [`Family::Residual`] unless said otherwise.
    #[must_use]
    pub fn family(self, family: Family) -> Self {
        Self { family: Some(family), ..self }
    }

    /// Sets the architecture and the estimators. Training keeps its defaults, but that no mixture is fitted for a model that
    /// does not begin at its base ([`TrainConfig::with_fitting_base`]).
    #[must_use]
    pub fn model(self, model: impl Into<ModelConfig>) -> Self {
        Self { model: Some(model.into()), ..self }
    }

    /// Sets the settings of training, all of them: start from [`TrainConfig::for_table`] to change one.
    #[must_use]
    pub fn train(self, train: TrainConfig) -> Self {
        Self { train: Some(train), ..self }
    }

    /// Lays settings over the others, by name: `model` over the architecture, `train` over those of training, as a configuration file
    /// of the program lays its sections `[flow]` or `[images]` and `[train]` over the defaults.
    ///
    /// ```
    /// use serde_json::json;
    ///
    /// let spread = |i: usize, by: f64| (i as f64 * by).fract();
    /// let rows: Vec<[f64; 2]> = (0..100).map(|i| [spread(i, 0.754_877), spread(i, 0.569_840)]).collect();
    /// let named = |value: serde_json::Value| value.as_object().cloned().unwrap_or_default();
    /// let fit = resflow::Fit::new().steps(5).settings(named(json!({ "blocks": 2 })), named(json!({ "batch": 50 })));
    /// assert_eq!(fit.run(&rows)?.config().blocks(), 2);
    /// # Ok::<(), resflow::Error>(())
    /// ```
    #[must_use]
    pub fn settings(self, model: Map<String, Value>, train: Map<String, Value>) -> Self {
        Self { named: Some(Named { model, train }), ..self }
    }

    /// Fits the density of the samples given others, p(x | c): one row of contexts for each sample, `[n, k]`. The model
    /// answers for a context then: [`Model::condition`]. A [`Dataset`] that has contexts is fitted so by itself
    /// ([`Dataset::given`] takes columns by name).
    ///
    /// ```
    /// use ndarray::Array2;
    ///
    /// let spread = |i: usize, by: f64| (i as f64 * by).fract();
    /// let c = Array2::from_shape_fn((100, 1), |(i, _)| spread(i, 0.754_877));
    /// let x = Array2::from_shape_fn((100, 2), |(i, j)| c[[i, 0]] + spread(i + 40 * j, 0.569_840));
    /// let model = resflow::Fit::new().given(&c)?.steps(5).run(&x)?;
    /// let samples = model.condition(&[[0.5]])?.sample(10)?;
    /// assert_eq!(samples.dim(), (10, 2));
    /// # Ok::<(), resflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`Error::Data`] for data that are none.
    pub fn given(self, contexts: impl IntoDataset) -> Result<Self, Error> {
        Ok(Self { given: Some(contexts.into_dataset()?), ..self })
    }

    /// Validates on these samples instead of some that are set aside; ones of a conditional model bring their contexts.
    ///
    /// # Errors
    /// Returns [`Error::Data`] for data that are none.
    pub fn validation(self, x: impl IntoDataset) -> Result<Self, Error> {
        Ok(Self { validation: Some(x.into_incomplete()?), ..self })
    }

    /// Sets the fraction of the samples that is set aside for validation.
    #[must_use]
    pub fn validation_fraction(self, fraction: f64) -> Self {
        Self { validation_fraction: Some(fraction), ..self }
    }

    /// Sets whether a table whose density has no meaning is fitted all the same, for example one in which a column is the
    /// sum of others; a column of one value never is. [`data::look`](crate::data::look()) says what there is to find.
    #[must_use]
    pub fn regardless(self, regardless: bool) -> Self {
        Self { regardless, ..self }
    }

    /// Sets whether rows may have missing cells, which are NaN. A second flow, the imputer, then learns first to fill them in, from what
    /// was seen; the density is learned from rows that it has filled in, which presumes that cells are missing at random. Each of the
    /// two gets the number of steps that is asked for; a time limit is divided. The model scores rows with missing cells
    /// ([`Model::score_seen`]) and fills them in ([`Model::impute`]); see [`missing`](crate::missing).
    #[must_use]
    pub fn missing(self, missing: bool) -> Self {
        Self { missing, ..self }
    }

    /// Sets an observer, which is told of every step and may stop the run with [`ControlFlow::Break`]; the weights are
    /// validated once more then, and the model is the best one so far.
    #[must_use]
    pub fn on_progress(self, observe: impl FnMut(&Progress<'_>) -> ControlFlow<()> + 'a) -> Self {
        Self { on_progress: Some(Box::new(observe)), ..self }
    }

    /// Sets a question that is asked again and again, of the search for a mixture before the first step too: once the answer is
    /// `true`, the fit ends with [`Error::Interrupted`] and there is no model. [`on_progress`](Self::on_progress) ends a fit with one.
    ///
    /// ```
    /// use std::cell::Cell;
    ///
    /// let spread = |i: usize, by: f64| (i as f64 * by).fract();
    /// let rows: Vec<[f64; 2]> = (0..500).map(|i| [spread(i, 0.754_877), spread(i, 0.569_840)]).collect();
    /// let asked = Cell::new(0);
    /// let fit = resflow::Fit::new().abandon(|| asked.replace(asked.get() + 1) == 3);
    /// assert!(matches!(fit.run(&rows), Err(resflow::Error::Interrupted)));
    /// ```
    #[must_use]
    pub fn abandon(self, is_abandoned: impl Fn() -> bool + 'a) -> Self {
        Self { is_abandoned: Some(Box::new(is_abandoned)), ..self }
    }

    /// Fits a model to samples.
    ///
    /// # Errors
    /// Returns [`Error::Data`] for data that are none and for a table whose density has no meaning
    /// ([`DataError::NoDensity`](crate::data::DataError::NoDensity), with all that was found) that is not to be fitted
    /// [regardless](Self::regardless), [`Error::Config`] for settings out of range or that do not go together,
    /// [`Error::Input`] for settings that do not fit the data, [`Error::Diverged`] if training became non-finite,
    /// [`Error::Interrupted`] if it was [abandoned](Self::abandon), [`Error::Backend`] if the device failed.
    pub fn run(mut self, x: impl IntoDataset) -> Result<Model, Error> {
        let rows = x.into_incomplete()?;
        if self.missing {
            return self.run_incomplete(&rows);
        }
        let mut data = rows.complete()?;
        if let Some(contexts) = self.given.take() {
            data = data.given_rows(contexts)?;
        }
        if data.table().is_some_and(|table| table.width() == 0) {
            let problem = "the rows have categories and no numbers: `CategoricalDensity::fit` is their probability";
            return Err(Error::Input(problem.into()));
        }
        if data.table().is_some() && !self.regardless {
            data::look_at(&data)?.check()?;
        }
        let device = Device::open(&self.device)?;
        crate::with_device!(device, |backend| self.run_on(backend, data))
    }

    fn run_on<B: Backend>(mut self, backend: B, data: Dataset) -> Result<Model, Error> {
        let key = Key::new(self.seed);
        let (config, mut train) =
            settings(self.family, self.model.take(), self.train.take(), self.named.take(), &data)?;
        let own = OwnRows::of(&data, key.named("own rows"));
        if let Some(fraction) = self.validation_fraction {
            train.validation_fraction = fraction;
        }
        let source = match self.validation.take() {
            Some(validation) => Source::Split { training: data, validation: validation.complete()? },
            None => data.into(),
        };
        let budget = self.budget.unwrap_or_else(|| train.budget());
        let flow = Flow::new(backend, config, key.named("weights"))?;
        let is_abandoned = self.is_abandoned.take();
        let is_abandoned = || is_abandoned.as_ref().is_some_and(|is_abandoned| is_abandoned());
        let mut trainer = Trainer::new_unless(flow, source, &train, budget, key, &is_abandoned)?;
        self.drive(&mut trainer, false, false, &is_abandoned)?;
        self.finish(&trainer, own)
    }

    fn run_incomplete(self, rows: &Incomplete) -> Result<Model, Error> {
        if self.given.is_some() {
            let problem = "rows with missing cells cannot be fitted given others: leave out `given` or `missing`";
            return Err(Error::Input(problem.into()));
        }
        if rows.data().table().is_some() && !self.regardless {
            data::look_incomplete(rows)?.check()?;
        }
        let device = Device::open(&self.device)?;
        crate::with_device!(device, |backend| self.run_stages(backend, rows))
    }

    /// Trains an imputer, fills the rows in, and trains on these.
    fn run_stages<B: Backend>(mut self, backend: B, rows: &Incomplete) -> Result<Model, Error> {
        let key = Key::new(self.seed);
        let (config, mut train) =
            settings(self.family, self.model.take(), self.train.take(), self.named.take(), rows.data())?;
        if let Some(fraction) = self.validation_fraction {
            train.validation_fraction = fraction;
        }
        let fit = match self.validation.take() {
            Some(validation) => MissingFit::with_validation(rows, &validation, &train)?,
            None => MissingFit::new(rows, &train, key)?,
        };
        let (first, second) = match self.budget.unwrap_or_else(|| train.budget()) {
            Budget::Steps(steps) => (Budget::Steps(steps), Budget::Steps(steps)),
            Budget::Time(limit) => {
                let first = limit.mul_f64(missing::TIME_SHARE);
                (Budget::Time(first), Budget::Time(limit.saturating_sub(first)))
            }
        };
        let is_abandoned = self.is_abandoned.take();
        let is_abandoned = || is_abandoned.as_ref().is_some_and(|is_abandoned| is_abandoned());
        let mut trainer = fit.imputer_trainer(backend.clone(), first, key)?;
        let stopped = self.drive(&mut trainer, true, false, &is_abandoned)?;
        let imputer = fit.imputer(trainer.model())?;
        let filled = fit.fill(&imputer, key)?;
        let own = filled.data().and_then(|data| OwnRows::of(data, key.named("own rows")));
        let flow = Flow::new(backend, config, key.named("weights"))?;
        let mut trainer = fit.trainer_unless(filled, flow, imputer, &train, (second, &is_abandoned), key)?;
        self.drive(&mut trainer, false, stopped, &is_abandoned)?;
        self.finish(&trainer, own)
    }

    /// Trains to the end, or until the observer stops it, which is returned.
    fn drive<B: Backend>(
        &mut self,
        trainer: &mut Trainer<B>,
        imputing: bool,
        mut stopped: bool,
        is_abandoned: &dyn Fn() -> bool,
    ) -> Result<bool, Error> {
        if trainer.validation_due() {
            trainer.validate()?;
        }
        while !(trainer.finished() || stopped) {
            if is_abandoned() {
                return Err(Error::Interrupted);
            }
            let step = trainer.step()?;
            let due = trainer.validation_due();
            let validation = if due { Some(trainer.validate()?) } else { None };
            let (validation, fraction) = (validation.as_ref(), trainer.progress());
            let progress = Progress { step: &step, validation, fraction, imputing };
            stopped = self.on_progress.as_mut().is_some_and(|observe| observe(&progress).is_break());
        }
        if is_abandoned() {
            return Err(Error::Interrupted);
        }
        // the latest weights of a run that was stopped may be its best
        if trainer.last_validation().is_none_or(|validation| validation.step != trainer.steps_done()) {
            trainer.validate()?;
        }
        Ok(stopped)
    }

    fn finish<B: Backend>(&self, trainer: &Trainer<B>, own: Option<OwnRows>) -> Result<Model, Error> {
        let mut flow = trainer.model();
        let prepared = flow.prepare();
        // the noise of the model's own scores
        let noise = Model::score_key(Model::key_of(self.seed));
        let scores = own.map(|own| own.score(trainer, &prepared, noise)).transpose()?.flatten();
        flow.set_provenance(Provenance { seed: self.seed, scores, ..flow.provenance().clone() });
        Ok(Model::of_prepared(flow, prepared))
    }
}
