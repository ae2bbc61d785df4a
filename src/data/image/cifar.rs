//! CIFAR in its binary form (<https://www.cs.toronto.edu/~kriz/cifar.html>): records of fixed size and nothing else.
//!
//! A record of CIFAR-10 is a label and the red, green and blue plane, 32 rows of 32 bytes each: 3073 bytes. One of
//! CIFAR-100 has a coarse label (of 20) before the fine one (of 100), which is the one that is kept.

use std::io::Read;

use super::records::Layout;
use super::{ImageError, ImageSet, ImageSize};
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
    read(bytes, CLASSES[0])
}

/// Reads CIFAR-100, with the fine labels.
///
/// # Errors
///
/// Returns [`DataError::Image`] with [`ImageError::CifarLength`] for no record or a number of bytes that is no multiple
/// of 3074, with [`ImageError::CifarLabel`] for a coarse label above 19 or a fine one above 99.
pub fn read100(bytes: &[u8]) -> Result<ImageSet, DataError> {
    read(bytes, CLASSES[1])
}

/// Records that begin with labels of so many classes each; the last is kept.
fn read(bytes: &[u8], classes: &[u8]) -> Result<ImageSet, DataError> {
    let Layout { count, .. } = place(bytes.len() as u64, classes)?;
    let record = classes.len() + 3 * PLANE;
    let mut labels = Vec::with_capacity(count);
    let mut pixels = Vec::with_capacity(count * 3 * PLANE);
    for (i, record) in bytes.chunks_exact(record).enumerate() {
        let (head, planes) = record.split_at(classes.len());
        check_labels(i, head, classes)?;
        labels.extend(head.last());
        let (red, rest) = planes.split_at(PLANE);
        let (green, blue) = rest.split_at(PLANE);
        for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
            pixels.extend([r, g, b]);
        }
    }
    ImageSet::new(SIDE, SIDE, 3, pixels, Some(labels))
}

/// The classes of the labels of CIFAR-10, and of CIFAR-100's two.
pub(super) const CLASSES: [&[u8]; 2] = [&[10], &[20, 100]];

/// Where the images of a file of so many bytes stand.
pub(super) fn place(length: u64, classes: &[u8]) -> Result<Layout, ImageError> {
    let (head, record) = (classes.len(), classes.len() + 3 * PLANE);
    if length == 0 || !length.is_multiple_of(record as u64) {
        let classes = classes[classes.len() - 1];
        return Err(ImageError::CifarLength { bytes: length as usize, record, classes });
    }
    let size = ImageSize { height: SIDE, width: SIDE, channels: 3 };
    Ok(Layout { start: 0, head, planes: true, size, count: (length / record as u64) as usize })
}

/// Reads the labels of so many records alone.
pub(super) fn read_labels(mut file: impl Read, classes: &[u8], count: usize) -> Result<Vec<u8>, DataError> {
    let mut record = vec![0; classes.len() + 3 * PLANE];
    let mut labels = Vec::with_capacity(count);
    for i in 0..count {
        file.read_exact(&mut record)?;
        let head = &record[..classes.len()];
        check_labels(i, head, classes)?;
        labels.extend(head.last());
    }
    Ok(labels)
}

fn check_labels(record: usize, labels: &[u8], classes: &[u8]) -> Result<(), ImageError> {
    match labels.iter().zip(classes).find(|(label, classes)| label >= classes) {
        Some((&label, &classes)) => Err(ImageError::CifarLabel { record, label, classes }),
        None => Ok(()),
    }
}
