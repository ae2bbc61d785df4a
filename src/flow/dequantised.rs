//! Images of bytes on their way into a flow: with the noise of its dequantiser, if it has one.

use resflow_backend::{Backend, Key};

use super::exact::ExactLogProb;
use super::log_prob::LogProb;
use super::prepared::PreparedFlow;
use crate::batch::Batch;
use crate::bijection::{Ask, Draw, LogDet};
use crate::data::{Samples, Values};
use crate::dequantiser::PreparedDequantiser;
use crate::error::Error;

impl<B: Backend> PreparedFlow<B> {
    pub(crate) fn dequantiser(&self) -> Option<&PreparedDequantiser<B>> {
        self.dequantiser.as_ref()
    }

    /// Gives images the noise of the dequantiser, with the terms of −log q of it; leaves other samples as they are.
    pub(super) fn dequantised(&self, batch: &Batch<B>, key: Key) -> Result<(Batch<B>, Vec<LogDet<B>>), Error> {
        let (Some(dequantiser), Some(images)) = (&self.dequantiser, &batch.quantised) else {
            return Ok((batch.clone(), Vec::new()));
        };
        let draw = Draw { estimator: &self.evaluation, key: key.named("dequantiser") };
        let ask = Ask::log_det::<B>(draw, self.replicates);
        let found = dequantiser.draw(&self.backend, images, batch.first, &ask)?;
        Ok((batch.with_x(found.x), found.log_dets))
    }

    /// Bounds log P of each image of bytes by k draws of its noise u (Burda, Grosse and Salakhutdinov 2016, arXiv 1509.00519),
    ///
    /// ln P(x) ≥ E ln (1/k) Σⱼ p(x + uⱼ)/q(uⱼ | x),
    ///
    /// in nats and in the units of [`log_prob`](Self::log_prob), whose bound is that of k = 1. With k it does not fall, and it approaches
    /// ln P. q is uniform without a dequantiser of its own. The standard errors are those of the logarithms of the means
    /// (the delta method), which are NaN of one draw.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for samples that are no images of bytes, for k = 0, and where log p or log q is estimated: the
    /// exponential of an estimate is biased. Returns the errors of [`log_prob`](Self::log_prob).
    pub fn importance_bound<'a>(
        &self,
        samples: impl Into<Samples<'a>>,
        first: u64,
        draws: usize,
        key: Key,
    ) -> Result<LogProb, Error> {
        let samples = samples.into();
        if !matches!(samples.values(), Values::Images(_)) {
            let problem = "importance weights are of the noise that images of bytes get: these are rows of numbers, whose log p is what \
                           `log_prob` says";
            return Err(Error::Input(problem.into()));
        }
        if draws == 0 {
            return Err(Error::Input("a bound by importance weights takes at least 1 draw of the noise".into()));
        }
        let of_draw = |draw: usize| -> Result<ExactLogProb, Error> {
            let key = if draw == 0 { key } else { key.named("importance").split(draw as u64) };
            self.log_prob_from(samples, first, key)?.try_into()
        };
        let found = (0..draws).map(of_draw).collect::<Result<Vec<_>, _>>()?;
        let mut scores = ExactLogProb::log_mean_exp(&found)?;
        scores.estimator = format!("{}; importance weights of {draws} draws of the noise", scores.estimator);
        Ok(scores)
    }
}
