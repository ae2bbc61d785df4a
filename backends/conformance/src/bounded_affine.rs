//! Bounded scales and shifts, rows and images, told each or all the same, against their definition and their composition.
//!
//! The unit of y is |x| e^a + |m| with what a is off by, which is a relative error of e^a: so tolerances grow with A.

use proptest::prelude::*;
use resflow_backend::{Backend, Element, Shape, composed};

use crate::draw::{Draw, check, download, extent, seed};
use crate::reference::Array;
use crate::tolerance::{ACTIVATION, assert_close, sum};

/// Samples and what they are told.
#[derive(Debug)]
struct Case {
    most: f64,
    x: Array,
    told: Array,
    gy: Array,
    weights: Array,
    pixels: usize,
    d: usize,
}

impl Case {
    fn new<E: Element>(seed: u64, most: f64, [n, h, w, d]: [usize; 4], images: bool, shared: bool) -> Self {
        let mut draw = Draw::new(seed);
        let (shape, pixels): (Shape, _) = if images { ([n, h, w, d].into(), h * w) } else { ([n, d].into(), 1) };
        let mut told = draw.array::<E>([if shared { 1 } else { n }, 2 * d]);
        // some scales at their bound
        told.data.iter_mut().step_by(7).for_each(|t| *t *= 10.0);
        let told = told.rounded::<E>();
        let [x, gy] = [(); 2].map(|()| draw.array::<E>(shape));
        let weights = draw.array::<E>([n, 1]);
        Self { most, x, told, gy, weights, pixels, d }
    }

    /// a/A and m of a sample's feature.
    fn told(&self, sample: usize, j: usize) -> [f64; 2] {
        let row = if self.told.shape[0] == 1 { 0 } else { sample };
        let at = |k: usize| self.told.data[row * 2 * self.d + k];
        [(at(j) / self.most).tanh(), at(self.d + j)]
    }

    /// The number of a sample and of its feature.
    fn place(&self, i: usize) -> [usize; 2] {
        [i / (self.pixels * self.d), i % self.d]
    }

    /// e^a of number i.
    fn scale(&self, i: usize) -> f64 {
        let [sample, j] = self.place(i);
        (self.most * self.told(sample, j)[0]).exp()
    }

    fn units(&self) -> f64 {
        ACTIVATION * (1.0 + self.most)
    }

    /// A number of each element of x.
    fn each(&self, f: impl Fn(usize) -> f64) -> Array {
        Array::new(self.x.shape, (0..self.x.data.len()).map(f).collect())
    }

    /// Sums over pixels of the numbers of each sample and feature, and of the magnitudes.
    fn over_pixels(&self, f: impl Fn(usize) -> f64) -> Array {
        let n = self.x.shape[0];
        let mut out = Array::full([n, self.d], 0.0);
        for i in 0..self.x.data.len() {
            let [sample, j] = self.place(i);
            out.data[sample * self.d + j] += f(i);
        }
        out
    }
}

fn cases() -> impl Strategy<Value = (f64, [usize; 4], bool, bool, u64)> {
    let shape = (extent(6), 1usize..4, 1usize..4, 1usize..40).prop_map(|(n, h, w, d)| [n, h, w, d]);
    (prop_oneof![Just(3.0), Just(0.5), Just(20.0)], shape, any::<bool>(), any::<bool>(), seed())
}

/// `bounded_affine`, and its composition.
pub fn bounded_affine<B: Backend>(backend: &B) {
    check("bounded_affine", cases(), |(most, shape, images, shared, seed)| {
        let case = Case::new::<B::Elem>(seed, most, shape, images, shared);
        let mut draw = Draw::new(seed ^ 1);
        let (x, told) = (draw.tensor(backend, &case.x), draw.tensor(backend, &case.told));
        let fused = backend.bounded_affine(most, &x, &told);
        let composed = composed::bounded_affine(backend, most, &x, &told);
        let shift = |i: usize| {
            let [sample, j] = case.place(i);
            case.told(sample, j)[1]
        };
        let y = case.each(|i| case.x.data[i] * case.scale(i) + shift(i));
        let size = case.each(|i| (case.x.data[i] * case.scale(i)).abs() + shift(i).abs());
        let n = case.x.shape[0];
        let log_det = |magnitude: bool| {
            let own = |sample: usize| {
                let a = (0..case.d).map(|j| most * case.told(sample, j)[0]);
                case.pixels as f64 * a.map(|a| if magnitude { a.abs() } else { a }).sum::<f64>()
            };
            Array::new([n, 1], (0..n).map(own).collect())
        };
        for [got_y, got_log_det] in [&fused, &composed] {
            let (got_y, got_log_det) = (download(backend, got_y), download(backend, got_log_det));
            assert_close::<B::Elem>("bounded_affine, y", &got_y, &y, &size, case.units());
            let units = ACTIVATION * sum(case.d);
            assert_close::<B::Elem>("bounded_affine, ln|det|", &got_log_det, &log_det(false), &log_det(true), units);
        }
    });
}

/// `bounded_affine_reverse` in x and in what samples are told, and its composition.
pub fn bounded_affine_reverse<B: Backend>(backend: &B) {
    check("bounded_affine_reverse", cases(), |(most, shape, images, shared, seed)| {
        let case = Case::new::<B::Elem>(seed, most, shape, images, shared);
        let mut draw = Draw::new(seed ^ 1);
        let [x, told, gy, weights] =
            [&case.x, &case.told, &case.gy, &case.weights].map(|array| draw.tensor(backend, array));
        let fused = backend.bounded_affine_reverse(most, &x, &told, &gy, &weights);
        let composed = composed::bounded_affine_reverse(backend, most, &x, &told, &gy, &weights);
        let gx = case.each(|i| case.gy.data[i] * case.scale(i));
        let through = |i: usize| gx.data[i] * case.x.data[i];
        let slope = |sample: usize, j: usize| 1.0 - case.told(sample, j)[0].powi(2);
        let of_told = |magnitude: bool| {
            let sign = |x: f64| if magnitude { x.abs() } else { x };
            let mut of_raw = case.over_pixels(|i| sign(through(i)));
            for (k, g) in of_raw.data.iter_mut().enumerate() {
                let (sample, j) = (k / case.d, k % case.d);
                *g += case.pixels as f64 * sign(case.weights.data[sample]);
                // 1 − tanh² is off by what 1 is
                *g *= if magnitude { 1.0 } else { slope(sample, j) };
            }
            Array::concat(&[&of_raw, &case.over_pixels(|i| sign(case.gy.data[i]))], 1)
        };
        for out in [&fused, &composed] {
            let (got_x, got_told) = (download(backend, &out.gx), download(backend, &out.gtold));
            assert_close::<B::Elem>("bounded_affine_reverse, x", &got_x, &gx, &gx.abs(), case.units());
            let units = case.units() + ACTIVATION * sum(case.pixels);
            let what = "bounded_affine_reverse, told";
            assert_close::<B::Elem>(what, &got_told, &of_told(false), &of_told(true), units);
        }
    });
}
