//! The device: opening it, memory, launching kernels and transfers.
//!
//! Launches are recorded and submitted in batches; only [`Gpu::download`] and [`Gpu::synchronize`] wait, and return the first
//! fault since the last wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, mpsc};
use std::time::Duration;

use resflow_backend::{BackendError, Shape};

use crate::adapter::{self, AdapterInfo, AdapterKind};
use crate::arena::Arena;
use crate::cooperative::{CooperativeTile, Split};
use crate::deferred::Pending;
use crate::fault::{lock, scoped};
use crate::kernel::{Groups, IMMEDIATES, Kernel};
use crate::memory::{Pool, Storage};
use crate::opened::Opened;
use crate::options::{Precision, WgpuOptions};
use crate::pipeline::Pipelines;
use crate::recorder::{Recorder, Statistics};
use crate::tensor::Tensor;

/// An open device.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) precision: Precision,
    /// The tiles of cooperative matrices in use, the largest first, and how operands are rounded for them.
    pub(crate) cooperative: Option<(Vec<CooperativeTile>, Split)>,
    pub(crate) limits: wgpu::Limits,
    memory_limit: Option<u64>,
    pool: Arc<Pool>,
    staging: Mutex<HashMap<u64, Vec<wgpu::Buffer>>>,
    pipelines: Pipelines,
    /// Filled tensors that are kept, by the number and its bits; shorter ones are windows of them.
    constants: Mutex<HashMap<(u32, usize), Tensor>>,
    /// Where small tensors are, unless memory is limited.
    arena: OnceLock<Option<Arc<Arena>>>,
    pending: Mutex<Pending>,
    recorder: Mutex<Recorder>,
    /// What tensors without elements, or with a fault, are bound to.
    nothing: (u64, wgpu::Buffer),
    /// The last: it is given back when nothing of all this is left.
    opened: Opened,
}

/// Constants of one element that are kept.
const CONSTANTS: usize = 1024;
/// Elements of the arena.
const ARENA: usize = 8 << 20;

impl Gpu {
    /// Opens the device that the options choose.
    pub(crate) fn open(options: &WgpuOptions) -> Result<Self, BackendError> {
        let precision = options.precision;
        let mut cooperative = None;
        let opened = Opened::open(&options.adapter, |adapter, info| {
            let features = wgpu::Features::IMMEDIATES;
            if !adapter.features().contains(features) || adapter.limits().max_immediate_size < IMMEDIATES {
                return Err(BackendError::NoDevice(format!("{info} takes no immediates of {IMMEDIATES} bytes")));
            }
            let Some(split) = precision.split() else { return Ok(features) };
            let tiles = adapter::cooperative_tiles(adapter, split);
            if tiles.is_empty() {
                return Err(BackendError::Unsupported(format!(
                    "products in {precision} need half-precision cooperative matrices, which {info} does not offer"
                )));
            }
            cooperative = Some((tiles, split));
            Ok(features | adapter::COOPERATIVE)
        })?;
        let device = &opened.device;
        let pool = Arc::new(Pool::default());
        let nothing = device.create_buffer(&storage_descriptor(256));
        Ok(Self {
            nothing: (pool.register(256), nothing),
            limits: device.limits(),
            precision,
            cooperative,
            memory_limit: options.memory_limit,
            pool,
            staging: Mutex::default(),
            pipelines: Pipelines::default(),
            constants: Mutex::default(),
            arena: OnceLock::new(),
            pending: Mutex::default(),
            recorder: Mutex::default(),
            opened,
        })
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.opened.device
    }

    pub(crate) fn queue(&self) -> &wgpu::Queue {
        &self.opened.queue
    }

    /// The adapter that the device is of.
    pub(crate) fn info(&self) -> &AdapterInfo {
        &self.opened.info
    }

    /// Whether everything runs on the processor: fewer and larger units of work are better there.
    pub(crate) fn is_software(&self) -> bool {
        self.info().kind == AdapterKind::Software
    }

    /// The largest tensor in bytes.
    pub(crate) fn largest(&self) -> u64 {
        let binding = self.limits.max_storage_buffer_binding_size;
        binding.min(self.limits.max_buffer_size).min(4 * u64::from(u32::MAX)) & !3
    }

    pub(crate) fn statistics(&self) -> Statistics {
        Statistics { memory: self.pool.total(), ..lock(&self.recorder).statistics() }
    }

    pub(crate) fn launches(&self) -> BTreeMap<String, u64> {
        self.pipelines.launches()
    }

    // ---- memory ---------------------------------------------------------------------------------------------------

    pub(crate) fn empty(&self, shape: Shape, fault: Option<BackendError>) -> Tensor {
        Tensor::new(Storage::empty(&self.pool, self.nothing.clone(), fault), shape)
    }

    /// A tensor that stands for one that could not be made; the next wait returns the fault.
    pub(crate) fn failed(&self, fault: BackendError, shape: Shape) -> Tensor {
        self.opened.faults.record(fault.clone());
        self.empty(shape, Some(fault))
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The arena, made when it is first asked for; `None` where memory is limited, or there is none.
    pub(crate) fn arena(&self) -> Option<&Arc<Arena>> {
        let make = || {
            let bytes = 4 * ARENA as u64;
            if self.memory_limit.is_some() || bytes > self.largest() {
                return None;
            }
            let buffer = self.create_buffer(&storage_descriptor(bytes)).ok()?;
            Some(Arc::new(Arena::new(buffer, self.pool.register(bytes), ARENA)))
        };
        self.arena.get_or_init(make).as_ref()
    }

    /// All of the arena, for those who write to its regions.
    pub(crate) fn arena_tensor(&self) -> Option<Tensor> {
        let arena = self.arena()?;
        let storage = Storage::whole_arena(&self.pool, (arena.id, arena.buffer.clone()));
        Some(Tensor::new(storage, [ARENA].into()))
    }

    pub(crate) fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    pub(crate) fn is_own(&self, x: &Tensor) -> bool {
        x.storage().is_of(&self.pool)
    }

    /// A tensor that another device has made is of no use here; it may have been kept across a loss.
    fn check_origin(&self, x: &Tensor) -> Result<(), BackendError> {
        if x.storage().is_of(&self.pool) {
            return Ok(());
        }
        Err(BackendError::Unsupported(format!(
            "a tensor {} of another device than this {}",
            x.shape(),
            self.info().name
        )))
    }

    /// Memory for a result computed from `operands`; a fault of theirs is its own.
    pub(crate) fn output(&self, operands: &[&Tensor], shape: Shape) -> Tensor {
        if let Err(fault) = operands.iter().try_for_each(|x| self.check_origin(x)) {
            return self.failed(fault, shape);
        }
        if let Some(fault) = operands.iter().find_map(|x| x.fault()).cloned() {
            return self.empty(shape, Some(fault));
        }
        if shape.elements() == 0 {
            return self.empty(shape, None);
        }
        let bytes = shape.elements() as u64 * 4;
        match self.allocate(bytes) {
            Ok(storage) => Tensor::new(storage, shape),
            Err(fault) => self.failed(fault, shape),
        }
    }

    fn allocate(&self, bytes: u64) -> Result<Storage, BackendError> {
        self.check_size(bytes)?;
        let class = Pool::class(bytes).min(self.largest());
        if let Some((id, buffer)) = self.pool.take(class) {
            return Ok(Storage::pooled(&self.pool, id, buffer, class));
        }
        if self.pool.hoards() {
            self.reclaim()?;
        }
        self.make_room(class)?;
        let buffer = self.create_buffer(&storage_descriptor(class))?;
        Ok(Storage::pooled(&self.pool, self.pool.register(class), buffer, class))
    }

    /// Refuses what no buffer of this device can hold, and everything once the device is gone.
    fn check_size(&self, bytes: u64) -> Result<(), BackendError> {
        if let Some(lost) = self.opened.faults.lost() {
            return Err(lost);
        }
        if bytes > self.largest() {
            let [wanted, most] = [bytes, self.largest()].map(|b| b as f64 / f64::from(1 << 20));
            return Err(BackendError::OutOfMemory(format!(
                "a tensor of {wanted:.1} MiB: {} holds at most {most:.1} MiB in one; use a smaller batch",
                self.info().name
            )));
        }
        Ok(())
    }

    /// Keeps below the limit of memory, giving back what is free.
    fn make_room(&self, bytes: u64) -> Result<(), BackendError> {
        let Some(limit) = self.memory_limit else { return Ok(()) };
        if self.pool.total() + bytes > limit {
            self.reclaim()?;
        }
        let used = self.pool.total();
        if used + bytes > limit {
            let [bytes, used, limit] = [bytes, used, limit].map(|b| b as f64 / f64::from(1 << 20));
            return Err(BackendError::OutOfMemory(format!(
                "{bytes:.1} MiB more than the {used:.1} MiB in use, with a limit of {limit:.1} MiB"
            )));
        }
        Ok(())
    }

    /// Finishes all work and drops all free buffers. Faults stay for the next wait, but for the loss of the device.
    fn reclaim(&self) -> Result<(), BackendError> {
        let submission_index = self.submit();
        self.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        lock(&self.recorder).forget_groups();
        lock(&self.staging).clear();
        self.pool.trim();
        self.poll(wgpu::PollType::Wait { submission_index: None, timeout: None });
        self.opened.faults.lost().map_or(Ok(()), Err)
    }

    /// Makes a buffer, giving back what is free if there is no memory for it.
    fn create_buffer(&self, descriptor: &wgpu::BufferDescriptor<'_>) -> Result<wgpu::Buffer, BackendError> {
        let create = || scoped(self.device(), || self.device().create_buffer(descriptor));
        match create() {
            Err(BackendError::OutOfMemory(_)) => {
                self.reclaim()?;
                create()
            }
            other => other,
        }
    }

    // ---- transfer -------------------------------------------------------------------------------------------------

    /// Words of four bytes on the device.
    pub(crate) fn upload(&self, words: &[u8], shape: Shape) -> Tensor {
        self.upload_to(words, shape, false)
    }

    fn upload_to(&self, words: &[u8], shape: Shape, kept: bool) -> Tensor {
        if words.is_empty() {
            return self.empty(shape, None);
        }
        let bytes = words.len() as u64;
        let made = self.check_size(bytes).and_then(|()| self.make_room(bytes)).and_then(|()| {
            // a buffer of its own: one from the pool may still be in use by commands that are not submitted yet
            let descriptor = wgpu::BufferDescriptor { mapped_at_creation: true, ..storage_descriptor(bytes) };
            let buffer = self.create_buffer(&descriptor)?;
            let view = buffer.get_mapped_range_mut(..);
            view.map_err(|e| self.gone(&e.to_string()))?.copy_from_slice(words);
            buffer.unmap();
            lock(&self.recorder).count_upload(self.device(), self.queue(), bytes);
            Ok(Storage::uploaded(&self.pool, buffer, bytes, kept))
        });
        match made {
            Ok(storage) => Tensor::new(storage, shape),
            Err(fault) => self.failed(fault, shape),
        }
    }

    /// Words that many operations will read.
    pub(crate) fn upload_kept(&self, words: &[u8], shape: Shape) -> Tensor {
        self.upload_to(words, shape, true)
    }

    /// A tensor of one number, from a cache: the same few are asked for again and again. `make` makes those that are longer
    /// than one element.
    pub(crate) fn constant(&self, value: f32, elements: usize, make: impl FnOnce(usize) -> Tensor) -> Tensor {
        let length = elements.next_power_of_two();
        let key = (value.to_bits(), length);
        let found = lock(&self.constants).get(&key).cloned();
        if let Some(constant) = found {
            return constant;
        }
        let made = make(length);
        let mut constants = lock(&self.constants);
        if constants.len() < CONSTANTS && made.fault().is_none() {
            constants.insert(key, made.clone());
        }
        made
    }

    /// Waits for the tensor and copies it to the host.
    pub(crate) fn download(&self, x: &Tensor) -> Result<Vec<f32>, BackendError> {
        self.check_origin(x)?;
        self.settle(&[x]);
        let bytes = x.elements() as u64 * 4;
        if bytes == 0 || x.fault().is_some() {
            self.synchronize()?;
            return x.fault().cloned().map_or(Ok(Vec::new()), Err);
        }
        let class = Pool::class(bytes);
        let free = lock(&self.staging).get_mut(&class).and_then(Vec::pop);
        let staging = match free {
            Some(buffer) => buffer,
            None => self.create_buffer(&wgpu::BufferDescriptor {
                label: Some("read back"),
                size: class,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })?,
        };
        let index = lock(&self.recorder).read_back(self.device(), self.queue(), x, &staging, bytes);
        let (sender, receiver) = mpsc::channel();
        // a receiver that is gone has given up waiting
        staging.map_async(wgpu::MapMode::Read, ..bytes, move |result| drop(sender.send(result)));
        self.wait(index)?;
        self.wait_for_mapping(&receiver)?;
        let view = staging.get_mapped_range(..bytes).map_err(|e| self.gone(&e.to_string()))?;
        let mut out = vec![0.0_f32; x.elements()];
        bytemuck::cast_slice_mut::<f32, u8>(&mut out).copy_from_slice(&view);
        drop(view);
        staging.unmap();
        lock(&self.staging).entry(class).or_default().push(staging);
        Ok(out)
    }

    /// The work is done; but the thread that found it done, perhaps another one, may not have called back yet.
    fn wait_for_mapping(
        &self,
        mapped: &mpsc::Receiver<Result<(), wgpu::BufferAsyncError>>,
    ) -> Result<(), BackendError> {
        const PATIENCE: u32 = 600;
        for _ in 0..PATIENCE {
            match mapped.recv_timeout(Duration::from_millis(50)) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => return Err(self.gone(&error.to_string())),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => self.wait(None)?,
            }
        }
        Err(self.gone("no answer"))
    }

    /// The loss of the device, or what looks like it.
    fn gone(&self, what: &str) -> BackendError {
        self.opened.faults.lost().unwrap_or_else(|| BackendError::DeviceLost(format!("reading back failed: {what}")))
    }

    /// Waits for all work.
    pub(crate) fn synchronize(&self) -> Result<(), BackendError> {
        self.settle_all();
        let index = self.submit();
        self.wait(index)
    }

    fn submit(&self) -> Option<wgpu::SubmissionIndex> {
        lock(&self.recorder).submit(self.device(), self.queue())
    }

    /// Waits for a submission, or for all, and returns the first fault since the last wait.
    fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<(), BackendError> {
        self.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        if self.opened.faults.are_pending() {
            // the loss of the device explains whatever else went wrong; wgpu tells of it once the queue is empty
            self.poll(wgpu::PollType::Wait { submission_index: None, timeout: None });
        }
        self.opened.faults.tell()
    }

    fn poll(&self, how: wgpu::PollType) {
        self.opened.faults.poll(self.device(), how);
    }

    // ---- launching ------------------------------------------------------------------------------------------------

    /// Records a launch, behind what its operands wait for. `params` are the fields of `P` after the offsets.
    pub(crate) fn launch(
        &self,
        kernel: &dyn Kernel,
        reads: &[&Tensor],
        writes: &[&Tensor],
        params: &[u32],
        groups: Groups,
    ) {
        self.settle(reads);
        self.record(kernel, reads, writes, params, groups);
    }

    /// Records a launch. `params` are the fields of `P` after the offsets. Nothing happens if an operand has a fault.
    pub(crate) fn record(
        &self,
        kernel: &dyn Kernel,
        reads: &[&Tensor],
        writes: &[&Tensor],
        params: &[u32],
        groups: Groups,
    ) {
        if groups.contains(&0) {
            return;
        }
        let poison = |fault: &BackendError| writes.iter().for_each(|x| x.storage().poison(fault));
        if let Some(fault) = reads.iter().chain(writes).find_map(|x| x.fault()) {
            return poison(fault);
        }
        let fits = groups.iter().all(|&g| g <= self.limits.max_compute_workgroups_per_dimension);
        let pipeline = self.pipelines.get(self.device(), &self.limits, kernel).and_then(|pipeline| {
            let refused = || BackendError::Unsupported(format!("{kernel:?} over {groups:?} workgroups"));
            fits.then_some(pipeline).ok_or_else(refused)
        });
        let pipeline = match pipeline {
            Ok(pipeline) => pipeline,
            Err(fault) => {
                poison(&fault);
                return self.opened.faults.record(fault);
            }
        };
        let mut words = [0_u32; IMMEDIATES as usize / 4];
        let offsets = reads.iter().map(|x| x.offset() as u32);
        let mut count = 0;
        for (word, value) in words.iter_mut().zip(offsets.chain(params.iter().copied())) {
            *word = value;
            count += 1;
        }
        let bytes = bytemuck::cast_slice(&words[..count]);
        let operands: Vec<&Storage> = reads.iter().chain(writes).map(|x| x.storage()).collect();
        lock(&self.recorder).launch(self.device(), self.queue(), &pipeline, &operands, bytes, groups);
    }
}

fn storage_descriptor(size: u64) -> wgpu::BufferDescriptor<'static> {
    use wgpu::BufferUsages as U;
    wgpu::BufferDescriptor {
        label: None,
        size,
        usage: U::STORAGE | U::COPY_SRC | U::COPY_DST,
        mapped_at_creation: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::AdapterChoice;
    use crate::kernel::Source;

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    struct Broken {
        body: &'static str,
        shared: u32,
    }

    impl Kernel for Broken {
        fn source(&self) -> Source {
            Source { writes: vec!["out"], body: self.body.to_owned(), shared: self.shared, ..Source::default() }
        }

        fn variants() -> Vec<Self> {
            Vec::new()
        }
    }

    /// A kernel that does not compile is an error, and a device goes on after it.
    #[test]
    fn a_rejected_kernel_is_an_error() {
        let Ok(gpu) = Gpu::open(&WgpuOptions { adapter: AdapterChoice::from_env(), ..WgpuOptions::default() }) else {
            assert!(std::env::var("RESFLOW_REQUIRE_GPU").is_err(), "no adapter");
            return eprintln!("SKIPPED, NOT TESTED: no adapter");
        };
        for body in
            ["fn main() {", "@compute @workgroup_size(0) fn main() {}", "@compute @workgroup_size(64) fn other() {}"]
        {
            let broken = Broken { body, shared: 0 };
            // the second time it is remembered
            for _ in 0..2 {
                let built = gpu.pipelines.get(gpu.device(), &gpu.limits, &broken);
                let error = built.expect_err("it cannot be built");
                assert!(matches!(&error, BackendError::Kernel(text) if text.contains("Broken")), "{error}");
            }
        }
        let hungry = Broken { body: "", shared: u32::MAX };
        let built = gpu.pipelines.get(gpu.device(), &gpu.limits, &hungry);
        assert!(matches!(built, Err(BackendError::Unsupported(_))));
        let x = gpu.full(2.0, [3].into());
        assert_eq!(gpu.download(&gpu.affine(&x, 2.0, 1.0)), Ok(vec![5.0; 3]));
    }
}
