//! Fitting the maps of a table's columns.

use std::collections::BTreeMap;

use resflow_backend::{Key, Noise};
use serde::{Deserialize, Serialize};

use super::choice::{Shape, choose};
use super::grid::Grid;
use super::map::ColumnMap;
use super::maps::{ALLOWED_DRAWS, ColumnMaps, check_supports};
use super::sorted::Sorted;
use super::summary::ColumnSummary;
use super::support::Support;
use crate::data::standardise::moments;
use crate::data::{Standardiser, Table, number_of};
use crate::error::{ConfigError, DataError};

/// The maps that are fitted to columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColumnFit {
    /// Mean 0 and standard deviation 1, and no more but what is declared of a column.
    #[default]
    Standardise,
    /// What the values ask for: grids are found; centre and scale are robust where a few rows rule the standard
    /// deviation; a monotone map is fitted where it makes held-out rows likelier than the affine one.
    Auto,
}

/// How the maps of columns are fitted, and what is declared of columns by name. A table without names has the numbers of
/// its columns as names, `"1"` the first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ColumnSettings {
    /// The maps that are fitted.
    pub fit: ColumnFit,
    /// Where the values of a column can lie: a value outside has log p = −∞.
    pub supports: BTreeMap<String, Support>,
    /// The step of the grid that a column's values are on; 0 for a column without one, whatever it looks like.
    pub grids: BTreeMap<String, f64>,
    /// The draws of noise that the score of a row with values on grids averages over; 0 for 8 where a cell is a
    /// noticeable part of a column's spread, else 2.
    pub draws: usize,
}

/// A cell of more than this part of the scale is noticeable.
const COARSE: f64 = 0.1;
const COARSE_DRAWS: usize = 8;
const FINE_DRAWS: usize = 2;

impl ColumnSettings {
    /// Checks the declarations.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] or [`ConfigError::Inconsistent`] for a support that has no inside, a step that
    /// is negative or not finite, or draws that are 1 or more than 1000.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.supports.values().try_for_each(Support::check)?;
        for &step in self.grids.values() {
            if step != 0.0 {
                Grid::new(step, 0.0).map_err(|_| ConfigError::OutOfRange {
                    name: "grids",
                    value: step,
                    expected: "the step of a grid, above 0, or 0 for none",
                })?;
            }
        }
        if self.draws > 0 && !ALLOWED_DRAWS.contains(&self.draws) {
            let (value, expected) = (self.draws as f64, "2 to 1000, or 0 for as many as the grids want");
            return Err(ConfigError::OutOfRange { name: "grid_draws", value, expected });
        }
        Ok(())
    }

    /// Returns `true` if nothing is asked for but means and standard deviations.
    pub(crate) fn is_standardisation(&self) -> bool {
        self.fit == ColumnFit::Standardise && self.supports.is_empty() && self.grids.is_empty()
    }

    /// What is declared of each column: its support, and the step of its grid.
    fn declared(&self, table: &Table) -> Result<Vec<(Support, Option<f64>)>, DataError> {
        let mut declared = vec![(Support::Real, None); table.width()];
        let names: Vec<String> =
            table.columns().map_or_else(|| (1..=table.width()).map(|j| j.to_string()).collect(), <[String]>::to_vec);
        let find = |name: &String| {
            names
                .iter()
                .position(|own| own == name)
                .ok_or_else(|| DataError::NoColumn { name: name.clone(), known: names.clone() })
        };
        for (name, &support) in &self.supports {
            declared[find(name)?].0 = support;
        }
        for (name, &step) in &self.grids {
            declared[find(name)?].1 = Some(step);
        }
        Ok(declared)
    }

    /// Checks that no row is outside of what is declared of its columns, as far as that is known before grids are found.
    pub(crate) fn check_rows(&self, table: &Table) -> Result<(), DataError> {
        let may_be_on_grid = |step: Option<f64>| step.map_or(self.fit == ColumnFit::Auto, |step| step > 0.0);
        let declared = self.declared(table)?;
        let supports = declared.into_iter().map(|(support, step)| (support, may_be_on_grid(step)));
        check_supports(table, &supports.collect::<Vec<_>>())
    }
}

impl ColumnMaps {
    /// Fits the maps to a table, whose rows may have weights: weight 2 is the row twice, and a row of weight 0 is not
    /// there. The result is a function of the rows, in whatever order.
    ///
    /// # Errors
    /// Returns [`DataError::TooFewRows`] if there are fewer than two rows, [`DataError::Constant`] and
    /// [`DataError::Spread`] for a column that cannot be standardised, [`DataError::NoColumn`] for a declaration of a
    /// column that there is not, [`DataError::Outside`] for values outside of their declared supports (all columns at
    /// once), [`DataError::Column`] for a declaration that does not fit the values.
    pub fn fit(table: &Table, weights: Option<&[f64]>, settings: &ColumnSettings) -> Result<Self, DataError> {
        if settings.is_standardisation() {
            return Ok(Standardiser::fit_weighted(table, weights)?.into());
        }
        if let Some(all) = weights.filter(|weights| weights.iter().any(|w| *w <= 0.0)) {
            let there: Vec<usize> = (0..table.rows()).filter(|&i| all[i] > 0.0).collect();
            let weights: Vec<f64> = there.iter().map(|&i| all[i]).collect();
            return Self::fit(&table.select(&there), Some(&weights), settings);
        }
        let rows = table.rows();
        if rows < 2 {
            return Err(DataError::TooFewRows { rows, needed: 2, purpose: "for a standard deviation" });
        }
        let declared = settings.declared(table)?;
        let mut columns = Vec::with_capacity(table.width());
        for (j, &(support, step)) in declared.iter().enumerate() {
            let values = table.column(j);
            let column = |problem| DataError::Column { label: table.label(j), problem };
            let grid = match step {
                Some(0.0) => None,
                Some(step) => Some(declared_grid(&values, step).map_err(column)?),
                None if settings.fit == ColumnFit::Auto => ColumnSummary::of(&values, weights)?.kind.grid(),
                None => None,
            };
            columns.push((values, support, grid));
        }
        let supports: Vec<_> = columns.iter().map(|(_, support, grid)| (*support, grid.is_some())).collect();
        check_supports(table, &supports)?;
        // what is drawn for a row is a function of its numbers, so that equal rows stay together
        let numbers: Vec<u64> = (0..rows).map(|i| number_of(table.row(i))).collect();
        let mut maps = Vec::with_capacity(table.width());
        for (j, (values, support, grid)) in columns.into_iter().enumerate() {
            let label = || table.label(j);
            let column = |problem| DataError::Column { label: label(), problem };
            let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
            // one cell of a grid has a spread of its own
            let single = low == high;
            if single && (grid.is_none() || support != Support::Real) {
                return Err(DataError::Constant { label: label(), value: low });
            }
            let map = ColumnMap::affine(0.0, 1.0).and_then(|map| map.with_values(support, grid)).map_err(column)?;
            let linked: Vec<f64> = values.iter().map(|&x| map.link(x)).collect();
            let (mean, deviation) = if single { (low, 0.0) } else { moments(&linked, weights, &label)? };
            // the noise has a variance of its own
            let uniform = grid.filter(|_| support == Support::Real).map_or(0.0, |grid| grid.step() / 12_f64.sqrt());
            let deviation = if uniform > 0.0 { deviation.hypot(uniform) } else { deviation };
            let shape = match (settings.fit, grid) {
                (ColumnFit::Standardise, _) => Shape::affine(mean, deviation),
                (ColumnFit::Auto, None) => choose(&linked, weights, &numbers, mean, deviation),
                (ColumnFit::Auto, Some(grid)) => {
                    choose(&spread(&map, grid, &values, &numbers, j), weights, &numbers, mean, deviation)
                }
            };
            let map = ColumnMap::affine(shape.centre, shape.scale).and_then(|map| map.with_values(support, grid));
            maps.push(map.map_err(column)?.with_marginal(shape.asinh, shape.spline));
        }
        let coarse = |map: &ColumnMap| {
            map.grid().is_some_and(|grid| map.support() != Support::Real || grid.step() > COARSE * map.scale())
        };
        let draws = match settings.draws {
            0 if maps.iter().any(coarse) => COARSE_DRAWS,
            0 => FINE_DRAWS,
            draws => draws,
        };
        Self::new(maps)?.with_draws(draws).map_err(|problem| DataError::Column { label: "the table".into(), problem })
    }
}

/// The grid of a declared step that the values are on.
fn declared_grid(values: &[f64], step: f64) -> Result<Grid, ConfigError> {
    let low = Sorted::of(values, None).low();
    let offset = low - step * (low / step).round();
    let grid = Grid::new(step, if offset.abs() <= 1e-6 * step { 0.0 } else { offset })?;
    let off = |x: &&f64| (*x - grid.round(**x)).abs() > 1e-6 * step + 4.0 * f64::EPSILON * x.abs();
    match values.iter().find(off) {
        None => Ok(grid),
        Some(x) => Err(ConfigError::Inconsistent(format!("the value {x} is not on its grid of step {step}"))),
    }
}

/// ℓ of each value on a grid, spread over its cell by noise that is a function of its row.
fn spread(map: &ColumnMap, grid: Grid, values: &[f64], numbers: &[u64], column: usize) -> Vec<f64> {
    let key = Key::new(0).named("columns").split(column as u64);
    let mut noise = [0.5];
    let linked = values.iter().zip(numbers).map(|(&x, &number)| {
        Noise::Uniform.fill(key.split(number), 0, &mut noise);
        map.link(grid.spread(x, noise[0] + 0.5 / 16_777_216.0))
    });
    linked.collect()
}
