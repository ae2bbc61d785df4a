//! Where a run has the maps of its columns from.

use super::Source;
use crate::data::{ColumnFit, ColumnMaps, ColumnSettings, ColumnSummary, Dataset};
use crate::error::DataError;

/// The maps of the columns: to be fitted, or those of a run that goes on.
#[derive(Debug)]
pub(crate) enum Columns<'a> {
    Fit(&'a ColumnSettings),
    /// Fitted elsewhere, for a run that begins.
    Fitted(ColumnMaps),
    Given(ColumnMaps),
}

impl Columns<'_> {
    /// The settings with the grids that columns are on declared: they are those of all the data, since a column may be on
    /// a finer one in the part that is set aside, or have one value only in the other.
    pub(super) fn grids_of(&self, source: &Source) -> Result<Option<ColumnSettings>, DataError> {
        let (Self::Fit(settings), Source::Data(data)) = (self, source) else { return Ok(None) };
        let Some(table) = data.table().filter(|_| settings.fit == ColumnFit::Auto) else { return Ok(None) };
        let mut declared = (*settings).clone();
        for j in 0..table.width() {
            let name = table.columns().map_or_else(|| (j + 1).to_string(), |names| names[j].clone());
            if !declared.grids.contains_key(&name) {
                let step = ColumnSummary::of(&table.column(j), data.weights())?.kind.grid().map(|grid| grid.step());
                declared.grids.extend(step.map(|step| (name, step)));
            }
        }
        Ok(Some(declared))
    }

    /// The maps for training samples.
    pub(super) fn maps(self, training: &Dataset) -> Result<ColumnMaps, DataError> {
        match (self, training.table()) {
            (Columns::Given(maps) | Columns::Fitted(maps), _) => Ok(maps),
            (Columns::Fit(settings), Some(table)) => ColumnMaps::fit(table, training.weights(), settings),
            (Columns::Fit(_), None) => Ok(ColumnMaps::identity(training.sample_shape().iter().product())),
        }
    }
}
