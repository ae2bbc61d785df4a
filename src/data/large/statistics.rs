//! What a piece of rows tells of all of them.

use super::{StoredRows, label};
use crate::data::image::{FNV_OFFSET, fnv};
use crate::data::standardise::moments;
use crate::error::{CellFaults, ColumnFault, DataError, Fault, GroupError, Place};
use crate::group::collective;

/// The places of faults that are kept for each column.
const SHOWN: usize = 5;

/// The statistics of some rows, column by column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    /// The rows.
    pub(super) count: u64,
    /// FNV-1a of the values' bits; of several pieces, of their digests.
    pub(super) digest: u64,
    pub(super) minimum: Vec<f64>,
    pub(super) maximum: Vec<f64>,
    pub(super) mean: Vec<f64>,
    /// √ of the mean square deviation.
    pub(super) deviation: Vec<f64>,
}

impl Piece {
    /// Those of finite values, row by row.
    pub(super) fn of(values: &[f64], width: usize) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_bits().to_le_bytes());
        let mut piece = Self {
            count: (values.len() / width) as u64,
            digest: bytes.fold(FNV_OFFSET, fnv),
            minimum: Vec::with_capacity(width),
            maximum: Vec::with_capacity(width),
            mean: Vec::with_capacity(width),
            deviation: Vec::with_capacity(width),
        };
        for j in 0..width {
            let column: Vec<f64> = values.iter().skip(j).step_by(width).copied().collect();
            let (low, high) = column.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
            let (mean, deviation) = match moments(&column, None, &String::new) {
                Ok(found) => found,
                Err(DataError::Spread { deviation, .. }) => (low, deviation),
                Err(_) => (low, 0.0),
            };
            piece.minimum.push(low);
            piece.maximum.push(high);
            piece.mean.push(mean);
            piece.deviation.push(deviation);
        }
        piece
    }

    /// That of so many images, of which statistics of every pixel are of no use, and would take as much memory as a tenth of them.
    pub(super) fn of_images(bytes: &[u8], count: usize) -> Self {
        let none = Vec::new;
        let digest = bytes.iter().copied().fold(FNV_OFFSET, fnv);
        Self { count: count as u64, digest, minimum: none(), maximum: none(), mean: none(), deviation: none() }
    }

    fn width(&self) -> usize {
        self.mean.len()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [self.count.to_le_bytes(), self.digest.to_le_bytes()].concat();
        for part in [&self.minimum, &self.maximum, &self.mean, &self.deviation] {
            bytes.extend(collective::encode(part));
        }
        bytes
    }

    /// The pieces of tables of a width, one after the other; images have the width 0.
    pub(super) fn all_of(bytes: &[u8], width: usize) -> Result<Vec<Self>, GroupError> {
        let size = 16 + 32 * width;
        if !bytes.len().is_multiple_of(size) {
            return Err(GroupError::Transport(format!("{} bytes are no statistics of {width} columns", bytes.len())));
        }
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        let of = |bytes: &[u8]| {
            let part = |i: usize| collective::decode::<f64>(&bytes[16 + 8 * width * i..][..8 * width], width);
            let (count, digest) = (number(&bytes[..8]), number(&bytes[8..16]));
            Ok(Self { count, digest, minimum: part(0)?, maximum: part(1)?, mean: part(2)?, deviation: part(3)? })
        };
        bytes.chunks_exact(size).map(of).collect()
    }
}

/// The statistics of all pieces together, in their order; see the module above for the equations.
pub(super) fn merge(pieces: &[Piece]) -> Piece {
    let width = pieces.first().map_or(0, Piece::width);
    let digests = pieces.iter().flat_map(|piece| piece.digest.to_le_bytes());
    let mut all = Piece {
        count: 0,
        digest: digests.fold(FNV_OFFSET, fnv),
        minimum: vec![f64::INFINITY; width],
        maximum: vec![f64::NEG_INFINITY; width],
        mean: vec![0.0; width],
        deviation: vec![0.0; width],
    };
    for piece in pieces {
        let total = (all.count + piece.count) as f64;
        let (before, own) = (all.count as f64 / total, piece.count as f64 / total);
        for j in 0..width {
            all.minimum[j] = all.minimum[j].min(piece.minimum[j]);
            all.maximum[j] = all.maximum[j].max(piece.maximum[j]);
            let difference = if all.count == 0 { 0.0 } else { piece.mean[j] - all.mean[j] };
            all.mean[j] = if all.count == 0 { piece.mean[j] } else { all.mean[j] + difference * own };
            // no square of its own that over- or underflows
            let within = (all.deviation[j] * before.sqrt()).hypot(piece.deviation[j] * own.sqrt());
            all.deviation[j] = within.hypot(difference * (before * own).sqrt());
        }
        all.count += piece.count;
    }
    all
}

/// Values that are not finite, column by column.
#[derive(Debug)]
pub(super) struct Faults {
    missing: Vec<(usize, Vec<Place>)>,
    infinite: Vec<(usize, Vec<Place>, f64)>,
    /// Rows that lack a value.
    incomplete: usize,
}

impl Faults {
    pub(super) fn new(width: usize) -> Self {
        Self { missing: vec![(0, Vec::new()); width], infinite: vec![(0, Vec::new(), 0.0); width], incomplete: 0 }
    }

    /// Adds those of rows from number `first` on; returns `true` if there are any.
    pub(super) fn add(&mut self, rows: &dyn StoredRows, first: usize, values: &[f64]) -> bool {
        if values.iter().all(|v| v.is_finite()) {
            return false;
        }
        for (i, row) in values.chunks_exact(rows.width()).enumerate() {
            self.incomplete += usize::from(row.iter().any(|v| v.is_nan()));
            for (column, &value) in row.iter().enumerate().filter(|(_, v)| !v.is_finite()) {
                let name = rows.columns().map(|names| names[column].clone());
                let place = Place::Index { row: first + i, column, name };
                let (count, places) = if value.is_nan() {
                    let (count, places) = &mut self.missing[column];
                    (count, places)
                } else {
                    let (count, places, first) = &mut self.infinite[column];
                    if *count == 0 {
                        *first = value;
                    }
                    (count, places)
                };
                *count += 1;
                if places.len() < SHOWN {
                    places.push(place);
                }
            }
        }
        true
    }

    pub(super) fn check(self, rows: &dyn StoredRows) -> Result<(), DataError> {
        let handle = |j: usize| rows.columns().map_or_else(|| (j + 1).to_string(), |names| names[j].clone());
        let mut columns = Vec::new();
        for (j, (missing, infinite)) in self.missing.into_iter().zip(self.infinite).enumerate() {
            let mut add = |fault, count, places| {
                if count > 0 {
                    columns.push(ColumnFault { label: label(rows, j), handle: handle(j), fault, count, places });
                }
            };
            add(Fault::Missing { text: "NaN".into() }, missing.0, missing.1);
            add(Fault::Infinite { value: infinite.2 }, infinite.0, infinite.1);
        }
        if columns.is_empty() {
            return Ok(());
        }
        Err(DataError::Cells(Box::new(CellFaults { columns, rows: rows.rows(), incomplete: self.incomplete })))
    }
}
