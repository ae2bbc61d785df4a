//! Images: sets of them in memory or in their files, and the formats they come in.
//!
//! [`open()`] reads a folder or a file: [`idx`] (MNIST and its kin, plain or compressed by gzip), [`cifar`] (the binary
//! form), [`png`] and [`jpeg`] files and NPY arrays ([`npy`]). What it returns keeps training and test images apart: the
//! test images of a data set never become training or validation images. Whatever it decides or converts is said in a
//! note.
//!
//! Images that are larger than memory stay in their files ([`ImageFiles`]) and are read by their numbers.
//!
//! The readers are functions of a byte slice. They never panic; what they hold in memory is bounded by the slice and
//! what its compressed data really hold, whatever its headers say; a problem comes back as a
//! [`DataError::Image`](crate::error::DataError::Image).
//!
//! ```
//! use resflow::data::image::{ImageSet, idx};
//! let set = ImageSet::new(2, 2, 1, vec![0, 1, 2, 3, 4, 5, 6, 7], None)?;
//! let mut file = Vec::new();
//! idx::write_images(&set, &mut file)?;
//! assert_eq!(idx::read_images(&file)?, set);
//! # Ok::<(), resflow::data::DataError>(())
//! ```

#[cfg(feature = "images")]
mod array;
#[cfg(feature = "images")]
pub mod cifar;
#[cfg(feature = "images")]
mod files;
#[cfg(feature = "images")]
mod folder;
#[cfg(feature = "images")]
pub mod idx;
#[cfg(feature = "images")]
pub mod jpeg;
#[cfg(feature = "images")]
mod listing;
#[cfg(feature = "images")]
mod mnist;
#[cfg(feature = "images")]
pub mod npy;
#[cfg(feature = "images")]
mod open;
#[cfg(feature = "images")]
mod picture;
#[cfg(feature = "images")]
mod pictures;
#[cfg(feature = "images")]
pub mod png;
#[cfg(feature = "images")]
mod records;
mod set;
#[cfg(feature = "images")]
mod survey;

pub use crate::error::ImageError;
#[cfg(feature = "images")]
pub use files::{FoundImages, ImageFiles, OpenedImages};
#[cfg(feature = "images")]
pub use folder::ImageData;
#[cfg(feature = "images")]
pub(crate) use open::{Contents, begins, open_contents, read_contents};
#[cfg(feature = "images")]
pub use open::{looks_like_images, open, open_sized};
pub(crate) use set::{FNV_OFFSET, fnv};
pub use set::{ImageSet, ImageSize, ImageStack, flip};
