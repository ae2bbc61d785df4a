//! PNG files of 8 bits a channel.
//!
//! Gray images (also of 1, 2 and 4 bits, scaled to 8) have one channel; colours and palettes three. An alpha channel
//! that says opaque everywhere is dropped, which loses nothing; any other is refused, as are 16 bits and animations.
//! Gamma and colour profiles are not applied. Sums of the chunks are checked.
//!
//! The size is checked before the pixels take memory: at most 64 MiB of pixels, and no more than deflate can make of
//! the file.

use std::io::{Cursor, ErrorKind};

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Encoder, Limits, Transformations};

use super::{ImageError, ImageSet};
use crate::error::DataError;

/// The most that one image takes, as it comes out of the decoder.
const MOST_BYTES: usize = 64 << 20;
/// More than deflate can make of a byte.
const EXPANSION: u64 = 1_100;

/// The first bytes of every PNG file.
pub(super) const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Reads one image, as a set of one.
///
/// # Errors
///
/// Returns [`DataError::Image`] with [`ImageError::Magic`] for another kind of file, [`ImageError::Png`] for a damaged
/// or truncated one, [`ImageError::Png16`] for 16 bits a channel, [`ImageError::Transparent`] for a transparent pixel,
/// [`ImageError::Animated`] for an animation, [`ImageError::PngTooLarge`] or [`ImageError::Expansion`] for more than 64
/// MiB of pixels or than the file can hold.
pub fn read(bytes: &[u8]) -> Result<ImageSet, DataError> {
    if !bytes.starts_with(SIGNATURE) {
        let found = bytes.iter().copied().take(4).collect();
        return Err(ImageError::Magic { found, expected: "89 50 4e 47", what: "a PNG file" }.into());
    }
    check_palette(bytes)?;
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: MOST_BYTES });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let info = decoder.read_header_info().map_err(damaged)?;
    let (width, height) = info.size();
    if info.bit_depth == BitDepth::Sixteen {
        return Err(ImageError::Png16.into());
    }
    let bits = u64::from(width) * (info.color_type.samples() as u64) * (info.bit_depth as u64);
    let raw = (bits.div_ceil(8) + 1).saturating_mul(u64::from(height));
    let too_large = ImageError::PngTooLarge { height, width, most: MOST_BYTES };
    // a row of up to 2³⁵ bytes would take memory of its own
    if raw > MOST_BYTES as u64 + u64::from(height) {
        return Err(too_large.into());
    }
    if raw > (bytes.len() as u64).saturating_mul(EXPANSION) {
        return Err(ImageError::Expansion { expected: raw, compressed: bytes.len() as u64 }.into());
    }
    let mut reader = decoder.read_info().map_err(damaged)?;
    if reader.info().animation_control.is_some() || reader.info().frame_control.is_some() {
        return Err(ImageError::Animated.into());
    }
    let Some(size) = reader.output_buffer_size().filter(|&size| size <= MOST_BYTES) else {
        return Err(too_large.into());
    };
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).map_err(damaged)?;
    // to the chunk that ends a whole file
    reader.finish().map_err(damaged)?;
    let (channels, pixels) = match frame.color_type {
        ColorType::Grayscale => (1, pixels),
        ColorType::Rgb => (3, pixels),
        ColorType::GrayscaleAlpha => (1, opaque(&pixels, 1, width as usize)?),
        ColorType::Rgba => (3, opaque(&pixels, 3, width as usize)?),
        ColorType::Indexed => return Err(ImageError::Png { problem: "it has no palette".to_owned() }.into()),
    };
    ImageSet::new(height as usize, width as usize, channels, pixels, None)
}

/// Encodes one image `[h, w, c]` of one (gray) or three channels.
///
/// # Errors
///
/// Returns [`DataError::Image`] with [`ImageError::PngChannels`] for another number of channels, [`ImageError::Length`]
/// for bytes that are not one image of this size.
pub fn encode(height: usize, width: usize, channels: usize, image: &[u8]) -> Result<Vec<u8>, DataError> {
    let colour = match channels {
        1 => ColorType::Grayscale,
        3 => ColorType::Rgb,
        _ => return Err(ImageError::PngChannels { channels }.into()),
    };
    let size = super::ImageSize { height, width, channels };
    let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(ImageError::TooLarge { size }.into());
    };
    let values = size.values()?;
    if values != image.len() {
        return Err(ImageError::Length { values: image.len(), size }.into());
    }
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, w, h);
    encoder.set_color(colour);
    encoder.set_depth(BitDepth::Eight);
    let problem = |e: ::png::EncodingError| ImageError::Png { problem: e.to_string() };
    let mut writer = encoder.write_header().map_err(problem)?;
    writer.write_image_data(image).map_err(problem)?;
    writer.finish().map_err(problem)?;
    Ok(out)
}

/// A palette is 1 to 256 colours of three bytes: the decoder trusts that.
fn check_palette(bytes: &[u8]) -> Result<(), ImageError> {
    let mut rest = &bytes[SIGNATURE.len()..];
    // length, type, data and sum of each chunk; one that is cut short is the decoder's to find
    while let Some((&[a, b, c, d, ref kind @ ..], _)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if kind == b"PLTE" && !(length.is_multiple_of(3) && (3..=768).contains(&length)) {
            let problem = format!("its palette has {length} bytes, not three for each of 1 to 256 colours");
            return Err(ImageError::Png { problem });
        }
        rest = length.checked_add(12).and_then(|whole| rest.get(whole..)).unwrap_or_default();
    }
    Ok(())
}

/// The pixels without their alpha channel, which must be opaque.
fn opaque(pixels: &[u8], channels: usize, width: usize) -> Result<Vec<u8>, ImageError> {
    let mut out = Vec::with_capacity(pixels.len() / (channels + 1) * channels);
    for (i, pixel) in pixels.chunks_exact(channels + 1).enumerate() {
        if pixel[channels] != u8::MAX {
            return Err(ImageError::Transparent { row: i / width, column: i % width });
        }
        out.extend_from_slice(&pixel[..channels]);
    }
    Ok(out)
}

fn damaged(error: DecodingError) -> ImageError {
    let problem = match error {
        DecodingError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => "it is cut short".to_owned(),
        error => error.to_string(),
    };
    ImageError::Png { problem }
}
