//! DATA: samples of a file or a folder, or the name of a built-in density.

pub(crate) mod labels;
pub(crate) mod part;
pub(crate) mod size;
pub(crate) mod weight;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use resflow::config::{ImageConfig, ModelConfig};
use resflow::data::image::{ImageSet, ImageSize};
use resflow::data::{self, Dataset, Opened, Table, ToyDensity};

use crate::data::size::Size;
use crate::failure::{say, usage};

/// What DATA holds.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a command has one or two of them")]
pub(crate) enum Data {
    Density(ToyDensity),
    Stored(Opened),
}

impl Data {
    /// A density's name goes before a file of the same name: `./moons` is the file.
    pub(crate) fn open(text: &str) -> Result<Self> {
        Self::open_sized(text, Size::default())
    }

    /// The same, its images brought to one size if that is asked for.
    pub(crate) fn open_sized(text: &str, size: Size) -> Result<Self> {
        let unknown = match text.parse::<ToyDensity>() {
            Ok(density) => return Ok(Self::Density(density)),
            Err(e) => e,
        };
        match Path::new(text).try_exists() {
            Ok(false) => Err(usage(format_args!("{text}: file not found, and {unknown}"))),
            _ => Self::open_file(Path::new(text), size),
        }
    }

    /// A table, or a file or folder of images.
    pub(crate) fn open_file(path: &Path, size: Size) -> Result<Self> {
        if matches!(path.try_exists(), Ok(false)) {
            return Err(usage(format_args!("{}: file not found", path.display())));
        }
        let opened = data::open_sized(path, size.image_size)?;
        if let (Some([height, width]), None) = (size.image_size, opened.image_size) {
            let path = path.display();
            return Err(usage(format_args!("--image-size {height}x{width}: {path} holds rows, not images")));
        }
        for note in &opened.notes {
            say_once(&format!("note: {}: {note}", path.display()));
        }
        Ok(Self::Stored(opened))
    }

    /// Images as bytes, which is what is learned from; anything else as it is.
    pub(crate) fn quantised(self, name: &str) -> Result<Self> {
        let Self::Stored(opened) = self else { return Ok(self) };
        let said = opened.notes.len();
        let opened = opened.quantised().with_context(|| name.to_owned())?;
        for note in &opened.notes[said..] {
            say_once(&format!("note: {name}: {note}"));
        }
        Ok(Self::Stored(opened))
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

/// A line on standard error, unless it was there before: an experiment opens its data many times.
fn say_once(line: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.insert(line.to_owned()) {
        say(line);
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
