//! Where batches come from: a function of the key and the number of the step, so that a resumed run draws what an
//! uninterrupted one does.

use std::sync::LazyLock;

use resflow_backend::{Element, Key};

use crate::data::{DataError, Standardiser, Table, ToyDensity, permutation};

/// Training and validation rows, which never overlap.
#[derive(Debug, Clone)]
pub enum Source {
    /// Fresh points of a built-in density at every step; validation points have a key of their own.
    Density(ToyDensity),
    /// The rows of a table, shuffled anew in every epoch; some are set aside for validation.
    Table(Table),
}

impl Source {
    /// The number of columns.
    pub fn width(&self) -> usize {
        match self {
            Self::Density(_) => 2,
            Self::Table(table) => table.width(),
        }
    }

    /// A short text that tells two sources apart, to refuse resuming on other data.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Density(density) => density.name().to_owned(),
            Self::Table(table) => {
                let bytes = table.values().iter().flat_map(|v| v.to_bits().to_le_bytes());
                let hash =
                    bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
                format!("{} rows of {} columns, FNV-1a {hash:016x}", table.rows(), table.width())
            }
        }
    }
}

/// Rows set aside for validation, in the data's units. Those of a density are drawn when they are first asked for: a run's
/// state can be loaded, and refused, in memory of the order of its file, however many rows it wants.
pub(crate) type ValidationRows = LazyLock<Table, Box<dyn FnOnce() -> Table + Send>>;

/// Batches in standardised units.
#[derive(Debug)]
pub(crate) struct Batches {
    training: Training,
    key: Key,
}

#[derive(Debug)]
enum Training {
    Density(ToyDensity),
    Table { rows: Table, epoch: Option<(u64, Vec<usize>)> },
}

impl Batches {
    /// Divides a source into batches, validation rows (in the data's units) and the standardisation of the training rows.
    pub(crate) fn new(
        source: Source,
        validation_rows: usize,
        validation_fraction: f64,
        key: Key,
    ) -> Result<(Self, ValidationRows, Standardiser), DataError> {
        Ok(match source {
            Source::Density(density) => {
                let validation = move || density.sample(key.named("validation data"), validation_rows);
                (
                    Self { training: Training::Density(density), key },
                    ValidationRows::new(Box::new(validation)),
                    Standardiser::identity(2),
                )
            }
            Source::Table(table) => {
                let (training, validation) = table.split(validation_fraction, key.named("split"))?;
                let standardiser = Standardiser::fit(&training)?;
                let rows = standardiser.apply(&training)?;
                (
                    Self { training: Training::Table { rows, epoch: None }, key },
                    ValidationRows::new(Box::new(|| validation)),
                    standardiser,
                )
            }
        })
    }

    /// The batch of a step, row-major.
    pub(crate) fn batch<E: Element>(&mut self, step: u64, rows: usize) -> Vec<E> {
        match &mut self.training {
            Training::Density(density) => density.sample(self.key.named("batch").split(step), rows).to_elements(),
            Training::Table { rows: table, epoch } => {
                let n = table.rows() as u64;
                let first = step * rows as u64;
                let mut out = Vec::with_capacity(rows * table.width());
                for position in first..first + rows as u64 {
                    let number = position / n;
                    if epoch.as_ref().is_none_or(|(e, _)| *e != number) {
                        *epoch = Some((number, permutation(n as usize, self.key.named("epoch").split(number))));
                    }
                    if let Some((_, order)) = epoch {
                        out.extend(table.row(order[(position % n) as usize]).iter().map(|&v| E::from_f64(v)));
                    }
                }
                out
            }
        }
    }
}
