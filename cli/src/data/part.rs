//! The part of DATA that a command looks at.

use anyhow::Result;
use clap::ValueEnum;
use resflow::config::ModelConfig;
use resflow::data::image::{ImageSet, ImageSize};
use resflow::data::{Dataset, Opened, Values};

use super::{Data, check_size, first};
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

impl Part {
    /// The samples of a file for a model, at most `most` of its images. Says on standard error which images they are.
    pub(crate) fn of(self, data: Data, name: &str, model: &ModelConfig, most: Option<usize>) -> Result<Dataset> {
        if let Some(found) = data.image_size() {
            check_size(found, name, model)?;
        }
        match data {
            Data::Stored(opened) if opened.data.images().is_some() => self.images(opened, name, most),
            _ if self.split.is_some() => Err(usage(format_args!("--split: {name} is no data set of images"))),
            Data::Stored(opened) => first(opened.data, most.filter(|_| model.images().is_some())),
            // what looks at all rows at once needs memory for them
            Data::Large(table) => Ok(table.samples(&(0..table.rows()).collect::<Vec<_>>())?),
            Data::Density(_) => Err(usage(format_args!("{name} is a density, a file is needed"))),
        }
    }

    /// The images of a data set, at most `most`. Says on standard error which they are.
    pub(crate) fn images(self, opened: Opened, name: &str, most: Option<usize>) -> Result<Dataset> {
        let (data, what) = match (self.split, opened.test) {
            (None | Some(Split::Test), Some(test)) => (test, "test images"),
            (Some(Split::Test), None) => return Err(usage(format_args!("--split test: {name} has no test images"))),
            (Some(Split::Train), _) => (opened.data, "training images"),
            (Some(Split::All), Some(test)) => (joined(opened.data, &test)?, "images, training and test"),
            (None | Some(Split::All), None) => (opened.data, "images"),
        };
        let all = data.len();
        let data = first(data, most)?;
        let first = if data.len() < all { format!("the first {} of the ", data.len()) } else { "the ".to_owned() };
        say(format_args!("taking {first}{all} {what} of {name}"));
        Ok(data)
    }
}

/// Images of one size one after the other, with labels where both have them.
fn joined(first: Dataset, then: &Dataset) -> Result<Dataset> {
    let (Values::Images(first), Some(then)) = (first.into_values(), then.images()) else {
        anyhow::bail!("images and numbers do not join");
    };
    let ImageSize { height, width, channels } = then.size();
    let labels = first.labels().zip(then.labels()).map(|(a, b)| [a, b].concat());
    let mut bytes = first.into_bytes();
    bytes.extend_from_slice(then.bytes());
    Ok(ImageSet::new(height, width, channels, bytes, labels)?.into())
}
