//! A fit of rows with missing cells, in two stages: the imputer learns from what was seen, then the joint learns from rows that the
//! imputer has filled in.
//!
//! The joint's rows are drawn once and not in each epoch: each row stands there as often as makes some twenty thousand rows of all, so
//! that the draws of a small table are many and those of a large one are averaged over its rows. The trainer then knows nothing of
//! missing cells, and both stages can be interrupted and resumed like any run. Validation rows are filled in once, since copies
//! of a row would make its standard error too small.

use std::fmt;
use std::time::Duration;

use resflow_backend::{Backend, Key};

use super::imputer::Imputer;
use super::masking::masked;
use crate::checkpoint::Archive;
use crate::config::{ContextConfig, Family, FlowConfig};
use crate::data::{ColumnMaps, Dataset, Incomplete, Values};
use crate::error::{DataError, Error};
use crate::flow::Flow;
use crate::invert::Status;
use crate::train::{Budget, Source, TrainConfig, Trainer};

/// The masked rows that an imputer learns from, at least, where memory allows it.
const MASKED_ROWS: usize = 100_000;
/// The numbers of all these rows and their contexts together, at most, unless each row stands there once.
const MASKED_NUMBERS: usize = 16_000_000;
/// The masked rows that it is validated on, at least.
const VALIDATION_ROWS: usize = 2_000;
/// The most copies of a validation row.
const MOST_VALIDATION_COPIES: usize = 20;
/// The filled rows that the joint learns from, at least,
const FILLED_ROWS: usize = 20_000;
/// and the most copies of a row among them.
const MOST_FILLED_COPIES: usize = 20;

/// The data of a fit of rows with missing cells, divided and mapped.
///
/// ```
/// use resflow::backend::Key;
/// use resflow::config::{Family, FlowConfig};
/// use resflow::data::Incomplete;
/// use resflow::missing::MissingFit;
/// use resflow::train::{Budget, TrainConfig};
/// use resflow::{Flow, NdArray};
///
/// let spread = |i: i32, by: f64| (f64::from(i) * by).fract();
/// let cell = |i: i32| if i % 5 == 0 { f64::NAN } else { spread(i, 0.569_840) };
/// let rows: Vec<[f64; 2]> = (0..100).map(|i| [spread(i, 0.754_877), cell(i)]).collect();
/// let rows = Incomplete::from_rows(&rows)?;
///
/// let (backend, key) = (NdArray::<f32>::new(), Key::new(0));
/// let settings = TrainConfig::for_table(Family::Nsf, rows.len());
/// let fit = MissingFit::new(&rows, &settings, key)?;
/// let mut first = fit.imputer_trainer(backend.clone(), Budget::Steps(5), key)?;
/// first.run(|_, _| ())?;
/// let flow = Flow::new(backend, FlowConfig::for_table(Family::Nsf, 100, 2), key)?;
/// let mut second = fit.trainer(flow, fit.imputer(first.model())?, &settings, Budget::Steps(5), key)?;
/// second.run(|_, _| ())?;
/// let model = second.model();
/// let scores = model.prepare_marginal()?.log_prob(&rows, Key::new(1))?;
/// let filled = model.prepare_imputer()?.impute(&rows, 3, Key::new(2))?;
/// assert_eq!((scores.scores.values.len(), filled.table().rows()), (100, 300));
/// # Ok::<(), resflow::Error>(())
/// ```
#[derive(Debug)]
pub struct MissingFit {
    training: Incomplete,
    validation: Incomplete,
    /// The numbers of the validation rows among all, where they were set aside.
    numbers: Vec<usize>,
    maps: ColumnMaps,
    /// What the rows are, in words.
    words: String,
}

impl MissingFit {
    /// Sets rows aside for validation, as the settings say, and fits the maps of the columns to what was seen of the others.
    ///
    /// # Errors
    /// Returns [`DataError::NothingSeen`] with all rows and columns of which no cell was seen, [`Error::Input`] for images and for rows
    /// with contexts, and the errors of [`Dataset::split`] and [`ColumnMaps::fit`].
    pub fn new(rows: &Incomplete, config: &TrainConfig, key: Key) -> Result<Self, Error> {
        config.check()?;
        check(rows)?;
        let (training, numbers) = rows.data().split_numbers(config.validation_fraction, key.named("split"))?;
        let (of_training, of_validation) = (rows.select(&training)?, rows.select(&numbers)?);
        Self::of(rows, of_training, of_validation, numbers, config)
    }

    /// Fits to these rows, and validates on other ones.
    ///
    /// # Errors
    /// Returns the errors of [`new`](Self::new), and [`Error::Input`] for validation rows of another width.
    pub fn with_validation(rows: &Incomplete, validation: &Incomplete, config: &TrainConfig) -> Result<Self, Error> {
        config.check()?;
        check(rows)?;
        check(validation)?;
        if rows.width() != validation.width() {
            let (own, others) = (rows.width(), validation.width());
            return Err(Error::Input(format!("training rows of {own} columns and validation rows of {others}")));
        }
        Self::of(rows, rows.clone(), validation.clone(), Vec::new(), config)
    }

    fn of(
        rows: &Incomplete,
        training: Incomplete,
        validation: Incomplete,
        numbers: Vec<usize>,
        config: &TrainConfig,
    ) -> Result<Self, Error> {
        let maps = ColumnMaps::fit_seen(&training, rows, &config.column_settings())?;
        for rows in [&training, &validation] {
            check_supports(rows, &maps)?;
        }
        let words = format!("{}, {} cells missing", rows.data().fingerprint(false), rows.missing());
        Ok(Self { training, validation, numbers, maps, words })
    }

    /// The maps of the columns, fitted to what was seen.
    pub fn columns(&self) -> &ColumnMaps {
        &self.maps
    }

    /// The numbers of the rows that were set aside for validation.
    pub fn validation_numbers(&self) -> &[usize] {
        &self.numbers
    }

    /// The default architecture of an imputer of so many columns, learned from so many rows: spline couplings, whose log dets are
    /// exact and whose inverses are formulas.
    pub fn imputer_config(rows: usize, columns: usize) -> FlowConfig {
        let width = (16 * columns).clamp(64, 256);
        let context = ContextConfig { embedding: vec![width, width], ..ContextConfig::new(3 * columns) };
        FlowConfig { context: Some(context), ..FlowConfig::for_table(Family::Nsf, rows, columns) }
    }

    /// The default settings of an imputer's training.
    pub fn imputer_training(rows: usize) -> TrainConfig {
        TrainConfig { fit_base: false, ..TrainConfig::for_table(Family::Nsf, rows) }
    }

    /// The samples that an imputer learns from and is validated on.
    fn masked(&self, key: Key) -> Result<Source, Error> {
        let (rows, width) = (self.training.len(), self.training.width());
        let most = (MASKED_NUMBERS / (4 * rows * width).max(1)).max(1);
        let copies = MASKED_ROWS.div_ceil(rows).clamp(1, most);
        let validated = VALIDATION_ROWS.div_ceil(self.validation.len()).clamp(1, MOST_VALIDATION_COPIES);
        Ok(Source::Split {
            training: masked(&self.training, &self.maps, copies, key.named("masked"))?,
            validation: masked(&self.validation, &self.maps, validated, key.named("masked validation"))?,
        })
    }

    /// Starts the first stage, the training of an imputer with the default settings.
    ///
    /// # Errors
    /// Returns the errors of [`Trainer::new`].
    pub fn imputer_trainer<B: Backend>(&self, backend: B, budget: Budget, key: Key) -> Result<Trainer<B>, Error> {
        let (rows, width) = (self.training.len(), self.training.width());
        let config = Self::imputer_config(rows, width);
        let key = key.named("imputer");
        let flow = Flow::new(backend, config, key.named("weights"))?;
        let maps = ColumnMaps::identity(width);
        let config = Self::imputer_training(rows);
        Trainer::new_mapped(flow, self.masked(key)?, &config, (budget, None, &|| false), key, maps)
    }

    /// Goes on with the first stage where it was saved; `key` is that of the run.
    ///
    /// # Errors
    /// Returns the errors of [`Trainer::resume`].
    pub fn resume_imputer<B: Backend>(&self, backend: B, archive: &Archive, key: Key) -> Result<Trainer<B>, Error> {
        Trainer::resume(backend, archive, self.masked(key.named("imputer"))?)
    }

    /// Makes an imputer of the flow that the first stage has learned.
    ///
    /// # Errors
    /// Returns the errors of [`Imputer::new`].
    pub fn imputer<B: Backend>(&self, mut flow: Flow<B>) -> Result<Imputer<B>, Error> {
        flow.set_columns(self.maps.clone())?;
        Ok(Imputer::new(flow)?)
    }

    /// Fills the rows in: the samples that the joint learns from, some copies of each row with other draws, and the validation rows.
    ///
    /// # Errors
    /// Returns the errors of [`PreparedImputer::impute`](super::PreparedImputer::impute), and [`Error::Input`] if a draw overflowed.
    pub fn fill<B: Backend>(&self, imputer: &Imputer<B>, key: Key) -> Result<Source, Error> {
        let prepared = imputer.prepare();
        let fill = |rows: &Incomplete, copies: usize, key: Key| {
            let completed = prepared.impute(rows, copies, key)?;
            let lost = completed.status().iter().filter(|status| **status == Status::NonFinite).count();
            if lost > 0 {
                return Err(Error::Input(format!(
                    "{lost} of {} rows could not be filled in: what the imputer drew overflowed; train it longer, or with --precision f64",
                    completed.status().len()
                )));
            }
            let samples = Dataset::from(completed.into_table());
            Ok(match rows.weights() {
                Some(weights) => {
                    let each = weights.iter().flat_map(|&w| std::iter::repeat_n(w, copies));
                    samples.with_weights(each.collect())?
                }
                None => samples,
            })
        };
        let copies = FILLED_ROWS.div_ceil(self.training.len()).clamp(1, MOST_FILLED_COPIES);
        let copies = if self.training.is_complete() { 1 } else { copies };
        Ok(Source::Split {
            training: fill(&self.training, copies, key.named("filled"))?,
            validation: fill(&self.validation, 1, key.named("filled validation"))?,
        })
    }

    /// Starts the second stage, the training of the joint, on rows that the imputer fills in.
    ///
    /// # Errors
    /// Returns the errors of [`Trainer::new`], [`fill`](Self::fill) and [`Flow::set_imputer`].
    pub fn trainer<B: Backend>(
        &self,
        flow: Flow<B>,
        imputer: Imputer<B>,
        config: &TrainConfig,
        budget: Budget,
        key: Key,
    ) -> Result<Trainer<B>, Error> {
        let source = self.fill(&imputer, key)?;
        self.trainer_on(source, flow, imputer, config, (budget, None), key)
    }

    /// Starts the second stage on rows that were [filled in](Self::fill). Whatever the budget, it will be ended after a time if one
    /// is given.
    ///
    /// # Errors
    /// Returns the errors of [`Trainer::new`] and [`Flow::set_imputer`].
    pub fn trainer_on<B: Backend>(
        &self,
        filled: Source,
        flow: Flow<B>,
        imputer: Imputer<B>,
        config: &TrainConfig,
        (budget, limit): (Budget, Option<Duration>),
        key: Key,
    ) -> Result<Trainer<B>, Error> {
        self.start(filled, flow, imputer, config, (budget, limit, &|| false), key)
    }

    /// Starts the second stage on filled rows unless it is stopped before.
    #[cfg(feature = "ndarray")]
    pub(crate) fn trainer_unless<B: Backend>(
        &self,
        filled: Source,
        flow: Flow<B>,
        imputer: Imputer<B>,
        config: &TrainConfig,
        (budget, is_stopped): (Budget, &dyn Fn() -> bool),
        key: Key,
    ) -> Result<Trainer<B>, Error> {
        self.start(filled, flow, imputer, config, (budget, None, is_stopped), key)
    }

    fn start<B: Backend>(
        &self,
        filled: Source,
        mut flow: Flow<B>,
        imputer: Imputer<B>,
        config: &TrainConfig,
        limits: (Budget, Option<Duration>, &dyn Fn() -> bool),
        key: Key,
    ) -> Result<Trainer<B>, Error> {
        flow.set_imputer(imputer)?;
        let mut trainer = Trainer::new_mapped(flow, filled, config, limits, key, self.maps.clone())?;
        trainer.set_data(self.words.clone());
        Ok(trainer)
    }

    /// Goes on with the second stage where it was saved: the state has the imputer, which fills the same rows in again.
    ///
    /// # Errors
    /// Returns the errors of [`Trainer::resume`] and [`fill`](Self::fill), [`Error::Input`] for the state of another run than a fit of
    /// rows with missing cells.
    pub fn resume<B: Backend>(&self, backend: B, archive: &Archive, key: Key) -> Result<Trainer<B>, Error> {
        let flow = Flow::from_archive(backend.clone(), &archive.clone().into_model())?;
        let problem = "the run is no fit of rows with missing cells";
        let imputer = flow.imputer().ok_or_else(|| Error::Input(problem.into()))?;
        Trainer::resume(backend, archive, self.fill(imputer, key)?)
    }
}

impl fmt::Display for MissingFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// Checks that rows can be learned from: all that was seen of each, and of each column, at once.
fn check(rows: &Incomplete) -> Result<(), Error> {
    if !matches!(rows.data().samples().values(), Values::Tabular(_)) {
        return Err(Error::Input("images have no missing cells".into()));
    }
    if rows.data().samples().categories().is_some() {
        let problem = "columns of categories are not filled in, nor do others beside them: leave them out (--drop), or the rows that lack values";
        return Err(Error::Input(problem.into()));
    }
    if rows.data().samples().context_width().is_some() {
        let problem = "rows with missing cells cannot be fitted given others: leave out the contexts, or the rows with missing cells";
        return Err(Error::Input(problem.into()));
    }
    if rows.width() < 2 {
        let problem = "one column alone has nothing to be filled in from: leave the rows without a value out";
        return Err(Error::Input(problem.into()));
    }
    let (columns, hollow) = rows.hollow();
    if columns.is_empty() && hollow.is_empty() {
        return Ok(());
    }
    Err(DataError::NothingSeen { columns, rows: hollow }.into())
}

/// Checks that what was seen lies inside the supports.
fn check_supports(rows: &Incomplete, maps: &ColumnMaps) -> Result<(), Error> {
    let mut findings = Vec::new();
    for (j, map) in maps.maps().iter().enumerate() {
        let mut outside = (0..rows.len()).filter(|&i| rows.sees(i, j) && !map.contains(rows.row(i)[j])).peekable();
        if let Some(&row) = outside.peek() {
            let (label, support, value) = (rows.label(j), map.support().to_string(), rows.row(row)[j]);
            findings.push(crate::error::OutsideSupport { label, support, rows: outside.count(), row, value });
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(DataError::Outside(findings).into()) }
}
