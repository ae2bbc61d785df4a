//! Rational-quadratic splines, sixteen numbers side by side in vectors; see [`resflow_backend::Spline`] for the formulas.
//!
//! The parameters of sixteen numbers are turned so that each is a vector; then all is arithmetic and selection between
//! vectors, the search for the bin too, which looks at every knot.

use resflow_backend::{Spline, SplineReverse, Unary};

use crate::reduce::LANES;
use crate::simd::kernel;
use crate::{CpuElement, NdArray, Tensor};

/// Sixteen numbers.
type Lanes<E> = [E; LANES];

/// The constants of a [`Spline`].
#[derive(Debug, Clone, Copy)]
struct Rule<E> {
    bins: usize,
    bound: E,
    sharpness: E,
    /// 2B(1 − m K) and 2B m: a bin's extent is the one times its share and the other.
    spread: E,
    least: E,
    shift: E,
    floor: E,
}

impl<E: CpuElement> Rule<E> {
    fn new(rule: &Spline) -> Self {
        let number = E::from_f64;
        Self {
            bins: rule.bins,
            bound: number(rule.bound),
            sharpness: number(rule.sharpness),
            spread: number(2.0 * rule.bound * rule.rest()),
            least: number(2.0 * rule.bound * Spline::FLOOR),
            shift: number(Spline::SHIFT),
            floor: number(Spline::FLOOR),
        }
    }

    /// Vectors of scratch memory: the parameters of sixteen numbers.
    fn scratch(&self) -> Vec<Lanes<E>> {
        vec![[E::ZERO; LANES]; 3 * self.bins - 1]
    }
}

/// Numbers from `base` on, zeros beyond the end.
#[inline(always)]
fn load<E: CpuElement>(x: &[E], base: usize) -> Lanes<E> {
    let mut out = [E::ZERO; LANES];
    let count = LANES.min(x.len() - base);
    out[..count].copy_from_slice(&x[base..base + count]);
    out
}

#[inline(always)]
fn store<E: CpuElement>(out: &mut [E], base: usize, values: &Lanes<E>) {
    let count = LANES.min(out.len() - base);
    out[base..base + count].copy_from_slice(&values[..count]);
}

/// The parameters of sixteen numbers from `base` on, each parameter a vector.
#[inline(always)]
fn turn<E: CpuElement>(raw: &[E], base: usize, out: &mut [Lanes<E>]) {
    let width = out.len();
    let rows = &raw[base * width..raw.len().min((base + LANES) * width)];
    for (l, row) in rows.chunks_exact(width).enumerate() {
        for (out, &raw) in out.iter_mut().zip(row) {
            out[l] = raw;
        }
    }
}

/// The way back.
#[inline(always)]
fn turn_back<E: CpuElement>(values: &[Lanes<E>], base: usize, out: &mut [E]) {
    let width = values.len();
    let end = out.len().min((base + LANES) * width);
    for (l, row) in out[base * width..end].chunks_exact_mut(width).enumerate() {
        for (out, values) in row.iter_mut().zip(values) {
            *out = values[l];
        }
    }
}

/// Softmax of raw widths or heights, in place.
#[inline(always)]
fn soften<E: CpuElement>(raw: &mut [Lanes<E>], sharpness: E) {
    let mut largest = raw[0];
    for raw in &raw[1..] {
        for l in 0..LANES {
            largest[l] = if raw[l] > largest[l] { raw[l] } else { largest[l] };
        }
    }
    let mut sum = [E::ZERO; LANES];
    for raw in raw.iter_mut() {
        for l in 0..LANES {
            let exp = E::fast(Unary::Exp, (raw[l] - largest[l]) * sharpness);
            raw[l] = exp;
            sum[l] += exp;
        }
    }
    for sum in &mut sum {
        *sum = E::ONE / *sum;
    }
    for raw in raw {
        for l in 0..LANES {
            raw[l] *= sum[l];
        }
    }
}

/// Sixteen numbers and their bins.
struct Bins<E> {
    inside: [bool; LANES],
    /// The numbers, zero where they are outside.
    at: Lanes<E>,
    /// The number of the bin.
    index: Lanes<E>,
    /// x_k, w, y_k and v.
    x: Lanes<E>,
    width: Lanes<E>,
    y: Lanes<E>,
    height: Lanes<E>,
    /// δ_k and δ_{k+1}, and their derivatives in the raw parameters.
    slopes: [Lanes<E>; 2],
    sigmoids: [Lanes<E>; 2],
    /// v/w.
    s: Lanes<E>,
}

/// Finds the bins of x, or of y; what was in the scratch memory are raw parameters before, and shares after it.
#[inline(always)]
fn locate<E: CpuElement>(rule: Rule<E>, numbers: &Lanes<E>, parameters: &mut [Lanes<E>], by_y: bool) -> Bins<E> {
    let bins = rule.bins;
    let (widths, rest) = parameters.split_at_mut(bins);
    let (heights, raw) = rest.split_at_mut(bins);
    soften(widths, rule.sharpness);
    soften(heights, rule.sharpness);
    let (mut inside, mut at) = ([false; LANES], [E::ZERO; LANES]);
    for l in 0..LANES {
        inside[l] = numbers[l].abs() < rule.bound;
        at[l] = if inside[l] { numbers[l] } else { E::ZERO };
    }
    let lowest = [-rule.bound; LANES];
    let (mut knot_x, mut knot_y, mut index) = (lowest, lowest, [E::ZERO; LANES]);
    let (mut x, mut y, mut width, mut height) = (lowest, lowest, widths[0], heights[0]);
    let mut ends = [[E::ZERO; LANES], if bins > 1 { raw[0] } else { [E::ZERO; LANES] }];
    for k in 1..bins {
        let number = E::from_f64(k as f64);
        let next = if k + 1 < bins { &raw[k] } else { &[E::ZERO; LANES] };
        for l in 0..LANES {
            knot_x[l] += rule.spread * widths[k - 1][l] + rule.least;
            knot_y[l] += rule.spread * heights[k - 1][l] + rule.least;
            let reached = if by_y { knot_y[l] } else { knot_x[l] } <= at[l];
            index[l] = if reached { number } else { index[l] };
            x[l] = if reached { knot_x[l] } else { x[l] };
            y[l] = if reached { knot_y[l] } else { y[l] };
            width[l] = if reached { widths[k][l] } else { width[l] };
            height[l] = if reached { heights[k][l] } else { height[l] };
            ends[0][l] = if reached { raw[k - 1][l] } else { ends[0][l] };
            ends[1][l] = if reached { next[l] } else { ends[1][l] };
        }
    }
    let last = E::from_f64((bins - 1) as f64);
    let (mut slopes, mut sigmoids, mut s) = ([[E::ONE; LANES]; 2], [[E::ZERO; LANES]; 2], [E::ZERO; LANES]);
    for (side, at_end) in [(0, E::ZERO), (1, last)] {
        for l in 0..LANES {
            let t = ends[side][l] + rule.shift;
            let e = E::fast(Unary::Exp, -t.abs());
            let softplus = if t > E::ZERO { t } else { E::ZERO } + E::fast(Unary::Ln1p, e);
            let sigmoid = if t < E::ZERO { e } else { E::ONE } / (E::ONE + e);
            let end = index[l] == at_end;
            slopes[side][l] = if end { E::ONE } else { rule.floor + softplus };
            sigmoids[side][l] = if end { E::ZERO } else { sigmoid };
        }
    }
    for l in 0..LANES {
        width[l] = rule.spread * width[l] + rule.least;
        height[l] = rule.spread * height[l] + rule.least;
        s[l] = height[l] / width[l];
    }
    Bins { inside, at, index, x, width, y, height, slopes, sigmoids, s }
}

/// ξ, (s ξ² + δ_k t)/D, D, N and dy/dx of one number.
#[inline(always)]
fn terms<E: CpuElement>(bins: &Bins<E>, l: usize) -> [E; 5] {
    let two = E::ONE + E::ONE;
    let (s, left, right) = (bins.s[l], bins.slopes[0][l], bins.slopes[1][l]);
    let xi = (bins.at[l] - bins.x[l]) / bins.width[l];
    let rest = E::ONE - xi;
    let t = xi * rest;
    let d = s * (E::ONE - two * t) + (left + right) * t;
    let n = right * (xi * xi) + left * (rest * rest) + two * (s * t);
    let ratio = (s * (xi * xi) + left * t) / d;
    // in this order nothing overflows that need not
    let once = s / d;
    [xi, ratio, d, n, once * n * once]
}

kernel! {
    /// y and ln dy/dx; see `Backend::spline`.
    fn map<E>(rule: Rule<E>, x: &[E], raw: &[E], y: &mut [E], log_slope: &mut [E], scratch: &mut [Lanes<E>]) {
        for base in (0..x.len()).step_by(LANES) {
            let numbers = load(x, base);
            turn(raw, base, scratch);
            let bins = locate(rule, &numbers, scratch, false);
            let (mut out, mut logs) = ([E::ZERO; LANES], [E::ONE; LANES]);
            for l in 0..LANES {
                let [_, ratio, _, _, slope] = terms(&bins, l);
                let value = bins.y[l] + bins.height[l] * ratio;
                out[l] = if bins.inside[l] { value } else { numbers[l] };
                logs[l] = if bins.inside[l] { slope } else { E::ONE };
            }
            for log in &mut logs {
                *log = E::fast(Unary::Ln, *log);
            }
            store(y, base, &out);
            store(log_slope, base, &logs);
        }
    }
}

kernel! {
    /// x of y; see `Backend::spline_inverse`.
    fn unmap<E>(rule: Rule<E>, y: &[E], raw: &[E], x: &mut [E], scratch: &mut [Lanes<E>]) {
        let two = E::ONE + E::ONE;
        for base in (0..y.len()).step_by(LANES) {
            let numbers = load(y, base);
            turn(raw, base, scratch);
            let bins = locate(rule, &numbers, scratch, true);
            let mut out = [E::ZERO; LANES];
            for l in 0..LANES {
                let (s, left, right) = (bins.s[l], bins.slopes[0][l], bins.slopes[1][l]);
                let rise = bins.at[l] - bins.y[l];
                let bent = rise * (left + right - two * s);
                let a = bins.height[l] * (s - left) + bent;
                let b = bins.height[l] * left - bent;
                let c = s * rise;
                let square = b * b + two * two * (a * c);
                let root = if square < E::ZERO { E::ZERO } else { square }.sqrt();
                // of the two forms of the root the one that does not cancel
                let size = b.abs() + root;
                let xi = if b < E::ZERO { size / (two * a) } else { two * c / size };
                let value = bins.x[l] + bins.width[l] * xi;
                out[l] = if bins.inside[l] { value } else { numbers[l] };
            }
            store(x, base, &out);
        }
    }
}

/// The cotangents of a pullback.
#[derive(Clone, Copy)]
struct Cotangents<'a, E> {
    /// The numbers of a row, which share a weight.
    row: usize,
    y: &'a [E],
    weights: &'a [E],
}

/// Softmax's pullback, in place: shares become gradients of raw parameters, from those of the bin's lower end and extent,
/// both times 2B(1 − m K) and c.
#[inline(always)]
fn harden<E: CpuElement>(shares: &mut [Lanes<E>], index: &Lanes<E>, end: &Lanes<E>, extent: &Lanes<E>) {
    let mut mean = [E::ZERO; LANES];
    for (k, shares) in shares.iter().enumerate() {
        let k = E::from_f64(k as f64);
        for l in 0..LANES {
            let at = if k == index[l] { extent[l] } else { E::ZERO };
            mean[l] += shares[l] * if k < index[l] { end[l] } else { at };
        }
    }
    for (k, shares) in shares.iter_mut().enumerate() {
        let k = E::from_f64(k as f64);
        for l in 0..LANES {
            let at = if k == index[l] { extent[l] } else { E::ZERO };
            let own = if k < index[l] { end[l] } else { at };
            shares[l] *= own - mean[l];
        }
    }
}

kernel! {
    /// The gradients in x and in the raw parameters; see `Backend::spline_reverse`.
    fn pull_back<E>(
        rule: Rule<E>,
        x: &[E],
        raw: &[E],
        cotangents: Cotangents<'_, E>,
        gx: &mut [E],
        graw: &mut [E],
        scratch: &mut [Lanes<E>],
    ) {
        let two = E::ONE + E::ONE;
        let (mut row, mut column) = (0, 0);
        for base in (0..x.len()).step_by(LANES) {
            let numbers = load(x, base);
            let gy = load(cotangents.y, base);
            let mut weights = [E::ZERO; LANES];
            for weight in weights.iter_mut().take(x.len() - base) {
                *weight = cotangents.weights[row];
                column += 1;
                if column == cotangents.row {
                    (row, column) = (row + 1, 0);
                }
            }
            turn(raw, base, scratch);
            let bins = locate(rule, &numbers, scratch, false);
            let mut out = [E::ZERO; LANES];
            let [mut end_x, mut end_y, mut extent_x, mut extent_y] = [[E::ZERO; LANES]; 4];
            let mut inner = [[E::ZERO; LANES]; 2];
            let spread = rule.spread * rule.sharpness;
            for l in 0..LANES {
                let [xi, ratio, d, n, slope] = terms(&bins, l);
                let (s, left, right) = (bins.s[l], bins.slopes[0][l], bins.slopes[1][l]);
                let (rest, turn) = (E::ONE - xi, E::ONE - two * xi);
                let t = xi * rest;
                let g = if bins.inside[l] { gy[l] } else { E::ZERO };
                let weight = if bins.inside[l] { weights[l] } else { E::ZERO };
                // the cotangents of s ξ² + δ_k t, of D and of N
                let gp = g * bins.height[l] / d;
                let gd = E::ZERO - gp * ratio - two * (weight / d);
                let gn = weight / n;
                let in_n = right * xi - left * rest + s * turn;
                let in_d = (left + right - two * s) * turn / d;
                let through = g * slope + two * weight * (in_n / n - in_d) / bins.width[l];
                let gs = gp * (xi * xi) + gd * (E::ONE - two * t) + two * (gn * t + weight / s);
                let per_width = gs / bins.width[l];
                out[l] = if bins.inside[l] { through } else { gy[l] };
                end_x[l] = E::ZERO - spread * through;
                extent_x[l] = E::ZERO - spread * (through * xi + per_width * s);
                end_y[l] = spread * g;
                extent_y[l] = spread * (per_width + g * ratio);
                inner[0][l] = (gp * t + gd * t + gn * (rest * rest)) * bins.sigmoids[0][l];
                inner[1][l] = (gd * t + gn * (xi * xi)) * bins.sigmoids[1][l];
            }
            store(gx, base, &out);
            let (widths, other) = scratch.split_at_mut(rule.bins);
            let (heights, slopes) = other.split_at_mut(rule.bins);
            harden(widths, &bins.index, &end_x, &extent_x);
            harden(heights, &bins.index, &end_y, &extent_y);
            for (k, slopes) in slopes.iter_mut().enumerate() {
                let (k, next) = (E::from_f64(k as f64), E::from_f64((k + 1) as f64));
                for l in 0..LANES {
                    let right = if bins.index[l] == k { inner[1][l] } else { E::ZERO };
                    slopes[l] = if bins.index[l] == next { inner[0][l] } else { right };
                }
            }
            turn_back(scratch, base, graw);
        }
    }
}

impl<E: CpuElement> NdArray<E> {
    #[track_caller]
    pub(crate) fn spline_op(&self, rule: &Spline, x: &Tensor<E>, raw: &Tensor<E>) -> [Tensor<E>; 2] {
        rule.check("spline", x.shape(), raw.shape());
        let own = Rule::new(rule);
        let [mut y, mut log_slope] = [0; 2].map(|_| self.take(x.shape().elements()).with_shape(x.shape()));
        let (out, logs) = (y.as_mut_slice(), log_slope.as_mut_slice());
        map(self.level(), own, x.as_slice(), raw.as_slice(), out, logs, &mut own.scratch());
        [y, log_slope]
    }

    #[track_caller]
    pub(crate) fn spline_inverse_op(&self, rule: &Spline, y: &Tensor<E>, raw: &Tensor<E>) -> Tensor<E> {
        rule.check("spline_inverse", y.shape(), raw.shape());
        let own = Rule::new(rule);
        self.filled(y.shape(), |x| unmap(self.level(), own, y.as_slice(), raw.as_slice(), x, &mut own.scratch()))
    }

    #[track_caller]
    pub(crate) fn spline_reverse_op(
        &self,
        rule: &Spline,
        x: &Tensor<E>,
        raw: &Tensor<E>,
        gy: &Tensor<E>,
        weights: &Tensor<E>,
    ) -> SplineReverse<Tensor<E>> {
        let shape = x.shape();
        rule.check("spline_reverse", shape, raw.shape());
        let fits = gy.shape() == shape && weights.shape()[..] == [shape[0], 1];
        assert!(fits, "spline_reverse: cotangents {} and weights {} for {shape}", gy.shape(), weights.shape());
        let own = Rule::new(rule);
        let cotangents = Cotangents { row: shape[1], y: gy.as_slice(), weights: weights.as_slice() };
        let mut gx = self.take(shape.elements()).with_shape(shape);
        let mut graw = self.take(raw.shape().elements()).with_shape(raw.shape());
        let (out, gradients) = (gx.as_mut_slice(), graw.as_mut_slice());
        pull_back(self.level(), own, x.as_slice(), raw.as_slice(), cotangents, out, gradients, &mut own.scratch());
        SplineReverse { gx, graw }
    }
}
