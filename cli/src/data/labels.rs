//! The labels of training images, which a classifier learns from.

use std::fmt::Display;

use anyhow::Result;
use resflow::data::image::ImageSet;
use resflow::data::{Dataset, ImageRows};

use crate::failure::{usage, warn};

/// The number of classes in the labels; `asked` is what asks for them.
pub(crate) fn classes(images: ImageRows<'_>, data: &str, asked: impl Display) -> Result<usize> {
    match images.classes() {
        None => Err(usage(format_args!(
            "{asked}: {data} has no labels; those of MNIST are the file train-labels-idx1-ubyte (or .gz) in the folder \
             of the images, those of CIFAR are in its .bin files, those of pictures are the folders that they are in"
        ))),
        Some(0 | 1) => Err(usage(format_args!("{asked}: all labels of {data} are 0, a classifier needs two classes"))),
        Some(found) => Ok(found),
    }
}

/// Numbers named classes as a model does that has names for its own. A class that it does not know leaves no labels, with
/// a word.
pub(crate) fn by_name(data: Dataset, names: Option<&[String]>, name: &str) -> Result<Dataset> {
    let Some(set) = data.images() else { return Ok(data) };
    let numbers = match numbers(set.into(), names, name) {
        Numbers::Same => return Ok(data),
        Numbers::Unknown => None,
        Numbers::Others(numbers) => Some(numbers),
    };
    let own = set.labels().unwrap_or_default().iter();
    let labels = numbers.map(|numbers| own.map(|&label| numbers[usize::from(label)]).collect());
    let (height, width, channels) = (set.height(), set.width(), set.channels());
    Ok(ImageSet::new(height, width, channels, set.bytes().to_vec(), labels)?.into())
}

/// A model's numbers of the labels of images.
pub(crate) enum Numbers {
    /// The labels themselves.
    Same,
    /// That of each label.
    Others(Vec<u8>),
    /// There is a class that the model does not know.
    Unknown,
}

impl Numbers {
    /// The model's number of each label; nothing if there is none.
    pub(crate) fn of(&self, labels: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Same => Some(labels.to_vec()),
            Self::Others(numbers) => Some(labels.iter().map(|&label| numbers[usize::from(label)]).collect()),
            Self::Unknown => None,
        }
    }
}

/// The numbers of the classes of images in a model that has names for its own; with a word if there is one that it does not know.
pub(crate) fn numbers(images: ImageRows<'_>, names: Option<&[String]>, name: &str) -> Numbers {
    let (Some(names), Some(own)) = (names, images.class_names) else { return Numbers::Same };
    if names == own {
        return Numbers::Same;
    }
    let numbers: Option<Vec<u8>> =
        own.iter().map(|class| names.iter().position(|name| name == class).map(|number| number as u8)).collect();
    if let Some(numbers) = numbers {
        return Numbers::Others(numbers);
    }
    if let Some(class) = own.iter().find(|class| !names.contains(class)) {
        warn(format_args!("{name}: the model knows no class `{class}`: no accuracy"));
    }
    Numbers::Unknown
}

/// Whether a classifier of so many classes can learn from the labels.
pub(crate) fn check(images: ImageRows<'_>, data: &str, classes: usize) -> Result<()> {
    let asked = format!("classes = {classes}");
    let found = self::classes(images, data, &asked)?;
    if found > classes {
        return Err(usage(format_args!("{asked}: the labels of {data} go from 0 to {}", found - 1)));
    }
    Ok(())
}
