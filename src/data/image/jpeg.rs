//! JPEG files, baseline and progressive, gray or in colours.
//!
//! A damaged file is an error (the decoder's strict mode; it would fill what is missing with gray), and a file must have its
//! end: its markers are followed to the one that ends a picture. Orientation (EXIF) and colour profiles are not applied.
//! The decoder's code for single processors is left out, so that a file has the same pixels everywhere.
//!
//! The size is checked before the pixels take memory: at most 64 MiB of pixels, and no more than a file of its size can
//! hold.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{ImageError, ImageSet};
use crate::data::looks_like;
use crate::error::DataError;

/// The most that one image takes.
const MOST_BYTES: u64 = 64 << 20;
/// More numbers than a byte can stand for: a block of 64 takes two bits at least, in a progressive file one for each
/// of its scans.
const EXPANSION: u64 = 1_100;
/// What a file takes without any pixel.
const SLACK: u64 = 4_096;

/// The first bytes of every JPEG file.
pub(super) const SIGNATURE: &[u8] = b"\xff\xd8\xff";

/// Reads one image, as a set of one, of one channel if it is gray and of three otherwise.
///
/// # Errors
///
/// Returns [`DataError::Image`] with [`ImageError::Magic`] for another kind of file, [`ImageError::Jpeg`] for one that is
/// damaged, cut short, or of a kind that is not read (CMYK, 12 bits), [`ImageError::JpegTooLarge`] or
/// [`ImageError::Expansion`] for more than 64 MiB of pixels or than the file can hold.
pub fn read(bytes: &[u8]) -> Result<ImageSet, DataError> {
    if !bytes.starts_with(SIGNATURE) {
        let found = bytes.iter().copied().take(4).collect();
        let looks = looks_like::describe(bytes);
        return Err(ImageError::Magic { found, expected: "ff d8 ff", what: "a JPEG file", looks }.into());
    }
    let problem = |problem: &str| ImageError::Jpeg { problem: problem.to_owned() };
    if end(bytes).is_none() {
        return Err(problem("it is cut short").into());
    }
    let options = DecoderOptions::default().set_strict_mode(true).set_max_width(1 << 16).set_max_height(1 << 16);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| problem(&e.to_string()))?;
    let (info, space) = (decoder.info(), decoder.input_colorspace());
    let (Some(info), Some(space)) = (info, space) else { return Err(problem("it has no header").into()) };
    let (height, width) = (usize::from(info.height), usize::from(info.width));
    let (channels, space) = match (info.components, space) {
        (1, _) => (1, ColorSpace::Luma),
        (3, _) => (3, ColorSpace::RGB),
        (4, _) => return Err(problem("its colours are those of printers (CMYK): convert it to RGB").into()),
        (n, _) => return Err(problem(&format!("it has {n} components")).into()),
    };
    let values = height as u64 * width as u64 * channels as u64;
    if values > MOST_BYTES {
        return Err(ImageError::JpegTooLarge { height, width, most: MOST_BYTES }.into());
    }
    if values > (bytes.len() as u64).saturating_mul(EXPANSION).saturating_add(SLACK) {
        return Err(ImageError::Expansion { expected: values, compressed: bytes.len() as u64 }.into());
    }
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    let pixels = decoder.decode().map_err(|e| problem(&e.to_string()))?;
    ImageSet::new(height, width, channels, pixels, None)
}

/// What follows the end of a picture; nothing if the file says (MPF) that what follows are further pictures of its own.
pub(super) fn rest(bytes: &[u8]) -> &[u8] {
    let Some((picture, rest)) = end(bytes).and_then(|end| bytes.split_at_checked(end)) else { return &[] };
    if picture.windows(4).any(|w| w == b"MPF\0") { &[] } else { rest }
}

/// Where a picture ends: behind the marker that says so, to which the markers lead, with one that begins a scan before it.
fn end(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut scan) = (2, false);
    loop {
        // to the next marker: in a scan 00 and the restarts follow an ff that is none
        at += 1 + bytes.get(at..)?.iter().position(|&b| b == 0xff)?;
        match bytes.get(at) {
            None => return None,
            Some(0xff) => {}
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            Some(0xd9) => return scan.then_some(at + 1),
            Some(marker) => {
                scan |= *marker == 0xda;
                let Some(&[a, b]) = bytes.get(at + 1..at + 3) else { return None };
                at += 1 + usize::from(u16::from_be_bytes([a, b]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_from_what_looks_like_them() {
        let segment = |marker: u8, data: &[u8]| {
            let length = (data.len() as u16 + 2).to_be_bytes();
            [&[0xff, marker], &length[..], data].concat()
        };
        // a thumbnail inside a segment has an end of its own
        let head = [vec![0xff, 0xd8], segment(0xe1, &[0xff, 0xd8, 0xff, 0xd9]), segment(0xda, &[1, 2])].concat();
        let data = [1, 0xff, 0, 0xd9, 0xff, 0xd3, 7];
        for (rest, whole) in [
            (&[0xff, 0xd9][..], true),
            (&[0xff, 0xff, 0xd9], true),
            (&[0xff, 0xd9, 1, 2, 3], true),
            (&[], false),
            (&[0xff], false),
            (&[0xff, 0xd8], false),
        ] {
            let file = [&head[..], &data, rest].concat();
            assert_eq!(end(&file).is_some(), whole, "{rest:?}");
            let after = rest.iter().position(|b| *b == 0xd9).map_or(&[][..], |at| &rest[at + 1..]);
            assert_eq!(super::rest(&file), after, "{rest:?}");
        }
        assert_eq!(end(&[0xff, 0xd8, 0xff, 0xd9]), None, "no picture");
        assert_eq!(end(&[0xff, 0xd8, 0xff, 0xe1, 0xff, 0xff, 0xff, 0xd9]), None, "a segment beyond the end");
    }
}
