//! The maps of columns in a model file: numbers of the document, knots as tensors, centres and scales with the model's
//! standardisation.

use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::map::ColumnMap;
use super::maps::ColumnMaps;
use super::marginal::Asinh;
use super::spline::{MOST_KNOTS, Spline};
use super::support::Support;
use crate::data::Standardiser;
use crate::error::CheckpointError;

/// What a document says of a column besides its centre and scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredColumn {
    support: Support,
    grid: Option<StoredGrid>,
    asinh: Option<StoredAsinh>,
    /// The knots of the spline, 0 for none.
    knots: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredGrid {
    step: f64,
    offset: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredAsinh {
    width: f64,
    centre: f64,
    scale: f64,
}

/// What a document says of the columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredColumns {
    /// The draws of noise that a score averages over.
    draws: usize,
    maps: Vec<StoredColumn>,
}

/// The name of the tensor of a column's knots, `[3, knots]`: x, y and slopes.
fn knots_name(column: usize) -> String {
    format!("columns.{column}.knots")
}

impl StoredColumns {
    /// Describes maps, unless they are a standardisation.
    pub(crate) fn of(columns: &ColumnMaps) -> Option<Self> {
        let stored = |map: &ColumnMap| StoredColumn {
            support: map.support(),
            grid: map.grid().map(|grid| StoredGrid { step: grid.step(), offset: grid.offset() }),
            asinh: map.asinh().map(|asinh| {
                let [width, centre, scale] = asinh.parts();
                StoredAsinh { width, centre, scale }
            }),
            knots: map.spline().map_or(0, Spline::knots),
        };
        let described = || Self { draws: columns.set_draws(), maps: columns.maps().iter().map(stored).collect() };
        (!columns.is_standardisation()).then(described)
    }

    /// The names, shapes and numbers of the tensors of maps.
    pub(crate) fn tensors(columns: &ColumnMaps) -> impl Iterator<Item = (String, Vec<usize>, Vec<f64>)> {
        let splines = columns.maps().iter().enumerate().filter_map(|(j, map)| Some((j, map.spline()?)));
        splines.map(|(j, spline)| (knots_name(j), vec![3, spline.knots()], spline.parts().concat()))
    }

    /// Checks the description before anything is made by it, for so many columns: its tensors and their numbers.
    pub(crate) fn size(&self, columns: usize) -> Result<(u64, u64), CheckpointError> {
        if self.maps.len() != columns {
            let problem = format!("maps of {} columns for a model of {columns}", self.maps.len());
            return Err(CheckpointError::Format(problem));
        }
        if let Some(map) = self.maps.iter().find(|map| map.knots > MOST_KNOTS) {
            return Err(CheckpointError::Format(format!("a spline of {} knots", map.knots)));
        }
        let splines = self.maps.iter().filter(|map| map.knots > 0);
        Ok((splines.clone().count() as u64, splines.map(|map| 3 * map.knots as u64).sum()))
    }

    /// The names of the tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.maps.iter().enumerate().filter(|(_, map)| map.knots > 0).map(|(j, _)| knots_name(j))
    }

    /// Makes the maps, of which `get` returns the numbers of a tensor of a name and shape.
    pub(crate) fn restore(
        &self,
        standardiser: &Standardiser,
        mut get: impl FnMut(&str, &[usize]) -> Result<Vec<f64>, CheckpointError>,
    ) -> Result<ColumnMaps, CheckpointError> {
        let mut maps = Vec::with_capacity(self.maps.len());
        let pairs = standardiser.mean().iter().zip(standardiser.deviation());
        for ((j, stored), (&centre, &scale)) in self.maps.iter().enumerate().zip(pairs) {
            let grid = stored.grid.as_ref().map(|grid| Grid::new(grid.step, grid.offset)).transpose()?;
            let asinh = stored.asinh.as_ref().map(|a| Asinh::new(a.width, a.centre, a.scale)).transpose()?;
            let spline = match stored.knots {
                0 => None,
                n => {
                    let mut x = get(&knots_name(j), &[3, n])?;
                    let mut y = x.split_off(n);
                    let slopes = y.split_off(n);
                    Some(Spline::new(x, y, slopes)?)
                }
            };
            let map = ColumnMap::affine(centre, scale)?.with_values(stored.support, grid)?;
            maps.push(map.with_marginal(asinh, spline));
        }
        let maps = ColumnMaps::new(maps).map_err(|e| CheckpointError::Format(e.to_string()))?;
        if maps.is_standardisation() {
            return Err(CheckpointError::Format("maps of columns that are a standardisation and no more".into()));
        }
        Ok(maps.with_draws(self.draws)?)
    }
}
