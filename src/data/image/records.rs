//! Images that stay in a file of records of one length: image i has the bytes `start` + i · record to `start` + (i + 1) · record,
//! of which labels may come first.
//!
//! That are IDX, CIFAR in its binary form and NPY arrays of bytes in C order. IDX under gzip is unpacked into a temporary file.

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;

use super::listing::{Entry, beginning, within};
use super::{ImageError, ImageSize, array, cifar, idx};
use crate::data::large::Unchanged;
use crate::error::DataError;

/// Where the images of a file stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) start: u64,
    /// The bytes of a record before its image.
    pub(super) head: usize,
    /// Whether an image is a plane for each channel, `[c, h, w]`.
    pub(super) planes: bool,
    pub(super) size: ImageSize,
    pub(super) count: usize,
}

/// The kinds of files.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Plain,
    /// IDX under gzip.
    Packed,
    /// CIFAR, whose records begin with labels of so many classes each.
    Labelled(&'static [u8]),
}

/// A file of which the header was read.
#[derive(Debug)]
pub(super) struct Found {
    entry: Entry,
    kind: Kind,
    pub(super) layout: Layout,
}

impl Found {
    /// A file in IDX format.
    pub(super) fn idx(entry: &Entry) -> Result<Self, DataError> {
        let found = idx::place(&entry.path).map_err(|error| within(&entry.path, error))?;
        let kind = if found.1 { Kind::Packed } else { Kind::Plain };
        Ok(Self { entry: entry.clone(), kind, layout: found.0 })
    }

    /// A file of CIFAR's.
    pub(super) fn cifar(entry: &Entry, classes: &'static [u8]) -> Result<Self, DataError> {
        let length = entry.path.metadata().map_err(|error| within(&entry.path, error.into()))?.len();
        let layout = cifar::place(length, classes).map_err(|error| within(&entry.path, error.into()))?;
        Ok(Self { entry: entry.clone(), kind: Kind::Labelled(classes), layout })
    }

    /// An NPY array, with what was decided; nothing of one whose images are not bytes that stand together.
    pub(super) fn npy(entry: &Entry, wanted: Option<[usize; 2]>) -> Result<Option<(Self, Option<String>)>, DataError> {
        let place = || array::place(&beginning(&entry.path)?, entry.path.metadata()?.len(), wanted);
        let found = place().map_err(|error| within(&entry.path, error))?;
        Ok(found.map(|(layout, note)| (Self { entry: entry.clone(), kind: Kind::Plain, layout }, note)))
    }

    pub(super) fn name(&self) -> &str {
        &self.entry.name
    }

    /// Opens the file, and reads its labels if it has any.
    pub(super) fn open(self) -> Result<(Records, Option<Vec<u8>>), DataError> {
        let path = &self.entry.path;
        self.try_open().map_err(|error| within(path, error))
    }

    fn try_open(&self) -> Result<(Records, Option<Vec<u8>>), DataError> {
        let Self { entry, kind, .. } = self;
        let mut layout = self.layout;
        let (file, labels) = match kind {
            Kind::Plain => (Unchanged::open(&entry.path)?, None),
            Kind::Packed => {
                layout.start = 0;
                (Unchanged::of(&entry.path, idx::unpack(&entry.path, layout.length()?)?)?, None)
            }
            Kind::Labelled(classes) => {
                let file = Unchanged::open(&entry.path)?;
                let labels = cifar::read_labels(BufReader::new(File::open(&entry.path)?), classes, layout.count)?;
                (file, Some(labels))
            }
        };
        if layout.length()?.checked_add(layout.start) != Some(file.length()) {
            return Err(DataError::Changed);
        }
        Ok((Records { file, layout }, labels))
    }
}

impl Layout {
    /// The bytes of all records.
    fn length(&self) -> Result<u64, ImageError> {
        let record = self.head + self.size.values()?;
        (record as u64).checked_mul(self.count as u64).ok_or(ImageError::TooLarge { size: self.size })
    }
}

/// An open file of records.
#[derive(Debug)]
pub(super) struct Records {
    file: Unchanged,
    pub(super) layout: Layout,
}

impl Records {
    /// Adds the bytes of consecutive images, `[n, h, w, c]`.
    pub(super) fn read(&self, images: Range<usize>, out: &mut Vec<u8>) -> Result<(), DataError> {
        let Layout { start, head, planes, size, .. } = self.layout;
        let record = head + size.values()?;
        let place = start + images.start as u64 * record as u64;
        let read = || self.file.places()?.read(place, images.len() * record);
        let bytes = read().map_err(|error| self.file.at(error))?;
        for record in bytes.chunks_exact(record) {
            let image = &record[head..];
            if planes {
                let plane = size.height * size.width;
                out.extend((0..plane).flat_map(|i| (0..size.channels).map(move |c| image[c * plane + i])));
            } else {
                out.extend_from_slice(image);
            }
        }
        Ok(())
    }
}
