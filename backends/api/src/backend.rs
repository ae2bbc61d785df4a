//! The trait that a device implements.

use std::fmt::Debug;

use crate::composed;
use crate::{
    Activation, AdamStep, BackendError, Binary, BoundedAffineReverse, Element, FixedPointFound, FixedPointRule,
    FixedPointSearch, FixedPointState, Key, Net, NetForward, Noise, Over, Padding, Products, Reduce, SeriesState,
    Shape, Spline, SplineReverse, TermWeight, TermWeights, Unary,
};

/// Both results of [`Backend::activation_reverse`], and the parameter's gradient.
#[derive(Debug, Clone)]
pub struct ActivationReverse<T> {
    /// φ'(x)·gy + φ''(x)·Σ dxₘ·gdyₘ, of the shape of x.
    pub gx: T,
    /// φ'(x)·gdyₘ for each tangent, of the shape of x.
    pub gdx: Vec<T>,
    /// The gradient of b, `[1]`, for an activation that has one.
    pub parameter: Option<T>,
}

/// A device: memory for tensors and the operations on them.
///
/// A handle is cheap to clone; devices, queues, threads and caches live behind it and there are no globals. Tensors are
/// handles too: cloning one copies no data, and no operation changes the data behind another handle. Operations that
/// take a tensor *by value* may reuse its memory if it is the last handle to all of it.
///
/// The methods without a body are required; the others compose them and may be overridden to fuse. The crate
/// `resflow-conformance` holds every property that resflow relies on, among them that an override computes what its
/// composition does; a new backend passes it and is done.
///
/// # Shapes
/// Rows (samples) are the first axis; images are `[n, h, w, c]`; scalars computed from tensors stay tensors of shape
/// `[1]`. Tensors are logically row-major. Any extent may be 0.
///
/// # Panics
/// An operation on shapes that do not fit is a bug of its caller: it panics, naming the operation and both shapes.
///
/// # Errors
/// Returns [`BackendError`] from the next [`download`](Self::download) or [`synchronize`](Self::synchronize) if the
/// device failed: faults are recorded until then, and no other operation fails. Results computed after a fault are
/// unspecified.
pub trait Backend: Clone + Debug + Send + Sync + 'static {
    /// The type of all elements.
    type Elem: Element;
    /// A handle to an array on the device.
    type Tensor: Clone + Debug + Send + Sync + 'static;

    /// A name for reports, for example `"ndarray-f32"`; on the same kind of processor, backends of one name compute the same bits.
    fn name(&self) -> String;

    /// The shape of a tensor.
    fn shape(&self, x: &Self::Tensor) -> Shape;

    // ---- transfer -------------------------------------------------------------------------------------------------

    /// Moves row-major data to the device.
    ///
    /// # Panics
    /// If the number of elements is not that of the shape.
    fn upload(&self, data: &[Self::Elem], shape: Shape) -> Self::Tensor;

    /// Waits for the tensor and copies it to the host, row-major.
    ///
    /// # Errors
    /// Returns [`BackendError`] if there was a fault since the last wait.
    fn download(&self, x: &Self::Tensor) -> Result<Vec<Self::Elem>, BackendError>;

    /// Waits for all work.
    ///
    /// # Errors
    /// Returns [`BackendError`] if there was a fault since the last wait.
    fn synchronize(&self) -> Result<(), BackendError>;

    // ---- creation -------------------------------------------------------------------------------------------------

    /// Fills a tensor of this shape with one value.
    fn full(&self, value: f64, shape: Shape) -> Self::Tensor;

    /// Draws elements `first..` of the noise of a key, a tensor of this shape, see [`Noise`].
    fn noise(&self, key: Key, noise: Noise, first: u64, shape: Shape) -> Self::Tensor;

    // ---- elementwise ----------------------------------------------------------------------------------------------

    /// Applies a function to every element; the shape stays.
    fn unary(&self, op: Unary, x: Self::Tensor) -> Self::Tensor;

    /// Computes a ∘ b, with b broadcast to the shape of a (axes aligned at the last one; extents equal or 1).
    fn binary(&self, op: Binary, a: Self::Tensor, b: &Self::Tensor) -> Self::Tensor;

    /// Computes scale · x + shift, of the shape of x.
    fn affine(&self, x: Self::Tensor, scale: f64, shift: f64) -> Self::Tensor;

    /// Computes alpha · x + y, of equal shapes.
    fn axpy(&self, alpha: f64, x: &Self::Tensor, y: Self::Tensor) -> Self::Tensor;

    /// Selects `on` where the mask is not 0, else `off`, both of the shape of the result; the mask is broadcast. What
    /// is not selected does not matter, NaN included.
    fn select(&self, mask: &Self::Tensor, on: &Self::Tensor, off: &Self::Tensor) -> Self::Tensor;

    // ---- reductions and products ------------------------------------------------------------------------------------

    /// Combines elements in an order that depends on the shape alone.
    fn reduce(&self, op: Reduce, over: Over, x: &Self::Tensor) -> Self::Tensor;

    /// Multiplies two matrices, `[n, k]` and `[k, m]` once each is transposed where asked: `[n, m]`.
    fn matmul(&self, a: &Self::Tensor, transpose_a: bool, b: &Self::Tensor, transpose_b: bool) -> Self::Tensor;

    /// Cross-correlates x `[n, h, w, c_in]` with a kernel `[c_out, kh, kw, c_in]`: `[n, h', w', c_out]`.
    fn conv2d(&self, x: &Self::Tensor, kernel: &Self::Tensor, padding: Padding) -> Self::Tensor;

    /// Computes the adjoint of [`conv2d`](Self::conv2d) in x: from gy `[n, h', w', c_out]` to `[n, h, w, c_in]` of
    /// height and width `image`, in pixels.
    fn conv2d_input(
        &self,
        gy: &Self::Tensor,
        kernel: &Self::Tensor,
        padding: Padding,
        image: [usize; 2],
    ) -> Self::Tensor;

    /// Computes the adjoint of [`conv2d`](Self::conv2d) in the kernel, summed over samples: `[c_out, kh, kw, c_in]`.
    fn conv2d_kernel(&self, x: &Self::Tensor, gy: &Self::Tensor, padding: Padding, kernel: [usize; 2]) -> Self::Tensor;

    /// Computes ln|det| as `[n, 1]` and the inverses `[n, d, d]` of square matrices `[n, d, d]`. A singular matrix
    /// gives −∞ and NaNs. May wait for the device.
    fn lu(&self, a: &Self::Tensor) -> (Self::Tensor, Self::Tensor);

    // ---- layout ---------------------------------------------------------------------------------------------------

    /// Gives the elements another shape, in row-major order.
    fn reshape(&self, x: &Self::Tensor, shape: Shape) -> Self::Tensor;

    /// Permutes axes: axis i of the result is axis `axes[i]` of x.
    fn permute(&self, x: &Self::Tensor, axes: &[usize]) -> Self::Tensor;

    /// Joins at least one tensor along an axis.
    fn concat(&self, parts: &[&Self::Tensor], axis: usize) -> Self::Tensor;

    /// Takes the slice `start..start + length` of an axis.
    fn narrow(&self, x: &Self::Tensor, axis: usize, start: usize, length: usize) -> Self::Tensor;

    /// Gathers rows `indices` of x (samples, the first axis), in that order, repetition allowed: `[indices.len(), …]`.
    fn take_rows(&self, x: &Self::Tensor, indices: &[u32]) -> Self::Tensor;

    // ---- how the device likes its work ------------------------------------------------------------------------------

    /// The number of rows (samples) that one shard should have if a row keeps `bytes_per_row` of activations alive. All
    /// rows by default; a CPU answers with what fits its cache. A function of the argument alone.
    fn shard_rows(&self, bytes_per_row: usize) -> usize {
        let _ = bytes_per_row;
        usize::MAX
    }

    /// The number of rows (samples) that should go through one transform at a time if a row keeps `bytes_per_row` of
    /// intermediate values alive inside it. All rows by default; a CPU answers with what fits its cache. A function of
    /// the argument alone.
    fn tile_rows(&self, bytes_per_row: usize) -> usize {
        let _ = bytes_per_row;
        usize::MAX
    }

    /// The most shards of one gradient that should run side by side, each with an accumulator of its own. One by
    /// default; a constant of the backend, not of the machine: the order of summation depends on it.
    fn lanes(&self) -> usize {
        1
    }

    /// Runs independent tasks, possibly at the same time, and returns their results in order. One after the other by
    /// default.
    fn run<T: Send>(&self, tasks: usize, task: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        (0..tasks).map(task).collect()
    }

    /// Returns a handle to the same device that multiplies matrices by this arithmetic: for the steps of a training, whose
    /// gradients' noise is far above the error. [`Products::F32`] is the handle's own, which is all that there is by default.
    ///
    /// # Errors
    /// Returns [`BackendError::Setup`] if the device does not have it: other products would give other numbers.
    fn with_products(&self, products: Products) -> Result<Self, BackendError> {
        match products {
            Products::F32 => Ok(self.clone()),
            _ => Err(BackendError::Setup(format!("{} has no products in {products}", self.name()))),
        }
    }

    /// The number of iterations after which an iterative method should ask the device whether it is done.
    fn poll_interval(&self) -> usize {
        8
    }

    /// Returns `true` if the tensor is known, without waiting, to be all zeros. Used to leave out work that would
    /// change nothing.
    fn known_zero(&self, x: &Self::Tensor) -> bool {
        let _ = x;
        false
    }

    // ---- fused forms ----------------------------------------------------------------------------------------------

    /// Computes x·wt + bias for x `[n, i]`, wt `[i, o]` and bias `[o]`: `[n, o]`.
    fn linear(&self, x: &Self::Tensor, wt: &Self::Tensor, bias: &Self::Tensor) -> Self::Tensor {
        self.binary(Binary::Add, self.matmul(x, false, wt, false), bias)
    }

    /// Computes [`linear`](Self::linear) followed by [`activation`](Self::activation): the derivatives 0 to `order` at
    /// y = x·wt + bias, `[n, o]` each, and, for order 2, where the pullback will ask for it, y.
    fn linear_activation(
        &self,
        x: &Self::Tensor,
        wt: &Self::Tensor,
        bias: &Self::Tensor,
        f: Activation,
        parameter: Option<&Self::Tensor>,
        order: usize,
    ) -> (Option<Self::Tensor>, Vec<Self::Tensor>) {
        let y = self.linear(x, wt, bias);
        let derivatives = self.activation(f, parameter, &y, order);
        ((order == 2).then_some(y), derivatives)
    }

    /// Computes sum + a·b, `[n, m]`, the accumulating form of [`matmul`](Self::matmul).
    fn matmul_add(
        &self,
        sum: Self::Tensor,
        a: &Self::Tensor,
        transpose_a: bool,
        b: &Self::Tensor,
        transpose_b: bool,
    ) -> Self::Tensor {
        self.axpy(1.0, &self.matmul(a, transpose_a, b, transpose_b), sum)
    }

    /// Computes sum + the adjoint in the kernel, `[c_out, kh, kw, c_in]`, the accumulating form of
    /// [`conv2d_kernel`](Self::conv2d_kernel).
    fn conv2d_kernel_add(
        &self,
        sum: Self::Tensor,
        x: &Self::Tensor,
        gy: &Self::Tensor,
        padding: Padding,
    ) -> Self::Tensor {
        let shape = self.shape(&sum);
        self.axpy(1.0, &self.conv2d_kernel(x, gy, padding, [shape[1], shape[2]]), sum)
    }

    /// Computes the derivatives 0 to `order` (at most 2) of an activation, of the shape of x, in one pass. `parameter`
    /// is its b, of shape `[1]`.
    fn activation(
        &self,
        f: Activation,
        parameter: Option<&Self::Tensor>,
        x: &Self::Tensor,
        order: usize,
    ) -> Vec<Self::Tensor> {
        composed::activation(self, f, parameter, x, order)
    }

    /// Computes the pullback of (x, dx₁, …, dx_M) ↦ (φ(x), φ'(x)dx₁, …) in one pass, all of the shape of x;
    /// `derivatives` are φ, φ' and φ'' at x.
    fn activation_reverse(
        &self,
        f: Activation,
        parameter: Option<&Self::Tensor>,
        x: &Self::Tensor,
        derivatives: &[Self::Tensor],
        tangents: &[Self::Tensor],
        gy: Self::Tensor,
        gdy: Vec<Self::Tensor>,
    ) -> ActivationReverse<Self::Tensor> {
        composed::activation_reverse(self, f, parameter, x, derivatives, tangents, gy, gdy)
    }

    /// Computes ⟨a, b⟩ of each row: `[n, 1]`.
    fn dot_rows(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor {
        self.reduce(Reduce::Sum, Over::Row, &self.binary(Binary::Mul, a.clone(), b))
    }

    /// Computes ⟨a, b⟩ over everything: `[1]`.
    fn dot(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor {
        self.reduce(Reduce::Sum, Over::All, &self.binary(Binary::Mul, a.clone(), b))
    }

    /// Adds term k ≥ 1 of the series: (−1)^{k+1} c_k ⟨power, probe⟩/k to the value, `[n, 1]`, and (−1)ᵏ c_k · power to
    /// the Neumann vector, `[n, …]`; then rows where c_k ‖power‖ ‖probe‖/k < `negligible` are set to exact zero, so
    /// that they stop for good.
    fn series_term(
        &self,
        k: usize,
        weight: TermWeight<'_, Self::Tensor>,
        probe: &Self::Tensor,
        negligible: f64,
        state: SeriesState<Self::Tensor>,
    ) -> SeriesState<Self::Tensor> {
        composed::series_term(self, k, weight, probe, negligible, state)
    }

    /// Computes g(x) of a net, and what its derivatives up to `order` (at most 2) will ask for; x is `[n, …]`.
    fn net_forward(&self, net: &Net<Self::Tensor>, x: &Self::Tensor, order: usize) -> NetForward<Self::Tensor> {
        composed::net_forward(self, net, x, order)
    }

    /// Computes the tangents that enter the layers of a net, one a layer, the first of which is dx: what
    /// [`net_pullback`](Self::net_pullback) will ask for. `slopes` are those of [`net_vjp`](Self::net_vjp).
    fn net_tangents(&self, net: &Net<Self::Tensor>, slopes: &[&Self::Tensor], dx: &Self::Tensor) -> Vec<Self::Tensor> {
        composed::net_tangents(self, net, slopes, dx)
    }

    /// Computes J dx of a net, `[n, …]` of the shape of its output, and the tangents on the way
    /// ([`net_tangents`](Self::net_tangents)).
    fn net_jvp(
        &self,
        net: &Net<Self::Tensor>,
        slopes: &[&Self::Tensor],
        dx: &Self::Tensor,
    ) -> (Self::Tensor, Vec<Self::Tensor>) {
        composed::net_jvp(self, net, slopes, dx)
    }

    /// Computes the pullback of (x, dx₁, …, dx_M) ↦ (g(x), J dx₁, …, J dx_M) of a net: from (gy, gdy₁, …), of the shape of
    /// its output, to (gx, gdx₁, …), of the shape of its input. `kept` is what [`net_forward`](Self::net_forward) kept for
    /// order 2, `tangents` what enters the layers of each tangent. `grads` has the gradients so far of each affine layer's
    /// weight and bias and of each activation's parameter, in the order of the layers, to which those of this pullback
    /// are added.
    fn net_pullback(
        &self,
        net: &Net<Self::Tensor>,
        kept: &[&[Self::Tensor]],
        tangents: &[Vec<&Self::Tensor>],
        gy: Self::Tensor,
        gdy: Vec<Self::Tensor>,
        grads: &mut [Option<Self::Tensor>],
    ) -> (Self::Tensor, Vec<Self::Tensor>) {
        composed::net_pullback(self, net, kept, tangents, gy, gdy, grads)
    }

    /// Computes Jᵀ gy of a net, `[n, …]` of the shape of its input; gy is of the shape of its output, `slopes` are φ′ of each of
    /// its activations, `[n, …]`.
    fn net_vjp(&self, net: &Net<Self::Tensor>, slopes: &[&Self::Tensor], gy: Self::Tensor) -> Self::Tensor {
        composed::net_vjp(self, net, slopes, gy)
    }

    /// Adds successive terms of the series, from term `first` on: power ← Jᵀ power by [`net_vjp`](Self::net_vjp), then
    /// [`series_term`](Self::series_term), as long as a row is not zero.
    fn net_series(
        &self,
        net: &Net<Self::Tensor>,
        slopes: &[&Self::Tensor],
        first: usize,
        weights: TermWeights<'_, Self::Tensor>,
        probe: &Self::Tensor,
        negligible: f64,
        state: SeriesState<Self::Tensor>,
    ) -> SeriesState<Self::Tensor> {
        composed::net_series(self, net, slopes, first, weights, probe, negligible, state)
    }

    /// Makes one step of x ← y − g(x) in every row that is still active, with its bookkeeping: `g` is g(x), all
    /// `[n, d]`. The row's residual is measured at x, the step from the best x is kept, and x moves unless the row is
    /// done by the rule; a residual that is not finite ends a row too.
    fn fixed_point_step(
        &self,
        rule: &FixedPointRule,
        y: &Self::Tensor,
        g: &Self::Tensor,
        state: FixedPointState<Self::Tensor>,
    ) -> FixedPointState<Self::Tensor> {
        composed::fixed_point_step(self, rule, y, g, state)
    }

    /// Finds the fixed point x = y − sign·g(x) of a net for each row (sample) y, `[n, …]`, from x = y on, each row until it is done:
    /// [`net_forward`](Self::net_forward) and [`fixed_point_step`](Self::fixed_point_step) in turn, with Anderson's acceleration if the
    /// search asks for it.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    fn net_fixed_point(
        &self,
        net: &Net<Self::Tensor>,
        sign: f64,
        search: &FixedPointSearch,
        y: &Self::Tensor,
    ) -> Result<FixedPointFound<Self::Tensor>, BackendError> {
        composed::net_fixed_point(self, net, sign, search, y)
    }

    /// Makes `count` power iterations on a matrix w `[o, i]` from u `[o]` and v `[i]`: v ← wᵀu/‖wᵀu‖, u ← wv/‖wv‖. A
    /// product that is zero leaves its vector as it was. Returns u, v and σ = uᵀwv as `[1]`.
    fn power_iteration(&self, w: &Self::Tensor, u: Self::Tensor, v: Self::Tensor, count: usize) -> [Self::Tensor; 3] {
        composed::power_iteration(self, w, u, v, count)
    }

    /// Makes `count` power iterations on a convolution, kernel `[c_out, kh, kw, c_in]`, on images of one size, from u
    /// `[1, h', w', c_out]` and v `[1, h, w, c_in]`, as [`power_iteration`](Self::power_iteration) does on a matrix.
    fn conv2d_power_iteration(
        &self,
        kernel: &Self::Tensor,
        padding: Padding,
        u: Self::Tensor,
        v: Self::Tensor,
        count: usize,
    ) -> [Self::Tensor; 3] {
        composed::conv2d_power_iteration(self, kernel, padding, u, v, count)
    }

    /// Maps numbers x `[n, c]` by rational-quadratic splines with raw parameters `[n, c (3K − 1)]`, those of a number side
    /// by side ([`Spline`]): y and ln dy/dx, `[n, c]` each.
    fn spline(&self, rule: &Spline, x: &Self::Tensor, raw: &Self::Tensor) -> [Self::Tensor; 2] {
        composed::spline(self, rule, x, raw)
    }

    /// Computes x of y, `[n, c]`, the inverse of [`spline`](Self::spline) with the same parameters.
    fn spline_inverse(&self, rule: &Spline, y: &Self::Tensor, raw: &Self::Tensor) -> Self::Tensor {
        composed::spline_inverse(self, rule, y, raw)
    }

    /// Computes the pullback of [`spline`](Self::spline): from the gradient in y, `[n, c]`, and that in every logarithm of
    /// a row, `[n, 1]`, to those in x and in the raw parameters.
    fn spline_reverse(
        &self,
        rule: &Spline,
        x: &Self::Tensor,
        raw: &Self::Tensor,
        gy: &Self::Tensor,
        weights: &Self::Tensor,
    ) -> SplineReverse<Self::Tensor> {
        composed::spline_reverse(self, rule, x, raw, gy, weights)
    }

    /// Scales and shifts samples x `[n, …, d]` by what each is told, [â | m] `[n, 2d]` or `[1, 2d]`: y = e^a ∘ x + m with a = most·tanh(â/most)
    /// ([`bounded_affine`](crate::bounded_affine)), and ln|det ∂y/∂x|, `[n, 1]`. The bound on |a| is at most 80.
    fn bounded_affine(&self, most: f64, x: &Self::Tensor, told: &Self::Tensor) -> [Self::Tensor; 2] {
        composed::bounded_affine(self, most, x, told)
    }

    /// Computes the pullback of [`bounded_affine`](Self::bounded_affine): from the gradient in y and that in every sample's ln|det|,
    /// `[n, 1]`, to those in x and in what each sample was told.
    fn bounded_affine_reverse(
        &self,
        most: f64,
        x: &Self::Tensor,
        told: &Self::Tensor,
        gy: &Self::Tensor,
        weights: &Self::Tensor,
    ) -> BoundedAffineReverse<Self::Tensor> {
        composed::bounded_affine_reverse(self, most, x, told, gy, weights)
    }

    /// Makes one step of Adam on flat tensors `[P]`. The gradient is scaled by `scale` `[1]`; nothing changes if `gate`
    /// `[1]` is 0. `decayed` marks with ones the parameters that weight decay applies to. Returns parameters and both
    /// moments.
    fn adam_step(
        &self,
        rule: &AdamStep,
        scale: &Self::Tensor,
        gate: &Self::Tensor,
        decayed: &Self::Tensor,
        parameters: Self::Tensor,
        moments: [Self::Tensor; 2],
        gradient: &Self::Tensor,
    ) -> (Self::Tensor, [Self::Tensor; 2]) {
        composed::adam_step(self, rule, scale, gate, decayed, parameters, moments, gradient)
    }

    /// Returns 1 if every element is finite, else 0, as `[1]`.
    fn all_finite(&self, x: &Self::Tensor) -> Self::Tensor {
        let infinite = self.affine(self.unary(Unary::IsFinite, x.clone()), -1.0, 1.0);
        let worst = self.reduce(Reduce::Max, Over::All, &infinite);
        self.binary(Binary::LessEqual, worst, &self.full(0.5, [1].into()))
    }
}
