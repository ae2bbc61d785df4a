//! Data: tables from files, built-in densities, standardisation and the validation split.
//!
//! The readers ([`csv::read`], [`npy::read`]) are functions of a byte slice. They never panic, they hold at most a
//! small multiple of the slice in memory whatever it says about itself, and they return only tables of finite
//! numbers. A problem with a file comes back as a [`DataError`] that names the place. [`read`], [`read_with`] and
//! [`read_from`] find the format in the content and say what they decided, which [`ReadOptions`] can overrule; [`write()`]
//! chooses it by the file's name. [`open()`], [`open_with`] and [`open_from`] take images as well.
//!
//! [`mod@column`] brings the columns of a table to a common shape, as a part of a model; its simplest case is
//! standardisation. A [`Standardiser`] holds the affine transform that gives every column mean zero and standard deviation one.
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

pub mod column;

mod category;
mod copies;
#[cfg(feature = "formats")]
pub mod csv;
mod dataset;
mod excerpt;
#[cfg(feature = "formats")]
mod file;
pub mod image;
mod incomplete;
mod large;
mod look;
pub(crate) mod looks_like;
#[cfg(feature = "formats")]
pub mod npy;
#[cfg(feature = "images")]
mod open;
mod permutation;
#[cfg(feature = "formats")]
mod reading;
mod standardise;
#[cfg(feature = "formats")]
mod structured;
mod table;
mod toy;

pub use crate::error::{CellFaults, ColumnFault, DataError, Fault, OutsideSupport, Place, UnseenLevel};

pub use category::{Categories, Category, MOST_LEVELS};
pub use column::{ColumnFit, ColumnMap, ColumnMaps, ColumnSettings, ColumnSummary, Support};
pub use dataset::{Dataset, Samples, Values, number_of};
pub use excerpt::{excerpt, excerpt_rows};
#[cfg(feature = "formats")]
pub use file::{read, read_with, write};
pub use incomplete::Incomplete;
#[cfg(feature = "formats")]
pub use large::NpyRows;
pub use large::{ImageRows, LargeTable, StoredRows};
pub(crate) use large::{Remaining, Shuffle, was_large};
pub use look::{CategorySummary, Concern, Finding, Look, Severity, look, look_at, look_incomplete};
#[cfg(feature = "images")]
pub use open::{Opened, open, open_from, open_with};
pub use permutation::permutation;
#[cfg(feature = "formats")]
pub use reading::{Decimal, Missing, ModelColumns, Note, ReadOptions, Reading, Separator, TextColumns, read_from};
pub use standardise::Standardiser;
#[cfg(feature = "formats")]
pub use structured::{ColumnValues, NamedColumn, chosen_columns, read_columns};
pub use table::Table;
pub use toy::ToyDensity;
