//! Data: tables from CSV and NPY files, built-in densities, standardisation and the validation split.
//!
//! The readers ([`csv::read`], [`npy::read`]) are functions of a byte slice. They never panic, they hold at most a
//! small multiple of the slice in memory whatever it says about itself, and they return only tables of finite
//! numbers. A problem with a file comes back as a [`DataError`] that names the place. [`read`] and [`write()`]
//! choose the format by the file's name.
//!
//! A [`Standardiser`] holds the affine transform that gives every column mean zero and standard deviation one.
//! A [`ToyDensity`] draws points from a two-dimensional density. [`image`] has sets of images and their files.
//!
//! ```
//! use resflow::data::{Standardiser, csv};
//! let table = csv::read(b"height,weight\n1.81,77\n1.62,58\n1.75,81\n")?;
//! let standardiser = Standardiser::fit(&table)?;
//! let standard = standardiser.apply(&table)?;
//! assert!((0..3).map(|i| standard.row(i)[0]).sum::<f64>().abs() < 1e-12);
//! # Ok::<(), resflow::data::DataError>(())
//! ```

#[cfg(feature = "formats")]
pub mod csv;
mod dataset;
#[cfg(feature = "formats")]
mod file;
pub mod image;
pub(crate) mod looks_like;
#[cfg(feature = "formats")]
pub mod npy;
#[cfg(feature = "images")]
mod open;
mod permutation;
mod standardise;
mod table;
mod toy;

pub use crate::error::{DataError, Place};
pub use dataset::{Dataset, Samples, Values, number_of};
#[cfg(feature = "formats")]
pub use file::{read, write};
#[cfg(feature = "images")]
pub use open::{Opened, open, open_sized};
pub use permutation::permutation;
pub use standardise::Standardiser;
pub use table::Table;
pub use toy::ToyDensity;
