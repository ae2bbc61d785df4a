//! DATA: samples of a file or a folder, or the name of a built-in density.

pub(crate) mod given;
pub(crate) mod labels;
pub(crate) mod large;
pub(crate) mod part;
pub(crate) mod reading;
pub(crate) mod size;
mod source;
pub(crate) mod weight;

use std::path::Path;

use anyhow::{Context as _, Result};
use resflow::config::{ImageConfig, ModelConfig};
use resflow::data::image::{ImageSet, ImageSize};
use resflow::data::{Dataset, LargeTable, Opened, ReadOptions, Table, ToyDensity};

use crate::failure::usage;

/// What DATA holds.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a command has one or two of them")]
pub(crate) enum Data {
    Density(ToyDensity),
    Stored(Opened),
    /// A table or images that are larger than memory, or treated as such.
    Large(LargeTable),
}

impl Data {
    /// A density's name goes before a file of the same name: `./moons` is the file.
    pub(crate) fn open(text: &str) -> Result<Self> {
        Self::open_with(text, &ReadOptions::default())
    }

    /// The same with what is known of a table; `-` is standard input.
    pub(crate) fn open_with(text: &str, options: &ReadOptions) -> Result<Self> {
        let unknown = match text.parse::<ToyDensity>() {
            Ok(density) => {
                check_plain(text, options)?;
                return Ok(Self::Density(density));
            }
            Err(e) => e,
        };
        match Path::new(text).try_exists() {
            Ok(false) if text != reading::STANDARD_INPUT => {
                Err(usage(format_args!("{text}: file not found, and {unknown}")))
            }
            _ => Self::open_file(Path::new(text), options),
        }
    }

    /// A table, or a file or folder of images.
    pub(crate) fn open_file(path: &Path, options: &ReadOptions) -> Result<Self> {
        check_there(path)?;
        let opened = reading::open(path, options)?;
        match (opened.image_size, options.image_size) {
            (Some(_), _) => check_plain(&path.display().to_string(), options)?,
            (None, Some([height, width])) => {
                let path = path.display();
                return Err(usage(format_args!("--image-size {height}x{width}: {path} holds rows, not images")));
            }
            (None, None) => {}
        }
        Ok(Self::Stored(opened))
    }

    /// Images as bytes, which is what is learned from; anything else as it is.
    pub(crate) fn quantised(self, name: &str) -> Result<Self> {
        let Self::Stored(opened) = self else { return Ok(self) };
        let said = opened.notes.len();
        let opened = opened.quantised().with_context(|| name.to_owned())?;
        reading::tell(name, &opened.notes[said..]);
        Ok(Self::Stored(opened))
    }

    /// The rows of a file that were left out, counted from 0.
    pub(crate) fn dropped(&self) -> &[usize] {
        match self {
            Self::Density(_) | Self::Large(_) => &[],
            Self::Stored(opened) => &opened.dropped,
        }
    }

    /// The size of its images, bytes or numbers.
    pub(crate) fn image_size(&self) -> Option<ImageSize> {
        match self {
            Self::Density(_) => None,
            Self::Large(table) => table.images().map(|images| images.size),
            Self::Stored(opened) => opened.image_size,
        }
    }

    /// The images to learn from, if they are bytes.
    pub(crate) fn images(&self) -> Option<&ImageSet> {
        match self {
            Self::Density(_) | Self::Large(_) => None,
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

/// The file that DATA names; nothing of a built-in density, whatever is beside it under that name.
pub(crate) fn file_of(data: &str) -> &Path {
    if data.parse::<ToyDensity>().is_ok() { Path::new("") } else { Path::new(data) }
}

/// The first samples, at most `most`.
pub(crate) fn first(data: Dataset, most: Option<usize>) -> Result<Dataset> {
    match most {
        Some(n) if n < data.len() => Ok(data.select(&(0..n).collect::<Vec<_>>())?),
        _ => Ok(data),
    }
}

/// Refuses to choose columns of what has none.
fn check_plain(name: &str, options: &ReadOptions) -> Result<()> {
    let chosen = options.columns.is_some() || !options.drop.is_empty() || options.index.is_some();
    if chosen || !options.categories.is_empty() {
        let flags = "--columns, --drop, --index and --category";
        return Err(usage(format_args!("{flags} are for tables, {name} is none")));
    }
    Ok(())
}

/// Refuses a path at which nothing is.
pub(crate) fn check_there(path: &Path) -> Result<()> {
    if path != Path::new(reading::STANDARD_INPUT) && matches!(path.try_exists(), Ok(false)) {
        return Err(usage(format_args!("{}: file not found", path.display())));
    }
    Ok(())
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
