//! Pipelines: built when their kernel is first launched, and kept.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use resflow_backend::BackendError;

use crate::fault::{lock, scoped};
use crate::kernel::{IMMEDIATES, Kernel, Source};

/// A pipeline with what is needed to launch it.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) compute: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    /// How many of the tensors bound are read only.
    pub(crate) reads: usize,
    /// Launches so far.
    pub(crate) launches: AtomicU64,
}

/// Layouts of bind groups by the number of tensors read and written, with their pipeline layouts.
type Layouts = HashMap<(usize, usize), (wgpu::BindGroupLayout, wgpu::PipelineLayout)>;

/// What has been built.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    built: Mutex<HashMap<Box<dyn Kernel>, Result<Arc<Pipeline>, BackendError>>>,
    layouts: Mutex<Layouts>,
}

impl Pipelines {
    /// The pipeline of a kernel. That a driver rejects it is remembered, other faults are of the moment.
    pub(crate) fn get(
        &self,
        device: &wgpu::Device,
        limits: &wgpu::Limits,
        kernel: &dyn Kernel,
    ) -> Result<Arc<Pipeline>, BackendError> {
        let mut pipelines = lock(&self.built);
        if let Some(known) = pipelines.get(kernel) {
            return known.clone();
        }
        let built = self.build(device, limits, &kernel.label(), &kernel.source()).map(Arc::new);
        if matches!(built, Ok(_) | Err(BackendError::Kernel(_) | BackendError::Unsupported(_))) {
            pipelines.insert(kernel.kept(), built.clone());
        }
        built
    }

    /// The kernels built so far, by their labels, with the launches of each.
    pub(crate) fn launches(&self) -> BTreeMap<String, u64> {
        let mut counted = BTreeMap::new();
        for (kernel, built) in lock(&self.built).iter() {
            if let Ok(pipeline) = built {
                counted.insert(kernel.label(), pipeline.launches.load(Ordering::Relaxed));
            }
        }
        counted
    }

    fn build(
        &self,
        device: &wgpu::Device,
        limits: &wgpu::Limits,
        name: &str,
        source: &Source,
    ) -> Result<Pipeline, BackendError> {
        let (reads, writes) = (source.reads.len(), source.writes.len());
        let [shared, bindings] =
            [limits.max_compute_workgroup_storage_size, limits.max_storage_buffers_per_shader_stage];
        if source.shared > shared || reads + writes > bindings as usize || source.immediates() > IMMEDIATES {
            return Err(BackendError::Unsupported(format!(
                "{name} needs {} bytes of workgroup memory and {} bindings, the device has {shared} and {bindings}",
                source.shared,
                reads + writes
            )));
        }
        let make = || {
            let (layout, pipeline_layout) =
                lock(&self.layouts).get(&(reads, writes)).cloned().unwrap_or_else(|| layout(device, reads, writes));
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(name),
                source: wgpu::ShaderSource::Wgsl(source.module().into()),
            });
            let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
            (compute, layout, pipeline_layout)
        };
        // the compiler of shaders may panic
        let made = catch_unwind(AssertUnwindSafe(|| scoped(device, make)))
            .unwrap_or_else(|_| Err(BackendError::Kernel("the compiler failed".into())));
        let (compute, layout, pipeline_layout) = made.map_err(|error| match error {
            BackendError::Kernel(text) => BackendError::Kernel(format!("{name}: {text}")),
            other => other,
        })?;
        lock(&self.layouts).entry((reads, writes)).or_insert((layout.clone(), pipeline_layout));
        Ok(Pipeline { compute, layout, reads, launches: AtomicU64::new(0) })
    }
}

fn layout(device: &wgpu::Device, reads: usize, writes: usize) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
    let entries: Vec<_> = (0..reads + writes)
        .map(|at| wgpu::BindGroupLayoutEntry {
            binding: at as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: at < reads },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
    let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: IMMEDIATES,
    });
    (layout, pipeline)
}
