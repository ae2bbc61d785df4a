//! --weight: a column of a table that is no part of the samples, but what each of them weighs.

use anyhow::{Context as _, Result};
use resflow::data::{DataError, Opened};

use super::Data;
use crate::failure::usage;

impl Data {
    /// Takes the column that was named, if any, out of a table as the weights of its rows.
    pub(crate) fn weighted_by(self, column: Option<&str>, name: &str) -> Result<Self> {
        let Some(column) = column else { return Ok(self) };
        let context = format!("--weight {column}: {name}");
        let opened = match self {
            Self::Density(_) => {
                return Err(usage(format_args!("{context} is a built-in density, weights are a column of a file")));
            }
            Self::Large(_) => {
                return Err(usage(format_args!(
                    "{context} is larger than memory: weights are not read as they are needed"
                )));
            }
            Self::Stored(opened) => opened,
        };
        let Some(table) = opened.data.table().filter(|_| opened.image_size.is_none()) else {
            return Err(usage(format_args!("{context} holds images, weights are a column of a table")));
        };
        if table.columns().is_some_and(|names| *names == [column]) && opened.data.categories().is_none() {
            return Err(usage(format_args!("{context} has no other column")));
        }
        match opened.data.with_weight_column(column) {
            Ok(data) => Ok(Self::Stored(Opened { data, ..opened })),
            Err(e @ DataError::NoColumn { .. }) => Err(usage(format_args!("{context}: {e}"))),
            Err(e) => Err(e).context(context),
        }
    }
}

/// The number of rows of equal weight whose mean is known as well, (Σ wᵢ)² / Σ wᵢ² (Kish 1965).
pub(crate) fn effective_count(weights: &[f64]) -> f64 {
    let heaviest = weights.iter().copied().fold(0.0, f64::max);
    let shares = || weights.iter().map(|w| w / heaviest);
    shares().sum::<f64>().powi(2) / shares().map(|w| w * w).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_count_the_rows() {
        for weight in [1e-300, 1.0, 1e300] {
            assert!((effective_count(&[weight, weight, 0.0, weight]) - 3.0).abs() < 1e-12);
        }
        // 4² / (3² + 1)
        assert!((effective_count(&[3.0, 1.0]) - 1.6).abs() < 1e-12);
    }
}
