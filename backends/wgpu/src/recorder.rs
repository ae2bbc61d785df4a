//! Recording: one compute pass over many launches, submitted in batches.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;

use crate::kernel::Groups;
use crate::memory::Storage;
use crate::pipeline::Pipeline;
use crate::tensor::Tensor;

/// Launches in a submission, the first after a wait and the following: the device should start early, and not be asked often.
const BATCHES: [usize; 4] = [8, 16, 32, 96];
/// Bytes uploaded in a submission, and in all that may be unfinished.
const UPLOADS: u64 = 64 << 20;
const UPLOADS_IN_FLIGHT: u64 = 256 << 20;
/// Submissions that may be unfinished; the next one waits for the oldest.
const IN_FLIGHT: usize = 16;
/// Bind groups that are kept.
const GROUPS: usize = 8192;
/// The most tensors of a launch.
const OPERANDS: usize = 12;

/// What a device has been asked to do since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Kernels launched.
    pub launches: u64,
    /// Submissions to the queue.
    pub submissions: u64,
    /// Times that the host waited for data.
    pub read_backs: u64,
    /// Bytes read back.
    pub bytes_read_back: u64,
    /// Bytes of device memory held, in use or free for reuse.
    pub memory: u64,
}

/// Commands that are not submitted yet.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    // before the encoder: a pass must end first
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    launches: usize,
    /// Bytes uploaded since the last submission.
    uploaded: u64,
    /// Submissions since the last wait.
    batches: usize,
    /// Submissions, with the bytes uploaded for them.
    in_flight: VecDeque<(wgpu::SubmissionIndex, u64)>,
    groups: HashMap<(usize, [u64; OPERANDS]), wgpu::BindGroup>,
    statistics: Statistics,
}

impl Recorder {
    pub(crate) fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Drops the bind groups, which keep their buffers alive.
    pub(crate) fn forget_groups(&mut self) {
        self.groups.clear();
    }

    pub(crate) fn launch(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        pipeline: &Pipeline,
        operands: &[&Storage],
        immediates: &[u8],
        [x, y, z]: Groups,
    ) {
        let encoder = self
            .encoder
            .get_or_insert_with(|| device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()));
        let pass = self.pass.get_or_insert_with(|| {
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime()
        });
        let make = || {
            let entries: Vec<_> = operands
                .iter()
                .enumerate()
                .map(|(at, x)| wgpu::BindGroupEntry { binding: at as u32, resource: x.buffer().as_entire_binding() })
                .collect();
            let layout = &pipeline.layout;
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
        };
        pass.set_pipeline(&pipeline.compute);
        if operands.len() <= OPERANDS && operands.iter().all(|x| x.recurs()) {
            let mut ids = [u64::MAX; OPERANDS];
            for (id, x) in ids.iter_mut().zip(operands) {
                *id = x.id();
            }
            if self.groups.len() >= GROUPS {
                self.groups.clear();
            }
            pass.set_bind_group(0, &*self.groups.entry((pipeline.reads, ids)).or_insert_with(make), &[]);
        } else {
            pass.set_bind_group(0, &make(), &[]);
        }
        pass.set_immediates(0, immediates);
        pass.dispatch_workgroups(x, y, z);
        self.launches += 1;
        self.statistics.launches += 1;
        pipeline.launches.fetch_add(1, Ordering::Relaxed);
        if self.launches >= BATCHES[self.batches.min(BATCHES.len() - 1)] {
            self.submit(device, queue);
        }
    }

    /// Counts bytes that the next submission brings to the device, and submits when they are many.
    pub(crate) fn count_upload(&mut self, device: &wgpu::Device, queue: &wgpu::Queue, bytes: u64) {
        self.uploaded += bytes;
        if self.uploaded >= UPLOADS {
            self.encoder
                .get_or_insert_with(|| device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()));
            self.submit(device, queue);
        }
    }

    /// Submits what is recorded; `None` if that is nothing.
    pub(crate) fn submit(&mut self, device: &wgpu::Device, queue: &wgpu::Queue) -> Option<wgpu::SubmissionIndex> {
        self.pass = None;
        let encoder = self.encoder.take()?;
        self.launches = 0;
        self.batches += 1;
        self.statistics.submissions += 1;
        let index = queue.submit([encoder.finish()]);
        self.in_flight.push_back((index.clone(), std::mem::take(&mut self.uploaded)));
        while self.in_flight.len() > IN_FLIGHT || self.in_flight.iter().map(|f| f.1).sum::<u64>() > UPLOADS_IN_FLIGHT {
            let submission_index = self.in_flight.pop_front().map(|(index, _)| index);
            let poll = wgpu::PollType::Wait { submission_index, timeout: None };
            // a fault shows at the next wait of the caller
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.poll(poll)));
        }
        Some(index)
    }

    /// Copies a tensor into a buffer that the host can map, and submits.
    pub(crate) fn read_back(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        x: &Tensor,
        staging: &wgpu::Buffer,
        bytes: u64,
    ) -> Option<wgpu::SubmissionIndex> {
        self.pass = None;
        let encoder = self
            .encoder
            .get_or_insert_with(|| device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()));
        encoder.copy_buffer_to_buffer(x.storage().buffer(), x.offset() as u64 * 4, staging, 0, bytes);
        self.statistics.read_backs += 1;
        self.statistics.bytes_read_back += bytes;
        let index = self.submit(device, queue);
        self.batches = 0;
        index
    }
}
