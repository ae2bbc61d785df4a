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

use resflow_backend::Key;

#[cfg(feature = "formats")]
pub mod csv;
mod dataset;
#[cfg(feature = "formats")]
mod file;
pub mod image;
#[cfg(feature = "formats")]
pub mod npy;
#[cfg(feature = "images")]
mod open;
mod standardise;
mod table;
mod toy;

pub use crate::error::{DataError, Place};
pub use dataset::{Dataset, Samples, Values, number_of};
#[cfg(feature = "formats")]
pub use file::{read, write};
#[cfg(feature = "images")]
pub use open::{Opened, open};
pub use standardise::Standardiser;
pub use table::Table;
pub use toy::ToyDensity;

/// Draws a permutation of 0, …, n − 1 that is a function of the key (Fisher and Yates), every one with the same
/// probability but for at most n / 2⁶⁴ a draw.
///
/// ```
/// use resflow::{backend::Key, data::permutation};
/// let mut order = permutation(5, Key::new(1));
/// assert_eq!(order, permutation(5, Key::new(1)));
/// order.sort_unstable();
/// assert_eq!(order, [0, 1, 2, 3, 4]);
/// ```
pub fn permutation(n: usize, key: Key) -> Vec<usize> {
    use rand::Rng as _;
    let mut generator = key.generator();
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = (u128::from(generator.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}
