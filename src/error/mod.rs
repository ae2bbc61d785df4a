//! Errors of the library, by what the caller can do about them.

mod cells;
mod data;
mod group;
mod image;
mod import;
mod text;

pub use cells::{CellFaults, ColumnFault, Fault};
pub use data::{DataError, OutsideSupport, Place, UnseenLevel};
pub use group::GroupError;
pub use image::{ImageError, ImageSize};
pub use import::ImportError;
use resflow_backend::BackendError;
pub(crate) use text::Count;
pub(crate) use text::{Excerpt, Message};

/// An invalid setting or architecture.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number outside its range.
    #[error("`{name}` is {value}, expected {expected}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The values that it may have.
        expected: &'static str,
    },
    /// Settings or shapes that do not belong together.
    #[error("{0}")]
    Inconsistent(String),
    /// Text that is not a configuration.
    #[error("not a valid configuration: {0}")]
    Syntax(String),
}

/// An error of a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The bytes are not such a file.
    #[error("not a resflow file: {}", Message(.0))]
    Format(String),
    /// A tensor is missing, superfluous or misshapen, or holds what it must not.
    #[error("tensor `{}`: {}", Excerpt(name), Message(problem))]
    Tensor {
        /// Its name.
        name: String,
        /// The problem.
        problem: String,
    },
    /// The configuration inside is not valid.
    #[error("the configuration inside: {0}")]
    Config(#[from] ConfigError),
}

/// Any error of this library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An invalid setting or architecture.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Input whose shape or values do not fit the model.
    #[error("{0}")]
    Input(String),
    /// A file or data set that cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A foreign file that cannot be read or does not belong to the architecture.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Training became non-finite; nothing was changed by that step.
    #[error(
        "training diverged at step {step}: {what} is not finite{}; the state before this step is kept, try a lower learning rate or a smaller coefficient",
        layer.as_ref().map(|l| format!(" (first in {l})")).unwrap_or_default()
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// The loss or the gradient.
        what: &'static str,
        /// The first tensor whose gradient is not finite.
        layer: Option<String>,
    },
    /// Somebody who waited for the result wanted it no more ([`Fit::abandon`](crate::Fit::abandon)).
    #[error("stopped before the end, as was asked for")]
    Interrupted,
    /// A transform gave something else than it was asked for, or of a wrong shape.
    #[error("transform {number} {problem}")]
    Transform {
        /// Its number in the chain, from 0.
        number: usize,
        /// The problem.
        problem: String,
    },
    /// A part of a model that does not say what it is, so that a file of the model could not be loaded.
    #[error(
        "transform {number} ({description}) does not say what it is, so the model could not be loaded again: give it a `stage`, and register a maker for it where models are loaded"
    )]
    Unregistered {
        /// Its number in the chain, from 0.
        number: usize,
        /// Its description.
        description: String,
    },
    /// The target density of a variational fit failed, in its own words.
    #[error("the target density failed: {0}")]
    Target(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another process of the group ended, did not answer or holds something else.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
