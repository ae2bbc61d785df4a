//! The part of DATA that a command looks at, and what it then holds.

use anyhow::Result;
use clap::ValueEnum;
use resflow::config::ModelConfig;
use resflow::data::image::{ImageData, ImageSet, ImageSize};
use resflow::data::{Samples, Table};

use super::{Dataset, check_size};
use crate::failure::{say, usage};

/// Which images of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Split {
    /// The test images.
    Test,
    /// The images that `fit` trains on and validates with.
    Train,
    /// Both.
    All,
}

/// The part of DATA that a command looks at.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Part {
    /// Which images of a data set [default: test where there are any, else all]
    #[arg(long, value_enum)]
    pub(crate) split: Option<Split>,
}

/// What a model is evaluated on.
#[derive(Debug)]
pub(crate) enum Chosen {
    Rows(Table),
    Images(ImageSet),
}

impl Chosen {
    pub(crate) fn samples(&self) -> Samples<'_> {
        match self {
            Self::Rows(table) => Samples::Rows(table),
            Self::Images(set) => Samples::Images(set),
        }
    }

    /// The labels, one for each image, where there are any.
    pub(crate) fn labels(&self) -> Option<&[u8]> {
        match self {
            Self::Rows(_) => None,
            Self::Images(set) => set.labels(),
        }
    }
}

impl Part {
    /// The samples of a file for a model, at most `most` of its images. Says on standard error which images they are.
    pub(crate) fn of(self, dataset: Dataset, name: &str, model: &ModelConfig, most: Option<usize>) -> Result<Chosen> {
        let image_size = match &dataset {
            Dataset::Images(data) => Some(data.training.size()),
            Dataset::Stack(stack) => Some(stack.size()),
            Dataset::Table(_) | Dataset::Density(_) => None,
        };
        if let Some(found) = image_size {
            check_size(found, name, model)?;
        }
        match dataset {
            Dataset::Images(data) => self.images(data, name, most).map(Chosen::Images),
            _ if self.split.is_some() => Err(usage(format_args!("--split: {name} is no data set of images"))),
            Dataset::Stack(stack) => {
                let (d, rows) = (stack.dimension(), stack.len().min(most.unwrap_or(usize::MAX)));
                let mut values = stack.into_values();
                values.truncate(rows * d);
                Ok(Chosen::Rows(Table::new(None, d, values)?))
            }
            Dataset::Table(table) => match most {
                Some(n) if model.images().is_some() => {
                    Ok(Chosen::Rows(table.select(&(0..n.min(table.rows())).collect::<Vec<_>>())))
                }
                _ => Ok(Chosen::Rows(table)),
            },
            Dataset::Density(_) => Err(usage(format_args!("{name} is a density, a file is needed"))),
        }
    }

    /// The images of a data set, at most `most`. Says on standard error which they are.
    pub(crate) fn images(self, data: ImageData, name: &str, most: Option<usize>) -> Result<ImageSet> {
        let (set, what) = match (self.split, data.test) {
            (None | Some(Split::Test), Some(test)) => (test, "test images"),
            (Some(Split::Test), None) => return Err(usage(format_args!("--split test: {name} has no test images"))),
            (Some(Split::Train), _) => (data.training, "training images"),
            (Some(Split::All), Some(test)) => (joined(data.training, &test)?, "images, training and test"),
            (None | Some(Split::All), None) => (data.training, "images"),
        };
        let all = set.len();
        let set = match most {
            Some(n) if n < all => set.take(&(0..n).collect::<Vec<_>>())?,
            _ => set,
        };
        let first = if set.len() < all { format!("the first {} of the ", set.len()) } else { "the ".to_owned() };
        say(format_args!("taking {first}{all} {what} of {name}"));
        Ok(set)
    }
}

/// Images of one size one after the other, with labels where both have them.
fn joined(first: ImageSet, then: &ImageSet) -> Result<ImageSet> {
    let ImageSize { height, width, channels } = then.size();
    let labels = first.labels().zip(then.labels()).map(|(a, b)| [a, b].concat());
    let mut bytes = first.into_bytes();
    bytes.extend_from_slice(then.bytes());
    Ok(ImageSet::new(height, width, channels, bytes, labels)?)
}
