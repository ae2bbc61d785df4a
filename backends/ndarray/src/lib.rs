//! The CPU backend of resflow, on ndarray: the reference that other backends are compared with.
//!
//! Tensors are row-major; a slice of rows shares memory. The batch is cut into shards that fit the second-level cache and
//! shards run on all cores ([`NdArray::with_threads`]); neither the cut nor any order of summation depends on the number
//! of threads, so the results do not either.
//!
//! Matrix products come from the crate `gemm` (feature `gemm`, the default) or from `matrixmultiply`, small ones on AVX-512 from here;
//! elementwise loops are compiled for AVX-512, AVX2 and the baseline and chosen at run time. `unsafe` occurs where those are called.
#![deny(unsafe_code)]

mod bounded_affine;
mod broadcast;
mod conv;
#[cfg(target_arch = "x86_64")]
mod direct;
#[cfg(target_arch = "x86_64")]
mod dots;
mod elementwise;
mod fixed_point;
mod fused;
mod layout;
#[cfg(target_arch = "x86_64")]
mod lipswish;
mod lu;
mod matmul;
mod net;
mod patches;
mod pool;
mod reduce;
mod simd;
mod spline;
mod tensor;
mod tiles;
#[doc(hidden)]
pub mod variants;
mod workers;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use matmul::{Operands, Start};
use pool::Pool;
use resflow_backend::{
    Activation, ActivationReverse, AdamStep, Backend, BackendError, Binary, BoundedAffineReverse, Element,
    FixedPointFound, FixedPointRule, FixedPointSearch, FixedPointState, Key, Net, Noise, Over, Padding, Products,
    Reduce, SeriesState, Shape, Spline, SplineReverse, TermWeight, TermWeights, Unary,
};
use simd::Level;
pub use tensor::Tensor;
use tiles::Link;
use workers::Workers;

/// The element types of this backend.
pub trait CpuElement: Element + ndarray::LinalgScalar {
    /// `Exp`, `ExpM1`, `Ln`, `Ln1p` and `Tanh` for loops that must vectorise, as [`Activation::derivatives_by`] asks for them.
    #[inline(always)]
    fn fast(op: Unary, x: Self) -> Self {
        op.apply(x)
    }

    /// Whether [`Self::direct`] does this product, its b being row-major.
    #[doc(hidden)]
    #[allow(private_interfaces)] // the trait is for f32 and f64, not for implementing elsewhere
    fn suits_direct(level: Level, operands: &Operands<'_, Self>) -> bool {
        let _ = (level, operands);
        false
    }

    /// Does a product by what multiplies bf16, if there are such products of this type and it is large enough.
    #[doc(hidden)]
    #[allow(private_interfaces)] // the trait is for f32 and f64, not for implementing elsewhere
    fn on_tiles(products: Products, operands: &Operands<'_, Self>, start: Start<'_, Self>, out: &mut [Self]) -> bool {
        let _ = (products, operands, start, out);
        false
    }

    /// Whether there are products of this type by what multiplies bf16.
    #[doc(hidden)]
    const HAS_TILES: bool = false;

    /// Sends rows through a chain of such products ([`tiles::chain`]); returns the number of rows done.
    #[doc(hidden)]
    #[allow(private_interfaces)] // the trait is for f32 and f64, not for implementing elsewhere
    fn chain_on_tiles(
        products: Products,
        links: &[Link<'_, Self>],
        rows: usize,
        x: &mut [Self],
        factors: Option<&[Self]>,
    ) -> usize {
        let _ = (products, links, rows, x, factors);
        0
    }

    /// Computes LipSwish and its first N − 1 derivatives where there is a faster way than plain loops; false if it is left to
    /// these. Which way it is depends on the machine alone, so that a value is the same with derivatives and without.
    #[doc(hidden)]
    #[allow(private_interfaces)] // the trait is for f32 and f64, not for implementing elsewhere
    fn lipswish<const N: usize>(level: Level, b: Self, x: &[Self], out: [&mut [Self]; N]) -> bool {
        let _ = (level, b, x, out);
        false
    }

    /// Adds a product of few columns, `[n, k]` as `columns` has them, where there is a faster way than plain loops; false if it is
    /// left to others.
    #[doc(hidden)]
    #[allow(private_interfaces)] // the trait is for f32 and f64, not for implementing elsewhere
    fn dots(level: Level, operands: &Operands<'_, Self>, columns: &[Self], out: &mut [Self]) -> bool {
        let _ = (level, operands, columns, out);
        false
    }

    /// Does a small product without packing where that is faster; false if it is left to others.
    #[doc(hidden)]
    #[allow(private_interfaces)] // the trait is for f32 and f64, not for implementing elsewhere
    fn direct(level: Level, operands: &Operands<'_, Self>, start: Start<'_, Self>, out: &mut [Self]) -> bool {
        let _ = (level, operands, start, out);
        false
    }
}

impl CpuElement for f32 {
    #[cfg(target_arch = "x86_64")]
    #[allow(private_interfaces)]
    fn lipswish<const N: usize>(level: Level, b: Self, x: &[Self], out: [&mut [Self]; N]) -> bool {
        let suits = level == Level::Avx512;
        if suits {
            lipswish::derivatives(b, x, out);
        }
        suits
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(private_interfaces)]
    fn dots(level: Level, operands: &Operands<'_, Self>, columns: &[Self], out: &mut [Self]) -> bool {
        let suits = level == Level::Avx512;
        if suits {
            dots::product(operands, columns, out);
        }
        suits
    }

    const HAS_TILES: bool = true;

    #[inline(always)]
    fn fast(op: Unary, x: Self) -> Self {
        match op {
            Unary::Exp => simd::exp_f32(x),
            Unary::ExpM1 => simd::exp_m1_f32(x),
            Unary::Ln => simd::ln_f32(x),
            Unary::Ln1p => simd::ln_1p_f32(x),
            Unary::Tanh => simd::tanh_f32(x),
            _ => op.apply(x),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(private_interfaces)]
    fn suits_direct(level: Level, operands: &Operands<'_, Self>) -> bool {
        level == Level::Avx512 && direct::suits(operands)
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(private_interfaces)]
    fn on_tiles(products: Products, operands: &Operands<'_, Self>, start: Start<'_, Self>, out: &mut [Self]) -> bool {
        tiles::multiply(products, operands, start, out)
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(private_interfaces)]
    fn chain_on_tiles(
        products: Products,
        links: &[Link<'_, Self>],
        rows: usize,
        x: &mut [Self],
        factors: Option<&[Self]>,
    ) -> usize {
        tiles::chain(products, links, rows, x, factors)
    }

    #[cfg(target_arch = "x86_64")]
    #[allow(private_interfaces)]
    fn direct(level: Level, operands: &Operands<'_, Self>, start: Start<'_, Self>, out: &mut [Self]) -> bool {
        let suits = Self::suits_direct(level, operands);
        if suits {
            direct::product(operands, start, out);
        }
        suits
    }
}

impl CpuElement for f64 {}

/// A handle to the CPU: its threads and the memory it recycles.
///
/// ```
/// use resflow_backend::{Backend, Binary};
/// use resflow_ndarray::NdArray;
/// let cpu = NdArray::<f32>::new();
/// let x = cpu.upload(&[1.0, 2.0], [1, 2].into());
/// let y = cpu.binary(Binary::Add, x.clone(), &x);
/// assert_eq!(cpu.download(&y)?, [2.0, 4.0]);
/// # Ok::<(), resflow_backend::BackendError>(())
/// ```
#[derive(Clone)]
pub struct NdArray<E> {
    inner: Arc<Inner<E>>,
    products: Products,
}

struct Inner<E> {
    level: Level,
    threads: usize,
    workers: Option<Workers>,
    pool: Pool<E>,
}

impl<E> fmt::Debug for NdArray<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NdArray")
            .field("threads", &self.inner.threads)
            .field("level", &self.inner.level)
            .field("products", &self.products)
            .finish_non_exhaustive()
    }
}

impl<E: CpuElement> Default for NdArray<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: CpuElement> NdArray<E> {
    /// All cores; one, should the system refuse threads.
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self::with_threads(threads).unwrap_or_else(|_| Self::inline())
    }

    /// A given number of threads. Results do not depend on it.
    ///
    /// # Errors
    /// [`BackendError::Setup`] if the system refuses the threads.
    pub fn with_threads(threads: NonZeroUsize) -> Result<Self, BackendError> {
        if threads == NonZeroUsize::MIN {
            return Ok(Self::inline());
        }
        Ok(Self::build(threads.get(), Some(Workers::new(threads)?)))
    }

    fn inline() -> Self {
        Self::build(1, None)
    }

    fn build(threads: usize, workers: Option<Workers>) -> Self {
        let inner = Inner { level: Level::detect(), threads, workers, pool: Pool::new(threads) };
        Self { inner: Arc::new(inner), products: Products::F32 }
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.inner.threads
    }

    /// Copies an ndarray, in logical order.
    pub fn from_array<D: ndarray::Dimension>(&self, array: &ndarray::ArrayRef<E, D>) -> Tensor<E> {
        self.filled(Shape::new(array.shape()), |out| out.iter_mut().zip(array.iter()).for_each(|(o, &a)| *o = a))
    }

    fn level(&self) -> Level {
        self.inner.level
    }

    /// Fresh memory with unspecified values.
    fn take(&self, len: usize) -> Tensor<E> {
        Tensor::new(self.inner.pool.take(len))
    }

    /// A tensor whose every element `write` sets.
    #[inline(always)]
    fn filled(&self, shape: Shape, write: impl FnOnce(&mut [E])) -> Tensor<E> {
        let mut out = self.take(shape.elements()).with_shape(shape);
        write(out.as_mut_slice());
        out
    }

    fn copy(&self, x: &Tensor<E>) -> Tensor<E> {
        self.filled(x.shape(), |out| out.copy_from_slice(x.as_slice()))
    }
}

/// Activations that one core keeps in its caches while a shard goes through the model, in bytes. Shards of some sixty rows
/// are faster than ones that fit the second level: the products' tiles have fewer remainders (docs/performance.md).
const SHARD_BYTES: usize = 5 << 20;
/// Intermediate values of the rows that go through one link at a time, in bytes: of the wide insides of a convolutional
/// block, which should stay in the second-level cache.
const TILE_BYTES: usize = 2 << 20;

impl<E: CpuElement> Backend for NdArray<E> {
    type Elem = E;
    type Tensor = Tensor<E>;

    fn name(&self) -> String {
        format!("ndarray-{}", E::NAME)
    }

    fn shape(&self, x: &Tensor<E>) -> Shape {
        x.shape()
    }

    fn upload(&self, data: &[E], shape: Shape) -> Tensor<E> {
        assert_eq!(data.len(), shape.elements(), "upload: {} elements for {shape}", data.len());
        self.filled(shape, |out| out.copy_from_slice(data))
    }

    fn download(&self, x: &Tensor<E>) -> Result<Vec<E>, BackendError> {
        Ok(x.as_slice().to_vec())
    }

    fn synchronize(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn full(&self, value: f64, shape: Shape) -> Tensor<E> {
        self.filled(shape, |out| out.fill(E::from_f64(value)))
    }

    fn noise(&self, key: Key, noise: Noise, first: u64, shape: Shape) -> Tensor<E> {
        self.noise_op(key, noise, first, shape)
    }

    fn unary(&self, op: Unary, x: Tensor<E>) -> Tensor<E> {
        self.unary_op(op, x)
    }

    fn binary(&self, op: Binary, a: Tensor<E>, b: &Tensor<E>) -> Tensor<E> {
        self.binary_op(op, a, b)
    }

    fn affine(&self, x: Tensor<E>, scale: f64, shift: f64) -> Tensor<E> {
        let (scale, shift) = (E::from_f64(scale), E::from_f64(shift));
        self.map(x, |x| scale * x + shift)
    }

    fn axpy(&self, alpha: f64, x: &Tensor<E>, y: Tensor<E>) -> Tensor<E> {
        self.axpy_op(alpha, x, y)
    }

    fn select(&self, mask: &Tensor<E>, on: &Tensor<E>, off: &Tensor<E>) -> Tensor<E> {
        self.select_op(mask, on, off)
    }

    fn reduce(&self, op: Reduce, over: Over, x: &Tensor<E>) -> Tensor<E> {
        self.reduce_op(op, over, x)
    }

    fn matmul(&self, a: &Tensor<E>, transpose_a: bool, b: &Tensor<E>, transpose_b: bool) -> Tensor<E> {
        self.matmul_op(a, transpose_a, b, transpose_b)
    }

    fn conv2d(&self, x: &Tensor<E>, kernel: &Tensor<E>, padding: Padding) -> Tensor<E> {
        self.conv2d_op(x, kernel, padding)
    }

    fn conv2d_input(&self, gy: &Tensor<E>, kernel: &Tensor<E>, padding: Padding, image: [usize; 2]) -> Tensor<E> {
        self.conv2d_input_op(gy, kernel, padding, image)
    }

    fn conv2d_kernel(&self, x: &Tensor<E>, gy: &Tensor<E>, padding: Padding, kernel: [usize; 2]) -> Tensor<E> {
        self.conv2d_kernel_op(x, gy, padding, kernel)
    }

    fn lu(&self, a: &Tensor<E>) -> (Tensor<E>, Tensor<E>) {
        self.lu_op(a)
    }

    fn reshape(&self, x: &Tensor<E>, shape: Shape) -> Tensor<E> {
        assert_eq!(x.shape().elements(), shape.elements(), "reshape: {} to {shape}", x.shape());
        x.window(0, shape)
    }

    fn permute(&self, x: &Tensor<E>, axes: &[usize]) -> Tensor<E> {
        self.permute_op(x, axes)
    }

    fn concat(&self, parts: &[&Tensor<E>], axis: usize) -> Tensor<E> {
        self.concat_op(parts, axis)
    }

    fn narrow(&self, x: &Tensor<E>, axis: usize, start: usize, length: usize) -> Tensor<E> {
        self.narrow_op(x, axis, start, length)
    }

    fn take_rows(&self, x: &Tensor<E>, indices: &[u32]) -> Tensor<E> {
        self.take_rows_op(x, indices)
    }

    fn shard_rows(&self, bytes_per_row: usize) -> usize {
        (SHARD_BYTES / bytes_per_row.max(1)).clamp(24, 96)
    }

    fn tile_rows(&self, bytes_per_row: usize) -> usize {
        (TILE_BYTES / bytes_per_row.max(1)).max(1)
    }

    fn lanes(&self) -> usize {
        8
    }

    fn run<T: Send>(&self, tasks: usize, task: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        match &self.inner.workers {
            Some(workers) if tasks > 1 => workers.run(tasks, task),
            _ => (0..tasks).map(task).collect(),
        }
    }

    fn with_products(&self, products: Products) -> Result<Self, BackendError> {
        let has = products == Products::F32 || (tiles::parts(products) > 0 && E::HAS_TILES);
        if !has {
            return Err(BackendError::Setup(format!("{} has no products in {products}", self.name())));
        }
        if products != Products::F32 && !tiles::are_available() {
            return Err(BackendError::Setup(format!(
                "products in {products} need a processor that multiplies bf16: AVX512_BF16, or a matrix unit (AMX-BF16) with Linux \
                 5.16 or newer and its permission to use it; f32 is for every machine"
            )));
        }
        Ok(Self { inner: Arc::clone(&self.inner), products })
    }

    fn poll_interval(&self) -> usize {
        1
    }

    fn known_zero(&self, x: &Tensor<E>) -> bool {
        x.as_slice().iter().all(|&x| x == E::ZERO)
    }

    fn linear(&self, x: &Tensor<E>, wt: &Tensor<E>, bias: &Tensor<E>) -> Tensor<E> {
        self.linear_op(x, wt, bias)
    }

    fn matmul_add(
        &self,
        sum: Tensor<E>,
        a: &Tensor<E>,
        transpose_a: bool,
        b: &Tensor<E>,
        transpose_b: bool,
    ) -> Tensor<E> {
        self.matmul_add_op(sum, a, transpose_a, b, transpose_b)
    }

    fn conv2d_kernel_add(&self, sum: Tensor<E>, x: &Tensor<E>, gy: &Tensor<E>, padding: Padding) -> Tensor<E> {
        self.conv2d_kernel_add_op(sum, x, gy, padding)
    }

    fn activation(&self, f: Activation, parameter: Option<&Tensor<E>>, x: &Tensor<E>, order: usize) -> Vec<Tensor<E>> {
        self.activation_op(f, parameter, x, order)
    }

    fn activation_reverse(
        &self,
        f: Activation,
        parameter: Option<&Tensor<E>>,
        x: &Tensor<E>,
        derivatives: &[Tensor<E>],
        tangents: &[Tensor<E>],
        gy: Tensor<E>,
        gdy: Vec<Tensor<E>>,
    ) -> ActivationReverse<Tensor<E>> {
        self.activation_reverse_op(f, parameter, x, derivatives, tangents, gy, gdy)
    }

    fn dot_rows(&self, a: &Tensor<E>, b: &Tensor<E>) -> Tensor<E> {
        self.dot_rows_op(a, b)
    }

    fn dot(&self, a: &Tensor<E>, b: &Tensor<E>) -> Tensor<E> {
        self.dot_op(a, b)
    }

    fn series_term(
        &self,
        k: usize,
        weight: TermWeight<'_, Tensor<E>>,
        probe: &Tensor<E>,
        negligible: f64,
        state: SeriesState<Tensor<E>>,
    ) -> SeriesState<Tensor<E>> {
        self.series_term_op(k, weight, probe, negligible, state)
    }

    fn net_series(
        &self,
        net: &Net<Tensor<E>>,
        slopes: &[&Tensor<E>],
        first: usize,
        weights: TermWeights<'_, Tensor<E>>,
        probe: &Tensor<E>,
        negligible: f64,
        state: SeriesState<Tensor<E>>,
    ) -> SeriesState<Tensor<E>> {
        self.net_series_op(net, slopes, first, weights, probe, negligible, state)
    }

    fn fixed_point_step(
        &self,
        rule: &FixedPointRule,
        y: &Tensor<E>,
        g: &Tensor<E>,
        state: FixedPointState<Tensor<E>>,
    ) -> FixedPointState<Tensor<E>> {
        self.fixed_point_step_op(rule, y, g, state)
    }

    fn net_fixed_point(
        &self,
        net: &Net<Tensor<E>>,
        sign: f64,
        search: &FixedPointSearch,
        y: &Tensor<E>,
    ) -> Result<FixedPointFound<Tensor<E>>, BackendError> {
        match self.net_fixed_point_op(net, sign, search, y) {
            Some(found) => Ok(found),
            None => resflow_backend::composed::net_fixed_point(self, net, sign, search, y),
        }
    }

    fn power_iteration(&self, w: &Tensor<E>, u: Tensor<E>, v: Tensor<E>, count: usize) -> [Tensor<E>; 3] {
        self.power_iteration_op(w, u, v, count)
    }

    fn spline(&self, rule: &Spline, x: &Tensor<E>, raw: &Tensor<E>) -> [Tensor<E>; 2] {
        self.spline_op(rule, x, raw)
    }

    fn spline_inverse(&self, rule: &Spline, y: &Tensor<E>, raw: &Tensor<E>) -> Tensor<E> {
        self.spline_inverse_op(rule, y, raw)
    }

    fn spline_reverse(
        &self,
        rule: &Spline,
        x: &Tensor<E>,
        raw: &Tensor<E>,
        gy: &Tensor<E>,
        weights: &Tensor<E>,
    ) -> SplineReverse<Tensor<E>> {
        self.spline_reverse_op(rule, x, raw, gy, weights)
    }

    fn bounded_affine(&self, most: f64, x: &Tensor<E>, told: &Tensor<E>) -> [Tensor<E>; 2] {
        self.bounded_affine_op(most, x, told)
    }

    fn bounded_affine_reverse(
        &self,
        most: f64,
        x: &Tensor<E>,
        told: &Tensor<E>,
        gy: &Tensor<E>,
        weights: &Tensor<E>,
    ) -> BoundedAffineReverse<Tensor<E>> {
        self.bounded_affine_reverse_op(most, x, told, gy, weights)
    }

    fn adam_step(
        &self,
        rule: &AdamStep,
        scale: &Tensor<E>,
        gate: &Tensor<E>,
        decayed: &Tensor<E>,
        parameters: Tensor<E>,
        moments: [Tensor<E>; 2],
        gradient: &Tensor<E>,
    ) -> (Tensor<E>, [Tensor<E>; 2]) {
        self.adam_op(rule, scale, gate, decayed, parameters, moments, gradient)
    }

    fn all_finite(&self, x: &Tensor<E>) -> Tensor<E> {
        let finite = x.as_slice().iter().all(|x| x.is_finite());
        self.full(f64::from(u8::from(finite)), [1].into())
    }
}
