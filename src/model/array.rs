//! Arrays as samples, and samples as arrays.

use ndarray::{Array2, ArrayRef2, ArrayView2};

use crate::data::image::ImageSet;
use crate::data::{Categories, Dataset, Incomplete, Table, Values};
use crate::error::{DataError, Error};

/// A source of samples: arrays and rows of numbers, tables, images.
pub trait IntoDataset {
    /// Converts to samples.
    ///
    /// # Errors
    /// Returns [`DataError::NotFinite`] for a number that is not finite, [`DataError::UnequalRows`] for rows of
    /// different lengths, [`DataError::TableShape`] for no columns.
    fn into_dataset(self) -> Result<Dataset, DataError>;

    /// Converts to samples of whose cells some may be missing, which are NaN.
    ///
    /// # Errors
    /// Returns the errors of [`into_dataset`](Self::into_dataset), but none for NaN.
    fn into_incomplete(self) -> Result<Incomplete, DataError>
    where
        Self: Sized,
    {
        Ok(self.into_dataset()?.into())
    }
}

fn incomplete_of_view<T: Copy + Into<f64>>(x: &ArrayRef2<T>) -> Result<Incomplete, DataError> {
    Incomplete::new(None, x.ncols(), x.iter().map(|&v| v.into()).collect())
}

fn of_view<T: Copy + Into<f64>>(x: &ArrayRef2<T>) -> Result<Dataset, DataError> {
    Ok(Table::new(None, x.ncols(), x.iter().map(|&v| v.into()).collect())?.into())
}

macro_rules! arrays {
    ($($element:ty),*) => {$(
        impl IntoDataset for ArrayView2<'_, $element> {
            fn into_dataset(self) -> Result<Dataset, DataError> {
                of_view(&self)
            }

            fn into_incomplete(self) -> Result<Incomplete, DataError> {
                incomplete_of_view(&self)
            }
        }

        impl IntoDataset for &ArrayView2<'_, $element> {
            fn into_dataset(self) -> Result<Dataset, DataError> {
                of_view(self)
            }

            fn into_incomplete(self) -> Result<Incomplete, DataError> {
                incomplete_of_view(self)
            }
        }

        impl IntoDataset for &Array2<$element> {
            fn into_dataset(self) -> Result<Dataset, DataError> {
                of_view(self)
            }

            fn into_incomplete(self) -> Result<Incomplete, DataError> {
                incomplete_of_view(self)
            }
        }
    )*};
}
arrays!(f64, f32);

impl IntoDataset for &[Vec<f64>] {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        Dataset::from_rows(self)
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Incomplete::from_rows(self)
    }
}

impl IntoDataset for &Vec<Vec<f64>> {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        Dataset::from_rows(self)
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Incomplete::from_rows(self)
    }
}

impl<const D: usize> IntoDataset for &[[f64; D]] {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        Dataset::from_rows(self)
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Incomplete::from_rows(self)
    }
}

impl<const D: usize> IntoDataset for &Vec<[f64; D]> {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        Dataset::from_rows(self)
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Incomplete::from_rows(self)
    }
}

impl<const D: usize, const N: usize> IntoDataset for &[[f64; D]; N] {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        Dataset::from_rows(self)
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Incomplete::from_rows(self)
    }
}

impl IntoDataset for Incomplete {
    /// Takes samples that lack nothing.
    fn into_dataset(self) -> Result<Dataset, DataError> {
        self.complete()
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Ok(self)
    }
}

impl IntoDataset for &Incomplete {
    /// Takes samples that lack nothing.
    fn into_dataset(self) -> Result<Dataset, DataError> {
        self.clone().complete()
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Ok(self.clone())
    }
}

impl IntoDataset for Dataset {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        self.into_incomplete()?.complete()
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Ok(self.into())
    }
}

impl IntoDataset for &Dataset {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        self.into_incomplete()?.complete()
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Ok(self.clone().into())
    }
}

impl IntoDataset for Table {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        self.into_incomplete()?.complete()
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Ok(self.into())
    }
}

impl IntoDataset for &Table {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        self.into_incomplete()?.complete()
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        Ok(self.clone().into())
    }
}

impl IntoDataset for Categories {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        Ok(self.into())
    }
}

impl IntoDataset for &Categories {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        Ok(self.clone().into())
    }
}

impl IntoDataset for ImageSet {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        Ok(self.into())
    }
}

impl IntoDataset for &ImageSet {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        Ok(self.clone().into())
    }
}

/// A table as an array.
pub(super) fn array(table: Table) -> Array2<f64> {
    let shape = (table.rows(), table.width());
    Array2::from_shape_vec(shape, table.into_values()).expect("a table has rows times width numbers")
}

/// Latents, which are a table.
pub(super) fn latents(z: impl IntoDataset) -> Result<Table, Error> {
    match z.into_dataset()?.into_values() {
        Values::Tabular(table) => Ok(table),
        Values::Images(_) => Err(Error::Input("latents are numbers, not images of bytes".into())),
    }
}
