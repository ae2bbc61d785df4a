//! DATA: rows of numbers, images, or the name of a built-in density.

pub(crate) mod labels;
pub(crate) mod part;

use std::fs;
use std::path::Path;

use anyhow::Result;
use resflow::config::{ImageConfig, ModelConfig};
use resflow::data::image::{self, ImageData, ImageError, ImageSize, ImageStack, npy};
use resflow::data::{self, DataError, Table, ToyDensity};

use crate::failure::usage;

/// What DATA holds.
#[derive(Debug)]
pub(crate) enum Dataset {
    Density(ToyDensity),
    Table(Table),
    /// Bytes, with the test images apart.
    Images(ImageData),
    /// Values between 0 and 1.
    Stack(ImageStack),
}

impl Dataset {
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
        if !image::looks_like_images(path) {
            return Ok(Self::Table(data::read(path)?));
        }
        match image::open(path) {
            Ok(images) => Ok(Self::Images(images)),
            // an array of numbers that are no bytes
            Err(e) if is_npy_type(&e) => {
                let named = |e| DataError::File { path: path.to_owned(), source: Box::new(e) };
                let bytes = fs::read(path).map_err(|e| named(e.into()))?;
                Ok(Self::Stack(npy::read_stack(&bytes).map_err(named)?))
            }
            Err(e) => Err(e.into()),
        }
    }
}

fn is_npy_type(error: &DataError) -> bool {
    match error {
        DataError::File { source, .. } => is_npy_type(source),
        DataError::Image(ImageError::NpyType { .. }) => true,
        _ => false,
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
