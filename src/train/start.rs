//! A start of training that is no worse than a mixture of Gaussians: the base density is the best mixture on held-out
//! rows, and the flow is the identity, so that the untrained flow is that mixture and both are trained together from
//! there on.

use resflow_backend::{Backend, Key};

use super::source::Batches;
use crate::base::{GaussianMixture, LEAST_SCALE, Ladder, MixtureChoice, Rows, Rung};
use crate::config::Start;
use crate::data::Samples;
use crate::error::{ConfigError, Error};
use crate::flow::Flow;

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
    if flow.config().start() != Start::Identity {
        let problem = "a flow starts from a mixture only if it is the identity: set start = \"identity\"";
        return Err(ConfigError::Inconsistent(problem.into()).into());
    }
    if training.dimension() != flow.dimension() {
        return Err(Error::Input(format!(
            "the data has {} columns, the model is for {}",
            training.dimension(),
            flow.dimension()
        )));
    }
    let mut choice = MixtureChoice::default();
    // a little above the bound of the base, for rounding
    choice.fit.least_scale = 1.01 * LEAST_SCALE;
    let (ladder, mixture) = choice.choose(training, validation, key)?;
    let base = GaussianMixture::new(flow.backend(), &mixture)?;
    flow.set_base(base)?;
    Ok(ladder)
}

/// Starts a run from a mixture; the ladder is in the data's units, but for the error that the columns' maps bring.
pub(super) fn fit_base<B: Backend>(
    flow: &mut Flow<B>,
    batches: &Batches,
    validation: Samples<'_>,
    key: Key,
) -> Result<Ladder, Error> {
    let (Some((training, weights)), Some(table)) = (batches.standardised(key), validation.table()) else {
        let problem = "fit_base = true is for tables: a mixture is fitted to their rows";
        return Err(ConfigError::Inconsistent(problem.into()).into());
    };
    let standard = flow.columns().forward(table, key)?;
    let training = Rows::of_table(&training, weights)?;
    let ladder = start_from_mixture(flow, training, Rows::of_table(&standard.table, validation.weights())?, key)?;
    let total = validation.weights().map_or(standard.log_det.len() as f64, |weights| weights.iter().sum());
    let weight = |i: usize| validation.weights().map_or(1.0, |weights| weights[i]) / total;
    let log_det: f64 = standard.log_det.iter().enumerate().map(|(i, l)| weight(i) * l).sum();
    let rungs = ladder.rungs.iter().map(|rung| Rung { log_prob: rung.log_prob + log_det, ..*rung }).collect();
    Ok(Ladder { rungs, ..ladder })
}
