//! Data from a path or a stream, by what it holds.
//!
//! A stream is looked at once: images in it are told by their contents and kept in memory to the end, text goes by.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::image::{self, Contents, ImageSize, ImageStack};
use super::reading::{self, Note, ReadOptions, Reading};
use super::{Dataset, Table, Values};
use crate::error::{DataError, ImageError};

/// The first bytes of a stream that tell whether it holds images: more than an NPY header.
const HEAD: u64 = 16 << 10;
/// The most bytes of images that a stream is read for.
const MOST: u64 = 4 << 30;
/// A record of CIFAR-10 and one of CIFAR-100, with the classes of the labels that they begin with.
const CIFAR: [(usize, &[u8]); 2] = [(3073, &[10]), (3074, &[20, 100])];

/// The contents of a path.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// The samples to learn from, or all there are.
    pub data: Dataset,
    /// The data set's own test samples, where they come with it.
    pub test: Option<Dataset>,
    /// The size of the images in pixels, also where they are numbers between 0 and 1 instead of bytes (the samples are
    /// tabular then, in (C, H, W) order).
    pub image_size: Option<ImageSize>,
    /// What was decided in reading.
    pub notes: Vec<Note>,
    /// The rows of the file that the table lacks, counted from 0.
    pub dropped: Vec<usize>,
}

impl From<Reading> for Opened {
    fn from(Reading { table, categories, notes, dropped }: Reading) -> Self {
        Self { data: Dataset::of_read(table, categories), test: None, image_size: None, notes, dropped }
    }
}

impl Opened {
    /// Returns images as bytes, which is what is learned from, where they are numbers between 0 and 1 (see
    /// [`ImageStack::quantised`]); anything else as it is.
    ///
    /// # Errors
    /// Returns [`DataError::Image`] for numbers that are not between 0 and 1, or are no whole number of images.
    pub fn quantised(self) -> Result<Self, DataError> {
        let Some(ImageSize { height, width, channels }) = self.image_size else { return Ok(self) };
        if self.data.images().is_some() {
            return Ok(self);
        }
        let bytes = |data: Dataset| match data.into_values() {
            Values::Tabular(table) => {
                let stack = ImageStack::new(height, width, channels, table.into_values())?;
                Ok::<Dataset, DataError>(stack.quantised()?.into())
            }
            Values::Images(set) => Ok(set.into()),
        };
        let Self { data, test, image_size, mut notes, dropped } = self;
        let said = "numbers between 0 and 1 are learned as bytes: the largest whole number up to 256 times each";
        notes.push(Note::Images(said.into()));
        Ok(Self { data: bytes(data)?, test: test.map(bytes).transpose()?, image_size, notes, dropped })
    }
}

/// Reads data from a file or a folder: a table as [`read_from`](super::read_from) finds it, images as [`image::open`]
/// finds them, or an NPY array `[n, c, h, w]`, `[n, h, w, c]` or `[n, h, w]` of numbers between 0 and 1.
///
/// # Errors
/// Returns [`DataError::File`] with the path and the cause if it cannot be read.
pub fn open(path: impl AsRef<Path>) -> Result<Opened, DataError> {
    open_with(path, &ReadOptions::default())
}

/// Reads data from a file or a folder with what is known of them. A pipe is read as [`open_from`] does, and so are the
/// contents of gzip and NPZ files.
///
/// # Errors
/// Returns [`DataError::File`] with the path and the cause if it cannot be read.
pub fn open_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Opened, DataError> {
    let path = path.as_ref();
    // what is no file can be read but once
    let is_stream = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    if is_stream || !image::looks_like_images(path) {
        let attempt = || open_from(File::open(path)?, options);
        return attempt().map_err(|source| DataError::File { path: path.to_owned(), source: Box::new(source) });
    }
    opened(image::open_contents(path, options.image_size)?, Vec::new())
}

/// Reads data from a stream, once and to its end: one file of images, told by its contents (IDX, PNG, JPEG, or an NPY array of
/// three or more dimensions, each also under gzip, or in an NPZ file), or a table as [`read_from`](super::read_from) finds it.
/// Images are kept in memory until the stream ends. What is told by names (CIFAR's files, labels beside images, folders) a
/// stream cannot be.
///
/// # Errors
/// Returns the errors of [`read_from`](super::read_from); [`DataError::Image`] for images that their reader refuses, for more
/// than 4 GiB of them, and for several pictures one after the other.
///
/// ```
/// use resflow::data::image::{ImageSet, idx};
/// use resflow::data::{ReadOptions, open_from};
/// let set = ImageSet::new(2, 2, 1, vec![0, 1, 2, 3, 4, 5, 6, 7], None)?;
/// let mut file = Vec::new();
/// idx::write_images(&set, &mut file)?;
/// assert_eq!(open_from(&file[..], &ReadOptions::default())?.data.images(), Some(&set));
/// # Ok::<(), resflow::data::DataError>(())
/// ```
pub fn open_from(mut stream: impl Read, options: &ReadOptions) -> Result<Opened, DataError> {
    options.check()?;
    let mut head = Vec::new();
    stream.by_ref().take(HEAD).read_to_end(&mut head)?;
    let images = |bytes: &[u8], notes: Vec<Note>| opened(image::read_contents(bytes, options.image_size)?, notes);
    if image::begins(&head) {
        return images(&whole(Cursor::new(head).chain(stream))?, Vec::new());
    }
    if reading::is_gzip(&head) && image::begins(&under_gzip(&head)) {
        let inflated = whole(reading::inflate(Box::new(Cursor::new(head).chain(stream))));
        let bytes = inflated.map_err(|error| match error {
            DataError::Io(error) => reading::gzip_error(&error),
            error => error,
        })?;
        return images(&bytes, vec![Note::Gzip]);
    }
    if reading::is_zip(&head) {
        stream.read_to_end(&mut head)?;
        let (contents, name) = reading::member(&head, options)?;
        let member = name.map(Note::Member);
        if image::begins(&contents) {
            return images(&contents, member.into_iter().collect());
        }
        let mut reading = reading::read_member(&contents, options)?;
        reading.notes.splice(0..0, member);
        return Ok(reading.into());
    }
    let may_be_cifar = may_be_cifar(&head);
    let reading = reading::read_from(Cursor::new(head).chain(stream), options).map_err(|error| {
        let what = "no table, but perhaps CIFAR in binary form, which nothing but its name tells";
        let help = "give the file itself, whose name ends in .bin, or the folder that it is in";
        if may_be_cifar { DataError::Foreign { what, help } } else { error }
    })?;
    Ok(reading.into())
}

/// All of a stream of images.
fn whole(stream: impl Read) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    // a byte more tells that there are more
    stream.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST { Err(ImageError::Stream { most: MOST }.into()) } else { Ok(bytes) }
}

/// What a stream under gzip begins with, as far as its own beginning says it.
fn under_gzip(head: &[u8]) -> Vec<u8> {
    let mut inner = Vec::new();
    // the beginning ends somewhere: what comes before is kept
    let _ = MultiGzDecoder::new(head).take(HEAD).read_to_end(&mut inner);
    inner
}

/// Whether what is no text has a label wherever a record of CIFAR would begin with one.
fn may_be_cifar(head: &[u8]) -> bool {
    let labelled = |record: &[u8], classes: &[u8]| record.iter().zip(classes).all(|(label, classes)| label < classes);
    head.iter().any(|&byte| byte < b'\t')
        && CIFAR.iter().any(|&(length, classes)| {
            head.len() >= length && head.chunks(length).all(|record| labelled(record, classes))
        })
}

/// The samples that were found, with what was said before.
fn opened(contents: Contents, mut notes: Vec<Note>) -> Result<Opened, DataError> {
    Ok(match contents {
        Contents::Bytes(images) => {
            notes.extend(images.notes.into_iter().map(Note::Images));
            Opened {
                test: images.test.map(Dataset::from),
                notes,
                image_size: Some(images.training.size()),
                data: images.training.into(),
                dropped: Vec::new(),
            }
        }
        Contents::Continuous(stack, said) => {
            notes.extend(said.into_iter().map(Note::Images));
            let (image_size, width) = (Some(stack.size()), stack.dimension());
            let data = Table::new(None, width, stack.into_values())?.into();
            Opened { data, test: None, image_size, notes, dropped: Vec::new() }
        }
    })
}
