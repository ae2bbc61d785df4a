//! The contents of a path, told by its first bytes or its name.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use super::folder::{ImageData, within};
use super::{ImageSet, cifar, folder, idx, npy, png};
use crate::error::{DataError, ImageError};

/// Reads images from a folder or a file.
///
/// A folder holds one of these:
///
/// * MNIST's files, whose names end in `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte` and, if there are labels,
///   `train-labels-idx1-ubyte` and `t10k-labels-idx1-ubyte`, each with or without `.gz`, all after the same prefix;
/// * CIFAR-10's `data_batch_1.bin` to `data_batch_5.bin` (all five) and `test_batch.bin`, or CIFAR-100's `train.bin`
///   and `test.bin`, in the folder or below it in `cifar-10-batches-bin` or `cifar-100-binary`;
/// * PNG files of one size: those in the folders `train` and `test`, where these exist, or else those in the folder
///   itself, in the order of their names. They count only where there are none of the files above.
///
/// Other files are ignored. The test images may be missing. A single file, of any of the formats or an NPY array of
/// bytes, is read as training images without labels but CIFAR's own, whatever its name.
///
/// # Errors
///
/// Returns [`DataError::File`] with the path and the cause: files that cannot be read or that their reader refuses, no
/// images, two files for one purpose, files of several data sets, images of several sizes, labels that do not fit the
/// images.
pub fn open(path: impl AsRef<Path>) -> Result<ImageData, DataError> {
    let path = path.as_ref();
    let data = if path.is_dir() {
        folder::open(path)
    } else {
        open_file(path).map(|training| ImageData { training, test: None })
    };
    data.map_err(|error| within(path, error))
}

/// Returns `true` if a path is one for [`open`] rather than for [`data::read`](crate::data::read): a folder, a file
/// with the name or the first bytes of an image format, or an NPY array of three or more dimensions. The file itself
/// may still be damaged.
pub fn looks_like_images(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    if path.is_dir() {
        return true;
    }
    let beginning = beginning(path).unwrap_or_default();
    match Format::of(path, &beginning) {
        Some(Format::Npy) => npy::rank(&beginning).is_some_and(|dimensions| dimensions > 2),
        format => format.is_some(),
    }
}

fn open_file(path: &Path) -> Result<ImageSet, DataError> {
    let bytes = fs::read(path)?;
    match Format::of(path, &bytes).ok_or(ImageError::NotImages)? {
        Format::Idx => idx::read_images(&bytes),
        Format::Cifar10 => cifar::read10(&bytes),
        Format::Cifar100 => cifar::read100(&bytes),
        Format::Png => png::read(&bytes),
        Format::Npy => npy::read(&bytes),
    }
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Idx,
    Cifar10,
    Cifar100,
    Png,
    Npy,
}

impl Format {
    /// The format that the first bytes show, or else the name.
    fn of(path: &Path, beginning: &[u8]) -> Option<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        if beginning.starts_with(npy::MAGIC) {
            Some(Self::Npy)
        } else if beginning.starts_with(png::SIGNATURE) {
            Some(Self::Png)
        } else if idx::begins(beginning) || name.strip_suffix(".gz").unwrap_or(&name).ends_with("-ubyte") {
            Some(Self::Idx)
        } else {
            match (&*name, extension) {
                ("train.bin" | "test.bin", _) => Some(Self::Cifar100),
                (_, "bin") => Some(Self::Cifar10),
                (_, "png") => Some(Self::Png),
                (_, "npy") => Some(Self::Npy),
                _ => None,
            }
        }
    }
}

/// Reads as much of a file as an NPY header takes at most.
fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(16 << 10).read_to_end(&mut bytes)?;
    Ok(bytes)
}
