//! PNG files.
//!
//! Gray images (also of 1, 2 and 4 bits, scaled to 8, and palettes of grays) have one channel; colours and other palettes
//! three. An alpha channel that says opaque everywhere is dropped, which loses nothing. [`read`] refuses what would lose
//! something: other alpha channels and 16 bits; [`open`](super::open()) puts such pictures on white, α v + (1 − α) 255, and
//! rounds 16 bits to the nearest of 8, v / 257, with a note. Animations are refused. Gamma and colour profiles are not
//! applied. Sums of the chunks are checked.
//!
//! The size is checked before the pixels take memory: at most 64 MiB of pixels, and no more than deflate can make of
//! the file.

use std::io::{Cursor, ErrorKind};

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Encoder, Limits, Transformations};

use super::picture::Picture;
use super::{ImageError, ImageSet};
use crate::data::looks_like;
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
    let decoded = Decoded::of(bytes)?;
    if decoded.deep {
        return Err(ImageError::Png16.into());
    }
    if let Some(at) = decoded.transparent() {
        return Err(ImageError::Transparent { row: at / decoded.width, column: at % decoded.width }.into());
    }
    decoded.flattened()
}

/// Reads one image, with what is lost by that: bits beyond the eighth, transparency.
pub(super) fn read_picture(bytes: &[u8]) -> Result<Picture, DataError> {
    let decoded = Decoded::of(bytes)?;
    let (deep, transparent) = (decoded.deep, decoded.transparent().is_some());
    Ok(Picture { set: decoded.flattened()?, deep, transparent })
}

/// The pixels of a file, 8 bits a channel.
struct Decoded {
    height: usize,
    width: usize,
    /// One or three, and the opacity where there is one.
    channels: usize,
    alpha: bool,
    pixels: Vec<u8>,
    /// Whether they had 16 bits.
    deep: bool,
}

impl Decoded {
    fn of(bytes: &[u8]) -> Result<Self, DataError> {
        if !bytes.starts_with(SIGNATURE) {
            let found = bytes.iter().copied().take(4).collect();
            let looks = looks_like::describe(bytes);
            return Err(ImageError::Magic { found, expected: "89 50 4e 47", what: "a PNG file", looks }.into());
        }
        check_palette(bytes)?;
        let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: MOST_BYTES });
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        decoder.set_transformations(Transformations::EXPAND);
        let info = decoder.read_header_info().map_err(damaged)?;
        let (width, height) = info.size();
        let deep = info.bit_depth == BitDepth::Sixteen;
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
        let gray = reader.info().palette.as_ref().is_some_and(|palette| {
            reader.info().color_type == ColorType::Indexed
                && palette.chunks_exact(3).all(|c| c[0] == c[1] && c[1] == c[2])
        });
        let Some(size) = reader.output_buffer_size().filter(|&size| size <= MOST_BYTES) else {
            return Err(too_large.into());
        };
        let mut pixels = vec![0; size];
        let frame = reader.next_frame(&mut pixels).map_err(damaged)?;
        // to the chunk that ends a whole file
        reader.finish().map_err(damaged)?;
        if deep {
            pixels = pixels.as_chunks().0.iter().map(|&v| nearest(u16::from_be_bytes(v))).collect();
        }
        let (mut channels, alpha) = match frame.color_type {
            ColorType::Grayscale => (1, false),
            ColorType::Rgb => (3, false),
            ColorType::GrayscaleAlpha => (1, true),
            ColorType::Rgba => (3, true),
            ColorType::Indexed => return Err(ImageError::Png { problem: "it has no palette".to_owned() }.into()),
        };
        if gray && channels == 3 {
            // red and what follows blue
            let kept = if alpha { &[0, 3][..] } else { &[0][..] };
            pixels = pixels.chunks_exact(3 + usize::from(alpha)).flat_map(|p| kept.iter().map(|&c| p[c])).collect();
            channels = 1;
        }
        let (height, width) = (height as usize, width as usize);
        Ok(Self { height, width, channels, alpha, pixels, deep })
    }

    /// The first pixel that is not opaque.
    fn transparent(&self) -> Option<usize> {
        let each = self.channels + 1;
        if self.alpha { self.pixels.chunks_exact(each).position(|p| p[self.channels] != u8::MAX) } else { None }
    }

    /// The image on a white background.
    fn flattened(self) -> Result<ImageSet, DataError> {
        let Self { height, width, channels, .. } = self;
        let pixels = if self.alpha {
            let pixels = self.pixels.chunks_exact(channels + 1);
            pixels.flat_map(|p| p[..channels].iter().map(|&v| on_white(v, p[channels]))).collect()
        } else {
            self.pixels
        };
        ImageSet::new(height, width, channels, pixels, None)
    }
}

/// v / 257 to the nearest: 16 bits in 8.
fn nearest(v: u16) -> u8 {
    ((u32::from(v) + 128) / 257) as u8
}

/// α v + (1 − α) 255 to the nearest.
fn on_white(v: u8, alpha: u8) -> u8 {
    let (v, alpha) = (u32::from(v), u32::from(alpha));
    ((alpha * v + (255 - alpha) * 255 + 127) / 255) as u8
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

/// What follows the chunk that ends a file; nothing where there is none.
pub(super) fn rest(bytes: &[u8]) -> &[u8] {
    let mut rest = bytes.get(SIGNATURE.len()..).unwrap_or_default();
    while let Some((&[a, b, c, d, ref kind @ ..], _)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let is_end = kind == b"IEND";
        rest = length.checked_add(12).and_then(|whole| rest.get(whole..)).unwrap_or_default();
        if is_end {
            return rest;
        }
    }
    &[]
}

fn damaged(error: DecodingError) -> ImageError {
    let problem = match error {
        DecodingError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => "it is cut short".to_owned(),
        error => error.to_string(),
    };
    ImageError::Png { problem }
}
