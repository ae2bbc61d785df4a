//! Standardisation: z = (x − μ) / s, column by column.
//!
//! μ is a column's mean and s its standard deviation (std), Σ(x − μ)² / n under the root, in two passes: first μ,
//! then the deviations from it, both scaled by their largest magnitude so that no square over- or underflows.
//! Standardising a density p of x gives p(z) = p(x) Π s, so log p(x) = log p(z) − Σ ln s: [`Standardiser::log_det`]
//! is that last term.

use super::table::Table;
use crate::error::DataError;

/// The affine transform that gives every column mean zero and standard deviation one.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardiser {
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Standardiser {
    /// Computes the means and standard deviations of a table's columns.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::TooFewRows`] if there are fewer than two rows, [`DataError::Constant`] if a column is
    /// constant, [`DataError::Spread`] if a standard deviation leaves the range of normal double-precision numbers. The
    /// error names the column.
    pub fn fit(table: &Table) -> Result<Self, DataError> {
        Self::fit_weighted(table, None)
    }

    /// Computes those of a table whose rows have weights: μ = Σ wᵢ xᵢ/Σ wᵢ and s² = Σ wᵢ (xᵢ − μ)²/Σ wᵢ, so that weight
    /// 2 is the row twice and a row of weight 0 is not there.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::TooFewRows`], [`DataError::Constant`] or [`DataError::Spread`] as [`fit`](Self::fit) does,
    /// where rows of weight 0 do not count.
    pub fn fit_weighted(table: &Table, weights: Option<&[f64]>) -> Result<Self, DataError> {
        if let Some(weights) = weights {
            let there: Vec<usize> = (0..table.rows()).filter(|&i| weights[i] > 0.0).collect();
            if there.len() < table.rows() {
                let weights: Vec<_> = there.iter().map(|&i| weights[i]).collect();
                return Self::fit_weighted(&table.select(&there), Some(&weights));
            }
        }
        let rows = table.rows();
        if rows < 2 {
            return Err(DataError::TooFewRows { rows, needed: 2, purpose: "for a standard deviation" });
        }
        let moments = (0..table.width()).map(|j| moments(&table.column(j), weights, &|| table.label(j)));
        let (mean, deviation) = moments.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        Ok(Self { mean, deviation })
    }

    /// Computes those of contexts, which need no density: a column of one value, or whose spread is out of range, is shifted by its
    /// mean and not scaled.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::TooFewRows`] if there are no rows of a weight above 0.
    pub(crate) fn fit_contexts(table: &Table, weights: Option<&[f64]>) -> Result<Self, DataError> {
        let there: Vec<usize> = (0..table.rows()).filter(|&i| weights.is_none_or(|weights| weights[i] > 0.0)).collect();
        let Some(&first) = there.first() else {
            return Err(DataError::TooFewRows { rows: 0, needed: 1, purpose: "for a standard deviation" });
        };
        let weights: Option<Vec<f64>> = weights.map(|weights| there.iter().map(|&i| weights[i]).collect());
        let of = |j: usize| {
            let column: Vec<f64> = there.iter().map(|&i| table.row(i)[j]).collect();
            moments(&column, weights.as_deref(), &|| table.label(j)).unwrap_or((table.row(first)[j], 1.0))
        };
        let (mean, deviation) = (0..table.width()).map(of).unzip();
        Ok(Self { mean, deviation })
    }

    /// Takes means μ and standard deviations s, as a checkpoint has them.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Width`] if the lengths differ or are zero, [`DataError::NotFinite`] if a value is not
    /// finite, [`DataError::Spread`] if a standard deviation is not a positive normal number.
    pub fn new(mean: Vec<f64>, deviation: Vec<f64>) -> Result<Self, DataError> {
        if mean.is_empty() || mean.len() != deviation.len() {
            return Err(DataError::Width { found: deviation.len(), expected: mean.len().max(1) });
        }
        for (column, (&m, &s)) in mean.iter().zip(&deviation).enumerate() {
            if !m.is_finite() {
                let place = super::Place::Index { row: 0, column, name: None };
                return Err(DataError::NotFinite { place, value: m });
            }
            if !(s.is_normal() && s > 0.0) {
                return Err(DataError::Spread { label: format!("column {}", column + 1), deviation: s });
            }
        }
        Ok(Self { mean, deviation })
    }

    /// Builds the transform that leaves `width` columns as they are.
    #[track_caller]
    pub fn identity(width: usize) -> Self {
        assert!(width > 0, "a standardiser needs at least one column");
        Self { mean: vec![0.0; width], deviation: vec![1.0; width] }
    }

    /// The number of columns.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// The means μ.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The standard deviations s (std), positive, in the data's units.
    pub fn deviation(&self) -> &[f64] {
        &self.deviation
    }

    /// Returns log |det ∂z/∂x| = −Σ ln s in nats, the same for every sample: add it to log p(z) for log p(x) in the
    /// data's own units.
    pub fn log_det(&self) -> f64 {
        -self.deviation.iter().map(|s| s.ln()).sum::<f64>()
    }

    /// Standardises a table: z = (x − μ) / s, `[n, d]`.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Width`] if the table has another number of columns, [`DataError::NotFinite`] if a result is
    /// not finite.
    pub fn apply(&self, table: &Table) -> Result<Table, DataError> {
        self.map(table, |x, mean, deviation| (x - mean) / deviation)
    }

    /// Undoes the standardisation: x = μ + s z, `[n, d]`.
    ///
    /// # Errors
    ///
    /// Returns [`DataError::Width`] if the table has another number of columns, [`DataError::NotFinite`] if a result is
    /// not finite.
    pub fn invert(&self, table: &Table) -> Result<Table, DataError> {
        self.map(table, |z, mean, deviation| z * deviation + mean)
    }

    /// z = (x − μ) / s for a table of the right width, infinite where it overflows.
    pub(crate) fn apply_computed(&self, table: &Table) -> Table {
        let width = self.width();
        let values = table.values().iter().enumerate();
        let values = values.map(|(i, x)| (x - self.mean[i % width]) / self.deviation[i % width]);
        Table::of_computed(width, values.collect())
    }

    /// x = μ + s z for computed samples, infinite and NaN ones included.
    pub(crate) fn invert_computed(&self, z: Vec<f64>) -> Table {
        let width = self.width();
        let values = z.into_iter().enumerate().map(|(i, z)| z * self.deviation[i % width] + self.mean[i % width]);
        Table::of_computed(width, values.collect())
    }

    fn map(&self, table: &Table, f: impl Fn(f64, f64, f64) -> f64) -> Result<Table, DataError> {
        let width = self.width();
        if table.width() != width {
            return Err(DataError::Width { found: table.width(), expected: width });
        }
        let values = table.values().iter().enumerate();
        let values = values.map(|(i, &v)| f(v, self.mean[i % width], self.deviation[i % width])).collect();
        Table::new(table.columns().map(<[String]>::to_vec), width, values)
    }
}

/// Mean and standard deviation of the values of one column, of which an error says the label.
pub(super) fn moments(
    column: &[f64],
    weights: Option<&[f64]>,
    label: &dyn Fn() -> String,
) -> Result<(f64, f64), DataError> {
    // as fractions of the largest, so that no sum of them overflows
    let heaviest = weights.map_or(1.0, |weights| weights.iter().copied().fold(0.0, f64::max));
    let weight = |i: usize| weights.map_or(1.0, |weights| weights[i] / heaviest);
    let total = weights.map_or(column.len() as f64, |weights| weights.iter().map(|w| w / heaviest).sum());
    let values = || column.iter().copied();
    let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    if low == high {
        return Err(DataError::Constant { label: label(), value: low });
    }
    let sum = |f: &dyn Fn(f64) -> f64| values().enumerate().map(|(i, v)| weight(i) * f(v)).sum::<f64>();
    let scale = low.abs().max(high.abs());
    let mean = (sum(&|v| v / scale) / total).clamp(-1.0, 1.0) * scale;
    let reach = (mean - low).max(high - mean);
    let deviation = reach * (sum(&|v| ((v - mean) / reach).powi(2)) / total).sqrt();
    if deviation.is_normal() { Ok((mean, deviation)) } else { Err(DataError::Spread { label: label(), deviation }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: &[f64]) -> Table {
        Table::new(None, 1, values.to_vec()).expect("a table")
    }

    #[test]
    fn offsets_do_not_cancel() {
        // One pass, E[x²] − E[x]², has no correct digit here.
        let fitted = Standardiser::fit(&column(&[1e9 + 1.0, 1e9 + 2.0, 1e9 + 3.0])).expect("a fit");
        assert_eq!(fitted.mean(), [1e9 + 2.0]);
        assert!((fitted.deviation()[0] - (2.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((fitted.log_det() + fitted.deviation()[0].ln()).abs() < 1e-15);
    }

    #[test]
    fn extremes_neither_overflow_nor_underflow() {
        for scale in [1e-300, 1e-160, 1e160, 1e300] {
            let fitted = Standardiser::fit(&column(&[-scale, scale, scale, -scale])).expect("a fit");
            assert!((fitted.deviation()[0] / scale - 1.0).abs() < 1e-15, "{scale:e}");
            assert_eq!(fitted.mean(), [0.0]);
        }
        let error = Standardiser::fit(&column(&[5e-324, 0.0])).expect_err("subnormal");
        assert!(matches!(error, DataError::Spread { .. }), "{error}");
        let widest = column(&[f64::MAX, -f64::MAX, -f64::MAX, -f64::MAX]);
        match Standardiser::fit(&widest) {
            Ok(fitted) => assert!(fitted.apply(&widest).is_ok()),
            Err(error) => assert!(matches!(error, DataError::Spread { .. }), "{error}"),
        }
    }

    #[test]
    fn constant_columns_are_named() {
        let names = Some(vec!["a".to_owned(), "b".to_owned()]);
        let table = Table::new(names, 2, vec![1.0, 0.1, 2.0, 0.1, 3.0, 0.1]).expect("a table");
        assert_eq!(
            Standardiser::fit(&table).expect_err("constant").to_string(),
            "column 2 (`b`) is 0.1 in every row: a constant column has no density, so leave it out"
        );
        assert!(matches!(Standardiser::fit(&column(&[1.0])), Err(DataError::TooFewRows { rows: 1, .. })));
    }

    #[test]
    fn parts_are_checked() {
        assert!(Standardiser::new(vec![], vec![]).is_err());
        assert!(Standardiser::new(vec![0.0], vec![1.0, 1.0]).is_err());
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-310] {
            assert!(matches!(Standardiser::new(vec![0.0], vec![bad]), Err(DataError::Spread { .. })), "{bad}");
        }
        assert!(Standardiser::new(vec![f64::NAN], vec![1.0]).is_err());
        let two = Standardiser::identity(2);
        assert!(matches!(two.apply(&column(&[1.0])), Err(DataError::Width { found: 1, expected: 2 })));
    }
}
