//! The maps of all columns of a table, with their log det: ln |det ∂z/∂x| = Σ ln dz/dx over columns.
//!
//! The noise of a row on a grid is a function of the key and the row's numbers, so that a row has the same score alone,
//! among other rows, and in any order.

use std::ops::{Range, RangeInclusive};

use resflow_backend::{Key, Noise};

use super::map::ColumnMap;
use super::support::Support;
use crate::data::{Standardiser, Table, number_of};
use crate::error::{ConfigError, DataError, OutsideSupport};
use crate::invert::Status;

/// The draws of noise that a score may average over: a standard error needs two.
pub(super) const ALLOWED_DRAWS: RangeInclusive<usize> = 2..=1000;
/// Draws where nothing else is said.
const DRAWS: usize = 8;

/// The map of each column of a table, elementwise, on the host and in double precision.
///
/// ```
/// use resflow::backend::Key;
/// use resflow::data::{ColumnFit, ColumnMaps, ColumnSettings, Table};
/// let skewed = Table::new(None, 1, (1..2000).map(|i| f64::from(i * i) * 1e-3).collect())?;
/// let maps = ColumnMaps::fit(&skewed, None, &ColumnSettings { fit: ColumnFit::Auto, ..ColumnSettings::default() })?;
/// let standard = maps.forward(&skewed, Key::new(0))?;
/// let back = maps.inverse(&standard.table)?;
/// assert!(back.values().iter().zip(skewed.values()).all(|(a, b)| (a - b).abs() < 1e-9 * b));
/// # Ok::<(), resflow::data::DataError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnMaps {
    maps: Vec<ColumnMap>,
    /// The centres and scales: the whole map, if all columns are affine.
    standardiser: Standardiser,
    draws: usize,
}

/// The rows of a table behind their maps.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StandardRows {
    /// z, `[n, d]`; zeros for a row that is outside of the support.
    pub table: Table,
    /// ln |det ∂z/∂x| of each row, `[n]`, nats; −∞ for a row that is outside of the support.
    pub log_det: Vec<f64>,
    /// [`Status::OutOfSupport`] for a row with a value outside of its support, [`Status::NonFinite`] for one that
    /// overflowed, else [`Status::Converged`].
    pub status: Vec<Status>,
}

impl From<Standardiser> for ColumnMaps {
    /// Takes z = (x − μ)/s.
    fn from(standardiser: Standardiser) -> Self {
        let pairs = standardiser.mean().iter().zip(standardiser.deviation());
        let affine = |(&centre, &scale): (&f64, &f64)| {
            ColumnMap::affine(centre, scale).expect("a standardiser's numbers are those of a map")
        };
        Self { maps: pairs.map(affine).collect(), standardiser, draws: DRAWS }
    }
}

impl ColumnMaps {
    /// Takes the map of each column.
    ///
    /// # Errors
    /// Returns [`DataError::Width`] if there is no column.
    pub fn new(maps: Vec<ColumnMap>) -> Result<Self, DataError> {
        let (centres, scales) = maps.iter().map(|map| (map.centre(), map.scale())).unzip();
        Ok(Self { standardiser: Standardiser::new(centres, scales)?, maps, draws: DRAWS })
    }

    /// Builds the maps that leave `width` columns as they are.
    #[track_caller]
    pub fn identity(width: usize) -> Self {
        Standardiser::identity(width).into()
    }

    /// Sets the number R of draws of noise that the score of a row with values on grids averages over.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for less than two, of which there is no standard error, and for more than 1000.
    pub fn with_draws(self, draws: usize) -> Result<Self, ConfigError> {
        if ALLOWED_DRAWS.contains(&draws) {
            Ok(Self { draws, ..self })
        } else {
            Err(ConfigError::OutOfRange { name: "grid_draws", value: draws as f64, expected: "2 to 1000" })
        }
    }

    /// The number of columns.
    pub fn width(&self) -> usize {
        self.maps.len()
    }

    /// The map of each column.
    pub fn maps(&self) -> &[ColumnMap] {
        &self.maps
    }

    /// The centre and scale of each column's map: all of it, if [`is_standardisation`](Self::is_standardisation).
    pub fn standardiser(&self) -> &Standardiser {
        &self.standardiser
    }

    /// Returns `true` if every column's map is z = (x − centre)/scale and nothing more.
    pub fn is_standardisation(&self) -> bool {
        self.maps.iter().all(ColumnMap::is_affine)
    }

    /// Returns `true` if a column is on a grid.
    pub fn has_grids(&self) -> bool {
        self.maps.iter().any(|map| map.grid().is_some())
    }

    /// The number R of draws of noise that a score averages over; 1 without grids.
    pub fn draws(&self) -> usize {
        if self.has_grids() { self.draws } else { 1 }
    }

    /// R as it was set, whether there are grids or not.
    pub(super) fn set_draws(&self) -> usize {
        self.draws
    }

    /// Simpler maps of the same columns, which keep supports, grids, centres and scales: those without the splines of columns
    /// whose tails need no hyperbolic sine, and those without both. What makes one column alone look like a normal may
    /// break the clusters of several together.
    pub(crate) fn simpler(&self) -> Vec<Self> {
        let with = |keeps: &dyn Fn(&ColumnMap) -> bool| {
            let plain = |map: &ColumnMap| if keeps(map) { map.clone() } else { map.clone().with_marginal(None, None) };
            let maps: Vec<ColumnMap> = self.maps.iter().map(plain).collect();
            // as files have it: what only standardises knows of no draws
            if maps.iter().all(ColumnMap::is_affine) {
                return self.standardiser.clone().into();
            }
            Self { maps, ..self.clone() }
        };
        let mut found = vec![with(&|map| map.asinh().is_some()), with(&|_| false)];
        found.dedup();
        found.retain(|simpler| simpler.maps != self.maps);
        found
    }

    /// Maps a table: z of each row, with one draw of the noise of grids.
    ///
    /// # Errors
    /// Returns [`DataError::Width`] if the table has another number of columns. A row that is outside of a support or
    /// overflows is no error: see the status.
    pub fn forward(&self, table: &Table, key: Key) -> Result<StandardRows, DataError> {
        self.check_width(table)?;
        Ok(self.forward_computed(table, key, 0))
    }

    /// Undoes the maps, `[n, d]`; values of grids are those of the grid.
    ///
    /// # Errors
    /// Returns [`DataError::Width`] if the table has another number of columns, [`DataError::NotFinite`] if a result is
    /// not finite.
    pub fn inverse(&self, z: &Table) -> Result<Table, DataError> {
        self.check_width(z)?;
        let values = self.inverse_computed(z.values().to_vec()).into_values();
        Table::new(z.columns().map(<[String]>::to_vec), self.width(), values)
    }

    fn check_width(&self, table: &Table) -> Result<(), DataError> {
        let (found, expected) = (table.width(), self.width());
        if found == expected { Ok(()) } else { Err(DataError::Width { found, expected }) }
    }

    /// Checks that no row is outside of a support.
    ///
    /// # Errors
    /// Returns [`DataError::Width`] if the table has another number of columns, [`DataError::Outside`] with all columns
    /// that have values outside of their supports.
    pub fn check(&self, table: &Table) -> Result<(), DataError> {
        self.check_width(table)?;
        let supports: Vec<_> = self.maps.iter().map(|map| (map.support(), map.grid().is_some())).collect();
        check_supports(table, &supports)
    }

    /// z of each row with the noise of number `draw`, infinite where it overflows.
    pub(crate) fn forward_computed(&self, table: &Table, key: Key, draw: usize) -> StandardRows {
        let n = table.rows();
        if self.is_standardisation() {
            let table = self.standardiser.apply_computed(table);
            let (log_det, status) = (vec![self.standardiser.log_det(); n], vec![Status::Converged; n]);
            return StandardRows { table, log_det, status };
        }
        let mut values = Vec::with_capacity(table.values().len());
        let (mut log_det, mut status) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut noise = self.noise();
        for i in 0..n {
            let row = table.row(i);
            noise.draw(|| row_key(key, draw, row));
            let start = values.len();
            let found = self.map_row(row, &noise, &mut values);
            log_det.push(found.unwrap_or(f64::NEG_INFINITY));
            status.push(match found {
                None => Status::OutOfSupport,
                Some(_) if values[start..].iter().all(|z| z.is_finite()) => Status::Converged,
                Some(_) => Status::NonFinite,
            });
        }
        StandardRows { table: Table::of_computed(self.width(), values), log_det, status }
    }

    /// Adds z of a row to `out`, and returns ln |det ∂z/∂x|; zeros and `None` outside of a support.
    pub(crate) fn map_row(&self, row: &[f64], noise: &RowNoise, out: &mut Vec<f64>) -> Option<f64> {
        let start = out.len();
        let mut log_det = 0.0;
        for ((map, &x), &u) in self.maps.iter().zip(row).zip(&noise.values) {
            let Some(point) = map.contains(x).then(|| map.evaluate(map.spread(x, u))).flatten() else {
                out.truncate(start);
                out.resize(start + self.width(), 0.0);
                return None;
            };
            log_det += point.log_slope;
            out.push(point.value);
        }
        Some(log_det)
    }

    /// x of each z, infinite and NaN ones included.
    pub(crate) fn inverse_computed(&self, z: Vec<f64>) -> Table {
        if self.is_standardisation() {
            return self.standardiser.invert_computed(z);
        }
        let maps = self.maps.iter().cycle();
        let values = z.into_iter().zip(maps).map(|(z, map)| map.invert(z)).collect();
        Table::of_computed(self.width(), values)
    }

    /// Takes gradients of log densities from z to x, for the given rows of a table: ∂/∂x = dz/dx ∂/∂z + d(ln dz/dx)/dx.
    /// A gradient outside of the support is 0. Without a table, of images, the maps are affine.
    pub(crate) fn pull_back(&self, table: Option<&Table>, rows: Range<usize>, key: Key, of_z: &[f64]) -> Vec<f64> {
        let Some(table) = table.filter(|_| !self.is_standardisation()) else {
            let deviations = self.standardiser.deviation().iter().cycle();
            return of_z.iter().zip(deviations).map(|(g, s)| g / s).collect();
        };
        let mut out = Vec::with_capacity(of_z.len());
        let mut noise = self.noise();
        for (i, of_z) in rows.zip(of_z.chunks_exact(self.width())) {
            let row = table.row(i);
            noise.draw(|| row_key(key, 0, row));
            let inside = self.maps.iter().zip(row).all(|(map, &x)| map.contains(x));
            for ((map, (&x, &u)), &g) in self.maps.iter().zip(row.iter().zip(&noise.values)).zip(of_z) {
                let point = if inside { map.evaluate(map.spread(x, u)) } else { None };
                out.push(point.map_or(0.0, |point| g * point.log_slope.exp() + point.bend));
            }
        }
        out
    }

    /// Room for the noise of a row.
    pub(crate) fn noise(&self) -> RowNoise {
        RowNoise { values: vec![0.5; self.width()], wanted: self.has_grids() }
    }
}

/// Checks that each column has its values inside its support; the border belongs to that of a grid.
pub(super) fn check_supports(table: &Table, supports: &[(Support, bool)]) -> Result<(), DataError> {
    let mut findings = Vec::new();
    for (j, &(support, closed)) in supports.iter().enumerate().filter(|(_, (support, _))| *support != Support::Real) {
        let column = || table.values().iter().skip(j).step_by(table.width());
        let outside = || column().enumerate().filter(|(_, x)| !support.contains(**x, closed));
        if let Some((row, &value)) = outside().next() {
            let (label, support, rows) = (table.label(j), support.to_string(), outside().count());
            findings.push(OutsideSupport { label, support, rows, row, value });
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(DataError::Outside(findings)) }
}

/// The key of a row's noise, a function of its numbers.
fn row_key(key: Key, draw: usize, row: &[f64]) -> Key {
    key.split(draw as u64).split(number_of(row))
}

/// A number in (0, 1) for each column of a row: uniform noise, or ½ where no column is on a grid.
#[derive(Debug)]
pub(crate) struct RowNoise {
    values: Vec<f64>,
    wanted: bool,
}

impl RowNoise {
    /// Draws the noise of a key, if any is wanted.
    pub(crate) fn draw(&mut self, key: impl FnOnce() -> Key) {
        if self.wanted {
            Noise::Uniform.fill(key(), 0, &mut self.values);
            // multiples of 2⁻²⁴ from 0: in the middle between two
            self.values.iter_mut().for_each(|u| *u += 0.5 / 16_777_216.0);
        }
    }
}
