//! PNG files.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context as _, Result};
use image::{ImageFormat, RgbImage};

use crate::output::write_file;

/// Writes a picture as PNG.
pub(crate) fn write_png(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).with_context(|| path.display().to_string())?;
    write_file(path, bytes.get_ref())
}
