//! Where batches come from: a function of the key and the number of the step, so that a resumed run draws what an
//! uninterrupted one does.

use std::sync::LazyLock;

use resflow_backend::{Backend, Element, Key, Shape};

use crate::batch::Batch;
use crate::classifier::check_labels;
use crate::data::image::{ImageSet, flip};
use crate::data::{DataError, Samples, Standardiser, Table, ToyDensity, permutation};
use crate::error::Error;
use crate::transform::dequantise;

/// Training and validation rows, which never overlap.
#[derive(Debug, Clone)]
pub enum Source {
    /// Fresh points of a built-in density at every step; validation points have a key of their own.
    Density(ToyDensity),
    /// The rows of a table, shuffled anew in every epoch; some are set aside for validation.
    Table(Table),
    /// Images, likewise; their noise is drawn anew at every step.
    Images(ImageSet),
}

impl Source {
    /// The shape of a sample: `[d]` or `[h, w, c]`.
    pub fn sample_shape(&self) -> Vec<usize> {
        match self {
            Self::Density(_) => vec![2],
            Self::Table(table) => vec![table.width()],
            Self::Images(set) => vec![set.height(), set.width(), set.channels()],
        }
    }

    /// Whether a classifier of so many classes can learn from the labels.
    ///
    /// # Errors
    /// No labels, or one that is no class.
    pub(crate) fn check_labels(&self, classes: usize) -> Result<(), Error> {
        let labels = if let Self::Images(set) = self { set.labels() } else { None };
        match labels {
            _ if classes == 0 => Ok(()),
            Some(labels) => check_labels(labels, classes),
            None => Err(Error::Input(format!("the model has {classes} classes, the data have no labels"))),
        }
    }

    /// The fingerprint of what a model with so many classes learns from.
    pub(crate) fn fingerprint_for(&self, classes: usize) -> String {
        match self {
            Self::Images(set) if classes > 0 => set.labelled_fingerprint(),
            _ => self.fingerprint(),
        }
    }

    /// A short text that tells two sources apart, to refuse resuming on other data. Labels do not count.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Density(density) => density.name().to_owned(),
            Self::Images(set) => set.fingerprint(),
            Self::Table(table) => {
                let bytes = table.values().iter().flat_map(|v| v.to_bits().to_le_bytes());
                let hash =
                    bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
                format!("{} rows of {} columns, FNV-1a {hash:016x}", table.rows(), table.width())
            }
        }
    }
}

/// Rows set aside for validation, in the data's units. Those of a density are drawn when they are first asked for: a run's
/// state can be loaded, and refused, in memory of the order of its file, however many rows it wants.
#[derive(Debug)]
pub(crate) enum Validation {
    Rows(LazyLock<Table, Box<dyn FnOnce() -> Table + Send>>),
    Images(ImageSet),
}

impl Validation {
    pub(crate) fn samples(&self) -> Samples<'_> {
        match self {
            Self::Rows(table) => Samples::Rows(table),
            Self::Images(set) => Samples::Images(set),
        }
    }
}

/// How a source is divided and drawn from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawing {
    pub(crate) validation_rows: usize,
    pub(crate) validation_fraction: f64,
    pub(crate) flips: bool,
    /// The bits of a channel of images.
    pub(crate) bits: u32,
    /// The classes of the labels that come with a batch, 0 for none.
    pub(crate) classes: usize,
    pub(crate) key: Key,
}

/// What a step is taken on.
#[derive(Debug)]
pub(crate) struct Drawn<B: Backend> {
    /// The samples in standardised units.
    pub(crate) batch: Batch<B>,
    /// 1 at each sample's class, else 0, `[n, K]`, where labels are wanted.
    pub(crate) targets: Option<B::Tensor>,
}

/// Batches in standardised units.
#[derive(Debug)]
pub(crate) struct Batches {
    training: Training,
    drawing: Drawing,
    /// The number of the epoch and its order.
    epoch: Option<(u64, Vec<usize>)>,
}

#[derive(Debug)]
enum Training {
    Density(ToyDensity),
    Table(Table),
    Images(ImageSet),
}

impl Batches {
    /// Divides a source into batches, validation rows (in the data's units) and the standardisation of the training rows.
    pub(crate) fn new(source: Source, drawing: Drawing) -> Result<(Self, Validation, Standardiser), DataError> {
        let Drawing { validation_rows, validation_fraction, key, .. } = drawing;
        let (training, validation, standardiser) = match source {
            Source::Density(density) => {
                let validation = move || density.sample(key.named("validation data"), validation_rows);
                let validation = Validation::Rows(LazyLock::new(Box::new(validation)));
                (Training::Density(density), validation, Standardiser::identity(2))
            }
            Source::Table(table) => {
                let (training, validation) = table.split(validation_fraction, key.named("split"))?;
                let standardiser = Standardiser::fit(&training)?;
                let rows = standardiser.apply(&training)?;
                let validation = Validation::Rows(LazyLock::new(Box::new(|| validation)));
                (Training::Table(rows), validation, standardiser)
            }
            Source::Images(set) => {
                let d = set.height() * set.width() * set.channels();
                let (training, validation) = set.split(validation_fraction, key.named("split"))?;
                let some: Vec<usize> = (0..validation.len().min(validation_rows)).collect();
                let validation = Validation::Images(validation.take(&some)?);
                (Training::Images(training), validation, Standardiser::identity(d))
            }
        };
        Ok((Self { training, drawing, epoch: None }, validation, standardiser))
    }

    /// Rows in an epoch, if there are epochs.
    pub(crate) fn epoch_rows(&self) -> Option<usize> {
        match &self.training {
            Training::Density(_) => None,
            Training::Table(table) => Some(table.rows()),
            Training::Images(set) => Some(set.len()),
        }
    }

    /// Batch number `batch` of so many rows, on the device.
    pub(crate) fn batch<B: Backend>(&mut self, backend: &B, batch: u64, rows: usize) -> Drawn<B> {
        let key = self.drawing.key;
        let order = self.order(batch * rows as u64, rows);
        let targets = self.targets(backend, &order);
        let rows = match &self.training {
            Training::Density(density) => {
                let table = density.sample(key.named("batch").split(batch), rows);
                backend.upload(&table.to_elements(), [rows, 2].into())
            }
            Training::Table(table) => {
                let values = order.iter().flat_map(|&i| table.row(i)).map(|&v| B::Elem::from_f64(v));
                backend.upload(&values.collect::<Vec<_>>(), [rows, table.width()].into())
            }
            Training::Images(set) => {
                let mut bytes = Vec::with_capacity(rows * set.bytes().len() / set.len());
                let first = batch * rows as u64;
                for (i, &image) in order.iter().enumerate() {
                    let start = bytes.len();
                    bytes.extend_from_slice(set.image(image).unwrap_or_default());
                    if self.drawing.flips && coin(key.named("flip").split(first + i as u64)) {
                        flip(&mut bytes[start..], set.width(), set.channels());
                    }
                }
                let shape = Shape::from([rows, set.height(), set.width(), set.channels()]);
                dequantise(backend, &bytes, shape, self.drawing.bits, key.named("dequantise"), first)
            }
        };
        Drawn { batch: Batch::new(rows), targets }
    }

    /// The classes of some images, where labels are wanted.
    fn targets<B: Backend>(&self, backend: &B, order: &[usize]) -> Option<B::Tensor> {
        let classes = self.drawing.classes;
        let Training::Images(set) = &self.training else { return None };
        let labels = set.labels().filter(|_| classes > 0)?;
        let mut targets = vec![B::Elem::from_f64(0.0); order.len() * classes];
        for (row, &image) in order.iter().enumerate() {
            targets[row * classes + usize::from(labels[image])] = B::Elem::from_f64(1.0);
        }
        Some(backend.upload(&targets, [order.len(), classes].into()))
    }

    /// The rows at some positions of the epochs one after the other.
    fn order(&mut self, first: u64, rows: usize) -> Vec<usize> {
        let Some(n) = self.epoch_rows() else { return Vec::new() };
        let mut out = Vec::with_capacity(rows);
        for position in first..first + rows as u64 {
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
