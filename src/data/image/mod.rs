//! Images: sets of them in memory, and the formats they come in.
//!
//! [`open()`] reads a folder or a file: [`idx`] (MNIST and its kin, plain or compressed by gzip), [`cifar`] (the binary
//! form), PNG files ([`png`]) and NPY arrays ([`npy`]). What it returns keeps training and test images apart: the test
//! images of a data set never become training or validation images.
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
pub mod cifar;
#[cfg(feature = "images")]
mod folder;
#[cfg(feature = "images")]
pub mod idx;
#[cfg(feature = "images")]
pub mod npy;
#[cfg(feature = "images")]
mod open;
#[cfg(feature = "images")]
pub mod png;
mod set;

pub use crate::error::ImageError;
#[cfg(feature = "images")]
pub use folder::ImageData;
#[cfg(feature = "images")]
pub use open::{looks_like_images, open};
pub(crate) use set::{FNV_OFFSET, fnv};
pub use set::{ImageSet, ImageSize, ImageStack, flip};
