//! Faults of a device, as data.

/// A fault beneath the operations of a [`Backend`](crate::Backend).
///
/// Operations are infallible to call, because a device may run long after the call returned. A fault is
/// recorded by the backend and returned by the next call that waits:
/// [`download`](crate::Backend::download) or [`synchronize`](crate::Backend::synchronize).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No device that this backend could use was found.
    #[error("no usable device: {0}")]
    NoDevice(String),
    /// The device disappeared; a new backend can be made, the tensors are gone.
    #[error("the device was lost: {0}")]
    DeviceLost(String),
    /// An allocation did not fit.
    #[error("out of memory on the device: {0}")]
    OutOfMemory(String),
    /// The driver refused a kernel.
    #[error("the driver rejected a kernel: {0}")]
    Kernel(String),
    /// A limit of the device or of this backend was exceeded.
    #[error("unsupported by this backend: {0}")]
    Unsupported(String),
    /// The backend could not be set up as asked, for example with zero threads.
    #[error("the backend could not be set up: {0}")]
    Setup(String),
}
