//! CIFAR in its binary form (<https://www.cs.toronto.edu/~kriz/cifar.html>): records of fixed size and nothing else.
//!
//! A record of CIFAR-10 is a label and the red, green and blue plane, 32 rows of 32 bytes each: 3073 bytes. One of
//! CIFAR-100 has a coarse label (of 20) before the fine one (of 100), which is the one that is kept.

use super::{ImageError, ImageSet};
use crate::error::DataError;

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;

/// Reads a batch of CIFAR-10.
///
/// # Errors
///
/// Returns [`DataError::Image`] with [`ImageError::CifarLength`] for no record or a number of bytes that is no multiple
/// of 3073, with [`ImageError::CifarLabel`] for a label above 9.
pub fn read10(bytes: &[u8]) -> Result<ImageSet, DataError> {
    read(bytes, &[10])
}

/// Reads CIFAR-100, with the fine labels.
///
/// # Errors
///
/// Returns [`DataError::Image`] with [`ImageError::CifarLength`] for no record or a number of bytes that is no multiple
/// of 3074, with [`ImageError::CifarLabel`] for a coarse label above 19 or a fine one above 99.
pub fn read100(bytes: &[u8]) -> Result<ImageSet, DataError> {
    read(bytes, &[20, 100])
}

/// Records that begin with labels of so many classes each; the last is kept.
fn read(bytes: &[u8], classes: &[u8]) -> Result<ImageSet, DataError> {
    let record = classes.len() + 3 * PLANE;
    if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
        let classes = classes[classes.len() - 1];
        return Err(ImageError::CifarLength { bytes: bytes.len(), record, classes }.into());
    }
    let count = bytes.len() / record;
    let mut labels = Vec::with_capacity(count);
    let mut pixels = Vec::with_capacity(count * 3 * PLANE);
    for (i, record) in bytes.chunks_exact(record).enumerate() {
        let (head, planes) = record.split_at(classes.len());
        for (&label, &classes) in head.iter().zip(classes) {
            if label >= classes {
                return Err(ImageError::CifarLabel { record: i, label, classes }.into());
            }
        }
        labels.extend(head.last());
        let (red, rest) = planes.split_at(PLANE);
        let (green, blue) = rest.split_at(PLANE);
        for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
            pixels.extend([r, g, b]);
        }
    }
    ImageSet::new(SIDE, SIDE, 3, pixels, Some(labels))
}
