//! Sets of images in memory: bytes for learning, numbers in [0, 1] for what a model makes.
//!
//! An [`ImageSet`] holds bytes `[n, h, w, c]`, an [`ImageStack`] doubles `[n, c, h, w]`. Both have at least one image,
//! and their sizes multiply to the number of their values.

use std::fmt;

use resflow_backend::Key;

use crate::data::permutation;
pub use crate::error::ImageSize;
use crate::error::{DataError, ImageError};

impl ImageSize {
    /// The values of one image, h · w · c.
    pub(crate) fn values(self) -> Result<usize, ImageError> {
        for (what, n) in [("height", self.height), ("width", self.width), ("number of channels", self.channels)] {
            if n == 0 {
                return Err(ImageError::Zero { what });
            }
        }
        let pixels = self.height.checked_mul(self.width);
        pixels.and_then(|p| p.checked_mul(self.channels)).ok_or(ImageError::TooLarge { size: self })
    }

    /// The number of images in so many values, which is at least one.
    fn images(self, values: usize) -> Result<usize, ImageError> {
        let each = self.values()?;
        match (values / each, values % each) {
            (_, 1..) => Err(ImageError::Length { values, size: self }),
            (0, _) => Err(ImageError::Zero { what: "number of images" }),
            (images, _) => Ok(images),
        }
    }
}

/// Images of one size with 8 bits a channel, `[n, h, w, c]`, and optionally a label for each.
///
/// ```
/// use resflow::data::image::ImageSet;
/// let set = ImageSet::new(1, 2, 3, vec![1, 2, 3, 4, 5, 6], None)?;
/// assert_eq!((set.len(), set.image(0)), (1, Some(&[1, 2, 3, 4, 5, 6][..])));
/// # Ok::<(), resflow::data::DataError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ImageSet {
    size: ImageSize,
    bytes: Vec<u8>,
    labels: Option<Vec<u8>>,
    class_names: Option<Vec<String>>,
}

impl fmt::Debug for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageSet({} of {}, labels: {})", self.len(), self.size, self.labels.is_some())
    }
}

#[expect(clippy::len_without_is_empty, reason = "a set is never empty")]
impl ImageSet {
    /// Takes images as bytes `[n, h, w, c]`: image by image, row by row, pixel by pixel.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Image`] with [`ImageError::Zero`] for a size of zero or no image, [`ImageError::TooLarge`]
    /// for a size too large for the machine, [`ImageError::Length`] for a number of bytes that is no multiple of an
    /// image's, [`ImageError::Labels`] for a number of labels that is not the number of images.
    pub fn new(
        height: usize,
        width: usize,
        channels: usize,
        bytes: Vec<u8>,
        labels: Option<Vec<u8>>,
    ) -> Result<Self, DataError> {
        let size = ImageSize { height, width, channels };
        let images = size.images(bytes.len())?;
        if let Some(labels) = labels.as_ref().map(Vec::len).filter(|&labels| labels != images) {
            return Err(ImageError::Labels { labels, images }.into());
        }
        Ok(Self { size, bytes, labels, class_names: None })
    }

    /// Adds labels, one for each image.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Image`] with [`ImageError::Labels`] for a number of labels that is not the number of
    /// images.
    pub fn with_labels(self, labels: Vec<u8>) -> Result<Self, DataError> {
        let ImageSize { height, width, channels } = self.size;
        Self::new(height, width, channels, self.bytes, Some(labels))
    }

    /// The number of images, at least one.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.stride()
    }

    /// The size of every image.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// The height, in pixels.
    pub fn height(&self) -> usize {
        self.size.height
    }

    /// The width, in pixels.
    pub fn width(&self) -> usize {
        self.size.width
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.size.channels
    }

    /// All images, `[n, h, w, c]`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All images, `[n, h, w, c]`, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Size, bytes and labels, without a copy.
    #[cfg(feature = "images")]
    pub(super) fn into_parts(self) -> (ImageSize, Vec<u8>, Option<Vec<u8>>) {
        (self.size, self.bytes, self.labels)
    }

    /// Image `i`, `[h, w, c]`, if there is one.
    pub fn image(&self, i: usize) -> Option<&[u8]> {
        self.bytes.chunks_exact(self.stride()).nth(i)
    }

    /// The labels, one for each image, where there are any.
    pub fn labels(&self) -> Option<&[u8]> {
        self.labels.as_deref()
    }

    /// Names the classes, in the order of their labels.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Image`] with [`ImageError::ClassNames`] if there are no labels, or one of them has no name.
    pub fn with_class_names(self, names: Vec<String>) -> Result<Self, DataError> {
        let labelled = self.labels.as_ref().and_then(|labels| labels.iter().max());
        match labelled {
            Some(&most) if usize::from(most) < names.len() => Ok(Self { class_names: Some(names), ..self }),
            most => Err(ImageError::ClassNames { names: names.len(), most: most.copied() }.into()),
        }
    }

    /// The names of the classes, in the order of their labels, where they have names.
    pub fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    /// The number of classes, where there are labels: that of their names, or one more than the largest label.
    pub fn classes(&self) -> Option<usize> {
        let labels = self.labels.as_ref()?;
        match &self.class_names {
            Some(names) => Some(names.len()),
            None => labels.iter().max().map(|&label| usize::from(label) + 1),
        }
    }

    /// Adapts the images to another size: cut off or padded with zeros about the centre; colours become grey by their
    /// luma (BT.601), grey becomes colours by repetition, and otherwise channels are cut off or zero. Labels stay.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Image`] with [`ImageError::Zero`] for a size of zero, [`ImageError::TooLarge`] for one too
    /// large for the memory.
    pub fn adapted(&self, size: ImageSize) -> Result<Self, DataError> {
        let ImageSize { height, width, channels } = size;
        let total = size.values()?.checked_mul(self.len()).ok_or(ImageError::TooLarge { size })?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(total).map_err(|_| ImageError::TooLarge { size })?;
        for image in self.bytes.chunks_exact(self.stride()) {
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                match centred(self.size.height, height, y).zip(centred(self.size.width, width, x)) {
                    Some((y, x)) => {
                        let start = (y * self.size.width + x) * self.size.channels;
                        let pixel = &image[start..start + self.size.channels];
                        bytes.extend((0..channels).map(|c| channel(pixel, channels, c)));
                    }
                    None => bytes.extend(std::iter::repeat_n(0, channels)),
                }
            }
        }
        let adapted = Self::new(height, width, channels, bytes, self.labels.clone())?;
        Ok(Self { class_names: self.class_names.clone(), ..adapted })
    }

    /// Selects the given images, in the given order; an image may come more than once.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Image`] with [`ImageError::Index`] for an index that is no image's, [`ImageError::Zero`]
    /// for no index.
    pub fn take(&self, indices: &[usize]) -> Result<Self, DataError> {
        let images = self.len();
        if let Some(&index) = indices.iter().find(|&&i| i >= images) {
            return Err(ImageError::Index { index, images }.into());
        }
        let mut bytes = Vec::with_capacity(indices.len() * self.stride());
        for &i in indices {
            bytes.extend_from_slice(&self.bytes[i * self.stride()..(i + 1) * self.stride()]);
        }
        let labels = self.labels.as_ref().map(|labels| indices.iter().map(|&i| labels[i]).collect());
        let taken = Self::new(self.size.height, self.size.width, self.size.channels, bytes, labels)?;
        Ok(Self { class_names: self.class_names.clone(), ..taken })
    }

    /// Sets images aside for validation: `(training, validation)`.
    ///
    /// The key's permutation shuffles the images; the first round(`fraction` · n) of them, at least one and at most
    /// all but one, are the validation images, as in [`Table::split`](crate::data::Table::split). Every image is in
    /// exactly one of the two sets.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Fraction`] if `fraction` is not strictly between 0 and 1, [`DataError::Image`] with
    /// [`ImageError::TooFew`] if there are fewer than two images.
    pub fn split(self, fraction: f64, key: Key) -> Result<(Self, Self), DataError> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(DataError::Fraction(fraction));
        }
        let images = self.len();
        if images < 2 {
            return Err(ImageError::TooFew.into());
        }
        let validation = ((images as f64 * fraction).round() as usize).clamp(1, images - 1);
        let order = permutation(images, key);
        Ok((self.take(&order[validation..])?, self.take(&order[..validation])?))
    }

    /// A short text that tells two sets apart, to refuse resuming on other images. Labels do not count.
    ///
    /// FNV-1a takes a multiplication after the other, so the bytes go in turn to eight of it; the eight results go
    /// through another.
    pub fn fingerprint(&self) -> String {
        let mut lanes = [FNV_OFFSET; 8];
        let (words, rest) = self.bytes.as_chunks::<8>();
        for word in words {
            for (lane, &byte) in lanes.iter_mut().zip(word) {
                *lane = fnv(*lane, byte);
            }
        }
        for (lane, &byte) in lanes.iter_mut().zip(rest) {
            *lane = fnv(*lane, byte);
        }
        let hash = lanes.iter().flat_map(|lane| lane.to_le_bytes()).fold(FNV_OFFSET, fnv);
        format!("{} images of {}, FNV-1a {hash:016x}", self.len(), self.size)
    }

    /// A short text that tells two labelled sets apart.
    pub(crate) fn labelled_fingerprint(&self) -> String {
        let hash = self.labels.iter().flatten().copied().fold(FNV_OFFSET, fnv);
        format!("{}, labels {hash:016x}", self.fingerprint())
    }

    /// Bytes of one image.
    fn stride(&self) -> usize {
        self.size.height * self.size.width * self.size.channels
    }
}

/// The place in `own` pixels of pixel i of `wanted`, the centres one upon the other.
fn centred(own: usize, wanted: usize, i: usize) -> Option<usize> {
    (i + own.saturating_sub(wanted) / 2).checked_sub(wanted.saturating_sub(own) / 2).filter(|&i| i < own)
}

/// Channel c of a pixel in so many channels.
fn channel(pixel: &[u8], channels: usize, c: usize) -> u8 {
    match (pixel, channels) {
        (&[r, g, b], 1) => ((299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b) + 500) / 1000) as u8,
        (&[grey], _) => grey,
        _ => pixel.get(c).copied().unwrap_or(0),
    }
}

/// Where the FNV-1a hash of bytes begins.
pub(crate) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// One byte more.
pub(crate) fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
}

/// Images of one size with continuous values between 0 and 1, `[n, c, h, w]`.
#[derive(Clone, PartialEq)]
pub struct ImageStack {
    size: ImageSize,
    values: Vec<f64>,
}

impl fmt::Debug for ImageStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageStack({} of {})", self.len(), self.size)
    }
}

#[expect(clippy::len_without_is_empty, reason = "a stack is never empty")]
impl ImageStack {
    /// Takes images as values `[n, c, h, w]`.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Image`] with [`ImageError::Zero`] for a size of zero or no image, [`ImageError::TooLarge`]
    /// for a size too large for the machine, [`ImageError::Length`] for a number of values that is no multiple of an
    /// image's, [`ImageError::Value`] for a value that is not in [0, 1], with its place.
    pub fn new(height: usize, width: usize, channels: usize, values: Vec<f64>) -> Result<Self, DataError> {
        let size = ImageSize { height, width, channels };
        size.images(values.len())?;
        if let Some(i) = values.iter().position(|v| !(0.0..=1.0).contains(v)) {
            let (row, column) = (i / width % height, i % width);
            let (image, channel) = (i / (width * height * channels), i / (width * height) % channels);
            return Err(ImageError::Value { image, channel, row, column, value: values[i] }.into());
        }
        Ok(Self { size, values })
    }

    /// The number of images, at least one.
    pub fn len(&self) -> usize {
        self.values.len() / self.dimension()
    }

    /// The size of every image.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// The height, in pixels.
    pub fn height(&self) -> usize {
        self.size.height
    }

    /// The width, in pixels.
    pub fn width(&self) -> usize {
        self.size.width
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.size.channels
    }

    /// The values of one image, c · h · w.
    pub fn dimension(&self) -> usize {
        self.size.height * self.size.width * self.size.channels
    }

    /// All images, `[n, c · h · w]`.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// All images, `[n, c · h · w]`, without a copy.
    pub fn into_values(self) -> Vec<f64> {
        self.values
    }

    /// Returns the images as bytes, `[n, h, w, c]`: a value v becomes the largest whole number up to 256 v, at most 255,
    /// which takes off the noise of images that were bytes.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Image`] as [`ImageSet::new`] does; a stack is never empty.
    pub fn quantised(&self) -> Result<ImageSet, DataError> {
        let byte = |v: f64| (v * 256.0).floor().clamp(0.0, 255.0) as u8;
        let ImageSize { height, width, channels } = self.size;
        ImageSet::new(height, width, channels, self.pixels(byte), None)
    }

    /// Adapts the images to another height and width: cut off or padded with zeros about the centre, as
    /// [`ImageSet::adapted`] does.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Image`] with [`ImageError::Zero`] for a size of zero, [`ImageError::TooLarge`] for one too
    /// large for the memory.
    pub fn adapted(&self, height: usize, width: usize) -> Result<Self, DataError> {
        let size = ImageSize { height, width, ..self.size };
        let total = size.values()?.checked_mul(self.len()).ok_or(ImageError::TooLarge { size })?;
        let mut values = Vec::new();
        values.try_reserve_exact(total).map_err(|_| ImageError::TooLarge { size })?;
        for plane in self.values.chunks_exact(self.size.height * self.size.width) {
            for y in 0..height {
                let row = centred(self.size.height, height, y).map(|y| &plane[y * self.size.width..]);
                values.extend((0..width).map(|x| {
                    let at = row.zip(centred(self.size.width, width, x));
                    at.map_or(0.0, |(row, x)| row[x])
                }));
            }
        }
        Self::new(height, width, self.size.channels, values)
    }

    /// Every value as a byte, `[n, h, w, c]`.
    pub(super) fn pixels(&self, byte: impl Fn(f64) -> u8) -> Vec<u8> {
        let (plane, channels) = (self.size.height * self.size.width, self.size.channels);
        let mut bytes = Vec::with_capacity(self.values.len());
        for image in self.values.chunks_exact(plane * channels) {
            bytes.extend((0..plane).flat_map(|at| (0..channels).map(move |c| image[c * plane + at])).map(&byte));
        }
        bytes
    }

    /// Image `i`, `[c, h, w]`, if there is one.
    pub fn row(&self, i: usize) -> Option<&[f64]> {
        self.values.chunks_exact(self.dimension()).nth(i)
    }
}

/// Mirrors an image `[h, w, c]` from left to right. What is beyond its last whole row stays.
///
/// ```
/// let mut image = [1, 2, 3, 4, 5, 6];
/// resflow::data::image::flip(&mut image, 3, 1);
/// assert_eq!(image, [3, 2, 1, 6, 5, 4]);
/// ```
pub fn flip(image: &mut [u8], width: usize, channels: usize) {
    let Some(row) = width.checked_mul(channels).filter(|&row| row > 0) else { return };
    for row in image.chunks_exact_mut(row) {
        for x in 0..width / 2 {
            for c in 0..channels {
                row.swap(x * channels + c, (width - 1 - x) * channels + c);
            }
        }
    }
}
