//! The devices of this process: each is used by one [`Gpu`](crate::device::Gpu) at a time.
//!
//! On Vulkan none is ever closed; the next one that asks for its like gets it. NVIDIA's driver (580.159 on Linux) hangs where
//! one thread closes a device (`vkDestroyDevice`) while another one submits work to its own: five of twelve runs of
//! `tests/faults.rs` did on an H200. Nobody but the last tensor of a device knows when it would be closed, so no lock can
//! keep the two apart. What stays is the device itself, with its allocator's last block: whoever gives one back has finished
//! its work, so that tensors, kernels and bind groups are gone.
//!
//! Elsewhere devices are closed with their last handle. DX12 has one device an adapter, which must be closed after a loss
//! before there can be another.

use std::sync::{Arc, Mutex};

use resflow_backend::BackendError;

use crate::adapter::{AdapterChoice, AdapterInfo, choose};
use crate::fault::{Faults, lock};

/// An open device with its queue, and what went wrong with it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: AdapterInfo,
    pub(crate) faults: Arc<Faults>,
}

/// Devices that nobody uses.
static IDLE: Mutex<Vec<(wgpu::Device, wgpu::Queue, AdapterInfo)>> = Mutex::new(Vec::new());

impl Opened {
    /// A device of the adapter of this choice, with the features that `wanted` finds that it needs.
    pub(crate) fn open(
        choice: &AdapterChoice,
        wanted: impl FnOnce(&wgpu::Adapter, &AdapterInfo) -> Result<wgpu::Features, BackendError>,
    ) -> Result<Self, BackendError> {
        let (adapter, info) = choose(choice)?;
        let features = wanted(&adapter, &info)?;
        let idle = || {
            let mut idle = lock(&IDLE);
            let at = idle.iter().position(|(device, _, of)| *of == info && device.features() == features)?;
            Some(idle.swap_remove(at))
        };
        while let Some((device, queue, info)) = idle() {
            // one that was lost while nobody used it says so now
            if let Ok(used_before) = Self::watched(device, queue, info) {
                return Ok(used_before);
            }
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
        Self::watched(device, queue, info)
    }

    /// With handlers of its own; an error if the device is lost.
    fn watched(device: wgpu::Device, queue: wgpu::Queue, info: AdapterInfo) -> Result<Self, BackendError> {
        let faults = Faults::watch(&device);
        let opened = Self { device, queue, info, faults };
        opened.faults.poll(&opened.device, wgpu::PollType::Poll);
        match opened.faults.lost() {
            None => Ok(opened),
            Some(lost) => Err(lost),
        }
    }
}

/// Everything else that its owner had is dropped before: it must be the owner's last field.
impl Drop for Opened {
    fn drop(&mut self) {
        if self.info.api != "Vulkan" {
            return;
        }
        let kept = (self.device.clone(), self.queue.clone(), self.info.clone());
        // wgpu keeps what is in flight, and uploads that were never submitted, until the device is asked again
        self.queue.submit([]);
        self.faults.poll(&self.device, wgpu::PollType::Wait { submission_index: None, timeout: None });
        if self.faults.lost().is_some() {
            // not closed either
            std::mem::forget(kept);
        } else {
            lock(&IDLE).push(kept);
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
    use crate::adapter::AdapterChoice;
    use crate::device::Gpu;
    use crate::options::WgpuOptions;

    /// A device is used again once its owner is gone, and never one that is lost, even if it was busy.
    #[test]
    fn devices_are_used_again() {
        let open = || Gpu::open(&WgpuOptions { adapter: AdapterChoice::from_env(), ..WgpuOptions::default() });
        let (Ok(one), Ok(two)) = (open(), open()) else {
            assert!(std::env::var("RESFLOW_REQUIRE_GPU").is_err(), "no adapter");
            return eprintln!("SKIPPED, NOT TESTED: no adapter");
        };
        assert_ne!(one.device(), two.device(), "two at a time share no device");
        if one.info().api != "Vulkan" {
            return;
        }
        let before = [one.device().clone(), two.device().clone()];
        drop((one, two));
        // other tests may take one of them
        let (one, two) = (open().expect("as before"), open().expect("as before"));
        assert!(before.contains(one.device()) || before.contains(two.device()));
        for lost in [one, two] {
            let device = lost.device().clone();
            let x = lost.full(1.5, [1 << 20].into());
            for _ in 0..100 {
                let _ = lost.affine(&x, 2.0, 1.0);
            }
            device.destroy();
            // whether or not its owner has noticed
            drop((x, lost));
            let next = open().expect("a new device after a loss");
            assert_ne!(next.device(), &device);
            let x = next.upload(bytemuck::cast_slice(&[1.0_f32, 2.0]), [2].into());
            assert_eq!(next.download(&x), Ok(vec![1.0, 2.0]));
        }
    }
}
