//! Where batches come from: a function of the key and the number of the step, so that a resumed run draws what an
//! uninterrupted one does.

use std::sync::LazyLock;

use resflow_backend::{Backend, Element, Key, Shape};

use crate::batch::Batch;
use crate::classifier::check_labels;
use crate::data::image::{ImageSet, flip};
use crate::data::{Dataset, Samples, Standardiser, ToyDensity, Values, permutation};
use crate::error::{DataError, Error};
use crate::transform::dequantise;

/// Training and validation samples, which never overlap.
#[derive(Debug, Clone)]
pub enum Source {
    /// Fresh points of a built-in density at every step; validation points have a key of their own.
    Density(ToyDensity),
    /// Samples, shuffled anew in every epoch; some are set aside for validation. The noise of images is drawn anew at
    /// every step.
    Data(Dataset),
    /// Samples to train on, and other ones to validate on.
    Split {
        /// The samples to train on.
        training: Dataset,
        /// The samples to validate on.
        validation: Dataset,
    },
}

impl From<ToyDensity> for Source {
    fn from(density: ToyDensity) -> Self {
        Self::Density(density)
    }
}

impl<D: Into<Dataset>> From<D> for Source {
    fn from(data: D) -> Self {
        Self::Data(data.into())
    }
}

impl Source {
    /// The shape of a sample: `[d]` or `[h, w, c]`.
    pub fn sample_shape(&self) -> Vec<usize> {
        match self {
            Self::Density(_) => vec![2],
            Self::Data(data) | Self::Split { training: data, .. } => data.sample_shape(),
        }
    }

    /// The samples to train on, unless they are drawn.
    pub fn data(&self) -> Option<&Dataset> {
        match self {
            Self::Density(_) => None,
            Self::Data(data) | Self::Split { training: data, .. } => Some(data),
        }
    }

    /// Checks that the source can train a flow of a shape, with a classifier of so many classes.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for samples of two shapes, no samples, no labels, or a label that is no class.
    pub(crate) fn check(&self, classes: usize) -> Result<(), Error> {
        let parts = match self {
            Self::Density(_) => vec![],
            Self::Data(data) => vec![data],
            Self::Split { training, validation } if training.sample_shape() == validation.sample_shape() => {
                vec![training, validation]
            }
            Self::Split { training, validation } => {
                return Err(Error::Input(format!(
                    "training samples of shape {:?} and validation samples of shape {:?}",
                    training.sample_shape(),
                    validation.sample_shape()
                )));
            }
        };
        let missing = || Error::Input(format!("the model has {classes} classes, the data have no labels"));
        if classes > 0 && parts.is_empty() {
            return Err(missing());
        }
        for part in parts {
            if part.is_empty() {
                return Err(Error::Input("there are no samples to learn from".into()));
            }
            if classes > 0 {
                check_labels(part.labels().ok_or_else(missing)?, classes)?;
            }
        }
        Ok(())
    }

    /// A short text that tells two sources apart, to refuse resuming on other data. Labels count for a model that has
    /// classes.
    pub fn fingerprint(&self, classes: usize) -> String {
        match self {
            Self::Density(density) => density.name().to_owned(),
            Self::Data(data) => data.fingerprint(classes > 0),
            Self::Split { training, validation } => {
                format!("{}; validation {}", training.fingerprint(classes > 0), validation.fingerprint(classes > 0))
            }
        }
    }
}

/// Samples set aside for validation, in the data's units. Those of a density are drawn when they are first asked for: a
/// run's state can be loaded, and refused, in memory of the order of its file, however many it wants.
#[derive(Debug)]
pub(crate) struct ValidationSet(LazyLock<Dataset, Box<dyn FnOnce() -> Dataset + Send>>);

impl ValidationSet {
    fn of(data: Dataset) -> Self {
        Self(LazyLock::new(Box::new(|| data)))
    }

    pub(crate) fn samples(&self) -> Samples<'_> {
        self.0.samples()
    }
}

/// The settings by which a source is divided and drawn from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawing {
    pub(crate) validation_samples: usize,
    pub(crate) validation_fraction: f64,
    pub(crate) flips: bool,
    /// The bits of a channel of images.
    pub(crate) bits: u32,
    /// The classes of the labels that come with a batch, 0 for none.
    pub(crate) classes: usize,
    pub(crate) key: Key,
}

/// A batch of a step.
#[derive(Debug)]
pub(crate) struct Drawn<B: Backend> {
    /// The samples in standardised units, `[n, d]` or `[n, h, w, c]`.
    pub(crate) batch: Batch<B>,
    /// One-hot classes: 1 at each sample's class, else 0, `[n, K]`, where labels are wanted.
    pub(crate) targets: Option<B::Tensor>,
    /// The weight of each sample, where they have any; all of the training samples have mean 1.
    pub(crate) weights: Option<Vec<f64>>,
}

/// Batches in standardised units.
#[derive(Debug)]
pub(crate) struct Batches {
    training: Training,
    drawing: Drawing,
    /// The weight of one whole sample: 1 over the mean of the weights that were given.
    unit: f64,
    /// The number of the epoch and its order.
    epoch: Option<(u64, Vec<usize>)>,
}

#[derive(Debug)]
enum Training {
    Density(ToyDensity),
    Data(Dataset),
}

impl Batches {
    /// Divides a source into batches, validation samples (in the data's units) and the standardisation of the training
    /// samples.
    pub(crate) fn new(source: Source, drawing: Drawing) -> Result<(Self, ValidationSet, Standardiser), DataError> {
        let Drawing { validation_samples, validation_fraction, key, .. } = drawing;
        let (training, validation) = match source {
            Source::Density(density) => {
                let validation = move || density.sample(key.named("validation data"), validation_samples).into();
                let validation = ValidationSet(LazyLock::new(Box::new(validation)));
                let batches = Self { training: Training::Density(density), drawing, unit: 1.0, epoch: None };
                return Ok((batches, validation, Standardiser::identity(2)));
            }
            Source::Data(data) => {
                let (training, validation) = data.split(validation_fraction, key.named("split"))?;
                // of images, which are expensive, no more than was asked for
                let few: Vec<usize> = (0..validation.len().min(validation_samples)).collect();
                (training, if validation.images().is_some() { validation.select(&few)? } else { validation })
            }
            Source::Split { training, validation } => (training, validation),
        };
        let (training, standardiser) = if let Some(table) = training.table() {
            let standardiser = Standardiser::fit_weighted(table, training.weights())?;
            let table = standardiser.apply(table)?;
            (training.with_table(table), standardiser)
        } else {
            let d = training.sample_shape().iter().product();
            (training, Standardiser::identity(d))
        };
        let unit = training.weights().map_or(1.0, |weights| {
            let heaviest = weights.iter().copied().fold(0.0, f64::max);
            weights.len() as f64 / weights.iter().map(|w| w / heaviest).sum::<f64>() / heaviest
        });
        let batches = Self { training: Training::Data(training), drawing, unit, epoch: None };
        Ok((batches, ValidationSet::of(validation), standardiser))
    }

    /// Samples in an epoch, if there are epochs.
    pub(crate) fn epoch_samples(&self) -> Option<usize> {
        match &self.training {
            Training::Density(_) => None,
            Training::Data(data) => Some(data.len()),
        }
    }

    /// The weight of one whole sample.
    pub(crate) fn unit(&self) -> f64 {
        self.unit
    }

    /// Draws batch number `batch` of so many samples, on the device.
    pub(crate) fn batch<B: Backend>(&mut self, backend: &B, batch: u64, count: usize) -> Drawn<B> {
        let key = self.drawing.key;
        let order = self.order(batch * count as u64, count);
        let data = match &self.training {
            Training::Density(density) => {
                let table = density.sample(key.named("batch").split(batch), count);
                let x = backend.upload(&table.to_elements(), [count, 2].into());
                return Drawn { batch: Batch::new(x), targets: None, weights: None };
            }
            Training::Data(data) => data,
        };
        let x = match data.samples().values() {
            Values::Tabular(table) => {
                let values = order.iter().flat_map(|&i| table.row(i)).map(|&v| B::Elem::from_f64(v));
                backend.upload(&values.collect::<Vec<_>>(), [count, table.width()].into())
            }
            Values::Images(set) => self.images(backend, set, &order, batch * count as u64),
        };
        let weights = data.weights().map(|weights| order.iter().map(|&i| weights[i] * self.unit).collect());
        let context = data.samples().context().map(|context| {
            let values = order.iter().flat_map(|&i| context.row(i)).map(|&v| B::Elem::from_f64(v));
            backend.upload(&values.collect::<Vec<_>>(), [count, context.width()].into())
        });
        Drawn { batch: Batch { context, ..Batch::new(x) }, targets: self.targets(backend, data, &order), weights }
    }

    /// Dequantises images, `[n, h, w, c]`, with fresh noise, that of number `first` and so on.
    fn images<B: Backend>(&self, backend: &B, set: &ImageSet, order: &[usize], first: u64) -> B::Tensor {
        let key = self.drawing.key;
        let mut bytes = Vec::with_capacity(order.len() * set.bytes().len() / set.len());
        for (i, &image) in order.iter().enumerate() {
            let start = bytes.len();
            bytes.extend_from_slice(set.image(image).unwrap_or_default());
            if self.drawing.flips && coin(key.named("flip").split(first + i as u64)) {
                flip(&mut bytes[start..], set.width(), set.channels());
            }
        }
        let shape = Shape::from([order.len(), set.height(), set.width(), set.channels()]);
        dequantise(backend, &bytes, shape, self.drawing.bits, key.named("dequantise"), first)
    }

    /// The one-hot classes of some samples, `[n, K]`, where labels are wanted.
    fn targets<B: Backend>(&self, backend: &B, data: &Dataset, order: &[usize]) -> Option<B::Tensor> {
        let classes = self.drawing.classes;
        let labels = data.labels().filter(|_| classes > 0)?;
        let mut targets = vec![B::Elem::from_f64(0.0); order.len() * classes];
        for (sample, &number) in order.iter().enumerate() {
            targets[sample * classes + usize::from(labels[number])] = B::Elem::from_f64(1.0);
        }
        Some(backend.upload(&targets, [order.len(), classes].into()))
    }

    /// The samples at some positions of the epochs one after the other.
    fn order(&mut self, first: u64, count: usize) -> Vec<usize> {
        let Some(n) = self.epoch_samples() else { return Vec::new() };
        let mut out = Vec::with_capacity(count);
        for position in first..first + count as u64 {
            let number = position / n as u64;
            if self.epoch.as_ref().is_none_or(|(e, _)| *e != number) {
                self.epoch = Some((number, permutation(n, self.drawing.key.named("epoch").split(number))));
            }
            if let Some((_, order)) = &self.epoch {
                out.push(order[(position % n as u64) as usize]);
            }
        }
        out
    }
}

/// A fair coin from the key.
fn coin(key: Key) -> bool {
    use rand::Rng as _;
    key.generator().next_u64() >> 63 == 1
}
