//! Where batches come from: a function of the key and the number of the step, so that a resumed run draws what an
//! uninterrupted one does.

use std::sync::LazyLock;

use resflow_backend::{Backend, Key};

use crate::batch::Batch;
use crate::classifier::check_labels;
use crate::data::{Category, Dataset, Incomplete, LargeTable, Samples, Table, ToyDensity};
use crate::error::Error;

/// Training and validation samples, which never overlap.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a run has one of them")]
pub enum Source {
    /// Fresh points of a built-in density at every step; validation points have a key of their own.
    Density(ToyDensity),
    /// Samples, shuffled anew in every epoch; some are set aside for validation. The noise of images, and of columns on
    /// grids, is drawn anew at every step.
    Data(Dataset),
    /// Samples to train on, and other ones to validate on.
    Split {
        /// The samples to train on.
        training: Dataset,
        /// The samples to validate on.
        validation: Dataset,
    },
    /// Rows or images that are read as they are needed; some are set aside for validation, at most
    /// [`TrainConfig::validation_rows`](super::TrainConfig::validation_rows).
    Large(LargeTable),
}

impl From<LargeTable> for Source {
    fn from(table: LargeTable) -> Self {
        Self::Large(table)
    }
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
            Self::Large(table) => table.sample_shape(),
        }
    }

    /// The samples to train on, unless they are drawn or read as they are needed.
    pub fn data(&self) -> Option<&Dataset> {
        match self {
            Self::Density(_) | Self::Large(_) => None,
            Self::Data(data) | Self::Split { training: data, .. } => Some(data),
        }
    }

    /// The names of the classes of images, where they have names.
    pub(crate) fn class_names(&self) -> Option<&[String]> {
        match self {
            Self::Large(table) => table.images()?.class_names,
            _ => self.data()?.images()?.class_names(),
        }
    }

    /// The names of the columns of a table, where they have any.
    pub(crate) fn columns(&self) -> Option<&[String]> {
        match self {
            Self::Large(table) => table.columns(),
            _ => self.data().and_then(Dataset::table).and_then(Table::columns),
        }
    }

    /// Checks that the source can train a flow of a shape, with a classifier of so many classes.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for samples of two shapes, no samples, no labels, or a label that is no class, and for contexts
    /// that a conditional flow is given, of so many columns, and that are not there or of another width.
    pub(crate) fn check(&self, classes: usize, context: Option<usize>) -> Result<(), Error> {
        let parts = match self {
            Self::Density(_) | Self::Large(_) => vec![],
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
            let labels =
                if let Self::Large(table) = self { table.images().and_then(|images| images.labels) } else { None };
            check_labels(labels.ok_or_else(missing)?, classes)?;
        }
        if context.is_some() && parts.is_empty() {
            return Err(missing_context());
        }
        for &part in &parts {
            if part.is_empty() {
                return Err(Error::Input("there are no samples to learn from".into()));
            }
            check_categories(part)?;
            // missing cells are for `MissingFit`
            if part.table().is_some_and(|table| table.values().iter().any(|x| x.is_nan())) {
                Incomplete::from(part.clone()).complete()?;
            }
            if let Some(wanted) = context {
                let found = part.samples().context_width().ok_or_else(missing_context)?;
                // levels of rows to validate on are found by their texts
                if found != wanted && std::ptr::eq(part, parts[0]) {
                    return Err(Error::Input(format!("contexts of {found} columns, the model is given {wanted}")));
                }
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
            Self::Large(table) => table.fingerprint(classes > 0),
            Self::Split { training, validation } => {
                format!("{}; validation {}", training.fingerprint(classes > 0), validation.fingerprint(classes > 0))
            }
        }
    }
}

/// Samples set aside for validation, in the data's units. Those of a density are drawn when they are first asked for: a
/// run's state can be loaded, and refused, in memory of the order of its file, however many it wants.
#[derive(Debug)]
pub(crate) struct ValidationSet {
    data: LazyLock<Dataset, Box<dyn FnOnce() -> Dataset + Send>>,
    /// Their numbers in the data that they were set aside from.
    numbers: Vec<usize>,
}

impl ValidationSet {
    pub(super) fn of(data: Dataset, numbers: Vec<usize>) -> Self {
        Self { data: LazyLock::new(Box::new(|| data)), numbers }
    }

    /// Samples that are drawn when they are first asked for.
    pub(super) fn later(draw: impl FnOnce() -> Dataset + Send + 'static) -> Self {
        Self { data: LazyLock::new(Box::new(draw)), numbers: Vec::new() }
    }

    pub(crate) fn samples(&self) -> Samples<'_> {
        self.data.samples()
    }

    pub(crate) fn numbers(&self) -> &[usize] {
        &self.numbers
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
    /// Whether images come with what a dequantiser makes them of.
    pub(crate) quantised: bool,
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
    /// ln |det| of the columns' maps at each sample, with log p(k) of its categories, nats, unless they are the same for all.
    pub(crate) log_det: Option<Vec<f64>>,
}

/// The error of a conditional flow whose data have no contexts.
pub(crate) fn missing_context() -> Error {
    Error::Input(
        "the model is a conditional density p(x | c), and the data have no contexts: give each sample one \
         (`Dataset::with_context`), or leave `context` out of the model's configuration"
            .into(),
    )
}

/// Checks that a part of the data is none that no model is for: categories whose probability would be one given a context.
fn check_categories(part: &Dataset) -> Result<(), Error> {
    let samples = part.samples();
    let Some(categories) =
        samples.categories().filter(|_| samples.context().is_some() || samples.context_categories().is_some())
    else {
        return Ok(());
    };
    let names: Vec<&str> = categories.columns().iter().map(Category::name).collect();
    let names = names.join(", ");
    Err(Error::Input(format!(
        "a probability of categories ({names}) given a context is not there: make them a part of the context too, or leave them out"
    )))
}
