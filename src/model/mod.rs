//! The front door: a trained model in five lines, arrays in and arrays out.
//!
//! ```
//! use ndarray::Array2;
//!
//! let x = Array2::from_shape_fn((200, 3), |(i, j)| (i as f64 * [0.819_173, 0.671_044, 0.549_700][j]).fract());
//! # let fit = resflow::Fit::new().steps(5);
//! let model = fit.run(&x)?;                          // or resflow::fit(&x)?, with all defaults
//! let log_p = model.log_prob(&x)?;                   // nats, in the data's own units
//! let percentile = model.percentile(&x)?;            // among the rows of the training
//! let samples = model.sample(10)?;
//! assert_eq!((log_p.len(), percentile.len(), samples.dim()), (200, 200, (10, 3)));
//! # Ok::<(), resflow::Error>(())
//! ```
//!
//! A table is fitted as the program `resflow` does it, with the same defaults: [`fit()`] says which.
//!
//! A [`Model`] is a flow on a device that was chosen at run time, its weights normalised once; it is `Send` and `Sync`,
//! and cloning it copies nothing. What it computes are functions of the samples and of its key, which is that of the
//! run unless [`Model::with_key`] gives another. [`Flow`] is what is behind it, for a backend known at
//! compile time.

mod array;
mod conditioned;
mod fit;
mod own_rows;
mod settings;

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

pub use array::IntoDataset;
pub use conditioned::ConditionedModel;
pub use fit::{Fit, Progress, fit};
use ndarray::{Array1, Array2};
use resflow_backend::{Backend, Key};

use self::array::{array, latents};
use crate::checkpoint::{Archive, model_precision};
use crate::config::ModelConfig;
use crate::data::{Dataset, Incomplete, Samples, Table};
use crate::device::{Device, DeviceOptions, Precision};
use crate::error::Error;
use crate::flow::{Decoded, Encoded, Flow, FlowCategories, LogProb, PreparedFlow, Provenance};
use crate::invert::Inversion;
use crate::lipschitz::FlowBounds;
use crate::missing::{Completed, SeenLogProb};

/// A flow on one of the devices.
#[derive(Debug)]
struct Held<B: Backend> {
    flow: Flow<B>,
    prepared: PreparedFlow<B>,
}

/// The operations of a model, whatever it runs on.
trait Operations: Debug + Send + Sync {
    fn config(&self) -> &ModelConfig;
    fn provenance(&self) -> &Provenance;
    fn device(&self) -> String;
    fn parameters(&self) -> u64;
    fn bounds(&self) -> Result<FlowBounds, Error>;
    fn archive(&self) -> Result<Archive, Error>;
    fn log_prob(&self, samples: Samples<'_>, key: Key) -> Result<LogProb, Error>;
    fn log_prob_and_gradient(&self, samples: Samples<'_>, key: Key) -> Result<(LogProb, Table), Error>;
    fn encode(&self, samples: Samples<'_>, key: Key) -> Result<Encoded, Error>;
    fn decode(&self, z: &Table) -> Result<Decoded, Error>;
    fn sample(&self, count: usize, key: Key) -> Result<Decoded, Error>;
    fn at(&self, contexts: Samples<'_>, asked: Asked<'_>, key: Key) -> Result<Answer, Error>;
    fn check_contexts(&self, contexts: Samples<'_>) -> Result<(), Error>;
    fn categories(&self) -> Option<&FlowCategories>;
    fn imputes(&self) -> bool;
    fn seen_log_prob(&self, rows: &Incomplete, key: Key) -> Result<SeenLogProb, Error>;
    fn impute(&self, rows: &Incomplete, draws: usize, key: Key) -> Result<Completed, Error>;
}

/// What is asked for at some contexts.
enum Asked<'a> {
    LogProb(Samples<'a>),
    Gradients(Samples<'a>),
    Samples(usize),
    SamplesWithLogProb(usize),
    Latents(Samples<'a>),
    Decoded(&'a Table),
}

/// What was asked for, and nothing else.
#[derive(Default)]
struct Answer {
    log_prob: Option<LogProb>,
    samples: Option<Decoded>,
    /// Those in the samples and in the contexts.
    gradients: Option<[Table; 2]>,
    latents: Option<Table>,
}

impl<B: Backend> Operations for Held<B> {
    fn config(&self) -> &ModelConfig {
        self.flow.config()
    }

    fn provenance(&self) -> &Provenance {
        self.flow.provenance()
    }

    fn device(&self) -> String {
        self.flow.backend().name()
    }

    fn parameters(&self) -> u64 {
        self.flow.parameters()
    }

    fn bounds(&self) -> Result<FlowBounds, Error> {
        self.flow.certified_bounds()
    }

    fn archive(&self) -> Result<Archive, Error> {
        let mut flow = self.flow.clone();
        flow.seal()?;
        flow.to_archive()
    }

    fn log_prob(&self, samples: Samples<'_>, key: Key) -> Result<LogProb, Error> {
        self.prepared.log_prob(samples, key)
    }

    fn log_prob_and_gradient(&self, samples: Samples<'_>, key: Key) -> Result<(LogProb, Table), Error> {
        self.prepared.log_prob_and_gradient(samples, key)
    }

    fn encode(&self, samples: Samples<'_>, key: Key) -> Result<Encoded, Error> {
        self.prepared.encode(samples, key)
    }

    fn decode(&self, z: &Table) -> Result<Decoded, Error> {
        self.prepared.decode(z, &Inversion::for_backend::<B>())
    }

    fn sample(&self, count: usize, key: Key) -> Result<Decoded, Error> {
        self.prepared.sample(count, key, &Inversion::for_backend::<B>())
    }

    fn categories(&self) -> Option<&FlowCategories> {
        self.flow.categories()
    }

    fn check_contexts(&self, contexts: Samples<'_>) -> Result<(), Error> {
        self.prepared.condition(contexts).map(drop)
    }

    fn imputes(&self) -> bool {
        self.flow.imputer().is_some()
    }

    fn seen_log_prob(&self, rows: &Incomplete, key: Key) -> Result<SeenLogProb, Error> {
        self.flow.prepare_marginal()?.log_prob(rows, key)
    }

    fn impute(&self, rows: &Incomplete, draws: usize, key: Key) -> Result<Completed, Error> {
        self.flow.prepare_imputer()?.impute(rows, draws, key)
    }

    fn at(&self, contexts: Samples<'_>, asked: Asked<'_>, key: Key) -> Result<Answer, Error> {
        let at = self.prepared.condition(contexts)?;
        let noise = Model::score_key(key);
        Ok(match asked {
            Asked::LogProb(samples) => Answer { log_prob: Some(at.log_prob(samples, noise)?), ..Answer::default() },
            Asked::Gradients(samples) => {
                let (log_prob, of_samples, of_contexts) = at.log_prob_and_gradient(samples, noise)?;
                Answer { log_prob: Some(log_prob), gradients: Some([of_samples, of_contexts]), ..Answer::default() }
            }
            Asked::Samples(each) => Answer { samples: Some(at.sample(each, key)?), ..Answer::default() },
            Asked::SamplesWithLogProb(each) => {
                let (samples, log_prob) = at.sample_and_log_prob(each, key)?;
                Answer { samples: Some(samples), log_prob: Some(log_prob), ..Answer::default() }
            }
            Asked::Latents(samples) => {
                Answer { latents: Some(at.encode(samples, noise)?.latents), ..Answer::default() }
            }
            Asked::Decoded(z) => {
                Answer { samples: Some(at.decode(z, &Inversion::for_backend::<B>())?), ..Answer::default() }
            }
        })
    }
}

/// A trained model: densities, samples and latents of data in their own units.
#[derive(Debug, Clone)]
pub struct Model {
    held: Arc<dyn Operations>,
    key: Key,
}

/// One serves any number of threads.
const _: fn() = || {
    fn assert<T: Send + Sync>() {}
    assert::<Model>();
};

impl Model {
    /// Builds the model of a flow. Normalises its weights, which costs about as much as scoring one sample.
    pub fn new<B: Backend>(flow: Flow<B>) -> Self {
        let prepared = flow.prepare();
        Self::of_prepared(flow, prepared)
    }

    /// The model of a flow that is prepared already.
    fn of_prepared<B: Backend>(flow: Flow<B>, prepared: PreparedFlow<B>) -> Self {
        let key = Self::key_of(flow.provenance().seed);
        Self { held: Arc::new(Held { flow, prepared }), key }
    }

    /// The key of a model whose run had this seed.
    fn key_of(seed: u64) -> Key {
        Key::new(seed).named("model")
    }

    /// The key of the noise of a model's scores.
    fn score_key(key: Key) -> Key {
        key.named("score")
    }

    /// Reads a model file onto the CPU, in the precision that it was made in.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the file cannot be read or is not a model.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let archive = Archive::read(path.as_ref())?;
        let double = model_precision(&archive)? == "f64";
        let precision = if double { Precision::F64 } else { Precision::F32 };
        Self::from_archive(&archive, &DeviceOptions::cpu(precision))
    }

    /// Reads a model file onto a device.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the file cannot be read or is not a model, and the errors of [`Device::open`].
    pub fn load_on(path: impl AsRef<Path>, device: &DeviceOptions) -> Result<Self, Error> {
        Self::from_archive(&Archive::read(path.as_ref())?, device)
    }

    /// Takes a model from the contents of a model file ([`Archive::from_bytes`]) onto a device.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the contents are not those of a model, and the errors of [`Device::open`].
    pub fn from_archive(archive: &Archive, device: &DeviceOptions) -> Result<Self, Error> {
        let device = Device::open(device)?;
        crate::with_device!(device, |backend| Ok(Self::new(Flow::from_archive(backend, archive)?)))
    }

    /// Writes the model file, atomically, with its weights [sealed](Flow::seal). A model that was fitted is sealed already; one that was not,
    /// because it was made of a flow or loaded from a file of before, is written sealed and stays as it is.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the file system refused, [`Error::Backend`] if the device failed.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        Ok(self.to_archive()?.write(path.as_ref())?)
    }

    /// Returns the contents of the file that [`save`](Self::save) writes; [`Archive::to_bytes`] are its bytes.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn to_archive(&self) -> Result<Archive, Error> {
        self.held.archive()
    }

    /// Returns the model with another key, of which its random numbers are functions.
    #[must_use]
    pub fn with_key(&self, key: Key) -> Self {
        Self { held: Arc::clone(&self.held), key }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        self.held.config()
    }

    /// The data, the training and the score behind the model.
    pub fn provenance(&self) -> &Provenance {
        self.held.provenance()
    }

    /// The device, in words.
    pub fn device(&self) -> String {
        self.held.device()
    }

    /// The categories that the model has, or is given.
    pub fn categories(&self) -> Option<&FlowCategories> {
        self.held.categories()
    }

    /// d, the numbers of a sample.
    pub fn dimension(&self) -> usize {
        self.config().dimension()
    }

    /// Counts the numbers that are trained.
    pub fn parameters(&self) -> u64 {
        self.held.parameters()
    }

    /// Computes what is certain of the Lipschitz constants of each transform and of the flow
    /// ([`Flow::certified_bounds`]).
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn certified_bounds(&self) -> Result<FlowBounds, Error> {
        self.held.bounds()
    }

    /// Computes log p of each sample, `[n]`, nats. [`score`](Self::score) has the standard errors.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for samples of another shape, [`Error::Data`] for data that are none,
    /// [`Error::Backend`] if the device failed.
    pub fn log_prob(&self, x: impl IntoDataset) -> Result<Array1<f64>, Error> {
        Ok(Array1::from(self.score(x)?.values))
    }

    /// Computes log p of each sample with its standard error, their mean and its standard error, nats.
    ///
    /// Of a model that knows missing cells ([`Fit::missing`]) samples may have NaN: log p is that of what was seen then, in the units of
    /// these cells, with the standard error of its importance weights ([`score_seen`](Self::score_seen)).
    ///
    /// # Errors
    /// Returns [`Error::Input`], [`Error::Data`] or [`Error::Backend`] as [`log_prob`](Self::log_prob) does.
    pub fn score(&self, x: impl IntoDataset) -> Result<LogProb, Error> {
        let rows = x.into_incomplete()?;
        if !rows.is_complete() && self.held.imputes() {
            return Ok(self.held.seen_log_prob(&rows, Self::score_key(self.key))?.scores);
        }
        self.held.log_prob(rows.complete()?.samples(), Self::score_key(self.key))
    }

    /// Computes log p of what was seen of each row, of whose cells some may be missing (NaN), with the effective number of draws
    /// behind each; see [`missing`](crate::missing).
    ///
    /// # Errors
    /// Returns [`Error::Input`] for a model that knows no missing cells or whose log dets are estimated, and the errors of
    /// [`log_prob`](Self::log_prob).
    pub fn score_seen(&self, x: impl IntoDataset) -> Result<SeenLogProb, Error> {
        self.held.seen_log_prob(&x.into_incomplete()?, Self::score_key(self.key))
    }

    /// Fills missing cells (NaN) in, `draws` times each, `[n·draws, d]`: draw j of row i is row i·draws + j. What was seen stays as it is.
    /// The same rows are filled in alike at every call of a model with the same key.
    ///
    /// ```
    /// use ndarray::Array2;
    ///
    /// let spread = |i: usize, by: f64| (i as f64 * by).fract();
    /// let cell = |i: usize, j: usize| if (i + j) % 4 == 0 { f64::NAN } else { spread(i + 30 * j, 0.754_877) };
    /// let x = Array2::from_shape_fn((100, 2), |(i, j)| cell(i, j));
    /// let model = resflow::Fit::new().missing(true).steps(5).run(&x)?;
    /// let filled = model.impute(&x, 10)?;
    /// let means = model.impute_with_reports(&x, 10)?.means();
    /// assert_eq!((filled.dim(), means.rows()), ((1000, 2), 100));
    /// assert_eq!(model.log_prob(&x)?.len(), 100);
    /// # Ok::<(), resflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`Error::Input`] for a model that knows no missing cells, and for rows that have a value outside of its column's
    /// support; else the errors of [`log_prob`](Self::log_prob).
    pub fn impute(&self, x: impl IntoDataset, draws: usize) -> Result<Array2<f64>, Error> {
        Ok(array(self.impute_with_reports(x, draws)?.into_table()))
    }

    /// Fills missing cells in as [`impute`](Self::impute) does, with the means and medians of each row's draws and the status of each.
    ///
    /// # Errors
    /// Returns the errors of [`impute`](Self::impute).
    pub fn impute_with_reports(&self, x: impl IntoDataset, draws: usize) -> Result<Completed, Error> {
        self.held.impute(&x.into_incomplete()?, draws, self.key.named("impute"))
    }

    /// Computes the percentile of each sample among the rows of the training, `[n]`: the share of these that are less
    /// likely, in percent from 0 to 100, to within 0.1 ([`ScoreQuantiles`](crate::flow::ScoreQuantiles)). What is at 1 is
    /// less likely than all but a hundredth of them. A model knows its training rows, so that fresh rows of the same kind
    /// stand somewhat lower: the scores of the validation rows in [`Provenance::scores`] say by how much. Of a fit of rows with
    /// missing cells these are the scores of rows that were filled in.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for a model that does not know the scores of its training rows: one over images, or whose
    /// file is a run's state or of an earlier version, and [`Error::Data`] for rows with missing cells, since log p of some columns is not to
    /// be held against that of all. Else [`Error::Input`], [`Error::Data`] or [`Error::Backend`] as
    /// [`log_prob`](Self::log_prob) does.
    pub fn percentile(&self, x: impl IntoDataset) -> Result<Array1<f64>, Error> {
        let Some(scores) = &self.provenance().scores else {
            let problem = "the model does not know the scores of its training rows: a fit of a table stores them";
            return Err(Error::Input(problem.into()));
        };
        // log p of some of the columns is none of all
        let data = x.into_incomplete()?.complete()?;
        Ok(self.score(data)?.values.iter().map(|score| scores.training.percentile(*score)).collect())
    }

    /// Computes log p of each sample, `[n]`, nats, and its gradient in the samples, `[n, d]`, nats per unit of the
    /// data. Where log dets are estimated the gradient is unbiased, and noisier than the value.
    ///
    /// # Errors
    /// Returns [`Error::Input`], [`Error::Data`] or [`Error::Backend`] as [`log_prob`](Self::log_prob) does.
    pub fn log_prob_and_gradient(&self, x: impl IntoDataset) -> Result<(Array1<f64>, Array2<f64>), Error> {
        let data = x.into_dataset()?;
        let (log_prob, gradient) = self.held.log_prob_and_gradient(data.samples(), Self::score_key(self.key))?;
        Ok((Array1::from(log_prob.values), array(gradient)))
    }

    /// Computes z of each sample, `[n, d]` (the forward transform).
    ///
    /// # Errors
    /// Returns [`Error::Input`], [`Error::Data`] or [`Error::Backend`] as [`log_prob`](Self::log_prob) does.
    #[doc(alias = "forward")]
    pub fn encode(&self, x: impl IntoDataset) -> Result<Array2<f64>, Error> {
        Ok(array(self.held.encode(x.into_dataset()?.samples(), Self::score_key(self.key))?.latents))
    }

    /// Takes a conditional model at contexts, `[m, k]`: its densities and samples given them ([`Fit::given`]).
    ///
    /// # Errors
    /// Returns [`Error::Input`] for a model that is not conditional and for contexts of another width, [`Error::Data`] for data that
    /// are none.
    pub fn condition(&self, contexts: impl IntoDataset) -> Result<ConditionedModel, Error> {
        ConditionedModel::new(self, contexts.into_dataset()?)
    }

    /// Computes x of each z, `[n, d]` (the inverse transform). [`decode_with_reports`](Self::decode_with_reports) has
    /// the accuracy of each.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for another number of columns than d, [`Error::Backend`] if the device failed.
    #[doc(alias = "inverse")]
    pub fn decode(&self, z: impl IntoDataset) -> Result<Array2<f64>, Error> {
        Ok(array(self.decode_with_reports(z)?.samples))
    }

    /// Computes x of each z with the residual, error bound and status of its inversion.
    ///
    /// # Errors
    /// Returns [`Error::Input`] or [`Error::Backend`] as [`decode`](Self::decode) does.
    pub fn decode_with_reports(&self, z: impl IntoDataset) -> Result<Decoded, Error> {
        self.held.decode(&latents(z)?)
    }

    /// Draws samples of the model, `[count, d]`; the same ones at every call of a model with the same key and count. Of a model
    /// with categories it is their numbers: [`sample_rows`](Self::sample_rows) has both.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn sample(&self, count: usize) -> Result<Array2<f64>, Error> {
        Ok(array(self.sample_with_reports(count)?.samples))
    }

    /// Draws rows, numbers and the categories where the model has some; the same ones as [`sample`](Self::sample).
    ///
    /// ```
    /// use resflow::data::{Categories, Dataset};
    ///
    /// let spread = |i: usize, by: f64| (i as f64 * by).fract();
    /// let kind: Vec<[&str; 1]> = (0..60).map(|i| [if i % 3 == 0 { "a" } else { "b" }]).collect();
    /// let x: Vec<[f64; 1]> = (0..60).map(|i| [spread(i, 0.754_877) + if i % 3 == 0 { 5.0 } else { 0.0 }]).collect();
    /// let rows = Dataset::from_rows(&x)?.with_categories(Categories::of_rows(&["kind"], &kind)?)?;
    /// let model = resflow::Fit::new().steps(5).run(&rows)?;
    /// let log_p = model.log_prob(&rows)?;               // log p(kind) + log p(x | kind)
    /// let samples = model.sample_rows(4)?;
    /// let kinds = samples.categories().expect("the model has categories");
    /// assert_eq!((log_p.len(), kinds.columns()[0].name()), (60, "kind"));
    /// # Ok::<(), resflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`Error::Backend`] as [`sample`](Self::sample) does.
    pub fn sample_rows(&self, count: usize) -> Result<Dataset, Error> {
        let Decoded { samples, categories, .. } = self.sample_with_reports(count)?;
        let rows = Dataset::from(samples);
        Ok(match categories {
            Some(categories) => rows.with_categories(categories)?,
            None => rows,
        })
    }

    /// Draws samples, with the residual, error bound and status of each.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] as [`sample`](Self::sample) does.
    pub fn sample_with_reports(&self, count: usize) -> Result<Decoded, Error> {
        self.held.sample(count, self.key)
    }

    /// Draws samples of the model, `[count, d]`, with log p of each, `[count]`, nats.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] as [`sample`](Self::sample) does.
    pub fn sample_with_log_prob(&self, count: usize) -> Result<(Array2<f64>, Array1<f64>), Error> {
        let samples = self.sample_rows(count)?;
        let log_prob = self.held.log_prob(samples.samples(), Self::score_key(self.key))?;
        let crate::data::Values::Tabular(samples) = samples.into_values() else { unreachable!("samples are a table") };
        Ok((array(samples), Array1::from(log_prob.values)))
    }
}
