//! Devices by name.

use std::num::NonZeroUsize;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use resflow::device::{DeviceKind, DeviceOptions, Precision, adapters};

/// The options of a device: `"cpu"`, `"gpu"`, `"gpu:NAME or NUMBER"` or `"best"`; `native` is the precision where none is asked
/// for.
pub(crate) fn options(
    device: &str,
    precision: Option<&str>,
    threads: Option<usize>,
    native: Precision,
) -> PyResult<DeviceOptions> {
    let (kind, adapter) = match (device, device.split_once(':')) {
        ("cpu", _) => (DeviceKind::Cpu, None),
        ("gpu", _) => (DeviceKind::Gpu, None),
        ("best", _) => (DeviceKind::Best, None),
        (_, Some(("gpu", adapter))) if !adapter.is_empty() => (DeviceKind::Gpu, Some(adapter.to_owned())),
        _ => {
            let problem = format!("device is {device:?}, expected 'cpu', 'gpu', 'gpu:NAME' or 'best'");
            return Err(PyValueError::new_err(problem));
        }
    };
    let precision = match precision {
        Some("f64") => Precision::F64,
        None if kind == DeviceKind::Cpu => native,
        // a GPU has single precision only
        Some("f32") | None => Precision::F32,
        Some(other) => return Err(PyValueError::new_err(format!("precision is {other:?}, expected 'f32' or 'f64'"))),
    };
    let threads = match threads.map(NonZeroUsize::new) {
        Some(None) => return Err(PyValueError::new_err("threads is 0, expected 1 or more, or None for all cores")),
        Some(threads) => threads,
        None => None,
    };
    Ok(DeviceOptions { kind, precision, threads, adapter, ..DeviceOptions::default() })
}

/// Lists the GPUs that are there, as dicts.
#[pyfunction]
pub(crate) fn devices(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let found = py.detach(adapters).unwrap_or_default();
    found
        .into_iter()
        .map(|adapter| {
            let entry = PyDict::new(py);
            entry.set_item("index", adapter.index)?;
            entry.set_item("name", adapter.name)?;
            entry.set_item("kind", adapter.kind)?;
            entry.set_item("api", adapter.api)?;
            entry.set_item("driver", adapter.driver)?;
            entry.set_item("best", adapter.best)?;
            Ok(entry)
        })
        .collect()
}
