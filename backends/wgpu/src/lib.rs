//! The GPU backend of resflow, on wgpu: Vulkan, Metal and DX12, in `f32`.
//!
//! Tensors stay on the device from upload to download. Operations are recorded, submitted in batches and run in order; only
//! [`Backend::download`] and [`Backend::synchronize`] wait, and return what went wrong since the last wait. Reductions are
//! fixed trees, so a run repeats bit for bit on one device.
//!
//! ```no_run
//! use resflow_backend::{Backend, Binary};
//! use resflow_wgpu::Wgpu;
//! let gpu = Wgpu::new()?;
//! println!("on {}", gpu.adapter());
//! let x = gpu.upload(&[1.0, 2.0], [1, 2].into());
//! let y = gpu.binary(Binary::Add, x.clone(), &x);
//! assert_eq!(gpu.download(&y)?, [2.0, 4.0]);
//! # Ok::<(), resflow_backend::BackendError>(())
//! ```
#![deny(unsafe_code)]

mod activation;
mod adam;
mod adapter;
mod arena;
#[cfg(test)]
mod catalogue;
mod cooperative;
mod deferred;
mod device;
mod elementwise;
mod fault;
mod fixed_point;
mod kernel;
mod layout;
mod lu;
mod memory;
mod net;
mod noise;
mod opened;
mod options;
mod pipeline;
mod power;
mod product;
mod recorder;
mod reduce;
mod series;
mod tensor;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use adapter::{ADAPTER_VARIABLE, AdapterChoice, AdapterInfo, AdapterKind, adapters};
use device::Gpu;
pub use options::{Precision, WgpuOptions};
pub use recorder::Statistics;
use resflow_backend::{
    Activation, ActivationReverse, AdamStep, Backend, BackendError, Binary, FixedPointRule, FixedPointState, Key, Net,
    NetForward, Noise, Over, Padding, Reduce, SeriesState, Shape, TermWeight, TermWeights, Unary, composed,
};
pub use tensor::Tensor;

/// A handle to an open device; its memory, its kernels and its queue.
#[derive(Clone)]
pub struct Wgpu {
    gpu: Arc<Gpu>,
}

impl fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wgpu")
            .field("adapter", self.gpu.info())
            .field("precision", &self.gpu.precision)
            .finish_non_exhaustive()
    }
}

impl Wgpu {
    /// The adapter that the environment variable `RESFLOW_ADAPTER` names, or the best one.
    ///
    /// # Errors
    /// [`BackendError::NoDevice`] if there is none.
    pub fn new() -> Result<Self, BackendError> {
        Self::open(&WgpuOptions { adapter: AdapterChoice::from_env(), ..WgpuOptions::default() })
    }

    /// A device as chosen, which nobody else uses: a new one, or one that was used before and is free.
    ///
    /// # Errors
    /// [`BackendError::NoDevice`] if there is no such adapter, [`BackendError::Unsupported`] if it cannot do what is asked.
    pub fn open(options: &WgpuOptions) -> Result<Self, BackendError> {
        Ok(Self { gpu: Arc::new(Gpu::open(options)?) })
    }

    /// The adapter in use.
    pub fn adapter(&self) -> &AdapterInfo {
        self.gpu.info()
    }

    /// The precision of products.
    pub fn precision(&self) -> Precision {
        self.gpu.precision
    }

    /// What the device has been asked to do so far.
    pub fn statistics(&self) -> Statistics {
        self.gpu.statistics()
    }

    /// The launches so far, by kernel: where [`statistics`](Self::statistics) only has their number.
    pub fn launches(&self) -> BTreeMap<String, u64> {
        self.gpu.launches()
    }

    /// Destroys the device, as a driver that resets does: everything after is [`BackendError::DeviceLost`]. For tests of
    /// what follows.
    pub fn destroy(&self) {
        self.gpu.device().destroy();
    }
}

/// Activations that one shard may keep alive, in bytes: a device wants whole batches, within its memory. A row's are at
/// least six times those of its widest tensor, so that four times the largest tensor never asks for a larger one.
const SHARD_BYTES: u64 = 2 << 30;
/// Intermediate values of the rows that go through one link at a time, in bytes.
const TILE_BYTES: u64 = 1 << 30;

impl Wgpu {
    /// The rows that keep so many bytes alive, within what fits one tensor a few times over.
    fn rows_within(&self, bytes: u64, bytes_per_row: usize) -> usize {
        let bytes = bytes.min(4 * self.gpu.largest());
        usize::try_from(bytes / bytes_per_row.max(1) as u64).unwrap_or(usize::MAX).max(1)
    }
}

impl Backend for Wgpu {
    type Elem = f32;
    type Tensor = Tensor;

    fn name(&self) -> String {
        match self.gpu.precision {
            Precision::F32 => format!("wgpu on {}", self.adapter()),
            precision => format!("wgpu-{precision} on {}", self.adapter()),
        }
    }

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape()
    }

    fn upload(&self, data: &[f32], shape: Shape) -> Tensor {
        assert_eq!(data.len(), shape.elements(), "upload: {} elements for {shape}", data.len());
        self.gpu.upload(bytemuck::cast_slice(data), shape)
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>, BackendError> {
        self.gpu.download(x)
    }

    fn synchronize(&self) -> Result<(), BackendError> {
        self.gpu.synchronize()
    }

    fn full(&self, value: f64, shape: Shape) -> Tensor {
        self.gpu.full(value, shape)
    }

    fn noise(&self, key: Key, noise: Noise, first: u64, shape: Shape) -> Tensor {
        self.gpu.noise(key, noise, first, shape)
    }

    fn unary(&self, op: Unary, x: Tensor) -> Tensor {
        self.gpu.unary(op, &x)
    }

    fn binary(&self, op: Binary, a: Tensor, b: &Tensor) -> Tensor {
        self.gpu.binary(op, &a, b)
    }

    fn affine(&self, x: Tensor, scale: f64, shift: f64) -> Tensor {
        self.gpu.affine(&x, scale, shift)
    }

    fn axpy(&self, alpha: f64, x: &Tensor, y: Tensor) -> Tensor {
        self.gpu.axpy(alpha, x, &y)
    }

    fn select(&self, mask: &Tensor, on: &Tensor, off: &Tensor) -> Tensor {
        self.gpu.select(mask, on, off)
    }

    fn reduce(&self, op: Reduce, over: Over, x: &Tensor) -> Tensor {
        self.gpu.reduce(op, over, x)
    }

    fn matmul(&self, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool) -> Tensor {
        self.gpu.matmul(a, transpose_a, b, transpose_b)
    }

    fn conv2d(&self, x: &Tensor, kernel: &Tensor, padding: Padding) -> Tensor {
        self.gpu.conv2d(x, kernel, padding)
    }

    fn conv2d_input(&self, gy: &Tensor, kernel: &Tensor, padding: Padding, image: [usize; 2]) -> Tensor {
        self.gpu.conv2d_input(gy, kernel, padding, image)
    }

    fn conv2d_kernel(&self, x: &Tensor, gy: &Tensor, padding: Padding, kernel: [usize; 2]) -> Tensor {
        self.gpu.conv2d_kernel(x, gy, padding, kernel, None)
    }

    fn lu(&self, a: &Tensor) -> (Tensor, Tensor) {
        self.gpu.lu(a)
    }

    fn reshape(&self, x: &Tensor, shape: Shape) -> Tensor {
        Gpu::reshape(x, shape)
    }

    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        self.gpu.permute(x, axes)
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        self.gpu.concat(parts, axis)
    }

    fn narrow(&self, x: &Tensor, axis: usize, start: usize, length: usize) -> Tensor {
        self.gpu.narrow(x, axis, start, length)
    }

    fn take_rows(&self, x: &Tensor, indices: &[u32]) -> Tensor {
        self.gpu.take_rows(x, indices)
    }

    fn shard_rows(&self, bytes_per_row: usize) -> usize {
        self.rows_within(SHARD_BYTES, bytes_per_row)
    }

    fn tile_rows(&self, bytes_per_row: usize) -> usize {
        self.rows_within(TILE_BYTES, bytes_per_row)
    }

    fn linear(&self, x: &Tensor, wt: &Tensor, bias: &Tensor) -> Tensor {
        self.gpu.linear(x, wt, bias)
    }

    fn linear_activation(
        &self,
        x: &Tensor,
        wt: &Tensor,
        bias: &Tensor,
        f: Activation,
        parameter: Option<&Tensor>,
        order: usize,
    ) -> (Option<Tensor>, Vec<Tensor>) {
        self.gpu.linear_activation(x, wt, bias, f, parameter, order)
    }

    fn matmul_add(&self, sum: Tensor, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool) -> Tensor {
        self.gpu.matmul_add(&sum, a, transpose_a, b, transpose_b)
    }

    fn conv2d_kernel_add(&self, sum: Tensor, x: &Tensor, gy: &Tensor, padding: Padding) -> Tensor {
        let shape = sum.shape();
        let kernel: Option<[usize; 4]> = shape.to_vec().try_into().ok();
        let [_, kh, kw, _] = kernel.unwrap_or_else(|| panic!("conv2d_kernel_add: a kernel of four axes, not {shape}"));
        self.gpu.conv2d_kernel(x, gy, padding, [kh, kw], Some(&sum))
    }

    fn activation(&self, f: Activation, parameter: Option<&Tensor>, x: &Tensor, order: usize) -> Vec<Tensor> {
        self.gpu.activation(f, parameter, x, order)
    }

    fn activation_reverse(
        &self,
        f: Activation,
        parameter: Option<&Tensor>,
        x: &Tensor,
        derivatives: &[Tensor],
        tangents: &[Tensor],
        gy: Tensor,
        gdy: Vec<Tensor>,
    ) -> ActivationReverse<Tensor> {
        assert_eq!(derivatives.len(), 3, "activation_reverse: needs the derivatives 0, 1 and 2");
        assert_eq!(tangents.len(), gdy.len(), "activation_reverse: as many tangents as cotangents");
        self.gpu.activation_reverse(f, parameter, x, &gy, tangents, &gdy)
    }

    fn dot_rows(&self, a: &Tensor, b: &Tensor) -> Tensor {
        self.gpu.dot(Over::Row, a, b)
    }

    fn dot(&self, a: &Tensor, b: &Tensor) -> Tensor {
        self.gpu.dot(Over::All, a, b)
    }

    fn series_term(
        &self,
        k: usize,
        weight: TermWeight<'_, Tensor>,
        probe: &Tensor,
        negligible: f64,
        state: SeriesState<Tensor>,
    ) -> SeriesState<Tensor> {
        let fused = self.gpu.series_term(k, &weight, probe, negligible, &state);
        fused.unwrap_or_else(|| composed::series_term(self, k, weight, probe, negligible, state))
    }

    fn net_forward(&self, net: &Net<Tensor>, x: &Tensor, order: usize) -> NetForward<Tensor> {
        let fused = self.gpu.net_forward(net, x, order).or_else(|| self.gpu.segments_forward(net, x, order));
        fused.unwrap_or_else(|| composed::net_forward(self, net, x, order))
    }

    fn net_tangents(&self, net: &Net<Tensor>, slopes: &[&Tensor], dx: &Tensor) -> Vec<Tensor> {
        let fused = self.gpu.net_tangents(net, slopes, dx, false);
        let fused = fused.or_else(|| self.gpu.segments_tangents(net, slopes, dx, false));
        fused.map_or_else(|| composed::net_tangents(self, net, slopes, dx), |(tangents, _)| tangents)
    }

    fn net_jvp(&self, net: &Net<Tensor>, slopes: &[&Tensor], dx: &Tensor) -> (Tensor, Vec<Tensor>) {
        let fused = self.gpu.net_tangents(net, slopes, dx, true);
        match fused.or_else(|| self.gpu.segments_tangents(net, slopes, dx, true)) {
            Some((tangents, Some(dy))) => (dy, tangents),
            _ => composed::net_jvp(self, net, slopes, dx),
        }
    }

    fn net_pullback(
        &self,
        net: &Net<Tensor>,
        kept: &[&[Tensor]],
        tangents: &[Vec<&Tensor>],
        gy: Tensor,
        gdy: Vec<Tensor>,
        grads: &mut [Option<Tensor>],
    ) -> (Tensor, Vec<Tensor>) {
        net.check_pullback(kept, tangents, gdy.len(), grads.len());
        let fused = self.gpu.net_pullback(net, kept, tangents, &gy, &gdy, grads);
        let fused = fused.or_else(|| self.gpu.segments_pullback(net, kept, tangents, &gy, &gdy, grads));
        fused.unwrap_or_else(|| composed::net_pullback(self, net, kept, tangents, gy, gdy, grads))
    }

    fn net_vjp(&self, net: &Net<Tensor>, slopes: &[&Tensor], gy: Tensor) -> Tensor {
        let fused = self.gpu.net_vjp(net, slopes, &gy).or_else(|| self.gpu.segments_vjp(net, slopes, &gy));
        fused.unwrap_or_else(|| composed::net_vjp(self, net, slopes, gy))
    }

    fn net_series(
        &self,
        net: &Net<Tensor>,
        slopes: &[&Tensor],
        first: usize,
        weights: TermWeights<'_, Tensor>,
        probe: &Tensor,
        negligible: f64,
        state: SeriesState<Tensor>,
    ) -> SeriesState<Tensor> {
        let fused = self.gpu.net_series(net, slopes, first, weights, probe, negligible, &state);
        let in_segments = || self.gpu.segments_series(net, slopes, first, weights, probe, negligible, &state);
        let fused = fused.or_else(in_segments);
        fused.unwrap_or_else(|| composed::net_series(self, net, slopes, first, weights, probe, negligible, state))
    }

    fn fixed_point_step(
        &self,
        rule: &FixedPointRule,
        y: &Tensor,
        g: &Tensor,
        state: FixedPointState<Tensor>,
    ) -> FixedPointState<Tensor> {
        let fused = self.gpu.fixed_point_step(rule, y, g, &state);
        fused.unwrap_or_else(|| composed::fixed_point_step(self, rule, y, g, state))
    }

    fn power_iteration(&self, w: &Tensor, u: Tensor, v: Tensor, count: usize) -> [Tensor; 3] {
        let fused = self.gpu.power_iteration(w, &u, &v, count);
        fused.unwrap_or_else(|| composed::power_iteration(self, w, u, v, count))
    }

    fn conv2d_power_iteration(
        &self,
        kernel: &Tensor,
        padding: Padding,
        u: Tensor,
        v: Tensor,
        count: usize,
    ) -> [Tensor; 3] {
        let fused = self.gpu.conv2d_power_iteration([kernel, &u, &v], padding, count);
        fused.unwrap_or_else(|| composed::conv2d_power_iteration(self, kernel, padding, u, v, count))
    }

    fn adam_step(
        &self,
        rule: &AdamStep,
        scale: &Tensor,
        gate: &Tensor,
        decayed: &Tensor,
        parameters: Tensor,
        [first, second]: [Tensor; 2],
        gradient: &Tensor,
    ) -> (Tensor, [Tensor; 2]) {
        let fused = self.gpu.adam_step(rule, [scale, gate, decayed, &parameters, &first, &second, gradient]);
        match fused {
            Some([parameters, first, second]) => (parameters, [first, second]),
            None => composed::adam_step(self, rule, scale, gate, decayed, parameters, [first, second], gradient),
        }
    }

    fn all_finite(&self, x: &Tensor) -> Tensor {
        self.gpu.all_finite(x)
    }
}
