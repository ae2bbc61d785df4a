//! Faults: what went wrong on the device, kept until somebody waits.
//!
//! No error of wgpu panics: those of making buffers and pipelines are caught where they arise ([`scoped`]), all others by
//! handlers that [`Faults::watch`] sets, and the next wait returns the first.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resflow_backend::BackendError;

/// The first fault that no wait has returned yet, and whether the device is gone.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pending: Mutex<Option<BackendError>>,
    lost: Mutex<Option<BackendError>>,
    is_lost: AtomicBool,
}

impl Faults {
    /// Those of a device, from now on.
    pub(crate) fn watch(device: &wgpu::Device) -> Arc<Self> {
        let faults = Arc::new(Self::default());
        let handler = Arc::clone(&faults);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| handler.record(fault(&error))));
        let handler = Arc::clone(&faults);
        device.set_device_lost_callback(move |reason, message| handler.lose(format!("{reason:?}: {message}")));
        faults
    }

    /// Keeps a fault for the next wait, unless there is an earlier one.
    pub(crate) fn record(&self, fault: BackendError) {
        lock(&self.pending).get_or_insert(fault);
    }

    /// Says that the device is gone, for good.
    pub(crate) fn lose(&self, message: String) {
        let fault = BackendError::DeviceLost(message);
        lock(&self.lost).get_or_insert(fault.clone());
        self.is_lost.store(true, Ordering::Release);
        self.record(fault);
    }

    /// Why the device is gone, if it is.
    pub(crate) fn lost(&self) -> Option<BackendError> {
        self.is_lost.load(Ordering::Acquire).then(|| lock(&self.lost).clone()).flatten()
    }

    /// Lets wgpu wait and call back. A device that fails while it is waited for makes wgpu panic.
    pub(crate) fn poll(&self, device: &wgpu::Device, how: wgpu::PollType) {
        match catch_unwind(AssertUnwindSafe(|| device.poll(how))) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.record(BackendError::DeviceLost(error.to_string())),
            Err(_) => self.lose("the driver failed while it was waited for".into()),
        }
    }

    /// Whether the next wait has a fault to return.
    pub(crate) fn are_pending(&self) -> bool {
        lock(&self.pending).is_some()
    }

    /// What a wait returns: the loss of the device, or the first fault since the last wait, which is then told.
    pub(crate) fn tell(&self) -> Result<(), BackendError> {
        let pending = lock(&self.pending).take();
        self.lost().or(pending).map_or(Ok(()), Err)
    }
}

/// A lock whose owner may have panicked: every state behind one is valid between operations.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes something; an error on the way is the result.
pub(crate) fn scoped<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T, BackendError> {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    let scopes = [Validation, OutOfMemory, Internal].map(|filter| device.push_error_scope(filter));
    let made = make();
    let mut error = None;
    for scope in scopes.into_iter().rev() {
        error = error.or(pollster::block_on(scope.pop()));
    }
    error.map_or(Ok(made), |e| Err(fault(&e)))
}

fn fault(error: &wgpu::Error) -> BackendError {
    let text = error.to_string();
    match error {
        wgpu::Error::OutOfMemory { .. } => BackendError::OutOfMemory(text),
        wgpu::Error::Validation { .. } => BackendError::Kernel(text),
        wgpu::Error::Internal { .. } => BackendError::DeviceLost(text),
    }
}
