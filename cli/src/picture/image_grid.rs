//! Images in rows and columns, with a thin border.

use image::{Rgb, RgbImage};
use resflow::data::image::ImageSize;
use resflow::transform::quantise;

use crate::failure::usage;

/// Pixels between images.
const BORDER: usize = 2;
/// The colour between images: neither black nor white, so that either is seen to end.
const PAPER: Rgb<u8> = Rgb([96, 112, 128]);
/// Images with fewer pixels along both sides are shown at twice their size.
const TINY: usize = 64;
/// The most pixels of a picture.
const MOST: usize = 1 << 26;

/// Columns of a grid of so many images that is about square.
pub(crate) fn columns(images: usize) -> usize {
    (images as f64).sqrt().ceil().max(1.0) as usize
}

/// How large each pixel is shown.
fn scale(size: ImageSize) -> usize {
    if size.height.max(size.width) < TINY { 2 } else { 1 }
}

/// Width and height of a grid in pixels.
///
/// # Errors
/// A grid that is too large for a picture.
pub(crate) fn extent(size: ImageSize, images: usize, columns: usize) -> anyhow::Result<[u32; 2]> {
    let cell = |side: usize| side * scale(size) + BORDER;
    let rows = images.div_ceil(columns);
    let side = |cells: usize, side: usize| cells.checked_mul(cell(side)).and_then(|s| s.checked_add(BORDER));
    let extent = side(columns, size.width).zip(side(rows, size.height));
    match extent {
        Some((w, h)) if w.checked_mul(h).is_some_and(|pixels| pixels <= MOST) => Ok([w as u32, h as u32]),
        _ => Err(usage(format_args!(
            "{images} images of {size} are too large for one picture: take fewer, or a .npy file"
        ))),
    }
}

/// Images `[n, c, h, w]` of numbers in \[0, 1\] in a grid; of one channel they are gray, of two the first is shown, of more
/// the first three are red, green and blue.
pub(crate) fn draw(rows: &[f64], size: ImageSize, bits: u32, columns: usize) -> anyhow::Result<RgbImage> {
    let ImageSize { height, width, channels } = size;
    let plane = height * width;
    let images = rows.chunks_exact(plane * channels);
    let [w, h] = extent(size, images.len(), columns)?;
    let mut grid = RgbImage::from_pixel(w, h, PAPER);
    let scale = scale(size);
    for (i, row) in images.enumerate() {
        let left = BORDER + i % columns * (width * scale + BORDER);
        let top = BORDER + i / columns * (height * scale + BORDER);
        for y in 0..height * scale {
            for x in 0..width * scale {
                let at = y / scale * width + x / scale;
                let value = |channel: usize| quantise(row[channel * plane + at], bits);
                let colour = if channels < 3 { [value(0); 3] } else { [value(0), value(1), value(2)] };
                grid.put_pixel((left + x) as u32, (top + y) as u32, Rgb(colour));
            }
        }
    }
    Ok(grid)
}

/// Values `[n, h, w, c]` in the order `[n, c, h, w]`.
pub(crate) fn planes(values: &[f64], size: ImageSize) -> Vec<f64> {
    let (plane, channels) = (size.height * size.width, size.channels);
    let mut out = Vec::with_capacity(values.len());
    for image in values.chunks_exact(plane * channels) {
        out.extend((0..channels).flat_map(|c| (0..plane).map(move |p| image[p * channels + c])));
    }
    out
}

/// Values `[n, c, h, w]` as bytes `[n, h, w, c]` of so many bits.
pub(crate) fn bytes(values: &[f64], size: ImageSize, bits: u32) -> Vec<u8> {
    let (plane, channels) = (size.height * size.width, size.channels);
    let mut out = Vec::with_capacity(values.len());
    for image in values.chunks_exact(plane * channels) {
        out.extend((0..plane).flat_map(|p| (0..channels).map(move |c| quantise(image[c * plane + p], bits))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_stand_where_they_belong() {
        let size = ImageSize { height: 2, width: 3, channels: 3 };
        let pixels: Vec<f64> = (0..5 * 18).map(|i| f64::from(i) / 100.0).collect();
        let grid = draw(&pixels, size, 8, 2).expect("a grid");
        assert_eq!(grid.dimensions(), (2 + 2 * 8, 2 + 3 * 6));
        // image 3, row 1, column 2
        let at = |channel: usize| quantise(pixels[3 * 18 + channel * 6 + 5], 8);
        assert_eq!(grid.get_pixel(2 + 8 + 5, 2 + 6 + 3).0, [at(0), at(1), at(2)]);
        assert_eq!(grid.get_pixel(2 + 8 + 6, 2 + 6 + 3), &PAPER);
        assert_eq!(grid.get_pixel(17, 19), &PAPER, "no sixth image");
        assert!(draw(&pixels, ImageSize { height: 1, width: 18, channels: 1 }, 8, usize::MAX / 8).is_err());
    }

    #[test]
    fn orders_are_inverse_to_each_other() {
        let size = ImageSize { height: 2, width: 2, channels: 3 };
        let levels: Vec<u8> = (0..24).collect();
        let values: Vec<f64> = levels.iter().map(|&l| (f64::from(l) + 0.5) / 256.0).collect();
        assert_eq!(bytes(&planes(&values, size), size, 8), levels);
    }
}
