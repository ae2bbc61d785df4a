//! A conditional flow at some contexts: p(x | c) as a density of x.

use std::ops::Range;

use resflow_backend::{Backend, Key};

use super::categories::Contexts;
use super::context::{Given, missing};
use super::evaluate::Encoded;
use super::inverse::Decoded;
use super::log_prob::{LogProb, evaluate};
use super::prepared::PreparedFlow;
use crate::data::{Samples, Table, Values};
use crate::error::Error;
use crate::invert::Inversion;

/// From so many samples of a context on they go by themselves: a net whose samples share a context is one with other biases, that a
/// backend is handed whole.
const BY_THEMSELVES: usize = 64;

/// A prepared flow at m contexts, which are embedded once.
///
/// Of one context all samples are samples; of several, sample i is one of context i, or they are drawn. Noise belongs to samples by
/// their numbers, whatever their context: the same samples at another context have the same probes, so that estimates of the two
/// log densities differ by less than each is off (common random numbers).
#[derive(Debug)]
pub struct Conditioned<'a, B: Backend> {
    flow: &'a PreparedFlow<B>,
    /// Standardised, `[m, k]`.
    contexts: B::Tensor,
    /// `[m, e]`.
    embedding: B::Tensor,
    count: usize,
}

impl<B: Backend> PreparedFlow<B> {
    /// Takes the flow at contexts, `[m, k]` in the data's units, and embeds them: rows of numbers, with
    /// [categories](crate::data::Dataset::with_categories) where the flow has some. Of a flow that models its categories these are
    /// all of the context, and what it is then is p(x | k), without p(k).
    ///
    /// ```
    /// # use resflow::{Flow, NdArray, backend::Key, config::{ContextConfig, FlowConfig}, data::Table};
    /// let config = FlowConfig { blocks: 2, context: Some(ContextConfig::new(3)), ..FlowConfig::new(2) };
    /// let flow = Flow::new(NdArray::<f64>::new(), config, Key::new(0))?.prepare();
    /// let observed = Table::from_rows(&[[0.1, -1.0, 2.0]])?;
    /// let posterior = flow.condition(&observed)?;
    /// let (x, log_prob) = posterior.sample_and_log_prob(10, Key::new(1))?;
    /// assert_eq!((x.samples.rows(), log_prob.values.len()), (10, 10));
    /// # Ok::<(), resflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the flow is not conditional, or for contexts of another width or none at all, [`Error::Data`] for
    /// categories that it does not know.
    pub fn condition<'s>(&self, contexts: impl Into<Samples<'s>>) -> Result<Conditioned<'_, B>, Error> {
        let Some(own) = self.prepared_context() else {
            let problem = "the model is no conditional density: it was made without a context, and has log_prob and sample itself";
            return Err(Error::Input(problem.into()));
        };
        let contexts = contexts.into();
        let Values::Tabular(numbers) = contexts.values() else {
            return Err(Error::Input("contexts are rows of numbers or categories, not images".into()));
        };
        let contexts = Contexts::new(numbers.rows(), Some(numbers), contexts.categories(), self.categories())?;
        own.check(&contexts)?;
        if contexts.rows() == 0 {
            return Err(missing());
        }
        let standard = own.upload(self.backend(), &contexts, 0..contexts.rows());
        let embedding = own.embedding.embed(self.backend(), &standard);
        Ok(Conditioned { flow: self, contexts: standard, embedding, count: contexts.rows() })
    }
}

impl<B: Backend> Conditioned<'_, B> {
    /// m, the number of contexts.
    pub fn contexts(&self) -> usize {
        self.count
    }

    pub(super) fn flow(&self) -> &PreparedFlow<B> {
        self.flow
    }

    pub(super) fn shared(&self, each: usize) -> Given<'_, B> {
        Given::Shared { contexts: &self.contexts, embedding: &self.embedding, each }
    }

    /// The contexts of so many samples: one for all, or one of each.
    fn given(&self, samples: usize) -> Result<Given<'_, B>, Error> {
        if self.count == 1 || self.count == samples {
            return Ok(self.shared(1));
        }
        Err(Error::Input(format!(
            "{samples} samples at {} contexts: give one context, which is that of all, or one for each sample",
            self.count
        )))
    }

    /// Computes log p(x | c) of each sample with its standard error, in nats, see [`PreparedFlow::log_prob`]: all of one context,
    /// or sample i of context i. A context that the samples bring is not looked at.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if there are neither one context nor as many as samples, and the errors of
    /// [`PreparedFlow::log_prob`].
    pub fn log_prob<'s>(&self, samples: impl Into<Samples<'s>>, key: Key) -> Result<LogProb, Error> {
        let samples = samples.into();
        Ok(evaluate(self.flow, samples, self.given(samples.len())?, 0, key, false)?.1)
    }

    /// Computes log p(x | c) of each sample in nats, its gradient in the sample, `[n, d]`, and that of their sum in the contexts,
    /// `[m, k]`, both in nats per unit of the data; see [`PreparedFlow::log_prob_and_gradient`]. Of several contexts row i is the
    /// gradient of sample i alone.
    ///
    /// # Errors
    /// Returns the errors of [`log_prob`](Self::log_prob).
    pub fn log_prob_and_gradient<'s>(
        &self,
        samples: impl Into<Samples<'s>>,
        key: Key,
    ) -> Result<(LogProb, Table, Table), Error> {
        let samples = samples.into();
        let found = self.flow.gradients_given(samples, self.given(samples.len())?, key)?;
        let Some(own) = self.flow.prepared_context() else { return Err(missing()) };
        let deviation = own.standardiser.deviation();
        let k = deviation.len();
        let mut contexts = vec![0.0; self.count * k];
        for (range, values) in found.contexts {
            // one row for all samples of the run, or one for each
            let first = if self.count == 1 { 0 } else { range.start };
            contexts[first * k..].iter_mut().zip(values).for_each(|(sum, own)| *sum += own);
        }
        contexts.iter_mut().enumerate().for_each(|(i, g)| *g /= deviation[i % k]);
        Ok((found.log_prob, found.samples, Table::of_computed(k, contexts)))
    }

    /// Draws `each` samples of every context: `[m·each, d]`, sample j of context i in row i·each + j. A row is a function of the
    /// key and its number, up to rounding and to the step at which its inversion stops, see [`PreparedFlow::sample`].
    ///
    /// # Errors
    /// Returns [`Error::Transform`] if a transform of your own gives something of a wrong shape, [`Error::Backend`] if
    /// the device failed. A sample that does not converge is no error: see the reports.
    pub fn sample(&self, each: usize, key: Key) -> Result<Decoded, Error> {
        self.sample_by(each, key, &Inversion::for_backend::<B>())
    }

    /// Draws [`sample`](Self::sample)s with settings of the inversion.
    ///
    /// # Errors
    /// Returns the errors of [`sample`](Self::sample).
    pub fn sample_by(&self, each: usize, key: Key, how: &Inversion) -> Result<Decoded, Error> {
        self.sample_range(each, 0..self.count * each, key, how)
    }

    /// Draws those of `each` [`sample`](Self::sample)s of every context that have these row numbers, from 0 to m·each.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for numbers beyond m·each, and the errors of [`sample`](Self::sample).
    pub fn sample_range(
        &self,
        each: usize,
        numbers: Range<usize>,
        key: Key,
        how: &Inversion,
    ) -> Result<Decoded, Error> {
        let (flow, backend) = (self.flow, self.flow.backend());
        let all = self.count.saturating_mul(each);
        if numbers.end > all {
            return Err(Error::Input(format!("rows to {} of {all} samples: {each} of each context", numbers.end)));
        }
        let given = self.shared(each.max(1));
        let mut runs = Vec::new();
        let plan = |rows: Range<usize>| {
            let plan = flow.plan(rows.len());
            plan.ranges().map(|range| rows.start + range.start..rows.start + range.end).collect::<Vec<_>>()
        };
        if each < BY_THEMSELVES {
            for range in plan(numbers) {
                let context = given.embedding(flow, &mut range.clone());
                runs.push((range, context));
            }
        } else {
            for i in numbers.start / each..numbers.end.div_ceil(each) {
                let own = backend.narrow(&self.embedding, 0, i, 1);
                let rows = numbers.start.max(i * each)..numbers.end.min((i + 1) * each);
                runs.extend(plan(rows).into_iter().map(|range| (range, Some(own.clone()))));
            }
        }
        flow.sample_runs(&runs, key, how)
    }

    /// Draws [`sample`](Self::sample)s, with log p(x | c) of each in nats.
    ///
    /// # Errors
    /// Returns the errors of [`sample`](Self::sample) and [`log_prob`](Self::log_prob).
    pub fn sample_and_log_prob(&self, each: usize, key: Key) -> Result<(Decoded, LogProb), Error> {
        let decoded = self.sample(each, key)?;
        let samples = Samples::from(&decoded.samples);
        let (_, log_prob) = evaluate(self.flow, samples, self.shared(each.max(1)), 0, key.named("score"), false)?;
        Ok((decoded, log_prob))
    }

    /// Computes z of each sample, `[n, d]`, see [`PreparedFlow::encode`].
    ///
    /// # Errors
    /// Returns the errors of [`log_prob`](Self::log_prob).
    pub fn encode<'s>(&self, samples: impl Into<Samples<'s>>, key: Key) -> Result<Encoded, Error> {
        let samples = samples.into();
        self.flow.encode_given(samples, self.given(samples.len())?, 0, key)
    }

    /// Computes x of each row of z, `[n, d]`, see [`PreparedFlow::decode`].
    ///
    /// # Errors
    /// Returns [`Error::Input`] if there are neither one context nor as many as rows, and the errors of
    /// [`PreparedFlow::decode`].
    pub fn decode(&self, z: &Table, how: &Inversion) -> Result<Decoded, Error> {
        self.flow.decode_given(z, self.given(z.rows())?, how)
    }

    /// Computes x of every row of z at every context, `[m·n, d]`: row j of z at context i is row i·n + j.
    ///
    /// # Errors
    /// Returns the errors of [`decode`](Self::decode).
    pub fn decode_each(&self, z: &Table, how: &Inversion) -> Result<Decoded, Error> {
        let (n, d) = (z.rows(), z.width());
        let all = Table::of_computed(d, z.values().repeat(self.count));
        self.flow.decode_given(&all, self.shared(n.max(1)), how)
    }
}
