//! Arrays as samples.

use std::sync::{Mutex, PoisonError};

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray4};
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use resflow::data::image::ImageSet;
use resflow::data::{DataError, Dataset, Incomplete, Table};
use resflow::model::IntoDataset;

use crate::error::{of_data, raised};
use crate::frame::Frame;

/// Samples with what belongs to them. Whatever is done with them takes them, so that there is one copy.
#[pyclass(frozen, module = "resflow._core")]
#[derive(Debug)]
pub(crate) struct Samples(Mutex<Option<Rows>>);

/// Samples of which every cell is there, or not.
#[derive(Debug)]
pub(crate) enum Rows {
    Complete(Dataset),
    Incomplete(Incomplete),
}

impl IntoDataset for Rows {
    fn into_dataset(self) -> Result<Dataset, DataError> {
        match self {
            Self::Complete(data) => Ok(data),
            Self::Incomplete(rows) => rows.complete(),
        }
    }

    fn into_incomplete(self) -> Result<Incomplete, DataError> {
        match self {
            Self::Complete(data) => Ok(data.into()),
            Self::Incomplete(rows) => Ok(rows),
        }
    }
}

/// The rows of a frame, or of an array.
pub(crate) fn rows(rows: &Bound<'_, PyAny>, names: Option<Vec<String>>) -> PyResult<Dataset> {
    match rows.cast::<Frame>() {
        Ok(frame) => frame.get().take(),
        Err(_) => Ok(table(rows, names)?.into()),
    }
}

/// A table of an array, `[n, d]`, of doubles or of single precision.
pub(crate) fn table(array: &Bound<'_, PyAny>, names: Option<Vec<String>>) -> PyResult<Table> {
    let (width, values) = numbers(array)?;
    Table::new(names, width, values).map_err(of_data)
}

/// The columns of an array and its numbers, row by row, whatever the order in memory.
fn numbers(array: &Bound<'_, PyAny>) -> PyResult<(usize, Vec<f64>)> {
    fn of<T: Copy + Into<f64>>(x: ndarray::ArrayView2<'_, T>) -> (usize, Vec<f64>) {
        (x.ncols(), x.iter().map(|&v| v.into()).collect())
    }
    if let Ok(x) = array.extract::<PyReadonlyArray2<'_, f64>>() {
        return Ok(of(x.as_array()));
    }
    match array.extract::<PyReadonlyArray2<'_, f32>>() {
        Ok(x) => Ok(of(x.as_array())),
        Err(_) => Err(PyTypeError::new_err("expected a two-dimensional array of float64 or float32")),
    }
}

impl Samples {
    fn of(rows: Rows) -> Self {
        Self(Mutex::new(Some(rows)))
    }

    /// Takes the samples.
    pub(crate) fn take(&self) -> PyResult<Rows> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.take().ok_or_else(|| PyRuntimeError::new_err("these samples were taken already"))
    }
}

#[pymethods]
impl Samples {
    /// Rows of numbers, `[n, d]`, in whose columns' names, contexts, `[n, k]`, and weights, `[n]`, there may be.
    #[staticmethod]
    #[pyo3(signature = (values, names=None, context=None, context_names=None, weights=None, missing=false))]
    fn rows(
        values: &Bound<'_, PyAny>,
        names: Option<Vec<String>>,
        context: Option<&Bound<'_, PyAny>>,
        context_names: Option<Vec<String>>,
        weights: Option<PyReadonlyArray1<'_, f64>>,
        missing: bool,
    ) -> PyResult<Self> {
        if missing && context.is_none() {
            return Self::incomplete(values, names, weights);
        }
        Self::with(self::rows(values, names)?, context, context_names, weights)
    }

    /// Images as bytes, `[n, h, w, c]`, with contexts and weights.
    #[staticmethod]
    #[pyo3(signature = (values, context=None, context_names=None, weights=None))]
    fn images(
        values: PyReadonlyArray4<'_, u8>,
        context: Option<&Bound<'_, PyAny>>,
        context_names: Option<Vec<String>>,
        weights: Option<PyReadonlyArray1<'_, f64>>,
    ) -> PyResult<Self> {
        let images = values.as_array();
        let (_, height, width, channels) = images.dim();
        let set = ImageSet::new(height, width, channels, images.iter().copied().collect(), None).map_err(of_data)?;
        Self::with(set.into(), context, context_names, weights)
    }
}

impl Samples {
    /// Rows of whose cells some may be missing, which are NaN.
    fn incomplete(
        values: &Bound<'_, PyAny>,
        names: Option<Vec<String>>,
        weights: Option<PyReadonlyArray1<'_, f64>>,
    ) -> PyResult<Self> {
        let mut rows = if let Ok(frame) = values.cast::<Frame>() {
            frame.get().take()?.into()
        } else {
            let (width, values) = numbers(values)?;
            Incomplete::new(names, width, values).map_err(of_data)?
        };
        if let Some(weights) = weights {
            rows = rows.with_weights(weights.as_array().iter().copied().collect()).map_err(of_data)?;
        }
        Ok(Self::of(Rows::Incomplete(rows)))
    }

    fn with(
        mut data: Dataset,
        context: Option<&Bound<'_, PyAny>>,
        context_names: Option<Vec<String>>,
        weights: Option<PyReadonlyArray1<'_, f64>>,
    ) -> PyResult<Self> {
        if let Some(context) = context {
            data = data.given_rows(rows(context, context_names)?).map_err(raised)?;
        }
        if let Some(weights) = weights {
            data = data.with_weights(weights.as_array().iter().copied().collect()).map_err(of_data)?;
        }
        Ok(Self::of(Rows::Complete(data)))
    }
}
