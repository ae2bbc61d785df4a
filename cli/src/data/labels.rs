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
    let own = data.images().and_then(ImageSet::class_names);
    let (Some(names), Some(own), Some(set)) = (names, own, data.images()) else { return Ok(data) };
    if names == own {
        return Ok(data);
    }
    let numbers: Vec<_> = own.iter().map(|class| names.iter().position(|name| name == class)).collect();
    let unknown = own.iter().zip(&numbers).find_map(|(class, number)| number.is_none().then_some(class));
    let labels = if let Some(class) = unknown {
        warn(format_args!("{name}: the model knows no class `{class}`: no accuracy"));
        None
    } else {
        let labels = set.labels().unwrap_or_default().iter();
        Some(labels.map(|&label| numbers[usize::from(label)].unwrap_or(0) as u8).collect())
    };
    let (height, width, channels) = (set.height(), set.width(), set.channels());
    Ok(ImageSet::new(height, width, channels, set.bytes().to_vec(), labels)?.into())
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
