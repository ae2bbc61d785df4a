//! NPY arrays of images: bytes `[n, h, w, c]` or `[n, h, w]`, and continuous values `[n, c, h, w]`.
//!
//! Headers are checked as those of tables are (see [`crate::data::npy`]); C and Fortran order are read, C order is
//! written.

use std::io::Write;

use npyz::{Order, TypeChar, WriteOptions, WriterBuilder};

use super::{ImageError, ImageSet, ImageStack};
use crate::data::npy::{Array, Float};
use crate::error::DataError;

/// The first bytes of every NPY file.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// Reads images from an array of `u1`, `[n, h, w, c]`, or `[n, h, w]` for one channel.
///
/// # Errors
///
/// Returns [`DataError::NpyHeader`] for a damaged header, [`DataError::Image`] with [`ImageError::NpyType`] or
/// [`ImageError::NpyShape`] for another type or shape or an array without elements, [`DataError::NpyLength`] for a file
/// shorter or longer than its header says.
pub fn read(bytes: &[u8]) -> Result<ImageSet, DataError> {
    let array = Array::open(bytes)?;
    if array.scalar() != (TypeChar::Uint, 1) {
        return Err(ImageError::NpyType { dtype: array.dtype() }.into());
    }
    let shape = match *array.shape() {
        [n, h, w] => [n, h, w, 1],
        [n, h, w, c] => [n, h, w, c],
        _ => [0; 4],
    };
    if shape.contains(&0) {
        return Err(ImageError::NpyShape { shape: array.shape().to_vec() }.into());
    }
    let data = array.data()?;
    // each fits: their product is the number of bytes in memory
    let shape = shape.map(|d| d as usize);
    let pixels = match array.order() {
        Order::C => data.to_vec(),
        Order::Fortran => from_fortran(data, shape),
    };
    ImageSet::new(shape[1], shape[2], shape[3], pixels, None)
}

/// Reads continuous images from an array of `f4` or `f8`, `[n, c, h, w]`.
///
/// # Errors
///
/// Returns [`DataError::NpyHeader`], [`DataError::NpyLength`] or [`DataError::Image`] as [`read`] does, and
/// [`DataError::Image`] for a value that is not in [0, 1], with its place.
pub fn read_stack(bytes: &[u8]) -> Result<ImageStack, DataError> {
    let array = Array::open(bytes)?;
    if !matches!(array.scalar(), (TypeChar::Float, 4 | 8)) {
        return Err(ImageError::StackType { dtype: array.dtype() }.into());
    }
    let shape = match *array.shape() {
        [n, c, h, w] if n > 0 && c > 0 && h > 0 && w > 0 => [n, c, h, w],
        _ => return Err(ImageError::StackShape { shape: array.shape().to_vec() }.into()),
    };
    let order = array.order();
    let values = array.numbers()?;
    let shape = shape.map(|d| d as usize);
    let values = match order {
        Order::C => values,
        Order::Fortran => from_fortran(&values, shape),
    };
    ImageStack::new(shape[2], shape[3], shape[1], values)
}

/// Writes images as an array of `u1`, `[n, h, w, c]`.
///
/// # Errors
///
/// Returns [`DataError::Io`] if `out` cannot be written.
pub fn write_bytes(images: &ImageSet, out: impl Write) -> Result<(), DataError> {
    let shape = [images.len(), images.height(), images.width(), images.channels()].map(|d| d as u64);
    let mut writer = WriteOptions::new().default_dtype().shape(&shape).writer(out).begin_nd()?;
    writer.extend(images.bytes().iter().copied())?;
    Ok(writer.finish()?)
}

/// Writes continuous images as a little-endian array `[n, c, h, w]`.
///
/// # Errors
///
/// Returns [`DataError::Io`] if `out` cannot be written.
pub fn write_stack(stack: &ImageStack, float: Float, out: impl Write) -> Result<(), DataError> {
    let shape = [stack.len(), stack.channels(), stack.height(), stack.width()].map(|d| d as u64);
    let values = stack.values().iter().copied();
    match float {
        Float::F4 => {
            let mut writer = WriteOptions::new().default_dtype().shape(&shape).writer(out).begin_nd()?;
            writer.extend(values.map(|v| v as f32))?;
            Ok(writer.finish()?)
        }
        Float::F8 => {
            let mut writer = WriteOptions::new().default_dtype().shape(&shape).writer(out).begin_nd()?;
            writer.extend(values)?;
            Ok(writer.finish()?)
        }
    }
}

/// The number of dimensions, from a file's beginning.
pub(super) fn rank(beginning: &[u8]) -> Option<usize> {
    Array::open(beginning).ok().map(|array| array.shape().len())
}

/// Reorders values from the first index fastest to the last.
pub(super) fn from_fortran<T: Copy>(values: &[T], [a, b, c, d]: [usize; 4]) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len());
    for i in 0..a {
        for j in 0..b {
            for k in 0..c {
                out.extend((0..d).map(|l| values[i + a * (j + b * (k + c * l))]));
            }
        }
    }
    out
}
