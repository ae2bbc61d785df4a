//! The Rust half of the Python package `resflow`: samples, models and fits as Python's classes, without what makes them
//! pleasant, which is Python in `resflow/`.
//!
//! Numbers come as NumPy's arrays and are copied once, into the library's tables; what is computed becomes an array without a
//! copy. The interpreter's lock is released while the library computes. The one unsafe block takes a table from a capsule of
//! Arrow's C interface (`frame.rs`).
#![deny(unsafe_code)]

mod device;
mod error;
mod fit;
mod frame;
mod look;
mod model;
mod samples;
mod trainable;
mod words;

use pyo3::prelude::*;

/// The module `resflow._core`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<samples::Samples>()?;
    module.add_class::<frame::Frame>()?;
    module.add_class::<model::Model>()?;
    module.add_class::<model::Conditioned>()?;
    module.add_class::<trainable::Trainable>()?;
    module.add_function(wrap_pyfunction!(fit::fit, module)?)?;
    module.add_function(wrap_pyfunction!(look::look, module)?)?;
    module.add_function(wrap_pyfunction!(device::devices, module)?)?;
    module.add("DivergedError", module.py().get_type::<error::DivergedError>())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
