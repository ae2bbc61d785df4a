//! IDX, MNIST's format, plain or compressed by gzip.
//!
//! Two zero bytes, a type (8: bytes), the number of dimensions, each dimension as a big-endian `u32`, then the bytes,
//! the last dimension fastest. Images are `[n, h, w]` (magic 00 00 08 03) or `[n, h, w, c]` (00 00 08 04), labels `[n]`
//! (00 00 08 01). The data must end where the header says.
//!
//! Deflate makes at most 1032 bytes of one. A header that announces more is refused before anything is decompressed;
//! otherwise memory grows with the data that come out and stops one byte beyond what was announced.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::listing::beginning;
use super::records::Layout;
use super::{ImageError, ImageSet, ImageSize};
use crate::data::looks_like;
use crate::error::DataError;

/// More than deflate can make of a byte; the slack is for files of a few bytes.
const EXPANSION: (u64, u64) = (1_100, 4_096);

/// What a file of images begins with, and what it is.
const IMAGES: (&str, &str) = ("00 00 08 03", "a file of images in IDX format (plain or compressed by gzip)");

/// Reads images.
///
/// # Errors
///
/// Returns [`DataError::Image`] with [`ImageError::Magic`] for another magic, [`ImageError::Gzip`] for damaged
/// compression, [`ImageError::Zero`] for a size of zero, [`ImageError::Overflow`] for sizes that overflow, and
/// [`ImageError::DataLength`], [`ImageError::CutHeader`] or [`ImageError::Expansion`] for data shorter or longer than
/// announced.
pub fn read_images(bytes: &[u8]) -> Result<ImageSet, DataError> {
    let (shape, data) = read(bytes, &[3, 4], IMAGES.0, IMAGES.1)?;
    let ImageSize { height, width, channels } = size(&shape);
    ImageSet::new(height, width, channels, data, None)
}

/// The size of images from the dimensions of their file.
fn size(shape: &[u64]) -> ImageSize {
    let (height, width, channels) = match *shape {
        [_, h, w] => (h, w, 1),
        [_, h, w, c] => (h, w, c),
        _ => (0, 0, 0),
    };
    // at most u32::MAX, so they fit
    ImageSize { height: height as usize, width: width as usize, channels: channels as usize }
}

/// Where the images of a file stand, by its header, and whether it is compressed: then they stand so behind its own header.
pub(super) fn place(path: &Path) -> Result<(Layout, bool), DataError> {
    let head = beginning(path)?;
    let (file, length) = (BufReader::new(File::open(path)?), path.metadata()?.len());
    let is_compressed = compressed(&head);
    let shape = if is_compressed {
        header(&mut MultiGzDecoder::new(file), &[3, 4], IMAGES.0, IMAGES.1)?
    } else {
        header(file, &[3, 4], IMAGES.0, IMAGES.1).map_err(|error| looking(error, &head))?
    };
    let (expected, start) = (data_length(&shape)?, 4 + 4 * shape.len() as u64);
    if is_compressed {
        check_expansion(expected, length)?;
    } else if length != start + expected {
        return Err(ImageError::DataLength { expected, found: Some(length.saturating_sub(start)) }.into());
    }
    // at most u32::MAX, so that it fits
    let layout = Layout { start, head: 0, planes: false, size: size(&shape), count: shape[0] as usize };
    Ok((layout, is_compressed))
}

/// The data of a compressed file, of so many bytes, in a temporary file that has no name.
pub(super) fn unpack(path: &Path, length: u64) -> Result<File, DataError> {
    let mut stream = MultiGzDecoder::new(BufReader::new(File::open(path)?));
    header(&mut stream, &[3, 4], IMAGES.0, IMAGES.1)?;
    let mut file = tempfile::tempfile()?;
    let mut piece = vec![0; 1 << 16];
    let mut found = 0;
    loop {
        // the byte beyond takes the stream to its end, where gzip checks its sum
        let read = stream.read(&mut piece).map_err(gzip)?;
        found += read as u64;
        if found > length {
            return Err(ImageError::DataLength { expected: length, found: None }.into());
        }
        if read == 0 {
            break;
        }
        file.write_all(&piece[..read])?;
    }
    if found < length {
        return Err(ImageError::DataLength { expected: length, found: Some(found) }.into());
    }
    file.rewind()?;
    Ok(file)
}

/// Reads labels.
///
/// # Errors
///
/// Returns [`DataError::Image`] as [`read_images`] does, but no labels are not an error.
pub fn read_labels(bytes: &[u8]) -> Result<Vec<u8>, DataError> {
    Ok(read(bytes, &[1], "00 00 08 01", "a file of labels in IDX format (plain or compressed by gzip)")?.1)
}

/// Writes images, uncompressed, as `[n, h, w]` if there is one channel and as `[n, h, w, c]` otherwise.
///
/// # Errors
///
/// Returns [`DataError::Image`] if a size does not fit 32 bits, before anything is written; [`DataError::Io`] if `out`
/// cannot be written.
pub fn write_images(images: &ImageSet, out: impl Write) -> Result<(), DataError> {
    let shape = [images.len(), images.height(), images.width(), images.channels()];
    write(&shape[..if images.channels() == 1 { 3 } else { 4 }], images.bytes(), out)
}

/// Writes labels, uncompressed.
///
/// # Errors
///
/// Returns [`DataError::Image`] or [`DataError::Io`] as [`write_images`] does.
pub fn write_labels(labels: &[u8], out: impl Write) -> Result<(), DataError> {
    write(&[labels.len()], labels, out)
}

fn write(shape: &[usize], data: &[u8], mut out: impl Write) -> Result<(), DataError> {
    let mut header = vec![0, 0, 8, shape.len() as u8];
    for &d in shape {
        let too_large = || ImageError::Overflow { shape: shape.iter().map(|&d| d as u64).collect() };
        header.extend(u32::try_from(d).map_err(|_| too_large())?.to_be_bytes());
    }
    out.write_all(&header)?;
    Ok(out.write_all(data)?)
}

/// Returns `true` if a file that begins with these bytes has the magic of IDX, perhaps under gzip.
pub(super) fn begins(bytes: &[u8]) -> bool {
    rank(bytes).is_some()
}

/// The number of dimensions, if a file that begins with these bytes has the magic of IDX, perhaps under gzip.
pub(super) fn rank(bytes: &[u8]) -> Option<u8> {
    let mut magic = [0; 4];
    let read = if compressed(bytes) {
        MultiGzDecoder::new(bytes).read_exact(&mut magic)
    } else {
        (&*bytes).read_exact(&mut magic)
    };
    match magic {
        [0, 0, 8, rank @ 1..=4] if read.is_ok() => Some(rank),
        _ => None,
    }
}

fn compressed(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// The dimensions, one of `ranks` in number, and the data.
fn read(
    bytes: &[u8],
    ranks: &[u8],
    expected: &'static str,
    what: &'static str,
) -> Result<(Vec<u64>, Vec<u8>), ImageError> {
    if compressed(bytes) {
        let mut stream = MultiGzDecoder::new(bytes);
        let shape = header(&mut stream, ranks, expected, what)?;
        let length = data_length(&shape)?;
        check_expansion(length, bytes.len() as u64)?;
        let mut data = Vec::new();
        // the byte beyond takes the stream to its end, where gzip checks its sum
        stream.take(length + 1).read_to_end(&mut data).map_err(gzip)?;
        data.shrink_to_fit();
        let found = data.len() as u64;
        if found != length {
            return Err(ImageError::DataLength { expected: length, found: (found < length).then_some(found) });
        }
        Ok((shape, data))
    } else {
        let mut data = bytes;
        let shape = header(&mut data, ranks, expected, what).map_err(|error| looking(error, bytes))?;
        let (length, found) = (data_length(&shape)?, data.len() as u64);
        if found != length {
            return Err(ImageError::DataLength { expected: length, found: Some(found) });
        }
        Ok((shape, data.to_vec()))
    }
}

/// The error of a file that begins so, with what it looks like.
fn looking(error: ImageError, bytes: &[u8]) -> ImageError {
    match error {
        ImageError::Magic { found, expected, what, .. } => {
            ImageError::Magic { found, expected, what, looks: looks_like::describe(bytes) }
        }
        other => other,
    }
}

/// Refuses more data than so many compressed bytes can hold.
fn check_expansion(expected: u64, compressed: u64) -> Result<(), ImageError> {
    let (ratio, slack) = EXPANSION;
    if expected > compressed.saturating_mul(ratio).saturating_add(slack) {
        return Err(ImageError::Expansion { expected, compressed });
    }
    Ok(())
}

fn header(
    mut stream: impl Read,
    ranks: &[u8],
    expected: &'static str,
    what: &'static str,
) -> Result<Vec<u64>, ImageError> {
    let mut magic = Vec::with_capacity(4);
    stream.by_ref().take(4).read_to_end(&mut magic).map_err(gzip)?;
    let rank = match magic[..] {
        [0, 0, 8, rank] if ranks.contains(&rank) => rank,
        [0, 0, 8, 1] => return Err(ImageError::OnlyLabels),
        _ => return Err(ImageError::Magic { found: magic, expected, what, looks: None }),
    };
    let mut sizes = vec![0; 4 * usize::from(rank)];
    stream.read_exact(&mut sizes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => ImageError::CutHeader { header: "IDX" },
        _ => gzip(e),
    })?;
    let (sizes, _) = sizes.as_chunks();
    Ok(sizes.iter().map(|&d| u64::from(u32::from_be_bytes(d))).collect())
}

/// The product of the dimensions.
fn data_length(shape: &[u64]) -> Result<u64, ImageError> {
    for (&d, what) in shape.iter().zip(["number of images", "height", "width", "number of channels"]) {
        if d == 0 && shape.len() > 1 {
            return Err(ImageError::Zero { what });
        }
    }
    let length = shape.iter().try_fold(1_u64, |product, &d| product.checked_mul(d)).filter(|&n| n < u64::MAX);
    length.ok_or_else(|| ImageError::Overflow { shape: shape.to_vec() })
}

fn gzip(error: io::Error) -> ImageError {
    ImageError::Gzip { problem: error.to_string() }
}
