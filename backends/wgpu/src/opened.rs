//! The devices of this process: each is used by one [`Gpu`](crate::device::Gpu) at a time, and afterwards by the next one that
//! asks for its like.
//!
//! None is ever closed. NVIDIA's driver (580.159 on Linux) hangs where one thread closes a device (`vkDestroyDevice`) while
//! another one submits work to its own: five of twelve runs of `tests/faults.rs` did on an H200. Nobody but the last tensor
//! of a device knows when it would be closed, so no lock can keep the two apart. What stays is the device itself: tensors,
//! kernels and bind groups go with their owner.

use std::sync::Mutex;

use resflow_backend::BackendError;

use crate::adapter::{AdapterChoice, AdapterInfo, choose};
use crate::fault::lock;

/// An open device with its queue.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: AdapterInfo,
}

/// Those that nobody uses.
static IDLE: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

impl Opened {
    /// A device of the adapter of this choice, with the features that `wanted` finds that it needs.
    pub(crate) fn open(
        choice: &AdapterChoice,
        wanted: impl FnOnce(&wgpu::Adapter, &AdapterInfo) -> Result<wgpu::Features, BackendError>,
    ) -> Result<Self, BackendError> {
        let (adapter, info) = choose(choice)?;
        let features = wanted(&adapter, &info)?;
        if let Some(idle) = Self::take(|idle| idle.info == info && idle.device.features() == features) {
            return Ok(idle);
        }
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("resflow"),
            required_features: features,
            required_limits: adapter.limits(),
            experimental_features: experimental(features),
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        }))
        .map_err(|e| BackendError::NoDevice(format!("{info}: {e}")))?;
        Ok(Self { device, queue, info })
    }

    fn take(fits: impl Fn(&Self) -> bool) -> Option<Self> {
        let mut idle = lock(&IDLE);
        let at = idle.iter().position(fits)?;
        Some(idle.swap_remove(at))
    }

    /// Keeps the device for the next one that asks; one that is lost is kept from being closed, and no more.
    pub(crate) fn give_back(self, lost: bool) {
        if lost {
            std::mem::forget(self);
        } else {
            lock(&IDLE).push(self);
        }
    }
}

/// wgpu asks for an unsafe token before it lets anyone enable a feature that it calls experimental.
#[allow(unsafe_code)]
fn experimental(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        // SAFETY: the token asserts no invariant of memory, only that bugs of the feature are acceptable. The feature is
        // cooperative matrices, which the user chose by a precision and which the kernels use within checked bounds.
        unsafe { wgpu::ExperimentalFeatures::enabled() }
    } else {
        wgpu::ExperimentalFeatures::disabled()
    }
}

#[cfg(test)]
mod tests {
    use crate::device::Gpu;
    use crate::options::WgpuOptions;

    /// A device is used again once its owner is gone, and never one that is lost.
    #[test]
    fn devices_are_used_again() {
        let open = || Gpu::open(&WgpuOptions::default());
        let (Ok(one), Ok(two)) = (open(), open()) else {
            assert!(std::env::var("RESFLOW_REQUIRE_GPU").is_err(), "no adapter");
            return eprintln!("SKIPPED, NOT TESTED: no adapter");
        };
        assert_ne!(one.device(), two.device(), "two at a time share no device");
        let before = [one.device().clone(), two.device().clone()];
        drop((one, two));
        // other tests may take one of them
        let (one, two) = (open().expect("as before"), open().expect("as before"));
        assert!(before.contains(one.device()) || before.contains(two.device()));
        for lost in [one, two] {
            let device = lost.device().clone();
            device.destroy();
            // whether or not its owner has noticed
            drop(lost);
            let next = open().expect("a new device after a loss");
            assert_ne!(next.device(), &device);
            let x = next.upload(bytemuck::cast_slice(&[1.0_f32, 2.0]), [2].into());
            assert_eq!(next.download(&x), Ok(vec![1.0, 2.0]));
        }
    }
}
