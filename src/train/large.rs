//! Batches of a table, or of images, that are larger than memory.
//!
//! What is set aside are the first rows of a permutation by key, and an epoch is another one of the rest; both are computed row by
//! row ([`Shuffle`]), so that nothing here grows with the table but what is set aside, which is bounded
//! ([`TrainConfig::validation_rows`](super::TrainConfig::validation_rows)). Means and standard deviations are those of all rows, other
//! maps are fitted to rows that the key chooses.

use resflow_backend::Key;

use super::columns::Columns;
use super::source::{Drawing, ValidationSet};
use crate::data::{ColumnMaps, ColumnSettings, Dataset, LargeTable, Remaining, Shuffle, Standardiser, Table};
use crate::error::DataError;

/// The training rows of a large table.
#[derive(Debug)]
pub(super) struct LargeRows {
    table: LargeTable,
    training: Remaining,
    /// The maps of the columns, where they only standardise.
    standardiser: Option<Standardiser>,
}

impl LargeRows {
    /// Divides a table into training rows, validation rows (in the data's units) and the maps of the columns.
    pub(super) fn divide(
        table: LargeTable,
        drawing: &Drawing,
        columns: Columns<'_>,
    ) -> Result<(Self, ValidationSet, ColumnMaps), DataError> {
        let (fraction, n) = (drawing.validation_fraction, table.rows());
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(DataError::Fraction(fraction));
        }
        let count = ((n as f64 * fraction).round() as usize).clamp(1, n - 1).min(drawing.validation_samples);
        let split = Shuffle::new(n, drawing.key.named("split"));
        let training = Remaining::new(n, (0..count).map(|i| split.at(i)).collect());
        let validation = ValidationSet::of(table.samples(training.gone())?, training.gone().to_vec());
        let rows = Self { table, training, standardiser: None };
        let is_table = rows.table.images().is_none();
        let maps = match columns {
            Columns::Given(maps) | Columns::Fitted(maps) => maps,
            Columns::Fit(settings) if is_table => rows.fit(settings, drawing.key.named("columns"))?,
            Columns::Fit(_) => ColumnMaps::identity(rows.table.width()),
        };
        if is_table {
            rows.table.check_supports(|table| maps.check(table))?;
        }
        Ok((rows, validation, maps))
    }

    fn fit(&self, settings: &ColumnSettings, key: Key) -> Result<ColumnMaps, DataError> {
        if settings.is_standardisation() {
            return Ok(self.table.standardiser()?.into());
        }
        self.table.check_supports(|table| settings.check_rows(table))?;
        let maps = ColumnMaps::fit(&self.sample(self.table.sample_rows(), key)?, None, settings)?;
        if maps.is_standardisation() { Ok(self.table.standardiser()?.into()) } else { Ok(maps) }
    }

    /// At most so many training rows, in the data's units and in the order of the table.
    fn sample(&self, most: usize, key: Key) -> Result<Table, DataError> {
        let shuffle = Shuffle::new(self.len(), key);
        let mut numbers: Vec<usize> = (0..most.min(self.len())).map(|i| self.training.at(shuffle.at(i))).collect();
        numbers.sort_unstable();
        self.table.select(&numbers)
    }

    /// Takes the maps of the columns: rows come behind them if they only standardise.
    pub(super) fn set_columns(&mut self, maps: &ColumnMaps) {
        self.standardiser = maps.is_standardisation().then(|| maps.standardiser().clone());
    }

    /// The number of training rows.
    pub(super) fn len(&self) -> usize {
        self.training.len()
    }

    /// Reads training samples of these numbers; rows are standardised, if the columns' maps do nothing else.
    pub(super) fn read(&self, numbers: &[usize]) -> Result<Dataset, DataError> {
        let numbers: Vec<usize> = numbers.iter().map(|&number| self.training.at(number)).collect();
        match self.table.images() {
            Some(_) => self.table.samples(&numbers),
            None => Ok(self.standardised(self.table.select(&numbers)?)?.into()),
        }
    }

    /// At most so many rows, as [`read`](Self::read) gives them; none of images.
    pub(super) fn excerpt(&self, most: usize, key: Key) -> Result<Option<Table>, DataError> {
        match self.table.images() {
            Some(_) => Ok(None),
            None => self.standardised(self.sample(most, key)?).map(Some),
        }
    }

    fn standardised(&self, table: Table) -> Result<Table, DataError> {
        match &self.standardiser {
            Some(standardiser) => standardiser.apply(&table),
            None => Ok(table),
        }
    }
}
