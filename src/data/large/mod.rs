//! Tables and images that are larger than memory: rows that stay where they are and are read as they are needed.
//!
//! A [`LargeTable`] knows of its rows ([`StoredRows`]: a file, or a [`Table`] in memory) what one pass in pieces tells: that all
//! values are finite, their least and largest, means and standard deviations, and a digest. A piece has a fixed number of rows,
//! and the pieces' statistics are merged in their order: of (n, μ, s) and (m, ν, t) with δ = ν − μ,
//!
//! μ + δ m/(n + m) and √(s² n/(n + m) + t² m/(n + m) + δ² nm/(n + m)²)
//!
//! (Chan, Golub and LeVeque 1983). What is sorted or counted instead is found on rows that a key chooses, which fit memory.
//!
//! Images are rows of bytes, of which the pass takes the digest alone ([`ImageRows`] says their size and has their labels).
//!
//! Invariant: everything is a function of the numbers alone, bit for bit the same whether the rows are in memory or in a file,
//! and whatever part of the pass another process made.

#[cfg(feature = "formats")]
mod npy;
mod rows;
mod shuffle;
mod statistics;
#[cfg(feature = "formats")]
mod unchanged;

use std::ops::Range;
use std::sync::Arc;

use resflow_backend::Key;

use super::dataset::Dataset;
use super::image::{FNV_OFFSET, fnv};
use super::standardise::Standardiser;
use super::table::Table;
use crate::error::{DataError, Error, ImageError, OutsideSupport};
use crate::group::{Group, collective};

#[cfg(feature = "formats")]
pub use npy::NpyRows;
pub use rows::{ImageRows, StoredRows};
pub(crate) use shuffle::{Remaining, Shuffle};
use statistics::{Faults, Piece, merge};
#[cfg(feature = "images")]
pub(crate) use unchanged::{State, Unchanged};

/// The numbers of a piece.
const PIECE: usize = 1 << 19;
/// The most numbers of the rows that columns' maps are fitted to.
const SAMPLE: usize = 1 << 20;

/// Rows of finite numbers, or images of bytes, that are read as they are needed. Minimum, maximum, mean and standard deviation
/// of images are empty.
///
/// ```
/// use resflow::data::{LargeTable, Table};
/// let rows = Table::new(None, 1, (0..1000).map(f64::from).collect())?;
/// let table = LargeTable::new(rows)?;
/// assert!((table.mean()[0] - 499.5).abs() < 1e-9);
/// assert_eq!((table.minimum()[0], table.maximum()[0]), (0.0, 999.0));
/// assert_eq!(table.select(&[700, 3])?.values(), [700.0, 3.0]);
/// # Ok::<(), resflow::data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct LargeTable {
    rows: Arc<dyn StoredRows>,
    all: Piece,
}

impl LargeTable {
    /// Reads all rows once, piece by piece.
    ///
    /// # Errors
    /// Returns [`DataError::Cells`] with every column that has values that are not finite, [`DataError::TooFewRows`] for less than
    /// two rows, and the errors of [`StoredRows::read`]. Of images, returns [`DataError::Image`] with [`ImageError::TooFew`] for one,
    /// [`ImageError::Byte`] for values that are no bytes, [`ImageError::Length`] for another width than that of their size, and
    /// [`ImageError::Labels`] for another number of labels.
    pub fn new(rows: impl StoredRows + 'static) -> Result<Self, DataError> {
        let rows: Arc<dyn StoredRows> = Arc::new(rows);
        check(&*rows)?;
        let pieces = scan(&*rows, 0..piece_count(&*rows))?;
        Ok(Self { all: merge(&pieces), rows })
    }

    /// Reads all rows once on the ranks of a group, each a part of them; all have what [`new`](Self::new) finds.
    ///
    /// # Errors
    /// Returns the errors of [`new`](Self::new) for the rank's own part, after telling the others, and [`Error::Group`] if another rank
    /// ended or did not answer.
    pub fn new_together(rows: impl StoredRows + 'static, group: &dyn Group) -> Result<Self, Error> {
        let rows: Arc<dyn StoredRows> = Arc::new(rows);
        let part = |rank: usize| rank * piece_count(&*rows) / group.size();
        let own = check(&*rows).and_then(|()| scan(&*rows, part(group.rank())..part(group.rank() + 1)));
        let own = own.inspect_err(|error| group.abort(&error.to_string()))?;
        let all = collective::gather(group, own.iter().flat_map(Piece::to_bytes).collect())?;
        let width = if rows.images().is_some() { 0 } else { rows.width() };
        let pieces: Vec<Piece> = Piece::all_of(&all.concat(), width)?;
        let table = Self { all: merge(&pieces), rows };
        if table.all.count as usize == table.rows() {
            return Ok(table);
        }
        let problem = format!("the ranks read {} rows, of {} here", table.all.count, table.rows());
        group.abort(&problem);
        Err(Error::Input(problem))
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// The number of columns.
    pub fn width(&self) -> usize {
        self.rows.width()
    }

    /// The names of the columns, where they have any.
    pub fn columns(&self) -> Option<&[String]> {
        self.rows.columns()
    }

    /// What the rows are if they are images.
    pub fn images(&self) -> Option<ImageRows<'_>> {
        self.rows.images()
    }

    /// The shape of a sample: `[d]` or `[h, w, c]`.
    pub fn sample_shape(&self) -> Vec<usize> {
        match self.images() {
            Some(ImageRows { size, .. }) => vec![size.height, size.width, size.channels],
            None => vec![self.width()],
        }
    }

    /// The least value of each column.
    pub fn minimum(&self) -> &[f64] {
        &self.all.minimum
    }

    /// The largest value of each column.
    pub fn maximum(&self) -> &[f64] {
        &self.all.maximum
    }

    /// The mean of each column.
    pub fn mean(&self) -> &[f64] {
        &self.all.mean
    }

    /// The standard deviation (std) of each column; 0 of a constant one.
    pub fn deviation(&self) -> &[f64] {
        &self.all.deviation
    }

    /// Reads the rows of these numbers, in this order, `[n, d]`.
    ///
    /// # Errors
    /// Returns the errors of [`StoredRows::read`].
    ///
    /// # Panics
    /// If there is no row of a number.
    #[track_caller]
    pub fn select(&self, numbers: &[usize]) -> Result<Table, DataError> {
        assert!(numbers.iter().all(|&number| number < self.rows()), "a row beyond the {} of the table", self.rows());
        let width = self.width();
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_unstable_by_key(|&i| numbers[i]);
        let mut values = vec![0.0; numbers.len() * width];
        let mut found = Vec::new();
        let mut rest = &order[..];
        while let Some(&first) = rest.first() {
            // neighbours are read at once, and a row once
            let run = rest.windows(2).take_while(|pair| numbers[pair[1]] - numbers[pair[0]] <= 1).count() + 1;
            let begin = numbers[first];
            found.clear();
            self.rows.read(begin..numbers[rest[run - 1]] + 1, &mut found)?;
            for &i in &rest[..run] {
                let row = numbers[i] - begin;
                values[i * width..(i + 1) * width].copy_from_slice(&found[row * width..(row + 1) * width]);
            }
            rest = &rest[run..];
        }
        self.table(values)
    }

    /// Reads the samples of these numbers, in this order: rows as [`select`](Self::select) does, or images with their labels.
    ///
    /// # Errors
    /// Returns the errors of [`StoredRows::read`], and [`DataError::Image`] for no images.
    ///
    /// # Panics
    /// If there is no sample of a number.
    #[track_caller]
    pub fn samples(&self, numbers: &[usize]) -> Result<Dataset, DataError> {
        let Some(images) = self.images() else { return Ok(self.select(numbers)?.into()) };
        let mut all = Vec::with_capacity(numbers.len() * self.width());
        // numbers take eight times as much memory as bytes
        for part in numbers.chunks(piece_rows(self.width())) {
            all.extend(rows::bytes(self.select(part)?.values()).map_err(|_| DataError::Changed)?);
        }
        Ok(images.set(numbers.iter().copied(), all)?.into())
    }

    /// Reads consecutive rows, `[n, d]`.
    ///
    /// # Errors
    /// Returns the errors of [`StoredRows::read`].
    pub fn read(&self, rows: Range<usize>) -> Result<Table, DataError> {
        let mut values = Vec::with_capacity(rows.len() * self.width());
        self.rows.read(rows, &mut values)?;
        self.table(values)
    }

    /// The ranges of rows that one pass reads, one after the other.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        self.rows.pieces()
    }

    /// The numbers of at most so many rows, which the key chooses, in random order.
    pub fn choose(&self, most: usize, key: Key) -> Vec<usize> {
        let shuffle = Shuffle::new(self.rows(), key);
        (0..most.min(self.rows())).map(|i| shuffle.at(i)).collect()
    }

    /// Reads at most so many rows, which the key chooses ([`choose`](Self::choose)), in the order of the table.
    ///
    /// # Errors
    /// Returns the errors of [`StoredRows::read`].
    pub fn sample(&self, most: usize, key: Key) -> Result<Table, DataError> {
        let mut numbers = self.choose(most, key);
        numbers.sort_unstable();
        self.select(&numbers)
    }

    /// Values that were read, which were finite when the table was opened.
    fn table(&self, values: Vec<f64>) -> Result<Table, DataError> {
        if values.iter().all(|v| v.is_finite()) {
            return Ok(Table::of_read(self.columns().map(<[String]>::to_vec), self.width(), values));
        }
        Err(DataError::Changed)
    }

    /// The rows that columns' maps are fitted to.
    pub(crate) fn sample_rows(&self) -> usize {
        (SAMPLE / self.width()).max(1000)
    }

    /// The standardisation of all rows.
    pub(crate) fn standardiser(&self) -> Result<Standardiser, DataError> {
        for j in 0..self.width() {
            let (low, high, deviation) = (self.minimum()[j], self.maximum()[j], self.deviation()[j]);
            if low == high {
                return Err(DataError::Constant { label: self.label(j), value: low });
            }
            if !deviation.is_normal() {
                return Err(DataError::Spread { label: self.label(j), deviation });
            }
        }
        Standardiser::new(self.mean().to_vec(), self.deviation().to_vec())
    }

    /// Checks that no row is outside of a column's support, by a check of any rows.
    pub(crate) fn check_supports(&self, check: impl Fn(&Table) -> Result<(), DataError>) -> Result<(), DataError> {
        let ends = [self.minimum(), self.maximum()].concat();
        match check(&self.table(ends)?) {
            Err(DataError::Outside(_)) => {}
            other => return other,
        }
        // which rows, only a pass tells
        let mut all: Vec<OutsideSupport> = Vec::new();
        for piece in self.pieces() {
            let first = piece.start;
            let Err(DataError::Outside(found)) = check(&self.read(piece)?) else { continue };
            for finding in found {
                match all.iter_mut().find(|known| known.label == finding.label) {
                    Some(known) => known.rows += finding.rows,
                    None => all.push(OutsideSupport { row: first + finding.row, ..finding }),
                }
            }
        }
        if all.is_empty() { Err(DataError::Changed) } else { Err(DataError::Outside(all)) }
    }

    fn label(&self, column: usize) -> String {
        label(&*self.rows, column)
    }

    /// A short text that tells two tables apart, or two sets of images, whose labels may count, to refuse resuming on other data.
    pub(crate) fn fingerprint(&self, labelled: bool) -> String {
        let digest = format!("{LARGE} {:016x}", self.all.digest);
        match self.images() {
            None => format!("{} rows of {} columns, {digest}", self.rows(), self.width()),
            Some(ImageRows { size, labels, .. }) => {
                let labels = labels.filter(|_| labelled).map_or(String::new(), |labels| {
                    format!(", labels {:016x}", labels.iter().copied().fold(FNV_OFFSET, fnv))
                });
                format!("{} images of {size}, {digest}{labels}", self.rows())
            }
        }
    }
}

/// What the fingerprints of large tables have, and no others.
const LARGE: &str = "FNV-1a of pieces";

/// Whether a run's data were a large table, by what its state says of them.
pub(crate) fn was_large(fingerprint: &str) -> bool {
    fingerprint.contains(LARGE)
}

fn label(rows: &dyn StoredRows, column: usize) -> String {
    match rows.columns() {
        Some(names) => format!("column {} (`{}`)", column + 1, crate::error::Excerpt(&names[column])),
        None => format!("column {}", column + 1),
    }
}

fn check(rows: &dyn StoredRows) -> Result<(), DataError> {
    if let Some(ImageRows { size, labels, .. }) = rows.images() {
        let (images, values) = (rows.rows(), rows.width());
        if size.values()? != values {
            return Err(ImageError::Length { values, size }.into());
        }
        if let Some(labels) = labels.map(<[u8]>::len).filter(|labels| *labels != images) {
            return Err(ImageError::Labels { labels, images }.into());
        }
        return if images < 2 { Err(ImageError::TooFew.into()) } else { Ok(()) };
    }
    match rows.rows() {
        _ if rows.width() == 0 => Err(DataError::TableShape { values: 0, width: 0 }),
        rows @ 0..2 => Err(DataError::TooFewRows { rows, needed: 2, purpose: "to set some aside for validation" }),
        _ => Ok(()),
    }
}

fn piece_rows(width: usize) -> usize {
    (PIECE / width).max(1)
}

fn piece_count(rows: &dyn StoredRows) -> usize {
    rows.rows().div_ceil(piece_rows(rows.width().max(1)))
}

/// The statistics of pieces of these numbers.
fn scan(stored: &dyn StoredRows, pieces: Range<usize>) -> Result<Vec<Piece>, DataError> {
    let (width, step) = (stored.width(), piece_rows(stored.width()));
    let mut values = Vec::new();
    let (mut found, mut faults) = (Vec::with_capacity(pieces.len()), Faults::new(width));
    for number in pieces {
        let own = number * step..stored.rows().min((number + 1) * step);
        values.clear();
        stored.read(own.clone(), &mut values)?;
        if stored.images().is_some() {
            found.push(Piece::of_images(&rows::bytes(&values)?, own.len()));
            continue;
        }
        if faults.add(stored, own.start, &values) {
            continue;
        }
        found.push(Piece::of(&values, width));
    }
    faults.check(stored)?;
    Ok(found)
}
