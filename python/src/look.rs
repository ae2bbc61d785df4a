//! A look at a table before a flow is fitted to it.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use resflow::data;
use resflow::model::IntoDataset as _;

use crate::error::of_data;
use crate::samples::Samples;

/// What would make a table's density meaningless, and what would only hurt, in JSON.
#[pyfunction]
pub(crate) fn look(py: Python<'_>, samples: &Samples) -> PyResult<String> {
    let rows = samples.take()?.into_dataset().map_err(of_data)?;
    let table =
        rows.table().ok_or_else(|| PyValueError::new_err("images are no table: there is nothing to look for"))?;
    let found = py.detach(|| data::look(table, rows.weights())).map_err(of_data)?;
    serde_json::to_string(&found.findings).map_err(|e| PyRuntimeError::new_err(e.to_string()))
}
