//! DATA: samples of a file or a folder, or the name of a built-in density.

pub(crate) mod labels;
pub(crate) mod part;

use std::path::Path;

use anyhow::Result;
use resflow::config::{ImageConfig, ModelConfig};
use resflow::data::image::{ImageSet, ImageSize};
use resflow::data::{self, Dataset, Opened, Table, ToyDensity};

use crate::failure::usage;

/// What DATA holds.
#[derive(Debug)]
pub(crate) enum Data {
    Density(ToyDensity),
    Stored(Opened),
}

impl Data {
    /// A density's name goes before a file of the same name: `./moons` is the file.
    pub(crate) fn open(text: &str) -> Result<Self> {
        let unknown = match text.parse::<ToyDensity>() {
            Ok(density) => return Ok(Self::Density(density)),
            Err(e) => e,
        };
        match Path::new(text).try_exists() {
            Ok(false) => Err(usage(format_args!("{text}: file not found, and {unknown}"))),
            _ => Self::open_file(Path::new(text)),
        }
    }

    /// A table, or a file or folder of images.
    pub(crate) fn open_file(path: &Path) -> Result<Self> {
        if matches!(path.try_exists(), Ok(false)) {
            return Err(usage(format_args!("{}: file not found", path.display())));
        }
        Ok(Self::Stored(data::open(path)?))
    }

    /// The size of its images, bytes or numbers.
    pub(crate) fn image_size(&self) -> Option<ImageSize> {
        match self {
            Self::Density(_) => None,
            Self::Stored(opened) => opened.image_size,
        }
    }

    /// The images to learn from, if they are bytes.
    pub(crate) fn images(&self) -> Option<&ImageSet> {
        match self {
            Self::Density(_) => None,
            Self::Stored(opened) => opened.data.images(),
        }
    }

    /// The table, if that is what it is, and not images as numbers.
    pub(crate) fn table(&self) -> Option<&Table> {
        match self {
            Self::Stored(Opened { data, image_size: None, .. }) => data.table(),
            _ => None,
        }
    }
}

/// The first samples, at most `most`.
pub(crate) fn first(data: Dataset, most: Option<usize>) -> Result<Dataset> {
    match most {
        Some(n) if n < data.len() => Ok(data.select(&(0..n).collect::<Vec<_>>())?),
        _ => Ok(data),
    }
}

/// Reads a table.
pub(crate) fn read(path: &Path) -> Result<Table> {
    match path.try_exists() {
        Ok(false) => Err(usage(format_args!("{}: file not found", path.display()))),
        _ => Ok(data::read(path)?),
    }
}

/// Whether images fit a model.
pub(crate) fn check_size(found: ImageSize, name: &str, model: &ModelConfig) -> Result<()> {
    let Some(config) = model.images() else {
        let d = model.dimension();
        return Err(usage(format_args!("{name}: images of {found}, the model is for rows of {d} numbers")));
    };
    let wanted = model_size(config);
    if found == wanted {
        return Ok(());
    }
    Err(usage(format_args!("{name}: images of {found}, the model is for {wanted}")))
}

/// The size of the images that a configuration is for.
pub(crate) fn model_size(config: &ImageConfig) -> ImageSize {
    ImageSize { height: config.height, width: config.width, channels: config.channels }
}
