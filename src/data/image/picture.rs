//! A picture file, told by its contents, and what reading it took.

use super::{ImageError, ImageSet, jpeg, png};
use crate::data::looks_like;
use crate::error::DataError;

/// Endings of the files that are read.
pub(super) const READ: [&str; 5] = ["png", "jpg", "jpeg", "jpe", "jfif"];
/// Endings of pictures that are not read.
pub(super) const OTHERS: [&str; 9] = ["gif", "bmp", "webp", "tif", "tiff", "avif", "heic", "ppm", "pgm"];

/// One image, as a set of one.
pub(super) struct Picture {
    pub(super) set: ImageSet,
    /// It had more than eight bits a channel.
    pub(super) deep: bool,
    /// It was put on a background.
    pub(super) transparent: bool,
}

/// Returns `true` if another picture follows the first, as `cat *.png` puts them.
pub(super) fn is_followed(bytes: &[u8]) -> bool {
    let rest = if bytes.starts_with(png::SIGNATURE) { png::rest(bytes) } else { jpeg::rest(bytes) };
    rest.starts_with(png::SIGNATURE) || rest.starts_with(jpeg::SIGNATURE)
}

/// Reads a file by its contents, whatever its name.
pub(super) fn read(bytes: &[u8]) -> Result<Picture, DataError> {
    if bytes.starts_with(png::SIGNATURE) {
        return png::read_picture(bytes);
    }
    if bytes.starts_with(jpeg::SIGNATURE) {
        return Ok(Picture { set: jpeg::read(bytes)?, deep: false, transparent: false });
    }
    let found = bytes.iter().copied().take(4).collect();
    let (expected, what) = ("89 50 4e 47 or ff d8 ff", "a PNG file or a JPEG file");
    Err(ImageError::Magic { found, expected, what, looks: looks_like::describe(bytes) }.into())
}
