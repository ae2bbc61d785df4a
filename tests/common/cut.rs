//! A device that cuts batches as a test wants them, and is another one in everything else.
#![allow(dead_code)] // each test binary uses its own part

use resflow::backend::{
    Activation, ActivationReverse, AdamStep, Backend, BackendError, Binary, FixedPointRule, FixedPointState, Key, Net,
    NetForward, Noise, Over, Padding, Reduce, SeriesState, Shape, Spline, SplineReverse, TermWeight, TermWeights,
    Unary,
};
use resflow::flow::Gradient;

/// A device whose shards have so many rows, as if that many filled its cache, in so many lanes.
#[derive(Debug, Clone)]
pub(crate) struct Cut<B> {
    pub(crate) device: B,
    pub(crate) rows: usize,
    pub(crate) lanes: usize,
}

/// What was computed so as the device's own.
pub(crate) fn uncut<B: Backend>(gradient: Gradient<Cut<B>>) -> Gradient<B> {
    let Gradient { flat, loss, classification, input, context, terms, solves, failed } = gradient;
    Gradient { flat, loss, classification, input, context, terms, solves, failed }
}

/// Passes operations on to the device.
macro_rules! pass {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {$(
        fn $name(&self, $($argument: $kind),*) -> $result {
            self.device.$name($($argument),*)
        }
    )*};
}

impl<B: Backend> Backend for Cut<B> {
    type Elem = B::Elem;
    type Tensor = B::Tensor;

    fn shard_rows(&self, _bytes_per_row: usize) -> usize {
        self.rows
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    fn run<T: Send>(&self, tasks: usize, task: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        self.device.run(tasks, task)
    }

    pass! {
        name() -> String;
        shape(x: &B::Tensor) -> Shape;
        upload(data: &[B::Elem], shape: Shape) -> B::Tensor;
        download(x: &B::Tensor) -> Result<Vec<B::Elem>, BackendError>;
        synchronize() -> Result<(), BackendError>;
        full(value: f64, shape: Shape) -> B::Tensor;
        noise(key: Key, noise: Noise, first: u64, shape: Shape) -> B::Tensor;
        unary(op: Unary, x: B::Tensor) -> B::Tensor;
        binary(op: Binary, a: B::Tensor, b: &B::Tensor) -> B::Tensor;
        affine(x: B::Tensor, scale: f64, shift: f64) -> B::Tensor;
        axpy(alpha: f64, x: &B::Tensor, y: B::Tensor) -> B::Tensor;
        select(mask: &B::Tensor, on: &B::Tensor, off: &B::Tensor) -> B::Tensor;
        reduce(op: Reduce, over: Over, x: &B::Tensor) -> B::Tensor;
        matmul(a: &B::Tensor, transpose_a: bool, b: &B::Tensor, transpose_b: bool) -> B::Tensor;
        conv2d(x: &B::Tensor, kernel: &B::Tensor, padding: Padding) -> B::Tensor;
        conv2d_input(gy: &B::Tensor, kernel: &B::Tensor, padding: Padding, image: [usize; 2]) -> B::Tensor;
        conv2d_kernel(x: &B::Tensor, gy: &B::Tensor, padding: Padding, kernel: [usize; 2]) -> B::Tensor;
        lu(a: &B::Tensor) -> (B::Tensor, B::Tensor);
        reshape(x: &B::Tensor, shape: Shape) -> B::Tensor;
        permute(x: &B::Tensor, axes: &[usize]) -> B::Tensor;
        concat(parts: &[&B::Tensor], axis: usize) -> B::Tensor;
        narrow(x: &B::Tensor, axis: usize, start: usize, length: usize) -> B::Tensor;
        take_rows(x: &B::Tensor, indices: &[u32]) -> B::Tensor;
        tile_rows(bytes_per_row: usize) -> usize;
        poll_interval() -> usize;
        known_zero(x: &B::Tensor) -> bool;
        linear(x: &B::Tensor, wt: &B::Tensor, bias: &B::Tensor) -> B::Tensor;
        linear_activation(
            x: &B::Tensor, wt: &B::Tensor, bias: &B::Tensor, f: Activation, parameter: Option<&B::Tensor>, order: usize
        ) -> (Option<B::Tensor>, Vec<B::Tensor>);
        matmul_add(
            sum: B::Tensor, a: &B::Tensor, transpose_a: bool, b: &B::Tensor, transpose_b: bool
        ) -> B::Tensor;
        conv2d_kernel_add(sum: B::Tensor, x: &B::Tensor, gy: &B::Tensor, padding: Padding) -> B::Tensor;
        activation(f: Activation, parameter: Option<&B::Tensor>, x: &B::Tensor, order: usize) -> Vec<B::Tensor>;
        activation_reverse(
            f: Activation, parameter: Option<&B::Tensor>, x: &B::Tensor, derivatives: &[B::Tensor],
            tangents: &[B::Tensor], gy: B::Tensor, gdy: Vec<B::Tensor>
        ) -> ActivationReverse<B::Tensor>;
        dot_rows(a: &B::Tensor, b: &B::Tensor) -> B::Tensor;
        dot(a: &B::Tensor, b: &B::Tensor) -> B::Tensor;
        series_term(
            k: usize, weight: TermWeight<'_, B::Tensor>, probe: &B::Tensor, negligible: f64, state: SeriesState<B::Tensor>
        ) -> SeriesState<B::Tensor>;
        net_forward(net: &Net<B::Tensor>, x: &B::Tensor, order: usize) -> NetForward<B::Tensor>;
        net_tangents(net: &Net<B::Tensor>, slopes: &[&B::Tensor], dx: &B::Tensor) -> Vec<B::Tensor>;
        net_jvp(net: &Net<B::Tensor>, slopes: &[&B::Tensor], dx: &B::Tensor) -> (B::Tensor, Vec<B::Tensor>);
        net_pullback(
            net: &Net<B::Tensor>, kept: &[&[B::Tensor]], tangents: &[Vec<&B::Tensor>], gy: B::Tensor,
            gdy: Vec<B::Tensor>, grads: &mut [Option<B::Tensor>]
        ) -> (B::Tensor, Vec<B::Tensor>);
        net_vjp(net: &Net<B::Tensor>, slopes: &[&B::Tensor], gy: B::Tensor) -> B::Tensor;
        net_series(
            net: &Net<B::Tensor>, slopes: &[&B::Tensor], first: usize, weights: TermWeights<'_, B::Tensor>,
            probe: &B::Tensor, negligible: f64, state: SeriesState<B::Tensor>
        ) -> SeriesState<B::Tensor>;
        fixed_point_step(
            rule: &FixedPointRule, y: &B::Tensor, g: &B::Tensor, state: FixedPointState<B::Tensor>
        ) -> FixedPointState<B::Tensor>;
        power_iteration(w: &B::Tensor, u: B::Tensor, v: B::Tensor, count: usize) -> [B::Tensor; 3];
        conv2d_power_iteration(
            kernel: &B::Tensor, padding: Padding, u: B::Tensor, v: B::Tensor, count: usize
        ) -> [B::Tensor; 3];
        spline(rule: &Spline, x: &B::Tensor, raw: &B::Tensor) -> [B::Tensor; 2];
        spline_inverse(rule: &Spline, y: &B::Tensor, raw: &B::Tensor) -> B::Tensor;
        spline_reverse(
            rule: &Spline, x: &B::Tensor, raw: &B::Tensor, gy: &B::Tensor, weights: &B::Tensor
        ) -> SplineReverse<B::Tensor>;
        adam_step(
            rule: &AdamStep, scale: &B::Tensor, gate: &B::Tensor, decayed: &B::Tensor, parameters: B::Tensor,
            moments: [B::Tensor; 2], gradient: &B::Tensor
        ) -> (B::Tensor, [B::Tensor; 2]);
        all_finite(x: &B::Tensor) -> B::Tensor;
    }
}
