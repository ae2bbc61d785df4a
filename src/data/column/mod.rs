//! The columns of a table, brought to a common shape: what each one is, and the map that makes it fit for a flow.
//!
//! A column's map is z = m((ℓ(x̃) − c)/s): x̃ is x, or on a grid x + (u − ½)·step with u uniform in (0, 1); ℓ takes the
//! support to the real line; c and s are centre and scale; m is a monotone map that makes the column nearly normal.
//! Every part but c and s may be absent, and where all are absent the map is the standardisation. The maps belong to
//! the model: ln dz/dx is a part of log p, which is a density in the data's units.
//!
//! A [`ColumnSummary`] says what a column is like; [`ColumnMaps::fit`] chooses the maps by it and by held-out rows.

mod choice;
mod fit;
mod grid;
mod kind;
mod map;
mod maps;
mod marginal;
mod point;
mod seen;
mod sorted;
mod spline;
mod stored;
mod summary;
mod support;

pub use fit::{ColumnFit, ColumnSettings};
pub use grid::Grid;
pub use kind::ColumnKind;
pub use map::ColumnMap;
pub use maps::{ColumnMaps, StandardRows};
pub use marginal::Asinh;
pub use point::Point;
pub use spline::Spline;
pub(crate) use stored::StoredColumns;
pub use summary::{ColumnSummary, Tail};
pub use support::Support;
