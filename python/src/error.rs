//! The library's errors as Python's exceptions.

use pyo3::exceptions::{PyArithmeticError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use resflow::Error;
use resflow::error::{CheckpointError, ConfigError, DataError};

pyo3::create_exception!(
    resflow,
    DivergedError,
    PyArithmeticError,
    "Training became non-finite: try a lower learning rate, or a smaller coefficient."
);

/// The exception of an error: what the caller gave is a `ValueError`, what the file system refused an `OSError`, what
/// the device did a `RuntimeError`.
pub(crate) fn raised(error: Error) -> PyErr {
    match error {
        Error::Checkpoint(CheckpointError::Io { path, source }) => io(&path, &source),
        Error::Diverged { .. } => DivergedError::new_err(error.to_string()),
        Error::Backend(_) | Error::Transform { .. } | Error::Target(_) => PyRuntimeError::new_err(error.to_string()),
        other => PyValueError::new_err(other.to_string()),
    }
}

/// The exception of an error of data.
pub(crate) fn of_data(error: DataError) -> PyErr {
    raised(error.into())
}

/// The exception of an error of settings.
pub(crate) fn of_settings(error: ConfigError) -> PyErr {
    raised(error.into())
}

/// The exception of a file: that of its number, such as `FileNotFoundError`, with the file's name.
fn io(path: &str, source: &std::io::Error) -> PyErr {
    use pyo3::exceptions::PyOSError;
    match source.raw_os_error() {
        // OSError(errno, text, file) makes itself the subclass of its number
        Some(number) => {
            let text = source.to_string();
            let text = text.rsplit_once(" (os error").map_or(text.clone(), |(text, _)| text.to_owned());
            PyOSError::new_err((number, text, path.to_owned()))
        }
        None => PyOSError::new_err(format!("{path}: {source}")),
    }
}
