//! Fitting the maps of columns of which cells are missing: each to the cells that were seen.

use super::fit::{ColumnFit, ColumnSettings};
use super::maps::ColumnMaps;
use super::summary::ColumnSummary;
use crate::data::{Incomplete, Table};
use crate::error::DataError;

impl ColumnMaps {
    /// Fits the map of each column to those of its cells that were seen, as [`fit`](Self::fit) does; the grids that columns are
    /// on are those of all rows, of which the ones to fit to may be a part.
    ///
    /// # Errors
    /// Returns the errors of [`fit`](Self::fit), of one column after the other, and [`DataError::NothingSeen`] with the columns
    /// of which no cell was seen.
    pub(crate) fn fit_seen(rows: &Incomplete, all: &Incomplete, settings: &ColumnSettings) -> Result<Self, DataError> {
        let width = rows.width();
        let hollow: Vec<String> = (0..width).filter(|&j| rows.seen_of(j).0.is_empty()).map(|j| rows.label(j)).collect();
        if !hollow.is_empty() {
            return Err(DataError::NothingSeen { columns: hollow, rows: Vec::new() });
        }
        let names: Vec<String> =
            rows.columns().map_or_else(|| (1..=width).map(|j| j.to_string()).collect(), <[String]>::to_vec);
        for name in settings.supports.keys().chain(settings.grids.keys()) {
            if !names.contains(name) {
                return Err(DataError::NoColumn { name: name.clone(), known: names });
            }
        }
        let (mut maps, mut draws) = (Vec::with_capacity(width), 2);
        for (j, name) in names.iter().enumerate() {
            // a table of one column without a name calls it 1
            let own = || "1".to_owned();
            let mut declared = ColumnSettings { fit: settings.fit, draws: settings.draws, ..ColumnSettings::default() };
            declared.supports.extend(settings.supports.get(name).map(|&support| (own(), support)));
            declared.grids.extend(settings.grids.get(name).map(|&step| (own(), step)));
            if settings.fit == ColumnFit::Auto && declared.grids.is_empty() {
                let (values, weights) = all.seen_of(j);
                let grid = ColumnSummary::of(&values, weights.as_deref())?.kind.grid();
                declared.grids.extend(grid.map(|grid| (own(), grid.step())));
            }
            let (values, weights) = rows.seen_of(j);
            let table = Table::new(None, 1, values)?;
            let fitted = Self::fit(&table, weights.as_deref(), &declared).map_err(|e| named(e, &rows.label(j)))?;
            draws = draws.max(fitted.draws());
            maps.extend(fitted.maps().iter().cloned());
        }
        if maps.iter().all(super::ColumnMap::is_affine) {
            // as a table without missing cells has it
            return Self::new(maps).map(|maps| maps.standardiser().clone().into());
        }
        Self::new(maps)?.with_draws(draws).map_err(|problem| DataError::Column { label: "the table".into(), problem })
    }
}

/// An error of a column that was looked at alone, with its own label.
fn named(error: DataError, own: &str) -> DataError {
    let label = own.to_owned();
    match error {
        DataError::Constant { value, .. } => DataError::Constant { label, value },
        DataError::Spread { deviation, .. } => DataError::Spread { label, deviation },
        DataError::Column { problem, .. } => DataError::Column { label, problem },
        DataError::Outside(findings) => DataError::Outside(
            findings.into_iter().map(|own| crate::error::OutsideSupport { label: label.clone(), ..own }).collect(),
        ),
        other => other,
    }
}
