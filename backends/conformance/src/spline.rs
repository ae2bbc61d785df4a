//! Rational-quadratic splines, their inverses and pullbacks, against their definition in dual numbers and against the
//! compositions.
//!
//! Results move with the knots, which are sums of the bins' extents, so errors are measured by the bound times the local
//! slope; how far a gradient moves with a knot is found by moving the number. Numbers so near to a knot that rounding
//! decides on which side they are are not asked for gradients, which jump there.

use std::ops::{Add, Div, Mul, Sub};

use proptest::prelude::*;
use resflow_backend::{Backend, Element, Spline, composed};

use crate::draw::{Draw, check, download, extent, seed, upload};
use crate::reference::Array;
use crate::tolerance::{SPLINE, assert_close, within};

/// A value with its derivative along one direction.
#[derive(Debug, Clone, Copy, Default)]
struct Dual {
    value: f64,
    slope: f64,
}

impl Dual {
    fn constant(value: f64) -> Self {
        Self { value, slope: 0.0 }
    }
    fn exp(self) -> Self {
        let value = self.value.exp();
        Self { value, slope: value * self.slope }
    }
    fn ln(self) -> Self {
        Self { value: self.value.ln(), slope: self.slope / self.value }
    }
    /// ln(1 + eˣ).
    fn softplus(self) -> Self {
        let e = (-self.value.abs()).exp();
        let sigmoid = if self.value < 0.0 { e } else { 1.0 } / (1.0 + e);
        Self { value: self.value.max(0.0) + e.ln_1p(), slope: sigmoid * self.slope }
    }
}

impl Add for Dual {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { value: self.value + other.value, slope: self.slope + other.slope }
    }
}

impl Sub for Dual {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { value: self.value - other.value, slope: self.slope - other.slope }
    }
}

impl Mul for Dual {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self { value: self.value * other.value, slope: self.value * other.slope + self.slope * other.value }
    }
}

impl Div for Dual {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let value = self.value / other.value;
        Self { value, slope: (self.slope - value * other.slope) / other.value }
    }
}

/// The knots and slopes of one number's spline.
#[derive(Debug)]
struct Knots {
    x: Vec<Dual>,
    y: Vec<Dual>,
    slopes: Vec<Dual>,
}

impl Knots {
    /// With the derivative along the raw parameter `along`.
    fn new(rule: &Spline, raw: &[f64], along: Option<usize>) -> Self {
        let k = rule.bins;
        let raw: Vec<Dual> = raw
            .iter()
            .enumerate()
            .map(|(i, &value)| Dual { value, slope: f64::from(u8::from(along == Some(i))) })
            .collect();
        let axis = |raw: &[Dual]| {
            let largest = raw.iter().fold(f64::NEG_INFINITY, |a, r| a.max(r.value * rule.sharpness));
            let exps: Vec<Dual> =
                raw.iter().map(|&r| (r * Dual::constant(rule.sharpness) - Dual::constant(largest)).exp()).collect();
            let total = exps.iter().fold(Dual::default(), |a, &e| a + e);
            let mut at = Dual::constant(-rule.bound);
            let mut knots = vec![at];
            for e in exps {
                let share =
                    Dual::constant(Spline::FLOOR) + Dual::constant(1.0 - Spline::FLOOR * k as f64) * (e / total);
                at = at + Dual::constant(2.0 * rule.bound) * share;
                knots.push(at);
            }
            knots
        };
        let shift = (1.0 - Spline::FLOOR).exp_m1().ln();
        let one = [Dual::constant(1.0)];
        let inner: Vec<Dual> = raw[2 * k..]
            .iter()
            .map(|&d| Dual::constant(Spline::FLOOR) + (d + Dual::constant(shift)).softplus())
            .collect();
        Self { x: axis(&raw[..k]), y: axis(&raw[k..2 * k]), slopes: [&one, &inner[..], &one].concat() }
    }

    /// The bin of a number inside the box.
    fn bin(knots: &[Dual], x: f64) -> usize {
        knots[1..knots.len() - 1].iter().filter(|knot| knot.value <= x).count()
    }

    /// y and ln dy/dx of a number inside the box.
    fn map(&self, x: Dual) -> [Dual; 2] {
        let k = Self::bin(&self.x, x.value);
        let (width, height) = (self.x[k + 1] - self.x[k], self.y[k + 1] - self.y[k]);
        let (left, right, s) = (self.slopes[k], self.slopes[k + 1], height / width);
        let [one, two] = [1.0, 2.0].map(Dual::constant);
        let xi = (x - self.x[k]) / width;
        let rest = one - xi;
        let d = s + (left + right - two * s) * xi * rest;
        let y = self.y[k] + height * (s * xi * xi + left * xi * rest) / d;
        let n = right * xi * xi + two * s * xi * rest + left * rest * rest;
        [y, two * s.ln() + n.ln() - two * d.ln()]
    }

    /// Returns `true` if rounding may take a number to another bin.
    fn near(knots: &[Dual], x: f64, distance: f64) -> bool {
        knots.iter().any(|knot| (knot.value - x).abs() <= distance)
    }
}

/// Numbers with the parameters of their splines.
#[derive(Debug)]
struct Case {
    rule: Spline,
    x: Array,
    raw: Array,
    gy: Array,
    weights: Array,
}

impl Case {
    fn new<E: Element>(seed: u64, rule: Spline, [n, c]: [usize; 2]) -> Self {
        let mut draw = Draw::new(seed);
        let mut raw = draw.array::<E>([n, c * rule.parameters()]);
        // some bins and slopes at their floors
        raw.data.iter_mut().step_by(11).for_each(|r| *r *= 20.0);
        let raw = raw.rounded::<E>();
        let x = draw.uniform::<E>([n, c], -1.2 * rule.bound, 1.2 * rule.bound);
        let (gy, weights) = (draw.array::<E>([n, c]), draw.array::<E>([n, 1]));
        Self { rule, x, raw, gy, weights }
    }

    fn own(&self, i: usize) -> &[f64] {
        let p = self.rule.parameters();
        &self.raw.data[i * p..(i + 1) * p]
    }

    fn inside(&self, x: f64) -> bool {
        x.abs() < self.rule.bound
    }

    /// y and ln dy/dx of number i, moved to x, and the derivative of the logarithm in x.
    fn map(&self, i: usize, x: f64) -> [f64; 3] {
        if !self.inside(x) {
            return [x, 0.0, 0.0];
        }
        let [y, log] = Knots::new(&self.rule, self.own(i), None).map(Dual { value: x, slope: 1.0 });
        [y.value, log.value, log.slope]
    }

    /// The gradient of number i, moved to x, in x and in each parameter.
    fn gradient(&self, i: usize, x: f64) -> Vec<f64> {
        let (gy, weight) = (self.gy.data[i], self.weights.data[i / self.x.shape[1]]);
        let parameters = self.rule.parameters();
        if !self.inside(x) {
            return std::iter::once(gy).chain(std::iter::repeat_n(0.0, parameters)).collect();
        }
        let along = |parameter: Option<usize>| {
            let slope = f64::from(u8::from(parameter.is_none()));
            let [y, log] = Knots::new(&self.rule, self.own(i), parameter).map(Dual { value: x, slope });
            gy * y.slope + weight * log.slope
        };
        std::iter::once(None).chain((0..parameters).map(Some)).map(along).collect()
    }

    /// The distance by which rounding moves knots.
    fn blur<E: Element>(&self) -> f64 {
        4.0 * SPLINE * E::EPSILON * self.rule.bound
    }
}

fn rules() -> impl Strategy<Value = Spline> {
    (1usize..12, prop_oneof![Just(0.5), Just(3.0), Just(5.0)], prop_oneof![Just(1.0), Just(0.25)])
        .prop_map(|(bins, bound, sharpness)| Spline { bins, bound, sharpness })
}

/// `spline` over numbers inside and outside, and its composition.
pub fn spline<B: Backend>(backend: &B) {
    check("spline", (rules(), [extent(9), extent(5)], seed()), |(rule, shape, seed)| {
        let case = Case::new::<B::Elem>(seed, rule, shape);
        let mut draw = Draw::new(seed ^ 1);
        let (x, raw) = (draw.tensor(backend, &case.x), draw.tensor(backend, &case.raw));
        let got = backend.spline(&rule, &x, &raw);
        let composed = composed::spline(backend, &rule, &x, &raw);
        let exact: Vec<_> = case.x.data.iter().enumerate().map(|(i, &x)| case.map(i, x)).collect();
        let array = |f: &dyn Fn(&[f64; 3]) -> f64| Array::new(case.x.shape, exact.iter().map(f).collect());
        let sizes = [
            array(&|&[_, log, _]| rule.bound * (1.0 + log.exp())),
            array(&|&[_, log, turn]| 1.0 + log.abs() + rule.bound * turn.abs()),
        ];
        for (k, size) in sizes.iter().enumerate() {
            let what = ["spline, y", "spline, ln dy/dx"][k];
            let (got, composed) = (download(backend, &got[k]), download(backend, &composed[k]));
            assert_close::<B::Elem>(what, &got, &array(&|v| v[k]), size, SPLINE);
            assert_close::<B::Elem>(what, &got, &composed, size, 2.0 * SPLINE);
        }
    });
}

/// `spline_inverse` gives numbers that the spline maps back, and so does its composition.
pub fn spline_inverse<B: Backend>(backend: &B) {
    check("spline_inverse", (rules(), [extent(9), extent(5)], seed()), |(rule, shape, seed)| {
        let case = Case::new::<B::Elem>(seed, rule, shape);
        let mut draw = Draw::new(seed ^ 1);
        let (y, raw) = (draw.tensor(backend, &case.x), draw.tensor(backend, &case.raw));
        let got = backend.spline_inverse(&rule, &y, &raw);
        let composed = composed::spline_inverse(backend, &rule, &y, &raw);
        for (way, x) in [("fused", &got), ("composed", &composed)] {
            let x = download(backend, x);
            assert_eq!(x.shape, case.x.shape, "spline_inverse: the shape");
            for (i, (&x, &y)) in x.data.iter().zip(&case.x.data).enumerate() {
                let [back, log, _] = case.map(i, x);
                let units = SPLINE * rule.bound * (1.0 + log.exp());
                let fits = if case.inside(y) { within::<B::Elem>(back, y, units * B::Elem::EPSILON) } else { x == y };
                assert!(fits, "spline_inverse, {way}: x = {x:e} is mapped to {back:e}, not to {y:e}");
            }
        }
    });
}

/// `spline_reverse` in x and in every parameter, and its composition.
pub fn spline_reverse<B: Backend>(backend: &B) {
    check("spline_reverse", (rules(), [extent(6), extent(4)], seed()), |(rule, shape, seed)| {
        let case = Case::new::<B::Elem>(seed, rule, shape);
        let mut draw = Draw::new(seed ^ 1);
        let [x, raw, gy, weights] =
            [&case.x, &case.raw, &case.gy, &case.weights].map(|array| draw.tensor(backend, array));
        let got = backend.spline_reverse(&rule, &x, &raw, &gy, &weights);
        let composed = composed::spline_reverse(backend, &rule, &x, &raw, &gy, &weights);
        let [got, composed] = [got, composed].map(|out| [download(backend, &out.gx), download(backend, &out.graw)]);
        for out in [&got, &composed] {
            assert_eq!([out[0].shape, out[1].shape], [case.x.shape, case.raw.shape], "spline_reverse: the shapes");
        }
        let (p, blur) = (rule.parameters(), case.blur::<B::Elem>());
        for (i, &x) in case.x.data.iter().enumerate() {
            let knots = Knots::new(&rule, case.own(i), None);
            if Knots::near(&knots.x, x, 2.0 * blur) {
                continue;
            }
            let (want, moved) = (case.gradient(i, x), [x - blur, x + blur].map(|x| case.gradient(i, x)));
            let [_, log, turn] = case.map(i, x);
            let (gy, weight) = (case.gy.data[i].abs(), case.weights.data[i / case.x.shape[1]].abs());
            // the log's derivative in x is a difference of terms that are as large as this
            let bin = Knots::bin(&knots.x, x);
            let width = knots.x[bin + 1].value - knots.x[bin].value;
            let steepest = knots.slopes[bin].value.max(knots.slopes[bin + 1].value);
            let s = (knots.y[bin + 1].value - knots.y[bin].value) / width;
            let terms = (1.0 + steepest / s + s / log.exp().min(s)) / width + turn.abs();
            let largest = want[1..].iter().fold(0.0, |a: f64, g| a.max(g.abs()));
            for (out, other, way) in [(&got, &got, "fused"), (&composed, &got, "composed")] {
                for (j, &want) in want.iter().enumerate() {
                    let pick = |out: &[Array; 2]| if j == 0 { out[0].data[i] } else { out[1].data[i * p + j - 1] };
                    let size = if j == 0 {
                        gy * (1.0 + log.exp()) + weight * terms
                    } else {
                        largest + (gy + weight) * rule.bound.max(1.0)
                    };
                    let drift = (moved[0][j] - want).abs().max((moved[1][j] - want).abs());
                    let allowed = SPLINE * B::Elem::EPSILON * size + drift;
                    let what = ["x", "a raw parameter"][usize::from(j > 0)];
                    for (found, units) in [(want, 1.0), (pick(other), 2.0)] {
                        assert!(
                            within::<B::Elem>(pick(out), found, units * allowed),
                            "spline_reverse, {way}: number {i} in {what} ({j}) has {:e}, not {found:e} (allowed {:e})",
                            pick(out),
                            units * allowed
                        );
                    }
                }
            }
        }
    });
}

/// Borders, infinities, NaN and huge numbers stay what they are, with a slope of one and gradients that are zero; zeros
/// are the identity.
pub fn spline_special_values<B: Backend>(backend: &B) {
    let rule = Spline { bins: 8, bound: 3.0, sharpness: 1.0 };
    let outside = [3.0, -3.0, 3.5, -1e30, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    let count = outside.len();
    let mut draw = Draw::new(7);
    let x = Array::new([count, 1], outside.to_vec()).rounded::<B::Elem>();
    let raw = draw.array::<B::Elem>([count, rule.parameters()]);
    let (dx, draw_raw) = (upload(backend, &x), upload(backend, &raw));
    let ones = upload(backend, &Array::full([count, 1], 1.0));
    let same = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan();
    for fused in [true, false] {
        let ([y, log], back, gradient) = if fused {
            (
                backend.spline(&rule, &dx, &draw_raw),
                backend.spline_inverse(&rule, &dx, &draw_raw),
                backend.spline_reverse(&rule, &dx, &draw_raw, &ones, &ones),
            )
        } else {
            (
                composed::spline(backend, &rule, &dx, &draw_raw),
                composed::spline_inverse(backend, &rule, &dx, &draw_raw),
                composed::spline_reverse(backend, &rule, &dx, &draw_raw, &ones, &ones),
            )
        };
        let (y, log, back) = (download(backend, &y), download(backend, &log), download(backend, &back));
        let (gx, graw) = (download(backend, &gradient.gx), download(backend, &gradient.graw));
        for (i, &x) in x.data.iter().enumerate() {
            assert!(same(y.data[i], x) && same(back.data[i], x), "spline: {x} is outside, but is mapped");
            assert!(log.data[i] == 0.0 && gx.data[i] == 1.0, "spline: the slope at {x}, outside, is one");
        }
        assert!(graw.data.iter().all(|&g| g == 0.0), "spline_reverse: numbers outside have no gradient in parameters");
    }
    // exact knots among them
    let x = Array::from_fn([13, 1], |i| -3.0 + 0.5 * i[0] as f64);
    let [y, log] = backend.spline(&rule, &upload(backend, &x), &backend.full(0.0, [13, rule.parameters()].into()));
    let size = Array::full([13, 1], 3.0);
    assert_close::<B::Elem>("spline of zeros, y", &download(backend, &y), &x, &size, SPLINE);
    let zeros = Array::full([13, 1], 0.0);
    assert_close::<B::Elem>("spline of zeros, ln dy/dx", &download(backend, &log), &zeros, &size, SPLINE);
}
