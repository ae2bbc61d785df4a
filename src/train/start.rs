//! A start of training that is no worse than a mixture of Gaussians: the base density is the best mixture on held-out
//! rows, and the flow is the identity, so that the untrained flow is that mixture and both are trained together from
//! there on.

use std::time::Duration;

use resflow_backend::{Backend, Key};

use super::batches::{Batches, Contexts};
use super::columns::Columns;
use super::source::Source;
use super::{Budget, Limits, TrainConfig, Trainer};
use crate::base::{GaussianMixture, LEAST_SCALE, Ladder, Mixture, MixtureChoice, MixtureFit, Rows, Rung};
use crate::classifier::Classifier;
use crate::config::Start;
use crate::data::{ColumnMaps, Samples};
use crate::error::{ConfigError, Error};
use crate::flow::{Flow, FlowCategories, Provenance};

/// The multiply-adds of a choice for each second of a limited time; a core makes some five times as many.
const WORK_OF_A_SECOND: f64 = 2e8;
/// The share of a limited time after which a choice ends whatever it has made: a core that others use too, or rows of few
/// columns, whose exponentials are more than their products, takes longer.
const TIME_SHARE: f64 = 0.2;
/// Those for each step of a run on a built-in density, whose default step makes some two hundred times as many.
const WORK_OF_A_STEP: u64 = 1_000_000;
/// The points of a built-in density that mixtures are fitted to.
const POINTS: usize = 10_000;

/// Fits mixtures to training rows in standardised units, and makes the one that is best on the validation rows, in the
/// same units, the base of the flow. Returns the ladder of what was tried; its scores are in standardised units too: add
/// [`Standardiser::log_det`](crate::data::Standardiser::log_det) for those in the data's.
///
/// # Errors
/// Returns [`Error::Config`] for a flow that does not start as the identity ([`Start`]), [`Error::Input`] for rows of
/// another width or to which no mixture can be fitted.
pub fn start_from_mixture<B: Backend>(
    flow: &mut Flow<B>,
    training: Rows<'_>,
    validation: Rows<'_>,
    key: Key,
) -> Result<Ladder, Error> {
    check(flow, training.dimension())?;
    let (ladder, mixture) = full_choice().choose(training, validation, key)?;
    flow.set_base(GaussianMixture::new(flow.backend(), &mixture)?)?;
    Ok(ladder)
}

fn check<B: Backend>(flow: &Flow<B>, columns: usize) -> Result<(), Error> {
    if flow.config().start() != Start::Identity {
        let problem = "a flow starts from a mixture only if it is the identity: set start = \"identity\"";
        return Err(ConfigError::Inconsistent(problem.into()).into());
    }
    if columns == flow.dimension() {
        return Ok(());
    }
    Err(Error::Input(format!("the data has {columns} columns, the model is for {}", flow.dimension())))
}

/// The choice of a base.
fn full_choice() -> MixtureChoice {
    let mut choice = MixtureChoice::default();
    // a little above the bound of the base, for rounding
    choice.fit.least_scale = 1.01 * LEAST_SCALE;
    // training goes on from there: the last digits are not worth hundreds of iterations
    choice.fit.tolerance = 1e-4;
    choice
}

/// A quick choice, by which columns' maps are compared. It has to climb as high as the full one: of a few components, maps that
/// make each column look like a normal are always the better ones.
fn quick_choice() -> MixtureChoice {
    let choice = full_choice();
    let fit = MixtureFit { most_rows: 3000, restarts: 2, most_iterations: 20, tolerance: 1e-3, ..choice.fit };
    MixtureChoice { candidates: vec![1, 2, 4, 6, 10, 16, 24, 40], fit, work: 3_000_000_000, time: None }
}

/// A choice that leaves the most of a limited time to the training; so does that for a density, of a limited number of steps. A
/// run of so many steps may be limited in time as well.
fn within((budget, limit): (Budget, Option<Duration>), drawn: bool, choice: MixtureChoice) -> MixtureChoice {
    let work = match budget {
        Budget::Steps(steps) if drawn => WORK_OF_A_STEP.saturating_mul(steps),
        Budget::Steps(_) => u64::MAX,
        Budget::Time(limit) => (WORK_OF_A_SECOND * limit.as_secs_f64()) as u64,
    };
    let limit = match budget {
        Budget::Steps(_) => limit,
        Budget::Time(time) => Some(limit.map_or(time, |limit| limit.min(time))),
    };
    let time = limit.map(|limit| limit.mul_f64(TIME_SHARE));
    MixtureChoice { work: choice.work.min(work), time, ..choice }
}

/// Starts a run from a mixture, which is returned with its ladder; that is in the data's units, but for the error that the
/// columns' maps bring. Of the maps and the simpler ones of the same columns those are taken behind which a mixture is best.
pub(super) fn fit_base<B: Backend>(
    flow: &mut Flow<B>,
    batches: &mut Batches,
    validation: Samples<'_>,
    Limits { budget, time, is_stopped }: Limits<'_>,
    key: Key,
) -> Result<(Ladder, Mixture), Error> {
    let budget = (budget, time);
    check(flow, flow.columns().width())?;
    let drawn = batches.draws();
    let full = within(budget, drawn, full_choice());
    let (maps, ladder, mixture) = {
        let most = if drawn { POINTS } else { full.fit.most_rows };
        let excerpt = batches.excerpt(most, key.named("excerpt"))?;
        let (Some((training, weights)), Some(table)) = (excerpt, validation.table()) else {
            let problem = "fit_base = true is for tables and built-in densities: a mixture is fitted to their rows";
            return Err(ConfigError::Inconsistent(problem.into()).into());
        };
        let own = flow.columns();
        let of_categories = match (flow.categories().and_then(FlowCategories::density), validation.categories()) {
            (Some(density), Some(categories)) => density.log_prob(categories)?,
            _ => vec![0.0; validation.len()],
        };
        let attempt = |maps: &ColumnMaps, choice: &MixtureChoice| {
            // rows that are only standardised are so already
            let mapped = (!own.is_standardisation()).then(|| maps.forward_computed(&training, key, 0).table);
            let rows = Rows::of_table(mapped.as_ref().unwrap_or(&training), weights.as_deref())?;
            let standard = maps.forward_computed(table, key, 0);
            let validated = Rows::of_table(&standard.table, validation.weights())?;
            let (ladder, mixture) = choice.choose_unless(rows, validated, key, is_stopped)?;
            let total = validation.weights().map_or(standard.log_det.len() as f64, |weights| weights.iter().sum());
            let weight = |i: usize| validation.weights().map_or(1.0, |weights| weights[i]) / total;
            let log_det: f64 =
                standard.log_det.iter().enumerate().map(|(i, l)| weight(i) * (l + of_categories[i])).sum();
            let rungs = ladder.rungs.iter().map(|rung| Rung { log_prob: rung.log_prob + log_det, ..*rung }).collect();
            Ok::<_, Error>((Ladder { rungs, ..ladder }, mixture))
        };
        let mut maps = own.clone();
        let simpler = own.simpler();
        if !simpler.is_empty() {
            let quick = within(budget, drawn, quick_choice());
            let score = |maps: &ColumnMaps| match attempt(maps, &quick) {
                Ok((ladder, _)) => Ok(ladder.chosen().map_or(f64::NEG_INFINITY, |rung| rung.log_prob)),
                Err(Error::Interrupted) => Err(Error::Interrupted),
                Err(_) => Ok(f64::NEG_INFINITY),
            };
            let mut best = score(own)?;
            for candidate in simpler {
                let own = score(&candidate)?;
                if own > best {
                    (maps, best) = (candidate, own);
                }
            }
        }
        let (ladder, mixture) = attempt(&maps, &full)?;
        (maps, ladder, mixture)
    };
    if maps != *flow.columns() {
        flow.set_columns(maps.clone())?;
        batches.set_columns(maps)?;
    }
    flow.set_base(GaussianMixture::new(flow.backend(), &mixture)?)?;
    Ok((ladder, mixture))
}

impl<B: Backend> Trainer<B> {
    /// Starts a run beside another one on the same data, whose columns' maps and fitted base density it takes over: they are
    /// functions of data, settings and key, and fitting them again would give the same. Where settings differ in what they
    /// say of columns, validation or base, the run starts like a [`new`](Self::new) one.
    ///
    /// # Errors
    /// Returns the errors of [`new`](Self::new).
    pub fn new_beside(
        other: &Self,
        mut flow: Flow<B>,
        source: impl Into<Source>,
        config: &TrainConfig,
        budget: Budget,
    ) -> Result<Self, Error> {
        let (source, key) = (source.into(), other.key);
        let (columns, maps) = (config.column_settings(), other.flow.columns().clone());
        let fits = |config: &TrainConfig| (config.column_settings(), config.validation_fraction, config.fit_base);
        let classes = flow.classifier().map_or(0, Classifier::classes);
        let same = fits(config) == fits(&other.config) && source.fingerprint(classes) == other.fingerprint;
        let alike = same && flow.dimension() == other.flow.dimension();
        if !alike || config.fit_base && (other.fitted.is_none() || flow.config().start() != Start::Identity) {
            return Self::start(flow, source, config, Limits::of(budget), key, Columns::Fit(&columns), Contexts::Fit);
        }
        if let Some(mixture) = &other.fitted {
            flow.set_base(GaussianMixture::new(flow.backend(), mixture)?)?;
        }
        flow.set_categories(other.flow.categories().cloned())?;
        let mut trainer =
            Self::start(flow, source, config, Limits::of(budget), key, Columns::Given(maps), Contexts::Beside)?;
        let ladder = other.flow.provenance().ladder.clone();
        trainer.flow.set_provenance(Provenance { ladder, ..trainer.flow.provenance().clone() });
        trainer.fitted.clone_from(&other.fitted);
        Ok(trainer)
    }

    /// Starts a run like a [`new`](Self::new) one by maps of columns that were fitted elsewhere.
    pub(crate) fn new_mapped(
        flow: Flow<B>,
        source: impl Into<Source>,
        config: &TrainConfig,
        (budget, time, is_stopped): (Budget, Option<Duration>, &dyn Fn() -> bool),
        key: Key,
        maps: ColumnMaps,
    ) -> Result<Self, Error> {
        let limits = Limits { budget, time, is_stopped };
        Self::start(flow, source.into(), config, limits, key, Columns::Fitted(maps), Contexts::Fit)
    }

    /// Says in other words what the data are, in the model's provenance.
    pub(crate) fn set_data(&mut self, data: String) {
        self.flow.set_provenance(Provenance { data, ..self.flow.provenance().clone() });
    }

    /// Goes on with another budget, over which the learning rate has its course, whatever patience had to say of the one
    /// before. The best weights so far stay the ones to beat.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for a budget of no steps or no time, or beyond the limits.
    pub fn go_on(&mut self, budget: Budget) -> Result<(), Error> {
        self.set_budget(budget)?;
        self.without_improvement = 0;
        self.milestone = self.milestone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Budget, full_choice, within};

    #[test]
    fn a_limited_time_limits_the_choice() {
        let (all, seconds) = (full_choice().work, |s| Budget::Time(Duration::from_secs(s)));
        for (budget, work) in [(Budget::Steps(1), all), (seconds(10), 2_000_000_000), (seconds(3600), all)] {
            assert_eq!(within((budget, None), false, full_choice()).work, work);
        }
        for (steps, work) in [(200, 200_000_000), (1 << 39, all)] {
            assert_eq!(within((Budget::Steps(steps), None), true, full_choice()).work, work);
        }
        // the clock is looked at too where there is any limit, the shorter of two
        let limit = Duration::from_secs(2);
        let time = |budget| within(budget, true, full_choice()).time;
        assert_eq!(time((Budget::Steps(1 << 39), None)), None);
        assert_eq!(time((Budget::Steps(1 << 39), Some(limit))), Some(limit.mul_f64(0.2)));
        assert_eq!(time((seconds(10), None)), Some(limit));
        assert_eq!(time((seconds(10), Some(limit))), Some(limit.mul_f64(0.2)));
    }
}
