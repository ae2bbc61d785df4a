//! A start of training that is no worse than a mixture of Gaussians: the base density is the best mixture on held-out
//! rows, and the flow is the identity, so that the untrained flow is that mixture and both are trained together from
//! there on.

use resflow_backend::{Backend, Key};

use crate::base::{GaussianMixture, LEAST_SCALE, Ladder, MixtureChoice, Rows};
use crate::config::Start;
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
