//! One run of training: the optimiser's state, the moving average of the weights (EMA), the best model so far.
//!
//! A step computes the gradient on the batch of its number, clips it, makes an Adam step that is gated by finiteness on
//! the device, moves the average, updates the spectral norms and reads one small report back. A step that is not finite
//! changes nothing and ends the run with [`Error::Diverged`].

mod step;

use std::sync::Arc;
use std::time::Duration;

use resflow_backend::{Backend, Key};
pub use step::StepReport;

use super::batches::{Batches, Contexts};
use super::columns::Columns;
use super::given::{category_width, check_shape, take_contexts};
use super::measured::{MeasuredLaw, RouletteLaw};
use super::optimiser::Optimiser;
use super::source::{Drawing, Source, ValidationSet};
use super::start::fit_base;
use super::validation::Best;
use super::{Budget, Limits, TrainConfig, Validation, Verdict};
use crate::base::Mixture;
use crate::classifier::{ClassificationScore, Classifier};
use crate::data::Samples;
use crate::error::Error;
use crate::estimator::{Estimator, Expansion, Phase};
use crate::flow::{Flow, FlowContext, PreparedFlow, Provenance};
use crate::group::Team;

/// A run of training.
#[derive(Debug)]
pub struct Trainer<B: Backend> {
    pub(super) flow: Flow<B>,
    pub(super) config: TrainConfig,
    pub(super) budget: Budget,
    pub(super) key: Key,
    pub(super) fingerprint: String,
    pub(super) step: u64,
    pub(super) elapsed: Duration,
    pub(super) optimiser: Optimiser<B>,
    pub(super) best: Option<Best<B>>,
    pub(super) last_validation: Option<Validation>,
    pub(super) without_improvement: u32,
    /// See [`milestone`](Self::milestone), at the latest validation.
    pub(super) milestone: u64,
    pub(super) initialised: bool,
    /// The mixture that was fitted as the base, unless the run was resumed.
    pub(super) fitted: Option<Mixture>,
    /// The law of roulette, if it is measured.
    pub(super) law: Option<MeasuredLaw>,
    prepared: PreparedFlow<B>,
    /// The handle that gradients are computed by.
    steps: B,
    /// The processes that compute the run together.
    pub(super) team: Option<Arc<Team>>,
    /// The weight of the latest step's samples, 1 where they have none.
    weight: f64,
    /// The sum of ln |det| of the columns' maps over the latest step's samples, by weight, unless all have the same.
    log_det: Option<f64>,
    batches: Batches,
    pub(super) validation: ValidationSet,
}

impl<B: Backend> Trainer<B> {
    /// Starts a run. The maps of the training samples' columns, fitted as the settings say, become part of the flow.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for settings out of range, [`Error::Input`] for data that do not fit the flow,
    /// [`Error::Data`] for data that cannot be split or standardised, or that are not what is declared of them, and for rows that
    /// are read as they are needed and cannot be.
    pub fn new(
        flow: Flow<B>,
        source: impl Into<Source>,
        config: &TrainConfig,
        budget: Budget,
        key: Key,
    ) -> Result<Self, Error> {
        Self::start(
            flow,
            source.into(),
            config,
            Limits::of(budget),
            key,
            Columns::Fit(&config.column_settings()),
            Contexts::Fit,
        )
    }

    /// Starts a run like [`Self::new`], unless it is stopped before: the search for the mixture that it begins with asks again
    /// and again.
    ///
    /// # Errors
    /// Returns [`Error::Interrupted`] if it is stopped, and the errors of [`Self::new`].
    pub fn new_unless(
        flow: Flow<B>,
        source: impl Into<Source>,
        config: &TrainConfig,
        budget: Budget,
        key: Key,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Self, Error> {
        let (columns, limits) = (config.column_settings(), Limits { is_stopped, ..Limits::of(budget) });
        Self::start(flow, source.into(), config, limits, key, Columns::Fit(&columns), Contexts::Fit)
    }

    /// Starts a run like [`Self::new`] that will be ended after a time, whatever its budget: the mixture that it begins with is
    /// sought for a part of that time at most.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn new_within(
        flow: Flow<B>,
        source: impl Into<Source>,
        config: &TrainConfig,
        (budget, limit): (Budget, Duration),
        key: Key,
    ) -> Result<Self, Error> {
        let (columns, limits) = (config.column_settings(), Limits { time: Some(limit), ..Limits::of(budget) });
        Self::start(flow, source.into(), config, limits, key, Columns::Fit(&columns), Contexts::Fit)
    }

    pub(super) fn start(
        mut flow: Flow<B>,
        source: Source,
        config: &TrainConfig,
        limits: Limits<'_>,
        key: Key,
        columns: Columns<'_>,
        contexts: Contexts,
    ) -> Result<Self, Error> {
        let budget = limits.budget;
        config.check()?;
        budget.check()?;
        config.check_objective(&flow, source.data().is_some_and(|data| data.weights().is_some()))?;
        check_shape(&source.sample_shape(), &flow.config().sample_shape())?;
        if let (None, Some(width)) = (flow.context(), source.data().and_then(category_width)) {
            return Err(Error::Input(format!(
                "the data have categories, of which a flow over the numbers is given one-hot codes: set context = {{ columns = {width} }}"
            )));
        }
        let classes = flow.classifier().map_or(0, Classifier::classes);
        source.check(classes, flow.context().map(FlowContext::columns))?;
        let fingerprint = source.fingerprint(classes);
        let names = source.columns().map(<[String]>::to_vec);
        let given = source.data().and_then(|data| data.samples().context()).filter(|_| flow.context().is_some());
        let given = given.and_then(|contexts| contexts.columns().map(<[String]>::to_vec));
        let class_names = source.class_names().filter(|_| classes > 0).map(<[String]>::to_vec);
        flow.set_provenance(Provenance {
            data: fingerprint.clone(),
            columns: names,
            given,
            classes: class_names.filter(|names| names.len() == classes),
            seed: key.seed(),
            ..Provenance::default()
        });
        let drawing = Drawing {
            validation_samples: config.validation_rows,
            validation_fraction: config.validation_fraction,
            flips: config.flips,
            bits: flow.config().images().map_or(8, |c| c.bits),
            classes,
            quantised: flow.dequantiser().is_some(),
            key,
        };
        let begins = !matches!(columns, Columns::Given(_));
        let (mut batches, validation, columns) = Batches::new(source, drawing, columns)?;
        flow.set_columns(columns)?;
        take_contexts(&mut flow, &mut batches, &validation, contexts, key)?;
        let mut fitted = None;
        if begins && config.fit_base {
            let (ladder, mixture) =
                fit_base(&mut flow, &mut batches, validation.samples(), limits, key.named("mixture"))?;
            flow.set_provenance(Provenance { ladder: Some(ladder), ..flow.provenance().clone() });
            fitted = Some(mixture);
        }
        let backend = flow.backend().clone();
        let steps = backend.with_products(config.products)?;
        let prepared = flow.prepare().with_steps_on(steps.clone()).with_lanes(config.lanes, None);
        let mut config = config.clone();
        if let Budget::Steps(steps) = budget {
            config.steps = steps;
        }
        let law = match flow.resolved(Phase::Training) {
            Estimator::RussianRoulette(set) if config.roulette == RouletteLaw::Measured => {
                let expansion = flow.transforms().iter().find(|t| t.cost().is_some()).map(|t| t.expansion());
                Some(MeasuredLaw::new(set, expansion.unwrap_or(Expansion::Whole), None))
            }
            _ => None,
        };
        Ok(Self {
            law,
            optimiser: Optimiser::new(&flow),
            prepared,
            steps,
            team: None,
            weight: 1.0,
            log_det: None,
            flow,
            config,
            budget,
            key,
            fingerprint,
            step: 0,
            elapsed: Duration::ZERO,
            best: None,
            last_validation: None,
            without_improvement: 0,
            milestone: 0,
            initialised: false,
            fitted,
            batches,
            validation,
        })
    }

    /// The flow as the last step left it. [`model`](Self::model) is what to use.
    pub fn flow(&self) -> &Flow<B> {
        &self.flow
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The steps or the time that the run may take.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// The validation samples, in the data's units.
    pub fn validation_samples(&self) -> Samples<'_> {
        self.validation.samples()
    }

    /// The numbers of the validation samples in the data that they were set aside from, from 0; none where they came by
    /// themselves.
    pub fn validation_numbers(&self) -> &[usize] {
        self.validation.numbers()
    }

    /// Samples in an epoch, if the data come in epochs.
    pub fn epoch_samples(&self) -> Option<usize> {
        self.batches.epoch_samples()
    }

    /// The samples of a step.
    pub fn step_samples(&self) -> usize {
        self.config.batch * self.config.accumulate
    }

    /// The number of steps made.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// The time spent in steps and validations, over all resumptions.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// The latest validation.
    pub fn last_validation(&self) -> Option<&Validation> {
        self.last_validation.as_ref()
    }

    /// −log p of the best validation, nats: of a hybrid model the one of the least λ (−log p(x)) − log p(y | x).
    pub fn best_nll(&self) -> Option<f64> {
        self.best.as_ref().map(|b| b.nll)
    }

    /// The score of a hybrid model's classifier in the best validation.
    pub fn best_classification(&self) -> Option<ClassificationScore> {
        self.best.as_ref().and_then(|b| b.classification)
    }

    /// Returns the fraction of the budget that is spent, from 0 to 1.
    pub fn progress(&self) -> f64 {
        match self.budget {
            Budget::Steps(steps) => self.step as f64 / steps as f64,
            Budget::Time(limit) => (self.elapsed.as_secs_f64() / limit.as_secs_f64()).min(1.0),
        }
    }

    /// Returns `true` if the budget is spent, or validation has not improved for as long as the settings allow.
    pub fn finished(&self) -> bool {
        let spent = match self.budget {
            Budget::Steps(steps) => self.step >= steps,
            Budget::Time(limit) => self.elapsed >= limit,
        };
        spent || (self.config.patience > 0 && self.without_improvement >= self.config.patience)
    }

    /// Steps and validates until the run is finished or the observer, which is told of every step, stops it with
    /// [`ControlFlow::Break`](std::ops::ControlFlow::Break). The last validation of a finished run is always made.
    ///
    /// # Errors
    /// Returns [`Error::Diverged`] if a loss or a gradient is not finite, [`Error::Input`] if the first batch
    /// cannot initialise a transform, [`Error::Transform`] if a transform of your own fails, [`Error::Backend`] if
    /// the device does.
    pub fn run<V: Verdict>(
        &mut self,
        mut observe: impl FnMut(&StepReport, Option<&Validation>) -> V,
    ) -> Result<(), Error> {
        if self.validation_due() {
            self.validate()?;
        }
        while !self.finished() {
            let report = self.step()?;
            let validation = if self.validation_due() { Some(self.validate()?) } else { None };
            if !observe(&report, validation.as_ref()).goes_on() {
                break;
            }
        }
        Ok(())
    }

    /// The best validated averaged weights; before any validation, the average as it is.
    pub fn model(&self) -> Flow<B> {
        self.best.as_ref().map_or_else(|| self.averaged(), |best| best.flow.clone())
    }

    /// Derives everything that is computed from the flow's tensors, after they were replaced.
    pub(super) fn derive(&mut self) {
        self.optimiser.follow(&self.flow);
        self.take(self.flow.prepare());
    }

    /// Takes a prepared flow to make steps with.
    fn take(&mut self, prepared: PreparedFlow<B>) {
        self.prepared = prepared.with_steps_on(self.steps.clone()).with_lanes(self.config.lanes, self.team.clone());
    }
}
