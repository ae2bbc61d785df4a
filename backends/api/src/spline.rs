//! Rational-quadratic splines (Gregory and Delbourgo 1982; Durkan et al. 2019, arXiv 1906.04032, §3.1): monotone maps of
//! numbers, each with parameters of its own, in closed form in both directions.
//!
//! K bins cover [−B, B]; outside is the identity. Of the raw parameters [ŵ | v̂ | d̂] of a number, K, K and K − 1:
//!
//! ```text
//! shares  w = m + (1 − m K) softmax(c ŵ),  knots x_k = B (2 Σ_{j<k} w_j − 1),  and y_k likewise by v̂
//! slopes  δ_k = m + softplus(d̂_k + ln(e^{1−m} − 1)) at inner knots, 1 at both ends
//! ```
//!
//! with m = [`Spline::FLOOR`]. In bin k, of width w and height v, with ξ = (x − x_k)/w, s = v/w and t = ξ(1 − ξ):
//!
//! ```text
//! D = s(1 − 2t) + (δ_k + δ_{k+1}) t,  N = δ_{k+1} ξ² + 2 s t + δ_k (1 − ξ)²
//! y = y_k + v (s ξ² + δ_k t)/D,       dy/dx = s² N/D²
//! ```
//!
//! Zeros are the identity. A number at a knot belongs to the bin on its right, one at ±B is outside, and so are infinities
//! and NaN, which stay what they are. Invariant: only numbers inside are ever put into the formulas, as they are; there D, N
//! and dy/dx are positive, so the slope's logarithm and all gradients are finite.

use crate::composed::Expr;
use crate::{Activation, Backend, Binary, Element as _, Over, Reduce, Shape, Unary};

/// The bins of splines, and what their raw parameters mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spline {
    /// K, the number of bins, at least 1 and below 1000.
    pub bins: usize,
    /// B: the box is [−B, B].
    pub bound: f64,
    /// c, the factor on raw widths and heights.
    pub sharpness: f64,
}

impl Spline {
    /// The least width and height of a bin, as a share of the box, and the least slope at a knot.
    pub const FLOOR: f64 = 1e-3;

    /// ln(e^{1−m} − 1), which raw slopes of zero are shifted to: softplus of it is 1 − m.
    pub const SHIFT: f64 = 0.539_742_417_236_952;

    /// Returns the raw parameters of a number, 3K − 1.
    pub fn parameters(&self) -> usize {
        3 * self.bins - 1
    }

    /// 1 − m K, the share that is given out above the floor.
    pub fn rest(&self) -> f64 {
        1.0 - Self::FLOOR * self.bins as f64
    }

    /// Checks the shapes of numbers `[n, c]` and of their parameters `[n, c (3K − 1)]`.
    ///
    /// # Panics
    /// If they do not fit, naming the operation and both shapes.
    #[track_caller]
    pub fn check(&self, operation: &str, x: Shape, raw: Shape) {
        assert!(self.bins > 0 && self.rest() > 0.0, "{operation}: {} bins", self.bins);
        let fits = x.rank() == 2 && raw.rank() == 2 && raw[0] == x[0] && raw[1] == x[1] * self.parameters();
        assert!(fits, "{operation}: numbers {x} with parameters {raw} of {} bins", self.bins);
    }
}

/// Both results of [`Backend::spline_reverse`].
#[derive(Debug, Clone)]
pub struct SplineReverse<T> {
    /// The gradient in x, `[n, c]`.
    pub gx: T,
    /// The gradient in the raw parameters, `[n, c (3K − 1)]`.
    pub graw: T,
}

/// The bins of m numbers: shares and lower ends `[m, K]` of one axis.
struct Axis<B: Backend> {
    /// softmax(c ·raw), `[m, K]`.
    soft: B::Tensor,
    /// The bins' extents, `[m, K]`.
    extents: B::Tensor,
    /// Their lower ends, `[m, K]`.
    knots: B::Tensor,
}

impl<B: Backend> Axis<B> {
    fn new(backend: &B, rule: &Spline, raw: &B::Tensor) -> Self {
        let (e, bins) = (Expr(backend), rule.bins);
        let raw = e.affine(raw, rule.sharpness, 0.0);
        let largest = backend.reduce(Reduce::Max, Over::Row, &raw);
        let exp = backend.unary(Unary::Exp, backend.binary(Binary::Sub, raw, &largest));
        let sum = backend.reduce(Reduce::Sum, Over::Row, &exp);
        let soft = backend.binary(Binary::Div, exp, &sum);
        let extents = e.affine(&soft, 2.0 * rule.bound * rule.rest(), 2.0 * rule.bound * Spline::FLOOR);
        let number = |value: f64| B::Elem::from_f64(value);
        let before: Vec<_> = (0..bins * bins).map(|i| number(f64::from(u8::from(i / bins < i % bins)))).collect();
        let before = backend.upload(&before, [bins, bins].into());
        let knots = e.affine(&backend.matmul(&extents, false, &before, false), 1.0, -rule.bound);
        Self { soft, extents, knots }
    }

    /// The gradient in the raw parameters, from those in the lower end and in the extent of the bin, `[m, 1]`.
    fn reverse(&self, backend: &B, rule: &Spline, place: &Place<B>, end: &B::Tensor, extent: &B::Tensor) -> B::Tensor {
        let e = Expr(backend);
        let shares = e.add(&e.mul(&place.before, end), &e.mul(&place.hot, extent));
        let shares = e.affine(&shares, 2.0 * rule.bound * rule.rest() * rule.sharpness, 0.0);
        let mean = backend.dot_rows(&self.soft, &shares);
        e.mul(&self.soft, &backend.binary(Binary::Sub, shares, &mean))
    }
}

/// The bin that each of m numbers is in: ones there and at the bins before it, `[m, K]`.
struct Place<B: Backend> {
    hot: B::Tensor,
    before: B::Tensor,
}

impl<B: Backend> Place<B> {
    fn new(backend: &B, knots: &B::Tensor, x: &B::Tensor) -> Self {
        let (e, shape) = (Expr(backend), backend.shape(knots));
        let reached = backend.binary(Binary::LessEqual, knots.clone(), x);
        // the first bin is that of all numbers below its upper end, whatever rounding says of its lower one
        let ones = backend.full(1.0, [shape[0], 1].into());
        let zeros = backend.full(0.0, [shape[0], 1].into());
        let later = backend.narrow(&reached, 1, 1, shape[1] - 1);
        let reached = backend.concat(&[&ones, &later], 1);
        let before = backend.concat(&[&later, &zeros], 1);
        Self { hot: e.sub(&reached, &before), before }
    }

    /// The entry of the bin, `[m, 1]`.
    fn pick(&self, backend: &B, x: &B::Tensor) -> B::Tensor {
        backend.dot_rows(x, &self.hot)
    }
}

/// Numbers in their bins, all `[m, 1]`.
struct Bins<B: Backend> {
    /// 1 inside the box.
    inside: B::Tensor,
    /// The numbers, zero where they are outside.
    at: B::Tensor,
    axes: [Axis<B>; 2],
    place: Place<B>,
    /// x_k and y_k.
    ends: [B::Tensor; 2],
    /// w and v.
    extents: [B::Tensor; 2],
    /// δ_k and δ_{k+1}.
    slopes: [B::Tensor; 2],
    /// Their derivatives in the raw parameters.
    sigmoids: [B::Tensor; 2],
    /// v/w.
    s: B::Tensor,
}

impl<B: Backend> Bins<B> {
    /// Finds the bins of x, or of y if `axis` is 1.
    fn new(backend: &B, rule: &Spline, numbers: &B::Tensor, raw: &B::Tensor, axis: usize) -> Self {
        let (e, bins) = (Expr(backend), rule.bins);
        let count = backend.shape(numbers).elements();
        let numbers = backend.reshape(numbers, [count, 1].into());
        let raw = backend.reshape(raw, [count, rule.parameters()].into());
        let size = backend.unary(Unary::Abs, numbers.clone());
        let inside = backend.binary(Binary::Less, size, &backend.full(rule.bound, [1].into()));
        let at = backend.select(&inside, &numbers, &e.zeros(&numbers));
        let axes = [0, bins].map(|start| Axis::new(backend, rule, &backend.narrow(&raw, 1, start, bins)));
        let place = Place::new(backend, &axes[axis].knots, &at);
        let derivatives = backend.narrow(&raw, 1, 2 * bins, bins - 1);
        let zeros = backend.full(0.0, [count, 1].into());
        let slopes = [backend.concat(&[&zeros, &derivatives], 1), backend.concat(&[&derivatives, &zeros], 1)];
        let slopes = slopes.map(|raw| {
            let shifted = e.affine(&place.pick(backend, &raw), 1.0, Spline::SHIFT);
            let mut orders = backend.activation(Activation::Softplus, None, &shifted, 1);
            let sigmoid = orders.swap_remove(1);
            (backend.affine(orders.swap_remove(0), 1.0, Spline::FLOOR), sigmoid)
        });
        let [(left, left_sigmoid), (right, right_sigmoid)] = slopes;
        let ends = [0, 1].map(|i| place.pick(backend, &axes[i].knots));
        let extents = [0, 1].map(|i| place.pick(backend, &axes[i].extents));
        let s = e.div(&extents[1], &extents[0]);
        let (slopes, sigmoids) = ([left, right], [left_sigmoid, right_sigmoid]);
        Self { inside, at, axes, place, ends, extents, slopes, sigmoids, s }
    }

    /// `[m, 1]` as `[n, c]`, with `outside` where numbers are outside.
    fn result(&self, backend: &B, value: &B::Tensor, outside: &B::Tensor) -> B::Tensor {
        let shape = backend.shape(outside);
        let outside = backend.reshape(outside, backend.shape(value));
        backend.reshape(&backend.select(&self.inside, value, &outside), shape)
    }
}

/// What the formulas of a number in its bin are made of, all `[m, 1]`.
struct Terms<B: Backend> {
    xi: B::Tensor,
    /// 1 − ξ.
    rest: B::Tensor,
    t: B::Tensor,
    /// (s ξ² + δ_k t)/D.
    ratio: B::Tensor,
    d: B::Tensor,
    n: B::Tensor,
}

impl<B: Backend> Terms<B> {
    fn new(backend: &B, bins: &Bins<B>) -> Self {
        let e = Expr(backend);
        let xi = e.div(&e.sub(&bins.at, &bins.ends[0]), &bins.extents[0]);
        let rest = e.affine(&xi, -1.0, 1.0);
        let t = e.mul(&xi, &rest);
        let [left, right] = &bins.slopes;
        let d = e.add(&e.mul(&bins.s, &e.affine(&t, -2.0, 1.0)), &e.mul(&e.add(left, right), &t));
        let outer = e.add(&e.mul(right, &e.square(&xi)), &e.mul(left, &e.square(&rest)));
        let n = backend.axpy(2.0, &e.mul(&bins.s, &t), outer);
        let top = e.add(&e.mul(&bins.s, &e.square(&xi)), &e.mul(left, &t));
        Self { ratio: e.div(&top, &d), xi, rest, t, d, n }
    }

    /// dy/dx.
    fn slope(&self, backend: &B, bins: &Bins<B>) -> B::Tensor {
        let e = Expr(backend);
        // in this order nothing overflows that need not
        let once = e.div(&bins.s, &self.d);
        e.mul(&e.mul(&once, &self.n), &once)
    }
}

/// [`Backend::spline`] without fusion.
#[track_caller]
pub fn spline<B: Backend>(backend: &B, rule: &Spline, x: &B::Tensor, raw: &B::Tensor) -> [B::Tensor; 2] {
    rule.check("spline", backend.shape(x), backend.shape(raw));
    let e = Expr(backend);
    let bins = Bins::new(backend, rule, x, raw, 0);
    let terms = Terms::new(backend, &bins);
    let y = e.add(&bins.ends[1], &e.mul(&bins.extents[1], &terms.ratio));
    let log_slope = backend.unary(Unary::Ln, terms.slope(backend, &bins));
    [bins.result(backend, &y, x), bins.result(backend, &log_slope, &e.zeros(x))]
}

/// [`Backend::spline_inverse`] without fusion.
#[track_caller]
pub fn spline_inverse<B: Backend>(backend: &B, rule: &Spline, y: &B::Tensor, raw: &B::Tensor) -> B::Tensor {
    rule.check("spline_inverse", backend.shape(y), backend.shape(raw));
    let e = Expr(backend);
    let bins = Bins::new(backend, rule, y, raw, 1);
    let [left, right] = &bins.slopes;
    let [width, height] = &bins.extents;
    let rise = e.sub(&bins.at, &bins.ends[1]);
    let bent = e.mul(&rise, &backend.axpy(-2.0, &bins.s, e.add(left, right)));
    let a = e.add(&e.mul(height, &e.sub(&bins.s, left)), &bent);
    let b = e.sub(&e.mul(height, left), &bent);
    // −c
    let c = e.mul(&bins.s, &rise);
    let square = backend.axpy(4.0, &e.mul(&a, &c), e.square(&b));
    let square = backend.binary(Binary::Max, square, &backend.full(0.0, [1].into()));
    let root = backend.unary(Unary::Sqrt, square);
    // of the two forms of the root the one that does not cancel
    let negative = backend.binary(Binary::Less, b.clone(), &backend.full(0.0, [1].into()));
    let size = e.add(&backend.unary(Unary::Abs, b), &root);
    let twice = e.affine(&c, 2.0, 0.0);
    let xi =
        e.div(&backend.select(&negative, &size, &twice), &backend.select(&negative, &e.affine(&a, 2.0, 0.0), &size));
    let x = e.add(&bins.ends[0], &e.mul(width, &xi));
    bins.result(backend, &x, y)
}

/// [`Backend::spline_reverse`] without fusion.
#[track_caller]
pub fn spline_reverse<B: Backend>(
    backend: &B,
    rule: &Spline,
    x: &B::Tensor,
    raw: &B::Tensor,
    gy: &B::Tensor,
    weights: &B::Tensor,
) -> SplineReverse<B::Tensor> {
    let (shape, parameters) = (backend.shape(x), backend.shape(raw));
    rule.check("spline_reverse", shape, parameters);
    let fits = backend.shape(gy) == shape && backend.shape(weights)[..] == [shape[0], 1];
    assert!(
        fits,
        "spline_reverse: cotangents {} and weights {} for {shape}",
        backend.shape(gy),
        backend.shape(weights)
    );
    let e = Expr(backend);
    let bins = Bins::new(backend, rule, x, raw, 0);
    let terms = Terms::new(backend, &bins);
    let Terms { xi, rest, t, ratio, d, n } = &terms;
    let [left, right] = &bins.slopes;
    let [width, height] = &bins.extents;
    let column = backend.shape(&bins.at);
    let inside = |g: &B::Tensor| backend.select(&bins.inside, g, &e.zeros(g));
    let gy_inside = inside(&backend.reshape(gy, column));
    let weight = backend.binary(Binary::Add, backend.full(0.0, shape), weights);
    let weight = inside(&backend.reshape(&weight, column));

    // the cotangents of s ξ² + δ_k t, of D and of N
    let gp = e.div(&e.mul(&gy_inside, height), d);
    let gd = backend.axpy(-2.0, &e.div(&weight, d), e.affine(&e.mul(&gp, ratio), -1.0, 0.0));
    let gn = e.div(&weight, n);
    let square = e.square(xi);
    // those of ln dy/dx in ξ; those of y are dy/dx
    let turn = e.affine(xi, -2.0, 1.0);
    let in_n = e.add(&e.sub(&e.mul(right, xi), &e.mul(left, rest)), &e.mul(&bins.s, &turn));
    let q = backend.axpy(-2.0, &bins.s, e.add(left, right));
    let in_d = e.div(&e.mul(&q, &turn), d);
    let through_log = e.affine(&e.sub(&e.div(&in_n, n), &in_d), 2.0, 0.0);
    let gx = e.add(&e.mul(&gy_inside, &terms.slope(backend, &bins)), &e.div(&e.mul(&weight, &through_log), width));
    let gs = e.add(&e.mul(&gp, &square), &e.mul(&gd, &e.affine(t, -2.0, 1.0)));
    let gs = backend.axpy(2.0, &e.add(&e.mul(&gn, t), &e.div(&weight, &bins.s)), gs);
    let gd_t = e.mul(&gd, t);
    let g_left = e.add(&e.add(&e.mul(&gp, t), &gd_t), &e.mul(&gn, &e.square(rest)));
    let g_right = e.add(&gd_t, &e.mul(&gn, &square));
    let per_width = e.div(&gs, width);
    let g_width = e.affine(&e.add(&e.mul(&gx, xi), &e.mul(&per_width, &bins.s)), -1.0, 0.0);
    let g_height = e.add(&per_width, &e.mul(&gy_inside, ratio));

    let place = &bins.place;
    let widths = bins.axes[0].reverse(backend, rule, place, &e.affine(&gx, -1.0, 0.0), &g_width);
    let heights = bins.axes[1].reverse(backend, rule, place, &gy_inside, &g_height);
    let inner = rule.bins - 1;
    let [g_left, g_right] = [(g_left, 0), (g_right, 1)].map(|(g, side)| e.mul(&g, &bins.sigmoids[side]));
    let slopes = e.add(
        &e.mul(&backend.narrow(&place.hot, 1, 1, inner), &g_left),
        &e.mul(&backend.narrow(&place.hot, 1, 0, inner), &g_right),
    );
    let graw = backend.concat(&[&widths, &heights, &slopes], 1);
    SplineReverse { gx: bins.result(backend, &gx, gy), graw: backend.reshape(&graw, parameters) }
}
