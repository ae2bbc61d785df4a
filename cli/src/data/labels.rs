//! The labels of training images, which a classifier learns from.

use std::fmt::Display;

use anyhow::Result;
use resflow::data::image::ImageSet;

use crate::failure::usage;

/// The number of classes in the labels; `asked` is what asks for them.
pub(crate) fn classes(images: &ImageSet, data: &str, asked: impl Display) -> Result<usize> {
    match images.classes() {
        None => Err(usage(format_args!(
            "{asked}: {data} has no labels; those of MNIST are the file train-labels-idx1-ubyte (or .gz) in the folder \
             of the images, those of CIFAR are in its .bin files"
        ))),
        Some(0 | 1) => Err(usage(format_args!("{asked}: all labels of {data} are 0, a classifier needs two classes"))),
        Some(found) => Ok(found),
    }
}

/// Whether a classifier of so many classes can learn from the labels.
pub(crate) fn check(images: &ImageSet, data: &str, classes: usize) -> Result<()> {
    let asked = format!("classes = {classes}");
    let found = self::classes(images, data, &asked)?;
    if found > classes {
        return Err(usage(format_args!("{asked}: the labels of {data} go from 0 to {}", found - 1)));
    }
    Ok(())
}
