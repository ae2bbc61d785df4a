//! The contents of a path, told by its first bytes or its name.

use std::fs;
use std::path::Path;

use super::array::{self, Images};
use super::folder::{self, ImageData};
use super::listing::{beginning, within};
use super::{ImageSet, ImageSize, ImageStack, cifar, idx, jpeg, npy, picture, png};
use crate::data::looks_like;
use crate::error::{Count, DataError, ImageError};

/// Reads images from a folder or a file.
///
/// A folder holds one of these:
///
/// * MNIST's files, whose names end in `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte` (or `test-images-…`, as NIST
///   has it) and, if there are labels, `train-labels-idx1-ubyte` and `t10k-labels-idx1-ubyte`, each with or without `.gz`,
///   all after the same prefix, in any case, with a dot for a hyphen, or in a folder each (Kaggle);
/// * CIFAR-10's `data_batch_1.bin` to `data_batch_5.bin` (all five) and `test_batch.bin`, or CIFAR-100's `train.bin`
///   and `test.bin`, in the folder or below it in `cifar-10-batches-bin` or `cifar-100-binary`;
/// * PNG and JPEG files of one size: those in the folders `train` and `test`, where these exist, or else those in the
///   folder itself, in the order of their names. If there are none, those in folders, of which each is a class: labels
///   are the numbers of the sorted names. They count only where there are none of the files above.
///
/// Other files are ignored, and so are hidden ones and those that systems leave. The test images may be missing. A single
/// file, of any of the formats or an NPY array of bytes (or of numbers that were bytes: multiples of 1/255 or whole ones),
/// is read as training images without labels but CIFAR's own, whatever its name.
///
/// Pictures of 16 bits a channel are rounded to 8, transparent ones put on white, and gray ones among others in colours
/// become colours; that and whatever else is decided is in the notes.
///
/// # Errors
///
/// Returns [`DataError::File`] with the path and the cause: files that cannot be read or that their reader refuses, no
/// images, two files for one purpose, files of several data sets, images of several sizes, labels that do not fit the
/// images.
pub fn open(path: impl AsRef<Path>) -> Result<ImageData, DataError> {
    open_sized(path, None)
}

/// Reads images as [`open`] does, of any size, and cuts or pads all of them about the centre to a height and width.
///
/// # Errors
///
/// Returns the errors of [`open`], and [`DataError::Image`] for a size of zero or one too large for the memory.
pub fn open_sized(path: impl AsRef<Path>, size: Option<[usize; 2]>) -> Result<ImageData, DataError> {
    let path = path.as_ref();
    match open_contents(path, size)? {
        Contents::Bytes(data) => Ok(data),
        Contents::Continuous(..) => {
            let dtype = "float, of numbers that were no bytes".to_owned();
            Err(within(path, ImageError::NpyType { dtype }.into()))
        }
    }
}

/// What a path holds.
pub(crate) enum Contents {
    Bytes(ImageData),
    /// Numbers between 0 and 1 that were no bytes, and sentences on how they were read.
    Continuous(ImageStack, Vec<String>),
}

/// Reads a folder or a file.
pub(crate) fn open_contents(path: &Path, size: Option<[usize; 2]>) -> Result<Contents, DataError> {
    let data = if path.is_dir() {
        folder::open(path, size).and_then(|data| sized(data, size)).map(Contents::Bytes)
    } else {
        open_file(path, size)
    };
    data.map_err(|error| within(path, error))
}

/// Cuts or pads what is not of the size that is asked for.
fn sized(mut data: ImageData, size: Option<[usize; 2]>) -> Result<ImageData, DataError> {
    let Some([height, width]) = size else { return Ok(data) };
    let adapt = |set: ImageSet| {
        let wanted = ImageSize { height, width, channels: set.channels() };
        if set.size() == wanted { Ok(set) } else { set.adapted(wanted) }
    };
    let found = data.training.size();
    data.training = adapt(data.training)?;
    data.test = data.test.map(adapt).transpose()?;
    if data.training.size() != found {
        data.notes.push(cut_note(data.training.len(), found));
    }
    Ok(data)
}

/// A sentence on images that were cut or padded.
pub(super) fn cut_note(images: usize, found: ImageSize) -> String {
    let (count, ImageSize { height, width, .. }) = (Count(images, "image"), found);
    format!("{count} of {height}x{width} pixels cut or padded about the centre to the size that was asked for")
}

/// Returns `true` if a path is one for [`open`] rather than for [`data::read`](crate::data::read): a folder, a file
/// with the name or the first bytes of an image format, or an NPY array of three or more dimensions. The file itself
/// may still be damaged.
pub fn looks_like_images(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    if path.is_dir() {
        return true;
    }
    shows_images(path, &beginning(path).unwrap_or_default())
}

/// Returns `true` if a stream that begins so is read as images: a picture, IDX, or an NPY array of three or more dimensions.
pub(crate) fn begins(beginning: &[u8]) -> bool {
    shows_images(Path::new(""), beginning)
}

fn shows_images(path: &Path, beginning: &[u8]) -> bool {
    match Format::of(path, beginning) {
        Some(Format::Npy) => npy::rank(beginning).is_some_and(|dimensions| dimensions > 2),
        format => format.is_some(),
    }
}

fn open_file(path: &Path, size: Option<[usize; 2]>) -> Result<Contents, DataError> {
    let bytes = fs::read(path)?;
    read_as(Format::of(path, &bytes), &bytes, size)
}

/// Reads what came through a stream, told by its contents alone.
pub(crate) fn read_contents(bytes: &[u8], size: Option<[usize; 2]>) -> Result<Contents, DataError> {
    let format = Format::of(Path::new(""), bytes);
    if matches!(format, Some(Format::Picture)) && picture::is_followed(bytes) {
        return Err(ImageError::SeveralPictures.into());
    }
    read_as(format, bytes, size)
}

fn read_as(format: Option<Format>, bytes: &[u8], size: Option<[usize; 2]>) -> Result<Contents, DataError> {
    let Some(format) = format else {
        return Err(ImageError::NotImages { looks: looks_like::describe(bytes) }.into());
    };
    let (training, notes) = match format {
        Format::Idx => (idx::read_images(bytes)?, Vec::new()),
        Format::Cifar10 => (cifar::read10(bytes)?, Vec::new()),
        Format::Cifar100 => (cifar::read100(bytes)?, Vec::new()),
        Format::Picture => {
            let picture = picture::read(bytes)?;
            let deep = picture.deep.then(|| "16 bits a channel, rounded to 8".to_owned());
            let transparent = picture.transparent.then(|| "transparent in places, put on white".to_owned());
            (picture.set, deep.into_iter().chain(transparent).collect())
        }
        Format::Npy => match array::read(bytes, size)? {
            (Images::Bytes(set), notes) => (set, notes),
            (Images::Continuous(stack), mut notes) => {
                let found = stack.size();
                return match size.filter(|&size| size != [found.height, found.width]) {
                    None => Ok(Contents::Continuous(stack, notes)),
                    Some([height, width]) => {
                        notes.push(cut_note(stack.len(), found));
                        Ok(Contents::Continuous(stack.adapted(height, width)?, notes))
                    }
                };
            }
        },
    };
    sized(ImageData { training, test: None, notes }, size).map(Contents::Bytes)
}

/// The formats of files.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    Idx,
    Cifar10,
    Cifar100,
    Picture,
    Npy,
}

impl Format {
    /// The format that the first bytes show, or else the name.
    pub(super) fn of(path: &Path, beginning: &[u8]) -> Option<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let hyphens = name.strip_suffix(".gz").unwrap_or(&name).replace(['.', '_'], "-");
        if beginning.starts_with(npy::MAGIC) {
            Some(Self::Npy)
        } else if beginning.starts_with(png::SIGNATURE) || beginning.starts_with(jpeg::SIGNATURE) {
            Some(Self::Picture)
        } else if idx::begins(beginning) || hyphens.ends_with("-ubyte") {
            Some(Self::Idx)
        } else {
            match (&*name, extension) {
                ("train.bin" | "test.bin", _) => Some(Self::Cifar100),
                (_, "bin") => Some(Self::Cifar10),
                (_, extension) if picture::READ.contains(&extension) => Some(Self::Picture),
                (_, "npy") => Some(Self::Npy),
                _ => None,
            }
        }
    }
}
