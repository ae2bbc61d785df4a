//! NPY arrays of images as they come: bytes, other whole numbers, numbers between 0 and 1; channels first, last or none.
//!
//! | shape | read as |
//! |---|---|
//! | (n, h, w) | gray; but (h, w, 3) may be one picture |
//! | (n, h, w, c), c = 1 or 3 | channels last |
//! | (n, c, h, w), c = 1 or 3 | channels first |
//! | both may be | by the height and width that are asked for, else refused |
//! | neither may be | likewise with c = 2 or 4; else bytes have channels last, floats first, as this library writes them |
//!
//! Floats that are multiples of 1/255, or whole numbers up to 255, were bytes and become bytes again. Other numbers
//! between 0 and 1 stay as they are.

use npyz::{Order, TypeChar};

use super::npy::from_fortran;
use super::records;
use super::{ImageError, ImageSet, ImageSize, ImageStack};
use crate::data::npy::Array;
use crate::error::DataError;

/// What an array holds.
pub(super) enum Images {
    Bytes(ImageSet),
    /// Numbers between 0 and 1 that were no bytes.
    Continuous(ImageStack),
}

/// The axes of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    images: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// Channels before height and width, not behind.
    first: bool,
}

impl Layout {
    fn words(self) -> String {
        let Self { images, height, width, channels, .. } = self;
        let s = |n: usize| if n == 1 { "" } else { "s" };
        format!("{images} image{} of {height}x{width} pixels with {channels} channel{}", s(images), s(channels))
    }
}

/// Reads an array, with sentences on what was decided. A height and width that are asked for decide where the shape does
/// not.
pub(super) fn read(bytes: &[u8], wanted: Option<[usize; 2]>) -> Result<(Images, Vec<String>), DataError> {
    let array = Array::open(bytes)?;
    let (kind, size) = array.scalar();
    let float = kind == TypeChar::Float;
    let shape = array.shape().to_vec();
    let (layout, usual) = layout(&shape, float, wanted)?;
    let mut notes: Vec<String> = layout.note(usual).into_iter().collect();
    let order = array.order();
    // rank three is one of rank four
    let axes = match (layout.first, shape.len()) {
        (_, 3) if layout.images == 1 => [1, layout.height, layout.width, layout.channels],
        (true, _) => [layout.images, layout.channels, layout.height, layout.width],
        (false, _) => [layout.images, layout.height, layout.width, layout.channels],
    };
    let dtype = array.dtype();
    if matches!((kind, size), (TypeChar::Uint | TypeChar::Bool, 1)) {
        let data = in_order(array.data()?, order, axes);
        let pixels = if kind == TypeChar::Bool {
            notes.push("true and false are taken as 255 and 0".to_owned());
            data.iter().map(|&b| if b == 0 { 0 } else { 255 }).collect()
        } else {
            data
        };
        return Ok((Images::Bytes(layout.set(pixels)?), notes));
    }
    if !matches!(kind, TypeChar::Float | TypeChar::Int | TypeChar::Uint) {
        return Err(ImageError::NpyType { dtype }.into());
    }
    let values = in_order(&array.numbers()?, order, axes);
    let whole = |v: &f64| (0.0..=255.0).contains(v) && v.fract() == 0.0;
    if !float {
        if let Some(&value) = values.iter().find(|v| !whole(v)) {
            return Err(ImageError::NpyValue { value }.into());
        }
        notes.push("the array's whole numbers are taken as bytes".to_owned());
        return Ok((Images::Bytes(layout.set(values.iter().map(|&v| v as u8).collect())?), notes));
    }
    // half precision is good to a fifteenth of a step
    let tolerance = if size == 2 { 0.07 } else { 1e-3 };
    let step = |v: &f64| (0.0..=1.0).contains(v) && (255.0 * v - (255.0 * v).round()).abs() <= tolerance;
    if values.iter().all(step) {
        notes.push("the array's numbers are multiples of 1/255, taken as bytes".to_owned());
        return Ok((Images::Bytes(layout.set(values.iter().map(|v| (255.0 * v).round() as u8).collect())?), notes));
    }
    if values.iter().all(whole) {
        notes.push("the array's whole numbers are taken as bytes".to_owned());
        return Ok((Images::Bytes(layout.set(values.iter().map(|&v| v as u8).collect())?), notes));
    }
    Ok((Images::Continuous(layout.stack(values)?), notes))
}

/// Where the images of an array stand in its file of so many bytes, by its beginning, and a sentence on what was decided; nothing of
/// an array of anything but bytes in C order.
pub(super) fn place(
    beginning: &[u8],
    length: u64,
    wanted: Option<[usize; 2]>,
) -> Result<Option<(records::Layout, Option<String>)>, DataError> {
    let array = Array::open(beginning)?;
    if array.scalar() != (TypeChar::Uint, 1) || array.order() != Order::C {
        return Ok(None);
    }
    let (layout, usual) = layout(array.shape(), false, wanted)?;
    let start = (beginning.len() - array.rest()) as u64;
    let expected = array.shape().iter().try_fold(1_u64, |count, &d| count.checked_mul(d));
    let (expected, found) = (expected.ok_or(DataError::NpyOverflow)?, length.saturating_sub(start));
    if expected != found {
        return Err(DataError::NpyLength { expected, found });
    }
    let Layout { images: count, height, width, channels, first: planes } = layout;
    let size = ImageSize { height, width, channels };
    Ok(Some((records::Layout { start, head: 0, planes, size, count }, layout.note(usual))))
}

impl Layout {
    /// A sentence on axes that are not the usual ones.
    fn note(self, usual: bool) -> Option<String> {
        let order = if self.first { "first" } else { "last" };
        (!usual).then(|| format!("the array is read as {}, channels {order}", self.words()))
    }

    fn set(self, pixels: Vec<u8>) -> Result<ImageSet, DataError> {
        let Self { height, width, channels, .. } = self;
        let pixels = if self.first { moved(&pixels, channels, height * width) } else { pixels };
        ImageSet::new(height, width, channels, pixels, None)
    }

    fn stack(self, values: Vec<f64>) -> Result<ImageStack, DataError> {
        let Self { height, width, channels, .. } = self;
        let values = if self.first { values } else { moved(&values, height * width, channels) };
        ImageStack::new(height, width, channels, values)
    }
}

/// Each image's values `[a, b]` as `[b, a]`.
fn moved<T: Copy>(values: &[T], a: usize, b: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len());
    for image in values.chunks_exact((a * b).max(1)) {
        out.extend((0..b).flat_map(|j| (0..a).map(move |i| image[i * b + j])));
    }
    out
}

fn in_order<T: Copy>(values: &[T], order: Order, axes: [usize; 4]) -> Vec<T> {
    match order {
        Order::C => values.to_vec(),
        Order::Fortran => from_fortran(values, axes),
    }
}

/// The axes of a shape, and whether they are the usual ones.
fn layout(shape: &[u64], float: bool, wanted: Option<[usize; 2]>) -> Result<(Layout, bool), ImageError> {
    // the array fills the file, so that its sizes fit; if it does not, reading refuses it
    let size = |d: u64| usize::try_from(d).unwrap_or(usize::MAX);
    if shape.contains(&0) || !matches!(shape.len(), 3 | 4) {
        return Err(ImageError::NpyShape { shape: shape.to_vec() });
    }
    let choose = |first: Layout, second: Layout| {
        let fits = |layout: Layout| wanted == Some([layout.height, layout.width]);
        match (fits(first), fits(second)) {
            (true, false) => Ok((first, false)),
            (false, true) => Ok((second, false)),
            _ => {
                let (first, second) = (first.words(), second.words());
                Err(ImageError::Ambiguous { shape: shape.to_vec(), first, second })
            }
        }
    };
    if let [n, h, w] = *shape {
        let (n, h, w) = (size(n), size(h), size(w));
        let gray = Layout { images: n, height: h, width: w, channels: 1, first: false };
        // (h, w, 3): hardly images of three columns
        if w == 3 && n >= 8 && h >= 8 {
            return choose(gray, Layout { images: 1, height: n, width: h, channels: w, first: false });
        }
        return Ok((gray, true));
    }
    let [n, a, b, c] = [shape[0], shape[1], shape[2], shape[3]].map(size);
    let first = Layout { images: n, channels: a, height: b, width: c, first: true };
    let last = Layout { images: n, height: a, width: b, channels: c, first: false };
    for usual in [[1, 3], [2, 4]] {
        match (usual.contains(&a), usual.contains(&c)) {
            (true, false) => return Ok((first, float)),
            (false, true) => return Ok((last, !float)),
            // a row and a column of gray pixels have the same numbers
            (true, true) if usual == [1, 3] && [a, c] != [1, 1] => return choose(first, last),
            _ => {}
        }
    }
    Ok((if float { first } else { last }, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_told_by_the_shape() {
        let words = |shape: &[u64], float, wanted| match layout(shape, float, wanted) {
            Ok((layout, usual)) => format!("{}{}", layout.words(), if usual { "" } else { "!" }),
            Err(error) => error.to_string(),
        };
        let gray = "60 images of 28x28 pixels with 1 channel";
        for (shape, float, said) in [
            (&[60, 28, 28][..], false, gray.to_owned()),
            (&[60, 28, 28], true, gray.to_owned()),
            (&[60, 28, 28, 1], false, gray.to_owned()),
            (&[60, 28, 28, 1], true, format!("{gray}!")),
            (&[60, 1, 28, 28], true, gray.to_owned()),
            (&[60, 1, 28, 28], false, format!("{gray}!")),
            (&[60, 3, 5, 4], true, "60 images of 5x4 pixels with 3 channels".to_owned()),
            (&[60, 5, 4, 3], true, "60 images of 5x4 pixels with 3 channels!".to_owned()),
            (&[60, 2, 5, 6], false, "60 images of 5x6 pixels with 2 channels!".to_owned()),
            (&[60, 5, 6, 4], false, "60 images of 5x6 pixels with 4 channels".to_owned()),
            (&[60, 5, 6, 7], false, "60 images of 5x6 pixels with 7 channels".to_owned()),
            (&[60, 5, 6, 7], true, "60 images of 6x7 pixels with 5 channels".to_owned()),
            (&[60, 1, 8, 1], false, "60 images of 1x8 pixels with 1 channel".to_owned()),
            (&[60, 1, 8, 1], true, "60 images of 8x1 pixels with 1 channel".to_owned()),
            (&[1, 1, 1, 1], true, "1 image of 1x1 pixels with 1 channel".to_owned()),
        ] {
            assert_eq!(words(shape, float, None), said, "{shape:?}, {float}");
        }
        for (shape, first, second) in [
            (&[60, 3, 8, 3][..], "60 images of 8x3 pixels with 3 channels", "60 images of 3x8 pixels with 3 channels"),
            (&[28, 20, 3], "28 images of 20x3 pixels with 1 channel", "1 image of 28x20 pixels with 3 channels"),
        ] {
            for float in [false, true] {
                let said = words(shape, float, None);
                assert!(said.contains(first) && said.contains(second) && said.contains("--image-size"), "{said}");
                for reading in [first, second] {
                    let size = reading.split(' ').nth(3).expect("a size");
                    let (height, width) = size.split_once('x').expect("two numbers");
                    let wanted = [height, width].map(|n| n.parse().expect("a number"));
                    assert_eq!(words(shape, float, Some(wanted)), format!("{reading}!"));
                }
            }
        }
        for shape in [&[2, 2][..], &[1, 2, 3, 4, 5], &[0, 8, 8], &[8, 8, 0, 1]] {
            assert!(layout(shape, true, None).is_err(), "{shape:?}");
        }
    }
}
